//! Money that a reorganisation takes away, and may bring back.

use alloy::{primitives::TxKind, sol_types::SolCall};
use farebox_core::{
    PaymentState,
    ports::{Canonical, Settlement},
};

use super::*;

/// The payer pays, and keeps the bytes.
async fn paid(shop: &Shop) -> (Draft, Bytes) {
    let data = transferCall { to: seller(), value: U256::from(PRICE) }.abi_encode();
    let (hash, raw) = shop.payer.broadcast(shop.anvil(), TxKind::Call(USDC.parse().unwrap()), 0, data).await;
    shop.anvil().receipt(&json!(hash)).await;
    (shop.draft(hash), raw)
}

/// As the books have it once the reorganisation was noticed.
fn reversed(payment: &Payment) -> Payment {
    Payment { state: PaymentState::InDoubt, reversed: true, ..payment.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_comes_back_is_paid_again() {
    let shop = Shop::new(&[]).await;
    let (draft, raw) = paid(&shop).await;
    let payment = shop.claim(&shop.sign(&draft)).await.unwrap();
    let block = payment.block.unwrap();
    assert_eq!(shop.rail.is_canonical(&network(), &block).await.unwrap(), Canonical::Holds);
    shop.anvil().rpc("anvil_reorg", json!([1, []])).await;
    assert_eq!(shop.rail.is_canonical(&network(), &block).await.unwrap(), Canonical::Gone);
    assert_eq!(shop.anvil().balance(SELLER).await, 0);
    let payment = reversed(&payment);
    let gone = shop.rail.resolve(&payment).await;
    assert!(
        matches!(&gone, Settlement::InDoubt { transaction, .. } if *transaction == payment.transaction),
        "{gone:?}"
    );
    shop.anvil().rpc("evm_setAutomine", json!([false])).await;
    shop.anvil().rpc("eth_sendRawTransaction", json!([raw])).await;
    let waiting = shop.rail.resolve(&payment).await;
    assert!(matches!(waiting, Settlement::InDoubt { .. }), "{waiting:?}");
    shop.anvil().rpc("anvil_mine", json!(["0x3"])).await;
    let Settlement::Final { transaction, block: again } = shop.rail.resolve(&payment).await else {
        panic!("it is there again")
    };
    assert_eq!(Some(transaction), payment.transaction);
    assert_ne!(again, block);
    assert_eq!(shop.anvil().balance(SELLER).await, 10_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_another_transaction_replaced_is_given_up_when_it_cannot_come_back() {
    let shop = Shop::through(&[], str::to_owned, |config| {
        config.limits.watch_depth = 4;
        config.marked_finality = Finality::Blocks(4);
    })
    .await;
    let (draft, _) = paid(&shop).await;
    let payment = reversed(&shop.claim(&shop.sign(&draft)).await.unwrap());
    shop.anvil().rpc("anvil_reorg", json!([1, []])).await;
    shop.anvil().rpc("anvil_mine", json!(["0x8"])).await;
    // Nobody knows the transaction, and its nonce is free: the payer may send it again.
    let free = shop.rail.resolve(&payment).await;
    assert!(matches!(free, Settlement::InDoubt { .. }), "{free:?}");
    let (_, other) = shop.payer.signed(TxKind::Call(seller()), 1, vec![], 0);
    let hash = shop.anvil().rpc("eth_sendRawTransaction", json!([other])).await;
    shop.anvil().receipt(&hash).await;
    let shallow = shop.rail.resolve(&payment).await;
    assert!(matches!(shallow, Settlement::InDoubt { .. }), "another reorganisation may free the nonce: {shallow:?}");
    shop.anvil().rpc("anvil_mine", json!(["0x4"])).await;
    let Settlement::Refused(refused) = shop.rail.resolve(&payment).await else { panic!("it cannot come back") };
    assert_eq!(refused.code, "reorganised");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_absence_is_no_refusal_however_long_it_lasts() {
    let shop = Shop::through(&[], str::to_owned, |config| {
        config.limits.watch_depth = 4;
        config.marked_finality = Finality::Blocks(4);
    })
    .await;
    let (draft, raw) = paid(&shop).await;
    let payment = reversed(&shop.claim(&shop.sign(&draft)).await.unwrap());
    let restarted = rail(&shop.world, &shop.ledger, &shop.quoter);
    shop.anvil().rpc("anvil_reorg", json!([1, []])).await;
    shop.anvil().rpc("anvil_mine", json!(["0x80"])).await;
    let gone = restarted.resolve(&payment).await;
    assert!(matches!(gone, Settlement::InDoubt { .. }), "{gone:?}");
    // The payer's bytes are as good as ever.
    let hash = shop.anvil().rpc("eth_sendRawTransaction", json!([raw])).await;
    shop.anvil().receipt(&hash).await;
    assert_eq!(shop.anvil().balance(SELLER).await, 10_000);
    let back = restarted.resolve(&payment).await;
    assert!(matches!(back, Settlement::Final { .. }), "{back:?}");
    // Seen again it is known again: once another has used its nonce for good, it is given up.
    shop.anvil().rpc("anvil_rollback", json!([1])).await;
    let (_, other) = shop.payer.signed(TxKind::Call(seller()), 1, vec![], 0);
    let hash = shop.anvil().rpc("eth_sendRawTransaction", json!([other])).await;
    shop.anvil().receipt(&hash).await;
    shop.anvil().rpc("anvil_mine", json!(["0x4"])).await;
    let Settlement::Refused(refused) = restarted.resolve(&payment).await else { panic!("it cannot come back") };
    assert_eq!(refused.code, "reorganised");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_reverts_after_a_reorganisation_is_given_up_when_that_is_deep() {
    let shop = Shop::through(&[], str::to_owned, |config| config.limits.watch_depth = 4).await;
    let (draft, raw) = paid(&shop).await;
    let payment = reversed(&shop.claim(&shop.sign(&draft)).await.unwrap());
    // The payer's account is empty on the other branch.
    shop.anvil().rpc("anvil_rollback", json!([1])).await;
    let slot = alloy::primitives::keccak256(alloy::sol_types::SolValue::abi_encode(&(
        shop.payer.address(),
        balance_slot(&shop).await,
    )));
    shop.anvil().rpc("anvil_setStorageAt", json!([USDC, slot, B256::ZERO])).await;
    let hash = shop.anvil().rpc("eth_sendRawTransaction", json!([raw])).await;
    assert_eq!(shop.anvil().receipt(&hash).await["status"], "0x0");
    let shallow = shop.rail.resolve(&payment).await;
    assert!(matches!(shallow, Settlement::InDoubt { .. }), "{shallow:?}");
    shop.anvil().rpc("anvil_mine", json!(["0x4"])).await;
    let Settlement::Refused(refused) = shop.rail.resolve(&payment).await else { panic!("it reverted, deep") };
    assert_eq!(refused.code, "reorganised");
}

/// Which slot of the token maps balances: the one whose entry for the payer is the payer's balance.
async fn balance_slot(shop: &Shop) -> U256 {
    let balance = shop.anvil().balance(&shop.payer.address().to_string()).await;
    for slot in 0..32u64 {
        let key = alloy::sol_types::SolValue::abi_encode(&(shop.payer.address(), U256::from(slot)));
        let word =
            shop.anvil().rpc("eth_getStorageAt", json!([USDC, alloy::primitives::keccak256(key), "latest"])).await;
        if word.as_str().unwrap().parse::<U256>().unwrap() == U256::from(balance) {
            return U256::from(slot);
        }
    }
    panic!("the token keeps its balances elsewhere")
}
