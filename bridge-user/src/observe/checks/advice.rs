//! Findings that attach tells of once: what the attached services are known to do with such clients, and whom they
//! trust now.
//!
//! Invariant: the subject of a finding is an attachment's name, whatever the line for people says.

use std::{
    collections::{BTreeSet, HashSet},
    iter::successors,
};

use ipnet::IpNet;

use super::SHOWN;
use crate::{
    model::{
        attachment::Attachment,
        codes,
        finding::{Finding, Severity},
        identity::Identity,
        notes::{Clients, Note},
        presets,
        source::Source,
        spec::ServiceSpec,
    },
    plan,
};

/// One thing to tell of, about one attachment or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// What people read.
    pub line: String,
    /// A finding for each attachment.
    pub findings: Vec<Finding>,
}

impl Advice {
    /// Of one finding.
    pub fn note(finding: &Finding) -> Self {
        let kind = if finding.severity == Severity::Info { "note" } else { "warning" };
        Self { line: format!("{kind}: {}: {finding}", finding.subject), findings: vec![finding.clone()] }
    }
}

/// What there is to tell of these SPECs, which are wanted as these attachments.
pub fn advice(specs: &[ServiceSpec], wanted: &[&Attachment]) -> Vec<Advice> {
    let mut all: Vec<Advice> = specs.iter().flat_map(|spec| service_notes(spec, wanted)).collect();
    all.extend(loopback_trust(wanted));
    all
}

/// The attachments whose allow-list admits more from now on than it did: `--allow` replaces a list, and without it the
/// list is the default.
pub fn widened(old: &[Attachment], new: &[Attachment]) -> Vec<Advice> {
    let wider = |state: &Attachment| {
        let before = old.iter().find(|present| present.is_same(state))?;
        let added = beyond(&before.allow, &state.allow);
        if added.is_empty() {
            return None;
        }
        let (added, before) = (plan::few(added, ", ", SHOWN), plan::few(&before.allow, ", ", SHOWN));
        let cause = format!("{added} may connect from now on; until now the allow-list was {before}");
        let cure = "if that is not meant, attach again with the old list (--allow replaces it)";
        let finding = codes::ALLOW_WIDENED.finding(state.name(), cause, cure);
        Some(Advice { line: format!("warning: {}: {finding}", state.name()), findings: vec![finding] })
    };
    new.iter().filter_map(wider).collect()
}

/// The sources that an allow-list does not admit yet: networks that are not part of its own, and containers that it
/// does not name. A container that is named is none, also if it had an admitted address.
fn beyond<'a>(known: &BTreeSet<Source>, sources: &'a BTreeSet<Source>) -> Vec<&'a Source> {
    let nets: Vec<IpNet> = known.iter().filter_map(Source::net).copied().collect();
    let nets: HashSet<IpNet> = IpNet::aggregate(&nets).into_iter().collect();
    let names: HashSet<&str> =
        known.iter().filter_map(Source::container).map(|container| container.name.as_str()).collect();
    let is_known = |source: &&Source| match source {
        Source::Net(net) => successors(Some(*net), IpNet::supernet).any(|wider| nets.contains(&wider)),
        Source::Container(container) => names.contains(container.name.as_str()),
    };
    sources.iter().filter(|source| !is_known(source)).collect()
}

/// The traps of a service that is known by name, for all its networks at once.
fn service_notes(spec: &ServiceSpec, wanted: &[&Attachment]) -> Vec<Advice> {
    let its: Vec<_> = wanted.iter().filter(|state| state.is_of(spec)).collect();
    let sources: BTreeSet<IpNet> =
        its.iter().flat_map(|state| state.allow.iter().map(Source::widest)).collect();
    let sources: Vec<IpNet> = sources.into_iter().collect();
    let advice = |note: &Note| {
        let (cause, cure) = note.words(its.first()?.identity, &sources)?;
        let (code, word) = match note.clients {
            Clients::Local => (&codes::SERVICE_TRUSTS_LOCAL, "warning"),
            Clients::All | Clients::Remote => (&codes::SERVICE_NOTE, "note"),
        };
        let finding = |state: &&&Attachment| code.finding(state.name(), cause, cure.as_str());
        let findings: Vec<Finding> = its.iter().map(finding).collect();
        let text = findings.first()?;
        Some(Advice { line: format!("{word}: {}: {text}", spec.service), findings })
    };
    presets::notes(&spec.service).iter().filter_map(advice).collect()
}

