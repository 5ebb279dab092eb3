//! Newer engines than Debian 12 has, for the host suite: out of Debian's packages, unpacked below `target/engines`.
//!
//! Invariants: nothing is installed; what an engine needs besides and Debian 12 has (containerd, runc, conmon,
//! iptables, nft, the `docker` command) is the machine's own. A suite that moves on drops its packages, so that an
//! engine out of one has another release to fall back on.

use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow};

use crate::{
    debian::{Bundle, Package},
    setup::{Need, packages},
    ui::{Detail, Step},
    workspace::Workspace,
};

/// An engine that the suite is run with besides the installed one.
struct Engine {
    name: &'static str,
    /// Its directory below `target/engines`.
    directory: &'static str,
    /// The variable that tells the suite where it is.
    variable: &'static str,
    /// In the order of preference.
    releases: &'static [Release],
}

/// The packages of one release.
struct Release {
    version: &'static str,
    suite: &'static str,
    /// Place in the archive and SHA-256.
    packages: &'static [(&'static str, &'static str)],
}

/// Both releases of Docker run with the C library of Debian 12. Podman's does not, and brings its own.
const ENGINES: [Engine; 2] = [
    Engine {
        name: "Docker",
        directory: "docker",
        variable: "BRIDGE_NEWER_DOCKER",
        releases: &[
            Release {
                version: "28.5.2",
                suite: "forky",
                packages: &[(
                    "pool/main/d/docker.io/docker.io_28.5.2+dfsg4-5_amd64.deb",
                    "69a59cc77a1fb8ee9ad6859abc2e6de5d76b70887405595c2b1307818fecf682",
                )],
            },
            Release {
                version: "26.1.5",
                suite: "trixie",
                packages: &[(
                    "pool/main/d/docker.io/docker.io_26.1.5+dfsg1-9+deb13u1+b1_amd64.deb",
                    "53ae1a99f15113f0a0d2226808ec0d24ee31b3b87b87ab8ec35be09a1a2ee13b",
                )],
            },
        ],
    },
    Engine {
        name: "Podman",
        directory: "podman",
        variable: "BRIDGE_NEWER_PODMAN",
        releases: &[Release {
            version: "5.4.2",
            suite: "trixie",
            packages: &[
                (
                    "pool/main/p/podman/podman_5.4.2+ds1-2+b2_amd64.deb",
                    "e3987a9d1e6d46cbd4ee11bd067927a5f7f886e41c7a2dbe5b89a436905d44a0",
                ),
                (
                    "pool/main/n/netavark/netavark_1.14.0-2_amd64.deb",
                    "34820688e7c671e746d88d109d4f7a34ffbb4a013b7dd2035d2762baf8e50a79",
                ),
                (
                    "pool/main/a/aardvark-dns/aardvark-dns_1.14.0-3_amd64.deb",
                    "a0d68dbd63ed3200e299bf4d032737f82e46b408905bacf7150abe357d0269e1",
                ),
                (
                    "pool/main/s/shadow/libsubid5_4.17.4-2_amd64.deb",
                    "4d4faef8143c117a055a9041a7e99f8ba014c420a9b6e2fef5c693482581a204",
                ),
                (
                    "pool/main/g/glibc/libc6_2.41-12+deb13u5_amd64.deb",
                    "b59b0625cd1a791375d40dab23a4d5d3d0641e3d0a773501becdc3725b7f99cf",
                ),
            ],
        }],
    },
];

/// The variables that tell the suite where the engines are, with their values.
pub(crate) fn variables(ws: &Workspace) -> [(&'static str, PathBuf); 2] {
    ENGINES.map(|engine| (engine.variable, engine.root(ws)))
}

/// Unpacks the engines that are not there.
pub(super) fn ensure(ws: &Workspace, detail: Detail) -> Result<()> {
    let step = Step::start("newer engines", detail);
    let found = ENGINES.iter().map(|engine| engine.ensure(ws, &step)).collect::<Result<Vec<_>>>()?;
    step.done(&found.join(", "));
    Ok(())
}

impl Engine {
    fn root(&self, ws: &Workspace) -> PathBuf {
        ws.target("engines").join(self.directory)
    }

    /// Leaves one release in the engine's directory, and says which.
    fn ensure(&self, ws: &Workspace, step: &Step) -> Result<String> {
        let root = self.root(ws);
        let said = |release: &Release| format!("{} {}", self.name, release.version);
        let there = |release: &&Release| release.with(self.name, |bundle| bundle.is_in(&root));
        if let Some(release) = self.releases.iter().find(there) {
            return Ok(said(release));
        }
        packages::ensure(ws, &[Need::Unpack], Detail::OnlyWork)?;
        let mut failure = None;
        for release in self.releases {
            match release.with(self.name, |bundle| bundle.unpack(ws, &root, step)) {
                Ok(()) => return Ok(said(release)),
                Err(error) => {
                    step.say(&format!("{} is not to be had: {error:#}", said(release)));
                    failure = Some(error);
                }
            }
        }
        Err(failure.unwrap_or_else(|| anyhow!("no release is listed in {}", file!())))
            .with_context(|| format!("failed to get a newer {} for the suite", self.name))
    }
}

impl Release {
    /// Does something with the packages as a bundle.
    fn with<T>(&self, engine: &str, body: impl FnOnce(&Bundle<'_>) -> T) -> T {
        body(&Bundle {
            name: &format!("{engine} {}", self.version),
            suite: self.suite,
            packages: &Package::list(self.packages),
            listed_in: file!(),
            newer: &format!("put newer ones of {} into {}", self.suite, file!()),
        })
    }
}
