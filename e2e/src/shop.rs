//! A shop to spend money in: node, token, the proxy between them and the gateway, upstream; and its auditor.

use std::{process::Command, time::Duration};

use alloy::{
    primitives::{Address, B256, address},
    providers::Provider,
};
use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Value, json};

use crate::{
    Account, Anvil, Authorization, Echo, Farebox, FaultProxy, NETWORK, Process, Setup, Tool, Usdc, http_client, tool,
};

const ETHER: u128 = 1_000_000_000_000_000_000;
/// What every payer of a test starts with, smallest units.
const PURSE: u128 = 100_000_000;
const PAUSE: Duration = Duration::from_millis(50);
/// How long the auditor waits for the books to come to an end with everything.
const ENDED_WITHIN: Duration = Duration::from_secs(30);

/// Everything that a paid request goes through, each part in the test's hands.
#[derive(Debug)]
pub struct Shop {
    /// The node.
    pub anvil: Anvil,
    /// The token.
    pub usdc: Usdc,
    /// What the gateway takes for the node.
    pub rpc: FaultProxy,
    /// The upstream.
    pub echo: Echo,
    /// The gateway.
    pub farebox: Farebox,
    relayer: Address,
    client: reqwest::Client,
}

/// How one shop differs from another.
#[derive(Clone, Copy, Debug, Default)]
pub struct ShopOptions {
    /// Lines for the `[[chain]]` table, such as `settle_timeout = "1s"`.
    pub chain: &'static str,
    /// Keys of the top level, such as `replay.body_bytes_max = 500`.
    pub top: &'static str,
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

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, to its end.
    pub body: Bytes,
}

