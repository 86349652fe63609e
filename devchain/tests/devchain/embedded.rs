//! The chain as a part of the program: start, edit, stop.

use std::time::Duration;

use alloy::primitives::{Address, U256, address};
use farebox_devchain::limits::{HISTORY_BLOCKS_MAX, SENDER_TRANSACTIONS_MAX};
use farebox_devchain::{DemoUsd, DevChain, DevChainConfig, Mining, SendError, StartError, TokenConfig, TokenError};
use serde_json::json;
use tokio::net::TcpStream;

use crate::harness::{CHAIN_ID, Net, START_S, sign, transfer};

fn config() -> DevChainConfig {
    DevChainConfig::new(CHAIN_ID, std::sync::Arc::new(|| START_S))
}

fn token() -> TokenConfig {
    TokenConfig {
        address: Some(address!("0x036CbD53842c5426634e7929541eC2318f3dCF7e")),
        name: "USDC".into(),
        symbol: "USDC".into(),
        version: "2".into(),
        decimals: 6,
    }
}

#[tokio::test]
async fn a_token_is_in_place_and_minted_without_a_transaction() {
    let net = Net::new(Mining::Held).await;
    let at = net.chain.deploy_token(&token()).unwrap();
    assert_eq!(Some(at), token().address);
    assert_eq!(net.chain.code(at), DemoUsd::DEPLOYED_BYTECODE);
    net.chain.mint(at, Address::repeat_byte(1), U256::from(5)).unwrap();
    net.chain.mint(at, Address::repeat_byte(1), U256::from(6)).unwrap();
    assert_eq!(net.chain.token_balance(at, Address::repeat_byte(1)), Ok(U256::from(11)));
    assert_eq!(net.chain.block_number(), 0);

    assert_eq!(net.chain.deploy_token(&token()), Err(TokenError::Occupied(at)));
    let to_nobody = net.chain.mint(at, Address::ZERO, U256::from(1)).unwrap_err();
    assert_eq!(to_nobody.to_string(), format!("token {at} refused: FiatToken: mint to the zero address"));
    let no_token = net.chain.mint(Address::repeat_byte(9), Address::repeat_byte(1), U256::from(1)).unwrap_err();
    assert_eq!(no_token.code(), "token_refused");
    net.chain.token_balance(Address::repeat_byte(9), Address::repeat_byte(1)).unwrap_err();

    let elsewhere = net.chain.deploy_token(&TokenConfig { address: None, ..token() }).unwrap();
    assert_ne!(elsewhere, at);
    assert_eq!(net.chain.token_balance(elsewhere, Address::repeat_byte(1)), Ok(U256::ZERO));
}

#[tokio::test]
async fn a_transaction_can_be_sent_without_http() {
    let net = Net::new(Mining::Instant).await;
    net.chain.send_raw(&sign(transfer(0), &net.funded)).unwrap();
    assert_eq!(net.chain.block_number(), 1);
    let low = net.chain.send_raw(&sign(transfer(0), &net.funded)).unwrap_err();
    assert_eq!(low, SendError::NonceTooLow { next: 1, found: 0 });
    assert_eq!(low.code(), "nonce_too_low");
}

#[tokio::test]
async fn transactions_that_wait_are_seen_in_the_pending_block_and_mined_when_no_longer_held() {
    let net = Net::new(Mining::Held).await;
    for nonce in [0, 1, 3] {
        net.chain.send_raw(&sign(transfer(nonce), &net.funded)).unwrap();
    }
    let pending = net.rpc("eth_getBlockByNumber", json!(["pending", true])).await["result"].clone();
    assert_eq!((pending["transactions"].as_array().unwrap().len(), &pending["gasUsed"]), (2, &json!("0xa410")));
    assert_eq!(net.chain.block_number(), 0);
    net.chain.set_mining(Mining::Instant);
    assert_eq!(net.chain.block_number(), 1);
    net.chain.send_raw(&sign(transfer(2), &net.funded)).unwrap();
    let count = net.rpc("eth_getTransactionCount", json!([net.funded.address(), "latest"])).await;
    assert_eq!(count["result"], "0x4", "filling the gap mines what waited behind it");
}

