//! Running other programs: with their output shown, captured, or kept in a log behind a spinner.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{BufRead as _, BufReader, Read, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::{Pid, geteuid},
};

use crate::ui::Step;

/// How many of the last lines of a failed program are repeated in the error.
const TAIL_LINES: usize = 15;

/// A program outside the workspace. Cargo adds its own library directory to the environment of what it runs; other
/// compilers must not see it.
pub(crate) fn tool(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_remove("LD_LIBRARY_PATH");
    command
}

/// The first executable called `name` on PATH, or in the directories where system programs live.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    all_called(name).next()
}

/// Every executable that [`which`] would find if those before it were not there.
pub(crate) fn all_called(name: &str) -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<PathBuf> = env::split_paths(&path).collect();
    dirs.into_iter()
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(move |dir| dir.join(name))
        .filter(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Runs `command` with its output shown; `what` completes "failed to …".
pub(crate) fn run(command: &mut Command, what: &str) -> Result<()> {
    let status =
        command.status().with_context(|| format!("failed to {what}: cannot run {}", show(command)))?;
    if !status.success() {
        bail!("failed to {what}: {} ended with {status}", show(command));
    }
    Ok(())
}

/// Runs `command` and returns what it printed on stdout.
pub(crate) fn capture(command: &mut Command, what: &str) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to {what}: cannot run {}", show(command)))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("failed to {what}: {} ended with {}: {}", show(command), output.status, errors.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command` with its output shown, and returns what it printed on stderr.
pub(crate) fn run_teeing_errors(command: &mut Command, what: &str) -> Result<String> {
    let mut said = String::new();
    let status = each_line(command.stdout(Stdio::inherit()).stderr(Stdio::piped()), what, |line| {
        eprintln!("{line}");
        said.push_str(line);
        said.push('\n');
    })?;
    if !status.success() {
        bail!("failed to {what}: {} ended with {status}", show(command));
    }
    Ok(said)
}

/// Runs `command`, handing each line of its one piped output to `seen`. What it left running in the background may
/// keep that pipe open; it is not waited for.
pub(crate) fn each_line(command: &mut Command, what: &str, mut seen: impl FnMut(&str)) -> Result<ExitStatus> {
    let failed = |command: &Command| format!("failed to {what}: cannot run {}", show(command));
    let mut child = command.spawn().with_context(|| failed(command))?;
    let (sender, lines) = mpsc::channel();
    let pipe = child.stdout.take().map(boxed).or_else(|| child.stderr.take().map(boxed));
    let _reader = pipe.map(|pipe| {
        thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        })
    });
    let mut ended = None;
    loop {
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok(line) => seen(&line),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if ended.is_some() => break,
            Err(RecvTimeoutError::Timeout) => ended = child.try_wait().with_context(|| failed(command))?,
        }
    }
    ended.map_or_else(|| child.wait().with_context(|| failed(command)), Ok)
}

/// Runs `command` quietly: output goes to `log`, the last line to the spinner. It is stopped after `limit`.
pub(crate) fn run_logged(
    command: &mut Command,
    what: &str,
    step: &Step,
    log: &Path,
    limit: Duration,
) -> Result<()> {
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))?;
    }
    let file = File::create(log).with_context(|| format!("failed to create log {}", log.display()))?;
    let lines = Arc::new(Mutex::new(Lines { file, tail: Vec::new() }));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("failed to {what}: cannot run {}", show(command)))?;
    let readers = [child.stdout.take().map(boxed), child.stderr.take().map(boxed)]
        .into_iter()
        .flatten()
        .map(|pipe| follow(pipe, Arc::clone(&lines)))
        .collect::<Vec<_>>();
    let status = wait(&mut child, limit, || step.note(&Lines::last(&lines)))
        .with_context(|| format!("failed to {what}: {} (log: {})", show(command), log.display()))?;
    for reader in readers {
        let _joined = reader.join();
    }
    if !status.success() {
        let tail = Lines::joined(&lines);
        bail!("failed to {what}: {} ended with {status} (log: {})\n{tail}", show(command), log.display());
    }
    Ok(())
}

/// Waits for a child that leads its own process group, calling `tick` meanwhile, and stops the group after `limit`.
fn wait(child: &mut Child, limit: Duration, mut tick: impl FnMut()) -> Result<ExitStatus> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for it")? {
            return Ok(status);
        }
        if started.elapsed() > limit {
            let group = i32::try_from(child.id()).context("its process id is out of range")?;
            stop(group)?;
            let _status = child.wait();
            bail!("it did not finish within {} s", limit.as_secs());
        }
        tick();
        thread::sleep(Duration::from_millis(50));
    }
}

