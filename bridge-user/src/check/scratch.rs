//! A scratch topology for probes: a "host" network namespace with a bridge, and a "container" namespace on it.
//!
//! Invariants: everything lives in two new namespaces held only by two threads of this process, so nothing of the
//! machine's own network changes and the kernel removes all of it when the probe ends, however it ends.

use std::{
    fs::File,
    net::Ipv4Addr,
    os::fd::AsRawFd as _,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

use anyhow::{Context as _, anyhow};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth};

use crate::{
    kernel::host,
    net::links::{Bridge, bridge_by_name, link_by_name},
};

/// The gateway address, from the range set aside for network benchmarks (RFC 2544).
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The container's address.
pub(super) const CONTAINER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const PREFIX: u8 = 24;
const BRIDGE: &str = "bu-br0";
const HOST_END: &str = "bu-h0";
const CONTAINER_END: &str = "bu-c0";

type Job = Box<dyn FnOnce() + Send>;

/// The container side, where closures can be run; the calling thread is the host side.
pub(super) struct Scratch {
    /// The bridge, with its gateway address.
    pub(super) bridge: Bridge,
    jobs: Sender<Job>,
}

impl Scratch {
    /// Runs `probe` on a thread in the host namespace.
    ///
    /// # Errors
    /// When the topology cannot be made, or what `probe` returns.
    pub(super) fn run<T: Send>(probe: impl FnOnce(&Self) -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        let probe_in_host = || {
            unshare(CloneFlags::CLONE_NEWNET).context("failed to make a scratch network namespace")?;
            let (jobs, container) = container_thread()?;
            let bridge = netlink(set_up_host(&container))?.context("failed to set up the scratch bridge")?;
            let scratch = Self { bridge, jobs };
            scratch.in_container(|| netlink(set_up_container()))???;
            probe(&scratch)
        };
        thread::scope(|scope| {
            scope.spawn(probe_in_host).join().map_err(|_| anyhow!("the probe thread panicked"))?
        })
    }

    /// Runs `job` in the container namespace and waits for its result.
    ///
    /// # Errors
    /// When the container thread is gone.
    pub(super) fn in_container<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<T> {
        let (result, answer) = channel();
        let job = move || {
            // The receiver waits below; it can only be gone together with the whole probe.
            let _ = result.send(job());
        };
        self.jobs.send(Box::new(job)).map_err(|_| anyhow!("the scratch container's thread is gone"))?;
        answer.recv().context("the scratch container's thread died in a probe")
    }
}

/// A thread in a new namespace that runs jobs until the sender is dropped.
fn container_thread() -> anyhow::Result<(Sender<Job>, File)> {
    let (jobs, inbox): (Sender<Job>, Receiver<Job>) = channel();
    let (ready, namespace) = channel();
    thread::spawn(move || {
        let opened = unshare(CloneFlags::CLONE_NEWNET)
            .context("failed to make a scratch network namespace")
            .and_then(|()| host::netns());
        if ready.send(opened).is_ok() {
            inbox.into_iter().for_each(|job| job());
        }
    });
    let namespace = namespace.recv().context("the scratch container's thread did not start")??;
    Ok((jobs, namespace))
}

fn netlink<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.context("failed to start the async runtime")?.block_on(future))
}

async fn set_up_host(container: &File) -> anyhow::Result<Bridge> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    handle.link().add(LinkBridge::new(BRIDGE).up().build()).execute().await?;
    handle.link().add(LinkVeth::new(HOST_END, CONTAINER_END).build()).execute().await?;
    let bridge = index_of(BRIDGE)?;
    handle.address().add(bridge, GATEWAY.into(), PREFIX).execute().await?;
    let port: LinkMessageBuilder<LinkUnspec> = LinkUnspec::new_with_index(index_of(HOST_END)?);
    handle.link().set(port.controller(bridge).up().build()).execute().await?;
    let moved = LinkUnspec::new_with_index(index_of(CONTAINER_END)?).setns_by_fd(container.as_raw_fd());
    handle.link().set(moved.build()).execute().await?;
    handle.link().set(LinkUnspec::new_with_index(index_of("lo")?).up().build()).execute().await?;
    Ok(bridge_by_name(BRIDGE)?)
}

async fn set_up_container() -> anyhow::Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    let end = index_of(CONTAINER_END)?;
    handle.address().add(end, CONTAINER.into(), PREFIX).execute().await?;
    for index in [end, index_of("lo")?] {
        handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?;
    }
    Ok(())
}

fn index_of(name: &str) -> anyhow::Result<u32> {
    Ok(link_by_name(name)?.with_context(|| format!("interface {name} is missing"))?.index)
}
