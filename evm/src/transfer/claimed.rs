//! Transactions whose transfers were found, so that presenting one again and again costs no question to the chain once all of it is
//! claimed. Used only to refuse: whatever is granted is looked up.

use std::{collections::HashMap, time::Duration};

use farebox_core::{
    Credential, ProofId,
    ports::{Ledger, LedgerUnavailable},
};
use parking_lot::Mutex;
use tokio::time::Instant;

/// For how long a transaction's transfers are remembered: a reorganisation may change them.
const KEPT: Duration = Duration::from_secs(600);
/// How many transactions are remembered; the oldest make room.
const TRANSACTIONS_MAX: usize = 10_000;
/// Transactions with more transfers are not remembered: each is one question to the books.
const PROOFS_MAX: usize = 8;

/// What was asked for and found: by transaction, asset, payer and recipient.
#[derive(Debug, Default)]
pub(super) struct Found(Mutex<HashMap<String, (Instant, Vec<ProofId>)>>);

impl Found {
    /// These are all the transfers that `key` names.
    pub(super) fn note(&self, key: String, proofs: Vec<ProofId>) {
        if proofs.len() > PROOFS_MAX {
            return;
        }
        let mut found = self.0.lock();
        if found.len() >= TRANSACTIONS_MAX {
            found.retain(|_, (since, _)| since.elapsed() < KEPT);
        }
        if found.len() >= TRANSACTIONS_MAX
            && let Some(oldest) = found.iter().min_by_key(|(_, (since, _))| *since).map(|(key, _)| key.clone())
        {
            found.remove(&oldest);
        }
        found.insert(key, (Instant::now(), proofs));
    }

    /// All the transfers that `key` names, if they were found lately.
    pub(super) fn of(&self, key: &str) -> Option<Vec<ProofId>> {
        let found = self.0.lock();
        found.get(key).filter(|(since, _)| since.elapsed() < KEPT).map(|(_, proofs)| proofs.clone())
    }
}

/// Whether every proof is claimed, and by other credentials than this one. One question to the books a proof.
pub(super) async fn all_claimed(
    ledger: &dyn Ledger,
    proofs: &[ProofId],
    credential: &Credential,
) -> Result<bool, LedgerUnavailable> {
    for proof in proofs {
        let by_another = ledger.find_proof(proof).await?.is_some_and(|payment| payment.digest() != credential.digest());
        if !by_another {
            return Ok(false);
        }
    }
    Ok(!proofs.is_empty())
}
