//! Blocks that are undone after money was taken for final.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use farebox_core::{
    Amount, Answer, ArrivedFor, AuditEntry, AuditLine, BlockRef, Claim, Claimed, CredentialDigest, InstanceId, Network,
    Offer, Payer, Payment, PaymentEvent, PaymentId, PaymentState, ProofId, RouteId, SettleWhen, Timestamp,
    ports::{Ledger, LedgerUnavailable, PaymentFilter, QuoteKey, QuoteKeyRotation, Rail as _, RecordError},
};
use farebox_ledger::{SqliteLedger, SqliteOptions};
use farebox_testkit::{ManualClock, ScriptedTransfers, SettleWith, TestPayer, test_transfer_claim, transaction_of};
use reqwest::Method;
use serde_json::Value;

use crate::{
    shop::{NOW, Parts, Shop, counting, eventually},
    support::{Running, patiently},
};

#[tokio::test]
async fn a_reorganisation_puts_revenue_in_doubt_until_it_is_mined_again() {
    let (url, _) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let credential = shop.sign("/paid/x", 1).await;
    assert_eq!(shop.get("/paid/x", Some(&credential)).await.status, 200);
    let payment = shop.ledger.payments().pop().unwrap();
    shop.rail.resolve_next(SettleWith::Refused("invalid_exact_evm_transaction_failed"));
    shop.rail.reorganise(&payment.proof);
    shop.until(PaymentState::Refused).await;
}

