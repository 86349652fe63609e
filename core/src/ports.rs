//! The ports: what the gateway and the agent know of rails, ledgers, wallets, clocks and randomness. The binary alone knows
//! who stands behind them.

use std::{borrow::Cow, error::Error, fmt};

use async_trait::async_trait;

use crate::{
    Amount, Answer, Binding, BlockRef, Claim, Claimed, Credential, CredentialDigest, EvmAddress, IllegalEvent, LaneKey,
    Network, Offer, Payer, Payment, PaymentEvent, PaymentId, PaymentState, Permit, Price, ProofId, RailName, RouteId,
    StoredTransaction, Timestamp, TransactionFate, TransactionId,
};

/// An inside error, kept as a source for logs and never sent.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Tells the time.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Now, by the wall clock.
    fn now(&self) -> Timestamp;
}

/// Gives unpredictable bytes.
pub trait Entropy: fmt::Debug + Send + Sync {
    /// Fills `bytes` from a cryptographically secure source.
    fn fill(&self, bytes: &mut [u8]);
}

/// A way to be paid: makes offers, checks credentials, moves the money, and finds out what became of it.
#[async_trait]
pub trait Rail: fmt::Debug + Send + Sync {
    /// Which rail this is.
    fn name(&self) -> RailName;

    /// Every way in which this rail takes `price`, in order of preference. Computed once at start.
    ///
    /// # Errors
    /// [`OfferError`] if an asset cannot express the price exactly or no configured asset fits.
    fn offers(&self, price: &Price) -> Result<Vec<Offer>, OfferError>;

    /// Checks all that needs no IO, cheapest first: form, terms against `offers`, times, and a key's signature.
    ///
    /// # Errors
    /// [`Rejected`] on the first check that fails.
    fn check(&self, credential: &Credential, offers: &[Offer], now: Timestamp) -> Result<Checked, Rejected>;

    /// Checks what only the chain knows: a contract wallet's signature, nonce, balance, and that the settlement would succeed.
    ///
    /// # Errors
    /// [`VerifyError::Rejected`] only if the chain said no; whatever could not be found out is
    /// [`VerifyError::Unavailable`].
    async fn verify(&self, checked: &Checked) -> Result<(), VerifyError>;

    /// Moves the money of a claimed payment. The signed transaction is in the [`TransactionStore`] before it is broadcast.
    /// A dropped future leaves a payment in `Claimed` or `Settling`, for [`Rail::resolve`].
    async fn settle(&self, permit: &Permit) -> Settlement;

    /// Finds out what became of a payment in `Settling`, `InDoubt` or `Settled`, and pushes it on: broadcasts stored
    /// transactions again, never signs for a payment that may already be charged.
    async fn resolve(&self, payment: &Payment) -> Settlement;

    /// For each network of this rail, the lowest block that a reorganisation could still undo: payments mined there or above
    /// are looked at again. Networks whose head could not be read are left out. Empty for a rail without blocks.
    async fn revocable(&self) -> Vec<(Network, u64)>;

    /// Whether the chain still has this block at this height.
    ///
    /// # Errors
    /// The chain could not be asked, or disagrees with itself; never taken for [`Canonical::Gone`].
    async fn is_canonical(&self, network: &Network, block: &BlockRef) -> Result<Canonical, BoxError>;
}

/// What a chain says of a block it once had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canonical {
    /// It still has it.
    Holds,
    /// Another block is at its height, or none.
    Gone,
}

/// A credential that passed every check that needs no IO.
#[derive(Clone, Debug)]
pub struct Checked {
    /// What it would consume.
    pub proof: ProofId,
    /// The credential.
    pub credential: std::sync::Arc<Credential>,
    /// The offer of ours that it meets.
    pub offer: Offer,
    /// Who pays. Proven only once `signature` says so, or the chain has.
    pub payer: Payer,
    /// When the authorization ends by itself.
    pub valid_until: Timestamp,
    /// Whether the signature is known to be the payer's.
    pub signature: SignatureCheck,
}

/// How far a signature has been checked without IO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureCheck {
    /// It recovers to the payer's address.
    Recovered,
    /// It does not; only a contract at the payer's address could accept it (EIP-1271).
    NeedsContract,
}

/// What became of a settlement.
#[derive(Debug)]
pub enum Settlement {
    /// The money moved, with the confirmations asked for.
    Final {
        /// The transaction that moved it: ours, or another that used the same authorization.
        transaction: TransactionId,
        /// Where it was mined.
        block: BlockRef,
    },
    /// It did not move and never will.
    Refused(Rejected),
    /// Not known yet. Never a reason for a new bill.
    InDoubt {
        /// A transaction that may move it. `None` says that nothing was broadcast, so that the claim may be released.
        transaction: Option<TransactionId>,
        /// Why it is not known.
        source: BoxError,
    },
}

