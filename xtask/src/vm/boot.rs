//! One guest under QEMU, from power-on to its report.

use std::{
    fmt,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read, Write as _},
    mem,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{
    counts::Counts,
    exec,
    ui::{Detail, Step},
    vm::{
        archive::Tree,
        console::{Console, End, Scope, Source},
        manifest::Kernel,
        seen::{Rows, Seen},
    },
    workspace::Workspace,
};

const QEMU: &str = "qemu-system-x86_64";
/// How long a guest may take to go off after its outcome line, or after the emulator failed.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(15);

/// What executes the guest.
///
/// Emulation is the rule: it works everywhere, and a /dev/kvm that opens, and even starts a guest, may still stop it
/// in the middle of its boot on machines that are virtual themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accelerator {
    /// QEMU's emulation.
    Emulation,
    /// The processor, through KVM.
    Kvm,
}

impl Accelerator {
    fn name(self) -> &'static str {
        match self {
            Self::Emulation => "tcg,thread=multi",
            Self::Kvm => "kvm",
        }
    }
}

/// What became of one kernel.
pub(super) struct Report {
    /// The kernel's name.
    pub(super) name: String,
    version: String,
    /// From power-on to the start of the suite.
    boot: Option<Duration>,
    took: Duration,
    /// The suite's numbers.
    pub(super) counts: Counts,
    /// Which datapath served what.
    pub(super) served: Rows,
    problems: Vec<String>,
    /// Warnings of the kernel that are known and fail nothing.
    known: Vec<String>,
    /// Why it was started again.
    deaths: Vec<String>,
}

impl Report {
    /// The report of a kernel that could not even be started.
    pub(super) fn not_run(kernel: &Kernel, error: &anyhow::Error) -> Self {
        Self {
            name: kernel.name.clone(),
            version: kernel.version.clone(),
            boot: None,
            took: Duration::ZERO,
            counts: Counts::default(),
            served: Rows::new(),
            problems: vec![format!("{error:#}")],
            known: Vec::new(),
            deaths: Vec::new(),
        }
    }

    /// Takes it as a problem when a good run showed something else than what was recorded.
    pub(super) fn compare(&mut self, kernel: &Kernel, recorded: &Seen, scope: Scope) {
        if self.is_ok() {
            self.problems = recorded.differences(kernel, &self.served, scope);
        }
    }

    /// Takes it as a problem when something about a good run could not be done.
    pub(super) fn note(&mut self, outcome: Result<()>) {
        self.problems.extend(outcome.err().map(|error| format!("{error:#}")));
    }

    /// Whether everything went as it should.
    pub(super) fn is_ok(&self) -> bool {
        self.problems.is_empty()
    }