/// The line is the cause alone: the cure takes back what was asked for on this command line.
fn loopback_trust(wanted: &[&Attachment]) -> Option<Advice> {
    const CAUSE: &str =
        "the service sees a local client, so rules that trust local clients now trust these containers";
    const CURE: &str = "if that is too much, narrow --allow, make the service ask for a password, or attach with \
                        --identity container";
    let trusting = wanted.iter().filter(|state| state.identity == Identity::Loopback);
    let names: Vec<String> = trusting.map(|state| state.name()).collect();
    if names.is_empty() {
        return None;
    }
    let line = format!("warning: {}: {CAUSE}", names.join(", "));
    let finding = |name: String| codes::LOOPBACK_TRUST.finding(name, CAUSE, CURE);
    Some(Advice { line, findings: names.into_iter().map(finding).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::readiness::tests::state;

    fn advised(specs: &[&str], identity: Identity) -> Vec<Advice> {
        let specs: Vec<ServiceSpec> = specs.iter().map(|spec| spec.parse().unwrap()).collect();
        let attachment = |network: &str, spec: &ServiceSpec| Attachment {
            service: spec.service.clone(),
            network: network.to_owned(),
            port: spec.port,
            identity,
            ..state()
        };
        let wanted: Vec<Attachment> = ["app", "bridge"]
            .iter()
            .flat_map(|network| specs.iter().map(|spec| attachment(network, spec)))
            .collect();
        advice(&specs, &wanted.iter().collect::<Vec<_>>())
    }

    #[test]
    fn a_note_is_one_line_and_a_finding_for_each_attachment() {
        let found = advised(&["redis", "web=8080"], Identity::Container);
        let lines: Vec<_> = found.iter().map(|one| one.line.as_str()).collect();
        let note = "note: redis: answers `-DENIED Redis is running in protected mode` while it has no password: set a \
                    password, or attach with --identity loopback";
        assert_eq!(lines, [note]);
        let subjects: Vec<_> = found[0].findings.iter().map(|finding| finding.subject.as_str()).collect();
        assert_eq!(subjects, ["app-redis-6379", "bridge-redis-6379"]);
        assert!(found[0].findings.iter().all(|finding| finding.code == "service-note"));
    }

    #[test]
    fn a_service_that_trusts_local_clients_is_warned_of() {
        let found = advised(&["smtp"], Identity::Loopback);
        let line = &found[0].line;
        assert!(line.starts_with("warning: smtp: relays for 127.0.0.1 without a login"), "{line}");
        assert!(found[0].findings.iter().all(|finding| finding.code == "service-trusts-local"));
    }

    #[test]
    fn each_of_two_ports_of_a_service_has_its_own_note() {
        let found = advised(&["redis", "redis=7000"], Identity::Container);
        let subjects: Vec<Vec<&str>> = found
            .iter()
            .map(|one| one.findings.iter().map(|finding| finding.subject.as_str()).collect())
            .collect();
        let expected =
            [["app-redis-6379", "bridge-redis-6379"], ["app-redis-7000", "bridge-redis-7000"]].map(Vec::from);
        assert_eq!(subjects, expected);
    }

    #[test]
    fn a_wider_list_is_told_and_a_narrower_one_is_not() {
        let allowing = |nets: &[&str]| Attachment {
            allow: nets.iter().map(|net| Source::Net(net.parse().unwrap())).collect(),
            ..state()
        };
        let told = |old: &[&str], new: &[&str]| widened(&[allowing(old)], &[allowing(new)]);
        assert_eq!(told(&["172.17.0.0/16"], &["172.17.0.2/32"]), []);
        assert_eq!(told(&["10.0.0.0/25", "10.0.0.128/25"], &["10.0.0.0/24"]), []);
        assert_eq!(widened(&[], &[allowing(&["172.17.0.0/16"])]), [], "it is new");
        let many: Vec<String> = (0..9).map(|at| format!("10.0.{at}.1/32")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let line = &told(&["172.17.0.2/32"], &many)[0].line;
        assert!(line.contains("10.0.3.1/32 and 5 more may connect"), "{line}");
        let [advice] = &told(&["172.17.0.2/32"], &["172.17.0.0/16"])[..] else { panic!("nothing is told") };
        assert!(advice.line.contains("172.17.0.0/16 may connect from now on"), "{}", advice.line);
        assert!(advice.line.contains("until now the allow-list was 172.17.0.2/32"), "{}", advice.line);
        assert_eq!(advice.findings[0].code, "allow-widened");
    }

    #[test]
    fn whoever_is_trusted_now_is_said_in_one_line() {
        let found = advised(&["redis"], Identity::Loopback);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(
            found[0].line,
            "warning: app-redis-6379, bridge-redis-6379: the service sees a local client, so rules that trust local \
             clients now trust these containers"
        );
        let codes: Vec<_> = found[0].findings.iter().map(|finding| finding.code.as_ref()).collect();
        assert_eq!(codes, ["loopback-trust", "loopback-trust"]);
    }
}
