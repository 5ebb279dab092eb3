//! Load-time switches, set by userspace from what the kernel can do. They live in read-only data, so the verifier
//! sees constants and never looks at the branch an older kernel would reject. (aya-log has one more: the level.)

use aya_ebpf::Global;

/// `bpf_sk_lookup.ingress_ifindex` exists (Linux 5.17, f89315650ba3).
#[unsafe(no_mangle)]
pub(crate) static HAVE_INGRESS_IFINDEX: Global<u8> = Global::new(1);

/// `bpf_get_netns_cookie` is allowed in sock_ops (Linux 5.15, 6cf1770d63dd).
#[unsafe(no_mangle)]
pub(crate) static HAVE_NETNS_COOKIE: Global<u8> = Global::new(1);

/// `bpf_skc_to_mptcp_sock` exists (Linux 5.19, 3bc253c2e652).
#[unsafe(no_mangle)]
pub(crate) static HAVE_MPTCP_HELPER: Global<u8> = Global::new(1);
