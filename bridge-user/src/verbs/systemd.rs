//! The `systemd` verb: makes the daemon a unit of systemd's, and removes it again.

use std::{env, fs};

use anyhow::{Context as _, bail};
use rustix::process::geteuid;

use crate::{
    cli::output::Out,
    config,
    kernel::{Instance, instance::owned::owned},
    model::{attachment::Attachment, escape::push_line},
    plan,
    scope::Scope,
    systemd::{self, Facts, Places, Plan, Systemctl},
};

/// What can be asked of `systemd`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Start the daemon now and at every boot: writes its unit, and an example configuration if there is none
    Install(Options),
    /// Stop the daemon and remove what `install` wrote; what is attached stays so until it is detached
    Uninstall(Options),
}

#[derive(clap::Args)]
struct Options {
    /// Print what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Installs or removes the unit, and says each change.
///
/// # Errors
/// When systemd does not run here, root is missing, the binary's path is not one to start at boot, or a step fails;
/// what was done is taken back then.
pub(crate) fn run(
    args: &Args,
    scope: impl FnOnce() -> anyhow::Result<Scope>,
    out: &Out,
) -> anyhow::Result<()> {
    let systemctl = Systemctl::of_this_system()?;
    let binary = env::current_exe().context("failed to find the binary of this process")?;
    let facts = Facts::gather(Places::with_config(config::PATH), &binary, &systemctl)?;
    match &args.what {
        What::Install(options) => {
            systemd::lasting(&binary)?;
            carry_out(&systemd::install(&facts)?, &facts, &systemctl, options.dry_run, out)
        }
        What::Uninstall(options) => {
            carry_out(&systemd::uninstall(&facts), &facts, &systemctl, options.dry_run, out)?;
            say_attached(&scope()?, out)
        }
    }
}

fn carry_out(
    plan: &Plan,
    facts: &Facts,
    systemctl: &Systemctl,
    dry_run: bool,
    out: &Out,
) -> anyhow::Result<()> {
    if plan.steps.is_empty() {
        out.print("nothing to change\n")?;
    } else if dry_run {
        let mut text = "would change, in this order:\n".to_owned();
        plan.steps.iter().zip(1..).for_each(|(step, at)| push_line(&mut text, &format!("{at}. {step}")));
        out.print(&text)?;
    } else {
        require_root()?;
        let mut done = String::new();
        let result =
            systemd::carry_out(plan, facts, systemctl, |step| push_line(&mut done, &format!("done: {step}")));
        result.and_then(|()| out.print(&done).map(drop))?;
    }
    plan.notes.iter().for_each(|note| out.say(&format!("note: {note}")));
    Ok(())
}

fn require_root() -> anyhow::Result<()> {
    if !geteuid().is_root() {
        bail!("failed to change units: only root may: run it with sudo");
    }
    Ok(())
}

/// What the kernel goes on with once the daemon is gone.
fn say_attached(scope: &Scope, out: &Out) -> anyhow::Result<()> {
    if !geteuid().is_root() || fs::metadata(scope.roots.pins()).is_err() {
        return Ok(());
    }
    let list = |instance: Instance| instance.state.list();
    let own = Instance::open(scope)?.map(list).transpose()?.unwrap_or_default();
    let mut names: Vec<String> = own.iter().map(|(_, attachment)| attachment.name()).collect();
    for container in owned(scope)? {
        names.extend(container.attachments()?.iter().map(Attachment::name));
    }
    if !names.is_empty() {
        out.say(&format!(
            "note: {} stays attached without the daemon, and containers go on to reach it: `bridge-user detach --all` \
             ends that",
            plan::list(&names)
        ));
    }
    Ok(())
}
