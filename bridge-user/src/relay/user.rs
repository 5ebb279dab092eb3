//! Who the threads are that connect to a UNIX socket: the least user that may, without any capability.
//!
//! Invariants: user and capabilities are a thread's own in Linux, so each that may touch a client's bytes, or the path
//! of the socket, gives up its own; what is given up does not come back (no_new_privs, and nothing saved). Whom to be
//! is found by trying, in a thread that ends afterwards.

use std::{fmt, io, path::Path, thread};

use caps::{CapSet, Capability};
use rustix::{
    fs::{Access, access},
    process::{Gid, Uid, getegid, geteuid},
    thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

/// The kernel's own number for nobody, and that of nobody's group.
const NOBODY: u32 = 65534;

/// A user and a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub uid: u32,
    /// The only group.
    pub gid: u32,
}

impl User {
    /// Nobody.
    pub(super) const NOBODY: Self = Self { uid: NOBODY, gid: NOBODY };

    fn current() -> Self {
        Self { uid: geteuid().as_raw(), gid: getegid().as_raw() }
    }

    /// The first of `candidates` that may do `what` with `path`, or the last where none may; this process's own user
    /// where it cannot become another.
    pub(super) fn first_that_may(what: Access, path: &Path, candidates: &[Self]) -> Self {
        if !may_change() {
            return Self::current();
        }
        let may = |user: &&Self| {
            thread::scope(|scope| {
                let tried = scope.spawn(|| user.adopt().is_ok() && access(path, what).is_ok());
                tried.join().unwrap_or(false)
            })
        };
        candidates.iter().find(may).or(candidates.last()).copied().unwrap_or_else(Self::current)
    }

    /// Makes the calling thread, and those that it starts from now on, this user without capabilities.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn adopt(self) -> io::Result<()> {
        set_no_new_privs(true)?;
        if may_change() {
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            set_thread_groups(&[gid])?;
            set_thread_res_gid(gid, gid, gid)?;
            set_thread_res_uid(uid, uid, uid)?;
        }
        for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
            caps::clear(None, set).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = nix::unistd::User::from_uid(self.uid.into()).ok().flatten();
        let group = nix::unistd::Group::from_gid(self.gid.into()).ok().flatten();
        let named = |name: Option<String>, number| match name {
            Some(name) => format!("{name} ({number})"),
            None => format!("{number}"),
        };
        let (user, group) = (user.map(|user| user.name), group.map(|group| group.name));
        write!(f, "user {}, group {}", named(user, self.uid), named(group, self.gid))
    }
}

fn may_change() -> bool {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    has(Capability::CAP_SETUID) && has(Capability::CAP_SETGID)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn a_thread_that_became_nobody_has_nothing_left_and_the_others_have() {
        let before = User::current();
        let adopted = thread::spawn(|| {
            User::NOBODY.adopt().expect("nobody (needs root)");
            let left = caps::read(None, CapSet::Permitted).unwrap().len();
            (User::current(), left, thread::spawn(User::current).join().unwrap())
        });
        assert_eq!(adopted.join().unwrap(), (User::NOBODY, 0, User::NOBODY));
        assert_eq!(User::current(), before);
    }

    #[test]
    fn the_least_that_may_is_chosen() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = directory.path().join("s");
        fs::write(&path, "").unwrap();
        let candidates = [User::NOBODY, User { uid: NOBODY, gid: 7 }, User { uid: 0, gid: 0 }];
        let chosen = |mode, group| {
            std::os::unix::fs::chown(&path, None, Some(group)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            User::first_that_may(Access::WRITE_OK, &path, &candidates)
        };
        assert_eq!(chosen(0o666, 0), User::NOBODY);
        assert_eq!(chosen(0o660, 7), candidates[1]);
        assert_eq!(chosen(0o600, 7), candidates[2]);
    }
}
