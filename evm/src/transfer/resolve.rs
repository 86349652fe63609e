//! What became of a transfer that was granted, after a reorganisation took its block away.
//!
//! Its money is back once the transaction is in the chain again, as final as it had to be, with the same transfer at the same place.
//! It is given up only if it cannot come back: every source says that it knows no such transaction, and that another one used its nonce
//! so many blocks ago that no reorganisation is believed to reach there. Until then it is in doubt: whoever has the signed transaction
//! can send it again however old it is. After a restart sender and nonce are not known until the transaction is seen again, so that
//! nothing can rule it out.

use std::collections::HashMap;

use alloy::primitives::{Address, B256};
use farebox_core::{
    Amount, Credential, Delivery, Finality, Payment,
    ports::{BoxError, Settlement},
};
use parking_lot::Mutex;

use super::{
    TransferRail,
    judge::{Came, Facts, Found, Mined, Wanted},
    refusal::{code, rejected},
};
use crate::{
    chain::Chain,
    node::{Node, Transaction, ask},
};

/// Senders that are remembered; which ones make room is chance.
const SENDERS_MAX: usize = 20_000;

/// Who sent a transaction that paid, and at which nonce: a transaction that a reorganisation drops cannot be asked about any more.
#[derive(Debug, Default)]
pub(super) struct Senders(Mutex<HashMap<B256, (Address, u64)>>);

impl Senders {
    pub(super) fn note(&self, transaction: &Transaction) {
        let mut senders = self.0.lock();
        if senders.len() >= SENDERS_MAX
            && let Some(any) = senders.keys().next().copied()
        {
            senders.remove(&any);
        }
        senders.insert(transaction.hash, (transaction.from, transaction.nonce.to()));
    }

    fn of(&self, transaction: B256) -> Option<(Address, u64)> {
        self.0.lock().get(&transaction).copied()
    }
}

impl TransferRail {
    pub(super) async fn look_again(&self, payment: &Payment) -> Settlement {
        match self.look(payment).await {
            Ok(settlement) => settlement,
            Err(source) => Settlement::InDoubt { transaction: payment.transaction.clone(), source },
        }
    }

    async fn look(&self, payment: &Payment) -> Result<Settlement, BoxError> {
        let Credential::Transfer(transfer) = payment.credential.as_ref() else {
            return Err("this payment is no transfer".into());
        };
        let chain = self.chain(payment.amount.asset.network())?;
        let wanted = Wanted::of(&transfer.code);
        // What is owed to the payer from it is as much a claim on us as what was delivered.
        let agreement = chain.agreement(&Amount { units: units(payment), asset: payment.amount.asset.clone() });
        let facts = Facts::read(chain, wanted.transaction, payment.finality, agreement).await?;
        let found = facts.found(wanted.transaction, chain.clock.now(), chain.config.head_age_max)?;
        match found {
            Found::Mined(mined) => {
                self.senders.note(mined.transaction);
                back(payment, &wanted, chain, &facts, &mined)
            }
            Found::Waiting(transaction) => {
                self.senders.note(transaction);
                Err("a reorganisation took the transaction out of its block, and it waits to be mined again".into())
            }
            Found::Nowhere => self.gone(chain, wanted.transaction).await,
        }
    }

    /// No source that was asked knows the transaction.
    async fn gone(&self, chain: &Chain, transaction: B256) -> Result<Settlement, BoxError> {
        let Some((sender, nonce)) = self.senders.of(transaction) else {
            return Err("the transaction is unknown since a reorganisation; its nonce is not known here any more, so that it may be sent again any time".into());
        };
        for source in chain.node.each() {
            // The nonce first: what it counts, the source has seen.
            if source.nonce_at(sender, unreachable(&source, chain).await?).await? <= nonce {
                return Err("the transaction is unknown since a reorganisation, and may be sent again any time".into());
            }
            let asked = (ask::receipt(transaction), ask::transaction(transaction));
            if !matches!(source.batch(asked).await?, (None, None)) {
                return Err("some sources know the transaction and others do not".into());
            }
        }
        Ok(reorganised("a reorganisation took the transfer back, and another transaction has used its nonce"))
    }
}

/// The newest block that no reorganisation is believed to reach.
async fn unreachable(source: &Node, chain: &Chain) -> Result<u64, BoxError> {
    let head: u64 = source.head().await?.number.to();
    let deep = head.checked_sub(chain.config.limits.watch_depth).ok_or("the chain is shorter than a reorganisation")?;
    Ok(match chain.config.marked_finality {
        Finality::Blocks(blocks) => deep.min((head + 1).saturating_sub(blocks)),
        Finality::Safe => deep.min(source.tagged("safe").await?.number.to()),
        Finality::Finalized => deep.min(source.tagged("finalized").await?.number.to()),
    })
}

/// The transaction is in a block: the one it was in, or another.
fn back(
    payment: &Payment,
    wanted: &Wanted,
    chain: &Chain,
    facts: &Facts,
    mined: &Mined<'_>,
) -> Result<Settlement, BoxError> {
    let ours = Came { position: payment.proof.transfer_position(), units: units(payment) };
    let block = mined.receipt.block();
    let there = mined.arrivals(wanted).is_ok_and(|came| came.contains(&ours));
    if there {
        if !facts.is_final(&block, payment.finality)? {
            return Err(format!("the transaction is mined again, and not yet final by {}", payment.finality).into());
        }
        let transaction = farebox_core::TransactionId::new(wanted.transaction.to_string());
        return Ok(Settlement::Final { transaction, block });
    }
    if facts.confirmations(&block) <= chain.config.limits.watch_depth {
        return Err("the transaction is mined again and does not make this transfer any more".into());
    }
    Ok(reorganised("after a reorganisation the transaction does not make this transfer any more"))
}

/// How much came.
fn units(payment: &Payment) -> u128 {
    match payment.delivery {
        Delivery::Credited => payment.amount.units,
        Delivery::Pending | Delivery::Delivered => payment.amount.units.saturating_add(payment.credit),
    }
}

fn reorganised(detail: &str) -> Settlement {
    Settlement::Refused(rejected(code::REORGANISED, detail))
}
