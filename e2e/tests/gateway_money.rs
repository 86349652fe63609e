//! What users of such systems lose money on, tried on the binary with a real node: after every case the books are what the chain says.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::{process::Command, time::Duration};

use alloy::primitives::U256;
use base64::{Engine, prelude::BASE64_STANDARD};
use farebox_e2e::{Account, Answer, Fault, ForeignClient, Job, Paid, Reply, Shop, ShopOptions, Times};
use futures_util::future::join_all;
use serde_json::{Value, json};

/// Far above what anything here takes, for a machine with ten other things to do.
const SOON: Duration = Duration::from_secs(30);
const SEND: &str = "eth_sendRawTransaction";
const SEND_SYNC: &str = "eth_sendRawTransactionSync";
const RECEIPT: &str = "eth_getTransactionReceipt";
/// What a node says that does not have a method.
const UNKNOWN_METHOD: Fault = Fault::Error { code: -32601, message: "the method does not exist" };
/// Does not wait long for what a test holds back.
const HASTY: ShopOptions = ShopOptions { chain: "settle_timeout = \"1s\"\nbump_after = \"1s\"", ..ShopOptions::X402 };

#[tokio::test]
async fn a_settlement_that_is_not_mined_in_time_is_no_new_bill_and_ends_in_one_charge() {
    for path in [Shop::AFTER, Shop::BEFORE] {
        let shop = Shop::open_with(ShopOptions { chain: "settle_timeout = \"1s\"", ..HASTY }).await.unwrap();
        let paid = sign_once(&shop, path).await;
        shop.anvil.hold_blocks().await.unwrap();
        let hash = unclear(&shop.send(&paid).await.unwrap());
        assert_eq!(unclear(&shop.send(&paid).await.unwrap()), hash);
        shop.anvil.mine_at_once().await.unwrap();
        let reply = shop.insist(&paid, SOON).await.unwrap();
        assert_eq!((reply.status, &reply.receipt().unwrap()["transaction"]), (200, &hash), "{reply:?}");
        charged_once(&shop).await;
    }
}

#[tokio::test]
async fn a_broadcast_whose_answers_are_lost_is_no_new_bill_and_ends_in_one_charge() {
    for path in [Shop::AFTER, Shop::BEFORE] {
        let shop = Shop::open_with(HASTY).await.unwrap();
        let paid = sign_once(&shop, path).await;
        for method in [SEND_SYNC, SEND, RECEIPT] {
            shop.rpc.fail(method, Times::Always, Fault::DropAnswer);
        }
        let hash = unclear(&shop.send(&paid).await.unwrap());
        assert_eq!(json!(shop.transfers().await.unwrap()[0].0), hash, "it was mined all the same");
        shop.rpc.heal();
        let reply = shop.insist(&paid, SOON).await.unwrap();
        assert_eq!((reply.status, &reply.receipt().unwrap()["transaction"]), (200, &hash), "{reply:?}");
        charged_once(&shop).await;
    }
}

/// The transaction that a 503 `settlement_pending` names.
fn unclear(reply: &Reply) -> Value {
    assert_eq!((reply.status, &reply.problem()["code"]), (503, &json!("settlement_pending")), "{reply:?}");
    assert_eq!((&reply.problem()["retry"], &reply.problem()["charged"]), (&json!("same_proof"), &json!("unknown")));
    assert!(!reply.is_bill(), "{reply:?}");
    let receipt = reply.receipt().unwrap();
    assert_eq!(receipt["success"], false);
    assert!(receipt["transaction"].as_str().is_some_and(|hash| hash.len() == 66), "{receipt}");
    receipt["transaction"].clone()
}

#[tokio::test]
async fn a_hundred_copies_at_once_are_one_run_one_charge_and_one_outcome() {
    for path in [Shop::AFTER, Shop::BEFORE] {
        let shop = Shop::open().await.unwrap();
        let paid = sign_once(&shop, path).await;
        let replies = join_all((0..100).map(|_| shop.send(&paid))).await;
        let replies: Vec<Reply> = replies.into_iter().map(Result::unwrap).collect();
        for reply in &replies {
            assert_eq!(reply.status, 200, "{path}: {reply:?}");
            assert_eq!((&reply.body, reply.receipt()), (&replies[0].body, replies[0].receipt()));
        }
        assert_eq!(replies.iter().filter(|reply| !reply.is_replay()).count(), 1);
        assert_eq!(shop.echo.hits(), 1);
        charged_once(&shop).await;
    }
}

