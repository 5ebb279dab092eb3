//! Which kernel modules go into a guest, and in which order they are loaded.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::exec;

/// What the suite needs, apart from what these depend on. A kernel that has one of them built in, or does not have it
/// at all, goes without: the suite says what is really missing.
const WANTED: &[&str] = &[
    // nf_conntrack asks the crypto layer for it by name, which modules.dep does not show.
    "crc32c_generic",
    "crc32c_cryptoapi",
    "bridge",
    "veth",
    "dummy",
    "macvlan",
    "vrf",
    "br_netfilter",
    "ipv6",
    "inet_diag",
    "tcp_diag",
    "mptcp_diag",
    "unix_diag",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "nf_tables",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_log_ipv4",
    "nf_log_ipv6",
    "nf_log_syslog",
    "nf_nat",
    "nft_chain_nat",
    "nft_counter",
    "nft_ct",
    "nft_fib",
    "nft_fib_inet",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_limit",
    "nft_log",
    "nft_masq",
    "nft_nat",
    "nft_redir",
    "nft_reject",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_socket",
];

/// The module files to load, dependencies first, relative to `modules`.
pub(super) fn load_order(modules: &Path) -> Result<Vec<PathBuf>> {
    let index = modules.join("modules.dep");
    if !index.exists() {
        depmod(modules)?;
    }
    let text = fs::read_to_string(&index).with_context(|| format!("failed to read {}", index.display()))?;
    Ok(resolve(&text, WANTED).into_iter().map(PathBuf::from).collect())
}

fn depmod(modules: &Path) -> Result<()> {
    let failed = || format!("failed to tell the kernel release from {}", modules.display());
    let base = modules.ancestors().nth(3).with_context(failed)?;
    let release = modules.file_name().with_context(failed)?;
    let depmod = exec::which("depmod").context("failed to index modules: depmod is missing: install kmod")?;
    exec::capture(exec::tool(depmod).arg("-b").arg(base).arg(release), "index the kernel's modules")?;
    Ok(())
}

/// Orders the wanted modules by the lines of `modules.dep`.
fn resolve<'a>(index: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let lines: BTreeMap<&str, Vec<&str>> = index
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| (file, needs.split_whitespace().collect()))
        .collect();
    let by_name: BTreeMap<String, &str> = lines.keys().map(|file| (module_name(file), *file)).collect();
    let mut order = Vec::new();
    for file in wanted.iter().filter_map(|name| by_name.get(*name)) {
        visit(file, &lines, &mut order);
    }
    order
}

fn visit<'a>(file: &'a str, lines: &BTreeMap<&'a str, Vec<&'a str>>, order: &mut Vec<&'a str>) {
    if order.contains(&file) {
        return;
    }
    for needed in lines.get(file).into_iter().flatten() {
        visit(needed, lines, order);
    }
    order.push(file);
}

fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

/// A module's content, uncompressed.
pub(super) fn read(file: &Path) -> Result<Vec<u8>> {
    let extension = file.extension().unwrap_or_default().to_string_lossy().into_owned();
    let program = match extension.as_str() {
        "xz" => "xz",
        "zst" => "zstd",
        "gz" => "gzip",
        _ => return fs::read(file).with_context(|| format!("failed to read {}", file.display())),
    };
    let failed =
        || format!("failed to uncompress {} with {program}: is {program} installed?", file.display());
    let output = exec::tool(program).args(["-d", "-c"]).arg(file).output().with_context(failed)?;
    if !output.status.success() {
        anyhow::bail!("{}: {}", failed(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::resolve;

    #[test]
    fn dependencies_come_first() {
        let index = "kernel/a/bridge.ko.xz: kernel/a/stp.ko.xz kernel/a/llc.ko.xz\n\
                     kernel/a/stp.ko.xz: kernel/a/llc.ko.xz\n\
                     kernel/a/llc.ko.xz:\n\
                     kernel/n/nft-masq.ko: \n";
        let order = resolve(index, &["nft_masq", "bridge", "absent"]);
        let expected =
            ["kernel/n/nft-masq.ko", "kernel/a/llc.ko.xz", "kernel/a/stp.ko.xz", "kernel/a/bridge.ko.xz"];
        assert_eq!(order, expected);
    }
}
