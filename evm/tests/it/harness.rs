//! A node, a token, a payer and a store.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use alloy::{
    primitives::{Address, B256, Bytes, U256},
    sol,
    sol_types::{SolCall, SolConstructor},
};
use async_trait::async_trait;
use farebox_core::{
    Binding, Credential, FeeTerms, Finality, InstanceId, LaneKey, Network, Offer, Payment, PaymentId, PaymentState,
    Permit, ProofId, RequestId, RouteId, StoredTransaction, Timestamp, TransactionFate, TransactionId, X402Credential,
    ports::{
        Checked, Claimant, Clock, Entropy, LedgerUnavailable, Lookups, NoLookup, Offering, Presented, Rail,
        RecordError, Settlement, TransactionStore, Verified, VerifyError, Wallet, claim_of,
    },
};
use farebox_evm::{
    AssetConfig, ChainConfig, ChainLimits, EvmChains, EvmKey, EvmRail, FinalityTier, LocalWallet, NativeCoin,
    NativeRole, Pegged, Rates, RpcUrl, parse_address,
};
use parking_lot::Mutex;
use serde_json::{Value, json};

pub(crate) const USDC: &str = "0x036CbD53842c5426634e7929541eC2318f3dCF7e";
pub(crate) const SELLER: &str = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C";
/// The tenth development account.
pub(crate) const RELAYER: &str = "0x2a871d0798f97d79848a013d4936a73bf4cc922c825d33c1cf7073dff6d409c6";
/// The first development account, unlocked in anvil.
pub(crate) const DEV: &str = "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266";
pub(crate) const CHAIN_ID: u64 = 84532;

