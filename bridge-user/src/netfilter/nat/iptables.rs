//! Reading what `iptables-save -t nat` prints. Pure.
//!
//! Invariant: an option that is not listed here is a condition that may hold, and a target that is not listed may
//! redirect: extensions are many.

use super::rules::{Condition, Rule, Table, Truth, Verdict, What, addresses, ports};

/// Targets after which the next rule is looked at.
const HARMLESS: [&str; 11] =
    ["LOG", "NFLOG", "MARK", "CONNMARK", "TRACE", "AUDIT", "SET", "MASQUERADE", "SNAT", "TOS", "DSCP"];

/// The table; `tool`: what prints it, for people to do the same.
pub(super) fn parse(tool: &str, text: &str) -> Table {
    let mut table = Table {
        name: format!("table nat of {tool}"),
        is_ipv4: Some(!tool.starts_with("ip6")),
        prerouting: vec!["PREROUTING".to_owned()],
        output: vec!["OUTPUT".to_owned()],
        ..Table::default()
    };
    let chain_of = |line: &str| {
        let mut words = line.split(' ');
        let first = words.next()?;
        first.strip_prefix(':').or_else(|| words.next().filter(|_| first == "-A")).map(str::to_owned)
    };
    for chain in text.lines().filter_map(chain_of) {
        table.chains.entry(chain).or_default();
    }
    for line in text.lines() {
        let words = words(line);
        let is_chain = |name: &str| table.chains.contains_key(name);
        if let Some((chain, rule)) = rule(line, &words, is_chain) {
            table.chains.entry(chain).or_default().push(rule);
        }
    }
    table
}

/// The words of a line; quotes keep some together.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => quoted = !quoted,
            '\\' if quoted => word.extend(characters.next()),
            ' ' if !quoted => words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty())),
            c => word.push(c),
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    words
}

/// `-A CHAIN …`, with the chain's name; `None` if it decides nothing.
fn rule(line: &str, words: &[String], is_chain: impl Fn(&str) -> bool) -> Option<(String, Rule)> {
    let [append, chain, options @ ..] = words else { return None };
    if append != "-A" {
        return None;
    }
    let (mut conditions, mut verdict) = (Vec::new(), None);
    let mut at = 0;
    while at < options.len() {
        let negated = options[at] == "!";
        at += usize::from(negated);
        let option = options.get(at)?;
        let values = &options[(at + 1).min(options.len())..];
        if matches!(option.as_str(), "-j" | "-g") {
            // What follows is the target's.
            let name = values.first()?;
            verdict = target(option, name);
            let is_known = !matches!(verdict, Some(Verdict::Jump(_) | Verdict::Goto(_))) || is_chain(name);
            if !is_known {
                verdict = Some(Verdict::Redirect);
                conditions.push(Condition::unknown());
            }
            break;
        }
        let is_value = |word: &&String| *word != "!" && !is_option(word);
        let count = values.iter().take_while(is_value).count();
        if let Some(what) = condition(option, values.first().filter(|_| count > 0)) {
            conditions.push(Condition { what, negated });
        }
        at += 1 + count;
    }
    Some((chain.clone(), Rule { name: line.to_owned(), conditions, verdict: verdict? }))
}

