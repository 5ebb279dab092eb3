//! What services are known to do with clients in containers: what a refusal looks like, and its cure; and what they do
//! for local clients, which containers are not meant to get.
//!
//! Invariants: pure data; a text goes on from the service's name, has no full stop at its end, and names every source
//! that has to be let in, ready to paste.

use ipnet::IpNet;

use super::identity::Identity;

/// One thing to know of a service.
#[derive(Debug, Clone, Copy)]
pub struct Note {
    /// Of which clients it is true.
    pub clients: Clients,
    /// What it does with them.
    pub cause: &'static str,
    /// What to do about it.
    cure: Cure,
    /// Whether looking local helps too, and costs nothing that another note warns of.
    or_local: bool,
}

/// Whom a service sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {
    /// Whoever it is.
    All,
    /// A client whose address is not local.
    Remote,
    /// A client that looks local: the note is a warning.
    Local,
}

#[derive(Debug, Clone, Copy)]
enum Cure {
    Text(&'static str),
    /// A text about each source: what comes before, the source as the service wants it, what comes after.
    Sources(&'static str, fn(&IpNet) -> String, &'static str),
}

impl Note {
    /// Cause and cure for clients of these networks, if it concerns a service that sees them like this. The cure may be
    /// empty.
    pub fn words(&self, identity: Identity, sources: &[IpNet]) -> Option<(&'static str, String)> {
        let cure = self.cure(sources);
        match (self.clients, identity) {
            (Clients::All, _) | (Clients::Local, Identity::Loopback) => Some((self.cause, cure)),
            (Clients::Remote, Identity::Container) if self.or_local => {
                Some((self.cause, format!("{cure}, or attach with --identity loopback")))
            }
            (Clients::Remote, Identity::Container) => Some((self.cause, cure)),
            (Clients::Remote, Identity::Loopback) | (Clients::Local, Identity::Container) => None,
        }
    }

    /// The cure for clients of these networks.
    pub fn cure(&self, sources: &[IpNet]) -> String {
        match self.cure {
            Cure::Text(text) => text.to_owned(),
            Cure::Sources(before, each, after) => {
                let all: Vec<_> = sources.iter().map(|source| format!("`{}`", each(source))).collect();
                format!("{before}{}{after}", all.join(" and "))
            }
        }
    }
}

const fn all(cause: &'static str, cure: &'static str) -> Note {
    Note { clients: Clients::All, cause, cure: Cure::Text(cure), or_local: false }
}

const fn remote(cause: &'static str, cure: Cure) -> Note {
    Note { clients: Clients::Remote, cause, cure, or_local: true }
}

/// Of a service that trusts local clients with more than it should trust containers with.
const fn remote_alone(cause: &'static str, cure: Cure) -> Note {
    Note { or_local: false, ..remote(cause, cure) }
}

const fn local(cause: &'static str, cure: &'static str) -> Note {
    Note { clients: Clients::Local, cause, cure: Cure::Text(cure), or_local: false }
}

pub(super) const POSTGRES: &[Note] = &[remote(
    "answers `no pg_hba.conf entry for host` to addresses that pg_hba.conf does not have",
    Cure::Sources("add ", pg_hba, " to it and reload"),
)];
pub(super) const MYSQL: &[Note] = &[remote(
    "answers `Host … is not allowed to connect` or `Access denied for user` where accounts are for 'USER'@'localhost' \
     alone",
    Cure::Sources("create the account as ", mysql_account, ""),
)];
pub(super) const REDIS: &[Note] = &[remote(
    "answers `-DENIED Redis is running in protected mode` while it has no password",
    Cure::Text("set a password"),
)];
pub(super) const MONGODB: &[Note] = &[remote(
    "answers `requires authentication`: the localhost exception does not apply to containers",
    Cure::Text("make the first user on the host"),
)];
pub(super) const RABBITMQ: &[Note] = &[remote(
    "answers `ACCESS_REFUSED` to user guest, who may log in only from 127.0.0.1",
    Cure::Text("make another user"),
)];
pub(super) const OLLAMA: &[Note] = &[all(
    "answers 403 to Host names other than localhost, IP addresses and names in .local, .localhost or .internal",
    "use the address, or such a name",
)];
pub(super) const MCP: &[Note] = &[all(
    "MCP servers often answer `421 Invalid Host header`, or 403, to a Host header other than localhost:PORT",
    "add the HOST:PORT that containers use to its allowed hosts (Python SDK: allowed_hosts of \
     TransportSecuritySettings), or let clients send `Host: localhost:PORT`",
)];
pub(super) const PLAYWRIGHT: &[Note] = &[all(
    "answers `403 Access is only allowed at localhost:PORT` to another Host header",
    "start it with --allowed-hosts and the HOST:PORT that containers use, or let clients send `Host: localhost:PORT`",
)];
pub(super) const OPENCLAW: &[Note] = &[
    remote_alone(
        "answers `pairing required` to a new device, and asks for the gateway's token",
        Cure::Text("approve the device on the host (openclaw devices)"),
    ),
    local(
        "approves new devices of local clients by itself: every allowed container pairs without being asked",
        "attach without --identity loopback, and approve devices",
    ),
];
pub(super) const MAIL: &[Note] = &[
    remote_alone(
        "answers `Relay access denied` to networks it does not trust",
        Cure::Sources("add ", IpNet::to_string, " to mynetworks (Postfix) or relay_from_hosts (Exim)"),
    ),
    local(
        "relays for 127.0.0.1 without a login: every allowed container can send mail to anybody",
        "attach without --identity loopback",
    ),
];
pub(super) const JVM: &[Note] =
    &[all("Java often listens on the IPv4-mapped address ::ffff:127.0.0.1, which serves 127.0.0.1", "")];
pub(super) const NO_AUTH: &[Note] =
    &[all("has no authentication by default: every allowed container gets full access", "")];

fn pg_hba(source: &IpNet) -> String {
    format!("host all all {source} scram-sha-256")
}

/// With a wildcard where the mask ends between two numbers, as people know it; other masks are written out.
fn mysql_account(source: &IpNet) -> String {
    let IpNet::V4(net) = source else { return format!("'USER'@'{source}'") };
    let numbers: Vec<_> = net.network().octets().iter().map(u8::to_string).collect();
    match net.prefix_len() {
        32 => format!("'USER'@'{}'", net.addr()),
        length @ (8 | 16 | 24) => format!("'USER'@'{}.%'", numbers[..usize::from(length / 8)].join(".")),
        _ => format!("'USER'@'{}/{}'", net.network(), net.netmask()),
    }
}

#[cfg(test)]
mod tests {
    use bridge_common::document;

