//! A chain of either kind, a funded key, the token in place, and the authorizations of a payer.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use alloy::consensus::{SignableTransaction as _, TxEip1559};
use alloy::eips::eip2718::Encodable2718 as _;
use alloy::network::TxSignerSync as _;
use alloy::primitives::{Address, B256, Bytes, Signature, TxKind, U256, address};
use alloy::providers::{DynProvider, Provider as _, ProviderBuilder};
use alloy::rpc::json_rpc::ErrorPayload;
use alloy::rpc::types::TransactionReceipt;
use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use alloy::sol;
use alloy::sol_types::eip712_domain;
use alloy::transports::{RpcError, TransportErrorKind};
use farebox_devchain::{DemoUsd, DevChain, DevChainConfig};

pub(crate) const CHAIN_ID: u64 = 84532;
pub(crate) const ETHER: u128 = 1_000_000_000_000_000_000;
pub(crate) const GWEI: u128 = 1_000_000_000;
/// Where Base Sepolia has USDC: the official x402 clients look for it there.
pub(crate) const TOKEN: Address = address!("0x036CbD53842c5426634e7929541eC2318f3dCF7e");
/// The first of anvil's well-known accounts.
const FUNDED_KEY: &str = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";

/// Stops with the test.
pub(crate) struct Network {
    pub(crate) url: String,
    /// Fills nonce, fees, gas and chain id from the chain, and signs with `funded`.
    pub(crate) provider: DynProvider,
    pub(crate) funded: PrivateKeySigner,
    _running: Running,
}

#[expect(dead_code, reason = "held so that the chain runs for as long")]
enum Running {
    Devchain(DevChain),
    Anvil(Anvil),
}

impl Network {
    pub(crate) async fn devchain() -> Self {
        let funded: PrivateKeySigner = FUNDED_KEY.parse().unwrap();
        let config = DevChainConfig {
            accounts: vec![(funded.address(), U256::from(10_000 * ETHER))],
            ..DevChainConfig::new(CHAIN_ID, Arc::new(now_s))
        };
        let chain = DevChain::start(config).await.unwrap();
        Self::new(chain.url(), Running::Devchain(chain))
    }

    pub(crate) async fn anvil() -> Self {
        let (url, anvil) = tokio::task::spawn_blocking(Anvil::start).await.unwrap();
        Self::new(url, Running::Anvil(anvil))
    }

    fn new(url: String, running: Running) -> Self {
        // reqwest wants a TLS provider even for plain HTTP.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let funded: PrivateKeySigner = FUNDED_KEY.parse().unwrap();
        let provider = ProviderBuilder::new().wallet(funded.clone()).connect_http(url.parse().unwrap());
        provider.client().set_poll_interval(std::time::Duration::from_millis(5));
        Self { url, provider: provider.erased(), funded, _running: running }
    }

    /// The token at [`TOKEN`], set up as Base Sepolia's USDC.
    pub(crate) async fn token(&self) -> DemoUsd::DemoUsdInstance<DynProvider> {
        self.request::<()>("anvil_setCode", (TOKEN, DemoUsd::DEPLOYED_BYTECODE.clone())).await.unwrap();
        let token = DemoUsd::new(TOKEN, self.provider.clone());
        let initialized = token.initialize("USDC".into(), "USDC".into(), "2".into(), 6).send().await.unwrap();
        assert!(initialized.get_receipt().await.unwrap().status());
        token
    }

    pub(crate) async fn request<T: alloy::rpc::json_rpc::RpcRecv>(
        &self,
        method: &'static str,
        params: impl alloy::rpc::json_rpc::RpcSend,
    ) -> Result<T, RpcError<TransportErrorKind>> {
        self.provider.client().request(method, params).await
    }

    /// From now on blocks are made only by [`Network::mine`].
    pub(crate) async fn hold(&self) {
        self.request::<serde_json::Value>("evm_setAutomine", (false,)).await.unwrap();
    }

    pub(crate) async fn mine(&self) {
        self.request::<serde_json::Value>("evm_mine", ()).await.unwrap();
    }

    pub(crate) async fn send_raw(&self, raw: &[u8]) -> Result<B256, RpcError<TransportErrorKind>> {
        self.provider.send_raw_transaction(raw).await.map(|pending| *pending.tx_hash())
    }

