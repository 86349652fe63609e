//! What only a file can do to a ledger.

use std::{error::Error, path::PathBuf, sync::Arc, time::Duration};

use farebox_core::{
    Answer, Claim, Claimed, Delivery, Drawn, Finality, Grant, InstanceId, InvoiceNews, LaneKey, PaymentEvent,
    PaymentId, StoredTransaction, Timestamp, TransactionFate, TransactionId,
    ports::{Ledger as _, NotedNews, PaymentFilter, TokenBooks as _, TokenFilter, TransactionStore as _},
    verify_audit,
};
use farebox_testkit::{test_claim, test_draw, test_pass, test_preimage, test_token};
use tempfile::TempDir;

use crate::{AssetName, OpenError, SqliteLedger, SqliteOptions, SqliteReader, revoke_token, schema};

mod audit_file;

const NOW: Timestamp = Timestamp::from_unix_s(1_800_000_000);

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("farebox.db")
    }
}

fn options(instance: &str) -> SqliteOptions {
    SqliteOptions { instance: InstanceId::new(instance), answers_kept_for: Duration::from_secs(60), audit_file: None }
}

fn open(folder: &Folder) -> Result<SqliteLedger, OpenError> {
    SqliteLedger::open(&folder.path(), options("a"), NOW)
}

fn sample_claim(number: u64) -> Claim {
    test_claim(number, InstanceId::new("a"), NOW)
}

fn small_disk(connection: &rusqlite::Connection) -> rusqlite::Result<()> {
    connection.pragma_update_and_check(None, "max_page_count", 60, |_| Ok(()))
}

async fn deliver(ledger: &SqliteLedger, number: u64, now: Timestamp) {
    let claim = sample_claim(number);
    let id = claim.id;
    ledger.claim(claim).await.unwrap();
    let hash = TransactionId::new(format!("0x{number:064x}"));
    let transaction = StoredTransaction {
        hash: hash.clone(),
        lane: LaneKey::new("lane"),
        nonce: number,
        raw: vec![1],
        payment: Some(id),
        fate: TransactionFate::Open,
        stored_at: now,
    };
    ledger.store_transaction(transaction).await.unwrap();
    let block = farebox_core::BlockRef { number, hash: [1; 32] };
    let answer = Some(Answer { status: 200, headers: Vec::new(), body: vec![0; 100] });
    let events = vec![PaymentEvent::Settled { transaction: hash, block }, PaymentEvent::Delivered { answer }];
    ledger.record(id, events, now).await.unwrap();
}

/// An error with its causes, as a log has it.
fn causes(error: &dyn Error) -> String {
    let cause = error.source().map(causes);
    [Some(error.to_string()), cause].into_iter().flatten().collect::<Vec<_>>().join(": ")
}

fn reader_lists(folder: &Folder) -> usize {
    SqliteReader::open(&folder.path()).unwrap().list(&PaymentFilter::default()).unwrap().len()
}

/// The file as an operator's `sqlite3` sees it.
fn by_hand(folder: &Folder) -> rusqlite::Connection {
    rusqlite::Connection::open(folder.path()).unwrap()
}

#[test]
fn a_second_gateway_is_refused_and_a_third_after_the_first_is_not() {
    let folder = Folder::new();
    let first = open(&folder).unwrap();
    let second = open(&folder).unwrap_err();
    assert!(matches!(second, OpenError::InUse { .. }) && second.to_string().contains("farebox.db.lock"), "{second}");
    let link = folder.0.path().join("alias.db");
    #[cfg(unix)]
    std::os::unix::fs::symlink(folder.path(), &link).unwrap();
    #[cfg(unix)]
    assert!(matches!(SqliteLedger::open(&link, options("b"), NOW), Err(OpenError::InUse { .. })));
    drop(first);
    open(&folder).unwrap();
}

