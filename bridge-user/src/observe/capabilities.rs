//! What this host can carry a request's connections by, found out by trying: as far as the request needs to know.

use super::preflight;
use crate::{
    kernel::{Instance, features::Features, floor},
    model::{
        datapath::{Capabilities, Requested},
        identity::Identity,
    },
    net::{self, listeners::Listener},
    plan::{self, request::Request},
    probe,
    scope::Roots,
};

/// What steering can use here, if it works, and what can carry the request's connections.
///
/// # Errors
/// When that could not be tried.
pub(super) fn capabilities(
    request: &Request,
    roots: &Roots,
    instance: Option<&Instance>,
    listeners: &[Listener],
) -> anyhow::Result<(Option<Features>, Capabilities)> {
    let Steering { features, works, loopback } = steering(request, roots, instance)?;
    let capabilities = Capabilities {
        requested: request.datapath,
        steer: works,
        mptcp: mptcp_steering(request, features, instance, listeners)?,
        sockmap: sockmap(request).map_err(|error| format!("{error:#}")),
        proxy_protocol: request.relay.proxy_protocol.is_some(),
        identity: request.identity,
        loopback,
    };
    Ok((features, capabilities))
}

/// Whether the socket-map relay may be used, if it was asked for.
fn sockmap(request: &Request) -> anyhow::Result<()> {
    if request.datapath != Requested::Sockmap {
        return Ok(());
    }
    if !request.force {
        floor::require()?;
    }
    probe::require_sockmap()
}

/// What was found out about steering here, as far as the request needs to know; why not, where something does not work.
struct Steering {
    /// What it can use, if it works.
    features: Option<Features>,
    works: Result<(), String>,
    /// Whether services can be shown local clients, if that was asked for.
    loopback: Result<(), String>,
}

fn steering(request: &Request, roots: &Roots, instance: Option<&Instance>) -> anyhow::Result<Steering> {
    let unprobed = |features| Steering { features, works: Ok(()), loopback: Ok(()) };
    if !request.may_steer() {
        return Ok(unprobed(None));
    }
    if request.datapath == Requested::Steer {
        return Ok(unprobed(Some(preflight::steering_features(roots)?)));
    }
    let probed = instance.map_or(Ok(false), |instance| instance.state.meta().map(|meta| meta.probed != 0))?;
    let asked = request.identity == Identity::Loopback && !instance.is_some_and(Instance::tells_identities);
    let features = match judged(preflight::steering_features(roots))? {
        Ok(features) => features,
        Err(text) => return Ok(Steering { works: Err(text), ..unprobed(None) }),
    };
    let loopback = if asked { judged(probe::require_loopback_identity(features, roots))? } else { Ok(()) };
    // A connection that looked local was steered, too.
    let proved = probed || (asked && loopback.is_ok());
    let works = if proved { Ok(()) } else { judged(probe::require_steering(features))? };
    Ok(Steering { features: works.is_ok().then_some(features), works, loopback })
}

/// What came of trying something. That no descriptor was free says nothing of the kernel, and is an error.
fn judged<T>(tried: anyhow::Result<T>) -> anyhow::Result<Result<T, String>> {
    match tried {
        Ok(value) => Ok(Ok(value)),
        Err(error) if net::is_out_of_descriptors(&error) => Err(error.context(net::OUT_OF_DESCRIPTORS)),
        Err(error) => Ok(Err(format!("{error:#}"))),
    }
}

/// Whether steering to MPTCP listeners works, if the request is about any.
fn mptcp_steering(
    request: &Request,
    features: Option<Features>,
    instance: Option<&Instance>,
    listeners: &[Listener],
) -> anyhow::Result<Result<(), String>> {
    let Some(features) = features else { return Ok(Ok(())) };
    if !request.specs.iter().any(|spec| plan::is_mptcp(listeners, &spec.target)) {
        return Ok(Ok(()));
    }
    let known =
        instance.map_or(Ok(false), |instance| instance.tc_bridges().map(|there| !there.is_empty()))?;
    if known {
        return Ok(Ok(()));
    }
    judged(probe::require_mptcp_steering(features))
}
