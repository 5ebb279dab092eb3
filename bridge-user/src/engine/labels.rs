//! Which containers and networks have labels that ask for services.
//!
//! Invariant: what a label says is passed on as it is; whether it may is decided elsewhere.

use std::collections::HashMap;

use bollard::models::{ContainerSummary, Network};

use super::docker::{Docker, DockerError, display_name, names_of_networks};
use crate::model::labels::{ATTACH, LOCALHOST, Labelled, Owner};

impl Docker {
    /// The running containers and the networks that ask for something, by name.
    ///
    /// # Errors
    /// [`DockerError::Unreachable`] and [`DockerError::Api`] if the engine gives no answer.
    pub async fn labelled(&self) -> Result<Vec<Labelled>, DockerError> {
        let containers = self.list_containers(false).await?;
        let networks = self.list_networks().await?;
        Ok(labelled(&containers, &networks))
    }
}

fn labelled(containers: &[ContainerSummary], networks: &[Network]) -> Vec<Labelled> {
    let of_container = |container: &ContainerSummary| {
        let owner =
            Owner::Container { name: display_name(container), networks: names_of_networks(container) };
        asking(owner, container.labels.as_ref()?)
    };
    let of_network =
        |network: &Network| asking(Owner::Network(network.name.clone()?), network.labels.as_ref()?);
    let mut all: Vec<_> = containers.iter().filter_map(of_container).collect();
    all.extend(networks.iter().filter_map(of_network));
    all.sort_by_key(|labelled| labelled.owner.to_string());
    all
}

fn asking(owner: Owner, labels: &HashMap<String, String>) -> Option<Labelled> {
    let (attach, localhost) = (labels.get(ATTACH).cloned(), labels.get(LOCALHOST).cloned());
    (attach.is_some() || localhost.is_some()).then_some(Labelled { owner, attach, localhost })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_asks_is_listed() {
        let containers: Vec<ContainerSummary> = serde_json::from_str(
            r#"[{"Names":["/web"],"Labels":{"bridge-user.attach":"redis","x":"y"},
                 "NetworkSettings":{"Networks":{"app":{}}}},
                {"Names":["/db"],"Labels":{"x":"y"},"NetworkSettings":{"Networks":{"app":{}}}},
                {"Names":["/old"]}]"#,
        )
        .expect("containers");
        let networks: Vec<Network> = serde_json::from_str(
            r#"[{"Name":"lab","Labels":{"bridge-user.localhost":"true"}},{"Name":"app","Labels":{}}]"#,
        )
        .expect("networks");
        let web = Owner::Container { name: "web".into(), networks: vec!["app".into()] };
        let expected = [
            Labelled { owner: web, attach: Some("redis".into()), localhost: None },
            Labelled { owner: Owner::Network("lab".into()), attach: None, localhost: Some("true".into()) },
        ];
        assert_eq!(labelled(&containers, &networks), expected);
    }
}
