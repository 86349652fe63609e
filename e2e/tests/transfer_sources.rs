//! Three nodes of which some lie, lag, hang, refuse or talk nonsense: verdicts are right or "could not tell", never wrong.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::time::Duration;

use alloy::primitives::B256;
use farebox_e2e::{Account, Claim, Explorer, Fault, FaultProxy, Lie, Next, Shop, ShopOptions, Times};
use serde_json::{Value, json};

/// Far above what anything here takes, for a machine with ten other things to do.
const SOON: Duration = Duration::from_secs(30);
/// Long after the test.
const NEVER: Duration = Duration::from_secs(600);
const RECEIPT: &str = "eth_getTransactionReceipt";
const TRANSACTION: &str = "eth_getTransactionByHash";
const DEAR: &str = "/dear/report";
const DEAR_UNITS: u128 = 2_000_000;

/// Three nodes, of which two must agree on what is worth more than a dollar.
const THREE: ShopOptions = ShopOptions {
    chain: "rpc_timeout = \"1s\"\nquorum = { agree = 2, above = \"$1\" }",
    routes: "[[route]]\nmatch = \"GET /dear/*\"\nupstream = \"$UPSTREAM\"\nprice = \"$2\"\n",
    nodes_more: 2,
    ..ShopOptions::TRANSFERS
};
/// One node, which is believed.
const ONE: ShopOptions = ShopOptions { chain: "rpc_timeout = \"1s\"", ..ShopOptions::TRANSFERS };

/// The ways in which a node says nothing that is of use.
fn silent() -> Vec<(&'static str, Fault)> {
    vec![
        ("hangs up", Fault::HangUp),
        ("never answers", Fault::Delay(NEVER)),
        ("answers 429", Fault::Status(429)),
        ("answers 502", Fault::Status(502)),
        ("answers HTML", Fault::Garbage),
        ("answers an error", Fault::Error { code: -32_000, message: "header not found" }),
        ("answers a number", Fault::Lie(json!(7))),
        ("answers a list", Fault::Lie(json!([]))),
    ]
}

/// The ways in which a node says of a receipt what is not so.
fn lies() -> Vec<(&'static str, Fault)> {
    let altered = |told: fn(Value) -> Value| Fault::Altered(Lie::new(told));
    vec![
        ("forgets the receipt", Fault::Lie(Value::Null)),
        ("says it reverted", altered(|r| with(r, "/status", "0x0"))),
        ("says it succeeded", altered(|r| with(r, "/status", "0x1"))),
        ("says that more came", altered(|r| with(r, "/logs/0/data", &format!("0x{:064x}", DEAR_UNITS * 10)))),
        ("says that less came", altered(|r| with(r, "/logs/0/data", &format!("0x{:064x}", 1)))),
        ("gives another block's hash", altered(|r| with(r, "/blockHash", &B256::repeat_byte(9).to_string()))),
        ("gives another block's number", altered(|r| with(r, "/blockNumber", "0x1"))),
        ("gives another transaction's", altered(|r| with(r, "/transactionHash", &B256::repeat_byte(8).to_string()))),
    ]
}

/// `json` with the member at this pointer replaced, if it has one.
fn with(mut json: Value, pointer: &str, value: &str) -> Value {
    if let Some(member) = json.pointer_mut(pointer) {
        *member = value.into();
    }
    json
}

/// A claim that is good and one that is a unit too little, both for the dear route.
async fn good_and_short(shop: &Shop, payer: &Account) -> (Claim, Claim) {
    let good = shop.buy(payer, DEAR, "USDC").await.unwrap();
    let bill = shop.quote(DEAR).await.unwrap();
    let option = bill.option("USDC").unwrap();
    let transaction = shop.anvil.send(payer, shop.transfer_of(&option, option.units - 1)).await.unwrap();
    (good, bill.claim(&option, transaction, payer.address()).signed(payer).await.unwrap())
}

fn nodes(shop: &Shop) -> [&FaultProxy; 3] {
    [&shop.rpc, &shop.others[0], &shop.others[1]]
}

