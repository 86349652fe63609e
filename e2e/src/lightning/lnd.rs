//! lnd, as a seller or a payer runs it.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{Peer, Regtest, RpcLogin};
use crate::{Process, Tool, free_port, tool, web};

const START_WITHIN: Duration = Duration::from_secs(60);
const CHANNEL_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// What a payment may cost in routing fees, and how long lnd tries.
const FEE_LIMIT_SAT: u64 = 1_000;
const PAY_WITHIN_S: u64 = 30;

/// A running lnd. It keeps its folder, ports and keys when it is killed and started again.
#[derive(Debug)]
pub struct Lnd {
    process: Process,
    name: String,
    dir: TempDir,
    chain: RpcLogin,
    ports: Ports,
    node_id: String,
    client: reqwest::Client,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    peers: u16,
    grpc: u16,
    rest: u16,
}

/// Which of lnd's own macaroons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Macaroon {
    /// May do everything.
    Admin,
    /// May make and look up invoices, and nothing else.
    Invoice,
    /// May read.
    Readonly,
}

/// A payment hash: 32 bytes in lower-case hex.
pub type Hash = String;

/// An invoice that was just made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invoice {
    /// BOLT 11.
    pub bolt11: String,
    /// The hash its preimage has.
    pub payment_hash: Hash,
}

/// What BOLT 11 says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The hash its preimage has.
    pub payment_hash: Hash,
    /// Zero if the payer may choose.
    pub amount_msat: u64,
    /// How long it is good from its making on.
    pub expires_in: Duration,
}

/// A payment that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paid {
    /// 32 bytes in lower-case hex.
    pub preimage: String,
    /// Routing fees, millisatoshi.
    pub fee_msat: u64,
}

/// What became of an attempt to pay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payment {
    /// The receiver gave the preimage.
    Succeeded(Paid),
    /// Nothing was paid; the reason by lnd's name, such as `FAILURE_REASON_NO_ROUTE`.
    Failed(String),
}

/// lnd's states of an invoice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvoiceState {
    /// Waits to be paid; an expired one may still say so for a while.
    Open,
    /// Paid, and the preimage is out.
    Settled,
    /// Cancelled, or expired.
    Canceled,
    /// Paid, and held until it is settled or cancelled.
    Accepted,
}

/// A hold invoice and the preimage that settles it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldInvoice {
    /// The invoice.
    pub invoice: Invoice,
    /// 32 bytes in lower-case hex.
    pub preimage: String,
}

impl Lnd {
    /// Starts a node with an empty wallet on `regtest`, and waits until its APIs answer and it has seen the newest block.
    ///
    /// # Errors
    /// lnd is not installed, or is not ready in time.
    pub async fn start(regtest: &Regtest, name: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let ports = Ports { peers: free_port()?, grpc: free_port()?, rest: free_port()? };
        let chain = regtest.login().clone();
        let process = start(name, dir.path(), &chain, ports)?;
        let client = client()?;
        let mut lnd = Self { process, name: name.to_owned(), dir, chain, ports, node_id: String::new(), client };
        lnd.node_id = lnd.wait_until_ready().await?;
        Ok(lnd)
    }

    /// Its public key: 33 bytes in hex.
    #[must_use]
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// Where other nodes find it.
    #[must_use]
    pub fn peer(&self) -> Peer {
        Peer { node_id: self.node_id.clone(), address: format!("127.0.0.1:{}", self.ports.peers) }
    }

