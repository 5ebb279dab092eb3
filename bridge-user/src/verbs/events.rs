//! The `events` verb: prints the kernel's event channel.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use anyhow::bail;

use crate::{
    cli::output::{Out, Printed},
    kernel::{
        Instance,
        events::{Event, Events},
        instance::owned::owned,
    },
    model::attachment::Attachment,
    observe::preflight,
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
    #[arg(long, value_name = "NAME")]
    container: Option<String>,
}

/// Prints the events that are there, of the namespace or of what is attached inside a container; with `--follow`, goes
/// on until interrupted. Each event is shown once.
///
/// # Errors
/// When nothing is attached there, or the channel cannot be read.
pub(crate) fn run(args: &Args, scope: &Scope, out: &Out) -> anyhow::Result<()> {
    preflight::may_read_events()?;
    let Some(container) = args.container.as_deref() else { return print_events(args.follow, scope, out) };
    for instance in owned(scope)? {
        let is_its = |state: &Attachment| state.container.as_deref() == Some(container);
        if let Some(inside) = instance.scope()
            && instance.attachments()?.iter().any(is_its)
        {
            return print_events(args.follow, &inside, out);
        }
    }
    bail!(
        "failed to read events: nothing is attached inside container {container} as it runs now: see `bridge-user \
         status`, and attach a service first"
    );
}

fn print_events(follow: bool, scope: &Scope, out: &Out) -> anyhow::Result<()> {
    let Some(instance) = Instance::open(scope)? else {
        bail!("failed to read events: nothing is attached in this network namespace: attach a service first");
    };
    let mut channel = EventChannel::new(instance)?;
    loop {
        let batch = channel.events.drain();
        if print(&channel.instance, &batch, out)? == Printed::ReaderGone || !follow {
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

/// An instance and its event channel.
struct EventChannel {
    instance: Instance,
    /// Id of the program the channel was found by.
    program: u32,
    events: Events,
}

impl EventChannel {
    fn new(instance: Instance) -> anyhow::Result<Self> {
        let program = instance.steer_program_id()?;
        let events = Events::of_program(program)?;
        Ok(Self { instance, program, events })
    }
}

fn print(instance: &Instance, batch: &[Event], out: &Out) -> anyhow::Result<Printed> {
    if batch.is_empty() {
        return Ok(Printed::All);
    }
    let mut names: HashMap<SocketAddr, String> = HashMap::new();
    for (_, state) in instance.state.list()? {
        for &gateway in &state.gateways {
            names.insert(SocketAddr::new(gateway, state.port.get()), state.name());
        }
    }
    for event in batch {
        let name = event.destination().and_then(|to| names.get(&to)).map(String::as_str);
        if out.print(&event.line(name))? == Printed::ReaderGone {
            return Ok(Printed::ReaderGone);
        }
    }
    Ok(Printed::All)
}
