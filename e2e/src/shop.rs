//! A shop to spend money in: node, token, the proxy between them and the gateway, upstream; and its auditor.

use std::{
    process::{Command, Output},
    time::Duration,
};

use alloy::{
    consensus::Transaction,
    network::TransactionBuilder,
    primitives::{Address, B256, U256, address},
    providers::Provider,
    rpc::types::TransactionRequest,
};
use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Method};
use serde_json::{Value, json};

use crate::{
    Account, Anvil, Asked, Authorization, Claim, Echo, Farebox, FaultProxy, NETWORK, Process, Quoted, Setup, Tool,
    Usdc, contract, http_client, now_s, tool,
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
    /// What it takes for further nodes, all of them the same one.
    pub others: Vec<FaultProxy>,
    /// The contracts of [`ShopOptions::tokens`].
    pub tokens: Vec<Address>,
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
    /// What is sold beside the usual; `$UPSTREAM` stands for the upstream.
    pub routes: &'static str,
    /// How it can be paid.
    pub rails: Rails,
    /// Contracts of `Hostile.sol` that it takes for dollar tokens, by their names.
    pub tokens: &'static [&'static str],
    /// How many nodes it has beside the first.
    pub nodes_more: usize,
    /// How old the chain is at its start, seconds.
    pub chain_behind_s: u64,
}

/// The ways to pay that a shop knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rails {
    /// x402 alone, in USDC.
    #[default]
    X402,
    /// x402, and transfers of USDC and ether.
    Both,
    /// Transfers alone: it has no relayer.
    Transfers,
}

impl ShopOptions {
    /// x402 and transfers.
    pub const BOTH: Self = Self { rails: Rails::Both, ..Self::X402 };
    /// Transfers alone.
    pub const TRANSFERS: Self = Self { rails: Rails::Transfers, ..Self::X402 };
    /// x402 alone.
    pub const X402: Self =
        Self { chain: "", top: "", routes: "", rails: Rails::X402, tokens: &[], nodes_more: 0, chain_behind_s: 0 };
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

/// What a refused claim's answer tells the payer to do next. Whether money moved is not for it to say, unless the books know: the payer
/// names a transaction, and may have paid something or somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Pay, by this fresh bill.
    Pay,
    /// The same, and what came is kept as credit.
    PayCredited,
    /// Ask again with the same proof: no bill.
    Again,
    /// Mend the headers, and do not pay again: no bill.
    Mend,
    /// Nothing, the transaction has bought something: no bill.
    Nothing,
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
        let nodes: Vec<String> = std::iter::once(&rpc).chain(&others).map(FaultProxy::url).collect();
        let setup = Setup::new(&config(&nodes, &tokens, &echo, options))?
            .env("FAREBOX_RELAYER_KEY", &relayer.key())
            // A test may take the disk away by RLIMIT_FSIZE, which otherwise ends a process by this signal.
            .wrapped(&["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"]);
        let farebox = Farebox::start(setup).await?;
        let (relayer, client) = (relayer.address(), http_client()?);
        Ok(Self { anvil, usdc, rpc, others, tokens, echo, farebox, relayer, client })
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

    /// Asks for `path` without paying: the bill's `transfer` member.
    ///
    /// # Errors
    /// There is none.
    pub async fn quote(&self, path: &str) -> Result<Quoted> {
        self.quote_for(Method::GET, path).await
    }

    /// [`Shop::quote`] for another method.
    ///
    /// # Errors
    /// There is none.
    pub async fn quote_for(&self, method: Method, path: &str) -> Result<Quoted> {
        let request = self.client.request(method, self.farebox.url(path)).header("connection", "close");
        let reply = Reply::read(request.send().await?).await?;
        ensure!(reply.status == 402, "{path} answered an unpaid request {reply:?}");
        let json = reply.problem()["transfer"].clone();
        ensure!(json.is_object(), "a 402 without transfer: {}", reply.problem());
        Ok(Quoted { json, path: path.to_owned() })
    }

    /// Pays an option of a bill the ordinary way, and waits until it is mined.
    ///
    /// # Errors
    /// The node refuses it.
    pub async fn pay(&self, payer: &Account, option: &Asked) -> Result<B256> {
        self.anvil.send(payer, self.transfer_of(option, option.units)).await
    }

    /// The plain transaction that pays so many units of an option's asset to whom it says.
    #[must_use]
    pub fn transfer_of(&self, option: &Asked, units: u128) -> TransactionRequest {
        if option.json["asset"] == "native" {
            return TransactionRequest::default().with_to(option.pay_to).with_value(U256::from(units));
        }
        self.usdc.transfer(option.pay_to, units)
    }

