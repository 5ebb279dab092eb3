//! `attach --container NAME --foreground`: attaches again whenever the container runs anew, or its networks are others.
//!
//! Invariants: whether to attach is decided by comparing the run that was attached with the one Docker tells of, never
//! by an event alone; nothing ends the process but a signal, and what is attached then stays attached. Attaching itself
//! is synchronous, between two waits.

use std::time::Duration;

use anyhow::Context as _;

use crate::{
    apply,
    cli::output::Out,
    engine::{container::ContainerInfo, docker::DockerError, watch::Watch},
    kernel::programs::object,
    model::{attachment::Attachment, backoff::Backoff},
    observe::{
        networks::BlockingDocker,
        prepare::{Prepared, prepare},
    },
    plan::{self, Intent, request::Request},
    runner::foreground::Signals,
    scope::Scope,
};

/// How long to wait after an attach that failed; each further one waits twice as long.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Follows the container that `prepared` was attached in until SIGINT or SIGTERM; `announce` tells that it is attached.
///
/// # Errors
/// When signals cannot be caught, or `announce` fails.
pub(crate) fn run(
    request: &Request,
    scope: &Scope,
    prepared: &Prepared,
    out: &Out,
    announce: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let container = prepared.container.as_ref().context("the request names no container")?;
    let BlockingDocker { runtime, docker } = BlockingDocker::connect(request.engine.as_deref())?;
    let mut signals = runtime.block_on(async { Signals::catch() })?;
    announce()?;
    object::done_loading();
    let name = &container.running.name;
    let request = Request { container: Some(name.clone()), ..request.clone() };
    let mut follower = Follower::new(&request, scope, out);
    follower.note(container.running.clone(), &prepared.intent);
    follower.said = outcome(&prepared.intent);
    let mut watch = Watch::new(&docker, &container.running);
    loop {
        let stop = runtime.block_on(async {
            tokio::select! {
                () = signals.next() => true,
                () = watch.wait() => false,
                () = follower.until_retry() => false,
            }
        });
        if stop {
            return Ok(());
        }
        let found = runtime.block_on(docker.running(name));
        follower.look(found);
    }
}

/// What is attached, and what was said about it.
struct Follower<'a> {
    request: &'a Request,
    scope: &'a Scope,
    out: &'a Out,
    attached: Option<ContainerInfo>,
    /// When to try again, after a failure.
    retry: Option<Duration>,
    backoff: Backoff,
    said: String,
}

impl<'a> Follower<'a> {
    fn new(request: &'a Request, scope: &'a Scope, out: &'a Out) -> Self {
        let backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
        Self { request, scope, out, attached: None, retry: None, backoff, said: String::new() }
    }

    /// Notes that the run is attached, or when to try again what was refused of it.
    fn note(&mut self, running: ContainerInfo, intent: &Intent) {
        if intent.refused.is_empty() {
            self.attached = Some(running);
            self.retry = None;
            self.backoff.reset();
        } else {
            self.attached = None;
            self.retry = Some(self.backoff.pause());
        }
    }

    /// Ends when a failed attach is to be tried again; never, if none failed.
    async fn until_retry(&self) {
        match self.retry {
            Some(pause) => tokio::time::sleep(pause).await,
            None => std::future::pending().await,
        }
    }

    /// Attaches if the container runs and this run is not the attached one. What was attached before a failure may be
    /// on an interface that is gone: a container that leaves a network and comes back looks the same to Docker.
    fn look(&mut self, found: Result<ContainerInfo, DockerError>) {
        match found {
            Ok(running) if self.attached.as_ref() == Some(&running) => self.retry = None,
            Ok(_) => match self.attach() {
                Ok(Prepared { container: Some(container), intent, .. }) => {
                    if intent.refused.is_empty() {
                        self.said.clear();
                    }
                    self.note(container.running, &intent);
                    self.say(outcome(&intent));
                }
                Ok(_) => {}
                Err(error) => {
                    self.attached = None;
                    self.retry = Some(self.backoff.pause());
                    self.say(format!("{error:#}"));
                }
            },
            Err(error) => {
                self.attached = None;
                self.retry = None;
                self.backoff.reset();
                self.say(error.to_string());
            }
        }
    }

    fn attach(&self) -> anyhow::Result<Prepared> {
        let prepared = prepare(self.request, self.scope, &[])?;
        let failed = apply::attach(&prepared, self.request.relay)?.warnings;
        for warning in prepared.intent.warnings.iter().chain(&failed) {
            self.out.say(&format!("warning: {warning}"));
        }
        Ok(prepared)
    }

    /// One line for each thing that is new; the same failure again and again is said once.
    fn say(&mut self, text: String) {
        if text != self.said {
            self.out.say(&text);
            self.said = text;
        }
    }
}

/// What came of an attach, in one line.
fn outcome(intent: &Intent) -> String {
    let mut parts: Vec<String> = intent.refused.iter().map(|refusal| refusal.error.clone()).collect();
    if !intent.steered.is_empty() {
        let names = plan::list(intent.steered.iter().map(Attachment::name));
        parts.push(format!("attached {names} again"));
    }
    parts.join("; ")
}
