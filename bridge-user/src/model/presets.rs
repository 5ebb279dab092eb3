//! Services known by name, so that `attach redis` needs no port.
//!
//! Invariants: pure data; names are unique, lower case and valid service names; ports are the ones the
//! service's own documentation gives as its default. A service without a fixed port (an MCP server, for
//! example) has no preset: guessing one would attach the wrong listener.

use std::num::NonZeroU16;

use super::nearest;
use super::notes::{
    JVM, MAIL, MCP, MONGODB, MYSQL, NO_AUTH, Note, OLLAMA, OPENCLAW, PLAYWRIGHT, POSTGRES, RABBITMQ, REDIS,
};

/// One known service.
#[derive(Debug, Clone, Copy)]
pub struct Preset {
    /// The word used on the command line, which becomes the service part of the attachment's name.
    pub name: &'static str,
    /// The TCP port the service listens on by default; containers use the same one on the gateway.
    pub port: NonZeroU16,
    /// What it is, in a few words, for `--help` and lists.
    pub summary: &'static str,
    /// What its clients are given.
    pub connect: Connect,
    /// Traps, which `attach` tells of.
    pub notes: &'static [Note],
}

/// How clients are told where a service is.
#[derive(Debug, Clone, Copy)]
pub struct Connect {
    /// The environment variable that its clients commonly read; may be empty.
    pub variable: &'static str,
    /// The URL, with `{}` in the place of HOST:PORT.
    url: &'static str,
}

impl Connect {
    /// What clients are given of a service without a preset.
    const PLAIN: Self = Self { variable: "", url: "{}" };

    /// The URL, or what takes its place, for this `HOST:PORT`.
    pub fn url(self, place: &str) -> String {
        self.url.replace("{}", place)
    }
}

const fn preset(
    name: &'static str,
    port: u16,
    summary: &'static str,
    (variable, url): (&'static str, &'static str),
    notes: &'static [Note],
) -> Preset {
    match NonZeroU16::new(port) {
        Some(port) => Preset { name, port, summary, connect: Connect { variable, url }, notes },
        None => panic!("a preset's port is never 0"),
    }
}

const HTTP: (&str, &str) = ("", "http://{}");
const OPENAI: (&str, &str) = ("OPENAI_BASE_URL", "http://{}/v1");
const REDIS_URL: (&str, &str) = ("REDIS_URL", "redis://{}");
const MYSQL_URL: (&str, &str) = ("DATABASE_URL", "mysql://USER@{}/DB");
const POSTGRES_URL: (&str, &str) = ("DATABASE_URL", "postgresql://USER@{}/DB");

