//! What became of a transfer that the wallet sent, by nodes of which one may lie.

use alloy::primitives::TxKind;
use farebox_core::ports::{Depth, Execution, SentTransfer, TransferFate, Wallet as _, WalletError};
use farebox_evm::{EvmKey, LocalWallet, RpcUrl};

use super::*;
use crate::proxy::{Fault, Proxy};

/// The payer's wallet with two nodes, each in our hands.
fn wallet(shop: &Shop) -> (LocalWallet, [Arc<Proxy>; 2]) {
    let nodes = [Proxy::start(&shop.anvil().url), Proxy::start(&shop.anvil().url)];
    let urls = nodes.each_ref().map(|(_, url)| RpcUrl::parse(url).unwrap());
    let key = EvmKey::from_bytes(&shop.payer.signer.to_bytes().0).unwrap();
    let wallet = LocalWallet::new(key, Arc::new(Random)).with_rpc(network(), &urls).unwrap();
    (wallet, nodes.map(|(proxy, _)| proxy))
}

async fn fate(wallet: &LocalWallet, transaction: B256, finality: Finality) -> Result<TransferFate, WalletError> {
    let transactions = [farebox_core::TransactionId::new(transaction.to_string())];
    let network = network();
    let sent = SentTransfer { network: &network, nonce: 0, transactions: &transactions, finality };
    wallet.transfers().unwrap().fate(&sent).await
}

fn ended(fate: &Result<TransferFate, WalletError>) -> (Execution, Depth) {
    match fate {
        Ok(TransferFate::Mined(mined)) => (mined.execution, mined.depth),
        other => panic!("expected a mined transfer, found {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_that_says_reverted_is_not_believed() {
    let shop = Shop::new(&[]).await;
    let (wallet, [first, second]) = wallet(&shop);
    let transaction = shop.pay(PRICE).await;
    let lie = || Fault::result("eth_getTransactionReceipt", |found| found["status"] = json!("0x0"));
    first.set(lie());
    let found = fate(&wallet, transaction, Finality::Blocks(1)).await;
    assert_eq!(ended(&found), (Execution::Succeeded, Depth::Reached));
    // A node that does not answer, or does not know it, does not bear the lie out.
    for fault in [Fault::Down, Fault::result("eth_getTransactionReceipt", |found| *found = Value::Null)] {
        second.set(fault);
        let found = fate(&wallet, transaction, Finality::Blocks(1)).await;
        assert!(matches!(found, Err(WalletError::Unavailable { .. })), "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_every_node_says_reverted_has_reverted_once_it_is_deep_for_each() {
    let shop = Shop::new(&[]).await;
    let (wallet, [_, second]) = wallet(&shop);
    let data = transferCall { to: seller(), value: U256::from(10u128.pow(12)) }.abi_encode();
    let transaction = shop.payer.send(shop.anvil(), TxKind::Call(USDC.parse().unwrap()), 0, data).await;
    let at = shop.anvil().rpc("eth_blockNumber", json!([])).await;
    let at = u64::from_str_radix(at.as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
    shop.anvil().rpc("anvil_mine", json!(["0x1"])).await;
    second.set(Fault::Lag(at));
    let found = fate(&wallet, transaction, Finality::Blocks(2)).await;
    assert_eq!(ended(&found), (Execution::Reverted, Depth::Waiting));
    second.set(None);
    let found = fate(&wallet, transaction, Finality::Blocks(2)).await;
    assert_eq!(ended(&found), (Execution::Reverted, Depth::Reached));
}
