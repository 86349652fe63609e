//! What a transaction did, by what the chain says of it: the checks on a transfer that need no question any more.

use std::time::Duration;

use alloy::primitives::{Address, B256, U256};
use farebox_core::{BlockRef, Finality, Timestamp};

use crate::{
    abi::TokenEvent,
    node::{Header, Log, Receipt, Transaction},
};

/// Transfers of one transaction that are looked at; more would make one claim as many questions to the books.
pub(super) const ARRIVALS_MAX: usize = 256;
/// How far a chain's clock may be behind ours.
const CLOCKS_DIFFER_S: u64 = 30;

/// What somebody says a transaction did for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) transaction: B256,
    pub(super) payer: Address,
    pub(super) pay_to: Address,
    /// The token; `None` for the native coin.
    pub(super) token: Option<Address>,
    /// 1 or more.
    pub(super) amount: u128,
}

/// What the chain says.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) receipt: Option<Receipt>,
    pub(super) transaction: Option<Transaction>,
    pub(super) head: Header,
    /// The newest block that is final by a tag, if that was asked for.
    pub(super) tagged: Option<Header>,
    /// The chain's block at the receipt's height.
    pub(super) block: Option<Header>,
}

/// A transaction that is part of the chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mined<'a> {
    pub(super) receipt: &'a Receipt,
    pub(super) transaction: &'a Transaction,
    pub(super) block: &'a Header,
}

/// Where a transaction is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Found<'a> {
    Nowhere,
    /// Known, and in no block.
    Waiting(&'a Transaction),
    Mined(Mined<'a>),
}

/// Why a transaction is no payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Amiss {
    Reverted,
    WrongAsset,
    WrongPayer,
    WrongRecipient,
    Underpaid {
        received: U256,
    },
    /// The money moved by an authorization, which is another rail's proof.
    Authorized,
}

/// One transfer that pays, by its position among the receipt's logs; none for the native coin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Came {
    pub(super) position: Option<u32>,
    pub(super) units: u128,
}

/// Whether the block was in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Before,
    InTime,
    After,
}

/// Answers that do not fit together: of nodes at different blocks, or of one that lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unclear(pub(super) &'static str);

impl Facts {
    /// Where the transaction is, if these answers are of one and the same chain, and a fresh one.
    pub(super) fn found(&self, hash: B256, now: Timestamp, head_age_max: Duration) -> Result<Found<'_>, Unclear> {
        if self.head.timestamp.to::<u64>() < now.minus(head_age_max).unix_s() {
            return Err(Unclear("the newest block is too old to say anything of a payment"));
        }
        let (receipt, transaction) = match (&self.receipt, &self.transaction) {
            (None, None) => return Ok(Found::Nowhere),
            (None, Some(transaction)) if transaction.block_number.is_some() || transaction.block_hash.is_some() => {
                return Err(Unclear("the transaction is mined and has no receipt"));
            }
            (None, Some(transaction)) if transaction.hash != hash => {
                return Err(Unclear("another transaction was told than was asked for"));
            }
            (None, Some(transaction)) => return Ok(Found::Waiting(transaction)),
            (Some(_), None) => return Err(Unclear("the transaction has a receipt and is not known")),
            (Some(receipt), Some(transaction)) => (receipt, transaction),
        };
        if receipt.transaction_hash != hash || transaction.hash != hash {
            return Err(Unclear("another transaction was told than was asked for"));
        }
        if (receipt.from, receipt.to) != (transaction.from, transaction.to)
            || transaction.block_hash.is_some_and(|block| block != receipt.block_hash)
        {
            return Err(Unclear("the receipt is not the transaction's"));
        }
        if receipt.block_number > self.head.number {
            return Err(Unclear("the newest block is older than the transaction's"));
        }
        match &self.block {
            Some(block) if block.hash == receipt.block_hash && block.number == receipt.block_number => {
                Ok(Found::Mined(Mined { receipt, transaction, block }))
            }
            Some(_) => Err(Unclear("the transaction's block is not the chain's block at its height")),
            None => Err(Unclear("the chain has no block at the transaction's height")),
        }
    }

    /// Blocks from this one to the head, both counted.
    pub(super) fn confirmations(&self, block: &BlockRef) -> u64 {
        self.head.number.to::<u64>().saturating_add(1).saturating_sub(block.number)
    }

    /// Whether the block is as final as asked for.
    pub(super) fn is_final(&self, block: &BlockRef, finality: Finality) -> Result<bool, Unclear> {
        match (finality, &self.tagged) {
            (Finality::Blocks(blocks), _) => Ok(self.confirmations(block) >= blocks),
            (Finality::Safe | Finality::Finalized, Some(tagged)) => Ok(tagged.number.to::<u64>() >= block.number),
            (Finality::Safe | Finality::Finalized, None) => Err(Unclear("the newest final block is not known")),
        }
    }
}

impl Found<'_> {
    /// Whether it is a transaction that the payer sent, or by which its money came: nobody else can name many of those.
    pub(super) fn is_of(&self, wanted: &Wanted) -> bool {
        match self {
            Self::Nowhere => false,
            Self::Waiting(transaction) => transaction.from == wanted.payer,
            Self::Mined(mined) => mined.transaction.from == wanted.payer || mined.arrivals(wanted).is_ok(),
        }
    }
}

