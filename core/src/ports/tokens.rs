//! What the gateway knows of a rail that sells tokens, and what that rail and the gateway know of the books' side of it.

use std::{net::IpAddr, sync::Arc};

use async_trait::async_trait;

use super::{BoxError, LedgerUnavailable, NewsCursor, Offering, Rejected};
use crate::{
    CallerId, Draw, DrawEnd, DrawId, Drawn, Invoice, InvoiceNews, L402Token, NewToken, Offer, PassId, PaymentHash,
    PaymentId, RequestId, RouteId, Timestamp, Token, TokenTerms,
};

/// A rail whose bill is made for each buyer, and buys a token.
#[async_trait]
pub trait TokenRail: Offering {
    /// A bill for this client. The open one again, if there is one with enough time left; else a new one, within the limits. Calls for the same
    /// client, route and price at the same time make one.
    ///
    /// # Errors
    /// [`NoBill`].
    async fn bill(&self, ask: &BillAsk<'_>) -> Result<Arc<TokenBill>, NoBill>;

    /// Whether a token is good for a request, in this order: the preimage fits its hash, the root key is known, the signature holds, the caveats
    /// allow this request, and in strict mode the node says that its invoice is settled.
    ///
    /// # Errors
    /// [`TokenError`].
    async fn check(&self, token: &L402Token, request: &TokenRequest<'_>) -> Result<HeldToken, TokenError>;

    /// The invoice of this pass is paid: its bill is not offered again.
    fn bought(&self, pass: PassId);
}

/// Who asks for a bill, and for what.
#[derive(Clone, Copy, Debug)]
pub struct BillAsk<'a> {
    /// The client's address, by the socket or a listed proxy. What it is allowed is counted by it.
    pub client: IpAddr,
    /// The client, told apart from others at its address as far as proxies tell them apart: [`CallerId::from_address`]. Two callers must not
    /// be shown one bill, for who of them pays it, the other one can read from its macaroon what was bought; and no limit counts by it, for
    /// anybody can make up more of them.
    pub caller: &'a CallerId,
    /// The route.
    pub route: &'a RouteId,
    /// The request's method.
    pub method: &'a str,
    /// Canonical path, and the query as sent.
    pub resource: &'a str,
    /// The public URL, for the invoice's description.
    pub url: &'a str,
    /// The rail's own offer, from the route's board.
    pub offer: &'a Offer,
    /// How the route sells tokens.
    pub terms: &'a TokenTerms,
    /// The request.
    pub request: &'a RequestId,
    /// Now.
    pub now: Timestamp,
}

/// What one buyer has to pay, and gets for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBill {
    /// The pass that it sells.
    pub pass: PassId,
    /// The macaroon, padded standard base64.
    pub macaroon: Arc<str>,
    /// What is to be paid.
    pub invoice: Invoice,
}

/// Why there is no bill.
#[derive(Debug, thiserror::Error)]
pub enum NoBill {
    /// This client, or all together, asked for too many.
    #[error("too many invoices were asked for lately")]
    Limited {
        /// When there may be one again, seconds.
        retry_after_s: u32,
    },
    /// The node did not make one, or not the one that was asked for.
    #[error("the Lightning node made no invoice")]
    Node {
        /// Why.
        #[source]
        source: BoxError,
    },
    /// The books did not take it, so it must not be shown.
    #[error(transparent)]
    Books(#[from] LedgerUnavailable),
}

/// What a token is presented for.
#[derive(Clone, Copy, Debug)]
pub struct TokenRequest<'a> {
    /// How the route sells tokens.
    pub terms: &'a TokenTerms,
    /// The request's method.
    pub method: &'a str,
    /// Canonical path, and the query as sent.
    pub resource: &'a str,
    /// Now.
    pub now: Timestamp,
}

/// A token that is good, as far as it tells itself. Whether it has a call left only the books know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldToken {
    /// Its pass.
    pub pass: PassId,
    /// The invoice that paid it.
    pub payment_hash: PaymentHash,
}

/// Why a token is not good.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It is not for this request, or its time is over, or we do not know it: 402, and a fresh invoice.
    #[error(transparent)]
    Rejected(Rejected),
    /// It never was one: 400, nothing charged.
    #[error("{}", .0.detail)]
    Malformed(Rejected),
    /// Strict mode: its invoice is on its way and not settled. Not a reason to pay again.
    #[error("the invoice is not settled yet")]
    Unsettled,
    /// It could not be found out: 503.
    #[error("the token could not be checked")]
    Unavailable {
        /// Why.
        #[source]
        source: BoxError,
    },
}

