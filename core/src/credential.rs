//! What a caller presents as payment, parsed: typed, but not yet believed.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Network, PaymentHash, RailName, TransferCredential, Untrusted};

/// A credential of any rail, as parsed from a request's headers. Nothing about it has been checked but its form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "rail", rename_all = "snake_case")]
pub enum Credential {
    /// x402, version 1 or 2.
    X402(X402Credential),
    /// A transfer, claimed by its hash.
    Transfer(TransferCredential),
    /// A Lightning invoice that was paid. Never parsed from a request: what callers present of this rail is an [`crate::L402Token`].
    L402(InvoiceCredential),
}

impl Credential {
    /// Which rail it is for.
    #[must_use]
    pub const fn rail(&self) -> RailName {
        match self {
            Self::X402(_) => RailName::X402,
            Self::Transfer(_) => RailName::Transfer,
            Self::L402(_) => RailName::L402,
        }
    }

    /// The digest by which a repeat of this credential is recognised.
    #[must_use]
    pub const fn digest(&self) -> CredentialDigest {
        match self {
            Self::X402(x402) => x402.digest,
            Self::Transfer(transfer) => transfer.digest,
            Self::L402(invoice) => invoice.digest,
        }
    }
}

/// SHA-256 over what authorises the payment (authorization and signature, not the wrapping), so that the same authorization in
/// another JSON spelling has the same digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CredentialDigest([u8; 32]);

impl CredentialDigest {
    /// Over the given parts; each is length-prefixed, so that no two part lists collide.
    #[must_use]
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        Self(hasher.finalize().into())
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for CredentialDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl Serialize for CredentialDigest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0))
    }
}

impl<'de> Deserialize<'de> for CredentialDigest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        fixed_hex(&String::deserialize(deserializer)?)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("expected 64 hex digits"))
    }
}

/// What paid a token: the payment of an invoice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvoiceCredential {
    /// The invoice.
    pub payment_hash: PaymentHash,
    /// See [`CredentialDigest`].
    pub digest: CredentialDigest,
}

impl InvoiceCredential {
    /// Of this invoice.
    #[must_use]
    pub fn new(payment_hash: PaymentHash) -> Self {
        Self { payment_hash, digest: CredentialDigest::of(&[b"l402", &payment_hash.0]) }
    }
}

/// The protocol version a credential or a bill is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum X402Version {
    /// `X-PAYMENT`, network names such as `base-sepolia`.
    V1,
    /// `PAYMENT-SIGNATURE`, CAIP-2 networks.
    V2,
}

/// An x402 `exact` payment by EIP-3009. Source: x402 v2 §5.2, scheme `exact` on EVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct X402Credential {
    /// Which header and form it came in, and so which form the answer takes.
    pub version: X402Version,
    /// The terms the payer says it accepted. Never trusted: matched against our own offers.
    pub accepted: AcceptedTerms,
    /// What the payer signed.
    pub authorization: TransferAuthorization,
    /// The signature: 65 bytes for a key's, any length up to 4 KiB for a contract wallet's.
    #[serde(with = "hex_bytes")]
    pub signature: Vec<u8>,
    /// See [`CredentialDigest`].
    pub digest: CredentialDigest,
}

impl X402Credential {
    /// Puts the parts together and computes the digest.
    #[must_use]
    pub fn new(
        version: X402Version,
        accepted: AcceptedTerms,
        authorization: TransferAuthorization,
        signature: Vec<u8>,
    ) -> Self {
        let a = &authorization;
        let digest = CredentialDigest::of(&[
            accepted.network.as_str().as_bytes(),
            &a.from.0,
            &a.to.0,
            &a.value.to_be_bytes(),
            &a.valid_after.to_be_bytes(),
            &a.valid_before.to_be_bytes(),
            &a.nonce,
            &signature,
        ]);
        Self { version, accepted, authorization, signature, digest }
    }
}

/// The terms that a payer echoes. Version 1 echoes scheme and network alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedTerms {
    /// Such as `exact`.
    pub scheme: Arc<str>,
    /// CAIP-2; version 1 names are translated by the wire layer.
    pub network: Network,
    /// The whole requirement as echoed, version 2 only.
    pub requirement: Option<EchoedRequirement>,
}

/// A version 2 requirement as the payer echoes it: JSON text as it came for what is only compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EchoedRequirement {
    /// Smallest units, a decimal string.
    pub amount: Arc<str>,
    /// The token's address, any case.
    pub asset: Arc<str>,
    /// The recipient's address, any case.
    pub pay_to: Arc<str>,
    /// Seconds.
    pub max_timeout_s: u64,
    /// `extra` as JSON; `null` if absent.
    pub extra: serde_json::Value,
}

/// EIP-3009 `TransferWithAuthorization`, the message that the payer signs. Source: EIP-3009.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferAuthorization {
    /// The payer.
    pub from: EvmAddress,
    /// The recipient.
    pub to: EvmAddress,
    /// Smallest units. A uint256 in the standard; values of 2^128 or more are refused by the parser.
    #[serde(with = "crate::money::decimal_string")]
    pub value: u128,
    /// Not valid at or before this time; seconds since the Unix epoch. Values above 2^64 - 1 are refused by the parser.
    pub valid_after: u64,
    /// Not valid at or after this time; seconds since the Unix epoch. Values above 2^64 - 1 are refused
    /// by the parser.
    pub valid_before: u64,
    /// Random, unique for the payer and token.
    #[serde(with = "hex_32")]
    pub nonce: [u8; 32],
}

/// An EVM address, 20 bytes. Parses `0x` and 40 hex digits: all lower case, all upper case, or mixed case (whose EIP-55
/// checksum needs keccak and is checked by whoever takes addresses from people, not here). `{:x}` prints lower case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EvmAddress(pub [u8; 20]);

/// Why a text is no [`EvmAddress`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected an address of 0x and 40 hex digits, found {found}")]
pub struct EvmAddressError {
    /// What was found instead.
    pub found: Untrusted,
}

impl FromStr for EvmAddress {
    type Err = EvmAddressError;

    fn from_str(text: &str) -> Result<Self, EvmAddressError> {
        let digits = text.strip_prefix("0x").ok_or_else(|| EvmAddressError { found: Untrusted::new(text) })?;
        let mut bytes = [0; 20];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| EvmAddressError { found: Untrusted::new(text) })?;
        Ok(Self(bytes))
    }
}

impl fmt::LowerHex for EvmAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0u8; 40];
        hex::encode_to_slice(self.0, &mut digits).map_err(|_| fmt::Error)?;
        f.write_str("0x")?;
        f.write_str(std::str::from_utf8(&digits).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for EvmAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(self, f)
    }
}

impl Serialize for EvmAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:x}"))
    }
}

impl<'de> Deserialize<'de> for EvmAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

fn fixed_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text.strip_prefix("0x").unwrap_or(text), &mut bytes).ok()?;
    Some(bytes)
}

pub(crate) mod hex_32 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("0x{}", hex::encode(bytes)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        super::fixed_hex(&String::deserialize(deserializer)?)
            .ok_or_else(|| D::Error::custom("expected 32 bytes in hex"))
    }
}

pub(crate) mod hex_bytes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("0x{}", hex::encode(bytes)))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        hex::decode(text.strip_prefix("0x").unwrap_or(&text)).map_err(D::Error::custom)
    }
}
