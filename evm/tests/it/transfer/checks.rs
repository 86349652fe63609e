//! Every check of the page's table, by its code, in its order.

use std::sync::atomic::Ordering;

use alloy::{primitives::TxKind, sol_types::SolCall};
use farebox_core::{Charged, Retry};

use super::*;
use crate::proxy::Fault;

#[tokio::test(flavor = "multi_thread")]
async fn what_the_payer_signed_is_compared_word_by_word() {
    let shop = Shop::new(&[]).await;
    let good = shop.draft(shop.pay(PRICE).await);
    let check = async |change: &dyn Fn(&mut Draft), expected: (u16, String)| {
        let mut draft = good.clone();
        change(&mut draft);
        assert_eq!(shop.claim_code(&draft).await, expected, "{draft:?}");
    };
    let (unknown, resource) = (no(402, "unknown_quote"), no(402, "resource_mismatch"));
    check(&|d| d.sealed = Some("AQAAAAFub25zZW5zZQ".into()), unknown.clone()).await;
    let other = Quoter::new(vec![QuoteKey { id: 1, secret: [6; 32], since: now() }]).unwrap();
    check(&|d| d.sealed = Some(other.seal(&d.quote)), unknown.clone()).await;
    check(&|d| d.quote.target = Quote::target(&RouteId::new("other"), "GET", URL), resource.clone()).await;
    check(&|d| d.quote.target = Quote::target(&ROUTE, "POST", URL), resource.clone()).await;
    check(&|d| d.method = "POST".into(), resource.clone()).await;
    check(&|d| d.resource = URL.replace("id=7", "id=8"), resource).await;
    let expired = no(402, "payment_code_expired");
    check(&|d| d.expires_at = now().unix_s() - 31, expired.clone()).await;
    check(&|d| d.expires_at = now().unix_s() + 632, expired).await;
    check(&|d| d.announced.0[0] ^= 1, no(400, "transaction_mismatch")).await;
    let terms = no(402, "terms_mismatch");
    check(&|d| d.amount -= 1, terms.clone()).await;
    check(&|d| d.amount += 1, terms.clone()).await;
    check(&|d| d.asset = native(), terms.clone()).await;
    check(&|d| d.asset = AssetId::erc20(Network::evm(8453), USDC.parse().unwrap()), terms.clone()).await;
    check(&|d| d.pay_to.0[0] ^= 1, terms).await;
    let thief = shop.sign_by(&good, &Payer::random().signer);
    assert_eq!(shop.claim(&thief).await.unwrap_err(), no(402, "bad_signature"));
    shop.claim(&shop.sign(&good)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_faults_the_first_of_the_table_is_told() {
    let shop = Shop::new(&[]).await;
    let good = shop.draft(shop.pay(PRICE).await);
    let past = now().unix_s() - 1000;
    let mut wrong = Draft { expires_at: past, method: "POST".into(), ..good.clone() };
    wrong.announced.0[0] ^= 1;
    assert_eq!(shop.claim_code(&wrong).await, no(402, "resource_mismatch"));
    wrong.method = "GET".into();
    wrong.quote.claim_by = now().minus(Duration::from_secs(1));
    assert_eq!(shop.claim_code(&wrong).await, no(402, "payment_code_expired"));
    wrong.expires_at = now().unix_s() + 60;
    assert_eq!(shop.claim_code(&wrong).await, no(402, "quote_expired"));
    wrong.quote.claim_by = now().plus(Duration::from_secs(60));
    wrong.amount += 1;
    assert_eq!(shop.claim_code(&wrong).await, no(400, "transaction_mismatch"));
    wrong.announced = wrong.transaction;
    let thief = shop.sign_by(&wrong, &Payer::random().signer);
    assert_eq!(shop.claim(&thief).await.unwrap_err(), no(402, "terms_mismatch"));
    // An expired quote is credit only if the rest holds.
    let mut underpaid = shop.draft(shop.pay(PRICE - 1).await);
    underpaid.quote.claim_by = now().minus(Duration::from_secs(1));
    assert_eq!(shop.claim_code(&underpaid).await, no(402, "quote_expired"));
    assert!(shop.ledger.payments().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_does_not_pay_is_refused_by_what_it_did() {
    let shop = Shop::new(&[]).await;
    let usdc_contract = TxKind::Call(USDC.parse().unwrap());
    let other = Payer::random();
    other.fund(shop.anvil()).await;
    let data = |to: Address, value: u128| transferCall { to, value: U256::from(value) }.abi_encode();

    let reverted = shop.payer.send(shop.anvil(), usdc_contract, 0, data(seller(), 10u128.pow(12))).await;
    assert_eq!(shop.claim_code(&shop.draft(reverted)).await, no(402, "payment_reverted"));
    let theirs = other.send(shop.anvil(), usdc_contract, 0, data(seller(), PRICE)).await;
    assert_eq!(shop.claim_code(&shop.draft(theirs)).await, no(402, "wrong_payer"));
    let astray = shop.payer.send(shop.anvil(), usdc_contract, 0, data(other.address(), PRICE)).await;
    assert_eq!(shop.claim_code(&shop.draft(astray)).await, no(402, "wrong_recipient"));
    let wei = shop.pay_native(10u128.pow(14)).await;
    assert_eq!(shop.claim_code(&shop.draft(wei)).await, no(402, "wrong_asset"));
    let nothing = shop.pay(0).await;
    assert_eq!(shop.claim_code(&shop.draft(nothing)).await, no(402, "underpaid"));

    let token = shop.pay(PRICE).await;
    assert_eq!(shop.claim_code(&shop.native_draft(token)).await, no(402, "wrong_asset"));
    let theirs = other.send(shop.anvil(), TxKind::Call(seller()), 10u128.pow(14), vec![]).await;
    assert_eq!(shop.claim_code(&shop.native_draft(theirs)).await, no(402, "wrong_payer"));
    let astray = shop.payer.send(shop.anvil(), TxKind::Call(other.address()), 10u128.pow(14), vec![]).await;
    assert_eq!(shop.claim_code(&shop.native_draft(astray)).await, no(402, "wrong_recipient"));
    let created = shop.payer.send(shop.anvil(), TxKind::Create, 10u128.pow(14), vec![0]).await;
    assert_eq!(shop.claim_code(&shop.native_draft(created)).await, no(402, "wrong_recipient"));
    let less = shop.pay_native(10u128.pow(14) - 1).await;
    assert_eq!(shop.claim_code(&shop.native_draft(less)).await, no(402, "underpaid"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_underpaid_is_told_and_never_added_up() {
    let shop = Shop::new(&[]).await;
    let two_halves = super::claims::batch_of(&shop, PRICE / 2 + 1, 2).await;
    let refusal = shop.refusal(&shop.draft(two_halves)).await;
    assert_eq!((&*refusal.code, refusal.retry, refusal.charged), ("underpaid", Retry::AfterPayment, Charged::No));
    assert_eq!(Value::Object(refusal.facts), json!({"required": "10000", "received": "5001"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_has_to_be_younger_than_its_quote() {
    let shop = Shop::new(&[]).await;
    let mut draft = shop.draft(shop.pay(PRICE).await);
    draft.quote.issued_at = now().plus(Duration::from_secs(40));
    assert_eq!(shop.claim_code(&draft).await, no(402, "paid_before_quote"));
    // Half a minute of other clocks is borne.
    draft.quote.issued_at = now().plus(Duration::from_secs(20));
    shop.claim(&shop.sign(&draft)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_knows_may_still_come() {
    let shop = Shop::new(&[]).await;
    let refusal = shop.refusal(&shop.draft(B256::repeat_byte(9))).await;
    assert_eq!((refusal.status, &*refusal.code), (402, "payment_not_found"));
    assert_eq!((refusal.retry, refusal.charged), (Retry::SameProof, Charged::Unknown));
    assert!(refusal.retry_after_s.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmined_transfer_has_no_confirmations() {
    let shop = Shop::new(&[]).await;
    shop.anvil().rpc("evm_setAutomine", json!([false])).await;
    let data = transferCall { to: seller(), value: U256::from(PRICE) }.abi_encode();
    let (hash, _) = shop.payer.broadcast(shop.anvil(), TxKind::Call(USDC.parse().unwrap()), 0, data).await;
    let mut draft = shop.draft(hash);
    draft.quote.options[0].finality = Finality::Blocks(3);
    for have in 0..3 {
        let refusal = shop.refusal(&draft).await;
        assert_eq!((refusal.status, &*refusal.code, refusal.retry), (402, "payment_pending", Retry::SameProof));
        assert_eq!(Value::Object(refusal.facts), json!({"have": have, "need": 3}));
        shop.anvil().rpc("evm_mine", json!([])).await;
    }
    shop.claim(&shop.sign(&draft)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_is_waited_for_and_one_that_the_node_lacks_is_no_verdict() {
    let (proxy, shop) = Shop::proxied(&["--slots-in-an-epoch", "2"], |_| ()).await;
    let transaction = shop.pay(PRICE).await;
    for (finality, word) in [(Finality::Safe, "safe"), (Finality::Finalized, "finalized")] {
        let mut draft = shop.draft(transaction);
        draft.quote.options[0].finality = finality;
        let refusal = shop.refusal(&draft).await;
        assert_eq!((&*refusal.code, &refusal.facts["need"]), ("payment_pending", &json!(word)));
        proxy.set(Fault::Lie(Arc::new(move |request, mut answer| {
            if request["params"][0] == word {
                answer["result"] = Value::Null;
            }
            answer
        })));
        assert_eq!(shop.claim_code(&draft).await, no(503, "payment_unverifiable"));
        proxy.set(None);
    }
    shop.anvil().rpc("anvil_mine", json!(["0x10"])).await;
    let mut draft = shop.draft(transaction);
    draft.quote.options[0].finality = Finality::Finalized;
    shop.claim(&shop.sign(&draft)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_do_not_fit_together_are_no_verdict() {
    let (proxy, shop) = Shop::proxied(&[], |config| config.limits.rpc_timeout = Duration::from_secs(2)).await;
    let draft = shop.draft(shop.pay(PRICE).await);
    let unverifiable = no(503, "payment_unverifiable");
    let (receipt, transaction, block) =
        ("eth_getTransactionReceipt", "eth_getTransactionByHash", "eth_getBlockByNumber");
    let ancient = format!("{:#x}", now().unix_s() - 121);
    let zero = json!(B256::ZERO);
    let faults: Vec<(&str, Fault)> = vec![
        ("nothing", Fault::Down),
        ("an error", Fault::Say(receipt, r#"{"jsonrpc":"2.0","id":0,"error":{"code":-32603,"message":"busy"}}"#)),
        ("a mined transaction without receipt", Fault::result(receipt, |found| *found = Value::Null)),
        ("a receipt without its transaction", Fault::result(transaction, |found| *found = Value::Null)),
        ("another transaction's receipt", {
            let zero = zero.clone();
            Fault::result(receipt, move |found| found["transactionHash"] = zero.clone())
        }),
        ("another sender", Fault::result(transaction, |found| found["from"] = json!(SELLER))),
        ("a receipt ahead of the head", Fault::result(receipt, |found| found["blockNumber"] = json!("0xffff"))),
        ("a block off the chain", Fault::result(receipt, move |found| found["blockHash"] = zero.clone())),
        (
            "no block at that height",
            Fault::Lie(Arc::new(|request, mut answer| {
                if request["method"] == "eth_getBlockByNumber" && request["params"][0] != "latest" {
                    answer["result"] = Value::Null;
                }
                answer
            })),
        ),
        ("a head of two minutes ago", Fault::result(block, move |found| found["timestamp"] = json!(ancient))),
    ];
    for (what, fault) in faults {
        proxy.set(fault);
        let found = shop.claim(&shop.sign(&draft)).await;
        assert_eq!(found.map(|payment| payment.id).unwrap_err(), unverifiable, "{what}");
    }
    proxy.set(None);
    assert!(shop.ledger.payments().is_empty());
    shop.claim(&shop.sign(&draft)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_asks_for_too_much_is_told_when_to_come_back() {
    let (proxy, shop) = Shop::proxied(&[], |_| ()).await;
    let few = Few(Mutex::new(1));
    let unknown = |byte| shop.sign(&shop.draft(B256::repeat_byte(byte)));
    assert_eq!(told(&shop.look(&unknown(1), &few).await.unwrap_err()), no(402, "payment_not_found"));
    let before = proxy.requests.load(Ordering::SeqCst);
    let Err(VerifyError::Refused(refusal)) = shop.look(&unknown(2), &few).await else { panic!("was looked up") };
    assert_eq!((refusal.status, &*refusal.code, refusal.retry_after_s), (429, "too_many_claims", Some(7)));
    assert_eq!((refusal.retry, refusal.charged), (Retry::SameProof, Charged::Unknown));
    // Neither does a stranger's signature for an address without code, once that is known.
    let forged = shop.sign_by(&shop.draft(B256::repeat_byte(3)), &Payer::random().signer);
    assert_eq!(told(&shop.look(&forged, &few).await.unwrap_err()), no(429, "too_many_claims"));
    assert_eq!(proxy.requests.load(Ordering::SeqCst), before);
    assert_eq!(told(&shop.look(&forged, &Unlimited).await.unwrap_err()), no(402, "bad_signature"));
    assert_eq!(told(&shop.look(&forged, &few).await.unwrap_err()), no(402, "bad_signature"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payer_who_asks_for_its_own_payment_again_uses_nothing_up() {
    let shop = Shop::new(&[]).await;
    let few = Few(Mutex::new(1));
    shop.anvil().rpc("evm_setAutomine", json!([false])).await;
    let data = transferCall { to: seller(), value: U256::from(PRICE) }.abi_encode();
    let usdc_contract = TxKind::Call(USDC.parse().unwrap());
    let (transaction, _) = shop.payer.broadcast(shop.anvil(), usdc_contract, 0, data).await;
    let credential = shop.sign(&shop.draft(transaction));
    for _ in 0..3 {
        assert_eq!(told(&shop.look(&credential, &few).await.unwrap_err()), no(402, "payment_pending"));
    }
    shop.anvil().rpc("evm_mine", json!([])).await;
    shop.look(&credential, &few).await.unwrap();
    // Somebody else's transaction is none of theirs.
    let stranger = Payer::random();
    let foreign = shop.sign_by(&Draft { payer: stranger.address(), ..shop.draft(transaction) }, &stranger.signer);
    assert_eq!(told(&shop.look(&foreign, &few).await.unwrap_err()), no(402, "wrong_payer"));
    assert_eq!(told(&shop.look(&foreign, &few).await.unwrap_err()), no(429, "too_many_claims"));
}
