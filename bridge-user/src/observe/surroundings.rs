//! What a list of sockets does not show: NAT rules that take connections elsewhere, and listeners that only hold ports.
//!
//! Invariants: read once for all attachments of a namespace; what cannot be read is said, and never taken for nothing.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;

use crate::{
    model::{attachment::Attachment, bridge::Bridge, listener::Listener, source::Source},
    net::{
        NetError,
        links::own_addresses,
        namespace::Namespace,
        proc_fd::{self, Owner},
        reach::{Answer, answer_at},
    },
    netfilter::nat::{NatRules, Packet, Redirection},
};

/// Engines, and what they leave behind, that hold a published port with a listener which nobody accepts from: a NAT
/// rule is to carry the connections. (docker-proxy and rootlessport are real relays.) `true`: it has no others.
const HOLDERS: [(&str, bool); 3] = [("dockerd", false), ("crio", false), ("conmon", true)];

/// What is around the attachments of a namespace.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// The NAT rules that a connection meets first.
    pub nat: NatRules,
    /// Who holds the listeners of targets, by inode.
    pub(super) holders: HashMap<u64, Owner>,
    /// Targets without a listener that something answers at all the same, as far as that was tried.
    pub(super) answered: BTreeSet<SocketAddr>,
    /// Every address that an interface of this host has.
    pub(super) addresses: BTreeSet<IpAddr>,
}

/// A listener that only holds its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placeholder {
    /// Where it listens.
    pub address: SocketAddr,
    /// `dockerd (pid 812)`.
    pub holder: String,
    /// The container whose port it is, where the holder says so.
    pub container: Option<String>,
    /// The rule that carries this host's own connections to the container.
    pub rule: Option<Redirection>,
}

impl Surroundings {
    /// Of these targets, in a namespace with these listeners.
    ///
    /// # Errors
    /// When the kernel does not tell the host's addresses.
    pub fn of(
        namespace: &Namespace,
        targets: &[SocketAddr],
        listeners: &[Listener],
    ) -> Result<Self, NetError> {
        let serves = |listener: &&Listener| targets.iter().any(|&target| listener.serves(target));
        let inodes: HashSet<u64> = listeners.iter().filter(serves).map(|listener| listener.inode).collect();
        let holders = if inodes.is_empty() { HashMap::new() } else { proc_fd::owners_of(&inodes) };
        let addresses = own_addresses(namespace)?;
        Ok(Self { nat: NatRules::read(namespace), holders, answered: BTreeSet::new(), addresses })
    }

    /// The same, and what answers at targets of relays that have no listener: a relay is served wherever this host is.
    ///
    /// # Errors
    /// When a connection cannot be tried.
    pub fn of_relays(
        namespace: &Namespace,
        targets: &[SocketAddr],
        listeners: &[Listener],
    ) -> Result<Self, NetError> {
        let mut around = Self::of(namespace, targets, listeners)?;
        for &target in targets {
            let has_listener = listeners.iter().any(|listener| listener.serves(target));
            if !has_listener && answer_at(namespace, target)? == Answer::Elsewhere {
                around.answered.insert(target);
            }
        }
        Ok(around)
    }

    /// The rule that carries this host's own connections to `target` elsewhere.
    pub fn carried_elsewhere(&self, target: SocketAddr) -> Option<Redirection> {
        let (address, port) = (target.ip(), target.port());
        self.nat.redirection(&Packet { interface: None, address, port, sources: &[IpNet::from(address)] })
    }

    /// The rule that takes connections to an attachment's port elsewhere before anything of ours sees them, with the
    /// gateway that they are for.
    pub fn in_front(&self, state: &Attachment, bridge: &Bridge) -> Option<(IpAddr, Redirection)> {
        let mut sources: Vec<IpNet> = bridge.addrs.iter().map(IpNet::trunc).collect();
        sources.extend(state.allow.iter().map(Source::widest));
        state.gateways.iter().find_map(|&address| {
            let is_family = |net: &&IpNet| net.addr().is_ipv4() == address.is_ipv4();
            let sources: Vec<IpNet> = sources.iter().filter(is_family).copied().collect();
            let interface = Some(bridge.name.as_str());
            let packet = Packet { interface, address, port: state.port.get(), sources: &sources };
            self.nat.redirection(&packet).map(|found| (address, found))
        })
    }

