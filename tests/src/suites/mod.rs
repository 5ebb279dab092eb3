//! Every trial of the suite, by area.
//!
//! Invariant: names are `<area>::<what must hold>` and unique; a trial builds its own topology and
//! shares nothing with the next.

mod allow;
mod attack;
mod check;
mod conflicts;
mod crash;
mod docker;
mod events;
mod leaks;
mod lifecycle;
mod listeners;
mod mptcp;
mod privileges;
mod reach;
mod refusals;
mod restart;
mod rig_itself;
mod scope;
mod services;
mod traffic;
mod upgrade;

use std::path::Path;

use anyhow::Result;

/// What a trial needs from the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Namespaces, busybox, `ip`, `nft` and `redis-server`: also runs inside the VMs.
    Namespaces,
    /// The same and a kernel with MPTCP. Elsewhere the trial is ignored, and counted as such: the
    /// runner knows the kernels where that is right.
    Mptcp,
    /// Docker, PostgreSQL or bpftool; or nothing that a kernel could do differently and emulation would make slow: only
    /// on a full host.
    Host,
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

    /// Whether this kernel cannot run the trial.
    pub(crate) fn is_impossible_here(&self) -> bool {
        self.needs == Needs::Mptcp && !Path::new("/proc/sys/net/mptcp").exists()
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
        mptcp::TESTS,
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
    ]
    .iter()
    .flat_map(|tests| tests.iter())
    .map(|test| Test { name: test.name, needs: test.needs, run: test.run })
    .collect()
}
