//! Names of things, each of its own type so that none can stand for another.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// A payment in the ledger: `pay_` and 26 characters of lower-case ULID, ordered by time of claim.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PaymentId(ulid::Ulid);

/// Why a text is no [`PaymentId`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected a payment id such as pay_01hzxk3vd4s0q7r2m9n8b5c6e1, found {found}")]
pub struct PaymentIdError {
    /// What was found instead.
    pub found: crate::Untrusted,
}

impl PaymentId {
    /// A new id from the time and 10 random bytes.
    #[must_use]
    pub fn new(now: Timestamp, random: [u8; 10]) -> Self {
        let mut wide = [0u8; 16];
        wide[6..].copy_from_slice(&random);
        Self(ulid::Ulid::from_parts(now.unix_ms(), u128::from_be_bytes(wide)))
    }
}

impl fmt::Display for PaymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut buffer = [0u8; ulid::ULID_LEN];
        let text = self.0.array_to_str(&mut buffer);
        text.make_ascii_lowercase();
        write!(f, "pay_{text}")
    }
}

impl fmt::Debug for PaymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PaymentId {
    type Err = PaymentIdError;

    fn from_str(text: &str) -> Result<Self, PaymentIdError> {
        let wrong = || PaymentIdError { found: crate::Untrusted::new(text) };
        let id = text.strip_prefix("pay_").and_then(|t| ulid::Ulid::from_string(t).ok()).map(Self).ok_or_else(wrong)?;
        // One spelling: what does not print back as it came is not an id of ours.
        if id.to_string() == text { Ok(id) } else { Err(wrong()) }
    }
}

impl Serialize for PaymentId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PaymentId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes the name as it is.
            #[must_use]
            pub fn new(name: impl Into<Arc<str>>) -> Self {
                Self(name.into())
            }

            /// The name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// A route by the name its config gives it, or by its method and path pattern.
    RouteId
}
name! {
    /// What a proof consumes, and so what can be claimed once: for EIP-3009 `eip3009:<network>:<token>:<from>:<nonce>`, all
    /// lower case. Two credentials that could move the same money have the same proof id, whatever their bytes.
    ProofId
}
impl ProofId {
    /// One transfer of one transaction: `transfer:<network>:<transaction>:<position>`. `position` counts the logs of the
    /// transaction's own receipt from 0; unlike the block-wide `logIndex` no reorganisation moves it. `None` is the transaction's own
    /// value, for the native coin.
    #[must_use]
    pub fn transfer(network: &crate::Network, transaction: &TransactionId, position: Option<u32>) -> Self {
        let position = position.map_or_else(|| "native".to_owned(), |position| position.to_string());
        Self::new(format!("transfer:{network}:{transaction}:{position}"))
    }

    /// A Lightning invoice, which can be paid once: `lightning:<payment hash>`.
    #[must_use]
    pub fn invoice(payment_hash: crate::PaymentHash) -> Self {
        Self::new(format!("lightning:{payment_hash}"))
    }

    /// The position that [`ProofId::transfer`] put in, if there is one.
    #[must_use]
    pub fn transfer_position(&self) -> Option<u32> {
        self.0.strip_prefix("transfer:")?.rsplit(':').next()?.parse().ok()
    }
}

name! {
    /// One request with a credential, as books, logs and the answer's `Farebox-Request-Id` name it: `req_` and 26 characters of
    /// lower-case ULID.
    RequestId
}
name! {
    /// A transaction by its network's own name for it: for EVM `0x` and 64 lower-case hex digits.
    TransactionId
}
name! {
    /// The sequence in which one key's transactions go out: `<network>:<address>`, lower case.
    LaneKey
}
name! {
    /// One run of one gateway process: random, so that a claim left by a process that died is known for what it is.
    InstanceId
}

name! {
    /// What tells a caller from a stranger with the same credential: SHA-256, in lower-case hex, of the caller's
    /// `Idempotency-Key`, or without one of its network address.
    CallerId
}

impl RequestId {
    /// A new id from the time and 10 random bytes.
    #[must_use]
    pub fn at(now: Timestamp, random: [u8; 10]) -> Self {
        let id = PaymentId::new(now, random).to_string();
        Self::new(format!("req_{}", id.trim_start_matches("pay_")))
    }
}

impl CallerId {
    /// The payer, where the credential itself proves that the caller is.
    #[must_use]
    pub fn from_payer(payer: &crate::Payer) -> Self {
        let payer = payer.as_str().to_ascii_lowercase();
        Self(hex::encode(crate::CredentialDigest::of(&[b"payer", payer.as_bytes()]).as_bytes()).into())
    }

    /// Whoever holds this pass.
    #[must_use]
    pub fn from_pass(pass: crate::PassId) -> Self {
        Self(hex::encode(crate::CredentialDigest::of(&[b"pass", &pass.0]).as_bytes()).into())
    }

    /// The caller that sent this `Idempotency-Key`.
    #[must_use]
    pub fn from_key(key: &[u8]) -> Self {
        Self(hex::encode(crate::CredentialDigest::of(&[b"key", key]).as_bytes()).into())
    }

    /// The caller at this address, behind proxies that forward it with these words (empty without any). Of an IPv6 address the /64
    /// counts, within which hosts change theirs.
    #[must_use]
    pub fn from_address(address: std::net::IpAddr, forwarded: &[u8]) -> Self {
        let digest = match address.to_canonical() {
            std::net::IpAddr::V4(v4) => crate::CredentialDigest::of(&[b"addr", &v4.octets(), forwarded]),
            std::net::IpAddr::V6(v6) => crate::CredentialDigest::of(&[b"addr", &v6.octets()[..8], forwarded]),
        };
        Self(hex::encode(digest.as_bytes()).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payment_ids_have_one_spelling_and_sort_by_time() {
        let early = PaymentId::new(Timestamp::from_unix_s(1), [0xff; 10]);
        let late = PaymentId::new(Timestamp::from_unix_s(2), [0; 10]);
        assert!(early < late && early.to_string() < late.to_string());
        assert_eq!(early.to_string().parse(), Ok(early));
        assert_eq!(early.to_string().len(), 30);
        assert_eq!(RequestId::at(Timestamp::from_unix_s(1), [0xff; 10]).as_str()[4..], early.to_string()[4..]);
        for wrong in ["", "pay_", &late.to_string().to_uppercase(), &late.to_string()[4..]] {
            assert!(wrong.parse::<PaymentId>().is_err(), "{wrong}");
        }
    }
}
