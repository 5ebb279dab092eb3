//! The command line: what can be typed, and how results and errors are printed.

use std::{io::Write as _, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::{
    UsageError,
    attach::{self, Prepared, Request},
    attachment::{AttachmentState, Identity},
    check,
    datapath::Requested,
    detach, events,
    kernel::object::EventLevel,
    plan, presets,
    relay::{Limits, ProxyProtocol},
    report,
    runner::{self, Runner, foreground},
    spec::ServiceSpec,
    status,
};

/// More descriptors than a process can have.
const MAX_CONNECTIONS: usize = 1 << 20;
/// A day: nothing waits longer.
const MAX_SECONDS: f64 = 86400.0;
/// The kernel takes no longer silence before its probes (`MAX_TCP_KEEPIDLE`).
const MAX_KEEPALIVE: f64 = 32767.0;

/// Containers reach services that listen only on the host's 127.0.0.1, in the kernel.
#[derive(Parser)]
#[command(name = "bridge-user", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make loopback services reachable at the bridge gateway
    Attach(AttachArgs),
    /// Undo attach
    Detach(DetachArgs),
    /// Show what is attached and whether it can serve
    Status(StatusArgs),
    /// Show what this kernel and host can do, by trying it
    Check(OutputArgs),
    /// Print the kernel's event channel
    Events(EventsArgs),
    /// Print a shell completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

#[derive(Args)]
struct AttachArgs {
    /// A preset (ollama, postgres, redis, …), or [NAME=]PORT, [NAME=]PORT:TARGET_PORT, [NAME=]PORT:ADDR:TARGET_PORT,
    /// [NAME=]PORT:unix:/PATH; PORT is the one containers use on the gateway
    #[arg(required = true, value_name = "SPEC", long_help = spec_help())]
    specs: Vec<String>,
    /// Attach inside this running container: its own 127.0.0.1 services become reachable at its own addresses
    #[arg(long, value_name = "NAME", conflicts_with = "bridges")]
    container: Option<String>,
    /// Docker network to attach to (default: bridge; with --container: each that it is on); may repeat
    #[arg(long = "network", value_name = "NAME")]
    networks: Vec<String>,
    /// Linux bridge to attach to, without Docker; may repeat
    #[arg(long = "bridge", value_name = "IFACE")]
    bridges: Vec<String>,
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
    #[arg(long = "allow", value_name = "CIDR|CONTAINER")]
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
    /// Keep the attachment in the daemon's configuration (not in this version)
    #[arg(long)]
    save: bool,
    /// Relay in the foreground until SIGINT or SIGTERM, then drain; with --container, follow its restarts until then
    #[arg(long)]
    foreground: bool,
    #[command(flatten)]
    relay: RelayArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Options of relays; seconds may have a fraction.
#[derive(Args)]
#[command(next_help_heading = "Relays")]
struct RelayArgs {
    /// Tell the target who the client is, with a PROXY protocol header of this version
    #[arg(long, value_enum, value_name = "VERSION")]
    proxy_protocol: Option<ProxyProtocol>,
    /// Most open connections per gateway address; more are reset
    #[arg(long, value_name = "N", default_value_t = Limits::default().max_connections, value_parser = connections)]
    max_connections: usize,
    /// Reset connections without a byte for this long; 0: never
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds)]
    idle_timeout: Duration,
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
    fn options(&self) -> runner::Options {
        let unless_zero = |time: Duration| (!time.is_zero()).then_some(time);
        let limits = Limits {
            max_connections: self.max_connections,
            idle_timeout: unless_zero(self.idle_timeout),
            connect_timeout: self.connect_timeout,
            keepalive: unless_zero(self.keepalive),
            drain: self.drain_timeout,
        };
        runner::Options { proxy_protocol: self.proxy_protocol, limits }
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
    let number = text.parse::<f64>().ok().filter(|number| (0.0..=max).contains(number));
    number.map(Duration::from_secs_f64).ok_or_else(|| format!("expected seconds, from 0 to {max}"))
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct DetachArgs {
    /// Names of attachments, services or containers, or ports; a name that means nothing is an error, and the others
    /// are detached
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Everything of this network namespace, and what it attached inside containers
    #[arg(long)]
    all: bool,
}

#[derive(Args)]
struct StatusArgs {
    /// Attachment or service names (default: all)
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args)]
struct EventsArgs {
    /// Go on until interrupted
    #[arg(long, short)]
    follow: bool,
    /// Those of what is attached inside this container
    #[arg(long, value_name = "NAME")]
    container: Option<String>,
}

#[derive(Args)]
struct OutputArgs {
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Output {
    #[default]
    Text,
    Json,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Firewall {
    #[default]
    Auto,
    Off,
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

/// Parses the command line, runs the verb, prints errors as one line. Exit codes: 0 done, 1 failed, 2 wrong usage.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage_or_help(&error),
    };
    match run(cli.verb) {
        Ok(code) => code,
        Err(error) => {
            // One line, whatever a cause contains (the verifier's log has many).
            eprintln!(
                "bridge-user: {}",
                format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ")
            );
            ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
        }
    }
}

fn usage_or_help(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Help and version cannot fail, not even into a closed pipe.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    eprint!("bridge-user: {text}");
    ExitCode::from(2)
}

fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Attach(args) => run_attach(args),
        Verb::Detach(args) => {
            let names = if args.all { detach::all()? } else { detach::by_name(&args.names)? };
            let lines: String = names.iter().map(|name| format!("detached {name}\n")).collect();
            print(&lines)
        }
        Verb::Status(args) => {
            let (report, silent) = status::run(&args.names)?;
            let printed = print_as(args.output.output, &report, report::Report::to_text)?;
            silent.into_iter().next().map_or(Ok(printed), Err)
        }
        Verb::Check(args) => {
            let report = check::run()?;
            print_as(args.output, &report, check::CheckReport::to_text)?;
            Ok(ExitCode::from(u8::from(!report.passed())))
        }
        Verb::Events(args) => events::run(args.follow, args.container.as_deref()).map(|()| ExitCode::SUCCESS),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "bridge-user", &mut script);
            print_bytes(&script)
        }
        Verb::Man => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            print_bytes(&page)
        }
    }
}

