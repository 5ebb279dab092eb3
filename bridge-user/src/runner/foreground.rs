//! Keeping relays until a signal, or until the last of them is detached.
//!
//! Invariants: SIGINT and SIGTERM drain, a second one ends the process at once (its sockets are armed to reset);
//! questions are answered all the time, also while relays drain.

use std::{
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc::UnboundedSender, mpsc::unbounded_channel, oneshot},
};

use super::{
    Runner, RunningRelay,
    door::{Door, write_answer},
    drain,
    protocol::{Answer, Ask},
};
use crate::{kernel::programs::object, net::namespace::Namespace, observe::networks::runtime, relay::User};

/// How often to look whether those that a `detach` took out have drained.
const BACK_OFF: Duration = Duration::from_millis(100);

/// The relays of this process, as all of its threads see them.
struct Foreground {
    kept: Mutex<Kept>,
    /// Told how many connections were reset, each time that relays were drained.
    cut: Box<dyn Fn(u64) + Send + Sync>,
}

/// The relays that run, and how many requests to stop some are being carried out.
struct Kept {
    runner: Runner,
    stopping: usize,
}

impl Foreground {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drain(&self, stopping: Vec<RunningRelay>) {
        (self.cut)(drain(stopping));
    }

    fn stop(&self, names: &[String]) {
        let stopping = {
            let mut kept = self.lock();
            kept.stopping += 1;
            kept.runner.take(names)
        };
        self.drain(stopping);
    }
}

/// Runs until the relays end; `announce` tells that they run, and `cut` how many connections of those that were stopped
/// together had to be reset.
///
/// # Errors
/// When signals or questions cannot be received, or `announce` fails; the relays are gone then.
pub fn run(
    namespace: &Namespace,
    runner: Runner,
    announce: impl FnOnce(&Runner) -> anyhow::Result<()>,
    cut: impl Fn(u64) + Send + Sync + 'static,
) -> anyhow::Result<()> {
    let runtime = runtime()?;
    runtime.block_on(async {
        let mut signals = Signals::catch()?;
        let (door, _name) = Door::of_relays(namespace)?;
        announce(&runner)?;
        object::done_loading();
        // Nothing is opened or changed from here on: what clients may bring about has no root.
        runner.user().map_or(Ok(()), User::adopt).context("failed to give up root")?;
        let kept = Mutex::new(Kept { runner, stopping: 0 });
        let relays = Arc::new(Foreground { kept, cut: Box::new(cut) });
        let (all_detached, mut detached) = unbounded_channel();
        let answering = Arc::clone(&relays);
        door.serve(move |stream, ask| answer(stream, ask, &answering, &all_detached));
        tokio::select! {
            () = signals.next() => {}
            _ = detached.recv() => return Ok(()),
        }
        let (drained, all_drained) = oneshot::channel();
        let stopping = relays.lock().runner.take_all();
        thread::spawn(move || {
            relays.drain(stopping);
            // What a `detach` took out drains there.
            while relays.lock().stopping > 0 {
                thread::sleep(BACK_OFF);
            }
            // The receiver is gone after a second signal.
            let _ = drained.send(());
        });
        tokio::select! {
            _ = all_drained => {}
            () = signals.next() => {}
        }
        Ok(())
    })
}

/// SIGINT and SIGTERM.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Catches them from now on. Needs a runtime.
    pub(crate) fn catch() -> anyhow::Result<Self> {
        let catch = |kind| signal(kind).context("failed to catch signals");
        Ok(Self { interrupt: catch(SignalKind::interrupt())?, terminate: catch(SignalKind::terminate())? })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn answer(
    stream: &UnixStream,
    ask: Ask,
    relays: &Arc<Foreground>,
    all_detached: &UnboundedSender<()>,
) -> anyhow::Result<()> {
    match ask {
        Ask::Status => {
            let entries = relays.lock().runner.entries()?;
            write_answer(stream, &Answer { entries, ..Answer::default() })
        }
        Ask::Stop(names) => {
            relays.stop(&names);
            let written = write_answer(stream, &Answer::default());
            let mut kept = relays.lock();
            kept.stopping -= 1;
            if kept.runner.is_empty() && kept.stopping == 0 {
                // The receiver is gone when a signal came first.
                let _ = all_detached.send(());
            }
            written
        }
        Ask::Places | Ask::Hold(_) | Ask::HoldAll | Ask::Attach(_) => bail!("only the daemon does that"),
    }
}