#[tokio::test]
async fn one_bad_node_of_three_changes_no_verdict_on_what_is_dear() {
    let shop = Shop::open_with(THREE).await.unwrap();
    let payer = shop.spender("payer").await.unwrap();
    let (mut sold, mut unclaimed) = (0, vec![]);
    let everywhere = silent().into_iter().map(|(name, fault)| (name, "*", fault));
    let receipts = lies().into_iter().map(|(name, fault)| (name, RECEIPT, fault));
    for (name, method, fault) in everywhere.chain(receipts) {
        for place in 0..3 {
            let name = format!("node {place} {name}");
            let (good, short) = good_and_short(&shop, &payer).await;
            unclaimed.push(short.announced.parse().unwrap());
            let before = nodes(&shop)[place].calls(RECEIPT).len();
            nodes(&shop)[place].fail(method, Times::Always, fault.clone());
            let refused = shop.insist_on(&short, SOON).await.unwrap_or_else(|error| panic!("{name}: {error:#}"));
            refused.refuses(&name, 402, "underpaid", Next::Pay);
            let served = shop.insist_on(&good, SOON).await.unwrap_or_else(|error| panic!("{name}: {error:#}"));
            assert_eq!(served.status, 200, "{name}: {served:?}");
            sold += 1;
            assert!(nodes(&shop)[place].calls(RECEIPT).len() > before, "{name}, and nobody asked it");
            nodes(&shop)[place].heal();
        }
    }
    assert_eq!(shop.echo.hits(), sold);
    assert_eq!(shop.audit_beside(&unclaimed).await.unwrap().in_state("settled").count(), sold);
}

#[tokio::test]
async fn one_node_that_lags_changes_no_verdict_on_what_is_dear() {
    let shop = Shop::open_with(THREE).await.unwrap();
    let payer = shop.spender("payer").await.unwrap();
    for place in 0..3 {
        shop.anvil.mine(3).await.unwrap();
        let head = shop.anvil.head().await.unwrap();
        nodes(&shop)[place].fail("*", Times::Always, Fault::FrozenAt(head));
        let good = shop.buy(&payer, DEAR, "USDC").await.unwrap();
        let served = shop.insist_on(&good, SOON).await.unwrap_or_else(|error| panic!("node {place} lags: {error:#}"));
        assert_eq!((served.status, shop.echo.hits()), (200, place + 1), "node {place} lags: {served:?}");
        nodes(&shop)[place].heal();
    }
}

#[tokio::test]
async fn two_bad_nodes_of_three_are_no_verdict_on_what_is_dear() {
    let shop = Shop::open_with(THREE).await.unwrap();
    let payer = shop.spender("payer").await.unwrap();
    let good = shop.buy(&payer, DEAR, "USDC").await.unwrap();
    for (name, fault) in silent() {
        for place in [0, 1] {
            nodes(&shop)[place].fail("*", Times::Always, fault.clone());
        }
        let reply = shop.claim(&good).await.unwrap();
        reply.refuses(name, 503, "payment_unverifiable", Next::Again);
        nodes(&shop).into_iter().for_each(FaultProxy::heal);
    }
    assert_eq!(shop.echo.hits(), 0);
    assert_eq!(shop.insist_on(&good, SOON).await.unwrap().status, 200);
}

#[tokio::test]
async fn two_nodes_that_tell_different_lies_are_no_verdict_on_what_is_dear() {
    let shop = Shop::open_with(THREE).await.unwrap();
    let payer = shop.spender("payer").await.unwrap();
    let (good, short) = good_and_short(&shop, &payer).await;
    let more = |units: u128| {
        let data = format!("0x{units:064x}");
        Fault::Altered(Lie::new(move |receipt| with(receipt, "/logs/0/data", &data)))
    };
    nodes(&shop)[0].fail(RECEIPT, Times::Always, more(DEAR_UNITS * 2));
    nodes(&shop)[1].fail(RECEIPT, Times::Always, more(DEAR_UNITS * 3));
    for (name, claim) in [("short", &short), ("good", &good)] {
        shop.claim(claim).await.unwrap().refuses(name, 503, "payment_unverifiable", Next::Again);
    }
    assert_eq!(shop.echo.hits(), 0);
    nodes(&shop).into_iter().for_each(FaultProxy::heal);
    assert_eq!(shop.insist_on(&good, SOON).await.unwrap().status, 200);
    assert_eq!(shop.insist_on(&short, SOON).await.unwrap().status, 402);
}

