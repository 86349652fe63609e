//! Transfers that are not mined: too cheap, displaced, failed, late, or mined and then undone.

use std::time::Duration;

use farebox_agent::{FetchError, Policy, RetryPolicy, Stake};
use farebox_core::Finality;
use serde_json::{Value, json};

use super::{chain::*, shop::*};
use crate::support::*;

const SOON: Duration = Duration::from_millis(200);

/// Raises fees soon, and gives up after `deadline`.
fn impatient(deadline: Duration) -> RetryPolicy {
    RetryPolicy { transfer_deadline: deadline, bump_after: SOON, ..retry() }
}

fn fee(signed: &Value, part: &str) -> u128 {
    signed["fee"][part].as_str().unwrap().parse().unwrap()
}

fn raised(entry: &Value) -> Vec<Value> {
    entry["current"]["proof"]["raised"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_stuck_transfer_is_replaced_at_its_nonce_and_what_is_mined_is_claimed() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::of_transfers(|_, _| goods()).await;
    anvil.automine(false).await;
    let agent = rich.builder().retry(impatient(Duration::from_secs(20))).build().unwrap();
    let url = seller.url("/");
    let paying = tokio::spawn(async move { read(agent.fetch(get(url)).await).await.0 });
    let entry = loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if rich.payer.files("open").len() == 1 && raised(&rich.entry()).len() >= 2 {
            break rich.entry();
        }
    };
    let mut versions = vec![entry["current"]["proof"]["first"].clone()];
    versions.extend(raised(&entry));
    for pair in versions.windows(2) {
        for part in ["max", "tip"] {
            let (old, new) = (fee(&pair[0], part), fee(&pair[1], part));
            assert!(new * 8 > old * 9, "{part}: {old} {new}");
        }
    }
    anvil.mine(1).await;
    assert_eq!(paying.await.unwrap(), 200);
    assert_eq!((anvil.tokens_of(SELLER).await, anvil.nonce_of(rich.address()).await), (CENT, 1));
    let known: Vec<_> = versions.iter().map(|v| v["transaction"].as_str().unwrap().to_owned()).collect();
    let claimed = seller.claimed();
    assert!(claimed.len() == 1 && claimed[0] != known[0], "{claimed:?} {known:?}");
}

#[tokio::test]
async fn an_older_version_that_is_mined_after_all_is_the_one_that_is_claimed() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::of_transfers(|_, _| goods()).await;
    anvil.automine(false).await;
    let agent = rich.builder().retry(impatient(Duration::from_millis(700))).build().unwrap();
    agent.fetch(get(seller.url("/"))).await.unwrap_err();
    let entry = rich.entry();
    assert!(!raised(&entry).is_empty());
    let first = &entry["current"]["proof"]["first"];
    for newer in raised(&entry) {
        let _ = anvil.rpc("anvil_dropTransaction", json!([newer["transaction"]])).await;
    }
    anvil.rpc("eth_sendRawTransaction", json!([format!("0x{}", first["raw"].as_str().unwrap())])).await;
    anvil.mine(1).await;
    assert_eq!(read(rich.agent().fetch(get(seller.url("/"))).await).await.0, 200);
    assert_eq!(seller.claimed(), [first["transaction"].as_str().unwrap()]);
    assert_eq!((anvil.tokens_of(SELLER).await, anvil.nonce_of(rich.address()).await), (CENT, 1));
}

#[tokio::test]
async fn a_fee_is_never_raised_over_the_limit() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::of_transfers(|_, _| goods()).await;
    anvil.automine(false).await;
    let agent = rich.builder().retry(impatient(Duration::from_millis(600))).build().unwrap();
    agent.fetch(get(seller.url("/"))).await.unwrap_err();
    let entry = rich.entry();
    let proof = &entry["current"]["proof"];
    let newest = raised(&entry).last().cloned().unwrap_or(proof["first"].clone());
    let cost = fee(&newest, "max") * u128::from(proof["gas_limit"].as_u64().unwrap());
    let count = raised(&entry).len();
    let policy = Policy { max_gas_wei: cost + cost / 100, ..policy() };
    let agent = rich.builder().policy(policy).retry(impatient(Duration::from_secs(1))).build().unwrap();
    agent.fetch(get(seller.url("/"))).await.unwrap_err();
    assert_eq!(raised(&rich.entry()).len(), count);
}

#[tokio::test]
async fn a_reorganisation_after_the_transfer_was_mined_ends_in_one_transfer_all_the_same() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::start(|attempt, seen| match attempt {
        0 => {
            let mut option = cent_option();
            option.finality = Finality::Blocks(3);
            bill_of(&terms(seen, vec![option]))
        }
        _ => goods(),
    })
    .await;
    let agent = rich.builder().retry(impatient(Duration::from_secs(20))).build().unwrap();
    let url = seller.url("/");
    let paying = tokio::spawn(async move { read(agent.fetch(get(url)).await).await.0 });
    while anvil.tokens_of(SELLER).await == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(SOON).await;
    anvil.rpc("anvil_reorg", json!([1, []])).await;
    assert_eq!(anvil.tokens_of(SELLER).await, 0);
    while anvil.tokens_of(SELLER).await == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(seller.codes().is_empty());
    anvil.mine(2).await;
    assert_eq!(paying.await.unwrap(), 200);
    assert_eq!((anvil.tokens_of(SELLER).await, anvil.nonce_of(rich.address()).await), (CENT, 1));
    assert_eq!(seller.claimed().len(), 1);
}