    /// Asks for `path`, pays what it costs in what has this symbol, and signs the claim.
    ///
    /// # Errors
    /// As the steps of it.
    pub async fn buy(&self, payer: &Account, path: &str, symbol: &str) -> Result<Claim> {
        let bill = self.quote(path).await?;
        let option = bill.option(symbol)?;
        let transaction = self.pay(payer, &option).await?;
        bill.claim(&option, transaction, payer.address()).signed(payer).await
    }

    /// Sends a claim, on a connection of its own.
    ///
    /// # Errors
    /// No answer, or one that broke off.
    pub async fn claim(&self, claim: &Claim) -> Result<Reply> {
        Reply::read(self.claim_request(Method::GET, claim).send().await?).await
    }

    /// The request of [`Shop::claim`], for a task of its own or a body to be read bit by bit.
    pub fn claim_request(&self, method: Method, claim: &Claim) -> reqwest::RequestBuilder {
        let request = self.client.request(method, self.farebox.url(&claim.path)).header("connection", "close");
        request.header("x-payment-hash", &claim.announced).header("x-payment-code", claim.encoded())
    }

    /// Sends the identical claim until an answer does not ask for that, as an agent does.
    ///
    /// # Errors
    /// There is none within `within`; the error tells the last.
    pub async fn insist_on(&self, claim: &Claim, within: Duration) -> Result<Reply> {
        insist(within, || self.claim(claim)).await
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

    /// Every payment in the books, newest first, as the binary exports it.
    ///
    /// # Errors
    /// The command fails.
    pub async fn payments(&self) -> Result<Vec<Value>> {
        self.told(&["payments", "--json"]).await
    }

    /// The audit log, first entry first, as the binary exports it.
    ///
    /// # Errors
    /// The command fails.
    pub async fn audit_log(&self) -> Result<Vec<Value>> {
        self.told(&["audit", "export"]).await
    }

    /// `farebox audit verify`: whether it says that the log is whole, and what it says.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn verify_audit_log(&self) -> Result<(bool, String)> {
        let output = self.run(&["audit", "verify"]).await?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    async fn told(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let output = self.run(arguments).await?;
        ensure!(output.status.success(), "farebox {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(parse).collect()
    }

    async fn run(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = tokio::process::Command::from(self.farebox.setup().command(arguments)?);
        Ok(command.kill_on_drop(true).output().await?)
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
    /// for another. The audit log is whole.
    ///
    /// # Errors
    /// They differ, or something stays open.
    pub async fn audit(&self) -> Result<Audit> {
        self.audit_beside(&[]).await
    }

    /// [`Shop::audit`], where these transactions also paid the seller and were never claimed with success.
    ///
    /// # Errors
    /// As there.
    pub async fn audit_beside(&self, unclaimed: &[B256]) -> Result<Audit> {
        let open = |payment: &Value| matches!(payment["state"].as_str(), Some("claimed" | "settling" | "in_doubt"));
        let payments = self.wait_for_books(ENDED_WITHIN, |books| !books.iter().any(open)).await?;
        let relayed = self.relayed().await?;
        let audit = Audit { payments, transfers: self.transfers().await?, relayed };

        let received: u128 = audit.transfers.iter().map(|(_, _, units)| units).sum();
        ensure!(received == self.usdc.balance_of(Self::SELLER).await?, "the transfers are not the balance");
        let mut unbooked = audit.transfers.clone();
        unbooked.retain(|(hash, _, _)| !unclaimed.contains(hash));
        let mut coins = 0;
        for payment in audit.in_state("settled") {
            let came = came(payment)?;
            if payment["asset"].as_str().is_some_and(|asset| asset.contains("/slip44:")) {
                coins += came;
                continue;
            }
            let its_own = |(hash, payer, units): &(B256, Address, u128)| {
                payment["transaction"] == json!(hash)
                    && *units == came
                    && payment["payer"].as_str().is_some_and(|account| account.ends_with(&payer.to_string()))
            };
            let at = unbooked.iter().position(its_own);
            let at = at.with_context(|| format!("settled, and not on the chain: {payment}; there: {unbooked:?}"))?;
            unbooked.swap_remove(at);
        }
        ensure!(unbooked.is_empty(), "paid, and not in the books: {unbooked:?}; there: {:#?}", audit.payments);
        for hash in unclaimed {
            let transaction = self.anvil.provider().get_transaction_by_hash(*hash).await?;
            let paid = transaction.filter(|sent| sent.inner.to() == Some(Self::SELLER));
            coins += paid.map_or(0, |sent| sent.inner.value().to::<u128>());
        }
        let held = self.anvil.provider().get_balance(Self::SELLER).await?.to::<u128>();
        ensure!(coins == held, "{coins} wei are in the books, and {held} on the chain");
        if !matches!(self.verify_audit_log().await?, (true, _)) {
            bail!("the audit log is not whole: {}", self.verify_audit_log().await?.1);
        }
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

    /// Panics unless it is this refusal, told in full.
    #[track_caller]
    pub fn refuses(&self, name: &str, status: u16, code: &str, next: Next) {
        let problem = self.problem();
        let (retry, charged) = match next {
            Next::Pay => ("after_payment", json!("unknown")),
            Next::PayCredited => ("after_payment", json!(true)),
            Next::Again => ("same_proof", json!("unknown")),
            Next::Mend => ("never", json!("unknown")),
            // A settlement of our own may still be under way.
            Next::Nothing if problem["charged"] == "unknown" => ("never", json!("unknown")),
            Next::Nothing => ("never", json!(true)),
        };
        let told = json!([self.status, problem["code"], problem["retry"], problem["charged"]]);
        assert_eq!(told, json!([status, code, retry, charged]), "{name}: {self:?}");
        assert!(problem["detail"].as_str().is_some_and(|reason| reason.len() > 20), "{name}: {problem}");
        assert_eq!(self.header("cache-control"), Some("no-store"), "{name}");
        assert_eq!(problem["transfer"].is_object(), retry == "after_payment", "{name}: {problem}");
        assert_eq!(self.is_bill(), retry == "after_payment", "{name}: {problem}");
        assert!(next != Next::Again || self.retry_after().is_some(), "{name}: no Retry-After: {self:?}");
    }

    /// Retry-After in seconds.
    #[must_use]
    pub fn retry_after(&self) -> Option<u64> {
        self.header("retry-after")?.parse().ok()
    }

    /// A header that is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether there is anything in it that could be paid once more.
    #[must_use]
    pub fn is_bill(&self) -> bool {
        let problem = self.problem();
        let billed = ["accepts", "transfer"].iter().any(|member| !problem[member].is_null());
        billed || self.headers.contains_key("payment-required")
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

fn config(nodes: &[String], tokens: &[Address], echo: &Echo, options: ShopOptions) -> String {
    let (upstream, seller) = (echo.url(), Shop::SELLER);
    let ShopOptions { chain, top, routes, rails, .. } = options;
    let mut config =
        format!("admission.busy_wait = \"2s\"\nreconciler.interval = \"100ms\"\nserver.workers = 2\n{top}\n");
    let mut assets = vec!["\"USDC\"".to_owned()];
    if rails != Rails::X402 {
        if !top.contains("lookups_per_minute") {
            config += "admission.lookups_per_minute = 100000\n";
        }
        config += "public_url = \"$ORIGIN\"\ntransfer = {}\n[[rate]]\nsymbol = \"ETH\"\nfixed = \"2500\"\n";
        assets.push("\"native\"".to_owned());
    }
    for (name, token) in options.tokens.iter().zip(tokens) {
        assets.push(format!("{{ address = \"{token}\", symbol = \"{name}\", dollar = true }}"));
    }
    config += &format!(
        "[[chain]]\nnetwork = \"{NETWORK}\"\nrpc = {nodes:?}\nassets = [{}]\npay_to = \"{seller}\"\nmax_timeout = \"10m\"\n",
        assets.join(", ")
    );
    if rails != Rails::Transfers {
        config += "relayer = { key = \"${FAREBOX_RELAYER_KEY}\" }\n";
    }
    config += &format!("{chain}\n");
    for (folder, settle) in [("after", "before_response"), ("before", "before_upstream")] {
        for (pattern, response_timeout) in [("*", "10s"), ("hasty", "500ms")] {
            config += &format!(
                "[[route]]\nmatch = \"* /{folder}/{pattern}\"\nupstream = \"{upstream}\"\nprice = \"$0.01\"\n\
                 settle = \"{settle}\"\nresponse_timeout = \"{response_timeout}\"\n"
            );
        }
    }
    config + &routes.replace("$UPSTREAM", &upstream)
}

/// Units that came with a settled payment: the price, and what is credit beside it. A late payment is credit as a whole.
fn came(payment: &Value) -> Result<u128> {
    let number = |member: &str| payment[member].as_str().map_or(Ok(0), str::parse::<u128>);
    let beside = if payment["delivery"] == "credited" { 0 } else { number("credit_units")? };
    Ok(number("units")? + beside)
}

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

fn decoded(headers: &HeaderMap, name: &str) -> Option<Value> {
    serde_json::from_slice(&BASE64_STANDARD.decode(headers.get(name)?).ok()?).ok()
}

fn parse(line: &[u8]) -> Result<Value> {
    serde_json::from_slice(line).context("a line of farebox payments --json")
}
