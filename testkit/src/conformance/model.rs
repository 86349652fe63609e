//! Random operations, done to a ledger and to the books in memory: every answer and every row must agree.

use std::{sync::Arc, time::Duration};

use farebox_core::{
    ArrivedFor, PaymentEvent, StoredTransaction, Timestamp, TransactionFate,
    ports::{PaymentFilter, QuoteKeyRotation},
};
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use super::{
    ANSWERS_KEPT_FOR, Books, ClaimOf, LedgerStore, PRICE, START, block, delivered, instance, lane, offer, payment_id,
    rejection, route, settled, told, transaction, transaction_id,
};
use crate::{MemoryLedger, test_network};

const PROOFS: usize = 3;
const TRANSACTIONS: u64 = 5;

/// Runs `cases` random histories.
///
/// # Panics
/// On the first difference, with the shortest history found that shows it, and the seed.
pub fn agrees_with_the_model<B: Books>(fresh: &impl Fn() -> B, cases: u32) {
    let seed: [u8; 32] = rand::random();
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let outcome = runner.run(&prop::collection::vec(operation(), 1..30), |history| {
        runtime.block_on(Pair::new(&fresh()).live_through(history))
    });
    if let Err(failure) = outcome {
        panic!("seed {seed:?}: {failure}");
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Claim { proof: usize, signature: u8, resource: usize, arrived: Option<(u128, ArrivedFor)> },
    Record { payment: prop::sample::Index, events: Vec<PaymentEvent> },
    Store { payment: Option<prop::sample::Index>, transaction: u64 },
    Close { transaction: u64, fate: TransactionFate },
    Offers { route: usize, units: Vec<u128> },
    QuoteKeys { fresh: u8, rotate_after_s: u64, keep_for_s: u64 },
    Reject { count: usize },
    Wait { seconds: u64 },
    Restart,
}

fn operation() -> impl Strategy<Value = Operation> {
    use TransactionFate as F;
    let fate = prop::sample::select(vec![F::Open, F::Succeeded, F::Reverted, F::Replaced]);
    let index = any::<prop::sample::Index>();
    prop_oneof![
        8 => (0..PROOFS, 1..3u8, 0..2usize, prop::option::of((PRICE..PRICE + 2, purpose())))
            .prop_map(|(proof, signature, resource, arrived)| Operation::Claim { proof, signature, resource, arrived }),
        8 => (index.clone(), prop::collection::vec(event(), 0..3))
            .prop_map(|(payment, events)| Operation::Record { payment, events }),
        5 => (prop::option::weighted(0.8, index), 0..TRANSACTIONS)
            .prop_map(|(payment, transaction)| Operation::Store { payment, transaction }),
        1 => (0..TRANSACTIONS, fate).prop_map(|(transaction, fate)| Operation::Close { transaction, fate }),
        2 => (0..2usize, prop::collection::vec(1..4u128, 0..3)).prop_map(|(route, units)| Operation::Offers { route, units }),
        1 => (any::<u8>(), 0..60u64, 0..60u64).prop_map(|(fresh, rotate_after_s, keep_for_s)| {
            Operation::QuoteKeys { fresh, rotate_after_s, keep_for_s }
        }),
        1 => (0..3usize).prop_map(|count| Operation::Reject { count }),
        3 => (0..40u64).prop_map(|seconds| Operation::Wait { seconds }),
        1 => Just(Operation::Restart),
    ]
}

fn purpose() -> impl Strategy<Value = ArrivedFor> {
    prop_oneof![Just(ArrivedFor::Delivery), Just(ArrivedFor::Credit { code: "quote_expired".into() })]
}

fn event() -> impl Strategy<Value = PaymentEvent> {
    use PaymentEvent as E;
    prop_oneof![
        1 => Just(E::Released { code: "upstream_failed".into() }),
        1 => Just(E::LeaseExpired),
        1 => Just(E::Doubted),
        2 => Just(E::Reversed),
        1 => Just(E::Refused { code: "reverted".into() }),
        2 => Just(E::RunEnded),
        1 => Just(E::BrokeOff),
        3 => (0..TRANSACTIONS).prop_map(settled),
        2 => prop::collection::vec(any::<u8>(), 0..4).prop_map(|body| delivered(&body)),
        1 => Just(E::Delivered { answer: None }),
    ]
}

struct Pair<'b, B> {
    books: &'b B,
    /// `None` only while it is being opened again.
    ledger: Option<Arc<dyn LedgerStore>>,
    model: MemoryLedger,
    now: Timestamp,
    processes: usize,
    claims: usize,
}

impl<'b, B: Books> Pair<'b, B> {
    fn new(books: &'b B) -> Self {
        let ledger = Some(books.open(instance(0), ANSWERS_KEPT_FOR, START));
        let model = MemoryLedger::new(instance(0), ANSWERS_KEPT_FOR);
        Self { books, ledger, model, now: START, processes: 0, claims: 0 }
    }