#[tokio::test]
async fn a_reorganisation_between_two_claims_sends_the_transfer_again() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::of_transfers(|attempt, _| if attempt < 4 { pending() } else { goods() }).await;
    let agent = rich.builder().retry(impatient(Duration::from_secs(20))).build().unwrap();
    let url = seller.url("/");
    let paying = tokio::spawn(async move { read(agent.fetch(get(url)).await).await.0 });
    while seller.codes().is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    anvil.rpc("anvil_reorg", json!([1, []])).await;
    assert_eq!(paying.await.unwrap(), 200);
    assert_eq!((anvil.tokens_of(SELLER).await, anvil.nonce_of(rich.address()).await), (CENT, 1));
}

#[tokio::test]
async fn a_transfer_whose_nonce_is_taken_is_void_and_the_next_run_pays_anew() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::of_transfers(|_, _| goods()).await;
    anvil.automine(false).await;
    let short = RetryPolicy { transfer_deadline: Duration::from_millis(400), ..retry() };
    let agent = rich.builder().retry(short).build().unwrap();
    agent.fetch(get(seller.url("/"))).await.unwrap_err();
    let hash = rich.entry()["current"]["proof"]["first"]["transaction"].clone();
    anvil.rpc("anvil_dropTransaction", json!([hash])).await;
    // The owner sends something else from the same account.
    let address = rich.eip55();
    anvil.rpc("anvil_impersonateAccount", json!([address])).await;
    let other = json!({"from": address, "to": address, "value": "0x1", "gas": "0x5208", "nonce": "0x0"});
    anvil.rpc("eth_sendTransaction", json!([other])).await;
    anvil.automine(true).await;
    anvil.mine(1).await;
    let error = rich.agent().fetch(get(seller.url("/"))).await.unwrap_err();
    assert_eq!((error.code(), error.stake(), error.retryable()), ("transfer_void", Stake::Nothing, true), "{error}");
    assert!(rich.payer.files("open").is_empty());
    assert_eq!(read(rich.agent().fetch(get(seller.url("/"))).await).await.0, 200);
    assert_eq!(anvil.tokens_of(SELLER).await, CENT);
}

#[tokio::test]
async fn a_transfer_that_failed_on_the_chain_is_void() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::of_transfers(|_, _| goods()).await;
    anvil.automine(false).await;
    let short = RetryPolicy { transfer_deadline: Duration::from_millis(400), ..retry() };
    rich.builder().retry(short).build().unwrap().fetch(get(seller.url("/"))).await.unwrap_err();
    // The token is paused, say.
    anvil.rpc("anvil_setCode", json!([USDC, "0x60006000fd"])).await;
    anvil.mine(1).await;
    let error = rich.agent().fetch(get(seller.url("/"))).await.unwrap_err();
    let FetchError::TransferVoid { reason, .. } = &error else { panic!("{error:?}") };
    assert!(reason.contains("failed on the chain") && seller.codes().is_empty(), "{error}");
    assert!(rich.payer.files("open").is_empty());
}

#[tokio::test]
async fn a_bill_that_ended_before_its_transfer_was_mined_is_not_paid_late() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::of_transfers(|_, _| says(402, "paid_too_late", "after_payment", json!(true))).await;
    anvil.automine(false).await;
    let short = RetryPolicy { transfer_deadline: Duration::from_millis(400), ..retry() };
    rich.builder().retry(short).build().unwrap().fetch(get(seller.url("/"))).await.unwrap_err();
    let entry = rich.entry();
    let first = &entry["current"]["proof"]["first"];
    anvil.rpc("anvil_dropTransaction", json!([first["transaction"]])).await;
    rich.payer.clock.advance(Duration::from_secs(601));
    let error = rich.agent().fetch(get(seller.url("/"))).await.unwrap_err();
    assert_eq!((error.code(), error.stake()), ("transfer_late", Stake::Unclear), "{error}");
    assert!(!anvil.pending(first["transaction"].as_str().unwrap()).await, "it was not sent again");
    // Somebody's node had it all the same.
    anvil.rpc("eth_sendRawTransaction", json!([format!("0x{}", first["raw"].as_str().unwrap())])).await;
    anvil.mine(1).await;
    let error = rich.agent().fetch(get(seller.url("/"))).await.unwrap_err();
    assert_eq!((error.code(), anvil.tokens_of(SELLER).await), ("paid_as_credit", CENT));
}