    /// Sends and waits for the block: anvil's instant blocks come a moment after the answer.
    pub(crate) async fn send_and_wait(&self, raw: &[u8]) -> TransactionReceipt {
        self.provider.send_raw_transaction_sync(raw).await.unwrap()
    }

    pub(crate) async fn receipt(&self, hash: B256) -> Option<TransactionReceipt> {
        self.provider.get_transaction_receipt(hash).await.unwrap()
    }

    /// Unix seconds of the newest block.
    pub(crate) async fn time_s(&self) -> u64 {
        self.provider.get_block(Default::default()).await.unwrap().unwrap().header.timestamp
    }
}

/// One wei to nobody in particular; tests change what they are about.
pub(crate) fn transfer(nonce: u64) -> TxEip1559 {
    TxEip1559 {
        chain_id: CHAIN_ID,
        nonce,
        gas_limit: 21_000,
        max_fee_per_gas: 3 * GWEI,
        max_priority_fee_per_gas: GWEI,
        to: TxKind::Call(Address::repeat_byte(0x99)),
        value: U256::ONE,
        ..TxEip1559::default()
    }
}

pub(crate) fn sign(mut tx: TxEip1559, signer: &PrivateKeySigner) -> Vec<u8> {
    let signature = signer.sign_transaction_sync(&mut tx).unwrap();
    tx.into_signed(signature).encoded_2718()
}

/// The error object of an answer; fails on any other error.
pub(crate) fn refusal<T: std::fmt::Debug>(answer: Result<T, RpcError<TransportErrorKind>>) -> ErrorPayload {
    match answer {
        Err(RpcError::ErrorResp(error)) => error,
        other => panic!("an error object expected, found {other:?}"),
    }
}

sol! {
    /// EIP-3009's message, as it is signed.
    struct TransferWithAuthorization {
        address from;
        address to;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
    }

    struct ReceiveWithAuthorization {
        address from;
        address to;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
    }

    struct CancelAuthorization {
        address authorizer;
        bytes32 nonce;
    }
}

pub(crate) fn digest(message: &impl alloy::sol_types::SolStruct) -> B256 {
    message.eip712_signing_hash(&eip712_domain! {
        name: "USDC",
        version: "2",
        chain_id: CHAIN_ID,
        verifying_contract: TOKEN,
    })
}

/// Who pays 1000 units to 0x77…, unless a test changes it, within an hour around now.
pub(crate) fn authorization(from: Address) -> TransferWithAuthorization {
    TransferWithAuthorization {
        from,
        to: Address::repeat_byte(0x77),
        value: U256::from(1000),
        validAfter: U256::from(now_s() - 600),
        validBefore: U256::from(now_s() + 3600),
        nonce: B256::repeat_byte(0x0a),
    }
}

pub(crate) fn signed(message: &impl alloy::sol_types::SolStruct, signer: &PrivateKeySigner) -> Signature {
    signer.sign_hash_sync(&digest(message)).unwrap()
}

pub(crate) fn bytes(signature: &Signature) -> Bytes {
    signature.as_bytes().into()
}

#[expect(clippy::disallowed_methods, reason = "anvil keeps real time, so the other half does too")]
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// An anvil process, killed when dropped.
struct Anvil(Child);

impl Anvil {
    #[expect(clippy::disallowed_methods, reason = "where anvil is differs from machine to machine")]
    fn start() -> (String, Self) {
        let path = std::env::var("FAREBOX_ANVIL").expect(
            "FAREBOX_ANVIL must be the path of an anvil binary; `.ci/tools` installs one and writes the path to \
             .cache/env, or: npm install @foundry-rs/anvil, then \
             node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil",
        );
        let mut child = Command::new(&path)
            .args(["--port", "0", "--chain-id", &CHAIN_ID.to_string(), "--hardfork", "prague"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("FAREBOX_ANVIL={path} does not start: {error}"));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let anvil = Self(child);
        let address = lines.find_map(|line| Some(line.unwrap().strip_prefix("Listening on ")?.to_owned()));
        // It writes a line a request; a full pipe would stop it.
        std::thread::spawn(move || lines.for_each(drop));
        (format!("http://{}", address.expect("anvil says where it listens")), anvil)
    }
}

impl Drop for Anvil {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
