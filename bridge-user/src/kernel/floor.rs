//! The oldest kernels on which the socket-map relay may be used.
//!
//! The one place that compares versions. Everything else is probed, but what is meant here cannot be: older kernels have
//! bugs in this path that free a socket still in use, or lose bytes, once in a million connections (among them
//! 5173b4fd6a9d "skmsg: Fix sk_psock use after free", and the reworks of `sk_psock_backlog`). Each series got the last
//! of the fixes in the release named in the table below; series that ended before got none.
//!
//! Invariants: pure, except [`require`], which reads the running kernel's names; what cannot be told is refused.

use std::{fmt, fs};

use thiserror::Error;

/// (series, its first good stable release).
const FLOORS: [((u32, u32), u32); 5] =
    [((6, 1), 191), ((6, 6), 152), ((6, 12), 114), ((6, 18), 45), ((7, 1), 9)];
/// The first series that was good from its first release.
const GOOD_SINCE: (u32, u32) = (7, 2);

/// An upstream version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Such as (6, 12).
    pub series: (u32, u32),
    /// The stable release within it; 0 when none is named.
    pub stable: u32,
}

/// The texts that name the running kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// `uname -r`.
    pub release: String,
    /// `uname -v`, in which Debian names the upstream version.
    pub build: String,
    /// `/proc/version_signature`, in which Ubuntu does.
    pub signature: Option<String>,
}

/// Why a kernel is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "failed to trust kernel {found} with the socket-map relay: {cause}: use a newer kernel, or the splice relay, or \
     --force if this kernel has the fixes"
)]
pub struct TooOld {
    found: String,
    cause: String,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { series: (major, minor), stable } = self;
        write!(f, "{major}.{minor}.{stable}")
    }
}

impl Names {
    /// Of the running kernel.
    ///
    /// # Errors
    /// When uname(2) fails.
    pub fn of_this_kernel() -> std::io::Result<Self> {
        let uname = nix::sys::utsname::uname()?;
        Ok(Self {
            release: uname.release().to_string_lossy().into_owned(),
            build: uname.version().to_string_lossy().into_owned(),
            // Only Ubuntu's kernels have it.
            signature: fs::read_to_string("/proc/version_signature").ok(),
        })
    }

    /// The upstream version, from the text that tells it best: Debian's and Ubuntu's releases carry their own numbers
    /// (6.1.0-56-cloud-amd64 is 6.1.192).
    pub fn version(&self) -> Option<Version> {
        let ubuntu = self.signature.as_deref().and_then(|text| parse(text.split_whitespace().last()?));
        let after_debian = self.build.split_once("Debian ").map(|(_, rest)| rest);
        ubuntu.or_else(|| parse(after_debian?)).or_else(|| parse(&self.release))
    }
}

/// `6.1.192-2 (2026-…)` → 6.1.192; `7.3~rc7` → 7.3.0.
fn parse(text: &str) -> Option<Version> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let mut numbers = text[..end].trim_end_matches('.').split('.').map(str::parse);
    let series = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    let stable = numbers.next().map_or(Ok(0), |number| number).ok()?;
    Some(Version { series, stable })
}

/// Whether a kernel of these names may be used.
///
/// # Errors
/// [`TooOld`] names the version found, what is needed, and what to do.
pub fn judge(names: &Names) -> Result<Version, TooOld> {
    let refuse = |found: String, cause: String| Err(TooOld { found, cause });
    let Some(version) = names.version() else {
        return refuse(names.release.clone(), "its version cannot be told from its name".to_owned());
    };
    if version.series >= GOOD_SINCE {
        return Ok(version);
    }
    let (major, minor) = version.series;
    match FLOORS.iter().find(|(series, _)| *series == version.series) {
        Some((_, floor)) if version.stable >= *floor => Ok(version),
        Some((_, floor)) => refuse(
            version.to_string(),
            format!(
                "it may lose bytes or crash, {major}.{minor}.{floor} is the first of its series that does not"
            ),
        ),
        None => refuse(
            version.to_string(),
            format!(
                "it may lose bytes or crash, and its series ended before that was corrected; {} do not",
                good_ones()
            ),
        ),
    }
}

/// Judges the running kernel.
///
/// # Errors
/// As [`judge`].
pub fn require() -> Result<Version, TooOld> {
    let names = Names::of_this_kernel().map_err(|error| TooOld {
        found: "(unknown)".to_owned(),
        cause: format!("uname(2) did not answer ({error})"),
    })?;
    judge(&names)
}

fn good_ones() -> String {
    let floors = FLOORS.map(|((major, minor), stable)| format!("{major}.{minor}.{stable}"));
    format!("{} and {}.{}", floors.join(", "), GOOD_SINCE.0, GOOD_SINCE.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(release: &str) -> Names {
        Names { release: release.to_owned(), ..Names::default() }
    }

    #[test]
    fn each_series_has_its_floor() {
        for ((major, minor), floor) in FLOORS {
            assert!(judge(&release(&format!("{major}.{minor}.{floor}"))).is_ok(), "{major}.{minor}.{floor}");
            assert!(judge(&release(&format!("{major}.{minor}.{}-x", floor + 1))).is_ok());
            let refused = judge(&release(&format!("{major}.{minor}.{}", floor - 1))).unwrap_err().to_string();
            let needed = format!("{major}.{minor}.{floor} is the first");
            assert!(refused.contains(&needed) && refused.contains("--force"), "{refused}");
        }
    }

    #[test]
    fn later_series_are_good_and_ended_ones_are_not() {
        for good in ["7.2", "7.2.0", "7.2.12+deb13-cloud-amd64", "7.3-cloud-amd64", "8.0.1"] {
            assert!(judge(&release(good)).is_ok(), "{good}");
        }
        for ended in ["5.10.262", "5.15.200", "6.2.16", "6.16.12", "6.17.13", "6.19.14", "7.0.5"] {
            let refused = judge(&release(ended)).unwrap_err().to_string();
            assert!(refused.contains(ended) && refused.contains("6.12.114"), "{refused}");
        }
    }

    #[test]
    fn debian_names_the_upstream_version_in_the_build() {
        let debian = |build: &str| Names {
            build: format!("#1 SMP PREEMPT_DYNAMIC Debian {build} (2026-10-01)"),
            ..release("6.1.0-56-cloud-amd64")
        };
        assert_eq!(debian("6.1.192-2").version(), Some(Version { series: (6, 1), stable: 192 }));
        assert!(judge(&debian("6.1.192-2")).is_ok());
        assert!(judge(&debian("6.1.158-1")).is_err());
        assert!(judge(&release("6.1.0-56-cloud-amd64")).is_err());
        assert_eq!(debian("7.3~rc7-1~exp1").version(), Some(Version { series: (7, 3), stable: 0 }));
    }

    #[test]
    fn ubuntu_names_it_in_its_signature() {
        let signature = Some("Ubuntu 6.8.0-45.45-generic 6.8.12\n".to_owned());
        let ubuntu = Names { signature, build: "#45-Ubuntu SMP".into(), ..release("6.8.0-45-generic") };
        assert_eq!(ubuntu.version(), Some(Version { series: (6, 8), stable: 12 }));
        assert!(judge(&ubuntu).is_err());
    }

    #[test]
    fn what_cannot_be_told_is_refused() {
        for strange in ["", "linux", "7", "7.", "x.7.2", "99999999999.1"] {
            let refused = judge(&release(strange)).unwrap_err().to_string();
            assert!(refused.contains("cannot be told"), "{strange}: {refused}");
        }
    }
}
