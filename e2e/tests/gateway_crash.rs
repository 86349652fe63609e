//! SIGKILL at every step of a paid request, on a real node: restarted and asked again by the identical bytes, the gateway has charged
//! once and delivers once.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::time::Duration;

use farebox_e2e::{Answer, Audit, Fault, Paid, Reply, Shop, ShopOptions, Times};
use futures_util::StreamExt;
use serde_json::Value;
use tokio::task::JoinHandle;

/// Far above what anything here takes, for a machine with ten other things to do.
const SOON: Duration = Duration::from_secs(30);
/// Long after the test.
const NEVER: Duration = Duration::from_secs(600);
/// What a node says that does not have a method.
const UNKNOWN_METHOD: Fault = Fault::Error { code: -32601, message: "the method does not exist" };

const SEND: &str = "eth_sendRawTransaction";
const SEND_SYNC: &str = "eth_sendRawTransactionSync";
const RECEIPT: &str = "eth_getTransactionReceipt";

/// Where the gateway is killed.
enum Step {
    /// While it waits for the node's answer to a call of this method.
    Asking(&'static str, Fault),
    /// The same with a node that cannot send and wait at once, so that receipts are asked for.
    Polling(&'static str, Fault),
    /// While the upstream works.
    UpstreamWorks,
    /// Once the first half of a streamed answer has reached the payer.
    HalfSent,
}

/// Upstream runs that the payer's one delivery takes, by when the route settles.
struct Runs {
    after: usize,
    before: usize,
}

#[tokio::test]
async fn killed_while_the_payment_is_simulated() {
    check(Step::Asking("eth_call", Fault::HoldAnswer), Runs { after: 1, before: 1 }).await;
}

#[tokio::test]
async fn killed_while_the_upstream_works() {
    check(Step::UpstreamWorks, Runs { after: 2, before: 2 }).await;
}

#[tokio::test]
async fn killed_before_anything_is_signed() {
    check(Step::Asking("eth_feeHistory", Fault::HoldAnswer), Runs { after: 2, before: 1 }).await;
}

#[tokio::test]
async fn killed_when_signed_and_stored_and_not_broadcast() {
    check(Step::Asking(SEND_SYNC, Fault::Delay(NEVER)), Runs { after: 2, before: 1 }).await;
    check(Step::Polling(SEND, Fault::Delay(NEVER)), Runs { after: 2, before: 1 }).await;
}

#[tokio::test]
async fn killed_when_mined_and_not_told() {
    check(Step::Asking(SEND_SYNC, Fault::HoldAnswer), Runs { after: 2, before: 1 }).await;
    check(Step::Polling(SEND, Fault::HoldAnswer), Runs { after: 2, before: 1 }).await;
}

#[tokio::test]
async fn killed_while_it_waits_for_the_receipt() {
    check(Step::Polling(RECEIPT, Fault::HoldAnswer), Runs { after: 2, before: 1 }).await;
}

#[tokio::test]
async fn killed_in_mid_answer() {
    check(Step::HalfSent, Runs { after: 2, before: 2 }).await;
}

async fn check(step: Step, runs: Runs) {
    for (path, runs) in [(Shop::AFTER, runs.after), (Shop::BEFORE, runs.before)] {
        let mut shop = Shop::open().await.unwrap();
        let payer = shop.payer("payer").await.unwrap();
        let paid = shop.sign(&payer, path, "once").await.unwrap();

        let asked = reach(&step, &shop, &paid).await;
        shop.farebox.kill_9().unwrap();
        assert!(asked.await.unwrap().is_err(), "{path}: killed, and yet it answered whole");
        shop.rpc.heal();
        shop.farebox.restart().await.unwrap();
        delivered_once(&shop, &paid, runs).await;
    }
}

/// Sends the request and waits until the gateway is at `step` with it.
async fn reach(step: &Step, shop: &Shop, paid: &Paid) -> JoinHandle<reqwest::Result<()>> {
    match step {
        Step::Asking(method, fault) => {
            let before = shop.rpc.calls(method).len();
            shop.rpc.fail(method, Times::Always, fault.clone());
            let asked = ask(shop, paid);
            shop.rpc.wait_for_calls(method, before + 1, SOON).await.unwrap();
            asked
        }
        Step::Polling(method, fault) => {
            shop.rpc.fail(SEND_SYNC, Times::Always, UNKNOWN_METHOD);
            let before = shop.rpc.calls(method).len();
            shop.rpc.fail(method, Times::Always, fault.clone());
            let asked = ask(shop, paid);
            shop.rpc.wait_for_calls(method, before + 1, SOON).await.unwrap();
            asked
        }
        Step::UpstreamWorks => {
            shop.echo.answer_next(Answer::Held);
            let asked = ask(shop, paid);
            shop.echo.wait_for_hits(1, SOON).await.unwrap();
            asked
        }
        Step::HalfSent => {
            shop.echo.answer_next(Answer::Pieces {
                content_type: "text/event-stream",
                pieces: vec!["data: one\n\n", "data: two\n\n"],
                pause: NEVER,
            });
            let answer = shop.request(paid).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            let mut body = answer.bytes_stream();
            assert_eq!(body.next().await.unwrap().unwrap(), "data: one\n\n");
            tokio::spawn(async move { body.next().await.map_or(Ok(()), |rest| rest.map(drop)) })
        }
    }
}

/// Sends the request in a task of its own. An answer that comes whole is `Ok`.
fn ask(shop: &Shop, paid: &Paid) -> JoinHandle<reqwest::Result<()>> {
    let request = shop.request(paid);
    tokio::spawn(async move { request.send().await?.bytes().await.map(drop) })
}

/// The payer gets one answer of the upstream, and then the same again from the books; the chain has one transfer, the books one
/// payment that says so.
async fn delivered_once(shop: &Shop, paid: &Paid, runs: usize) -> Audit {
    let reply = shop.insist(paid, SOON).await.unwrap();
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(!reply.is_replay(), "nobody has had this answer before: {reply:?}");
    assert_eq!(echoed_path(&reply), paid.path);
    assert_eq!(shop.echo.hits(), runs, "{}", paid.path);
    replayed(shop, paid, &reply).await;

    let audit = shop.audit().await.unwrap();
    let settled: Vec<&Value> = audit.in_state("settled").collect();
    assert_eq!((settled.len(), audit.transfers.len(), audit.relayed), (1, 1, 1), "{:#?}", audit.payments);
    assert_eq!(settled[0]["delivery"], "delivered");
    assert_eq!(reply.receipt().unwrap()["transaction"], settled[0]["transaction"]);
    assert!(audit.payments.iter().all(|payment| *payment == *settled[0] || payment["state"] == "void"));
    audit
}

/// The same bytes again: the same answer, from the books, with no run and no charge.
async fn replayed(shop: &Shop, paid: &Paid, first: &Reply) {
    let runs = shop.echo.hits();
    let again = shop.send(paid).await.unwrap();
    assert!(again.status == 200 && again.is_replay(), "{again:?}");
    assert_eq!((&again.body, again.receipt()), (&first.body, first.receipt()));
    assert_eq!(shop.echo.hits(), runs);
}

fn echoed_path(reply: &Reply) -> String {
    serde_json::from_slice::<Value>(&reply.body).unwrap()["path"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn killed_after_delivery_it_answers_from_the_books() {
    for path in [Shop::AFTER, Shop::BEFORE] {
        let mut shop = Shop::open().await.unwrap();
        let payer = shop.payer("payer").await.unwrap();
        let paid = shop.sign(&payer, path, "once").await.unwrap();
        let first = shop.send(&paid).await.unwrap();
        assert_eq!(first.status, 200, "{first:?}");
        shop.farebox.kill_9().unwrap();
        shop.farebox.restart().await.unwrap();
        replayed(&shop, &paid, &first).await;
        let audit = shop.audit().await.unwrap();
        assert_eq!((audit.payments.len(), audit.transfers.len(), audit.relayed), (1, 1, 1));
    }
}

#[tokio::test]
async fn killed_twice_while_the_transaction_is_unmined() {
    for (path, runs) in [(Shop::AFTER, 2), (Shop::BEFORE, 1)] {
        let mut shop = Shop::open().await.unwrap();
        let payer = shop.payer("payer").await.unwrap();
        let paid = shop.sign(&payer, path, "once").await.unwrap();
        shop.anvil.hold_blocks().await.unwrap();

        let asked = ask(&shop, &paid);
        shop.wait_for_pool(1, SOON).await.unwrap();
        shop.farebox.kill_9().unwrap();
        assert!(asked.await.unwrap().is_err());

        shop.farebox.restart().await.unwrap();
        let unclear = shop.send(&paid).await.unwrap();
        assert_eq!(unclear.status, 503, "{unclear:?}");
        assert!(!unclear.is_bill(), "{unclear:?}");
        let hash = shop.payments().await.unwrap()[0]["transaction"].clone();
        assert_eq!(unclear.receipt().unwrap()["transaction"], hash);
        shop.farebox.restart().await.unwrap();

        shop.anvil.mine_at_once().await.unwrap();
        let audit = delivered_once(&shop, &paid, runs).await;
        assert_eq!(audit.payments[0]["transaction"], hash);
    }
}

#[tokio::test]
async fn killed_before_the_claim_is_written() {
    for path in [Shop::AFTER, Shop::BEFORE] {
        let mut shop = Shop::open().await.unwrap();
        let payer = shop.payer("payer").await.unwrap();
        let paid = shop.sign(&payer, path, "once").await.unwrap();
        let asked = reach(&Step::Asking("eth_call", Fault::HoldAnswer), &shop, &paid).await;
        let lock = shop.lock_books().await.unwrap();
        shop.rpc.release(1);
        kill_at_the_lock(&mut shop).await;
        assert!(asked.await.unwrap().is_err());
        drop(lock);
        shop.rpc.heal();
        shop.farebox.restart().await.unwrap();
        delivered_once(&shop, &paid, 1).await;
    }
}

#[tokio::test]
async fn killed_when_settled_on_the_chain_and_not_in_the_books() {
    for (path, runs) in [(Shop::AFTER, 2), (Shop::BEFORE, 1)] {
        let mut shop = Shop::open().await.unwrap();
        let payer = shop.payer("payer").await.unwrap();
        let paid = shop.sign(&payer, path, "once").await.unwrap();
        let asked = reach(&Step::Asking(SEND_SYNC, Fault::HoldAnswer), &shop, &paid).await;
        let lock = shop.lock_books().await.unwrap();
        shop.rpc.release(1);
        kill_at_the_lock(&mut shop).await;
        assert!(asked.await.unwrap().is_err());
        drop(lock);
        assert_eq!(shop.payments().await.unwrap()[0]["state"], "settling");
        assert_eq!(shop.transfers().await.unwrap().len(), 1);
        shop.rpc.heal();
        shop.farebox.restart().await.unwrap();
        delivered_once(&shop, &paid, runs).await;
    }
}

#[tokio::test]
async fn a_paid_request_is_finished_after_sigterm() {
    for path in [Shop::AFTER, Shop::BEFORE] {
        let mut shop =
            Shop::open_with(ShopOptions { top: "log.format = \"json\"", ..Default::default() }).await.unwrap();
        let payer = shop.payer("payer").await.unwrap();
        let paid = shop.sign(&payer, path, "once").await.unwrap();
        shop.echo.answer_next(Answer::Held);
        let asked = tokio::spawn(shop.request(&paid).send());
        shop.echo.wait_for_hits(1, SOON).await.unwrap();

        let process = shop.farebox.process();
        process.signal("TERM").unwrap();
        process.wait_for_line(SOON, |line| line.contains("\"stopping").then_some(())).await.unwrap();
        shop.echo.release(1);
        let reply = Reply::read(asked.await.unwrap().unwrap()).await.unwrap();
        assert_eq!((reply.status, echoed_path(&reply)), (200, path.to_owned()), "{reply:?}");
        assert_eq!(reply.receipt().unwrap()["success"], true);
        assert_eq!(shop.farebox.process().wait(SOON).await.unwrap().code(), Some(0));

        shop.farebox.restart().await.unwrap();
        replayed(&shop, &paid, &reply).await;
        let audit = shop.audit().await.unwrap();
        assert_eq!((audit.payments.len(), audit.transfers.len(), audit.relayed), (1, 1, 1));
    }
}

/// Kills the gateway while the lock keeps it from writing. It waits for the lock for some seconds; the pause only makes it
/// likely that it has come to that, and what must follow is the same if it has not.
async fn kill_at_the_lock(shop: &mut Shop) {
    tokio::time::sleep(Duration::from_millis(200)).await;
    shop.farebox.kill_9().unwrap();
}
