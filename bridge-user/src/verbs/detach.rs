//! The `detach` verb: removes attachments, and with the last one of a namespace its whole instance; stops relays.

use anyhow::bail;

use crate::{
    apply,
    cli::output::Out,
    kernel::{Instance, instance::owned::owned},
    model::attachment::Attachment,
    observe::{preflight, report::AttachmentReport},
    plan::{self, Change},
    runner::control::{self, Answers, Peer},
    scope::Scope,
};

/// What can be asked of `detach`.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct Args {
    /// Names of attachments, services or containers, or ports; a name that means nothing is an error, and the others
    /// are detached
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Everything of this network namespace, and what it attached inside containers
    #[arg(long)]
    all: bool,
}

/// Detaches what `args` name, and says what that was.
///
/// # Errors
/// As [`by_name`] and [`all`].
pub(crate) fn run(args: &Args, scope: &Scope, out: &Out) -> anyhow::Result<()> {
    let names = if args.all { all(scope)? } else { by_name(scope, &args.names)? };
    let lines: String = names.iter().map(|name| format!("detached {name}\n")).collect();
    out.print(&lines).map(drop)
}

/// Detaches every attachment that one of `names` means. Returns their names.
///
/// # Errors
/// When a name means nothing, a relay process does not answer, or the kernel refuses. What the other names mean is
/// detached nevertheless: who wants several closed shall not find them open because one was closed before.
fn by_name(scope: &Scope, names: &[String]) -> anyhow::Result<Vec<String>> {
    preflight::may_detach()?;
    let (relays, silent) = RelayPeers::find(scope)?;
    let containers = owned(scope)?;
    let own = Instance::open(scope)?.map_or_else(|| Ok(Vec::new()), |instance| instance.state.list())?;
    let mut steered: Vec<_> = own.into_iter().map(|(_, state)| state).collect();
    let mut problems: Vec<String> = silent.iter().map(|error| format!("{error:#}")).collect();
    let mut keep = |problem: anyhow::Error| problems.push(format!("{problem:#}"));
    for container in &containers {
        container.attachments().map_or_else(&mut keep, |all| steered.extend(all));
    }
    let is_there = |name: &&String| {
        steered.iter().any(|state| state.is_meant_by(name))
            || relays.entries().any(|entry| entry.is_meant_by(name))
    };
    let unknown: Vec<_> = names.iter().filter(|name| !is_there(name)).collect();
    let relayed = relays.entries().map(|entry| entry.name.clone());
    let before: Vec<_> = steered.iter().map(Attachment::name).chain(relayed).collect();
    let meant = |state: &Attachment| names.iter().any(|name| state.is_meant_by(name));
    // What is steered is closed at once; a relay may take as long as it drains.
    let mut detached = Vec::new();
    apply::detach(scope, meant).map_or_else(&mut keep, |names| detached.extend(names));
    for container in &containers {
        // What a container did to its own network namespace keeps nothing else open.
        apply::detach_owned(container, meant).map_or_else(&mut keep, |names| detached.extend(names));
    }
    let stopped = relays.stop(scope, |entry| names.iter().any(|name| entry.is_meant_by(name)));
    stopped.map_or_else(&mut keep, |names| detached.extend(names));
    detached.sort();
    // What is not known may be what somebody did not tell of, and they may have more that a name means.
    if problems.is_empty() && !unknown.is_empty() {
        problems.push(unknown_names(&unknown, &before, &detached));
    }
    if problems.is_empty() {
        return Ok(detached);
    }
    let problem = problems.join("; ");
    let done =
        if detached.is_empty() { String::new() } else { format!("; {} is detached", plan::list(&detached)) };
    bail!("{problem}{done}")
}

/// `before`: what was attached; `detached`: what is not any more.
fn unknown_names(unknown: &[&String], before: &[String], detached: &[String]) -> String {
    let known = plan::known(before.iter().filter(|name| !detached.contains(name)));
    format!("failed to detach {}: no attachment or service has this name: {known}", plan::list(unknown))
}

/// Detaches everything of the network namespace, and what it attached inside containers, whatever version pinned it.
/// Returns the names that could be read.
///
/// # Errors
/// When a pin cannot be removed, or a relay process does not answer; the rest is done nevertheless.
fn all(scope: &Scope) -> anyhow::Result<Vec<String>> {
    preflight::may_detach()?;
    let here = apply::detach_all(scope);
    let hidden = apply::end_hidden(scope);
    let in_containers = owned(scope).map(|all| all.iter().map(apply::detach_all_owned).collect::<Vec<_>>());
    let relayed = RelayPeers::find(scope).and_then(|(relays, silent)| {
        let stopped = relays.stop(scope, |_| true)?;
        silent.into_iter().next().map_or(Ok(stopped), Err)
    });
    let mut detached = Vec::new();
    let mut problems = Vec::new();
    let in_containers = in_containers.unwrap_or_else(|error| vec![Err(error)]);
    for names in [here, hidden].into_iter().chain(in_containers).chain([relayed]) {
        match names {
            Ok(names) => detached.extend(names),
            Err(error) => problems.push(format!("{error:#}")),
        }
    }
    if problems.is_empty() {
        detached.sort();
        return Ok(detached);
    }
    bail!(problems.join("; "))
}

/// The relay processes of a network namespace and what they run.
struct RelayPeers(Vec<(Peer, Vec<AttachmentReport>)>);

impl RelayPeers {
    /// Those that answer, and why others do not.
    fn find(scope: &Scope) -> anyhow::Result<(Self, Vec<anyhow::Error>)> {
        let Answers { relays, silent } = control::ask_all(&scope.namespace)?;
        Ok((Self(relays), silent))
    }

    fn entries(&self) -> impl Iterator<Item = &AttachmentReport> {
        self.0.iter().flat_map(|(_, entries)| entries)
    }

    /// Stops those that `chosen` picks and waits until they are drained. Returns their names, or an error of those that
    /// go on when the others have ended.
    fn stop(&self, scope: &Scope, chosen: impl Fn(&AttachmentReport) -> bool) -> anyhow::Result<Vec<String>> {
        let mut changes = Vec::new();
        let mut stopped = Vec::new();
        for (peer, entries) in &self.0 {
            let names: Vec<_> =
                entries.iter().filter(|e| chosen(e)).map(|entry| entry.name.clone()).collect();
            if !names.is_empty() {
                stopped.extend(names.clone());
                changes.push(Change::StopRelays { process: Some(peer.process()?), names });
            }
        }
        apply::stop_relays(scope, changes)?;
        Ok(stopped)
    }
}
