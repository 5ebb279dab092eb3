//! A network namespace as a value: which one it is, and running something inside it.
//!
//! Invariants: whatever asks something of a namespace, or changes something there, takes it as an argument and works
//! in it by [`Namespace::run`], so that nothing depends on the thread it is called from. Only a thread that ends
//! afterwards enters another namespace; the caller's thread stays where it is. Mounts and process ids stay the
//! caller's, so bpffs, /proc and programs are found as ever. A value keeps its namespace alive, so no other can get
//! its inode meanwhile.

use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, File},
    io,
    os::unix::{fs::MetadataExt as _, net::UnixDatagram},
    sync::{Arc, OnceLock},
    thread,
};

use anyhow::{Context as _, ensure};
use caps::{CapSet, Capability};
use nix::sched::{CloneFlags, setns};
use thiserror::Error;

use super::proc_fd;
use crate::model::{instance::NamespaceId, source::NamedContainer};

/// The calling thread's namespace, as a file.
const CURRENT: &str = "/proc/thread-self/ns/net";

/// One network namespace. Clones are the same one.
#[derive(Clone)]
pub struct Namespace(Arc<Opened>);

struct Opened {
    file: File,
    inode: u64,
    /// Asked for when it is first needed.
    cookie: OnceLock<Option<u64>>,
}

/// Why nothing could be run in a namespace.
#[derive(Debug, Error)]
pub(crate) enum EnterError {
    /// The kernel does not let this process in.
    #[error("failed to enter a network namespace: run as root, or with CAP_SYS_ADMIN")]
    Refused(#[source] nix::errno::Errno),
    /// There is no thread to be had.
    #[error("failed to start a thread in a network namespace: raise the limit on threads")]
    NoThread(#[source] io::Error),
    /// What was run did not come to its end.
    #[error("the thread in the network namespace panicked")]
    Panicked,
}

impl Namespace {
    /// That of the calling thread.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn current() -> anyhow::Result<Self> {
        let file = File::open(CURRENT).context("failed to open this network namespace: is /proc mounted?")?;
        Self::of(file)
    }

    /// That of a process.
    ///
    /// # Errors
    /// When the process is gone, or may not be looked into.
    pub fn of_process(pid: i32) -> anyhow::Result<Self> {
        let path = format!("/proc/{pid}/ns/net");
        let file = File::open(&path).with_context(|| {
            format!("failed to open {path}: is the process gone, or in another PID namespace than this one?")
        })?;
        Self::of(file)
    }

    /// The one with this inode, if a process is in it.
    ///
    /// # Errors
    /// When it is not found, and processes of others may not be looked into.
    pub(crate) fn find(inode: u64) -> anyhow::Result<Option<Self>> {
        Ok(Self::find_all(&BTreeSet::from([inode]))?.pop())
    }

    /// That of a container in an allow-list. Whoever names the container keeps its namespace alive, so the inode is no
    /// other's.
    ///
    /// # Errors
    /// When no process is in it any more, or as [`Self::find`].
    pub(crate) fn of_named(container: &NamedContainer) -> anyhow::Result<Self> {
        let NamedContainer { name, inode, .. } = container;
        Self::find(*inode)?
            .with_context(|| format!("container {name} stopped meanwhile: start it, and attach again"))
    }

    /// Those with these inodes, as far as a process is in them.
    ///
    /// # Errors
    /// When not all are found, and processes of others may not be looked into.
    pub(crate) fn find_all(inodes: &BTreeSet<u64>) -> anyhow::Result<Vec<Self>> {
        let mut all: Vec<Self> = Vec::new();
        for process in fs::read_dir("/proc").context("failed to list processes: is /proc mounted?")?.flatten()
        {
            if process.file_name().to_str().is_none_or(|name| name.parse::<i32>().is_err()) {
                continue;
            }
            // It ended meanwhile, or the system hides it, as containers' processes are not.
            let Ok(file) = File::open(process.path().join("ns/net")) else { continue };
            let found = Self::of(file)?;
            if inodes.contains(&found.inode()) && !all.contains(&found) {
                all.push(found);
                if all.len() == inodes.len() {
                    return Ok(all);
                }
            }
        }
        ensure!(
            caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_PTRACE)?,
            "failed to look for a network namespace in every process: run as root, or with CAP_SYS_PTRACE"
        );
        Ok(all)
    }