/// The books of tokens. Every method's effect is durable when it returns `Ok`; a dropped future may leave the effect done or not done.
#[async_trait]
pub trait TokenBooks: std::fmt::Debug + Send + Sync {
    /// Stores a token, before its invoice is shown to anybody. Storing the same again changes nothing.
    ///
    /// # Errors
    /// Unavailable: the invoice must not be shown. Also if its pass or its invoice is another token's.
    async fn sell(&self, token: NewToken) -> Result<(), LedgerUnavailable>;

    /// A token by its pass.
    ///
    /// # Errors
    /// Unavailable: never "unknown".
    async fn token(&self, pass: PassId) -> Result<Option<Token>, LedgerUnavailable>;

    /// Takes a call, durably and once, before the upstream is called, by [`crate::PassAccount::rule`]; for a grant of time without a key it only
    /// looks. A draw of a pass whose invoice is not in the books as paid makes its payment ([`crate::Payment::sold`]) in the same commit, whatever
    /// it is told. A draw with a key is kept with its end, as long as other answers are; until then the same key and request again is
    /// [`Drawn::Replayed`].
    ///
    /// # Errors
    /// Unavailable: the call may or may not have been taken; end it as [`DrawEnd::Returned`].
    async fn draw(&self, draw: Draw) -> Result<Drawn, LedgerUnavailable>;

    /// Ends a draw, once: a draw that is unknown or ended stays as it is. The first delivered call delivers the pass's payment; of a grant of
    /// time without a key any call does, for it is not noted.
    ///
    /// # Errors
    /// Unavailable: try again, whatever became of it.
    async fn end_draw(&self, pass: PassId, draw: DrawId, end: DrawEnd, now: Timestamp)
    -> Result<(), LedgerUnavailable>;

    /// Notes what became of invoices, by [`crate::InvoiceState::after`], and up to where the node's news were read, in one commit. A paid one makes
    /// its payment, or more credit in it; hashes that are not ours are passed over. Gives the passes that are paid now and were not before.
    ///
    /// # Errors
    /// Unavailable.
    async fn note_news(
        &self,
        news: Vec<NotedNews>,
        read: Option<NewsRead>,
        now: Timestamp,
    ) -> Result<Vec<PassId>, LedgerUnavailable>;

    /// Up to where the news of a node were read.
    ///
    /// # Errors
    /// Unavailable.
    async fn news_cursor(&self, node: &str) -> Result<Option<NewsCursor>, LedgerUnavailable>;

    /// Invoices of a node that are open or held and whose time was over before `expired_before`, the oldest first, at most `limit`.
    ///
    /// # Errors
    /// Unavailable.
    async fn unsettled_invoices(
        &self,
        node: &str,
        expired_before: Timestamp,
        limit: u32,
    ) -> Result<Vec<Invoice>, LedgerUnavailable>;

    /// Invoices of all nodes but this that are open or held, by the time when they are over and then by their hash, at most `limit`: those
    /// behind `after`, which need not be one of them.
    ///
    /// # Errors
    /// Unavailable.
    async fn unsettled_elsewhere(
        &self,
        node: &str,
        after: Option<(Timestamp, PaymentHash)>,
        limit: u32,
    ) -> Result<Vec<Invoice>, LedgerUnavailable>;

    /// Tokens by filter, the newest first.
    ///
    /// # Errors
    /// Unavailable, also if there is no token [`TokenFilter::before`].
    async fn tokens(&self, filter: &TokenFilter) -> Result<Vec<Token>, LedgerUnavailable>;

    /// Revokes a token: deletes its root key. The audit log is told. Revoking it again changes nothing.
    ///
    /// # Errors
    /// Unavailable. `Ok(None)` says that there is no such token.
    async fn revoke(&self, pass: PassId, now: Timestamp) -> Result<Option<Token>, LedgerUnavailable>;
}

/// What became of one invoice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotedNews {
    /// Which.
    pub hash: PaymentHash,
    /// What.
    pub news: InvoiceNews,
    /// The id that its payment gets, if this is the first news that it is paid.
    pub payment: PaymentId,
}

/// Up to where a node's news were read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewsRead {
    /// The node, by its id.
    pub node: Arc<str>,
    /// For the next question.
    pub cursor: NewsCursor,
}

/// Which tokens to list. `None` means any.
#[derive(Clone, Debug, Default)]
pub struct TokenFilter {
    /// Exactly this one.
    pub pass: Option<PassId>,
    /// Of this route.
    pub route: Option<RouteId>,
    /// Paid in full, or not.
    pub paid: Option<bool>,
    /// Sold before this one, for paging.
    pub before: Option<PassId>,
    /// At most so many; 0 means the ledger's own page size.
    pub limit: u32,
}