/// A negative number is a value.
fn is_option(word: &str) -> bool {
    word.strip_prefix('-').is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn target(option: &str, name: &str) -> Option<Verdict> {
    Some(match name {
        "DNAT" | "REDIRECT" | "NETMAP" => Verdict::Redirect,
        "ACCEPT" | "DROP" | "QUEUE" | "NFQUEUE" => Verdict::End,
        "RETURN" => Verdict::Return,
        name if HARMLESS.contains(&name) => return None,
        chain if option == "-g" => Verdict::Goto(chain.to_owned()),
        chain => Verdict::Jump(chain.to_owned()),
    })
}

/// What an option asks for; `None` if nothing.
fn condition(option: &str, value: Option<&String>) -> Option<What> {
    let value = value.map(String::as_str).unwrap_or_default();
    let list = || value.split(',');
    let known = match option {
        "-m" | "--comment" => return None,
        "-s" | "--src-range" => list().map(addresses).collect::<Option<_>>().map(What::Source),
        "-d" | "--dst-range" => list().map(addresses).collect::<Option<_>>().map(What::Destination),
        "--dport" | "--dports" => list().map(ports).collect::<Option<_>>().map(What::Port),
        "-i" => Some(What::Interface(vec![interface(value)])),
        "-p" => Some(What::Constant(matches!(value, "tcp" | "6" | "all" | "0").into())),
        "--dst-type" => Some(What::Constant(list().any(|kind| kind == "LOCAL").into())),
        // The first packet of a connection is all that NAT rules see.
        "--ctstate" | "--state" if list().any(|state| state == "NEW") => Some(What::Constant(Truth::Yes)),
        "--syn" => Some(What::Constant(Truth::Yes)),
        _ => None,
    };
    Some(known.unwrap_or(What::Constant(Truth::Maybe)))
}

/// `br-+` is every name that starts so.
fn interface(name: &str) -> String {
    name.strip_suffix('+').map_or_else(|| name.to_owned(), |start| format!("{start}*"))
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;

    use super::{
        super::rules::{Packet, Redirection},
        parse,
    };

    /// What takes a connection over br-a to 172.30.1.1:7001.
    fn taken(rules: &str) -> Option<Redirection> {
        let sources: [IpNet; 1] = ["172.30.1.0/24".parse().unwrap()];
        let (address, port) = ([172, 30, 1, 1].into(), 7001);
        parse("iptables", rules).redirection(&Packet {
            interface: Some("br-a"),
            address,
            port,
            sources: &sources,
        })
    }

    fn is_certain(rule: &str) -> Option<bool> {
        taken(&format!("*nat\n:PREROUTING ACCEPT [0:0]\n{rule}\nCOMMIT\n")).map(|found| found.is_certain)
    }

    #[test]
    fn rules_that_match_take_the_connection() {
        for rule in [
            "-A PREROUTING -p tcp -m tcp --dport 7001 -j REDIRECT --to-ports 80",
            "-A PREROUTING -d 172.30.1.1/32 -p tcp -j DNAT --to-destination 127.0.0.1:7001",
            "-A PREROUTING -i br-+ -p tcp -m multiport --dports 80,7000:7002 -j REDIRECT",
            "-A PREROUTING ! -i eth0 -m addrtype --dst-type LOCAL -j REDIRECT",
            "-A PREROUTING -m iprange --dst-range 172.30.1.0-172.30.1.9 -m comment --comment \"a -j b\" -j REDIRECT",
            "-A PREROUTING -s 172.30.0.0/16 -m conntrack --ctstate NEW -j DNAT --to-destination 10.0.0.1",
        ] {
            assert_eq!(is_certain(rule), Some(true), "{rule}");
        }
    }

    #[test]
    fn rules_that_do_not_match_do_not() {
        for rule in [
            "-A PREROUTING -p udp -m udp --dport 7001 -j REDIRECT --to-ports 80",
            "-A PREROUTING -p tcp -m tcp ! --dport 7001 -j REDIRECT",
            "-A PREROUTING ! -i br-a -p tcp -m tcp --dport 7001 -j DNAT --to-destination 172.30.1.11:80",
            "-A PREROUTING -i br-b -j REDIRECT",
            "-A PREROUTING -s 10.0.0.0/8 -j REDIRECT",
            "-A PREROUTING -d 172.30.1.2/32 -j REDIRECT",
            "-A PREROUTING -m addrtype ! --dst-type LOCAL -j REDIRECT",
            "-A PREROUTING -p tcp -j LOG --log-prefix \"-j REDIRECT\"",
            "-A OUTPUT -p tcp -j REDIRECT",
            ":EMPTY - [0:0]\n-A PREROUTING -j EMPTY",
            "-A PREROUTING -j DOCKER\n-A DOCKER -i br-a -j RETURN\n-A DOCKER -j REDIRECT",
        ] {
            assert_eq!(is_certain(rule), None, "{rule}");
        }
    }

    #[test]
    fn what_is_not_understood_may_match() {
        for rule in [
            "-A PREROUTING -p tcp -m mark --mark 0x1 -j REDIRECT",
            "-A PREROUTING -p tcp -m set --match-set x dst,dst -j REDIRECT",
            "-A PREROUTING -p tcp -m statistic --mode random --probability 0.5 -j REDIRECT",
            "-A PREROUTING -s 172.30.1.11/32 -j REDIRECT",
            "-A PREROUTING -p tcp -m tcp --sport 1024:65535 -j REDIRECT",
            "-A PREROUTING -p tcp -j TELEPORT --to elsewhere",
        ] {
            assert_eq!(is_certain(rule), Some(false), "{rule}");
        }
    }

    #[test]
    fn the_rule_and_its_place_are_named() {
        let rules =
            "-A PREROUTING -j DOCKER\n-A DOCKER -p tcp --dport 7001 -j DNAT --to-destination 10.0.0.1:80";
        assert_eq!(
            taken(rules).unwrap().to_string(),
            "rule `-A DOCKER -p tcp --dport 7001 -j DNAT --to-destination 10.0.0.1:80` in chain DOCKER of table nat of \
             iptables"
        );
        let of_ipv6 = parse("ip6tables-legacy", "-A PREROUTING -j REDIRECT");
        let (address, port) = ([172, 30, 1, 1].into(), 7001);
        let packet = Packet { interface: Some("br-a"), address, port, sources: &[] };
        assert_eq!(of_ipv6.redirection(&packet), None);
    }
}
