use std::path::{Path, PathBuf};

use super::*;
use crate::systemd::{Places, UnitState};

const BINARY: &str = "/usr/local/bin/bridge-user";

fn nothing_there() -> Facts {
    Facts {
        places: Places::with_config("/etc/bridge-user/config.toml"),
        binary: PathBuf::from(BINARY),
        unit: Found::Missing,
        packaged: false,
        config: None,
        has_config_directory: false,
        has_additions: false,
        state: UnitState::default(),
        runs_another: false,
    }
}

fn installed() -> Facts {
    Facts {
        unit: Found::Ours(unit_for(Path::new(BINARY))),
        config: Some(EXAMPLE_CONFIG.to_owned()),
        has_config_directory: true,
        state: UnitState { active: true, enabled: true, ..UnitState::default() },
        ..nothing_there()
    }
}

fn said(steps: &[Step]) -> Vec<String> {
    steps.iter().map(ToString::to_string).collect()
}

#[test]
fn a_first_install_writes_enables_and_starts() {
    let plan = install(&nothing_there()).unwrap();
    let expected = [
        "write /etc/systemd/system/bridge-user.service",
        "make directory /etc/bridge-user",
        "write /etc/bridge-user/config.toml",
        "reload the units (systemctl daemon-reload)",
        "start bridge-user.service at every boot (systemctl enable)",
        "start bridge-user.service now (systemctl start)",
    ];
    assert_eq!(said(&plan.steps), expected);
}

#[test]
fn a_second_install_does_nothing() {
    assert_eq!(install(&installed()).unwrap(), Plan::default());
}

#[test]
fn another_binary_replaces_the_unit_and_a_new_one_restarts_it() {
    let moved = Facts { unit: Found::Ours(unit_for(Path::new("/opt/bridge-user"))), ..installed() };
    let steps = said(&install(&moved).unwrap().steps);
    assert!(steps[0].starts_with("replace ") && steps[2].starts_with("restart "), "{steps:?}");
    let upgraded = Facts { runs_another: true, ..installed() };
    assert_eq!(install(&upgraded).unwrap().steps, [Step::Restart]);
}

#[test]
fn a_packages_unit_is_only_enabled() {
    let packaged = Facts { packaged: true, config: Some("# theirs\n".to_owned()), ..nothing_there() };
    assert_eq!(install(&packaged).unwrap().steps, [Step::Enable, Step::Start]);
}

#[test]
fn what_is_somebody_elses_is_refused_with_the_way() {
    let foreign = Facts { unit: Found::Foreign, ..nothing_there() };
    assert!(install(&foreign).unwrap_err().to_string().contains("systemctl edit"));
    let state = UnitState { masked: true, ..UnitState::default() };
    let masked = Facts { state, unit: Found::Foreign, ..nothing_there() };
    assert!(install(&masked).unwrap_err().to_string().contains("unmask"));
}

#[test]
fn uninstall_removes_what_install_wrote_and_keeps_what_was_changed() {
    let plan = uninstall(&installed());
    let expected = [
        "stop bridge-user.service (systemctl stop)",
        "start bridge-user.service at boot no more (systemctl disable)",
        "remove /etc/systemd/system/bridge-user.service",
        "reload the units (systemctl daemon-reload)",
        "remove /etc/bridge-user/config.toml",
        "remove directory /etc/bridge-user if it is empty",
    ];
    assert_eq!(said(&plan.steps), expected);
    assert!(plan.notes.is_empty());
    let changed = Facts { config: Some("[[attach]]\n".to_owned()), has_additions: true, ..installed() };
    let plan = uninstall(&changed);
    assert_eq!(plan.steps.len(), 4);
    assert!(plan.notes.iter().any(|note| note.contains("config.toml stays")), "{:?}", plan.notes);
    assert_eq!(uninstall(&nothing_there()), Plan::default());
}

#[test]
fn undoing_leaves_everything_as_it_was() {
    let facts = nothing_there();
    let plan = install(&facts).unwrap();
    let expected = [
        "start bridge-user.service at boot no more (systemctl disable)",
        "remove /etc/bridge-user/config.toml",
        "remove directory /etc/bridge-user if it is empty",
        "remove /etc/systemd/system/bridge-user.service",
        "reload the units (systemctl daemon-reload)",
    ];
    assert_eq!(said(&plan.undo(5, &facts)), expected, "the start failed");
    assert_eq!(plan.undo(0, &facts), []);
    let old = unit_for(Path::new("/opt/bridge-user"));
    let facts = Facts { unit: Found::Ours(old.clone()), ..installed() };
    let plan = install(&facts).unwrap();
    let undo = plan.undo(plan.steps.len(), &facts);
    assert!(matches!(&undo[0], Step::Write { text, .. } if *text == old), "{undo:?}");
    assert_eq!(undo[1..], [Step::Reload, Step::Restart]);
}
