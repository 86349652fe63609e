//! The books and the audit log as the binary tells them, held against the chain.

use std::{process::Output, time::Duration};

use alloy::{
    consensus::Transaction,
    primitives::{Address, B256},
    providers::Provider,
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{PAUSE, Shop};

/// How long the auditor waits for the books to come to an end with everything.
const ENDED_WITHIN: Duration = Duration::from_secs(30);

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

impl Audit {
    /// The payments in one state.
    pub fn in_state<'a>(&'a self, state: &'a str) -> impl Iterator<Item = &'a Value> {
        self.payments.iter().filter(move |payment| payment["state"] == state)
    }
}

/// Units that came with a settled payment: the price, and what is credit beside it. A late payment is credit as a whole.
fn came(payment: &Value) -> Result<u128> {
    let number = |member: &str| payment[member].as_str().map_or(Ok(0), str::parse::<u128>);
    let beside = if payment["delivery"] == "credited" { 0 } else { number("credit_units")? };
    Ok(number("units")? + beside)
}

fn parse(line: &[u8]) -> Result<Value> {
    serde_json::from_slice(line).context("a line of farebox payments --json")
}