/// All presets, in the order they are listed to people.
pub const PRESETS: &[Preset] = &[
    preset("ollama", 11434, "Ollama, local language models", ("OLLAMA_HOST", "http://{}"), OLLAMA),
    preset("openclaw", 18789, "OpenClaw AI gateway", ("OPENCLAW_GATEWAY_URL", "ws://{}"), OPENCLAW),
    preset("litellm", 4000, "LiteLLM proxy", OPENAI, &[]),
    preset("vllm", 8000, "vLLM, OpenAI-compatible server", OPENAI, NO_AUTH),
    preset("llamacpp", 8080, "llama.cpp llama-server", OPENAI, NO_AUTH),
    preset("lmstudio", 1234, "LM Studio local server", OPENAI, NO_AUTH),
    preset("localai", 8080, "LocalAI", OPENAI, NO_AUTH),
    preset("comfyui", 8188, "ComfyUI", HTTP, NO_AUTH),
    preset("postgres", 5432, "PostgreSQL", POSTGRES_URL, POSTGRES),
    preset("mysql", 3306, "MySQL", MYSQL_URL, MYSQL),
    preset("mariadb", 3306, "MariaDB", MYSQL_URL, MYSQL),
    preset("mongodb", 27017, "MongoDB", ("MONGODB_URI", "mongodb://{}/DB"), MONGODB),
    preset("redis", 6379, "Redis", REDIS_URL, REDIS),
    preset("valkey", 6379, "Valkey", REDIS_URL, REDIS),
    preset("memcached", 11211, "memcached", ("", "{}"), NO_AUTH),
    preset("qdrant", 6333, "Qdrant, HTTP API (gRPC is 6334)", ("QDRANT_URL", "http://{}"), NO_AUTH),
    preset("chroma", 8000, "Chroma vector database", HTTP, NO_AUTH),
    preset("weaviate", 8080, "Weaviate, HTTP API", HTTP, NO_AUTH),
    preset("meilisearch", 7700, "Meilisearch", HTTP, &[]),
    preset("elasticsearch", 9200, "Elasticsearch, HTTP API", ("", "https://USER@{}"), JVM),
    preset("opensearch", 9200, "OpenSearch, HTTP API", ("", "https://USER@{}"), JVM),
    preset("clickhouse", 8123, "ClickHouse, HTTP API (native is 9000)", HTTP, &[]),
    preset("neo4j", 7687, "Neo4j, Bolt", ("NEO4J_URI", "bolt://{}"), JVM),
    preset("influxdb", 8086, "InfluxDB 2", HTTP, &[]),
    preset("rabbitmq", 5672, "RabbitMQ, AMQP", ("AMQP_URL", "amqp://USER@{}"), RABBITMQ),
    preset("mosquitto", 1883, "Mosquitto, MQTT", ("", "mqtt://{}"), &[]),
    preset("nats", 4222, "NATS", ("NATS_URL", "nats://{}"), &[]),
    preset("minio", 9000, "MinIO, S3 API", ("AWS_ENDPOINT_URL_S3", "http://{}"), &[]),
    preset("etcd", 2379, "etcd, client API", ("ETCDCTL_ENDPOINTS", "http://{}"), &[]),
    preset("vault", 8200, "HashiCorp Vault", ("VAULT_ADDR", "http://{}"), &[]),
    preset("prometheus", 9090, "Prometheus", HTTP, NO_AUTH),
    preset("grafana", 3000, "Grafana", HTTP, &[]),
    preset("n8n", 5678, "n8n workflows", HTTP, &[]),
    preset("windmill", 8000, "Windmill server", HTTP, &[]),
    preset("smtp", 25, "mail relay (Postfix, Exim)", ("", "smtp://{}"), MAIL),
];

/// Services without a fixed port, as people name them: `mcp=8931`.
pub const WITHOUT_PORT: &[(&str, Connect, &[Note])] = &[
    ("mcp", Connect { variable: "", url: "http://{}/mcp" }, MCP),
    ("playwright", Connect { variable: "", url: "http://{}/mcp" }, PLAYWRIGHT),
];

/// What the clients of a service are given.
pub fn connect(service: &str) -> Connect {
    find(service).map_or_else(
        || without_port(service).map_or(Connect::PLAIN, |(_, connect, _)| *connect),
        |preset| preset.connect,
    )
}

/// What is known of a service.
pub fn notes(service: &str) -> &'static [Note] {
    find(service)
        .map_or_else(|| without_port(service).map_or(&[][..], |(_, _, notes)| notes), |preset| preset.notes)
}

fn without_port(service: &str) -> Option<&'static (&'static str, Connect, &'static [Note])> {
    WITHOUT_PORT.iter().find(|(name, _, _)| *name == service)
}

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
/// A longer or shorter form of a name (`postgresql`, `mongo`) is near from four letters on, too. Case does not matter.
pub fn nearest(typed: &str) -> Option<&'static Preset> {
    let typed: String = typed.chars().take(64).collect::<String>().to_lowercase();
    let by_edits = nearest::nearest(&typed, PRESETS.iter().map(|preset| preset.name)).and_then(find);
    by_edits.or_else(|| {
        PRESETS.iter().find(|preset| {
            typed.len().min(preset.name.len()) > 3
                && (typed.starts_with(preset.name) || preset.name.starts_with(&typed))
        })
    })
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
        assert!(find("mcp").is_none(), "MCP servers have no fixed port");
        assert!(WITHOUT_PORT.iter().all(|(name, _, _)| find(name).is_none()));
    }

    #[test]
    fn clients_are_given_what_they_can_use() {
        for (service, expected) in [
            ("ollama", "http://172.17.0.1:1"),
            ("postgres", "postgresql://USER@172.17.0.1:1/DB"),
            ("redis", "redis://172.17.0.1:1"),
            ("litellm", "http://172.17.0.1:1/v1"),
            ("mcp", "http://172.17.0.1:1/mcp"),
            ("tcp", "172.17.0.1:1"),
        ] {
            assert_eq!(connect(service).url("172.17.0.1:1"), expected);
        }
        assert!(PRESETS.iter().all(|preset| preset.connect.url.contains("{}")));
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
}
