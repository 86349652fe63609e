//! One request's payments as the journal keeps them.

use std::{fmt, time::Duration};

use farebox_core::{EvmAddress, Offer, PaymentHash, PaymentId, Timestamp, TransactionId, ports::GasFee};
use http::{HeaderName, HeaderValue, Method};
use serde::{Deserialize, Serialize, de::Error as _};
use sha2::{Digest, Sha256};
use url::Url;

use crate::{
    asset::{DollarAsset, Usd},
    journal::{EXPIRY_GRACE, REDELIVERY_WITHIN, UNRESOLVED_KEPT_FOR},
    policy::Outstanding,
};

/// What makes two requests the same purchase: SHA-256 over method, URL without fragment, body and the caller's own label, each
/// length-prefixed. 64 lower-case hex digits.
#[derive(Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Fingerprint(String);

impl Fingerprint {
    pub(crate) fn of(method: &Method, url: &Url, body: &[u8], label: &str) -> Self {
        let mut url = url.clone();
        url.set_fragment(None);
        let mut hasher = Sha256::new();
        for part in [method.as_str().as_bytes(), url.as_str().as_bytes(), body, label.as_bytes()] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        Self(hex::encode(hasher.finalize()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // It becomes part of a file name.
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == 64 && text.bytes().all(digit) {
            Ok(Self(text))
        } else {
            Err(D::Error::custom("expected a fingerprint of 64 lower-case hex digits"))
        }
    }
}

/// The version of the file format; another is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub(crate) struct FormatV1;

impl TryFrom<u32> for FormatV1 {
    type Error = String;

    fn try_from(found: u32) -> Result<Self, String> {
        if found == 1 { Ok(Self) } else { Err(format!("expected journal format 1, found {found}")) }
    }
}

impl From<FormatV1> for u32 {
    fn from(_: FormatV1) -> Self {
        1
    }
}

/// A request and everything that was signed for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    format: FormatV1,
    /// Which request.
    pub fingerprint: Fingerprint,
    /// Its method.
    pub method: String,
    /// Its URL.
    pub url: String,
    /// Signed before the one in use, oldest first: the seller said they would not be charged, which is not proof.
    pub superseded: Vec<Authorization>,
    /// The one in use: these bytes are sent, and sent again.
    pub current: Authorization,
}

/// A signature that can be charged, and what is known of its fate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authorization {
    /// How it pays.
    #[serde(alias = "header")]
    pub(crate) proof: Proof,
    /// `Idempotency-Key`, as sent with the credential: the seller tells the payer by it from whoever read the authorization on
    /// the chain.
    pub(crate) idempotency_key: SecretHeader,
    /// Who pays; `None`: a Lightning wallet, which has no address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payer: Option<EvmAddress>,
    /// What was signed.
    pub offer: Offer,
    /// The token, as the policy knew it.
    pub asset: DollarAsset,
    /// When.
    pub signed_at: Timestamp,
    /// Not usable at or after this time by the chain's clock; for a transfer, when the seller stops taking claims on it; for a Lightning
    /// payment, when its invoice ends.
    pub expires_at: Timestamp,
    /// What is known of its fate.
    pub standing: Standing,
}

/// How an authorization pays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Proof {
    /// By this credential header, exactly as sent.
    Header(SecretHeader),
    /// By a transfer that the wallet makes itself, and then claims.
    Transfer(Box<Transfer>),
    /// By a token, bought with a Lightning payment.
    Token(TokenProof),
}

/// A token, by the invoice that buys it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenProof {
    pub(crate) payment_hash: PaymentHash,
    /// Whether an earlier request paid for it.
    pub(crate) is_held: bool,
}

/// A transfer that the wallet makes itself, and the bill that it pays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// The bill's quote, as it came.
    pub quote: String,
    /// What the bill sells.
    pub resource: String,
    /// Until when it has to be mined.
    pub pay_by: Timestamp,
    /// The nonce of every transaction that was signed for it, so that at most one of them can be mined.
    pub nonce: u64,
    /// The gas limit of each.
    pub gas_limit: u64,
    /// What was signed first.
    pub first: SignedTransaction,
    /// What was signed to replace it, oldest first, each with a higher fee than the one before.
    pub raised: Vec<SignedTransaction>,
}

impl Transfer {
    /// What was signed last.
    #[must_use]
    pub fn newest(&self) -> &SignedTransaction {
        self.raised.last().unwrap_or(&self.first)
    }

    /// Every hash under which it may be mined.
    #[must_use]
    pub fn transactions(&self) -> Vec<TransactionId> {
        std::iter::once(&self.first).chain(&self.raised).map(|signed| signed.transaction.clone()).collect()
    }
}

/// A transaction that was signed, and may have been sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedTransaction {
    /// Its hash.
    pub transaction: TransactionId,
    /// What it offers for gas.
    pub fee: GasFee,
    /// Its bytes.
    pub(crate) raw: RawBytes,
}

/// A signed transaction's bytes; hex in the journal. Do not print: whoever has them can send it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RawBytes(pub(crate) Vec<u8>);

impl fmt::Debug for RawBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({} bytes hidden)", self.0.len())
    }
}

impl Serialize for RawBytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for RawBytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        hex::decode(String::deserialize(deserializer)?).map(Self).map_err(D::Error::custom)
    }
}

