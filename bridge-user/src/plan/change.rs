//! One step of an attach or detach, as data: shown by `--dry-run`, carried out by `apply`, and undone by its inverse.
//!
//! Invariants: a change is whole: when it fails, nothing of it is left. What a change says is all that carrying it out
//! does; loading programs lasts only as what attaches or replaces them.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Serialize, Serializer};

use crate::model::{
    attachment::Attachment,
    bridge::Interface,
    event_level::EventLevel,
    instance::InstanceMeta,
    programs::{Hook, IDENTITY, TcHook},
};

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Change {
    /// Relay an attachment in this process.
    StartRelay {
        /// The attachment.
        #[serde(serialize_with = "with_name")]
        attachment: Box<Attachment>,
    },
    /// Stop relays, and wait until they are drained.
    StopRelays {
        /// The socket on which the process they are in is asked; `None`: this process.
        socket: Option<PathBuf>,
        /// The attachments' names.
        names: Vec<String>,
    },
    /// Mount bpffs. It stays mounted: others may use it by then.
    MountBpffs {
        /// Where.
        at: PathBuf,
    },
    /// Make the directory and the maps pinned in it.
    CreateInstance {
        /// The directory.
        dir: PathBuf,
        /// The level of events of its programs.
        event_level: EventLevel,
    },
    /// Remove the directory and every pin in it.
    RemoveInstance {
        /// The directory.
        dir: PathBuf,
    },
    /// Attach a program to the namespace or the root cgroup.
    AttachProgram(ProgramPin),
    /// Detach it.
    DetachProgram(ProgramPin),
    /// Replace every attached program by this build's, each in one step, and say so in `META` last.
    ReplacePrograms {
        /// Those of the namespace and the root cgroup.
        programs: Vec<&'static str>,
        /// The interfaces with the tc program.
        interfaces: Vec<Interface>,
        /// The level of events from now on.
        event_level: EventLevel,
        /// That until now.
        old_level: EventLevel,
        /// The old programs are another build's, which this one does not have.
        is_other_build: bool,
    },
    /// Write what the instance says of itself.
    WriteMeta {
        /// What it says from now on.
        new: InstanceMeta,
        /// What it said until now; `None` of a new instance.
        old: Option<InstanceMeta>,
    },
    /// Remove map entries without effect, which a killed process left.
    RemoveLeftovers {
        /// Where the maps are pinned.
        dir: PathBuf,
    },
    /// Attach the program that steers to MPTCP listeners to an interface.
    AttachTc {
        /// Which, how, and where that is noted.
        #[serde(flatten)]
        tc: TcPin,
        /// No MPTCP listener is there now, so that failing is no failure.
        optional: bool,
    },
    /// Take it off.
    DetachTc {
        /// Which, how, and where that is noted.
        #[serde(flatten)]
        tc: TcPin,
    },
    /// Let the kernel track who listens on a target, and register who does already. Listeners are looked for when
    /// tracking has begun, so that none is missed.
    TrackTarget {
        /// The target.
        target: SocketAddr,
        /// It is not tracked yet.
        is_new: bool,
        /// Whom to register, or note as MPTCP, as far as is known now.
        listeners: Vec<Registration>,
        /// Addresses that are noted as MPTCP and have no such listener any more.
        forgotten: Vec<SocketAddr>,
    },
    /// Forget a target and its listeners, except what other attachments want.
    UntrackTarget {
        /// The target.
        target: SocketAddr,
    },
    /// Take back that MPTCP listeners are transparent.
    ReleaseListeners {
        /// Where they listen.
        addresses: Vec<SocketAddr>,
    },
    /// Make or change an attachment: what it refers to first, its entry in `ATTACHMENTS` as the commit, what only the
    /// old one referred to last.
    PutAttachment {
        /// Its id.
        id: u32,
        /// Where the maps are pinned.
        dir: PathBuf,
        /// As it is to be.
        #[serde(serialize_with = "with_name")]
        new: Box<Attachment>,
        /// As it was.
        #[serde(serialize_with = "maybe_with_name")]
        old: Option<Box<Attachment>>,
    },
    /// Remove an attachment: its entry in `ATTACHMENTS` first, then what only it referred to.
    RemoveAttachment {
        /// Its id.
        id: u32,
        /// Where the maps are pinned.
        dir: PathBuf,
        /// As it was.
        #[serde(serialize_with = "with_name")]
        attachment: Box<Attachment>,
    },
    /// Pin the link of the program that steers. From here on the instance is there, whatever becomes of this process.
    Publish {
        /// The pin.
        pin: PathBuf,
    },
    /// Detach the program that steers and remove its pin. From here on there is no instance.
    Withdraw {
        /// The pin.
        pin: PathBuf,
    },
    /// Remove what is attached again from what an earlier run of the container left.
    ForgetEarlier {
        /// Where that is pinned.
        dir: PathBuf,
        /// The attachments' names.
        names: Vec<String>,
    },
}

