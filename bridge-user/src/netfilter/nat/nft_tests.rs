//! Tests of reading nft's JSON: rules as nft prints them, and what they do with one connection.

use super::super::rules::{Packet, Redirection};
use super::*;

/// What takes a connection over br-a to 172.30.1.1:7001, of these rules in a prerouting chain and in chain `other`.
fn taken(rules: &[&str], others: &[&str]) -> Option<Redirection> {
    let head = r#"{"nftables":[{"metainfo":{"version":"1.0.6"}},{"table":{"family":"inet","name":"t"}},
        {"set":{"family":"inet","name":"web","table":"t","type":"inet_service","elem":[80,{"range":[7000,7005]}]}},
        {"set":{"family":"inet","name":"none","table":"t","type":"inet_service"}},
        {"chain":{"family":"inet","table":"t","name":"other","handle":1}},
        {"chain":{"family":"inet","table":"t","name":"pre","handle":2,"type":"nat","hook":"prerouting","prio":-100}}"#;
    let rule = |chain: &str, expr: &str| {
        format!(r#",{{"rule":{{"family":"inet","table":"t","chain":"{chain}","handle":7,"expr":[{expr}]}}}}"#)
    };
    let all: String = rules
        .iter()
        .map(|expr| rule("pre", expr))
        .chain(others.iter().map(|expr| rule("other", expr)))
        .collect();
    let sources = ["172.30.1.0/24".parse().unwrap()];
    let (address, port) = ([172, 30, 1, 1].into(), 7001);
    let packet = Packet { interface: Some("br-a"), address, port, sources: &sources };
    let tables = parse(format!("{head}{all}]}}").as_bytes()).unwrap();
    tables.iter().find_map(|parsed| parsed.table.redirection(&packet))
}

fn meets(left: &str, op: &str, right: &str) -> Option<bool> {
    let rule = format!(
        r#"{{"match":{{"op":"{op}","left":{left},"right":{right}}}}},{{"counter":{{}}}},{{"redirect":null}}"#
    );
    taken(&[&rule], &[]).map(|found| found.is_certain)
}

const PORT: &str = r#"{"payload":{"protocol":"tcp","field":"dport"}}"#;
const TO: &str = r#"{"payload":{"protocol":"ip","field":"daddr"}}"#;
const FROM: &str = r#"{"payload":{"protocol":"ip","field":"saddr"}}"#;
const INTERFACE: &str = r#"{"meta":{"key":"iifname"}}"#;
const KIND: &str = r#"{"fib":{"result":"type","flags":["daddr"]}}"#;

#[test]
fn conditions_are_compared_with_the_connection() {
    for (left, right, is_met) in [
        (PORT, "7001", true),
        (PORT, "7002", false),
        (PORT, r#"{"set":[80,{"range":[7000,7005]}]}"#, true),
        (PORT, r#"{"range":[1,1024]}"#, false),
        (PORT, r#""@web""#, true),
        (PORT, r#""@none""#, false),
        (TO, r#""172.30.1.1""#, true),
        (TO, r#"{"prefix":{"addr":"172.30.0.0","len":16}}"#, true),
        (TO, r#"{"set":["10.0.0.1",{"range":["10.1.0.1","10.1.0.9"]}]}"#, false),
        (FROM, r#"{"prefix":{"addr":"172.16.0.0","len":12}}"#, true),
        (FROM, r#"{"prefix":{"addr":"10.0.0.0","len":8}}"#, false),
        (INTERFACE, r#""br-*""#, true),
        (INTERFACE, r#"{"set":["eth0","br-a"]}"#, true),
        (INTERFACE, r#""br-b""#, false),
        (KIND, r#""local""#, true),
        (KIND, r#""broadcast""#, false),
        (r#"{"meta":{"key":"l4proto"}}"#, r#"{"set":["tcp","udp"]}"#, true),
        (r#"{"meta":{"key":"nfproto"}}"#, r#""ipv6""#, false),
    ] {
        assert_eq!(meets(left, "==", right), is_met.then_some(true), "{left} == {right}");
        assert_eq!(meets(left, "!=", right), (!is_met).then_some(true), "{left} != {right}");
    }
    let udp = r#"{"payload":{"protocol":"udp","field":"dport"}}"#;
    assert_eq!(meets(udp, "!=", "53"), None);
}

#[test]
fn what_is_not_understood_may_match() {
    for (left, op, right) in [
        (r#"{"meta":{"key":"mark"}}"#, "==", "1"),
        (
            r#"{"concat":[{"meta":{"key":"iifname"}},{"payload":{"protocol":"tcp","field":"dport"}}]}"#,
            "==",
            r#""@x""#,
        ),
        (PORT, ">=", "80"),
        (PORT, "==", r#""@unknown""#),
        (FROM, "==", r#""172.30.1.11""#),
        (r#"{"ct":{"key":"status"}}"#, "in", r#""dnat""#),
    ] {
        assert_eq!(meets(left, op, right), Some(false), "{left} {op} {right}");
    }
    let [extension, newer] =
        [r#"{"xt":{"type":"target","name":"DNAT"}}"#, r#"{"teleport":{"to":"elsewhere"}}"#];
    for statement in [extension, newer] {
        assert_eq!(taken(&[statement], &[]).map(|found| found.is_certain), Some(false), "{statement}");
    }
    assert_eq!(taken(&[r#"{"xt":{"type":"target","name":"MASQUERADE"}}"#], &[]), None);
}

#[test]
fn jumps_and_verdict_maps_are_followed() {
    let dnat = r#"{"dnat":{"family":"ip","addr":"1.2.3.4","port":5}}"#;
    let found = taken(&[r#"{"jump":{"target":"other"}}"#], &[dnat]).unwrap();
    assert_eq!(found.to_string(), "rule `handle 7 (dnat)` in chain other of table inet t");
    let map = |port: u16| {
        format!(
            r#"{{"vmap":{{"key":{PORT},"data":
                {{"set":[[{port},{{"goto":{{"target":"other"}}}}],[9,{{"drop":null}}]]}}}}}}"#
        )
    };
    assert!(taken(&[&map(7001)], &[dnat]).is_some_and(|found| found.is_certain));
    assert_eq!(taken(&[&map(7002)], &[dnat]), None);
    assert_eq!(taken(&[r#"{"accept":null}"#, dnat], &[]), None);
}

#[test]
fn another_document_is_an_error() {
    for text in ["", "[]", r#"{"nftables":1}"#] {
        assert!(parse(text.as_bytes()).is_err(), "{text}");
    }
}
