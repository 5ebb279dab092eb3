//! The `attach` verb: makes loopback services reachable at the bridge gateway, and shows what came of it.

use std::{net::IpAddr, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::ValueEnum;

use super::{attach_report::AttachReport, candidates, compose, follow, saving::SaveArgs};
use crate::{
    UsageError,
    apply::{self, Attached},
    cli::{
        self,
        output::{FormatArgs, Out},
    },
    engine::docker::Docker,
    model::{
        attachment::Keeper, datapath::Requested, event_level::EventLevel, identity::Identity, presets,
        spec::ServiceSpec,
    },
    observe::{
        pinned,
        prepare::{self, Prepared},
        report::AttachmentReport,
    },
    plan::{
        self, Refusal, RelayPlace,
        request::{AllowedSource, Firewall, Request, one_value_each},
        show::DryRun,
    },
    relay::{
        self, Limits, MAX_CONNECTIONS, MAX_KEEPALIVE, MAX_SECONDS, ProxyProtocol, RelayOptions,
        raise_descriptor_limit, unless_zero,
    },
    runner::{
        Runner,
        control::{self, Peer},
        foreground,
    },
    scope::Scope,
};

/// What can be asked of `attach`.
#[derive(clap::Args)]
pub struct Args {
    /// A preset (ollama, postgres, redis, …), or [NAME=]PORT, [NAME=]PORT:TARGET_PORT, [NAME=]PORT:ADDR:TARGET_PORT,
    /// [NAME=]PORT:unix:/PATH; PORT is the one containers use on the gateway
    #[arg(required = true, value_name = "SPEC", long_help = spec_help(), add = candidates::presets())]
    specs: Vec<String>,
    /// Attach inside this running container: its own 127.0.0.1 services become reachable at its own addresses
    #[arg(long, value_name = "NAME", conflicts_with = "bridges", add = candidates::containers())]
    container: Option<String>,
    /// Docker network to attach to (default: bridge; with --container: each that it is on), a glob such as 'web-*', or
    /// all; may repeat
    #[arg(long = "network", value_name = "NAME|GLOB|all", add = candidates::networks())]
    networks: Vec<String>,
    /// Linux bridge to attach to, without Docker; may repeat
    #[arg(long = "bridge", value_name = "IFACE", add = candidates::bridges())]
    bridges: Vec<String>,
    /// Another address of the host to serve on those networks and bridges; may repeat
    #[arg(long = "gateway", value_name = "ADDR", conflicts_with = "container")]
    gateways: Vec<IpAddr>,
    /// How connections are carried; this version has steer, sockmap and splice
    #[arg(long, value_enum, default_value_t)]
    datapath: Requested,
    /// Use --datapath sockmap although this kernel has known bugs in what it needs
    #[arg(long)]
    force: bool,
    /// Whom the service sees: the container's address, or a local client (127.0.0.1, ::1); a relay is always local
    #[arg(long, value_enum, default_value_t)]
    identity: Identity,
    /// Source allowed to connect (default: the bridge's subnets); may repeat
    #[arg(long = "allow", value_name = "CIDR|CONTAINER", add = candidates::containers())]
    allow: Vec<String>,
    /// Whether firewall rules are managed; this version never changes the firewall
    #[arg(long, value_enum, default_value_t)]
    firewall: Firewall,
    /// Most detailed event to record: off, warn (refusals), debug (every connection)
    #[arg(long, value_enum, value_name = "LEVEL")]
    event_level: Option<EventLevel>,
    /// Print what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    saving: SaveArgs,
    /// Relay in the foreground until SIGINT or SIGTERM, then drain; with --container, follow its restarts until then
    #[arg(long)]
    foreground: bool,
    /// Print, in place of the table, what a compose file needs for containers to reach it
    #[arg(long, value_enum, value_name = "WHAT", conflicts_with_all = ["dry_run", "output"])]
    print: Option<Snippet>,
    #[command(flatten)]
    output: FormatArgs,
    #[command(flatten)]
    relay: RelayArgs,
}

/// Options of relays; seconds may have a fraction.
#[derive(clap::Args)]
#[command(next_help_heading = "Relays")]
struct RelayArgs {
    /// Tell the target who the client is, with a PROXY protocol header of this version
    #[arg(long, value_enum, value_name = "VERSION")]
    proxy_protocol: Option<ProxyProtocol>,
    /// Most open connections per gateway address; one source gets only as many as it leaves free. More are reset
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_connections, value_parser = connections)]
    max_connections: usize,
    /// Reset connections without a byte for this long; 0: never
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds)]
    idle_timeout: Duration,
    /// Reset connections with bytes that one side does not take for this long; 0: never
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    stall_timeout: Duration,
    /// How long the target may take to accept
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    connect_timeout: Duration,
    /// Silence after which the kernel probes whether a client still exists; 0: no probes
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = keepalive_seconds)]
    keepalive: Duration,
    /// How long open connections may take to end after a signal or detach
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    drain_timeout: Duration,
}

