//! The ports: what the gateway and the agent know of rails, ledgers, wallets, clocks and randomness. The binary alone knows
//! who stands behind them.

mod lightning;
mod sending;
mod tokens;

use std::{borrow::Cow, error::Error, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    Amount, Answer, Arrived, ArrivedFor, AuditEntry, AuditLine, Binding, BlockRef, Claim, Claimed, Credential,
    CredentialDigest, Decimal, EvmAddress, FeeTerms, Finality, IllegalEvent, InstanceId, LaneKey, Network, Offer,
    Payer, Payment, PaymentEvent, PaymentId, PaymentState, Permit, Price, Pricing, ProofId, RailName, Refusal,
    RequestId, RouteId, StoredTransaction, Timestamp, TransactionFate, TransactionId, X402Credential,
};

pub use self::lightning::{
    InvoiceOrder, InvoiceStatus, LightningNode, LightningWallet, NewsCursor, NodeError, NodeInfo, Outgoing, PaidOut,
    PayOrder, PayOutcome, Settlements,
};
pub use self::sending::{
    BroadcastAnswer, Depth, Execution, GasFee, MinedTransfer, Outlook, SentTransfer, SignedTransfer, TransferFate,
    TransferGas, TransferOrder, TransferWallet,
};
pub use self::tokens::{
    BillAsk, HeldToken, NewsRead, NoBill, NotedNews, TokenBill, TokenBooks, TokenError, TokenFilter, TokenRail,
    TokenRequest,
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

/// What is worth how many US dollars.
pub trait DollarRates: fmt::Debug + Send + Sync {
    /// The dollars that one whole `symbol` is worth now.
    ///
    /// # Errors
    /// It is not known now; never taken for zero or one.
    fn dollars(&self, symbol: &str) -> Result<Decimal, BoxError>;
}

/// A way to be paid, as far as prices go.
pub trait Offering: fmt::Debug + Send + Sync {
    /// Which rail this is.
    fn name(&self) -> RailName;

    /// Every way in which this rail takes `price` now, in order of preference. Asked at start, and again now and then: rates and network
    /// fees move.
    ///
    /// # Errors
    /// [`OfferError`] if an asset cannot express the price exactly, no configured asset fits, what the price depends on is not known now, or
    /// the network's fee is too large a part of it.
    fn offers(&self, price: &Price, fee: FeeTerms) -> Result<Vec<Offer>, OfferError>;
}

/// A way to be paid that checks credentials, moves the money, and finds out what became of it.
#[async_trait]
pub trait Rail: Offering {
    /// What must hold before the books say anything of a credential. Nothing for a rail whose digest covers all that authorises,
    /// the signature included: the books know such a credential or they do not. A rail that finds payments by less proves here that
    /// the caller is the payer, and gives what it checked, so that nothing is checked twice.
    ///
    /// # Errors
    /// As [`Rail::verify`].
    async fn authenticate(&self, presented: &Presented<'_>) -> Result<Option<Checked>, VerifyError> {
        let _ = presented;
        Ok(None)
    }

    /// Checks all that needs no IO, cheapest first: form, terms against the offers, times, and a key's signature.
    ///
    /// # Errors
    /// [`Rejected`] on the first check that fails.
    fn check(&self, presented: &Presented<'_>) -> Result<Checked, Rejected>;

    /// Checks what only the chain knows: a contract wallet's signature, nonce, balance, and that the settlement would succeed; or that
    /// the money has come.
    ///
    /// # Errors
    /// [`VerifyError::Rejected`] and [`VerifyError::Refused`] only if the chain said no; whatever could not be found out is
    /// [`VerifyError::Unavailable`].
    async fn verify(&self, checked: &Checked, lookups: &dyn Lookups) -> Result<Verified, VerifyError>;

    /// Moves the money of a claimed payment. The signed transaction is in the [`TransactionStore`] before it is broadcast.
    /// A dropped future leaves a payment in `Claimed` or `Settling`, for [`Rail::resolve`].
    async fn settle(&self, permit: &Permit) -> Settlement;

    /// Finds out what became of a payment in `Settling`, `InDoubt` or `Settled`, and pushes it on: broadcasts stored
    /// transactions again, never signs for a payment that may already be charged.
    async fn resolve(&self, payment: &Payment) -> Settlement;

    /// For each network of this rail, the blocks that a reorganisation could still undo, followed to the newest head with about one
    /// question a block. Networks whose head could not be read are left out. Empty for a rail without blocks.
    async fn windows(&self) -> Vec<ChainWindow>;

    /// Whether the chain still has this block at this height: every source is asked.
    ///
    /// # Errors
    /// The chain could not be asked, or its sources disagree; never taken for [`Canonical::Gone`].
    async fn is_canonical(&self, network: &Network, block: &BlockRef) -> Result<Canonical, BoxError>;

    /// What a payment on `network` must wait for whose payer has had one undone by a reorganisation.
    fn deepest(&self, network: &Network) -> Finality;
}

/// What `rails` take `price` for now, by the rails of `order` and in that order; tokens have a price of their own. And the rails that make no
/// offer, with why.
#[must_use]
pub fn offers_by(pricing: &Pricing, rails: &[Arc<dyn Offering>]) -> (Vec<Offer>, Vec<(RailName, OfferError)>) {
    let (mut offers, mut failures) = (Vec::new(), Vec::new());
    for rail in pricing.rails.iter().flat_map(|name| rails.iter().filter(move |rail| rail.name() == *name)) {
        let price = match (rail.name(), &pricing.token) {
            (RailName::L402, Some(terms)) => &terms.price,
            (RailName::L402, None) => continue,
            (RailName::X402 | RailName::Transfer, _) => &pricing.price,
        };
        match rail.offers(price, pricing.network_fee) {
            Ok(more) => offers.extend(more),
            Err(error) => failures.push((rail.name(), error)),
        }
    }
    (offers, failures)
}

/// A credential as it was presented, and all that it may be checked against without IO.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'a> {
    /// The credential.
    pub credential: &'a Credential,
    /// The route that it is for.
    pub route: &'a RouteId,
    /// The request's method.
    pub method: &'a str,
    /// The request's public URL, as a bill for it names it.
    pub url: &'a str,
    /// What the route is offered for.
    pub offers: &'a [Offer],
    /// Now.
    pub now: Timestamp,
    /// What the caller may make us ask.
    pub lookups: &'a dyn Lookups,
}

/// How many questions to a chain one caller may still cause by naming things that nobody has vouched for.
pub trait Lookups: fmt::Debug + Send + Sync {
    /// Takes one.
    ///
    /// # Errors
    /// There is none left.
    fn take(&self) -> Result<(), NoLookup>;

    /// Gives one back that was taken: what it was taken for has been vouched for, so that only failures count.
    fn give_back(&self) {}
}

/// A caller has caused too many questions lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoLookup {
    /// When there is one again, seconds.
    pub retry_after_s: u32,
}

