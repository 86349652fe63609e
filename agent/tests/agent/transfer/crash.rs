//! Processes that die at any step, and several at work with one wallet: one transfer for one purchase, one nonce for one transfer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use farebox_agent::{FetchError, RetryPolicy, Stake};
use farebox_core::{
    Amount, AssetId, EvmAddress, Network, Offer, PaymentCode, Timestamp, X402Credential,
    ports::{
        BroadcastAnswer, Outlook, SentTransfer, SignedTransfer, TransferFate, TransferGas, TransferOrder,
        TransferWallet, Wallet, WalletError,
    },
};
use serde_json::json;
use tokio::sync::Notify;

use super::{chain::*, shop::*};
use crate::support::*;

/// A wallet whose process dies at its n-th step: that call never returns.
#[derive(Debug)]
struct Dying {
    inner: Arc<farebox_evm::LocalWallet>,
    steps_left: AtomicUsize,
    /// Whether it dies after a step's effect instead of before it.
    after: bool,
    dead: Arc<Notify>,
}

impl Dying {
    fn last(&self) -> bool {
        self.steps_left.fetch_sub(1, Ordering::SeqCst) == 1
    }

    async fn die(&self) {
        self.dead.notify_one();
        std::future::pending::<()>().await;
    }

    async fn step<T>(&self, work: impl Future<Output = T> + Send) -> T {
        let last = self.last();
        if last && !self.after {
            self.die().await;
        }
        let done = work.await;
        if last {
            self.die().await;
        }
        done
    }
}

#[async_trait]
impl Wallet for Dying {
    fn evm_address(&self) -> EvmAddress {
        self.inner.evm_address()
    }

    async fn authorize(&self, offer: &Offer, now: Timestamp) -> Result<X402Credential, WalletError> {
        self.inner.authorize(offer, now).await
    }

    async fn balance(&self, asset: &AssetId) -> Result<Amount, WalletError> {
        self.inner.balance(asset).await
    }

    fn transfers(&self) -> Option<&dyn TransferWallet> {
        Some(self)
    }
}

#[async_trait]
impl TransferWallet for Dying {
    async fn outlook(&self, order: &TransferOrder) -> Result<Outlook, WalletError> {
        self.step(self.inner.outlook(order)).await
    }

    fn sign_transfer(&self, order: &TransferOrder, gas: TransferGas) -> Result<SignedTransfer, WalletError> {
        self.inner.sign_transfer(order, gas)
    }

    async fn broadcast(&self, network: &Network, raw: &[u8]) -> Result<BroadcastAnswer, WalletError> {
        self.step(self.inner.broadcast(network, raw)).await
    }

    async fn fate(&self, sent: &SentTransfer<'_>) -> Result<TransferFate, WalletError> {
        self.step(self.inner.fate(sent)).await
    }

    fn sign_code(&self, code: PaymentCode) -> Result<PaymentCode, WalletError> {
        self.inner.sign_code(code)
    }
}

