//! Transfers on a real node: a payer who signs and sends its own transactions, and a shop that takes claims as the gateway does.

mod checks;
mod claims;
mod cost;
mod fate;
mod follow;
mod hostile;
mod reorg;

use std::{
    collections::HashMap,
    process::Command,
    sync::{Arc, LazyLock},
    time::Duration,
};

use alloy::{
    consensus::{SignableTransaction, TxEip1559},
    eips::Encodable2718,
    primitives::{Address, B256, Bytes, TxKind, U256},
    signers::{SignerSync, local::PrivateKeySigner},
    sol,
    sol_types::{SolCall, SolStruct, eip712_domain},
};
use farebox_core::{
    Arrived, AssetId, Binding, CallerId, Claimed, Credential, EvmAddress, Finality, InstanceId, Network, Payment,
    PaymentCode, PaymentId, Refusal, RequestId, RouteId, Timestamp, TransferCredential,
    ports::{
        Checked, Claimant, Entropy, Ledger, Lookups, NoLookup, Paid, Presented, QuoteKey, Rail, Timely, Verified,
        VerifyError, claim_of,
    },
};
use farebox_evm::{ChainConfig, TransferParts, TransferRail};
use farebox_testkit::MemoryLedger;
use farebox_wire::transfer::{Quote, QuoteOption, Quoter, TransferTimes};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::{
    harness::{Anvil, CHAIN_ID, DEV, Random, SELLER, USDC, Unlimited, World, now},
    proxy::Proxy,
};

pub(crate) const URL: &str = "https://api.example.com/v1/report?id=7";
pub(crate) static ROUTE: LazyLock<RouteId> = LazyLock::new(|| RouteId::new("report"));
/// The price of the tests, in millionths of a dollar.
pub(crate) const PRICE: u128 = 10_000;

/// The page's struct, by alloy: an opinion of its own on what EIP-712 says.
mod signed {
    alloy::sol! {
        struct PaymentCode {
            string quote;
            string method;
            string resource;
            bytes32 transaction;
            address asset;
            address payer;
            address payTo;
            uint256 amount;
            uint256 expiresAt;
        }
    }
}

sol! {
    function transfer(address to, uint256 value) external returns (bool);
    function transferFrom(address from, address to, uint256 value) external returns (bool);
    function approve(address spender, uint256 value) external returns (bool);
    function lie(address from, address to, uint256 value) external;
    function mint(address to, uint256 value) external;
    function pay(address token, address to, uint256 value, uint256 times) external;
    function payEach(address token, address to, uint256[] values) external;
    function execute(address to, uint256 value, bytes data) external payable;
}

/// A rail, its books, and a payer with money.
pub(crate) struct Shop {
    pub(crate) world: World,
    pub(crate) rail: TransferRail,
    pub(crate) ledger: Arc<MemoryLedger>,
    pub(crate) quoter: Arc<Quoter>,
    pub(crate) payer: Payer,
}

/// A key that sends its own transactions.
pub(crate) struct Payer {
    pub(crate) signer: PrivateKeySigner,
    nonce: Mutex<u64>,
}

/// What is claimed, before it is signed.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) quote: Quote,
    pub(crate) sealed: Option<String>,
    pub(crate) asset: AssetId,
    pub(crate) transaction: B256,
    pub(crate) announced: B256,
    pub(crate) payer: Address,
    pub(crate) pay_to: EvmAddress,
    pub(crate) amount: u128,
    pub(crate) resource: String,
    pub(crate) method: String,
    pub(crate) expires_at: u64,
}

/// A client that may cause so many questions.
#[derive(Debug)]
pub(crate) struct Few(pub(crate) Mutex<u32>);

impl Lookups for Few {
    fn take(&self) -> Result<(), NoLookup> {
        let mut left = self.0.lock();
        *left = left.checked_sub(1).ok_or(NoLookup { retry_after_s: 7 })?;
        Ok(())
    }

    fn give_back(&self) {
        *self.0.lock() += 1;
    }
}

pub(crate) fn network() -> Network {
    Network::evm(CHAIN_ID)
}

pub(crate) fn usdc() -> AssetId {
    AssetId::erc20(network(), USDC.parse().unwrap())
}

pub(crate) fn native() -> AssetId {
    AssetId::native(network())
}

pub(crate) fn seller() -> Address {
    SELLER.parse().unwrap()
}