#[tokio::test]
async fn what_is_cheap_is_sold_as_long_as_one_node_is_well() {
    let shop = Shop::open_with(THREE).await.unwrap();
    let payer = shop.spender("payer").await.unwrap();
    for (number, (name, fault)) in silent().into_iter().enumerate() {
        let claim = shop.buy(&payer, Shop::AFTER, "USDC").await.unwrap();
        let well = number % 3;
        for place in (0..3).filter(|place| *place != well) {
            nodes(&shop)[place].fail("*", Times::Always, fault.clone());
        }
        let served = shop.insist_on(&claim, SOON).await.unwrap_or_else(|error| panic!("two {name}: {error:#}"));
        assert_eq!((served.status, shop.echo.hits()), (200, number + 1), "two {name}: {served:?}");
        nodes(&shop).into_iter().for_each(FaultProxy::heal);
    }
    shop.audit().await.unwrap();
}

#[tokio::test]
async fn a_node_that_says_nothing_of_use_is_503_and_never_a_bill() {
    let shop = Shop::open_with(ONE).await.unwrap();
    let payer = shop.spender("payer").await.unwrap();
    let cut = |name: &'static str, method: &'static str, fault: Fault| (name, method, fault);
    let mut cases: Vec<_> = silent().into_iter().map(|(name, fault)| cut(name, "*", fault)).collect();
    cases.extend(silent().into_iter().map(|(name, fault)| cut(name, RECEIPT, fault)));
    cases.push(cut("forgets a mined transaction's receipt", RECEIPT, Fault::Lie(Value::Null)));
    let foreign = |told: fn(Value) -> Value| Fault::Altered(Lie::new(told));
    let another = foreign(|receipt| with(receipt, "/transactionHash", &B256::repeat_byte(8).to_string()));
    cases.push(cut("gives another transaction's receipt", RECEIPT, another));
    let gone = foreign(|receipt| with(receipt, "/blockHash", &B256::repeat_byte(9).to_string()));
    cases.push(cut("gives a block that is not on the chain", RECEIPT, gone));
    let ahead = foreign(|receipt| with(receipt, "/blockNumber", "0xffffff"));
    cases.push(cut("gives a block above its own head", RECEIPT, ahead));
    for (name, method, fault) in cases {
        let claim = shop.buy(&payer, Shop::AFTER, "USDC").await.unwrap();
        let runs = shop.echo.hits();
        shop.rpc.fail(method, Times::Always, fault);
        let reply = shop.claim(&claim).await.unwrap();
        reply.refuses(name, 503, "payment_unverifiable", Next::Again);
        assert_eq!(shop.echo.hits(), runs, "{name}");
        shop.rpc.heal();
        assert_eq!(shop.insist_on(&claim, SOON).await.unwrap().status, 200, "{name}");
    }
    shop.audit().await.unwrap();
}

