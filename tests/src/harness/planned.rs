//! What a plan takes: the system calls that each kind of change has to show, and whether a run made exactly those.
//!
//! Invariants: nothing is left over on either side; a kind that is not known here is an error, never a change that
//! takes nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use bridge_common::names::{
    ALL_MAPS, ALLOW, ATTACHMENTS, LISTENERS, META, MPTCP_PREPARED, MPTCP_TARGETS, RULES, STATS, TARGETS,
};
use serde_json::Value;

use super::recorder::{AttachType, Made};

/// The kind of a change.
pub(crate) fn kind(change: &Value) -> Result<&str> {
    change["kind"].as_str().with_context(|| format!("a change without a kind: {change}"))
}

/// Requires that `made` is what the changes take, in their order.
pub(crate) fn compare(changes: &[Value], made: &[Made]) -> Result<()> {
    let is_track = |change: &Value| change["kind"] == "track-target";
    let mut rest = made;
    // Targets are tracked together, before anybody looks for their listeners.
    for together in changes.chunk_by(|one, next| is_track(one) && is_track(next)) {
        let [change, ..] = together else { continue };
        let expected = if is_track(change) { of_targets(together)? } else { calls_of(change)? };
        ensure!(
            rest.len() >= expected.len(),
            "{together:?} was planned, which takes {expected:?}, and all that was done then is {rest:?}"
        );
        let (now, later) = rest.split_at(expected.len());
        ensure!(
            in_order(change, now.to_vec())? == in_order(change, expected.clone())?,
            "{together:?} was planned, which takes {expected:?}, and what was done is {now:?}"
        );
        rest = later;
    }
    ensure!(rest.is_empty(), "it was done and not planned: {rest:?}");
    Ok(())
}

/// The maps of an instance are pinned, and their pins removed, in any order.
fn in_order(change: &Value, mut made: Vec<Made>) -> Result<Vec<Made>> {
    if ["create-instance", "remove-instance"].contains(&kind(change)?) {
        made.sort();
    }
    Ok(made)
}

/// The system calls that a change takes.
fn calls_of(change: &Value) -> Result<Vec<Made>> {
    let pin = || path(&change["pin"]).map(Made::Pin);
    Ok(match kind(change)? {
        "create-instance" => {
            let dir = path(&change["dir"])?;
            let maps = ALL_MAPS.map(|map| Made::Pin(dir.join(map)));
            [Made::Directory(dir)].into_iter().chain(maps).collect()
        }
        "attach-program" => {
            let link = Made::Link(attach_type(change["program"].as_str().unwrap_or_default())?);
            if change["pin"].is_null() { vec![link] } else { vec![link, pin()?] }
        }
        "write-meta" => vec![written(META)],
        "attach-tc" => {
            ensure!(change["hook"] == "tcx", "this machine has no tcx links: {change}");
            vec![Made::Link(TCX_INGRESS), pin()?]
        }
        "replace-programs" => {
            let replaced = list(change, "programs")?.len() + list(change, "interfaces")?.len();
            [vec![Made::Replaced; replaced], vec![written(META)]].concat()
        }
        "untrack-target" => vec![deleted(TARGETS); 3],
        "put-attachment" => of_attachment(change)?,
        "publish" => vec![pin()?],
        "remove-attachment" => {
            let state = &change["attachment"];
            let (gateways, allow) = (list(state, "gateways")?.len(), list(state, "allow")?.len());
            let rules = vec![deleted(RULES); rules_of(state)?.len()];
            let rest = [vec![deleted(ALLOW); gateways + allow], vec![deleted(STATS)]].concat();
            [vec![deleted(ATTACHMENTS)], rules, rest].concat()
        }
        "withdraw" => vec![Made::Detached, removed(&change["pin"])?],
        "detach-tc" => {
            let pin = path(&change["pin"])?;
            // Whatever else may stand for something on the interface is tried, too.
            let index = change["interface"]["index"].as_u64().unwrap_or_default();
            let marks = [format!("filter_steer_tc_{index}"), format!("qdisc_{index}")];
            let marks = marks.map(|mark| Made::Removed(pin.with_file_name(mark)));
            [Made::Detached, removed(&change["pin"])?].into_iter().chain(marks).collect()
        }
        "release-listeners" => vec![deleted(MPTCP_PREPARED); list(change, "addresses")?.len()],
        "remove-instance" => {
            let dir = path(&change["dir"])?;
            let pins = ALL_MAPS.into_iter().chain(["link_sock_ops"]).map(|pin| Made::Removed(dir.join(pin)));
            pins.chain([Made::Removed(dir.clone())]).collect()
        }
        other => bail!("a change of kind {other} is in a plan, and nobody knows what it takes: {change}"),
    })
}

