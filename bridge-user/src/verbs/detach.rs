//! The `detach` verb: removes attachments, and with the last one of a namespace its whole instance; stops relays.

use anyhow::{anyhow, bail};

use super::{candidates, saving::SaveArgs};
use crate::{
    apply,
    cli::output::Out,
    kernel::{Instance, instance::owned::owned},
    model::{attachment::Attachment, escape::push_line, spec::UNNAMED_SERVICE},
    observe::{preflight, report::AttachmentReport},
    plan::{self, Change},
    runner::control::{self, Answers, Peer},
    scope::Scope,
};

/// What can be asked of `detach`.
#[derive(clap::Args)]
#[group(skip)]
#[command(group(clap::ArgGroup::new("what").args(["names", "all"]).required(true)))]
pub struct Args {
    /// Names of attachments, services or containers, or ports; a name that means nothing is an error, and the others
    /// are detached
    #[arg(value_name = "NAME", add = candidates::attachments())]
    names: Vec<String>,
    /// Everything of this network namespace, and what it attached inside containers
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    saving: SaveArgs,
}

/// Detaches what `args` name, and says what that was.
///
/// # Errors
/// When the configuration cannot be changed; nothing is detached then. And as [`by_name`] and [`all`].
pub(crate) fn run(args: &Args, scope: &Scope, out: &Out) -> anyhow::Result<()> {
    preflight::may_detach()?;
    let saved = save(args, out)?;
    let names = if args.all { all(scope)? } else { by_name(scope, &args.names, &saved)? };
    let mut lines = String::new();
    names.iter().for_each(|name| push_line(&mut lines, &format!("detached {name}")));
    out.print(&lines).map(drop)
}

/// Takes out of the configuration what `args` name, if they ask for that. Returns the names that it had.
fn save(args: &Args, out: &Out) -> anyhow::Result<Vec<String>> {
    let Some(mut saving) = args.saving.open()? else { return Ok(Vec::new()) };
    let known =
        if args.all { saving.forget_all().map(|()| Vec::new())? } else { saving.forget(&args.names)? };
    saving.finish(out)?;
    Ok(known)
}

/// Detaches every attachment that one of `names` means; `saved`: the names that were in the configuration. Returns the
/// names of the attachments.
///
/// # Errors
/// When a name means nothing, or several plain ports by the word that all of them have, a relay process does not
/// answer, or the kernel refuses. What the other names mean is detached nevertheless: who wants several closed shall
/// not find them open because one was closed before.
fn by_name(scope: &Scope, names: &[String], saved: &[String]) -> anyhow::Result<Vec<String>> {
    let mut outcome = Outcome::default();
    // What a plain port is called says nothing of which one it is.
    let is_plain = |name: &&String| *name == UNNAMED_SERVICE;
    let named: Vec<_> = names.iter().filter(|name| !is_plain(name)).collect();
    let steered = outcome.detach_steered(scope, |state| named.iter().any(|name| state.is_meant_by(name)));
    let relays = outcome.find_relays(scope);
    let relayed = || relays.iter().flat_map(|(_, entries)| entries);
    let meant_by = |name: &str| -> Vec<String> {
        let steered = steered.iter().filter(|state| state.is_meant_by(name)).map(Attachment::name);
        steered
            .chain(relayed().filter(|entry| entry.is_meant_by(name)).map(|entry| entry.name.clone()))
            .collect()
    };
    let is_unknown = |name: &&String| meant_by(name).is_empty() && !saved.contains(name);
    let unknown: Vec<_> = names.iter().filter(is_unknown).collect();
    let before: Vec<_> =
        steered.iter().map(Attachment::name).chain(relayed().map(|entry| entry.name.clone())).collect();
    let mut chosen: Vec<_> = named.iter().flat_map(|name| meant_by(name)).collect();
    if names.iter().any(|name| is_plain(&name)) {
        match meant_by(UNNAMED_SERVICE).as_slice() {
            several @ [_, _, ..] => outcome.problems.push(several_plain(several)),
            one => {
                outcome.detach_steered(scope, |state| one.contains(&state.name()));
                chosen.extend_from_slice(one);
            }
        }
    }
    outcome.stop_relays(scope, &relays, |entry| chosen.contains(&entry.name));
    outcome.hold_off(&relays, |daemon| daemon.hold(&chosen));
    // A name that is not known may be what those did not tell of who were to tell.
    if outcome.problems.is_empty() && !unknown.is_empty() {
        outcome.problems.push(unknown_names(&unknown, &before, &outcome.detached));
    }
    outcome.end()
}

