//! A gRPC service, and Aperture's gRPC client of L402 that calls it through a gateway.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use super::Lnd;
use crate::{Process, Tool, tool};

const START_WITHIN: Duration = Duration::from_secs(30);
const BUY_WITHIN: Duration = Duration::from_secs(60);

/// A running health service (grpc.health.v1), HTTP/2 without TLS.
#[derive(Debug)]
pub struct GrpcService {
    process: Process,
    port: u16,
}

impl GrpcService {
    /// Starts it.
    ///
    /// # Errors
    /// It is not built, or does not listen in time.
    pub async fn start() -> Result<Self> {
        let process = Process::start("grpc-service", Command::new(tool(Tool::L402Grpc)?).arg("serve"))?;
        let listens = |line: &str| u16::try_from(parsed(line)?["port"].as_u64()?).ok();
        let port = process.wait_for_line(START_WITHIN, listens).await?;
        Ok(Self { process, port })
    }

    /// Its origin: `http://host:port`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// For each call that reached it, the names of the metadata with which it could spend or reuse something.
    #[must_use]
    pub fn calls(&self) -> Vec<Value> {
        self.process.log().lines().filter_map(|line| Some(parsed(line)?.get("credentials")?.clone())).collect()
    }
}

/// Aperture's client with an lnd as its wallet. It keeps the one token it bought.
#[derive(Debug)]
pub struct GrpcBuyer {
    store: TempDir,
}

/// What it got.
#[derive(Clone, Debug, Deserialize)]
pub struct GrpcBought {
    /// The service's answer to each call, such as `SERVING`.
    pub answers: Option<Vec<String>>,
    /// Why it gave up, or empty.
    pub error: String,
}

impl GrpcBuyer {
    /// One without a token.
    ///
    /// # Errors
    /// There is no room for its folder.
    pub fn new() -> Result<Self> {
        Ok(Self { store: tempfile::tempdir()? })
    }

    /// Calls the health service behind `origin` so many times, until one call fails.
    ///
    /// # Errors
    /// The client is not built, takes too long, or prints no outcome.
    pub async fn buy(&self, wallet: &Lnd, origin: &str, calls: usize) -> Result<GrpcBought> {
        let mut command = Command::new(tool(Tool::L402Grpc)?);
        command.args(["buy", &calls.to_string()]).env("STORE", self.store.path());
        command.env("TARGET", origin.trim_start_matches("http://").trim_end_matches('/'));
        command.env("LND_GRPC", wallet.grpc_address()).env("LND_CERT", wallet.tls_cert());
        command.env("LND_MACAROONS", wallet.macaroon_dir());
        let client = Process::start("l402-grpc", &mut command)?;
        let outcome = |line: &str| serde_json::from_value(parsed(line)?).ok();
        client.wait_for_line(BUY_WITHIN, outcome).await.context("what Aperture's client bought")
    }
}

fn parsed(line: &str) -> Option<Value> {
    serde_json::from_str(line).ok()
}
