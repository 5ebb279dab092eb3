//! Services known by name, so that `attach redis` needs no port.
//!
//! Invariants: pure data; names are unique, lower case and valid service names; ports are the ones the
//! service's own documentation gives as its default. A service without a fixed port (an MCP server, for
//! example) has no preset: guessing one would attach the wrong listener.

use std::num::NonZeroU16;

use super::identity::Identity;

/// One known service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// The word used on the command line, which becomes the service part of the attachment's name.
    pub name: &'static str,
    /// The TCP port the service listens on by default; containers use the same one on the gateway.
    pub port: NonZeroU16,
    /// What it is, in a few words, for `--help` and lists.
    pub summary: &'static str,
    /// A trap, which `attach` tells of.
    pub note: Note,
}

/// What somebody who attaches a service should know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// Nothing.
    None,
    /// Whoever its clients are.
    Always(&'static str),
    /// What it does with a client whose address is not local.
    Remote {
        /// What happens.
        cause: &'static str,
        /// What to do about it, besides asking for the loopback identity.
        cure: &'static str,
    },
}

impl Note {
    /// Cause and cure, if it concerns a service that sees its clients like this. The cure may be empty.
    pub fn words(self, identity: Identity) -> Option<(&'static str, String)> {
        match (self, identity) {
            (Self::Always(cause), _) => Some((cause, String::new())),
            (Self::Remote { cause, cure }, Identity::Container) => {
                Some((cause, format!("{cure}, or attach with --identity loopback")))
            }
            (Self::Remote { .. }, Identity::Loopback) | (Self::None, _) => None,
        }
    }
}

const fn preset(name: &'static str, port: u16, summary: &'static str, note: Note) -> Preset {
    match NonZeroU16::new(port) {
        Some(port) => Preset { name, port, summary, note },
        None => panic!("a preset's port is never 0"),
    }
}

const PG_NOTE: Note =
    Note::Remote { cause: "pg_hba.conf needs a line for the container's subnet", cure: "add one" };
const MYSQL_NOTE: Note = Note::Remote {
    cause: "accounts for 'user'@'localhost' do not match a container's address",
    cure: "grant to its subnet",
};
const REDIS_NOTE: Note = Note::Remote {
    cause: "without a password, protected mode answers only 127.0.0.1",
    cure: "set a password",
};
const OLLAMA_NOTE: Note = Note::Always(
    "answers 403 to Host names other than localhost, IP addresses and names in .local, .localhost or .internal",
);
const JVM_NOTE: Note = Note::Always("Java often listens on the IPv4-mapped address ::ffff:127.0.0.1");
const NO_AUTH_NOTE: Note =
    Note::Always("has no authentication by default: every allowed container gets full access");

/// All presets, in the order they are listed to people.
pub const PRESETS: &[Preset] = &[
    preset("ollama", 11434, "Ollama, local language models", OLLAMA_NOTE),
    preset(
        "openclaw",
        18789,
        "OpenClaw AI gateway",
        Note::Always("the gateway's own token is still required"),
    ),
    preset("litellm", 4000, "LiteLLM proxy", Note::None),
    preset("vllm", 8000, "vLLM, OpenAI-compatible server", NO_AUTH_NOTE),
    preset("llamacpp", 8080, "llama.cpp llama-server", NO_AUTH_NOTE),
    preset("lmstudio", 1234, "LM Studio local server", NO_AUTH_NOTE),
    preset("localai", 8080, "LocalAI", NO_AUTH_NOTE),
    preset("comfyui", 8188, "ComfyUI", NO_AUTH_NOTE),
    preset("postgres", 5432, "PostgreSQL", PG_NOTE),
    preset("mysql", 3306, "MySQL", MYSQL_NOTE),
    preset("mariadb", 3306, "MariaDB", MYSQL_NOTE),
    preset(
        "mongodb",
        27017,
        "MongoDB",
        Note::Remote {
            cause: "the localhost exception does not apply to containers",
            cure: "make the first user on the host",
        },
    ),
    preset("redis", 6379, "Redis", REDIS_NOTE),
    preset("valkey", 6379, "Valkey", REDIS_NOTE),
    preset("memcached", 11211, "memcached", NO_AUTH_NOTE),
    preset("qdrant", 6333, "Qdrant, HTTP API (gRPC is 6334)", NO_AUTH_NOTE),
    preset("chroma", 8000, "Chroma vector database", NO_AUTH_NOTE),
    preset("weaviate", 8080, "Weaviate, HTTP API", NO_AUTH_NOTE),
    preset("meilisearch", 7700, "Meilisearch", Note::None),
    preset("elasticsearch", 9200, "Elasticsearch, HTTP API", JVM_NOTE),
    preset("opensearch", 9200, "OpenSearch, HTTP API", JVM_NOTE),
    preset("clickhouse", 8123, "ClickHouse, HTTP API (native is 9000)", Note::None),
    preset("neo4j", 7687, "Neo4j, Bolt", JVM_NOTE),
    preset("influxdb", 8086, "InfluxDB 2", Note::None),
    preset(
        "rabbitmq",
        5672,
        "RabbitMQ, AMQP",
        Note::Remote { cause: "user guest may log in only from 127.0.0.1", cure: "make another user" },
    ),
    preset("mosquitto", 1883, "Mosquitto, MQTT", Note::None),
    preset("nats", 4222, "NATS", Note::None),
    preset("minio", 9000, "MinIO, S3 API", Note::None),
    preset("etcd", 2379, "etcd, client API", Note::None),
    preset("vault", 8200, "HashiCorp Vault", Note::None),
    preset("prometheus", 9090, "Prometheus", NO_AUTH_NOTE),
    preset("grafana", 3000, "Grafana", Note::None),
    preset("n8n", 5678, "n8n workflows", Note::None),
    preset("windmill", 8000, "Windmill server", Note::None),
];

