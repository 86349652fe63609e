//! How much one payer may have under way at once.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use farebox_core::{CredentialDigest, Payer};
use parking_lot::Mutex;

/// The credentials of each payer that are being verified, or are claimed and not settled.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places(Arc<Mutex<HashMap<Payer, HashSet<CredentialDigest>>>>);

/// A place among what a payer has under way, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Places,
    payer: Payer,
    credential: CredentialDigest,
}

/// Why there is no place.
pub(crate) enum NoPlace {
    /// Another request with the same credential has it: copies of one payment are verified once, and count as one.
    Taken,
    /// The payer has too many.
    Full,
}

impl Places {
    /// One of `max` places of this payer.
    ///
    /// # Errors
    /// The credential has one, or all are taken.
    pub(crate) fn take(&self, payer: &Payer, credential: CredentialDigest, max: usize) -> Result<Place, NoPlace> {
        let mut places = self.0.lock();
        let of_payer = places.entry(payer.clone()).or_default();
        if of_payer.contains(&credential) {
            return Err(NoPlace::Taken);
        }
        if of_payer.len() >= max {
            return Err(NoPlace::Full);
        }
        of_payer.insert(credential);
        Ok(Place { places: self.clone(), payer: payer.clone(), credential })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.places.0.lock();
        if let Some(of_payer) = places.get_mut(&self.payer) {
            of_payer.remove(&self.credential);
            if of_payer.is_empty() {
                places.remove(&self.payer);
            }
        }
    }
}
