//! What a wallet asks that sends transactions of its own.

use alloy::primitives::{Address, Bytes, U256};
use serde::Serialize;

use super::{Called, NoAnswer, Node, ask};

/// A transaction that is not made, to be estimated.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Draft {
    pub(crate) from: Address,
    pub(crate) to: Address,
    pub(crate) value: U256,
    pub(crate) data: Bytes,
}

/// What an estimate came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Estimate {
    /// It burns so much.
    Gas(u64),
    /// The chain executed it and it failed.
    Fails,
}

impl Node {
    /// What a transaction would burn on the newest block.
    pub(crate) async fn estimate(&self, draft: &Draft) -> Result<Estimate, NoAnswer> {
        self.ask(&ask::estimate(draft)).await
    }

    /// The next nonce of `address` once block `number` was mined.
    pub(crate) async fn nonce_at(&self, address: Address, number: u64) -> Result<u64, NoAnswer> {
        self.ask(&ask::nonce_at(address, number)).await.map(|nonce| nonce.to())
    }

    /// A call's answer, with a failed one as nothing.
    pub(crate) async fn answer(&self, call: super::Call) -> Result<Option<Bytes>, NoAnswer> {
        Ok(match self.call(call, None).await? {
            Called::Returned(bytes) => Some(bytes),
            Called::Reverted(_) => None,
        })
    }
}
