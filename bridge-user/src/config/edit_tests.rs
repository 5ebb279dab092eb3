//! What is written for an attach and a detach, and what stays as it was.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use proptest::prelude::*;

use super::{
    Held,
    edit::{Edit, EditError},
    forget, forget_all, parse, save,
};
use crate::{
    model::{event_level::EventLevel, identity::Identity, spec::ServiceSpec},
    plan::request::Request,
    relay::ProxyProtocol,
};

const EXAMPLE: &str = include_str!("../../../packaging/config.toml");
const FILE: &str = "\
# Ours.

[[attach]]
service = \"redis\" # the cache
networks = [ \"app\", # the app
  \"web-1\" ]
allow = [\"worker\"]

# Models.
[[attach]]
service = \"ollama\"
networks = \"all\"

[relay]
keepalive = 30
# The end.
";

fn path() -> &'static Path {
    Path::new("c.toml")
}

/// What `attach` asks for with these SPECs and networks.
fn request(specs: &[&str], networks: &[&str]) -> Request {
    let config = parse(path(), "[[attach]]\nservice = \"1\"").unwrap();
    let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let specs = specs.iter().map(|spec| spec.parse().unwrap()).collect();
    Request { specs, networks: strings(networks), ..config.attach[0].request.clone() }
}

fn saved(text: &str, request: &Request) -> Result<Edit, EditError> {
    let edit = save(path(), text, request, &request.specs)?;
    let again = save(path(), &edit.text, request, &request.specs)?;
    assert_eq!(again, Edit { text: edit.text.clone(), steps: Vec::new() }, "once is enough");
    Ok(edit)
}

fn forgotten(text: &str, names: &[&str]) -> Result<Edit, EditError> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    forget(path(), text, &names).map(|forgotten| forgotten.edit)
}

#[test]
fn a_first_section_stands_behind_everything_else() {
    let edit = saved("", &request(&["redis"], &[])).unwrap();
    assert_eq!(edit.text, "[[attach]]\nservice = \"redis\"\n");
    assert_eq!(edit.steps, ["write c.toml: add a section for redis on network bridge"]);
    let edit = saved(EXAMPLE, &request(&["redis"], &["app"])).unwrap();
    assert_eq!(edit.text, format!("{EXAMPLE}\n[[attach]]\nservice = \"redis\"\nnetworks = [\"app\"]\n"));
    let edit = saved("# x\n[relay]\nkeepalive = 1", &request(&["redis"], &[])).unwrap();
    assert_eq!(edit.text, "# x\n[relay]\nkeepalive = 1\n\n[[attach]]\nservice = \"redis\"\n");
}

#[test]
fn another_section_stands_behind_the_last_one() {
    let edit = saved(FILE, &request(&["web=8080:3000", "5432"], &["app"])).unwrap();
    let new = "\n[[attach]]\nservice = \"web=8080:127.0.0.1:3000\"\nnetworks = [\"app\"]\n\
               \n[[attach]]\nservice = \"5432\"\nnetworks = [\"app\"]\n";
    assert_eq!(edit.text, FILE.replace("\n[relay]", &format!("{new}\n[relay]")));
    assert_eq!(edit.steps.len(), 2);
}

#[test]
fn every_setting_is_written_that_is_not_its_default() {
    let mut all = request(&["redis"], &["all"]);
    all.bridges = vec!["br0".into()];
    all.gateways = vec!["192.0.2.1".parse().unwrap()];
    all.allow = vec!["10.0.0.0/8".parse().unwrap()];
    all.identity = Identity::Loopback;
    all.force = true;
    all.relay.proxy_protocol = Some(ProxyProtocol::V2);
    all.relay.limits.idle_timeout = Some(std::time::Duration::from_millis(1500));
    all.relay.limits.keepalive = None;
    all.event_level = Some(EventLevel::Debug);
    let edit = saved("", &all).unwrap();
    let expected = "[[attach]]\nservice = \"redis\"\nnetworks = \"all\"\nbridges = [\"br0\"]\n\
                    gateways = [\"192.0.2.1\"]\nallow = [\"10.0.0.0/8\"]\nidentity = \"loopback\"\nforce = true\n\
                    relay = { proxy-protocol = \"v2\", idle-timeout = 1.5, keepalive = 0 }\n\
                    \n[events]\nlevel = \"debug\"\n";
    assert_eq!(edit.text, expected);
    assert_eq!(parse(path(), &edit.text).unwrap().attach[0].request, all);
}

#[test]
fn the_same_places_with_other_settings_change_the_section() {
    let mut other = request(&["redis"], &["app", "web-1"]);
    other.identity = Identity::Loopback;
    let edit = saved(FILE, &other).unwrap();
    let expected = FILE.replace("allow = [\"worker\"]\n", "identity = \"loopback\"\n");
    assert_eq!(edit.text, expected);
    assert_eq!(edit.steps, ["write c.toml: change the section for redis in line 3"]);
    let mut allowed = request(&["redis"], &["app", "web-1"]);
    allowed.allow = vec!["10.0.0.1".parse().unwrap()];
    let edit = saved(&FILE.replace("[\"worker\"]", "[\"worker\"] # only"), &allowed).unwrap();
    assert_eq!(edit.text, FILE.replace("[\"worker\"]", "[\"10.0.0.1/32\"] # only"));
}

