//! `attach --container NAME --foreground`: attaches again whenever the container runs anew, or its networks are others.
//!
//! Invariants: whether to attach is decided by comparing the run that was attached with the one Docker tells of, never by
//! an event alone; nothing ends the process but a signal, and what is attached then stays attached. Attaching itself is
//! synchronous, between two waits.

use std::time::Duration;

use anyhow::Context as _;

use super::{Place, Request, apply, prepare, resolve::BlockingDocker};
use crate::{
    attachment::AttachmentState,
    control::{container::Running, docker::DockerError, watch::Watch},
    kernel::object,
    plan,
    runner::foreground::Signals,
};

/// How long to wait after an attach that failed; each further one waits twice as long.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Follows the container until SIGINT or SIGTERM; `announce` tells that it is attached.
///
/// # Errors
/// When signals cannot be caught, or `announce` fails.
pub fn run(
    request: &Request,
    place: &Place,
    announce: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let BlockingDocker { runtime, docker } = BlockingDocker::connect()?;
    let mut signals = runtime.block_on(async { Signals::catch() })?;
    announce()?;
    object::done_loading();
    let name = &place.running.name;
    let request = Request { container: Some(name.clone()), ..request.clone() };
    let mut follower = Follower::new(&request, place.running.clone());
    let mut watch = Watch::new(&docker, &place.running);
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
    attached: Option<Running>,
    retry: Option<Duration>,
    said: String,
}

impl<'a> Follower<'a> {
    fn new(request: &'a Request, attached: Running) -> Self {
        Self { request, attached: Some(attached), retry: None, said: String::new() }
    }

    /// Ends when a failed attach is to be tried again; never, if none failed.
    async fn until_retry(&self) {
        match self.retry {
            Some(pause) => tokio::time::sleep(pause).await,
            None => std::future::pending().await,
        }
    }

    /// Attaches if the container runs and this run is not the attached one. What was attached before a failure may be on an
    /// interface that is gone: a container that leaves a network and comes back looks the same to Docker.
    fn look(&mut self, found: Result<Running, DockerError>) {
        match found {
            Ok(running) if self.attached.as_ref() == Some(&running) => self.retry = None,
            Ok(_) => match self.attach() {
                Ok((running, names)) => {
                    (self.attached, self.retry) = (Some(running), None);
                    self.said.clear();
                    eprintln!("bridge-user: attached {names} again");
                }
                Err(error) => {
                    (self.attached, self.retry) = (None, Some(next_retry(self.retry)));
                    self.say(format!("{error:#}"));
                }
            },
            Err(error) => {
                (self.attached, self.retry) = (None, None);
                self.say(error.to_string());
            }
        }
    }

    fn attach(&self) -> anyhow::Result<(Running, String)> {
        let prepared = prepare(self.request)?;
        apply(&prepared)?;
        let names = plan::list(prepared.steered.iter().map(AttachmentState::name));
        let place = prepared.place.context("the request names no container")?;
        Ok((place.running, names))
    }

    /// One line for each thing that is new; the same failure again and again is said once.
    fn say(&mut self, text: String) {
        if text != self.said {
            eprintln!("bridge-user: {text}");
            self.said = text;
        }
    }
}

fn next_retry(last: Option<Duration>) -> Duration {
    last.map_or(FIRST_RETRY, |last| (last * 2).min(LONGEST_RETRY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_wait_longer_and_longer() {
        let all: Vec<_> = std::iter::successors(Some(next_retry(None)), |last| Some(next_retry(Some(*last))))
            .take(9)
            .collect();
        assert_eq!(all[..3], [FIRST_RETRY, FIRST_RETRY * 2, FIRST_RETRY * 4]);
        assert_eq!(all[8], LONGEST_RETRY);
    }
}
