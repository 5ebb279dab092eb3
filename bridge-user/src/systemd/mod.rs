//! The daemon as a unit of systemd: what `bridge-user systemd` writes and runs, as a list of steps that is shown,
//! carried out and undone.
//!
//! Invariants: the unit is the file that packages ship, but for the path of the binary; nothing is replaced or removed
//! that somebody else wrote; `plan` and `facts` change nothing, `carry_out` alone does.

mod binary;
mod carry_out;
mod facts;
mod plan;
mod systemctl;

use std::path::Path;

pub use binary::lasting;
pub use carry_out::carry_out;
pub use facts::{Facts, Found, Places};
pub use plan::{Plan, Step, install, uninstall};
pub use systemctl::{Systemctl, UnitState};

/// The unit's name.
pub const UNIT: &str = "bridge-user.service";

/// The unit as packages ship it.
const PACKAGED_UNIT: &str = include_str!("../../../packaging/bridge-user.service");
/// Where packages have the binary, which that file names.
const PACKAGED_BINARY: &str = "/usr/bin/bridge-user";
/// The first line of what `systemd install` wrote, by which `systemd uninstall` knows it.
const MARK: &str =
    "# Written by `bridge-user systemd install`, which replaces it. To change it: systemctl edit.\n";
/// The configuration as packages ship it: nothing but comments.
const EXAMPLE_CONFIG: &str = include_str!("../../../packaging/config.toml");

/// The unit that starts `binary`.
fn unit_for(binary: &Path) -> String {
    let binary = binary.display().to_string();
    format!("{MARK}{}", PACKAGED_UNIT.replace(PACKAGED_BINARY, &binary))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_starts_the_binary_and_is_known_again() {
        let text = unit_for(Path::new("/usr/local/bin/bridge-user"));
        assert!(text.starts_with(MARK), "{text}");
        assert!(text.contains("\nExecStart=/usr/local/bin/bridge-user run\n"), "{text}");
        assert!(!text.contains("/usr/bin/bridge-user"), "{text}");
    }

    /// What issue after issue was about: a unit that hides bpffs, or needs an engine that is not there.
    #[test]
    fn the_unit_leaves_bpffs_writable_and_needs_no_engine() {
        let lines: Vec<&str> = PACKAGED_UNIT.lines().collect();
        assert!(lines.contains(&"ProtectKernelTunables=no"));
        assert!(lines.contains(&"RuntimeDirectoryPreserve=yes"));
        assert!(
            lines.iter().all(|line| !line.starts_with("Requires") && !line.starts_with("PrivateMounts="))
        );
    }
}
