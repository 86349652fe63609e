//! Moving the money, and finding out what became of it.

use std::{error::Error, time::Duration};

use alloy::primitives::{B256, U64};
use farebox_core::{
    Credential, Finality, Payment, PaymentState, StoredTransaction, TransactionFate, TransactionId,
    ports::{BoxError, Rejected, Settlement},
};
use tokio::time::Instant;

use crate::{
    abi::ENDS_AUTHORIZATION,
    address,
    chain::{Chain, transfer_call},
    check::{code, rejected},
    lane::{Ended, Order},
    node::{Agreement, LogFilter, Receipt},
    outcome::{Outcome, Transfer},
};

/// Pages of logs that are searched for the end of one authorization.
const LOG_PAGES_MAX: u32 = 64;
/// An authorization was still good when its payment was claimed, so its end is not looked for in blocks older than that by more
/// than the clocks may differ.
const CLOCKS_DIFFER: Duration = Duration::from_secs(600);

fn transaction_id(hash: B256) -> TransactionId {
    TransactionId::new(hash.to_string())
}

fn in_doubt(transaction: Option<TransactionId>, source: impl Into<BoxError>) -> Settlement {
    Settlement::InDoubt { transaction, source: source.into() }
}

fn paid(receipt: &Receipt) -> Settlement {
    Settlement::Final { transaction: transaction_id(receipt.transaction_hash), block: receipt.block() }
}

impl Chain {
    /// Sends the one transaction of a claimed payment, and waits for it.
    pub(crate) async fn settle(&self, payment: &Payment) -> Settlement {
        let deadline = Instant::now() + self.config.limits.settle_timeout;
        // Only a claim without a transaction may be given one: for anything later the question is what became of it.
        if payment.state != PaymentState::Claimed {
            return self.resolve(payment).await;
        }
        let Credential::X402(x402) = payment.credential.as_ref() else {
            return in_doubt(None, "this payment is not made by an authorization");
        };
        let (Some(token), Some(transfer)) = (self.token(&payment.amount.asset), Transfer::of(payment)) else {
            return in_doubt(None, "this payment's token is not configured");
        };
        let Some(lane) = &self.lane else {
            return in_doubt(None, "no relayer is configured on this network");
        };
        let order = Order {
            payment: payment.id,
            token: token.address,
            calldata: transfer_call(token, x402),
            valid_until: payment.valid_until,
        };
        match lane.send(order, deadline).await {
            Ended::Mined(receipt) => self.judge(payment, &transfer, *receipt, deadline).await,
            Ended::Unsent(unsent) => in_doubt(None, unsent),
            Ended::TooLate(rejected) => Settlement::Refused(rejected),
            Ended::Unclear { hash, source } => in_doubt(Some(transaction_id(hash)), source),
        }
    }

    /// What a payment came to, by the chain; pushes on what may still be mined.
    pub(crate) async fn resolve(&self, payment: &Payment) -> Settlement {
        let newest = payment.transaction.clone();
        let Some(transfer) = Transfer::of(payment) else {
            return in_doubt(newest, "this payment is not an authorized transfer of an ERC-20 token");
        };
        let own = match self.store.transactions_of(payment.id).await {
            Ok(own) => own,
            Err(error) => return in_doubt(newest, error),
        };
        if own.is_empty() && payment.state == PaymentState::Claimed {
            return in_doubt(None, "nothing was ever signed for this payment");
        }
        let receipts = match self.node.receipts(&hashes(&own)).await {
            Ok(receipts) => receipts,
            Err(error) => return in_doubt(newest, error),
        };
        for receipt in &receipts {
            self.note_fate(receipt).await;
        }
        match receipts.into_iter().max_by_key(Receipt::succeeded) {
            Some(receipt) => self.judge(payment, &transfer, receipt, Instant::now()).await,
            None => self.unmined(payment, &transfer, &own).await,
        }
    }

