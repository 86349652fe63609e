//! Transfers that go well, and sellers that take their time.

use std::time::Duration;

use farebox_agent::{Charge, Policy, Quote};
use farebox_core::{Finality, RailName};

use super::{chain::*, shop::*};
use crate::support::*;

#[tokio::test]
async fn a_token_is_sent_waited_for_and_claimed_once() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::of_transfers(|_, _| goods()).await;
    let fetched = rich.agent().fetch(get(seller.url("/report?id=7"))).await.unwrap();
    let made = fetched.payment.clone().unwrap();
    assert_eq!(read(Ok(fetched)).await, (200, "goods".to_owned()));

    let code = seller.codes().remove(0);
    assert_eq!(seller.codes().len(), 1);
    assert_eq!((anvil.tokens_of(SELLER).await, anvil.tokens_of(&rich.eip55()).await), (CENT, 10_000_000 - CENT));
    assert_eq!((code.payer, &code.asset, code.amount), (rich.address(), &usdc(), CENT));
    assert_eq!((&*code.method, &*code.resource), ("GET", seller.url("/report?id=7").as_str()));
    let lives = code.expires_at - now().unix_s();
    assert!((590..=600).contains(&lives), "{lives} s");

    let transfer = made.transfer.unwrap();
    assert_eq!((transfer.transaction.as_str(), transfer.confirmations), (&*hash(&code), Some(1)));
    assert_eq!(Some(COIN - anvil.coins_of(&rich.eip55()).await), transfer.gas_wei);
    assert_eq!(made.charge, Charge::Charged { transaction: Some(transfer.transaction) });
    assert_eq!((rich.payer.files("open").len(), rich.payer.files("closed").len()), (0, 1));
}

#[tokio::test]
async fn the_coin_is_sent_where_it_is_what_the_wallet_has() {
    let anvil = Anvil::start().await;
    let rich = Rich::poor(&anvil);
    anvil.coins(rich.address(), COIN).await;
    let before = anvil.coins_of(SELLER).await;
    let price = COIN / 1_000_000;
    let seller = Seller::start(move |attempt, seen| match attempt {
        0 => bill_of(&terms(seen, vec![cent_option(), option(coin(), price)])),
        _ => goods(),
    })
    .await;
    let made = rich.agent().fetch(get(seller.url("/"))).await.unwrap().payment.unwrap();
    assert_eq!((made.price.unwrap().to_string(), &seller.codes()[0].asset), ("$0.002".to_owned(), &coin()));
    assert_eq!(anvil.coins_of(SELLER).await - before, price);
}

#[tokio::test]
async fn x402_comes_first_and_a_transfer_where_it_cannot_be_paid() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::start(|attempt, seen| {
        let dear = seen.path == "/dear";
        let body = serde_json::json!({"transfer": terms(seen, vec![cent_option()])}).to_string();
        if attempt == 0 || !seen.headers.contains_key("payment-signature") && seen.credential().is_none() {
            bill_with(&[if dear { offer(1_000_000) } else { cent() }], body)
        } else {
            goods()
        }
    })
    .await;
    let rail = async |agent: farebox_agent::Agent, path: &str| {
        let fetched = agent.fetch(get(seller.url(path))).await.unwrap();
        let rail = fetched.payment.as_ref().unwrap().offer.rail;
        read(Ok(fetched)).await;
        rail
    };
    assert_eq!(rail(rich.agent(), "/").await, RailName::X402);
    assert_eq!(rail(rich.agent(), "/dear").await, RailName::Transfer);
    let policy = |rails: Vec<RailName>| Policy { rails, ..policy() };
    let only = |rails| rich.builder().policy(policy(rails)).build().unwrap();
    assert_eq!(rail(only(vec![RailName::Transfer]), "/").await, RailName::Transfer);
    assert_eq!(rail(only(vec![RailName::Transfer, RailName::X402]), "/").await, RailName::Transfer);
    let error = only(vec![RailName::X402]).fetch(get(seller.url("/dear"))).await.unwrap_err();
    assert_eq!(error.code(), "policy_refused");
    assert!(error.to_string().contains("paying by transfer is not among"), "{error}");

    let quote = only(vec![RailName::X402, RailName::Transfer]).quote(get(seller.url("/dear"))).await.unwrap();
    let Quote::Bill { offers, .. } = quote else { panic!() };
    let shown: Vec<_> = offers.iter().map(|o| (o.offer.rail, o.judgement.is_ok(), o.chosen)).collect();
    assert_eq!(shown, [(RailName::X402, false, false), (RailName::Transfer, true, true)]);
}

