//! The daemon: keeps what the configuration asks for true, whatever engines, bridges and services do meanwhile.
//!
//! Invariants: level-triggered: an event only wakes it, and each pass compares everything that is asked for with what
//! is there. What fails is told, tried again, and keeps nothing else from being done. What is steered needs no daemon:
//! it goes on when this process ends, however it ends. A file that is wrong changes nothing.

mod asked;
mod file;
mod held;
mod labels;
mod notify;
mod pass;
mod relays;
mod requests;
mod sources;

use std::{path::Path, sync::Arc, time::Duration};

pub(crate) use self::file::ConfigFile;
use self::{
    held::Held,
    labels::Labels,
    notify::Notifier,
    relays::Relays,
    sources::{Sources, Wake},
};
use crate::{
    config::{Config, ConfigError},
    kernel::programs::object,
    model::{backoff::Backoff, codes, finding::Finding},
    observe::networks::runtime,
    plan::request::Request,
    runner::door::Door,
    scope::Scope,
};

/// How long to wait before what failed is tried again, if nothing happens before; each further time twice as long.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// Everything is compared at least this often, whatever the events say.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// What the daemon goes by, and what it knows.
struct Daemon {
    scope: Scope,
    file: ConfigFile,
    config: Config,
    /// What is wrong with the file, if it has been changed into something wrong.
    refused: Option<Finding>,
    /// What labels get, and what they ask for and do not get.
    labels: Labels,
    /// What was asked for by hand and needs a relay.
    typed: Vec<Typed>,
    held: Held,
    relays: Arc<Relays>,
    /// What was said of what is not as it should be.
    said: Vec<String>,
    backoff: Backoff,
}

/// What was asked for by hand, and what of it was detached again.
struct Typed {
    request: Request,
    held: Held,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When another daemon runs, or signals cannot be caught.
pub(crate) fn run(scope: &Scope, file: ConfigFile, config: Config) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let mut notifier = Notifier::of_this_process();
    let relays = Arc::new(Relays::new(&scope.namespace));
    let (door, _name) = Door::of_daemon(&scope.namespace)?;
    let mut sources = runtime.block_on(async { Sources::open(scope, file.path(), notifier.watchdog()) })?;
    requests::serve(door, Arc::clone(&relays), sources.commands());
    let backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    let mut daemon = Daemon {
        scope: scope.clone(),
        file,
        config,
        refused: None,
        labels: Labels::default(),
        typed: Vec::new(),
        held: Held::default(),
        relays,
        said: Vec::new(),
        backoff,
    };
    log::info!("goes by {}", daemon.file.path().display());
    let mut pause = daemon.pass();
    notifier.ready();
    loop {
        object::done_loading();
        let engine = daemon.engine();
        match runtime.block_on(sources.wait(engine, pause)) {
            Wake::Stop => break,
            Wake::Alive => {
                notifier.alive();
                continue;
            }
            Wake::Reload => {
                notifier.reloading();
                daemon.reload();
                pause = daemon.pass();
                notifier.ready();
            }
            Wake::Look => pause = daemon.pass(),
            Wake::Asked(command) => pause = daemon.carry_out(command),
        }
        notifier.status(&daemon.relays.findings());
    }
    notifier.stopping();
    daemon.drain(&runtime, &mut sources);
    Ok(())
}

impl Daemon {
    /// The engine to listen to, if anything depends on one: its address, if one is given.
    fn engine(&self) -> Option<Option<String>> {
        let needs = |request: &Request| request.bridges.is_empty() || !request.networks.is_empty();
        (self.config.docker.labels || self.requests().any(needs)).then(|| self.config.docker.host.clone())
    }

    /// Everything that is asked for.
    fn requests(&self) -> impl Iterator<Item = &Request> {
        self.by_file().chain(self.typed.iter().map(|typed| &typed.request))
    }

    fn by_file(&self) -> impl Iterator<Item = &Request> {
        self.config.attach.iter().chain(self.labels.entries()).map(|entry| &entry.request)
    }

    /// Reads the file again, and attaches again what was detached by hand.
    fn reload(&mut self) {
        self.file.forget();
        self.held = Held::default();
    }

    /// Takes over the file if it is another one now and right.
    fn read_again(&mut self) {
        match self.file.if_changed() {
            Ok(None) => self.refused = None,
            Ok(Some(config)) => {
                log::info!("goes by {} as it is now", self.file.path().display());
                self.config = config;
                (self.refused, self.held) = (None, Held::default());
            }
            Err(error) => self.refused = Some(refused(self.file.path(), &error)),
        }
    }

    /// Stops accepting and waits for what is open, until a second signal.
    fn drain(&self, runtime: &tokio::runtime::Runtime, sources: &mut Sources) {
        let (drained, all_drained) = tokio::sync::oneshot::channel();
        let relays = Arc::clone(&self.relays);
        std::thread::spawn(move || {
            relays.drain(relays.take(|_| true));
            // The receiver is gone after a second signal.
            let _ = drained.send(());
        });
        runtime.block_on(async {
            tokio::select! {
                _ = all_drained => {}
                () = sources.stopped() => {}
            }
        });
    }
}

fn refused(path: &Path, error: &ConfigError) -> Finding {
    codes::CONFIG_REFUSED.finding(
        path.display().to_string(),
        format!("the daemon goes by what the file said before: {error}"),
        "correct the file: it is read again at once",
    )
}
