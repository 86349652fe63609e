//! What one run of an agent must not lose, whatever the wallet and the runs before it did.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use farebox_agent::{FetchError, Policy, RetryPolicy, Stake};
use farebox_core::{
    BitcoinNetwork, PaymentHash, RailName,
    ports::{Clock as _, LightningWallet, NodeError, Outgoing, PayOrder, PayOutcome},
};
use serde_json::json;

use super::{shop::*, wallet::*};
use crate::support::*;

fn short() -> RetryPolicy {
    RetryPolicy { deadline: Duration::from_millis(1500), pay_timeout: Duration::from_millis(200), ..quick() }
}

/// Status, or code and stake.
async fn run(
    me: &Satoshi,
    wallet: Arc<dyn LightningWallet>,
    policy: Policy,
    url: url::Url,
) -> Result<u16, (String, Stake)> {
    let agent = me.builder_of(wallet).retry(short()).policy(policy).build().unwrap();
    match agent.fetch(get(url)).await {
        Ok(fetched) => Ok(read(Ok(fetched)).await.0),
        Err(FetchError::Policy(rules)) => Err((rules[0].rule.code().to_owned(), Stake::Nothing)),
        Err(error) => Err((error.code().to_owned(), error.stake())),
    }
}

fn unclear() -> Result<u16, (String, Stake)> {
    Err(("lightning_unclear".to_owned(), Stake::Unclear))
}

/// Pays, knows nothing of it afterwards, and refuses an invoice that it paid.
#[derive(Debug)]
struct Forgetful {
    inner: Arc<Purse>,
    seen: Mutex<BTreeSet<PaymentHash>>,
}

#[async_trait]
impl LightningWallet for Forgetful {
    fn label(&self) -> &str {
        "forgetful"
    }

    async fn network(&self) -> Result<Option<BitcoinNetwork>, NodeError> {
        self.inner.network().await
    }

    async fn spendable_msat(&self) -> Result<u64, NodeError> {
        self.inner.spendable_msat().await
    }

    async fn pay(&self, order: &PayOrder) -> PayOutcome {
        if !self.seen.lock().unwrap().insert(order.invoice.payment_hash) {
            return PayOutcome::Failed { code: "refused", detail: "the invoice is paid already".to_owned() };
        }
        self.inner.pay(order).await;
        PayOutcome::Unknown { source: "the answer was lost".into() }
    }

    async fn outgoing(&self, _: PaymentHash) -> Result<Outgoing, NodeError> {
        Ok(Outgoing::Never)
    }
}

#[tokio::test]
async fn a_wallet_that_forgets_what_it_paid_is_not_made_to_pay_another_invoice() {
    let me = Satoshi::new(Mood::Pays);
    let till = Arc::new(Till::new(&me.lightning));
    let seller = Seller::of_tokens(&till, |_, _, till| till.serve(None)).await;
    let wallet = Arc::new(Forgetful { inner: Arc::clone(&me.purse), seen: Mutex::default() });
    for _ in 0..3 {
        assert_eq!(run(&me, wallet.clone(), policy(), seller.url("/")).await, unclear());
    }
    me.payer.clock.advance(Duration::from_secs(3600));
    assert_eq!(run(&me, wallet, policy(), seller.url("/")).await, unclear());
    assert_eq!((me.lightning.paid(), me.purse.asked(), till.served()), (1, 1, 0));
}

#[tokio::test]
async fn an_invoice_of_an_earlier_run_is_held_against_the_limits_of_this_one() {
    for (why, policy) in [
        ("sats", Policy { max_msat_per_call: Some(10_000), ..policy() }),
        ("rails", Policy { rails: vec![RailName::X402], ..policy() }),
        ("payees", Policy { payees: Some(BTreeSet::new()), ..policy() }),
        ("networks", Policy { networks: Some(BTreeSet::new()), ..policy() }),
    ] {
        let me = Satoshi::new(Mood::LosesTheWish);
        let till = Arc::new(Till::new(&me.lightning));
        *till.wanted.lock().unwrap() = Wanted::sats(900);
        let seller = Seller::of_tokens(&till, |_, _, till| till.serve(None)).await;
        assert_eq!(run(&me, me.purse.clone(), super::wallet::policy(), seller.url("/")).await, unclear(), "{why}");
        me.purse.is_now(Mood::Pays);
        assert_eq!(run(&me, me.purse.clone(), policy, seller.url("/")).await, unclear(), "{why}");
        assert_eq!((me.lightning.paid(), me.purse.asked()), (0, 1), "{why}");
        let tight = Policy { max_msat_per_call: Some(901_000), ..super::wallet::policy() };
        assert_eq!(run(&me, me.purse.clone(), tight, seller.url("/")).await, Ok(200), "{why}");
        assert_eq!(me.purse.orders.lock().unwrap()[1].fee_max_msat, 1_000, "{why}");
    }
}

#[tokio::test]
async fn a_token_that_ended_since_its_invoice_was_noted_is_not_paid_for() {
    let me = Satoshi::new(Mood::LosesTheWish);
    let mut till = Till::new(&me.lightning);
    till.caveats = vec!["services=shop:0".into(), format!("shop_valid_until={}", me.payer.clock.now().unix_s() + 60)];
    let till = Arc::new(till);
    let seller = Seller::of_tokens(&till, |_, _, till| till.serve(None)).await;
    assert_eq!(run(&me, me.purse.clone(), policy(), seller.url("/")).await, unclear());
    me.payer.clock.advance(Duration::from_secs(120));
    me.purse.is_now(Mood::Pays);
    assert_eq!(run(&me, me.purse.clone(), policy(), seller.url("/")).await, unclear());
    assert_eq!((me.lightning.paid(), me.purse.asked()), (0, 1));
}

