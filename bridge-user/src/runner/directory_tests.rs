use std::{fs, os::unix::fs::PermissionsExt as _, os::unix::fs::symlink};

use super::*;

const NAMESPACE: u64 = 4_026_531_840;

fn made() -> (tempfile::TempDir, Directory) {
    let run = tempfile::tempdir().unwrap();
    assert!(Directory::open_below(run.path()).unwrap().is_none(), "nothing was made yet");
    let directory = Directory::make_below(run.path()).unwrap();
    (run, directory)
}

fn refusal(run: &Path) -> String {
    match Directory::open_below(run) {
        Ok(found) => panic!("opened: {}", found.is_some()),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn a_socket_is_found_by_its_namespace_and_goes_with_its_entry() {
    let (_run, directory) = made();
    let (_listener, entry) = directory.bind(NAMESPACE).unwrap();
    let (_other, _other_entry) = directory.bind(NAMESPACE + 1).unwrap();
    let path = directory.path.join(format!("{NAMESPACE}-{}", std::process::id()));
    assert_eq!(directory.sockets_of(NAMESPACE).unwrap(), [path]);
    drop(entry);
    assert!(directory.sockets_of(NAMESPACE).unwrap().is_empty());
}

#[test]
fn a_live_socket_stays_and_a_dead_one_goes() {
    let (_run, directory) = made();
    let (listener, entry) = directory.bind(NAMESPACE).unwrap();
    let (_second, _second_entry) = directory.bind(NAMESPACE).unwrap();
    assert_eq!(directory.sockets_of(NAMESPACE).unwrap().len(), 2, "a second one has another name");
    // What a killed process leaves: the file, without the socket.
    drop(listener);
    std::mem::forget(entry);
    assert_eq!(directory.sockets_of(NAMESPACE).unwrap().len(), 2);
    directory.sweep();
    let path = directory.path.join(format!("{NAMESPACE}-{}.1", std::process::id()));
    assert_eq!(directory.sockets_of(NAMESPACE).unwrap(), [path]);
}

/// A socket that is bound and does not listen yet refuses connections like a dead one.
#[test]
fn nothing_is_removed_while_another_has_the_lock() {
    let (_run, directory) = made();
    let lock = directory.lock().unwrap();
    assert!(lock.is_some() && directory.lock().unwrap().is_none());
    let path = directory.path.join(format!("{NAMESPACE}-7"));
    drop(UnixListener::bind(&path).unwrap());
    directory.sweep();
    assert!(path.exists());
    drop(lock);
    directory.sweep();
    assert!(!path.exists());
}

#[test]
fn what_no_relay_made_is_left_alone() {
    let (_run, directory) = made();
    for name in ["notes", "4026531840-", "-7", "x-7", "4026531840-seven"] {
        drop(UnixListener::bind(directory.path.join(name)).unwrap());
    }
    fs::write(directory.path.join("4026531840-8"), "a file").unwrap();
    directory.sweep();
    assert_eq!(fs::read_dir(&directory.path).unwrap().count(), 6);
    assert!(directory.sockets_of(NAMESPACE).unwrap().is_empty());
}

#[test]
fn a_directory_that_others_may_search_or_that_is_a_link_is_not_believed() {
    let (run, directory) = made();
    fs::set_permissions(&directory.path, fs::Permissions::from_mode(0o755)).unwrap();
    let text = refusal(run.path());
    assert!(text.contains("mode 0755") && text.contains("correct owner and mode"), "{text}");
    fs::remove_dir(&directory.path).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(elsewhere.path(), &directory.path).unwrap();
    let text = refusal(run.path());
    assert!(text.contains(&directory.path.display().to_string()), "{text}");
}

#[test]
fn a_directory_that_others_may_write_to_is_not_believed() {
    let (run, _directory) = made();
    fs::set_permissions(run.path().join(OWN), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(refusal(run.path()).contains("mode 0777"));
}
