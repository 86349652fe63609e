//! What became of a node's invoices and payments, in the order in which it was learnt: the store that cursors point into.
//!
//! ldk-node tells of a settlement by an event that is repeated until it is acknowledged, and keeps the payment itself. An event is
//! acknowledged only after its row is here and on disk; and at each start, settlements that the node knows and this store does not
//! are added. So a crash anywhere, or the loss of this file, loses none.

use std::{path::Path, sync::atomic::AtomicU64, time::Duration};

use farebox_core::{PaymentHash, Preimage, Timestamp, ports::NewsCursor};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

/// How long a write waits for one of another process, such as a backup's.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS meta (epoch TEXT NOT NULL, session INTEGER NOT NULL);
    INSERT INTO meta SELECT lower(hex(randomblob(8))), 0 WHERE NOT EXISTS (SELECT 1 FROM meta);
    CREATE TABLE IF NOT EXISTS invoices (hash BLOB PRIMARY KEY, expires_at_ms INTEGER NOT NULL) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS invoices_by_end ON invoices (expires_at_ms);
    CREATE TABLE IF NOT EXISTS settled (seq INTEGER PRIMARY KEY AUTOINCREMENT, hash BLOB NOT NULL UNIQUE, received_msat INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS sent (
        hash BLOB PRIMARY KEY, session INTEGER NOT NULL, state TEXT NOT NULL, code TEXT, preimage BLOB, fee_msat INTEGER
    ) WITHOUT ROWID;
";

/// The store. Its calls block for a write to disk.
#[derive(Debug)]
pub(super) struct News {
    connection: Mutex<Connection>,
    epoch: String,
    /// This run of the node.
    session: i64,
    /// How many settlements were added in this run, for whoever waits for one.
    pub(super) added: AtomicU64,
}

/// What is known here of a payment of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It was about to be handed to the node, or was.
    Begun {
        /// In this run of the process: whatever it is, its future will tell.
        now: bool,
    },
    /// Made.
    Paid {
        /// What was bought.
        preimage: Option<Preimage>,
        /// What forwarding took.
        fee_msat: Option<u64>,
    },
    /// Ended without having paid.
    Failed {
        /// Why, as in [`farebox_core::ports::PayOutcome`].
        code: String,
    },
}

