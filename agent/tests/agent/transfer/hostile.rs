//! Bills that want more than they should get, wallets that have too little, and sellers that take the money and talk.

use std::{sync::Arc, time::Duration};

use axum::response::Response;
use farebox_agent::{DollarAsset, FetchError, NotSent, Policy, PolicyRule, Stake};
use farebox_core::{EvmAddress, Finality, Network, RailName};
use farebox_wire::transfer::TransferBill;
use serde_json::json;

use super::{chain::*, shop::*};
use crate::support::*;

/// Asks for a cent on terms that `change` has touched; what the agent says of it, with nothing signed.
async fn refused(
    rich: &Rich,
    policy: Policy,
    change: impl Fn(&mut TransferBill) + Send + Sync + 'static,
) -> FetchError {
    let seller = Seller::start(move |attempt, seen| {
        assert_eq!(attempt, 0);
        let mut terms = terms(seen, vec![cent_option()]);
        change(&mut terms);
        bill_of(&terms)
    })
    .await;
    let agent = rich.builder().policy(policy).build().unwrap();
    let error = agent.fetch(get(seller.url("/a?b=c"))).await.unwrap_err();
    assert_eq!(error.stake(), Stake::Nothing, "{error:?}");
    assert!(rich.payer.files("open").is_empty(), "{error:?}");
    error
}

#[tokio::test]
async fn terms_that_disagree_are_refused_before_anything_is_signed() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let payer = rich.address();
    let check = async |expected: &str, change: fn(&mut TransferBill, EvmAddress)| {
        let error = refused(&rich, policy(), move |terms| change(terms, payer)).await;
        let FetchError::Policy(rules) = &error else { panic!("{expected}: {error:?}") };
        assert_eq!(rules[0].rule.code(), expected, "{error}");
    };
    check("bill_for_another_request", |terms, _| terms.resource = terms.resource.replace("b=c", "b=d")).await;
    check("bill_for_another_request", |terms, _| terms.resource = "https://elsewhere.test/a?b=c".to_owned()).await;
    check("bill_for_another_request", |terms, _| terms.resource = "nonsense".to_owned()).await;
    check("bill_for_another_request", |terms, _| terms.method = "POST".to_owned()).await;
    check("transfer_to_itself", |terms, payer| terms.options[0].pay_to = payer).await;
    check("decimals_differ", |terms, _| terms.options[0].decimals = 18).await;
    check("over_max", |terms, _| terms.options[0].amount.units = 100_001).await;
    check("over_max", |terms, _| terms.options[0].amount.units = u128::MAX).await;
    check("over_max", |terms, _| terms.options[0] = option(coin(), COIN / 10_000)).await;
    check("asset_not_allowed", |terms, _| {
        let asset = "eip155:84532/erc20:0x00000000000000000000000000000000000000aa".parse().unwrap();
        terms.options[0].amount.asset = asset;
    })
    .await;
    check("time_too_short", |terms, _| terms.pay_by = now().plus(Duration::from_secs(20))).await;
    check("time_too_short", |terms, _| terms.claim_by = now().plus(Duration::from_secs(40))).await;
    check("time_too_short", |terms, _| {
        terms.options[0].finality = Finality::Finalized;
        terms.claim_by = now().plus(Duration::from_secs(600));
    })
    .await;
    check("too_many_confirmations", |terms, _| terms.options[0].finality = Finality::Blocks(u64::MAX)).await;
    assert_eq!((anvil.nonce_of(payer).await, anvil.tokens_of(SELLER).await), (0, 0));
}

#[tokio::test]
async fn the_owners_networks_and_payees_hold_for_transfers_too() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    for (expected, policy) in [
        ("network_not_allowed", Policy { networks: Some([Network::evm(1)].into()), ..policy() }),
        ("payee_not_allowed", Policy { payees: Some([EvmAddress([1; 20])].into()), ..policy() }),
        ("rail_not_allowed", Policy { rails: vec![RailName::X402], ..policy() }),
    ] {
        let FetchError::Policy(rules) = refused(&rich, policy, |_| {}).await else { panic!("{expected}") };
        assert_eq!(rules[0].rule.code(), expected);
    }
}

#[tokio::test]
async fn what_is_missing_is_said_before_anything_is_signed() {
    let anvil = Anvil::start().await;
    let rich = Rich::poor(&anvil);
    let not_sent = async |policy: Policy, in_coins: bool| {
        let change = move |terms: &mut TransferBill| {
            if in_coins {
                terms.options[0] = option(coin(), COIN / 1_000_000);
            }
        };
        match refused(&rich, policy, change).await {
            FetchError::NotSent(error) => *error,
            other => panic!("{other:?}"),
        }
    };
    let error = not_sent(policy(), false).await;
    assert!(error.to_string().contains("holds 0 USDC") && error.to_string().contains("0.01 are to be paid"), "{error}");
    assert!(matches!(error, NotSent::Short { .. }));
    assert!(matches!(not_sent(policy(), true).await, NotSent::Short { .. }));
    anvil.mint(rich.address(), 10_000).await;
    assert!(matches!(not_sent(policy(), false).await, NotSent::ShortOfGas { .. }));
    // Enough for the amount, not for its gas.
    anvil.coins(rich.address(), COIN / 1_000_000 + 21_000).await;
    assert!(matches!(not_sent(policy(), true).await, NotSent::ShortOfGas { .. }));
    anvil.coins(rich.address(), COIN).await;
    let frugal = Policy { max_gas_wei: 1_000, ..policy() };
    assert!(matches!(not_sent(frugal, false).await, NotSent::GasOverMax { .. }));
    let mut wrong = policy();
    wrong.assets = vec![DollarAsset::new(usdc(), "USDC", 8).unwrap()];
    let error = refused(&rich, wrong, |terms| terms.options[0].decimals = 8).await;
    assert_eq!(error.code(), "token_decimals_differ", "{error}");
    // A token that fails whoever asks.
    anvil.rpc("anvil_setCode", json!([USDC, "0x60006000fd"])).await;
    let error = refused(&rich, policy(), |_| {}).await;
    assert_eq!(error.code(), "wallet_unavailable", "{error}");
}

