//! The `import` verb: shows the forwards that were made by hand, and what each becomes.

use std::{collections::BTreeMap, path::Path};

use anyhow::bail;

use crate::{
    UsageError,
    cli::output::Out,
    import::{
        become_attach::{Becomes, Host, Interface, becomes},
        dnat,
        found::{self, Found, Origin},
    },
    model::escape::push_line,
    net::{
        links::{addresses, links},
        listeners::connections,
    },
    netfilter::nat::NatRules,
    observe::networks::BlockingDocker,
    plan,
    scope::Scope,
};

/// What can be asked of `import`.
#[derive(clap::Args)]
pub struct Args {
    /// Units to look at, with or without `.service`; default: all that forward, and processes and DNAT rules
    #[arg(value_name = "UNIT")]
    units: Vec<String>,
    /// Show what was found and what it becomes, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// One forward, and what comes of it.
struct Item {
    title: String,
    command: String,
    becomes: Result<Becomes, String>,
    then: String,
}

/// Shows the forwards and what each becomes.
///
/// # Errors
/// Without `--dry-run`, which is all that this version does; when a unit that is named forwards nothing, or the kernel
/// cannot be asked.
pub(crate) fn run(args: &Args, scope: &Scope, out: &Out) -> anyhow::Result<()> {
    if !args.dry_run {
        return Err(UsageError(
            "import only shows in this version: use `import --dry-run`, run the commands that it shows, then stop what \
             they replace"
                .to_owned(),
        )
        .into());
    }
    let mut found = found::look(Path::new("/"), &scope.namespace);
    let wanted: Vec<String> = args.units.iter().map(|unit| full_name(unit)).collect();
    if !wanted.is_empty() {
        found.retain(|one| one.origin.unit.as_ref().is_some_and(|unit| wanted.contains(unit)));
        require_found(&wanted, &found)?;
    }
    let host = host(scope)?;
    let mut items: Vec<Item> = found.iter().map(|one| of_unit(one, &host)).collect();
    if wanted.is_empty() {
        let rules = NatRules::saved(&scope.namespace).into_iter().flat_map(|saved| dnat::rules(&saved));
        items.extend(rules.map(|rule| of_rule(&rule, &host)));
    }
    out.print(&text(&items)).map(drop)
}

fn full_name(unit: &str) -> String {
    if unit.ends_with(".service") { unit.to_owned() } else { format!("{unit}.service") }
}

fn require_found(wanted: &[String], found: &[Found]) -> anyhow::Result<()> {
    let is_found = |unit: &&String| found.iter().any(|one| one.origin.unit.as_ref() == Some(*unit));
    let missing: Vec<&String> = wanted.iter().filter(|unit| !is_found(unit)).collect();
    if !missing.is_empty() {
        bail!(
            "failed to import {}: no such unit runs socat or systemd-socket-proxyd: see `bridge-user import --dry-run` \
             for all that do",
            plan::list(missing)
        );
    }
    Ok(())
}

/// What decides what a forward becomes. Without an engine, bridges go by their own names.
fn host(scope: &Scope) -> anyhow::Result<Host> {
    let namespace = &scope.namespace;
    let engine = BlockingDocker::connect(None).ok();
    let network =
        |bridge: &str| engine.as_ref()?.ask(engine.as_ref()?.docker.network_on_bridge(bridge)).ok()?;
    let mut interfaces = Vec::new();
    for link in links(namespace)? {
        let is_bridge = link.kind == "bridge";
        let mut addresses = addresses(namespace, link.index)?;
        addresses.retain(|net| !net.addr().is_loopback());
        if addresses.is_empty() {
            continue;
        }
        let network = if is_bridge { network(&link.name) } else { None };
        interfaces.push(Interface { addresses, is_bridge, network, name: link.name });
    }
    Ok(Host { interfaces, connections: connections(namespace)? })
}

fn of_unit(found: &Found, host: &Host) -> Item {
    let becomes = found.forward.clone().and_then(|forward| becomes(&forward, None, host));
    let origin = &found.origin;
    Item { title: title(origin), command: found.command.clone(), becomes, then: then(origin) }
}

fn of_rule(rule: &dnat::Rule, host: &Host) -> Item {
    let forward = rule.forward.clone();
    Item {
        title: "DNAT rule".to_owned(),
        command: rule.text.clone(),
        becomes: forward.and_then(|forward| becomes(&forward, rule.interface.as_deref(), host)),
        then: format!("iptables -t nat -D {}", rule.text),
    }
}

/// `a.service (enabled, running)`.
fn title(origin: &Origin) -> String {
    let running = match origin.processes.as_slice() {
        [] => "not running".to_owned(),
        [pid] => format!("pid {pid}"),
        several => format!("pids {}", plan::list(several)),
    };
    let Some(unit) = &origin.unit else { return format!("no unit ({running})") };
    let user = origin.user.as_ref().map(|user| format!(" of {user}")).unwrap_or_default();
    let enabled = if origin.masked {
        "masked"
    } else if origin.enabled {
        "enabled"
    } else {
        "disabled"
    };
    format!("{unit}{user} ({enabled}, {running})")
}

/// How what is replaced is ended.
fn then(origin: &Origin) -> String {
    match (&origin.unit, &origin.user) {
        (Some(unit), None) => format!("systemctl disable --now {unit}"),
        (Some(unit), Some(_)) => format!("systemctl --user disable --now {unit}, as the user"),
        (None, _) => {
            format!("kill {}", origin.processes.iter().map(i32::to_string).collect::<Vec<_>>().join(" "))
        }
    }
}

fn text(items: &[Item]) -> String {
    let mut text = String::new();
    if items.is_empty() {
        push_line(
            &mut text,
            "nothing forwards to loopback: no unit or process of socat or systemd-socket-proxyd, no DNAT",
        );
    }
    for item in items {
        push_line(&mut text, &item.title);
        push_line(&mut text, &format!("  runs: {}", item.command));
        match &item.becomes {
            Ok(becomes) => push_becomes(&mut text, becomes, &item.then),
            Err(why) => push_line(&mut text, &format!("  left alone: {why}")),
        }
    }
    text
}

fn push_becomes(text: &mut String, becomes: &Becomes, then: &str) {
    let mut line = |label: &str, value: &str| push_line(text, &format!("  {label}: {value}"));
    line("becomes", &becomes.command);
    line("connected now", &sources(&becomes.connected));
    becomes.left_out.iter().for_each(|who| line("would lose access", who));
    becomes.notes.iter().for_each(|note| line("note", note));
    line("warning", "every allowed container looks like a local client to the service, as with the forward");
    line("then", then);
}

/// `172.17.0.2 (3), 172.17.0.5`.
fn sources(connected: &BTreeMap<std::net::IpAddr, usize>) -> String {
    if connected.is_empty() {
        return "nobody".to_owned();
    }
    let one = |(source, count): (&std::net::IpAddr, &usize)| match count {
        1 => source.to_string(),
        count => format!("{source} ({count})"),
    };
    connected.iter().map(one).collect::<Vec<_>>().join(", ")
}
