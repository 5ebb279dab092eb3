//! Which datapath serves an attachment, and why. Pure: facts in, decision out.
//!
//! `auto` steers wherever steering can serve. What it cannot serve is relayed with splice(2), which the project's own
//! benchmark (`cargo xtask bench relay`) shows ahead of the socket map in bulk and in connections per second; see
//! ARCHITECTURE.md for the numbers.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize, Serializer};

use super::{identity::Identity, target::Target};

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Requested {
    /// The best one that works here.
    #[default]
    Auto,
    /// In-kernel steering onto the loopback listener.
    Steer,
    /// Relay through a sockmap.
    Sockmap,
    /// Relay through splice(2).
    Splice,
    /// Steering plus sk_msg between the end sockets.
    Express,
}

/// What carries the connections of an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Datapath {
    /// `sk_lookup` puts the connection onto the loopback listener.
    Steer,
    /// A tc program puts it onto the loopback listener, an MPTCP one.
    SteerTc,
    /// A process accepts and connects; a socket map moves the bytes.
    Sockmap,
    /// A process accepts and connects, and moves the bytes with splice(2).
    Splice,
}

impl Datapath {
    /// Whether a process of ours has to run for it.
    pub const fn is_relay(self) -> bool {
        matches!(self, Self::Sockmap | Self::Splice)
    }
}

impl fmt::Display for Datapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Steer => "steer",
            Self::SteerTc => "steer-tc",
            Self::Sockmap => "sockmap",
            Self::Splice => "splice",
        })
    }
}

/// Why a datapath was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A probe connection was really steered on this kernel.
    ProbePassed,
    /// The user asked for it.
    Requested(Datapath),
    /// The target is a UNIX socket.
    UnixTarget,
    /// The user asked for the socket map, and the target is a UNIX socket.
    UnixTargetNotInSockmap,
    /// The target's listener uses MPTCP, and steering to MPTCP does not work on this host; says why.
    Mptcp(String),
    /// A PROXY header has to be written, which takes a relay.
    ProxyProtocol,
    /// Steering does not work on this host; says why.
    SteeringFailed(String),
    /// The loopback identity was asked for, and a steered connection cannot have it on this host; says why.
    NoLoopbackIdentity(String),
    /// The target or the bridge is such that steering cannot serve, and a relay does; says what is so.
    OnlyRelayed(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ProbePassed => f.write_str("probe passed"),
            Self::Requested(datapath) => write!(f, "requested with --datapath {datapath}"),
            Self::UnixTarget => f.write_str("a UNIX socket cannot be steered to"),
            Self::UnixTargetNotInSockmap => {
                f.write_str("what was written to a UNIX socket cannot be accounted in a socket map")
            }
            Self::Mptcp(why) => {
                write!(f, "the listener uses MPTCP, and steering to MPTCP does not work here: {why}")
            }
            Self::ProxyProtocol => f.write_str("a PROXY header is written by a relay only"),
            Self::SteeringFailed(why) => write!(f, "steering does not work here: {why}"),
            Self::NoLoopbackIdentity(why) => {
                write!(f, "a steered connection cannot have the loopback identity here: {why}")
            }
            Self::OnlyRelayed(why) => f.write_str(why),
        }
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What is known about the host, and what was asked for on all attachments of a call.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// The datapath asked for.
    pub requested: Requested,
    /// Whether steering works, if that was looked at; why not.
    pub steer: Result<(), String>,
    /// Whether steering to MPTCP listeners works, if that was looked at; why not.
    pub mptcp: Result<(), String>,
    /// Whether the sockmap relay may be used, if that was looked at; why not.
    pub sockmap: Result<(), String>,
    /// A PROXY header was asked for.
    pub proxy_protocol: bool,
    /// Whom the service is to see.
    pub identity: Identity,
    /// Whether a steered connection can have the loopback identity, if that was looked at; why not.
    pub loopback: Result<(), String>,
}

/// What is so of one target on one network.
#[derive(Clone, Copy, Debug, Default)]
pub struct Circumstances<'a> {
    /// Only an MPTCP listener serves the target now.
    pub mptcp: bool,
    /// Why only a relay can serve it, if that is so.
    pub only_relayed: Option<&'a str>,
}

