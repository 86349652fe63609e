//! The SQLite ledger against the suite, and against what only a file can do to it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use farebox_core::{InstanceId, Timestamp};
use farebox_ledger::{OpenError, SqliteLedger, SqliteOptions};
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
        Arc::new(SqliteLedger::open(&self.path(), SqliteOptions { instance, answers_kept_for }, now).unwrap())
    }
}

#[test]
fn every_rule_and_random_history_holds() {
    conformance::passes_everything(Folder::new);
}

fn open(folder: &Folder) -> Result<SqliteLedger, OpenError> {
    let options = SqliteOptions { instance: InstanceId::new("a"), answers_kept_for: Duration::from_secs(60) };
    SqliteLedger::open(&folder.path(), options, Timestamp::from_unix_s(1_800_000_000))
}
