//! Passes, which buy calls or time, and the L402 token: a pass that was paid by a Lightning invoice and is held as a macaroon.

use std::{borrow::Cow, fmt, num::NonZeroU32, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    Amount, AssetId, Binding, CallerId, Credential, Delivery, Finality, Invoice, InvoiceCredential, InvoiceNews,
    InvoiceState, Network, Payer, Payment, PaymentId, PaymentState, Preimage, Price, ProofId, RailName, RequestId,
    RouteId, Timestamp, TransactionId, text::shortened,
};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// Calls taken, those under way included. Of a grant of time only those with an `Idempotency-Key` are noted.
    pub used: u32,
    /// Since when it is revoked.
    pub revoked_at: Option<Timestamp>,
}

/// Bytes of a path and query that the books keep of the request that asked for an invoice: nobody has paid for them yet.
pub const SOLD_RESOURCE_BYTES_MAX: usize = 512;

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
    /// The method of the request that asked.
    pub method: String,
    /// Its canonical path, and the query as sent; of more than [`SOLD_RESOURCE_BYTES_MAX`] bytes the beginning, and a digest of it all.
    pub resource: String,
    /// The request that asked.
    pub request: RequestId,
    /// What it buys.
    pub grant: Grant,
    /// When it ends by itself.
    pub valid_until: Timestamp,
}

impl From<NewToken> for SoldToken {
    fn from(new: NewToken) -> Self {
        Self {
            pass: new.pass,
            root_key: Some(new.root_key),
            invoice: new.invoice,
            network: new.network,
            node: new.node,
            route: new.route,
            method: new.method,
            resource: shortened(new.resource, SOLD_RESOURCE_BYTES_MAX),
            request: new.request,
            grant: new.grant,
            valid_until: new.valid_until,
        }
    }
}

impl SoldToken {
    /// Whoever holds it, as books and upstreams name the payer.
    #[must_use]
    pub fn payer(&self) -> Payer {
        Payer::new(&self.network, &self.pass.to_string())
    }
}

impl Token {
    /// As it is stored first: its invoice is open.
    #[must_use]
    pub fn first(token: NewToken) -> Self {
        let sold = SoldToken::from(token);
        Self { sold, state: InvoiceState::Open, received_msat: 0, payment: None, used: 0, revoked_at: None }
    }

    /// The token after `news` of its invoice. An invoice is paid once: news that say so again say the same money, and the most that was heard
    /// is what came.
    pub fn hear(&mut self, news: InvoiceNews) {
        self.state = self.state.after(news, self.sold.invoice.amount_msat);
        if let InvoiceNews::Settled { received_msat } = news {
            self.received_msat = self.received_msat.max(received_msat);
        }
    }

    /// Somebody showed the preimage: the invoice is paid, if that was not known, with as much as it asks. Whether it was more only the node
    /// can tell; and what it told, that it was less, stays true, for whoever pays less has the preimage too.
    pub fn hear_preimage(&mut self) {
        if !matches!(self.state, InvoiceState::Settled | InvoiceState::Underpaid) {
            self.hear(InvoiceNews::Settled { received_msat: self.sold.invoice.amount_msat });
        }
    }

    /// The payment that the books are to have for what came, if they have another or none: `known` is the one they have, `id` names a new
    /// one.
    #[must_use]
    pub fn payment_due(&self, known: Option<&Payment>, id: PaymentId, now: Timestamp) -> Option<Payment> {
        let Some(known) = known else {
            return (self.received_msat > 0).then(|| Payment::sold(id, &self.sold, self.received_msat, now));
        };
        let due = Payment::sold(known.id, &self.sold, self.received_msat, known.created_at);
        let same = due.amount == known.amount && due.credit == known.credit;
        let delivered = known.delivery == Delivery::Delivered;
        (!same).then(|| Payment {
            amount: due.amount,
            credit: due.credit,
            reason: due.reason,
            delivery: if delivered { Delivery::Delivered } else { due.delivery },
            updated_at: now,
            ..known.clone()
        })
    }
}

impl Payment {
    /// The row that a paid invoice makes: settled from the first, and pending until the first call has been answered. What came over the
    /// invoice's amount is credit; all of it is, if it was less. `sold.resource` and its neighbours name the request that asked for the
    /// invoice.
    #[must_use]
    pub fn sold(id: PaymentId, token: &SoldToken, received_msat: u64, now: Timestamp) -> Self {
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
            payer: token.payer(),
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
