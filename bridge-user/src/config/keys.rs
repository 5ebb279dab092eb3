//! The keys as docs/reference.md has them. A test compares them with those that are read, and with the example.

/// A key of a section.
pub(super) struct Key {
    pub(super) section: &'static str,
    pub(super) name: &'static str,
    /// As it is written, or in words.
    pub(super) default: &'static str,
    pub(super) meaning: &'static str,
}

const fn key(section: &'static str, name: &'static str, default: &'static str, meaning: &'static str) -> Key {
    Key { section, name, default, meaning }
}

const ATTACH: &str = "[[attach]]";
const DOCKER: &str = "[docker]";
const RELAY: &str = "[relay]";

/// All keys, in the order of the document.
pub(super) const KEYS: &[Key] = &[
    key(ATTACH, "service", "must be there", "one [SPEC](#spec)"),
    key(
        ATTACH,
        "networks",
        "`[\"bridge\"]`; none with `bridges`; each it is on with `container`",
        "names and globs of networks, or `\"all\"`",
    ),
    key(ATTACH, "bridges", "`[]`", "Linux bridges by interface name; not with `container`"),
    key(ATTACH, "container", "none", "attach inside this container"),
    key(ATTACH, "gateways", "`[]`", "further addresses of the host to serve; not with `container`"),
    key(
        ATTACH,
        "allow",
        "the bridge's own subnets",
        "addresses, subnets, and names of containers, which do not go with `bridges`",
    ),
    key(ATTACH, "identity", "`\"container\"`", "whom the service sees; or `\"loopback\"`"),
    key(ATTACH, "datapath", "`\"auto\"`", "or `\"steer\"`, `\"splice\"`, `\"sockmap\"`"),
    key(ATTACH, "force", "`false`", "use sockmap on a kernel with known bugs in what it needs"),
    key(ATTACH, "relay", "`{}`", "keys of `[relay]` that are different for this service"),
    key(ATTACH, "localhost", "`false`", "not in this version"),
    key(ATTACH, "isolate", "`false`", "not in this version"),
    key(DOCKER, "host", "as `attach`", "the engine, in the form of `DOCKER_HOST`"),
    key(DOCKER, "labels", "`false`", "whether labels of containers and networks are followed"),
    key(DOCKER, "allow-labels", "`[]`", "the SPECs that labels may ask for"),
    key(
        "[firewall]",
        "manage",
        "`\"auto\"`",
        "or `\"off\"`; no firewall rule is ever changed in this version",
    ),
    key(RELAY, "proxy-protocol", "none", "as the flag; and so the others"),
    key(RELAY, "max-connections", "`16384`", "most open connections per gateway address"),
    key(RELAY, "idle-timeout", "`0`, never", "seconds, with a fraction if need be"),
    key(RELAY, "stall-timeout", "`300`", "seconds; 0: never"),
    key(RELAY, "connect-timeout", "`5`", "seconds"),
    key(RELAY, "keepalive", "`60`", "seconds; 0: never"),
    key(RELAY, "drain-timeout", "`10`", "seconds"),
    key("[metrics]", "listen", "`\"off\"`", "nothing else in this version"),
    key("[events]", "level", "unchanged, `\"warn\"` at first", "or `\"off\"`, `\"debug\"`"),
];