    /// The origin of its REST API: HTTPS with a certificate it signed itself, [`Lnd::tls_cert`].
    #[must_use]
    pub fn rest_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.rest)
    }

    /// `host:port` of its gRPC API, with the same certificate.
    #[must_use]
    pub fn grpc_address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.grpc)
    }

    /// Its certificate, PEM.
    #[must_use]
    pub fn tls_cert(&self) -> PathBuf {
        self.dir.path().join("tls.cert")
    }

    /// The folder of all its macaroons.
    #[must_use]
    pub fn macaroon_dir(&self) -> PathBuf {
        self.dir.path().join("data/chain/bitcoin/regtest")
    }

    /// The file of a macaroon, binary.
    #[must_use]
    pub fn macaroon_file(&self, which: Macaroon) -> PathBuf {
        self.macaroon_dir().join(match which {
            Macaroon::Admin => "admin.macaroon",
            Macaroon::Invoice => "invoice.macaroon",
            Macaroon::Readonly => "readonly.macaroon",
        })
    }

    /// A macaroon as the REST API wants it: hex.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn macaroon(&self, which: Macaroon) -> Result<String> {
        let file = self.macaroon_file(which);
        Ok(hex::encode(std::fs::read(&file).with_context(|| format!("read {}", file.display()))?))
    }

    /// Any call of its REST API, as admin.
    ///
    /// # Errors
    /// It does not answer, or answers with an error.
    pub async fn rest(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value> {
        let (status, text) = self.ask(method, path, body).await?;
        ensure!(status.is_success(), "{}: {path}: {status}: {text}", self.name);
        serde_json::from_str(&text).with_context(|| format!("{}: {path}: {text}", self.name))
    }

    /// Sends `sat` to its wallet, mines a block, and waits until the wallet knows.
    ///
    /// # Errors
    /// A node does not do its part in time.
    pub async fn fund(&self, regtest: &Regtest, sat: u64) -> Result<()> {
        let address = self.rest(Method::GET, "/v1/newaddress?type=WITNESS_PUBKEY_HASH", None).await?;
        let before = self.confirmed_sat().await?;
        regtest.send(text(&address["address"])?, sat).await?;
        regtest.mine(1).await?;
        self.wait_for("the coins to be confirmed", async || Ok(self.confirmed_sat().await? >= before + sat)).await
    }

    /// Connects to a peer; one that is connected already is as good.
    ///
    /// # Errors
    /// The peer cannot be reached.
    pub async fn connect(&self, peer: &Peer) -> Result<()> {
        let address = json!({ "pubkey": peer.node_id, "host": peer.address });
        let connect = json!({ "addr": address, "perm": false, "timeout": "10" });
        // Refused for a moment while the end of an older connection is being noticed.
        let attempt = async || {
            let (status, text) = self.ask(Method::POST, "/v1/peers", Some(connect.clone())).await?;
            ensure!(status.is_success() || text.contains("already connected"), "connect to {peer:?}: {text}");
            Ok(())
        };
        self.retried("a connection", attempt).await
    }

    /// Opens a channel of `capacity_sat` to `peer`, of which `push_sat` are the peer's from the start, and waits until this side can
    /// pay through it.
    ///
    /// # Errors
    /// The wallet lacks the coins, or a node does not do its part in time.
    pub async fn open_channel(&self, regtest: &Regtest, peer: &Peer, capacity_sat: u64, push_sat: u64) -> Result<()> {
        self.connect(peer).await?;
        let key = BASE64_STANDARD.encode(hex::decode(&peer.node_id)?);
        let open = json!({
            "node_pubkey": key, "local_funding_amount": capacity_sat.to_string(), "push_sat": push_sat.to_string(),
            "sat_per_vbyte": "2", "spend_unconfirmed": true,
        });
        // A peer that has not seen the newest block refuses.
        let attempt = async || self.rest(Method::POST, "/v1/channels", Some(open.clone())).await;
        self.retried("the peer to take a channel", attempt).await?;
        regtest.mine(3).await?;
        self.wait_for_way_to(&peer.node_id).await
    }

    /// Waits until this node can be paid.
    ///
    /// # Errors
    /// It cannot in time.
    pub async fn wait_for_way_to(&self, node_id: &str) -> Result<()> {
        // An active channel is not yet in the map that routes are sought on.
        let path = format!("/v1/graph/routes/{node_id}/1");
        let routed = async || Ok(self.ask(Method::GET, &path, None).await?.0.is_success());
        self.wait_for("a way to pay its peer", routed).await
    }

    /// Makes an invoice over `amount_msat`, good for `expires_in`, whole seconds.
    ///
    /// # Errors
    /// lnd refuses.
    pub async fn invoice(&self, amount_msat: u64, expires_in: Duration) -> Result<Invoice> {
        let ask = json!({ "value_msat": amount_msat.to_string(), "expiry": expires_in.as_secs().to_string() });
        let made = self.rest(Method::POST, "/v1/invoices", Some(ask)).await?;
        Ok(Invoice { bolt11: text(&made["payment_request"])?.to_owned(), payment_hash: hex_of(&made["r_hash"])? })
    }

    /// Makes an invoice whose payment is held until [`Lnd::settle`] or [`Lnd::cancel`].
    ///
    /// # Errors
    /// lnd refuses.
    pub async fn hold_invoice(&self, amount_msat: u64, preimage: [u8; 32]) -> Result<HoldInvoice> {
        let hash = Sha256::digest(preimage);
        let ask = json!({ "value_msat": amount_msat.to_string(), "hash": BASE64_STANDARD.encode(hash) });
        let made = self.rest(Method::POST, "/v2/invoices/hodl", Some(ask)).await?;
        let invoice = Invoice { bolt11: text(&made["payment_request"])?.to_owned(), payment_hash: hex::encode(hash) };
        Ok(HoldInvoice { invoice, preimage: hex::encode(preimage) })
    }

    /// Takes the payment of a hold invoice.
    ///
    /// # Errors
    /// lnd refuses, as it does while nothing is held.
    pub async fn settle(&self, preimage: &str) -> Result<()> {
        let ask = json!({ "preimage": BASE64_STANDARD.encode(hex::decode(preimage)?) });
        self.rest(Method::POST, "/v2/invoices/settle", Some(ask)).await.map(drop)
    }

    /// Cancels an invoice; what is held goes back.
    ///
    /// # Errors
    /// lnd refuses, as it does for a settled one.
    pub async fn cancel(&self, payment_hash: &str) -> Result<()> {
        let ask = json!({ "payment_hash": BASE64_STANDARD.encode(hex::decode(payment_hash)?) });
        self.rest(Method::POST, "/v2/invoices/cancel", Some(ask)).await.map(drop)
    }

    /// The state of an invoice of its own.
    ///
    /// # Errors
    /// It knows no such invoice, or does not answer.
    pub async fn invoice_state(&self, payment_hash: &str) -> Result<InvoiceState> {
        let invoice = self.rest(Method::GET, &format!("/v1/invoice/{payment_hash}"), None).await?;
        Ok(match text(&invoice["state"])? {
            "OPEN" => InvoiceState::Open,
            "SETTLED" => InvoiceState::Settled,
            "CANCELED" => InvoiceState::Canceled,
            "ACCEPTED" => InvoiceState::Accepted,
            unknown => bail!("invoice state {unknown}"),
        })
    }

    /// Waits until an invoice of its own is in `state`.
    ///
    /// # Errors
    /// It is not in time.
    pub async fn wait_for_invoice(&self, payment_hash: &str, state: InvoiceState) -> Result<()> {
        self.wait_for("an invoice's state", async || Ok(self.invoice_state(payment_hash).await? == state)).await
    }

    /// How many invoices it ever made.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn invoices_made(&self) -> Result<usize> {
        let all = self.rest(Method::GET, "/v1/invoices?num_max_invoices=100000", None).await?;
        Ok(all["invoices"].as_array().context("a list of invoices")?.len())
    }

    /// What an invoice of any node says.
    ///
    /// # Errors
    /// It is none.
    pub async fn decode(&self, bolt11: &str) -> Result<Decoded> {
        let said = self.rest(Method::GET, &format!("/v1/payreq/{bolt11}"), None).await?;
        Ok(Decoded {
            payment_hash: text(&said["payment_hash"])?.to_owned(),
            amount_msat: text(&said["num_msat"])?.parse()?,
            expires_in: Duration::from_secs(text(&said["expiry"])?.parse()?),
        })
    }

    /// Pays, and waits for the end of it.
    ///
    /// # Errors
    /// Nothing was paid, or lnd does not answer.
    pub async fn pay(&self, bolt11: &str) -> Result<Paid> {
        match self.try_to_pay(bolt11).await? {
            Payment::Succeeded(paid) => Ok(paid),
            Payment::Failed(reason) => bail!("{} could not pay {bolt11}: {reason}", self.name),
        }
    }

    /// Pays, and tells how it ended.
    ///
    /// # Errors
    /// lnd refuses the invoice, or does not answer.
    pub async fn try_to_pay(&self, bolt11: &str) -> Result<Payment> {
        let pay = json!({
            "payment_request": bolt11, "timeout_seconds": PAY_WITHIN_S, "fee_limit_sat": FEE_LIMIT_SAT.to_string(),
            "no_inflight_updates": true,
        });
        let (status, said) = self.ask(Method::POST, "/v2/router/send", Some(pay)).await?;
        ensure!(status.is_success(), "{} would not pay {bolt11}: {said}", self.name);
        payment(said.lines().next_back().context("lnd said how it ended")?)
    }

    /// What became of a payment of its own, or none if it never tried.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn payment(&self, payment_hash: &str) -> Result<Option<Payment>> {
        let hash = BASE64_URL_SAFE.encode(hex::decode(payment_hash)?);
        let path = format!("/v2/router/track/{hash}?no_inflight_updates=true");
        let (status, said) = self.ask(Method::GET, &path, None).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        ensure!(status.is_success(), "{} was asked for payment {payment_hash}: {said}", self.name);
        payment(said.lines().next_back().context("lnd said how it ended")?).map(Some)
    }

    /// How many payments of its own have arrived.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn payments_made(&self) -> Result<usize> {
        let all = self.rest(Method::GET, "/v1/payments?max_payments=100000", None).await?;
        Ok(all["payments"].as_array().context("a list of payments")?.len())
    }

    /// What it could send through its channels, satoshi, reserves not taken off.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn channel_sat(&self) -> Result<u64> {
        let balance = self.rest(Method::GET, "/v1/balance/channels", None).await?;
        Ok(text(&balance["local_balance"]["sat"])?.parse()?)
    }

    /// The process, for its log and for signals such as `STOP`.
    pub const fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// SIGKILL, with no chance to tidy up. It is down until [`Lnd::restart`].
    ///
    /// # Errors
    /// It cannot be signalled.
    pub fn kill_9(&mut self) -> Result<()> {
        self.process.kill_9()
    }

    /// Starts it again on the same ports and folder, killing it first if it still runs, and waits as [`Lnd::start`] does. Its peers
    /// come back to it within some seconds, or at once when they [`Lnd::connect`].
    ///
    /// # Errors
    /// As [`Lnd::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill_9()?;
        self.process = start(&self.name, self.dir.path(), &self.chain, self.ports)?;
        self.wait_until_ready().await.map(drop)
    }

    /// Its public key, once its APIs answer and it is level with the chain.
    async fn wait_until_ready(&mut self) -> Result<String> {
        let ready = async {
            loop {
                if let Some(status) = self.process.ended()? {
                    bail!("lnd ended with {status} at its start; it said:\n{}", self.process.last_words().await);
                }
                if self.is_up().await {
                    let info = self.rest(Method::GET, "/v1/getinfo", None).await?;
                    if info["synced_to_chain"] == true {
                        return Ok(text(&info["identity_pubkey"])?.to_owned());
                    }
                }
                tokio::time::sleep(POLL).await;
            }
        };
        match tokio::time::timeout(START_WITHIN, ready).await {
            Ok(node_id) => node_id,
            Err(_) => bail!("{} was not ready within {START_WITHIN:?}; it said:\n{}", self.name, self.process.log()),
        }
    }

    /// Asked of the one call that answers at any time and without a macaroon.
    async fn is_up(&self) -> bool {
        let Ok(answer) = self.client.get(format!("{}/v1/state", self.rest_url())).send().await else { return false };
        answer.json::<Value>().await.is_ok_and(|state| state["state"] == "SERVER_ACTIVE")
    }

    async fn confirmed_sat(&self) -> Result<u64> {
        let balance = self.rest(Method::GET, "/v1/balance/blockchain", None).await?;
        Ok(text(&balance["confirmed_balance"])?.parse()?)
    }

    async fn wait_for(&self, what: &str, holds: impl AsyncFn() -> Result<bool>) -> Result<()> {
        let wait = async {
            while !holds().await? {
                tokio::time::sleep(POLL).await;
            }
            Ok(())
        };
        let waited = tokio::time::timeout(CHANNEL_WITHIN, wait).await;
        waited.with_context(|| format!("{} waited {CHANNEL_WITHIN:?} for {what}", self.name))?
    }

    async fn retried<T>(&self, what: &str, attempt: impl AsyncFn() -> Result<T>) -> Result<T> {
        let until = tokio::time::Instant::now() + CHANNEL_WITHIN;
        loop {
            match attempt().await {
                Ok(done) => return Ok(done),
                Err(error) if tokio::time::Instant::now() >= until => {
                    return Err(error.context(format!("{} waited {CHANNEL_WITHIN:?} for {what}", self.name)));
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<(StatusCode, String)> {
        let mut request = self.client.request(method, format!("{}{path}", self.rest_url()));
        request = request.header("grpc-metadata-macaroon", self.macaroon(Macaroon::Admin)?);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.with_context(|| format!("{}: {path}", self.name))?;
        Ok((answer.status(), answer.text().await?))
    }
}

fn start(name: &str, dir: &Path, chain: &RpcLogin, ports: Ports) -> Result<Process> {
    let mut command = Command::new(tool(Tool::Lnd)?);
    command.arg(format!("--lnddir={}", dir.display())).arg(format!("--alias={name}"));
    command.arg(format!("--listen=127.0.0.1:{}", ports.peers)).arg(format!("--rpclisten=127.0.0.1:{}", ports.grpc));
    command.arg(format!("--restlisten=127.0.0.1:{}", ports.rest));
    command.arg(format!("--bitcoind.rpchost={}:{}", chain.host, chain.port));
    command.arg(format!("--bitcoind.rpcuser={}", chain.user)).arg(format!("--bitcoind.rpcpass={}", chain.password));
    command.args(["--bitcoin.regtest", "--bitcoin.node=bitcoind", "--bitcoind.rpcpolling"]);
    command.args(["--bitcoind.blockpollinginterval=50ms", "--bitcoind.txpollinginterval=50ms"]);
    command.args(["--noseedbackup", "--nobootstrap", "--tlsdisableautofill", "--bitcoin.defaultchanconfs=1"]);
    // Peers that were connected come back at once, and gossip is not held back.
    command.args(["--minbackoff=50ms", "--maxbackoff=500ms", "--trickledelay=50", "--gossip.sub-batch-delay=10ms"]);
    Process::start(name, &mut command)
}

/// A client that takes lnd's certificate, which rustls refuses as a server's since lnd marks it as an authority's. What is tested with
/// it is not the way to the node.
fn client() -> Result<reqwest::Client> {
    web::client_builder().danger_accept_invalid_certs(true).build().context("an HTTP client")
}

fn payment(line: &str) -> Result<Payment> {
    let said: Value = serde_json::from_str(line).with_context(|| format!("a payment in {line}"))?;
    let payment = said.get("result").with_context(|| format!("a payment in {line}"))?;
    match text(&payment["status"])? {
        "SUCCEEDED" => Ok(Payment::Succeeded(Paid {
            preimage: text(&payment["payment_preimage"])?.to_owned(),
            fee_msat: text(&payment["fee_msat"])?.parse()?,
        })),
        "FAILED" => Ok(Payment::Failed(text(&payment["failure_reason"])?.to_owned())),
        other => bail!("a payment ended as {other}"),
    }
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("a string where lnd said {value}"))
}

/// lnd's JSON has bytes in base64.
fn hex_of(value: &Value) -> Result<String> {
    Ok(hex::encode(BASE64_STANDARD.decode(text(value)?)?))
}
