//! Kernel versions, and the one table that compares them: where the socket-map relay may be used.
//!
//! Everything else is probed, but what is meant here cannot be: older kernels have bugs in this path that free a socket
//! still in use, or lose bytes, once in a million connections (among them 5173b4fd6a9d "skmsg: Fix sk_psock use after
//! free", and the reworks of `sk_psock_backlog`). Each series got the last of the fixes in the release named below;
//! series that ended before got none.
//!
//! Invariants: pure; a version that cannot be read is `None`, and never taken for a good one.

use core::fmt;

/// (series, its first stable release with every known fix of the socket-map path).
pub const SOCKMAP_FLOORS: [((u32, u32), u32); 5] =
    [((6, 1), 191), ((6, 6), 152), ((6, 12), 114), ((6, 18), 45), ((7, 1), 9)];
/// The first series that had them from its first release.
pub const SOCKMAP_GOOD_SINCE: (u32, u32) = (7, 2);

/// An upstream version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Such as (6, 12).
    pub series: (u32, u32),
    /// The stable release within it; 0 when none is named.
    pub stable: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { series: (major, minor), stable } = self;
        write!(f, "{major}.{minor}.{stable}")
    }
}

impl Version {
    /// The version that a text starts with: `6.1.192-2 (2026-…)` is 6.1.192, `7.3~rc7` is 7.3.0.
    pub fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let mut numbers = text[..end].trim_end_matches('.').split('.').map(str::parse);
        let series = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        let stable = numbers.next().map_or(Ok(0), |number| number).ok()?;
        Some(Self { series, stable })
    }

    /// The upstream version of the running kernel, of what `uname -r` and `uname -v` say. Debian's releases carry a
    /// number of their own (6.1.0-56-cloud-amd64 is 6.1.192), and the build names the upstream one.
    pub fn of_uname(release: &str, build: &str) -> Option<Self> {
        let debian = build.split_once("Debian ").and_then(|(_, version)| Self::parse(version));
        debian.or_else(|| Self::parse(release))
    }

    /// Whether the socket-map relay may be used.
    ///
    /// # Errors
    /// The first good stable release of the series; none where the series ended before there was one.
    pub fn sockmap(self) -> Result<(), Option<u32>> {
        if self.series >= SOCKMAP_GOOD_SINCE {
            return Ok(());
        }
        match SOCKMAP_FLOORS.iter().find(|(series, _)| *series == self.series) {
            Some((_, floor)) if self.stable >= *floor => Ok(()),
            found => Err(found.map(|(_, floor)| *floor)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockmap(text: &str) -> Result<(), Option<u32>> {
        Version::parse(text).unwrap_or_else(|| panic!("no version in {text}")).sockmap()
    }

    #[test]
    fn each_series_has_its_floor() {
        for ((major, minor), floor) in SOCKMAP_FLOORS {
            assert_eq!(sockmap(&format!("{major}.{minor}.{floor}")), Ok(()));
            assert_eq!(sockmap(&format!("{major}.{minor}.{}-x", floor + 1)), Ok(()));
            assert_eq!(sockmap(&format!("{major}.{minor}.{}", floor - 1)), Err(Some(floor)));
        }
    }

    #[test]
    fn later_series_are_good_and_ended_ones_are_not() {
        for good in ["7.2", "7.2.0", "7.2.12+deb13-cloud-amd64", "7.3-cloud-amd64", "8.0.1"] {
            assert_eq!(sockmap(good), Ok(()), "{good}");
        }
        for ended in ["5.10.262", "5.15.200", "6.2.16", "6.16.12", "6.17.13", "6.19.14", "7.0.5"] {
            assert_eq!(sockmap(ended), Err(None), "{ended}");
        }
    }

    #[test]
    fn debian_names_the_upstream_version_in_the_build() {
        let of = |build| Version::of_uname("6.1.0-56-cloud-amd64", build);
        let debian = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-10-01)";
        assert_eq!(of(debian), Some(Version { series: (6, 1), stable: 192 }));
        assert_eq!(of("#1 SMP Debian 7.3~rc7-1~exp1"), Some(Version { series: (7, 3), stable: 0 }));
        assert_eq!(of("#1 SMP"), Some(Version { series: (6, 1), stable: 0 }));
    }

    #[test]
    fn what_is_no_version_is_none() {
        for strange in ["", "linux", "7", "7.", "x.7.2", "99999999999.1"] {
            assert_eq!(Version::parse(strange), None, "{strange}");
        }
    }
}
