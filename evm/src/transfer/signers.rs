//! Who signed what, remembered: a claim that is presented again and again costs one recovery of a key, which is most of its CPU.

use std::collections::HashMap;

use alloy::primitives::{Address, B256, keccak256};
use parking_lot::Mutex;

use super::code;

/// How many signatures are remembered at least, in each of two generations.
const SIGNATURES_MAX: usize = 8_192;

/// The keys of signatures that were recovered lately. What a signature recovers to never changes, so nothing here is ever wrong; a
/// generation that is full makes room by taking the older one's place.
#[derive(Debug, Default)]
pub(super) struct Signers(Mutex<[HashMap<B256, Option<Address>>; 2]>);

impl Signers {
    /// As [`code::signer`].
    pub(super) fn of(&self, digest: B256, signature: &[u8]) -> Option<Address> {
        let key = keccak256([digest.as_slice(), signature].concat());
        if let Some(known) = self.0.lock().iter().find_map(|generation| generation.get(&key).copied()) {
            return known;
        }
        let signer = code::signer(digest, signature);
        let mut generations = self.0.lock();
        if generations[0].len() >= SIGNATURES_MAX {
            generations.swap(0, 1);
            generations[0].clear();
        }
        generations[0].insert(key, signer);
        signer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_what_was_recovered_and_memory_is_bounded() {
        let signers = Signers::default();
        let key = crate::EvmKey::from_hex(&"11".repeat(32)).unwrap();
        let digest = keccak256("a claim");
        let signature = key.sign(digest).as_bytes();
        for _ in 0..2 {
            assert_eq!(signers.of(digest, &signature), Some(key.alloy_address()));
            assert_ne!(signers.of(keccak256("another"), &signature), Some(key.alloy_address()));
            assert_eq!(signers.of(digest, &signature[..64]), None);
        }
        for n in 0..3 * SIGNATURES_MAX {
            signers.of(digest, &n.to_be_bytes());
        }
        assert!(signers.0.lock().iter().all(|generation| generation.len() <= SIGNATURES_MAX));
        assert_eq!(signers.of(digest, &signature), Some(key.alloy_address()));
    }
}
