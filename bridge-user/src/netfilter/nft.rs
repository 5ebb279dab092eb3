//! The one nftables table of this project: takes packets that the tc program gave to a listener out of connection
//! tracking.
//!
//! nf_nat's INPUT hook takes the listener away again from a tracked packet: it compares the packet's port with the peer
//! port of the socket, and a listener has none (`nf_nat_inet_port_was_mangled`; on every host with NAT rules, so on
//! every Docker host). Only packets with the program's mark are touched, which are the first of a connection, and the
//! mark is taken off before routing looks at it; all others are tracked as ever.
//!
//! Invariants: the table is put there as a whole in one transaction, and removed as a whole; nothing else is changed.

use std::{
    io::{self, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::net::{
    namespace::Namespace,
    netlink::{get, push_attribute},
};

/// The table, as nft(8) reads it.
pub const RULES: &str = "table inet bridge_user { chain steer_tc { type filter hook prerouting priority raw; policy \
                         accept; meta mark 0xb7d9e5c1 notrack meta mark set 0x0; }; }";

/// Works whether the table is there or not.
const REMOVE: &str = "add table inet bridge_user\ndelete table inet bridge_user\n";

/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETTABLE` of linux/netfilter.
const GET_TABLE: u16 = 10 << 8 | 1;
/// `struct nfgenmsg`: `NFPROTO_INET`, version 0, no resource.
const INET: [u8; 4] = [1, 0, 0, 0];
/// `NFTA_TABLE_NAME` of linux/netfilter/nf_tables.h.
const NAME: u16 = 1;

/// Whether the network namespace has the table: `nft flush ruleset`, with which many firewalls begin to
/// reload, takes it away like any other.
///
/// # Errors
/// That of the kernel: EPERM without CAP_NET_ADMIN.
pub fn is_installed(namespace: &Namespace) -> io::Result<bool> {
    let mut body = INET.to_vec();
    push_attribute(&mut body, NAME, b"bridge_user\0");
    match get(namespace, NETLINK_NETFILTER, GET_TABLE, &body) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        answer => answer.map(|_| true),
    }
}

/// Puts the table into the network namespace.
///
/// # Errors
/// When nft(8) is not installed, or the kernel refuses.
pub fn install(namespace: &Namespace) -> anyhow::Result<()> {
    // Removing it first replaces what is there.
    nft(namespace, &format!("{REMOVE}{RULES}\n")).context("failed to add nftables table inet bridge_user")
}

/// Removes the table; that it is not there is no error.
///
/// # Errors
/// When nft(8) is not installed, or the kernel refuses.
pub fn remove(namespace: &Namespace) -> anyhow::Result<()> {
    nft(namespace, REMOVE).context("failed to remove nftables table inet bridge_user")
}

/// nft(8) with nothing of the caller's environment: cron's PATH has no sbin, and a variable can change what it does.
fn program() -> anyhow::Result<Command> {
    const DIRECTORIES: [&str; 5] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"];
    let found = DIRECTORIES.iter().map(|dir| Path::new(dir).join("nft")).find(|path| path.is_file());
    let path = found.with_context(|| {
        format!("cannot find nft in {}: install the package nftables", DIRECTORIES.join(", "))
    })?;
    let mut command = Command::new(path);
    command.env_clear().env("LC_ALL", "C");
    Ok(command)
}

/// Runs a script in the network namespace, as one transaction.
///
/// # Errors
/// With nft's own words when it refuses.
pub fn nft(namespace: &Namespace, script: &str) -> anyhow::Result<()> {
    let mut command = program()?;
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut nft = namespace.run(|| command.spawn())?.context("cannot run nft")?;
    // Closed at the end of the statement, which is the end of the script.
    nft.stdin.take().context("nft has no standard input")?.write_all(script.as_bytes())?;
    let output = nft.wait_with_output()?;
    if !output.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bridge_common::steer::ASSIGNED_MARK;

    use super::*;

    #[test]
    fn only_packets_with_the_programs_mark_are_touched() {
        let mark = format!("meta mark {ASSIGNED_MARK:#010x} notrack meta mark set 0x0;");
        assert_eq!(RULES.matches("notrack").count(), 1);
        assert!(RULES.contains(&mark), "{RULES}");
    }
}
