//! The test network with one relay in the foreground, and the proof of which way its bytes went.
//!
//! Invariants: the datapath is named, never left to the binary's choice; status must show that
//! datapath; a connection counts as the kernel's only when its counters say so, so that nothing here
//! passes because sockmap quietly fell back to splice.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{Backlog, listen};

use super::cli::{Attachment, Cli};
use super::client::{connect, dial, with_deadlines};
use super::endings::expect_bytes;
use super::foreground::Foreground;
use super::kernel::sockmap_is_trusted;
use super::kernel_ids::KernelIds;
use super::rig::Rig;
use super::service::{Port, listener};
use super::topology::{GATEWAY_A, at, local};
use super::transcript::note;
use super::wait::{patience, until};

/// The port of the relay on the gateway, and of its target on loopback.
pub(crate) const PORT: u16 = 7001;
/// What the attachment is called.
pub(crate) const NAME: &str = "br-a-tcp-7001";
/// Exchanges after which a connection that is not the kernel's yet never will be.
const WARM_UP: usize = 200;

/// Where clients connect to.
pub(crate) fn gateway() -> SocketAddr {
    at(GATEWAY_A, PORT)
}

/// The way a relay moves bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Datapath {
    Splice,
    Sockmap,
}

impl Datapath {
    /// As `status` and `--datapath` spell it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Splice => "splice",
            Self::Sockmap => "sockmap",
        }
    }

    /// The options that ask for it here: below the floor a user has to insist.
    pub(crate) fn options(self) -> Result<&'static [&'static str]> {
        Ok(match self {
            Self::Splice => &["--datapath", "splice"],
            Self::Sockmap if sockmap_is_trusted()? => &["--datapath", "sockmap"],
            Self::Sockmap => &["--datapath", "sockmap", "--force"],
        })
    }
}

/// A relay's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RelayCounters {
    pub(crate) accepted: u64,
    pub(crate) denied: u64,
    pub(crate) no_listener: u64,
    pub(crate) foreign_target: u64,
    pub(crate) active: u64,
    pub(crate) bytes_up: u64,
    pub(crate) bytes_down: u64,
    pub(crate) resets: u64,
    pub(crate) repeated: u64,
    pub(crate) over_limit: u64,
    pub(crate) over_share: u64,
    pub(crate) stalled: u64,
    pub(crate) no_descriptor: u64,
    pub(crate) idle_closed: u64,
    pub(crate) accept_errors: u64,
    pub(crate) offloaded: u64,
    pub(crate) refused_offload: u64,
    pub(crate) redirected: u64,
}

impl RelayCounters {
    fn of(attachment: &Attachment) -> Result<Self> {
        let relay = &attachment.raw["counters"]["relay"];
        let count = |key: &str| {
            let found = relay[key].as_u64();
            found.with_context(|| format!("no relay counter {key}: {}", attachment.raw))
        };
        Ok(Self {
            accepted: attachment.counters.accepted,
            denied: attachment.counters.denied,
            no_listener: attachment.counters.no_listener,
            foreign_target: count("foreign_target")?,
            active: count("active")?,
            bytes_up: count("bytes_up")?,
            bytes_down: count("bytes_down")?,
            resets: count("resets")?,
            repeated: count("repeated")?,
            over_limit: count("over_limit")?,
            over_share: count("over_share")?,
            stalled: count("stalled")?,
            no_descriptor: count("no_descriptor")?,
            idle_closed: count("idle_closed")?,
            accept_errors: count("accept_errors")?,
            offloaded: count("offloaded")?,
            refused_offload: count("refused_offload")?,
            redirected: count("redirected")?,
        })
    }
}

/// A running relay with a listener behind it that the trial accepts from by hand.
pub(crate) struct Stage {
    // The relay goes first: it runs in the namespaces of the rig.
    pub(crate) relay: Foreground,
    pub(crate) target: TcpListener,
    pub(crate) rig: Rig,
    pub(crate) datapath: Datapath,
}

