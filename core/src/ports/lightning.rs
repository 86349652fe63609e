//! What the lightning rail and the agent know of a Lightning node or wallet.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use super::BoxError;
use crate::{BitcoinNetwork, Invoice, InvoiceNews, PaymentHash, Preimage, Timestamp};

/// A node or wallet that makes invoices. Every call ends within the node's configured timeout.
#[async_trait]
pub trait LightningNode: fmt::Debug + Send + Sync {
    /// For logs and people, without a secret: `lnd at https://127.0.0.1:8080`.
    fn label(&self) -> &str;

    /// Who it is and how it is.
    ///
    /// # Errors
    /// [`NodeError`].
    async fn info(&self) -> Result<NodeInfo, NodeError>;

    /// Makes an invoice. The caller checks that hash, amount and expiry are what was asked for ([`Invoice`] is read from the BOLT 11 text, not
    /// from what the node says beside it).
    ///
    /// # Errors
    /// [`NodeError`]; an invoice may then exist that nobody is shown.
    async fn create_invoice(&self, order: &InvoiceOrder) -> Result<Invoice, NodeError>;

    /// What has become of an invoice of its own; `None` if it does not know it. The answer is of this very hash.
    ///
    /// # Errors
    /// [`NodeError`]: never "not paid".
    async fn invoice_news(&self, hash: PaymentHash) -> Result<Option<InvoiceStatus>, NodeError>;

    /// What was settled (and, where the node tells, held) after `after`, the oldest first; from the node's beginning without one. Waits for the first
    /// for at most `wait`, and then says that there was none. Nothing is lost between two calls, nor while the gateway or the node is down: a
    /// node without such a memory gives a cursor that reaches far enough back, and says things twice.
    ///
    /// # Errors
    /// [`NodeError`].
    async fn settlements(&self, after: Option<&NewsCursor>, wait: Duration) -> Result<Settlements, NodeError>;
}

/// A node or wallet that pays.
#[async_trait]
pub trait LightningWallet: fmt::Debug + Send + Sync {
    /// For logs and people, without a secret.
    fn label(&self) -> &str;

    /// Which node or wallet it is, wherever it is reached: its public key in lower-case hex, or its label where it tells none. Another node behind
    /// the same address has another one, and knows nothing of this one's payments.
    ///
    /// # Errors
    /// [`NodeError`].
    async fn id(&self) -> Result<Arc<str>, NodeError> {
        Ok(self.label().into())
    }

    /// Which network it pays on, if it can tell; wallets behind NWC may not.
    ///
    /// # Errors
    /// [`NodeError`].
    async fn network(&self) -> Result<Option<BitcoinNetwork>, NodeError>;

    /// What it could send, millisatoshis, as far as it knows.
    ///
    /// # Errors
    /// [`NodeError`].
    async fn spendable_msat(&self) -> Result<u64, NodeError>;

    /// Pays an invoice, once: paying a hash that was paid or is being paid does not pay again. A dropped future leaves the payment to be looked up.
    async fn pay(&self, order: &PayOrder) -> PayOutcome;

    /// What has become of a payment of its own. A wallet that cannot look its payments up answers an error, never [`Outgoing::Never`].
    ///
    /// # Errors
    /// [`NodeError`]: never "not paid".
    async fn outgoing(&self, hash: PaymentHash) -> Result<Outgoing, NodeError>;
}

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its public key, 66 lower-case hex digits, or a stable name of ours where it does not tell one.
    pub id: Arc<str>,
    /// Its alias; a stranger's text only in so far as the operator is one.
    pub alias: String,
    /// Its network, if it tells.
    pub network: Option<BitcoinNetwork>,
    /// Whether it has caught up with its chain.
    pub synced: bool,
    /// What it could receive now over its channels, millisatoshis, if it tells.
    pub receivable_msat: Option<u64>,
    /// Usable channels, if it tells.
    pub channels: Option<u32>,
}

/// What an invoice is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvoiceOrder {
    /// Millisatoshis, 1 or more.
    pub amount_msat: u64,
    /// Read by people in their wallets; at most 639 bytes of UTF-8. Source: BOLT 11 `d`.
    pub description: String,
    /// How long it can be paid; whole seconds.
    pub expiry: Duration,
    /// Now, for invoices that do not tell when they were made.
    pub now: Timestamp,
}

/// What a node says of an invoice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvoiceStatus {
    /// It can still be paid.
    Open,
    /// Something became of it.
    News(InvoiceNews),
}

/// Where a node's news were read up to. Opaque; kept in the ledger with the node's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewsCursor(pub String);

/// News of a node's invoices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlements {
    /// What became of which; also of invoices that are not ours.
    pub news: Vec<(PaymentHash, InvoiceNews)>,
    /// For the next question.
    pub cursor: Option<NewsCursor>,
}

/// What is to be paid, at most for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayOrder {
    /// The invoice, as its caller checked it.
    pub invoice: Invoice,
    /// The most that forwarding nodes may take, millisatoshis. A wallet over NWC knows no such limit and takes what it takes: what that was is in
    /// [`PaidOut::fee_msat`].
    pub fee_max_msat: u64,
    /// How long to try. What is not known then is [`PayOutcome::Unknown`].
    pub timeout: Duration,
}

/// What became of a wish to pay.
#[derive(Debug)]
pub enum PayOutcome {
    /// Paid.
    Paid(PaidOut),
    /// Not paid, and nothing is under way that could still pay it.
    Failed {
        /// Stable, snake_case: `no_route`, `insufficient_balance`, `invoice_expired`, `not_allowed` (by the wallet's owner), `refused`, `timeout`.
        code: &'static str,
        /// For people.
        detail: String,
    },
    /// Not known. To be looked up before anything else is done.
    Unknown {
        /// Why.
        source: BoxError,
    },
}

/// A payment that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaidOut {
    /// What was bought. Some custodial wallets do not give it.
    pub preimage: Option<Preimage>,
    /// What forwarding nodes took, millisatoshis, if the wallet tells.
    pub fee_msat: Option<u64>,
}

/// What a wallet says of a payment of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// It never heard of it: nothing was sent.
    Never,
    /// Under way.
    InFlight,
    /// Made.
    Paid(PaidOut),
    /// Failed for good; it may be tried again.
    Failed,
}

/// Why a node did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// It did not answer, or not in a way that can be understood. Whether it did it is not known.
    #[error("{label} did not answer")]
    Unavailable {
        /// Which node.
        label: String,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// It said no.
    #[error("{label} refused: {detail}")]
    Refused {
        /// Which node.
        label: String,
        /// Its words, made safe to print.
        detail: String,
    },
    /// It is not the one that was configured: another certificate, key or network.
    #[error("{label} is not the node of the config: {detail}")]
    Impostor {
        /// Which node.
        label: String,
        /// What, expected, found.
        detail: String,
    },
}

impl NodeError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => "node_unavailable",
            Self::Refused { .. } => "node_refused",
            Self::Impostor { .. } => "node_impostor",
        }
    }

    /// Whether to ask again may help.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Unavailable { .. } => true,
            Self::Refused { .. } | Self::Impostor { .. } => false,
        }
    }
}
