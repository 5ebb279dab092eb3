//! Which rules of nat PREROUTING and OUTPUT take a connection elsewhere before anything of ours sees it.
//!
//! Invariants: read-only, also of the kernel's modules: programs that show rules are run only where the kernel says
//! that there are such rules. A condition that is not understood may hold; so what is found may take a connection, and
//! what is not found does not.

mod iptables;
mod nft;
mod rules;

use std::{fs, io};

use netlink_sys::protocols::NETLINK_NETFILTER;

use self::rules::Table;
pub use self::rules::{Packet, Redirection};
use super::program;
use crate::net::{
    namespace::Namespace,
    netlink::{attribute, dump, u32_at},
};

/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETCHAIN` of linux/netfilter.
const GET_CHAIN: u16 = 10 << 8 | 4;
/// `struct nfgenmsg`: every family, version 0, no resource.
const ANY_FAMILY: [u8; 4] = [0; 4];
/// `NFTA_CHAIN_HOOK`, with `NFTA_HOOK_HOOKNUM` in it, and `NFTA_CHAIN_TYPE` of linux/netfilter/nf_tables.h.
const CHAIN_HOOK: u16 = 4;
const HOOK_NUMBER: u16 = 1;
const CHAIN_TYPE: u16 = 7;
/// `NF_INET_PRE_ROUTING` and `NF_INET_LOCAL_OUT`.
const HOOKS: [u32; 2] = [0, 3];

/// The NAT rules of a network namespace that see a connection's first packet.
#[derive(Debug, Default)]
pub struct NatRules {
    tables: Vec<Table>,
    /// What could not be read, and why.
    pub unread: Vec<String>,
}

impl NatRules {
    /// Those of the namespace.
    pub fn read(namespace: &Namespace) -> Self {
        let mut rules = Self::default();
        match has_nat_chain(namespace) {
            Ok(false) => {}
            Ok(true) => rules.read_nf_tables(namespace),
            Err(error) => rules.unread.push(format!("nf_tables: {error}")),
        }
        for (names, programs) in [
            ("ip_tables_names", ["iptables-legacy-save", "iptables-save"]),
            ("ip6_tables_names", ["ip6tables-legacy-save", "ip6tables-save"]),
        ] {
            match has_legacy_nat(namespace, names) {
                Ok(false) => {}
                Ok(true) => rules.read_iptables(namespace, &programs),
                Err(error) => rules.unread.push(format!("{names}: {error}")),
            }
        }
        rules
    }

    /// What `iptables-save` prints of the namespace's IPv4 NAT rules, of each kind that has some.
    pub fn saved(namespace: &Namespace) -> Vec<String> {
        let mut programs = Vec::new();
        if has_nat_chain(namespace).unwrap_or(false) {
            programs.push(["iptables-nft-save", "iptables-save"]);
        }
        if has_legacy_nat(namespace, "ip_tables_names").unwrap_or(false) {
            programs.push(["iptables-legacy-save", "iptables-save"]);
        }
        let output = |programs: &[&str; 2]| program::output(namespace, programs, &["-t", "nat"]).ok();
        programs.iter().filter_map(output).map(into_text).collect()
    }

    /// Of a text as `iptables-save -t nat` prints it.
    #[cfg(test)]
    pub(crate) fn of_iptables(text: &str) -> Self {
        Self { tables: vec![iptables::parse("iptables", text)], unread: Vec::new() }
    }

    /// The rule that takes a connection that begins with this packet, or may take it.
    pub fn redirection(&self, packet: &Packet<'_>) -> Option<Redirection> {
        let mut found = self.tables.iter().filter_map(|table| table.redirection(packet));
        let first = found.next()?;
        if first.is_certain { Some(first) } else { found.find(|next| next.is_certain).or(Some(first)) }
    }

    fn read_nf_tables(&mut self, namespace: &Namespace) {
        let parsed = program::output(namespace, &["nft"], &["--json", "list", "ruleset"])
            .and_then(|printed| nft::parse(&printed));
        let mut tables = match parsed {
            Ok(tables) => tables,
            Err(error) => return self.unread.push(error),
        };
        // What iptables wrote is shown in full by iptables alone.
        for (family, programs) in [
            ("ip", ["iptables-nft-save", "iptables-save"]),
            ("ip6", ["ip6tables-nft-save", "ip6tables-save"]),
        ] {
            let is_iptables =
                |table: &nft::Parsed| table.family == family && table.name == "nat" && table.has_extensions;
            if !tables.iter().any(is_iptables) {
                continue;
            }
            match program::output(namespace, &programs, &["-t", "nat"]).map(into_text) {
                Ok(text) if text.contains("is incompatible") => {}
                Ok(text) => {
                    tables.retain(|table| !is_iptables(table));
                    self.tables.push(iptables::parse(&programs[0].replace("-nft-save", ""), &text));
                }
                Err(error) => self.unread.push(error),
            }
        }
        self.tables.extend(tables.into_iter().map(|parsed| parsed.table));
    }

    fn read_iptables(&mut self, namespace: &Namespace, programs: &[&str; 2]) {
        match program::output(namespace, programs, &["-t", "nat"]).map(into_text) {
            Ok(text) => self.tables.push(iptables::parse(&programs[0].replace("-save", ""), &text)),
            Err(error) => self.unread.push(error),
        }
    }
}

fn into_text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether nf_tables has a chain that could redirect.
fn has_nat_chain(namespace: &Namespace) -> io::Result<bool> {
    match dump(namespace, NETLINK_NETFILTER, GET_CHAIN, &ANY_FAMILY) {
        Ok(chains) => Ok(chains.iter().any(|chain| is_nat(chain))),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        // A kernel without nf_tables.
        Err(_) => Ok(false),
    }
}

fn is_nat(chain: &[u8]) -> bool {
    let Some(attributes) = chain.get(ANY_FAMILY.len()..) else { return false };
    let number = attribute(attributes, CHAIN_HOOK).and_then(|hook| attribute(hook, HOOK_NUMBER));
    let number = number.and_then(|bytes| u32_at(bytes, 0)).map(u32::from_be);
    let is_nat = attribute(attributes, CHAIN_TYPE) == Some(b"nat\0");
    is_nat && number.is_some_and(|number| HOOKS.contains(&number))
}

/// Whether the older iptables have a table `nat`. Asking them makes one, so the kernel is asked.
fn has_legacy_nat(namespace: &Namespace, names: &str) -> io::Result<bool> {
    let path = format!("/proc/thread-self/net/{names}");
    match namespace.run(|| fs::read_to_string(path)).map_err(io::Error::other)? {
        Ok(tables) => Ok(tables.lines().any(|table| table == "nat")),
        // The module is not loaded.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
