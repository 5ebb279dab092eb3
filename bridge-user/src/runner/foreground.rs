//! Keeping relays until a signal, or until the last of them is detached.
//!
//! Invariants: SIGINT and SIGTERM drain, a second one ends the process at once (its sockets are armed to reset);
//! questions are answered all the time, also while relays drain.

use std::{
    os::unix::net::{UnixListener, UnixStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc::UnboundedSender, mpsc::unbounded_channel, oneshot},
};

use super::{
    Runner, Running,
    control::{self, Ask},
    drain,
};
use crate::kernel::object;

/// How long to wait when no question can be accepted.
const BACK_OFF: Duration = Duration::from_millis(100);

/// The relays, and how many requests to stop some are being carried out.
struct Relays {
    runner: Runner,
    stopping: usize,
}

type Shared = Arc<Mutex<Relays>>;

/// Runs until the relays end; `announce` tells that they run.
///
/// # Errors
/// When signals or questions cannot be received, or `announce` fails; the relays are gone then.
pub fn run(runner: Runner, announce: impl FnOnce(&Runner) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the async runtime")?;
    runtime.block_on(async {
        let mut signals = Signals::catch()?;
        let listener = control::listen()?;
        announce(&runner)?;
        object::done_loading();
        let relays: Shared = Arc::new(Mutex::new(Relays { runner, stopping: 0 }));
        let (all_detached, mut detached) = unbounded_channel();
        let answering = Arc::clone(&relays);
        thread::spawn(move || answer_all(&listener, &answering, &all_detached));
        tokio::select! {
            () = signals.next() => {}
            _ = detached.recv() => return Ok(()),
        }
        let (drained, cut) = oneshot::channel();
        let stopping = lock(&relays).runner.take_all();
        thread::spawn(move || {
            drain_and_say(stopping);
            // What a `detach` took out drains there.
            while lock(&relays).stopping > 0 {
                thread::sleep(BACK_OFF);
            }
            // The receiver is gone after a second signal.
            let _ = drained.send(());
        });
        tokio::select! {
            _ = cut => {}
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

fn drain_and_say(stopping: Vec<Running>) {
    match drain(stopping) {
        0 => {}
        1 => eprintln!("bridge-user: reset 1 connection that was still open at the end of the drain time"),
        cut => eprintln!(
            "bridge-user: reset {cut} connections that were still open at the end of the drain time"
        ),
    }
}

/// Ends with the process.
fn answer_all(listener: &UnixListener, relays: &Shared, all_detached: &UnboundedSender<()>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            // Out of descriptors, most likely; whoever asks waits or gives up.
            thread::sleep(BACK_OFF);
            continue;
        };
        let (relays, all_detached) = (Arc::clone(relays), all_detached.clone());
        // Where there is no thread to be had, nobody is answered, and this one goes on.
        let _ = thread::Builder::new().spawn(move || {
            if let Err(error) = answer(&stream, &relays, &all_detached) {
                log::warn!("failed to answer a request: {error:#}");
            }
        });
    }
}

fn answer(stream: &UnixStream, relays: &Shared, all_detached: &UnboundedSender<()>) -> anyhow::Result<()> {
    match control::read_request(stream)? {
        None => Ok(()),
        Some(Ask::Status) => {
            let entries = lock(relays).runner.entries()?;
            control::write_answer(stream, entries)
        }
        Some(Ask::Stop(names)) => {
            stop(relays, &names);
            let written = control::write_answer(stream, Vec::new());
            let mut relays = lock(relays);
            relays.stopping -= 1;
            if relays.runner.is_empty() && relays.stopping == 0 {
                // The receiver is gone when a signal came first.
                let _ = all_detached.send(());
            }
            written
        }
    }
}

fn stop(relays: &Shared, names: &[String]) {
    let stopping = {
        let mut relays = lock(relays);
        relays.stopping += 1;
        relays.runner.take(names)
    };
    drain_and_say(stopping);
}

fn lock(relays: &Shared) -> MutexGuard<'_, Relays> {
    relays.lock().unwrap_or_else(PoisonError::into_inner)
}
