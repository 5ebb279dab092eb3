//! What somebody meant who typed a SPEC that is none: what to write instead, as a shell takes it.
//!
//! Invariants: pure; what is proposed is a SPEC, or several, that would be accepted, save where it says PORT.

use super::{parse, parse_host};
use crate::model::{escape::quoted, presets};

/// Ports of a range that are written out.
const WRITTEN_OUT: u16 = 8;

/// `write …`, if it is plain what was meant.
pub(super) fn meant(spec: &str) -> Option<String> {
    let rules = [
        several,
        range,
        url,
        port_on_host,
        published,
        unfinished,
        turned_round,
        preset_in_place_of_port,
        named_by_colon,
        lower_case,
        target_without_port,
        unix_without_port,
    ];
    rules.iter().find_map(|rule| rule(spec))
}

fn write<T: AsRef<str>>(specs: &[T]) -> Option<String> {
    if specs.is_empty() || specs.iter().any(|spec| parse(spec.as_ref()).is_err()) {
        return None;
    }
    let words: Vec<_> = specs.iter().map(|spec| quoted(spec.as_ref())).collect();
    Some(format!("write `{}`", words.join(" ")))
}

/// `6379,5432`, ` redis`.
fn several(spec: &str) -> Option<String> {
    let parts: Vec<_> = spec.split([',', ';', ' ', '\t']).filter(|part| !part.is_empty()).collect();
    write(&parts)
}

/// `7000-7010`, `web=7000-7010`.
fn range(spec: &str) -> Option<String> {
    let (name, ports) = spec.split_once('=').unwrap_or(("", spec));
    let (first, last) = ports.split_once(['-', '–'])?;
    let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
    if last.checked_sub(first)? < WRITTEN_OUT {
        let one = |port| if name.is_empty() { format!("{port}") } else { format!("{name}={port}") };
        return write(&(first..=last).map(one).collect::<Vec<_>>());
    }
    let format =
        if name.is_empty() { String::new() } else { format!("-f {} ", quoted(&format!("{name}=%.0f"))) };
    write(&[spec.replace(ports, &first.to_string())])?;
    Some(format!("write a SPEC for each port, `$(seq {format}{first} {last})`"))
}

/// `http://localhost:8080/v1`, `redis://localhost`, `tcp://…`.
fn url(spec: &str) -> Option<String> {
    let (scheme, rest) = spec.split_once("://")?;
    let place = rest.split(['/', '?', '#']).next()?;
    let place = place.rsplit_once('@').map_or(place, |(_, place)| place);
    let preset = presets::PRESETS.iter().map(|preset| preset.name).find(|name| scheme.starts_with(name));
    let with_port = write(&[preset.map_or_else(|| place.to_owned(), |name| format!("{name}://{place}"))]);
    with_port.or_else(|| {
        let is_here = parse_host(place)?.is_loopback();
        let usual = match scheme {
            "http" => "80",
            "https" => "443",
            _ => preset?,
        };
        if is_here { write(&[usual]) } else { None }
    })
}

/// `::1:80`, `*:6379`, `:6379`, `0.0.0.0:6379`, `tcp:6379`.
fn port_on_host(spec: &str) -> Option<String> {
    let (host, port) = spec.rsplit_once(':')?;
    match host {
        "::1" => write(&[format!("[::1]:{port}")]),
        "" | "*" | "0.0.0.0" | "[::]" | "::" | "tcp" => write(&[port]),
        _ => None,
    }
}

/// `127.0.0.1:8080:80` and `0.0.0.0:8080:80`, as Docker publishes ports, and `8080:80/tcp`.
fn published(spec: &str) -> Option<String> {
    let plain = spec.strip_suffix("/tcp").unwrap_or(spec);
    let (rest, target) = plain.rsplit_once(':')?;
    let Some((host, port)) = rest.rsplit_once(':') else { return write(&[plain]) };
    match host {
        "" | "*" | "0.0.0.0" | "[::]" => write(&[format!("{port}:{target}")]),
        _ => parse_host(host).and(write(&[format!("{port}:{host}:{target}")])),
    }
}

/// `80:`, `redis=`.
fn unfinished(spec: &str) -> Option<String> {
    write(&[spec.strip_suffix([':', '='])?])
}

/// `cache=redis`.
fn preset_in_place_of_port(spec: &str) -> Option<String> {
    let (name, port) = spec.split_once('=')?;
    write(&[format!("{name}={}", presets::find(port)?.port)])
}

/// `6379=redis`, `6379:redis`.
fn turned_round(spec: &str) -> Option<String> {
    let (port, name) = spec.split_once(['=', ':'])?;
    port.parse::<u16>().ok()?;
    if parse_host(name).is_some() { None } else { write(&[format!("{name}={port}")]) }
}

/// `redis:6379`, `redis:7000:6379`, `db.example:5432`.
fn named_by_colon(spec: &str) -> Option<String> {
    let (name, ports) = spec.split_once(':')?;
    let name = name.to_ascii_lowercase();
    if name.contains('.') || name.parse::<u16>().is_ok() || name.contains('=') {
        return None;
    }
    let named = format!("{name}={ports}");
    let Some(preset) = presets::find(&name) else { return write(&[named]) };
    match ports.parse::<u16>() {
        Ok(port) if port == preset.port.get() => write(&[name]),
        Ok(port) => write(&[named]).map(|text| {
            let usual = preset.port;
            format!(
                "{text} where it listens on {port}, or `{name}={port}:{usual}` where it listens on {usual}"
            )
        }),
        Err(_) => write(&[named]),
    }
}

/// `Web=8080`.
fn lower_case(spec: &str) -> Option<String> {
    let (name, rest) = spec.split_once('=')?;
    write(&[format!("{}={rest}", name.to_ascii_lowercase())])
}

/// `8080:127.0.0.1`, `8080:[::1]`.
fn target_without_port(spec: &str) -> Option<String> {
    let (head, host) = spec.split_once(':')?;
    let port = head.rsplit('=').next()?;
    parse_host(host)?;
    write(&[format!("{spec}:{port}")])
}

/// `unix:/run/x.sock`, `/run/x.sock`, `db=/run/x.sock`.
fn unix_without_port(spec: &str) -> Option<String> {
    let start = spec.find("unix:").or_else(|| spec.find('/'))?;
    let (before, path) = spec.split_at(start);
    let path = path.trim_start_matches("unix:");
    if !path.starts_with('/') || !(before.is_empty() || before.ends_with('=')) {
        return None;
    }
    parse(&format!("{before}1:unix:{path}")).ok()?;
    Some(format!(
        "write `{}` with the port that containers use as PORT",
        quoted(&format!("{before}PORT:unix:{path}"))
    ))
}
