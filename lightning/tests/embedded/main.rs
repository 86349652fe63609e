//! The embedded node with lnd for a counterpart, on a real chain: paid, paying, killed in the middle, and the ways into its directory.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod child;
mod paid;
mod paying;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use farebox_core::{
    BitcoinNetwork, Timestamp,
    ports::{Clock, Entropy, InvoiceOrder},
};
use farebox_e2e::lightning::{Lnd, Paid, Payment, Peer, Regtest};
use farebox_lightning::embedded::{
    ChainSource, Command, Done, EmbeddedConfig, EmbeddedNode, Report, SeedOrigin, SeedWords, init,
};

/// What the channel between lnd and the node holds, and how much of it is the node's from the start.
const CHANNEL_SAT: u64 = 1_000_000;
const NODES_SAT: u64 = 400_000;
const WITHIN: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Debug)]
struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        #[expect(clippy::disallowed_methods, reason = "a real node looks at the real clock")]
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_unix_s(now.as_secs())
    }
}

#[derive(Debug)]
struct UrandomEntropy;

impl Entropy for UrandomEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        use std::io::Read as _;
        std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(bytes)).unwrap();
    }
}

fn config(dir: &Path, regtest: &Regtest) -> EmbeddedConfig {
    let login = regtest.login();
    let chain = ChainSource::Bitcoind {
        host: login.host.clone(),
        port: login.port,
        user: login.user.clone(),
        password: login.password.clone().into(),
    };
    EmbeddedConfig { dir: dir.to_owned(), network: BitcoinNetwork::Regtest, chain, listen: vec![] }
}

async fn open(dir: &Path, regtest: &Regtest) -> Result<Arc<EmbeddedNode>> {
    Ok(EmbeddedNode::open(config(dir, regtest), Arc::new(SystemClock)).await?)
}

/// A node in `dir` with coins for its reserve, connected to a new lnd that has opened a channel to it. Stopped again.
async fn with_channel(dir: &Path, regtest: &Regtest) -> Result<Lnd> {
    init(dir, BitcoinNetwork::Regtest, &SeedWords::generate(&UrandomEntropy), SeedOrigin::New)?;
    let lnd = Lnd::start(regtest, "lnd").await?;
    lnd.fund(regtest, 5 * CHANNEL_SAT).await?;
    let node = open(dir, regtest).await?;
    let Done::Address { address } = node.command(Command::Address).await? else { anyhow::bail!("no address") };
    regtest.send(&address, 200_000).await?;
    regtest.mine(1).await?;
    wait_for(&node, "its coins", |report| report.on_chain.spendable_sat > 0).await?;
    node.command(Command::Connect { peer: address_of(&lnd)? }).await?;
    let report = report(&node).await?;
    ensure!(report.receivable_msat == 0 && report.advice.iter().any(|told| told.contains("Nothing can be received")));
    let peer = Peer { node_id: report.node_id, address: String::new() };
    open_from(&lnd, regtest, &peer).await?;
    wait_for(&node, "the channel", |report| report.receivable_msat > 0).await?;
    node.stop().await;
    Ok(lnd)
}

fn address_of(lnd: &Lnd) -> Result<farebox_lightning::embedded::Peer> {
    let Peer { node_id, address } = lnd.peer();
    Ok(format!("{node_id}@{address}").parse()?)
}

/// lnd opens the channel; the node is connected already.
async fn open_from(lnd: &Lnd, regtest: &Regtest, peer: &Peer) -> Result<()> {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let open = serde_json::json!({
        "node_pubkey": BASE64_STANDARD.encode(hex::decode(&peer.node_id)?),
        "local_funding_amount": CHANNEL_SAT.to_string(), "push_sat": NODES_SAT.to_string(),
        "sat_per_vbyte": "2", "spend_unconfirmed": true, "private": true,
    });
    lnd.rest(reqwest::Method::POST, "/v1/channels", Some(open)).await.context("lnd opens a channel")?;
    regtest.mine(6).await
}

async fn report(node: &EmbeddedNode) -> Result<Report> {
    match node.command(Command::Status).await? {
        Done::Status(report) => Ok(*report),
        other => anyhow::bail!("a report where it said {other:?}"),
    }
}

async fn wait_for(node: &EmbeddedNode, what: &str, is: impl Fn(&Report) -> bool) -> Result<Report> {
    let until = tokio::time::Instant::now() + WITHIN;
    loop {
        let now = report(node).await?;
        if is(&now) {
            return Ok(now);
        }
        ensure!(tokio::time::Instant::now() < until, "waited {WITHIN:?} for {what}: {now:#?}");
        tokio::time::sleep(LOOK).await;
    }
}

async fn ready(node: &EmbeddedNode) -> Result<Report> {
    wait_for(node, "the channel", |report| report.receivable_msat > 0 && report.sendable_msat > 0).await
}

/// lnd pays; its side of a channel may need a moment longer after a restart.
async fn pay(lnd: &Lnd, bolt11: &str) -> Result<Paid> {
    let until = tokio::time::Instant::now() + WITHIN;
    loop {
        match lnd.try_to_pay(bolt11).await? {
            Payment::Succeeded(paid) => return Ok(paid),
            Payment::Failed(reason) => ensure!(tokio::time::Instant::now() < until, "lnd could not pay: {reason}"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn order(amount_msat: u64, expiry: Duration) -> InvoiceOrder {
    InvoiceOrder { amount_msat, description: "a call, «paid»".to_owned(), expiry, now: SystemClock.now() }
}