#[tokio::test]
async fn a_credential_is_good_for_the_request_it_was_first_used_for() {
    let shop = Shop::open().await.unwrap();
    let paid = sign_once(&shop, Shop::AFTER).await;
    assert_eq!(shop.send(&paid).await.unwrap().status, 200);
    for path in [Shop::BEFORE, "/after/other", "/after/report?page=2"] {
        let reply = shop.send(&Paid { path: path.into(), ..paid.clone() }).await.unwrap();
        assert_eq!((reply.status, reply.is_bill()), (409, false), "{path}: {reply:?}");
    }
    let posted = shop.request(&paid).header("idempotency-key", "another caller").send().await.unwrap();
    assert_eq!(posted.status(), 409);
    assert_eq!(shop.echo.hits(), 1);
    charged_once(&shop).await;
}

#[tokio::test]
async fn an_upstream_that_fails_before_the_charge_costs_nothing() {
    let shop = Shop::open().await.unwrap();
    let payer = shop.payer("payer").await.unwrap();
    let failures = [
        (Answer::Status(500), 500),
        (Answer::Status(503), 503),
        (Answer::Status(404), 404),
        (Answer::HangUp, 502),
        (Answer::ResetMidBody, 502),
        (Answer::Held, 504),
    ];
    for (number, (failure, status)) in failures.into_iter().enumerate() {
        let paid = shop.sign(&payer, "/after/hasty", &number.to_string()).await.unwrap();
        shop.echo.answer_next(failure.clone());
        let reply = shop.send(&paid).await.unwrap();
        assert_eq!((reply.status, reply.is_bill()), (status, false), "{failure:?}: {reply:?}");
        assert!(reply.receipt().is_none_or(|receipt| receipt["success"] == false), "{failure:?}: {reply:?}");
        assert_eq!(shop.transfers().await.unwrap().len(), number, "{failure:?} was charged");
        let reply = shop.send(&paid).await.unwrap();
        assert_eq!(reply.status, 200, "{failure:?}: the same credential is good for another try: {reply:?}");
        assert_eq!(shop.transfers().await.unwrap().len(), number + 1, "{failure:?}");
    }
    let audit = shop.audit().await.unwrap();
    assert_eq!((audit.in_state("settled").count(), audit.relayed), (6, 6));
}

#[tokio::test]
async fn an_upstream_that_fails_after_the_charge_is_asked_again_by_the_same_credential() {
    let shop = Shop::open().await.unwrap();
    let payer = shop.payer("payer").await.unwrap();
    let failures = [Answer::Status(500), Answer::HangUp, Answer::ResetMidBody, Answer::Held];
    for (number, failure) in failures.into_iter().enumerate() {
        let paid = shop.sign(&payer, "/before/hasty", &number.to_string()).await.unwrap();
        shop.echo.answer_next(failure.clone());
        let owed = shop.send(&paid).await.unwrap();
        assert_eq!((owed.status / 100, owed.is_bill()), (5, false), "{failure:?}: {owed:?}");
        let problem = owed.problem();
        assert_eq!((&problem["charged"], &problem["retry"]), (&json!(true), &json!("same_proof")), "{failure:?}");
        let reply = shop.insist(&paid, SOON).await.unwrap();
        assert_eq!((reply.status, reply.receipt()), (200, owed.receipt()), "{failure:?}: {reply:?}");
    }
    let audit = shop.audit().await.unwrap();
    assert_eq!((audit.in_state("settled").count(), audit.payments.len(), audit.relayed), (4, 4, 4));
}

