//! The `farebox` binary: parses the command line and the config, and wires the parts.
//!
//! Exit codes: 0 done; 1 it could not be done, or the answer is no (`check` found a fault, `price` no route); 2 the command
//! line is wrong. `farebox pay` has more, see its help.

mod admin;
mod cmd;
mod config;
mod logging;
mod metrics;
mod system;
mod wiring;

use std::process::ExitCode;

use clap::Parser as _;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = cmd::Cli::parse();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed before");
    }
    match cmd::run(cli) {
        Ok(code) => code,
        Err(error) => cmd::report(&error),
    }
}
