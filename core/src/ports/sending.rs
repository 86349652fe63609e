//! What a wallet does that sends transfers of its own: the chain as it sees it, signing, broadcasting, and finding out what
//! became of what was sent. What to pay, when to raise a fee and when to give up is the agent's to decide.

use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::WalletError;
use crate::{Amount, BlockRef, EvmAddress, Finality, Network, PaymentCode, TransactionId};

/// The side of a [`Wallet`](super::Wallet) that sends transfers.
#[async_trait]
pub trait TransferWallet: fmt::Debug + Send + Sync {
    /// What a transfer would take now. Signs nothing.
    ///
    /// # Errors
    /// [`WalletError::NoNode`], or [`WalletError::Unavailable`] if no node answered or it is one of another network.
    async fn outlook(&self, order: &TransferOrder) -> Result<Outlook, WalletError>;

    /// Signs exactly this transfer with exactly this nonce, gas limit and fee. Sends nothing.
    ///
    /// # Errors
    /// [`WalletError::Unsupported`] if the order is for no EVM asset.
    fn sign_transfer(&self, order: &TransferOrder, gas: TransferGas) -> Result<SignedTransfer, WalletError>;

    /// Hands signed bytes to the network's nodes. The same bytes may be handed over any number of times.
    ///
    /// # Errors
    /// As [`TransferWallet::outlook`]; the transaction may have been taken all the same.
    async fn broadcast(&self, network: &Network, raw: &[u8]) -> Result<BroadcastAnswer, WalletError>;

    /// What became of transactions that share one nonce.
    ///
    /// # Errors
    /// As [`TransferWallet::outlook`]; never taken for "not mined".
    async fn fate(&self, sent: &SentTransfer<'_>) -> Result<TransferFate, WalletError>;

    /// The code with this wallet's signature in it, as EIP-712 data of the code's network.
    ///
    /// # Errors
    /// [`WalletError::Unsupported`] if the code names another payer or no EVM network.
    fn sign_code(&self, code: PaymentCode) -> Result<PaymentCode, WalletError>;
}

/// What is to be moved, and where to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferOrder {
    /// How much of what; an ERC-20 token or the network's coin.
    pub amount: Amount,
    /// To whom.
    pub pay_to: EvmAddress,
}

/// What a chain says of a transfer that has not been made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// What the wallet holds of the order's asset, smallest units.
    pub held_units: u128,
    /// What it holds of the network's coin, wei.
    pub coin_wei: u128,
    /// The token's decimals by its own word; 18 for the coin. `None`: it does not say.
    pub decimals: Option<u8>,
    /// What the transfer burns by the node's estimate, with nothing added. `None`: the chain says that it would fail.
    pub gas: Option<u64>,
    /// What the market asks.
    pub fee: GasFee,
    /// The wallet's next nonce, with what the node knows to be waiting.
    pub next_nonce: u64,
    /// The wallet's next nonce by the newest block alone.
    pub mined_nonce: u64,
}

/// What a transaction offers for a unit of gas, wei. Source: EIP-1559.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GasFee {
    /// At most this, base fee and tip together.
    #[serde(with = "crate::money::decimal_string")]
    pub max: u128,
    /// At most this for the block's maker.
    #[serde(with = "crate::money::decimal_string")]
    pub tip: u128,
}

/// The place and the price of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferGas {
    /// Its nonce.
    pub nonce: u64,
    /// Its gas limit.
    pub limit: u64,
    /// What it offers.
    pub fee: GasFee,
}

/// A transaction ready to be sent.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedTransfer {
    /// Its hash.
    pub transaction: TransactionId,
    /// Its bytes, as `eth_sendRawTransaction` takes them. Whoever has them can send it.
    pub raw: Vec<u8>,
}

impl fmt::Debug for SignedTransfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedTransfer").field("transaction", &self.transaction).finish_non_exhaustive()
    }
}

/// What a node said of a transaction handed to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BroadcastAnswer {
    /// It has it, now or already.
    Taken,
    /// The nonce has been used.
    NonceTooLow,
    /// The fee is too low for it.
    Underpriced,
    /// Anything else: it may or may not have it.
    Unclear,
}

/// Transactions of this wallet of which at most one can be mined.
#[derive(Clone, Copy, Debug)]
pub struct SentTransfer<'a> {
    /// Where.
    pub network: &'a Network,
    /// Their one nonce.
    pub nonce: u64,
    /// Their hashes.
    pub transactions: &'a [TransactionId],
    /// What makes one of them count.
    pub finality: Finality,
}

/// What became of transactions that share one nonce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferFate {
    /// None is mined as far as anybody knows. Says nothing of the future.
    Unmined,
    /// One of them is in the chain.
    Mined(MinedTransfer),
    /// Another transaction has used the nonce, as deep in the chain as the finality asks for: none of these can be mined any more.
    Displaced,
}

/// A transaction in the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MinedTransfer {
    /// Which of them.
    pub transaction: TransactionId,
    /// In which block.
    pub block: BlockRef,
    /// How it ended.
    pub execution: Execution,
    /// How many blocks there are from its own to the newest, both included.
    pub confirmations: u64,
    /// Whether the finality asked for is reached.
    pub depth: Depth,
    /// What it burnt, wei.
    pub gas_wei: u128,
}

/// How a mined transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Execution {
    /// It did what it says.
    Succeeded,
    /// It did nothing, and its gas is spent.
    Reverted,
}

/// Whether a block is as deep as it has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Not yet.
    Waiting,
    /// It is.
    Reached,
}