impl Shop {
    pub(crate) async fn new(args: &[&str]) -> Self {
        Self::through(args, str::to_owned, |_| ()).await
    }

    pub(crate) async fn through(
        args: &[&str],
        route: impl FnOnce(&str) -> String,
        change: impl FnOnce(&mut ChainConfig),
    ) -> Self {
        let world = World::through(args, route, change).await;
        let ledger = Arc::new(MemoryLedger::new(InstanceId::new("test"), Duration::from_secs(60)));
        let key = QuoteKey { id: 1, secret: [5; 32], since: now() };
        let quoter = Arc::new(Quoter::new(vec![key]).unwrap());
        let rail = rail(&world, &ledger, &quoter);
        let payer = Payer::new(&world.payer_key);
        payer.fund(&world.anvil).await;
        Self { world, rail, ledger, quoter, payer }
    }

    /// With a proxy between the rail and its node.
    pub(crate) async fn proxied(args: &[&str], change: impl FnOnce(&mut ChainConfig)) -> (Arc<Proxy>, Self) {
        let mut proxy = None;
        let route = |url: &str| {
            let (started, url) = Proxy::start(url);
            proxy = Some(started);
            url
        };
        let shop = Self::through(args, route, change).await;
        (proxy.expect("the proxy was started"), shop)
    }

    pub(crate) fn anvil(&self) -> &Anvil {
        &self.world.anvil
    }

    /// A quote of now for the price in USDC, and a ten-thousandth of an ether.
    pub(crate) fn quote(&self) -> Quote {
        let option =
            |asset, units| QuoteOption { asset, pay_to: SELLER.parse().unwrap(), units, finality: Finality::Blocks(1) };
        let mut nonce = [0; 8];
        Random.fill(&mut nonce);
        let issued_at = Timestamp::from_unix_s(now().unix_s());
        Quote {
            target: Quote::target(&ROUTE, "GET", URL),
            options: vec![option(usdc(), PRICE), option(native(), 10u128.pow(14))],
            issued_at,
            pay_by: issued_at.plus(Duration::from_secs(600)),
            claim_by: issued_at.plus(Duration::from_secs(3600)),
            nonce,
        }
    }

    /// A claim on `transaction` as its payer would make it, by the first option of a fresh quote.
    pub(crate) fn draft(&self, transaction: B256) -> Draft {
        let quote = self.quote();
        Draft {
            asset: usdc(),
            amount: PRICE,
            sealed: None,
            quote,
            transaction,
            announced: transaction,
            payer: self.payer.address(),
            pay_to: SELLER.parse().unwrap(),
            resource: URL.to_owned(),
            method: "GET".to_owned(),
            expires_at: now().unix_s() + 300,
        }
    }

    /// The same for the native coin.
    pub(crate) fn native_draft(&self, transaction: B256) -> Draft {
        Draft { asset: native(), amount: 10u128.pow(14), ..self.draft(transaction) }
    }

    /// The draft, signed by the payer.
    pub(crate) fn sign(&self, draft: &Draft) -> Credential {
        self.sign_by(draft, &self.payer.signer)
    }

    pub(crate) fn sign_by(&self, draft: &Draft, signer: &PrivateKeySigner) -> Credential {
        let quote = draft.sealed.clone().unwrap_or_else(|| self.quoter.seal(&draft.quote));
        let asset = draft.asset.erc20_address().map_or_else(
            || "0xEeeeeEeeeEeEeeEeEeEeeEEEeeeeEeeeeeeeEEeE".parse().unwrap(),
            |token| Address::from(token.0),
        );
        let message = signed::PaymentCode {
            quote: quote.clone(),
            method: draft.method.clone(),
            resource: draft.resource.clone(),
            transaction: draft.transaction,
            asset,
            payer: draft.payer,
            payTo: Address::from(draft.pay_to.0),
            amount: U256::from(draft.amount),
            expiresAt: U256::from(draft.expires_at),
        };
        let domain = eip712_domain! { name: "Farebox Payment Code", version: "1", chain_id: CHAIN_ID, };
        let signature = signer.sign_hash_sync(&message.eip712_signing_hash(&domain)).unwrap().as_bytes().to_vec();
        Credential::Transfer(TransferCredential::new(
            PaymentCode {
                quote: quote.into(),
                asset: draft.asset.clone(),
                transaction: draft.transaction.0,
                payer: EvmAddress(draft.payer.into_array()),
                pay_to: draft.pay_to,
                amount: draft.amount,
                resource: draft.resource.clone().into(),
                method: draft.method.clone().into(),
                expires_at: draft.expires_at,
                signature,
            },
            draft.announced.0,
        ))
    }

