//! Every key and every way to get one wrong; nothing here reads a file but the example.

use std::{fmt::Write as _, time::Duration};

use bridge_common::document;
use proptest::prelude::*;

use super::{
    keys::{KEYS, Key},
    *,
};
use crate::{
    model::{datapath::Requested, identity::Identity},
    plan::request::AllowedSource,
    relay::{Limits, ProxyProtocol},
};

fn load(path: &Path) -> Result<Config, ConfigError> {
    parse_bytes(path, &read(path)?)
}

const EXAMPLE: &str = include_str!("../../../packaging/config.toml");

fn parsed(text: &str) -> Config {
    parse(Path::new("c.toml"), text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn refused(text: &str) -> Vec<String> {
    match parse(Path::new("c.toml"), text) {
        Ok(config) => panic!("{text}: {config:?}"),
        Err(error) => error.lines(),
    }
}

/// With every line that is a commented key or section made one.
fn uncommented(text: &str) -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => format!("{rest}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

#[test]
fn an_empty_file_and_the_example_ask_for_nothing() {
    for text in ["", "# nothing\n", EXAMPLE] {
        let config = parsed(text);
        assert!(config.attach.is_empty() && !config.docker.labels && config.events.is_none(), "{text}");
    }
}

#[test]
fn the_example_shows_every_key_and_is_right() {
    let text = uncommented(EXAMPLE);
    let config = parsed(&text);
    assert_eq!(config.attach.len(), 2);
    for Key { section, name, .. } in KEYS {
        assert!(text.contains(section), "{section}");
        assert!(text.lines().any(|line| line.starts_with(&format!("{name} = "))), "{section} {name}");
    }
    let (first, second) = (&config.attach[0].request, &config.attach[1].request);
    assert_eq!(text.lines().nth(config.attach[0].line - 1), Some("[[attach]]"));
    assert_eq!(first.specs[0].to_string(), "ollama=11434:127.0.0.1:11434");
    assert_eq!(first.networks, ["bridge", "web-*"]);
    assert_eq!(first.bridges, ["br-lab"]);
    assert_eq!(first.allow.len(), 2);
    assert_eq!(first.gateways, ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(first.relay.proxy_protocol, Some(ProxyProtocol::V2));
    assert_eq!(first.relay.limits.idle_timeout, Some(Duration::from_secs(3600)));
    assert!(first.foreground && !first.force);
    assert_eq!(second.container.as_deref(), Some("dev"));
    assert_eq!(second.relay.proxy_protocol, Some(ProxyProtocol::V1));
    assert_eq!(second.relay.limits, Limits::default());
    assert_eq!(config.docker.host.as_deref(), Some("unix:///var/run/docker.sock"));
    assert_eq!(config.docker.allow_labels.len(), 2);
    assert_eq!(config.events, Some(EventLevel::Warn));
}

#[test]
fn what_is_left_out_has_the_defaults_of_attach() {
    let config = parsed("[[attach]]\nservice = \"redis\"\n");
    let request = &config.attach[0].request;
    assert!(request.networks.is_empty() && request.bridges.is_empty() && request.allow.is_empty());
    assert_eq!((request.datapath, request.identity), (Requested::Auto, Identity::Container));
    assert_eq!(request.relay, RelayOptions::default());
    assert_eq!(request.event_level, None);
}

#[test]
fn networks_are_a_list_or_all() {
    let networks = |value: &str| {
        let config = parsed(&format!("[[attach]]\nservice = \"redis\"\nnetworks = {value}\n"));
        config.attach[0].request.networks.clone()
    };
    assert_eq!(networks("\"all\""), ["all"]);
    assert_eq!(networks("[\"all\"]"), ["all"]);
    assert_eq!(networks("[\"a\", \"web-*\"]"), ["a", "web-*"]);
}

#[test]
fn sources_are_typed() {
    let config = parsed("[[attach]]\nservice = \"redis\"\nallow = [\"web\", \"172.18.0.0/16\"]\n");
    let expected =
        [AllowedSource::Container("web".into()), AllowedSource::Net("172.18.0.0/16".parse().unwrap())];
    assert_eq!(config.attach[0].request.allow, expected);
}

/// What stands in the section of a service, from its third line on, and what is said of it.
const WRONG_OF_A_SERVICE: &[(&str, &str)] = &[
    ("netwroks = []", "3: unknown key `netwroks` in [[attach]]: did you mean `networks`?"),
    ("colour = 1", "3: unknown key `colour` in [[attach]], expected one of allow, bridges, container,"),
    (r#"networks = "web""#, r#"3: `networks = "web"` in [[attach]]: expected a list of names and globs"#),
    (r#"networks = ["a", 1]"#, r#"3: `networks = ["a", 1]` in [[attach]]: expected a list"#),
    (
        "networks = [\n\"a\",\n\"b, c\"]",
        r#"5: `networks` in [[attach]] has several values in one, "b, c": write ["b""#,
    ),
    (r#"networks = [""]"#, "3: `networks` in [[attach]] has an empty text"),
    ("networks = []", "3: `networks = []` names no network: name one"),
    (r#"networks = ["a["]"#, r#"3: `networks` has "a[", which is no glob"#),
    ("allow = []", "3: `allow = []` names nobody"),
    (r#"allow = ["172.17.0.0/33"]"#, r#"3: `allow` has "172.17.0.0/33": expected an address, a subnet"#),
    (r#"gateways = ["host"]"#, r#"3: `gateways` has "host": expected a list of addresses of the host"#),
    (r#"identity = "no""#, r#"3: `identity = "no"` in [[attach]]: expected one of container, loopback"#),
    (r#"datapath = "express""#, r#"3: `datapath = "express"` is not in this version: write "auto""#),
    ("localhost = true", "3: `localhost = true` in [[attach]] is not in this version: leave it out"),
    ("isolate = true", "3: `isolate = true` in [[attach]] is not in this version"),
    (r#"localhost = "no""#, r#"3: `localhost = "no"` in [[attach]]: expected true or false"#),
    (
        "bridges = [\"b\"]\nallow = [\"web\"]",
        "1: `allow` has container web, which does not go with `bridges`",
    ),
    ("bridges = [\"b\"]\ncontainer = \"web\"", "1: `bridges` does not go with `container`"),
    ("gateways = [\"10.0.0.1\"]\ncontainer = \"web\"", "1: `gateways` does not go with `container`"),
    ("datapath = \"steer\"\nrelay.proxy-protocol = \"v1\"", "1: `datapath = \"steer\"`: "),
    ("relay.idle-time = 1", "3: unknown key `idle-time` in relay of [[attach]]"),
];

/// The whole text, and what is said of it.
const WRONG: &[(&str, &str)] = &[
    (
        r#"service = "redis""#,
        "1: unknown key `service` before the first section: expected a line such as [[attach]] above it",
    ),
    ("\n[dokcer]\nhost = \"x\"", "2: unknown section `dokcer`: did you mean `docker`?"),
    (
        "[colours]",
        "1: unknown section `colours`, expected one of attach, docker, events, firewall, metrics, relay",
    ),
    (
        "[attach]\nservice = \"redis\"",
        "1: `attach = [attach]`: expected a section that begins with a line [[attach]] for each service",
    ),
    (
        r#"attach = [{ service = "redis" }]"#,
        r#"1: `attach = [{ service = "redis" }]`: expected a section that"#,
    ),
    ("[[attach]]", "1: no service in [[attach]]: write `service = \"SPEC\"` below it"),
    (
        "[[attach]]\nservice = [\"redis\", \"ollama\"]",
        r#"2: `service = ["redis", "ollama"]` in [[attach]]: expected one SPEC, as on the command line; write a"#,
    ),
    ("[[attach]]\nservice = \"redis:7000:6379\"", "2: invalid SPEC `redis:7000:6379`: PORT"),
    ("[[attach]]\nservice = \"53/udp\"", "UDP, which is not in this version yet"),
    ("[[attach]]\nservice = \"x=80:unix:/x\"\ndatapath = \"steer\"", "1: `datapath = \"steer\"`: "),
    ("[relay]\nidle-timeout = -1", "2: `idle-timeout = -1` in [relay]: expected seconds, from 0 to 86400"),
    ("[relay]\nkeepalive = 32768", "2: `keepalive = 32768` in [relay]: expected seconds, from 0 to 32767"),
    ("[relay]\nidle-timeout = nan", "2: `idle-timeout = nan` in [relay]: expected seconds"),
    (
        "[relay]\nmax-connections = 0",
        "2: `max-connections = 0` in [relay]: expected a number from 1 to 1048576",
    ),
    ("[relay]\nproxy-protocol = 2", "2: `proxy-protocol = 2` in [relay]: expected one of v1, v2"),
    (
        "[docker]\nhost = \"ssh://engine\"",
        r#"2: `host = "ssh://engine"` in [docker]: expected unix:///PATH or tcp://HOST:PORT"#,
    ),
    ("[docker]\nallow-labels = [\"kafka\"]", "2: `allow-labels`: invalid SPEC `kafka`"),
    (
        "[metrics]\nlisten = \"127.0.0.1:9469\"",
        r#"2: `listen = "127.0.0.1:9469"` in [metrics] is not in this version: write "off""#,
    ),
    ("[firewall]\nmanage = \"on\"", r#"2: `manage = "on"` in [firewall]: expected one of auto, off"#),
    ("[events]\nlevel = 3", "2: `level = 3` in [events]: expected one of off, warn, debug"),
    ("[events]\nlevel = ", "2: no TOML: "),
    ("[events]\nlevel = \"off\"\nlevel = \"off\"", "3: no TOML: duplicate key"),
];

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let of_a_service = |text: &str| format!("[[attach]]\nservice = \"redis\"\n{text}");
    let of_services = WRONG_OF_A_SERVICE.iter().map(|(text, expected)| (of_a_service(text), *expected));
    let whole = WRONG.iter().map(|(text, expected)| ((*text).to_owned(), *expected));
    for (text, expected) in of_services.chain(whole) {
        let lines = refused(&text);
        assert!(lines.len() == 1 && lines[0].starts_with("c.toml:"), "{text}\n{lines:#?}");
        assert!(lines[0].contains(expected), "{text}\nexpected {expected}\n{lines:#?}");
    }
}

#[test]
fn a_spec_is_answered_with_what_was_meant() {
    let lines = refused("[[attach]]\nservice = \"redis:7000:6379\"");
    assert!(lines[0].ends_with(": write `redis=7000:6379`"), "{lines:#?}");
}

#[test]
fn everything_that_is_wrong_is_told_at_once_in_the_order_of_the_lines() {
    let lines =
        refused("[events]\nlevel = 1\n[[attach]]\nservice = \"kafka\"\nport = 1\n[docker]\nlabel = true\n");
    let starts: Vec<_> = lines.iter().map(|line| line.split(": ").next().unwrap_or_default()).collect();
    assert_eq!(starts, ["c.toml:2", "c.toml:4", "c.toml:5", "c.toml:7"], "{lines:#?}");
}

#[test]
fn one_port_of_one_network_is_for_one_entry() {
    let two = |one: &str, other: &str| format!("[[attach]]\n{one}\n[[attach]]\n{other}\n");
    let service = |spec: &str, rest: &str| format!("service = \"{spec}\"\n{rest}");
    let redis = |rest: &str| service("redis", rest);
    for (one, other, place) in [
        (redis(""), redis(""), "network bridge"),
        (redis(""), service("cache=6379:7000", "networks = [\"bridge\"]"), "network bridge"),
        (redis("networks = [\"web-1\"]"), redis("networks = [\"x\", \"web-*\"]"), "network web-1"),
        (redis("networks = \"all\""), redis("networks = [\"x\"]"), "network all"),
        (redis("bridges = [\"br0\"]"), redis("bridges = [\"br0\"]"), "bridge br0"),
        (redis("container = \"c\""), redis("container = \"c\"\nnetworks = [\"x\"]"), "network all"),
    ] {
        let lines = refused(&two(&one, &other));
        let expected = format!(": line 1 attaches port 6379 on {place}, too: give each its own port");
        assert!(lines.len() == 1 && lines[0].contains(&expected), "{lines:#?}");
    }
    for (one, other) in [
        (redis(""), service("redis=6380", "")),
        (redis(""), service("redis6=6379:[::1]:6379", "")),
        (redis(""), redis("networks = [\"x\"]")),
        (redis("networks = [\"web-1\"]"), redis("networks = [\"app-*\"]")),
        (redis(""), redis("bridges = [\"bridge\"]")),
        (redis(""), redis("container = \"c\"")),
        (redis("container = \"d\""), redis("container = \"c\"")),
    ] {
        assert_eq!(parsed(&two(&one, &other)).attach.len(), 2);
    }
}

#[test]
fn what_is_no_text_names_its_line() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), b"[events]\n# \xff\n").unwrap();
    let error = load(file.path()).unwrap_err().to_string();
    assert!(error.contains(":2: expected UTF-8"), "{error}");
    let error = load(Path::new("/nonexistent/c.toml")).unwrap_err();
    assert!(error.to_string().contains("failed to read /nonexistent/c.toml: No such file"), "{error}");
    assert_eq!(error.lines().len(), 1);
}

/// What every section knows, by what it says of a key that it does not know.
#[test]
fn the_documented_keys_are_those_that_are_read() {
    let known = |text: &str, section: &str| {
        let lines = refused(&format!("{text}zzz = 1\n"));
        let line = lines.iter().find(|line| line.contains("`zzz`")).unwrap_or_else(|| panic!("{lines:#?}"));
        let documented = KEYS.iter().filter(|key| key.section == section).map(|key| key.name);
        let mut documented: Vec<_> = documented.collect();
        documented.sort_unstable();
        let expected = format!("expected one of {}", documented.join(", "));
        assert!(line.ends_with(&expected), "{line}\n{expected}");
    };
    known("[[attach]]\n", "[[attach]]");
    for section in ["[docker]", "[firewall]", "[relay]", "[metrics]", "[events]"] {
        known(&format!("{section}\n"), section);
    }
}

#[test]
fn document_has_the_keys() {
    let mut table = String::from("| section | key | default | meaning |\n| --- | --- | --- | --- |\n");
    for Key { section, name, default, meaning } in KEYS {
        writeln!(table, "| `{section}` | `{name}` | {default} | {meaning} |").unwrap();
    }
    document::require("docs/reference.md", &[("keys", table)], "-p bridge-user --lib document_has").unwrap();
}

proptest! {
    #[test]
    fn no_text_panics_and_every_error_names_a_line(text in ".{0,200}") {
        check_any(&text)?;
    }

    #[test]
    fn near_misses_do_not_panic_either(
        lines in proptest::collection::vec(
            prop_oneof![
                Just("[[attach]]".to_owned()),
                "\\[?\\[(attach|docker|relay|events|metrics|firewall|x)\\]\\]?",
                r#"(service|networks|allow|container|level) = ("(redis|all|[a-z:,/=*\[]{0,8})"|true|-?[0-9]{1,9})"#,
                r#"(networks|bridges|allow|gateways|allow-labels) = \["(web-\*|[a-z:,/=*\[]{0,8})", "x"\]"#,
                r"(relay|keepalive|idle-timeout|force|x) = (\{\}|\[\]|nan|-?[0-9]{1,19}(\.[0-9])?|false)",
                ".{0,20}",
            ],
            0..12,
        )
    ) {
        check_any(&lines.join("\n"))?;
    }
}

fn check_any(text: &str) -> Result<(), TestCaseError> {
    let Err(error) = parse(Path::new("c.toml"), text) else { return Ok(()) };
    let last = text.split('\n').count();
    prop_assert!(!error.lines().is_empty());
    for line in error.lines() {
        let number =
            line.strip_prefix("c.toml:").and_then(|rest| rest.split_once(": ")?.0.parse::<usize>().ok());
        prop_assert!(number.is_some_and(|number| (1..=last).contains(&number)), "{}", line);
    }
    Ok(())
}