/// Whether a relay whose counters were read has counted a connection in which the kernel repeated bytes.
static REPEATED: AtomicBool = AtomicBool::new(false);

/// Runs a trial of the sockmap relay, and again if it failed while the kernel repeated bytes of a connection, which the
/// relay then resets: that is the kernel's fault, counted as such, and shows on a busy machine.
pub(crate) fn unless_repeated<T>(run: impl Fn() -> Result<T>) -> Result<T> {
    const TRIES: usize = 3;
    let ids = KernelIds::take()?;
    for _ in 1..TRIES {
        REPEATED.store(false, Relaxed);
        match run() {
            Err(error) if REPEATED.load(Relaxed) => {
                note(format!("again, after repeated bytes: {error:#}"));
            }
            outcome => return outcome,
        }
        // The kernel frees what the failed try held later, which is not to disturb what the next one counts.
        ids.wait_nothing_new().context("between two tries, after repeated bytes")?;
    }
    run()
}

impl Drop for Stage {
    fn drop(&mut self) {
        // For `unless_repeated`. A trial may have ended the relay.
        drop(self.counters());
    }
}

impl Stage {
    /// A relay with default options.
    pub(crate) fn new(datapath: Datapath) -> Result<Self> {
        Self::with(datapath, &[])
    }

    /// A relay with more options.
    pub(crate) fn with(datapath: Datapath, options: &[&str]) -> Result<Self> {
        let rig = Rig::new()?;
        let target = listener(&rig.net.host, local(PORT), Port::Exclusive)?;
        Self::around(rig, target, datapath, options)
    }

    /// A relay to a listener of the trial's own.
    pub(crate) fn around(
        rig: Rig,
        target: TcpListener,
        datapath: Datapath,
        options: &[&str],
    ) -> Result<Self> {
        target.set_nonblocking(true)?;
        let relay = start(&rig.cli(), &PORT.to_string(), datapath, options)?;
        Ok(Self { relay, target, rig, datapath })
    }

    /// Starts another relay with the same datapath in place of the one that ended.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.relay = start(&self.rig.cli(), &PORT.to_string(), self.datapath, &[])?;
        Ok(())
    }

    /// A client's connection.
    pub(crate) fn dial(&self) -> Result<TcpStream> {
        connect(&self.rig.net.a1, gateway())
    }

    /// The target's end of the next connection.
    pub(crate) fn accept(&self) -> Result<TcpStream> {
        let (stream, _) =
            until("the target gets a connection", patience(10), || match self.target.accept() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
                accepted => Ok(Some(accepted.context("the target failed to accept")?)),
            })?;
        Ok(with_deadlines(stream)?)
    }

    /// A client and the target's end of the same connection, before any byte.
    pub(crate) fn pair(&self) -> Result<(TcpStream, TcpStream)> {
        let client = self.dial()?;
        Ok((client, self.accept()?))
    }

    /// A connection that has carried bytes both ways and, where the datapath is the kernel's, is
    /// carried by the kernel by now.
    pub(crate) fn warm_pair(&self) -> Result<(TcpStream, TcpStream)> {
        let (client, server) = self.pair()?;
        self.warm_up(&client, &server)?;
        Ok((client, server))
    }

    /// Exchanges small messages until the datapath carries the connection.
    pub(crate) fn warm_up(&self, client: &TcpStream, server: &TcpStream) -> Result<()> {
        let before = self.counters()?;
        for round in 0..WARM_UP {
            for (mut from, to) in [(client, server), (server, client)] {
                let text = [u8::try_from(round % 251)?; 1000];
                from.write_all(&text)?;
                expect_bytes(to, &text)?;
            }
            let now = self.counters()?;
            ensure!(now.refused_offload == before.refused_offload, "the kernel refused a socket: {now:?}");
            let taken = now.offloaded > before.offloaded && now.redirected > before.redirected;
            if self.datapath == Datapath::Splice || taken {
                return Ok(());
            }
        }
        bail!("after {WARM_UP} exchanges the kernel does not carry the connection: {:?}", self.counters()?)
    }

    /// The counters now, after checking that status names the datapath.
    pub(crate) fn counters(&self) -> Result<RelayCounters> {
        counters(&self.rig.cli(), NAME, self.datapath)
    }

    /// Waits until the counters satisfy `condition`; returns them.
    pub(crate) fn counters_become(
        &self,
        what: &str,
        condition: impl Fn(&RelayCounters) -> bool,
    ) -> Result<RelayCounters> {
        let mut last = RelayCounters::default();
        let found = until(what, patience(10), || {
            last = self.counters()?;
            Ok(condition(&last).then_some(last))
        });
        found.with_context(|| format!("the counters are {last:?}"))
    }

    /// All `count` connections ended in order, and the bytes of at least one went the way they
    /// were to go.
    pub(crate) fn all_ended_well(&self, count: u64) -> Result<RelayCounters> {
        let ended = self.counters_become("all connections ended", |now| now.active == 0)?;
        let expected = RelayCounters { accepted: count, ..RelayCounters::default() };
        let outcome = RelayCounters {
            bytes_up: 0,
            bytes_down: 0,
            offloaded: 0,
            refused_offload: 0,
            redirected: 0,
            ..ended
        };
        ensure!(outcome == expected, "the counters are {ended:?}");
        ended.prove(self.datapath)?;
        Ok(ended)
    }
}

