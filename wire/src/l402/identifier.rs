//! What the identifier of an L402 macaroon says.

use farebox_core::{PassId, PaymentHash};
use sha2::{Digest, Sha256};

const BYTES: usize = 66;
const VERSION: u16 = 0;

/// Version 0: two bytes of version, big endian, the payment hash, and a random token id. Source: Aperture `l402/identifier.go`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identifier {
    /// The invoice that buys the token.
    pub payment_hash: PaymentHash,
    /// Random.
    pub token_id: [u8; 32],
}

/// Why bytes are no [`Identifier`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdentifierError {
    /// Not 66 bytes.
    #[error("the macaroon's identifier is {found} bytes long; expected {BYTES}")]
    Length {
        /// How many came.
        found: usize,
    },
    /// A version that we do not know.
    #[error("the macaroon's identifier has version {found}; expected {VERSION}")]
    Version {
        /// What it says.
        found: u16,
    },
}

impl Identifier {
    /// Reads it.
    ///
    /// # Errors
    /// [`IdentifierError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, IdentifierError> {
        let bytes: &[u8; BYTES] = bytes.try_into().map_err(|_| IdentifierError::Length { found: bytes.len() })?;
        let version = u16::from_be_bytes([bytes[0], bytes[1]]);
        if version != VERSION {
            return Err(IdentifierError::Version { found: version });
        }
        let (mut payment_hash, mut token_id) = ([0; 32], [0; 32]);
        payment_hash.copy_from_slice(&bytes[2..34]);
        token_id.copy_from_slice(&bytes[34..]);
        Ok(Self { payment_hash: PaymentHash(payment_hash), token_id })
    }

    /// Its 66 bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..2].copy_from_slice(&VERSION.to_be_bytes());
        bytes[2..34].copy_from_slice(&self.payment_hash.0);
        bytes[34..].copy_from_slice(&self.token_id);
        bytes
    }

    /// The pass that it names: SHA-256 of its bytes.
    #[must_use]
    pub fn pass(&self) -> PassId {
        PassId(Sha256::digest(self.encode()).into())
    }
}