    fn of(file: File) -> anyhow::Result<Self> {
        let inode = file.metadata().context("failed to read a network namespace's inode")?.ino();
        Ok(Self(Arc::new(Opened { file, inode, cookie: OnceLock::new() })))
    }

    /// The file that stands for it.
    pub(crate) fn file(&self) -> &File {
        &self.0.file
    }

    /// The inode that tells it from the others that exist, and names its pin directory.
    pub(crate) fn inode(&self) -> u64 {
        self.0.inode
    }

    /// The cookie, which is never given out twice, as the inode is. Unknown below Linux 5.14, and to who may not go
    /// there.
    pub(crate) fn cookie(&self) -> Option<u64> {
        *self.0.cookie.get_or_init(|| {
            let socket = self.run(UnixDatagram::unbound).ok()?.ok()?;
            proc_fd::netns_cookie(socket).ok()
        })
    }

    /// What it is known by when nothing keeps it alive.
    pub(crate) fn id(&self) -> NamespaceId {
        NamespaceId { inode: self.inode(), cookie: self.cookie() }
    }

    /// Runs `body` in it: on the calling thread, if that is there already, otherwise on one that enters it. Threads
    /// and processes that `body` starts are in it from their beginning, and sockets it opens stay in it wherever they
    /// are used.
    ///
    /// # Errors
    /// When it cannot be entered.
    pub(crate) fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T, EnterError> {
        if self.is_current() {
            return Ok(body());
        }
        let enter_and_run = || {
            setns(self.file(), CloneFlags::CLONE_NEWNET).map_err(EnterError::Refused)?;
            Ok(body())
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().spawn_scoped(scope, enter_and_run);
            thread.map_err(EnterError::NoThread)?.join().map_err(|_| EnterError::Panicked)?
        })
    }

    fn is_current(&self) -> bool {
        fs::metadata(CURRENT).is_ok_and(|current| current.ino() == self.0.inode)
    }
}

impl EnterError {
    /// The system's number for it.
    pub(crate) fn raw_os_error(&self) -> i32 {
        match self {
            Self::Refused(errno) => *errno as i32,
            Self::NoThread(cause) => cause.raw_os_error().unwrap_or(libc::EAGAIN),
            Self::Panicked => libc::ECANCELED,
        }
    }
}

impl PartialEq for Namespace {
    fn eq(&self, other: &Self) -> bool {
        self.0.inode == other.0.inode
    }
}

impl Eq for Namespace {}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net:[{}]", self.0.inode)
    }
}

impl From<EnterError> for io::Error {
    fn from(error: EnterError) -> Self {
        let kind = Self::from_raw_os_error(error.raw_os_error()).kind();
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use nix::sched::unshare;

    use super::*;

    /// A new namespace, made by a thread that has ended since.
    fn another() -> Namespace {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace (needs root)");
            Namespace::current().unwrap()
        });
        made.join().unwrap()
    }

    #[test]
    fn the_own_namespace_is_found_by_its_inode() {
        let own = Namespace::of_process(nix::unistd::getpid().as_raw()).unwrap();
        assert_eq!(Namespace::find(own.inode()).unwrap(), Some(own));
        assert!(!matches!(Namespace::find(0), Ok(Some(_))));
    }

    #[test]
    fn a_thread_that_is_there_already_runs_it_itself() {
        let me = thread::current().id();
        let own = Namespace::current().unwrap();
        assert_eq!(own.run(|| thread::current().id()).unwrap(), me);
        let other = another();
        let (where_it_ran, who, nested) = other
            .run(|| {
                (Namespace::current().unwrap(), thread::current().id(), other.run(|| thread::current().id()))
            })
            .unwrap();
        assert_eq!(where_it_ran, other);
        assert_ne!(who, me);
        assert_eq!(nested.unwrap(), who);
        assert_eq!(Namespace::current().unwrap(), own, "the caller's thread stays where it is");
    }

    #[test]
    fn a_cookie_tells_namespaces_apart_from_whatever_thread_it_is_asked() {
        let (own, other) = (Namespace::current().unwrap(), another());
        assert_eq!(own.cookie().is_some(), other.cookie().is_some());
        assert!(own.cookie().is_none() || own.cookie() != other.cookie());
        let clone = other.clone();
        assert_eq!(own.run(move || clone.cookie()).unwrap(), other.cookie());
    }

    #[test]
    fn a_panic_in_another_namespace_is_an_error() {
        assert!(matches!(another().run(|| panic!("on purpose")), Err(EnterError::Panicked)));
    }
}
