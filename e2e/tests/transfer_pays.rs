//! Paid by a plain transaction, with a wallet and an HTTP client and nothing else, on a real node.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::time::Duration;

use alloy::{
    network::TransactionBuilder,
    primitives::{Bytes, U256},
    providers::Provider,
    rpc::types::TransactionRequest,
    sol_types::{SolCall, SolValue},
};
use farebox_e2e::{
    Account, Answer, Claim, Next, Reply, Shop, ShopOptions, Usdc,
    contract::{Contracts, deploy},
    now_s,
};
use futures_util::future::join_all;
use http::Method;
use serde_json::{Value, json};

/// Far above what anything here takes, for a machine with ten other things to do.
const SOON: Duration = Duration::from_secs(30);
/// A cent in ether at the shop's rate of 2500 dollars, wei.
const CENT_IN_WEI: u128 = 4_000_000_000_000;

async fn open() -> Shop {
    Shop::open_with(ShopOptions::BOTH).await.unwrap()
}

#[tokio::test]
async fn the_bill_is_enough_to_pay_from() {
    let shop = open().await;
    let path = "/after/report?id=7&q=%C3%A4";
    let bill = shop.quote(path).await.unwrap();
    assert_eq!((&bill.json["resource"], &bill.json["method"]), (&json!(shop.farebox.url(path)), &json!("GET")));
    for time in ["payBy", "claimBy"] {
        assert!(bill.json[time].as_str().is_some_and(|time| time.ends_with('Z') && time.len() == 20), "{}", bill.json);
    }
    for (symbol, asset, decimals, amount) in [
        ("USDC", Usdc::ADDRESS.to_string(), 6, Shop::PRICE.to_string()),
        ("ETH", "native".to_owned(), 18, CENT_IN_WEI.to_string()),
    ] {
        let option = bill.option(symbol).unwrap().json;
        let expected = json!({
            "network": "eip155:84532", "asset": asset, "symbol": symbol, "decimals": decimals,
            "payTo": Shop::SELLER.to_string(), "amount": amount, "confirmations": 1, "networkFee": option["networkFee"],
        });
        assert_eq!(option, expected);
        let fee = &option["networkFee"];
        assert_eq!((&fee["asset"], &fee["unit"]), (&json!("native"), &json!("wei")), "{option}");
        assert!(fee["estimate"].as_str().is_some_and(|wei| wei.parse::<u128>().is_ok_and(|wei| wei > 21_000)), "{fee}");
    }
    let how = bill.json["claim"].to_string();
    for word in [
        "X-Payment-Hash",
        "X-Payment-Code",
        "base64url",
        "Farebox Payment Code",
        "PaymentCode(string quote,string method,string resource,bytes32 transaction,address asset,address payer,address payTo,uint256 amount,uint256 expiresAt)",
        "0xEeeeeEeeeEeEeeEeEeEeeEEEeeeeEeeeeeeeEEeE",
    ] {
        assert!(how.contains(word), "{word}: {how}");
    }
    let head = shop.quote_for(Method::POST, path).await.unwrap();
    assert_eq!(head.json["method"], "POST");
    assert_ne!(head.json["quote"], bill.json["quote"]);
    assert_eq!(shop.echo.hits(), 0);
}

