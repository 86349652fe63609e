//! What must hold before a raw transaction may wait for a block, and go-ethereum's words for what does not.

use alloy::consensus::transaction::{Recovered, SignerRecoverable as _};
use alloy::consensus::{Transaction as _, TxEnvelope};
use alloy::eips::eip2718::Decodable2718 as _;
use alloy::primitives::{Address, U256};

use crate::chain::Chain;
use crate::evm::{self, Rules};
use crate::limits::{BLOCK_GAS_MAX, TRANSACTION_BYTES_MAX};
use crate::pool::{SignedTransaction, cost};

/// Why a raw transaction was not taken. Nothing has changed, but with `AlreadyKnown` it waits for its block already.
/// The messages are go-ethereum's, because clients match on them.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The very same transaction waits in the pool.
    #[error("already known")]
    AlreadyKnown,
    /// Another transaction of the sender has this nonce, and pays nearly as much (or more).
    #[error("replacement transaction underpriced")]
    ReplacementUnderpriced,
    /// The pool has no room.
    #[error("txpool is full")]
    PoolFull,
    /// Too many transactions of this sender wait.
    #[error("account limit exceeded")]
    SenderLimit,
    /// Not the bytes of a transaction.
    #[error("rlp: {0}")]
    Malformed(String),
    /// Blob transactions need a sidecar and a consensus layer.
    #[error("transaction type not supported")]
    TypeNotSupported,
    /// More bytes than a pool takes.
    #[error("oversized data: transaction size {found}, limit {TRANSACTION_BYTES_MAX}")]
    Oversized {
        /// Bytes of the transaction.
        found: usize,
    },
    /// Signed without a chain id (before EIP-155).
    #[error("only replay-protected (EIP-155) transactions allowed over RPC")]
    NotReplayProtected,
    /// Signed for another chain.
    #[error("invalid sender: invalid chain id for signer: have {have} want {want}")]
    WrongChain {
        /// The transaction's chain id.
        have: u64,
        /// This chain's id.
        want: u64,
    },
    /// No signer can be recovered from the signature, or its s is in the upper half (EIP-2).
    #[error("invalid sender: {0}")]
    InvalidSignature(String),
    /// The nonce after which no account can go on (EIP-2681).
    #[error("nonce has max value")]
    NonceMax,
    /// The sender's nonce has been used.
    #[error("nonce too low: next nonce {next}, tx nonce {found}")]
    NonceTooLow {
        /// The sender's next nonce on chain.
        next: u64,
        /// The transaction's nonce.
        found: u64,
    },
    /// More gas than a block has.
    #[error("exceeds block gas limit")]
    ExceedsBlockGas,
    /// Less gas than the transaction costs before its first instruction.
    #[error("intrinsic gas too low: gas {found}, minimum needed {needed}")]
    IntrinsicGas {
        /// The transaction's gas limit.
        found: u64,
        /// The least gas limit.
        needed: u64,
    },
    /// EIP-1559: the tip is part of the fee.
    #[error(
        "max priority fee per gas higher than max fee per gas: address {sender}, maxPriorityFeePerGas: {tip}, maxFeePerGas: {fee}"
    )]
    TipAboveFee {
        /// Who signed.
        sender: Address,
        /// Tip, wei per gas.
        tip: u128,
        /// Fee, wei per gas.
        fee: u128,
    },
    /// The fee does not cover the base fee of the next block. (go-ethereum's pool would let it wait for a lower one;
    /// with instant blocks that would be for ever.)
    #[error("max fee per gas less than block base fee: address {sender}, maxFeePerGas: {fee}, baseFee: {base_fee}")]
    FeeBelowBase {
        /// Who signed.
        sender: Address,
        /// Fee, wei per gas.
        fee: u128,
        /// Base fee of the next block, wei per gas.
        base_fee: u64,
    },
    /// The sender cannot pay for this transaction and those of lower nonces that wait.
    #[error("insufficient funds for gas * price + value: balance {balance}, queued cost {queued}, tx cost {cost}")]
    InsufficientFunds {
        /// Balance, wei.
        balance: U256,
        /// The most that waiting transactions of lower nonces may cost, wei.
        queued: U256,
        /// The most this one may cost, wei.
        cost: U256,
    },
    /// An account with code cannot sign (EIP-3607), but for one that delegates (EIP-7702).
    #[error("sender not an eoa: address {0}")]
    SenderHasCode(Address),
}

