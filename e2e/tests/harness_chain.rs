//! The ground itself: a real node with Circle's token on it, and the proxy that breaks the way to it.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::{path::Path, time::Duration};

use alloy::{
    eips::eip2718::Encodable2718,
    network::{EthereumWallet, NetworkTransactionBuilder, TransactionBuilder},
    primitives::{Address, U256, address, hex},
    providers::Provider,
    rpc::types::TransactionRequest,
    sol_types::eip712_domain,
};
use farebox_e2e::{Account, Anvil, Authorization, CHAIN_ID, Fault, FaultProxy, Times, Usdc, http_client};
use serde_json::{Value, json};

const SELLER: Address = address!("209693Bc6afc0C5328bA36FaF03C514EF312287C");
const ETHER: u128 = 1_000_000_000_000_000_000;
const DOLLAR: u128 = 1_000_000;

#[tokio::test]
async fn circles_token_stands_where_the_official_clients_look_for_it() {
    let anvil = Anvil::start(&[]).await.unwrap();
    let usdc = Usdc::deploy(&anvil).await.unwrap();
    let token = usdc.contract();
    assert_eq!(anvil.provider().get_chain_id().await.unwrap(), CHAIN_ID);
    assert_eq!(token.name().call().await.unwrap(), "USDC");
    assert_eq!(token.version().call().await.unwrap(), "2");
    assert_eq!(token.decimals().call().await.unwrap(), 6);
    assert_eq!(token.DOMAIN_SEPARATOR().call().await.unwrap(), Usdc::domain().separator());
}

#[tokio::test]
async fn a_signed_authorization_moves_money_once_and_only_as_signed() {
    let anvil = Anvil::start(&["--hardfork", "cancun", "--prune-history", "200"]).await.unwrap();
    let usdc = Usdc::deploy(&anvil).await.unwrap();
    let (payer, relayer) = (Account::named("payer").unwrap(), Account::named("relayer").unwrap());
    usdc.mint(payer.address(), DOLLAR).await.unwrap();
    anvil.set_balance(relayer.address(), ETHER).await.unwrap();
    let relay = anvil.provider_for(&relayer).unwrap();
    let authorization = Authorization::new(&payer, SELLER, 10_000, "once");

    let mainnet = eip712_domain! { name: "USDC", version: "2", chain_id: 8453, verifying_contract: Usdc::ADDRESS, };
    let foreign = authorization.sign_for(&payer, &mainnet).await.unwrap();
    assert!(usdc.transfer_with_authorization(&relay, &authorization, foreign).await.is_err());
    assert_eq!(usdc.balance_of(SELLER).await.unwrap(), 0);

    let signature = authorization.sign(&payer).await.unwrap();
    let transaction = usdc.transfer_with_authorization(&relay, &authorization, signature.clone()).await.unwrap();
    assert!(usdc.transfer_with_authorization(&relay, &authorization, signature).await.is_err());
    assert_eq!(usdc.balance_of(SELLER).await.unwrap(), 10_000);
    assert_eq!(usdc.balance_of(payer.address()).await.unwrap(), DOLLAR - 10_000);
    assert_eq!(usdc.transfers(payer.address(), SELLER).await.unwrap(), [(transaction, 10_000)]);
    assert!(usdc.contract().authorizationState(payer.address(), authorization.nonce).call().await.unwrap());
}

#[tokio::test]
async fn a_transaction_whose_answer_is_dropped_is_on_chain_all_the_same() {
    let anvil = Anvil::start(&[]).await.unwrap();
    let proxy = FaultProxy::start(anvil.url()).await.unwrap();
    proxy.fail("eth_sendRawTransaction", Times::Next(1), Fault::DropAnswer);
    let sender = Account::named("sender").unwrap();
    anvil.set_balance(sender.address(), ETHER).await.unwrap();
    let raw = raw_transfer(&sender, 0).await;

    assert!(call(&proxy, "eth_sendRawTransaction", json!([raw])).await.is_err());
    // Whether or not instant mining has taken it.
    anvil.mine(1).await.unwrap();
    assert_eq!(anvil.transaction_count(sender.address()).await.unwrap(), 1);
    assert_eq!(proxy.calls("eth_sendRawTransaction"), [json!([raw])]);
}

