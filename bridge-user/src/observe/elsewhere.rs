//! Targets that no listener of the namespace takes connections for, though this host's own may be answered: found by
//! connecting there once.

use std::{collections::BTreeMap, net::SocketAddr};

use super::{
    checks::surroundings::{answered, held},
    surroundings::Surroundings,
};
use crate::{
    net::{
        listeners::Listener,
        namespace::Namespace,
        reach::{Answer, answer_at},
    },
    plan::Elsewhere,
};

/// The targets whose connections no listener of the namespace takes, and what is so instead.
///
/// # Errors
/// When it cannot be tried.
pub(crate) fn elsewhere(
    namespace: &Namespace,
    targets: &[SocketAddr],
    listeners: &[Listener],
    around: &Surroundings,
    publisher: &dyn Fn(SocketAddr) -> Option<String>,
) -> anyhow::Result<BTreeMap<SocketAddr, Elsewhere>> {
    let mut found = BTreeMap::new();
    for &target in targets {
        if let Some(placeholder) = around.placeholder(target, listeners, publisher) {
            let held = held(target, &placeholder);
            let what = match answer_at(namespace, target)? {
                Answer::Elsewhere => Elsewhere::Relayed(format!(
                    "{held} (its port is reached on a network that it shares with the containers, or through a relay)"
                )),
                _ => Elsewhere::Unreachable(format!(
                    "{held}, and nothing carries this host's own connections to the container either: connect the \
                     containers to a network of that container"
                )),
            };
            found.insert(target, what);
        } else if !listeners.iter().any(|listener| listener.serves(target))
            && answer_at(namespace, target)? == Answer::Elsewhere
        {
            let what = answered(target, around.carried_elsewhere(target).as_ref());
            found.insert(target, Elsewhere::Relayed(what));
        }
    }
    Ok(found)
}
