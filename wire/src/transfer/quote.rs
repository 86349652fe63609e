//! Quotes: what a bill offered, sealed, so that a gateway recognises its own bill without having stored it.
//!
//! A quote is base64url of: format (1 byte), key id (4 bytes, big endian), the fields (postcard), and 32 bytes of HMAC-SHA256 over
//! all that comes before. Whoever changes or spells anything differently has no quote.

use std::time::Duration;

use arc_swap::ArcSwap;
use farebox_core::{AssetId, CredentialDigest, EvmAddress, Finality, RouteId, Timestamp, ports::QuoteKey};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::{OPTIONS_MAX, base64url};

/// The longest quote we read, characters: [`OPTIONS_MAX`] options of about 90 bytes.
pub const QUOTE_CHARS_MAX: usize = 6 * 1024;

const FORMAT: u8 = 1;
const HEAD_BYTES: usize = 5;
const TAG_BYTES: usize = 32;

/// How long a payer has, from a bill on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferTimes {
    /// To have the transfer mined.
    pub pay_within: Duration,
    /// To come back with its hash; not less than `pay_within`.
    pub claim_within: Duration,
}

/// What a bill offered to one request. Times are whole seconds: a seal keeps no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    /// What was asked for: see [`Quote::target`].
    pub target: [u8; 32],
    /// Every way to pay it by transfer; at most [`OPTIONS_MAX`].
    pub options: Vec<QuoteOption>,
    /// When the bill was written. An older transfer is no payment for it.
    pub issued_at: Timestamp,
    /// Until when a transfer has to be mined.
    pub pay_by: Timestamp,
    /// Until when it has to be claimed.
    pub claim_by: Timestamp,
    /// Random, so that no two bills are alike.
    pub nonce: [u8; 8],
}

/// One way to pay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuoteOption {
    /// The asset, which names the network too.
    pub asset: AssetId,
    /// The recipient.
    pub pay_to: EvmAddress,
    /// How much, smallest units.
    pub units: u128,
    /// What makes it final.
    pub finality: Finality,
}

impl Quote {
    /// What a quote is good for, as a digest: the route, the method as sent, and the public URL with path and query.
    #[must_use]
    pub fn target(route: &RouteId, method: &str, url: &str) -> [u8; 32] {
        let parts = [&b"quote target"[..], route.as_str().as_bytes(), method.as_bytes(), url.as_bytes()];
        *CredentialDigest::of(&parts).as_bytes()
    }
}

/// A quote that is not ours, or not any more: forged, cut off, spelt differently, or sealed with a key that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the quote is none of this gateway's, or it is too old; ask for a new bill")]
pub struct UnknownQuote;

impl UnknownQuote {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(self) -> &'static str {
        "unknown_quote"
    }
}

/// There is no key to seal with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a quoter needs at least one key")]
pub struct NoQuoteKey;

impl NoQuoteKey {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(self) -> &'static str {
        "no_quote_key"
    }
}

/// Seals quotes with the newest key and opens those of every key it has. Keys are exchanged while it is in use.
#[derive(Debug)]
pub struct Quoter(ArcSwap<Vec<SealKey>>);

#[derive(Debug)]
struct SealKey {
    id: u32,
    /// Keyed, so that a quote costs no key set-up.
    mac: Hmac<Sha256>,
}

impl Quoter {
    /// With these keys, in any order.
    ///
    /// # Errors
    /// There is none.
    pub fn new(keys: Vec<QuoteKey>) -> Result<Self, NoQuoteKey> {
        Ok(Self(ArcSwap::from_pointee(ring(keys)?)))
    }

    /// With these keys from now on; quotes of keys that are not among them are unknown.
    ///
    /// # Errors
    /// There is none; it goes on with those it has.
    pub fn replace(&self, keys: Vec<QuoteKey>) -> Result<(), NoQuoteKey> {
        self.0.store(std::sync::Arc::new(ring(keys)?));
        Ok(())
    }

    /// The quote as text, at most [`QUOTE_CHARS_MAX`] of base64url. Options over [`OPTIONS_MAX`] are left out.
    #[must_use]
    pub fn seal(&self, quote: &Quote) -> String {
        let keys = self.0.load();
        let [key, ..] = &keys[..] else { unreachable!("no ring is without a key") };
        let mut bytes = Vec::with_capacity(128 + 96 * quote.options.len());
        bytes.push(FORMAT);
        bytes.extend_from_slice(&key.id.to_be_bytes());
        let mut bytes = match postcard::to_extend(&Fields::of(quote), bytes) {
            Ok(bytes) => bytes,
            Err(error) => unreachable!("a vector takes every byte: {error}"),
        };
        let tag = key.mac.clone().chain_update(&bytes).finalize().into_bytes();
        bytes.extend_from_slice(&tag);
        base64url::encode(&bytes)
    }