/// A program, where it is attached, and the pin that keeps it there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProgramPin {
    /// Its name.
    pub program: &'static str,
    /// Where it is attached.
    pub hook: Hook,
    /// The pin of its link; `None`: it is attached as long as this process runs.
    pub pin: Option<PathBuf>,
}

/// The tc program on an interface, and the pin that says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TcPin {
    /// The interface.
    pub interface: Interface,
    /// How it is attached.
    pub hook: TcHook,
    /// The pin of its link, or what stands for the filter.
    pub pin: PathBuf,
}

/// A listener to register.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Registration {
    /// `redis-server (pid 812)`.
    pub owner: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// It uses MPTCP: no map takes it, and it is made transparent.
    pub mptcp: bool,
    /// The kernel has noted its address already.
    pub is_noted: bool,
}

impl Change {
    /// What takes it back, if anything does. Undoing a list is carrying out the inverses in reverse order.
    pub fn inverse(&self) -> Option<Self> {
        Some(match self.clone() {
            Self::StartRelay { attachment } => {
                Self::StopRelays { socket: None, names: vec![attachment.name()] }
            }
            Self::CreateInstance { dir, .. } => Self::RemoveInstance { dir },
            // Once attached they stay as long as the instance, so that no connection's identity ever changes.
            Self::AttachProgram(program) if IDENTITY.contains(&program.program) => return None,
            Self::AttachProgram(program) => Self::DetachProgram(program),
            Self::ReplacePrograms { programs, interfaces, event_level, old_level, is_other_build: false } => {
                Self::ReplacePrograms {
                    programs,
                    interfaces,
                    event_level: old_level,
                    old_level: event_level,
                    is_other_build: false,
                }
            }
            Self::WriteMeta { new, old: Some(old) } => Self::WriteMeta { new: old, old: Some(new) },
            Self::AttachTc { tc, .. } => Self::DetachTc { tc },
            Self::DetachTc { tc } => Self::AttachTc { tc, optional: false },
            Self::TrackTarget { target, is_new: true, .. } => Self::UntrackTarget { target },
            Self::UntrackTarget { target } => {
                Self::TrackTarget { target, is_new: true, listeners: Vec::new(), forgotten: Vec::new() }
            }
            Self::PutAttachment { id, dir, new, old: None } => {
                Self::RemoveAttachment { id, dir, attachment: new }
            }
            Self::PutAttachment { id, dir, new, old: Some(old) } => {
                Self::PutAttachment { id, dir, new: old, old: Some(new) }
            }
            Self::RemoveAttachment { id, dir, attachment } => {
                Self::PutAttachment { id, dir, new: attachment, old: None }
            }
            Self::Publish { pin } => Self::Withdraw { pin },
            // The old build is gone; others may use bpffs; what was removed whole, or by somebody else's leave, has no
            // copy.
            Self::ReplacePrograms { .. }
            | Self::MountBpffs { .. }
            | Self::StopRelays { .. }
            | Self::RemoveInstance { .. }
            | Self::DetachProgram(_)
            | Self::WriteMeta { old: None, .. }
            | Self::RemoveLeftovers { .. }
            | Self::ReleaseListeners { .. }
            | Self::TrackTarget { .. }
            | Self::Withdraw { .. }
            | Self::ForgetEarlier { .. } => return None,
        })
    }

    /// Whether both are carried out at once, whole or not at all: all listeners are looked for together.
    pub fn is_one_with(&self, next: &Self) -> bool {
        matches!((self, next), (Self::TrackTarget { .. }, Self::TrackTarget { .. }))
    }

    /// Whether its failure is a warning. The optional changes after one that failed are left out: they build on each
    /// other.
    pub fn is_optional(&self) -> bool {
        matches!(self, Self::AttachTc { optional: true, .. })
    }

    /// Whether it may be carried out only if all that was to be removed before it was: the pins that it removes say
    /// what is still to be undone.
    pub fn needs_all_before(&self) -> bool {
        matches!(self, Self::RemoveInstance { .. })
    }

    /// Whether nothing after it may be carried out unless it was: what still steers must find all of its maps.
    pub fn is_needed_by_all(&self) -> bool {
        matches!(self, Self::Withdraw { .. })
    }

    /// Whether it changes an instance, for which the lock is held. The others may not be carried out under the lock:
    /// they wait for other processes, or take it themselves.
    pub fn needs_lock(&self) -> bool {
        !matches!(
            self,
            Self::StartRelay { .. }
                | Self::StopRelays { .. }
                | Self::MountBpffs { .. }
                | Self::ForgetEarlier { .. }
        )
    }
}

/// An attachment with its name, which is made of its other fields.
#[derive(Serialize)]
struct Named<'a> {
    name: String,
    #[serde(flatten)]
    attachment: &'a Attachment,
}

fn with_name<S: Serializer>(attachment: &Attachment, serializer: S) -> Result<S::Ok, S::Error> {
    Named { name: attachment.name(), attachment }.serialize(serializer)
}

fn maybe_with_name<S: Serializer>(
    attachment: &Option<Box<Attachment>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let named = attachment.as_deref().map(|attachment| Named { name: attachment.name(), attachment });
    named.serialize(serializer)
}
