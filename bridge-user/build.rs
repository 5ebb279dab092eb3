//! Embeds the eBPF objects that `cargo xtask build` made: the steering object with its hash, and the relay's, which
//! lies beside it; and what built them and the rest.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest as _, Sha256};

fn main() {
    println!("cargo::rerun-if-env-changed=BRIDGE_EBPF_OBJECT");
    let object = env::var_os("BRIDGE_EBPF_OBJECT").map_or_else(default_object, PathBuf::from);
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let steering = read(&object);
    fs::write(out.join("bridge-ebpf"), &steering).expect("OUT_DIR is writable");
    let hash = Sha256::digest(&steering);
    fs::write(out.join("build-id"), &hash[..16]).expect("OUT_DIR is writable");
    let relay = read(&object.with_file_name("bridge-ebpf-relay"));
    fs::write(out.join("bridge-ebpf-relay"), relay).expect("OUT_DIR is writable");
    versions(&object.with_file_name("toolchain.txt"));
}

/// What `bridge-user --version --verbose` says of how it was built.
fn versions(ebpf_toolchain: &Path) {
    println!("cargo::rerun-if-changed={}", ebpf_toolchain.display());
    // An object that was built by hand comes without.
    let ebpf = fs::read_to_string(ebpf_toolchain).unwrap_or_else(|_| "unknown".to_owned());
    let rustc = env::var_os("RUSTC").expect("cargo sets RUSTC");
    let said = Command::new(rustc).arg("--version").output().expect("rustc runs").stdout;
    println!("cargo::rustc-env=BRIDGE_BUILT_WITH={}", String::from_utf8_lossy(&said).trim());
    println!("cargo::rustc-env=BRIDGE_EBPF_BUILT_WITH={}", ebpf.trim());
}

fn read(object: &Path) -> Vec<u8> {
    println!("cargo::rerun-if-changed={}", object.display());
    fs::read(object).unwrap_or_else(|error| {
        panic!("failed to read the eBPF object {}: {error}: run `cargo xtask build` first", object.display())
    })
}

fn default_object() -> PathBuf {
    let crate_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let workspace = crate_dir.parent().map_or(crate_dir.clone(), Path::to_path_buf);
    workspace.join("target/bpf/bpfel-unknown-none/release/bridge-ebpf")
}