impl RelayCounters {
    /// Bytes went by the datapath and by no other.
    pub(crate) fn prove(&self, datapath: Datapath) -> Result<()> {
        match datapath {
            Datapath::Splice => {
                ensure!(self.offloaded + self.redirected == 0, "splice used the kernel's path: {self:?}");
            }
            Datapath::Sockmap => {
                ensure!(self.offloaded > 0 && self.redirected > 0, "the kernel moved nothing: {self:?}");
                ensure!(self.refused_offload == 0, "the kernel refused sockets: {self:?}");
            }
        }
        Ok(())
    }
}

/// Starts a relay for `spec` on br-a.
pub(crate) fn start(cli: &Cli<'_>, spec: &str, datapath: Datapath, options: &[&str]) -> Result<Foreground> {
    let relay =
        Foreground::start(cli, &[&[spec, "--bridge", "br-a"], datapath.options()?, options].concat())?;
    let shown = &relay.report()["attachments"][0]["datapath"];
    ensure!(shown == datapath.name(), "the report names datapath {shown}: {}", relay.report());
    Ok(relay)
}

/// The counters of the relay called `name`. Repetitions that they show are known to [`unless_repeated`] from then on.
pub(crate) fn counters(cli: &Cli<'_>, name: &str, datapath: Datapath) -> Result<RelayCounters> {
    let attachment = cli.attachment(name)?;
    let shown = &attachment.datapath;
    ensure!(shown == datapath.name(), "{name} uses datapath {shown} instead of {}", datapath.name());
    let now = RelayCounters::of(&attachment)?;
    if now.repeated > 0 {
        REPEATED.store(true, Relaxed);
    }
    Ok(now)
}

/// [`counters`], once no connection is open: a relay counts that just after the peers have learned of the end.
pub(crate) fn final_counters(cli: &Cli<'_>, name: &str, datapath: Datapath) -> Result<RelayCounters> {
    until("no connection is open", patience(10), || {
        let now = counters(cli, name, datapath)?;
        Ok((now.active == 0).then_some(now))
    })
}

/// Leaves no room in a target's queue, so that the next connection to it stays unfinished until
/// the returned ones are accepted.
pub(crate) fn fill_queue(rig: &Rig, target: &TcpListener) -> Result<Vec<TcpStream>> {
    listen(target, Backlog::new(0)?).context("failed to shorten the queue")?;
    let address = target.local_addr()?;
    // A queue of 0 holds one.
    Ok(vec![rig.net.host.run(|| dial(address)).context("failed to fill the queue")?])
}