impl SendError {
    /// A stable name, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::AlreadyKnown => "already_known",
            Self::ReplacementUnderpriced => "replacement_underpriced",
            Self::PoolFull => "pool_full",
            Self::SenderLimit => "sender_limit",
            Self::Malformed(_) => "malformed",
            Self::TypeNotSupported => "type_not_supported",
            Self::Oversized { .. } => "oversized",
            Self::NotReplayProtected => "not_replay_protected",
            Self::WrongChain { .. } => "wrong_chain",
            Self::InvalidSignature(_) => "invalid_signature",
            Self::NonceMax => "nonce_max",
            Self::NonceTooLow { .. } => "nonce_too_low",
            Self::ExceedsBlockGas => "exceeds_block_gas",
            Self::IntrinsicGas { .. } => "intrinsic_gas",
            Self::TipAboveFee { .. } => "tip_above_fee",
            Self::FeeBelowBase { .. } => "fee_below_base",
            Self::InsufficientFunds { .. } => "insufficient_funds",
            Self::SenderHasCode(_) => "sender_has_code",
        }
    }
}

/// Reads a raw transaction (EIP-2718) and recovers its signer.
///
/// # Errors
/// What can be told from the bytes and the chain id alone.
pub(crate) fn decode(raw: &[u8], chain_id: u64) -> Result<SignedTransaction, SendError> {
    if raw.len() > TRANSACTION_BYTES_MAX {
        return Err(SendError::Oversized { found: raw.len() });
    }
    let mut rest = raw;
    let tx = TxEnvelope::decode_2718(&mut rest).map_err(|error| SendError::Malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(SendError::Malformed(format!("{} bytes after the transaction", rest.len())));
    }
    if matches!(tx, TxEnvelope::Eip4844(_)) {
        return Err(SendError::TypeNotSupported);
    }
    match tx.chain_id() {
        None => return Err(SendError::NotReplayProtected),
        Some(have) if have != chain_id => return Err(SendError::WrongChain { have, want: chain_id }),
        Some(_) => {}
    }
    let sender = tx.recover_signer().map_err(|error| SendError::InvalidSignature(error.to_string()))?;
    Ok(Recovered::new_unchecked(tx, sender).into())
}

/// Checks a transaction against the chain's head and what waits before it.
///
/// # Errors
/// The first rule that does not hold.
pub(crate) fn validate(chain: &Chain, tx: &SignedTransaction) -> Result<(), SendError> {
    let sender = tx.signer();
    if chain.pool().get(tx.tx_hash()).is_some() {
        return Err(SendError::AlreadyKnown);
    }
    if tx.nonce() == u64::MAX {
        return Err(SendError::NonceMax);
    }
    if tx.gas_limit() > BLOCK_GAS_MAX {
        return Err(SendError::ExceedsBlockGas);
    }
    let (fee, base_fee) = (tx.max_fee_per_gas(), chain.next_base_fee());
    if let Some(tip) = tx.max_priority_fee_per_gas().filter(|tip| *tip > fee) {
        return Err(SendError::TipAboveFee { sender, tip, fee });
    }
    let gas_params = evm::cfg(chain.chain_id(), Rules::Consensus).gas_params;
    let gas = gas_params.initial_tx_gas_for_tx(evm::tx_env(tx, sender), None);
    let needed = gas.initial_regular_gas.max(gas.floor_gas);
    if tx.gas_limit() < needed {
        return Err(SendError::IntrinsicGas { found: tx.gas_limit(), needed });
    }
    let account = chain.account(sender).unwrap_or_default();
    if tx.nonce() < account.nonce {
        return Err(SendError::NonceTooLow { next: account.nonce, found: tx.nonce() });
    }
    if chain.has_contract_code(&account) {
        return Err(SendError::SenderHasCode(sender));
    }
    if fee < u128::from(base_fee) {
        return Err(SendError::FeeBelowBase { sender, fee, base_fee });
    }
    let (queued, cost) = (chain.pool().cost_before(sender, tx.nonce()), cost(tx));
    if account.balance < queued.saturating_add(cost) {
        return Err(SendError::InsufficientFunds { balance: account.balance, queued, cost });
    }
    Ok(())
}