#[tokio::test]
async fn a_plain_transfer_of_usdc_or_ether_is_served_once_and_then_from_the_books() {
    let shop = open().await;
    let payer = shop.spender("payer").await.unwrap();
    let mut sold = 0;
    for path in [Shop::AFTER, Shop::BEFORE] {
        for (symbol, units, position) in [("USDC", Shop::PRICE, json!(0)), ("ETH", CENT_IN_WEI, Value::Null)] {
            let name = format!("{path} for {symbol}");
            let claim = shop.buy(&payer, path, symbol).await.unwrap();
            let first = shop.claim(&claim).await.unwrap();
            sold += 1;
            assert_eq!((first.status, first.is_replay(), shop.echo.hits()), (200, false, sold), "{name}: {first:?}");
            let receipt = first.receipt().unwrap();
            for (member, value) in [
                ("success", json!(true)),
                ("transaction", json!(claim.announced)),
                ("network", json!("eip155:84532")),
                ("payer", json!(payer.address().to_string())),
                ("amount", json!(units.to_string())),
                ("logIndex", position.clone()),
                ("credit", Value::Null),
            ] {
                assert_eq!(receipt[member], value, "{name}: {member} of {receipt}");
            }
            let asset = receipt["asset"].as_str().unwrap();
            assert_eq!(asset.to_lowercase(), claim.code["asset"].as_str().unwrap().to_lowercase(), "{name}");
            assert_eq!(first.header("cache-control"), Some("private"), "{name}");

            let signed_again = claim.clone().with("expiresAt", now_s() + 60).signed(&payer).await.unwrap();
            assert_ne!(signed_again.code["signature"], claim.code["signature"]);
            for again in [&claim, &signed_again] {
                let again = shop.claim(again).await.unwrap();
                assert!(again.status == 200 && again.is_replay(), "{name}: {again:?}");
                assert_eq!((&again.body, again.receipt()), (&first.body, first.receipt()), "{name}");
            }
            assert_eq!(shop.echo.hits(), sold, "{name}");
            let seen = shop.echo.seen().pop().unwrap();
            let payer_name = format!("eip155:84532:{}", payer.address());
            assert_eq!(seen.header("farebox-payer"), Some(&*payer_name), "{name}");
            assert_eq!(seen.header("farebox-payment-id"), first.header("farebox-payment-id"), "{name}");
            assert_eq!((seen.header("x-payment-hash"), seen.header("x-payment-code")), (None, None), "{name}");
        }
    }
    let audit = shop.audit().await.unwrap();
    assert_eq!((audit.in_state("settled").count(), audit.payments.len(), audit.relayed), (4, 4, 0));
    for row in &audit.payments {
        assert_eq!((&row["rail"], &row["delivery"]), (&json!("transfer"), &json!("delivered")), "{row}");
    }
    let told: Vec<Value> = shop.audit_log().await.unwrap().iter().map(|entry| entry["outcome"].clone()).collect();
    assert_eq!(told, ["settled", "delivered"].repeat(4));
}

#[tokio::test]
async fn what_was_served_is_told_again_when_code_and_connection_are_long_gone() {
    let mut shop = open().await;
    let payer = shop.spender("payer").await.unwrap();
    let claim = shop.buy(&payer, Shop::AFTER, "USDC").await.unwrap();
    // Ends at once, but for the skew of clocks that is borne.
    let claim = claim.with("expiresAt", now_s() - 20).signed(&payer).await.unwrap();
    let first = shop.claim(&claim).await.unwrap();
    assert_eq!(first.status, 200, "{first:?}");
    shop.farebox.restart_ahead(Duration::from_secs(60)).await.unwrap();
    let again = shop.claim(&claim).await.unwrap();
    assert!(again.status == 200 && again.is_replay(), "{again:?}");
    assert_eq!((&again.body, again.receipt()), (&first.body, first.receipt()));

    let never_used = shop.buy(&payer, Shop::AFTER, "USDC").await.unwrap();
    let never_used = never_used.with("expiresAt", now_s() - 20).signed(&payer).await.unwrap();
    shop.claim(&never_used).await.unwrap().refuses("a new claim", 402, "payment_code_expired", Next::Mend);
    assert_eq!(shop.echo.hits(), 1);
}

