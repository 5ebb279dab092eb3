//! Each change as a sentence for people, which names the object and its path.

use std::{fmt, net::SocketAddr, path::Path};

use super::{
    change::{Change, ProgramPin, Registration, TcPin},
    list,
};
use crate::model::{
    attachment::Attachment, bridge::Interface, event_level::EventLevel, identity::Identity,
    instance::InstanceMeta, programs::TcHook,
};

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StartRelay { attachment } => relay_sentence(f, attachment),
            Self::StopRelays { socket, names } => stop_sentence(f, socket.as_deref(), names),
            Self::MountBpffs { at } => write!(f, "mount bpffs at {}", at.display()),
            Self::CreateInstance { dir, event_level } => {
                write!(
                    f,
                    "create {} with every map pinned in it, events at level {event_level}",
                    dir.display()
                )
            }
            Self::RemoveInstance { dir } => {
                write!(f, "remove {} and everything pinned in it", dir.display())
            }
            Self::AttachProgram(ProgramPin { program, hook, pin }) => {
                write!(f, "attach program {program} to {hook}, {}", pinned(pin.as_deref()))
            }
            Self::DetachProgram(ProgramPin { program, hook, .. }) => {
                write!(f, "detach program {program} from {hook}")
            }
            Self::ReplacePrograms { programs, interfaces, event_level, .. } => {
                replace_sentence(f, programs, interfaces, *event_level)
            }
            Self::WriteMeta { new, .. } => meta_sentence(f, new),
            Self::RemoveLeftovers { dir } => {
                write!(f, "remove what a killed process left in the maps in {}", dir.display())
            }
            Self::AttachTc { tc, .. } => write!(f, "attach program steer_tc to {tc}"),
            Self::DetachTc { tc } => write!(f, "take program steer_tc off {tc}"),
            Self::TrackTarget { target, is_new, listeners, forgotten } => {
                track_sentence(f, *target, *is_new, listeners, forgotten)
            }
            Self::ReleaseListeners { addresses } => {
                write!(f, "take IP_TRANSPARENT off the MPTCP listeners on {}", list(addresses))
            }
            Self::UntrackTarget { target } => write!(f, "stop tracking who listens on {target}"),
            Self::PutAttachment { dir, new, old, .. } => put_sentence(f, dir, new, old.as_deref()),
            Self::RemoveAttachment { dir, attachment, .. } => {
                write!(f, "detach {} in {}", attachment.name(), dir.display())
            }
            Self::Publish { pin } => {
                write!(f, "publish it all: pin the link of program steer as {}", pin.display())
            }
            Self::Withdraw { pin } => {
                write!(f, "stop steering: detach program steer and remove {}", pin.display())
            }
            Self::ForgetEarlier { dir, names } => {
                write!(f, "remove {} of an earlier run from {}", list(names), dir.display())
            }
        }
    }
}

impl fmt::Display for TcPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.hook {
            TcHook::Tcx => "by a link, pinned as",
            TcHook::Clsact => "as a filter of a clsact qdisc, noted as",
        };
        write!(f, "{} at tc ingress, {how} {}", self.interface, self.pin.display())
    }
}

fn pinned(pin: Option<&Path>) -> String {
    match pin {
        Some(pin) => format!("pinned as {}", pin.display()),
        None => "for as long as this process runs".to_owned(),
    }
}

/// `tcp 172.17.0.1:6379 on docker0`; several gateways are a list.
fn entrances(attachment: &Attachment) -> String {
    let at = |&gateway| SocketAddr::new(gateway, attachment.port.get());
    format!("{} on {}", list(attachment.gateways.iter().map(at)), attachment.bridge)
}

fn stop_sentence(f: &mut fmt::Formatter<'_>, socket: Option<&Path>, names: &[String]) -> fmt::Result {
    write!(f, "stop relaying {}", list(names))?;
    match socket {
        Some(socket) => write!(f, " in the process of {}, when its connections have ended", socket.display()),
        None => Ok(()),
    }
}

fn relay_sentence(f: &mut fmt::Formatter<'_>, attachment: &Attachment) -> fmt::Result {
    write!(
        f,
        "relay {} in this process until a signal, with {}: {} to {}, from {}",
        attachment.name(),
        attachment.datapath,
        entrances(attachment),
        attachment.target,
        list(&attachment.allow)
    )
}

fn replace_sentence(
    f: &mut fmt::Formatter<'_>,
    programs: &[&str],
    interfaces: &[Interface],
    level: EventLevel,
) -> fmt::Result {
    write!(f, "replace the attached programs by this build's, events at level {level}: {}", list(programs))?;
    if interfaces.is_empty() { Ok(()) } else { write!(f, ", steer_tc on {}", list(interfaces)) }
}

fn put_sentence(
    f: &mut fmt::Formatter<'_>,
    dir: &Path,
    new: &Attachment,
    old: Option<&Attachment>,
) -> fmt::Result {
    let verb = if old.is_some() { "change" } else { "attach" };
    write!(f, "{verb} {} in {}: ", new.name(), dir.display())?;
    write!(f, "{} to {}, from {}", entrances(new), new.target, list(&new.allow))?;
    match new.identity {
        Identity::Container => Ok(()),
        Identity::Loopback => f.write_str(", as a local client"),
    }
}

fn meta_sentence(f: &mut fmt::Formatter<'_>, meta: &InstanceMeta) -> fmt::Result {
    let tried = if meta.probed { "steering was tried on this host" } else { "steering was not tried" };
    write!(f, "note in map META: this build, events at level {}, {tried}", meta.event_level)?;
    match meta.owner {
        Some(owner) => write!(f, ", attached from network namespace {}", owner.inode),
        None => Ok(()),
    }
}

fn track_sentence(
    f: &mut fmt::Formatter<'_>,
    target: SocketAddr,
    is_new: bool,
    listeners: &[Registration],
    forgotten: &[SocketAddr],
) -> fmt::Result {
    match (is_new, listeners.is_empty()) {
        (true, true) => write!(f, "track who listens on {target}, which is nobody now")?,
        (true, false) => write!(f, "track who listens on {target}, and register ")?,
        (false, true) => write!(f, "look again who listens on {target}")?,
        (false, false) => write!(f, "register ")?,
    }
    let one = |listener: &Registration| {
        let mptcp = if listener.mptcp { " (MPTCP, with IP_TRANSPARENT)" } else { "" };
        format!("{} on {}{mptcp}", listener.owner, listener.address)
    };
    f.write_str(&list(listeners.iter().map(one)))?;
    match forgotten.is_empty() {
        true => Ok(()),
        false => write!(f, "; no MPTCP listener is on {} any more", list(forgotten)),
    }
}