#[tokio::test]
async fn a_long_answer_that_breaks_off_is_redeemed_by_the_same_credential() {
    let top = "replay.body_bytes_max = 100";
    for path in [Shop::AFTER, Shop::BEFORE] {
        let shop = Shop::open_with(ShopOptions { top, ..ShopOptions::X402 }).await.unwrap();
        let paid = sign_once(&shop, path).await;
        shop.echo.answer_next(Answer::ResetMidBody);
        assert!(shop.send(&paid).await.is_err(), "a thousand bytes were promised and ten came");
        let reply = shop.insist(&paid, SOON).await.unwrap();
        assert_eq!((reply.status, shop.echo.hits()), (200, 2), "{reply:?}");
        let again = shop.send(&paid).await.unwrap();
        assert_eq!((again.status, &again.problem()["charged"], again.is_bill()), (409, &json!(true), false));
        charged_once(&shop).await;
    }
}

#[tokio::test]
async fn an_answer_without_a_body_is_an_answer() {
    for path in [Shop::AFTER, Shop::BEFORE] {
        let shop = Shop::open().await.unwrap();
        let paid = sign_once(&shop, path).await;
        shop.echo.answer(Answer::Empty);
        for runs_so_far in [1, 1] {
            let reply = shop.send(&paid).await.unwrap();
            assert_eq!((reply.status, reply.body.len(), shop.echo.hits()), (200, 0, runs_so_far), "{reply:?}");
        }
        charged_once(&shop).await;
    }
}

#[tokio::test]
async fn books_that_somebody_else_has_locked_sell_nothing() {
    let shop = Shop::open().await.unwrap();
    let payer = shop.payer("payer").await.unwrap();
    let delivered = shop.sign(&payer, Shop::AFTER, "delivered").await.unwrap();
    let first = shop.send(&delivered).await.unwrap();
    assert_eq!(first.status, 200, "{first:?}");
    let paid = shop.sign(&payer, Shop::AFTER, "locked out").await.unwrap();

    let lock = shop.lock_books().await.unwrap();
    unsold(&shop, &paid).await;
    let replay = shop.send(&delivered).await.unwrap();
    assert_eq!(
        (replay.status, replay.is_replay(), &replay.body),
        (200, true, &first.body),
        "reading is still possible"
    );
    drop(lock);
    sold_again(&shop, &paid).await;
}

#[tokio::test]
async fn a_disk_that_takes_no_more_sells_nothing() {
    let mut shop = Shop::open().await.unwrap();
    let payer = shop.payer("payer").await.unwrap();
    assert_eq!(shop.send(&shop.sign(&payer, Shop::AFTER, "delivered").await.unwrap()).await.unwrap().status, 200);
    let paid = shop.sign(&payer, Shop::AFTER, "full").await.unwrap();
    limit_file_size(&mut shop, "0");
    unsold(&shop, &paid).await;
    limit_file_size(&mut shop, "unlimited");
    sold_again(&shop, &paid).await;
}

#[tokio::test]
async fn books_that_are_deleted_under_the_gateway_sell_nothing() {
    let mut shop = Shop::open().await.unwrap();
    let payer = shop.payer("payer").await.unwrap();
    let delivered = shop.sign(&payer, Shop::AFTER, "delivered").await.unwrap();
    assert_eq!(shop.send(&delivered).await.unwrap().status, 200);
    let paid = shop.sign(&payer, Shop::AFTER, "gone").await.unwrap();
    for file in ["farebox.db", "farebox.db-wal", "farebox.db-shm"] {
        std::fs::remove_file(shop.farebox.setup().dir().join(file)).unwrap();
    }
    unsold(&shop, &paid).await;

    // With new books, what the lost ones knew is known to the chain alone: it is neither sold nor charged again.
    shop.farebox.restart().await.unwrap();
    let again = shop.send(&delivered).await.unwrap();
    assert_eq!((again.status, shop.echo.hits()), (402, 1), "{again:?}");
    assert_eq!(shop.insist(&paid, SOON).await.unwrap().status, 200);
    assert_eq!(shop.transfers().await.unwrap().len(), 2);
}