#[tokio::test]
async fn a_contract_wallet_pays_and_its_owner_signs() {
    let shop = open().await;
    let owner = shop.spender("owner").await.unwrap();
    let wallet = deploy(&shop.anvil, "Wallet", &owner.address().abi_encode()).await.unwrap();
    shop.usdc.mint(wallet, Shop::PRICE).await.unwrap();
    let bill = shop.quote(Shop::AFTER).await.unwrap();
    let option = bill.option("USDC").unwrap();
    let data = Contracts::transferCall { to: option.pay_to, value: U256::from(option.units) }.abi_encode().into();
    let execute = Contracts::executeCall { to: Usdc::ADDRESS, value: U256::ZERO, data }.abi_encode();
    let request = TransactionRequest::default().with_to(wallet).with_input(execute);
    let transaction = shop.anvil.send(&owner, request).await.unwrap();

    let owners = bill.claim(&option, transaction, owner.address()).signed(&owner).await.unwrap();
    shop.claim(&owners).await.unwrap().refuses("the owner's own name", 402, "wrong_payer", Next::Mend);
    let stranger = Account::named("stranger").unwrap();
    let strangers = bill.claim(&option, transaction, wallet).signed(&stranger).await.unwrap();
    shop.claim(&strangers).await.unwrap().refuses("a stranger's signature", 402, "bad_signature", Next::Mend);
    let claim = bill.claim(&option, transaction, wallet).signed(&owner).await.unwrap();
    served_once(&shop, &claim).await;
}

#[tokio::test]
async fn what_a_contract_wallet_sends_within_a_transaction_is_no_payment_in_ether() {
    let shop = open().await;
    let owner = shop.spender("owner").await.unwrap();
    let wallet = deploy(&shop.anvil, "Wallet", &owner.address().abi_encode()).await.unwrap();
    let bill = shop.quote(Shop::AFTER).await.unwrap();
    let option = bill.option("ETH").unwrap();
    let value = U256::from(option.units);
    let execute = Contracts::executeCall { to: option.pay_to, value, data: Bytes::new() }.abi_encode();
    let request = TransactionRequest::default().with_to(wallet).with_value(value).with_input(execute);
    let transaction = shop.anvil.send(&owner, request).await.unwrap();
    assert_eq!(shop.anvil.provider().get_balance(Shop::SELLER).await.unwrap(), value);
    for payer in [wallet, owner.address()] {
        let claim = bill.claim(&option, transaction, payer).signed(&owner).await.unwrap();
        let reply = shop.claim(&claim).await.unwrap();
        reply.refuses("ether from within", 402, "wrong_recipient", Next::Mend);
    }
    assert_eq!((shop.echo.hits(), shop.payments().await.unwrap().len()), (0, 0));
}

#[tokio::test]
async fn what_came_beside_the_price_is_the_payers_credit() {
    let shop = open().await;
    let payer = shop.spender("payer").await.unwrap();
    for symbol in ["USDC", "ETH"] {
        let bill = shop.quote(Shop::AFTER).await.unwrap();
        let option = bill.option(symbol).unwrap();
        let too_much = shop.transfer_of(&option, option.units + 2_345);
        let transaction = shop.anvil.send(&payer, too_much).await.unwrap();
        let claim = bill.claim(&option, transaction, payer.address()).signed(&payer).await.unwrap();
        let reply = served_once(&shop, &claim).await;
        let receipt = reply.receipt().unwrap();
        let told = (&receipt["amount"], &receipt["credit"]);
        assert_eq!(told, (&json!(option.units.to_string()), &json!("2345")), "{receipt}");
        let row = shop.payments().await.unwrap().remove(0);
        assert_eq!((&row["units"], &row["credit_units"]), (&json!(option.units.to_string()), &json!("2345")), "{row}");
    }
    let claims = shop.audit_log().await.unwrap();
    assert_eq!(claims.iter().filter(|entry| entry["credit"] == "2345").count(), claims.len());
    shop.audit().await.unwrap();
}

