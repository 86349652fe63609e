//! `cargo run --release -p farebox-bench`: measures the gateway beside nginx and beside the official npm server, in one run on one
//! machine, and prints ratios. Absolute figures depend on the machine; ratios of one run do not, much.
//!
//! Needs what `.ci/tools` installs, and a release build of `farebox` (it says how if one is missing).

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

mod claims;
mod contender;
mod footprint;
mod host;
mod paid;
mod report;
mod tokens;
mod verify;
mod wrk;

use anyhow::Result;
use clap::Parser;

/// Load beside peers, in one run on one machine.
#[derive(Debug, Parser)]
struct Args {
    /// Rounds; every contender is measured once a round, in alternating order, and medians are reported.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of load for each contender in each round.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Connections of the unpaid loads.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Concurrent payers.
    #[arg(long, default_value_t = 16)]
    payers: usize,
    /// Only these parts.
    #[arg(long, value_delimiter = ',', default_values = ["free", "402", "paid", "claims", "tokens", "verify", "footprint"])]
    only: Vec<String>,
    /// Writes the figures as JSON to this file too.
    #[arg(long)]
    json: Option<std::path::PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    // Two providers are linked in; without a choice rustls panics at first use. A second call only says it was done.
    rustls::crypto::ring::default_provider().install_default().ok();
    let wants = |part: &str| args.only.iter().any(|only| only == part);
    let mut report = report::Report::default();
    if wants("free") || wants("402") {
        contender::unpaid(&args, &mut report, wants("free"), wants("402")).await?;
    }
    if wants("paid") {
        paid::run(&args, &mut report).await?;
    }
    if wants("claims") {
        claims::run(&args, &mut report).await?;
    }
    if wants("tokens") {
        tokens::run(&args, &mut report).await?;
    }
    if wants("verify") {
        verify::run(&mut report).await?;
    }
    if wants("footprint") {
        footprint::run(&mut report).await?;
    }
    println!("{report}");
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}