fn run_attach(args: AttachArgs) -> anyhow::Result<ExitCode> {
    let request = parse_request(&args)?;
    refuse_missing(&args)?;
    let prepared = attach::prepare(&request)?;
    if args.dry_run {
        let plan = attach::dry_run::Plan::new(&prepared)?;
        return print_as(args.output.output, &plan, attach::dry_run::Plan::to_text);
    }
    if !args.foreground {
        prepared.require_no_relay()?;
    }
    // Relays first: they stop by themselves when steering fails after them.
    let runner = Runner::start(&prepared.relayed, request.relay)?;
    attach::apply(&prepared)?;
    if let Some(place) = prepared.place.as_ref().filter(|_| args.foreground) {
        let announce = || print_attached(&args, &request, &prepared, &runner).map(drop);
        return attach::follow::run(&request, place, announce).map(|()| ExitCode::SUCCESS);
    }
    if runner.is_empty() {
        return print_attached(&args, &request, &prepared, &runner);
    }
    log_to_stderr();
    foreground::run(runner, |runner| print_attached(&args, &request, &prepared, runner).map(drop))?;
    Ok(ExitCode::SUCCESS)
}

/// Warnings of relays: lines on stderr, which a service manager keeps.
fn log_to_stderr() {
    let format = |out: &mut env_logger::fmt::Formatter, record: &log::Record<'_>| {
        writeln!(out, "bridge-user: {}", record.args())
    };
    env_logger::Builder::new().filter_level(log::LevelFilter::Warn).format(format).init();
}

fn print_attached(
    args: &AttachArgs,
    request: &Request,
    prepared: &Prepared,
    runner: &Runner,
) -> anyhow::Result<ExitCode> {
    let mut report = status::steered()?;
    report.attachments.retain(|entry| prepared.steered.iter().any(|state| state.name() == entry.name));
    report.attachments.extend(runner.entries()?);
    report.attachments.sort_by(|one, other| one.name.cmp(&other.name));
    let with_notes = |report: &report::Report| format!("{}{}", report.to_text(), notes(request, prepared));
    print_as(args.output.output, &report, with_notes)
}

/// What the attached services are known to do with clients that are not local, and a warning where they are.
fn notes(request: &Request, prepared: &Prepared) -> String {
    let of_preset = |spec: &ServiceSpec| {
        let preset = presets::find(&spec.service)?;
        let state = prepared.wanted().find(|state| state.service == spec.service)?;
        Some(format!("note: {}: {}\n", preset.name, preset.note.text(state.identity)?))
    };
    let local: Vec<_> = prepared
        .wanted()
        .filter(|state| state.identity == Identity::Loopback)
        .map(AttachmentState::name)
        .collect();
    let warning = match local.is_empty() {
        true => String::new(),
        false => format!(
            "warning: {}: the service sees a local client, so rules that trust local clients now trust these containers\n",
            local.join(", ")
        ),
    };
    request.specs.iter().filter_map(of_preset).chain([warning]).collect()
}

fn parse_request(args: &AttachArgs) -> anyhow::Result<Request> {
    let specs: Vec<ServiceSpec> = args
        .specs
        .iter()
        .map(|text| text.parse::<ServiceSpec>().map_err(|error| UsageError(error.to_string())))
        .collect::<Result<_, _>>()?;
    plan::no_two_on_one_port(&specs).map_err(UsageError)?;
    Ok(Request {
        specs,
        container: args.container.clone(),
        networks: args.networks.clone(),
        bridges: args.bridges.clone(),
        datapath: args.datapath,
        identity: args.identity,
        allow: args.allow.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
        event_level: args.event_level,
        relay: args.relay.options(),
        force: args.force,
    })
}

/// Options of the contract that this version does not have yet.
fn refuse_missing(args: &AttachArgs) -> anyhow::Result<()> {
    if args.save {
        bail!(
            "--save is not in this version, which has no daemon: run attach from a systemd unit after docker.service"
        );
    }
    Ok(())
}

fn print_as<T: Serialize>(
    output: Output,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> anyhow::Result<ExitCode> {
    match output {
        Output::Text => print(&text(value)),
        Output::Json => {
            print(&format!("{}\n", serde_json::to_string(value).context("failed to write JSON")?))
        }
    }
}

fn print(text: &str) -> anyhow::Result<ExitCode> {
    print_bytes(text.as_bytes())
}

/// A reader that went away (`| head`) is not an error.
fn print_bytes(bytes: &[u8]) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("failed to write to standard output")
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