    use super::*;
    use crate::model::presets::{PRESETS, WITHOUT_PORT};

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_cure_names_every_source() {
        let sources = nets(&["172.17.0.0/16", "172.18.0.9/32"]);
        let cure = |notes: &[Note]| notes[0].words(Identity::Container, &sources).unwrap().1;
        assert_eq!(
            cure(POSTGRES),
            "add `host all all 172.17.0.0/16 scram-sha-256` and `host all all 172.18.0.9/32 scram-sha-256` to it and \
             reload, or attach with --identity loopback"
        );
        assert!(cure(MYSQL).contains("`'USER'@'172.17.%'` and `'USER'@'172.18.0.9'`"), "{}", cure(MYSQL));
        assert_eq!(mysql_account(&nets(&["10.0.16.0/20"])[0]), "'USER'@'10.0.16.0/255.255.240.0'");
    }

    #[test]
    fn what_is_trusted_locally_is_told_of_where_containers_look_local() {
        for notes in [OPENCLAW, MAIL] {
            let told = |identity| notes.iter().filter_map(|note| note.words(identity, &[])).count();
            assert_eq!((told(Identity::Loopback), told(Identity::Container)), (1, 1));
            // What one note warns of is not what the other advises.
            let advice = notes.iter().find_map(|note| note.words(Identity::Container, &[])).unwrap().1;
            assert!(!advice.contains("--identity loopback"), "{advice}");
        }
        assert!(REDIS[0].words(Identity::Loopback, &[]).is_none());
    }

    #[test]
    fn document_has_the_presets() {
        let parts = [("presets", presets()), ("notes", told())];
        document::require("docs/reference.md", &parts, "-p bridge-user --lib document_has").unwrap();
    }

    fn presets() -> String {
        let mut text =
            "| preset | port | what it is | what containers are given |\n| --- | --- | --- | --- |\n"
                .to_owned();
        for preset in PRESETS {
            let variable = preset.connect.variable;
            let sign = if variable.is_empty() { "" } else { "=" };
            let url = preset.connect.url("GATEWAY:PORT");
            text += &format!(
                "| `{}` | {} | {} | `{variable}{sign}{url}` |\n",
                preset.name, preset.port, preset.summary
            );
        }
        text
    }

    /// The services that have the same notes share their lines.
    fn told() -> String {
        let mut groups: Vec<(Vec<&str>, &[Note])> = Vec::new();
        let presets = PRESETS.iter().map(|preset| (preset.name, preset.notes));
        for (name, notes) in presets.chain(WITHOUT_PORT.iter().map(|(name, _, notes)| (*name, *notes))) {
            let same = groups.iter_mut().find(|(_, other)| {
                other.first().map(|note| note.cause) == notes.first().map(|note| note.cause)
            });
            match same {
                Some((names, _)) => names.push(name),
                None => groups.push((vec![name], notes)),
            }
        }
        let example = nets(&["172.17.0.0/16"]);
        let mut text =
            "| service | towards | what it does | what to do |\n| --- | --- | --- | --- |\n".to_owned();
        for (names, note) in
            groups.iter().flat_map(|(names, notes)| notes.iter().map(move |note| (names, note)))
        {
            let towards = match note.clients {
                Clients::All => "everybody",
                Clients::Remote => "containers",
                Clients::Local => "`--identity loopback`",
            };
            let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
            text +=
                &format!("| {} | {towards} | {} | {} |\n", names.join(", "), note.cause, note.cure(&example));
        }
        text
    }
}