/// Chooses the datapath for one target.
///
/// # Errors
/// When what was asked for cannot serve the target, or is not in this version; the text says what to do instead.
pub fn choose(
    facts: &Capabilities,
    target: &Target,
    Circumstances { mptcp, only_relayed }: Circumstances<'_>,
) -> Result<(Datapath, Reason), String> {
    let unix = matches!(target, Target::Unix(_));
    match (facts.requested, only_relayed) {
        (Requested::Auto, Some(why)) => return Ok((Datapath::Splice, Reason::OnlyRelayed(why.to_owned()))),
        (Requested::Steer, Some(why)) => {
            return Err(format!("{why}, so steering cannot serve it: use --datapath auto with --foreground"));
        }
        _ => {}
    }
    match facts.requested {
        Requested::Auto if unix => Ok((Datapath::Splice, Reason::UnixTarget)),
        Requested::Auto if facts.proxy_protocol => Ok((Datapath::Splice, Reason::ProxyProtocol)),
        Requested::Auto => Ok(match (&facts.steer, &facts.mptcp, &facts.loopback) {
            (Err(why), ..) => (Datapath::Splice, Reason::SteeringFailed(why.clone())),
            (_, Err(why), _) if mptcp => (Datapath::Splice, Reason::Mptcp(why.clone())),
            (.., Err(why)) if facts.identity == Identity::Loopback => {
                (Datapath::Splice, Reason::NoLoopbackIdentity(why.clone()))
            }
            _ => (Datapath::Steer, Reason::ProbePassed),
        }),
        Requested::Steer => steer(facts, target, mptcp),
        Requested::Splice => Ok((Datapath::Splice, Reason::Requested(Datapath::Splice))),
        Requested::Sockmap if unix => Ok((Datapath::Splice, Reason::UnixTargetNotInSockmap)),
        Requested::Sockmap => {
            facts.sockmap.clone().map(|()| (Datapath::Sockmap, Reason::Requested(Datapath::Sockmap)))
        }
        Requested::Express => {
            Err("--datapath express is not in this version, expected auto, steer, sockmap or \
                                   splice: use --datapath auto"
                .to_owned())
        }
    }
}

/// Whether steering can be asked for, on whatever host.
///
/// # Errors
/// When the target or the PROXY header takes a relay; the text says what to do instead.
pub fn steerable(target: &Target, proxy_protocol: bool) -> Result<(), String> {
    if let Target::Unix(path) = target {
        return Err(format!(
            "unix:{} cannot be steered to, which takes a TCP listener on 127.0.0.1 or ::1: use --datapath auto",
            path.display()
        ));
    }
    if proxy_protocol {
        return Err("steering hands over the client's own connection, where nobody can write a PROXY header (and the \
                    service sees the container's address anyway): use --datapath auto, or leave --proxy-protocol out"
            .to_owned());
    }
    Ok(())
}

