//! Where purchases are kept: `tokens/<origin>-<payment hash>.json` beside the journal's entries, and `spent/` for those that are over.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use farebox_core::{PaymentHash, Timestamp};
use sha2::{Digest, Sha256};

use super::purchase::{Purchase, Stage};
use crate::journal::{Journal, JournalError, Lock, blocking, read_json, remove_if_there, write_durably};

/// How long others may take to write one small file.
const PUT_WAIT: Duration = Duration::from_secs(10);

/// Tokens that can be used, and payments under way.
pub(crate) const TOKENS: &str = "tokens";
/// Tokens that are over.
pub(crate) const SPENT: &str = "spent";

impl Journal {
    /// Tokens that can still be used and Lightning payments that are not over, in no order.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn purchases(&self) -> Result<Vec<Purchase>, JournalError> {
        self.purchases_named(TOKENS, |_| true)
    }

    /// The purchase with this payment hash, whoever sold it.
    pub(crate) async fn purchase(&self, hash: PaymentHash) -> Result<Option<Purchase>, JournalError> {
        let (journal, suffix) = (self.clone(), format!("-{hash}.json"));
        blocking(move || {
            // A crash may leave the older state beside the newer one.
            for part in [SPENT, TOKENS] {
                let found = journal.purchases_named(part, |name| name.ends_with(&suffix))?.pop();
                if found.is_some() {
                    return Ok(found);
                }
            }
            Ok(None)
        })
        .await
    }

    /// What was bought of this seller and is not over.
    pub(crate) async fn purchases_of(&self, origin: String) -> Result<Vec<Purchase>, JournalError> {
        let (journal, prefix) = (self.clone(), prefix_of(&origin));
        blocking(move || {
            let mut found = journal.purchases_named(TOKENS, |name| name.starts_with(&prefix))?;
            found.retain(|purchase| purchase.origin == origin);
            Ok(found)
        })
        .await
    }

    /// What this wallet paid without giving the preimage, if there is any.
    pub(crate) async fn paid_blind(&self, wallet_id: Arc<str>) -> Result<Option<Purchase>, JournalError> {
        let journal = self.clone();
        blocking(move || {
            let found = journal.purchases()?.into_iter();
            let mut blind = found.filter(|one| matches!(one.stage, Stage::PaidBlind { .. }));
            Ok(blind.find(|one| one.wallet_id == wallet_id))
        })
        .await
    }

    /// Writes the purchase so that it outlives a crash of the machine, before this returns.
    pub(crate) async fn put(&self, purchase: &Purchase, now: Timestamp) -> Result<(), JournalError> {
        // Two processes that use one token note it at the same time.
        let lock = self.lock(format!("token-{}", purchase.payment_hash()), PUT_WAIT).await?;
        let (journal, purchase) = (self.clone(), purchase.clone());
        blocking(move || {
            let _lock = lock;
            journal.put_now(&purchase, now)
        })
        .await
    }

    /// Waits until nobody else, in this process or another, pays this invoice, at most `wait`.
    pub(crate) async fn hold_invoice(&self, hash: PaymentHash, wait: Duration) -> Result<Lock, JournalError> {
        self.lock(format!("invoice-{hash}"), wait).await
    }

    fn put_now(&self, purchase: &Purchase, now: Timestamp) -> Result<(), JournalError> {
        let (part, other) = if is_shelved(purchase, now) { (SPENT, TOKENS) } else { (TOKENS, SPENT) };
        write_durably(&self.purchase_path(part, purchase), purchase)?;
        remove_if_there(&self.purchase_path(other, purchase))
    }

    /// Moves what is over to `spent/`, and forgets what is over for long. A file that cannot be read is left for whoever needs it to complain about.
    pub(crate) fn tidy_purchases(&self, now: Timestamp) -> Result<(), JournalError> {
        for part in [TOKENS, SPENT] {
            for name in self.names(part)? {
                let path = self.folder.join(part).join(name);
                match read_json::<Purchase>(&path) {
                    Ok(purchase) if purchase.is_forgettable(now) => remove_if_there(&path)?,
                    Ok(purchase) if part == TOKENS && is_shelved(&purchase, now) => self.put_now(&purchase, now)?,
                    Ok(_) => {}
                    Err(error) => tracing::warn!(path = %path.display(), %error, "unreadable token"),
                }
            }
        }
        Ok(())
    }

    fn purchases_named(&self, part: &str, wanted: impl Fn(&str) -> bool) -> Result<Vec<Purchase>, JournalError> {
        let names = match self.names(part) {
            Ok(names) => names,
            // A journal of an older version, or one that was never opened.
            Err(JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for name in names.iter().filter(|name| wanted(name)) {
            match read_json(&self.folder.join(part).join(name)) {
                Ok(purchase) => found.push(purchase),
                // Moved by somebody else since it was listed.
                Err(JournalError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    fn purchase_path(&self, part: &str, purchase: &Purchase) -> PathBuf {
        let name = format!("{}{}.json", prefix_of(&purchase.origin), purchase.payment_hash());
        self.folder.join(part).join(name)
    }
}

/// Whether it is over for good. What is unpaid stays in sight: its wallet may yet say otherwise.
fn is_shelved(purchase: &Purchase, now: Timestamp) -> bool {
    matches!(purchase.stage, Stage::Paid(_)) && purchase.is_over(now)
}

/// An origin as file names have it.
fn prefix_of(origin: &str) -> String {
    let digest = hex::encode(Sha256::digest(origin));
    format!("{}-", &digest[..16])
}