#[tokio::test]
async fn books_that_fail_between_charge_and_record_are_told_when_they_answer_again() {
    for (path, runs) in [(Shop::AFTER, 2), (Shop::BEFORE, 1)] {
        let mut shop = Shop::open().await.unwrap();
        let paid = sign_once(&shop, path).await;
        shop.rpc.fail(SEND_SYNC, Times::Next(1), Fault::HoldAnswer);
        let asked = tokio::spawn(shop.request(&paid).send());
        shop.rpc.wait_for_calls(SEND_SYNC, 1, SOON).await.unwrap();
        limit_file_size(&mut shop, "0");
        shop.rpc.release(1);
        let reply = Reply::read(asked.await.unwrap().unwrap()).await.unwrap();
        assert_eq!((reply.status, reply.is_bill()), (503, false), "{reply:?}");
        assert_eq!((&reply.problem()["charged"], &reply.problem()["retry"]), (&json!(true), &json!("same_proof")));
        assert_eq!(shop.send(&paid).await.unwrap().status, 503);
        limit_file_size(&mut shop, "unlimited");
        let reply = shop.insist(&paid, SOON).await.unwrap();
        assert_eq!((reply.status, shop.echo.hits()), (200, runs), "{path}: {reply:?}");
        charged_once(&shop).await;
    }
}

/// The books do not answer: nobody is charged, nothing is run, and nobody is asked for a new payment.
async fn unsold(shop: &Shop, paid: &Paid) {
    let (runs, transfers) = (shop.echo.hits(), shop.transfers().await.unwrap());
    let reply = shop.send(paid).await.unwrap();
    assert_eq!((reply.status, &reply.problem()["code"]), (503, &json!("ledger_unavailable")), "{reply:?}");
    assert_eq!((reply.is_bill(), &reply.problem()["retry"]), (false, &json!("same_proof")), "{reply:?}");
    assert_eq!((shop.echo.hits(), shop.transfers().await.unwrap()), (runs, transfers));
}

/// After that the identical request is served, beside one that was served before.
async fn sold_again(shop: &Shop, paid: &Paid) {
    let reply = shop.insist(paid, SOON).await.unwrap();
    assert_eq!(reply.status, 200, "{reply:?}");
    let audit = shop.audit().await.unwrap();
    assert_eq!((audit.in_state("settled").count(), audit.relayed, shop.echo.hits()), (2, 2, 2));
}

#[tokio::test]
async fn many_settlements_behind_one_that_is_stuck_all_end_without_a_gap() {
    let shop =
        Shop::open_with(ShopOptions { chain: "settle_timeout = \"5s\"\nbump_after = \"1s\"", ..ShopOptions::X402 })
            .await
            .unwrap();
    let mut sales = Vec::new();
    for payer in ["ada", "ben", "cleo", "dov"] {
        let payer = shop.payer(payer).await.unwrap();
        for number in 0..10 {
            let path = if number % 2 == 0 { Shop::AFTER } else { Shop::BEFORE };
            sales.push(shop.sign(&payer, path, &format!("{} {number}", payer.address())).await.unwrap());
        }
    }
    shop.anvil.hold_blocks().await.unwrap();
    let (first, rest) = sales.split_first().unwrap();
    let stuck = tokio::spawn(shop.request(first).send());
    shop.wait_for_pool(1, SOON).await.unwrap();
    let underpriced = shop.payments().await.unwrap()[0]["transaction"].clone();
    assert!(underpriced.is_string());
    // What it offers is now too little for any block.
    let base_fee = U256::from(50_000_000_000_u64);
    shop.anvil.rpc("anvil_setNextBlockBaseFeePerGas", json!([base_fee])).await.unwrap();
    shop.anvil.mine(1).await.unwrap();
    assert_eq!(shop.anvil.transaction_count(shop.relayer()).await.unwrap(), 0);

    let queued = async {
        shop.wait_for_pool(sales.len(), SOON).await.unwrap();
        shop.anvil.mine_at_once().await.unwrap();
    };
    let (replies, ()) = tokio::join!(join_all(rest.iter().map(|paid| shop.send(paid))), queued);
    for reply in replies {
        let reply = reply.unwrap();
        assert!(reply.status == 200 || reply.status == 503 && !reply.is_bill(), "{reply:?}");
    }
    assert!(matches!(stuck.await.unwrap().unwrap().status().as_u16(), 200 | 503));
    let ended = join_all(sales.iter().map(|paid| shop.insist(paid, SOON))).await;
    let bumped = ended[0].as_ref().unwrap().receipt().unwrap()["transaction"].clone();
    assert_ne!(bumped, underpriced, "it was replaced at its nonce");
    assert!(ended.iter().all(|reply| reply.as_ref().unwrap().status == 200), "{ended:?}");
    let audit = shop.audit().await.unwrap();
    assert_eq!((audit.in_state("settled").count(), audit.relayed), (sales.len(), sales.len() as u64));
}

