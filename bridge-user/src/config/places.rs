//! Where an entry attaches, by names.
//!
//! Invariant: names decide. Two names that turn out to mean one network (a name and an id) are found when they are
//! attached.

use crate::{
    model::pattern::{ALL, DEFAULT_NETWORKS, covers, is_pattern, meet},
    plan::request::Request,
};

/// A network, or a bridge by its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place<'a> {
    Network(&'a str),
    Bridge(&'a str),
}

impl<'a> Place<'a> {
    /// Whether it stands for everything that the other one stands for.
    fn covers(self, narrow: Place<'_>) -> bool {
        match (self, narrow) {
            (Place::Network(wide), Place::Network(narrow)) => covers(wide, narrow),
            (Place::Bridge(one), Place::Bridge(other)) => one == other,
            _ => false,
        }
    }

    /// Whether both can mean one.
    pub(super) fn meets(self, other: Place<'_>) -> bool {
        match (self, other) {
            (Place::Network(one), Place::Network(other)) => meet(one, other),
            _ => self.covers(other),
        }
    }

    /// Whether it may stand for several.
    pub(super) fn is_pattern(self) -> bool {
        matches!(self, Place::Network(name) if is_pattern(name))
    }

    /// Its name.
    pub(super) fn name(self) -> &'a str {
        match self {
            Place::Network(name) | Place::Bridge(name) => name,
        }
    }
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Network(name) => write!(f, "network {name}"),
            Place::Bridge(name) => write!(f, "bridge {name}"),
        }
    }
}

/// Where a request attaches.
pub(super) fn places(request: &Request) -> Vec<Place<'_>> {
    let networks = request.networks.iter().map(|name| Place::Network(name));
    let named: Vec<_> = networks.chain(request.bridges.iter().map(|name| Place::Bridge(name))).collect();
    if !named.is_empty() {
        return named;
    }
    vec![Place::Network(if request.container.is_some() { ALL } else { DEFAULT_NETWORKS[0] })]
}

/// A place that both requests can mean, as the first has it.
pub(super) fn shared<'a>(first: &'a Request, second: &Request) -> Option<Place<'a>> {
    let theirs = places(second);
    let is_shared = |place: &Place<'_>| theirs.iter().any(|other| place.meets(*other));
    places(first).into_iter().find(is_shared).filter(|_| first.container == second.container)
}

/// The places of `narrow` that no place of `wide` covers.
pub(super) fn uncovered<'a>(wide: &Request, narrow: &'a Request) -> Vec<Place<'a>> {
    let wide = places(wide);
    places(narrow).into_iter().filter(|narrow| !wide.iter().any(|wide| wide.covers(*narrow))).collect()
}
