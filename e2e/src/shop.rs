//! A shop to spend money in: node, token, the proxy between them and the gateway, upstream; and its auditor.

mod audit;
mod options;
mod reply;
mod transfers;

use std::{process::Command, time::Duration};

use alloy::primitives::{Address, address};
use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;

pub use audit::Audit;
pub use options::{Rails, ShopOptions};
pub use reply::{Next, Reply};

use crate::{
    Account, Anvil, Authorization, Echo, Explorer, Farebox, FaultProxy, Process, Setup, Tool, Usdc, contract,
    http_client, now_s, tool,
};
use options::config;
use reply::decoded;

const ETHER: u128 = 1_000_000_000_000_000_000;
/// What every payer of a test starts with, smallest units.
const PURSE: u128 = 1_000_000_000;
const PAUSE: Duration = Duration::from_millis(50);
/// Far above what a lock takes.
const LOCKED_WITHIN: Duration = Duration::from_secs(30);

/// Everything that a paid request goes through, each part in the test's hands.
#[derive(Debug)]
pub struct Shop {
    /// The node.
    pub anvil: Anvil,
    /// The token.
    pub usdc: Usdc,
    /// What the gateway takes for the node.
    pub rpc: FaultProxy,
    /// What it takes for further nodes, all of them the same one.
    pub others: Vec<FaultProxy>,
    /// What it may take for one more source.
    pub explorer: Explorer,
    /// The contracts of [`ShopOptions::tokens`].
    pub tokens: Vec<Address>,
    /// The upstream.
    pub echo: Echo,
    /// The gateway.
    pub farebox: Farebox,
    relayer: Address,
    client: reqwest::Client,
}

/// A request with its payment: sent again, it is the same bytes.
#[derive(Clone, Debug)]
pub struct Paid {
    /// Which authorization it carries.
    pub authorization: Authorization,
    /// The base64 text of PAYMENT-SIGNATURE.
    pub credential: String,
    /// Path and query.
    pub path: String,
}

impl Shop {
    /// Who is paid.
    pub const SELLER: Address = address!("209693Bc6afc0C5328bA36FaF03C514EF312287C");
    /// What every route costs, smallest units.
    pub const PRICE: u128 = 10_000;
    /// Charged once the answer's head is there.
    pub const AFTER: &'static str = "/after/report";
    /// Charged before the upstream is asked.
    pub const BEFORE: &'static str = "/before/report";

    /// Opens one with the defaults of a test: it waits a second or two where a real one waits ten times that.
    ///
    /// # Errors
    /// A part does not start.
    pub async fn open() -> Result<Self> {
        Self::open_with(ShopOptions::default()).await
    }

    /// Opens one.
    ///
    /// # Errors
    /// A part does not start, such as the gateway for a wrong config.
    pub async fn open_with(options: ShopOptions) -> Result<Self> {
        let born = (now_s() - options.chain_behind_s).to_string();
        let flags = ["--timestamp", &born];
        let anvil = Anvil::start(if options.chain_behind_s > 0 { &flags } else { &[] }).await?;
        let usdc = Usdc::deploy(&anvil).await?;
        let mut tokens = vec![];
        for name in options.tokens {
            tokens.push(contract::deploy(&anvil, name, &[]).await?);
        }
        let relayer = Account::named("relayer")?;
        anvil.set_balance(relayer.address(), ETHER).await?;
        let (rpc, echo) = (FaultProxy::start(anvil.url()).await?, Echo::start().await?);
        let mut others = vec![];
        for _ in 0..options.nodes_more {
            others.push(FaultProxy::start(anvil.url()).await?);
        }
        let explorer = Explorer::start(anvil.url()).await?;
        let nodes = std::iter::once(&rpc).chain(&others).map(|node| format!("{:?}, ", node.url())).collect::<String>();
        let websocket = anvil.url().replace("http://", "ws://");
        let sources = options.sources.replace("$WEBSOCKET", &websocket).replace("$EXPLORER", &explorer.url());
        let setup = Setup::new(&config(&(nodes + &sources), &tokens, &echo, options))?
            .env("FAREBOX_EXPLORER_KEY", Explorer::KEY)
            .env("FAREBOX_RELAYER_KEY", &relayer.key())
            // A test may take the disk away by RLIMIT_FSIZE, which otherwise ends a process by this signal.
            .wrapped(&["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"]);
        let farebox = Farebox::start(setup).await?;
        let (relayer, client) = (relayer.address(), http_client()?);
        Ok(Self { anvil, usdc, rpc, others, explorer, tokens, echo, farebox, relayer, client })
    }

