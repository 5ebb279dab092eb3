//! The `events` verb: prints the kernel's event channel.

use std::{collections::HashMap, io::Write as _, net::SocketAddr, time::Duration};

use anyhow::bail;

use crate::{
    attachment::AttachmentState,
    kernel::{Instance, events::Events, owned::owned},
    net::netns,
    preflight,
};

/// How often a quiet follower looks whether anything is attached still.
const STILL_THERE: Duration = Duration::from_secs(1);

/// Prints the events that are there, of this namespace or of what is attached inside a container; with `follow`, goes on
/// until interrupted. Each event is shown once.
///
/// # Errors
/// When nothing is attached there, or the channel cannot be read.
pub fn run(follow: bool, container: Option<&str>) -> anyhow::Result<()> {
    preflight::may_read_events()?;
    let Some(container) = container else { return run_here(follow) };
    for instance in owned()? {
        let is_its = |state: &AttachmentState| state.container.as_deref() == Some(container);
        if let Some(namespace) = instance.namespace()
            && instance.attachments()?.iter().any(is_its)
        {
            return netns::run_in(namespace, || run_here(follow));
        }
    }
    bail!(
        "failed to read events: nothing is attached inside container {container} as it runs now: see `bridge-user status`, and attach a service first"
    );
}

fn run_here(follow: bool) -> anyhow::Result<()> {
    let Some(instance) = Instance::open()? else {
        bail!("failed to read events: nothing is attached in this network namespace: attach a service first");
    };
    let mut source = Source::new(instance)?;
    loop {
        let batch = source.events.drain();
        if !batch.is_empty() && print(&source.instance, &batch)? == Printed::ReaderGone {
            return Ok(());
        }
        if !follow {
            return Ok(());
        }
        if !source.events.wait(STILL_THERE)? {
            // After the last detach another attach may have come: then the channel is another one.
            match Instance::open()? {
                None => bail!("failed to follow events: the last attachment was detached"),
                Some(now) if now.steer_program_id()? != source.program => source = Source::new(now)?,
                Some(_) => {}
            }
        }
    }
}

/// An instance and its event channel.
struct Source {
    instance: Instance,
    /// Id of the program the channel was found by.
    program: u32,
    events: Events,
}

impl Source {
    fn new(instance: Instance) -> anyhow::Result<Self> {
        let program = instance.steer_program_id()?;
        let events = Events::of_program(program)?;
        Ok(Self { instance, program, events })
    }
}

#[derive(PartialEq, Eq)]
enum Printed {
    All,
    ReaderGone,
}

fn print(instance: &Instance, batch: &[crate::kernel::events::Event]) -> anyhow::Result<Printed> {
    let mut names: HashMap<SocketAddr, String> = HashMap::new();
    for (_, state) in instance.state.list()? {
        for &gateway in &state.gateways {
            names.insert(SocketAddr::new(gateway, state.port.get()), state.name());
        }
    }
    let mut out = std::io::stdout().lock();
    for event in batch {
        let name = event.destination().and_then(|to| names.get(&to)).map(String::as_str);
        match event.write(&mut out, name).and_then(|()| out.flush()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(Printed::ReaderGone),
            result => result?,
        }
    }
    Ok(Printed::All)
}