/// The blocks at the end of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainWindow {
    /// Which chain.
    pub network: Network,
    /// Every block from the lowest that can still be undone up to the head, without a gap; never empty.
    pub blocks: Vec<BlockRef>,
}

/// What the chain says of a credential that is good.
#[derive(Clone, Debug)]
pub enum Verified {
    /// The payer authorised a charge, which is ours to make.
    Authorised(ProofId),
    /// The payer has paid.
    Paid(Paid),
}

/// A payment that was made before it was claimed.
#[derive(Clone, Debug)]
pub struct Paid {
    /// The transaction.
    pub transaction: TransactionId,
    /// Where it was mined.
    pub block: BlockRef,
    /// What in it may pay, in the order in which it is taken: the first that nobody has claimed. Never empty.
    pub arrivals: Vec<Arrival>,
    /// What it is for.
    pub purpose: ArrivedFor,
}

/// One movement of money within a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// What a claim on it consumes.
    pub proof: ProofId,
    /// How many units.
    pub units: u128,
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
    /// Whether it came in time.
    pub timely: Timely,
}

/// Whether a credential came in time.
#[derive(Clone, Debug)]
pub enum Timely {
    /// It did.
    Yes,
    /// It did not: no, unless the books know it.
    No(Rejected),
    /// Too late to buy anything: money that has come is credit, told with this reason.
    ForCredit(Rejected),
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
    /// The chain said no: a fresh bill is right.
    #[error(transparent)]
    Rejected(Rejected),
    /// A no, or not yet, with an answer of its own.
    #[error("{}", .0.detail)]
    Refused(Box<Refusal>),
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
        price: Box<Price>,
        /// The asset's symbol.
        symbol: String,
        /// The network.
        network: Network,
        /// Why.
        #[source]
        source: Box<crate::ToUnitsError>,
    },
    /// What the price depends on is not known now: a rate, or the network's fee.
    #[error("{price} cannot be told in {symbol} on {network} now")]
    NoRate {
        /// The price.
        price: Box<Price>,
        /// The asset's symbol.
        symbol: String,
        /// The network.
        network: Network,
        /// What is not known.
        #[source]
        source: BoxError,
    },
    /// The network's fee is a larger part of what is charged than the seller allows.
    #[error(
        "the network fee is {fee_percent} % of {price} in {symbol} on {network}, more than the {percent_max} % allowed"
    )]
    FeeShare {
        /// The price.
        price: Box<Price>,
        /// The asset's symbol.
        symbol: String,
        /// The network.
        network: Network,
        /// What it would be, rounded up.
        fee_percent: u64,
        /// What is allowed.
        percent_max: u32,
    },
    /// No configured asset has the price's symbol, or none is a dollar token.
    #[error("no asset of this rail can be charged {price}")]
    NoAsset {
        /// The price.
        price: Box<Price>,
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

    /// The payment that holds this proof, if any; never a void one.
    ///
    /// # Errors
    /// Unavailable: never "not claimed".
    async fn find_proof(&self, proof: &ProofId) -> Result<Option<Payment>, LedgerUnavailable>;

    /// Claims a proof, once, by [`Payment::contest`]. One credential makes one payment: while it holds another proof, it is busy. With its [`AuditEntry::claimed`] in the same commit.
    ///
    /// # Errors
    /// Unavailable: the claim may or may not have been made.
    async fn claim(&self, claim: Claim) -> Result<Claimed, LedgerUnavailable>;

    /// Applies events in order by [`Payment::apply`], all of them in one commit or none, with the [`AuditEntry::of`] of each, and
    /// returns the row after them. Keeps the answer that comes with a [`PaymentEvent::Delivered`].
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

    /// The distinct blocks at or above `from` in which settled payments on `network` were mined, lowest first; at most `limit`.
    ///
    /// # Errors
    /// Unavailable.
    async fn settled_blocks(
        &self,
        network: &Network,
        from: u64,
        limit: u32,
    ) -> Result<Vec<BlockRef>, LedgerUnavailable>;

    /// The height below which everything settled on `network` was compared with the chain for the last time; 0 as long as nothing was.
    ///
    /// # Errors
    /// Unavailable.
    async fn compared_below(&self, network: &Network) -> Result<u64, LedgerUnavailable>;

    /// Remembers [`Ledger::compared_below`]. It never falls: a lower height changes nothing.
    ///
    /// # Errors
    /// Unavailable.
    async fn set_compared_below(&self, network: &Network, height: u64) -> Result<(), LedgerUnavailable>;

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

    /// Payers of payments that a reorganisation undid, by [`Payment::marks_payer`], the latest first; at most `limit`.
    ///
    /// # Errors
    /// Unavailable.
    async fn marked_payers(&self, limit: u32) -> Result<Vec<Payer>, LedgerUnavailable>;

    /// What is owed to a payer as credit, by asset: the credit of every settled payment of theirs.
    ///
    /// # Errors
    /// Unavailable.
    async fn credits(&self, payer: &Payer) -> Result<Vec<Amount>, LedgerUnavailable>;

    /// The keys that quotes are sealed with, newest first, after `rotation`: it adds its fresh key if the newest is older than its
    /// `rotate_after`, and deletes keys that were replaced longer than its `keep_for` ago.
    ///
    /// # Errors
    /// Unavailable.
    async fn quote_keys(&self, rotation: QuoteKeyRotation, now: Timestamp) -> Result<Vec<QuoteKey>, LedgerUnavailable>;

    /// Writes decisions that changed no payment into the audit log.
    ///
    /// # Errors
    /// Unavailable.
    async fn audit(&self, entries: Vec<AuditEntry>) -> Result<(), LedgerUnavailable>;

    /// Lines of the audit log after `after` (0: from the first), in order, at most `limit`.
    ///
    /// # Errors
    /// Unavailable.
    async fn audit_lines(&self, after: u64, limit: u32) -> Result<Vec<AuditLine>, LedgerUnavailable>;
}