#[tokio::test]
async fn a_process_that_dies_at_any_step_leaves_one_transfer_which_the_next_one_claims() {
    let anvil = Anvil::start().await;
    let mut died = 0;
    for (step, after) in [(1, false), (1, true), (2, false), (2, true), (3, false), (3, true)] {
        let rich = Rich::new(&anvil).await;
        let paid_before = anvil.tokens_of(SELLER).await;
        let seller = Seller::of_transfers(|_, _| goods()).await;
        let dead = Arc::new(Notify::new());
        let inner = Arc::clone(&rich.wallet);
        let dying = Dying { inner, steps_left: AtomicUsize::new(step), after, dead: Arc::clone(&dead) };
        let agent = rich.builder_of(Arc::new(dying)).build().unwrap();
        tokio::select! {
            _ = agent.fetch(get(seller.url("/"))) => panic!("step {step} was not reached"),
            () = dead.notified() => died += 1,
        }
        // What the dead one had signed is on disk from before it was first sent.
        let signed = rich.payer.files("open").len() == 1;
        assert_eq!(signed, step > 1, "{step} {after}");
        let first = signed.then(|| rich.entry()["current"]["proof"]["first"]["transaction"].clone());
        assert_eq!(read(rich.agent().fetch(get(seller.url("/"))).await).await, (200, "goods".to_owned()));
        assert_eq!(anvil.tokens_of(SELLER).await - paid_before, CENT, "{step} {after}");
        assert_eq!((anvil.nonce_of(rich.address()).await, seller.claimed().len()), (1, 1));
        if let Some(first) = first {
            assert_eq!(first, json!(seller.claimed()[0]));
        }
    }
    assert_eq!(died, 6);
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_made_again_without_a_node() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::of_transfers(|_, _| goods()).await;
    // The head came, the body was never read.
    drop(rich.agent().fetch(get(seller.url("/"))).await.unwrap());
    let key = rich.key;
    let url = anvil.url.clone();
    let spent = anvil.tokens_of(SELLER).await;
    drop(anvil);
    let wallet = Arc::new(wallet_of(key, Network::evm(CHAIN_ID), &url));
    let agent = rich.builder_of(wallet).build().unwrap();
    let made = agent.fetch(get(seller.url("/"))).await.unwrap();
    assert_eq!(made.payment.as_ref().unwrap().transfer.as_ref().unwrap().confirmations, None);
    assert_eq!(read(Ok(made)).await.0, 200);
    assert_eq!((spent, seller.codes().len(), seller.claimed().len()), (CENT, 2, 1));
}

#[tokio::test]
async fn an_unmined_transfer_outlives_its_process_and_is_claimed_when_it_is_mined() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::of_transfers(|_, _| goods()).await;
    anvil.automine(false).await;
    let quick = RetryPolicy { transfer_deadline: Duration::from_millis(500), ..retry() };
    for _ in 0..2 {
        let agent = rich.builder().retry(quick).build().unwrap();
        let error = agent.fetch(get(seller.url("/"))).await.unwrap_err();
        assert_eq!((error.code(), error.stake(), error.retryable()), ("transfer_unconfirmed", Stake::Unclear, true));
    }
    anvil.mine(1).await;
    assert_eq!(read(rich.agent().fetch(get(seller.url("/"))).await).await.0, 200);
    assert_eq!((anvil.tokens_of(SELLER).await, anvil.nonce_of(rich.address()).await), (CENT, 1));
}

#[tokio::test]
async fn a_node_that_is_gone_is_never_a_reason_to_pay_again() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::of_transfers(|_, _| goods()).await;
    anvil.automine(false).await;
    let quick = RetryPolicy { transfer_deadline: Duration::from_millis(500), ..retry() };
    let short = |wallet: Arc<dyn Wallet>| rich.builder_of(wallet).retry(quick).build().unwrap();
    short(Arc::clone(&rich.wallet) as Arc<dyn Wallet>).fetch(get(seller.url("/"))).await.unwrap_err();
    let dead = wallet_of(rich.key, Network::evm(CHAIN_ID), "http://127.0.0.1:1");
    let error = short(Arc::new(dead)).fetch(get(seller.url("/"))).await.unwrap_err();
    assert_eq!(error.code(), "transfer_unconfirmed", "{error}");
    let none = farebox_evm::LocalWallet::new(farebox_evm::EvmKey::from_bytes(&rich.key).unwrap(), Arc::new(OsEntropy));
    let error = short(Arc::new(none)).fetch(get(seller.url("/"))).await.unwrap_err();
    assert_eq!((error.code(), error.stake()), ("transfer_unconfirmed", Stake::Unclear), "{error}");
    anvil.mine(1).await;
    assert_eq!(read(rich.agent().fetch(get(seller.url("/"))).await).await.0, 200);
    assert_eq!((anvil.tokens_of(SELLER).await, anvil.nonce_of(rich.address()).await), (CENT, 1));
}

