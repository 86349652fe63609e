//! `farebox check`: the config first, then the world it speaks of.

mod finding;
mod lightning;
mod live;
#[cfg(feature = "demo")]
mod rehearse;
mod trial;
mod world;

use std::process::ExitCode;

use self::finding::{Findings, Outcome};
use super::{Globals, print, serve::runtime};
use crate::{
    config::{self, LoadError, mistake::Mistakes, resolve::Log},
    logging, system,
};

/// Validate the config, then ask the chains, the ledger, the upstreams and the gateway itself.
///
/// Sends no transaction and signs nothing. Exit code 1 if anything fails; warnings alone are 0.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Validate the config and its secrets, and ask nobody
    #[arg(long)]
    offline: bool,
    /// Go through the checklist for going live as well: bills, clocks, gas, certificates, logs and metrics
    #[arg(long, conflicts_with = "offline")]
    live: bool,
    /// And have this config's routes paid for, on an embedded chain and with a sample upstream in place of the real ones
    #[cfg(feature = "demo")]
    #[arg(long, requires = "live")]
    rehearse: bool,
    /// Where the running gateway is, if not where the config says that it listens
    #[arg(long, requires = "live", value_name = "URL")]
    url: Option<url::Url>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints one line a finding.
///
/// # Errors
/// The config is not there, or standard output is closed.
pub(crate) fn run(args: &Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    // Findings tell what a gateway would warn of, and its trial is refused invoices on purpose.
    logging::start(&Log { level: tracing::Level::ERROR, ..logging::QUIET })?;
    let mut findings = Findings::default();
    if let Err(mistakes) = look(args, globals, &mut findings)? {
        // In text they are told as every command tells them, with the lines they stand on.
        if !args.json {
            return Err(mistakes.into());
        }
        findings.mistakes(&mistakes);
    }
    print(&if args.json { findings.json()? } else { findings.to_string() })?;
    Ok(if findings.worst() == Outcome::Fail { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn look(args: &Args, globals: &Globals, findings: &mut Findings) -> anyhow::Result<Result<(), Mistakes>> {
    let config = match config::load(&globals.config) {
        Ok(config) => config,
        Err(LoadError::Mistakes(mistakes)) => return Ok(Err(mistakes)),
        Err(other) => return Err(other.into()),
    };
    let secrets = match config.secrets(&system::environment) {
        Ok(secrets) => secrets,
        Err(mistakes) => return Ok(Err(mistakes)),
    };
    let path = globals.config.display();
    let (routes, networks) = (count(config.routes.len(), "route"), count(config.chains.len(), "chain"));
    let node = if config.lightning.is_some() { ", and a Lightning node" } else { "" };
    findings.pass("config", path.to_string(), format!("{routes} and {networks}{node}; every secret is there"));
    world::worth(&config, findings);
    if args.offline {
        return Ok(Ok(()));
    }
    let runtime = runtime()?;
    if !args.live {
        runtime.block_on(Box::pin(world::ask(&config, secrets, findings)));
        return Ok(Ok(()));
    }
    runtime.block_on(Box::pin(live::look(&config, &secrets, args.url.as_ref(), findings)));
    #[cfg(feature = "demo")]
    if args.rehearse {
        runtime.block_on(Box::pin(rehearse::run(&config, &secrets.chains, findings)));
    }
    Ok(Ok(()))
}

/// Such as `1 route`, `2 routes`.
fn count(number: usize, of: &str) -> String {
    format!("{number} {of}{}", if number == 1 { "" } else { "s" })
}