/// A key that quotes are sealed with.
#[derive(Clone, PartialEq, Eq)]
pub struct QuoteKey {
    /// Names it in quotes; never used twice.
    pub id: u32,
    /// HMAC-SHA256 key.
    pub secret: [u8; 32],
    /// Since when quotes are sealed with it.
    pub since: Timestamp,
}

impl fmt::Debug for QuoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuoteKey").field("id", &self.id).field("since", &self.since).finish_non_exhaustive()
    }
}

/// How quote keys are exchanged.
#[derive(Clone)]
pub struct QuoteKeyRotation {
    /// 32 unpredictable bytes for a new key, if one is due. Its id is one more than the newest's.
    pub fresh: [u8; 32],
    /// How old the newest may get.
    pub rotate_after: Duration,
    /// How long a replaced key stays good: at least as long as the longest quote.
    pub keep_for: Duration,
}

impl fmt::Debug for QuoteKeyRotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuoteKeyRotation")
            .field("rotate_after", &self.rotate_after)
            .field("keep_for", &self.keep_for)
            .finish_non_exhaustive()
    }
}

impl QuoteKeyRotation {
    /// The keys after it, newest first. For ledgers: store what changed durably before answering.
    #[must_use]
    pub fn apply(&self, mut keys: Vec<QuoteKey>, now: Timestamp) -> Vec<QuoteKey> {
        keys.sort_by_key(|key| std::cmp::Reverse(key.id));
        let next = match keys.first() {
            Some(newest) if now.since(newest.since) < self.rotate_after => None,
            Some(newest) => newest.id.checked_add(1),
            None => Some(1),
        };
        if let Some(id) = next {
            keys.insert(0, QuoteKey { id, secret: self.fresh, since: now });
        }
        // A key was replaced when the one after it began.
        let mut replaced_at = None;
        keys.retain(|key| {
            let replaced = replaced_at.replace(key.since);
            replaced.is_none_or(|at| now.since(at) <= self.keep_for)
        });
        keys
    }
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
    /// With such a credit.
    pub credit: Option<CreditIs>,
    /// Claimed at or after.
    pub since: Option<Timestamp>,
    /// Claimed before.
    pub until: Option<Timestamp>,
    /// Older than this id, for paging.
    pub before: Option<PaymentId>,
    /// At most so many rows; 0 means the ledger's own page size.
    pub limit: u32,
}