fn steer(facts: &Capabilities, target: &Target, mptcp: bool) -> Result<(Datapath, Reason), String> {
    steerable(target, facts.proxy_protocol)?;
    if let (true, Err(why)) = (mptcp, &facts.mptcp) {
        return Err(format!(
            "the listener on {target} uses MPTCP, and steering to MPTCP does not work here ({why}): use --datapath \
             auto with --foreground, or start the service with MPTCP off (Go programs: GODEBUG=multipathtcp=0)"
        ));
    }
    if let (Identity::Loopback, Err(why)) = (facts.identity, &facts.loopback) {
        return Err(format!(
            "a steered connection cannot have the loopback identity here ({why}): use --datapath auto with \
             --foreground, or --identity container"
        ));
    }
    facts.steer.clone().map(|()| (Datapath::Steer, Reason::Requested(Datapath::Steer)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const PLAIN: Circumstances<'_> = Circumstances { mptcp: false, only_relayed: None };
    const MPTCP: Circumstances<'_> = Circumstances { mptcp: true, ..PLAIN };

    fn tcp() -> Target {
        Target::Tcp("127.0.0.1:6379".parse().unwrap())
    }

    fn unix() -> Target {
        Target::Unix("/run/x.sock".into())
    }

    /// A host where everything works.
    pub(crate) fn facts(requested: Requested) -> Capabilities {
        Capabilities {
            requested,
            steer: Ok(()),
            mptcp: Ok(()),
            sockmap: Ok(()),
            proxy_protocol: false,
            identity: Identity::Container,
            loopback: Ok(()),
        }
    }

    #[test]
    fn auto_steers_what_it_can_and_splices_the_rest() {
        let auto = facts(Requested::Auto);
        assert_eq!(choose(&auto, &tcp(), PLAIN), Ok((Datapath::Steer, Reason::ProbePassed)));
        assert_eq!(choose(&auto, &tcp(), MPTCP), Ok((Datapath::Steer, Reason::ProbePassed)));
        let no_tc = Capabilities { mptcp: Err("no nft".into()), ..auto.clone() };
        assert_eq!(choose(&no_tc, &tcp(), PLAIN), Ok((Datapath::Steer, Reason::ProbePassed)));
        assert_eq!(choose(&no_tc, &tcp(), MPTCP), Ok((Datapath::Splice, Reason::Mptcp("no nft".into()))));
        assert_eq!(choose(&auto, &unix(), PLAIN), Ok((Datapath::Splice, Reason::UnixTarget)));
        let proxy = Capabilities { proxy_protocol: true, ..auto.clone() };
        assert_eq!(choose(&proxy, &tcp(), PLAIN), Ok((Datapath::Splice, Reason::ProxyProtocol)));
        let no_hooks = Capabilities { loopback: Err("no hook".into()), ..auto.clone() };
        assert_eq!(choose(&no_hooks, &tcp(), PLAIN), Ok((Datapath::Steer, Reason::ProbePassed)));
        let local = Capabilities { identity: Identity::Loopback, ..no_hooks };
        let reason = Reason::NoLoopbackIdentity("no hook".into());
        assert_eq!(choose(&local, &tcp(), PLAIN), Ok((Datapath::Splice, reason)));
        let broken = Capabilities { steer: Err("no sk_lookup".into()), ..auto };
        let (datapath, reason) = choose(&broken, &tcp(), PLAIN).unwrap();
        assert_eq!(datapath, Datapath::Splice);
        assert!(reason.to_string().contains("no sk_lookup"), "{reason}");
    }

    #[test]
    fn what_was_asked_for_is_used_or_refused_never_replaced() {
        let requested = |datapath| Ok((datapath, Reason::Requested(datapath)));
        assert_eq!(choose(&facts(Requested::Steer), &tcp(), PLAIN), requested(Datapath::Steer));
        assert_eq!(choose(&facts(Requested::Splice), &tcp(), MPTCP), requested(Datapath::Splice));
        assert_eq!(choose(&facts(Requested::Splice), &unix(), PLAIN), requested(Datapath::Splice));
        assert_eq!(choose(&facts(Requested::Sockmap), &tcp(), MPTCP), requested(Datapath::Sockmap));
        let floor = Capabilities { sockmap: Err("below the floor".into()), ..facts(Requested::Sockmap) };
        assert_eq!(choose(&floor, &tcp(), PLAIN), Err("below the floor".into()));
    }

    #[test]
    fn a_unix_target_is_spliced_also_where_the_socket_map_was_asked_for() {
        let choice = choose(&facts(Requested::Sockmap), &unix(), PLAIN);
        assert_eq!(choice, Ok((Datapath::Splice, Reason::UnixTargetNotInSockmap)));
    }

    #[test]
    fn steer_is_refused_with_the_way_out() {
        let steer = facts(Requested::Steer);
        let error = choose(&steer, &unix(), PLAIN).unwrap_err();
        assert!(error.contains("/run/x.sock") && error.contains("127.0.0.1"), "{error}");
        let no_tc = Capabilities { mptcp: Err("no nft".into()), ..steer.clone() };
        let error = choose(&no_tc, &tcp(), MPTCP).unwrap_err();
        assert!(error.contains("MPTCP") && error.contains("GODEBUG=multipathtcp=0"), "{error}");
        let no_hooks =
            Capabilities { identity: Identity::Loopback, loopback: Err("no hook".into()), ..steer.clone() };
        let error = choose(&no_hooks, &tcp(), PLAIN).unwrap_err();
        assert!(error.contains("no hook") && error.contains("--identity container"), "{error}");
        let error = choose(&Capabilities { proxy_protocol: true, ..steer }, &tcp(), PLAIN).unwrap_err();
        assert!(error.contains("PROXY"), "{error}");
        let error = choose(&facts(Requested::Express), &tcp(), PLAIN).unwrap_err();
        assert!(error.contains("express") && error.contains("use --datapath auto"), "{error}");
    }

    #[test]
    fn what_only_a_relay_serves_is_relayed_or_refused() {
        let only = Circumstances { only_relayed: Some("dockerd holds it"), ..PLAIN };
        let reason = Reason::OnlyRelayed("dockerd holds it".into());
        assert_eq!(choose(&facts(Requested::Auto), &tcp(), only), Ok((Datapath::Splice, reason)));
        let error = choose(&facts(Requested::Steer), &tcp(), only).unwrap_err();
        assert!(error.starts_with("dockerd holds it, so") && error.contains("--foreground"), "{error}");
        let (datapath, _) = choose(&facts(Requested::Sockmap), &tcp(), only).unwrap();
        assert_eq!(datapath, Datapath::Sockmap);
    }
}
