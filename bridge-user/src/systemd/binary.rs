//! Whether a path is one that a unit may start as root at every boot.
//!
//! Invariant: what is accepted is root's all the way up, so that nobody else can put another program in its place.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};

/// Directories whose content goes away, or is not there yet at boot.
const PASSING: [(&str, &str); 8] = [
    ("/tmp", "is emptied at boot"),
    ("/var/tmp", "is cleaned from time to time"),
    ("/dev", "is made anew at boot"),
    ("/proc", "is no place for files"),
    ("/run", "is emptied at boot"),
    ("/home", "may be missing at boot, and belongs to users"),
    ("/root", "may be missing at boot"),
    ("/media", "may be missing at boot"),
];
/// What marks a directory that may be deleted at any time: everybody's sign, and cargo's.
const CACHE_TAGS: [&str; 2] = ["CACHEDIR.TAG", ".rustc_info.json"];
/// What a unit file takes without quoting.
const PLAIN: &str = "/._+-";
const OTHERS_MAY_WRITE: u32 = 0o002;

/// Refuses the path of a binary that may vanish, or be another program by the time it is started.
///
/// # Errors
/// Says why, and what to do.
pub fn lasting(binary: &Path) -> anyhow::Result<()> {
    let Some(why) = why_not(binary) else { return Ok(()) };
    let at = binary.display();
    anyhow::bail!(
        "failed to make a unit that starts {at}: {why}: copy it with `install -m 755 {at} /usr/local/bin/` and run \
         `/usr/local/bin/bridge-user systemd install`"
    )
}

fn why_not(binary: &Path) -> Option<String> {
    let text = binary.to_string_lossy();
    if !text.chars().all(|c| c.is_ascii_alphanumeric() || PLAIN.contains(c)) {
        return Some("its path has characters that a unit file gives a meaning to".to_owned());
    }
    if let Some((directory, why)) = PASSING.iter().find(|(directory, _)| binary.starts_with(directory)) {
        return Some(format!("{directory} {why}"));
    }
    if let Some(cache) = cache_of(binary) {
        return Some(format!("{} is a build directory, which may be deleted at any time", cache.display()));
    }
    binary.ancestors().find_map(|path| whose(path).err())
}

/// The build directory that the binary is in.
fn cache_of(binary: &Path) -> Option<&Path> {
    let is_cache = |directory: &&Path| CACHE_TAGS.iter().any(|tag| directory.join(tag).exists());
    binary.ancestors().skip(1).find(is_cache)
}

/// Root alone decides what is at `path`, or says who else does.
fn whose(path: &Path) -> Result<(), String> {
    let at = path.display();
    let missing =
        |error: io::Error| format!("{at} cannot be looked at ({error}); was it replaced while it runs?");
    let found = fs::symlink_metadata(path).map_err(missing)?;
    if found.uid() != 0 {
        return Err(format!("user {} owns {at}, and would become root by it", found.uid()));
    }
    if found.permissions().mode() & OTHERS_MAY_WRITE != 0 && !found.is_symlink() {
        return Err(format!("everybody may write to {at}, and would become root by it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_vanishes_or_is_not_roots_is_refused() {
        for (path, why) in [
            ("/tmp/bridge-user", "/tmp is emptied at boot"),
            ("/home/ann/bridge-user", "belongs to users"),
            ("/run/x/bridge-user", "/run is emptied"),
            ("/opt/a b/bridge-user", "characters"),
            ("/opt/100%/bridge-user", "characters"),
            ("/usr/bin/no-such-program", "cannot be looked at"),
        ] {
            let error = lasting(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("install -m 755"), "{error}");
        }
    }

    #[test]
    fn a_build_directory_is_known() {
        let directory = tempfile::tempdir().unwrap();
        let binary = directory.path().join("release/bridge-user");
        fs::create_dir(directory.path().join("release")).unwrap();
        assert_eq!(cache_of(&binary), None);
        fs::write(directory.path().join(CACHE_TAGS[0]), "Signature: 8a477f597d28d172789f06886806bc55")
            .unwrap();
        assert_eq!(cache_of(&binary), Some(directory.path()));
    }

    #[test]
    fn a_system_program_is_fine() {
        lasting(&fs::canonicalize("/usr/bin/env").unwrap()).unwrap();
    }
}
