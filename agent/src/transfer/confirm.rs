//! Waiting until a transfer counts: it is sent again when it is forgotten, its fee is raised when it is stuck, and what can no
//! longer be mined is told from what is not mined yet.

use std::time::Duration;

use farebox_core::ports::{
    BroadcastAnswer, Depth, Execution, GasFee, MinedTransfer, SentTransfer, TransferFate, TransferGas, TransferOrder,
    WalletError,
};
use tokio::time::Instant;

use super::Run;
use crate::{
    entry::{RawBytes, SignedTransaction, Standing},
    error::FetchError,
    pay::chain,
};

/// How often one transfer's fee is raised. Each raise is an eighth or more, so that ten are more than threefold.
const RAISES_MAX: usize = 10;

impl Run<'_> {
    /// Waits until one of the transfer's transactions is as deep in the chain as the bill wants. `before` is what was seen so deep
    /// earlier in this run: it is believed again if no node answers now.
    pub(super) async fn confirmed(&mut self, before: Option<MinedTransfer>) -> Result<MinedTransfer, FetchError> {
        let mut looks = self.agent.looks();
        let mut sent_at = Instant::now();
        loop {
            let last = match self.fate().await {
                Ok(TransferFate::Mined(mined)) => match (mined.depth, mined.execution) {
                    (Depth::Reached, Execution::Succeeded) => return Ok(mined),
                    (Depth::Reached, Execution::Reverted) => {
                        let transaction = mined.transaction;
                        return Err(self.void(transaction, "it failed on the chain; its gas is spent").await);
                    }
                    (Depth::Waiting, _) => format!("it has {} confirmations", mined.confirmations),
                },
                Ok(TransferFate::Displaced) => {
                    let transaction = self.transfer.newest().transaction.clone();
                    return Err(self.void(transaction, "another transaction of the wallet has used its nonce").await);
                }
                Ok(TransferFate::Unmined) => {
                    self.check_in_time()?;
                    self.push(&mut sent_at).await?;
                    "it is not mined yet".to_owned()
                }
                Err(error @ WalletError::NoNode { .. }) => return Err(self.unconfirmed(chain(&error))),
                Err(error) => match before {
                    Some(before) => return Ok(before),
                    None => chain(&error),
                },
            };
            let left = self.until.saturating_duration_since(Instant::now());
            match looks.next().filter(|wait| *wait < left) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(self.unconfirmed(last)),
            }
        }
    }

    /// Hands the newest transaction to the nodes, unless it would come too late. What they say is told later, by its fate.
    pub(super) async fn broadcast(&self) -> Option<BroadcastAnswer> {
        if self.check_in_time().is_err() {
            return None;
        }
        let newest = self.transfer.newest();
        match self.wallet.broadcast(self.entry.current.offer.network(), &newest.raw.0).await {
            Ok(answer) => {
                tracing::debug!(transaction = %newest.transaction, ?answer, "a transfer was sent");
                Some(answer)
            }
            Err(error) => {
                tracing::debug!(transaction = %newest.transaction, error = chain(&error), "a transfer may be sent or not");
                None
            }
        }
    }

    /// Sends an unmined transfer again: with a higher fee if it has been waiting for long, or if the node says that it must be.
    async fn push(&mut self, sent_at: &mut Instant) -> Result<(), FetchError> {
        let bump_after = self.agent.parts.retry.bump_after;
        if sent_at.elapsed() < bump_after.min(RESEND_AFTER) {
            return Ok(());
        }
        let answer = self.broadcast().await;
        if sent_at.elapsed() >= bump_after || answer == Some(BroadcastAnswer::Underpriced) {
            *sent_at = Instant::now();
            self.raise().await?;
        }
        Ok(())
    }

    /// Signs the transfer with a higher fee at the same nonce, notes it, and sends it; nothing if that would cost more than the
    /// policy allows.
    async fn raise(&mut self) -> Result<(), FetchError> {
        if self.transfer.raised.len() >= RAISES_MAX {
            return Ok(());
        }
        let offer = &self.entry.current.offer;
        let Ok(pay_to) = offer.pay_to.parse() else { return Ok(()) };
        let order = TransferOrder { amount: offer.amount.clone(), pay_to };
        let market = match self.wallet.outlook(&order).await {
            Ok(outlook) => outlook.fee,
            Err(error) => {
                tracing::debug!(error = chain(&error), "the market's fee is not known; a stuck transfer waits");
                return Ok(());
            }
        };
        let limit = self.transfer.gas_limit;
        let cap = self.agent.parts.policy.max_gas_wei / u128::from(limit.max(1));
        let Some(fee) = raised(self.transfer.newest().fee, market, cap) else { return Ok(()) };
        let gas = TransferGas { nonce: self.transfer.nonce, limit, fee };
        let signed = self.wallet.sign_transfer(&order, gas)?;
        let raw = RawBytes(signed.raw);
        self.transfer.raised.push(SignedTransaction { transaction: signed.transaction, fee, raw });
        self.store().await?;
        self.broadcast().await;
        Ok(())
    }

    async fn fate(&self) -> Result<TransferFate, WalletError> {
        let offer = &self.entry.current.offer;
        let transactions = self.transfer.transactions();
        let sent = SentTransfer {
            network: offer.network(),
            nonce: self.transfer.nonce,
            transactions: &transactions,
            finality: offer.finality,
        };
        self.wallet.fate(&sent).await
    }

    fn check_in_time(&self) -> Result<(), FetchError> {
        if self.agent.parts.clock.now() <= self.transfer.pay_by {
            return Ok(());
        }
        let transaction = self.transfer.newest().transaction.clone();
        Err(FetchError::TransferLate { transaction, pay_by: self.transfer.pay_by })
    }

    fn unconfirmed(&self, last: String) -> FetchError {
        FetchError::TransferUnconfirmed { transaction: self.transfer.newest().transaction.clone(), last }
    }

    /// Notes that the transfer can move nothing any more, and files it: the next run pays anew.
    async fn void(&mut self, transaction: farebox_core::TransactionId, reason: &str) -> FetchError {
        self.entry.current.standing = Standing::Void { reason: reason.to_owned() };
        if let Err(error) = self.store().await {
            return error.into();
        }
        if let Err(error) = self.held.file(&self.entry).await {
            return error.into();
        }
        FetchError::TransferVoid { transaction, reason: reason.to_owned() }
    }
}

