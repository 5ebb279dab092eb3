//! Which engine answers, and whether its bridges can be on this host at all.
//!
//! Invariants: what an engine does not tell, because a proxy forbids the question for example, makes it no other
//! engine; a refusal has the one setting that helps with that engine.

use bollard::models::{SystemInfo, SystemVersion};

use super::{
    docker::{Docker, DockerError},
    transport,
};

/// The name of Podman among the components of its version.
const PODMAN: &str = "Podman Engine";
/// How rootless engines say what they are, Podman in its compatible API included.
const ROOTLESS: &str = "name=rootless";
/// What Docker Desktop calls its operating system.
const DESKTOP: &str = "Docker Desktop";

/// Whose engine it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Docker, or what says it is.
    Docker,
    /// Podman's service, with its major version.
    Podman(u32),
}

impl Docker {
    /// Whose engine it is; asked once.
    ///
    /// # Errors
    /// [`DockerError::Unreachable`] if the engine does not answer at all.
    pub(super) async fn kind(&self) -> Result<Kind, DockerError> {
        let api = self.api().await?;
        if let Some(kind) = self.kind.get() {
            return Ok(*kind);
        }
        let kind = api.version().await.map_or(Kind::Docker, |version| kind_of(&version));
        Ok(*self.kind.get_or_init(|| kind))
    }

    /// Refuses an engine whose containers are no neighbours of this host's loopback: a rootless one, or Docker
    /// Desktop's.
    ///
    /// # Errors
    /// [`DockerError::Elsewhere`] with what helps instead; [`DockerError::Unreachable`] if the engine does not answer.
    pub async fn refuse_elsewhere(&self) -> Result<(), DockerError> {
        let kind = self.kind().await?;
        let Ok(info) = self.api().await?.info().await else { return Ok(()) };
        match elsewhere(kind, &info) {
            None => Ok(()),
            Some((what, instead)) => {
                Err(DockerError::Elsewhere { host: self.host().to_owned(), what, instead })
            }
        }
    }

    /// Whether it is Podman, which makes the bridge of a network with its first container.
    ///
    /// # Errors
    /// [`DockerError::Unreachable`] if the engine does not answer.
    pub async fn is_podman(&self) -> Result<bool, DockerError> {
        Ok(matches!(self.kind().await?, Kind::Podman(_)))
    }

    /// The process that listens on the engine's socket, if it is a UNIX socket and the process is to be seen.
    pub async fn process(&self) -> Option<i32> {
        transport::listening_process(self.host()).await
    }
}

fn kind_of(version: &SystemVersion) -> Kind {
    let mut components = version.components.iter().flatten();
    let Some(podman) = components.find(|one| one.name == PODMAN) else { return Kind::Docker };
    Kind::Podman(podman.version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0))
}

/// What the engine is, and what to set for it.
fn elsewhere(kind: Kind, info: &SystemInfo) -> Option<(&'static str, &'static str)> {
    if info.operating_system.as_deref() == Some(DESKTOP) {
        return Some((
            "Docker Desktop, whose containers run in a virtual machine",
            "nothing is to be attached, containers reach services on this host's 127.0.0.1 at \
             host.docker.internal:PORT already",
        ));
    }
    if !info.security_options.iter().flatten().any(|option| option == ROOTLESS) {
        return None;
    }
    Some(match kind {
        Kind::Docker => (
            "a rootless Docker, whose bridges are in a network namespace of its user",
            "set Environment=DOCKERD_ROOTLESS_ROOTLESSKIT_DISABLE_HOST_LOOPBACK=false in its unit (systemctl --user \
             edit docker) and restart it: its containers then reach this host's 127.0.0.1 at 10.0.2.2; or use the \
             engine of root",
        ),
        Kind::Podman(..5) => (
            "a rootless Podman, whose bridges are in a network namespace of its user",
            "run the container with --network slirp4netns:allow_host_loopback=true: it then reaches this host's \
             127.0.0.1 at 10.0.2.2; or use the Podman of root",
        ),
        Kind::Podman(_) => (
            "a rootless Podman, whose bridges are in a network namespace of its user",
            "run the container with --network pasta:--map-host-loopback,169.254.1.3: it then reaches this host's \
             127.0.0.1 at 169.254.1.3; or use the Podman of root",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(system: &str, options: &str) -> SystemInfo {
        serde_json::from_str(&format!(r#"{{"OperatingSystem":"{system}","SecurityOptions":{options}}}"#))
            .unwrap()
    }

    #[test]
    fn podman_is_told_by_its_components() {
        let kind = |components: &str| {
            kind_of(
                &serde_json::from_str(&format!(r#"{{"Version":"1","Components":{components}}}"#)).unwrap(),
            )
        };
        assert_eq!(kind(r#"[{"Name":"Podman Engine","Version":"4.3.1"}]"#), Kind::Podman(4));
        assert_eq!(kind(r#"[{"Name":"Engine","Version":"28.5.0"}]"#), Kind::Docker);
        assert_eq!(kind("null"), Kind::Docker);
    }

    #[test]
    fn each_stack_has_its_own_setting() {
        let rootless = r#"["name=seccomp,profile=default","name=rootless"]"#;
        let instead =
            |kind, system, options| elsewhere(kind, &info(system, options)).map(|(_, instead)| instead);
        for (kind, system, options, setting) in [
            (Kind::Docker, "Docker Desktop", "[]", "host.docker.internal:PORT"),
            (Kind::Docker, "Debian", rootless, "DISABLE_HOST_LOOPBACK=false"),
            (Kind::Podman(4), "debian", rootless, "slirp4netns:allow_host_loopback=true"),
            (Kind::Podman(5), "fedora", rootless, "pasta:--map-host-loopback"),
        ] {
            assert!(instead(kind, system, options).is_some_and(|text| text.contains(setting)), "{setting}");
        }
        assert_eq!(instead(Kind::Docker, "Debian", r#"["name=seccomp,profile=default"]"#), None);
        assert_eq!(instead(Kind::Podman(5), "debian", "null"), None);
    }
}
