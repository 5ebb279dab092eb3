//! A real PostgreSQL on loopback in a throw-away data directory.
//!
//! Invariant: runs as the `postgres` user, listens on 127.0.0.1 only, and dies with its guard.

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::unistd::User;
use tempfile::TempDir;

use super::netns::Netns;
use super::proc::{Guarded, Output, run_in};
use super::wait::{patience, until};

/// A running PostgreSQL.
pub(crate) struct Postgres {
    server: Guarded,
    directory: TempDir,
}

impl Postgres {
    /// Creates a cluster that trusts `host_rules` (lines of pg_hba.conf) and starts it.
    pub(crate) fn start(netns: &Netns, port: u16, host_rules: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        Self::start_in(netns, port, host_rules, directory, "")
    }

    /// The same with a UNIX socket, whose path it returns; whoever uses it is trusted.
    pub(crate) fn start_with_socket(netns: &Netns, port: u16) -> Result<(Self, PathBuf)> {
        let directory = tempfile::tempdir()?;
        let sockets = directory.path().join("data");
        let socket = sockets.join(format!(".s.PGSQL.{port}"));
        let listed = sockets.to_str().context("an odd temporary directory")?.to_owned();
        Ok((Self::start_in(netns, port, "", directory, &listed)?, socket))
    }

    fn start_in(
        netns: &Netns,
        port: u16,
        host_rules: &str,
        directory: TempDir,
        sockets: &str,
    ) -> Result<Self> {
        let user = User::from_name("postgres")?.context("no user postgres: install PostgreSQL")?;
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
        let data = directory.path().join("data");
        std::fs::create_dir(&data)?;
        chown(&data, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700))?;
        let program = |name: &str| -> Result<Command> {
            let mut command = Command::new(programs()?.join(name));
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw()).current_dir(directory.path());
            Ok(command)
        };
        let mut initdb = program("initdb")?;
        initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "-D"]).arg(&data);
        run_in(netns, &mut initdb)?.success().context("failed to create a PostgreSQL cluster")?;
        std::fs::OpenOptions::new()
            .append(true)
            .open(data.join("pg_hba.conf"))?
            .write_all(host_rules.as_bytes())?;
        let log = std::fs::File::create(directory.path().join("log"))?;
        let mut server = program("postgres")?;
        server.arg("-D").arg(&data).args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        server.args(["-c", "fsync=off", "-c", &format!("unix_socket_directories={sockets}")]);
        server.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = netns.spawn(&mut server).context("failed to start postgres")?;
        let postgres = Self { server: Guarded::new(child), directory };
        let ready = until("postgres answers on loopback", patience(30), || {
            Ok(query(netns, "127.0.0.1", port, "select 1")?.success().is_ok().then_some(()))
        });
        ready.with_context(|| format!("postgres log: {}", postgres.log()))?;
        Ok(postgres)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Immediate shutdown also ends the workers, which a kill of the parent would orphan.
        if let Err(error) = self.server.stop(Signal::SIGQUIT) {
            eprintln!("suite: postgres did not stop: {error:#}; log: {}", self.log());
        }
    }
}

/// The directory of the server's programs: beside `BRIDGE_POSTGRES`, else of the newest one installed.
fn programs() -> Result<PathBuf> {
    let named = std::env::var_os("BRIDGE_POSTGRES").map(PathBuf::from);
    let mut found: Vec<PathBuf> = match named.as_deref().map(std::fs::canonicalize) {
        Some(server) => vec![server.context("BRIDGE_POSTGRES names no file")?],
        None => std::fs::read_dir("/usr/lib/postgresql")
            .context("no PostgreSQL server is installed")?
            .filter_map(|entry| Some(entry.ok()?.path().join("bin/postgres")))
            .filter(|server| server.exists())
            .collect(),
    };
    found.sort();
    let directory = found.pop().and_then(|server| server.parent().map(Path::to_path_buf));
    let directory = directory.context("no PostgreSQL server is installed")?;
    ensure!(directory.join("initdb").exists(), "{} has no initdb", directory.display());
    Ok(directory)
}

/// Runs one statement with `psql` from inside `netns`.
pub(crate) fn query(netns: &Netns, host: &str, port: u16, statement: &str) -> Result<Output> {
    let mut psql = Command::new("psql");
    psql.args([
        "-h",
        host,
        "-p",
        &port.to_string(),
        "-U",
        "postgres",
        "-d",
        "postgres",
        "-At",
        "-c",
        statement,
    ]);
    run_in(netns, psql.env("PGCONNECT_TIMEOUT", "5"))
}
