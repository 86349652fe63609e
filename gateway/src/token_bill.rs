//! The part of a 402 that is made for its reader: a Lightning invoice and the token that paying it buys.

use std::sync::{Arc, atomic::Ordering};

use farebox_core::{
    Charged, Offer, RailName, Refusal, UnavailableRail,
    ports::{BillAsk, NoBill, TokenBill},
};
use http::Method;
use tracing::{debug, warn};

use crate::{challenge::Desk, till::Till, tokens::TokenSale};

/// The token side of one bill.
pub(crate) enum TokenSide {
    /// The route sells none, or the answer must not cost an invoice.
    NotAsked,
    /// To be paid by its reader.
    Bill(Arc<TokenBill>),
    /// The route sells them, and there is none now.
    Off(Off),
}

/// Why there is no token to be had.
pub(crate) enum Off {
    /// What it costs cannot be told.
    NoPrice,
    /// The rail made no bill.
    NoBill(NoBill),
    /// Nor did it in time.
    TooSlow,
}

impl Off {
    /// As an answer, where there is no other way to pay.
    pub(crate) fn refusal(&self) -> Refusal {
        let could_not_tell = |detail| Refusal::could_not_tell(self.code(), detail, Charged::No);
        match self {
            Self::NoPrice => could_not_tell(self.detail()),
            Self::NoBill(NoBill::Limited { retry_after_s }) => {
                Refusal { status: 429, retry_after_s: Some(*retry_after_s), ..could_not_tell(self.detail()) }
            }
            Self::NoBill(NoBill::Node { .. } | NoBill::Books(_)) | Self::TooSlow => could_not_tell(self.detail()),
        }
    }

    /// As a bill for the other rails tells it.
    pub(crate) fn told(&self) -> UnavailableRail {
        UnavailableRail { rail: RailName::L402, code: self.code().into(), detail: self.detail().to_owned() }
    }

    const fn code(&self) -> &'static str {
        match self {
            Self::NoPrice => "price_unavailable",
            Self::NoBill(NoBill::Limited { .. }) => "too_many_invoices",
            Self::NoBill(NoBill::Node { .. }) | Self::TooSlow => "node_unavailable",
            Self::NoBill(NoBill::Books(_)) => "ledger_unavailable",
        }
    }

    const fn detail(&self) -> &'static str {
        match self {
            Self::NoPrice => "what this resource costs over Lightning cannot be told now; send the request again",
            Self::NoBill(NoBill::Limited { .. }) => {
                "too many invoices were asked for lately; pay one of them, or send the request again later"
            }
            Self::NoBill(NoBill::Node { .. }) | Self::TooSlow => {
                "the Lightning node makes no invoice now; send the request again"
            }
            Self::NoBill(NoBill::Books(_)) => "the books could not be written; send the request again",
        }
    }
}

/// Asks the rail that sells tokens for a bill.
pub(crate) async fn token_side(till: &Till, desk: &Desk) -> TokenSide {
    let Some(TokenSale { tokens, terms }) = TokenSale::of(till, desk.tariff()) else { return TokenSide::NotAsked };
    // Nobody reads its body, and a HEAD is not sold.
    if *desk.method() == Method::HEAD {
        return TokenSide::NotAsked;
    }
    let Some(offer) = desk.board().offers.iter().find(|offer| offer.rail == RailName::L402) else {
        return TokenSide::Off(Off::NoPrice);
    };
    let request = desk.request_or_else(|| till.new_request());
    if desk.is_behind_stranger() && !till.told_of_proxy.swap(true, Ordering::Relaxed) {
        warn!(
            address = %desk.client(),
            "requests come with X-Forwarded-For or Forwarded from an address that is not in trusted_proxies; if it is your proxy, list it: \
             else all its clients share one client's allowance of invoices"
        );
    }
    let caller = desk.caller();
    let ask = BillAsk {
        client: desk.client(),
        caller: &caller,
        route: &desk.tariff().route,
        method: desk.method().as_str(),
        resource: desk.resource(),
        url: desk.url(),
        offer,
        terms,
        request: &request,
        now: till.clock.now(),
    };
    match tokio::time::timeout(till.limits.invoice_timeout, tokens.rail.bill(&ask)).await {
        Ok(Ok(bill)) => TokenSide::Bill(bill),
        Ok(Err(no_bill)) => {
            match &no_bill {
                NoBill::Limited { .. } => debug!(route = %ask.route, "no invoice: too many were asked for"),
                NoBill::Node { .. } | NoBill::Books(_) => {
                    warn!(route = %ask.route, error = &no_bill as &dyn std::error::Error, "no invoice");
                }
            }
            TokenSide::Off(Off::NoBill(no_bill))
        }
        Err(_) => {
            warn!(route = %ask.route, "no invoice in time");
            TokenSide::Off(Off::TooSlow)
        }
    }
}

/// What of a board can be paid without a token.
pub(crate) fn without_tokens(offers: &Arc<[Offer]>) -> Arc<[Offer]> {
    if offers.iter().all(|offer| offer.rail != RailName::L402) {
        return offers.clone();
    }
    offers.iter().filter(|offer| offer.rail != RailName::L402).cloned().collect()
}