    /// The listener that would get the connections to `target`, if it is one that only holds the port. `publisher`
    /// knows the container that publishes it, where an engine can be asked.
    pub fn placeholder(
        &self,
        target: SocketAddr,
        listeners: &[Listener],
        publisher: impl Fn(SocketAddr) -> Option<String>,
    ) -> Option<Placeholder> {
        let serving = listeners.iter().filter(|listener| listener.serves(target));
        let listener = serving.min_by_key(|listener| listener.is_on_every_address())?;
        let owner = self.holders.get(&listener.inode)?;
        let (_, is_certain) = HOLDERS.iter().find(|(name, _)| *name == owner.comm)?;
        let rule = self.carried_elsewhere(target);
        let container = named_by(owner).or_else(|| publisher(target));
        // dockerd may serve its own API there.
        (*is_certain || rule.is_some() || container.is_some()).then(|| Placeholder {
            address: listener.addr,
            holder: owner.to_string(),
            container,
            rule,
        })
    }
}

/// conmon is started for one container, with its name (`-n`).
fn named_by(owner: &Owner) -> Option<String> {
    let arguments = fs::read(format!("/proc/{}/cmdline", owner.pid)).ok()?;
    let mut words = arguments.split(|&byte| byte == 0).skip_while(|word| *word != b"-n").skip(1);
    Some(String::from_utf8_lossy(words.next()?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::readiness::tests::{bridge, listener, state};

    const RULE: &str = "-A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER\n\
                        -A DOCKER -d 127.0.0.1/32 -p tcp -m tcp --dport 6379 -j DNAT --to-destination 172.17.0.2:6379";

    fn around(rules: &str, comm: &str) -> Surroundings {
        // No process has this id.
        let owner = Owner { pid: i32::MAX, fd: 3, comm: comm.to_owned() };
        Surroundings {
            nat: NatRules::of_iptables(rules),
            holders: HashMap::from([(1, owner)]),
            ..Surroundings::default()
        }
    }

    fn held(rules: &str, comm: &str, publisher: Option<&str>) -> Option<Placeholder> {
        let target = state().target.tcp().unwrap();
        let listeners = [listener("127.0.0.1:6379", 5, false)];
        around(rules, comm).placeholder(target, &listeners, |_| publisher.map(str::to_owned))
    }

    #[test]
    fn an_engines_listener_is_a_placeholder_where_a_rule_or_the_engine_says_so() {
        assert_eq!(held(RULE, "redis-server", None), None);
        assert_eq!(held("", "dockerd", None), None, "its API");
        let found = held(RULE, "dockerd", None).unwrap();
        assert!(found.rule.is_some_and(|rule| rule.is_certain && rule.place.starts_with("chain DOCKER")));
        assert_eq!(held("", "dockerd", Some("web")).unwrap().container.as_deref(), Some("web"));
        assert!(held("", "conmon", None).is_some());
    }

    #[test]
    fn a_rule_in_front_is_found_for_the_gateway_and_not_for_another_network() {
        let rules = |interface: &str| {
            format!(
                "-A PREROUTING {interface} -p tcp -m tcp --dport 6379 -j DNAT --to-destination 172.17.0.2:6379"
            )
        };
        let front = |rules: String| around(&rules, "").in_front(&state(), &bridge());
        let (gateway, rule) = front(rules("! -i br-x")).unwrap();
        assert!(rule.is_certain && gateway.to_string() == "172.17.0.1");
        assert_eq!(front(rules("! -i docker0")), None);
    }
}
