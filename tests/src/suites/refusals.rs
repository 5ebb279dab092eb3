//! `host::*`: what the command line refuses, and how it says so.
//!
//! Invariant: a refusal exits 2 when the command line itself is wrong and 1 when the host cannot
//! do it, names the offending value and a next step in one line, and changes nothing.

use anyhow::{Context, Result, ensure};

use super::Test;
use crate::harness::cli::{Cli, expect_usage_error};
use crate::harness::kernel_ids::KernelIds;
use crate::harness::netns::Netns;
use crate::harness::rig::remove_pins;

pub(super) const TESTS: &[Test] = &[
    Test::on_host("host::unknown_preset", || wrong("rediss", &["rediss", "redis"])),
    Test::on_host("host::port_zero", || wrong("0", &["0", "65535"])),
    Test::on_host("host::port_too_large", || wrong("70000", &["70000", "65535"])),
    Test::on_host("host::target_port_zero", || wrong("7001:0", &["0", "65535"])),
    Test::on_host("host::target_not_loopback", || wrong("7001:10.0.0.1:7001", &["10.0.0.1", "127.0.0.0/8"])),
    Test::on_host("host::target_garbage", || wrong("7001:rubbish:7001", &["rubbish", "127.0.0.0/8"])),
    Test::on_host("host::empty_service_name", || wrong("=7001", &["=7001"])),
    Test::on_host("host::bad_allow_prefix", || {
        wrong_with("7001", &["--allow", "172.30.1.0/33"], &["172.30.1.0/33"])
    }),
    Test::on_host("host::bad_allow_address", || {
        wrong_with("7001", &["--allow", "172.30.1.999/32"], &["172.30.1.999"])
    }),
    Test::on_host("host::allowed_container_on_a_plain_bridge", || {
        wrong_with("7001", &["--allow", "web"], &["--allow web", "--bridge", "--network"])
    }),
    Test::on_host("host::steering_to_a_unix_target", || {
        wrong_with("7001:unix:/run/x.sock", &["--datapath", "steer"], &["/run/x.sock", "--datapath auto"])
    }),
    Test::on_host("host::steering_with_a_proxy_header", || {
        wrong_with("7001", &["--datapath", "steer", "--proxy-protocol", "v1"], &["PROXY", "--datapath auto"])
    }),
    Test::on_host("host::two_specs_for_one_port", two_specs),
    Test::on_host("host::nothing_to_attach", nothing_to_attach),
    Test::on_host("host::unknown_bridge", || cannot(&["7001", "--bridge", "br-zz"], &["br-zz"])),
    Test::on_host("host::bridge_without_address", || {
        cannot(&["7001", "--bridge", "br-bare"], &["br-bare", "address"])
    }),
    Test::on_host("host::interface_that_is_no_bridge", || {
        cannot(&["7001", "--bridge", "dummy0"], &["dummy0", "bridge"])
    }),
    Test::on_host("host::docker_not_reachable", || {
        cannot(&["7001"], &["docker", "/nonexistent/docker.sock", "--bridge"])
    }),
    Test::on_host("host::not_yet_datapath_express", || not_yet(&["--datapath", "express"], "express")),
    Test::on_host("host::unix_target_without_a_process", || {
        cannot(&["7001:unix:/run/x.sock", "--bridge", "br-a"], &["UNIX", "splice", "--foreground"])
    }),
    Test::on_host("host::splice_without_a_process", || {
        cannot(&["7001", "--bridge", "br-a", "--datapath", "splice"], &["--datapath splice", "--foreground"])
    }),
    Test::on_host("host::detach_without_a_name", detach_without_name),
    Test::on_host("host::help_and_version_never_fail", help_and_version),
    Test::on_host("host::steer_and_container_can_be_asked_for", explicit_defaults),
];

/// A host with a bridge that can be attached to, one that cannot, and a link that is no bridge.
pub(super) fn lone_host() -> Result<Netns> {
    let host = Netns::new()?;
    host.ip(
        "link add br-a type bridge\naddr add 172.30.1.1/24 dev br-a\nlink set br-a up\n\
         link add br-bare type bridge\nlink set br-bare up\n\
         link add dummy0 type veth peer name dummy1\naddr add 172.30.9.1/24 dev dummy0\nlink set dummy0 up\n",
    )?;
    Ok(host)
}

