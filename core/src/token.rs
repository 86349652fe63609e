//! Passes, which buy calls or time, and the L402 token: a pass that was paid by a Lightning invoice and is held as a macaroon.

use std::{borrow::Cow, fmt, num::NonZeroU32, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    Amount, Answer, AssetId, Binding, CallerId, Credential, Delivery, Finality, InstanceId, Invoice, InvoiceCredential,
    InvoiceState, Network, Payer, Payment, PaymentHash, PaymentId, PaymentState, Preimage, Price, ProofId, RailName,
    RequestId, RouteId, Timestamp, TransactionId,
};

/// How often an answer of one pass may break off after the caller had a part of it before its calls count as made. See
/// `BROKEN_RUNS_MAX` of payments.
pub const BROKEN_DRAWS_MAX: u32 = 3;

/// A pass by the digest that names it: for an L402 token SHA-256 of its identifier. Never the secret itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PassId(pub [u8; 32]);

impl PassId {
    /// From 64 lower-case hex digits.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        crate::lightning::lower_hex(text).map(Self)
    }
}

impl fmt::Display for PassId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PassId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a pass buys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grant {
    /// So many calls.
    Calls(NonZeroU32),
    /// As many calls as fit into this time, from the end of the invoice's time on: whoever pays early has a little more.
    For(Duration),
}

impl Default for Grant {
    fn default() -> Self {
        Self::Calls(NonZeroU32::MIN)
    }
}

/// What of a request a token is good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenScope {
    /// Any request to the route.
    #[default]
    Route,
    /// Only the method, path and query that it was sold for.
    Request,
}

/// How a route sells tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenTerms {
    /// What one invoice buys.
    pub grant: Grant,
    /// What one invoice costs.
    pub price: Price,
    /// The route as caveats name it: 1 to 255 of `[A-Za-z0-9_.%-]`, and different for every route of the gateway.
    pub service: Arc<str>,
    /// The price tier. A token of another tier is refused: the seller raises it when tokens sold before are to end.
    pub tier: u8,
    /// What of a request it is bound to.
    pub scope: TokenScope,
    /// How long a token of [`Grant::Calls`] can be used after the end of the invoice's time.
    pub valid_for: Duration,
}

/// The secret under a macaroon: whoever has it can mint. 32 random bytes, one for each token.
#[derive(Clone, PartialEq, Eq)]
pub struct RootKey(Zeroizing<[u8; 32]>);

impl RootKey {
    /// From 32 unpredictable bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for the ledger and the HMAC.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootKey(..)")
    }
}

/// A macaroon, parsed but not believed. Its location is not kept: no signature covers it. Source: macaroon libmacaroons v2 binary form.
#[derive(Clone, PartialEq, Eq)]
pub struct Macaroon {
    /// For ours 66 bytes: version, payment hash, random token id.
    pub identifier: Vec<u8>,
    /// In the order in which they were added.
    pub caveats: Vec<String>,
    /// HMAC-SHA256 over all of it. Secret: with it the token can be used.
    pub signature: [u8; 32],
}

impl fmt::Debug for Macaroon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Macaroon").field("caveats", &self.caveats.len()).finish_non_exhaustive()
    }
}

/// An L402 credential as it came: a macaroon and the preimage of its invoice. Parsed, not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L402Token {
    /// The macaroon.
    pub macaroon: Macaroon,
    /// What the caller says is the preimage.
    pub preimage: Preimage,
}

/// A token as it is sold: stored durably before its invoice is shown to anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// The pass that paying the invoice makes.
    pub pass: PassId,
    /// What its macaroon is signed with.
    pub root_key: RootKey,
    /// What is to be paid.
    pub invoice: Invoice,
    /// The Bitcoin network.
    pub network: Network,
    /// The node that made the invoice: its public key, or a stable name if it has none to tell.
    pub node: Arc<str>,
    /// Which route sells it.
    pub route: RouteId,
    /// The method of the request that asked.
    pub method: String,
    /// Its canonical path, and the query as sent.
    pub resource: String,
    /// The request that asked.
    pub request: RequestId,
    /// What it buys.
    pub grant: Grant,
    /// When the token ends by itself.
    pub valid_until: Timestamp,
}

/// A token as the ledger has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// As it was sold. The root key is gone once the token is revoked.
    pub sold: SoldToken,
    /// Where its invoice stands.
    pub state: InvoiceState,
    /// What came for it, millisatoshis.
    pub received_msat: u64,
    /// The payment in the books, once the invoice is paid.
    pub payment: Option<PaymentId>,
    /// Calls taken, those under way included; also counted for a grant of time, as far as they are noted.
    pub used: u32,
    /// Since when it is revoked.
    pub revoked_at: Option<Timestamp>,
}

/// [`NewToken`] as it is read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SoldToken {
    /// The pass.
    pub pass: PassId,
    /// `None` once revoked.
    pub root_key: Option<RootKey>,
    /// The invoice.
    pub invoice: Invoice,
    /// The Bitcoin network.
    pub network: Network,
    /// The node that made the invoice.
    pub node: Arc<str>,
    /// Which route sold it.
    pub route: RouteId,
    /// What it buys.
    pub grant: Grant,
    /// When it ends by itself.
    pub valid_until: Timestamp,
}

