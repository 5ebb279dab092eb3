//! Every trial of the suite, by area.
//!
//! Invariant: names are `<area>::<what must hold>` and unique; a trial builds its own topology and
//! shares nothing with the next.

/// Trials of every relay datapath: `"name" => function` becomes `relay::splice::name` and
/// `relay::sockmap::name`; the function gets the datapath. `on_host` as in [`Needs::Host`].
macro_rules! both_relays {
    ($($name:literal => $run:expr),* $(,)?) => { &[$(
        $crate::suites::Test::new(concat!("relay::splice::", $name), || $run($crate::harness::relay::Datapath::Splice)),
        $crate::suites::Test::with_sockmap(
            concat!("relay::sockmap::", $name),
            || $crate::harness::relay::unless_repeated(|| $run($crate::harness::relay::Datapath::Sockmap)),
        ),
    )*] };
    (on_host: $($name:literal => $run:expr),* $(,)?) => { &[$(
        $crate::suites::Test::on_host(concat!("relay::splice::", $name), || $run($crate::harness::relay::Datapath::Splice)),
        $crate::suites::Test::on_host(
            concat!("relay::sockmap::", $name),
            || $crate::harness::relay::unless_repeated(|| $run($crate::harness::relay::Datapath::Sockmap)),
        ),
    )*] };
}

mod allow;
mod attack;
mod check;
mod conflicts;
mod container_follow;
mod container_kernels;
mod container_reach;
mod container_refusals;
mod container_scope;
mod crash;
mod docker;
mod events;
mod fragments;
mod identity;
mod identity_leaks;
mod identity_stories;
mod ipv6;
mod kinds;
mod leaks;
mod lifecycle;
mod listeners;
mod mptcp;
mod mptcp_go;
mod mptcp_time_wait;
mod privileges;
mod reach;
mod refusals;
mod relay_bytes;
mod relay_choice;
mod relay_conflicts;
mod relay_ends;
mod relay_faults;
mod relay_limits;
mod relay_load;
mod relay_stalls;
mod relay_stop;
mod relay_targets;
mod restart;
mod rig_itself;
mod scope;
mod services;
mod traffic;
mod upgrade;

use std::path::Path;

use anyhow::Result;

use crate::harness::floor::sockmap_is_trusted;

/// What a trial needs from the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Namespaces, busybox, `ip`, `nft` and `redis-server`: also runs inside the VMs.
    Namespaces,
    /// The same and a kernel with MPTCP. Elsewhere the trial is ignored, and counted as such: the
    /// runner knows the kernels where that is right.
    Mptcp,
    /// The same as the first, and a kernel where sockmap is trusted. In a VM with another one the trial is ignored, and
    /// counted; on the host it runs, forced.
    Sockmap,
    /// Docker, PostgreSQL or bpftool; or nothing that a kernel could do differently and emulation would make slow: only
    /// on a full host.
    Host,
}

/// Whether this kernel has MPTCP.
fn has_mptcp() -> bool {
    Path::new("/proc/sys/net/mptcp").exists()
}

/// One trial.
pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) needs: Needs,
    pub(crate) run: fn() -> Result<()>,
}

impl Test {
    /// A trial that runs everywhere.
    const fn new(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self { name, needs: Needs::Namespaces, run }
    }

    /// A trial about MPTCP listeners.
    const fn with_mptcp(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self { name, needs: Needs::Mptcp, run }
    }

    /// A trial of the relay by sockmap.
    const fn with_sockmap(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self { name, needs: Needs::Sockmap, run }
    }

    /// Whether this kernel cannot run the trial.
    pub(crate) fn is_impossible_here(&self) -> bool {
        match self.needs {
            Needs::Mptcp => !has_mptcp(),
            // A version that cannot be told is no reason to leave anything out.
            Needs::Sockmap => {
                std::env::var_os("BRIDGE_KERNEL").is_some() && !sockmap_is_trusted().unwrap_or(true)
            }
            Needs::Namespaces | Needs::Host => false,
        }
    }

    /// A trial that runs only on a full host.
    const fn on_host(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self { name, needs: Needs::Host, run }
    }
}

/// Every trial, in the order they run: the harness proves itself first.
pub(crate) fn all() -> Vec<Test> {
    [
        rig_itself::TESTS,
        check::TESTS,
        refusals::TESTS,
        conflicts::TESTS,
        privileges::TESTS,
        reach::TESTS,
        listeners::TESTS,
        ipv6::TESTS,
        fragments::TESTS,
        mptcp::TESTS,
        mptcp_go::TESTS,
        mptcp_time_wait::TESTS,
        identity::TESTS,
        identity_leaks::TESTS,
        identity_stories::TESTS,
        kinds::TESTS,
        traffic::TESTS,
        scope::TESTS,
        attack::TESTS,
        allow::TESTS,
        restart::TESTS,
        services::TESTS,
        events::TESTS,
        lifecycle::TESTS,
        crash::TESTS,
        leaks::TESTS,
        upgrade::TESTS,
        docker::TESTS,
        container_kernels::TESTS,
        container_refusals::TESTS,
        container_reach::TESTS,
        container_scope::TESTS,
        container_follow::TESTS,
        relay_choice::TESTS,
        relay_bytes::LOSSLESS,
        relay_bytes::LARGE,
        relay_ends::TESTS,
        relay_faults::TESTS,
        relay_faults::ON_HOST,
        relay_stalls::TESTS,
        relay_stalls::ON_HOST,
        relay_limits::TESTS,
        relay_limits::ON_HOST,
        relay_stop::TESTS,
        relay_stop::ON_HOST,
        relay_targets::TESTS,
        relay_targets::ON_HOST,
        relay_targets::REAL,
        relay_conflicts::TESTS,
        relay_load::TESTS,
        relay_load::ON_HOST,
    ]
    .iter()
    .flat_map(|tests| tests.iter())
    .map(|test| Test { name: test.name, needs: test.needs, run: test.run })
    .collect()
}
