//! The `events` verb: prints the kernel's event channel.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    time::Duration,
};

use anyhow::{anyhow, bail};
use serde::Serialize;

use super::candidates;
use crate::{
    cli::output::{Format, FormatArgs, Out, Printed},
    kernel::{
        Instance,
        events::{Event, Events},
        instance::owned::owned,
    },
    model::{attachment::Attachment, escape::push_line, event_level::EventLevel},
    observe::preflight,
    plan,
    scope::Scope,
};

/// How often a quiet follower looks whether anything is attached still.
const STILL_THERE: Duration = Duration::from_secs(1);

/// What can be asked of `events`.
#[derive(clap::Args)]
pub struct Args {
    /// Go on until interrupted
    #[arg(long, short)]
    follow: bool,
    /// Those of what is attached inside this container
    #[arg(long, value_name = "NAME", add = candidates::containers())]
    container: Option<String>,
    #[command(flatten)]
    output: FormatArgs,
}

/// Prints the events that are there, of the namespace or of what is attached inside a container; with `--follow`, goes
/// on until interrupted. Each event is shown once.
///
/// # Errors
/// When nothing is attached there, or the channel cannot be read.
pub(crate) fn run(args: &Args, scope: &Scope, out: &Out) -> anyhow::Result<()> {
    preflight::may_read_events()?;
    let Some(container) = args.container.as_deref() else { return print_events(args, scope, out) };
    for instance in owned(scope)? {
        let is_its = |state: &Attachment| state.container.as_deref() == Some(container);
        if let Some(inside) = instance.scope()
            && instance.attachments()?.iter().any(is_its)
        {
            return print_events(args, &inside, out);
        }
    }
    bail!(
        "failed to read events: nothing is attached inside container {container} as it runs now: see `bridge-user \
         status`, and attach a service first"
    );
}

fn print_events(args: &Args, scope: &Scope, out: &Out) -> anyhow::Result<()> {
    let Some(instance) = Instance::open(scope)? else { return Err(nothing_attached(scope)?) };
    let mut channel = EventChannel::new(instance)?;
    loop {
        let batch = channel.events.drain()?;
        let printed = print(&channel.instance, &batch, args.output.output, out)?;
        if printed == Printed::ReaderGone || !args.follow {
            return Ok(());
        }
        if !channel.events.wait(STILL_THERE)? {
            // After the last detach another attach may have come: then the channel is another one.
            match Instance::open(scope)? {
                None => bail!("failed to follow events: the last attachment was detached"),
                Some(now) if now.steer_program_id()? != channel.program => channel = EventChannel::new(now)?,
                Some(_) => {}
            }
        }
    }
}

/// Why there is no channel, and where there are others.
fn nothing_attached(scope: &Scope) -> anyhow::Result<anyhow::Error> {
    let mut inside = BTreeSet::new();
    for instance in owned(scope)? {
        inside.extend(instance.attachments()?.into_iter().filter_map(|state| state.container));
    }
    Ok(match inside.is_empty() {
        true => anyhow!(
            "failed to read events: nothing is attached in this network namespace: attach a service first"
        ),
        false => anyhow!(
            "failed to read events: nothing is attached in this network namespace itself, only inside containers: name \
             one with --container ({})",
            plan::list(inside)
        ),
    })
}

/// An instance and its event channel.
struct EventChannel {
    instance: Instance,
    /// Id of the program that steers, which another instance does not have.
    program: u32,
    events: Events,
}

impl EventChannel {
    fn new(instance: Instance) -> anyhow::Result<Self> {
        let program = instance.steer_program_id()?;
        let events = Events::of(&instance)?;
        Ok(Self { instance, program, events })
    }
}

/// One event, as it is printed.
#[derive(Serialize)]
struct Line<'a> {
    /// When it happened; RFC 3339, UTC.
    time: String,
    level: EventLevel,
    /// The attachment's name, unless it is detached.
    attachment: Option<&'a str>,
    message: String,
    /// The client.
    source: Option<SocketAddr>,
    /// The gateway.
    destination: SocketAddr,
}

impl Line<'_> {
    fn to_text(&self) -> String {
        let Self { time, message, .. } = self;
        let level = self.level.to_string().to_ascii_uppercase();
        let name = self.attachment.map_or_else(String::new, |name| format!(" [{name}]"));
        let mut line = String::new();
        push_line(&mut line, &format!("{time} {level} {message}{name}"));
        line
    }
}

fn print(instance: &Instance, batch: &[Event], format: Format, out: &Out) -> anyhow::Result<Printed> {
    if batch.is_empty() {
        return Ok(Printed::All);
    }
    let names: HashMap<u32, String> =
        instance.state.list()?.into_iter().map(|(id, attachment)| (id, attachment.name())).collect();
    for event in batch {
        let line = Line {
            time: humantime::format_rfc3339_millis(event.time).to_string(),
            level: event.level(),
            attachment: names.get(&event.attachment).map(String::as_str),
            message: event.to_string(),
            source: event.source,
            destination: event.destination,
        };
        if out.print_as(format, &line, Line::to_text)? == Printed::ReaderGone {
            return Ok(Printed::ReaderGone);
        }
    }
    Ok(Printed::All)
}