    pub(crate) async fn authenticate(
        &self,
        credential: &Credential,
        lookups: &dyn Lookups,
    ) -> Result<Checked, VerifyError> {
        let presented =
            Presented { credential, route: &ROUTE, method: "GET", url: URL, offers: &[], now: now(), lookups };
        Ok(self.rail.authenticate(&presented).await?.expect("the rail proves who pays"))
    }

    /// What the gateway does with a claim up to the books.
    pub(crate) async fn look(&self, credential: &Credential, lookups: &dyn Lookups) -> Result<Paid, VerifyError> {
        let checked = self.authenticate(credential, lookups).await?;
        if let Timely::No(late) = checked.timely {
            return Err(VerifyError::Rejected(late));
        }
        match self.rail.verify(&checked, lookups).await? {
            Verified::Paid(paid) => Ok(paid),
            Verified::Authorised(_) => panic!("a transfer authorises nothing"),
        }
    }

    /// What the gateway does with a claim: the first transfer that nobody has claimed is taken.
    pub(crate) async fn claim(&self, credential: &Credential) -> Result<Payment, (u16, String)> {
        if let Some(known) = self.ledger.find(credential.digest()).await.unwrap() {
            self.authenticate(credential, &Unlimited).await.map_err(|error| told(&error))?;
            return Ok(known);
        }
        let checked = self.authenticate(credential, &Unlimited).await.map_err(|error| told(&error))?;
        let paid = self.look(credential, &Unlimited).await.map_err(|error| told(&error))?;
        for arrival in &paid.arrivals {
            let arrived = Arrived {
                transaction: paid.transaction.clone(),
                block: paid.block,
                units: arrival.units,
                purpose: paid.purpose.clone(),
            };
            let claim = claim_of(&checked, arrival.proof.clone(), Some(arrived), claimant(&checked));
            match self.ledger.claim(claim).await.unwrap() {
                Claimed::Granted(permit) => return Ok(permit.into_payment()),
                Claimed::Foreign(_) => {}
                Claimed::Replayed(payment) | Claimed::Busy(payment) => return Ok(payment),
            }
        }
        Err((409, "already_claimed".to_owned()))
    }

    pub(crate) async fn claim_code(&self, draft: &Draft) -> (u16, String) {
        match self.claim(&self.sign(draft)).await {
            Err(told) => told,
            Ok(payment) => panic!("expected a no, found {payment:?}"),
        }
    }

    /// The refusal with its facts.
    pub(crate) async fn refusal(&self, draft: &Draft) -> Refusal {
        match self.look(&self.sign(draft), &Unlimited).await {
            Err(VerifyError::Refused(refusal)) => *refusal,
            other => panic!("expected a refusal, found {other:?}"),
        }
    }

    /// The payer pays the price in USDC, the ordinary way.
    pub(crate) async fn pay(&self, value: u128) -> B256 {
        let data = transferCall { to: seller(), value: U256::from(value) }.abi_encode();
        self.payer.send(self.anvil(), TxKind::Call(USDC.parse().unwrap()), 0, data).await
    }

    /// The payer pays in the native coin.
    pub(crate) async fn pay_native(&self, wei: u128) -> B256 {
        self.payer.send(self.anvil(), TxKind::Call(seller()), wei, Vec::new()).await
    }
}

pub(crate) fn rail(world: &World, ledger: &Arc<MemoryLedger>, quoter: &Arc<Quoter>) -> TransferRail {
    let times = TransferTimes { pay_within: Duration::from_secs(600), claim_within: Duration::from_secs(3600) };
    world.chains.transfer(TransferParts { quoter: quoter.clone(), ledger: ledger.clone(), times })
}

fn claimant(checked: &Checked) -> Claimant {
    let mut random = [0; 10];
    Random.fill(&mut random);
    let caller = CallerId::from_payer(&checked.payer);
    Claimant {
        id: PaymentId::new(now(), random),
        request: RequestId::new("req_test"),
        binding: Binding { route: ROUTE.clone(), method: "GET".into(), resource: "/v1/report?id=7".into(), caller },
        holder: InstanceId::new("test"),
        lease: Duration::from_secs(60),
        now: now(),
    }
}

