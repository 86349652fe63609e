//! A node in a process of its own, to be killed.

use std::{env, path::Path, process::Stdio};

use anyhow::{Context as _, Result, bail};
use farebox_core::{Invoice, ports::LightningNode as _};
use farebox_e2e::lightning::Regtest;
use farebox_lightning::embedded::{ChainSource, EmbeddedConfig, EmbeddedNode};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::{HOUR, SystemClock, order, ready};

const DIR: &str = "FAREBOX_TEST_NODE_DIR";
const PORT: &str = "FAREBOX_TEST_BITCOIND_PORT";
const AMOUNT: &str = "FAREBOX_TEST_AMOUNT_MSAT";

/// A process that runs the node in a directory. It is killed when dropped.
pub(crate) struct Child {
    process: tokio::process::Child,
    invoice: Invoice,
}

impl Child {
    /// Starts one that makes an invoice over `amount_msat` once its channel is ready.
    pub(crate) async fn start(dir: &Path, regtest: &Regtest, amount_msat: u64) -> Result<Self> {
        let mut process = tokio::process::Command::new(env::current_exe()?)
            .args(["--ignored", "--exact", "--nocapture", "child::process_to_be_killed"])
            .env(DIR, dir)
            .env(PORT, regtest.login().port.to_string())
            .env(AMOUNT, amount_msat.to_string())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(process.stdout.take().context("its output")?).lines();
        while let Some(line) = lines.next_line().await? {
            if let Some((_, invoice)) = line.split_once("INVOICE ") {
                return Ok(Self { process, invoice: serde_json::from_str(invoice)? });
            }
        }
        bail!("the node's process ended: {:?}", process.wait().await)
    }

    pub(crate) const fn invoice(&self) -> &Invoice {
        &self.invoice
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) async fn kill_9(&mut self) -> Result<()> {
        Ok(self.process.kill().await?)
    }
}

#[expect(clippy::disallowed_methods, reason = "a test's process is told by its environment what to run")]
fn told(name: &str) -> String {
    env::var(name).unwrap()
}

#[tokio::test]
#[ignore = "is what other tests start as a process of its own"]
async fn process_to_be_killed() {
    let chain = ChainSource::Bitcoind {
        host: "127.0.0.1".to_owned(),
        port: told(PORT).parse().unwrap(),
        user: "farebox".to_owned(),
        password: "regtest".to_owned().into(),
    };
    let config =
        EmbeddedConfig { dir: told(DIR).into(), network: farebox_core::BitcoinNetwork::Regtest, chain, listen: vec![] };
    let node = EmbeddedNode::open(config, std::sync::Arc::new(SystemClock)).await.unwrap();
    ready(&node).await.unwrap();
    let invoice = node.create_invoice(&order(told(AMOUNT).parse().unwrap(), HOUR)).await.unwrap();
    println!("INVOICE {}", serde_json::to_string(&invoice).unwrap());
    std::future::pending::<()>().await;
}