#[tokio::test]
async fn another_wallet_neither_claims_a_transfer_nor_pays_in_its_place() {
    let anvil = Anvil::start().await;
    let (rich, other) = (Rich::new(&anvil).await, Rich::new(&anvil).await);
    let down = Arc::new(AtomicBool::new(true));
    let seller_down = Arc::clone(&down);
    let seller = Seller::of_transfers(move |_, _| match seller_down.load(Ordering::SeqCst) {
        true => respond(503, &[], ""),
        false => goods(),
    })
    .await;
    let error = rich.agent().fetch(get(seller.url("/"))).await.unwrap_err();
    assert_eq!((error.code(), error.stake()), ("charged_not_served", Stake::Charged));
    down.store(false, Ordering::SeqCst);
    let stranger = rich.builder_of(Arc::clone(&other.wallet) as Arc<dyn Wallet>).build().unwrap();
    let error = stranger.fetch(get(seller.url("/"))).await.unwrap_err();
    assert!(matches!(error, FetchError::OtherWallet { payer, .. } if payer == rich.address()), "{error}");
    assert_eq!(read(rich.agent().fetch(get(seller.url("/"))).await).await.0, 200);
    assert_eq!((anvil.tokens_of(SELLER).await, anvil.nonce_of(other.address()).await), (CENT, 0));
}

#[tokio::test]
async fn many_agents_with_one_wallet_share_a_purchase_and_never_a_nonce() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::of_transfers(|_, _| goods()).await;
    let same = (0..4).map(|_| seller.url("/same"));
    let others = (0..6).map(|n| seller.url(&format!("/{n}")));
    let fetches = same.chain(others).map(|url| {
        let agent = rich.agent();
        tokio::spawn(async move { read(agent.fetch(get(url)).await).await.0 })
    });
    for fetch in fetches.collect::<Vec<_>>() {
        assert_eq!(fetch.await.unwrap(), 200);
    }
    assert_eq!((anvil.tokens_of(SELLER).await, anvil.nonce_of(rich.address()).await), (7 * CENT, 7));
    let mut hashes: Vec<_> = seller.codes().iter().map(hash).collect();
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), 7);
}

#[tokio::test]
async fn what_was_signed_and_never_sent_is_sent_before_what_comes_after_it() {
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::of_transfers(|_, _| goods()).await;
    let dead = Arc::new(Notify::new());
    let inner = Arc::clone(&rich.wallet);
    // Dies before its broadcast.
    let dying = Dying { inner, steps_left: AtomicUsize::new(2), after: false, dead: Arc::clone(&dead) };
    let agent = rich.builder_of(Arc::new(dying)).build().unwrap();
    tokio::select! {
        _ = agent.fetch(get(seller.url("/first"))) => panic!(),
        () = dead.notified() => {}
    }
    drop(agent);
    assert_eq!(read(rich.agent().fetch(get(seller.url("/second"))).await).await.0, 200);
    assert_eq!(anvil.nonce_of(rich.address()).await, 2);
    assert_eq!(read(rich.agent().fetch(get(seller.url("/first"))).await).await.0, 200);
    assert_eq!((anvil.tokens_of(SELLER).await, anvil.nonce_of(rich.address()).await), (2 * CENT, 2));
}

#[tokio::test]
async fn the_transaction_is_on_disk_and_private_before_the_chain_knows_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let anvil = Anvil::start().await;
    let rich = Rich::new(&anvil).await;
    let seller = Seller::of_transfers(|_, _| goods()).await;
    let dead = Arc::new(Notify::new());
    let inner = Arc::clone(&rich.wallet);
    let dying = Dying { inner, steps_left: AtomicUsize::new(2), after: false, dead: Arc::clone(&dead) };
    let agent = rich.builder_of(Arc::new(dying)).build().unwrap();
    tokio::select! {
        _ = agent.fetch(get(seller.url("/"))) => panic!(),
        () = dead.notified() => {}
    }
    let hash = rich.entry()["current"]["proof"]["first"]["transaction"].as_str().unwrap().to_owned();
    assert!(!anvil.pending(&hash).await);
    assert_eq!(rich.payer.open_file().metadata().unwrap().permissions().mode() & 0o777, 0o600);
}