#[tokio::test]
async fn sixteen_calls_on_a_balance_for_one_deliver_one() {
    for path in [Shop::AFTER, Shop::BEFORE] {
        let shop = Shop::open_with(HASTY).await.unwrap();
        let payer = Account::named("pauper").unwrap();
        shop.usdc.mint(payer.address(), Shop::PRICE).await.unwrap();
        let mut sales = Vec::new();
        for number in 0..16 {
            sales.push(shop.sign(&payer, path, &number.to_string()).await.unwrap());
        }
        let replies = join_all(sales.iter().map(|paid| shop.send(paid))).await;
        let replies: Vec<Reply> = replies.into_iter().map(Result::unwrap).collect();
        assert_eq!(replies.iter().filter(|reply| reply.status == 200).count(), 1, "{path}: {replies:#?}");
        assert!(replies.iter().all(|reply| matches!(reply.status, 200 | 402 | 503)), "{path}: {replies:#?}");

        // From now on it costs no gas: a payer whose settlement reverted is turned away, and the simulation says no.
        let relayed = shop.anvil.transaction_count(shop.relayer()).await.unwrap();
        let late = shop.send(&shop.sign(&payer, path, "late").await.unwrap()).await.unwrap();
        let no = if relayed > 1 { "transaction_failed" } else { "insufficient_balance" };
        assert_eq!((late.status, &late.problem()["code"]), (402, &json!(format!("invalid_exact_evm_{no}"))));
        // What reverted may still be submitted by anybody, so it is refused for good when its time is up on the chain.
        shop.anvil.rpc("evm_increaseTime", json!([700])).await.unwrap();
        shop.anvil.mine(1).await.unwrap();
        let audit = shop.audit().await.unwrap();
        assert_eq!((audit.in_state("settled").count(), audit.transfers.len()), (1, 1), "{path}");
        assert!(audit.relayed <= 16 && audit.relayed == relayed, "{} after {relayed}", audit.relayed);
        assert_eq!(audit.in_state("refused").count() as u64, audit.relayed - 1, "{path}: {:#?}", audit.payments);
        let ended = join_all(sales.iter().map(|paid| shop.send(paid))).await;
        assert_eq!(
            ended.iter().filter(|reply| reply.as_ref().unwrap().status == 402).count(),
            15,
            "{path}: {ended:#?}"
        );
    }
}

#[tokio::test]
async fn the_relayer_sends_nothing_that_a_payer_could_have_made_longer() {
    let shop = Shop::open().await.unwrap();
    let paid = sign_once(&shop, Shop::AFTER).await;
    let mut padded: Value = serde_json::from_slice(&BASE64_STANDARD.decode(&paid.credential).unwrap()).unwrap();
    let signature = padded["payload"]["signature"].as_str().unwrap().to_owned();
    padded["payload"]["signature"] = json!(format!("{signature}{}", "00".repeat(8_000)));
    padded["payload"]["data"] = json!("00".repeat(2_000));
    let padded = Paid { credential: BASE64_STANDARD.encode(padded.to_string()), ..paid.clone() };
    let refused = shop.send(&padded).await.unwrap();
    assert!(matches!(refused.status, 400 | 402 | 431), "{refused:?}");
    assert_eq!(shop.anvil.transaction_count(shop.relayer()).await.unwrap(), 0);

    let receipt = shop.send(&paid).await.unwrap().receipt().unwrap();
    let sent = shop.anvil.rpc("eth_getTransactionByHash", json!([receipt["transaction"]])).await.unwrap();
    let words = 9; // from, to, value, validAfter, validBefore, nonce, v, r, s
    assert_eq!(sent["input"].as_str().unwrap().len(), 2 + 2 * (4 + 32 * words), "{sent}");
    assert_eq!((&sent["value"], &sent["accessList"]), (&json!("0x0"), &json!([])));
    charged_once(&shop).await;
}

