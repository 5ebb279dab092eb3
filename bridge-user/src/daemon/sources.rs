//! What wakes the daemon: signals, its file, links and addresses, the engine, requests, and the clock.
//!
//! Invariant: nothing is waited for that was not listened to before the last pass began.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};

use super::{LOOK_AGAIN, file::FileChanges, requests::Command};
use crate::{
    engine::watch::EngineWatch, net::changes::LinkChanges, runner::foreground::Signals, scope::Scope,
};

/// Why the daemon woke.
pub(super) enum Wake {
    /// It is to end.
    Stop,
    /// It is to read its file, whatever that says.
    Reload,
    /// Something may be different.
    Look,
    /// Somebody asks for something.
    Asked(Command),
    /// The service manager wants to hear of it.
    Alive,
}

/// Everything that is listened to.
pub(super) struct Sources {
    signals: Signals,
    hangup: Signal,
    file: FileChanges,
    links: LinkChanges,
    engine: EngineWatch,
    send: UnboundedSender<Command>,
    commands: UnboundedReceiver<Command>,
    watchdog: Option<Duration>,
    /// When the service manager is told next.
    alive: Instant,
}

impl Sources {
    /// Listens from now on. Needs a runtime.
    pub(super) fn open(scope: &Scope, path: &Path, watchdog: Option<Duration>) -> anyhow::Result<Self> {
        let (send, commands) = unbounded_channel();
        Ok(Self {
            signals: Signals::catch()?,
            hangup: signal(SignalKind::hangup()).context("failed to catch signals")?,
            file: FileChanges::of(path).context("failed to watch the configuration")?,
            links: LinkChanges::of(&scope.namespace).context("failed to watch links and addresses")?,
            engine: EngineWatch::new(),
            send,
            commands,
            watchdog,
            alive: Instant::now(),
        })
    }

    /// Where requests go.
    pub(super) fn commands(&self) -> UnboundedSender<Command> {
        self.send.clone()
    }

    /// Ends with the next SIGTERM or SIGINT.
    pub(super) async fn stopped(&mut self) {
        self.signals.next().await;
    }

    /// Waits for a reason to do something, for `pause` at most. `engine`: the engine to listen to, if any.
    pub(super) async fn wait(&mut self, engine: Option<Option<String>>, pause: Duration) -> Wake {
        let Self { signals, hangup, file, links, engine: watch, commands, .. } = self;
        let until_alive =
            self.watchdog.map(|every| (self.alive + every).saturating_duration_since(Instant::now()));
        let engine_changed = async {
            match engine {
                Some(host) => watch.changed(host.as_deref()).await,
                None => std::future::pending().await,
            }
        };
        let alive = async {
            match until_alive {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = signals.next() => Wake::Stop,
            _ = hangup.recv() => Wake::Reload,
            Some(command) = commands.recv() => Wake::Asked(command),
            () = alive => {
                self.alive = Instant::now();
                Wake::Alive
            }
            () = file.changed() => Wake::Look,
            () = engine_changed => Wake::Look,
            () = links.changed() => Wake::Look,
            () = tokio::time::sleep(pause.min(LOOK_AGAIN)) => Wake::Look,
        }
    }
}