#[tokio::test]
async fn a_hundred_copies_at_once_are_one_run_and_one_outcome() {
    let shop = open().await;
    let payer = shop.spender("payer").await.unwrap();
    for (number, symbol) in ["USDC", "ETH"].into_iter().enumerate() {
        let claim = shop.buy(&payer, Shop::AFTER, symbol).await.unwrap();
        let replies = join_all((0..100).map(|_| shop.claim(&claim))).await;
        let replies: Vec<Reply> = replies.into_iter().map(Result::unwrap).collect();
        for reply in &replies {
            assert_eq!((reply.status, &reply.body), (200, &replies[0].body), "{reply:?}");
            assert_eq!(reply.receipt(), replies[0].receipt());
        }
        assert_eq!(replies.iter().filter(|reply| !reply.is_replay()).count(), 1);
        assert_eq!(shop.echo.hits(), number + 1);
    }
    assert_eq!(shop.audit().await.unwrap().payments.len(), 2);
}

#[tokio::test]
async fn a_hundred_quotes_for_one_transfer_are_one_run() {
    let shop = open().await;
    let payer = shop.spender("payer").await.unwrap();
    let mut bills = vec![];
    for _ in 0..100 {
        bills.push(shop.quote(Shop::AFTER).await.unwrap());
    }
    let option = bills[0].option("USDC").unwrap();
    let transaction = shop.pay(&payer, &option).await.unwrap();
    let mut claims = vec![];
    for bill in &bills {
        claims.push(bill.claim(&option, transaction, payer.address()).signed(&payer).await.unwrap());
    }
    // One payer may not have so many under way at once: those that are told so ask again.
    let replies = join_all(claims.iter().map(|claim| shop.insist_on(claim, SOON))).await;
    let replies: Vec<Reply> = replies.into_iter().map(Result::unwrap).collect();
    assert_eq!(replies.iter().filter(|reply| reply.status == 200).count(), 1, "{replies:?}");
    for reply in replies.iter().filter(|reply| reply.status != 200) {
        reply.refuses("another quote", 409, "already_claimed", Next::Nothing);
    }
    assert_eq!(shop.echo.hits(), 1);
    assert_eq!(shop.audit().await.unwrap().payments.len(), 1);
}

#[tokio::test]
async fn an_upstream_that_fails_is_asked_again_until_one_answer_is_kept() {
    let shop = open().await;
    let payer = shop.spender("payer").await.unwrap();
    for path in ["/after/hasty", "/before/hasty"] {
        let claim = shop.buy(&payer, path, "USDC").await.unwrap();
        let runs = shop.echo.hits();
        let failures = [Answer::Status(500), Answer::HangUp, Answer::ResetMidBody, Answer::Held, Answer::Status(503)];
        for failure in &failures {
            shop.echo.answer_next(failure.clone());
            let owed = shop.claim(&claim).await.unwrap();
            assert_eq!((owed.status / 100, owed.is_bill()), (5, false), "{path}: {failure:?}: {owed:?}");
        }
        // Below 500 it is an answer, and what was paid for.
        shop.echo.answer_next(Answer::Status(404));
        let answer = shop.insist_on(&claim, SOON).await.unwrap();
        assert_eq!((answer.status, answer.is_replay()), (404, false), "{path}: {answer:?}");
        assert_eq!(answer.receipt().unwrap()["success"], true);
        let again = shop.claim(&claim).await.unwrap();
        assert_eq!((again.status, again.is_replay(), &again.body), (404, true, &answer.body), "{path}: {again:?}");
        assert_eq!(shop.echo.hits(), runs + failures.len() + 1, "{path}");
    }
    let audit = shop.audit().await.unwrap();
    assert_eq!((audit.in_state("settled").count(), audit.payments.len()), (2, 2));
}

#[tokio::test]
async fn a_repeat_with_another_body_gets_the_first_ones_answer() {
    let shop = open().await;
    let payer = shop.spender("payer").await.unwrap();
    let bill = shop.quote_for(Method::POST, Shop::AFTER).await.unwrap();
    let option = bill.option("USDC").unwrap();
    let transaction = shop.pay(&payer, &option).await.unwrap();
    let claim = bill.claim(&option, transaction, payer.address()).signed(&payer).await.unwrap();
    let mut answers = vec![];
    for body in ["the first question", "another question"] {
        let answer = shop.claim_request(Method::POST, &claim).body(body).send().await.unwrap();
        let answer = Reply::read(answer).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        answers.push(answer);
    }
    assert_eq!((&answers[0].body, answers[1].is_replay()), (&answers[1].body, true));
    let seen = shop.echo.seen();
    assert_eq!((seen.len(), &*seen[0].body), (1, b"the first question".as_slice()));
}

