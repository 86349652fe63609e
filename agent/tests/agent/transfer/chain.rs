//! A node with the demo's token at USDC's address on Base Sepolia, and payers with money on it.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use farebox_agent::{Agent, AgentBuilder, DollarAsset, Journal, Policy, RetryPolicy};
use farebox_core::{
    EvmAddress, Network,
    ports::{Clock, Entropy as _, Wallet},
};
use farebox_evm::{EvmKey, LocalWallet, RpcUrl, checksum};
use serde_json::{Value, json};

use crate::support::*;

pub(crate) const CHAIN_ID: u64 = 84532;
/// The first development account, unlocked in anvil.
const DEV: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";

pub(crate) struct Anvil {
    child: Child,
    pub(crate) url: String,
    http: reqwest::Client,
}

impl Drop for Anvil {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Anvil {
    pub(crate) async fn start() -> Self {
        #[expect(clippy::disallowed_methods, reason = "where the node is, only the environment can say")]
        let program = std::env::var("FAREBOX_ANVIL")
            .expect("FAREBOX_ANVIL does not name an anvil: run .ci/tools, then `source .cache/env`");
        let mut child = Command::new(program)
            .args(["--port", "0", "--chain-id", &CHAIN_ID.to_string(), "--hardfork", "cancun"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines
            .find_map(|line| line.unwrap().strip_prefix("Listening on ").map(str::to_owned))
            .expect("anvil ended before it listened");
        // Its log must be read, or it blocks on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let http = http_client();
        let anvil = Self { child, url: format!("http://{address}"), http };
        let path = format!("{}/../devchain/contracts/DemoUSD.json", env!("CARGO_MANIFEST_DIR"));
        let artifact: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        anvil.rpc("anvil_setCode", json!([USDC, artifact["deployedBytecode"]])).await;
        // initialize("USDC", "USDC", "2", 6)
        let text = |s: &str| format!("{:064x}{:0<64}", s.len(), hex::encode(s));
        let data = format!(
            "{}{:064x}{:064x}{:064x}{:064x}{}{}{}",
            selector("initialize(string,string,string,uint8)"),
            0x80,
            0xc0,
            0x100,
            6,
            text("USDC"),
            text("USDC"),
            text("2")
        );
        anvil.send(USDC, &data).await;
        anvil
    }

    pub(crate) async fn rpc(&self, method: &str, params: Value) -> Value {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let answer: Value = self.http.post(&self.url).json(&body).send().await.unwrap().json().await.unwrap();
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    async fn send(&self, to: &str, data: &str) {
        let tx = json!({"from": DEV, "to": to, "data": format!("0x{data}"), "gas": "0x7a120"});
        let hash = self.rpc("eth_sendTransaction", json!([tx])).await;
        for _ in 0..1_000 {
            if !self.rpc("eth_getTransactionReceipt", json!([hash])).await.is_null() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        panic!("{hash} was not mined");
    }

    /// Tokens for `to`, smallest units.
    pub(crate) async fn mint(&self, to: EvmAddress, units: u64) {
        let data = format!("{}{:0>64}{units:064x}", selector("mint(address,uint256)"), hex::encode(to.0));
        self.send(USDC, &data).await;
    }

    pub(crate) async fn coins(&self, of: EvmAddress, wei: u128) {
        self.rpc("anvil_setBalance", json!([format!("{of:x}"), format!("{wei:#x}")])).await;
    }

    pub(crate) async fn mine(&self, blocks: u64) {
        self.rpc("anvil_mine", json!([format!("{blocks:#x}")])).await;
    }

    pub(crate) async fn automine(&self, on: bool) {
        self.rpc("evm_setAutomine", json!([on])).await;
    }

    pub(crate) async fn tokens_of(&self, address: &str) -> u128 {
        let of: EvmAddress = address.parse().unwrap();
        let data = format!("0x{}{:0>64}", selector("balanceOf(address)"), hex::encode(of.0));
        self.number("eth_call", json!([{"to": USDC, "data": data}, "latest"])).await
    }

    pub(crate) async fn coins_of(&self, address: &str) -> u128 {
        self.number("eth_getBalance", json!([address, "latest"])).await
    }

    pub(crate) async fn nonce_of(&self, address: EvmAddress) -> u128 {
        self.number("eth_getTransactionCount", json!([format!("{address:x}"), "latest"])).await
    }

    async fn number(&self, method: &str, params: Value) -> u128 {
        let word = self.rpc(method, params).await;
        u128::from_str_radix(word.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
    }

    pub(crate) async fn pending(&self, hash: &str) -> bool {
        !self.rpc("eth_getTransactionByHash", json!([hash])).await.is_null()
    }
}

fn http_client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// The first four bytes of a function's hash, as found with `cast sig`.
fn selector(signature: &str) -> &'static str {
    match signature {
        "initialize(string,string,string,uint8)" => "ed5c475b",
        "mint(address,uint256)" => "40c10f19",
        "balanceOf(address)" => "70a08231",
        other => panic!("{other}"),
    }
}

/// A payer with a real wallet on a real node, 10 USDC and one coin.
pub(crate) struct Rich {
    pub(crate) payer: Payer,
    pub(crate) key: [u8; 32],
    pub(crate) wallet: Arc<LocalWallet>,
}

impl Rich {
    pub(crate) async fn new(anvil: &Anvil) -> Self {
        let rich = Self::poor(anvil);
        anvil.mint(rich.address(), 10_000_000).await;
        anvil.coins(rich.address(), COIN).await;
        rich
    }

    /// The same without money.
    pub(crate) fn poor(anvil: &Anvil) -> Self {
        let mut key = [0; 32];
        OsEntropy.fill(&mut key);
        let wallet = Arc::new(wallet_of(key, Network::evm(CHAIN_ID), &anvil.url));
        Self { payer: Payer::new(), key, wallet }
    }

    pub(crate) fn address(&self) -> EvmAddress {
        self.wallet.evm_address()
    }

    pub(crate) fn eip55(&self) -> String {
        checksum(self.address())
    }

    pub(crate) fn builder(&self) -> AgentBuilder {
        self.builder_of(Arc::clone(&self.wallet) as Arc<dyn Wallet>)
    }

    pub(crate) fn builder_of(&self, wallet: Arc<dyn Wallet>) -> AgentBuilder {
        let journal = Journal::open(self.payer.folder.path(), self.payer.clock.now()).unwrap();
        self.payer.builder().wallet(wallet).journal(journal).policy(policy()).retry(retry())
    }

    pub(crate) fn agent(&self) -> Agent {
        self.builder().build().unwrap()
    }

    /// The only open entry.
    pub(crate) fn entry(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.payer.open_file()).unwrap()).unwrap()
    }
}

/// One coin, wei.
pub(crate) const COIN: u128 = 1_000_000_000_000_000_000;

pub(crate) fn wallet_of(key: [u8; 32], network: Network, url: &str) -> LocalWallet {
    let key = EvmKey::from_bytes(&key).unwrap();
    let rpc = RpcUrl::parse(url).unwrap();
    LocalWallet::new(key, Arc::new(OsEntropy)).with_rpc(network, &[rpc]).unwrap()
}

/// USDC, and the coin at 2,000 dollars; gas up to a hundredth of a coin, for anvil's fees are high.
pub(crate) fn policy() -> Policy {
    let coin = DollarAsset::new(coin(), "ETH", 18).unwrap().worth_each("2000".parse().unwrap()).unwrap();
    let mut policy = Policy { max_gas_wei: COIN / 100, ..Policy::default() };
    policy.assets.push(coin);
    policy
}

pub(crate) fn coin() -> farebox_core::AssetId {
    farebox_core::AssetId::native(Network::evm(CHAIN_ID))
}

pub(crate) fn retry() -> RetryPolicy {
    RetryPolicy {
        transfer_deadline: std::time::Duration::from_secs(20),
        bump_after: std::time::Duration::from_secs(5),
        ..quick()
    }
}
