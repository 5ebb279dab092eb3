//! The registry of findings: every code there is, and the text of docs/troubleshooting.md about it.
//!
//! Invariants: a code is declared here once and made into a finding in one place, which a test checks; its name is
//! what scripts compare, and never changes. Text ends without a full stop, which the document adds.

use super::finding::{Code, Severity};

/// A constant for each code, and [`CODES`]: `NAME: "name", severity, "verb", "since" { … }`.
macro_rules! codes {
    ($(
        $name:ident: $code:literal, $severity:ident, $verb:literal, $since:literal {
            symptom: $symptom:literal,
            cause: $cause:literal,
            see: $see:literal,
            cure: $cure:literal,
        }
    )+) => {
        $(
            #[doc = $symptom]
            pub const $name: Code = Code {
                name: $code,
                severity: Severity::$severity,
                verb: $verb,
                symptom: $symptom,
                cause: $cause,
                see: $see,
                cure: $cure,
                since: $since,
            };
        )+

        /// Every code, in the order of the document.
        #[cfg(test)]
        pub const CODES: &[Code] = &[$($name),+];

        /// The identifiers of [`CODES`], in the same order.
        #[cfg(test)]
        pub(super) const IDENTIFIERS: &[&str] = &[$(stringify!($name)),+];
    };
}