#[tokio::test]
async fn an_upload_is_the_same_bytes_on_the_paid_retry() {
    let shop = Shop::open().await.unwrap();
    let payer = shop.payer("payer").await.unwrap();
    let boundary = "----farebox-e2e-7MA4YWxk";
    let body = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"ü.txt\"\r\nContent-Type: text/plain\r\n\r\n{}\r\n\
         --{boundary}--\r\n",
        "one line\r\nand \0 another\u{7f}\n".repeat(4_000)
    );
    let media_type = format!("multipart/form-data; boundary={boundary}");
    let job = Job::post(shop.farebox.url("/after/upload"), &body, &payer).header("content-type", &media_type);
    let outcome = ForeignClient::X402Fetch.pay(&job).await.unwrap();
    assert_eq!(outcome.status, Some(200), "{outcome:?}");
    let seen = shop.echo.seen();
    assert_eq!(seen.len(), 1, "the unpaid request is not the upstream's");
    assert_eq!((seen[0].header("content-type"), seen[0].body.as_ref()), (Some(media_type.as_str()), body.as_bytes()));
    charged_once(&shop).await;
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_never_a_no() {
    let chain = "settle_timeout = \"1s\"\nbump_after = \"1s\"\nrpc_timeout = \"300ms\"";
    let shop = Shop::open_with(ShopOptions { chain, ..ShopOptions::X402 }).await.unwrap();
    let payer = shop.payer("payer").await.unwrap();
    let faults = [
        Fault::Error { code: -32603, message: "internal error" },
        Fault::Error { code: -32005, message: "limit exceeded" },
        Fault::Garbage,
        Fault::Status(429),
        Fault::HangUp,
        // The node is silent.
        Fault::Delay(Duration::from_secs(600)),
    ];
    let mut sold = 0;
    // Sending and waiting at once comes first: it is not asked of a node that failed lately.
    for method in [SEND_SYNC, "eth_call", SEND, RECEIPT] {
        for fault in &faults {
            let path = if sold % 2 == 0 { Shop::AFTER } else { Shop::BEFORE };
            let paid = shop.sign(&payer, path, &sold.to_string()).await.unwrap();
            if method == SEND || method == RECEIPT {
                shop.rpc.fail(SEND_SYNC, Times::Always, UNKNOWN_METHOD);
            }
            let before = shop.rpc.calls(method).len();
            shop.rpc.fail(method, Times::Always, fault.clone());
            let reply = shop.send(&paid).await.unwrap();
            assert!(shop.rpc.calls(method).len() > before, "{method} was not called");
            // What cannot be sent and waited for at once is sent and asked for.
            let silent = matches!(fault, Fault::Delay(_));
            let expected = if method == SEND_SYNC && !silent { 200 } else { 503 };
            assert_eq!((reply.status, reply.is_bill()), (expected, false), "{method} {fault:?}: {reply:?}");
            shop.rpc.heal();
            let reply = shop.insist(&paid, SOON).await.unwrap();
            assert_eq!(reply.status, 200, "{method} {fault:?}: {reply:?}");
            sold += 1;
        }
    }
    let audit = shop.audit().await.unwrap();
    assert_eq!((audit.in_state("settled").count(), audit.relayed), (sold, sold as u64));
}

#[tokio::test]
async fn fees_that_cannot_be_read_are_no_refusal() {
    for method in ["eth_feeHistory", "eth_getBalance"] {
        let shop = Shop::open_with(HASTY).await.unwrap();
        let paid = sign_once(&shop, Shop::AFTER).await;
        shop.rpc.fail(method, Times::Always, Fault::Status(429));
        let reply = shop.send(&paid).await.unwrap();
        assert_eq!((reply.status, reply.is_bill()), (503, false), "{method}: {reply:?}");
        assert_eq!((&reply.problem()["charged"], &reply.problem()["retry"]), (&json!(false), &json!("same_proof")));
        shop.rpc.heal();
        assert_eq!(shop.insist(&paid, SOON).await.unwrap().status, 200);
        charged_once(&shop).await;
    }
}

