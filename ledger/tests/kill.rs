//! What was acknowledged outlives `kill -9`.
#![expect(clippy::unwrap_used, reason = "a test; a panic is how it reports")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Write as _},
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use farebox_core::{
    AuditLine, BlockRef, Claimed, DrawEnd, Drawn, Grant, InstanceId, LaneKey, PaymentEvent, PaymentId, PaymentState,
    StoredTransaction, Timestamp, TransactionFate, TransactionId,
    ports::{Ledger as _, PaymentFilter, TokenBooks as _, TokenFilter, TransactionStore as _},
    verify_audit,
};
use farebox_ledger::{SqliteLedger, SqliteOptions, revoke_token};
use farebox_testkit::{test_claim, test_draw, test_draw_id, test_pass, test_token};

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
        for words in run_and_kill("the_process_that_is_killed", &path, round, millis) {
            let (number, id, state) = written(&words);
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

/// What the child `test` told before it was killed: the words of each acknowledged write.
fn run_and_kill(test: &str, path: &Path, round: u64, millis: u64) -> Vec<Vec<String>> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("FAREBOX_TEST_LEDGER", path)
        .env("FAREBOX_TEST_ROUND", round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n');
    let mut told = Vec::new();
    let mut read = |line: Vec<u8>| {
        let line = String::from_utf8(line).unwrap();
        let words = line.strip_prefix("ack ").and_then(|line| line.strip_suffix(" ."));
        told.extend(words.map(|words| words.split(' ').map(str::to_owned).collect::<Vec<_>>()));
        words.is_some()
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

/// Number, payment and state of an acknowledged write.
fn written(words: &[String]) -> (u64, PaymentId, PaymentState) {
    let [number, id, state] = words else { panic!("{words:?}") };
    let state = PaymentState::ALL.into_iter().find(|known| known.as_str() == state).unwrap();
    (number.parse().unwrap(), id.parse().unwrap(), state)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of acknowledged_writes_outlive_the_process; never ends by itself"]
async fn the_process_that_is_killed() {
    let Some((path, round)) = argued() else { return };
    let ledger = Arc::new(open(&path, &format!("child-{round}")));
    let next = Arc::new(AtomicU64::new(round * 1_000_000));
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
    tell(&format!("{number} {id} {}", state.as_str()));
}

fn tell(words: &str) {
    std::io::stdout().lock().write_all(format!("ack {words} .\n").as_bytes()).unwrap();
}

#[tokio::test]
async fn calls_are_taken_and_given_back_exactly_whenever_the_process_dies() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("farebox.db");
    let mut made: BTreeMap<u64, u32> = BTreeMap::new();
    let mut calls = 0;
    for round in 0..ROUNDS {
        let millis = 1 + rand_millis();
        // What the books said of each token, and what is known to have been done since.
        let (mut sold, mut taken, mut delivered) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for words in run_and_kill("the_seller_that_is_killed", &path, round, millis) {
            let number: u64 = words[1].parse().unwrap();
            match &*words[0] {
                "sold" => sold.push(number),
                "taken" => *taken.entry(number).or_default() += 1_u32,
                "delivered" => *delivered.entry(number).or_default() += 1_u32,
                other => panic!("{other}"),
            }
        }
        let ledger = open(&path, &format!("check-{round}"));
        for number in sold {
            assert!(ledger.token(test_pass(number)).await.unwrap().is_some(), "round {round}: token {number} is lost");
        }
        for token in ledger.tokens(&TokenFilter { limit: 1_000, ..TokenFilter::default() }).await.unwrap() {
            let number = u64::from_be_bytes(*token.sold.pass.0.last_chunk().unwrap());
            let before = made.get(&number).copied().unwrap_or_default();
            let of = |counts: &BTreeMap<u64, u32>| counts.get(&number).copied().unwrap_or_default();
            let (told, ended) = (of(&taken), of(&delivered));
            // Each of the child's tasks has a pass of its own, and may have ended one call whose end it could not tell.
            let now = token.used - before;
            assert!(
                (ended..=ended + 1).contains(&now),
                "round {round}: token {number} made {now} calls, {ended} ended"
            );
            assert!(told == 0 || token.payment.is_some(), "round {round}: a payment is lost");
            made.insert(number, token.used);
            calls += now;
        }
        let listed = ledger.list(&PaymentFilter { limit: 1_000, ..PaymentFilter::default() }).await.unwrap();
        let log = whole_log(&ledger).await;
        let settled = log.iter().filter(|line| line.text.contains("\"outcome\":\"settled\"")).count();
        assert_eq!(settled, listed.len(), "round {round}: one line for each payment");
    }
    assert!(calls > 100, "only {calls} calls: the test is too short to say anything");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child of calls_are_taken_and_given_back_exactly_whenever_the_process_dies; never ends by itself"]
async fn the_seller_that_is_killed() {
    let Some((path, round)) = argued() else { return };
    let ledger = Arc::new(open(&path, &format!("child-{round}")));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..8 {
        let (ledger, holder) = (ledger.clone(), InstanceId::new(format!("child-{round}")));
        tasks.spawn(async move {
            let grant = Grant::Calls(NonZeroU32::MAX);
            ledger.sell(test_token(number, grant, NOW)).await.unwrap();
            tell(&format!("sold {number}"));
            for id in 0_u64.. {
                let id = (round * 8 + number) * 1_000_000 + id;
                let drawn = ledger.draw(test_draw(number, id, holder.clone(), NOW)).await.unwrap();
                assert!(matches!(drawn, Drawn::Granted(_)), "{drawn:?}");
                tell(&format!("taken {number}"));
                let end = if id % 3 == 0 { DrawEnd::Returned } else { DrawEnd::Delivered { answer: None } };
                let made = matches!(end, DrawEnd::Delivered { .. });
                ledger.end_draw(test_pass(number), test_draw_id(id), end, NOW).await.unwrap();
                if made {
                    tell(&format!("delivered {number}"));
                }
            }
        });
    }
    tasks.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_who_dies_while_revoking_harms_no_gateway() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("farebox.db");
    let ledger = Arc::new(open(&path, "gateway"));
    for number in 0..TO_REVOKE {
        ledger.sell(test_token(number, Grant::Calls(NonZeroU32::MAX), NOW)).await.unwrap();
    }
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let gateway = tokio::spawn({
        let (ledger, done) = (ledger.clone(), done.clone());
        async move {
            let mut refused: BTreeSet<u64> = BTreeSet::new();
            for id in 0_u64.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let number = id % TO_REVOKE;
                let drawn = ledger.draw(test_draw(number, id, InstanceId::new("gateway"), NOW)).await.unwrap();
                match drawn {
                    Drawn::Granted(_) => assert!(!refused.contains(&number), "{number} is good again"),
                    Drawn::Revoked => drop(refused.insert(number)),
                    other => panic!("{other:?}"),
                }
            }
        }
    });
    let mut revoked = 0;
    for round in 0..ROUNDS {
        let millis = 1 + rand_millis() / 4;
        let (child, ledger_path) = ("the_operator_that_is_killed", path.clone());
        let told = tokio::task::spawn_blocking(move || run_and_kill(child, &ledger_path, round, millis)).await.unwrap();
        for words in told {
            let number: u64 = words[0].parse().unwrap();
            let id = u64::MAX - number;
            let drawn = ledger.draw(test_draw(number, id, InstanceId::new("gateway"), NOW)).await.unwrap();
            assert!(matches!(drawn, Drawn::Revoked), "round {round}, {millis} ms: {number} is {drawn:?}");
            revoked += 1;
        }
    }
    done.store(true, Ordering::Relaxed);
    gateway.await.unwrap();
    assert!(revoked > 20, "only {revoked}");
    let lines = whole_log(&ledger).await;
    let gone = ledger.tokens(&TokenFilter { limit: 1_000, ..TokenFilter::default() }).await.unwrap();
    let gone = gone.iter().filter(|token| token.revoked_at.is_some()).count();
    assert_eq!(lines.iter().filter(|line| line.text.contains("\"outcome\":\"revoked\"")).count(), gone);
}

const TO_REVOKE: u64 = 900;

#[test]
#[ignore = "the child of an_operator_who_dies_while_revoking_harms_no_gateway; never ends by itself"]
fn the_operator_that_is_killed() {
    let Some((path, round)) = argued() else { return };
    let of_round = TO_REVOKE / ROUNDS;
    for number in (round * of_round..).take(usize::try_from(of_round).unwrap()) {
        assert!(revoke_token(&path, test_pass(number), NOW).unwrap().is_some());
        tell(&number.to_string());
    }
    loop {
        std::thread::park();
    }
}

/// The ledger and the round that the parent names.
#[expect(clippy::disallowed_methods, reason = "how a test hands arguments to itself as a child process")]
fn argued() -> Option<(PathBuf, u64)> {
    let path = std::env::var_os("FAREBOX_TEST_LEDGER")?;
    Some((path.into(), std::env::var("FAREBOX_TEST_ROUND").ok()?.parse().ok()?))
}