    /// An account with plenty of the token.
    ///
    /// # Errors
    /// The node refuses it.
    pub async fn payer(&self, name: &str) -> Result<Account> {
        let payer = Account::named(name)?;
        self.usdc.mint(payer.address(), PURSE).await?;
        Ok(payer)
    }

    /// An account with plenty of the token, and of ether.
    ///
    /// # Errors
    /// The node refuses it.
    pub async fn spender(&self, name: &str) -> Result<Account> {
        let spender = self.payer(name).await?;
        self.anvil.set_balance(spender.address(), ETHER).await?;
        Ok(spender)
    }

    /// Asks for `path`, reads the bill and signs it; `seed` makes the nonce.
    ///
    /// # Errors
    /// There is no bill, or its terms are not this shop's.
    pub async fn sign(&self, payer: &Account, path: &str, seed: &str) -> Result<Paid> {
        let bill = self.client.get(self.farebox.url(path)).header("connection", "close").send().await?;
        ensure!(bill.status() == 402, "{path} answered {} to an unpaid request", bill.status());
        let bill = decoded(bill.headers(), "payment-required").context("a 402 without PAYMENT-REQUIRED")?;
        let accepted = &bill["accepts"][0];
        let expected = json!([Self::PRICE.to_string(), Self::SELLER.to_string(), Usdc::ADDRESS.to_string()]);
        let found = json!([accepted["amount"], accepted["payTo"], accepted["asset"]]);
        ensure!(found == expected, "the bill is not this shop's: {bill}");
        let a = Authorization::new(payer, Self::SELLER, Self::PRICE, seed);
        let payload = json!({ "x402Version": 2, "accepted": accepted, "payload": {
            "signature": a.sign(payer).await?,
            "authorization": {
                "from": a.from, "to": a.to, "value": a.value.to_string(), "nonce": a.nonce,
                "validAfter": a.valid_after.to_string(), "validBefore": a.valid_before.to_string(),
            },
        }});
        Ok(Paid { authorization: a, credential: BASE64_STANDARD.encode(payload.to_string()), path: path.to_owned() })
    }

    /// Sends it, on a connection of its own.
    ///
    /// # Errors
    /// No answer, or one that broke off.
    pub async fn send(&self, paid: &Paid) -> Result<Reply> {
        Reply::read(self.request(paid).send().await?).await
    }

    /// The request of [`Shop::send`], for a task of its own or a body to be read bit by bit.
    pub fn request(&self, paid: &Paid) -> reqwest::RequestBuilder {
        let request = self.client.get(self.farebox.url(&paid.path)).header("connection", "close");
        request.header("payment-signature", &paid.credential)
    }

    /// Sends the identical request until an answer does not ask for that, as an agent does.
    ///
    /// # Errors
    /// There is none within `within`; the error tells the last.
    pub async fn insist(&self, paid: &Paid, within: Duration) -> Result<Reply> {
        insist(within, || self.send(paid)).await
    }

    /// Waits until the node has so many transactions that are not mined.
    ///
    /// # Errors
    /// It has not within `within`.
    pub async fn wait_for_pool(&self, count: usize, within: Duration) -> Result<()> {
        let until = tokio::time::Instant::now() + within;
        loop {
            let pool = self.anvil.rpc("txpool_status", json!([])).await?;
            if pool["pending"] == format!("{count:#x}") {
                return Ok(());
            }
            ensure!(tokio::time::Instant::now() < until, "{pool} within {within:?}, expected {count} pending");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Somebody else writes in the books, until the process is dropped.
    ///
    /// # Errors
    /// The books cannot be locked.
    pub async fn lock_books(&self) -> Result<Process> {
        const SCRIPT: &str = "import sqlite3, time\n\
            books = sqlite3.connect('farebox.db', isolation_level=None, timeout=20)\n\
            books.execute('BEGIN IMMEDIATE')\n\
            print('locked', flush=True)\n\
            time.sleep(600)";
        let mut python = Command::new(tool(Tool::Python)?);
        let process = Process::start("lock", python.args(["-c", SCRIPT]).current_dir(self.farebox.setup().dir()))?;
        process.wait_for_line(LOCKED_WITHIN, |line| (line == "locked").then_some(())).await?;
        Ok(process)
    }

    /// The relayer's account.
    #[must_use]
    pub const fn relayer(&self) -> Address {
        self.relayer
    }
}

/// Asks until an answer does not ask for the same again.
async fn insist<F: Future<Output = Result<Reply>>>(within: Duration, mut ask: impl FnMut() -> F) -> Result<Reply> {
    let until = tokio::time::Instant::now() + within;
    loop {
        match ask().await {
            Ok(reply) if reply.problem()["retry"] != "same_proof" => return Ok(reply),
            reply if tokio::time::Instant::now() >= until => bail!("no end within {within:?}: {reply:?}"),
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}