#[tokio::test]
async fn faults_strike_the_named_method_as_often_as_told() {
    let anvil = Anvil::start(&[]).await.unwrap();
    let proxy = FaultProxy::start(anvil.url()).await.unwrap();
    let chain_id = json!({ "jsonrpc": "2.0", "id": 1, "result": "0x14a34" });

    proxy.fail("eth_chainId", Times::Next(1), Fault::Status(429));
    assert_eq!(status(&proxy, "eth_chainId").await, 429);
    assert_eq!(call(&proxy, "eth_chainId", json!([])).await.unwrap(), chain_id);

    proxy.fail("eth_chainId", Times::Always, Fault::Lie(json!("0x1")));
    assert_eq!(call(&proxy, "eth_chainId", json!([])).await.unwrap()["result"], "0x1");
    assert_eq!(call(&proxy, "eth_blockNumber", json!([])).await.unwrap()["result"], "0x0");
    proxy.fail("eth_chainId", Times::Next(1), Fault::Error { code: -32000, message: "busy" });
    assert_eq!(call(&proxy, "eth_chainId", json!([])).await.unwrap()["error"]["code"], -32000);
    proxy.fail("eth_chainId", Times::Next(1), Fault::Garbage);
    assert!(call(&proxy, "eth_chainId", json!([])).await.unwrap_err().is_decode());
    proxy.fail("*", Times::Next(1), Fault::HangUp);
    assert!(call(&proxy, "eth_gasPrice", json!([])).await.is_err());

    proxy.cut_off();
    assert!(call(&proxy, "eth_chainId", json!([])).await.is_err());
    proxy.heal();
    assert_eq!(call(&proxy, "eth_chainId", json!([])).await.unwrap(), chain_id);
}

#[tokio::test]
async fn a_held_answer_comes_when_it_is_released() {
    let anvil = Anvil::start(&[]).await.unwrap();
    let proxy = FaultProxy::start(anvil.url()).await.unwrap();
    proxy.fail("eth_chainId", Times::Next(1), Fault::HoldAnswer);
    let asked = call(&proxy, "eth_chainId", json!([]));
    tokio::pin!(asked);
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut asked).await.is_err());
    proxy.wait_for_calls("eth_chainId", 1, Duration::from_secs(5)).await.unwrap();
    proxy.release(1);
    assert_eq!(asked.await.unwrap()["result"], "0x14a34");
}

#[tokio::test]
async fn blocks_can_be_held_back_and_mined() {
    let anvil = Anvil::start(&[]).await.unwrap();
    let sender = Account::named("sender").unwrap();
    anvil.set_balance(sender.address(), ETHER).await.unwrap();
    anvil.hold_blocks().await.unwrap();
    let raw = raw_transfer(&sender, 0).await;
    anvil.rpc("eth_sendRawTransaction", json!([raw])).await.unwrap();
    assert_eq!(anvil.transaction_count(sender.address()).await.unwrap(), 0);
    anvil.mine_at_once().await.unwrap();
    assert_eq!(anvil.transaction_count(sender.address()).await.unwrap(), 1);
}

#[tokio::test]
async fn a_dropped_node_is_gone() {
    let mut anvil = Anvil::start(&[]).await.unwrap();
    let process = format!("/proc/{}", anvil.process().id());
    assert!(Path::new(&process).exists());
    drop(anvil);
    assert!(!Path::new(&process).exists());
}

async fn raw_transfer(sender: &Account, nonce: u64) -> Value {
    let request = TransactionRequest::default()
        .with_to(SELLER)
        .with_value(U256::from(1))
        .with_nonce(nonce)
        .with_chain_id(CHAIN_ID)
        .with_gas_limit(21_000)
        .with_max_fee_per_gas(10_000_000_000)
        .with_max_priority_fee_per_gas(1_000_000_000);
    let envelope = request.build(&EthereumWallet::from(sender.signer().clone())).await.unwrap();
    json!(hex::encode_prefixed(envelope.encoded_2718()))
}

async fn call(proxy: &FaultProxy, method: &str, params: Value) -> reqwest::Result<Value> {
    let message = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
    http_client().unwrap().post(proxy.url()).json(&message).send().await?.json().await
}

async fn status(proxy: &FaultProxy, method: &str) -> u16 {
    let message = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": [] });
    http_client().unwrap().post(proxy.url()).json(&message).send().await.unwrap().status().as_u16()
}
