//! How fast claims and look-ups are. Run with `cargo test --release -p farebox-ledger --test speed -- --ignored --nocapture`.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test; a panic is how it reports")]

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use farebox_core::{
    Answer, AuditLine, BlockRef, DrawEnd, Drawn, Grant, InstanceId, LaneKey, PaymentEvent, StoredTransaction,
    Timestamp, TransactionFate, TransactionId,
    ports::{Ledger as _, TokenBooks as _, TransactionStore as _},
    verify_audit,
};
use farebox_ledger::{AuditFilter, SqliteLedger, SqliteOptions, SqliteReader};
use farebox_testkit::{test_claim, test_draw, test_draw_id, test_pass, test_token};
use tokio::time::Instant;

const NOW: Timestamp = Timestamp::from_unix_s(1_800_000_000);
const OPERATIONS: u64 = 20_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn claims_and_finds_per_second() {
    let (_folder, ledger) = opened();
    let mut first = 0;
    for callers in [1, 16, 64] {
        let operations = operations(callers);
        measure("claim", callers, operations, {
            let ledger = ledger.clone();
            move |number| {
                let ledger = ledger.clone();
                async move {
                    ledger.claim(test_claim(first + number, InstanceId::new("i"), NOW)).await.unwrap();
                }
            }
        })
        .await;
        for (name, offset) in [("find, held", first), ("find, unknown", first + 1_000_000)] {
            let ledger = ledger.clone();
            let find = move |number| {
                let ledger = ledger.clone();
                let digest = test_claim(offset + number, InstanceId::new("i"), NOW).credential.digest();
                async move {
                    drop(ledger.find(digest).await.unwrap());
                }
            };
            measure(name, callers, operations, find).await;
        }
        first += operations;
    }
}

/// A claim, its settling transaction, the settlement and the delivery, each of them durable before the next; then the check of the
/// audit log that they made, 4 lines each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn whole_payments_per_second() {
    let folder = tempfile::tempdir().unwrap();
    for (name, copied) in [("", false), (" with an audit file", true)] {
        let path = folder.path().join(format!("farebox{copied}.db"));
        let options = SqliteOptions {
            instance: InstanceId::new("i"),
            answers_kept_for: Duration::from_secs(60),
            audit_file: copied.then(|| folder.path().join("audit.jsonl")),
        };
        let ledger = Arc::new(SqliteLedger::open(&path, options, NOW).unwrap());
        let mut first = 0;
        for (callers, operations) in [(1, OPERATIONS / 20), (64, OPERATIONS)] {
            let ledger = ledger.clone();
            let pay = move |number| {
                let ledger = ledger.clone();
                async move { pay(&ledger, first + number).await }
            };
            measure(&format!("claim, sign, settle and deliver{name}"), callers, operations, pay).await;
            first += operations;
        }
        let start = Instant::now();
        let reader = SqliteReader::open(&path).unwrap();
        let mut last: Option<AuditLine> = None;
        loop {
            let after = last.as_ref().map_or(0, |line| line.sequence);
            let page = reader.audit_lines(&AuditFilter { after, ..AuditFilter::default() }, 1_000).unwrap();
            if page.is_empty() {
                break;
            }
            last = verify_audit(last, page).unwrap();
        }
        let lines = last.unwrap().sequence;
        assert_eq!(lines, first * 4);
        println!("audit lines checked: {:.0}/s", lines as f64 / start.elapsed().as_secs_f64());
    }
}

/// Calls with held tokens: a draw and its end, each durable before the next. Every caller has a pass of many calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn calls_of_held_tokens_per_second() {
    let (_folder, ledger) = opened();
    for callers in [1, 16, 64] {
        let first = callers * 1_000_000;
        for number in first..first + callers {
            ledger.sell(test_token(number, Grant::Calls(NonZeroU32::MAX), NOW)).await.unwrap();
            call(&ledger, number, number).await;
        }
        let ledger = ledger.clone();
        measure("draw and end, held token", callers, operations(callers), move |number| {
            let ledger = ledger.clone();
            async move { call(&ledger, first + number % callers, first + callers + number).await }
        })
        .await;
    }
}