#[tokio::test]
async fn what_can_no_longer_be_paid_leaves_the_pool_and_does_not_stop_the_block() {
    let net = Net::new(Mining::Held).await;
    net.chain.send_raw(&sign(transfer(0), &net.funded)).unwrap();
    net.chain.set_balance(net.funded.address(), U256::from(1));
    net.chain.mine();
    let count = net.rpc("eth_getTransactionCount", json!([net.funded.address(), "pending"])).await;
    assert_eq!((count["result"].clone(), net.chain.block_number()), (json!("0x0"), 1));
}

#[tokio::test]
async fn one_sender_may_let_only_so_many_transactions_wait() {
    let net = Net::new(Mining::Held).await;
    for nonce in 0..SENDER_TRANSACTIONS_MAX as u64 {
        net.chain.send_raw(&sign(transfer(nonce), &net.funded)).unwrap();
    }
    let one_more = sign(transfer(SENDER_TRANSACTIONS_MAX as u64), &net.funded);
    assert_eq!(net.chain.send_raw(&one_more), Err(SendError::SenderLimit));
    net.chain.mine();
    net.chain.send_raw(&one_more).unwrap();
}

#[tokio::test]
async fn blocks_older_than_the_history_are_forgotten_and_not_answered_for() {
    let net = Net::new(Mining::Instant).await;
    net.chain.send_raw(&sign(transfer(0), &net.funded)).unwrap();
    let paid = net.rpc("eth_getBlockByNumber", json!(["0x1", false])).await["result"]["transactions"][0].clone();
    for _ in 0..HISTORY_BLOCKS_MAX {
        net.chain.mine();
    }
    let earliest = net.rpc("eth_getBlockByNumber", json!(["earliest", false])).await["result"]["number"].clone();
    assert_eq!(earliest, "0x2");
    assert!(net.rpc("eth_getBlockByNumber", json!(["0x1", false])).await["result"].is_null());
    assert!(net.rpc("eth_getTransactionReceipt", json!([paid])).await["result"].is_null());
    let funded = net.funded.address();
    assert_eq!(net.rpc("eth_getBalance", json!([funded, "0x1"])).await["error"]["message"], "header not found");
    let logs = net.rpc("eth_getLogs", json!([{"fromBlock": "0x0"}])).await;
    assert_eq!(logs["error"]["message"], "history has been pruned for this block");
    assert_eq!(net.rpc("eth_getTransactionCount", json!([funded, "0x2"])).await["result"], "0x1", "state is kept");
}

#[tokio::test]
async fn it_listens_on_loopback_only_and_says_why_it_does_not_start() {
    let open = DevChainConfig { listen: "0.0.0.0:0".parse().unwrap(), ..config() };
    assert!(matches!(DevChain::start(open).await, Err(StartError::NotLoopback(_))));
    let zero = DevChainConfig { mining: Mining::Interval(Duration::ZERO), ..config() };
    assert!(matches!(DevChain::start(zero).await, Err(StartError::ZeroInterval)));
    let running = DevChain::start(config()).await.unwrap();
    let taken = DevChainConfig { listen: running.address(), ..config() };
    assert!(matches!(DevChain::start(taken).await, Err(StartError::Listen { .. })));
}

#[tokio::test]
async fn after_shutdown_the_port_is_free_though_a_client_keeps_its_connection() {
    let net = Net::new(Mining::Instant).await;
    net.rpc("eth_chainId", json!([])).await;
    let address = net.chain.address();
    tokio::time::timeout(Duration::from_secs(1), net.chain.shutdown()).await.unwrap();
    TcpStream::connect(address).await.unwrap_err();
    DevChain::start(DevChainConfig { listen: address, ..config() }).await.unwrap();
}

#[tokio::test]
async fn dropping_it_stops_it() {
    let net = Net::new(Mining::Interval(Duration::from_millis(1))).await;
    let address = net.chain.address();
    drop(net);
    let gone = async { while TcpStream::connect(address).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(2), gone).await.unwrap();
}
