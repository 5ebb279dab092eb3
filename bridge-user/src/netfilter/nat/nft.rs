//! Reading what `nft --json list ruleset` prints, by libnftables-json(5). Pure.
//!
//! Invariants: values are read one by one and not as types, so that a statement of a newer nft is one that may match or
//! redirect, and no failure; sets that are named are looked up.

use std::{collections::HashMap, net::IpAddr, ops::RangeInclusive};

use serde_json::Value;

use super::rules::{Condition, Rule, Table, Truth, Verdict, What, addresses};

/// Statements that neither decide nor ask anything.
const HARMLESS: [&str; 11] = [
    "counter",
    "log",
    "comment",
    "mangle",
    "limit",
    "quota",
    "notrack",
    "meter",
    "masquerade",
    "snat",
    "last",
];
/// Targets of iptables that do not redirect.
const HARMLESS_TARGETS: [&str; 8] =
    ["LOG", "NFLOG", "MARK", "CONNMARK", "TRACE", "MASQUERADE", "SNAT", "SET"];

/// A table, and what to know of it.
pub(super) struct Parsed {
    /// `ip`, `ip6` or `inet`.
    pub(super) family: String,
    pub(super) name: String,
    /// It has parts that only iptables shows.
    pub(super) has_extensions: bool,
    pub(super) table: Table,
}

/// Elements of named sets, by family, table and name.
type Sets<'a> = HashMap<[&'a str; 3], &'a Value>;

/// The tables with chains of NAT.
///
/// # Errors
/// When it is no such document.
pub(super) fn parse(printed: &[u8]) -> Result<Vec<Parsed>, String> {
    let document: Value = serde_json::from_slice(printed).map_err(|error| format!("nft's JSON: {error}"))?;
    let objects = document["nftables"].as_array().ok_or("nft's JSON has no list `nftables`")?;
    let mut bases: Vec<&Value> = of_kind(objects, "chain").filter(|chain| chain["type"] == "nat").collect();
    bases.sort_by_key(|chain| chain["prio"].as_i64());
    let mut sets = Sets::new();
    for set in of_kind(objects, "set").chain(of_kind(objects, "map")) {
        sets.insert([text(set, "family"), text(set, "table"), text(set, "name")], &set["elem"]);
    }
    let mut tables: Vec<Parsed> = Vec::new();
    for chain in bases {
        if !tables.iter().any(|parsed| is_in(chain, parsed)) {
            tables.push(empty(chain));
        }
        let Some(parsed) = tables.iter_mut().find(|parsed| is_in(chain, parsed)) else { continue };
        match text(chain, "hook") {
            "prerouting" => parsed.table.prerouting.push(text(chain, "name").to_owned()),
            "output" => parsed.table.output.push(text(chain, "name").to_owned()),
            _ => {}
        }
    }
    for rule in of_kind(objects, "rule") {
        let Some(parsed) = tables.iter_mut().find(|parsed| is_in(rule, parsed)) else { continue };
        let statements = rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default();
        parsed.has_extensions |= statements.iter().any(|statement| statement.get("xt").is_some());
        let rules = Reader { rule, sets: &sets }.rules(statements);
        parsed.table.chains.entry(text(rule, "chain").to_owned()).or_default().extend(rules);
    }
    Ok(tables)
}

fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    objects.iter().filter_map(move |object| object.get(kind))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn is_in(object: &Value, parsed: &Parsed) -> bool {
    text(object, "family") == parsed.family && text(object, "table") == parsed.name
}

fn empty(chain: &Value) -> Parsed {
    let (family, name) = (text(chain, "family").to_owned(), text(chain, "table").to_owned());
    let is_ipv4 = match family.as_str() {
        "ip" => Some(true),
        "ip6" => Some(false),
        _ => None,
    };
    let table = Table { name: format!("table {family} {name}"), is_ipv4, ..Table::default() };
    Parsed { family, name, has_extensions: false, table }
}

/// One rule of the ruleset, which may be several of ours: one for each entry of a verdict map.
struct Reader<'a> {
    rule: &'a Value,
    sets: &'a Sets<'a>,
}

