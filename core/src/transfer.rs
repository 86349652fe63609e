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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Credential, Network, ProofId, TransactionId};

    fn code() -> PaymentCode {
        PaymentCode {
            quote: "q".into(),
            asset: AssetId::native(Network::evm(1)),
            transaction: [1; 32],
            payer: EvmAddress([2; 20]),
            pay_to: EvmAddress([3; 20]),
            amount: u128::MAX,
            resource: "https://a/".into(),
            method: "GET".into(),
            expires_at: 9,
            signature: vec![4; 65],
        }
    }

    #[test]
    fn signing_again_makes_no_other_credential_but_another_purchase_does() {
        let digest = |code: PaymentCode| TransferCredential::new(code, [1; 32]).digest;
        let first = digest(code());
        assert_eq!(digest(PaymentCode { expires_at: 99, signature: vec![5; 700], ..code() }), first);
        for other in [
            PaymentCode { quote: "r".into(), ..code() },
            PaymentCode { transaction: [9; 32], ..code() },
            PaymentCode { payer: EvmAddress([9; 20]), ..code() },
        ] {
            assert_ne!(digest(other), first);
        }
    }

    #[test]
    fn a_credential_is_kept_whole_with_amounts_beyond_64_bits() {
        let credential = Credential::Transfer(TransferCredential::new(code(), [8; 32]));
        let text = serde_json::to_string(&credential).unwrap();
        assert!(text.contains("\"rail\":\"transfer\"") && text.contains(&format!("\"{}\"", u128::MAX)), "{text}");
        assert_eq!(serde_json::from_str::<Credential>(&text).unwrap(), credential);
    }

    #[test]
    fn a_proof_tells_which_log_of_its_transaction_it_is() {
        let (network, transaction) = (Network::evm(8453), TransactionId::new("0xaa"));
        let log = ProofId::transfer(&network, &transaction, Some(12));
        assert_eq!((log.as_str(), log.transfer_position()), ("transfer:eip155:8453:0xaa:12", Some(12)));
        let native = ProofId::transfer(&network, &transaction, None);
        assert_eq!((native.as_str(), native.transfer_position()), ("transfer:eip155:8453:0xaa:native", None));
        assert_eq!(ProofId::new("eip3009:eip155:8453:0x0:0x0:7").transfer_position(), None);
    }
}
