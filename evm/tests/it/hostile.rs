//! What a thief tried, and what one failed question once did to the lane.

use std::{sync::Arc, time::Duration};

use farebox_core::{
    Credential, X402Credential,
    ports::{Settlement, VerifyError},
};
use serde_json::json;

use crate::{
    harness::{World, payment, x402},
    proxy::{Fault, Proxy},
};

/// The first relayer of the harness.
const RELAYER: &str = "0xa0Ee7A142d267C1f36714E4a8F75612F20a79720";

#[tokio::test(flavor = "multi_thread")]
async fn a_wallet_that_says_yes_in_simulations_alone_costs_gas_once() {
    let world = World::new(&[]).await;
    // isValidSignature: GASPRICE ISZERO ? the magic value : INVALID, which burns the whole gas limit.
    let code = "0x3a15600657fe5b631626ba7e60e01b60005260206000f3";
    world.anvil.rpc("anvil_setCode", json!([world.payer, code])).await;
    let credential = world.credential().await;
    let good = x402(&credential);
    let signed = |nonce: u8| {
        let authorization = farebox_core::TransferAuthorization { nonce: [nonce; 32], ..good.authorization.clone() };
        Credential::X402(X402Credential::new(good.version, good.accepted.clone(), authorization, vec![1; 65]))
    };
    let first = world.check(&signed(1));
    assert!(world.verify(&first).await.is_ok());
    let settled = world.settle(&payment(&first)).await;
    assert!(!matches!(settled, Settlement::Final { .. }), "{settled:?}");
    let again = world.verify(&world.check(&signed(2))).await;
    assert!(
        matches!(&again, Err(VerifyError::Rejected(no)) if no.code == "invalid_exact_evm_transaction_failed"),
        "{again:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_whose_question_failed_once_asks_again() {
    let held = Arc::new(parking_lot::Mutex::new(None));
    let keep = held.clone();
    let through = move |url: &str| {
        let (proxy, url) = Proxy::start(url);
        *keep.lock() = Some(proxy);
        url
    };
    let world = World::through(&[], through, |config| {
        config.limits.settle_timeout = Duration::from_secs(3);
        config.limits.rpc_timeout = Duration::from_secs(1);
        config.limits.bump_after = Duration::from_secs(1);
    });
    let world = Arc::new(world.await);
    let proxy = held.lock().clone().expect("the proxy was started");
    world.anvil.rpc("evm_setAutomine", json!([false])).await;
    let first = world.claimed().await;
    let settling = tokio::spawn({
        let (world, first) = (world.clone(), first.clone());
        async move { world.settle(&first).await }
    });
    while world.store.of(first.id).is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let limited = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32005,"message":"limit exceeded"}}"#;
    proxy.set(Fault::Say("eth_getTransactionCount", limited));
    assert!(matches!(settling.await.unwrap(), Settlement::InDoubt { transaction: Some(_), .. }));
    proxy.set(None);
    // The node is well again and has lost the transaction: only a lane that still looks sends it once more.
    world.anvil.rpc("anvil_dropAllTransactions", json!([])).await;
    world.anvil.rpc("evm_setAutomine", json!([true])).await;
    for _ in 0..300 {
        if world.anvil.mined_nonce(RELAYER).await == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the lane never looked again");
}
