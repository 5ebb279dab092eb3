//! Waiting for a container to start or to end.
//!
//! Invariant: events are only a reason to look. What became of the container is asked of the engine each time, and a
//! broken connection is a reason to look, too, since nobody knows what was missed.

use std::{
    collections::HashMap,
    pin::Pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bollard::{errors::Error as ApiError, models::EventMessage, query_parameters::EventsOptions};
use futures_util::{Stream, StreamExt as _};
use tokio::time::sleep;

use super::docker::Docker;

/// How long to wait before the first attempt to reconnect; each further one waits twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// Look at least this often, whatever the events say. Longer than the longest pause and the time to connect, so that
/// a caller that stops waiting then has waited for both.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// The engine's events about one container.
pub struct Watch<'a> {
    docker: &'a Docker,
    container: String,
    events: Option<Events>,
    pause: Duration,
}

type Events = Pin<Box<dyn Stream<Item = Result<EventMessage, ApiError>>>>;

impl<'a> Watch<'a> {
    /// Of the container with this name, also if it is made anew.
    pub fn new(docker: &'a Docker, container: &str) -> Self {
        Self { docker, container: container.to_owned(), events: None, pause: Duration::ZERO }
    }

    /// Waits until the container should be looked at.
    pub async fn wait(&mut self) {
        // Running out of time is as good a reason as any.
        let _ = tokio::time::timeout(LOOK_AGAIN, self.changed()).await;
    }

    async fn changed(&mut self) {
        let Some(events) = &mut self.events else {
            sleep(self.pause).await;
            let api = self.docker.api().await.ok();
            self.events = api.map(|api| Box::pin(api.events(Some(self.filter()))) as Events);
            self.pause = if self.events.is_some() { FIRST_PAUSE } else { longer(self.pause) };
            return;
        };
        if !matches!(events.next().await, Some(Ok(_))) {
            self.events = None;
        }
    }

    /// From now on, as far as a clock of seconds can tell: the request itself is sent later.
    fn filter(&self) -> EventsOptions {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let filters = [
            ("type", vec!["container".to_owned()]),
            ("container", vec![self.container.clone()]),
            ("event", vec!["start".to_owned(), "die".to_owned()]),
        ];
        let filters =
            filters.into_iter().map(|(key, values)| (key.to_owned(), values)).collect::<HashMap<_, _>>();
        EventsOptions { since: Some(now.to_string()), until: None, filters: Some(filters) }
    }
}

fn longer(pause: Duration) -> Duration {
    (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit() {
        let pauses: Vec<_> =
            std::iter::successors(Some(Duration::ZERO), |pause| Some(longer(*pause))).take(8).collect();
        assert_eq!(pauses[1], FIRST_PAUSE);
        assert_eq!(pauses[2], FIRST_PAUSE * 2);
        assert_eq!(pauses[7], LONGEST_PAUSE);
        assert!(LONGEST_PAUSE < LOOK_AGAIN);
    }
}