#[test]
fn one_place_of_several_with_other_settings_gets_a_section_of_its_own() {
    let edit = saved(FILE, &request(&["redis"], &["app"])).unwrap();
    let narrowed = FILE.replace("[ \"app\", # the app\n  \"web-1\" ]", "[ \"web-1\" ]");
    let expected =
        narrowed.replace("\n[relay]", "\n[[attach]]\nservice = \"redis\"\nnetworks = [\"app\"]\n\n[relay]");
    assert_eq!(edit.text, expected);
    assert_eq!(edit.steps[0], "write c.toml: take network app out of the section in line 3");
    assert_eq!(edit.steps[1], "write c.toml: add a section for redis on network app");
}

#[test]
fn what_a_wider_request_covers_is_replaced() {
    let twice = "[[attach]]\nservice = \"redis\"\nnetworks = [\"a\"]\n\n# b\n[[attach]]\nservice = \"redis\"\n\
                 networks = [\"b\"]\nrelay.keepalive = 1\n\n[events]\nlevel = \"off\"\n";
    let edit = saved(twice, &request(&["redis"], &["all"])).unwrap();
    assert_eq!(
        edit.text,
        "[[attach]]\nservice = \"redis\"\nnetworks = \"all\"\n\n[events]\nlevel = \"off\"\n"
    );
    assert_eq!(edit.steps.len(), 2, "{:?}", edit.steps);
}

#[test]
fn what_is_asked_for_already_is_not_written() {
    let text = "[[attach]]\nservice = \"redis\"\nnetworks = [\"web-*\"]\n[relay]\nkeepalive = 30\n";
    for networks in [&["web-1"][..], &["web-*"], &["web-1", "web-2"]] {
        let edit = saved(text, &request(&["redis"], networks)).unwrap();
        assert_eq!((edit.text.as_str(), edit.steps.len()), (text, 0));
    }
}

#[test]
fn what_only_a_person_can_change_is_refused_with_the_line() {
    let refused = |text: &str, request: &Request| saved(text, request).unwrap_err().to_string();
    let mut other = request(&["ollama"], &["app"]);
    other.identity = Identity::Loopback;
    let error = refused(FILE, &other);
    assert!(error.contains("line 10 of c.toml asks for ollama on network all"), "{error}");
    let error = refused(FILE, &request(&["cache=6379:7000"], &["app"]));
    assert!(
        error.contains("line 3 of c.toml has port 6379 of network app for redis: take that out"),
        "{error}"
    );
    let error = refused("[[attach]]\nx = 1\n", &request(&["redis"], &[]));
    assert!(error.contains("c.toml:2: unknown key `x`"), "{error}");
    let error = refused("", &request(&["redis"], &[""]));
    assert!(error.starts_with("failed to save redis: ") && error.contains("has an empty text"), "{error}");
}

#[test]
fn what_a_name_means_is_taken_out() {
    let with_two =
        FILE.replace("\n# Models", "\n[[attach]]\nservice = \"8080\"\ncontainer = \"dev\"\n\n# Models");
    for names in [&["8080"][..], &["dev"], &["tcp"]] {
        assert_eq!(forgotten(&with_two, names).unwrap().text, FILE, "{names:?}");
    }
    let without_models =
        FILE.replace("\n# Models.\n[[attach]]\nservice = \"ollama\"\nnetworks = \"all\"\n", "");
    assert_eq!(forgotten(FILE, &["ollama"]).unwrap().text, without_models);
    let narrowed = FILE.replace("[ \"app\", # the app\n  \"web-1\" ]", "[ \"web-1\" ]");
    assert_eq!(forgotten(FILE, &["app-redis-6379"]).unwrap().text, narrowed);
    let edit = forgotten(FILE, &["app-redis-6379", "web-1-redis-6379"]).unwrap();
    assert_eq!(edit.steps, ["write c.toml: remove the section in line 3"]);
    assert_eq!(edit.text, forgotten(FILE, &["6379"]).unwrap().text);
    let edit = forgotten(FILE, &["postgres", "web-2-redis-6379"]).unwrap();
    assert_eq!((edit.text.as_str(), edit.steps.len()), (FILE, 0));
    for name in ["bridge-redis-6379", "podman-redis-6379"] {
        assert_eq!(forgotten("[[attach]]\nservice = \"redis\"\n", &[name]).unwrap().text, "");
    }
    assert_eq!(forget_all(path(), FILE).unwrap().text, "# Ours.\n\n[relay]\nkeepalive = 30\n# The end.\n");
}

