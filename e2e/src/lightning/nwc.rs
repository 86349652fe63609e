//! A wallet over Nostr Wallet Connect before an lnd: Alby's wallet service and a Nostr relay, `e2e/peers/nwc-wallet.mjs`.

use std::{process::Command, time::Duration};

use anyhow::Result;

use super::{Lnd, Macaroon};
use crate::{Process, Tool, free_port, tool, tools::script};

const START_WITHIN: Duration = Duration::from_secs(30);
/// The wallet's and the client's Nostr keys: any 32 bytes that are a secret key.
const WALLET_SECRET: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const CLIENT_SECRET: &str = "2222222222222222222222222222222222222222222222222222222222222222";

/// Whether the wallet says by which preimage it has paid. Some custodial ones do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preimages {
    /// It does.
    Told,
    /// It says that it has paid, with an empty preimage.
    Withheld,
}

/// A running wallet with its relay, both gone when it is killed.
#[derive(Debug)]
pub struct NwcWallet {
    process: Process,
    order: Order,
    url: String,
}

/// What it is started with, kept over restarts.
#[derive(Debug)]
struct Order {
    lnd: [(&'static str, String); 3],
    port: u16,
    preimages: Preimages,
}

impl NwcWallet {
    /// Starts one that pays from `lnd` and is paid there.
    ///
    /// # Errors
    /// It cannot be asked in time.
    pub async fn start(lnd: &Lnd, preimages: Preimages) -> Result<Self> {
        let order = Order { lnd: lnd_environment(lnd)?, port: free_port()?, preimages };
        let process = order.start()?;
        let url = process.wait_for_line(START_WITHIN, said_url).await?;
        Ok(Self { process, order, url })
    }

    /// The connection string, `nostr+walletconnect://..`; a restart does not change it.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// SIGKILL: wallet and relay are down until [`NwcWallet::restart`].
    ///
    /// # Errors
    /// It cannot be signalled.
    pub fn kill_9(&mut self) -> Result<()> {
        self.process.kill_9()
    }

    /// Starts it again on the same port with the same keys, killing it first if it still runs.
    ///
    /// # Errors
    /// As [`NwcWallet::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill_9()?;
        self.process = self.order.start()?;
        self.process.wait_for_line(START_WITHIN, said_url).await.map(drop)
    }
}

impl Order {
    fn start(&self) -> Result<Process> {
        let mut command = Command::new(tool(Tool::Node)?);
        command.arg(script("peers/nwc-wallet.mjs")).envs(self.lnd.clone()).env("PORT", self.port.to_string());
        command.env("WALLET_SECRET", WALLET_SECRET).env("CLIENT_SECRET", CLIENT_SECRET);
        if self.preimages == Preimages::Withheld {
            command.env("WITHHOLD_PREIMAGE", "yes");
        }
        Process::start("nwc-wallet", &mut command)
    }
}

/// What `e2e/clients/lnd.mjs` reads.
pub(super) fn lnd_environment(lnd: &Lnd) -> Result<[(&'static str, String); 3]> {
    let cert = lnd.tls_cert().display().to_string();
    Ok([("LND_URL", lnd.rest_url()), ("LND_MACAROON", lnd.macaroon(Macaroon::Admin)?), ("NODE_EXTRA_CA_CERTS", cert)])
}

fn said_url(line: &str) -> Option<String> {
    let said: serde_json::Value = serde_json::from_str(line).ok()?;
    Some(said["url"].as_str()?.to_owned())
}
