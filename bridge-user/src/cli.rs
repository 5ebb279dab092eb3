//! The command line: what can be typed, and how results and errors are printed.

use std::{io::Write as _, process::ExitCode};

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::{
    UsageError,
    attach::{self, Request},
    check,
    datapath::{self, Requested},
    detach, events,
    kernel::{Instance, object::EventLevel},
    plan, presets, report,
    spec::ServiceSpec,
    status,
};

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
    /// A preset (ollama, postgres, redis, …), or [NAME=]PORT, [NAME=]PORT:TARGET_PORT, [NAME=]PORT:ADDR:TARGET_PORT;
    /// PORT is the one containers use on the gateway
    #[arg(required = true, value_name = "SPEC", long_help = spec_help())]
    specs: Vec<String>,
    /// Docker network to attach to (default: bridge); may repeat
    #[arg(long = "network", value_name = "NAME")]
    networks: Vec<String>,
    /// Linux bridge to attach to, without Docker; may repeat
    #[arg(long = "bridge", value_name = "IFACE")]
    bridges: Vec<String>,
    /// How connections are carried; this version has steer
    #[arg(long, value_enum, default_value_t)]
    datapath: Requested,
    /// Whom the service sees; this version has container
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
    /// Relay in the foreground until a signal (not in this version)
    #[arg(long)]
    foreground: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct DetachArgs {
    /// Attachment or service names
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Everything in this network namespace
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

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Identity {
    /// The container's real address
    #[default]
    Container,
    /// 127.0.0.1
    Loopback,
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
         ::1. PORT is the one containers use on the gateway.\n\nPresets:\n{}",
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
            let report = status::run(&args.names)?;
            print_as(args.output.output, &report, report::Report::to_text)
        }
        Verb::Check(args) => {
            let report = check::run()?;
            print_as(args.output, &report, check::CheckReport::to_text)?;
            Ok(ExitCode::from(u8::from(!report.passed())))
        }
        Verb::Events(args) => events::run(args.follow).map(|()| ExitCode::SUCCESS),
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
    refuse_missing(&args, &request)?;
    let prepared = attach::prepare(&request)?;
    if args.dry_run {
        let plan = attach::dry_run::Plan::new(&prepared)?;
        return print_as(args.output.output, &plan, attach::dry_run::Plan::to_text);
    }
    attach::apply(&prepared)?;
    let instance = Instance::open()?.context("failed to read back what was attached: it is gone")?;
    let all = instance.state.list()?;
    let mine = all.iter().filter(|(_, state)| prepared.wanted.iter().any(|w| w.state.is_same(state)));
    let report = status::report(&instance.state, mine)?;
    let with_notes = |report: &report::Report| format!("{}{}", report.to_text(), notes(&request));
    print_as(args.output.output, &report, with_notes)
}

/// What the attached services are known to do with clients that are not local.
fn notes(request: &Request) -> String {
    let note = |spec: &ServiceSpec| {
        let preset = presets::find(&spec.service).filter(|preset| !preset.note.is_empty())?;
        Some(format!("note: {}: {}\n", preset.name, preset.note))
    };
    request.specs.iter().filter_map(note).collect()
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
        networks: args.networks.clone(),
        bridges: args.bridges.clone(),
        datapath: args.datapath,
        allow: args.allow.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
        event_level: args.event_level,
    })
}

/// Options of the contract that this version does not have yet.
fn refuse_missing(args: &AttachArgs, request: &Request) -> anyhow::Result<()> {
    for spec in &request.specs {
        datapath::choose(request.datapath, &spec.target)
            .map_err(|text| anyhow!("failed to attach {} ({}): {text}", spec.service, spec.port))?;
    }
    if args.identity == Identity::Loopback {
        bail!(
            "--identity loopback is not in this version, expected container: let the service trust the container's address"
        );
    }
    if args.save {
        bail!(
            "--save is not in this version, which has no daemon: run attach from a systemd unit after docker.service"
        );
    }
    if args.foreground {
        bail!(
            "--foreground is not in this version, which has no relay: a steered service needs no process, leave it out"
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