#[tokio::test]
async fn revenue_that_a_reorganisation_took_is_in_doubt_until_it_is_mined_again() {
    let shop = Shop::open_with(HASTY).await.unwrap();
    let payer = shop.payer("payer").await.unwrap();
    let mut first = Vec::new();
    for (seed, path) in [("one", Shop::AFTER), ("two", Shop::BEFORE), ("three", Shop::AFTER)] {
        let paid = shop.sign(&payer, path, seed).await.unwrap();
        first.push((shop.send(&paid).await.unwrap(), paid));
    }
    assert!(first.iter().all(|(reply, _)| reply.status == 200), "{first:?}");
    take_back(&shop, 3).await;
    shop.wait_for_books(SOON, |books| books.iter().all(|payment| payment["state"] == "in_doubt")).await.unwrap();
    let (_, delivered) = &first[0];
    let unclear = shop.send(delivered).await.unwrap();
    assert_eq!((unclear.status, unclear.is_bill()), (503, false), "{unclear:?}");

    shop.anvil.mine_at_once().await.unwrap();
    let audit = shop.audit().await.unwrap();
    assert_eq!((audit.in_state("settled").count(), audit.transfers.len(), audit.relayed), (3, 3, 3));
    for (reply, paid) in &first {
        let again = shop.send(paid).await.unwrap();
        assert_eq!((again.status, again.is_replay(), &again.body), (200, true, &reply.body));
    }
    assert_eq!(shop.echo.hits(), 3);
}

#[tokio::test]
async fn revenue_that_a_reorganisation_took_for_good_is_refused() {
    let shop = Shop::open_with(HASTY).await.unwrap();
    let paid = sign_once(&shop, Shop::AFTER).await;
    assert_eq!(shop.send(&paid).await.unwrap().status, 200);
    take_back(&shop, 1).await;
    // In the new history the payer is blacklisted before the payment.
    let blacklisted = shop.usdc.contract().blacklist(paid.authorization.from).from(shop.anvil.rich());
    let blacklisted = blacklisted.max_priority_fee_per_gas(100_000_000_000).max_fee_per_gas(200_000_000_000);
    drop(blacklisted.send().await.unwrap());
    shop.anvil.mine_at_once().await.unwrap();
    shop.wait_for_books(SOON, |books| books[0]["state"] == "in_doubt").await.unwrap();
    shop.anvil.rpc("evm_increaseTime", json!([700])).await.unwrap();
    shop.anvil.mine(1).await.unwrap();
    let audit = shop.audit().await.unwrap();
    assert_eq!((audit.in_state("refused").count(), audit.payments.len(), audit.transfers.len()), (1, 1, 0));
}

/// The last `depth` blocks are replaced by empty ones, what was in them is forgotten, and none more come.
async fn take_back(shop: &Shop, depth: u64) {
    shop.anvil.hold_blocks().await.unwrap();
    shop.anvil.rpc("anvil_reorg", json!([depth, []])).await.unwrap();
    assert_eq!(shop.transfers().await.unwrap(), []);
}

async fn sign_once(shop: &Shop, path: &str) -> Paid {
    let payer = shop.payer("payer").await.unwrap();
    shop.sign(&payer, path, "once").await.unwrap()
}

/// One transaction, one transfer, one settled and delivered payment; whatever else the books have was given back.
async fn charged_once(shop: &Shop) {
    let audit = shop.audit().await.unwrap();
    let settled: Vec<&Value> = audit.in_state("settled").collect();
    assert_eq!((settled.len(), audit.transfers.len(), audit.relayed), (1, 1, 1), "{:#?}", audit.payments);
    assert_eq!(settled[0]["delivery"], "delivered");
    assert_eq!(audit.in_state("void").count(), audit.payments.len() - 1);
}

/// No file of the gateway may be written beyond this size, as if its disk took no more.
fn limit_file_size(shop: &mut Shop, bytes: &str) {
    let pid = shop.farebox.process().id().to_string();
    let limited =
        Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={bytes}:unlimited")]).status().unwrap();
    assert!(limited.success());
}