#[tokio::test]
async fn two_hundred_transfers_in_one_transaction_are_two_hundred_payments() {
    const TIMES: usize = 200;
    let shop = open().await;
    let payer = shop.spender("payer").await.unwrap();
    let batch = deploy(&shop.anvil, "Batch", &[]).await.unwrap();
    let approve = Contracts::approveCall { spender: batch, value: U256::MAX }.abi_encode();
    let to_usdc = TransactionRequest::default().with_to(Usdc::ADDRESS).with_input(approve);
    shop.anvil.send(&payer, to_usdc).await.unwrap();

    let mut bills = vec![];
    for _ in 0..=TIMES {
        bills.push(shop.quote(Shop::AFTER).await.unwrap());
    }
    let option = bills[0].option("USDC").unwrap();
    let (value, times) = (U256::from(option.units), U256::from(TIMES));
    let pay = Contracts::payCall { token: Usdc::ADDRESS, to: option.pay_to, value, times }.abi_encode();
    let request = TransactionRequest::default().with_to(batch).with_input(pay);
    let transaction = shop.anvil.send(&payer, request).await.unwrap();

    let mut positions = vec![];
    for (number, bill) in bills.iter().enumerate() {
        let claim = bill.claim(&option, transaction, payer.address()).signed(&payer).await.unwrap();
        let reply = shop.claim(&claim).await.unwrap();
        if number == TIMES {
            reply.refuses("one more than there are", 409, "already_claimed", Next::Nothing);
            break;
        }
        assert_eq!((reply.status, reply.is_replay()), (200, false), "{number}: {reply:?}");
        positions.push(reply.receipt().unwrap()["logIndex"].as_u64().unwrap());
    }
    let in_order: Vec<u64> = (0..TIMES as u64).collect();
    assert_eq!((positions, shop.echo.hits()), (in_order, TIMES));
    assert_eq!(shop.audit().await.unwrap().in_state("settled").count(), TIMES);
}

#[tokio::test]
async fn payments_on_both_rails_of_one_route_stand_beside_each_other() {
    let shop = open().await;
    let payer = shop.spender("payer").await.unwrap();
    let transferred = shop.buy(&payer, Shop::AFTER, "USDC").await.unwrap();
    let authorized = shop.sign(&payer, Shop::AFTER, "beside").await.unwrap();
    served_once(&shop, &transferred).await;
    assert_eq!(shop.send(&authorized).await.unwrap().status, 200);
    let both = shop.request(&authorized).header("x-payment-hash", &transferred.announced);
    let both = Reply::read(both.header("x-payment-code", transferred.encoded()).send().await.unwrap()).await.unwrap();
    assert_eq!(both.status, 400, "{both:?}");
    let audit = shop.audit().await.unwrap();
    let mut rails: Vec<_> = audit.in_state("settled").map(|row| row["rail"].as_str().unwrap()).collect();
    rails.sort_unstable();
    assert_eq!((rails, audit.relayed), (vec!["transfer", "x402"], 1));
}

/// Served by one run of the upstream, and by none the second time.
async fn served_once(shop: &Shop, claim: &Claim) -> Reply {
    let runs = shop.echo.hits();
    let first = shop.claim(claim).await.unwrap();
    assert_eq!((first.status, first.is_replay()), (200, false), "{first:?}");
    let again = shop.claim(claim).await.unwrap();
    assert_eq!((again.status, again.is_replay(), &again.body), (200, true, &first.body), "{again:?}");
    assert_eq!(shop.echo.hits(), runs + 1);
    first
}
