//! The `run` verb: the daemon, and a look at what its configuration asks for.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;

use crate::{
    cli::{self, output::Out},
    config::{self, Config, Entry},
    daemon::{self, ConfigFile},
    model::{datapath::Requested, escape::push_line, spec::ServiceSpec},
    observe::preflight,
    plan::{
        list,
        request::{AllowedSource, Firewall},
    },
    relay::raise_descriptor_limit,
    scope::Scope,
};

/// What can be asked of `run`.
#[derive(clap::Args)]
pub struct Args {
    /// The configuration
    #[arg(long, value_name = "FILE", default_value = config::PATH)]
    config: PathBuf,
    /// Read the configuration, say what it asks for or what is wrong in it, and change nothing
    #[arg(long)]
    check_config: bool,
}

/// Keeps what the configuration asks for true until a signal; or says what it asks for. The exit code is 2 where
/// something is wrong in it.
///
/// # Errors
/// When the daemon cannot run.
pub(crate) fn run(
    args: &Args,
    scope: impl FnOnce() -> anyhow::Result<Scope>,
    out: &Out,
) -> anyhow::Result<ExitCode> {
    let (file, config) = match ConfigFile::read(args.config.clone()) {
        Ok(read) => read,
        Err(error) => {
            error.lines().iter().for_each(|line| out.say_error(line));
            return Ok(ExitCode::from(2));
        }
    };
    if args.check_config {
        return out.print(&summary(&config)).map(|_| ExitCode::SUCCESS);
    }
    let scope = scope()?;
    preflight::may_attach(Some(Requested::Auto), &scope.roots)?;
    raise_descriptor_limit().context("failed to raise the limit on open files")?;
    cli::log::to_stderr(log::LevelFilter::Info);
    daemon::run(&scope, file, config)?;
    Ok(ExitCode::SUCCESS)
}

/// What a configuration asks for, a line for each entry.
fn summary(config: &Config) -> String {
    let mut text = String::new();
    if config.attach.is_empty() {
        push_line(&mut text, "nothing to attach: a section [[attach]] with a service asks for it");
    }
    config.attach.iter().for_each(|entry| push_line(&mut text, &sentence(entry)));
    if let Some(level) = config.events {
        push_line(&mut text, &format!("events at level {level}"));
    }
    if config.firewall == Firewall::Off {
        push_line(&mut text, "firewall rules are left alone");
    }
    let docker = &config.docker;
    if let Some(host) = &docker.host {
        push_line(&mut text, &format!("engine {host}"));
    }
    if docker.labels {
        let allowed = list(&docker.allow_labels);
        let what = if allowed.is_empty() { "nothing: allow-labels is empty".to_owned() } else { allowed };
        push_line(&mut text, &format!("labels may ask for {what}"));
    }
    text
}

fn sentence(Entry { line, request }: &Entry) -> String {
    let service = |spec: &ServiceSpec| format!("{} at port {} -> {}", spec.service, spec.port, spec.target);
    let services = list(request.specs.iter().map(service));
    let bridges = request.bridges.iter().map(|name| format!("bridge {name}"));
    let mut places: Vec<String> = request.networks.iter().cloned().chain(bridges).collect();
    if places.is_empty() {
        let default = if request.container.is_some() { "each of its networks" } else { "bridge" };
        places.push(default.to_owned());
    }
    let whose = request.container.as_ref().map(|name| format!(" of container {name}")).unwrap_or_default();
    let allow = match list(request.allow.iter().map(AllowedSource::as_typed)) {
        all if all.is_empty() => "the subnets of each".to_owned(),
        allow => allow,
    };
    format!("line {line}: containers on {} will reach {services}{whose}, allow {allow}", list(places))
}
