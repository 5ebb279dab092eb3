//! A scratch topology for probes: a "host" network namespace with a bridge, and a "container" namespace on it.
//!
//! Invariants: everything lives in two new namespaces held only by values of this process, so nothing of the
//! machine's own network changes and the kernel removes all of it when the probe ends, however it ends.

use std::{net::Ipv4Addr, os::fd::AsRawFd as _, thread};

use anyhow::{Context as _, anyhow};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth};

use crate::net::{
    links::{Bridge, bridge_by_name, link_by_name},
    namespace::Namespace,
};

/// The gateway address, from the range set aside for network benchmarks (RFC 2544).
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The container's address.
pub(crate) const CONTAINER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const PREFIX: u8 = 24;
const BRIDGE: &str = "bu-br0";
const HOST_END: &str = "bu-h0";
const CONTAINER_END: &str = "bu-c0";

/// The two namespaces, for as long as this is held.
pub(crate) struct Scratch {
    /// The bridge, with its gateway address.
    pub(crate) bridge: Bridge,
    /// Where the bridge is, and where probes run.
    pub(crate) host: Namespace,
    container: Namespace,
}

impl Scratch {
    /// Runs `probe` on a thread in the host namespace.
    ///
    /// # Errors
    /// When the topology cannot be made, or what `probe` returns.
    pub(crate) fn run<T: Send>(probe: impl FnOnce(&Self) -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        let host = new_namespace()?;
        let container = new_namespace()?;
        let bridge = host
            .run(|| netlink(set_up_host(&host, &container)))??
            .context("failed to set up the scratch bridge")?;
        container.run(|| netlink(set_up_container(&container)))???;
        let scratch = Self { bridge, host, container };
        scratch.host.run(|| probe(&scratch))?
    }

    /// Runs `job` in the container namespace and waits for its result.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub(crate) fn in_container<T: Send>(&self, job: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        self.container.run(job).context("failed to run a part of the probe in the scratch container")
    }
}

/// A new namespace, held by nothing but the value: the thread that made it has ended.
fn new_namespace() -> anyhow::Result<Namespace> {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).context("failed to make a scratch network namespace")?;
        Namespace::current()
    };
    thread::spawn(make).join().map_err(|_| anyhow!("the thread of a scratch network namespace panicked"))?
}

fn netlink<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.context("failed to start the async runtime")?.block_on(future))
}

async fn set_up_host(host: &Namespace, container: &Namespace) -> anyhow::Result<Bridge> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    handle.link().add(LinkBridge::new(BRIDGE).up().build()).execute().await?;
    handle.link().add(LinkVeth::new(HOST_END, CONTAINER_END).build()).execute().await?;
    let bridge = index_of(host, BRIDGE)?;
    handle.address().add(bridge, GATEWAY.into(), PREFIX).execute().await?;
    let port: LinkMessageBuilder<LinkUnspec> = LinkUnspec::new_with_index(index_of(host, HOST_END)?);
    handle.link().set(port.controller(bridge).up().build()).execute().await?;
    let moved =
        LinkUnspec::new_with_index(index_of(host, CONTAINER_END)?).setns_by_fd(container.file().as_raw_fd());
    handle.link().set(moved.build()).execute().await?;
    handle.link().set(LinkUnspec::new_with_index(index_of(host, "lo")?).up().build()).execute().await?;
    Ok(bridge_by_name(host, BRIDGE)?)
}

async fn set_up_container(container: &Namespace) -> anyhow::Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    let end = index_of(container, CONTAINER_END)?;
    handle.address().add(end, CONTAINER.into(), PREFIX).execute().await?;
    for index in [end, index_of(container, "lo")?] {
        handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?;
    }
    Ok(())
}

fn index_of(namespace: &Namespace, name: &str) -> anyhow::Result<u32> {
    Ok(link_by_name(namespace, name)?.with_context(|| format!("interface {name} is missing"))?.index)
}