#[cfg(unix)]
#[test]
fn nobody_else_may_read_the_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::new();
    let _ledger = open(&folder).unwrap();
    for name in ["farebox.db", "farebox.db.lock", "farebox.db-wal", "farebox.db-shm"] {
        let mode = std::fs::metadata(folder.0.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_reader_works_beside_a_gateway_after_it_and_after_its_crash() {
    let folder = Folder::new();
    assert_eq!(SqliteReader::open(&folder.path()).unwrap_err().code(), "ledger_file");
    let ledger = open(&folder).unwrap();
    ledger.claim(sample_claim(1)).await.unwrap();
    assert_eq!(reader_lists(&folder), 1);
    // What a killed gateway leaves: the file with its log, and nobody who holds them.
    let crashed = Folder::new();
    for suffix in ["", "-wal"] {
        let name = format!("farebox.db{suffix}");
        std::fs::copy(folder.0.path().join(&name), crashed.0.path().join(&name)).unwrap();
    }
    assert_eq!(reader_lists(&crashed), 1);
    drop(ledger);
    assert_eq!(reader_lists(&folder), 1);
    assert_eq!(reader_lists(&folder), 1, "a reader leaves nothing that stops the next one");
}

#[test]
fn what_is_no_ledger_is_left_alone() {
    let folder = Folder::new();
    std::fs::write(folder.path(), "SQLite format 2, or somebody's notes ".repeat(100)).unwrap();
    assert_eq!(open(&folder).unwrap_err().code(), "not_a_ledger");
    std::fs::remove_file(folder.path()).unwrap();
    by_hand(&folder).execute_batch("CREATE TABLE notes (text)").unwrap();
    assert_eq!(open(&folder).unwrap_err().code(), "not_a_ledger");
    assert_eq!(SqliteReader::open(&folder.path()).unwrap_err().code(), "not_a_ledger");
    let before = std::fs::read(folder.path()).unwrap();
    assert_eq!(revoke_token(&folder.path(), test_pass(1), NOW).unwrap_err().code(), "not_a_ledger");
    assert_eq!(std::fs::read(folder.path()).unwrap(), before);
}

#[test]
fn a_newer_schema_is_refused_with_both_versions() {
    let folder = Folder::new();
    drop(open(&folder).unwrap());
    by_hand(&folder).pragma_update(None, "user_version", 99).unwrap();
    for error in [open(&folder).unwrap_err(), SqliteReader::open(&folder.path()).unwrap_err()] {
        assert!(matches!(error, OpenError::Newer { found: 99, known: 3 }), "{error}");
    }
    drop(std::fs::remove_file(folder.path()));
    by_hand(&folder).pragma_update(None, "application_id", 0x4641_5245).unwrap();
    assert_eq!(SqliteReader::open(&folder.path()).unwrap_err().code(), "ledger_older");
}

#[tokio::test]
async fn a_wrong_row_is_named_and_never_believed() {
    for (damage, column) in [
        ("UPDATE payments SET units = '007'", "units"),
        ("UPDATE payments SET created_at = -1", "created_at"),
        ("UPDATE payments SET network = 'eip155:1'", "network"),
        ("UPDATE payments SET credential = substr(credential, 2)", "credential"),
        ("UPDATE payments SET block_number = 1", "block_hash"),
        ("UPDATE payments SET payer_address = 'x'", "payer_address"),
        ("UPDATE payments SET rail = 'cash'", "rail"),
        ("UPDATE payments SET rail = 'transfer'", "credential"),
        ("UPDATE payments SET credit = '00'", "credit"),
        ("UPDATE payments SET finality = '99999999999999999999'", "finality"),
        ("UPDATE payments SET credential = replace(credential, '0x0101', '0x0202')", "digest"),
    ] {
        let folder = Folder::new();
        let ledger = open(&folder).unwrap();
        let claim = sample_claim(1);
        ledger.claim(claim.clone()).await.unwrap();
        assert_eq!(by_hand(&folder).execute(damage, []).unwrap(), 1);
        let error = causes(&ledger.find(claim.credential.digest()).await.unwrap_err());
        assert!(error.contains(&claim.id.to_string()) && error.contains(column), "{damage}: {error}");
        assert!(ledger.claim(Claim { id: sample_claim(2).id, ..claim }).await.is_err(), "{damage}");
    }
}

#[tokio::test]
async fn a_damaged_page_is_unavailable() {
    use std::io::{Seek as _, SeekFrom, Write as _};
    let folder = Folder::new();
    let ledger = open(&folder).unwrap();
    for number in 0..50 {
        ledger.claim(sample_claim(number)).await.unwrap();
    }
    drop(ledger);
    let mut file = std::fs::OpenOptions::new().write(true).open(folder.path()).unwrap();
    let length = file.metadata().unwrap().len();
    file.seek(SeekFrom::Start(4096)).unwrap();
    file.write_all(&vec![0xa5; usize::try_from(length - 4096).unwrap()]).unwrap();
    drop(file);
    // Damage shows when the page is read: at opening or at the first question, and never as "not seen before".
    match open(&folder) {
        Err(error) => assert_eq!(error.code(), "ledger_sqlite"),
        Ok(ledger) => {
            assert!(ledger.find(sample_claim(1).credential.digest()).await.is_err());
            assert!(ledger.claim(sample_claim(1)).await.is_err());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_unavailable_and_spoils_nothing_that_was_granted() {
    let folder = Folder::new();
    let ledger = Arc::new(SqliteLedger::open_with(&folder.path(), options("a"), NOW, small_disk).unwrap());
    let mut acknowledged = Vec::new();
    let mut refused = 0;
    for number in 0..200 {
        match ledger.claim(sample_claim(number)).await {
            Ok(Claimed::Granted(permit)) => acknowledged.push(permit.into_payment()),
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                assert!(causes(&error).contains("full"), "{}", causes(&error));
                refused += 1;
            }
        }
    }
    assert!(!acknowledged.is_empty() && refused > 0, "{} {refused}", acknowledged.len());
    for payment in &acknowledged {
        assert_eq!(ledger.find(payment.digest()).await.unwrap().as_ref(), Some(payment));
    }
    drop(ledger);
    let ledger = open(&folder).unwrap();
    ledger.claim(sample_claim(1_000)).await.unwrap();
    assert_eq!(ledger.find(acknowledged[0].digest()).await.unwrap().unwrap().id, acknowledged[0].id);
}

#[tokio::test]
async fn a_locked_file_is_unavailable_and_then_works_again() {
    let folder = Folder::new();
    let ledger = open(&folder).unwrap();
    let hand = by_hand(&folder);
    hand.execute_batch("BEGIN IMMEDIATE").unwrap();
    let error = causes(&ledger.claim(sample_claim(1)).await.unwrap_err());
    assert!(error.contains("locked"), "{error}");
    assert!(
        ledger.find(sample_claim(1).credential.digest()).await.unwrap().is_none(),
        "readers do not wait for a writer"
    );
    hand.execute_batch("ROLLBACK").unwrap();
    ledger.claim(sample_claim(1)).await.unwrap();
}

#[tokio::test]
async fn a_claim_whose_caller_left_before_its_turn_is_not_made() {
    let folder = Folder::new();
    let ledger = open(&folder).unwrap();
    let hand = by_hand(&folder);
    hand.execute_batch("BEGIN IMMEDIATE").unwrap();
    let left = tokio::time::timeout(Duration::from_millis(50), ledger.claim(sample_claim(1))).await;
    assert!(left.is_err());
    hand.execute_batch("ROLLBACK").unwrap();
    ledger.claim(sample_claim(2)).await.unwrap();
    assert!(ledger.find(sample_claim(1).credential.digest()).await.unwrap().is_none());
}

#[tokio::test]
async fn ended_answers_are_deleted_in_passing() {
    let folder = Folder::new();
    let ledger = open(&folder).unwrap();
    for number in 0..3 {
        deliver(&ledger, number, NOW).await;
    }
    deliver(&ledger, 3, NOW.plus(Duration::from_secs(61))).await;
    let kept: i64 = by_hand(&folder).query_row("SELECT count(*) FROM answers", [], |row| row.get(0)).unwrap();
    assert_eq!(kept, 1);
}

#[tokio::test]
async fn an_operator_can_read_the_books_with_sqlite3() {
    let folder = Folder::new();
    let ledger = open(&folder).unwrap();
    let claim = sample_claim(1);
    ledger.claim(claim.clone()).await.unwrap();
    let name = AssetName { asset: claim.amount.asset.clone(), symbol: "USDC".into(), decimals: 6 };
    ledger.name_assets(vec![name.clone()]).await.unwrap();
    let sql = "SELECT id || ' ' || created_at || ' ' || units || ' ' || symbol || ' ' || state FROM payments_readable";
    let line: String = by_hand(&folder).query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!(line, format!("{} 2027-01-15T08:00:00.000Z 10000 USDC claimed", claim.id));
    assert_eq!(SqliteReader::open(&folder.path()).unwrap().asset_names().unwrap(), [name]);
}

#[test]
fn an_older_schema_is_migrated_whole_or_not_at_all() {
    let folder = Folder::new();
    drop(open(&folder).unwrap());
    let mut hand = by_hand(&folder);
    let [v1, v2, v3] = schema::MIGRATIONS else { panic!("another version: test its migration too") };
    let broken = [v1, v2, v3, "CREATE TABLE extra (x); INSERT INTO nowhere VALUES (1);"];
    assert_eq!(schema::migrate(&mut hand, &broken).unwrap_err().code(), "ledger_sqlite");
    let extra = |hand: &rusqlite::Connection| hand.prepare("SELECT x FROM extra").is_ok();
    assert!(!extra(&hand));
    assert_eq!(schema::migrate(&mut hand, &[v1, v2, v3, "CREATE TABLE extra (x);"]).unwrap(), 3);
    assert!(extra(&hand));
    drop(hand);
    assert_eq!(open(&folder).unwrap_err().code(), "ledger_newer");
}

#[test]
fn hot_queries_use_an_index() {
    let folder = Folder::new();
    drop(open(&folder).unwrap());
    let hand = by_hand(&folder);
    for (sql, index) in [
        ("SELECT id FROM payments WHERE digest = ?1 AND state <> 'void'", "payments_digest"),
        ("SELECT id FROM payments WHERE proof = ?1 AND state <> 'void'", "payments_proof"),
        ("UPDATE payments SET runs = 2 WHERE id = ?1", "sqlite_autoindex_payments_1"),
        (
            "SELECT id FROM payments WHERE state IN ('claimed', 'settling', 'in_doubt') \
             AND (state = 'in_doubt' OR holder IS NULL OR lease_until <= ?1) ORDER BY updated_at, id LIMIT 9",
            "payments_unresolved",
        ),
        ("SELECT id FROM payments WHERE holder IS NOT NULL AND holder <> ?1 AND lease_until > 0", "payments_held"),
        (
            "SELECT hash FROM transactions WHERE lane = ?1 AND fate = 'open' ORDER BY nonce, sequence",
            "transactions_open",
        ),
        ("SELECT id FROM payments WHERE payer_address = ?1 AND credit <> '0' AND state = 'settled'", "payments_credit"),
        ("SELECT payer FROM payments WHERE reversed = 1 GROUP BY payer", "payments_reversed"),
        ("SELECT line FROM audit ORDER BY sequence DESC LIMIT 1", "SCAN audit"),
        ("SELECT line FROM audit WHERE sequence > ?1 ORDER BY sequence LIMIT 9", "INTEGER PRIMARY KEY"),
        ("SELECT line FROM audit WHERE payment = ?1 ORDER BY sequence", "audit_payment"),
        ("SELECT used FROM tokens WHERE pass = ?1", "sqlite_autoindex_tokens_1"),
        ("SELECT used FROM tokens WHERE payment_hash = ?1", "sqlite_autoindex_tokens_2"),
        ("UPDATE tokens SET used = 2 WHERE sequence = ?1", "INTEGER PRIMARY KEY"),
        (
            "SELECT pass FROM tokens WHERE state IN ('open', 'held') AND node = ?1 AND expires_at < ?2 \
             ORDER BY expires_at, sequence LIMIT 9",
            "tokens_unsettled",
        ),
        (
            "SELECT sequence FROM tokens WHERE state IN ('expired', 'cancelled') AND expires_at <= ?1 ORDER BY expires_at LIMIT 9",
            "tokens_over",
        ),
        ("DELETE FROM draws WHERE token = ?1 AND draw = ?2", "PRIMARY KEY"),
        ("SELECT 1 FROM draws WHERE token = ?1", "PRIMARY KEY"),
        ("SELECT called_for FROM draws WHERE token = ?1 AND key = ?2", "draws_key"),
        (
            "SELECT body FROM draw_answers WHERE token = ?1 AND key = ?2 AND expires_at > ?3",
            "sqlite_autoindex_draw_answers_1",
        ),
        ("SELECT sequence FROM draw_answers WHERE expires_at <= ?1 LIMIT 9", "draw_answers_expiry"),
        (
            "SELECT count(*), coalesce(sum(length(body)), 0) FROM draw_answers \
             WHERE token = ?1 AND status IS NOT NULL AND expires_at > ?2",
            "draw_answers_kept",
        ),
        ("SELECT hash FROM transactions WHERE hash = ?1", "sqlite_autoindex_transactions_1"),
        ("SELECT nonce FROM transactions WHERE lane = ?1 ORDER BY nonce DESC LIMIT 1", "transactions_lane"),
    ] {
        let mut plan = hand.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let free = vec!["x"; plan.parameter_count()];
        let rows = plan.query_map(rusqlite::params_from_iter(free), |row| row.get::<_, String>(3)).unwrap();
        let plan = rows.map(Result::unwrap).collect::<Vec<_>>().join("; ");
        assert!(plan.contains(index) && !plan.contains("TEMP B-TREE"), "{sql}: {plan}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_that_was_deleted_under_it_takes_no_more_writes() {
    for file in ["farebox.db", "farebox.db-wal", "farebox.db-shm"] {
        let folder = Folder::new();
        let ledger = open(&folder).unwrap();
        deliver(&ledger, 1, NOW).await;
        std::fs::remove_file(folder.0.path().join(file)).unwrap();
        let refused = ledger.claim(sample_claim(2)).await.unwrap_err();
        assert!(causes(&refused).contains("was deleted or replaced"), "{file}: {}", causes(&refused));
    }
}

#[tokio::test]
async fn a_ledger_of_version_1_is_migrated_with_all_it_has() {
    let folder = Folder::new();
    let mut hand = by_hand(&folder);
    schema::migrate(&mut hand, &schema::MIGRATIONS[..1]).unwrap();
    hand.execute_batch(include_str!("tests/v1.sql")).unwrap();
    drop(hand);
    assert_eq!(SqliteReader::open(&folder.path()).unwrap_err().code(), "ledger_older");
    let ledger = open(&folder).unwrap();
    let payments = ledger.list(&PaymentFilter::default()).await.unwrap();
    let states: Vec<_> = payments.iter().rev().map(|p| p.state.as_str()).collect();
    assert_eq!(states, ["settled", "claimed", "settling", "in_doubt", "refused", "void"]);
    for payment in &payments {
        assert_eq!((payment.credit, payment.finality, payment.reversed), (0, Finality::Finalized, false));
    }
    let delivered = &payments[5];
    assert_eq!((delivered.delivery, delivered.block.unwrap().number), (Delivery::Delivered, 1));
    assert_eq!(ledger.find(sample_claim(1).credential.digest()).await.unwrap().as_ref(), Some(delivered));
    assert_eq!(ledger.answer(delivered.id, NOW).await.unwrap().unwrap().body, b"hello");
    assert_eq!(ledger.open_transactions(&LaneKey::new("lane")).await.unwrap().len(), 4);
    assert_eq!(ledger.audit_lines(0, 10).await.unwrap(), [], "what was decided before the log is not made up");
    // It works on as it did: held proofs are held, free ones are free, and the log begins.
    assert!(matches!(ledger.claim(sample_claim(3)).await.unwrap(), Claimed::Busy(_)));
    let again = Claim { id: sample_claim(7).id, ..sample_claim(6) };
    assert!(matches!(ledger.claim(again).await.unwrap(), Claimed::Granted(_)));
    assert_eq!(ledger.audit_lines(0, 10).await.unwrap().len(), 1);
    drop(ledger);
    let hand = by_hand(&folder);
    let objects = |hand: &rusqlite::Connection| {
        let sql = "SELECT name || ': ' || coalesce(sql, '') FROM sqlite_schema ORDER BY name";
        let mut statement = hand.prepare(sql).unwrap();
        statement.query_map([], |row| row.get::<_, String>(0)).unwrap().collect::<Result<Vec<_>, _>>().unwrap()
    };
    let fresh = Folder::new();
    drop(open(&fresh).unwrap());
    assert_eq!(objects(&hand), objects(&by_hand(&fresh)));
    let checks: String = hand.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(checks, "ok");
}

#[tokio::test]
async fn a_ledger_of_version_2_is_migrated_and_sells_tokens() {
    let folder = Folder::new();
    let mut hand = by_hand(&folder);
    schema::migrate(&mut hand, &schema::MIGRATIONS[..2]).unwrap();
    // A payment and its line in the log, as version 2 writes them: the tables of payments and of the log have not changed since.
    let current = Folder::new();
    let ledger = open(&current).unwrap();
    deliver(&ledger, 1, NOW).await;
    drop(ledger);
    hand.execute("ATTACH DATABASE ?1 AS current", [current.path().to_str().unwrap()]).unwrap();
    for table in ["payments", "transactions", "answers", "audit"] {
        hand.execute_batch(&format!("INSERT INTO {table} SELECT * FROM current.{table}")).unwrap();
    }
    drop(hand);
    assert_eq!(SqliteReader::open(&folder.path()).unwrap_err().code(), "ledger_older");
    let ledger = open(&folder).unwrap();
    let payment = ledger.find(sample_claim(1).credential.digest()).await.unwrap().unwrap();
    assert_eq!(payment.delivery, Delivery::Delivered);
    assert_eq!(ledger.answer(payment.id, NOW).await.unwrap().unwrap().body.len(), 100);
    ledger.sell(test_token(1, Grant::default(), NOW)).await.unwrap();
    let drawn = ledger.draw(test_draw(1, 100, InstanceId::new("a"), NOW)).await.unwrap();
    assert!(matches!(drawn, Drawn::Granted(_)), "{drawn:?}");
    assert_eq!(ledger.list(&PaymentFilter::default()).await.unwrap().len(), 2);
    let log = ledger.audit_lines(0, 10).await.unwrap();
    assert_eq!(verify_audit(None, log).unwrap().unwrap().sequence, 5);
}

#[test]
fn an_older_ledger_with_orphaned_rows_is_left_as_it_was() {
    let folder = Folder::new();
    let mut hand = by_hand(&folder);
    schema::migrate(&mut hand, &schema::MIGRATIONS[..1]).unwrap();
    hand.execute_batch(include_str!("tests/v1.sql")).unwrap();
    hand.execute_batch("PRAGMA foreign_keys = OFF; DELETE FROM payments WHERE state = 'in_doubt'").unwrap();
    drop(hand);
    assert_eq!(open(&folder).unwrap_err().code(), "ledger_dangling");
    assert_eq!(SqliteReader::open(&folder.path()).unwrap_err().code(), "ledger_older");
}

#[tokio::test]
async fn an_audit_entry_is_neither_changed_nor_removed_by_accident() {
    let folder = Folder::new();
    let ledger = open(&folder).unwrap();
    for number in 1..4 {
        ledger.claim(sample_claim(number)).await.unwrap();
    }
    let before = ledger.audit_lines(0, 10).await.unwrap();
    let hand = by_hand(&folder);
    for sql in [
        "UPDATE audit SET line = '{}' WHERE sequence = 2",
        "UPDATE audit SET sequence = 9 WHERE sequence = 3",
        "DELETE FROM audit WHERE sequence = 3",
        "DELETE FROM audit",
        "INSERT INTO audit (sequence, at, line) VALUES (5, 0, '{}')",
        "INSERT INTO audit (sequence, at, line) VALUES (2, 0, '{}')",
        "INSERT OR REPLACE INTO audit (sequence, at, line) VALUES (3, 0, '{}')",
        "REPLACE INTO audit (sequence, at, line) VALUES (1, 0, '{}')",
        "INSERT INTO audit (sequence, at, line) VALUES (3, 0, '{}') ON CONFLICT DO UPDATE SET line = ''",
    ] {
        let error = hand.execute(sql, []).unwrap_err();
        assert!(error.to_string().contains("the audit log "), "{sql}: {error}");
    }
    assert_eq!(ledger.audit_lines(0, 10).await.unwrap(), before);
    assert_eq!(verify_audit(None, before).unwrap().unwrap().sequence, 3);
}

#[tokio::test]
async fn a_hand_that_drops_the_triggers_breaks_the_chain() {
    for damage in [
        "UPDATE audit SET line = replace(line, '10000', '90000') WHERE sequence = 2",
        "DELETE FROM audit WHERE sequence = 2",
        "DELETE FROM audit WHERE sequence = 2; UPDATE audit SET sequence = 2 WHERE sequence = 3",
    ] {
        let folder = Folder::new();
        let ledger = open(&folder).unwrap();
        for number in 1..4 {
            ledger.claim(sample_claim(number)).await.unwrap();
        }
        let hand = by_hand(&folder);
        hand.execute_batch("DROP TRIGGER audit_is_not_changed; DROP TRIGGER audit_is_not_cut").unwrap();
        hand.execute_batch(damage).unwrap();
        assert!(verify_audit(None, ledger.audit_lines(0, 10).await.unwrap()).is_err(), "{damage}");
    }
}

#[tokio::test]
async fn unpaid_tokens_go_faster_than_a_flood_ends() {
    let folder = Folder::new();
    let ledger = open(&folder).unwrap();
    for number in 1..=400 {
        ledger.sell(test_token(number, Grant::default(), NOW)).await.unwrap();
    }
    let later = NOW.plus(Duration::from_secs(9 * 24 * 60 * 60));
    for sweep in 0..4u64 {
        let ended = |number: u64| NotedNews {
            hash: test_preimage(sweep * 100 + number).hash(),
            news: InvoiceNews::Expired,
            payment: PaymentId::new(later, [0; 10]),
        };
        ledger.note_news((1..=100).map(ended).collect(), None, later).await.unwrap();
    }
    assert_eq!(ledger.tokens(&TokenFilter::default()).await.unwrap(), []);
}
