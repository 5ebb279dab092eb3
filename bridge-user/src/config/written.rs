//! A request as an `[[attach]]` section says it.
//!
//! Invariant: what has its default is not written, and reading what was written gives the request again, with what the
//! file says for all relays in the place of limits that have their defaults.

use std::time::Duration;

use clap::ValueEnum;
use toml_edit::{Array, InlineTable, Item, Table, Value};

use crate::{
    model::{
        pattern::ALL,
        presets,
        spec::{ServiceSpec, UNNAMED_SERVICE},
        target::Target,
    },
    plan::request::{AllowedSource, Request},
    relay::{Limits, RelayOptions},
};

/// The section of one service of the request.
pub(super) fn section(request: &Request, spec: &ServiceSpec) -> Table {
    let mut table = Table::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            table.insert(key, Item::Value(value));
        }
    };
    put("service", Some(short(spec).into()));
    put("container", request.container.as_ref().map(Value::from));
    put("networks", networks(&request.networks));
    put("bridges", list(request.bridges.iter().cloned()));
    put("gateways", list(request.gateways.iter().map(ToString::to_string)));
    put("allow", list(request.allow.iter().map(AllowedSource::as_typed)));
    put("identity", word(request.identity));
    put("datapath", word(request.datapath));
    put("force", request.force.then(|| true.into()));
    put("relay", relay(&request.relay));
    table
}

/// The shortest SPEC that means the same.
fn short(spec: &ServiceSpec) -> String {
    let is_preset = |name: &&str| name.parse() == Ok(spec.clone());
    if let Some(preset) = presets::find(&spec.service).map(|preset| preset.name).filter(is_preset) {
        return preset.to_owned();
    }
    let ports = match &spec.target {
        target if *target == Target::loopback(spec.port) => spec.port.to_string(),
        target => format!("{}:{target}", spec.port),
    };
    if spec.service == UNNAMED_SERVICE { ports } else { format!("{}={ports}", spec.service) }
}

fn networks(names: &[String]) -> Option<Value> {
    match names {
        [one] if one == ALL => Some(one.into()),
        names => list(names.iter().cloned()),
    }
}

fn list(values: impl Iterator<Item = String>) -> Option<Value> {
    let array: Array = values.collect();
    (!array.is_empty()).then(|| array.into())
}

/// The word of the command line, unless it is the default.
fn word<T: ValueEnum + Default + PartialEq>(value: T) -> Option<Value> {
    if value == T::default() {
        return None;
    }
    value.to_possible_value().map(|word| word.get_name().into())
}

fn relay(options: &RelayOptions) -> Option<Value> {
    let (limits, usual) = (&options.limits, Limits::default());
    let or_zero = |time: Option<Duration>| time.unwrap_or_default();
    let mut table = InlineTable::new();
    if let Some(word) = options.proxy_protocol.and_then(|version| version.to_possible_value()) {
        table.insert("proxy-protocol", word.get_name().into());
    }
    if limits.max_connections != usual.max_connections {
        table.insert("max-connections", i64::try_from(limits.max_connections).unwrap_or(i64::MAX).into());
    }
    for (key, time, usual) in [
        ("idle-timeout", or_zero(limits.idle_timeout), or_zero(usual.idle_timeout)),
        ("stall-timeout", or_zero(limits.stall_timeout), or_zero(usual.stall_timeout)),
        ("connect-timeout", limits.connect_timeout, usual.connect_timeout),
        ("keepalive", or_zero(limits.keepalive), or_zero(usual.keepalive)),
        ("drain-timeout", limits.drain, usual.drain),
    ] {
        if time != usual {
            table.insert(key, seconds(time));
        }
    }
    (!table.is_empty()).then(|| table.into())
}

fn seconds(time: Duration) -> Value {
    match i64::try_from(time.as_secs()) {
        Ok(whole) if time.subsec_nanos() == 0 => whole.into(),
        _ => time.as_secs_f64().into(),
    }
}