#[tokio::test]
async fn nothing_is_claimed_before_it_has_its_confirmations() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::start(|attempt, seen| match attempt {
        0 => {
            let mut option = cent_option();
            option.finality = Finality::Blocks(4);
            bill_of(&terms(seen, vec![option]))
        }
        _ => goods(),
    })
    .await;
    let agent = rich.agent();
    let url = seller.url("/");
    let paying = tokio::spawn(async move { agent.fetch(get(url)).await });
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(seller.codes().is_empty());
        anvil.mine(1).await;
    }
    let made = paying.await.unwrap().unwrap().payment.unwrap();
    assert_eq!((made.transfer.unwrap().confirmations, anvil.tokens_of(SELLER).await), (Some(4), CENT));
}

#[tokio::test]
async fn what_the_seller_has_not_seen_is_claimed_again_with_the_same_code() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::of_transfers(|attempt, _| match attempt {
        1 => pending(),
        2 => says(402, "payment_not_found", "same_proof", serde_json::json!("unknown")),
        3 => says(503, "payment_unverifiable", "same_proof", serde_json::json!("unknown")),
        4 => says(429, "too_many_claims", "same_proof", serde_json::json!("unknown")),
        5 => respond(503, &[("retry-after", "1")], "x"),
        // More than the attempts that a silent seller gets.
        6..=12 => pending(),
        _ => goods(),
    })
    .await;
    #[expect(clippy::disallowed_methods, reason = "measures the wait itself")]
    let began = std::time::Instant::now();
    assert_eq!(read(rich.agent().fetch(get(seller.url("/"))).await).await.0, 200);
    assert!(began.elapsed() >= Duration::from_secs(1), "Retry-After is honoured");
    assert_eq!((seller.credentials().len(), seller.distinct_credentials()), (13, 1));
    assert_eq!(anvil.tokens_of(SELLER).await, CENT);
}

#[tokio::test]
async fn an_expired_code_is_signed_anew_for_the_same_transaction() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let clock = std::sync::Arc::clone(&rich.payer.clock);
    let seller = Seller::of_transfers(move |attempt, _| {
        clock.advance(Duration::from_secs(1));
        match attempt {
            1 => says(402, "payment_code_expired", "after_payment", serde_json::json!(false)),
            // Nearly over: signed anew unasked.
            2 => {
                clock.advance(Duration::from_secs(550));
                pending()
            }
            _ => goods(),
        }
    })
    .await;
    assert_eq!(read(rich.agent().fetch(get(seller.url("/"))).await).await.0, 200);
    assert_eq!((seller.distinct_credentials(), seller.claimed().len()), (3, 1));
    assert_eq!((anvil.tokens_of(SELLER).await, anvil.nonce_of(rich.address()).await), (CENT, 1));

    let never =
        Seller::of_transfers(|_, _| says(402, "payment_code_expired", "after_payment", serde_json::json!(false)));
    let never = never.await;
    let error = rich.agent().fetch(get(never.url("/"))).await.unwrap_err();
    assert_eq!((error.code(), never.codes().len(), never.claimed().len()), ("charged_not_served", 5, 1));
}

#[tokio::test]
async fn credit_is_told() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::of_transfers(|_, seen| {
        let word = serde_json::json!({"success": true, "transaction": hash(&code(seen)), "network": "eip155:84532",
            "payer": format!("{:x}", code(seen).payer), "amount": "10000", "credit": "7"});
        let header = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, word.to_string());
        respond(200, &[("payment-response", &header)], "goods")
    })
    .await;
    let made = rich.agent().fetch(get(seller.url("/"))).await.unwrap().payment.unwrap();
    assert_eq!((made.transfer.unwrap().credit_units, made.notes), (Some(7), vec![]));
}

#[tokio::test]
async fn an_upstream_that_failed_is_claimed_again_by_the_next_run() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller =
        Seller::of_transfers(|attempt, _| if attempt == 1 { respond(500, &[], "boom") } else { goods() }).await;
    assert_eq!(read(rich.agent().fetch(get(seller.url("/"))).await).await, (500, "boom".to_owned()));
    assert_eq!(read(rich.agent().fetch(get(seller.url("/"))).await).await.0, 200);
    assert_eq!((seller.claimed().len(), anvil.tokens_of(SELLER).await), (1, CENT));
}
