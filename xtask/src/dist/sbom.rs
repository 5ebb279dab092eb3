//! What is inside the binary, as CycloneDX 1.5 JSON: every crate that was compiled into it, the eBPF programs'
//! included, by what cargo says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Release, TARGET};
use crate::{exec, workspace::Workspace};

/// The crates that are built into the product.
const ROOTS: [&str; 2] = ["bridge-user", "bridge-ebpf"];

/// Writes the list and returns its path.
pub(super) fn write(ws: &Workspace, release: &Release, out: &Path) -> Result<PathBuf> {
    let mut cargo = ws.cargo("metadata");
    cargo.args(["--format-version=1", "--locked", "--filter-platform", TARGET]);
    let printed = exec::capture(&mut cargo, "list the dependencies")?;
    let metadata: Value = serde_json::from_str(&printed).context("failed to read cargo's metadata")?;
    let lock = fs::read_to_string(ws.path("Cargo.lock")).context("failed to read Cargo.lock")?;
    let lock: toml::Table = lock.parse().context("failed to read Cargo.lock")?;
    let document = document(&metadata, &lock, release);
    let path = out.join(format!("bridge-user-{}.cdx.json", release.version));
    let text = serde_json::to_string_pretty(&document).context("failed to write JSON")?;
    fs::write(&path, text + "\n").with_context(|| format!("failed to write {}", path.display()))?;
    Ok(path)
}

fn document(metadata: &Value, lock: &toml::Table, release: &Release) -> Value {
    let nodes = graph(metadata);
    let packages: BTreeMap<&str, &Value> =
        list(&metadata["packages"]).filter_map(|package| Some((package["id"].as_str()?, package))).collect();
    let is_root =
        |id: &&str| packages.get(*id).is_some_and(|package| ROOTS.contains(&text(&package["name"])));
    let used = reached(&nodes, packages.keys().copied().filter(is_root));
    let sums = checksums(lock);
    let mut components: Vec<Value> = used
        .iter()
        .filter_map(|id| packages.get(id))
        .filter(|package| text(&package["name"]) != ROOTS[0])
        .map(|package| component(package, &sums))
        .collect();
    components.sort_by_key(|component| text(&component["purl"]).to_owned());
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": { "type": "application", "name": ROOTS[0], "version": release.version,
                           "purl": format!("pkg:cargo/{}@{}", ROOTS[0], release.version) },
        },
        "components": components,
    })
}

fn component(package: &Value, sums: &BTreeMap<(String, String), String>) -> Value {
    let (name, version) = (text(&package["name"]), text(&package["version"]));
    let purl = format!("pkg:cargo/{name}@{version}");
    let mut component =
        json!({ "type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl });
    if let Some(license) = package["license"].as_str() {
        component["licenses"] = json!([{ "expression": license.replace('/', " OR ") }]);
    }
    if let Some(sum) = sums.get(&(name.to_owned(), version.to_owned())) {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": sum }]);
    }
    component
}

/// Who uses whom in the binary: neither for tests nor for building.
fn graph<'a>(metadata: &'a Value) -> BTreeMap<&'a str, Vec<&'a str>> {
    let is_inside = |dep: &&Value| list(&dep["dep_kinds"]).any(|kind| kind["kind"].is_null());
    let used = |node: &'a Value| list(&node["deps"]).filter(is_inside).map(|dep| text(&dep["pkg"])).collect();
    list(&metadata["resolve"]["nodes"]).map(|node| (text(&node["id"]), used(node))).collect()
}

fn reached<'a>(
    nodes: &BTreeMap<&'a str, Vec<&'a str>>,
    roots: impl Iterator<Item = &'a str>,
) -> BTreeSet<&'a str> {
    let mut open: Vec<&str> = roots.collect();
    let mut found = BTreeSet::new();
    while let Some(id) = open.pop() {
        if found.insert(id) {
            open.extend(nodes.get(id).into_iter().flatten());
        }
    }
    found
}

/// The hashes that Cargo.lock has of the crates' archives.
fn checksums(lock: &toml::Table) -> BTreeMap<(String, String), String> {
    let packages = lock.get("package").and_then(toml::Value::as_array);
    let field = |package: &toml::Value, name: &str| package.get(name)?.as_str().map(str::to_owned);
    let entry =
        |package| Some(((field(package, "name")?, field(package, "version")?), field(package, "checksum")?));
    packages.into_iter().flatten().filter_map(entry).collect()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_only_for_tests_or_building_is_not_listed() {
        let dep = |id: &str, kind: Value| json!({ "pkg": id, "dep_kinds": [{ "kind": kind }] });
        let package =
            |name: &str| json!({ "id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0" });
        let metadata = json!({
            "packages": [package("bridge-user"), package("aya"), package("libc"), package("proptest"), package("sha2")],
            "resolve": { "nodes": [
                { "id": "bridge-user", "deps": [dep("aya", Value::Null), dep("proptest", json!("dev")),
                                                dep("sha2", json!("build"))] },
                { "id": "aya", "deps": [dep("libc", Value::Null)] },
            ] },
        });
        let lock = "[[package]]\nname = \"aya\"\nversion = \"1.0.0\"\nchecksum = \"abc\"\n".parse().unwrap();
        let release = Release { version: "0.1.0".into(), epoch: 0, maintainer: String::new() };
        let document = document(&metadata, &lock, &release);
        let names: Vec<&str> = list(&document["components"]).map(|one| text(&one["name"])).collect();
        assert_eq!(names, ["aya", "libc"]);
        assert_eq!(document["components"][0]["hashes"][0]["content"], "abc");
        assert_eq!(document["components"][0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
    }
}