impl News {
    /// Opens the store, or creates it.
    ///
    /// # Errors
    /// As SQLite says.
    pub(super) fn open(path: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.execute_batch(SCHEMA)?;
        let (epoch, session) =
            connection.query_row("UPDATE meta SET session = session + 1 RETURNING epoch, session", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
        Ok(Self { connection: Mutex::new(connection), epoch, session, added: AtomicU64::new(0) })
    }

    /// Remembers an invoice before anybody is shown it.
    pub(super) fn invoice(&self, hash: PaymentHash, expires_at: Timestamp) -> rusqlite::Result<()> {
        let connection = self.connection.lock();
        let mut insert = connection.prepare_cached("INSERT OR REPLACE INTO invoices VALUES (?1, ?2)")?;
        insert.execute(params![hash.0, integer(expires_at.unix_ms())]).map(drop)
    }

    /// Until when an invoice can be paid; `None` if it is not one of ours, or is long over.
    pub(super) fn invoice_end(&self, hash: PaymentHash) -> rusqlite::Result<Option<Timestamp>> {
        let connection = self.connection.lock();
        let mut select = connection.prepare_cached("SELECT expires_at_ms FROM invoices WHERE hash = ?1")?;
        select.query_row([hash.0], |row| Ok(Timestamp::from_unix_ms(natural(row.get(0)?)))).optional()
    }

    /// Invoices that ended before `before`, at most `limit`.
    pub(super) fn ended_invoices(&self, before: Timestamp, limit: u32) -> rusqlite::Result<Vec<PaymentHash>> {
        let connection = self.connection.lock();
        let mut select = connection
            .prepare_cached("SELECT hash FROM invoices WHERE expires_at_ms < ?1 ORDER BY expires_at_ms LIMIT ?2")?;
        select.query_map(params![integer(before.unix_ms()), limit], |row| row.get(0).map(PaymentHash))?.collect()
    }

    /// Forgets an invoice, but not that it was paid.
    pub(super) fn forget_invoice(&self, hash: PaymentHash) -> rusqlite::Result<()> {
        self.connection.lock().execute("DELETE FROM invoices WHERE hash = ?1", [hash.0]).map(drop)
    }

    /// Notes that an invoice was paid; the first note of a hash counts, so that repeated events change nothing.
    pub(super) fn settled(&self, hash: PaymentHash, received_msat: u64) -> rusqlite::Result<()> {
        let connection = self.connection.lock();
        let mut insert = connection
            .prepare_cached("INSERT INTO settled (hash, received_msat) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?;
        let added = insert.execute(params![hash.0, integer(received_msat)])?;
        self.added.fetch_add(added as u64, std::sync::atomic::Ordering::Release);
        Ok(())
    }

    /// With how many millisatoshis an invoice was paid, if it was.
    pub(super) fn settlement(&self, hash: PaymentHash) -> rusqlite::Result<Option<u64>> {
        let connection = self.connection.lock();
        let mut select = connection.prepare_cached("SELECT received_msat FROM settled WHERE hash = ?1")?;
        select.query_row([hash.0], |row| row.get(0).map(natural)).optional()
    }

    /// Settlements after `after`, at most `limit`, and the cursor behind them. A cursor of another store begins anew.
    pub(super) fn settlements(
        &self,
        after: Option<&NewsCursor>,
        limit: u32,
    ) -> rusqlite::Result<(Vec<(PaymentHash, u64)>, NewsCursor)> {
        let position = after.and_then(|cursor| cursor.0.split_once(':')).filter(|(epoch, _)| *epoch == self.epoch);
        let after: i64 = position.and_then(|(_, seq)| seq.parse().ok()).unwrap_or(0);
        let connection = self.connection.lock();
        let mut select = connection
            .prepare_cached("SELECT seq, hash, received_msat FROM settled WHERE seq > ?1 ORDER BY seq LIMIT ?2")?;
        let rows: Vec<(i64, PaymentHash, u64)> = select
            .query_map(params![after, limit], |row| Ok((row.get(0)?, PaymentHash(row.get(1)?), natural(row.get(2)?))))?
            .collect::<rusqlite::Result<_>>()?;
        let last = rows.last().map_or(after, |(seq, _, _)| *seq);
        let news = rows.into_iter().map(|(_, hash, received)| (hash, received)).collect();
        Ok((news, NewsCursor(format!("{}:{last}", self.epoch))))
    }

    /// Notes that a payment is about to be handed to the node.
    pub(super) fn begin(&self, hash: PaymentHash) -> rusqlite::Result<()> {
        let connection = self.connection.lock();
        connection
            .execute(
                "INSERT INTO sent (hash, session, state) VALUES (?1, ?2, 'begun')
                 ON CONFLICT (hash) DO UPDATE SET session = excluded.session, state = 'begun', code = NULL WHERE state <> 'paid'",
                params![hash.0, self.session],
            )
            .map(drop)
    }

    /// Notes that a payment was made. Nothing that is heard later changes that.
    pub(super) fn paid(
        &self,
        hash: PaymentHash,
        preimage: Option<Preimage>,
        fee_msat: Option<u64>,
    ) -> rusqlite::Result<()> {
        let connection = self.connection.lock();
        connection
            .execute(
                "INSERT INTO sent (hash, session, state, preimage, fee_msat) VALUES (?1, ?2, 'paid', ?3, ?4)
                 ON CONFLICT (hash) DO UPDATE SET state = 'paid', code = NULL,
                     preimage = coalesce(excluded.preimage, preimage), fee_msat = coalesce(excluded.fee_msat, fee_msat)",
                params![hash.0, self.session, preimage.map(|preimage| preimage.0), fee_msat.map(integer)],
            )
            .map(drop)
    }

    /// Notes that a payment ended without having paid.
    pub(super) fn failed(&self, hash: PaymentHash, code: &str) -> rusqlite::Result<()> {
        let connection = self.connection.lock();
        connection
            .execute(
                "INSERT INTO sent (hash, session, state, code) VALUES (?1, ?2, 'failed', ?3)
                 ON CONFLICT (hash) DO UPDATE SET state = 'failed', code = excluded.code WHERE state <> 'paid'",
                params![hash.0, self.session, code],
            )
            .map(drop)
    }

    /// What is known here of a payment of our own; `None` if it never came here.
    pub(super) fn sent(&self, hash: PaymentHash) -> rusqlite::Result<Option<Sent>> {
        let connection = self.connection.lock();
        let mut select =
            connection.prepare_cached("SELECT state, session, code, preimage, fee_msat FROM sent WHERE hash = ?1")?;
        select.query_row([hash.0], |row| self.read_sent(row)).optional()
    }

    fn read_sent(&self, row: &Row<'_>) -> rusqlite::Result<Sent> {
        let state: String = row.get(0)?;
        Ok(match state.as_str() {
            "paid" => Sent::Paid {
                preimage: row.get::<_, Option<[u8; 32]>>(3)?.map(Preimage),
                fee_msat: row.get::<_, Option<i64>>(4)?.map(natural),
            },
            "failed" => Sent::Failed { code: row.get(2)? },
            _ => Sent::Begun { now: row.get::<_, i64>(1)? == self.session },
        })
    }
}

/// Twenty-one million bitcoin are 2^61 millisatoshis, and times are smaller.
fn integer(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn natural(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PaymentHash = PaymentHash([1; 32]);
    const B: PaymentHash = PaymentHash([2; 32]);

    fn hashes(news: &[(PaymentHash, u64)]) -> Vec<PaymentHash> {
        news.iter().map(|(hash, _)| *hash).collect()
    }

    #[test]
    fn settlements_are_told_in_order_once_a_cursor_and_anew_by_another_store() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("news.sqlite");
        let news = News::open(&path).unwrap();
        news.settled(B, 20).unwrap();
        news.settled(A, 10).unwrap();
        news.settled(B, 99).unwrap();
        let (told, cursor) = news.settlements(None, 1).unwrap();
        assert_eq!(told, [(B, 20)]);
        let (told, cursor) = news.settlements(Some(&cursor), 10).unwrap();
        assert_eq!(hashes(&told), [A]);
        let (told, same) = news.settlements(Some(&cursor), 10).unwrap();
        assert!(told.is_empty() && same == cursor);

        drop(news);
        let news = News::open(&path).unwrap();
        assert_eq!(news.settlements(Some(&cursor), 10).unwrap(), (vec![], cursor.clone()));
        assert_eq!(news.settlement(B).unwrap(), Some(20));
        let other = News::open(&dir.path().join("other.sqlite")).unwrap();
        other.settled(A, 10).unwrap();
        assert_eq!(hashes(&other.settlements(Some(&cursor), 10).unwrap().0), [A], "a store that was lost begins anew");
    }

    #[test]
    fn a_payment_that_was_made_stays_made_and_one_of_an_earlier_run_is_known_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("news.sqlite");
        let news = News::open(&path).unwrap();
        assert_eq!(news.sent(A).unwrap(), None);
        news.begin(A).unwrap();
        assert_eq!(news.sent(A).unwrap(), Some(Sent::Begun { now: true }));
        drop(news);
        let news = News::open(&path).unwrap();
        assert_eq!(news.sent(A).unwrap(), Some(Sent::Begun { now: false }));
        news.failed(A, "no_route").unwrap();
        assert_eq!(news.sent(A).unwrap(), Some(Sent::Failed { code: "no_route".to_owned() }));
        news.begin(A).unwrap();
        let preimage = Preimage([7; 32]);
        news.paid(A, Some(preimage), Some(3)).unwrap();
        news.failed(A, "no_route").unwrap();
        news.begin(A).unwrap();
        news.paid(A, None, None).unwrap();
        assert_eq!(news.sent(A).unwrap(), Some(Sent::Paid { preimage: Some(preimage), fee_msat: Some(3) }));
    }

    #[test]
    fn invoices_long_over_are_listed_for_forgetting() {
        let dir = tempfile::tempdir().unwrap();
        let news = News::open(&dir.path().join("news.sqlite")).unwrap();
        news.invoice(A, Timestamp::from_unix_s(10)).unwrap();
        news.invoice(B, Timestamp::from_unix_s(20)).unwrap();
        assert_eq!(news.invoice_end(A).unwrap(), Some(Timestamp::from_unix_s(10)));
        let over = news.ended_invoices(Timestamp::from_unix_s(15), 10).unwrap();
        assert_eq!(over, [A]);
        news.forget_invoice(A).unwrap();
        assert_eq!(news.invoice_end(A).unwrap(), None);
    }
}