/// A wish to make a call with a pass.
#[derive(Clone, Debug)]
pub struct Draw {
    /// Which pass.
    pub pass: PassId,
    /// Names this draw; random, so that ending it twice ends it once.
    pub id: DrawId,
    /// The invoice whose preimage the caller showed: if the books do not have it as paid yet, it is from now on.
    pub proved: PaymentHash,
    /// The id that the payment of the invoice gets, if this is the first news of it.
    pub payment: PaymentId,
    /// What is called. Its caller is that of the `Idempotency-Key`, or the pass itself.
    pub binding: Binding,
    /// The digest of the `Idempotency-Key`, under which the answer is kept. Without one nothing is kept.
    pub key: Option<CallerId>,
    /// The request.
    pub request: RequestId,
    /// The drawing process.
    pub holder: InstanceId,
    /// Until when that process is believed to be at it, from `now` on.
    pub lease: Duration,
    /// Now.
    pub now: Timestamp,
}

/// One draw: 16 random bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DrawId(pub [u8; 16]);

/// The right to run the upstream once for a pass. Only a ledger gives it; it cannot be copied.
#[derive(Debug)]
#[must_use = "a call that is not made must be returned"]
pub struct DrawPermit {
    pass: PassId,
    id: DrawId,
    payment: Payment,
    left: Option<u32>,
}

impl DrawPermit {
    /// For ledgers, once the draw is durable. `left` is how many calls remain, for a grant of calls.
    pub const fn granted(pass: PassId, id: DrawId, payment: Payment, left: Option<u32>) -> Self {
        Self { pass, id, payment, left }
    }

    /// Which pass.
    #[must_use]
    pub const fn pass(&self) -> PassId {
        self.pass
    }

    /// Which draw.
    #[must_use]
    pub const fn id(&self) -> DrawId {
        self.id
    }

    /// The payment that bought the pass.
    #[must_use]
    pub const fn payment(&self) -> &Payment {
        &self.payment
    }

    /// Calls that remain after this one, for a grant of calls.
    #[must_use]
    pub const fn left(&self) -> Option<u32> {
        self.left
    }
}

/// What became of a wish to draw.
#[derive(Debug)]
pub enum Drawn {
    /// Run the upstream.
    Granted(DrawPermit),
    /// This `Idempotency-Key` has had its answer, and here it is again; `None` if it is not kept any more.
    Replayed {
        /// The payment that bought the pass.
        payment: Box<Payment>,
        /// What was answered.
        answer: Option<Answer>,
    },
    /// No call is left, but one is still under way and may come back; or the one with this key is. Ask again later, and do not pay anew.
    Busy,
    /// The key was first used for another request.
    Foreign,
    /// Every call was made.
    Spent,
    /// Its time is over.
    Expired,
    /// It was revoked.
    Revoked,
    /// Less was paid than was asked.
    Underpaid,
    /// The books know of no such pass.
    Unknown,
}

/// How a draw ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DrawEnd {
    /// The caller has the answer; durable before its last byte goes out.
    Delivered {
        /// The answer, if there was a key and it was small enough to keep.
        answer: Option<Answer>,
    },
    /// The call was not made, or its answer broke off before anything went out: it is the holder's again.
    Returned,
    /// The answer broke off after the caller had a part of it. Returned [`BROKEN_DRAWS_MAX`] times in a pass's life, then counted.
    BrokeOff,
}

impl Payment {
    /// The row that a paid invoice makes: settled from the first, and pending until the first call has been answered. What came over the
    /// invoice's amount is credit; all of it is, if it was less. `sold.resource` and its neighbours name the request that asked for the
    /// invoice.
    #[must_use]
    pub fn sold(id: PaymentId, token: &NewToken, received_msat: u64, now: Timestamp) -> Self {
        let asset = AssetId::lightning(&token.network);
        let (asked, received) = (u128::from(token.invoice.amount_msat), u128::from(received_msat));
        let underpaid = received < asked;
        Self {
            id,
            proof: ProofId::invoice(token.invoice.payment_hash),
            credential: Arc::new(Credential::L402(InvoiceCredential::new(token.invoice.payment_hash))),
            rail: RailName::L402,
            binding: Binding {
                route: token.route.clone(),
                method: token.method.clone(),
                resource: token.resource.clone(),
                caller: CallerId::from_pass(token.pass),
            },
            payer: Payer::new(&token.network, &token.pass.to_string()),
            amount: Amount { units: if underpaid { received } else { asked }, asset },
            pay_to: token.node.clone(),
            state: PaymentState::Settled,
            reason: underpaid.then_some(Cow::Borrowed("underpaid")),
            transaction: Some(TransactionId::new(token.invoice.payment_hash.to_string())),
            block: None,
            delivery: if underpaid { Delivery::Credited } else { Delivery::Pending },
            credit: if underpaid { received } else { received.saturating_sub(asked) },
            finality: Finality::default(),
            reversed: false,
            request: token.request.clone(),
            runs: 1,
            broken_runs: 0,
            valid_until: token.valid_until,
            created_at: now,
            updated_at: now,
            holder: None,
            lease_until: now,
        }
    }
}
