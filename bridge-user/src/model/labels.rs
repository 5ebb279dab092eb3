//! Labels by which containers and networks ask for services.
//!
//! Invariant: pure data; a label only asks, and what it gets is the configuration's to say.

/// Asks for SPECs, separated by commas.
pub const ATTACH: &str = "bridge-user.attach";
/// Asks for them at the container's own localhost, too.
pub const LOCALHOST: &str = "bridge-user.localhost";

/// Who has a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A running container.
    Container {
        /// Its name.
        name: String,
        /// The networks it is on.
        networks: Vec<String>,
    },
    /// A network, for all of its containers.
    Network(String),
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Container { name, .. } => write!(f, "container {name}"),
            Self::Network(name) => write!(f, "network {name}"),
        }
    }
}

/// What the labels of a container or network ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    /// Whose they are.
    pub owner: Owner,
    /// The value of [`ATTACH`].
    pub attach: Option<String>,
    /// The value of [`LOCALHOST`].
    pub localhost: Option<String>,
}
