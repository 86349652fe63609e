//! An invoice that the agent set out to pay, and the token that it buys.

use std::{fmt, sync::Arc};

use farebox_core::{Invoice, Offer, PaymentHash, Preimage, Timestamp};
use farebox_wire::l402::L402Scheme;
use http::Method;
use serde::{Deserialize, Serialize, de::Error as _};

use super::terms::{L402Bill, TokenFacts};
use crate::{
    asset::DollarAsset,
    entry::{Fingerprint, FormatV1},
    journal::UNRESOLVED_KEPT_FOR,
    request::Replayable,
};

/// An invoice that the agent set out to pay, and the token that it buys: a file of its own, named by the payment hash, on disk before the
/// wallet is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Purchase {
    format: FormatV1,
    /// The invoice.
    pub invoice: Invoice,
    /// Who sells: scheme, host and port. The token goes nowhere else.
    pub origin: String,
    /// The method of the request that it was bought for.
    pub method: String,
    /// The URL of the request that it was bought for, without fragment.
    pub url: String,
    /// The request that it was bought for.
    pub fingerprint: Fingerprint,
    /// What was asked for.
    pub offer: Offer,
    /// What it is counted in.
    pub asset: DollarAsset,
    /// How the seller calls the scheme.
    pub(crate) scheme: L402Scheme,
    /// The macaroon as it came, base64.
    pub(crate) macaroon: SecretText,
    /// What the macaroon says of itself, if it can be read.
    pub facts: TokenFacts,
    /// The wallet that is to pay, for people.
    pub wallet: String,
    /// Which it is, by its key: another behind the same address knows nothing of this payment.
    pub wallet_id: Arc<str>,
    /// Whether the wallet was asked to pay, or was about to be. From then on it is only by its word "failed" that nothing was paid: some know nothing
    /// of what they pay.
    pub asked: bool,
    /// The most that forwarding nodes may take, millisatoshis.
    pub fee_max_msat: u64,
    /// When it was noted.
    pub noted_at: Timestamp,
    /// How far it is.
    pub stage: Stage,
}

/// How far a [`Purchase`] is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Stage {
    /// The wallet was asked, or is about to be.
    Paying,
    /// Not paid, by the wallet's word.
    Failed {
        /// When that was heard.
        at: Timestamp,
        /// The wallet's reason.
        code: String,
    },
    /// Paid, and the wallet does not give the preimage.
    PaidBlind {
        /// When that was heard.
        at: Timestamp,
    },
    /// Paid: the token can be used.
    Paid(PaidToken),
}

/// A token that is paid for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PaidToken {
    /// When the wallet said so.
    pub at: Timestamp,
    pub(crate) preimage: SecretPreimage,
    /// What forwarding nodes took, millisatoshis, if the wallet told.
    pub fee_msat: Option<u64>,
    /// What it is still good for.
    pub standing: TokenStanding,
    /// Since when the seller bills as if it was none, against what it said before. It is tried again after all others, and never thrown away for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubted_at: Option<Timestamp>,
}

/// What a paid token is still good for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TokenStanding {
    /// The request that it was bought for has not been answered: it is kept for that one.
    Reserved,
    /// It may be used.
    Good {
        /// How many calls are left, if the seller told.
        calls_left: Option<u32>,
    },
    /// The seller takes it no more.
    Spent {
        /// Since when.
        at: Timestamp,
        /// Why, cut and escaped.
        reason: String,
    },
}

/// What a purchase is made of.
pub(super) struct NewPurchase<'a> {
    pub(super) request: &'a Replayable,
    pub(super) bill: &'a L402Bill,
    pub(super) asset: DollarAsset,
    pub(super) wallet: String,
    pub(super) wallet_id: Arc<str>,
    pub(super) fee_max_msat: u64,
    pub(super) now: Timestamp,
}

impl Purchase {
    pub(super) fn new(new: NewPurchase<'_>) -> Self {
        let NewPurchase { request, bill, asset, wallet, wallet_id, fee_max_msat, now } = new;
        Self {
            format: FormatV1,
            invoice: bill.bolt11.invoice.clone(),
            origin: request.origin(),
            method: request.method.to_string(),
            url: request.resource().to_string(),
            fingerprint: request.fingerprint(),
            offer: bill.offer.clone(),
            asset,
            scheme: bill.scheme,
            macaroon: bill.macaroon.clone(),
            facts: bill.facts.clone(),
            wallet,
            wallet_id,
            asked: false,
            fee_max_msat,
            noted_at: now,
            stage: Stage::Paying,
        }
    }