#[tokio::test]
async fn a_wallet_that_gave_no_preimage_buys_nothing_more() {
    let me = Satoshi::new(Mood::PaysBlind);
    let till = Arc::new(Till::new(&me.lightning));
    let seller = Seller::of_tokens(&till, |_, _, till| till.serve(None)).await;
    let blind = Err(("wallet_gave_no_preimage".to_owned(), Stake::Charged));
    assert_eq!(run(&me, me.purse.clone(), policy(), seller.url("/0")).await, blind);
    for path in ["/1", "/2", "/3"] {
        let refused = Err(("wallet_gives_no_preimages".to_owned(), Stake::Nothing));
        assert_eq!(run(&me, me.purse.clone(), policy(), seller.url(path)).await, refused);
    }
    assert_eq!(me.lightning.paid(), 1);
    // Another wallet may.
    let mut other = Purse::new(&me.lightning, Mood::Pays);
    other.key = "02bb";
    assert_eq!(run(&me, Arc::new(other), policy(), seller.url("/1")).await, Ok(200));
}

#[tokio::test]
async fn a_failure_that_only_the_wallets_word_tells_of_leads_to_no_other_payment() {
    let both = |till: &Till| {
        let (macaroon, invoice) = till.terms();
        let (lightning, x402) = (bill_of(&macaroon, &invoice, &json!({})), bill(&[cent()]));
        let (mut parts, body) = lightning.into_parts();
        parts.headers.insert("payment-required", x402.headers()["payment-required"].clone());
        axum::response::Response::from_parts(parts, body)
    };
    for (code, ends, signed) in [
        ("refused", unclear(), 0),
        ("timeout", unclear(), 0),
        // Then nothing can have been sent.
        ("insufficient_balance", Ok(200), 1),
        ("not_allowed", Ok(200), 1),
    ] {
        let me = Satoshi::new(Mood::Refuses(code));
        let till = Arc::new(Till::new(&me.lightning));
        let seller = Seller::start(move |attempt, _| if attempt == 0 { both(&till) } else { goods() }).await;
        let policy = Policy { rails: vec![RailName::L402, RailName::X402], ..policy() };
        let builder = me.builder().policy(policy).retry(short()).wallet(me.payer.wallet.clone());
        let found = builder.build().unwrap().fetch(get(seller.url("/"))).await;
        let found = found.map(|f| f.response.status().as_u16()).map_err(|e| (e.code().to_owned(), e.stake()));
        assert_eq!((found, me.payer.wallet.signed()), (ends, signed), "{code}");
    }
}

#[tokio::test]
async fn another_node_behind_the_same_name_is_not_asked_to_pay_the_same_invoice() {
    let me = Satoshi::new(Mood::LosesTheWish);
    let till = Arc::new(Till::new(&me.lightning));
    let seller = Seller::of_tokens(&till, |_, _, till| till.serve(None)).await;
    assert_eq!(run(&me, me.purse.clone(), policy(), seller.url("/")).await, unclear());
    let mut other = Purse::new(&me.lightning, Mood::Pays);
    other.key = "02bb";
    let other = Arc::new(other);
    let refused = Err(("other_lightning_wallet".to_owned(), Stake::Unclear));
    assert_eq!(run(&me, other.clone(), policy(), seller.url("/")).await, refused);
    assert_eq!((me.lightning.paid(), other.asked()), (0, 0));
}

#[tokio::test]
async fn the_fee_for_the_way_is_within_the_limit_too() {
    let me = Satoshi::new(Mood::Pays);
    let till = Arc::new(Till::new(&me.lightning));
    let seller = Seller::of_tokens(&till, |_, _, till| till.serve(None)).await;
    for (max_msat, fee_max_msat) in [(10_000, 0), (13_000, 3_000), (1_000_000, 10_000)] {
        let policy = Policy { max_msat_per_call: Some(max_msat), ..policy() };
        assert_eq!(run(&me, me.purse.clone(), policy, seller.url(&format!("/{max_msat}"))).await, Ok(200));
        assert_eq!(me.purse.orders.lock().unwrap().last().unwrap().fee_max_msat, fee_max_msat);
        // Each path is another service.
        for file in me.payer.files("tokens") {
            std::fs::remove_file(file).unwrap();
        }
    }
}

#[tokio::test]
async fn a_payee_that_may_lock_the_payment_for_days_is_not_paid() {
    for (final_blocks, ends) in [(144, Ok(200)), (145, Err(("locked_too_long".to_owned(), Stake::Nothing)))] {
        let me = Satoshi::new(Mood::Pays);
        let till = Arc::new(Till::new(&me.lightning));
        till.wanted.lock().unwrap().final_blocks = final_blocks;
        let seller = Seller::of_tokens(&till, |_, _, till| till.serve(None)).await;
        assert_eq!(run(&me, me.purse.clone(), policy(), seller.url("/")).await, ends);
    }
}