/// Kills a process group. What is root's may refuse, as sudo does; waiting for it could then take for ever.
fn stop(group: i32) -> Result<()> {
    match killpg(Pid::from_raw(group), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => {
            bail!("it takes too long and cannot be stopped ({error}): as root: kill -KILL -- -{group}")
        }
    }
}

/// A log file and the last lines written to it.
struct Lines {
    file: File,
    tail: Vec<String>,
}

impl Lines {
    fn push(&mut self, line: String) {
        let _written = writeln!(self.file, "{line}");
        if self.tail.len() == TAIL_LINES {
            self.tail.remove(0);
        }
        self.tail.push(line);
    }

    fn last(lines: &Mutex<Self>) -> String {
        lines.lock().map(|lines| lines.tail.last().cloned().unwrap_or_default()).unwrap_or_default()
    }

    fn joined(lines: &Mutex<Self>) -> String {
        lines.lock().map(|lines| lines.tail.join("\n")).unwrap_or_default()
    }
}

fn boxed(pipe: impl Read + Send + 'static) -> Box<dyn Read + Send> {
    Box::new(pipe)
}

fn follow(pipe: Box<dyn Read + Send>, lines: Arc<Mutex<Lines>>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            if let Ok(mut lines) = lines.lock() {
                lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
        }
    })
}

/// A command that runs as root: directly when this process is, through sudo otherwise, which may ask for a password on
/// the terminal. `what` completes "failed to …".
pub(crate) fn as_root(program: &Path, envs: &[(&str, OsString)], what: &str) -> Result<Command> {
    if geteuid().is_root() {
        let mut command = tool(program);
        command.envs(envs.iter().map(|(name, value)| (name, value)));
        return Ok(command);
    }
    let mut command = tool(sudo(what)?);
    with_env(&mut command, program, envs);
    Ok(command)
}

/// The same for [`run_logged`], in whose background a question would stop sudo for ever: a password is asked for at
/// once, and never later.
pub(crate) fn as_root_unasked(
    program: &Path,
    envs: &[(&str, OsString)],
    what: &str,
    step: &Step,
) -> Result<Command> {
    if geteuid().is_root() {
        return as_root(program, envs, what);
    }
    let sudo = sudo(what)?;
    ask_password(&sudo, what, step)?;
    let mut command = tool(sudo);
    with_env(command.arg("-n"), program, envs);
    Ok(command)
}

fn sudo(what: &str) -> Result<PathBuf> {
    which("sudo").with_context(|| {
        format!("failed to {what}: it needs root and sudo is not installed: run the same command as root")
    })
}

/// Has sudo ask for the password, if it wants one, so that it needs none for the next minutes.
fn ask_password(sudo: &Path, what: &str, step: &Step) -> Result<()> {
    // `sudo -v` may want a password even of those who can run everything without one.
    let mut probe = tool(sudo);
    probe.args(["-n", "env", "true"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if probe.status().is_ok_and(|status| status.success()) {
        return Ok(());
    }
    let mut command = tool(sudo);
    command.arg("-v");
    let status = step
        .ask(&format!("sudo wants a password to {what}"), || command.status())
        .with_context(|| format!("failed to {what}: cannot run {}", show(&command)))?;
    if !status.success() {
        bail!("failed to {what}: {} ended with {status}: run the same command as root", show(&command));
    }
    Ok(())
}

/// sudo drops the environment, so `env` sets it again.
fn with_env(sudo: &mut Command, program: &Path, envs: &[(&str, OsString)]) {
    sudo.arg("env");
    for (name, value) in envs {
        let mut pair = OsString::from(name);
        pair.push("=");
        pair.push(value);
        sudo.arg(pair);
    }
    sudo.arg(program);
}

/// The command as a person would type it.
pub(crate) fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::{ask_password, which};
    use crate::ui::{Detail, Step};

    #[test]
    fn a_refusal_of_sudo_names_the_next_step() {
        let step = Step::start("test", Detail::OnlyWork);
        assert!(ask_password(&which("true").unwrap(), "install", &step).is_ok());
        let error = ask_password(&which("false").unwrap(), "install", &step).unwrap_err();
        assert!(format!("{error:#}").contains("run the same command as root"), "{error:#}");
    }
}
