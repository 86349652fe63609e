//! What we read of a node's answers, and no more: other chains' receipts and blocks carry fields and types of their own.

use alloy::primitives::{Address, B256, Bytes, U64, U256};
use farebox_core::BlockRef;
use serde::{Deserialize, Serialize};

/// A mined transaction's receipt. Source: Ethereum JSON-RPC, `eth_getTransactionReceipt`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Receipt {
    pub(crate) transaction_hash: B256,
    pub(crate) from: Address,
    pub(crate) to: Option<Address>,
    pub(crate) block_hash: B256,
    pub(crate) block_number: U64,
    /// 1 or 0. A receipt without it (before Byzantium) does not parse: no chain with EIP-3009 tokens has those.
    pub(crate) status: U64,
    pub(crate) gas_used: U64,
    #[serde(default)]
    pub(crate) effective_gas_price: U256,
    /// What a rollup of the OP stack charges beside gas for its data on the chain below, wei.
    #[serde(default)]
    pub(crate) l1_fee: Option<U256>,
    pub(crate) logs: Vec<Log>,
}

impl Receipt {
    /// Whether it is of this transaction, all of it: a status that is neither success nor failure, and logs of other transactions,
    /// are no receipt.
    pub(super) fn is_of(&self, hash: B256) -> bool {
        let own = |log: &Log| log.transaction_hash.is_none_or(|of| of == hash) && !log.removed;
        self.transaction_hash == hash && self.status <= U64::from(1) && self.logs.iter().all(own)
    }

    pub(crate) fn succeeded(&self) -> bool {
        self.status == U64::from(1)
    }

    pub(crate) fn block(&self) -> BlockRef {
        BlockRef { number: self.block_number.to(), hash: self.block_hash.0 }
    }

    /// What it cost, wei; saturates.
    pub(crate) fn gas_cost(&self) -> u128 {
        let gas = u128::try_from(self.effective_gas_price).unwrap_or(u128::MAX).saturating_mul(self.gas_used.to());
        gas.saturating_add(self.data_fee())
    }

    /// What of the cost is for data, wei; saturates.
    pub(crate) fn data_fee(&self) -> u128 {
        self.l1_fee.map_or(0, |fee| u128::try_from(fee).unwrap_or(u128::MAX))
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Log {
    pub(crate) address: Address,
    pub(crate) topics: Vec<B256>,
    pub(crate) data: Bytes,
    #[serde(default)]
    pub(crate) transaction_hash: Option<B256>,
    #[serde(default)]
    pub(crate) removed: bool,
}

/// A transaction, mined or not. Source: Ethereum JSON-RPC, `eth_getTransactionByHash`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Transaction {
    pub(crate) hash: B256,
    pub(crate) from: Address,
    /// None for one that makes a contract.
    pub(crate) to: Option<Address>,
    /// Wei.
    pub(crate) value: U256,
    pub(crate) nonce: U64,
    /// None until it is mined.
    pub(crate) block_hash: Option<B256>,
    pub(crate) block_number: Option<U64>,
}

/// A block's head.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Header {
    pub(crate) number: U64,
    pub(crate) hash: B256,
    pub(crate) parent_hash: B256,
    pub(crate) timestamp: U64,
}

impl Header {
    pub(crate) fn block(&self) -> BlockRef {
        BlockRef { number: self.number.to(), hash: self.hash.0 }
    }
}

/// Answer of `eth_feeHistory`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FeeHistory {
    /// Each block's, oldest first, and the next one's.
    pub(crate) base_fee_per_gas: Vec<U256>,
    #[serde(default)]
    pub(crate) reward: Option<Vec<Vec<U256>>>,
}

/// A call that changes nothing.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Call {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<Address>,
    pub(crate) to: Address,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gas: Option<U64>,
    pub(crate) data: Bytes,
}

/// Which logs.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LogFilter {
    pub(crate) address: Address,
    pub(crate) from_block: U64,
    pub(crate) to_block: U64,
    /// Alternatives by position.
    pub(crate) topics: Vec<Vec<B256>>,
}
