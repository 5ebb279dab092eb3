//! Carries out what was prepared: all of it, or nothing.

use anyhow::{Context as _, anyhow};

use crate::{
    kernel::{
        features::Features,
        instance::{Session, Writer},
        state::State,
    },
    model::{attachment::Attachment, datapath::Reason, identity::Identity},
    net::namespace::Namespace,
    observe::{container::ContainerRun, prepare::Prepared},
    plan::{self, Intent},
    scope::Scope,
};

/// Makes the prepared attachments that are steered; a failure undoes those made before it.
///
/// # Errors
/// When the kernel refuses; nothing of this call is left then.
pub fn apply(prepared: &Prepared) -> anyhow::Result<()> {
    let intent = &prepared.intent;
    let Some(features) = intent.features.filter(|_| !intent.steered.is_empty()) else { return Ok(()) };
    let owner = prepared.container.as_ref().map(ContainerRun::owner);
    let scope = &prepared.scope;
    prepared.inside(scope.run(|| steer(intent, scope, features, owner)))?;
    prepared.container.as_ref().map_or(Ok(()), |container| container.forget_earlier(&intent.steered))
}

fn steer(intent: &Intent, scope: &Scope, features: Features, owner: Option<u64>) -> anyhow::Result<()> {
    let writer = Writer::begin(scope)?;
    let probed = intent.steered.iter().any(|state| state.reason == Reason::ProbePassed);
    let mut session = writer.open_or_create(features, intent.event_level, probed, owner)?;
    let before: Vec<_> = session.state.list()?.into_iter().map(|(_, state)| state).collect();
    match put_all(&mut session, intent, &scope.namespace) {
        Ok(()) => session.commit(),
        Err(error) => {
            undo(&mut session.state, &before, &intent.steered, &scope.namespace)
                .and_then(|()| session.sweep_mptcp())
                .with_context(|| format!("failed to undo after: {error:#}"))?;
            Err(error)
        }
    }
}

fn put_all(session: &mut Session, intent: &Intent, namespace: &Namespace) -> anyhow::Result<()> {
    let now = intent.steered.iter().find(|state| intent.is_mptcp(state));
    match (session.steer_mptcp(&intent.steered), now) {
        (Err(error), Some(state)) => {
            return Err(error)
                .with_context(|| plan::failed_to_attach(&state.service, state.port, &state.bridge));
        }
        // Only a service that will listen with MPTCP one day needs it; `status` says so then.
        (Err(_), None) | (Ok(()), _) => {}
    }
    if let Some(state) = intent.steered.iter().find(|state| state.identity == Identity::Loopback) {
        session
            .attach_identity()
            .with_context(|| plan::failed_to_attach(&state.service, state.port, &state.bridge))?;
    }
    for state in &intent.steered {
        let failed = || plan::failed_to_attach(&state.service, state.port, &state.bridge);
        // Checked again under the lock: another attach may have come in between.
        let present: Vec<_> = session.state.list()?.into_iter().map(|(_, state)| state).collect();
        plan::taken_by_attachment(state, &present).map_err(|text| anyhow!("{}: {text}", failed()))?;
        session.state.put(state, namespace).with_context(failed)?;
    }
    Ok(())
}

fn undo(
    state: &mut State,
    before: &[Attachment],
    wanted: &[Attachment],
    namespace: &Namespace,
) -> anyhow::Result<()> {
    for added in wanted {
        if let Some(old) = before.iter().find(|old| old.is_same(added)) {
            state.put(old, namespace)?;
        } else if let Some((id, _)) = state.list()?.iter().find(|(_, s)| s.is_same(added)) {
            state.remove(*id)?;
        }
    }
    Ok(())
}