impl Reader<'_> {
    fn rules(&self, statements: &[Value]) -> Vec<Rule> {
        let (mut conditions, mut rules) = (Vec::new(), Vec::new());
        for statement in statements {
            let Some((kind, value)) = statement.as_object().and_then(|object| object.iter().next()) else {
                continue;
            };
            if kind == "match" {
                conditions.push(self.condition(value));
            } else if kind == "vmap" {
                rules.extend(self.verdict_map(value, &conditions));
            } else if kind == "xt" && value["type"] == "match" {
                conditions.push(Condition::unknown());
            } else if let Some((verdict, is_known)) = verdict(kind, value) {
                let unknown = (!is_known).then(Condition::unknown);
                let conditions = conditions.iter().cloned().chain(unknown).collect();
                rules.push(self.named(kind, conditions, verdict));
            }
        }
        rules
    }

    /// `handle 7 (dnat)`, as `nft -a list ruleset` has it.
    fn named(&self, kind: &str, conditions: Vec<Condition>, verdict: Verdict) -> Rule {
        Rule { name: format!("handle {} ({kind})", self.rule["handle"]), conditions, verdict }
    }

    fn verdict_map(&self, map: &Value, conditions: &[Condition]) -> Vec<Rule> {
        let entries = self.elements(&map["data"]).unwrap_or_default();
        let rule = |entry: &Value| {
            let (kind, value) = entry[1].as_object()?.iter().next()?;
            let (verdict, _) = verdict(kind, value)?;
            let one = Condition { what: self.what(&map["key"], &entry[0]), negated: false };
            let conditions = conditions.iter().cloned().chain([one]).collect();
            Some(self.named("vmap", conditions, verdict))
        };
        entries.iter().filter_map(rule).collect()
    }

    fn condition(&self, compared: &Value) -> Condition {
        let (left, right) = (&compared["left"], &compared["right"]);
        match text(compared, "op") {
            // Whether it is TCP is asked by naming a port of TCP, whatever the port.
            _ if is_of_another_protocol(left) => {
                Condition { what: What::Constant(Truth::No), negated: false }
            }
            "==" | "in" => Condition { what: self.what(left, right), negated: false },
            "!=" => Condition { what: self.what(left, right), negated: true },
            _ => Condition::unknown(),
        }
    }

    /// That `left` is one of `right`.
    fn what(&self, left: &Value, right: &Value) -> What {
        self.known(left, right).unwrap_or(What::Constant(Truth::Maybe))
    }

    fn known(&self, left: &Value, right: &Value) -> Option<What> {
        let elements = self.elements(right)?;
        let says =
            |names: &[&str]| elements.iter().any(|one| one.as_str().is_some_and(|one| names.contains(&one)));
        if let Some(key) = left["meta"]["key"].as_str() {
            let names = elements.iter().map(|one| one.as_str().map(str::to_owned)).collect();
            return match key {
                "iifname" | "iif" => Option::map(names, What::Interface),
                "l4proto" => Some(What::Constant(says(&["tcp"]).into())),
                "nfproto" => Some(What::Ipv4(says(&["ipv4"]))).filter(|_| elements.len() == 1),
                _ => None,
            };
        }
        if left["fib"]["result"] == "type" && left["fib"]["flags"] == serde_json::json!(["daddr"]) {
            return Some(What::Constant(says(&["local"]).into()));
        }
        if left["ct"]["key"] == "state" && says(&["new"]) {
            return Some(What::Constant(Truth::Yes));
        }
        let (payload, field) = (text(&left["payload"], "protocol"), text(&left["payload"], "field"));
        match (payload, field) {
            ("tcp" | "th", "dport") => elements.iter().map(ports).collect::<Option<_>>().map(What::Port),
            ("ip" | "ip6", "daddr") => self.addresses(&elements).map(What::Destination),
            ("ip" | "ip6", "saddr") => self.addresses(&elements).map(What::Source),
            ("ip", "protocol") | ("ip6", "nexthdr") => Some(What::Constant(says(&["tcp"]).into())),
            _ => None,
        }
    }

    fn addresses(&self, elements: &[Value]) -> Option<Vec<RangeInclusive<IpAddr>>> {
        elements.iter().map(address_range).collect()
    }

    /// What a set, or something that is not one, consists of.
    fn elements(&self, right: &Value) -> Option<Vec<Value>> {
        if let Some(name) = right.as_str().and_then(|text| text.strip_prefix('@')) {
            let key = [text(self.rule, "family"), text(self.rule, "table"), name];
            // An empty set has no elements at all.
            return self.sets.get(&key).map(|elements| elements.as_array().cloned().unwrap_or_default());
        }
        match right.get("set").unwrap_or(right) {
            Value::Array(elements) => Some(elements.clone()),
            one => Some(vec![one.clone()]),
        }
    }
}

/// What a statement does, and whether it is known to do that; `None` if it decides nothing.
fn verdict(kind: &str, value: &Value) -> Option<(Verdict, bool)> {
    let to = || text(value, "target").to_owned();
    Some(match kind {
        "accept" | "drop" | "reject" | "queue" => (Verdict::End, true),
        "return" => (Verdict::Return, true),
        "jump" => (Verdict::Jump(to()), true),
        "goto" => (Verdict::Goto(to()), true),
        "dnat" | "redirect" => (Verdict::Redirect, true),
        "xt" if HARMLESS_TARGETS.contains(&text(value, "name")) => return None,
        kind if HARMLESS.contains(&kind) => return None,
        _ => (Verdict::Redirect, false),
    })
}

/// `udp dport 53`, for example: never a TCP packet, also where it is not 53.
fn is_of_another_protocol(left: &Value) -> bool {
    ["udp", "udplite", "sctp", "dccp", "icmp", "icmpv6"].contains(&text(&left["payload"], "protocol"))
}

/// Sets with timeouts or comments have their elements as objects.
fn element(value: &Value) -> &Value {
    value.get("elem").and_then(|elem| elem.get("val")).unwrap_or(value)
}

fn ports(value: &Value) -> Option<RangeInclusive<u16>> {
    let port = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
    let value = element(value);
    match value.get("range") {
        Some(range) => Some(port(&range[0])?..=port(&range[1])?),
        None => port(value).map(|port| port..=port),
    }
}

fn address_range(value: &Value) -> Option<RangeInclusive<IpAddr>> {
    let value = element(value);
    if let Some(prefix) = value.get("prefix") {
        return addresses(&format!("{}/{}", text(prefix, "addr"), prefix["len"]));
    }
    if let Some(range) = value.get("range") {
        return Some(range[0].as_str()?.parse().ok()?..=range[1].as_str()?.parse().ok()?);
    }
    addresses(value.as_str()?)
}

#[cfg(test)]
#[path = "nft_tests.rs"]
mod tests;
