//! Changing one namespace's attachments, with a single commit point.
//!
//! Order of a change: what refers to the attachment first (allow-list set, counters, rules), then the attachment
//! itself, in one atomic map update, then removal of what is no longer referred to. A process killed in between leaves
//! only entries without effect, which [`State::remove_leftovers`] removes. Each function leaves nothing of itself when
//! it fails, and reads and writes what the attachment has, whatever others there are.

use std::{io, net::IpAddr, thread, time::Duration};

use anyhow::{Context as _, ensure};
use aya::maps::{MapError, PerCpuValues, lpm_trie};
use bridge_common::maps::{AllowKey, Meta, RuleKey, Stats};

use super::{
    State,
    codec::{allow_entries, encode, rule_keys},
};
use crate::model::attachment::Attachment;

impl State {
    /// Adds or updates one attachment, whose target is tracked.
    ///
    /// # Errors
    /// When a map is full or cannot be written; nothing of the change then has effect.
    pub fn put(&mut self, id: u32, new: &Attachment, old: Option<&Attachment>) -> anyhow::Result<()> {
        let failed = || format!("failed to write attachment {}", new.name());
        let old = match old {
            Some(old) => Some((old, self.allow_set(id).with_context(failed)?)),
            None => None,
        };
        let set = self.take_numbers(id).with_context(failed)?;
        let old_rules = old.map(|(old, _)| self.rules_of(old)).unwrap_or_default();
        if let Err(error) = self.write(id, set, new, old.is_none()) {
            self.remove_settings(id, new, set, &old_rules)?;
            if old.is_none() {
                self.remove_stats(id)?;
            }
            return Err(error).with_context(failed);
        }
        match old {
            Some((old, old_set)) => self.remove_settings(id, old, old_set, &self.rules_of(new)),
            None => Ok(()),
        }
    }

    /// Removes one attachment and what only it had.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn remove(&mut self, id: u32, state: &Attachment) -> anyhow::Result<()> {
        let set = self.allow_set(id)?;
        self.wanted = None;
        self.maps.attachments.remove(&id).context("failed to remove the attachment from map ATTACHMENTS")?;
        self.remove_settings(id, state, set, &[])?;
        self.remove_stats(id)
    }

    fn write(&mut self, id: u32, set: u32, wanted: &Attachment, is_new: bool) -> anyhow::Result<()> {
        let target = wanted
            .target
            .tcp()
            .with_context(|| format!("{} cannot be steered to: use a relay", wanted.target))?;
        let value = encode(wanted, target, set)?;
        for (key, class) in allow_entries(wanted, set) {
            self.maps.allow.insert(&key, class, 0).context("failed to write map ALLOW")?;
        }
        self.write_named(wanted, set)?;
        if is_new {
            self.insert_stats(id).context("failed to write map STATS")?;
        }
        for key in self.rules_of(wanted) {
            // Without interface indices, two bridges with the same gateway address would share a rule.
            ensure!(
                self.maps.rules.get(&key, 0).map_or(true, |owner| owner == id),
                "gateway {} port {} already belongs to another attachment, and this kernel (below 5.17) cannot tell \
                 their bridges apart: choose another port",
                IpAddr::from(key.gateway),
                key.port
            );
            self.maps.rules.insert(key, id, 0).context("failed to write map RULES")?;
        }
        self.wanted = None;
        self.maps.attachments.insert(id, value, 0).context("failed to write map ATTACHMENTS")
    }

    fn rules_of(&self, state: &Attachment) -> Vec<RuleKey> {
        rule_keys(state, self.match_ifindex)
    }

    /// The allow set that an attachment has now.
    fn allow_set(&self, id: u32) -> anyhow::Result<u32> {
        Ok(self.maps.attachments.get(&id, 0).context("failed to read map ATTACHMENTS")?.allow_set)
    }

    /// Takes a number for an allow set, and notes that `id` is taken. It is noted before it is used: a number that was
    /// given out once is never given out again, whatever becomes of this process.
    fn take_numbers(&mut self, id: u32) -> anyhow::Result<u32> {
        const USED_UP: &str = "every number that attachments and allow-lists of this network namespace can have was \
                               used once: run `bridge-user detach --all`, then attach again";
        let meta = self.meta()?;
        let set = meta.next_allow_set;
        let next_allow_set = set.checked_add(1).context(USED_UP)?;
        let next_id = meta.next_id.max(id.checked_add(1).context(USED_UP)?);
        let taken = Meta { next_id, next_allow_set, ..meta };
        self.maps.meta.set(0, taken, 0).context("failed to write map META")?;
        Ok(set)
    }

    /// The kernel makes room for values of each CPU in the background (`pcpu_balance_workfn`, mm/percpu.c), and has
    /// none at hand after some hundreds.
    fn insert_stats(&mut self, id: u32) -> anyhow::Result<()> {
        const TRIES: u32 = 1000;
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        for _ in 1..TRIES {
            let zeroes = PerCpuValues::try_from(vec![Stats::default(); cpus])?;
            match self.maps.stats.insert(id, zeroes, 0) {
                Err(error) if errno(&error) == Some(libc::ENOMEM) => thread::sleep(Duration::from_millis(1)),
                result => return Ok(result?),
            }
        }
        let zeroes = PerCpuValues::try_from(vec![Stats::default(); cpus])?;
        Ok(self.maps.stats.insert(id, zeroes, 0)?)
    }

    fn remove_stats(&mut self, id: u32) -> anyhow::Result<()> {
        unless_gone(self.maps.stats.remove(&id)).context("failed to clean map STATS")
    }

    /// Removes the rules and the allow-list of one version of an attachment, except the rules in `keep`.
    fn remove_settings(
        &mut self,
        id: u32,
        state: &Attachment,
        set: u32,
        keep: &[RuleKey],
    ) -> anyhow::Result<()> {
        let mut rules = self.rules_of(state);
        rules.retain(|key| !keep.contains(key) && self.maps.rules.get(key, 0).is_ok_and(|owner| owner == id));
        self.remove_rules(&rules)?;
        let allow: Vec<_> = allow_entries(state, set).map(|(key, _)| key).collect();
        self.remove_allow(&allow)?;
        self.remove_named_of(state, set)
    }

    pub(super) fn remove_rules(&mut self, rules: &[RuleKey]) -> anyhow::Result<()> {
        for key in rules {
            unless_gone(self.maps.rules.remove(key)).context("failed to clean map RULES")?;
        }
        Ok(())
    }

    pub(super) fn remove_allow(&mut self, allow: &[lpm_trie::Key<AllowKey>]) -> anyhow::Result<()> {
        for key in allow {
            unless_gone(self.maps.allow.remove(key)).context("failed to clean map ALLOW")?;
        }
        Ok(())
    }
}

/// That an entry to be removed is not there is no error: writing it may have failed.
pub(super) fn unless_gone(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

fn errno(error: &MapError) -> Option<i32> {
    let cause: Option<&io::Error> = match error {
        MapError::SyscallError(error) => Some(&error.io_error),
        _ => None,
    };
    cause.and_then(io::Error::raw_os_error)
}
