//! The ground for transfers itself: another signer signs the same, reorganisations take away, hostile contracts are what they say, and
//! a node that lags or lies does.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::process::Command;

use alloy::{
    network::TransactionBuilder,
    primitives::{Address, B256, Bytes, U256, address},
    providers::Provider,
    rpc::types::TransactionRequest,
    sol_types::{SolCall, SolValue},
};
use farebox_e2e::{
    Account, Anvil, CHAIN_ID, Fault, FaultProxy, Lie, Quoted, Times, Tool, Usdc,
    contract::{Contracts, deploy},
    http_client, tool,
};
use serde_json::{Value, json};

const SELLER: Address = address!("209693Bc6afc0C5328bA36FaF03C514EF312287C");
const ETHER: u128 = 1_000_000_000_000_000_000;
const DOLLAR: u128 = 1_000_000;

/// `cast wallet sign` knows EIP-712 from another library than ours.
#[tokio::test]
async fn casts_signature_of_a_payment_code_is_this_harness_own() {
    let payer = Account::named("payer").unwrap();
    for asset in [json!(Usdc::ADDRESS), json!("native")] {
        let bill = json!({ "quote": "AbC-_1", "resource": "https://a.example/v1?q=ä", "method": "GET", "options": [{
            "network": "eip155:84532", "asset": asset, "symbol": "X", "payTo": SELLER, "amount": "10000",
        }]});
        let bill = Quoted { json: bill, path: "/v1".into() };
        let claim = bill.claim(&bill.option("X").unwrap(), B256::repeat_byte(7), payer.address());
        let code = |member: &str| claim.code[member].clone();
        let signed_asset = if asset == "native" { json!("0xEeeeeEeeeEeEeeEeEeEeeEEEeeeeEeeeeeeeEEeE") } else { asset };
        let field = |kind: &str, name: &str| json!({ "name": name, "type": kind });
        let typed = json!({
            "types": {
                "EIP712Domain": [field("string", "name"), field("string", "version"), field("uint256", "chainId")],
                "PaymentCode": [
                    field("string", "quote"), field("string", "method"), field("string", "resource"),
                    field("bytes32", "transaction"), field("address", "asset"), field("address", "payer"),
                    field("address", "payTo"), field("uint256", "amount"), field("uint256", "expiresAt"),
                ],
            },
            "primaryType": "PaymentCode",
            "domain": { "name": "Farebox Payment Code", "version": "1", "chainId": CHAIN_ID },
            "message": {
                "quote": code("quote"), "method": code("method"), "resource": code("resource"),
                "transaction": code("transaction"), "asset": signed_asset, "payer": code("payer"), "payTo": code("payTo"),
                "amount": code("amount"), "expiresAt": code("expiresAt"),
            },
        });
        let mut cast = Command::new(tool(Tool::Cast).unwrap());
        cast.args(["wallet", "sign", "--private-key", &payer.key(), "--data", &typed.to_string()]);
        let output = cast.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let theirs = String::from_utf8(output.stdout).unwrap();
        assert_eq!(theirs.trim(), claim.signature(&payer).await.unwrap());
    }
}

#[tokio::test]
async fn a_reorganisation_takes_transactions_away_and_they_can_be_mined_again() {
    let anvil = Anvil::start(&[]).await.unwrap();
    let sender = Account::named("sender").unwrap();
    anvil.set_balance(sender.address(), ETHER).await.unwrap();
    let signed =
        anvil.sign(&sender, TransactionRequest::default().with_to(SELLER).with_value(U256::ONE)).await.unwrap();
    let hash = anvil.include(&signed).await.unwrap();
    let first = anvil.receipt(hash).await.unwrap();
    anvil.mine(2).await.unwrap();
    let head = anvil.head().await.unwrap();

    anvil.reorganise(3).await.unwrap();
    assert!(anvil.receipt(hash).await.is_err());
    assert_eq!(anvil.head().await.unwrap(), head + 1);
    assert_eq!(anvil.provider().get_balance(SELLER).await.unwrap(), U256::ZERO);
    let in_its_place = anvil.provider().get_block_by_number(first.block_number.unwrap().into()).await.unwrap().unwrap();
    assert_ne!(in_its_place.header.hash, first.block_hash.unwrap());

    anvil.include(&signed).await.unwrap();
    assert_ne!(anvil.receipt(hash).await.unwrap().block_hash, first.block_hash);
}

