//! Where the load goes, and the proof that it went there.
//!
//! Invariant: after every round of a measure each service must have accepted, and each attachment must have counted,
//! exactly the connections of the targets whose path it is on, and no others. A bench that measures another path than
//! it says fails.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};

use super::load::Cell;
use super::service::LoadService;
use crate::harness::cli::Cli;
use crate::harness::topology::Topology;

/// One way to reach a service.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    /// In the tables.
    pub(crate) name: &'static str,
    /// The network whose containers are the clients.
    pub(crate) net: &'a Topology,
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    /// The service at the end of the path.
    pub(crate) service: &'a LoadService,
    /// The attachment on the path, if bridge-user is.
    pub(crate) attachment: Option<&'a str>,
    /// The relay on the path, if there is one.
    pub(crate) relay: Option<u32>,
    /// What its rates are for.
    pub(crate) role: Role,
}

/// What a target's rates are for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Role {
    /// Others are compared with it, in the measures where no other baseline has a higher median rate.
    Baseline,
    /// It has to reach this share of the baseline's rate.
    Judged(Share),
    /// For information.
    Context,
}

/// A share of the baseline's rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Share {
    /// Less than this fails the run.
    pub(crate) required: f64,
    /// What is wanted beyond that; missing it is reported and fails nothing.
    pub(crate) aim: Option<f64>,
}

impl Role {
    /// What has to be reached, if anything.
    pub(super) fn share(self) -> Option<Share> {
        match self {
            Self::Judged(share) => Some(share),
            Self::Baseline | Self::Context => None,
        }
    }
}

impl Target<'_> {
    /// The same for targets that share a service.
    fn service_name(&self) -> String {
        let address = self.service.address();
        format!("the service on {address} of host {}", self.net.host.inode())
    }
}

/// What every counter on any path showed, by name.
pub(super) struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// Reads all of them.
    pub(super) fn read(targets: &[Target<'_>], cli: &Cli<'_>) -> Result<Self> {
        let mut counts: BTreeMap<_, _> =
            targets.iter().map(|target| (target.service_name(), target.service.accepted())).collect();
        for attachment in cli.status()? {
            counts.insert(attachment.name, attachment.counters.accepted);
        }
        Ok(Self(counts))
    }

    /// Replaces these counts by newer ones, which must be higher by the connections of the targets on each path.
    pub(super) fn advance<'a>(
        &mut self,
        now: Self,
        targets: &[Target<'_>],
        cells: impl Iterator<Item = &'a Cell>,
    ) -> Result<()> {
        let mut expected = self.0.clone();
        for (target, cell) in targets.iter().zip(cells) {
            for name in [Some(target.service_name()), target.attachment.map(str::to_owned)].iter().flatten() {
                let count = expected.get_mut(name).with_context(|| format!("{name} has no counter"))?;
                *count += cell.connections;
            }
        }
        ensure!(
            now.0 == expected,
            "connections did not take the path they were to take: the counters are {:?} instead of {expected:?}",
            now.0
        );
        *self = now;
        Ok(())
    }
}
