//! One of socat's two addresses: `KEYWORD:PARAMETER,OPTION=VALUE`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{
    options::{DECISIVE, HARMLESS},
    text::{cut, host, loopback, parse_port, range},
};
use crate::{
    import::{Forward, Listen},
    model::target::Target,
};

/// One of the two addresses.
pub(super) struct Address<'a> {
    pub(super) keyword: String,
    parameters: Vec<&'a str>,
    options: Vec<(String, Option<&'a str>)>,
}

/// Address families of a keyword.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Any,
    V4,
    V6,
}

/// What an address does.
pub(super) enum Kind {
    Listen(Family),
    Connect(Family),
    Unix,
}

impl<'a> Address<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, String> {
        if text.contains("!!") {
            return Err(format!("{text} is two addresses, one for each direction"));
        }
        let mut parts = cut(text, ',')?.into_iter();
        let mut head = cut(parts.next().unwrap_or_default(), ':')?.into_iter();
        let keyword = head.next().unwrap_or_default().to_ascii_lowercase();
        let options = parts.filter(|part| !part.is_empty()).map(|part| match part.split_once('=') {
            Some((name, value)) => (name.to_ascii_lowercase(), Some(value)),
            None => (part.to_ascii_lowercase(), None),
        });
        Ok(Self { keyword, parameters: head.collect(), options: options.collect() })
    }

    pub(super) fn kind(&self) -> Result<Kind, String> {
        let keyword = self.keyword.as_str();
        Ok(match keyword {
            "tcp-listen" | "tcp-l" | "inet-listen" | "inet-l" => Kind::Listen(Family::Any),
            "tcp4-listen" | "tcp4-l" | "inet4-listen" | "inet4-l" => Kind::Listen(Family::V4),
            "tcp6-listen" | "tcp6-l" | "inet6-listen" | "inet6-l" => Kind::Listen(Family::V6),
            "tcp" | "tcp-connect" | "inet" => Kind::Connect(Family::Any),
            "tcp4" | "tcp4-connect" | "inet4" => Kind::Connect(Family::V4),
            "tcp6" | "tcp6-connect" | "inet6" => Kind::Connect(Family::V6),
            "unix" | "unix-client" | "unix-connect" | "local" => Kind::Unix,
            _ => return Err(other_kind(keyword)),
        })
    }

    pub(super) fn target(&self) -> Result<Target, String> {
        self.require_known(&["bind"])?;
        match self.kind()? {
            Kind::Listen(_) => Err("it waits for connections on both sides".to_owned()),
            Kind::Unix => match self.parameters.as_slice() {
                [path] if path.starts_with('/') => Ok(Target::Unix((*path).into())),
                _ => Err(format!(
                    "its target is the socket {}, expected an absolute path",
                    self.parameters.join(":")
                )),
            },
            Kind::Connect(family) => {
                let [host, port] = self.parameters.as_slice() else {
                    return Err(format!(
                        "{} has {} parameters, expected host and port",
                        self.keyword,
                        self.parameters.len()
                    ));
                };
                let address = loopback(host, family)
                    .ok_or_else(|| format!("its target is {host}, not this host's loopback"))?;
                Ok(Target::Tcp(SocketAddr::from((address, parse_port(port)?.get()))))
            }
        }
    }

    pub(super) fn forward(
        &self,
        family: Family,
        target: Target,
        idle_timeout: Option<u64>,
    ) -> Result<Forward, String> {
        const OWN: &[&str] =
            &["bind", "range", "max-children", "ipv6only", "ipv6-v6only", "so-bindtodevice", "bindtodevice"];
        self.require_known(OWN)?;
        let [port] = self.parameters.as_slice() else {
            return Err(format!(
                "{} has {} parameters, expected the port",
                self.keyword,
                self.parameters.len()
            ));
        };
        if self.value(&["so-bindtodevice", "bindtodevice"])?.is_some() {
            return Err("it is bound to an interface (so-bindtodevice)".to_owned());
        }
        let family = self.with_pf(family)?;
        let address = match self.value(&["bind"])? {
            Some(text) => {
                host(text, family).ok_or_else(|| format!("it is bound to {text}, expected an address"))?
            }
            None if family == Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
            None => Ipv4Addr::UNSPECIFIED.into(),
        };
        let only = self.value(&["ipv6only", "ipv6-v6only"])?;
        let both_families = address == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && only == Some("0");
        let listen = Listen { address, both_families, port: parse_port(port)? };
        let allow = self.value(&["range"])?.map(range).transpose()?.into_iter().collect();
        let max_connections = self
            .value(&["max-children"])?
            .map(|text| text.parse().map_err(|_| format!("max-children is {text}, expected a number")));
        let mut notes = Vec::new();
        if !self.has("fork") {
            notes.push("it serves one connection and then ends; the attachment serves any number".to_owned());
        }
        Ok(Forward {
            listen,
            target,
            allow,
            notes,
            max_connections: max_connections.transpose()?,
            idle_timeout,
        })
    }

    /// `pf=ip6` makes TCP-LISTEN listen in that family.
    fn with_pf(&self, family: Family) -> Result<Family, String> {
        match self.value(&["pf"])? {
            None => Ok(family),
            Some("ip4" | "ipv4" | "inet" | "2") => Ok(Family::V4),
            Some("ip6" | "ipv6" | "inet6" | "10") => Ok(Family::V6),
            Some(other) => Err(format!("it listens in the protocol family {other}")),
        }
    }

    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|(name, value)| name == option && *value != Some("0"))
    }

    /// The last value of an option, which socat takes too; an error where it has none.
    fn value(&self, names: &[&str]) -> Result<Option<&'a str>, String> {
        let found = self.options.iter().rev().find(|(name, _)| names.contains(&name.as_str()));
        match found {
            // IPV6_V6ONLY without a value is on.
            Some((name, None)) if name.starts_with("ipv6") => Ok(Some("1")),
            Some((name, None)) => Err(format!("option {name} has no value, which socat refuses")),
            Some((_, value)) => Ok(*value),
            None => Ok(None),
        }
    }

    fn require_known(&self, own: &[&str]) -> Result<(), String> {
        for (name, value) in &self.options {
            let name = name.as_str();
            if let Some((_, why)) =
                DECISIVE.iter().find(|(decisive, _)| *decisive == name && *value != Some("0"))
            {
                return Err(format!("{why} (option {name})"));
            }
            if !own.contains(&name)
                && !HARMLESS.contains(&name)
                && !DECISIVE.iter().any(|(known, _)| *known == name)
            {
                return Err(format!(
                    "it has the option {name}, which is not known here, and maybe not to socat"
                ));
            }
        }
        Ok(())
    }
}

/// Why something else than TCP and UNIX sockets is left alone.
fn other_kind(keyword: &str) -> String {
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| keyword.starts_with(prefix));
    if starts(&["openssl", "ssl"]) {
        "it speaks TLS".to_owned()
    } else if starts(&["exec", "system", "shell"]) {
        "it runs a program".to_owned()
    } else if starts(&["proxy", "socks"]) {
        "it goes through a proxy".to_owned()
    } else if starts(&["udp", "dtls"]) {
        "it forwards UDP".to_owned()
    } else if starts(&["abstract"]) {
        "its socket is an abstract one".to_owned()
    } else if starts(&["unix-l", "unix-listen"]) {
        "it listens on a UNIX socket, which containers reach by mounting it".to_owned()
    } else {
        format!("{keyword} is no TCP or UNIX socket")
    }
}