#[test]
fn a_glob_cannot_lose_one_network() {
    let error = forgotten(FILE, &["app-ollama-11434"]).err().unwrap().to_string();
    assert!(error.contains("line 10 attaches it by network all, which cannot lose one network"), "{error}");
    let two = "[[attach]]\nservice = \"80\"\n[[attach]]\nservice = \"81\"\n";
    let error = forgotten(two, &["tcp"]).err().unwrap().to_string();
    assert!(error.contains("lines 1, 3 have one: name the port"), "{error}");
}

#[test]
fn sections_inside_of_a_section_go_with_it() {
    let text = "[[attach]]\nservice = \"redis\"\n[attach.relay]\nkeepalive = 1 # s\n\n[[attach]]\nservice = \"80\"\n";
    assert_eq!(forgotten(text, &["redis"]).unwrap().text, "\n[[attach]]\nservice = \"80\"\n");
}

#[test]
fn the_file_is_replaced_as_a_whole_and_keeps_mode_and_links() {
    let directory = tempfile::tempdir().unwrap();
    let (real, link) = (directory.path().join("real/c.toml"), directory.path().join("link.toml"));
    let held = Held::open(&real).unwrap();
    assert_eq!(held.text(), "");
    drop(held);
    assert_eq!(fs::read_dir(real.parent().unwrap()).unwrap().count(), 0, "nothing is left of it");
    write(&real, "# one\n").unwrap();
    assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o7777, 0o644);
    assert_eq!(fs::metadata(real.parent().unwrap()).unwrap().permissions().mode() & 0o7777, 0o755);
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("real/c.toml", &link).unwrap();
    write(&link, "# two\n").unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&real).unwrap(), "# two\n");
    assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o7777, 0o640);
    assert_eq!(fs::read_dir(real.parent().unwrap()).unwrap().count(), 1);
    fs::write(real.with_file_name(".c.toml.new"), "left by a killed process, and longer").unwrap();
    write(&real, "# three\n").unwrap();
    assert_eq!(fs::read_to_string(&real).unwrap(), "# three\n");
    std::os::unix::fs::symlink("nowhere", directory.path().join("dangling")).unwrap();
    let error = Held::open(&directory.path().join("dangling")).err().unwrap();
    assert!(format!("{error:#}").contains("leads to"), "{error:#}");
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut held = Held::open(path)?;
    held.write(text)?;
    held.replace()
}

#[test]
fn a_change_by_an_editor_is_not_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.toml");
    fs::write(&path, "# one\n").unwrap();
    let mut held = Held::open(&path).unwrap();
    held.write("# ours\n").unwrap();
    fs::write(&path, "# theirs, meanwhile\n").unwrap();
    let error = format!("{:#}", held.replace().unwrap_err());
    assert!(error.contains("somebody else changed it meanwhile: try again"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "# theirs, meanwhile\n");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn of_many_who_change_the_file_each_starts_from_the_one_before() {
    const WRITERS: usize = 16;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.toml");
    let add = |number: usize| {
        let mut held = Held::open(&path).unwrap();
        let text = format!("{}# {number}\n", held.text());
        held.write(&text).unwrap();
        held.replace().unwrap();
    };
    std::thread::scope(|scope| (0..WRITERS).for_each(|number| drop(scope.spawn(move || add(number)))));
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), WRITERS);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

fn services() -> impl Strategy<Value = Vec<(ServiceSpec, String)>> {
    let one = ("[a-c]", 1u16..6, "[a-d]")
        .prop_map(|(name, port, network)| (format!("{name}{port}={port}").parse().expect("a SPEC"), network));
    proptest::collection::vec(one, 0..12)
}

proptest! {
    /// Whatever is saved, in whatever order: the file is right, has what was saved last, and after taking it all out
    /// again nothing but its remarks is left.
    #[test]
    fn what_is_saved_is_there_and_what_is_taken_out_is_not(all in services()) {
        let mut text = "# Ours.\n\n[relay]\nkeepalive = 3\n".to_owned();
        let mut refused = Vec::new();
        for (spec, network) in &all {
            let wanted = request(&[&spec.to_string()], &[network]);
            match save(path(), &text, &wanted, &wanted.specs) {
                Ok(edit) => text = edit.text,
                Err(_) => refused.push(spec.clone()),
            }
        }
        let config = parse(path(), &text).expect("a right file");
        for (spec, _) in all.iter().filter(|(spec, _)| !refused.contains(spec)) {
            prop_assert!(config.attach.iter().any(|entry| entry.request.specs[0] == *spec), "{}\n{}", spec, text);
        }
        let names: Vec<String> = all.iter().map(|(spec, _)| spec.service.clone()).collect();
        let left = forget(path(), &text, &names).unwrap().edit.text;
        prop_assert_eq!(left.trim_end(), "# Ours.\n\n[relay]\nkeepalive = 3");
    }
}