codes! {
    NO_LISTENER: "no-listener", Warning, "status", "0.1.0" {
        symptom: "`waiting-for-listener`: nothing listens on the target",
        cause: "the service is down, or listens at another port or inside a container",
        see: "`ss -ltn` next to the TARGET column; NO-LISTENER counts the clients it costs",
        cure: "start the service, or attach the address and port it listens on; nothing needs to be attached again \
               when it is back",
    }
    BLOCKED_BY_FIREWALL: "blocked-by-firewall", Error, "status", "0.1.0" {
        symptom: "`blocked-by-firewall`: connections arrive at the bridge, and something drops them",
        cause: "a firewall rule drops them on their way in (ufw denies by default, and so do hand-made INPUT chains), \
                or the reverse-path filter does, because the route to the client leads elsewhere. The state is that of \
                the last connection: it ends with the next one that comes through",
        see: "`arrived` and `steered` under `counters.stages` in `status --output json`; `sudo nft list ruleset`; \
              `nstat -az TcpExtIPReversePathFilter`",
        cure: "allow the port on the bridge's interface, for example `sudo ufw allow in on docker0 proto tcp to any \
               port 11434`",
    }
    ANSWERS_LOST: "answers-lost", Warning, "status", "0.1.0" {
        symptom: "connections are steered and answered, and never established",
        cause: "the answers do not come back to the client: a VPN's policy routing (`ip rule`) sends them elsewhere, \
                or a firewall rule for outgoing packets drops them. A client that gave up in between, or a port \
                scanner, looks the same until the next connection",
        see: "`answered` and `accepted` in `status --output json`; `ip route get CLIENT from GATEWAY`",
        cure: "route the bridge's subnet by the main table (`ip rule add to SUBNET lookup main`), or allow the answers",
    }
    QUEUE_FULL: "queue-full", Warning, "status", "0.1.0" {
        symptom: "connections wait, and the service accepts none",
        cause: "the service hangs or is overloaded, or its listen backlog is shorter than its bursts",
        see: "`ss -ltn`: Recv-Q above Send-Q",
        cure: "restart the service, or raise its backlog and `net.core.somaxconn`",
    }
    WRONG_GATEWAY: "wrong-gateway", Warning, "status", "0.1.0" {
        symptom: "connections come for another address of this host",
        cause: "a name in the container leads to another network's gateway or the host's own address, as \
                `host.docker.internal` does that was given by hand; the port is attached at this network's gateway \
                alone. It ends with the next connection that comes to the gateway",
        see: "`wrong_gateway` under `counters.stages` in `status --output json`; `getent hosts NAME` in the container",
        cure: "use the gateway in the GATEWAY column",
    }
    LISTENER_ELSEWHERE: "listener-elsewhere", Warning, "status", "0.1.0" {
        symptom: "`waiting-for-listener`, but there is a listener on another loopback address",
        cause: "the service has the port on another address than the target, often on `[::1]` instead of 127.0.0.1",
        see: "`ss -ltn`; the message names the address",
        cure: "attach the SPEC in the message, or let the service listen on the target",
    }
    BRIDGE_GONE: "bridge-gone", Error, "status", "0.1.0" {
        symptom: "`waiting-for-bridge`: the bridge or its address is gone",
        cause: "the network was removed or made again, by `docker compose down` and `up` for example, or the interface \
                lost the gateway's address",
        see: "`ip addr`; the message has the interface, its index and the address",
        cure: "attach again once the network is back; detach a relay first. Fix the subnet, and the gateway stays",
    }
    CONTAINER_GONE: "container-gone", Error, "status", "0.1.0" {
        symptom: "`waiting-for-bridge`: the container was stopped or restarted",
        cause: "a container that starts again has a new network namespace; what was attached was in the old one",
        see: "`docker ps`",
        cure: "attach again, or keep `attach --container NAME --foreground` running, which follows restarts",
    }
    PORT_BOUND_ON_GATEWAY: "port-bound-on-gateway", Warning, "status", "0.1.0" {
        symptom: "`conflict`: the gateway's port is bound by another listener",
        cause: "a program took the port after it was attached. Containers still reach the service while it listens; \
                everybody else reaches the other program",
        see: "`ss -ltnp` names its owner",
        cure: "stop the other listener, or attach at another port, `NAME=PORT:TARGET_PORT`",
    }
    ALLOW_WAITS: "allow-waits", Info, "status", "0.1.0" {
        symptom: "a container that may connect is not let in yet",
        cause: "the configuration allows it by its name, and it does not run, or is not on that network",
        see: "`docker ps`; `docker network inspect NETWORK`",
        cure: "start it, or connect it to the network: the daemon lets it in then",
    }
    NOT_AS_CONFIGURED: "not-as-configured", Warning, "status", "0.1.0" {
        symptom: "something is not attached, or not so, as the configuration asks",
        cause: "what it needs is not there yet (engine, network, container), or something is in the way; what is \
                attached already stays",
        see: "`journalctl -u bridge-user`; `bridge-user run --check-config`",
        cure: "what the cause says; the daemon tries again whenever something changes, and every 30 seconds",
    }
    CONFIG_REFUSED: "config-refused", Error, "status", "0.1.0" {
        symptom: "the daemon goes by an older configuration",
        cause: "the file was changed, and what it says now is wrong or cannot be read",
        see: "`bridge-user run --check-config`",
        cure: "correct the file: it is read again at once",
    }
    NETWORK_LEFT_OUT: "network-left-out", Warning, "attach", "0.1.0" {
        symptom: "a network that `all` or a pattern stands for is not attached to",
        cause: "it has no gateway on this host, or one of the containers of `--allow` is not on it; the message says \
                which. The other networks are attached",
        see: "`docker network inspect`",
        cure: "name the networks to attach to",
    }
    HOST_GATEWAY_TAKEN: "host-gateway-taken", Info, "attach", "0.1.0" {
        symptom: "`host-gateway` is not served at this port",
        cause: "`host.docker.internal:host-gateway` is the default network's gateway in every container, and another \
                listener or a NAT rule has the port there. The network's own gateway is served",
        see: "`ss -ltnp`; `sudo nft -a list ruleset` or `sudo iptables -t nat -S`",
        cure: "stop what has the port and attach again, or use the network's own gateway",
    }
    LISTENER_ON_EVERY_ADDRESS: "listener-on-every-address", Warning, "status", "0.1.0" {
        symptom: "the service listens on every address",
        cause: "it is bound to 0.0.0.0 or `::`, so containers, and everybody who reaches the host, get to it without \
                being attached; the allow-list narrows the attached bridge alone",
        see: "`ss -ltn` shows `0.0.0.0:PORT` or `*:PORT`",
        cure: "bind it to the target's address. As it is, attaching is of use with `--identity loopback`, for a \
               service that answers only local clients",
    }
    PLACEHOLDER_LISTENER: "placeholder-listener", Error, "status", "0.1.0" {
        symptom: "`failed`: an engine holds the port for a container, and accepts nothing",
        cause: "the target is a published port of a container. dockerd (with `userland-proxy: false`) and Podman's \
                conmon hold such a port with a listener that nobody accepts from; a NAT rule carries the host's own \
                connections to the container, and steered ones would hang",
        see: "`ss -ltnp` names dockerd or conmon; `docker ps` the container",
        cure: "connect the containers to a network of that container, or relay it with `--datapath auto --foreground`",
    }
    ANSWERED_ELSEWHERE: "answered-elsewhere", Error, "status", "0.1.0" {
        symptom: "`failed`: no socket listens on the target, and a NAT rule carries connections to it elsewhere",
        cause: "what answers at the target on this host is in another network namespace or on another machine, where \
                steering does not reach",
        see: "`sudo nft list ruleset` or `sudo iptables -t nat -S OUTPUT`; the message has the rule",
        cure: "relay it with `--datapath auto --foreground`, or start the service here",
    }
    NAT_RULE_IN_FRONT: "nat-rule-in-front", Error, "status", "0.1.0" {
        symptom: "`conflict`: a NAT rule takes the connections first",
        cause: "a DNAT or REDIRECT in nat PREROUTING, made by hand or by an engine for a published port, takes \
                connections to the gateway's port before the allow-list is asked. Where it says *may take*, the rule \
                has a condition that depends on the packet, or is not understood",
        see: "`sudo nft -a list ruleset` or `sudo iptables -t nat -S`; the message has the rule",
        cure: "delete the rule or unpublish the port, or attach at another port, `NAME=PORT:TARGET_PORT`",
    }
    NAT_UNREAD: "nat-unread", Warning, "status", "0.1.0" {
        symptom: "the NAT rules could not be read",
        cause: "there are NAT rules, and what shows them is missing or failed; whether one takes the connections first \
                is not known",
        see: "`sudo nft list ruleset`; `sudo iptables-legacy-save -t nat`",
        cure: "install nftables or iptables, whichever has the rules, and run as root",
    }
    BRIDGE_HAS_UPLINK: "bridge-has-uplink", Warning, "status", "0.1.0" {
        symptom: "the bridge leads to other machines",
        cause: "a network card, VLAN, bond or tunnel is a port of the bridge, or the default route goes over it, as \
                LXD, Proxmox and libvirt set bridges up; and the allow-list lets in a whole subnet of it",
        see: "`bridge link`; `ip route show default`",
        cure: "attach again with `--allow` and the addresses of the containers alone",
    }
    BRIDGE_IN_VRF: "bridge-in-vrf", Error, "status", "0.1.0" {
        symptom: "`failed`: the bridge is in a VRF",
        cause: "the kernel reports what arrives on such a bridge as arriving on the VRF. A rule for that would let in \
                every interface of the VRF, so there is none, and nothing is steered",
        see: "`ip link show master VRF`",
        cure: "take the bridge out of it, or relay with `--datapath auto --foreground`",
    }
    BRIDGE_DOWN: "bridge-down", Error, "status", "0.1.0" {
        symptom: "`waiting-for-bridge`: the bridge is down",
        cause: "somebody took the interface down, and nothing arrives on it",
        see: "`ip link`: no `UP` between the angle brackets",
        cure: "`ip link set BRIDGE up`; nothing needs to be attached again",
    }
    BRIDGE_RENAMED: "bridge-renamed", Warning, "status", "0.1.0" {
        symptom: "the bridge has another name by now",
        cause: "the interface was renamed. It is served as before, by its index",
        see: "`ip link`",
        cure: "detach, and attach with its present name",
    }
    GATEWAY_REMOVED: "gateway-removed", Warning, "status", "0.1.0" {
        symptom: "the bridge lost one of its addresses",
        cause: "nobody connects to an address that the host does not have; the others are served as before",
        see: "`ip addr`",
        cure: "attach again, or give the bridge the address back",
    }
    GATEWAY_ADDED: "gateway-added", Warning, "status", "0.1.0" {
        symptom: "the bridge has an address by now that is not attached",
        cause: "it was added after the attach, and connections to it are refused and not counted",
        see: "`ip addr`; the GATEWAY column",
        cure: "attach again",
    }
    MPTCP_STEERING_MISSING: "mptcp-steering-missing", Error, "status", "0.1.0" {
        symptom: "`failed`: an MPTCP listener, and the program that steers to it is missing",
        cause: "the tc program was taken off the bridge, with its qdisc for example",
        see: "`tc filter show dev BRIDGE ingress`, or `bpftool net` from Linux 6.6 on",
        cure: "attach again, or start the service with MPTCP off (Go programs: `GODEBUG=multipathtcp=0`)",
    }
    MPTCP_NOT_PREPARED: "mptcp-not-prepared", Warning, "status", "0.1.0" {
        symptom: "`waiting-for-listener`: the service began to listen with MPTCP since the last attach",
        cause: "NAT takes an MPTCP listener away from steered connections until bridge-user has set IP_TRANSPARENT on \
                it, which no program in the kernel can do; connections are refused until then",
        see: "[MPTCP and Go services](guide.md#mptcp-and-go-services)",
        cure: "attach again after each restart, from the service's unit for example (`ExecStartPost=`), or start the \
               service with MPTCP off (Go programs: `GODEBUG=multipathtcp=0`)",
    }
    NAMED_RUN_ENDED: "named-run-ended", Warning, "status", "0.1.0" {
        symptom: "a container that was allowed by name was stopped or restarted since",
        cause: "`--allow NAME` admits the run of the container that was there then: another container may have its \
                address now",
        see: "`docker ps`; `allowed_containers` in `status --output json`",
        cure: "attach again once it runs, or allow its network or address",
    }
    LISTENER_NOT_REGISTERED: "listener-not-registered", Error, "status", "0.1.0" {
        symptom: "`failed`: the listener is not registered",
        cause: "the service began to listen unseen: below Linux 5.15, on a socket bound before the first attach, or \
                while the tracking program was missing",
        see: "`listener_tracking` in `status --output json`",
        cure: "attach again",
    }
    LISTENER_BOUND_TO_INTERFACE: "listener-bound-to-interface", Error, "status", "0.1.0" {
        symptom: "`failed`: the listener is bound to an interface",
        cause: "the service set SO_BINDTODEVICE, and connections from a bridge arrive on another interface",
        see: "`ss -ltn` shows `127.0.0.1%lo`",
        cure: "bind it to the address alone, or relay it with `--datapath splice --foreground`",
    }
    NOT_STEERABLE: "not-steerable", Error, "status", "0.1.0" {
        symptom: "`failed`: the target cannot be steered to",
        cause: "only TCP listeners can be steered to, and something else was attached so, by another version",
        see: "the TARGET column",
        cure: "detach it, and attach it with `--datapath auto --foreground`",
    }
    RELAY_SILENT: "relay-silent", Error, "status", "0.1.0" {
        symptom: "`failed to ask relay process …`",
        cause: "the process is stopped, or is another version. What it relays is unknown",
        see: "`fuser` with the socket in the message names the process; `ps -o stat,cmd PID`",
        cure: "let it go on (`kill -CONT`), or end it (`kill -KILL`), then try again",
    }
    HIDDEN_INSTANCE: "hidden-instance", Error, "status", "0.1.0" {
        symptom: "`something of bridge-user steers …, and these pins do not show it`",
        cause: "it was attached with another bpffs: one is mounted on top of it now, or it was attached in a mount \
                namespace of its own (`ip netns exec`, `unshare -m`, a unit with PrivateMounts= or ProtectSystem=)",
        see: "`findmnt /sys/fs/bpf`; `bpftool link list` shows a `netns` link of program `steer`",
        cure: "use the mount namespace it was attached in, or end it with `bridge-user detach --all`, which finds it \
               by id",
    }
    UNKNOWN_STEERING: "unknown-steering", Warning, "status", "0.1.0" {
        symptom: "`programs … steer this network namespace, too`",
        cause: "another sk_lookup program is attached, and without CAP_SYS_ADMIN nobody can tell whose it is",
        see: "`bpftool prog show id ID`, as root",
        cure: "ask again as root",
    }
    RELAY_DIRECTORY: "relay-directory", Error, "status", "0.1.0" {
        symptom: "`failed to look for relay processes`",
        cause: "`/run/bridge-user/relay`, where relay processes have their sockets, belongs to another user, is open \
                to others, or may not be searched by who asks",
        see: "`ls -ld /run/bridge-user /run/bridge-user/relay`",
        cure: "ask as root. If owner or mode are wrong, remove `/run/bridge-user`, and start the relays again",
    }
    TARGET_FOREIGN: "target-foreign", Error, "status", "0.1.0" {
        symptom: "`failed`: what is at the path of a UNIX target is not the service's",
        cause: "the socket belongs to another user than at the start of the relay, or a link or another user's \
                listener took its place. Clients are reset, and counted in `foreign_target`",
        see: "`namei -l PATH`; `ss -xlp src PATH`",
        cure: "find out who changed it. If it is the service's, detach, and attach while the service runs",
    }
    UNIX_CLIENT: "unix-client", Info, "status", "0.1.0" {
        symptom: "`connects to unix:… as user …`",
        cause: "a relay has no root: it connects as nobody where that may, or else as nobody with the socket's group, \
                or as the socket's owner. Rules about that user hold for every container that is allowed",
        see: "`ps -o pid,euser,egroup,cmd -L -p PID`",
        cure: "",
    }
    FEW_DESCRIPTORS: "few-descriptors", Info, "status", "0.1.0" {
        symptom: "`few open files: …`, in `status` and `attach` of a relay",
        cause: "a connection takes two open files, and the hard limit on those allows fewer connections than \
                `--max-connections`",
        see: "`grep 'open files' /proc/PID/limits`",
        cure: "raise the limit (`LimitNOFILE=`) if that many are needed, and start the relay again",
    }
    RELAYED: "relayed", Info, "status", "0.1.0" {
        symptom: "relayed with splice or sockmap, and why",
        cause: "a process of bridge-user carries the connections, because steering was not asked for or cannot serve \
                this target; the message says which",
        see: "the DATAPATH column",
        cure: "",
    }
    LOCAL_CLIENTS: "local-clients", Info, "status", "0.1.0" {
        symptom: "the service sees local clients",
        cause: "it was attached with `--identity loopback`",
        see: "`identity` in `status --output json`",
        cure: "",
    }
    SERVICE_NOTE: "service-note", Info, "attach", "0.1.0" {
        symptom: "`note: SERVICE: …`",
        cause: "the service of this preset treats containers otherwise than local clients, or asks nobody for a \
                password",
        see: "[whom the service sees](guide.md#whom-the-service-sees)",
        cure: "as the note says",
    }
    LOOPBACK_TRUST: "loopback-trust", Warning, "attach", "0.1.0" {
        symptom: "`warning: …: the service sees a local client`",
        cause: "`--identity loopback` makes a rule that trusts 127.0.0.1 trust every container that is allowed",
        see: "the ALLOW column: these are trusted now",
        cure: "narrow it with `--allow`, make the service ask for a password, or attach with `--identity container`",
    }
    SERVICE_TRUSTS_LOCAL: "service-trusts-local", Warning, "attach", "0.1.0" {
        symptom: "`warning: SERVICE: …`",
        cause: "the service gives local clients more than others, and with `--identity loopback` every container that \
                is allowed looks local",
        see: "[what services do](reference.md#presets)",
        cure: "as the warning says",
    }
    ALLOW_WIDENED: "allow-widened", Warning, "attach", "0.1.0" {
        symptom: "`warning: …: … may connect from now on`",
        cause: "attach replaced an allow-list by one that admits more; without `--allow` it is the default, which is \
                the bridge's subnets",
        see: "the ALLOW column",
        cure: "attach again with the old list",
    }
    ALLOW_OUTSIDE: "allow-outside", Warning, "status", "0.1.0" {
        symptom: "`--allow` names sources that are not on the bridge",
        cause: "the source is outside of the bridge's subnets, so no container there has its address; perhaps the \
                list was meant for another network",
        see: "the ALLOW column, and `ip addr show` of the bridge",
        cure: "allow the bridge's subnet or addresses in it, or attach on the network that has the source; where such \
               sources are routed over the bridge, all is well",
    }
    LABEL_REFUSED: "label-refused", Warning, "run", "0.1.0" {
        symptom: "a container or network does not get what its label asks for",
        cause: "`allow-labels` of the configuration does not have that port and target, or a section of the \
                configuration or another label has the port on that network",
        see: "`docker inspect --format '{{json .Config.Labels}}' NAME`; `bridge-user run --check-config`",
        cure: "add the SPEC to `allow-labels`, or take the label off",
    }
    MISSING_BPFFS: "missing-bpffs", Info, "check", "0.1.0" {
        symptom: "`bpffs`: not mounted",
        cause: "what is attached is pinned there; attach mounts it",
        see: "`findmnt /sys/fs/bpf`",
        cure: "",
    }
    BPFFS_READ_ONLY: "bpffs-read-only", Error, "check", "0.1.0" {
        symptom: "`bpffs`: mounted read-only",
        cause: "nothing can be pinned, so nothing can be attached or detached: systemd's ProtectKernelTunables= and \
                ReadOnlyPaths= do that to a unit, and many container runtimes to a container",
        see: "`findmnt /sys/fs/bpf`",
        cure: "set ProtectKernelTunables=no in the unit (ReadWritePaths= does not undo that), or `mount -o remount,rw \
               /sys/fs/bpf`",
    }
    MISSING_CGROUP2: "missing-cgroup2", Error, "check", "0.1.0" {
        symptom: "`cgroup2`: not mounted",
        cause: "listeners are tracked through cgroup v2; without it nothing can be attached",
        see: "`findmnt -t cgroup2`",
        cure: "mount it: `mount -t cgroup2 none /sys/fs/cgroup/unified`",
    }
    MISSING_SK_LOOKUP: "missing-sk-lookup", Error, "check", "0.1.0" {
        symptom: "`sk_lookup`: the verifier refuses it",
        cause: "the kernel is older than Linux 5.9, or does not let root load eBPF programs",
        see: "`uname -r`; `sysctl kernel.unprivileged_bpf_disabled`; the kernel's lockdown mode",
        cure: "use a newer kernel, or relays (`attach --foreground`)",
    }
    MISSING_INGRESS_IFINDEX: "missing-ingress-ifindex", Warning, "check", "0.1.0" {
        symptom: "`ingress_ifindex`: the verifier refuses it",
        cause: "below Linux 5.17 the kernel does not tell the interface; the gateway's address and the bridge's subnet \
                stand in for it ([what that weakens](../SECURITY.md#what-it-does-not-promise))",
        see: "`uname -r`",
        cure: "keep --allow within the bridge's subnet, or use Linux 5.17 or newer",
    }
    MISSING_NETNS_COOKIE: "missing-netns-cookie", Warning, "check", "0.1.0" {
        symptom: "`netns_cookie`: the verifier refuses it",
        cause: "below Linux 5.15 a listener's namespace is noted at bind(2), so that a socket bound before the first \
                attach is missed when it listens",
        see: "`uname -r`",
        cure: "attach again after such a service started, or use Linux 5.15 or newer",
    }
    MISSING_MPTCP_GUARD: "missing-mptcp-guard", Warning, "check", "0.1.0" {
        symptom: "`mptcp_guard`: the verifier refuses it",
        cause: "below Linux 5.19, or without MPTCP, the kernel cannot tell MPTCP listeners",
        see: "`sysctl net.mptcp.enabled`",
        cure: "keep MPTCP off for attached services (Go programs: GODEBUG=multipathtcp=0), or use Linux 5.19 or newer",
    }
    MISSING_STEER: "missing-steer", Error, "check", "0.1.0" {
        symptom: "`steer`: a probe connection was not steered",
        cause: "this kernel, or another eBPF program, keeps steering from working",
        see: "DETAIL says how far the connection came; `bpftool prog` lists other programs",
        cure: "use relays (`attach --foreground`), or another kernel",
    }
    MISSING_LISTENER_TRACKING: "missing-listener-tracking", Error, "check", "0.1.0" {
        symptom: "`listener_tracking`: a service that restarted was not served",
        cause: "the program that follows listen(2) does not run, or another one takes its place in the cgroup",
        see: "`bpftool cgroup tree`",
        cure: "attach again after each restart of a service, or use relays (`attach --foreground`)",
    }
    MISSING_NAMESPACE_GUARD: "missing-namespace-guard", Error, "check", "0.1.0" {
        symptom: "`namespace_guard`: a listener of another namespace was given a connection",
        cause: "a container's own listener could take a service's place",
        see: "DETAIL says who answered",
        cure: "do not attach on this kernel; relays are not concerned",
    }
    MISSING_SOURCE_SCOPE: "missing-source-scope", Error, "check", "0.1.0" {
        symptom: "`source_scope`: a source that is not allowed got in",
        cause: "the allow-list does not hold on this kernel",
        see: "DETAIL says who got in",
        cure: "do not attach on this kernel; relays are not concerned",
    }
    MISSING_EVENTS: "missing-events", Warning, "check", "0.1.0" {
        symptom: "`events`: no event came",
        cause: "the event channel does not work here; everything else does",
        see: "`bridge-user events`",
        cure: "read the counters of `bridge-user status` instead",
    }
    MISSING_STEER_TC: "missing-steer-tc", Warning, "check", "0.1.0" {
        symptom: "`steer_tc`: MPTCP listeners are not steered to",
        cause: "the kernel is older than Linux 5.19 or has no MPTCP",
        see: "DETAIL; `sysctl net.mptcp.enabled`",
        cure: "relay such services (`attach --foreground`), or start them with MPTCP off",
    }
    MISSING_LOOPBACK_IDENTITY: "missing-loopback-identity", Warning, "check", "0.1.0" {
        symptom: "`loopback_identity`: a steered connection does not look local",
        cause: "a hook that tells the service its client's address is missing or does not run",
        see: "DETAIL says what the service saw",
        cure: "relay services that need --identity loopback (`attach --foreground`)",
    }
    MISSING_SPLICE_RELAY: "missing-splice-relay", Warning, "check", "0.1.0" {
        symptom: "`splice_relay`: a relayed connection failed",
        cause: "what steering cannot reach cannot be relayed either",
        see: "DETAIL says how far the connection came",
        cure: "attach only what can be steered to, or make room (open files, pipes, memory) and check again",
    }
    MISSING_SOCKMAP_RELAY: "missing-sockmap-relay", Info, "check", "0.1.0" {
        symptom: "`sockmap_relay`: a kernel with known bugs",
        cause: "the kernel loses or repeats bytes in a socket map, or cannot relay through one \
                ([which ones](kernels.md#sockmap)); `auto` relays with splice anyway",
        see: "`uname -r`",
        cure: "",
    }
}
