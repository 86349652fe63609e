//! A chain whose clock the test holds, asked in plain JSON.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use alloy::consensus::{SignableTransaction as _, TxEip1559};
use alloy::eips::eip2718::Encodable2718 as _;
use alloy::network::TxSignerSync as _;
use alloy::primitives::{Address, Bytes, TxKind, U256};
use alloy::signers::local::PrivateKeySigner;
use farebox_devchain::{DevChain, DevChainConfig, Mining};
use serde_json::{Value, json};

pub(crate) const CHAIN_ID: u64 = 1337;
pub(crate) const START_S: u64 = 1_700_000_000;
pub(crate) const GWEI: u128 = 1_000_000_000;

pub(crate) struct Net {
    pub(crate) chain: DevChain,
    pub(crate) clock_s: Arc<AtomicU64>,
    pub(crate) funded: PrivateKeySigner,
    http: reqwest::Client,
}

impl Net {
    pub(crate) async fn new(mining: Mining) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let clock_s = Arc::new(AtomicU64::new(START_S));
        let read = clock_s.clone();
        let funded = PrivateKeySigner::from_slice(&[7; 32]).unwrap();
        let config = DevChainConfig {
            mining,
            accounts: vec![(funded.address(), U256::from(10).pow(U256::from(18)))],
            ..DevChainConfig::new(CHAIN_ID, Arc::new(move || read.load(Ordering::SeqCst)))
        };
        let chain = DevChain::start(config).await.unwrap();
        Self { chain, clock_s, funded, http: reqwest::Client::new() }
    }

    /// The whole answer.
    pub(crate) async fn rpc(&self, method: &str, params: Value) -> Value {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        self.post(request.to_string()).await.json().await.unwrap()
    }

    pub(crate) async fn post(&self, body: impl Into<reqwest::Body>) -> reqwest::Response {
        let post = self.http.post(self.chain.url()).header("content-type", "application/json");
        post.body(body).send().await.unwrap()
    }

    /// Sends, and returns the error's message, or nothing if the transaction is taken.
    pub(crate) async fn refusal(&self, raw: Vec<u8>) -> String {
        let answer = self.rpc("eth_sendRawTransaction", json!([Bytes::from(raw)])).await;
        assert!(answer["error"].is_null() || answer["error"]["code"] == -32000, "{answer}");
        answer["error"]["message"].as_str().unwrap_or_default().to_owned()
    }
}

pub(crate) fn transfer(nonce: u64) -> TxEip1559 {
    TxEip1559 {
        chain_id: CHAIN_ID,
        nonce,
        gas_limit: 21_000,
        max_fee_per_gas: 3 * GWEI,
        max_priority_fee_per_gas: GWEI,
        to: TxKind::Call(Address::repeat_byte(0x99)),
        ..TxEip1559::default()
    }
}

pub(crate) fn sign(mut tx: TxEip1559, signer: &PrivateKeySigner) -> Vec<u8> {
    let signature = signer.sign_transaction_sync(&mut tx).unwrap();
    tx.into_signed(signature).encoded_2718()
}
