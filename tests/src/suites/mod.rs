//! Every trial of the suite, by area.
//!
//! Invariant: names are `<area>::<what must hold>` and unique; a trial builds its own topology and
//! shares nothing with the next.

/// Trials of every relay datapath: `Kernels: "name" => function` becomes `relay::splice::name` and
/// `relay::sockmap::name`; the function gets the datapath, and the first word is their [`Scope`].
macro_rules! both_relays {
    ($($scope:ident: $name:literal => $run:expr),* $(,)?) => { &[$(
        $crate::suites::Test::new(concat!("relay::splice::", $name), || $run($crate::harness::relay::Datapath::Splice))
            .on($crate::suites::Scope::$scope),
        $crate::suites::Test::with_sockmap(
            concat!("relay::sockmap::", $name),
            || $crate::harness::relay::unless_repeated(|| $run($crate::harness::relay::Datapath::Sockmap)),
        )
        .on($crate::suites::Scope::$scope),
    )*] };
}

mod again;
mod allow;
mod attack;
mod bridges;
mod check;
mod config;
mod conflicts;
mod container_follow;
mod container_kernels;
mod container_reach;
mod container_refusals;
mod container_scope;
mod crash;
mod daemon;
mod daemon_engine;
mod docker;
mod dry_run;
mod engines;
mod events;
mod firewalls;
mod fragments;
mod growth;
mod host_gateway;
mod identity;
mod identity_cache;
mod identity_leaks;
mod import;
mod ipv6;
mod kinds;
mod leaks;
mod lifecycle;
mod listeners;
mod mptcp;
mod mptcp_go;
mod mptcp_time_wait;
mod named;
mod namespaces;
mod nat;
mod newer;
mod odd_text;
mod only_relayed;
mod partial;
mod pins;
mod pins_unsafe;
mod placeholders;
mod podman;
mod privileges;
mod reach;
mod refusals;
mod relay_bytes;
mod relay_choice;
mod relay_conflicts;
mod relay_ends;
mod relay_fair;
mod relay_faults;
mod relay_limits;
mod relay_load;
mod relay_names;
mod relay_stalls;
mod relay_stop;
mod relay_targets;
mod relay_unix;
mod restart;
mod rig_itself;
mod scope;
mod services;
mod shells;
mod stages;
mod systemd;
mod told;
mod traffic;
mod transcripts;
mod typed;
mod upgrade;

use anyhow::Result;

use crate::harness::kernel::Need;

/// Where a trial runs. On this machine all of them do, but for those that need a module it may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// In each kernel of every run: what a kernel can change (the verifier, attaching, each datapath and identity, who
    /// gets in, what older kernels do differently).
    Kernels,
    /// In kernels only with `cargo xtask vm --full`: needs namespaces, busybox, `ip`, `nft` and `redis-server`, and
    /// tries what a kernel is not expected to change.
    Namespaces,
    /// In kernels only, in each of every run: needs a module that kernels for virtual machines come without.
    Guests,
    /// Not in kernels: needs Docker, PostgreSQL or bpftool; or nothing that a kernel could do differently and emulation
    /// would make slow.
    Host,
}

/// One trial.
#[derive(Clone, Copy)]
pub(crate) struct Test {
    pub(crate) name: &'static str,
    pub(crate) scope: Scope,
    /// What it needs of the kernel. Where that is missing the trial is ignored, and counted as such.
    pub(crate) need: Option<Need>,
    pub(crate) run: fn() -> Result<()>,
}

impl Test {
    /// A trial that needs nothing of the kernel that any of them lacks.
    const fn new(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self { name, scope: Scope::Namespaces, need: None, run }
    }

    /// A trial about MPTCP listeners.
    const fn with_mptcp(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self { need: Some(Need::Mptcp), ..Self::new(name, run) }
    }

    /// A trial of the relay by sockmap.
    const fn with_sockmap(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self { need: Some(Need::Sockmap), ..Self::new(name, run) }
    }

    /// A trial that runs only on a full host.
    const fn on_host(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self::new(name, run).on(Scope::Host)
    }

    /// A trial that runs only inside kernels.
    const fn in_guests(name: &'static str, run: fn() -> Result<()>) -> Self {
        Self::new(name, run).on(Scope::Guests)
    }

    /// The same trial, in every run inside kernels.
    const fn in_kernels(self) -> Self {
        self.on(Scope::Kernels)
    }

    const fn on(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }

    /// Whether the runner declared that this kernel cannot run the trial.
    pub(crate) fn is_impossible_here(&self) -> bool {
        self.need.is_some_and(Need::is_declared_missing)
    }
}

/// Every trial, in the order they run: the harness proves itself first.
pub(crate) fn all() -> Vec<Test> {
    [
        rig_itself::TESTS,
        check::TESTS,
        refusals::TESTS,
        conflicts::TESTS,
        partial::TESTS,
        again::TESTS,
        only_relayed::TESTS,
        bridges::TESTS,
        nat::TESTS,
        placeholders::TESTS,
        odd_text::TESTS,
        privileges::TESTS,
        pins::TESTS,
        pins_unsafe::TESTS,
        reach::TESTS,
        listeners::TESTS,
        ipv6::TESTS,
        fragments::TESTS,
        mptcp::TESTS,
        mptcp_go::TESTS,
        mptcp_time_wait::TESTS,
        identity::TESTS,
        identity_leaks::TESTS,
        identity_cache::TESTS,
        kinds::TESTS,
        traffic::TESTS,
        scope::TESTS,
        namespaces::TESTS,
        attack::TESTS,
        allow::TESTS,
        named::TESTS,
        firewalls::TESTS,
        restart::TESTS,
        services::TESTS,
        events::TESTS,
        stages::TESTS,
        lifecycle::TESTS,
        crash::TESTS,
        daemon::TESTS,
        daemon_engine::TESTS,
        dry_run::TESTS,
        config::TESTS,
        growth::TESTS,
        leaks::TESTS,
        typed::TESTS,
        told::TESTS,
        shells::TESTS,
        upgrade::TESTS,
        systemd::TESTS,
        import::TESTS,
        docker::TESTS,
        host_gateway::TESTS,
        engines::TESTS,
        podman::TESTS,
        newer::TESTS,
        transcripts::TESTS,
        container_kernels::TESTS,
        container_refusals::TESTS,
        container_reach::TESTS,
        container_scope::TESTS,
        container_follow::TESTS,
        relay_choice::TESTS,
        relay_bytes::TESTS,
        relay_ends::TESTS,
        relay_faults::TESTS,
        relay_stalls::TESTS,
        relay_limits::TESTS,
        relay_fair::TESTS,
        relay_fair::SPLICED,
        relay_stop::TESTS,
        relay_targets::TESTS,
        relay_targets::REAL,
        relay_unix::TESTS,
        relay_conflicts::TESTS,
        relay_load::TESTS,
        relay_names::TESTS,
    ]
    .iter()
    .flat_map(|tests| tests.iter().copied())
    .collect()
}
