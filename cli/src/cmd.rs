//! The commands. Each module has its `Args` and a `run(args, globals)` that returns the exit code, or an error that is
//! reported on standard error with exit code 1.

mod audit;
mod check;
#[cfg(feature = "demo")]
mod demo;
#[cfg(test)]
pub(crate) mod help;
mod init;
#[cfg(feature = "ldk")]
mod lightning;
mod listing;
mod pay;
mod payments;
mod price;
mod serve;
mod tokens;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use clap::{Args, Parser, Subcommand};

use farebox_core::ports::Clock as _;

use crate::{
    config::{self, LoadError, mistake::Mistakes},
    logging,
    system::{self, OsEntropy, SystemClock},
};

/// Makes any HTTP API payable by the call, and any agent able to pay.
#[derive(Debug, Parser)]
#[command(name = "farebox", version, arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// What every command can be told.
#[derive(Debug, Args)]
pub(crate) struct Globals {
    /// The config file
    #[arg(long, global = true, value_name = "PATH", env = "FAREBOX_CONFIG", default_value = "farebox.toml")]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the routes of the config, until SIGTERM or SIGINT
    Serve(serve::Args),
    /// Write a commented config to start from
    Init(init::Args),
    /// Validate the config, then ask the chains, the ledger and the upstreams
    Check(check::Args),
    /// Say which route and price apply to a request
    Price(price::Args),
    /// List or export the payments in the ledger
    Payments(payments::PaymentsArgs),
    /// List, show or revoke the L402 tokens that were sold
    Tokens(tokens::TokensArgs),
    /// Check or export the audit log: every decision that moved or refused money
    Audit(audit::AuditArgs),
    /// Request a URL and pay for it if it asks to be paid
    Pay(Box<pay::PayArgs>),
    /// Make and look after a Lightning node that runs within Farebox
    #[cfg(feature = "ldk")]
    Lightning(Box<lightning::LightningArgs>),
    /// See a paid call from end to end, with everything embedded
    #[cfg(feature = "demo")]
    Demo(demo::Args),
}

/// Runs the command.
///
/// # Errors
/// Whatever kept it from its end; for [`report`].
pub(crate) fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { globals, command } = cli;
    match command {
        Command::Serve(args) => serve::run(&args, &globals),
        Command::Init(args) => init::run(&args, &globals),
        Command::Check(args) => check::run(&args, &globals),
        Command::Price(args) => price::run(&args, &globals),
        Command::Payments(args) => {
            let ledger = config::load(&globals.config)?.ledger;
            payments::run(args, &ledger, SystemClock.now()).map(|()| ExitCode::SUCCESS)
        }
        Command::Tokens(args) => {
            let ledger = config::load(&globals.config)?.ledger;
            tokens::run(args, &ledger, SystemClock.now()).map(|()| ExitCode::SUCCESS)
        }
        Command::Audit(args) => {
            let ledger = || Ok(config::load(&globals.config)?.ledger);
            audit::run(args, ledger, SystemClock.now()).map(|()| ExitCode::SUCCESS)
        }
        #[cfg(feature = "ldk")]
        Command::Lightning(args) => lightning::run(*args, &globals),
        #[cfg(feature = "demo")]
        Command::Demo(args) => demo::run(&args),
        Command::Pay(args) => {
            logging::start(&logging::QUIET)?;
            let context = pay::PayContext {
                clock: Arc::new(SystemClock),
                entropy: Arc::new(OsEntropy),
                environment: system::environment,
            };
            serve::runtime()?.block_on(Box::pin(pay::run(*args, context)))
        }
    }
}

/// Tells an error on standard error: the mistakes of a config as they are, anything else with its causes, one a line.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    // Whoever read our output has seen enough: `farebox payments | head`.
    let broken_pipe = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(broken_pipe) {
        return ExitCode::SUCCESS;
    }
    let mistakes = error.downcast_ref::<Mistakes>().or_else(|| match error.downcast_ref::<LoadError>() {
        Some(LoadError::Mistakes(mistakes)) => Some(mistakes),
        _ => None,
    });
    let mut text = match mistakes {
        Some(mistakes) => format!("{mistakes}\n"),
        None => format!("error: {error}\n"),
    };
    if mistakes.is_none() {
        error.chain().skip(1).for_each(|cause| text.push_str(&format!("  caused by: {cause}\n")));
    }
    if let Some(LoadError::Missing { .. }) = error.downcast_ref::<LoadError>() {
        text.push_str("hint: write one with `farebox init`, or name it with --config\n");
    }
    // If standard error is gone there is nobody left to tell.
    let _ = io::stderr().write_all(text.as_bytes());
    ExitCode::FAILURE
}

/// Writes a text to standard output.
///
/// # Errors
/// It was closed.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