/// A definite no, with the wire's own reason.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{detail}")]
pub struct Rejected {
    /// Stable, snake_case; for x402 the protocol's `errorReason`.
    pub code: Cow<'static, str>,
    /// What, expected, found, next.
    pub detail: String,
}

/// Why a credential was not verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The chain said no.
    #[error(transparent)]
    Rejected(Rejected),
    /// The chain said nothing we can rely on.
    #[error("the chain could not be asked")]
    Unavailable {
        /// What went wrong.
        #[source]
        source: BoxError,
    },
}

/// Why a rail makes no offer for a price.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// The price has no exact count of units in an asset.
    #[error("{price} cannot be charged in {symbol} on {network}")]
    NotExact {
        /// The price.
        price: Price,
        /// The asset's symbol.
        symbol: String,
        /// The network.
        network: Network,
        /// Why.
        #[source]
        source: Box<crate::ToUnitsError>,
    },
    /// No configured asset has the price's symbol, or none is a dollar token.
    #[error("no asset of this rail can be charged {price}")]
    NoAsset {
        /// The price.
        price: Price,
    },
}

/// The books. Every method's effect is durable when it returns `Ok`; a dropped future may leave the effect done or not done.
#[async_trait]
pub trait Ledger: fmt::Debug + Send + Sync {
    /// The payment that this very credential made, if any; never a void one. By digest and not by proof, so that it is found
    /// whatever has become of its time, of the price or of the rail since.
    ///
    /// # Errors
    /// Unavailable: never "not seen before".
    async fn find(&self, credential: CredentialDigest) -> Result<Option<Payment>, LedgerUnavailable>;

    /// Claims a proof, once, by [`Payment::contest`].
    ///
    /// # Errors
    /// Unavailable: the claim may or may not have been made.
    async fn claim(&self, claim: Claim) -> Result<Claimed, LedgerUnavailable>;

    /// Applies events in order by [`Payment::apply`], all of them in one commit or none, and returns the row after them.
    /// Keeps the answer that comes with a [`PaymentEvent::Delivered`].
    ///
    /// # Errors
    /// An event does not fit, there is no such payment, or unavailable.
    async fn record(&self, id: PaymentId, events: Vec<PaymentEvent>, now: Timestamp) -> Result<Payment, RecordError>;

    /// The kept answer of a delivered payment, unless its time (the ledger's `answers_kept_for`) is over.
    ///
    /// # Errors
    /// Unavailable.
    async fn answer(&self, id: PaymentId, now: Timestamp) -> Result<Option<Answer>, LedgerUnavailable>;

    /// Payments that nobody is working on and that are not at rest: `Claimed` or `Settling` with an ended lease, and
    /// `InDoubt`; the longest untouched first, at most `limit`.
    ///
    /// # Errors
    /// Unavailable.
    async fn unresolved(&self, now: Timestamp, limit: u32) -> Result<Vec<Payment>, LedgerUnavailable>;

    /// The distinct blocks at or above `from` in which settled payments on `network` were mined, lowest first.
    ///
    /// # Errors
    /// Unavailable.
    async fn settled_blocks(&self, network: &Network, from: u64) -> Result<Vec<BlockRef>, LedgerUnavailable>;

    /// Payments in `Settled` that were mined in exactly this block, at most `limit`.
    ///
    /// # Errors
    /// Unavailable.
    async fn settled_in(
        &self,
        network: &Network,
        block: &BlockRef,
        limit: u32,
    ) -> Result<Vec<Payment>, LedgerUnavailable>;

    /// Payments by filter, newest first.
    ///
    /// # Errors
    /// Unavailable.
    async fn list(&self, filter: &PaymentFilter) -> Result<Vec<Payment>, LedgerUnavailable>;

    /// Remembers what a route is offered for from now on, and returns the offers it was billed at before, which are still
    /// owed to whoever holds such a bill: those retired less than their own `max_timeout_s` ago.
    ///
    /// # Errors
    /// Unavailable.
    async fn exchange_offers(
        &self,
        route: &RouteId,
        current: &[Offer],
        now: Timestamp,
    ) -> Result<Vec<Offer>, LedgerUnavailable>;
}