    /// What we sealed.
    ///
    /// # Errors
    /// We did not.
    pub fn open(&self, text: &str) -> Result<Quote, UnknownQuote> {
        if text.len() > QUOTE_CHARS_MAX {
            return Err(UnknownQuote);
        }
        let bytes = base64url::decode_bytes(text).ok_or(UnknownQuote)?;
        let (sealed, tag) = bytes.split_last_chunk::<TAG_BYTES>().ok_or(UnknownQuote)?;
        let ([FORMAT, id @ ..], fields) = sealed.split_first_chunk::<HEAD_BYTES>().ok_or(UnknownQuote)? else {
            return Err(UnknownQuote);
        };
        let keys = self.0.load();
        let key = keys.iter().find(|key| key.id == u32::from_be_bytes(*id)).ok_or(UnknownQuote)?;
        // Compares in constant time.
        key.mac.clone().chain_update(sealed).verify_slice(tag).map_err(|_| UnknownQuote)?;
        let (fields, []) = postcard::take_from_bytes::<Fields>(fields).map_err(|_| UnknownQuote)? else {
            return Err(UnknownQuote);
        };
        fields.quote().ok_or(UnknownQuote)
    }
}

impl SealKey {
    fn new(key: &QuoteKey) -> Self {
        // A key shorter than SHA-256's block is filled up with zeros. Source: RFC 2104 §2.
        let mut block = [0; 64];
        block[..key.secret.len()].copy_from_slice(&key.secret);
        Self { id: key.id, mac: Hmac::new(&block.into()) }
    }
}

/// Newest first.
fn ring(mut keys: Vec<QuoteKey>) -> Result<Vec<SealKey>, NoQuoteKey> {
    keys.sort_by_key(|key| std::cmp::Reverse(key.id));
    if keys.is_empty() {
        return Err(NoQuoteKey);
    }
    Ok(keys.iter().map(SealKey::new).collect())
}

/// A quote as postcard writes it. Never changed: another layout is another format.
#[derive(Serialize, Deserialize)]
struct Fields {
    target: [u8; 32],
    options: Vec<OptionFields>,
    issued_at: u64,
    pay_by: u64,
    claim_by: u64,
    nonce: [u8; 8],
}

#[derive(Serialize, Deserialize)]
struct OptionFields {
    asset: AssetId,
    pay_to: [u8; 20],
    units: u128,
    finality: FinalityField,
}

#[derive(Serialize, Deserialize)]
enum FinalityField {
    Blocks(u64),
    Safe,
    Finalized,
}

impl Fields {
    fn of(quote: &Quote) -> Self {
        Self {
            target: quote.target,
            options: quote.options.iter().take(OPTIONS_MAX).map(OptionFields::of).collect(),
            issued_at: quote.issued_at.unix_s(),
            pay_by: quote.pay_by.unix_s(),
            claim_by: quote.claim_by.unix_s(),
            nonce: quote.nonce,
        }
    }

    fn quote(self) -> Option<Quote> {
        if self.options.len() > OPTIONS_MAX {
            return None;
        }
        Some(Quote {
            target: self.target,
            options: self.options.into_iter().map(OptionFields::option).collect(),
            issued_at: Timestamp::from_unix_s(self.issued_at),
            pay_by: Timestamp::from_unix_s(self.pay_by),
            claim_by: Timestamp::from_unix_s(self.claim_by),
            nonce: self.nonce,
        })
    }
}

impl OptionFields {
    fn of(option: &QuoteOption) -> Self {
        let finality = match option.finality {
            Finality::Blocks(blocks) => FinalityField::Blocks(blocks),
            Finality::Safe => FinalityField::Safe,
            Finality::Finalized => FinalityField::Finalized,
        };
        Self { asset: option.asset.clone(), pay_to: option.pay_to.0, units: option.units, finality }
    }

    fn option(self) -> QuoteOption {
        let finality = match self.finality {
            FinalityField::Blocks(blocks) => Finality::Blocks(blocks),
            FinalityField::Safe => Finality::Safe,
            FinalityField::Finalized => Finality::Finalized,
        };
        QuoteOption { asset: self.asset, pay_to: EvmAddress(self.pay_to), units: self.units, finality }
    }
}
