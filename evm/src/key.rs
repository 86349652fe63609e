//! Secret keys: read from hex or an encrypted keystore, never printed, erased when dropped.

use std::{fmt, path::Path};

use alloy::primitives::{Address, B256, Signature, U256, keccak256};
use farebox_core::EvmAddress;
use secp256k1::{Message, PublicKey, SECP256K1, SecretKey};
use zeroize::Zeroizing;

use crate::address;

/// A secp256k1 secret key. Its `Debug` shows the address alone.
#[derive(Clone)]
pub struct EvmKey {
    secret: SecretKey,
    address: Address,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not 32 bytes in hex. What was found is not repeated: it may be most of a key.
    #[error("expected a private key of 64 hex digits, with or without 0x, found something else ({length} characters)")]
    Form {
        /// How long the text was.
        length: usize,
    },
    /// Zero, or not below the order of the curve.
    #[error("these 32 bytes are not a secp256k1 private key")]
    Range,
    /// The keystore could not be read or the password is wrong.
    #[error("cannot open the keystore {path}; is the password right?")]
    Keystore {
        /// Which file.
        path: String,
        /// What went wrong.
        #[source]
        source: Box<alloy::signers::local::LocalSignerError>,
    },
}

impl EvmKey {
    /// From 64 hex digits, with or without `0x`; white space around them is ignored.
    ///
    /// # Errors
    /// [`KeyError::Form`], [`KeyError::Range`].
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        let digits = text.strip_prefix("0x").unwrap_or(text);
        let mut bytes = Zeroizing::new([0; 32]);
        hex::decode_to_slice(digits, bytes.as_mut_slice()).map_err(|_| KeyError::Form { length: text.len() })?;
        Self::from_bytes(&bytes)
    }

    /// From the 32 bytes.
    ///
    /// # Errors
    /// [`KeyError::Range`].
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let secret = SecretKey::from_byte_array(*bytes).map_err(|_| KeyError::Range)?;
        let address = address_of(&secret.public_key(SECP256K1));
        Ok(Self { secret, address })
    }

    /// From a Web3 secret storage file (version 3), as geth and foundry write it. Takes up to some seconds of CPU, by design of
    /// the format: call it before the runtime serves anybody.
    ///
    /// # Errors
    /// [`KeyError::Keystore`].
    pub fn from_keystore(path: &Path, password: &str) -> Result<Self, KeyError> {
        let signer = alloy::signers::local::LocalSigner::decrypt_keystore(path, password)
            .map_err(|source| KeyError::Keystore { path: path.display().to_string(), source: Box::new(source) })?;
        let mut bytes = Zeroizing::new([0; 32]);
        bytes.copy_from_slice(signer.to_bytes().as_slice());
        Self::from_bytes(&bytes)
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> EvmAddress {
        address::core(self.address)
    }

    pub(crate) const fn alloy_address(&self) -> Address {
        self.address
    }

    /// Signs a 32-byte digest; s is always low (EIP-2). 30 µs of CPU.
    pub(crate) fn sign(&self, digest: B256) -> Signature {
        let signature = SECP256K1.sign_ecdsa_recoverable(Message::from_digest(digest.0), &self.secret);
        let (id, bytes) = signature.serialize_compact();
        let (r, s) = bytes.split_at(32);
        Signature::new(U256::from_be_slice(r), U256::from_be_slice(s), i32::from(id) & 1 == 1)
    }
}

impl Drop for EvmKey {
    fn drop(&mut self) {
        // libsecp's own erasure is a volatile write; the bytes have no other copy of ours.
        self.secret.non_secure_erase();
    }
}

impl fmt::Debug for EvmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EvmKey({})", self.address)
    }
}

/// The last 20 bytes of the keccak of the uncompressed point.
pub(crate) fn address_of(key: &PublicKey) -> Address {
    let point = key.serialize_uncompressed();
    Address::from_slice(&keccak256(&point[1..])[12..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";

    #[test]
    fn a_key_never_prints_and_its_errors_do_not_repeat_it() {
        let key = EvmKey::from_hex(&format!(" 0x{KEY}\n")).unwrap();
        assert_eq!(format!("{key:?}"), "EvmKey(0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266)");
        let short = EvmKey::from_hex(&KEY[1..]).unwrap_err();
        assert!(!format!("{short:?} {short}").contains(&KEY[1..9]));
        assert!(matches!(EvmKey::from_bytes(&[0; 32]), Err(KeyError::Range)));
    }

    #[test]
    fn a_keystore_opens_with_its_password_alone() {
        use alloy::signers::{k256::elliptic_curve::rand_core::OsRng, local::LocalSigner};
        let folder = tempfile::tempdir().unwrap();
        let bytes = hex::decode(KEY).unwrap();
        let name = "relayer.json";
        LocalSigner::encrypt_keystore(folder.path(), &mut OsRng, bytes, "right", Some(name)).unwrap();
        let path = folder.path().join(name);
        let opened = EvmKey::from_keystore(&path, "right").unwrap();
        assert_eq!(opened.address(), EvmKey::from_hex(KEY).unwrap().address());
        assert!(matches!(EvmKey::from_keystore(&path, "wrong"), Err(KeyError::Keystore { .. })));
    }
}
