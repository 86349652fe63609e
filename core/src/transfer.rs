//! A transfer claimed by its hash: what the payer sends back, parsed.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    AssetId, CredentialDigest, EvmAddress,
    credential::{hex_32, hex_bytes},
};

/// `X-Payment-Hash` and `X-Payment-Code`, parsed. Nothing about it has been checked but its form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferCredential {
    /// The payment code.
    pub code: PaymentCode,
    /// What `X-Payment-Hash` says, which has to be the code's transaction; 32 bytes.
    #[serde(with = "hex_32")]
    pub announced: [u8; 32],
    /// See [`CredentialDigest`]: over quote, transaction and payer. A code that is signed again is the same credential, so whoever
    /// answers by it must have checked the signature first.
    pub digest: CredentialDigest,
}

/// What a payer signs to claim a transfer, and the signature. Source: EIP-712 `PaymentCode`, domain `Farebox Payment Code` 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaymentCode {
    /// The bill's quote as it came: base64url.
    pub quote: Arc<str>,
    /// The asset, which names the network too.
    pub asset: AssetId,
    /// The transaction that made the transfer; 32 bytes.
    #[serde(with = "hex_32")]
    pub transaction: [u8; 32],
    /// Who paid.
    pub payer: EvmAddress,
    /// Who was paid.
    pub pay_to: EvmAddress,
    /// The quoted amount, smallest units; 1 or more.
    #[serde(with = "crate::money::decimal_string")]
    pub amount: u128,
    /// Public URL of what is bought, with path and query.
    pub resource: Arc<str>,
    /// The request's method.
    pub method: Arc<str>,
    /// When the code ends, seconds since the Unix epoch.
    pub expires_at: u64,
    /// 65 bytes for a key's, more for a contract wallet's (EIP-1271).
    #[serde(with = "hex_bytes")]
    pub signature: Vec<u8>,
}

impl TransferCredential {
    /// Puts the parts together and computes the digest.
    #[must_use]
    pub fn new(code: PaymentCode, announced: [u8; 32]) -> Self {
        let digest = CredentialDigest::of(&[b"transfer", code.quote.as_bytes(), &code.transaction, &code.payer.0]);
        Self { code, announced, digest }
    }
}
