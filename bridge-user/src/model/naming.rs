//! How attachments are named, and which of them a name given on the command line means.
//!
//! Invariants: pure; the name of an attachment depends on nothing but its container, network, service and port,
//! so the same attachment has the same name in `status`, in rule comments and in units, on every run.

use std::num::NonZeroU16;

/// The full name of an attachment: `<network>-<service>-<port>`, for example `bridge-redis-6379`.
///
/// `network` is the Docker network's name, or the bridge interface's name when Docker is not involved. Of a service
/// inside a container the first part is `<container>.<network>`: `web.app-openclaw-18789`.
pub fn attachment_name(container: Option<&str>, network: &str, service: &str, port: NonZeroU16) -> String {
    match container {
        Some(container) => format!("{container}.{network}-{service}-{port}"),
        None => format!("{network}-{service}-{port}"),
    }
}

/// Whether `name_query`, as a person typed it, means the attachment of `service` at `port` on `network`, of that
/// container if there is one.
///
/// It does if it is the full name ([`attachment_name`]), the service alone (on every network it is attached
/// to), the port in decimal, or the container alone. The comparison is exact: no prefixes, no case folding, no
/// leading zeros.
pub fn matches(
    name_query: &str,
    container: Option<&str>,
    network: &str,
    service: &str,
    port: NonZeroU16,
) -> bool {
    name_query == service
        || name_query == port.to_string()
        || container == Some(name_query)
        || name_query == attachment_name(container, network, service, port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn port(number: u16) -> NonZeroU16 {
        NonZeroU16::new(number).expect("a port above 0")
    }

    #[test]
    fn name_is_network_service_port() {
        assert_eq!(attachment_name(None, "bridge", "ollama", port(11434)), "bridge-ollama-11434");
        let name = attachment_name(None, "my-app_default", "pg.main", port(5432));
        assert_eq!(name, "my-app_default-pg.main-5432");
        let name = attachment_name(Some("web"), "app", "openclaw", port(18789));
        assert_eq!(name, "web.app-openclaw-18789");
    }

    #[test]
    fn a_container_is_meant_by_its_name_too() {
        for query in ["web.app-redis-6379", "redis", "6379", "web"] {
            assert!(matches(query, Some("web"), "app", "redis", port(6379)), "{query}");
        }
        for query in ["", "app-redis-6379", "web.app", "we", "app"] {
            assert!(!matches(query, Some("web"), "app", "redis", port(6379)), "{query}");
        }
    }

    #[test]
    fn query_is_full_name_service_or_port() {
        for query in ["bridge-redis-6379", "redis", "6379"] {
            assert!(matches(query, None, "bridge", "redis", port(6379)), "{query}");
        }
        for query in ["", "bridge", "bridge-redis", "redi", "Redis", "06379", "637", "other-redis-6379"] {
            assert!(!matches(query, None, "bridge", "redis", port(6379)), "{query}");
        }
    }

    proptest! {
        #[test]
        fn an_attachment_always_matches_its_own_names(
            container in proptest::option::of("[a-z0-9_.-]{1,20}"),
            network in "[a-z0-9_.-]{1,20}", service in "[a-z0-9][a-z0-9._-]{0,31}", number in 1u16..
        ) {
            let container = container.as_deref();
            let name = attachment_name(container, &network, &service, port(number));
            prop_assert!(matches(&name, container, &network, &service, port(number)));
            prop_assert!(matches(&service, container, &network, &service, port(number)));
            prop_assert!(matches(&number.to_string(), container, &network, &service, port(number)));
        }
    }
}
