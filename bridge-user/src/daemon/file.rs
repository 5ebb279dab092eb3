//! The configuration file as it changes.
//!
//! Invariant: an event is only a reason to look; whether the file is another one is told by its bytes, so that a file
//! behind a link, or on a file system that tells nothing, is followed too, if later.

use std::{
    ffi::OsString,
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    config::{self, Config, ConfigError},
    net::sys::register,
};

/// What is read at once of what inotify tells.
const BUFFER: usize = 4096;

/// The file, and what it said when it was last right.
pub(crate) struct ConfigFile {
    path: PathBuf,
    /// `None`: it is to be taken for another one.
    bytes: Option<Vec<u8>>,
}

impl ConfigFile {
    /// Reads it for the first time.
    ///
    /// # Errors
    /// When it cannot be read, or is wrong.
    pub(crate) fn read(path: PathBuf) -> Result<(Self, Config), ConfigError> {
        let bytes = config::read(&path)?;
        let config = config::parse_bytes(&path, &bytes)?;
        Ok((Self { path, bytes: Some(bytes) }, config))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Has it taken for another one next time, whatever it says.
    pub(super) fn forget(&mut self) {
        self.bytes = None;
    }

    /// What it says, if it is another one than last time.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(super) fn if_changed(&mut self) -> Result<Option<Config>, ConfigError> {
        let bytes = config::read(&self.path)?;
        if self.bytes.as_ref() == Some(&bytes) {
            return Ok(None);
        }
        // One that is wrong is parsed again each time: it is told for as long as it is.
        let config = config::parse_bytes(&self.path, &bytes)?;
        self.bytes = Some(bytes);
        Ok(Some(config))
    }
}

/// What happens in the file's directory.
pub(super) struct FileChanges {
    watch: Option<AsyncFd<OwnedFd>>,
    name: OsString,
}

impl FileChanges {
    /// From now on. Needs a runtime.
    ///
    /// # Errors
    /// When the kernel has no inotify to give.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let name = path.file_name().unwrap_or_default().to_owned();
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // Written in place, or replaced by a rename. Not created: it is empty then.
        let events = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, directory, events)?;
        Ok(Self { watch: Some(register(fd, Interest::READABLE)?), name })
    }

    /// Ends when the file may be another one.
    pub(super) async fn changed(&mut self) {
        while let Some(watch) = &mut self.watch {
            match next(watch, &self.name).await {
                Ok(true) => return,
                Ok(false) => {}
                // It is looked at from time to time all the same.
                Err(_) => self.watch = None,
            }
        }
        std::future::pending().await
    }
}

/// Whether something that was told is about the file with this name.
async fn next(watch: &mut AsyncFd<OwnedFd>, name: &OsString) -> io::Result<bool> {
    let mut ready = watch.readable_mut().await?;
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut is_concerned = false;
    let mut reader = inotify::Reader::new(ready.get_inner(), &mut buffer);
    loop {
        match reader.next() {
            Ok(event) => {
                let is_lost = event.events().contains(ReadFlags::QUEUE_OVERFLOW);
                is_concerned |=
                    is_lost || event.file_name().is_some_and(|one| one.to_bytes() == name.as_bytes());
            }
            Err(rustix::io::Errno::WOULDBLOCK) => break,
            Err(error) => return Err(error.into()),
        }
    }
    ready.clear_ready();
    Ok(is_concerned)
}
