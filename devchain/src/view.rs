//! What the chain keeps, in the shapes of the Ethereum JSON-RPC API.

use alloy::consensus::{Block as ConsensusBlock, BlockBody, Transaction as _};
use alloy::eips::eip4895::Withdrawals;
use alloy::network::primitives::BlockTransactions;
use alloy::primitives::{Address, Bytes, Sealable as _, U256};
use alloy::rlp::Encodable as _;
use alloy::rpc::types::{Block as RpcBlock, Header as RpcHeader, Log, Transaction, TransactionReceipt};
use revm::Database as _;

use crate::chain::Block;
use crate::evm::Scratch;
use crate::pool::SignedTransaction;

/// Whether a block is told with its transactions or their hashes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    Hashes,
    Full,
}

pub(crate) fn block(block: &Block, detail: Detail) -> RpcBlock {
    let size = ConsensusBlock::new(
        block.header.clone(),
        BlockBody {
            transactions: block.transactions.iter().map(|tx| tx.inner().clone()).collect(),
            ommers: Vec::new(),
            withdrawals: Some(Withdrawals::default()),
        },
    )
    .length();
    let header = block.header.clone().seal_unchecked(block.hash);
    RpcBlock {
        header: RpcHeader::from_consensus(header, None, Some(U256::from(size))),
        uncles: Vec::new(),
        transactions: match detail {
            Detail::Full => {
                BlockTransactions::Full((0..block.transactions.len()).map(|i| transaction(block, i)).collect())
            }
            Detail::Hashes => BlockTransactions::Hashes(block.transactions.iter().map(|tx| *tx.tx_hash()).collect()),
        },
        withdrawals: Some(Withdrawals::default()),
    }
}

/// The transaction at `index` of a block; callers take the index from the chain.
pub(crate) fn transaction(block: &Block, index: usize) -> Transaction {
    let tx = &block.transactions[index];
    Transaction {
        block_hash: Some(block.hash),
        block_number: Some(block.header.number),
        transaction_index: Some(index as u64),
        effective_gas_price: Some(tx.effective_gas_price(block.header.base_fee_per_gas)),
        block_timestamp: Some(block.header.timestamp),
        ..waiting_transaction(tx)
    }
}

pub(crate) fn waiting_transaction(tx: &SignedTransaction) -> Transaction {
    Transaction {
        inner: tx.as_ref().clone(),
        block_hash: None,
        block_number: None,
        transaction_index: None,
        effective_gas_price: Some(tx.max_fee_per_gas()),
        block_timestamp: None,
    }
}

/// The receipt at `index` of a block; callers take the index from the chain.
pub(crate) fn receipt(block: &Block, index: usize) -> TransactionReceipt {
    let (tx, outcome) = (&block.transactions[index], &block.outcomes[index]);
    let mut log_index = outcome.first_log..;
    let inner = outcome.receipt.clone().map_logs(|inner| log(block, index, log_index.next(), inner));
    TransactionReceipt {
        inner,
        transaction_hash: *tx.tx_hash(),
        transaction_index: Some(index as u64),
        block_hash: Some(block.hash),
        block_number: Some(block.header.number),
        gas_used: outcome.gas_used,
        effective_gas_price: tx.effective_gas_price(block.header.base_fee_per_gas),
        blob_gas_used: None,
        blob_gas_price: None,
        from: tx.signer(),
        to: tx.to(),
        contract_address: outcome.created,
    }
}

/// The logs of the transaction at `index` of a block.
pub(crate) fn logs(block: &Block, index: usize) -> impl Iterator<Item = Log> {
    let outcome = &block.outcomes[index];
    let indexed = outcome.receipt.logs().iter().zip(outcome.first_log..);
    indexed.map(move |(inner, log_index)| log(block, index, Some(log_index), inner.clone()))
}

fn log(block: &Block, index: usize, log_index: Option<u64>, inner: alloy::primitives::Log) -> Log {
    Log {
        inner,
        block_hash: Some(block.hash),
        block_number: Some(block.header.number),
        block_timestamp: Some(block.header.timestamp),
        transaction_hash: Some(*block.transactions[index].tx_hash()),
        transaction_index: Some(index as u64),
        log_index,
        removed: false,
    }
}

pub(crate) fn code(state: &mut Scratch<'_>, address: Address) -> Bytes {
    let Ok(account) = state.basic(address);
    let Ok(code) = state.code_by_hash(account.unwrap_or_default().code_hash);
    code.original_bytes()
}
