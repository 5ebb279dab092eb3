//! Waiting for what an engine does to containers and networks.
//!
//! Invariant: events are only a reason to look. What there is is asked of the engine each time, and a
//! broken connection is a reason to look, too, since nobody knows what was missed.

use std::{
    collections::HashMap,
    pin::Pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bollard::{
    errors::Error as ApiError,
    models::{EventMessage, EventMessageTypeEnum},
    query_parameters::EventsOptions,
};
use futures_util::{Stream, StreamExt as _};
use tokio::time::sleep;

use super::{container::ContainerInfo, docker::Docker};
use crate::model::backoff::Backoff;

/// How long to wait before the first attempt to reconnect; each further one waits twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// Look at least this often, whatever the events say. Longer than the longest pause and the time to connect, so that
/// a caller that stops waiting then has waited for both.
const LOOK_AGAIN: Duration = Duration::from_secs(15);
const _: () = assert!(LONGEST_PAUSE.as_secs() < LOOK_AGAIN.as_secs());

/// What is told: containers that start and end, networks that are made and removed, and who joins and leaves them.
const EVENTS: [&str; 8] = ["start", "die", "rename", "create", "destroy", "remove", "connect", "disconnect"];

/// The engine's events about containers and networks.
pub struct Events {
    stream: Option<EventStream>,
    /// Before connecting again; none at first.
    pause: Duration,
    backoff: Backoff,
}

type EventStream = Pin<Box<dyn Stream<Item = Result<EventMessage, ApiError>>>>;

impl Events {
    /// Not connected yet.
    pub fn new() -> Self {
        let backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        Self { stream: None, pause: Duration::ZERO, backoff }
    }

    /// Waits for a reason to look: something that `concerns` says is one, or a connection that is new or was lost.
    pub async fn changed(&mut self, docker: &Docker, mut concerns: impl FnMut(&EventMessage) -> bool) {
        let Some(events) = &mut self.stream else {
            sleep(self.pause).await;
            if docker.answers().await
                && let Ok(api) = docker.api().await
            {
                self.stream = Some(Box::pin(api.events(Some(filter()))));
                self.backoff.reset();
            }
            self.pause = self.backoff.pause();
            return;
        };
        while let Some(Ok(event)) = events.next().await {
            if concerns(&event) {
                return;
            }
        }
        self.stream = None;
    }
}

/// The events of an engine that may come and go.
pub struct EngineWatch {
    docker: Option<Docker>,
    events: Events,
}

impl EngineWatch {
    /// Not connected yet.
    pub fn new() -> Self {
        Self { docker: None, events: Events::new() }
    }

    /// Waits for anything that may matter. `host`: the engine, in the form of DOCKER_HOST; none: the usual one.
    pub async fn changed(&mut self, host: Option<&str>) {
        if self.docker.as_ref().is_some_and(|docker| host.is_some_and(|host| host != docker.host())) {
            *self = Self::new();
        }
        loop {
            if let Some(docker) = &self.docker {
                return self.events.changed(docker, |_| true).await;
            }
            // Its socket is not there yet.
            match host.map_or_else(Docker::connect, Docker::connect_to) {
                Ok(docker) => self.docker = Some(docker),
                Err(_) => sleep(FIRST_PAUSE).await,
            }
        }
    }
}

/// The engine's events about one container.
pub struct Watch<'a> {
    docker: &'a Docker,
    watched: Watched,
    events: Events,
}

impl<'a> Watch<'a> {
    /// Of this container, also if one with its name is made anew.
    pub fn new(docker: &'a Docker, container: &ContainerInfo) -> Self {
        let watched = Watched { name: container.name.clone(), id: container.id.clone() };
        Self { docker, watched, events: Events::new() }
    }

    /// Waits until the container should be looked at.
    pub async fn wait(&mut self) {
        let Self { docker, watched, events } = self;
        let changed = events.changed(docker, |event| watched.is_concerned(event));
        // Running out of time is as good a reason as any.
        let _ = tokio::time::timeout(LOOK_AGAIN, changed).await;
    }
}

/// The container that is watched.
struct Watched {
    name: String,
    /// Of the latest with that name.
    id: String,
}

impl Watched {
    /// A container's own events name it; those of a network have the id of who joined or left it.
    fn is_concerned(&mut self, event: &EventMessage) -> bool {
        let Some(actor) = &event.actor else { return false };
        let says = |key: &str, value: &str| {
            actor.attributes.as_ref().and_then(|all| all.get(key)).is_some_and(|found| found == value)
        };
        if event.typ == Some(EventMessageTypeEnum::NETWORK) {
            return says("container", &self.id);
        }
        let concerned = says("name", &self.name);
        if let (true, Some(id)) = (concerned, &actor.id) {
            self.id.clone_from(id);
        }
        concerned
    }
}

/// From now on, as far as a clock of seconds can tell: the request itself is sent later.
fn filter() -> EventsOptions {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let filters = HashMap::from([
        ("type".to_owned(), ["container", "network"].map(str::to_owned).to_vec()),
        ("event".to_owned(), EVENTS.map(str::to_owned).to_vec()),
    ]);
    EventsOptions { since: Some(now.to_string()), until: None, filters: Some(filters) }
}

#[cfg(test)]
mod tests {
    use bollard::models::EventActor;

    use super::*;

    fn event(typ: EventMessageTypeEnum, id: &str, key: &str, value: &str) -> EventMessage {
        let attributes = Some([(key.to_owned(), value.to_owned())].into());
        let actor = Some(EventActor { id: Some(id.to_owned()), attributes });
        EventMessage { typ: Some(typ), actor, ..EventMessage::default() }
    }

    #[test]
    fn events_of_the_container_and_of_who_took_its_name_concern_it() {
        use EventMessageTypeEnum::{CONTAINER, NETWORK};
        let mut web = Watched { name: "web".to_owned(), id: "1".to_owned() };
        assert!(web.is_concerned(&event(CONTAINER, "1", "name", "web")));
        assert!(!web.is_concerned(&event(CONTAINER, "2", "name", "webber")));
        assert!(!web.is_concerned(&event(NETWORK, "web", "name", "web")));
        assert!(web.is_concerned(&event(NETWORK, "9", "container", "1")));
        assert!(!web.is_concerned(&event(NETWORK, "9", "container", "3")));
        assert!(web.is_concerned(&event(CONTAINER, "3", "name", "web")));
        assert!(web.is_concerned(&event(NETWORK, "9", "container", "3")));
        assert!(!web.is_concerned(&EventMessage::default()));
    }
}
