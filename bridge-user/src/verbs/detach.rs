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
    for container in &containers {
        steered.extend(container.attachments()?);
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
    let mut detached = apply::detach(scope, meant)?;
    for container in &containers {
        detached.extend(apply::detach_owned(container, meant)?);
    }
    detached.extend(relays.stop(scope, |entry| names.iter().any(|name| entry.is_meant_by(name)))?);
    detached.sort();
    // What is not known may be what a relay did not tell of, and it may have more that a name means.
    let problem = match silent.first() {
        Some(error) => format!("{error:#}"),
        None if unknown.is_empty() => return Ok(detached),
        None => unknown_names(&unknown, &before, &detached),
    };
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
    let in_containers = owned(scope).map(|all| all.iter().map(apply::detach_all_owned).collect::<Vec<_>>());
    let relayed = RelayPeers::find(scope).and_then(|(relays, silent)| {
        let stopped = relays.stop(scope, |_| true)?;
        silent.into_iter().next().map_or(Ok(stopped), Err)
    });
    let mut detached = here?;
    for names in in_containers?.into_iter().chain([relayed]) {
        detached.extend(names?);
    }
    detached.sort();
    Ok(detached)
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
