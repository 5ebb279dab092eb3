use std::{
    os::unix::{
        fs::{chown, symlink},
        net::UnixListener,
    },
    path::PathBuf,
};

use super::*;

const SERVICE: u32 = 4242;
const OTHER: u32 = 4243;

/// A directory whose path has no link in it.
fn directory() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = fs::canonicalize(directory.path()).unwrap();
    (directory, path)
}

/// A socket of a user (needs root).
fn socket(path: &Path, owner: u32) -> UnixListener {
    // A service that starts again removes what it left.
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path).unwrap();
    chown(path, Some(owner), Some(owner)).unwrap();
    listener
}

fn refusal(target: &UnixTarget) -> UnixError {
    match target.open() {
        Ok(found) => panic!("user {}'s may be connected to", found.owner),
        Err(error) => error,
    }
}

#[test]
fn a_new_socket_of_the_same_user_is_the_service_again() {
    let (_directory, path) = directory();
    let path = path.join("s");
    let _first = socket(&path, SERVICE);
    let target = UnixTarget::find(&path);
    let _second = socket(&path, SERVICE);
    assert_eq!(target.open().unwrap().owner, SERVICE);
    let _third = socket(&path, OTHER);
    let error = refusal(&target);
    assert_eq!(error, UnixError::Owner { found: OTHER, wanted: Wanted::Owner(SERVICE) });
    assert!(
        error.is_foreign() && error.to_string().contains("user 4243's now, expected user 4242's"),
        "{error}"
    );
}

#[test]
fn links_are_followed_at_the_start_and_never_again() {
    let (_directory, path) = directory();
    let (real, link, other) = (path.join("real"), path.join("link"), path.join("other"));
    fs::create_dir(&real).unwrap();
    symlink(&real, &link).unwrap();
    let _service = socket(&real.join("s"), SERVICE);
    let target = UnixTarget::find(&link.join("s"));
    assert_eq!(target.path(), link.join("s"));
    assert!(target.open().is_ok());
    // In the place of the socket, and of its directory.
    let _elsewhere = socket(&path.join("elsewhere"), SERVICE);
    fs::remove_file(real.join("s")).unwrap();
    symlink(path.join("elsewhere"), real.join("s")).unwrap();
    assert_eq!(refusal(&target), UnixError::Link);
    fs::create_dir(&other).unwrap();
    let _another = socket(&other.join("s"), SERVICE);
    fs::remove_dir_all(&real).unwrap();
    symlink(&other, &real).unwrap();
    assert_eq!(refusal(&target), UnixError::Link);
}

#[test]
fn the_first_socket_is_roots_or_that_of_who_has_the_directory() {
    let (_directory, path) = directory();
    let (inside, path) = (path.join("run"), path.join("run/s"));
    let target = UnixTarget::find(&path);
    assert_eq!(refusal(&target), UnixError::Failed(Errno::NOENT));
    fs::create_dir(&inside).unwrap();
    chown(&inside, Some(SERVICE), Some(SERVICE)).unwrap();
    for owner in [SERVICE, 0] {
        let _service = socket(&path, owner);
        assert_eq!(target.open().unwrap().owner, owner);
    }
    let _stranger = socket(&path, OTHER);
    assert_eq!(refusal(&target), UnixError::Owner { found: OTHER, wanted: Wanted::RootOr(SERVICE) });
}

/// Root listens in the tests, which is what socket activation does.
#[test]
fn a_file_is_no_socket_and_who_listens_is_asked() {
    let (_directory, path) = directory();
    let path = path.join("s");
    let _service = socket(&path, SERVICE);
    let target = UnixTarget::find(&path);
    let found = target.open().unwrap();
    let stream = std::os::unix::net::UnixStream::connect(found.address()).unwrap();
    assert_eq!(found.require_listener(&stream), Ok(()));
    fs::remove_file(&path).unwrap();
    fs::write(&path, "").unwrap();
    assert_eq!(refusal(&target), UnixError::Failed(Errno::NOTSOCK));
    // The one that was opened is still the one that was looked at.
    assert!(std::os::unix::net::UnixStream::connect(found.address()).is_ok());
}