    /// What one of our own mined transactions came to, once it has its confirmations.
    async fn judge(&self, payment: &Payment, transfer: &Transfer, receipt: Receipt, deadline: Instant) -> Settlement {
        let hash = transaction_id(receipt.transaction_hash);
        let receipt = match self.confirmed(receipt, payment, deadline).await {
            Ok(receipt) => receipt,
            Err(source) => return in_doubt(Some(hash), source),
        };
        match transfer.outcome_of_ours(&receipt) {
            Outcome::Paid => paid(&receipt),
            Outcome::Ended | Outcome::Nothing if receipt.succeeded() => Settlement::Refused(rejected(
                code::TRANSFER_EVENT,
                format!("transaction {hash} succeeded without the token's transfer of exactly this payment"),
            )),
            Outcome::Ended | Outcome::Nothing => {
                let settlement = self.without_ours(payment, transfer, Some(hash)).await;
                // Paid by somebody else's transaction is paid.
                if !matches!(settlement, Settlement::Final { .. }) {
                    self.bounced.note(address::core(transfer.from));
                }
                settlement
            }
        }
    }

    /// The receipt as it is once its block has the confirmations asked for: it is read again, since a reorganisation may have
    /// moved it, and where the payment is worth it from as many sources as have to agree.
    async fn confirmed(&self, mut receipt: Receipt, payment: &Payment, deadline: Instant) -> Result<Receipt, BoxError> {
        let (finality, agreement) = (payment.finality, self.agreement(&payment.amount));
        let mut wait = self.config.limits.poll_min;
        loop {
            if self.is_final(receipt.block_number.to(), finality, agreement).await? {
                if finality == Finality::Blocks(1) && agreement == Agreement::ONE {
                    return Ok(receipt);
                }
                match self.node.agreed_receipt(receipt.transaction_hash, agreement).await {
                    Ok(Some(again)) if again.block_hash == receipt.block_hash => return Ok(again),
                    Ok(Some(moved)) => receipt = moved,
                    Ok(None) => return Err("a reorganisation dropped the transaction".into()),
                    // The others may see the newest block a moment later than the one that has told of it.
                    Err(error) if agreement != Agreement::ONE && Instant::now() < deadline => {
                        tracing::debug!(error = &error as &dyn Error, "the sources do not agree yet");
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            wait = (wait * 3 / 2).min(self.config.limits.poll_max);
            if Instant::now() + wait > deadline {
                return Err(format!("it is mined and not yet final by {finality}").into());
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// None of our transactions is mined.
    async fn unmined(&self, payment: &Payment, transfer: &Transfer, own: &[StoredTransaction]) -> Settlement {
        let newest = own.last().map(|stored| stored.hash.clone()).or_else(|| payment.transaction.clone());
        let settlement = self.without_ours(payment, transfer, newest).await;
        if let (Settlement::InDoubt { .. }, Some(stored)) = (&settlement, own.last()) {
            // The same bytes as ever, so it is charged once however often they are sent.
            match self.node.broadcast(&stored.raw.clone().into()).await {
                Ok(taken) => tracing::debug!(hash = %stored.hash, ?taken, "a stored transaction was broadcast again"),
                Err(error) => {
                    tracing::warn!(hash = %stored.hash, error = &error as &dyn Error, "a stored transaction could not be broadcast again");
                }
            }
        }
        settlement
    }

    /// What became of the authorization, if no transaction of ours moved its money. It is the payer's signature that pays, and
    /// anybody may submit it: a transfer by somebody else pays us just as well.
    async fn without_ours(&self, payment: &Payment, transfer: &Transfer, hash: Option<TransactionId>) -> Settlement {
        match self.look_for_end(payment, transfer, hash.clone()).await {
            Ok(settlement) => settlement,
            Err(source) => in_doubt(hash, source),
        }
    }

    async fn look_for_end(
        &self,
        payment: &Payment,
        transfer: &Transfer,
        hash: Option<TransactionId>,
    ) -> Result<Settlement, BoxError> {
        let Transfer { token, from, nonce, .. } = *transfer;
        let agreement = self.agreement(&payment.amount);
        if !self.authorization_ended(token, from, nonce, None, agreement).await? {
            return self.expired(payment, transfer, hash).await;
        }
        let Some(by) = self.find_end(payment, transfer).await? else {
            return Err("the authorization is used, and the transaction that used it was not found in the logs".into());
        };
        // The logs are one source's word, and name only where to look.
        let receipt = self.node.agreed_receipt(by, agreement).await?;
        let receipt = receipt.ok_or("the transaction that used the authorization has no receipt")?;
        let block: u64 = receipt.block_number.to();
        if !self.is_final(block, payment.finality, agreement).await? {
            return Ok(in_doubt(
                Some(transaction_id(by)),
                "the authorization's use does not have its confirmations yet",
            ));
        }
        match transfer.outcome(&receipt) {
            Outcome::Paid => self.paid_by_other(payment, &receipt).await,
            Outcome::Ended => Ok(Settlement::Refused(rejected(
                code::NONCE_USED,
                format!("the authorization was used or cancelled by transaction {by} without paying this server"),
            ))),
            Outcome::Nothing => Err("the logs name a transaction whose receipt does not bear them out".into()),
        }
    }

    /// A transfer that somebody else submitted. A transaction of our own relayer must be this payment's own.
    async fn paid_by_other(&self, payment: &Payment, receipt: &Receipt) -> Result<Settlement, BoxError> {
        if Some(receipt.from) == self.config.relayer_address() {
            let own = self.store.transactions_of(payment.id).await?;
            if !hashes(&own).contains(&receipt.transaction_hash) {
                return Err("a transaction of our relayer that is not this payment's used its authorization".into());
            }
        } else {
            tracing::info!(payment = %payment.id, transaction = %receipt.transaction_hash, "somebody else submitted the authorization");
        }
        Ok(paid(receipt))
    }

    /// An unused authorization: over once a block deep enough says that its time is up, for no later block can be earlier.
    async fn expired(
        &self,
        payment: &Payment,
        transfer: &Transfer,
        hash: Option<TransactionId>,
    ) -> Result<Settlement, BoxError> {
        let agreement = self.agreement(&payment.amount);
        let block = self.final_block(payment.finality, agreement).await?;
        let block_s: u64 = block.timestamp.to();
        if block_s < transfer.valid_before {
            let left_s = transfer.valid_before - block_s;
            return Ok(in_doubt(hash, format!("the authorization is unused and may be used for another {left_s} s")));
        }
        let Transfer { token, from, nonce, .. } = *transfer;
        if self.authorization_ended(token, from, nonce, Some(block.number.to()), agreement).await? {
            return Err("the authorization is used in a block and unused in a later one; the nodes disagree".into());
        }
        let (code, detail) = match hash {
            Some(hash) => {
                (code::TRANSACTION, format!("transaction {hash} did not move the money, and the authorization is over"))
            }
            None => (code::VALID_BEFORE, "the authorization is over and was never used".to_owned()),
        };
        Ok(Settlement::Refused(Rejected { code: code.into(), detail }))
    }

    /// The transaction that used or cancelled the authorization: the logs are searched from the head down to the claim.
    async fn find_end(&self, payment: &Payment, transfer: &Transfer) -> Result<Option<B256>, BoxError> {
        let oldest_s = payment.created_at.minus(CLOCKS_DIFFER).unix_s();
        let mut to: u64 = self.node.head().await?.number.to();
        for _ in 0..LOG_PAGES_MAX {
            let from = to.saturating_sub(self.config.limits.log_range - 1);
            let filter = LogFilter {
                address: transfer.token,
                from_block: U64::from(from),
                to_block: U64::from(to),
                topics: vec![ENDS_AUTHORIZATION.to_vec(), vec![transfer.from.into_word()], vec![transfer.nonce]],
            };
            let logs = self.node.logs(filter).await?;
            if let Some(log) = logs.iter().find(|log| transfer.ended_by(log)) {
                return Ok(log.transaction_hash);
            }
            let oldest = self.node.block(from).await?.ok_or("the node lacks a block that it searched for logs")?;
            if from == 0 || oldest.timestamp.to::<u64>() < oldest_s {
                return Ok(None);
            }
            to = from - 1;
        }
        Ok(None)
    }

    async fn note_fate(&self, receipt: &Receipt) {
        let fate = if receipt.succeeded() { TransactionFate::Succeeded } else { TransactionFate::Reverted };
        if let Err(error) = self.store.close_transaction(&transaction_id(receipt.transaction_hash), fate).await {
            tracing::warn!(error = &error as &dyn Error, "a transaction's fate was not noted");
        }
    }
}

fn hashes(transactions: &[StoredTransaction]) -> Vec<B256> {
    transactions.iter().filter_map(|stored| stored.hash.as_str().parse().ok()).collect()
}
