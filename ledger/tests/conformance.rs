//! The SQLite ledger against the suite that every ledger passes.
#![expect(clippy::unwrap_used, reason = "a test; a panic is how it reports")]

use std::{path::PathBuf, sync::Arc, time::Duration};

use farebox_core::{InstanceId, Timestamp};
use farebox_ledger::{SqliteLedger, SqliteOptions};
use farebox_testkit::conformance::{self, Books, LedgerStore};
use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("farebox.db")
    }
}

impl Books for Folder {
    fn open(&self, instance: InstanceId, answers_kept_for: Duration, now: Timestamp) -> Arc<dyn LedgerStore> {
        Arc::new(
            SqliteLedger::open(&self.path(), SqliteOptions { instance, answers_kept_for, audit_file: None }, now)
                .unwrap(),
        )
    }
}

#[test]
fn every_rule_and_random_history_holds() {
    conformance::passes_everything(Folder::new);
}