/// The preset called exactly `name`, if there is one.
pub fn find(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name)
}

/// All preset names, comma separated, for messages.
pub fn names() -> String {
    PRESETS.iter().map(|preset| preset.name).collect::<Vec<_>>().join(", ")
}

/// The preset whose name is nearest to `typed`, if one is near enough to be a slip of the keys.
///
/// "Near" is at most two edits and at most half of the letters typed; a longer or shorter form of a name
/// (`postgresql`, `mongo`) also counts from four letters on. Case does not matter.
pub fn nearest(typed: &str) -> Option<&'static Preset> {
    let typed: String = typed.chars().take(64).collect::<String>().to_lowercase();
    let allowed = (typed.chars().count() / 2).min(2);
    let by_edits = PRESETS
        .iter()
        .map(|preset| (edit_distance(&typed, preset.name), preset))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, preset)| preset);
    by_edits.or_else(|| {
        PRESETS.iter().find(|preset| {
            typed.len().min(preset.name.len()) > 3
                && (typed.starts_with(preset.name) || preset.name.starts_with(&typed))
        })
    })
}

/// Levenshtein distance in characters, with one row of state.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_valid() {
        let names: HashSet<_> = PRESETS.iter().map(|preset| preset.name).collect();
        assert_eq!(names.len(), PRESETS.len());
        for preset in PRESETS {
            let first = preset.name.chars().next().expect("a name");
            assert!(first.is_ascii_lowercase(), "{}", preset.name);
            assert!(preset.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()));
            assert!(preset.name.len() <= 32 && !preset.summary.is_empty());
        }
    }

    #[test]
    fn required_services_are_there() {
        let required =
            [("ollama", 11434), ("postgres", 5432), ("redis", 6379), ("openclaw", 18789), ("litellm", 4000)];
        for (name, port) in required {
            assert_eq!(find(name).map(|preset| preset.port.get()), Some(port), "{name}");
        }
        assert_eq!(find("mcp"), None, "MCP servers have no fixed port");
    }

    #[test]
    fn nearest_forgives_slips_only() {
        for (typed, expected) in [
            ("redsi", Some("redis")),
            ("Redis", Some("redis")),
            ("olama", Some("ollama")),
            ("postgresql", Some("postgres")),
            ("postgresqlserver", Some("postgres")),
            ("mongo", Some("mongodb")),
            ("elastic", Some("elasticsearch")),
            ("kafka", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(nearest(typed).map(|preset| preset.name), expected, "{typed}");
        }
    }

    #[test]
    fn edit_distance_counts_edits() {
        for (a, b, distance) in
            [("", "", 0), ("a", "", 1), ("", "ab", 2), ("redis", "redis", 0), ("kitten", "sitting", 3)]
        {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
        }
    }
}