#[tokio::test]
async fn a_node_that_forgets_both_receipt_and_transaction_says_that_there_is_none_and_is_asked_again() {
    let shop = Shop::open_with(ONE).await.unwrap();
    let payer = shop.spender("payer").await.unwrap();
    let claim = shop.buy(&payer, Shop::AFTER, "USDC").await.unwrap();
    for method in [RECEIPT, TRANSACTION] {
        shop.rpc.fail(method, Times::Always, Fault::Lie(Value::Null));
    }
    let reply = shop.claim(&claim).await.unwrap();
    assert_eq!((&reply.problem()["retry"], reply.is_bill()), (&json!("same_proof"), false), "{reply:?}");
    shop.rpc.heal();
    assert_eq!(shop.insist_on(&claim, SOON).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_node_whose_head_is_old_cannot_say_that_a_transaction_does_not_exist() {
    let shop = Shop::open_with(ShopOptions { chain_behind_s: 3_600, ..ONE }).await.unwrap();
    let payer = shop.spender("payer").await.unwrap();
    let bill = shop.quote(Shop::AFTER).await.unwrap();
    let option = bill.option("USDC").unwrap();
    let claim = bill.claim(&option, B256::repeat_byte(5), payer.address()).signed(&payer).await.unwrap();
    shop.claim(&claim).await.unwrap().refuses("an hour behind", 503, "payment_unverifiable", Next::Again);
    shop.anvil.later(Duration::from_secs(3_600)).await.unwrap();
    let until = tokio::time::Instant::now() + SOON;
    loop {
        let reply = shop.claim(&claim).await.unwrap();
        if reply.status == 402 {
            reply.refuses("a fresh head", 402, "payment_not_found", Next::Again);
            break;
        }
        assert!(reply.status == 503 && tokio::time::Instant::now() < until, "{reply:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_block_explorer_is_a_source_like_any_other() {
    let chain = "rpc_timeout = \"1s\"\nquorum = { agree = 2, above = \"$1\" }";
    let sources = "{ url = \"$EXPLORER\", kind = \"explorer\", key = \"${FAREBOX_EXPLORER_KEY}\" },";
    let mut shop = Shop::open_with(ShopOptions { chain, sources, nodes_more: 0, ..THREE }).await.unwrap();
    let payer = shop.spender("payer").await.unwrap();
    // Where two must agree, it is one of them.
    let (good, short) = good_and_short(&shop, &payer).await;
    let asked = shop.explorer.answered();
    assert_eq!(shop.insist_on(&good, SOON).await.unwrap().status, 200);
    shop.claim(&short).await.unwrap().refuses("too little", 402, "underpaid", Next::Pay);
    assert!(shop.explorer.answered() > asked + 3, "the explorer was not asked");
    let (good, short) = good_and_short(&shop, &payer).await;
    let more = format!("0x{:064x}", DEAR_UNITS * 2);
    shop.rpc.fail(
        RECEIPT,
        Times::Always,
        Fault::Altered(Lie::new(move |receipt| with(receipt, "/logs/0/data", &more))),
    );
    for claim in [&good, &short] {
        shop.claim(claim).await.unwrap().refuses("the node lies", 503, "payment_unverifiable", Next::Again);
    }
    shop.rpc.heal();
    shop.explorer.limit(true);
    shop.claim(&good).await.unwrap().refuses("the explorer is tired", 503, "payment_unverifiable", Next::Again);
    shop.explorer.limit(false);
    assert_eq!(shop.insist_on(&good, SOON).await.unwrap().status, 200);

    // Where one is enough, it stands in for a node that is gone.
    let cheap = shop.buy(&payer, Shop::AFTER, "ETH").await.unwrap();
    shop.rpc.cut_off();
    assert_eq!(shop.insist_on(&cheap, SOON).await.unwrap().status, 200);
    let log = shop.farebox.process().log();
    assert!(!log.contains(Explorer::KEY), "the log tells the explorer's key");
}

#[tokio::test]
async fn a_websocket_is_a_source_like_any_other() {
    let shop = Shop::open_with(ShopOptions { sources: "\"$WEBSOCKET\",", ..THREE }).await.unwrap();
    let payer = shop.spender("payer").await.unwrap();
    // One of the three over HTTP is left, and the socket makes the second.
    for place in [0, 1] {
        nodes(&shop)[place].cut_off();
    }
    let (good, short) = good_and_short(&shop, &payer).await;
    assert_eq!(shop.insist_on(&good, SOON).await.unwrap().status, 200);
    shop.insist_on(&short, SOON).await.unwrap().refuses("too little", 402, "underpaid", Next::Pay);
    nodes(&shop)[2].cut_off();
    let good = shop.buy(&payer, DEAR, "USDC").await.unwrap();
    shop.claim(&good).await.unwrap().refuses("the socket alone", 503, "payment_unverifiable", Next::Again);
    let cheap = shop.buy(&payer, Shop::AFTER, "USDC").await.unwrap();
    assert_eq!(shop.insist_on(&cheap, SOON).await.unwrap().status, 200);
}
