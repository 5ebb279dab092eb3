//! What /proc/PID/mountinfo says of mounts. Pure.
//!
//! Invariant: paths are bytes; a mount point may have any name, and the kernel writes space, tab, newline and backslash
//! as `\040`, `\011`, `\012` and `\134`.

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _, path::PathBuf};

/// Mount points of a file system that show all of it, in the order they were mounted.
pub(super) fn whole(mountinfo: &[u8], kind: &str) -> Vec<PathBuf> {
    let lines = mountinfo.split(|byte| *byte == b'\n');
    lines.filter_map(|line| mount_point(line, kind)).collect()
}

/// `36 35 98:0 / /mnt rw,noatime shared:1 - ext3 /dev/root rw`: the fourth field is the part that is mounted.
fn mount_point(line: &[u8], kind: &str) -> Option<PathBuf> {
    let mut fields = line.split(|byte| *byte == b' ').skip(3);
    let (root, at) = (fields.next()?, fields.next()?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let is_it = root == b"/" && rest.next()? == kind.as_bytes();
    is_it.then(|| PathBuf::from(OsString::from_vec(unescaped(at))))
}

fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [byte, after @ ..] = rest {
        let code = after.get(..3).filter(|_| *byte == b'\\').and_then(octal);
        text.push(code.unwrap_or(*byte));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    text
}

fn octal(digits: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(digits).ok()?;
    u8::from_str_radix(text, 8).ok()
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn finds_cgroup2_in_hybrid_and_unified_hosts() {
        let hybrid = b"31 23 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                       32 31 0:28 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n\
                       41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(whole(hybrid, "cgroup2"), [Path::new("/sys/fs/cgroup/unified")]);
        let unified = b"31 23 0:27 / /sys/fs/cgroup rw shared:4 master:2 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(whole(unified, "cgroup2"), [Path::new("/sys/fs/cgroup")]);
        assert!(whole(b"32 31 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", "cgroup2").is_empty());
    }

    #[test]
    fn a_part_of_a_file_system_is_not_taken_for_all_of_it() {
        let mounts = b"30 23 0:27 /system.slice /jail rw - cgroup2 cgroup2 rw\n\
                       31 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(whole(mounts, "cgroup2"), [Path::new("/sys/fs/cgroup")]);
    }

    #[test]
    fn odd_names_are_read_as_they_are() {
        let mounts = b"31 23 0:27 / /mnt/a\\040b\\011\\012\\134\xff rw - cgroup2 cgroup2 rw\n";
        let path = Path::new(OsStr::from_bytes(b"/mnt/a b\t\n\\\xff"));
        assert_eq!(whole(mounts, "cgroup2"), [path]);
        assert_eq!(unescaped(b"\\9\\04"), b"\\9\\04", "what is no escape stays");
    }

    proptest! {
        #[test]
        fn no_text_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            whole(&bytes, "cgroup2");
        }
    }
}
