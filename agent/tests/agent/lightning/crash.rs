//! Processes that die at any step: one invoice is paid for one purchase, and what was bought is had.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use farebox_core::{
    BitcoinNetwork, PaymentHash,
    ports::{LightningWallet, NodeError, Outgoing, PayOrder, PayOutcome},
};
use tokio::sync::Notify;

use super::{shop::*, wallet::*};
use crate::support::*;

/// A wallet whose process dies at its n-th step: that call never returns.
#[derive(Debug)]
struct Dying {
    inner: Arc<Purse>,
    steps_left: AtomicUsize,
    /// Whether it dies after a step's effect instead of before it.
    after: bool,
    dead: Arc<Notify>,
}

impl Dying {
    async fn step<T>(&self, work: impl Future<Output = T> + Send) -> T {
        let last = self.steps_left.fetch_sub(1, Ordering::SeqCst) == 1;
        let die = async || {
            self.dead.notify_one();
            std::future::pending::<()>().await;
        };
        if last && !self.after {
            die().await;
        }
        let done = work.await;
        if last {
            die().await;
        }
        done
    }
}

#[async_trait]
impl LightningWallet for Dying {
    fn label(&self) -> &str {
        self.inner.label()
    }

    async fn id(&self) -> Result<Arc<str>, NodeError> {
        self.inner.id().await
    }

    async fn network(&self) -> Result<Option<BitcoinNetwork>, NodeError> {
        self.step(self.inner.network()).await
    }

    async fn spendable_msat(&self) -> Result<u64, NodeError> {
        self.inner.spendable_msat().await
    }

    async fn pay(&self, order: &PayOrder) -> PayOutcome {
        self.step(self.inner.pay(order)).await
    }

    async fn outgoing(&self, hash: PaymentHash) -> Result<Outgoing, NodeError> {
        self.step(self.inner.outgoing(hash)).await
    }
}

#[tokio::test]
async fn a_process_that_dies_at_any_step_of_its_wallet_pays_once_all_the_same() {
    for mood in [Mood::Pays, Mood::PaysAndLosesTheAnswer, Mood::FailsAndPays] {
        // network, pay, and a look for what the answer did not say.
        let steps = if mood == Mood::Pays { 2 } else { 3 };
        for (step, after) in (1..=steps).flat_map(|step| [(step, false), (step, true)]) {
            let me = Satoshi::new(mood);
            let till = Arc::new(Till::new(&me.lightning));
            let seller = Seller::of_tokens(&till, |_, _, till| till.serve(Some(0))).await;
            let dead = Arc::new(Notify::new());
            let inner = Arc::clone(&me.purse);
            let dying = Dying { inner, steps_left: AtomicUsize::new(step), after, dead: Arc::clone(&dead) };
            let agent = me.builder_of(Arc::new(dying)).build().unwrap();
            tokio::select! {
                _ = agent.fetch(get(seller.url("/"))) => panic!("{mood:?}: step {step} was not reached"),
                () = dead.notified() => {}
            }
            let noted = me.payer.files("tokens").len();
            assert_eq!(
                noted,
                usize::from(step > 1),
                "{mood:?} {step}: the invoice is noted before the wallet is asked"
            );
            assert_eq!(read(me.agent().fetch(get(seller.url("/"))).await).await.0, 200, "{mood:?} {step} {after}");
            assert_eq!((me.lightning.paid(), till.served()), (1, 1), "{mood:?} {step} {after}");
            let tokens: std::collections::BTreeSet<_> =
                seller.seen().iter().filter(|seen| seen.credential().is_some()).map(token_of).collect();
            assert_eq!(tokens.len(), 1);
            assert_eq!((me.payer.files("open").len(), me.payer.files("tokens").len()), (0, 0));
        }
    }
}

