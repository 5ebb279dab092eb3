//! Whether the running kernel is one on which the socket-map relay may be used: the table is
//! [`bridge_common::kernels`].
//!
//! Invariants: pure, except [`require`], which reads the running kernel's names; what cannot be told is refused.

use std::fs;

use bridge_common::kernels::{SOCKMAP_FLOORS, SOCKMAP_GOOD_SINCE, Version};
use thiserror::Error;

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
        let signature = self.signature.as_deref().and_then(|text| text.split_whitespace().last());
        signature.and_then(Version::parse).or_else(|| Version::of_uname(&self.release, &self.build))
    }
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
    let cause = match version.sockmap() {
        Ok(()) => return Ok(version),
        Err(Some(floor)) => {
            let (major, minor) = version.series;
            format!(
                "it may lose bytes or crash, {major}.{minor}.{floor} is the first of its series that does not"
            )
        }
        Err(None) => format!(
            "it may lose bytes or crash, and its series ended before that was corrected; {} do not",
            good_ones()
        ),
    };
    refuse(version.to_string(), cause)
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
    let floors = SOCKMAP_FLOORS.map(|((major, minor), stable)| format!("{major}.{minor}.{stable}"));
    format!("{} and {}.{}", floors.join(", "), SOCKMAP_GOOD_SINCE.0, SOCKMAP_GOOD_SINCE.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(release: &str) -> Names {
        Names { release: release.to_owned(), ..Names::default() }
    }

    #[test]
    fn a_refusal_names_what_is_needed() {
        for ((major, minor), floor) in SOCKMAP_FLOORS {
            let refused = judge(&release(&format!("{major}.{minor}.{}", floor - 1))).unwrap_err().to_string();
            let needed = format!("{major}.{minor}.{floor} is the first");
            assert!(refused.contains(&needed) && refused.contains("--force"), "{refused}");
        }
        let ended = judge(&release("6.16.12")).unwrap_err().to_string();
        assert!(ended.contains("6.16.12") && ended.contains("6.12.114"), "{ended}");
    }

    #[test]
    fn debian_names_the_upstream_version_in_the_build() {
        let debian = |build: &str| Names {
            build: format!("#1 SMP PREEMPT_DYNAMIC Debian {build} (2026-10-01)"),
            ..release("6.1.0-56-cloud-amd64")
        };
        assert!(judge(&debian("6.1.192-2")).is_ok());
        assert!(judge(&debian("6.1.158-1")).is_err());
        assert!(judge(&release("6.1.0-56-cloud-amd64")).is_err());
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
        let refused = judge(&release("linux")).unwrap_err().to_string();
        assert!(refused.contains("cannot be told"), "{refused}");
    }
}