#[tokio::test]
async fn a_transfer_that_is_undone_is_taken_back_and_stays_in_the_audit_log() {
    let (url, calls) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let claim = shop.pay("/paid/x", TestPayer(1), &[10_000]).await;
    assert_eq!(shop.send(Method::GET, "/paid/x", claim.clone()).await.status, 200);
    let payment = shop.last();
    shop.transfers.reorganise(payment.transaction.as_ref().unwrap());
    shop.until(PaymentState::InDoubt).await;
    assert!(shop.last().reversed);
    let outcomes = |shop: &Shop| -> Vec<String> {
        let lines = shop.ledger.audit_log();
        let lines = lines.iter().map(|line| serde_json::from_str::<Value>(&line.text).unwrap());
        lines.map(|line| line["outcome"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(outcomes(&shop)[..3], ["settled", "delivered", "reversed"]);
    // Nothing is to be had for it meanwhile, and nobody is billed.
    let got = shop.send(Method::GET, "/paid/x", claim.clone()).await;
    got.check(503, "settlement_pending", "same_proof", "unknown");
    shop.transfers.resolve_next(SettleWith::Refused("payment_reverted"));
    shop.until(PaymentState::Refused).await;
    assert_eq!(shop.send(Method::GET, "/paid/x", claim).await.status, 402);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_chain_that_cannot_be_asked_takes_nothing_back_until_it_can() {
    let (url, _) = counting().await;
    let shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    let claim = shop.pay("/paid/x", TestPayer(1), &[10_000]).await;
    assert_eq!(shop.send(Method::GET, "/paid/x", claim).await.status, 200);
    shop.transfers.lose_chain();
    shop.transfers.reorganise(shop.last().transaction.as_ref().unwrap());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(shop.state().0, PaymentState::Settled);
    shop.transfers.find_chain();
    shop.until(PaymentState::InDoubt).await;
}

/// While no node answers, the window moves on over the block that is undone.
#[tokio::test]
async fn what_was_undone_during_an_outage_is_taken_back_though_it_is_deep_by_then() {
    for restarts in [false, true] {
        let (url, _) = counting().await;
        let mut shop = Shop::open(SettleWhen::BeforeResponse, url).await;
        let claim = shop.pay("/paid/x", TestPayer(1), &[10_000]).await;
        assert_eq!(shop.send(Method::GET, "/paid/x", claim).await.status, 200);
        let undone = shop.last();
        tokio::time::sleep(Duration::from_millis(100)).await;
        shop.transfers.lose_chain();
        for _ in 0..200 {
            let claim = shop.pay("/paid/x", TestPayer(2), &[10_000]).await;
            assert_eq!(shop.send(Method::GET, "/paid/x", claim).await.status, 200);
        }
        if restarts {
            shop = shop.restart("2").await;
            shop.follow_transfers();
        }
        shop.transfers.reorganise(undone.transaction.as_ref().unwrap());
        let late = shop.last();
        shop.transfers.reorganise(late.transaction.as_ref().unwrap());
        shop.transfers.finalise_below(u64::MAX);
        shop.transfers.transfer(TestPayer(3), &[1]);
        tokio::time::sleep(Duration::from_millis(50)).await;
        shop.transfers.find_chain();
        let reversed = |shop: &Shop| -> Vec<PaymentId> {
            shop.ledger.payments().into_iter().filter(|p| p.reversed).map(|p| p.id).collect()
        };
        eventually(|| reversed(&shop) == vec![undone.id, late.id]).await;
    }
}

/// Books that count what the reconciler asks them.
#[derive(Debug)]
struct Counted {
    books: SqliteLedger,
    block_questions: AtomicUsize,
    pages: AtomicUsize,
}

impl Counted {
    /// Books in `folder` with so many settled payments of each of `transactions`.
    async fn with(folder: &Path, transfers: &ScriptedTransfers, transactions: &[usize]) -> (Arc<Self>, Vec<[u8; 32]>) {
        let options =
            SqliteOptions { instance: InstanceId::new("1"), answers_kept_for: Duration::ZERO, audit_file: None };
        let books = SqliteLedger::open(&folder.join("books.db"), options, NOW).unwrap();
        let (mut claims, mut hashes) = (vec![], vec![]);
        for payments in transactions {
            let hash = transfers.transfer(TestPayer(1), &vec![10_000; *payments]);
            let block = transfers.windows().await[0].blocks.last().copied().unwrap();
            for _ in 0..*payments {
                let number = claims.len() as u64;
                let mut claim = test_transfer_claim(number, 10_000, ArrivedFor::Delivery, InstanceId::new("1"), NOW);
                if let Some(arrived) = &mut claim.arrived {
                    (arrived.block, arrived.transaction) = (block, transaction_of(&hash));
                }
                claims.push(claim);
            }
            hashes.push(hash);
        }
        let claimed = futures_util::future::join_all(claims.into_iter().map(|claim| books.claim(claim))).await;
        assert!(claimed.into_iter().all(|claimed| matches!(claimed, Ok(Claimed::Granted(_)))));
        let counted = Self { books, block_questions: AtomicUsize::new(0), pages: AtomicUsize::new(0) };
        (Arc::new(counted), hashes)
    }

    async fn in_doubt(&self) -> Vec<Payment> {
        let filter = PaymentFilter { state: Some(PaymentState::InDoubt), limit: 1_000, ..PaymentFilter::default() };
        self.books.list(&filter).await.unwrap()
    }
}

async fn serve(counted: &Arc<Counted>, transfers: &ScriptedTransfers) -> Running {
    let parts = Parts {
        // Two rails of one chain, which see one window.
        rails: vec![Arc::new(transfers.clone()), Arc::new(transfers.clone())],
        ledger: counted.clone(),
        clock: Arc::new(ManualClock::at(NOW)),
        instance: InstanceId::new("1"),
        upstream: "http://127.0.0.1:9".into(),
        settle: SettleWhen::BeforeResponse,
    };
    parts.serve().await
}

#[tokio::test]
async fn ten_thousand_payments_cost_one_question_a_block_and_an_undone_block_takes_back_its_own() {
    let (folder, transfers) = (tempfile::tempdir().unwrap(), ScriptedTransfers::new());
    let (counted, hashes) = Counted::with(folder.path(), &transfers, &[50; 200]).await;
    let _gateway = serve(&counted, &transfers).await;
    let questions = || counted.block_questions.load(Ordering::SeqCst);
    eventually(|| questions() == 1).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!((questions(), transfers.calls().len()), (1, 0), "a window that has not moved is not looked at");
    for block in 1..=3 {
        transfers.transfer(TestPayer(2), &[1]);
        eventually(|| questions() == 1 + block).await;
    }
    assert_eq!((transfers.calls().len(), counted.pages.load(Ordering::SeqCst)), (0, 0), "no question for a payment");
    let undone = transaction_of(&hashes[123]);
    transfers.reorganise(&undone);
    transfers.transfer(TestPayer(2), &[1]);
    patiently(async {
        while counted.in_doubt().await.len() < 50 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let reversed = counted.in_doubt().await;
    assert!(reversed.iter().all(|payment| payment.reversed && payment.transaction.as_ref() == Some(&undone)));
    assert_eq!(reversed.len(), 50);
}

#[tokio::test]
async fn a_block_with_more_payments_than_a_page_is_taken_back_whole() {
    let (folder, transfers) = (tempfile::tempdir().unwrap(), ScriptedTransfers::new());
    let (counted, hashes) = Counted::with(folder.path(), &transfers, &[600]).await;
    let _gateway = serve(&counted, &transfers).await;
    transfers.reorganise(&transaction_of(&hashes[0]));
    transfers.transfer(TestPayer(2), &[1]);
    patiently(async {
        while counted.in_doubt().await.len() < 600 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[async_trait]
impl Ledger for Counted {
    async fn settled_blocks(&self, on: &Network, from: u64, limit: u32) -> Result<Vec<BlockRef>, LedgerUnavailable> {
        self.block_questions.fetch_add(1, Ordering::SeqCst);
        self.books.settled_blocks(on, from, limit).await
    }

    async fn compared_below(&self, network: &Network) -> Result<u64, LedgerUnavailable> {
        self.books.compared_below(network).await
    }

    async fn set_compared_below(&self, network: &Network, height: u64) -> Result<(), LedgerUnavailable> {
        self.books.set_compared_below(network, height).await
    }

    async fn settled_in(&self, on: &Network, block: &BlockRef, limit: u32) -> Result<Vec<Payment>, LedgerUnavailable> {
        self.pages.fetch_add(1, Ordering::SeqCst);
        self.books.settled_in(on, block, limit).await
    }

    async fn find(&self, credential: CredentialDigest) -> Result<Option<Payment>, LedgerUnavailable> {
        self.books.find(credential).await
    }

    async fn find_proof(&self, proof: &ProofId) -> Result<Option<Payment>, LedgerUnavailable> {
        self.books.find_proof(proof).await
    }

    async fn claim(&self, claim: Claim) -> Result<Claimed, LedgerUnavailable> {
        self.books.claim(claim).await
    }

    async fn record(&self, id: PaymentId, events: Vec<PaymentEvent>, now: Timestamp) -> Result<Payment, RecordError> {
        self.books.record(id, events, now).await
    }

    async fn answer(&self, id: PaymentId, now: Timestamp) -> Result<Option<Answer>, LedgerUnavailable> {
        self.books.answer(id, now).await
    }

    async fn unresolved(&self, now: Timestamp, limit: u32) -> Result<Vec<Payment>, LedgerUnavailable> {
        self.books.unresolved(now, limit).await
    }

    async fn list(&self, filter: &PaymentFilter) -> Result<Vec<Payment>, LedgerUnavailable> {
        self.books.list(filter).await
    }

    async fn exchange_offers(
        &self,
        route: &RouteId,
        current: &[Offer],
        now: Timestamp,
    ) -> Result<Vec<Offer>, LedgerUnavailable> {
        self.books.exchange_offers(route, current, now).await
    }

    async fn marked_payers(&self, limit: u32) -> Result<Vec<Payer>, LedgerUnavailable> {
        self.books.marked_payers(limit).await
    }

    async fn credits(&self, payer: &Payer) -> Result<Vec<Amount>, LedgerUnavailable> {
        self.books.credits(payer).await
    }

    async fn quote_keys(&self, rotation: QuoteKeyRotation, now: Timestamp) -> Result<Vec<QuoteKey>, LedgerUnavailable> {
        self.books.quote_keys(rotation, now).await
    }

    async fn audit(&self, entries: Vec<AuditEntry>) -> Result<(), LedgerUnavailable> {
        self.books.audit(entries).await
    }

    async fn audit_lines(&self, after: u64, limit: u32) -> Result<Vec<AuditLine>, LedgerUnavailable> {
        self.books.audit_lines(after, limit).await
    }
}