impl Mined<'_> {
    /// The transfers that pay, in their order, each at least the amount; at most [`ARRIVALS_MAX`].
    pub(super) fn arrivals(&self, wanted: &Wanted) -> Result<Vec<Came>, Amiss> {
        if !self.receipt.succeeded() {
            return Err(Amiss::Reverted);
        }
        match wanted.token {
            None => self.native(wanted).map(|came| vec![came]),
            Some(token) => self.of_token(token, wanted),
        }
    }

    /// Only the transaction's own value counts: what contracts send on leaves no trace that a receipt shows.
    fn native(&self, wanted: &Wanted) -> Result<Came, Amiss> {
        let elsewhere = || self.moved_by_a_token(wanted, None);
        native(self.transaction, wanted).map_err(|amiss| match amiss {
            // A call of a token that pays is a transfer in the wrong asset, whatever its own recipient and value.
            _ if self.transaction.value.is_zero() && elsewhere() => Amiss::WrongAsset,
            amiss => amiss,
        })
    }

    fn of_token(&self, token: Address, wanted: &Wanted) -> Result<Vec<Came>, Amiss> {
        let needed = U256::from(wanted.amount);
        let mut came = Vec::new();
        let mut largest = None;
        let (mut authorized, mut from_others) = (false, false);
        let mut previous = None;
        for (position, log) in self.own_logs() {
            if log.address != token {
                continue;
            }
            // As the x402 rail reads it: a transfer right after the use of an authorization is what was authorized.
            let Some(event) = TokenEvent::read(log) else { continue };
            let by_authorization = matches!(previous.replace(event), Some(TokenEvent::Used { .. }));
            let TokenEvent::Moved { from, to, value } = event else { continue };
            if to != wanted.pay_to {
                continue;
            }
            match (from == wanted.payer, by_authorization) {
                (false, _) => from_others = true,
                (true, true) => authorized = true,
                (true, false) => {
                    largest = largest.max(Some(value));
                    if value >= needed && came.len() < ARRIVALS_MAX {
                        came.push(Came { position: Some(position), units: saturated(value) });
                    }
                }
            }
        }
        match largest {
            Some(_) if !came.is_empty() => Ok(came),
            Some(received) => Err(Amiss::Underpaid { received }),
            None if authorized => Err(Amiss::Authorized),
            None if self.moved_by_a_token(wanted, Some(token)) || self.sent_coins(wanted) => Err(Amiss::WrongAsset),
            None if from_others => Err(Amiss::WrongPayer),
            None => Err(Amiss::WrongRecipient),
        }
    }

    /// Whether a contract other than `but` says that it moved something from the payer to us.
    fn moved_by_a_token(&self, wanted: &Wanted, but: Option<Address>) -> bool {
        self.own_logs().filter(|(_, log)| Some(log.address) != but).any(|(_, log)| {
            matches!(TokenEvent::read(log), Some(TokenEvent::Moved { from, to, .. })
                if (from, to) == (wanted.payer, wanted.pay_to))
        })
    }

    /// Whether the payer sent us the native coin, however little.
    fn sent_coins(&self, wanted: &Wanted) -> bool {
        let Transaction { from, to, value, .. } = self.transaction;
        (*from, *to) == (wanted.payer, Some(wanted.pay_to)) && !value.is_zero()
    }

    /// The logs of this receipt that are this transaction's and stand, with their positions.
    fn own_logs(&self) -> impl Iterator<Item = (u32, &Log)> {
        let own = self.receipt.transaction_hash;
        let stands = move |log: &Log| !log.removed && log.transaction_hash.is_none_or(|of| of == own);
        (0..).zip(&self.receipt.logs).filter(move |(_, log)| stands(log))
    }

    /// Whether the block is within a quote's time.
    pub(super) fn when(&self, issued_at: Timestamp, pay_by: Timestamp) -> When {
        let block_s: u64 = self.block.timestamp.to();
        if block_s < issued_at.unix_s().saturating_sub(CLOCKS_DIFFER_S) {
            When::Before
        } else if block_s > pay_by.unix_s() {
            When::After
        } else {
            When::InTime
        }
    }
}

/// Whether a transaction's own value pays, mined or not.
pub(super) fn native(transaction: &Transaction, wanted: &Wanted) -> Result<Came, Amiss> {
    if transaction.to != Some(wanted.pay_to) {
        return Err(Amiss::WrongRecipient);
    }
    if transaction.from != wanted.payer {
        return Err(Amiss::WrongPayer);
    }
    if transaction.value < U256::from(wanted.amount) {
        return Err(Amiss::Underpaid { received: transaction.value });
    }
    Ok(Came { position: None, units: saturated(transaction.value) })
}

/// An amount of 2^128 units or more counts as one less than that: our books hold no more, and nobody has so much.
fn saturated(value: U256) -> u128 {
    u128::try_from(value).unwrap_or(u128::MAX)
}

#[cfg(test)]
mod tests;
