//! One charge for one authorization, whatever happens on the way.

use std::{sync::Arc, time::Duration};

use alloy::{
    primitives::{Address, B256},
    sol_types::SolCall,
};
use farebox_core::{
    Credential, Finality, Payment, PaymentState,
    ports::{Canonical, Rail, Settlement},
};
use serde_json::json;

use crate::{
    harness::{
        SELLER, USDC, World, cancelAuthorizationCall, in_doubt, now, payment, refusal_of, submit_call, transaction_of,
        transferCall, x402,
    },
    proxy::{Fault, Proxy},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_moves_exactly_the_price_once() {
    let world = World::new(&[]).await;
    let claimed = world.claimed().await;
    let transaction = transaction_of(&world.settle(&claimed).await);
    assert_eq!(world.anvil.balance(SELLER).await, 10_000);
    assert_eq!(world.store.of(claimed.id)[0].hash.as_str(), transaction);
    // Asked again, by a caller that does not know: the same transaction, no second charge.
    let again = Payment { state: PaymentState::Settling, ..claimed.clone() };
    assert_eq!(transaction_of(&world.settle(&again).await), transaction);
    assert_eq!(world.anvil.balance(SELLER).await, 10_000);
    assert_eq!(world.store.rows.lock().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authorization_about_to_end_is_not_broadcast() {
    let world = World::new(&[]).await;
    let mut claimed = world.claimed().await;
    claimed.valid_until = now().plus(Duration::from_secs(2));
    assert_eq!(refusal_of(&world.settle(&claimed).await), "invalid_exact_evm_payload_authorization_valid_before");
    assert!(world.store.rows.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_submission_of_the_authorization_pays_us_too() {
    let world = World::new(&[]).await;
    let credential = world.credential().await;
    let claimed = payment(&world.check(&credential));
    let theirs = world.anvil.send(USDC, submit_call(&credential)).await;
    assert_eq!(transaction_of(&world.settle(&claimed).await), theirs);
    assert_eq!(world.anvil.balance(SELLER).await, 10_000);
    assert_eq!(transaction_of(&world.resolved(&in_doubt(&claimed, &world.store)).await), theirs);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_authorization_is_refused_for_good() {
    let world = World::new(&[]).await;
    let credential = world.credential().await;
    let claimed = payment(&world.check(&credential));
    cancel(&world, &credential).await;
    assert_eq!(refusal_of(&world.settle(&claimed).await), "invalid_exact_evm_nonce_already_used");
    assert_eq!(world.anvil.balance(SELLER).await, 0);
}

async fn cancel(world: &World, credential: &Credential) {
    use alloy::{
        signers::{SignerSync, local::PrivateKeySigner},
        sol,
        sol_types::{SolStruct, eip712_domain},
    };
    sol! {
        struct CancelAuthorization {
            address authorizer;
            bytes32 nonce;
        }
    }
    let x402 = x402(credential);
    let (authorizer, nonce) = (Address::from(x402.authorization.from.0), B256::from(x402.authorization.nonce));
    let domain =
        eip712_domain! { name: "USDC", version: "2", chain_id: 84532, verifying_contract: USDC.parse().unwrap(), };
    let hash = CancelAuthorization { authorizer, nonce }.eip712_signing_hash(&domain);
    let signer = PrivateKeySigner::from_bytes(&B256::from(world.payer_key)).unwrap();
    let signature = signer.sign_hash_sync(&hash).unwrap().as_bytes().to_vec().into();
    world.anvil.send(USDC, cancelAuthorizationCall { authorizer, nonce, signature }.abi_encode()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_reverts_stays_in_doubt_until_its_authorization_is_over() {
    let world = World::new(&[]).await;
    let claimed = world.claimed().await;
    // The payer empties the account between verification and settlement.
    let all = world.anvil.balance(&world.payer).await;
    world.anvil.rpc("anvil_impersonateAccount", json!([world.payer])).await;
    world.anvil.rpc("anvil_setBalance", json!([world.payer, "0xde0b6b3a7640000"])).await;
    let data = alloy::primitives::Bytes::from(
        transferCall { to: Address::repeat_byte(6), amount: alloy::primitives::U256::from(all) }.abi_encode(),
    );
    world.anvil.rpc("eth_sendTransaction", json!([{"from": world.payer, "to": USDC, "data": data}])).await;
    let settled = world.settle(&claimed).await;
    // Anybody could still submit the authorization once the account is filled again.
    assert!(matches!(settled, Settlement::InDoubt { transaction: Some(_), .. }), "{settled:?}");
    let doubted = in_doubt(&claimed, &world.store);
    assert!(matches!(world.rail.resolve(&doubted).await, Settlement::InDoubt { .. }));
    world.anvil.rpc("evm_increaseTime", json!([61])).await;
    world.anvil.rpc("evm_mine", json!([])).await;
    assert_eq!(refusal_of(&world.rail.resolve(&doubted).await), "invalid_exact_evm_transaction_failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_broadcast_answer_ends_in_one_charge() {
    let mut proxy = None;
    let world = World::through(
        &[],
        |url| {
            let (shared, url) = Proxy::start(url);
            proxy = Some(shared);
            url
        },
        |config| {
            config.limits.settle_timeout = Duration::from_millis(700);
            config.limits.rpc_timeout = Duration::from_millis(300);
        },
    )
    .await;
    let proxy = proxy.unwrap();
    let claimed = world.claimed().await;
    world.verify(&world.check(&claimed.credential)).await.unwrap();
    // Whatever is sent arrives, and nothing comes back: not the broadcast's answer, not the receipt.
    proxy.set(Fault::LoseAnswer("eth_"));
    let first = world.claimed().await;
    let lost = world.settle(&first).await;
    assert!(matches!(lost, Settlement::InDoubt { transaction: None, .. }), "without a fee nothing is signed: {lost:?}");
    proxy.set(None);
    transaction_of(&world.settle(&claimed).await);
    proxy.set(Fault::LoseAnswer("eth_"));
    let second = world.claimed().await;
    let lost = world.settle(&second).await;
    assert!(matches!(lost, Settlement::InDoubt { transaction: Some(_), .. }), "{lost:?}");
    assert!(proxy.lost.load(std::sync::atomic::Ordering::SeqCst));
    proxy.set(None);
    let transaction = transaction_of(&world.resolved(&in_doubt(&second, &world.store)).await);
    assert_eq!(world.store.of(second.id).iter().filter(|row| row.hash.as_str() == transaction).count(), 1);
    assert_eq!(world.anvil.balance(SELLER).await, 20_000, "two settled payments, each charged once");
    assert!(world.store.of(first.id).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reorganisation_is_seen_and_the_payment_comes_back() {
    let world = World::new(&[]).await;
    let claimed = world.claimed().await;
    let Settlement::Final { transaction, block } = world.settle(&claimed).await else { panic!("not settled") };
    let network = world.offers[0].network().clone();
    assert_eq!(world.rail.is_canonical(&network, &block).await.unwrap(), Canonical::Holds);
    let windows = world.rail.windows().await;
    assert!(windows.iter().any(|window| window.network == network && window.blocks.contains(&block)), "{windows:?}");
    world.anvil.rpc("anvil_rollback", json!([1])).await;
    assert_eq!(world.rail.is_canonical(&network, &block).await.unwrap(), Canonical::Gone);
    assert_eq!(world.anvil.balance(SELLER).await, 0);
    let settled =
        Payment { state: PaymentState::Settled, transaction: Some(transaction.clone()), block: Some(block), ..claimed };
    assert_eq!(transaction_of(&world.resolved(&settled).await), transaction.as_str());
    assert_eq!(world.anvil.balance(SELLER).await, 10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_is_final_only_with_its_confirmations() {
    let world =
        World::through(&[], str::to_owned, |config| config.confirmations[0].finality = Finality::Blocks(3)).await;
    let claimed = world.claimed().await;
    let (settled, ()) = tokio::join!(world.settle(&claimed), async {
        while world.anvil.balance(SELLER).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let doubted = in_doubt(&claimed, &world.store);
        assert!(matches!(world.rail.resolve(&doubted).await, Settlement::InDoubt { transaction: Some(_), .. }));
        world.anvil.rpc("anvil_mine", json!(["0x2"])).await;
    });
    transaction_of(&settled);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authorization_that_was_never_used_is_refused_once_the_chain_is_past_it() {
    let world = World::through(&[], str::to_owned, |config| {
        config.limits.settle_timeout = Duration::from_millis(300);
    })
    .await;
    world.anvil.rpc("evm_setAutomine", json!([false])).await;
    let claimed = world.claimed().await;
    let stuck = world.settle(&claimed).await;
    assert!(matches!(stuck, Settlement::InDoubt { transaction: Some(_), .. }), "{stuck:?}");
    let doubted = in_doubt(&claimed, &world.store);
    assert!(matches!(world.rail.resolve(&doubted).await, Settlement::InDoubt { .. }));
    world.anvil.rpc("evm_increaseTime", json!([61])).await;
    world.anvil.rpc("evm_mine", json!([])).await;
    // Our transaction was mined too late and reverted; nothing moved and nothing can.
    assert_eq!(refusal_of(&world.resolved(&doubted).await), "invalid_exact_evm_transaction_failed");
    assert_eq!(world.anvil.balance(SELLER).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_settlement_ends_by_itself() {
    let world = Arc::new(World::new(&[]).await);
    let claimed = world.claimed().await;
    world.anvil.rpc("evm_setAutomine", json!([false])).await;
    let dropped = tokio::time::timeout(Duration::from_millis(300), world.settle(&claimed)).await;
    assert!(dropped.is_err());
    world.anvil.rpc("evm_setAutomine", json!([true])).await;
    world.anvil.rpc("evm_mine", json!([])).await;
    transaction_of(&world.resolved(&in_doubt(&claimed, &world.store)).await);
    assert_eq!(world.store.rows.lock().iter().filter(|row| row.payment == Some(claimed.id)).count(), 1);
}
