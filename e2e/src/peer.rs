//! The official server, to hold the harness and ourselves against.

use std::{process::Command, time::Duration};

use alloy::primitives::Address;
use anyhow::Result;

use crate::{Account, Process, Tool, tool, tools::script};

const START_WITHIN: Duration = Duration::from_secs(30);

/// @x402/express with its facilitator in one process: `e2e/peers/express-server.mjs`.
#[derive(Debug)]
pub struct ExpressPeer {
    process: Process,
    port: u16,
}

impl ExpressPeer {
    /// Starts it on the node at `rpc_url`, paid to `pay_to`, settling as `relayer`, which needs ether.
    ///
    /// # Errors
    /// It does not listen in time.
    pub async fn start(rpc_url: &str, pay_to: Address, relayer: &Account) -> Result<Self> {
        let mut command = Command::new(tool(Tool::Node)?);
        command.arg(script("peers/express-server.mjs"));
        command.env("RPC_URL", rpc_url).env("PAY_TO", pay_to.to_string()).env("RELAYER_KEYS", relayer.key());
        let process = Process::start("express-server", &mut command)?;
        let listens = |line: &str| {
            let said: serde_json::Value = serde_json::from_str(line).ok()?;
            u16::try_from(said["port"].as_u64()?).ok()
        };
        let port = process.wait_for_line(START_WITHIN, listens).await?;
        Ok(Self { process, port })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The address of `path` on it.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}
