//! What of the unit is on this host.
//!
//! Invariant: read-only.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::{MARK, PACKAGED_BINARY, Systemctl, UNIT, UnitState};

/// Where administrators' units are.
const UNITS: &str = "/etc/systemd/system";
/// Where packages' are.
const PACKAGED_UNITS: [&str; 2] = ["/usr/lib/systemd/system", "/lib/systemd/system"];

/// Where the files are.
#[derive(Clone, Debug)]
pub struct Places {
    /// The unit that `systemd install` writes.
    pub unit: PathBuf,
    /// Where a package has the unit.
    pub packaged: Vec<PathBuf>,
    /// Administrators' additions to the unit.
    pub additions: PathBuf,
    /// The configuration.
    pub config: PathBuf,
}

/// A file, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// There is none.
    Missing,
    /// `systemd install` wrote it.
    Ours(String),
    /// Somebody else did.
    Foreign,
}

/// What is there.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Where the files are.
    pub places: Places,
    /// The binary that the unit is to start.
    pub binary: PathBuf,
    /// The unit in the place where `systemd install` writes it.
    pub unit: Found,
    /// A package has a unit that starts this binary.
    pub packaged: bool,
    /// The configuration, if there is one.
    pub config: Option<String>,
    /// Its directory is there.
    pub has_config_directory: bool,
    /// There are additions to the unit.
    pub has_additions: bool,
    /// What the manager says.
    pub state: UnitState,
    /// The process that runs was started from another file than the binary.
    pub runs_another: bool,
}

impl Places {
    /// Those of this system, with the configuration's.
    pub fn with_config(config: &str) -> Self {
        Self {
            unit: Path::new(UNITS).join(UNIT),
            packaged: PACKAGED_UNITS.iter().map(|directory| Path::new(directory).join(UNIT)).collect(),
            additions: Path::new(UNITS).join(format!("{UNIT}.d")),
            config: PathBuf::from(config),
        }
    }
}

impl Facts {
    /// Looks at the host.
    ///
    /// # Errors
    /// When a file cannot be read, or the manager not be asked.
    pub fn gather(places: Places, binary: &Path, systemctl: &Systemctl) -> anyhow::Result<Self> {
        let state = systemctl.state(UNIT)?;
        let is_packaged = places.packaged.iter().any(|path| path.exists());
        Ok(Self {
            binary: binary.to_owned(),
            unit: whose(&places.unit)?,
            packaged: is_packaged && binary == Path::new(PACKAGED_BINARY),
            config: read(&places.config)?,
            has_config_directory: places.config.parent().is_some_and(Path::is_dir),
            has_additions: places.additions.is_dir(),
            // Who may not see whose it is does not restart it either.
            runs_another: state.process.is_some_and(|pid| is_another(pid, binary).unwrap_or(false)),
            state,
            places,
        })
    }
}

/// Whether the process was started from another file. Its path says nothing: the unit has mounts of its own, and an
/// upgrade puts a new file in the same place.
fn is_another(pid: u32, binary: &Path) -> io::Result<bool> {
    let file = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    Ok(file(Path::new(&format!("/proc/{pid}/exe")))? != file(binary)?)
}

/// A link is somebody's decision, whatever it leads to.
fn whose(path: &Path) -> anyhow::Result<Found> {
    if path.is_symlink() {
        return Ok(Found::Foreign);
    }
    Ok(match read(path)? {
        Some(text) if text.starts_with(MARK) => Found::Ours(text),
        Some(_) => Found::Foreign,
        None => Found::Missing,
    })
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("failed to read {}", path.display())),
    }
}