/// What a payment's credit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreditIs {
    /// Owed to the payer: the payment is settled and something of it is credit. What [`Ledger::credits`] sums.
    Owed,
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

    /// A stored transaction by its hash: whatever our own keys sent is known before it is broadcast.
    ///
    /// # Errors
    /// Unavailable: never "not ours".
    async fn transaction(&self, hash: &TransactionId) -> Result<Option<StoredTransaction>, LedgerUnavailable>;

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

    /// Signs an x402 payment of exactly this offer, valid until `max_timeout_s` from now. Signs what the offer says and nothing else;
    /// policy is the caller's.
    ///
    /// # Errors
    /// [`WalletError`] if it cannot pay such an offer.
    async fn authorize(&self, offer: &Offer, now: Timestamp) -> Result<X402Credential, WalletError>;

    /// What it holds of an asset, if that can be found out.
    ///
    /// # Errors
    /// [`WalletError::Unavailable`] if no node answered, or none is configured for the asset's network.
    async fn balance(&self, asset: &crate::AssetId) -> Result<Amount, WalletError>;

    /// The side of it that sends transfers; `None` if it only authorizes.
    fn transfers(&self) -> Option<&dyn TransferWallet> {
        None
    }
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
    /// It has no node to ask, so that it can neither send nor find out what became of what it sent.
    #[error("no node is configured for {network}; a transfer needs one")]
    NoNode {
        /// Which network.
        network: Network,
    },
    /// A node or key store did not answer.
    #[error("the wallet's node or key could not be reached")]
    Unavailable {
        /// What went wrong.
        #[source]
        source: BoxError,
    },
}

/// Who claims, what for, and when: what a claim takes beside the credential and its proof.
#[derive(Clone, Debug)]
pub struct Claimant {
    /// The id a new row gets.
    pub id: PaymentId,
    /// The request that claims.
    pub request: RequestId,
    /// What the proof shall be good for.
    pub binding: Binding,
    /// The claiming process.
    pub holder: InstanceId,
    /// How long the claim is held without a sign of life.
    pub lease: Duration,
    /// Now.
    pub now: Timestamp,
}

/// What a claim is built from; kept here so that every caller binds a proof to the same things.
#[must_use]
pub fn claim_of(checked: &Checked, proof: ProofId, arrived: Option<Arrived>, claimant: Claimant) -> Claim {
    Claim {
        id: claimant.id,
        proof,
        credential: checked.credential.clone(),
        rail: checked.offer.rail,
        binding: claimant.binding,
        payer: checked.payer.clone(),
        amount: checked.offer.amount.clone(),
        pay_to: checked.offer.pay_to.clone(),
        valid_until: checked.valid_until,
        finality: checked.offer.finality,
        arrived,
        request: claimant.request,
        holder: claimant.holder,
        lease: claimant.lease,
        now: claimant.now,
    }
}
