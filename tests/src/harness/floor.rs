//! Which kernels may relay by sockmap without being forced: an own copy of the table, to hold the
//! binary against.
//!
//! Invariant: the version is the kernel's, not the package's: Debian's `uname -r` may leave out the
//! last number, which is then taken from `uname -v`.

use anyhow::{Context, Result};
use nix::sys::utsname::uname;

/// The first good release of each branch that is still maintained.
const FLOORS: [(u32, u32, u32); 5] = [(6, 1, 191), (6, 6, 152), (6, 12, 114), (6, 18, 45), (7, 1, 9)];

/// Whether the running kernel is at or above its branch's floor.
pub(crate) fn sockmap_is_trusted() -> Result<bool> {
    let names = uname()?;
    let (release, build) = (names.release().to_string_lossy(), names.version().to_string_lossy());
    let version = version_of(&release, &build);
    Ok(is_trusted(version.with_context(|| format!("no version in kernel release {release} ({build})"))?))
}

fn is_trusted((major, minor, patch): (u32, u32, u32)) -> bool {
    let newest = FLOORS[FLOORS.len() - 1];
    let same_branch = FLOORS.iter().find(|floor| (floor.0, floor.1) == (major, minor));
    same_branch.map_or((major, minor) > (newest.0, newest.1), |floor| patch >= floor.2)
}

fn version_of(release: &str, build: &str) -> Option<(u32, u32, u32)> {
    let packaged = build.split_once("Debian ").and_then(|(_, version)| three_numbers(version));
    packaged.or_else(|| three_numbers(release))
}

fn three_numbers(text: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let mut next = || numbers.next()?.ok();
    // The first release of a branch, and release candidates, have no third number.
    Some((next()?, next()?, next().unwrap_or(0)))
}
