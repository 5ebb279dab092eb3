//! DNAT rules to the host's loopback, as `iptables-save -t nat` prints them. Pure.
//!
//! Invariant: a rule with a condition that is not known here is left alone, whatever it says.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;

use super::{Forward, Listen};
use crate::model::target::{Port, Target};

/// A rule that leads to loopback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// As it is printed, without `-A`.
    pub text: String,
    /// The interface that it is for, if it names one.
    pub interface: Option<String>,
    /// What it is, or why it is left alone.
    pub forward: Result<Forward, String>,
}

/// The rules of PREROUTING, and of the chains below, that lead to 127.0.0.0/8.
pub fn rules(saved: &str) -> Vec<Rule> {
    let rules = saved.lines().filter_map(|line| line.strip_prefix("-A "));
    rules.filter(|rule| !rule.starts_with("OUTPUT ")).filter_map(rule).collect()
}

#[derive(Default)]
struct Conditions {
    interface: Option<String>,
    destination: Option<IpNet>,
    source: Option<IpNet>,
    port: Option<Port>,
    is_tcp: bool,
    to: Option<String>,
}

fn rule(text: &str) -> Option<Rule> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let to = words.iter().position(|word| *word == "--to-destination").and_then(|at| words.get(at + 1))?;
    let host = to.split(':').next().unwrap_or_default();
    if !host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback()) {
        return None;
    }
    let mut conditions = Conditions::default();
    let forward = conditions.read(&words).and_then(|()| conditions.forward());
    Some(Rule { text: text.to_owned(), interface: conditions.interface, forward })
}

impl Conditions {
    fn read(&mut self, words: &[&str]) -> Result<(), String> {
        let mut rest = words.iter().skip(1);
        while let Some(word) = rest.next() {
            let mut value = || rest.next().copied().ok_or_else(|| format!("{word} has no value"));
            match *word {
                "-p" => self.is_tcp = value()? == "tcp",
                "-i" => self.interface = Some(value()?.to_owned()),
                "-d" => self.destination = Some(subnet(value()?)?),
                "-s" => self.source = Some(subnet(value()?)?),
                "--dport" => {
                    let port = value()?;
                    self.port =
                        Some(port.parse().map_err(|_| format!("it is for the ports {port}, expected one"))?);
                }
                "--to-destination" => self.to = Some(value()?.to_owned()),
                "-m" | "--comment" => drop(comment(value()?, &mut rest)),
                "-j" if value()? == "DNAT" => {}
                "--dst-type" | "--ctstate" => drop(value()?),
                other => return Err(format!("it has the condition {other}, which is not known here")),
            }
        }
        Ok(())
    }

    fn forward(&self) -> Result<Forward, String> {
        if !self.is_tcp {
            return Err("it is not for TCP alone".to_owned());
        }
        let port = self.port.ok_or("it is for every port")?;
        let to = self.to.as_deref().unwrap_or_default();
        let target =
            to.parse::<SocketAddr>().or_else(|_| to.parse().map(|ip| SocketAddr::new(ip, port.get())));
        let target = target.map_err(|_| format!("it leads to {to}, expected one address and port"))?;
        let address = match self.destination {
            None => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Some(net) if net.prefix_len() == 32 => net.addr(),
            Some(net) => return Err(format!("it is for all of {net}")),
        };
        Ok(Forward {
            listen: Listen { address, both_families: false, port },
            target: Target::Tcp(target),
            allow: self.source.into_iter().collect(),
            notes: vec![
                "it takes route_localnet, which opens loopback to neighbours: turn that off afterwards"
                    .to_owned(),
            ],
            max_connections: None,
            idle_timeout: None,
        })
    }
}

fn subnet(text: &str) -> Result<IpNet, String> {
    let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    net.map_err(|_| format!("it is for {text}, expected a subnet"))
}

/// Skips what a quoted comment goes on with.
fn comment<'a>(first: &str, rest: &mut impl Iterator<Item = &'a &'a str>) -> Option<()> {
    if first.starts_with('"') && !(first.len() > 1 && first.ends_with('"')) {
        rest.find(|word| word.ends_with('"'))?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n\
        -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
        -A PREROUTING -d 172.17.0.1/32 -i docker0 -p tcp -m tcp --dport 6379 -m comment --comment \"to redis\" \
        -j DNAT --to-destination 127.0.0.1:6379\n\
        -A PREROUTING -s 172.18.0.0/16 -p tcp -m tcp --dport 80 -j DNAT --to-destination 127.0.0.1:8080\n\
        -A PREROUTING -p udp -m udp --dport 53 -j DNAT --to-destination 127.0.0.1:53\n\
        -A PREROUTING -p tcp -m tcp --dport 81:90 -j DNAT --to-destination 127.0.0.1\n\
        -A PREROUTING -p tcp -m tcp --dport 91 ! -s 10.0.0.0/8 -j DNAT --to-destination 127.0.0.1\n\
        -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80\n\
        -A OUTPUT -p tcp -m tcp --dport 6379 -j DNAT --to-destination 127.0.0.1:6379\nCOMMIT\n";

    #[test]
    fn rules_to_loopback_are_found() {
        let found = rules(SAVED);
        assert_eq!(found.len(), 5);
        let first = found[0].forward.as_ref().unwrap();
        assert_eq!(format!("{} -> {}", first.listen, first.target), "172.17.0.1:6379 -> 127.0.0.1:6379");
        assert_eq!(found[0].interface.as_deref(), Some("docker0"));
        let second = found[1].forward.as_ref().unwrap();
        assert_eq!(second.listen.to_string(), "0.0.0.0:80");
        assert_eq!(second.allow, ["172.18.0.0/16".parse::<IpNet>().unwrap()]);
        let reasons: Vec<_> = found[2..].iter().map(|rule| rule.forward.clone().unwrap_err()).collect();
        for (reason, why) in reasons.iter().zip(["not for TCP", "ports 81:90", "condition !"]) {
            assert!(reason.contains(why), "{reason}");
        }
    }
}