/// What is known of an authorization's fate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Standing {
    /// It may have been sent, and may have been charged.
    Open,
    /// The seller said that it was not charged.
    Declined {
        /// The seller's reason, cut and escaped.
        reason: String,
    },
    /// A transfer that can no longer move anything: it failed on the chain, or another transaction has used its nonce.
    Void {
        /// Which of the two.
        reason: String,
    },
    /// The seller answered as if paid.
    Charged {
        /// When that answer came.
        at: Timestamp,
        /// The transaction, if the seller named one.
        transaction: Option<TransactionId>,
        /// The seller's name for the payment, if it gave one.
        payment: Option<PaymentId>,
    },
}

impl Entry {
    pub(crate) fn new(fingerprint: Fingerprint, method: &Method, url: &Url, current: Authorization) -> Self {
        let (method, url) = (method.to_string(), url.to_string());
        Self { format: FormatV1, fingerprint, method, url, superseded: Vec::new(), current }
    }

    /// Puts a new authorization in use; the one before still counts as outstanding.
    pub(crate) fn supersede(&mut self, next: Authorization) {
        self.superseded.push(std::mem::replace(&mut self.current, next));
    }

    /// When the authorization in use was signed.
    #[must_use]
    pub const fn signed_at(&self) -> Timestamp {
        self.current.signed_at
    }

    /// When the seller first answered as if paid, if it did.
    #[must_use]
    pub const fn charged_at(&self) -> Option<Timestamp> {
        match self.current.standing {
            Standing::Charged { at, .. } => Some(at),
            _ => None,
        }
    }

    /// What could still be charged or was: everything but what the seller said it would not charge and can no longer charge,
    /// unless it was signed at or after `counted_from`.
    ///
    /// A seller that says "not charged, sign again" may be collecting signatures, so its word alone frees nothing.
    pub(crate) fn outstanding(&self, now: Timestamp, counted_from: Timestamp) -> Outstanding {
        sum(self.superseded.iter().chain([&self.current]), now, counted_from)
    }

    /// The same without the one in use.
    pub(crate) fn outstanding_before(&self, now: Timestamp, counted_from: Timestamp) -> Outstanding {
        sum(self.superseded.iter(), now, counted_from)
    }

    /// When the last authorization ends by itself, if that is after `now`.
    #[must_use]
    pub fn valid_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.superseded.iter().chain([&self.current]).map(|a| a.expires_at).max().filter(|until| *until > now)
    }

    /// Nothing of it can be charged any more, and the seller says that nothing was.
    pub(crate) fn is_over(&self, now: Timestamp) -> bool {
        self.superseded.iter().chain([&self.current]).all(|a| a.is_over(now))
    }

    /// Charged, and too long ago to ask for the answer again.
    pub(crate) fn is_past_redelivery(&self, now: Timestamp) -> bool {
        self.charged_at().is_some_and(|at| now.since(at) > REDELIVERY_WITHIN)
    }

    pub(crate) fn is_long_over(&self, now: Timestamp) -> bool {
        self.is_over(now) || self.is_past_redelivery(now) || self.current.is_expired(now, UNRESOLVED_KEPT_FOR)
    }
}

fn sum<'a>(all: impl Iterator<Item = &'a Authorization>, now: Timestamp, counted_from: Timestamp) -> Outstanding {
    let mut sum = Outstanding::default();
    for authorization in all.filter(|a| a.signed_at >= counted_from || !a.is_over(now)) {
        sum.worth = sum.worth.saturating_add(authorization.worth().unwrap_or_default());
        sum.until = sum.until.max(Some(authorization.expires_at.plus(EXPIRY_GRACE)));
    }
    sum
}

impl Authorization {
    pub(crate) fn worth(&self) -> Option<Usd> {
        self.asset.worth(self.offer.amount.units)
    }

    /// The transfer that it is, if it is one.
    #[must_use]
    pub fn transfer(&self) -> Option<&Transfer> {
        match &self.proof {
            Proof::Transfer(transfer) => Some(transfer),
            Proof::Header(_) | Proof::Token(_) => None,
        }
    }

    /// The invoice that it pays or paid, if it is a Lightning payment.
    #[must_use]
    pub const fn payment_hash(&self) -> Option<PaymentHash> {
        match &self.proof {
            Proof::Token(token) => Some(token.payment_hash),
            Proof::Header(_) | Proof::Transfer(_) => None,
        }
    }

    /// The chain can no longer accept it, and the seller says that it was not charged; or it is a transfer that cannot move
    /// anything any more.
    fn is_over(&self, now: Timestamp) -> bool {
        match self.standing {
            Standing::Void { .. } => true,
            Standing::Declined { .. } => self.is_expired(now, EXPIRY_GRACE),
            Standing::Open | Standing::Charged { .. } => false,
        }
    }

    fn is_expired(&self, now: Timestamp, grace: Duration) -> bool {
        now > self.expires_at.plus(grace)
    }
}

/// A header that goes with a payment, byte for byte. Does not print: whoever holds the credential can charge it, and whoever
/// holds both it and the idempotency key can collect the answer.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SecretHeader {
    pub(crate) name: HeaderName,
    pub(crate) value: HeaderValue,
}

impl SecretHeader {
    pub(crate) fn new(name: HeaderName, mut value: HeaderValue) -> Self {
        value.set_sensitive(true);
        Self { name, value }
    }
}

impl fmt::Debug for SecretHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: (hidden)", self.name)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderText {
    name: String,
    value: String,
}

impl Serialize for SecretHeader {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value = self.value.to_str().map_err(serde::ser::Error::custom)?.to_owned();
        HeaderText { name: self.name.to_string(), value }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SecretHeader {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = HeaderText::deserialize(deserializer)?;
        let name = text.name.parse().map_err(D::Error::custom)?;
        Ok(Self::new(name, HeaderValue::from_str(&text.value).map_err(D::Error::custom)?))
    }
}
