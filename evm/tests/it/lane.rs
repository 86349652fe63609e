//! The relayer's lane: no gap, no stuck transaction, nothing lost over a restart.

use std::{sync::Arc, time::Duration};

use alloy::{
    consensus::{Transaction, TxEnvelope},
    eips::Decodable2718,
};
use farebox_core::{
    Permit, TransactionFate,
    ports::{Rail, Settlement},
};
use serde_json::json;

use crate::{
    harness::{SELLER, World, in_doubt, payment, transaction_of},
    proxy::{Fault, Proxy},
};

/// Of [`crate::harness::RELAYER`].
const RELAYER_ADDRESS: &str = "0xa0Ee7A142d267C1f36714E4a8F75612F20a79720";

/// Settles `count` fresh payments at once; gives how many became final.
async fn settle_many(world: &Arc<World>, count: usize) -> usize {
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..count {
        let world = world.clone();
        running.spawn(async move {
            let claimed = world.claimed().await;
            matches!(world.settle(&claimed).await, Settlement::Final { .. })
        });
    }
    running.join_all().await.into_iter().filter(|done| *done).count()
}

async fn no_gap(world: &World, transactions: u64) {
    assert_eq!(world.anvil.mined_nonce(RELAYER_ADDRESS).await, transactions);
    let mut nonces: Vec<_> = world.store.rows.lock().iter().map(|row| row.nonce).collect();
    nonces.sort_unstable();
    nonces.dedup();
    assert_eq!(nonces, (0..transactions).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_settlements_at_once_all_end_without_a_gap() {
    let world = Arc::new(World::new(&[]).await);
    assert_eq!(settle_many(&world, 200).await, 200);
    assert_eq!(world.anvil.balance(SELLER).await, 2_000_000);
    no_gap(&world, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_underpriced_transaction_is_bumped_at_its_nonce_and_frees_those_behind_it() {
    let patient = |config: &mut farebox_evm::ChainConfig| config.limits.lane_wait = Duration::from_secs(25);
    let world = Arc::new(World::through(&[], str::to_owned, patient).await);
    world.anvil.rpc("evm_setAutomine", json!([false])).await;
    let first = world.claimed().await;
    let settling = tokio::spawn({
        let (world, first) = (world.clone(), first.clone());
        async move { world.settle(&first).await }
    });
    while world.store.of(first.id).is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The market rises above what the first one offers before it is mined.
    world.anvil.rpc("anvil_setNextBlockBaseFeePerGas", json!(["0x1bf08eb000"])).await;
    world.anvil.rpc("evm_mine", json!([])).await;
    assert!(!settling.is_finished());
    world.anvil.rpc("evm_setIntervalMining", json!([1])).await;
    assert_eq!(settle_many(&world, 199).await, 199);
    transaction_of(&settling.await.unwrap());
    let tried = world.store.of(first.id);
    assert!(tried.len() > 1, "it was never bumped");
    assert!(tried.iter().all(|row| row.nonce == 0));
    assert_eq!(world.anvil.balance(SELLER).await, 2_000_000);
    no_gap(&world, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_broadcasts_what_was_stored_and_goes_on_after_it() {
    let world = World::new(&[]).await;
    // Stored and never broadcast, as a crash between the two leaves it.
    world.anvil.rpc("evm_setAutomine", json!([false])).await;
    let lost = world.claimed().await;
    let settling = tokio::time::timeout(Duration::from_millis(300), world.settle(&lost)).await;
    assert!(settling.is_err());
    world.anvil.rpc("anvil_dropAllTransactions", json!([])).await;
    let World { anvil, store, offers, rail, .. } = &world;
    drop(rail.clone());
    world.anvil.rpc("evm_setAutomine", json!([true])).await;

    let restarted = world.restarted().await;
    let next = payment(&restarted.check(&crate::harness::presented(&world.credential().await, offers)).unwrap());
    transaction_of(&restarted.settle(&Permit::granted(next)).await);
    transaction_of(&world.resolved(&in_doubt(&lost, store)).await);
    assert_eq!(anvil.balance(SELLER).await, 20_000);
    no_gap(&world, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_know_stops_the_lane_until_it_does() {
    let world = World::new(&[]).await;
    world.store.unsure_once.store(true, std::sync::atomic::Ordering::SeqCst);
    let first = world.claimed().await;
    let unsure = world.settle(&first).await;
    assert!(matches!(unsure, Settlement::InDoubt { transaction: Some(_), .. }), "{unsure:?}");
    transaction_of(&world.settle(&world.claimed().await).await);
    transaction_of(&world.resolved(&in_doubt(&first, &world.store)).await);
    no_gap(&world, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nonce_taken_by_another_user_of_the_key_is_told_and_passed_over() {
    let world = World::new(&[]).await;
    transaction_of(&world.settle(&world.claimed().await).await);
    world.anvil.rpc("anvil_impersonateAccount", json!([RELAYER_ADDRESS])).await;
    world.anvil.rpc("eth_sendTransaction", json!([{"from": RELAYER_ADDRESS, "to": SELLER, "value": "0x1"}])).await;
    let displaced = world.claimed().await;
    let settling = tokio::time::timeout(Duration::from_millis(500), world.settle(&displaced)).await;
    assert!(settling.is_err(), "{settling:?}");
    transaction_of(&world.settle(&world.claimed().await).await);
    assert_eq!(world.anvil.balance(SELLER).await, 20_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_refuse_before_anything_is_signed() {
    let none = |settlement: &Settlement| matches!(settlement, Settlement::InDoubt { transaction: None, .. });
    let world = World::through(&[], str::to_owned, |config| config.limits.gas_per_day_max = 1).await;
    let capped = world.settle(&world.claimed().await).await;
    assert!(none(&capped), "{capped:?}");
    assert!(world.store.rows.lock().is_empty());

    let world = World::through(&[], str::to_owned, |config| config.limits.fee_per_gas_max = 1).await;
    let capped = world.settle(&world.claimed().await).await;
    assert!(none(&capped), "{capped:?}");

    let world = World::through(&[], str::to_owned, |config| {
        config.limits.in_flight_max = 1;
        config.limits.lane_wait = Duration::from_millis(50);
        config.limits.settle_timeout = Duration::from_millis(300);
    })
    .await;
    world.anvil.rpc("evm_setAutomine", json!([false])).await;
    let (first, second) = (world.claimed().await, world.claimed().await);
    let (first, second) = tokio::join!(world.settle(&first), world.settle(&second));
    let given_back = [&first, &second].into_iter().filter(|settlement| none(settlement)).count();
    assert_eq!((given_back, world.store.rows.lock().len()), (1, 1), "{first:?} {second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mined_transactions_are_closed_in_the_store() {
    let world = World::new(&[]).await;
    transaction_of(&world.settle(&world.claimed().await).await);
    for _ in 0..100 {
        if world.store.rows.lock()[0].fate == TransactionFate::Succeeded {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?}", world.store.rows.lock());
}

/// How fast one lane settles on instant blocks, with 16 at once; run alone, in release, with `--nocapture`.
#[tokio::test(flavor = "multi_thread")]
async fn sixteen_at_once_settle_quickly() {
    let count = if cfg!(debug_assertions) { 200 } else { 5_000 };
    let world = Arc::new(World::new(&["--prune-history", "200"]).await);
    let started = tokio::time::Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let world = world.clone();
        running.spawn(async move {
            for _ in 0..count / 16 {
                let checked = world.check(&world.credential().await);
                world.verify(&checked).await.unwrap();
                transaction_of(&world.settle(&payment(&checked)).await);
            }
        });
    }
    running.join_all().await;
    let rate = (count / 16 * 16) as f64 / started.elapsed().as_secs_f64();
    println!("settled: {rate:.0} payments/s");
    assert!(rate > if cfg!(debug_assertions) { 20.0 } else { 300.0 }, "{rate}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_cannot_wait_for_a_receipt_nor_take_batches_is_polled() {
    for refused in ["eth_sendRawTransactionSync", "["] {
        let world = World::through(
            &[],
            |url| {
                let (proxy, url) = Proxy::start(url);
                let error = r#"{"jsonrpc":"2.0","id":0,"error":{"code":-32601,"message":"method not found"}}"#;
                proxy.set(Fault::Say(refused, error));
                url
            },
            |_| (),
        )
        .await;
        let world = Arc::new(world);
        assert_eq!(settle_many(&world, 50).await, 50, "{refused}");
        no_gap(&world, 50).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_asked_over_a_websocket_too() {
    let world = World::through(&[], |url| url.replacen("http", "ws", 1), |_| ()).await;
    let checked = world.check(&world.credential().await);
    world.verify(&checked).await.unwrap();
    transaction_of(&world.settle(&payment(&checked)).await);
    assert_eq!(world.anvil.balance(SELLER).await, 10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settled_payment_whose_fate_was_not_noted_is_found_by_its_receipt() {
    let world = World::new(&[]).await;
    let claimed = world.claimed().await;
    let transaction = transaction_of(&world.settle(&claimed).await);
    // The store lost the fate, and the gateway restarts: the chain still knows.
    world.store.rows.lock()[0].fate = TransactionFate::Open;
    let restarted = world.restarted().await;
    let found = restarted.resolve(&in_doubt(&claimed, &world.store)).await;
    assert_eq!(transaction_of(&found), transaction);
    assert_eq!(world.store.rows.lock()[0].fate, TransactionFate::Succeeded);
}

/// What a node saw before it saw this nonce.
fn no_gap_was_ever_seen(transactions: &[String]) {
    let mut next = 0;
    for raw in transactions {
        let raw: alloy::primitives::Bytes = raw.parse().unwrap();
        let transaction = TxEnvelope::decode_2718(&mut raw.as_ref()).unwrap();
        assert!(transaction.nonce() <= next, "nonce {} came before {next}", transaction.nonce());
        next = next.max(transaction.nonce() + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_that_overtake_one_another_on_the_way_arrive_in_order() {
    let held = Arc::new(parking_lot::Mutex::new(None));
    let keep = held.clone();
    let through = move |url: &str| {
        let (proxy, url) = Proxy::start(url);
        proxy.set(Fault::Overtake);
        *keep.lock() = Some(proxy);
        url
    };
    // A replacement would hide what was shelved.
    let world = World::through(&[], through, |config| config.limits.bump_after = Duration::from_secs(60)).await;
    let (world, proxy) = (Arc::new(world), held.lock().clone().expect("the proxy was started"));
    let started = tokio::time::Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let world = world.clone();
        running.spawn(async move {
            for _ in 0..8 {
                transaction_of(&world.settle(&world.claimed().await).await);
            }
        });
    }
    running.join_all().await;
    println!("64 settlements over a line that reorders: {:?}", started.elapsed());
    no_gap_was_ever_seen(&proxy.transactions.lock());
    no_gap(&world, 64).await;
}