    /// The cells of the final table.
    pub(super) fn row(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.version.clone(),
            self.boot.map_or_else(|| "-".to_owned(), seconds),
            self.counts.passed.to_string(),
            self.counts.failed.to_string(),
            self.counts.ignored.to_string(),
            seconds(self.took),
            if self.is_ok() { "ok" } else { "FAILED" }.to_owned(),
        ]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let boot =
            self.boot.map_or_else(|| "not booted".to_owned(), |boot| format!("boot {}", seconds(boot)));
        let verdict = if self.is_ok() { "ok" } else { "FAILED" };
        let Self { name, version, counts, took, .. } = self;
        write!(f, "{name:<8} {version:<20} {boot:<12} {counts:<26} {:<8} {verdict}", seconds(*took))?;
        self.known.iter().try_for_each(|line| write!(f, "\n         - known kernel bug: {line}"))?;
        self.deaths.iter().try_for_each(|why| write!(f, "\n         - died and was started again: {why}"))?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n         - {problem}"))
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// Boots the kernel with the image and watches it to its end.
pub(super) fn run(
    ws: &Workspace,
    kernel: &Kernel,
    tree: &Tree,
    image: &Path,
    accelerator: Accelerator,
) -> Result<Report> {
    let logs = ws.target("vm/logs");
    fs::create_dir_all(&logs).with_context(|| format!("failed to create {}", logs.display()))?;
    let log = logs.join(format!("{}.log", kernel.name));
    let step = Step::start(format!("kernel {}", kernel.name), Detail::OnlyWork);
    let limit = Duration::from_secs(kernel.timeout);
    let boot = || -> Result<_> {
        let mut guest = Guest::start(&tree.vmlinuz, image, &log, accelerator)?;
        let end = guest.watch(limit, &step)?;
        Ok((guest, end))
    };
    let (mut guest, mut end) = boot()?;
    let mut deaths = Vec::new();
    let emulated = accelerator == Accelerator::Emulation;
    let says_nothing =
        |guest: &Guest| !guest.console.started() || (emulated && guest.console.emulator_failed());
    while deaths.len() + 1 < BOOTS && says_nothing(&guest) {
        let died = logs.join(format!("{}.died.log", kernel.name));
        fs::rename(&log, &died).with_context(|| format!("failed to keep log {}", died.display()))?;
        let why = guest.console.problems(end).join("; ");
        step.say(&format!("it died and is started again, its log is {}: {why}", died.display()));
        deaths.push(why);
        (guest, end) = boot()?;
    }
    Ok(Report {
        name: kernel.name.clone(),
        version: kernel.version.clone(),
        boot: guest.boot,
        took: guest.started.elapsed(),
        counts: guest.console.counts,
        problems: guest.console.problems(end),
        served: mem::take(&mut guest.console.served),
        known: guest.console.known_warnings().to_vec(),
        deaths,
    })
}

/// A running virtual machine. It is stopped when this is dropped.
struct Guest {
    qemu: Child,
    lines: Receiver<(Source, String)>,
    log: File,
    log_path: PathBuf,
    console: Console,
    started: Instant,
    boot: Option<Duration>,
}

impl Guest {
    fn start(vmlinuz: &Path, image: &Path, log: &Path, accelerator: Accelerator) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("failed to create log {}", log.display()))?;
        let mut command =
            exec::tool(exec::which(QEMU).context("failed to find QEMU: install qemu-system-x86")?);
        arguments(&mut command, vmlinuz, image, accelerator);
        let mut qemu = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("failed to start QEMU")?;
        let (sender, lines) = mpsc::channel();
        let stdout = qemu.stdout.take().context("failed to read from QEMU")?;
        let stderr = qemu.stderr.take().context("failed to read from QEMU")?;
        follow(stdout, Source::Suite, sender.clone());
        follow(stderr, Source::Kernel, sender);
        let (log, log_path) = (file, log.to_path_buf());
        Ok(Self {
            qemu,
            lines,
            log,
            log_path,
            console: Console::default(),
            started: Instant::now(),
            boot: None,
        })
    }

    /// Reads until the machine is off, or for `limit`.
    fn watch(&mut self, limit: Duration, step: &Step) -> Result<End> {
        let mut deadline = self.started + limit;
        let mut finishing = false;
        loop {
            match self.lines.recv_timeout(Duration::from_millis(200)) {
                Ok((source, line)) => self.line(source, &line, step)?,
                Err(RecvTimeoutError::Disconnected) => return Ok(End::Off),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if (self.console.finished() || self.console.emulator_failed()) && !finishing {
                finishing = true;
                deadline = Instant::now() + POWER_OFF_LIMIT;
            }
            if Instant::now() > deadline {
                let failed = self.console.emulator_failed();
                return Ok(if failed { End::Emulator } else { End::TimedOut(limit.as_secs()) });
            }
        }
    }

    fn line(&mut self, source: Source, line: &str, step: &Step) -> Result<()> {
        let at = self.started.elapsed().as_secs_f64();
        writeln!(self.log, "{at:7.2} {:<6} {line}", source.mark())
            .with_context(|| format!("failed to write log {}", self.log_path.display()))?;
        self.console.line(source, line);
        if self.boot.is_none() && self.console.started() {
            self.boot = Some(self.started.elapsed());
        }
        step.note(line);
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _gone = self.qemu.kill();
        let _status = self.qemu.wait();
    }
}

/// The first serial port, the kernel's console, goes to stderr; the second, the suite's, to stdout. Everything the
/// emulator knows, without what it is slow at: `rep movsb` and `rep stosb` go byte by byte (QEMU 7.2), so the kernel
/// shall not copy and clear pages with them; nor shall a walk through the page tables have a fifth level.
const CPU: &str = "max,erms=off,fsrm=off,la57=off";

/// With `norandmaps` a program is at the same address each time, where the emulator has translated it before: 8 ms
/// and not 55 for `bridge-user --version`. (Not `tsc=reliable`: it has the kernel patch code that the other processor
/// runs, while it boots, for which see [`BOOTS`].)
const PARAMETERS: &str = "console=ttyS0 loglevel=6 panic=-1 oops=panic random.trust_cpu=on norandmaps";

/// How often a guest is started that dies before the suite has begun, or of the emulator
/// ([`Console::emulator_failed`], seen four times). With all processors of a guest on one thread
/// (`tcg,thread=single`) that was not seen, but to turn a group of tracepoints on or off, which patches the kernel's
/// code, then took 0.7 s: one processor waits for the other.
const BOOTS: usize = 2;

fn arguments(command: &mut Command, vmlinuz: &Path, image: &Path, accelerator: Accelerator) {
    command
        .args(["-accel", accelerator.name(), "-cpu", CPU, "-smp", "2", "-m", "2048"])
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-chardev", "file,id=kernel,path=/dev/stderr", "-serial", "chardev:kernel"])
        .args(["-chardev", "stdio,id=suite,signal=off", "-serial", "chardev:suite"])
        .arg("-kernel")
        .arg(vmlinuz)
        .arg("-initrd")
        .arg(image)
        .args(["-append", PARAMETERS]);
}

fn follow(pipe: impl Read + Send + 'static, source: Source, sender: Sender<(Source, String)>) {
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send((source, line)).is_err() {
                break;
            }
        }
    });
}