#[tokio::test]
async fn a_node_of_another_chain_or_none_signs_nothing() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let other = Network::evm(8453);
    let elsewhere = |terms: &mut TransferBill| {
        let token: EvmAddress = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913".parse().unwrap();
        terms.options[0].amount.asset = farebox_core::AssetId::erc20(Network::evm(8453), token);
    };
    let error = refused(&rich, policy(), elsewhere).await;
    assert_eq!(error.code(), "wallet_without_node", "{error}");
    let lost = Rich { wallet: Arc::new(wallet_of(rich.key, other, &anvil.url)), ..Rich::poor(&anvil) };
    let error = refused(&lost, policy(), elsewhere).await;
    assert_eq!(error.code(), "wallet_unavailable", "{error}");
}

#[tokio::test]
async fn a_huge_or_broken_transfer_member_is_no_bill() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let check = async |body: fn(&Seen) -> String| {
        let seller = Seller::start(move |_, seen| respond(402, &[], body(seen))).await;
        let error = rich.agent().fetch(get(seller.url("/"))).await.unwrap_err();
        assert!(error.code().starts_with("bill_"), "{error:?}");
        assert_eq!((seller.seen().len(), error.stake()), (1, Stake::Nothing));
    };
    check(|seen| {
        let mut terms = terms(seen, vec![cent_option()]);
        terms.quote = "q".repeat(farebox_agent::BILL_BODY_BYTES_MAX);
        json!({"transfer": terms}).to_string()
    })
    .await;
    check(|_| json!({"transfer": {"quote": 5}}).to_string()).await;
    check(|_| json!({"transfer": []}).to_string()).await;

    // Beside readable terms for x402 it is told and does not matter.
    let seller = Seller::start(|attempt, _| match attempt {
        0 => bill_with(&[cent()], r#"{"transfer": 5}"#),
        _ => goods(),
    })
    .await;
    let made = rich.agent().fetch(get(seller.url("/"))).await.unwrap().payment.unwrap();
    assert_eq!((made.offer.rail, made.notes.len()), (RailName::X402, 1), "{:?}", made.notes);
}

#[tokio::test]
async fn a_seller_that_bills_forever_gets_one_transfer() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::start(|_, seen| transfer_bill(seen)).await;
    for claims in [5, 10] {
        let error = rich.agent().fetch(get(seller.url("/"))).await.unwrap_err();
        assert_eq!((error.code(), error.stake()), ("charged_not_served", Stake::Charged));
        assert_eq!((seller.codes().len(), seller.claimed().len()), (claims, 1));
    }
    assert_eq!(anvil.tokens_of(SELLER).await, CENT);
}

/// Claims on one transfer that are all answered in the same way: what the agent says, twice.
async fn answered_with(answer: fn() -> Response, expected: &str) {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::of_transfers(move |_, _| answer()).await;
    for _ in 0..2 {
        let error = rich.agent().fetch(get(seller.url("/"))).await.unwrap_err();
        assert_eq!((error.code(), error.stake()), (expected, Stake::Charged), "{error}");
    }
    assert_eq!((seller.codes().len(), seller.claimed().len()), (2, 1));
    assert_eq!((anvil.tokens_of(SELLER).await, anvil.nonce_of(rich.address()).await), (CENT, 1));
}

#[tokio::test]
async fn a_seller_that_says_no_gets_no_second_transfer() {
    answered_with(|| says(402, "underpaid", "after_payment", json!(false)), "charged_not_delivered").await;
    answered_with(|| says(402, "unknown_quote", "after_payment", json!(false)), "charged_not_delivered").await;
    answered_with(|| says(409, "already_claimed", "never", json!(false)), "charged_not_delivered").await;
    answered_with(|| says(400, "malformed_payment_code", "never", json!(false)), "charged_not_delivered").await;
}

#[tokio::test]
async fn too_late_is_told_as_credit_and_not_paid_again() {
    answered_with(|| says(402, "quote_expired", "after_payment", json!(true)), "paid_as_credit").await;
    let credited = || {
        let body = json!({"code": "paid_too_late", "retry": "after_payment", "charged": true, "credit": "10000 USDC"});
        respond(402, &[("content-type", "application/problem+json")], body.to_string())
    };
    answered_with(credited, "paid_as_credit").await;
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::of_transfers(move |_, _| credited()).await;
    let error = rich.agent().fetch(get(seller.url("/"))).await.unwrap_err();
    assert!(
        matches!(&error, FetchError::Credited { credit: Some(credit), .. } if credit.contains("10000")),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_rule_is_told_for_every_option() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let change = |terms: &mut TransferBill| {
        let mut dear = cent_option();
        dear.amount.units = 1_000_000;
        terms.options = vec![dear, option(coin(), COIN)];
    };
    let FetchError::Policy(rules) = refused(&rich, policy(), change).await else { panic!() };
    assert!(rules.iter().all(|refused| matches!(refused.rule, PolicyRule::OverMax { .. })) && rules.len() == 2);
}
