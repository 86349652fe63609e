//! SIGKILL at every step between a claim and its answer: restarted and asked again by the same proof, the gateway serves once.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::{process::Command, time::Duration};

use farebox_e2e::{Answer, Claim, Fault, Reply, Shop, ShopOptions, Times, Tool, tool};
use futures_util::StreamExt;
use http::Method;
use tokio::task::JoinHandle;

/// Far above what anything here takes, for a machine with ten other things to do.
const SOON: Duration = Duration::from_secs(30);
/// Long after the test.
const NEVER: Duration = Duration::from_secs(600);
const RECEIPT: &str = "eth_getTransactionReceipt";

/// Where the gateway is killed.
#[derive(Clone, Copy)]
enum Step {
    /// While the node is asked for the receipt.
    AsksTheChain,
    /// When the chain has said yes and the claim cannot be written.
    BeforeTheClaim,
    /// While the upstream works.
    UpstreamWorks,
    /// When the upstream has answered and that cannot be written.
    BeforeTheRecord,
    /// Once the first half of a streamed answer has reached the payer.
    HalfSent,
}

#[tokio::test]
async fn killed_while_the_chain_is_asked() {
    check(Step::AsksTheChain, 1).await;
}

#[tokio::test]
async fn killed_before_the_claim_is_written() {
    check(Step::BeforeTheClaim, 1).await;
}

#[tokio::test]
async fn killed_while_the_upstream_works() {
    check(Step::UpstreamWorks, 2).await;
}

#[tokio::test]
async fn killed_when_the_answer_is_there_and_not_recorded() {
    check(Step::BeforeTheRecord, 2).await;
}

#[tokio::test]
async fn killed_in_mid_answer() {
    check(Step::HalfSent, 2).await;
}

/// `runs` is how often the upstream is asked in all, for the payer's one delivery.
async fn check(step: Step, runs: usize) {
    for (path, symbol) in [(Shop::AFTER, "USDC"), (Shop::BEFORE, "ETH")] {
        let mut shop = Shop::open_with(ShopOptions::BOTH).await.unwrap();
        let payer = shop.spender("payer").await.unwrap();
        let claim = shop.buy(&payer, path, symbol).await.unwrap();
        let asked = reach_and_kill(step, &mut shop, &claim).await;
        assert!(asked.await.unwrap().is_err(), "{path}: killed, and yet it answered whole");
        shop.rpc.heal();
        shop.farebox.restart().await.unwrap();
        delivered_once(&shop, &claim, runs).await;
    }
}

/// Sends the claim and kills the gateway at `step` with it.
async fn reach_and_kill(step: Step, shop: &mut Shop, claim: &Claim) -> JoinHandle<reqwest::Result<()>> {
    match step {
        Step::AsksTheChain | Step::BeforeTheClaim => {
            let before = shop.rpc.calls(RECEIPT).len();
            shop.rpc.fail(RECEIPT, Times::Always, Fault::HoldAnswer);
            let asked = ask(shop, claim);
            shop.rpc.wait_for_calls(RECEIPT, before + 1, SOON).await.unwrap();
            if matches!(step, Step::BeforeTheClaim) {
                let lock = shop.lock_books().await.unwrap();
                shop.rpc.heal();
                shop.rpc.release(10);
                kill_at_the_lock(shop).await;
                drop(lock);
            } else {
                shop.farebox.kill_9().unwrap();
            }
            asked
        }
        Step::UpstreamWorks | Step::BeforeTheRecord => {
            shop.echo.answer_next(Answer::Held);
            let asked = ask(shop, claim);
            shop.echo.wait_for_hits(1, SOON).await.unwrap();
            if matches!(step, Step::BeforeTheRecord) {
                let lock = shop.lock_books().await.unwrap();
                shop.echo.release(1);
                kill_at_the_lock(shop).await;
                drop(lock);
            } else {
                shop.farebox.kill_9().unwrap();
            }
            asked
        }
        Step::HalfSent => {
            shop.echo.answer_next(Answer::Pieces {
                content_type: "text/event-stream",
                pieces: vec!["data: one\n\n", "data: two\n\n"],
                pause: NEVER,
            });
            let answer = shop.claim_request(Method::GET, claim).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            let mut body = answer.bytes_stream();
            assert_eq!(body.next().await.unwrap().unwrap(), "data: one\n\n");
            shop.farebox.kill_9().unwrap();
            tokio::spawn(async move { body.next().await.map_or(Ok(()), |rest| rest.map(drop)) })
        }
    }
}

/// Sends the claim in a task of its own. An answer that comes whole is `Ok`.
fn ask(shop: &Shop, claim: &Claim) -> JoinHandle<reqwest::Result<()>> {
    let request = shop.claim_request(Method::GET, claim);
    tokio::spawn(async move { request.send().await?.bytes().await.map(drop) })
}