/// Which payments to list. `None` means any.
#[derive(Clone, Debug, Default)]
pub struct PaymentFilter {
    /// Exactly this payment.
    pub id: Option<PaymentId>,
    /// In this state.
    pub state: Option<PaymentState>,
    /// For this route.
    pub route: Option<RouteId>,
    /// By this payer: the CAIP-10 account or its address alone, any case.
    pub payer: Option<String>,
    /// On this network.
    pub network: Option<Network>,
    /// Settled by this transaction.
    pub transaction: Option<TransactionId>,
    /// Claimed at or after.
    pub since: Option<Timestamp>,
    /// Claimed before.
    pub until: Option<Timestamp>,
    /// Older than this id, for paging.
    pub before: Option<PaymentId>,
    /// At most so many rows; 0 means the ledger's own page size.
    pub limit: u32,
}

/// The store did not answer or did not take it. The third verdict: a 503 and a retry, never a new bill.
#[derive(Debug, thiserror::Error)]
#[error("the ledger could not {operation}")]
pub struct LedgerUnavailable {
    /// Such as `claim a proof`.
    pub operation: &'static str,
    /// What went wrong.
    #[source]
    pub source: BoxError,
}

/// Why an event was not recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It does not fit the payment's state.
    #[error(transparent)]
    Illegal(#[from] IllegalEvent),
    /// There is no such payment.
    #[error("there is no payment {id}")]
    NotFound {
        /// Which.
        id: PaymentId,
    },
    /// The store did not take it; it may or may not be recorded.
    #[error(transparent)]
    Unavailable(#[from] LedgerUnavailable),
}

/// Where a relayer keeps what it signed. Implemented by the ledger, so that a transaction and its payment change together.
#[async_trait]
pub trait TransactionStore: fmt::Debug + Send + Sync {
    /// Stores a signed transaction durably, and with it [`PaymentEvent::SettlementStarted`] if it settles a payment. Only
    /// after this returns `Ok` may the transaction be broadcast.
    ///
    /// # Errors
    /// As [`Ledger::record`]. On `Unavailable` the caller must not broadcast and must look the nonce up again.
    async fn store_transaction(&self, transaction: StoredTransaction) -> Result<(), RecordError>;

    /// Transactions of a lane whose fate is open, by nonce.
    ///
    /// # Errors
    /// Unavailable.
    async fn open_transactions(&self, lane: &LaneKey) -> Result<Vec<StoredTransaction>, LedgerUnavailable>;

    /// Every transaction ever stored for a payment, oldest first.
    ///
    /// # Errors
    /// Unavailable.
    async fn transactions_of(&self, payment: PaymentId) -> Result<Vec<StoredTransaction>, LedgerUnavailable>;

    /// The highest nonce ever stored in a lane.
    ///
    /// # Errors
    /// Unavailable.
    async fn last_nonce(&self, lane: &LaneKey) -> Result<Option<u64>, LedgerUnavailable>;

    /// Notes a transaction's fate. Repeating it changes nothing.
    ///
    /// # Errors
    /// Unavailable.
    async fn close_transaction(&self, hash: &TransactionId, fate: TransactionFate) -> Result<(), LedgerUnavailable>;
}

/// A key that can pay.
#[async_trait]
pub trait Wallet: fmt::Debug + Send + Sync {
    /// The address it pays from on EVM networks.
    fn evm_address(&self) -> EvmAddress;

    /// Signs a payment of exactly this offer, valid until `max_timeout_s` from now. Signs what the offer says and nothing else;
    /// policy is the caller's.
    ///
    /// # Errors
    /// [`WalletError`] if it cannot pay such an offer.
    async fn authorize(&self, offer: &Offer, now: Timestamp) -> Result<Credential, WalletError>;

    /// What it holds of an asset, if that can be found out.
    ///
    /// # Errors
    /// [`WalletError::Unavailable`] if no node answered, or none is configured for the asset's network.
    async fn balance(&self, asset: &crate::AssetId) -> Result<Amount, WalletError>;
}

/// Why a wallet did not sign.
#[derive(Debug, thiserror::Error)]
pub enum WalletError {
    /// It has no way to pay such an offer.
    #[error("{reason}")]
    Unsupported {
        /// Why.
        reason: String,
    },
    /// A node or key store did not answer.
    #[error("the wallet's node or key could not be reached")]
    Unavailable {
        /// What went wrong.
        #[source]
        source: BoxError,
    },
}

/// What a claim is built from; kept here so that every caller binds a proof to the same things.
#[must_use]
pub fn claim_of(
    checked: &Checked,
    binding: Binding,
    id: PaymentId,
    holder: crate::InstanceId,
    lease: std::time::Duration,
    now: Timestamp,
) -> Claim {
    Claim {
        id,
        proof: checked.proof.clone(),
        credential: checked.credential.clone(),
        rail: checked.offer.rail,
        binding,
        payer: checked.payer.clone(),
        amount: checked.offer.amount.clone(),
        pay_to: checked.offer.pay_to.clone(),
        valid_until: checked.valid_until,
        holder,
        lease,
        now,
    }
}
