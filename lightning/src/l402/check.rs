//! Whether a token is good for a request, in the order of the wire page: preimage, root key, signature, caveats, settlement.

use std::{borrow::Cow, num::NonZeroUsize, time::Duration};

use farebox_core::{
    InvoiceNews, InvoiceState, L402Token, PassId, PaymentHash, PaymentId, RootKey, Timestamp,
    ports::{BoxError, HeldToken, InvoiceStatus, NotedNews, Rejected, TokenError, TokenRequest},
};
use farebox_wire::l402::{self, Identifier};
use lru::LruCache;
use parking_lot::Mutex;

use super::{PaidBy, make::Maker};

/// The most tokens whose root keys are kept at hand: only those whose preimage somebody has shown, so that nobody fills this with tokens
/// that nobody paid for.
const KEYS_MAX: NonZeroUsize = NonZeroUsize::new(10_000).unwrap();
/// For how long. A token that is revoked ends at once, because each draw asks the books; this is for how long its key outlives it in our
/// memory.
const KEPT_FOR: Duration = Duration::from_secs(300);

/// What is known of tokens that came back.
#[derive(Debug)]
pub(crate) struct Tokens {
    paid_by: PaidBy,
    known: Mutex<LruCache<PassId, Known>>,
}

#[derive(Clone, Debug)]
struct Known {
    root_key: RootKey,
    settled: Settled,
    read_at: Timestamp,
}

/// Whether the node has said that the money is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settled {
    Known,
    Unheard,
}

impl Tokens {
    pub(crate) fn new(paid_by: PaidBy) -> Self {
        Self { paid_by, known: Mutex::new(LruCache::new(KEYS_MAX)) }
    }

    pub(crate) async fn check(
        &self,
        token: &L402Token,
        request: &TokenRequest<'_>,
        maker: &Maker,
    ) -> Result<HeldToken, TokenError> {
        let identifier = Identifier::decode(&token.macaroon.identifier).map_err(foreign)?;
        let payment_hash = identifier.payment_hash;
        if token.preimage.hash() != payment_hash {
            return Err(no(
                "token_other_preimage",
                "the preimage is not that of the token's invoice; show the one that its payment gave, or pay the invoice of this answer",
            ));
        }
        let pass = identifier.pass();
        let known = self.known(pass, request.now, maker).await?;
        if !l402::verify_signature(&known.root_key, &token.macaroon) {
            return Err(no(
                "token_signature",
                "the macaroon's signature does not hold: it was changed, or cut, after it was sold; pay the invoice of this answer",
            ));
        }
        l402::judge(token, request).map_err(|problem| TokenError::Rejected(problem.rejected()))?;
        if self.paid_by == PaidBy::Settlement && known.settled == Settled::Unheard {
            settled(payment_hash, request.now, maker).await?;
            self.keep(pass, Known { settled: Settled::Known, ..known });
        }
        Ok(HeldToken { pass, payment_hash })
    }

    /// The root key, by the books if it is not at hand.
    async fn known(&self, pass: PassId, now: Timestamp, maker: &Maker) -> Result<Known, TokenError> {
        let at_hand = self.known.lock().get(&pass).cloned();
        if let Some(known) = at_hand.filter(|known| now.since(known.read_at) < KEPT_FOR) {
            return Ok(known);
        }
        let found = maker.books.token(pass).await.map_err(unavailable)?;
        let Some(token) = found else {
            self.known.lock().pop(&pass);
            return Err(no("token_unknown", "this gateway sold no such token; pay the invoice of this answer"));
        };
        let Some(root_key) = token.sold.root_key else {
            self.known.lock().pop(&pass);
            return Err(no("token_revoked", "the seller has revoked this token; pay the invoice of this answer"));
        };
        // What was underpaid is paid all the same: the books will say that it buys nothing.
        let settled = match token.state {
            InvoiceState::Settled | InvoiceState::Underpaid => Settled::Known,
            InvoiceState::Open | InvoiceState::Held | InvoiceState::Expired | InvoiceState::Cancelled => {
                Settled::Unheard
            }
        };
        let known = Known { root_key, settled, read_at: now };
        self.keep(pass, known.clone());
        Ok(known)
    }

    fn keep(&self, pass: PassId, known: Known) {
        self.known.lock().put(pass, known);
    }
}

/// Asks the node, and tells the books what it says, so that it is asked once.
async fn settled(hash: PaymentHash, now: Timestamp, maker: &Maker) -> Result<(), TokenError> {
    let status = maker.link.invoice_news(hash).await.map_err(unavailable)?;
    let news = match status {
        None => return Err(unavailable("the node does not know the token's invoice")),
        Some(InvoiceStatus::Open) => return Err(TokenError::Unsettled),
        Some(InvoiceStatus::News(news)) => news,
    };
    let payment = PaymentId::new(now, maker.random());
    maker.books.note_news(vec![NotedNews { hash, news, payment }], None, now).await.map_err(unavailable)?;
    match news {
        InvoiceNews::Settled { .. } => Ok(()),
        InvoiceNews::Held => Err(TokenError::Unsettled),
        InvoiceNews::Expired => {
            Err(no("invoice_expired", "the token's invoice was not paid in time; pay the invoice of this answer"))
        }
        InvoiceNews::Cancelled => {
            Err(no("invoice_cancelled", "the token's invoice was taken back unpaid; pay the invoice of this answer"))
        }
    }
}

/// Clients send tokens of other gateways too, on the same host or behind the same name; they pay again on a 402 and on nothing else.
fn foreign(error: l402::IdentifierError) -> TokenError {
    no("token_unknown", format!("{error}: this gateway sold no such token; pay the invoice of this answer"))
}

fn no(code: &'static str, detail: impl Into<String>) -> TokenError {
    TokenError::Rejected(Rejected { code: Cow::Borrowed(code), detail: detail.into() })
}

fn unavailable(source: impl Into<BoxError>) -> TokenError {
    TokenError::Unavailable { source: source.into() }
}
