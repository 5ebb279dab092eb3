//! Containers in allow-lists: whose connections get tickets, and which list admits them.
//!
//! Invariant: a container's connections get tickets before a list admits it, and as long as one does.

use std::collections::HashSet;

use anyhow::Context as _;
use bridge_common::maps::NamedKey;

use super::{State, codec::encode_named, write::unless_gone};
use crate::{
    kernel::instance::meta::netns_cookie,
    model::{
        attachment::Attachment,
        source::{NamedContainer, Source},
    },
    net::namespace::Namespace,
};

impl State {
    /// Writes the containers of an attachment's allow-list.
    pub(super) fn write_named(&mut self, state: &Attachment, set: u32) -> anyhow::Result<()> {
        for container in state.allow.iter().filter_map(Source::container) {
            let cookie = match container.cookie {
                Some(cookie) => cookie,
                None => self.cookie_of(container)?,
            };
            let (key, value) = encode_named(set, cookie, container)?;
            self.maps.clients.insert(cookie, 1, 0).context("failed to write map CLIENTS")?;
            self.maps.named.insert(key, value, 0).context("failed to write map NAMED")?;
        }
        Ok(())
    }

    /// The cookie of a container's namespace, which only an attached program can tell here.
    ///
    /// # Errors
    /// When no process is in it any more, or the program did not tell.
    pub fn cookie_of(&self, container: &NamedContainer) -> anyhow::Result<u64> {
        netns_cookie(&self.maps, &Namespace::of_named(container)?).with_context(|| {
            format!("failed to learn the cookie of container {}'s network namespace", container.name)
        })
    }

    /// Removes the containers of an allow-list, which `state` has.
    pub(super) fn remove_named_of(&mut self, state: &Attachment, set: u32) -> anyhow::Result<()> {
        if !state.allow.iter().any(|source| source.container().is_some()) {
            return Ok(());
        }
        let keys = self.named_keys()?;
        let gone: Vec<_> = keys.into_iter().filter(|key| key.set == set).collect();
        self.remove_named(&gone)
    }

    /// Removes containers from allow-lists; those that no list names any more get no tickets.
    pub(super) fn remove_named(&mut self, keys: &[NamedKey]) -> anyhow::Result<()> {
        for key in keys {
            unless_gone(self.maps.named.remove(key)).context("failed to clean map NAMED")?;
        }
        for netns in self.unnamed_clients()? {
            unless_gone(self.maps.clients.remove(&netns)).context("failed to clean map CLIENTS")?;
        }
        Ok(())
    }

    pub(super) fn named_keys(&self) -> anyhow::Result<Vec<NamedKey>> {
        self.maps.named.keys().collect::<Result<_, _>>().context("failed to read map NAMED")
    }

    /// The clients that no list names.
    pub(super) fn unnamed_clients(&self) -> anyhow::Result<Vec<u64>> {
        let named: HashSet<u64> = self.named_keys()?.into_iter().map(|key| key.netns).collect();
        let clients: Result<Vec<u64>, _> = self.maps.clients.keys().collect();
        let mut clients = clients.context("failed to read map CLIENTS")?;
        clients.retain(|netns| !named.contains(netns));
        Ok(clients)
    }
}