    /// The invoice's.
    #[must_use]
    pub const fn payment_hash(&self) -> PaymentHash {
        self.invoice.payment_hash
    }

    /// The token, once it is paid for.
    #[must_use]
    pub const fn paid(&self) -> Option<&PaidToken> {
        match &self.stage {
            Stage::Paid(token) => Some(token),
            Stage::Paying | Stage::Failed { .. } | Stage::PaidBlind { .. } => None,
        }
    }

    /// Whether nothing more can be had for it: the seller takes it no more, or its time is over.
    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        let spent = self.paid().is_some_and(|token| matches!(token.standing, TokenStanding::Spent { .. }));
        spent || self.facts.valid_until.is_some_and(|until| now >= until)
    }

    /// Whether this token could be good for a request to the same origin: it was bought for the same method and path, or for the service that the
    /// seller's bill names; and for the same query too if it says that it is for one request alone.
    pub(crate) fn fits(&self, request: &Replayable, services: &[String]) -> bool {
        let asked = request.resource();
        let same_method = Method::from_bytes(self.method.as_bytes()).is_ok_and(|method| method == request.method);
        let Ok(bought) = url::Url::parse(&self.url) else { return false };
        let same_path = same_method && bought.path() == asked.path();
        if self.facts.one_request {
            return same_path && bought.query() == asked.query();
        }
        same_path || self.facts.services.iter().any(|service| services.contains(service))
    }

    /// Whether it was bought for this method and path.
    pub(crate) fn is_of_path(&self, request: &Replayable) -> bool {
        self.fits(request, &[])
    }

    pub(crate) fn mark_spent(&mut self, now: Timestamp, reason: &str) {
        self.set_standing(TokenStanding::Spent { at: now, reason: reason.to_owned() });
    }

    pub(crate) fn set_standing(&mut self, standing: TokenStanding) {
        if let Stage::Paid(token) = &mut self.stage {
            token.standing = standing;
            token.doubted_at = None;
        }
    }

    pub(crate) fn doubt(&mut self, now: Timestamp) {
        if let Stage::Paid(token) = &mut self.stage {
            token.doubted_at.get_or_insert(now);
        }
    }

    /// How many calls the seller last said that it is still good for.
    pub(crate) fn calls_left(&self) -> Option<u32> {
        match self.paid()?.standing {
            TokenStanding::Good { calls_left } => calls_left,
            TokenStanding::Reserved | TokenStanding::Spent { .. } => None,
        }
    }

    pub(crate) fn is_doubted(&self) -> bool {
        self.paid().is_some_and(|token| token.doubted_at.is_some())
    }

    /// Whether its file may go: its invoice can no longer be paid by anybody, and nobody will look for it.
    pub(crate) fn is_forgettable(&self, now: Timestamp) -> bool {
        let last = match &self.stage {
            Stage::Paid(PaidToken { standing: TokenStanding::Spent { at, .. }, .. }) => *at,
            Stage::Paid(_) => match self.facts.valid_until {
                Some(until) => until,
                None => return false,
            },
            Stage::Paying | Stage::Failed { .. } | Stage::PaidBlind { .. } => self.noted_at,
        };
        let ends = self.facts.valid_until.unwrap_or(last);
        let last = last.max(self.invoice.expires_at).max(ends);
        now > last.plus(UNRESOLVED_KEPT_FOR)
    }
}

/// A text that is as good as money. Does not print.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct SecretText(pub(crate) String);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} characters hidden)", self.0.len())
    }
}

/// A preimage; hex in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SecretPreimage(pub(crate) Preimage);

impl Serialize for SecretPreimage {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.reveal())
    }
}

impl<'de> Deserialize<'de> for SecretPreimage {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Preimage::from_hex(&text)
            .map(Self)
            .ok_or_else(|| D::Error::custom("expected a preimage of 64 lower-case hex digits"))
    }
}
