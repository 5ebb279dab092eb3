//! What this kernel's eBPF can do, by asking the verifier, never by version.

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported, is_program_supported},
};

use super::sys;
pub use crate::model::features::Features;

impl Features {
    /// Asks the running kernel. Needs CAP_BPF and CAP_NET_ADMIN.
    ///
    /// # Errors
    /// When a probe program cannot be loaded for a reason other than the feature being absent, for example a
    /// missing capability.
    pub fn detect() -> anyhow::Result<Self> {
        let helper = |helper| is_helper_supported(ProgramType::SockOps, helper);
        let sk_lookup = is_program_supported(ProgramType::SkLookup)?;
        let mptcp_helper = helper(BpfHelper::BPF_FUNC_skc_to_mptcp_sock)? && kernel_has_mptcp();
        Ok(Self {
            sk_lookup,
            ingress_ifindex: sk_lookup && sys::sk_lookup_has_ingress_ifindex()?,
            netns_cookie: helper(BpfHelper::BPF_FUNC_get_netns_cookie)?,
            mptcp_helper,
            tcx: mptcp_helper && sys::has_tcx()?,
        })
    }
}

/// Without CONFIG_MPTCP the helper's return type is missing from BTF and the verifier rejects the call.
fn kernel_has_mptcp() -> bool {
    std::path::Path::new("/proc/sys/net/mptcp/enabled").exists()
}
