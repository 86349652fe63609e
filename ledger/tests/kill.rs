//! What was acknowledged outlives `kill -9`.
#![expect(clippy::unwrap_used, reason = "a test; a panic is how it reports")]

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use farebox_core::{
    AuditLine, BlockRef, Claimed, InstanceId, LaneKey, PaymentEvent, PaymentId, PaymentState, StoredTransaction,
    Timestamp, TransactionFate, TransactionId,
    ports::{Ledger as _, PaymentFilter, TransactionStore as _},
    verify_audit,
};
use farebox_ledger::{SqliteLedger, SqliteOptions};
use farebox_testkit::test_claim;

const NOW: Timestamp = Timestamp::from_unix_s(1_800_000_000);
const ROUNDS: u64 = 8;

fn open(path: &Path, instance: &str) -> SqliteLedger {
    let options = SqliteOptions {
        instance: InstanceId::new(instance),
        answers_kept_for: Duration::from_secs(60),
        audit_file: Some(audit_file(path)),
    };
    SqliteLedger::open(path, options, NOW).unwrap()
}

fn audit_file(path: &Path) -> PathBuf {
    path.with_extension("jsonl")
}

#[tokio::test]
async fn acknowledged_writes_outlive_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("farebox.db");
    let mut acknowledged: BTreeMap<PaymentId, (u64, PaymentState)> = BTreeMap::new();
    for round in 0..ROUNDS {
        let millis = 1 + rand_millis();
        for (number, id, state) in run_and_kill(&path, round, millis) {
            let known = acknowledged.insert(id, (number, state));
            assert!(known.is_none_or(|(before, _)| before == number), "round {round}, {millis} ms: {id} claimed twice");
        }
        let ledger = open(&path, &format!("check-{round}"));
        let mut reached_by_rows = BTreeMap::new();
        for (id, (number, state)) in &acknowledged {
            let credential = test_claim(*number, InstanceId::new("x"), NOW).credential;
            let found = ledger.find(credential.digest()).await.unwrap();
            let found = found.unwrap_or_else(|| panic!("round {round}, {millis} ms: payment {id} is lost"));
            // It may have got further than we were told, never less far.
            let reached = |s| PaymentState::ALL.iter().position(|known| *known == s);
            assert!(found.id == *id && reached(found.state) >= reached(*state), "round {round}: {found:?}, {state:?}");
            let stored = ledger.transactions_of(*id).await.unwrap().len();
            assert_eq!(stored, usize::from(found.state != PaymentState::Claimed), "round {round}: {found:?}");
            reached_by_rows.insert(id.to_string(), found.state);
        }
        // One line for each write of a row, whether its caller was told of it or not.
        let log = whole_log(&ledger).await;
        let mut lines: BTreeMap<String, usize> = BTreeMap::new();
        for line in &log {
            let line: serde_json::Value = serde_json::from_str(&line.text).unwrap();
            *lines.entry(line["payment"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        for (id, state) in reached_by_rows {
            let writes = [PaymentState::Claimed, PaymentState::Settling, PaymentState::Settled];
            let writes = 1 + writes.iter().position(|known| *known == state).unwrap();
            assert_eq!(lines.get(&id), Some(&writes), "round {round}: {id}, {state:?}");
        }
        let filter = PaymentFilter { state: Some(PaymentState::Void), ..PaymentFilter::default() };
        assert_eq!(ledger.list(&filter).await.unwrap(), []);
        drop(ledger);
        let expected: String = log.into_iter().map(|line| line.text + "\n").collect();
        let copied = std::fs::read_to_string(audit_file(&path)).unwrap();
        assert!(copied == expected, "round {round}: the copy has {} bytes, not {}", copied.len(), expected.len());
    }
    assert!(acknowledged.len() > 100, "only {} payments: the test is too short to say anything", acknowledged.len());
}

async fn whole_log(ledger: &SqliteLedger) -> Vec<AuditLine> {
    let mut log: Vec<AuditLine> = Vec::new();
    loop {
        let page = ledger.audit_lines(log.last().map_or(0, |line| line.sequence), 1_000).await.unwrap();
        if page.is_empty() {
            return log;
        }
        verify_audit(log.last().cloned(), page.clone()).unwrap();
        log.extend(page);
    }
}

/// Any time up to the length of a few commits.
fn rand_millis() -> u64 {
    let mut seed = [0u8; 1];
    std::fs::File::open("/dev/urandom").and_then(|mut f| std::io::Read::read_exact(&mut f, &mut seed)).unwrap();
    u64::from(seed[0])
}

/// What the child told before it was killed: number, payment and state of each acknowledged write.
fn run_and_kill(path: &Path, round: u64, millis: u64) -> Vec<(u64, PaymentId, PaymentState)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_process_that_is_killed", "--ignored", "--nocapture"])
        .env("FAREBOX_TEST_LEDGER", path)
        .env("FAREBOX_TEST_ROUND", round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n');
    let mut told = Vec::new();
    let mut read = |line: Vec<u8>| {
        let line = String::from_utf8(line).unwrap();
        let mut words = line.split(' ');
        let (Some("ack"), Some(number), Some(id), Some(state), Some(".")) =
            (words.next(), words.next(), words.next(), words.next(), words.next())
        else {
            return false;
        };
        let state = PaymentState::ALL.into_iter().find(|known| known.as_str() == state).unwrap();
        told.push((number.parse().unwrap(), id.parse().unwrap(), state));
        true
    };
    while !read(lines.next().unwrap().unwrap()) {}
    std::thread::sleep(Duration::from_millis(millis));
    child.kill().unwrap();
    child.wait().unwrap();
    for line in lines {
        read(line.unwrap());
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of acknowledged_writes_outlive_the_process; never ends by itself"]
#[expect(clippy::disallowed_methods, reason = "how a test hands arguments to itself as a child process")]
async fn the_process_that_is_killed() {
    let (Some(path), Ok(round)) = (std::env::var_os("FAREBOX_TEST_LEDGER"), std::env::var("FAREBOX_TEST_ROUND")) else {
        return;
    };
    let ledger = Arc::new(open(&PathBuf::from(path), &format!("child-{round}")));
    let next = Arc::new(AtomicU64::new(round.parse::<u64>().unwrap() * 1_000_000));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (ledger, next, holder) = (ledger.clone(), next.clone(), InstanceId::new(format!("child-{round}")));
        tasks.spawn(async move {
            loop {
                pay(&ledger, next.fetch_add(1, Ordering::Relaxed), holder.clone()).await;
            }
        });
    }
    tasks.join_all().await;
}

async fn pay(ledger: &SqliteLedger, number: u64, holder: InstanceId) {
    let Claimed::Granted(permit) = ledger.claim(test_claim(number, holder, NOW)).await.unwrap() else {
        panic!("{number} was not granted")
    };
    let id = permit.into_payment().id;
    acknowledge(number, id, PaymentState::Claimed);
    let hash = TransactionId::new(format!("0x{number:064x}"));
    let lane = LaneKey::new("lane");
    let (payment, fate) = (Some(id), TransactionFate::Open);
    let transaction =
        StoredTransaction { hash: hash.clone(), lane, nonce: number, raw: vec![7; 300], payment, fate, stored_at: NOW };
    ledger.store_transaction(transaction).await.unwrap();
    acknowledge(number, id, PaymentState::Settling);
    let block = BlockRef { number, hash: [1; 32] };
    ledger.record(id, vec![PaymentEvent::Settled { transaction: hash, block }], NOW).await.unwrap();
    acknowledge(number, id, PaymentState::Settled);
}

/// One whole line in one write; the full stop tells it from one that was cut off.
fn acknowledge(number: u64, id: PaymentId, state: PaymentState) {
    let line = format!("ack {number} {id} {} .\n", state.as_str());
    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
}