impl RelayArgs {
    fn options(&self) -> RelayOptions {
        let limits = Limits {
            max_connections: self.max_connections,
            idle_timeout: unless_zero(self.idle_timeout),
            stall_timeout: unless_zero(self.stall_timeout),
            connect_timeout: self.connect_timeout,
            keepalive: unless_zero(self.keepalive),
            drain: self.drain_timeout,
        };
        RelayOptions { proxy_protocol: self.proxy_protocol, limits }
    }
}

fn connections(text: &str) -> Result<usize, String> {
    let number = text.parse::<usize>().ok().filter(|number| (1..=MAX_CONNECTIONS).contains(number));
    number.ok_or_else(|| format!("expected a number from 1 to {MAX_CONNECTIONS}"))
}

fn seconds(text: &str) -> Result<Duration, String> {
    seconds_up_to(MAX_SECONDS, text)
}

fn keepalive_seconds(text: &str) -> Result<Duration, String> {
    seconds_up_to(MAX_KEEPALIVE, text)
}

fn seconds_up_to(max: f64, text: &str) -> Result<Duration, String> {
    let time = text.parse().ok().and_then(|number| relay::seconds(number, max));
    time.ok_or_else(|| format!("expected seconds, from 0 to {max}"))
}

/// What can be printed for other programs.
#[derive(Clone, Copy, ValueEnum)]
enum Snippet {
    Compose,
}

fn spec_help() -> String {
    let presets: Vec<_> = presets::PRESETS
        .iter()
        .map(|preset| format!("  {:<14} {:>5}  {}", preset.name, preset.port, preset.summary))
        .collect();
    format!(
        "A preset, or [NAME=]PORT, [NAME=]PORT:TARGET_PORT, [NAME=]PORT:ADDR:TARGET_PORT with ADDR in 127.0.0.0/8 or \
         ::1, [NAME=]PORT:unix:/PATH. PORT is the one containers use on the gateway.\n\nPresets:\n{}",
        presets.join("\n")
    )
}

/// Attaches what `args` ask for; with `--foreground`, goes on until a signal.
///
/// The exit code is 1 where something is refused; the rest is attached.
///
/// # Errors
/// When something is wrong with the request as a whole, or the kernel refuses; nothing is attached then.
pub(crate) fn run(args: &Args, scope: &Scope, out: &Out) -> anyhow::Result<ExitCode> {
    let mut request = parse_request(args)?;
    raise_descriptor_limit().context("failed to raise the limit on open files")?;
    let (daemon, silent) = daemon(args, scope);
    let places = daemon.as_ref().map_or(&[][..], |(_, places)| places);
    request.foreground |= daemon.is_some();
    let mut prepared = prepare::prepare(&request, scope, places)?;
    let relays = !prepared.intent.relayed.is_empty();
    if let Some(error) = silent.filter(|_| !prepared.intent.refused.is_empty()) {
        out.say(&format!("failed to look for a daemon: {error:#}"));
    }
    if args.dry_run {
        let mut dry_run = pinned::dry_run(&prepared)?;
        dry_run.configuration = args.saving.steps(&request, &prepared.intent)?;
        let code = say_refused(&prepared.intent.refused, out);
        out.print_as(args.output.output, &dry_run, DryRun::to_text)?;
        return Ok(code);
    }
    let mut saving = args.saving.open()?;
    saving.as_mut().map_or(Ok(()), |saving| saving.write(&request, &prepared.intent))?;
    let relayed = match daemon.filter(|_| relays) {
        Some((daemon, _)) => by_daemon(&daemon, &request, &mut prepared)?,
        None => Vec::new(),
    };
    let Attached { runner, warnings: failed } = apply::attach(&prepared, request.relay)?;
    let code = say_refused(&prepared.intent.refused, out);
    saving.map_or(Ok(()), |saving| saving.finish(out)).context("attached, and not saved")?;
    let warnings: Vec<String> = prepared.intent.warnings.iter().cloned().chain(failed).collect();
    for warning in &warnings {
        out.say(&format!("warning: {warning}"));
    }
    let announce = |runner: &Runner| {
        let relayed = relayed.into_iter().chain(runner.entries()?).collect();
        let report = AttachReport::new(&request, scope, &prepared.intent, relayed, warnings, out.width())?;
        show(args, &report, out)
    };
    let is_attached = prepared.intent.wanted().next().is_some();
    if args.foreground && is_attached && prepared.container.is_some() {
        follow::run(&request, scope, &prepared, out, || announce(&runner))?;
    } else if runner.is_empty() {
        announce(&runner)?;
    } else {
        cli::log::to_stderr(log::LevelFilter::Warn);
        let out = out.clone();
        foreground::run(&prepared.scope.namespace, runner, announce, move |cut| say_cut(&out, cut))?;
    }
    Ok(code)
}

