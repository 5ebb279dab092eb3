//! How attachments are named, and which of them a name given on the command line means.
//!
//! Invariants: pure; the name of an attachment depends on nothing but its network, service and port, so
//! the same attachment has the same name in `status`, in rule comments and in units, on every run.

use std::num::NonZeroU16;

/// The full name of an attachment: `<network>-<service>-<port>`, for example `bridge-redis-6379`.
///
/// `network` is the Docker network's name, or the bridge interface's name when Docker is not involved.
pub fn attachment_name(network: &str, service: &str, port: NonZeroU16) -> String {
    format!("{network}-{service}-{port}")
}

/// Whether `name_query`, as a person typed it, means the attachment of `service` at `port` on `network`.
///
/// It does if it is the full name ([`attachment_name`]), the service alone (on every network it is attached
/// to), or the port in decimal. The comparison is exact: no prefixes, no case folding, no leading zeros.
pub fn matches(name_query: &str, network: &str, service: &str, port: NonZeroU16) -> bool {
    name_query == service
        || name_query == port.to_string()
        || name_query == attachment_name(network, service, port)
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
        assert_eq!(attachment_name("bridge", "ollama", port(11434)), "bridge-ollama-11434");
        assert_eq!(attachment_name("my-app_default", "pg.main", port(5432)), "my-app_default-pg.main-5432");
    }

    #[test]
    fn query_is_full_name_service_or_port() {
        for query in ["bridge-redis-6379", "redis", "6379"] {
            assert!(matches(query, "bridge", "redis", port(6379)), "{query}");
        }
        for query in ["", "bridge", "bridge-redis", "redi", "Redis", "06379", "637", "other-redis-6379"] {
            assert!(!matches(query, "bridge", "redis", port(6379)), "{query}");
        }
    }

    proptest! {
        #[test]
        fn an_attachment_always_matches_its_own_names(
            network in "[a-z0-9_.-]{1,20}", service in "[a-z0-9][a-z0-9._-]{0,31}", number in 1u16..
        ) {
            let name = attachment_name(&network, &service, port(number));
            prop_assert!(matches(&name, &network, &service, port(number)));
            prop_assert!(matches(&service, &network, &service, port(number)));
            prop_assert!(matches(&number.to_string(), &network, &service, port(number)));
        }
    }
}