/// The addresses that an attachment has rules for: its gateways, and all others of each family.
fn rules_of(state: &Value) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for gateway in list(state, "gateways")? {
        let gateway = gateway.as_str().context("a gateway is no text")?;
        all.extend([gateway.to_owned(), if gateway.contains(':') { "::" } else { "0.0.0.0" }.to_owned()]);
    }
    Ok(all)
}

fn of_targets(changes: &[Value]) -> Result<Vec<Made>> {
    let [mut tracked, mut forgotten, mut noted, mut prepared, mut registered] = [0; 5];
    for change in changes {
        tracked += if change["is_new"] == true { 3 } else { 0 };
        forgotten += list(change, "forgotten")?.len();
        let (mptcp, plain): (Vec<_>, Vec<_>) =
            list(change, "listeners")?.iter().partition(|listener| listener["mptcp"] == true);
        noted += mptcp.iter().filter(|listener| listener["is_noted"] == false).count();
        prepared += mptcp.len();
        registered += plain.len();
    }
    Ok([
        vec![written(TARGETS); tracked],
        vec![deleted(MPTCP_TARGETS); forgotten],
        vec![written(MPTCP_TARGETS); noted],
        // Before and after each listener is made transparent.
        vec![written(MPTCP_PREPARED); 2 * prepared],
        vec![written(LISTENERS); registered],
    ]
    .concat())
}

fn of_attachment(change: &Value) -> Result<Vec<Made>> {
    let (new, old) = (&change["new"], &change["old"]);
    let sources =
        |state: &Value| -> Result<usize> { Ok(list(state, "allow")?.len() + list(state, "gateways")?.len()) };
    let mut made = vec![written(META)];
    made.extend(vec![written(ALLOW); sources(new)?]);
    made.extend(old.is_null().then(|| written(STATS)));
    made.extend(vec![written(RULES); rules_of(new)?.len()]);
    made.push(written(ATTACHMENTS));
    if !old.is_null() {
        made.extend(vec![deleted(RULES); rules_of(old)?.difference(&rules_of(new)?).count()]);
        made.extend(vec![deleted(ALLOW); sources(old)?]);
    }
    Ok(made)
}

fn written(map: &str) -> Made {
    Made::Written(map.to_owned())
}

fn deleted(map: &str) -> Made {
    Made::Deleted(map.to_owned())
}

fn removed(pin: &Value) -> Result<Made> {
    path(pin).map(Made::Removed)
}

fn path(value: &Value) -> Result<PathBuf> {
    value.as_str().map(PathBuf::from).with_context(|| format!("{value} is no path"))
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    value[key].as_array().with_context(|| format!("no list {key} in {value}"))
}

/// `BPF_TCX_INGRESS`.
const TCX_INGRESS: AttachType = 46;

/// `enum bpf_attach_type` of the programs that the kernel here can have.
fn attach_type(program: &str) -> Result<AttachType> {
    Ok(match program {
        "steer" => 36,
        "sock_ops" => 3,
        "getpeername4" => 29,
        "getpeername6" => 30,
        "getsockname4" => 31,
        "getsockname6" => 32,
        "sock_release" => 34,
        other => bail!("nobody knows what program {other} is attached to"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan() -> Vec<Value> {
        let state = json!({ "allow": ["172.30.1.0/24"], "gateways": ["172.30.1.1"] });
        vec![
            json!({ "kind": "track-target", "is_new": true, "listeners": [], "forgotten": [] }),
            json!({ "kind": "put-attachment", "new": state, "old": null }),
            json!({ "kind": "publish", "pin": "/pins/link_steer" }),
        ]
    }

    fn done() -> Vec<Made> {
        let maps = [TARGETS, TARGETS, TARGETS, META, ALLOW, ALLOW, STATS, RULES, ATTACHMENTS];
        maps.map(written).into_iter().chain([Made::Pin("/pins/link_steer".into())]).collect()
    }

    #[test]
    fn what_was_planned_is_accepted() {
        compare(&plan(), &done()).unwrap();
    }

    #[test]
    fn more_or_less_or_another_order_is_noticed() {
        for at in 0..done().len() {
            let mut less = done();
            less.remove(at);
            compare(&plan(), &less).unwrap_err();
            let mut more = done();
            more.insert(at, Made::Replaced);
            compare(&plan(), &more).unwrap_err();
        }
        let mut early = done();
        early.rotate_right(1);
        compare(&plan(), &early).unwrap_err();
        compare(&plan(), &[done(), vec![Made::Replaced]].concat()).unwrap_err();
    }

    #[test]
    fn an_unknown_kind_is_no_change_that_takes_nothing() {
        compare(&[json!({ "kind": "else" })], &[]).unwrap_err();
    }
}