/// The daemon that could relay, and where it does so already; or why it could not be asked, which matters only where it
/// is needed.
fn daemon(args: &Args, scope: &Scope) -> (Option<(Peer, Vec<RelayPlace>)>, Option<anyhow::Error>) {
    if args.foreground || args.container.is_some() {
        return (None, None);
    }
    match control::daemon(&scope.namespace) {
        Ok(found) => (found, None),
        Err(error) => (None, Some(error)),
    }
}

/// Says what is not attached, which is exit code 1.
fn say_refused(refused: &[Refusal], out: &Out) -> ExitCode {
    refused.iter().for_each(|refusal| out.say_error(&refusal.error));
    ExitCode::from(u8::from(!refused.is_empty()))
}

/// Has the daemon do it, and leaves to this process what the daemon has done. Returns what it relays.
fn by_daemon(
    daemon: &Peer,
    request: &Request,
    prepared: &mut Prepared,
) -> anyhow::Result<Vec<AttachmentReport>> {
    // The daemon's environment is another one.
    let answer = daemon.attach(&Request { engine: Docker::named_host(), ..request.clone() })?;
    prepared.intent.refused = answer.refused;
    prepared.intent.relayed.clear();
    Ok(answer.entries)
}

/// Prints what came of it, or only the snippet that was asked for.
fn show(args: &Args, report: &AttachReport, out: &Out) -> anyhow::Result<()> {
    if let Some(Snippet::Compose) = args.print {
        report.notes().iter().for_each(|note| out.say(note));
        return out.print(&compose::snippet(report.attached())).map(drop);
    }
    out.print_as(args.output.output, report, AttachReport::to_text).map(drop)
}

/// Says how many connections were reset at the end of the drain time.
fn say_cut(out: &Out, cut: u64) {
    match cut {
        0 => {}
        1 => out.say("reset 1 connection that was still open at the end of the drain time"),
        cut => out.say(&format!("reset {cut} connections that were still open at the end of the drain time")),
    }
}

fn parse_request(args: &Args) -> anyhow::Result<Request> {
    let specs: Vec<ServiceSpec> = args
        .specs
        .iter()
        .map(|text| text.parse::<ServiceSpec>().map_err(|error| UsageError(error.to_string())))
        .collect::<Result<_, _>>()?;
    plan::no_two_on_one_port(&specs).map_err(UsageError)?;
    let values = [("--network", &args.networks), ("--bridge", &args.bridges), ("--allow", &args.allow)];
    values.iter().try_for_each(|(flag, values)| one_value_each(flag, values))?;
    Ok(Request {
        specs,
        container: args.container.clone(),
        networks: args.networks.clone(),
        bridges: args.bridges.clone(),
        gateways: args.gateways.clone(),
        datapath: args.datapath,
        identity: args.identity,
        allow: args.allow.iter().map(|text| allowed_source(text)).collect::<Result<_, _>>()?,
        event_level: args.event_level,
        relay: args.relay.options(),
        force: args.force,
        foreground: args.foreground,
        keeper: Keeper::Command,
        engine: None,
    })
}

fn allowed_source(text: &str) -> Result<AllowedSource, UsageError> {
    text.parse().map_err(|expected| UsageError(format!("invalid --allow `{text}`: expected {expected}")))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Verb};

    fn keepalive_of(seconds: &str) -> Result<Duration, clap::Error> {
        let option = format!("--keepalive={seconds}");
        match Cli::try_parse_from(["bridge-user", "attach", "redis", &option])?.verb {
            Verb::Attach(args) => Ok(args.relay.keepalive),
            _ => panic!("not attach"),
        }
    }

    #[test]
    fn keepalive_is_what_the_kernel_takes() {
        for (text, seconds) in [("0", 0), ("60", 60), ("32767", 32767)] {
            assert_eq!(keepalive_of(text).unwrap(), Duration::from_secs(seconds));
        }
        for text in ["32767.5", "32768", "86400", "-1", "NaN", "soon"] {
            let error = keepalive_of(text).unwrap_err();
            assert!(error.to_string().contains("expected seconds, from 0 to 32767"), "{error}");
            assert_eq!(error.exit_code(), 2, "{text}");
        }
    }
}