    async fn live_through(mut self, history: Vec<Operation>) -> Result<(), TestCaseError> {
        for operation in history {
            let (expected, found) = self.act(operation.clone()).await;
            prop_assert_eq!(expected, found, "told differently after {:?}", operation);
            let expected = self.everything(&self.model).await;
            let ledger = self.ledger.clone().expect("open");
            prop_assert_eq!(expected, self.everything(&*ledger).await, "differs after {:?}", operation);
        }
        Ok(())
    }

    /// What the model and what the ledger answers.
    async fn act(&mut self, operation: Operation) -> (String, String) {
        let now = self.now;
        if matches!(operation, Operation::Restart) {
            self.restart();
        }
        let ledger = self.ledger.clone().expect("open");
        let known = self.model.payments();
        let id_of = |index: prop::sample::Index| match known.is_empty() {
            true => payment_id(usize::MAX, now),
            false => index.get(&known).id,
        };
        match operation {
            Operation::Claim { proof, signature, resource, arrived } => {
                self.claims += 1;
                let (id, holder) = (payment_id(self.claims, now), instance(self.processes));
                let claim = ClaimOf { id, proof, signature, resource, arrived, holder, now }.build();
                (told(self.model_().claim(claim.clone()).await), told(ledger.claim(claim).await))
            }
            Operation::Record { payment, events } => {
                let id = id_of(payment);
                let model = self.model_().record(id, events.clone(), now).await;
                (told(model), told(ledger.record(id, events, now).await))
            }
            Operation::Store { payment, transaction: number } => {
                let stored: StoredTransaction = transaction(number, payment.map(id_of), now);
                let model = self.model_().store_transaction(stored.clone()).await;
                (told(model), told(ledger.store_transaction(stored).await))
            }
            Operation::Close { transaction, fate } => {
                let hash = transaction_id(transaction);
                let model = self.model_().close_transaction(&hash, fate).await;
                (told(model), told(ledger.close_transaction(&hash, fate).await))
            }
            Operation::Offers { route: number, units } => {
                let current: Vec<_> = units.into_iter().map(offer).collect();
                let model = self.model_().exchange_offers(&route(number), &current, now).await;
                (told(model), told(ledger.exchange_offers(&route(number), &current, now).await))
            }
            Operation::QuoteKeys { fresh, rotate_after_s, keep_for_s } => {
                let rotation = QuoteKeyRotation {
                    fresh: [fresh; 32],
                    rotate_after: Duration::from_secs(rotate_after_s),
                    keep_for: Duration::from_secs(keep_for_s),
                };
                let with_secrets = |keys: Vec<farebox_core::ports::QuoteKey>| {
                    keys.into_iter().map(|key| (key.id, key.secret, key.since)).collect::<Vec<_>>()
                };
                let model = self.model_().quote_keys(rotation.clone(), now).await.map(with_secrets);
                (told(model), told(ledger.quote_keys(rotation, now).await.map(with_secrets)))
            }
            Operation::Reject { count } => {
                let entries = vec![rejection(now); count];
                (told(self.model_().audit(entries.clone()).await), told(ledger.audit(entries).await))
            }
            Operation::Wait { seconds } => {
                self.now = now.plus(Duration::from_secs(seconds));
                Default::default()
            }
            Operation::Restart => Default::default(),
        }
    }

    fn model_(&self) -> &dyn LedgerStore {
        &self.model
    }

    fn restart(&mut self) {
        self.processes += 1;
        self.ledger = None;
        self.ledger = Some(self.books.open(instance(self.processes), ANSWERS_KEPT_FOR, self.now));
        self.model = self.model.restarted(instance(self.processes));
    }

    /// Everything that can be read, as text.
    async fn everything(&self, ledger: &dyn LedgerStore) -> Vec<String> {
        let mut seen = vec![
            told(ledger.list(&PaymentFilter::default()).await),
            told(ledger.unresolved(self.now, 10).await),
            told(ledger.settled_blocks(&test_network(), 1, 10).await),
            told(ledger.settled_in(&test_network(), &block(2), 10).await),
            told(ledger.open_transactions(&lane()).await),
            told(ledger.last_nonce(&lane()).await),
            told(ledger.marked_payers(10).await),
            told(ledger.audit_lines(0, 10_000).await),
        ];
        for number in 0..TRANSACTIONS {
            seen.push(told(ledger.transaction(&transaction_id(number)).await));
        }
        for proof in 0..PROOFS {
            for claim in [ClaimOf::first(proof, self.now), ClaimOf::transfer(proof, PRICE, self.now)] {
                let claim = claim.build();
                seen.push(told(ledger.find(claim.credential.digest()).await));
                seen.push(told(ledger.find_proof(&claim.proof).await));
                seen.push(told(ledger.credits(&claim.payer).await));
            }
        }
        for payment in self.model.payments() {
            seen.push(told(ledger.answer(payment.id, self.now).await));
            seen.push(told(ledger.transactions_of(payment.id).await));
        }
        seen
    }
}