#[tokio::test]
async fn the_hostile_contracts_do_what_they_are_for() {
    let anvil = Anvil::start(&[]).await.unwrap();
    let usdc = Usdc::deploy(&anvil).await.unwrap();
    let payer = Account::named("payer").unwrap();
    anvil.set_balance(payer.address(), ETHER).await.unwrap();
    usdc.mint(payer.address(), DOLLAR).await.unwrap();
    let call = |to: Address, data: Vec<u8>| TransactionRequest::default().with_to(to).with_input(data);
    let (value, times) = (U256::from(1_000), U256::from(200));

    let fee = deploy(&anvil, "FeeToken", &[]).await.unwrap();
    let silent = deploy(&anvil, "SilentToken", &[]).await.unwrap();
    let liar = deploy(&anvil, "Liar", &[]).await.unwrap();
    let batch = deploy(&anvil, "Batch", &[]).await.unwrap();
    let wallet = deploy(&anvil, "Wallet", &payer.address().abi_encode()).await.unwrap();
    let units = U256::from(DOLLAR);
    let approve = Contracts::approveCall { spender: batch, value: units }.abi_encode();
    let minted = Contracts::mintCall { to: payer.address(), value: units }.abi_encode();
    anvil.send(&payer, call(fee, minted)).await.unwrap();
    anvil.send(&payer, call(Usdc::ADDRESS, approve)).await.unwrap();

    let transfer = Contracts::transferCall { to: SELLER, value }.abi_encode();
    let pay = Contracts::payCall { token: Usdc::ADDRESS, to: SELLER, value, times }.abi_encode();
    let lie = Contracts::lieCall { from: payer.address(), to: SELLER, value }.abi_encode();
    let inner = Contracts::executeCall { to: SELLER, value: U256::ONE, data: Bytes::new() }.abi_encode();
    for (request, logs) in [
        (call(fee, transfer.clone()), 2),
        (call(silent, transfer), 0),
        (call(liar, lie), 1),
        (call(batch, pay), 200),
        (call(wallet, inner).with_value(U256::ONE), 0),
    ] {
        let hash = anvil.send(&payer, request.clone()).await.unwrap();
        let receipt = anvil.receipt(hash).await.unwrap();
        assert!(receipt.status(), "{request:?}");
        assert_eq!(receipt.logs().len(), logs, "{request:?}");
    }
    assert_eq!(usdc.balance_of(SELLER).await.unwrap(), 200_000);
    assert_eq!(anvil.provider().get_balance(SELLER).await.unwrap(), U256::ONE);
}

#[tokio::test]
async fn a_node_that_lags_knows_nothing_of_what_came_later() {
    let anvil = Anvil::start(&[]).await.unwrap();
    anvil.mine(3).await.unwrap();
    let proxy = FaultProxy::start(anvil.url()).await.unwrap();
    proxy.fail("*", Times::Always, Fault::FrozenAt(2));
    let batch = json!([
        { "jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber", "params": [] },
        { "jsonrpc": "2.0", "id": 2, "method": "eth_getBlockByNumber", "params": ["latest", false] },
        { "jsonrpc": "2.0", "id": 3, "method": "eth_getBlockByNumber", "params": ["0x3", false] },
    ]);
    let answers = ask(&proxy, &batch).await;
    assert_eq!((&answers[0]["result"], &answers[1]["result"]["number"]), (&json!("0x2"), &json!("0x2")), "{answers}");
    assert_eq!(answers[2]["result"], Value::Null);
    assert_eq!((proxy.messages_total(), proxy.calls_total()), (1, 3));

    proxy.fail("*", Times::Always, Fault::Altered(Lie::new(|truth| json!([truth]))));
    let answer = ask(&proxy, &json!({ "jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber", "params": [] })).await;
    assert_eq!(answer["result"], json!(["0x3"]));
}

async fn ask(proxy: &FaultProxy, message: &Value) -> Value {
    http_client().unwrap().post(proxy.url()).json(message).send().await.unwrap().json().await.unwrap()
}