/// How long an unmined transaction is left alone before the same bytes are sent again: nodes forget.
const RESEND_AFTER: Duration = Duration::from_secs(10);

/// A fee that replaces another at the same nonce: at least an eighth more of both, and what the market asks. `None` if that is over
/// the cap. Nodes want 10 to 12.5 per cent.
fn raised(old: GasFee, market: GasFee, cap: u128) -> Option<GasFee> {
    let more = |fee: u128| fee.saturating_add(fee / 8).saturating_add(1);
    let max = more(old.max);
    if max > cap {
        return None;
    }
    let max = max.max(market.max).min(cap);
    Some(GasFee { max, tip: more(old.tip).max(market.tip).min(max) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raise_is_at_least_an_eighth_of_both_and_never_over_the_cap() {
        let check = |market: (u128, u128), cap, expected: Option<(u128, u128)>| {
            let fee = |(max, tip)| GasFee { max, tip };
            assert_eq!(raised(fee((80, 8)), fee(market), cap), expected.map(fee), "{market:?} {cap}");
        };
        check((10, 1), 1000, Some((91, 10)));
        check((500, 60), 1000, Some((500, 60)));
        check((500, 60), 91, Some((91, 60)));
        check((500, 60), 90, None);
        check((u128::MAX, u128::MAX), u128::MAX, Some((u128::MAX, u128::MAX)));
    }
}
