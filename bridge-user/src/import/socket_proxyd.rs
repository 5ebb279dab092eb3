//! systemd-socket-proxyd(8) with its socket unit as forwards. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Forward, Listen, units::Unit};
use crate::model::target::Target;

/// What the program connects to where no port is given.
const DEFAULT_PORT: u16 = 80;

/// The forwards of a socket unit whose service runs the program with these arguments; each, or why it is left alone.
pub fn forwards(socket: &Unit, arguments: &[String]) -> Vec<Result<Forward, String>> {
    socket.listens.iter().map(|listen| forward(socket, listen, arguments)).collect()
}

fn forward(socket: &Unit, listen: &str, arguments: &[String]) -> Result<Forward, String> {
    if let Some(device) = &socket.device {
        return Err(format!("it is bound to interface {device} (BindToDevice=)"));
    }
    if socket.accepts {
        return Err("it starts a process for each connection (Accept=yes)".to_owned());
    }
    let (target, max_connections) = options(arguments)?;
    Ok(Forward {
        listen: place(listen, socket.ipv6_only)?,
        target,
        allow: Vec::new(),
        notes: Vec::new(),
        max_connections,
        idle_timeout: None,
    })
}

fn options(arguments: &[String]) -> Result<(Target, Option<usize>), String> {
    let mut max = None;
    let mut target = None;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let value = match argument.split_once('=') {
            Some((_, value)) => Some(value),
            None if ["-c", "--connections-max", "--exit-idle-time"].contains(&argument.as_str()) => {
                rest.next().map(String::as_str)
            }
            None => None,
        };
        if argument == "-c" || argument.starts_with("--connections-max") {
            let number = value.and_then(|text| text.parse().ok());
            max = Some(number.ok_or_else(|| format!("{argument} has no number"))?);
        } else if argument.starts_with('-') && !argument.starts_with("--exit-idle-time") {
            return Err(format!("it has the option {argument}, which is not known here"));
        } else if !argument.starts_with('-') {
            target = Some(argument.as_str());
        }
    }
    let target = target.ok_or("it has no target")?;
    Ok((parse_target(target)?, max))
}

fn parse_target(text: &str) -> Result<Target, String> {
    if text.starts_with('/') {
        return Ok(Target::Unix(text.into()));
    }
    if text.starts_with('@') {
        return Err("its socket is an abstract one".to_owned());
    }
    let remote = || format!("its target is {text}, not this host's loopback");
    let address = match text.parse::<SocketAddr>() {
        Ok(address) => address,
        Err(_) => {
            let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
            let port = if port.is_empty() { DEFAULT_PORT } else { port.parse().map_err(|_| remote())? };
            let host = if host == "localhost" {
                Ipv4Addr::LOCALHOST.into()
            } else {
                host.parse().map_err(|_| remote())?
            };
            SocketAddr::new(host, port)
        }
    };
    match address.ip().is_loopback() && address.port() != 0 {
        true => Ok(Target::Tcp(address)),
        false => Err(remote()),
    }
}

/// A `ListenStream=`: a port alone is that of `[::]`, for both families unless it says otherwise.
fn place(text: &str, ipv6_only: bool) -> Result<Listen, String> {
    if text.starts_with(['/', '@']) {
        return Err("it listens on a UNIX socket, which containers reach by mounting it".to_owned());
    }
    let wrong = || format!("it listens on {text}, expected an address and a port");
    let address = match text.parse::<u16>() {
        Ok(port) => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port),
        Err(_) => text.parse().map_err(|_| wrong())?,
    };
    let is_any_v6 = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    let port = address.port().try_into().map_err(|_| wrong())?;
    Ok(Listen { address: address.ip(), both_families: is_any_v6 && !ipv6_only, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(socket: &str, command: &str) -> Vec<String> {
        let arguments: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        forwards(&Unit::parse([socket]), &arguments)
            .into_iter()
            .map(|forward| match forward {
                Ok(Forward { listen, target, max_connections, .. }) => {
                    let both = if listen.both_families { " both" } else { "" };
                    let max = max_connections.map(|max| format!(" max {max}")).unwrap_or_default();
                    format!("{listen} -> {target}{both}{max}")
                }
                Err(why) => format!("left alone: {why}"),
            })
            .collect()
    }

    #[test]
    fn sockets_and_targets_are_read() {
        for (socket, command, expected) in [
            ("ListenStream=172.17.0.1:5432", "127.0.0.1:5432", "172.17.0.1:5432 -> 127.0.0.1:5432"),
            ("ListenStream=8080", "--exit-idle-time=10min localhost:80", "[::]:8080 -> 127.0.0.1:80 both"),
            ("ListenStream=0.0.0.0:80", "-c 50 [::1]:8080", "0.0.0.0:80 -> [::1]:8080 max 50"),
            ("ListenStream=[fd00::1]:80", "127.0.0.1", "[fd00::1]:80 -> 127.0.0.1:80"),
            ("ListenStream=80\nBindIPv6Only=ipv6-only", "/run/x.sock", "[::]:80 -> unix:/run/x.sock"),
            (
                "ListenStream=80",
                "10.0.0.7:80",
                "left alone: its target is 10.0.0.7:80, not this host's loopback",
            ),
            (
                "ListenStream=80\nAccept=yes",
                "127.0.0.1:1",
                "left alone: it starts a process for each connection (Accept=yes)",
            ),
        ] {
            assert_eq!(shown(&format!("[Socket]\n{socket}\n"), command), [expected], "{socket}");
        }
        assert_eq!(shown("[Socket]\nListenStream=1\nListenStream=/run/x\n", "127.0.0.1:1").len(), 2);
        assert!(shown("[Socket]\nListenStream=1\n", "--frob 127.0.0.1:1")[0].contains("--frob"));
    }
}