/// What the auditor found: books and chain agree.
#[derive(Clone, Debug)]
pub struct Audit {
    /// Every payment, as `farebox payments --json` tells it, newest first.
    pub payments: Vec<Value>,
    /// Every transfer to the seller: transaction, payer, units.
    pub transfers: Vec<(B256, Address, u128)>,
    /// Transactions of the relayer that were mined.
    pub relayed: u64,
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
        let anvil = Anvil::start(&[]).await?;
        let usdc = Usdc::deploy(&anvil).await?;
        let relayer = Account::named("relayer")?;
        anvil.set_balance(relayer.address(), ETHER).await?;
        let (rpc, echo) = (FaultProxy::start(anvil.url()).await?, Echo::start().await?);
        let setup = Setup::new(&config(&rpc, &echo, options))?
            .env("FAREBOX_RELAYER_KEY", &relayer.key())
            // A test may take the disk away by RLIMIT_FSIZE, which otherwise ends a process by this signal.
            .wrapped(&["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"]);
        let farebox = Farebox::start(setup).await?;
        Ok(Self { anvil, usdc, rpc, echo, farebox, relayer: relayer.address(), client: http_client()? })
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
        let until = tokio::time::Instant::now() + within;
        loop {
            match self.send(paid).await {
                Ok(reply) if reply.problem()["retry"] != "same_proof" => return Ok(reply),
                reply if tokio::time::Instant::now() >= until => bail!("no end within {within:?}: {reply:?}"),
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Every payment in the books, newest first, as the binary exports it.
    ///
    /// # Errors
    /// The command fails.
    pub async fn payments(&self) -> Result<Vec<Value>> {
        let mut command = tokio::process::Command::from(self.farebox.setup().command(&["payments", "--json"])?);
        let output = command.kill_on_drop(true).output().await?;
        ensure!(output.status.success(), "farebox payments: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(parse).collect()
    }

    /// Waits until `wanted` of the books holds.
    ///
    /// # Errors
    /// It does not within `within`; the error tells the books.
    pub async fn wait_for_books(&self, within: Duration, wanted: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
        let until = tokio::time::Instant::now() + within;
        loop {
            let payments = self.payments().await?;
            if wanted(&payments) {
                return Ok(payments);
            }
            ensure!(tokio::time::Instant::now() < until, "not so within {within:?}: {payments:#?}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Waits until nothing is open, then compares the books with the chain: the sum of what is settled is what the seller
    /// received, every settled payment has its own transfer and every transfer its payment, and no nonce of the relayer waits
    /// for another.
    ///
    /// # Errors
    /// They differ, or something stays open.
    pub async fn audit(&self) -> Result<Audit> {
        let open = |payment: &Value| matches!(payment["state"].as_str(), Some("claimed" | "settling" | "in_doubt"));
        let payments = self.wait_for_books(ENDED_WITHIN, |books| !books.iter().any(open)).await?;
        let relayed = self.relayed().await?;
        let audit = Audit { payments, transfers: self.transfers().await?, relayed };

        let received: u128 = audit.transfers.iter().map(|(_, _, units)| units).sum();
        ensure!(received == self.usdc.balance_of(Self::SELLER).await?, "the transfers are not the balance");
        let mut unbooked = audit.transfers.clone();
        for payment in audit.in_state("settled") {
            let its_own = |(hash, payer, units): &(B256, Address, u128)| {
                payment["transaction"] == json!(hash)
                    && payment["units"] == units.to_string()
                    && payment["payer"].as_str().is_some_and(|account| account.ends_with(&payer.to_string()))
            };
            let at = unbooked.iter().position(its_own);
            let at = at.with_context(|| format!("settled, and not on the chain: {payment}; there: {unbooked:?}"))?;
            unbooked.swap_remove(at);
        }
        ensure!(unbooked.is_empty(), "paid, and not in the books: {unbooked:?}; there: {:#?}", audit.payments);
        Ok(audit)
    }

    /// Every transfer to the seller.
    ///
    /// # Errors
    /// The node does not answer.
    pub async fn transfers(&self) -> Result<Vec<(B256, Address, u128)>> {
        let filter = self.usdc.contract().Transfer_filter().topic2(Self::SELLER).from_block(0);
        let told = filter.query().await?.into_iter();
        told.map(|(event, log)| Ok((log.transaction_hash.context("a mined log")?, event.from, event.value.to())))
            .collect()
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
        process.wait_for_line(ENDED_WITHIN, |line| (line == "locked").then_some(())).await?;
        Ok(process)
    }

    /// The relayer's account.
    #[must_use]
    pub const fn relayer(&self) -> Address {
        self.relayer
    }

    /// How many transactions of the relayer are mined, all that the node has.
    async fn relayed(&self) -> Result<u64> {
        let mined = self.anvil.transaction_count(self.relayer).await?;
        let pending = self.anvil.provider().get_transaction_count(self.relayer).pending().await?;
        let pool = self.anvil.rpc("txpool_status", json!([])).await?;
        ensure!(mined == pending, "{mined} of {pending} transactions of the relayer are mined");
        ensure!(pool == json!({ "pending": "0x0", "queued": "0x0" }), "the node still has transactions: {pool}");
        Ok(mined)
    }
}

impl Reply {
    /// Reads an answer to its end.
    ///
    /// # Errors
    /// It breaks off.
    pub async fn read(answer: reqwest::Response) -> Result<Self> {
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Ok(Self { status, headers, body: answer.bytes().await? })
    }

    /// PAYMENT-RESPONSE.
    #[must_use]
    pub fn receipt(&self) -> Option<Value> {
        decoded(&self.headers, "payment-response")
    }

    /// The body of a refusal; null for any other.
    #[must_use]
    pub fn problem(&self) -> Value {
        let problem = self.header("content-type").is_some_and(|media| media.starts_with("application/problem+json"));
        if problem { serde_json::from_slice(&self.body).unwrap_or_default() } else { Value::Null }
    }

    /// A header that is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether there is anything in it that could be paid once more.
    #[must_use]
    pub fn is_bill(&self) -> bool {
        self.status == 402 || self.headers.contains_key("payment-required") || !self.problem()["accepts"].is_null()
    }

    /// Whether it came from the books and not from the upstream.
    #[must_use]
    pub fn is_replay(&self) -> bool {
        self.header("idempotent-replayed") == Some("true")
    }
}

impl Audit {
    /// The payments in one state.
    pub fn in_state<'a>(&'a self, state: &'a str) -> impl Iterator<Item = &'a Value> {
        self.payments.iter().filter(move |payment| payment["state"] == state)
    }
}

fn config(rpc: &FaultProxy, echo: &Echo, options: ShopOptions) -> String {
    let (node, upstream, seller) = (rpc.url(), echo.url(), Shop::SELLER);
    let ShopOptions { chain, top } = options;
    let mut config = format!(
        "admission.busy_wait = \"2s\"\nreconciler.interval = \"100ms\"\nserver.workers = 2\n{top}\n\
         [[chain]]\nnetwork = \"{NETWORK}\"\nrpc = \"{node}\"\nassets = [\"USDC\"]\npay_to = \"{seller}\"\n\
         relayer = {{ key = \"${{FAREBOX_RELAYER_KEY}}\" }}\nmax_timeout = \"10m\"\n{chain}\n"
    );
    for (folder, settle) in [("after", "before_response"), ("before", "before_upstream")] {
        for (pattern, response_timeout) in [("*", "10s"), ("hasty", "500ms")] {
            config += &format!(
                "[[route]]\nmatch = \"* /{folder}/{pattern}\"\nupstream = \"{upstream}\"\nprice = \"$0.01\"\n\
                 settle = \"{settle}\"\nresponse_timeout = \"{response_timeout}\"\n"
            );
        }
    }
    config
}

fn decoded(headers: &HeaderMap, name: &str) -> Option<Value> {
    serde_json::from_slice(&BASE64_STANDARD.decode(headers.get(name)?).ok()?).ok()
}

fn parse(line: &[u8]) -> Result<Value> {
    serde_json::from_slice(line).context("a line of farebox payments --json")
}
