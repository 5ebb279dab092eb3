//! What a shell proposes for the values of verbs. What cannot be found out, for want of rights or of an engine, is not
//! proposed.

use clap_complete::{ArgValueCandidates, CompletionCandidate};

use crate::{
    model::presets::PRESETS,
    net::{links::bridge_names, namespace::Namespace},
    observe::{networks::BlockingDocker, snapshot},
    runner::control,
    scope::Scope,
};

/// Presets, with what they are.
pub(super) fn presets() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let one = |name: &str, help: String| CompletionCandidate::new(name).help(Some(help.into()));
        PRESETS
            .iter()
            .map(|preset| one(preset.name, format!("{}, port {}", preset.summary, preset.port)))
            .collect()
    })
}

/// The engine's bridge networks.
pub(super) fn networks() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        candidates(
            BlockingDocker::connect(None).and_then(|docker| Ok(docker.ask(docker.docker.network_names())?)),
        )
    })
}

/// The engine's running containers.
pub(super) fn containers() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        candidates(
            BlockingDocker::connect(None).and_then(|docker| Ok(docker.ask(docker.docker.container_names())?)),
        )
    })
}

/// The namespace's bridges.
pub(super) fn bridges() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        candidates(Namespace::current().and_then(|namespace| Ok(bridge_names(&namespace)?)))
    })
}

/// What is attached, steered or relayed.
pub(super) fn attachments() -> ArgValueCandidates {
    ArgValueCandidates::new(|| candidates(attached()))
}

fn attached() -> anyhow::Result<Vec<String>> {
    let scope = Scope::of_this_thread()?;
    let relays = control::ask_all(&scope.namespace).relays;
    let steered = snapshot::steered(&scope).map(|report| report.attachments).unwrap_or_default();
    let relayed = relays.into_iter().flat_map(|(_, entries)| entries);
    Ok(steered.into_iter().chain(relayed).map(|entry| entry.name).collect())
}

fn candidates(names: anyhow::Result<Vec<String>>) -> Vec<CompletionCandidate> {
    names.unwrap_or_default().into_iter().map(CompletionCandidate::new).collect()
}