/// `names`: the plain ports that one word means.
fn several_plain(names: &[String]) -> anyhow::Error {
    anyhow!(
        "failed to detach {UNNAMED_SERVICE}: every plain port is called so, and {} are attached: name the port or the \
         attachment ({})",
        names.len(),
        plan::list(names)
    )
}

/// `before`: what was attached; `detached`: what is not any more.
fn unknown_names(unknown: &[&String], before: &[String], detached: &[String]) -> anyhow::Error {
    let known = plan::known(before.iter().filter(|name| !detached.contains(name)));
    anyhow!("failed to detach {}: no attachment or service has this name: {known}", plan::list(unknown))
}

/// Detaches everything of the network namespace, and what it attached inside containers, whatever version pinned it.
/// Returns the names that could be read.
///
/// # Errors
/// When a pin cannot be removed, or a relay process does not answer; the rest is done nevertheless.
fn all(scope: &Scope) -> anyhow::Result<Vec<String>> {
    let mut outcome = Outcome::default();
    outcome.detached(apply::detach_all(scope));
    outcome.detached(apply::end_hidden(scope));
    for container in outcome.keep(owned(scope)) {
        outcome.detached(apply::detach_all_owned(&container));
    }
    outcome.detached(apply::end_hidden_inside(scope));
    let relays = outcome.find_relays(scope);
    outcome.stop_relays(scope, &relays, |_| true);
    outcome.hold_off(&relays, Peer::hold_all);
    outcome.end()
}

/// What became of a detach so far. Nothing that goes wrong keeps the rest from being done.
#[derive(Default)]
struct Outcome {
    detached: Vec<String>,
    problems: Vec<anyhow::Error>,
}

impl Outcome {
    /// Detaches what is steered and `chosen` picks, here and inside containers, before any process is asked. Returns
    /// what was there, as far as it could be read.
    fn detach_steered(&mut self, scope: &Scope, chosen: impl Fn(&Attachment) -> bool) -> Vec<Attachment> {
        let list = |instance: Option<Instance>| match instance {
            Some(instance) => Ok(instance.state.list()?.into_iter().map(|(_, state)| state).collect()),
            None => Ok(Vec::new()),
        };
        let mut before: Vec<Attachment> = self.keep(Instance::open(scope).and_then(list));
        self.detached(apply::detach(scope, &chosen));
        for container in self.keep(owned(scope)) {
            before.extend(self.keep(container.attachments()));
            self.detached(apply::detach_owned(&container, &chosen));
        }
        before
    }

    /// The relay processes that answer, and what they run.
    fn find_relays(&mut self, scope: &Scope) -> Vec<(Peer, Vec<AttachmentReport>)> {
        control::sweep();
        let Answers { relays, silent, .. } = control::ask_all(&scope.namespace);
        self.problems.extend(silent);
        relays
    }

    /// Keeps the daemon, if one runs, from attaching again what its configuration asks for.
    fn hold_off(
        &mut self,
        relays: &[(Peer, Vec<AttachmentReport>)],
        tell: impl Fn(&Peer) -> anyhow::Result<()>,
    ) {
        let daemon = relays.iter().map(|(peer, _)| peer).find(|peer| peer.is_daemon());
        self.problems.extend(daemon.and_then(|daemon| tell(daemon).err()));
    }

    /// Stops those that `chosen` picks and waits until they are drained.
    fn stop_relays(
        &mut self,
        scope: &Scope,
        relays: &[(Peer, Vec<AttachmentReport>)],
        chosen: impl Fn(&AttachmentReport) -> bool,
    ) {
        for (peer, entries) in relays {
            let names: Vec<_> =
                entries.iter().filter(|e| chosen(e)).map(|entry| entry.name.clone()).collect();
            if names.is_empty() {
                continue;
            }
            let stop = Change::StopRelays { socket: Some(peer.socket().to_owned()), names: names.clone() };
            self.detached(apply::stop_relays(scope, vec![stop]).map(|()| names));
        }
    }

    fn detached(&mut self, result: anyhow::Result<Vec<String>>) {
        let names = self.keep(result);
        self.detached.extend(names);
    }

    /// The value, or an empty one and a problem more.
    fn keep<T: Default>(&mut self, result: anyhow::Result<T>) -> T {
        result.unwrap_or_else(|error| {
            self.problems.push(error);
            T::default()
        })
    }

    fn end(mut self) -> anyhow::Result<Vec<String>> {
        self.detached.sort();
        let problems: Vec<_> = self.problems.iter().map(|error| format!("{error:#}")).collect();
        match (problems.is_empty(), self.detached.is_empty()) {
            (true, _) => Ok(self.detached),
            (false, true) => bail!("{}", problems.join("; ")),
            (false, false) => bail!("{}; {} is detached", problems.join("; "), plan::list(&self.detached)),
        }
    }
}