/// Runs a refused command and checks that nothing changed.
pub(super) fn refuse(host: &Netns, arguments: &[&str], code: i32, needles: &[&str]) -> Result<()> {
    let ids = KernelIds::take()?;
    let refusal = Cli::new(host).refused(arguments, code, needles);
    let clean = host.nothing_pinned();
    remove_pins(host);
    refusal?;
    clean.context("after a refusal")?;
    ids.wait_equal().context("a refused command changed the kernel")
}

fn wrong(spec: &str, needles: &[&str]) -> Result<()> {
    wrong_with(spec, &[], needles)
}

fn wrong_with(spec: &str, options: &[&str], needles: &[&str]) -> Result<()> {
    refuse(&lone_host()?, &[&["attach", spec, "--bridge", "br-a"], options].concat(), 2, needles)
}

fn cannot(arguments: &[&str], needles: &[&str]) -> Result<()> {
    refuse(&lone_host()?, &[&["attach"], arguments].concat(), 1, needles)
}

/// Options of the contract that this version refuses by name.
fn not_yet(options: &[&str], needle: &str) -> Result<()> {
    cannot(&[&["7001", "--bridge", "br-a"], options].concat(), &[needle, "version"])
}

fn two_specs() -> Result<()> {
    refuse(
        &lone_host()?,
        &["attach", "one=7001", "two=7001:7002", "--bridge", "br-a"],
        2,
        &["7001", "one", "two"],
    )
}

fn nothing_to_attach() -> Result<()> {
    let host = lone_host()?;
    expect_usage_error(&Cli::new(&host).run(&["attach", "--bridge", "br-a"])?, &["SPEC"])
}

fn detach_without_name() -> Result<()> {
    let host = lone_host()?;
    expect_usage_error(&Cli::new(&host).run(&["detach"])?, &["NAME", "--all"])
}

fn help_and_version() -> Result<()> {
    let host = Netns::new()?;
    let cli = Cli::new(&host);
    for arguments in [&["--help"][..], &["--version"], &["attach", "--help"], &["status", "--help"]] {
        let text = cli.ok(arguments)?;
        ensure!(!text.trim().is_empty(), "{arguments:?} printed nothing");
    }
    for arguments in [["--version", "--verbose"], ["--verbose", "--version"]] {
        let text = cli.ok(&arguments)?;
        for part in ["bridge-user ", "built with rustc ", "eBPF programs built with ", "LLVM ", "bpf-linker "]
        {
            ensure!(text.contains(part), "{arguments:?} does not say {part}: {text}");
        }
    }
    let help = cli.ok(&["attach", "--help"])?;
    for option in ["--network", "--bridge", "--datapath", "--identity", "--allow", "--dry-run", "--output"] {
        ensure!(help.contains(option), "attach --help does not name {option}");
    }
    let output = cli.run(&["no-such-verb"])?;
    ensure!(
        output.code == Some(2) && output.stderr.contains("no-such-verb"),
        "an unknown verb gave {output:?}"
    );
    expect_usage_error(&output, &["no-such-verb"])
}

/// The values this version does support are accepted when spelt out.
fn explicit_defaults() -> Result<()> {
    let host = lone_host()?;
    let cli = Cli::new(&host);
    let options = ["--datapath", "steer", "--identity", "container", "--firewall", "off"];
    let outcome =
        cli.ok(&[&["attach", "7001", "--bridge", "br-a"], &options[..]].concat()).and_then(|_| cli.status());
    remove_pins(&host);
    let attachments = outcome?;
    ensure!(attachments.len() == 1, "status shows {attachments:?}");
    ensure!(attachments[0].datapath == "steer", "datapath is {}", attachments[0].datapath);
    ensure!(attachments[0].raw["identity"] == "container", "identity is {}", attachments[0].raw["identity"]);
    Ok(())
}