/// Kills the gateway while the lock keeps it from writing. The pause only makes it likely that it has come to that, and what must
/// follow is the same if it has not.
async fn kill_at_the_lock(shop: &mut Shop) {
    tokio::time::sleep(Duration::from_millis(200)).await;
    shop.farebox.kill_9().unwrap();
}

async fn delivered_once(shop: &Shop, claim: &Claim, runs: usize) {
    let reply = shop.insist_on(claim, SOON).await.unwrap();
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(!reply.is_replay(), "nobody has had this answer before: {reply:?}");
    assert_eq!(shop.echo.hits(), runs, "{}", claim.path);
    replayed(shop, claim, &reply).await;
    let audit = shop.audit().await.unwrap();
    assert_eq!((audit.payments.len(), audit.in_state("settled").count()), (1, 1), "{:#?}", audit.payments);
    assert_eq!(audit.payments[0]["delivery"], "delivered");
}

/// The same claim again: the same answer, from the books, without a run.
async fn replayed(shop: &Shop, claim: &Claim, first: &Reply) {
    let runs = shop.echo.hits();
    let again = shop.claim(claim).await.unwrap();
    assert!(again.status == 200 && again.is_replay(), "{again:?}");
    assert_eq!((&again.body, again.receipt()), (&first.body, first.receipt()));
    assert_eq!(shop.echo.hits(), runs);
}

#[tokio::test]
async fn killed_after_delivery_it_answers_from_the_books() {
    let mut shop = Shop::open_with(ShopOptions::TRANSFERS).await.unwrap();
    let payer = shop.spender("payer").await.unwrap();
    let claim = shop.buy(&payer, Shop::AFTER, "USDC").await.unwrap();
    let first = shop.claim(&claim).await.unwrap();
    assert_eq!(first.status, 200, "{first:?}");
    for _ in 0..3 {
        shop.farebox.restart().await.unwrap();
        replayed(&shop, &claim, &first).await;
    }
    assert_eq!(shop.audit().await.unwrap().payments.len(), 1);
}

#[tokio::test]
async fn books_that_cannot_be_read_or_written_are_503_and_no_bill() {
    let mut shop = Shop::open_with(ShopOptions::TRANSFERS).await.unwrap();
    let payer = shop.spender("payer").await.unwrap();
    let claim = shop.buy(&payer, Shop::AFTER, "USDC").await.unwrap();
    let lock = shop.lock_books().await.unwrap();
    let reply = shop.claim(&claim).await.unwrap();
    assert_eq!((reply.status, reply.is_bill()), (503, false), "{reply:?}");
    assert_eq!(reply.problem()["retry"], "same_proof", "{reply:?}");
    drop(lock);
    let served = shop.insist_on(&claim, SOON).await.unwrap();
    assert_eq!(served.status, 200, "{served:?}");
    assert_eq!((shop.echo.hits(), shop.audit().await.unwrap().payments.len()), (1, 1));
    assert!(shop.farebox.process().ended().unwrap().is_none());
}

#[tokio::test]
async fn an_entry_of_the_audit_log_that_is_altered_by_one_byte_shows() {
    let mut shop = Shop::open_with(ShopOptions::TRANSFERS).await.unwrap();
    let payer = shop.spender("payer").await.unwrap();
    for _ in 0..3 {
        let claim = shop.buy(&payer, Shop::AFTER, "USDC").await.unwrap();
        assert_eq!(shop.claim(&claim).await.unwrap().status, 200);
    }
    let (whole, said) = shop.verify_audit_log().await.unwrap();
    assert!(whole, "{said}");
    let second = shop.audit_log().await.unwrap()[1].clone();
    shop.farebox.process().signal("TERM").unwrap();
    assert_eq!(shop.farebox.process().wait(SOON).await.unwrap().code(), Some(0));

    let file = shop.farebox.setup().dir().join("farebox.db");
    // What is still in the log of writes has checksums of its own.
    let checkpoint =
        "import sqlite3\nsqlite3.connect('farebox.db').execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchall()";
    let mut python = Command::new(tool(Tool::Python).unwrap());
    let python = python.args(["-c", checkpoint]).current_dir(shop.farebox.setup().dir());
    assert!(python.status().unwrap().success());
    let books = std::fs::read(&file).unwrap();
    let time = second["time"].as_str().unwrap();
    let at = books.windows(time.len()).position(|window| window == time.as_bytes());
    let mut altered = books.clone();
    // The last digit of the milliseconds.
    let digit = &mut altered[at.expect("the entry is in the file") + time.len() - 2];
    *digit = if *digit == b'9' { b'0' } else { *digit + 1 };
    std::fs::write(&file, altered).unwrap();
    let (whole, said) = shop.verify_audit_log().await.unwrap();
    assert!(!whole, "{said}");
    assert!(said.contains('2') || said.contains('3'), "which entry: {said}");
    std::fs::write(&file, books).unwrap();
    assert!(shop.verify_audit_log().await.unwrap().0);
}