/// Status and code, as the gateway would answer.
pub(crate) fn told(error: &VerifyError) -> (u16, String) {
    match error {
        VerifyError::Rejected(rejected) => (402, rejected.code.to_string()),
        VerifyError::Refused(refusal) => (refusal.status, refusal.code.to_string()),
        VerifyError::Unavailable { .. } => (503, "payment_unverifiable".to_owned()),
    }
}

pub(crate) fn no(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

impl Payer {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Self { signer: PrivateKeySigner::from_bytes(&B256::from(*key)).unwrap(), nonce: Mutex::new(0) }
    }

    pub(crate) fn random() -> Self {
        let mut key = [0; 32];
        Random.fill(&mut key);
        Self::new(&key)
    }

    pub(crate) fn address(&self) -> Address {
        self.signer.address()
    }

    pub(crate) async fn fund(&self, anvil: &Anvil) {
        anvil.rpc("anvil_setBalance", json!([self.address(), "0x8ac7230489e80000"])).await;
        anvil.mint(&self.address().to_string(), 100_000_000).await;
    }

    /// A transaction, signed.
    pub(crate) fn signed(&self, to: TxKind, wei: u128, data: Vec<u8>, nonce: u64) -> (B256, Bytes) {
        let tx = TxEip1559 {
            chain_id: CHAIN_ID,
            nonce,
            gas_limit: 12_000_000,
            max_fee_per_gas: 20 * farebox_evm::GWEI,
            max_priority_fee_per_gas: 1,
            to,
            value: U256::from(wei),
            access_list: Default::default(),
            input: data.into(),
        };
        let signature = self.signer.sign_hash_sync(&tx.signature_hash()).unwrap();
        let signed = tx.into_signed(signature);
        (*signed.hash(), signed.encoded_2718().into())
    }

    pub(crate) fn next(&self) -> u64 {
        let mut nonce = self.nonce.lock();
        *nonce += 1;
        *nonce - 1
    }

    /// Sends a transaction without waiting for it.
    pub(crate) async fn broadcast(&self, anvil: &Anvil, to: TxKind, wei: u128, data: Vec<u8>) -> (B256, Bytes) {
        let (hash, raw) = self.signed(to, wei, data, self.next());
        anvil.rpc("eth_sendRawTransaction", json!([raw])).await;
        (hash, raw)
    }

    /// Sends a transaction and waits until it is mined.
    pub(crate) async fn send(&self, anvil: &Anvil, to: TxKind, wei: u128, data: Vec<u8>) -> B256 {
        let (hash, _) = self.broadcast(anvil, to, wei, data).await;
        anvil.receipt(&json!(hash)).await;
        hash
    }
}

/// Puts a contract of `e2e/contracts/Hostile.sol` on the chain.
pub(crate) async fn deploy(anvil: &Anvil, name: &str, arguments: &[u8]) -> Address {
    let code: Bytes = COMPILED[name].parse().unwrap();
    let tx = json!({"from": DEV, "data": Bytes::from([code.as_ref(), arguments].concat()), "gas": "0x2dc6c0"});
    let hash = anvil.rpc("eth_sendTransaction", json!([tx])).await;
    anvil.receipt(&hash).await["contractAddress"].as_str().unwrap().parse().unwrap()
}

static COMPILED: LazyLock<HashMap<String, String>> = LazyLock::new(|| {
    #[expect(clippy::disallowed_methods, reason = "where node is, only the environment can say")]
    let node = std::env::var("FAREBOX_NODE").expect("FAREBOX_NODE does not name a node: run .ci/tools");
    let contracts = concat!(env!("CARGO_MANIFEST_DIR"), "/../e2e/contracts");
    let output = Command::new(node)
        .args([format!("{contracts}/compile.mjs"), format!("{contracts}/Hostile.sol")])
        .output()
        .unwrap();
    assert!(output.status.success(), "solc: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
});

/// Anvil's block at this height, or `latest`.
pub(crate) async fn block(anvil: &Anvil, at: &str) -> Value {
    anvil.rpc("eth_getBlockByNumber", json!([at, false])).await
}