sol! {
    function initialize(string name, string symbol, string version, uint8 decimals);
    function mint(address to, uint256 amount);
    function transfer(address to, uint256 amount);
    function balanceOf(address account) external view returns (uint256);
    function transferWithAuthorization(address from, address to, uint256 value, uint256 validAfter,
        uint256 validBefore, bytes32 nonce, bytes signature) external;
    function cancelAuthorization(address authorizer, bytes32 nonce, bytes signature) external;

    contract DemoWallet {
        constructor(address owner);
    }
}

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
    /// A node with the token, and a mint for nobody yet.
    pub(crate) async fn start(args: &[&str]) -> Self {
        #[expect(clippy::disallowed_methods, reason = "where the node is, only the environment can say")]
        let program = std::env::var("FAREBOX_ANVIL")
            .expect("FAREBOX_ANVIL does not name an anvil: run .ci/tools, then `source .cache/env`");
        let mut child = Command::new(program)
            .args(["--port", "0", "--chain-id", &CHAIN_ID.to_string(), "--hardfork", "cancun"])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines
            .find_map(|line| line.unwrap().strip_prefix("Listening on ").map(str::to_owned))
            .expect("anvil ended before it listened");
        // Its log must be read, or it blocks on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let anvil = Self { child, url: format!("http://{address}"), http: http_client() };
        let artifact = artifact("DemoUSD");
        anvil.rpc("anvil_setCode", json!([USDC, artifact["deployedBytecode"]])).await;
        let init = initializeCall { name: "USDC".into(), symbol: "USDC".into(), version: "2".into(), decimals: 6 };
        anvil.send(USDC, init.abi_encode()).await;
        anvil
    }

    pub(crate) async fn rpc(&self, method: &str, params: Value) -> Value {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let answer: Value = self.http.post(&self.url).json(&body).send().await.unwrap().json().await.unwrap();
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// Sends a transaction of the development account and waits until it is mined: anvil answers a little before.
    pub(crate) async fn send(&self, to: &str, data: Vec<u8>) -> String {
        let tx = json!({"from": DEV, "to": to, "data": Bytes::from(data), "gas": "0x7a120"});
        let hash = self.rpc("eth_sendTransaction", json!([tx])).await;
        self.receipt(&hash).await;
        hash.as_str().unwrap().to_owned()
    }

    pub(crate) async fn receipt(&self, hash: &Value) -> Value {
        for _ in 0..1_000 {
            let receipt = self.rpc("eth_getTransactionReceipt", json!([hash])).await;
            if !receipt.is_null() {
                return receipt;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("{hash} was not mined");
    }

    pub(crate) async fn mint(&self, to: &str, amount: u64) {
        let call = mintCall { to: to.parse().unwrap(), amount: U256::from(amount) };
        self.send(USDC, call.abi_encode()).await;
    }

    pub(crate) async fn balance(&self, of: &str) -> u64 {
        let data = Bytes::from(balanceOfCall { account: of.parse().unwrap() }.abi_encode());
        let word = self.rpc("eth_call", json!([{"to": USDC, "data": data}, "latest"])).await;
        U256::from_str_radix(&word.as_str().unwrap()[2..], 16).unwrap().to()
    }

    pub(crate) async fn mined_nonce(&self, of: &str) -> u64 {
        let count = self.rpc("eth_getTransactionCount", json!([of, "latest"])).await;
        u64::from_str_radix(&count.as_str().unwrap()[2..], 16).unwrap()
    }

    /// Puts the demo's contract wallet on the chain.
    pub(crate) async fn wallet_of(&self, owner: &str) -> String {
        let code: Bytes = artifact("DemoWallet")["bytecode"].as_str().unwrap().parse().unwrap();
        let args = DemoWallet::constructorCall { owner: owner.parse().unwrap() }.abi_encode();
        let tx = json!({"from": DEV, "data": Bytes::from([code.as_ref(), &args].concat()), "gas": "0x1e8480"});
        let hash = self.rpc("eth_sendTransaction", json!([tx])).await;
        self.receipt(&hash).await["contractAddress"].as_str().unwrap().to_owned()
    }
}

/// The tests' own client; reqwest wants a TLS provider even for plain HTTP, and the rail's must not depend on this one.
pub(crate) fn http_client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

fn artifact(name: &str) -> Value {
    let path = format!("{}/../devchain/contracts/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[derive(Debug)]
pub(crate) struct WallClock;

impl Clock for WallClock {
    #[expect(clippy::disallowed_methods, reason = "a real node keeps real time")]
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap())
    }
}

pub(crate) fn now() -> Timestamp {
    WallClock.now()
}

#[derive(Debug)]
pub(crate) struct Random;

impl Entropy for Random {
    fn fill(&self, bytes: &mut [u8]) {
        rand::RngCore::fill_bytes(&mut rand::rng(), bytes);
    }
}

/// A store that can fail on demand.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) rows: Mutex<Vec<StoredTransaction>>,
    /// The next store says that it does not know, having stored it.
    pub(crate) unsure_once: AtomicBool,
    pub(crate) delay: Mutex<Duration>,
}

impl Store {
    pub(crate) fn of(&self, payment: PaymentId) -> Vec<StoredTransaction> {
        self.rows.lock().iter().filter(|row| row.payment == Some(payment)).cloned().collect()
    }
}

#[async_trait]
impl TransactionStore for Store {
    async fn store_transaction(&self, transaction: StoredTransaction) -> Result<(), RecordError> {
        let delay = *self.delay.lock();
        tokio::time::sleep(delay).await;
        self.rows.lock().push(transaction);
        if self.unsure_once.swap(false, Ordering::SeqCst) {
            let source = "a disk that says nothing".into();
            return Err(LedgerUnavailable { operation: "store a transaction", source }.into());
        }
        Ok(())
    }

    async fn open_transactions(&self, lane: &LaneKey) -> Result<Vec<StoredTransaction>, LedgerUnavailable> {
        let open = |row: &&StoredTransaction| row.lane == *lane && row.fate == TransactionFate::Open;
        let mut rows: Vec<_> = self.rows.lock().iter().filter(open).cloned().collect();
        rows.sort_by_key(|row| row.nonce);
        Ok(rows)
    }

    async fn transactions_of(&self, payment: PaymentId) -> Result<Vec<StoredTransaction>, LedgerUnavailable> {
        Ok(self.of(payment))
    }

    async fn transaction(&self, hash: &TransactionId) -> Result<Option<StoredTransaction>, LedgerUnavailable> {
        Ok(self.rows.lock().iter().find(|row| row.hash == *hash).cloned())
    }

    async fn last_nonce(&self, lane: &LaneKey) -> Result<Option<u64>, LedgerUnavailable> {
        Ok(self.rows.lock().iter().filter(|row| row.lane == *lane).map(|row| row.nonce).max())
    }

    async fn close_transaction(&self, hash: &TransactionId, fate: TransactionFate) -> Result<(), LedgerUnavailable> {
        self.rows.lock().iter_mut().filter(|row| row.hash == *hash).for_each(|row| row.fate = fate);
        Ok(())
    }
}

/// A gateway's view: a rail, its offers, a payer.
pub(crate) struct World {
    pub(crate) anvil: Anvil,
    pub(crate) store: Arc<Store>,
    pub(crate) chains: EvmChains,
    pub(crate) rail: Arc<EvmRail>,
    pub(crate) offers: Vec<Offer>,
    pub(crate) wallet: Arc<LocalWallet>,
    pub(crate) payer_key: [u8; 32],
    pub(crate) payer: String,
}

pub(crate) fn config(url: &str, change: impl FnOnce(&mut ChainConfig)) -> ChainConfig {
    let limits = ChainLimits {
        max_timeout_s: 60,
        bump_after: Duration::from_secs(1),
        gas_per_day_max: 100 * farebox_evm::ETHER,
        ..ChainLimits::default()
    };
    let mut config = ChainConfig {
        network: Network::evm(CHAIN_ID),
        rpc: vec![RpcUrl::parse(url).unwrap().into()],
        confirmations: vec![FinalityTier { up_to: None, finality: Finality::Blocks(1) }],
        marked_finality: Finality::Blocks(3),
        assets: vec![AssetConfig {
            address: parse_address(USDC).unwrap(),
            symbol: "USDC".into(),
            pegged: Pegged::UsDollar,
        }],
        pay_to: parse_address(SELLER).unwrap(),
        native: Some(NativeCoin { symbol: "ETH".into(), role: NativeRole::Payment }),
        relayer: Some(EvmKey::from_hex(RELAYER).unwrap()),
        head_age_max: Duration::from_secs(120),
        quorum: None,
        limits,
    };
    change(&mut config);
    config
}

impl World {
    pub(crate) async fn new(args: &[&str]) -> Self {
        Self::through(args, |anvil| anvil.to_owned(), |_| ()).await
    }

    /// With the rail's node behind the URL that `route` gives, and a changed config.
    pub(crate) async fn through(
        args: &[&str],
        route: impl FnOnce(&str) -> String,
        change: impl FnOnce(&mut ChainConfig),
    ) -> Self {
        let anvil = Anvil::start(args).await;
        let url = route(&anvil.url);
        let store = Arc::new(Store::default());
        let mut payer_key = [0; 32];
        Random.fill(&mut payer_key);
        let key = EvmKey::from_bytes(&payer_key).unwrap();
        let payer = farebox_evm::checksum(key.address());
        anvil.mint(&payer, 100_000_000).await;
        let clock = Arc::new(WallClock);
        let chains = EvmChains::connect(vec![config(&url, change)], store.clone(), clock.clone(), Rates::none(clock))
            .await
            .unwrap();
        let rail = chains.x402().unwrap();
        let offers = rail.offers(&"$0.01".parse().unwrap(), FeeTerms::default()).unwrap();
        let wallet = Arc::new(LocalWallet::new(key, Arc::new(Random)));
        Self { anvil, store, chains, rail: Arc::new(rail), offers, wallet, payer_key, payer }
    }

    /// A second rail on the same books, as after a restart.
    pub(crate) async fn restarted(&self) -> EvmRail {
        let clock = Arc::new(WallClock);
        let chains = EvmChains::connect(
            vec![config(&self.anvil.url, |_| ())],
            self.store.clone(),
            clock.clone(),
            Rates::none(clock),
        )
        .await
        .unwrap();
        chains.x402().unwrap()
    }

    pub(crate) async fn credential(&self) -> Credential {
        Credential::X402(self.wallet.authorize(&self.offers[0], now()).await.unwrap())
    }

    pub(crate) fn check(&self, credential: &Credential) -> Checked {
        self.rail.check(&presented(credential, &self.offers)).unwrap()
    }

    pub(crate) async fn verify(&self, checked: &Checked) -> Result<Verified, VerifyError> {
        self.rail.verify(checked, &Unlimited).await
    }

    /// Claims a fresh payment, as the gateway does after verification.
    pub(crate) async fn claimed(&self) -> Payment {
        payment(&self.check(&self.credential().await))
    }

    /// Claims, settles.
    pub(crate) async fn settle(&self, payment: &Payment) -> Settlement {
        self.rail.settle(&Permit::granted(payment.clone())).await
    }

    /// Resolves until it is no longer in doubt.
    pub(crate) async fn resolved(&self, payment: &Payment) -> Settlement {
        for _ in 0..100 {
            match self.rail.resolve(payment).await {
                Settlement::InDoubt { .. } => tokio::time::sleep(Duration::from_millis(50)).await,
                end => return end,
            }
        }
        panic!("still in doubt: {:?}", self.rail.resolve(payment).await)
    }
}

/// What the gateway shows a rail.
pub(crate) fn presented<'a>(credential: &'a Credential, offers: &'a [Offer]) -> Presented<'a> {
    static ROUTE: LazyLock<RouteId> = LazyLock::new(|| RouteId::new("r"));
    Presented {
        credential,
        route: &ROUTE,
        method: "GET",
        url: "https://api.example.com/",
        offers,
        now: now(),
        lookups: &Unlimited,
    }
}

pub(crate) fn x402(credential: &Credential) -> &X402Credential {
    match credential {
        Credential::X402(x402) => x402,
        other => panic!("expected an x402 payment, found {other:?}"),
    }
}

/// A caller who may ask for anything.
#[derive(Debug)]
pub(crate) struct Unlimited;

impl Lookups for Unlimited {
    fn take(&self) -> Result<(), NoLookup> {
        Ok(())
    }
}

pub(crate) fn payment(checked: &Checked) -> Payment {
    let mut random = [0; 10];
    Random.fill(&mut random);
    let caller = farebox_core::CallerId::new("c");
    let binding = Binding { route: RouteId::new("r"), method: "GET".into(), resource: "/".into(), caller };
    let proof = ProofId::new(format!("test:{}", hex::encode(checked.credential.digest().as_bytes())));
    let claimant = Claimant {
        id: PaymentId::new(now(), random),
        request: RequestId::new("req_test"),
        binding,
        holder: InstanceId::new("test"),
        lease: Duration::from_secs(60),
        now: now(),
    };
    Payment::first(claim_of(checked, proof, None, claimant))
}

/// The payment as it is once its settlement has begun.
pub(crate) fn in_doubt(payment: &Payment, store: &Store) -> Payment {
    let transaction = store.of(payment.id).last().map(|row| row.hash.clone());
    Payment { state: PaymentState::InDoubt, transaction, ..payment.clone() }
}

/// Anybody submits the payer's authorization.
pub(crate) fn submit_call(credential: &Credential) -> Vec<u8> {
    let x402 = x402(credential);
    let a = &x402.authorization;
    transferWithAuthorizationCall {
        from: Address::from(a.from.0),
        to: Address::from(a.to.0),
        value: U256::from(a.value),
        validAfter: U256::from(a.valid_after),
        validBefore: U256::from(a.valid_before),
        nonce: B256::from(a.nonce),
        signature: x402.signature.clone().into(),
    }
    .abi_encode()
}

pub(crate) fn transaction_of(settlement: &Settlement) -> String {
    match settlement {
        Settlement::Final { transaction, .. } => transaction.to_string(),
        other => panic!("expected Final, found {other:?}"),
    }
}

pub(crate) fn refusal_of(settlement: &Settlement) -> &str {
    match settlement {
        Settlement::Refused(rejected) => &rejected.code,
        other => panic!("expected Refused, found {other:?}"),
    }
}
