//! A real MariaDB on loopback in a throw-away data directory.
//!
//! Invariants: reads none of the machine's configuration, listens on 127.0.0.1:3306 only, and dies with its guard.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::netns::Netns;
use super::proc::{Guarded, Output, run_in};
use super::wait::{patience, until};

/// Small files, and nothing is waited for to be on the disk.
const SMALL: [&str; 6] = [
    "--no-defaults",
    "--user=root",
    "--innodb-log-file-size=4M",
    "--debug-no-sync",
    "--innodb-flush-method=nosync",
    "--innodb-flush-log-at-trx-commit=0",
];

/// A running MariaDB.
pub(crate) struct Mariadb {
    server: Guarded,
    directory: TempDir,
}

impl Mariadb {
    /// Creates a data directory without accounts but root's, and starts the server with these options.
    pub(crate) fn start(netns: &Netns, options: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let data = directory.path().join("data");
        let mut install = Command::new("mariadb-install-db");
        install.args(SMALL).arg(format!("--datadir={}", data.display()));
        install.args(["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]);
        run_in(netns, &mut install)?.success().context("failed to create MariaDB's tables")?;
        let log = std::fs::File::create(directory.path().join("log"))?;
        let mut server = Command::new("mariadbd");
        server.args(SMALL).arg(format!("--datadir={}", data.display()));
        server.arg(format!("--socket={}", socket(directory.path()))).args(["--bind-address=127.0.0.1"]);
        server.arg(format!("--pid-file={}", directory.path().join("pid").display())).args(options);
        server.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = netns.spawn(&mut server).context("failed to start mariadbd: is it installed?")?;
        let mut mariadb = Self { server: Guarded::new(child), directory };
        let ready = until("mariadb answers on its socket", patience(30), || {
            if let Some(status) = mariadb.server.ended()? {
                bail!("mariadbd ended with {status}");
            }
            Ok(mariadb.sql(netns, "select 1").is_ok().then_some(()))
        });
        ready.with_context(|| format!("mariadb log: {}", mariadb.log()))?;
        Ok(mariadb)
    }

    /// Runs statements as root, over the socket.
    pub(crate) fn sql(&self, netns: &Netns, statements: &str) -> Result<()> {
        let mut client = Command::new("mariadb");
        client.args(["--no-defaults", "--user=root", "--execute", statements]);
        run_in(netns, client.arg(format!("--socket={}", socket(self.directory.path()))))?.success()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Mariadb {
    fn drop(&mut self) {
        if let Err(error) = self.server.stop(Signal::SIGKILL) {
            eprintln!("suite: mariadbd did not end: {error:#}; log: {}", self.log());
        }
    }
}

fn socket(directory: &Path) -> String {
    directory.join("socket").display().to_string()
}

/// Which account `app` with its password gets at `host` from inside `netns`, or what the server answers instead.
pub(crate) fn account(netns: &Netns, host: &str) -> Result<Output> {
    let mut client = Command::new("mariadb");
    client.args(["--no-defaults", "--skip-ssl", "--connect-timeout=5", "--host", host, "--user=app"]);
    client.args([
        "--password=secret",
        "--skip-column-names",
        "--batch",
        "--execute",
        "select current_user()",
    ]);
    run_in(netns, &mut client)
}
