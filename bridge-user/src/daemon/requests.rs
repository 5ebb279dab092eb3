//! What other processes ask of the daemon.
//!
//! Invariants: `status` is answered while a pass goes on; everything that changes something is done by the daemon's one
//! thread, between two passes.

use std::{
    os::unix::net::UnixStream,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use tokio::sync::mpsc::UnboundedSender;

use super::{Daemon, Typed, held::Held, relays::Relays};
use crate::{
    plan::request::Request,
    runner::{
        door::{Door, write_answer},
        protocol::{Answer, Ask},
    },
};

/// Something to be done, and who waits for it.
pub(super) struct Command {
    /// What.
    pub(super) ask: Ask,
    /// Where the answer goes.
    pub(super) reply: mpsc::Sender<Answer>,
}

/// Has requests answered from now on; what changes something is passed on.
pub(super) fn serve(door: Door, relays: Arc<Relays>, commands: UnboundedSender<Command>) {
    door.serve(move |stream, ask| answer(stream, ask, &relays, &commands));
}

fn answer(
    stream: &UnixStream,
    ask: Ask,
    relays: &Relays,
    commands: &UnboundedSender<Command>,
) -> anyhow::Result<()> {
    let answer = match ask {
        Ask::Status => {
            Answer { entries: relays.entries()?, findings: relays.findings(), ..Answer::default() }
        }
        Ask::Places => Answer { places: relays.places(), ..Answer::default() },
        ask => {
            let (reply, answered) = mpsc::channel();
            commands.send(Command { ask, reply }).ok().context("the daemon is about to end")?;
            answered.recv().context("the daemon is about to end")?
        }
    };
    write_answer(stream, &answer)
}

impl Daemon {
    /// Does what a process asks for; returns when to look again at the latest. Who asked may have gone.
    pub(super) fn carry_out(&mut self, Command { ask, reply }: Command) -> Duration {
        match ask {
            Ask::Status | Ask::Places => self.pass(),
            Ask::Stop(names) => {
                let stopping = self.relays.take(|state| names.contains(&state.name()));
                self.hold(&names);
                let pause = self.pass();
                let relays = Arc::clone(&self.relays);
                thread::spawn(move || {
                    relays.drain(stopping);
                    let _ = reply.send(Answer::default());
                });
                pause
            }
            Ask::Hold(names) => {
                self.hold(&names);
                self.done(&reply)
            }
            Ask::HoldAll => {
                self.held.hold_all();
                self.typed.clear();
                self.done(&reply)
            }
            Ask::Attach(request) => self.attach_typed(*request, &reply),
        }
    }

    fn hold(&mut self, names: &[String]) {
        self.held.hold(names);
        self.typed.iter_mut().for_each(|typed| typed.held.hold(names));
    }

    fn done(&mut self, reply: &mpsc::Sender<Answer>) -> Duration {
        let pause = self.pass();
        let _ = reply.send(Answer::default());
        pause
    }

    fn attach_typed(&mut self, request: Request, reply: &mpsc::Sender<Answer>) -> Duration {
        let request = Request { foreground: true, ..request };
        let outcome = self.follow(&request, &Held::default());
        let answer = match outcome.error() {
            Some(error) => Answer { error: Some(error.to_owned()), ..Answer::default() },
            None => {
                self.typed.retain(|typed| typed.request != request);
                self.typed.push(Typed { request, held: Held::default() });
                let entries = self.relays.entries().unwrap_or_default();
                let entries = entries.into_iter().filter(|entry| outcome.has_made(&entry.name)).collect();
                Answer { entries, refused: outcome.refused, findings: outcome.findings, ..Answer::default() }
            }
        };
        let _ = reply.send(answer);
        self.pass()
    }
}