/// Tokens that are sold, paid by their first draw and spent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn tokens_of_one_call_per_second() {
    let (_folder, ledger) = opened();
    for callers in [1, 16, 64] {
        let first = callers * 1_000_000;
        let ledger = ledger.clone();
        measure("sell, draw and end, one call", callers, operations(callers), move |number| {
            let ledger = ledger.clone();
            async move {
                ledger.sell(test_token(first + number, Grant::default(), NOW)).await.unwrap();
                call(&ledger, first + number, first + number).await;
            }
        })
        .await;
    }
}

/// Calls within time that was bought, which are looked at and not written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn calls_of_bought_time_per_second() {
    let (_folder, ledger) = opened();
    ledger.sell(test_token(1, Grant::For(Duration::from_secs(3600)), NOW)).await.unwrap();
    for callers in [1, 16, 64] {
        let ledger = ledger.clone();
        measure("draw and end, bought time", callers, OPERATIONS, move |number| {
            let ledger = ledger.clone();
            async move { call(&ledger, 1, number).await }
        })
        .await;
    }
}

fn opened() -> (tempfile::TempDir, Arc<SqliteLedger>) {
    let folder = tempfile::tempdir().unwrap();
    let options =
        SqliteOptions { instance: InstanceId::new("i"), answers_kept_for: Duration::from_secs(60), audit_file: None };
    let ledger = SqliteLedger::open(&folder.path().join("farebox.db"), options, NOW).unwrap();
    (folder, Arc::new(ledger))
}

/// Alone, each waits for the disk.
const fn operations(callers: u64) -> u64 {
    if callers == 1 { OPERATIONS / 20 } else { OPERATIONS }
}

async fn call(ledger: &SqliteLedger, token: u64, id: u64) {
    let drawn = ledger.draw(test_draw(token, id, InstanceId::new("i"), NOW)).await.unwrap();
    assert!(matches!(drawn, Drawn::Granted(_)), "{drawn:?}");
    let end = DrawEnd::Delivered { answer: None };
    ledger.end_draw(test_pass(token), test_draw_id(id), end, NOW).await.unwrap();
}

async fn pay(ledger: &SqliteLedger, number: u64) {
    let claim = test_claim(number, InstanceId::new("i"), NOW);
    let id = claim.id;
    ledger.claim(claim).await.unwrap();
    let hash = TransactionId::new(format!("0x{number:064x}"));
    let (lane, payment, fate) = (LaneKey::new("lane"), Some(id), TransactionFate::Open);
    let transaction =
        StoredTransaction { hash: hash.clone(), lane, nonce: number, raw: vec![7; 500], payment, fate, stored_at: NOW };
    ledger.store_transaction(transaction).await.unwrap();
    let block = BlockRef { number, hash: [1; 32] };
    ledger.record(id, vec![PaymentEvent::Settled { transaction: hash, block }], NOW).await.unwrap();
    let answer = Some(Answer { status: 200, headers: Vec::new(), body: vec![b'x'; 500] });
    ledger.record(id, vec![PaymentEvent::Delivered { answer }], NOW).await.unwrap();
}

async fn measure<F: Future<Output = ()> + Send + 'static>(
    name: &str,
    callers: u64,
    operations: u64,
    work: impl Fn(u64) -> F + Clone + Send + 'static,
) {
    let (start, cpu) = (Instant::now(), cpu_ticks());
    let mut tasks = tokio::task::JoinSet::new();
    for caller in 0..callers {
        let work = work.clone();
        tasks.spawn(async move {
            for number in (caller..operations).step_by(usize::try_from(callers).unwrap()) {
                work(number).await;
            }
        });
    }
    tasks.join_all().await;
    let seconds = start.elapsed().as_secs_f64();
    // Ticks of 10 ms, the unit of /proc on every Linux that runs today.
    let cpu_us = (cpu_ticks() - cpu) as f64 * 10_000.0 / operations as f64;
    println!("{name}, {callers} callers: {:.0}/s, {cpu_us:.1} us of CPU each", operations as f64 / seconds);
}

/// User and system time of this process.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}
