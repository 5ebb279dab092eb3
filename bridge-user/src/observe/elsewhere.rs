//! Targets that no listener of the namespace takes connections for, though this host's own may be answered: found by
//! connecting there once.

use std::{collections::BTreeMap, net::SocketAddr};

use super::{
    checks::{
        serving::listens_on_interface,
        surroundings::{answered, held},
    },
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
        } else if let Some(bound) = bound_to_interface(listeners, target) {
            // Over loopback, as this host and a relay get there.
            if answer_at(namespace, target)? == Answer::Here {
                found.insert(target, Elsewhere::Relayed(listens_on_interface(bound)));
            }
        } else if !listeners.iter().any(|listener| listener.serves(target))
            && answer_at(namespace, target)? == Answer::Elsewhere
        {
            let what = answered(target, around.carried_elsewhere(target).as_ref());
            found.insert(target, Elsewhere::Relayed(what));
        }
    }
    Ok(found)
}

/// The listener on `target`, where that is bound to an interface, and none is there that is not.
fn bound_to_interface(listeners: &[Listener], target: SocketAddr) -> Option<&Listener> {
    let mut serving = listeners.iter().filter(|listener| listener.serves(target));
    let first = serving.next()?;
    (first.device != 0 && serving.all(|listener| listener.device != 0)).then_some(first)
}