#[tokio::test]
async fn a_process_that_dies_before_or_after_the_answer_sends_the_same_token_with_the_same_key() {
    for served in [false, true] {
        let me = Satoshi::new(Mood::Pays);
        let till = Arc::new(Till::new(&me.lightning));
        let hangs = Arc::new(Notify::new());
        let told = Arc::clone(&hangs);
        let seller = Seller::of_tokens(&till, move |attempt, _, till| {
            if attempt > 1 {
                return till.serve(Some(0));
            }
            let head = if served { till.serve(Some(0)).into_parts().0 } else { respond(200, &[], "").into_parts().0 };
            told.notify_one();
            // A body without an end.
            let body =
                axum::body::Body::from_stream(futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>());
            axum::response::Response::from_parts(head, body)
        })
        .await;
        let agent = me.agent();
        let url = seller.url("/");
        tokio::select! {
            _ = async { agent.fetch(get(url)).await.unwrap().response.bytes().await } => panic!("the body has no end"),
            () = async { hangs.notified().await; tokio::time::sleep(std::time::Duration::from_millis(50)).await } => {}
        }
        assert_eq!(read(me.agent().fetch(get(seller.url("/"))).await).await, (200, "goods".to_owned()));
        let keys: Vec<_> = seller.seen().iter().filter(|seen| seen.credential().is_some()).map(key_of).collect();
        assert!(keys.len() == 2 && keys[0] == keys[1], "{keys:?}");
        assert_eq!((seller.distinct_credentials(), me.lightning.paid()), (1, 1));
    }
}

#[tokio::test]
async fn an_entry_whose_invoice_was_never_noted_is_given_up_for_a_new_one() {
    let me = Satoshi::new(Mood::PaysAndHangs);
    let till = Arc::new(Till::new(&me.lightning));
    let seller = Seller::of_tokens(&till, |_, _, till| till.serve(None)).await;
    me.purse.is_now(Mood::LosesTheWish);
    me.agent().fetch(get(seller.url("/"))).await.unwrap_err();
    // As if it had died between the two files.
    std::fs::remove_file(me.payer.files("tokens").pop().unwrap()).unwrap();
    me.purse.is_now(Mood::Pays);
    assert_eq!(read(me.agent().fetch(get(seller.url("/"))).await).await.0, 200);
    assert_eq!((me.lightning.paid(), till.shown.lock().unwrap().len()), (1, 2));
}

#[tokio::test]
async fn many_requests_at_once_that_are_shown_one_invoice_pay_one_each() {
    let me = Satoshi::new(Mood::Pays);
    let till = Arc::new(Till::new(&me.lightning));
    // As the gateway does: one open invoice for a client and a route, until it is paid and used.
    let open = Arc::new(std::sync::Mutex::new(None::<(String, String)>));
    let shown = Arc::clone(&open);
    let bills = Arc::clone(&till);
    let seller = Seller::start(move |_, seen| {
        let mut open = shown.lock().unwrap();
        if seen.credential().is_some() {
            *open = None;
            return bills.serve(Some(0));
        }
        let (macaroon, invoice) = open.get_or_insert_with(|| bills.terms()).clone();
        bill_of(&macaroon, &invoice, &serde_json::json!({}))
    })
    .await;
    let retry =
        farebox_agent::RetryPolicy { deadline: std::time::Duration::from_secs(20), attempts_max: 40, ..quick() };
    let agent = me.builder().retry(retry).build().unwrap();
    let fetches = (0..8).map(|n| read_all(agent.clone(), seller.url(&format!("/{n}"))));
    assert_eq!(futures_util::future::join_all(fetches).await, [200; 8]);
    assert_eq!((me.lightning.paid(), till.served()), (8, 8));
    // And eight times the very same request: one payment.
    let fetches = (0..8).map(|_| read_all(agent.clone(), seller.url("/same")));
    assert_eq!(futures_util::future::join_all(fetches).await, [200; 8]);
    assert_eq!(me.lightning.paid(), 9);
}

async fn read_all(agent: farebox_agent::Agent, url: url::Url) -> u16 {
    read(agent.fetch(get(url)).await).await.0
}
