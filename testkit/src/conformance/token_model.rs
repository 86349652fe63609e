//! Random histories of tokens, lived by a ledger and by the books in memory: every answer and every row must agree.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use farebox_core::{
    Answer, CallerId, Draw, DrawEnd, Grant, InvoiceNews, Timestamp,
    ports::{NewsCursor, NewsRead, NotedNews, PaymentFilter, TokenFilter},
};
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use super::{ANSWERS_KEPT_FOR, Books, LedgerStore, START, instance, told};
use crate::{MemoryLedger, TEST_TOKEN_MSAT, test_draw, test_draw_id, test_pass, test_preimage, test_token};

/// Tokens in play.
const TOKENS: u64 = 3;

/// Draws in play: few, so that draws end twice and ids of other passes are tried.
const DRAWS: u64 = 8;

/// Runs `cases` random histories.
///
/// # Panics
/// On the first difference, with the shortest history found that shows it, and the seed.
pub fn sells_as_the_model_does<B: Books>(fresh: &impl Fn() -> B, cases: u32) {
    let seed: [u8; 32] = rand::random();
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let outcome = runner.run(&prop::collection::vec(operation(), 1..40), |history| {
        runtime.block_on(Pair::new(&fresh()).live_through(history))
    });
    if let Err(failure) = outcome {
        panic!("seed {seed:?}: {failure}");
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Sell { token: u64, grant: Grant },
    Draw { token: u64, draw: u64, key: Option<u8>, elsewhere: bool },
    End { token: u64, draw: u64, end: DrawEnd },
    News { news: Vec<(u64, InvoiceNews)>, cursor: Option<u8> },
    Revoke { token: u64 },
    Wait { seconds: u64 },
    Restart,
}

fn operation() -> impl Strategy<Value = Operation> {
    let calls = (1..3u32).prop_map(|calls| Grant::Calls(NonZeroU32::new(calls).expect("1 or more")));
    let grant = prop_oneof![3 => calls, 1 => Just(Grant::For(Duration::from_secs(60)))];
    let end = prop_oneof![
        3 => Just(DrawEnd::Delivered { answer: None }),
        2 => any::<u8>().prop_map(|body| DrawEnd::Delivered {
            answer: Some(Answer { status: 200, headers: Vec::new(), body: vec![body] })
        }),
        2 => Just(DrawEnd::Returned),
        3 => Just(DrawEnd::BrokeOff),
    ];
    let heard = prop_oneof![
        3 => (TEST_TOKEN_MSAT - 1..TEST_TOKEN_MSAT + 2).prop_map(|received_msat| InvoiceNews::Settled { received_msat }),
        1 => Just(InvoiceNews::Settled { received_msat: 0 }),
        1 => Just(InvoiceNews::Held),
        1 => Just(InvoiceNews::Expired),
        1 => Just(InvoiceNews::Cancelled),
    ];
    let key = prop::option::weighted(0.4, 0..2u8);
    prop_oneof![
        4 => (0..TOKENS, grant).prop_map(|(token, grant)| Operation::Sell { token, grant }),
        12 => (0..TOKENS, 0..DRAWS, key, prop::bool::weighted(0.2))
            .prop_map(|(token, draw, key, elsewhere)| Operation::Draw { token, draw, key, elsewhere }),
        10 => (0..TOKENS, 0..DRAWS, end).prop_map(|(token, draw, end)| Operation::End { token, draw, end }),
        4 => (prop::collection::vec((0..TOKENS + 1, heard), 0..3), prop::option::of(any::<u8>()))
            .prop_map(|(news, cursor)| Operation::News { news, cursor }),
        1 => (0..TOKENS).prop_map(|token| Operation::Revoke { token }),
        3 => (0..40u64).prop_map(|seconds| Operation::Wait { seconds }),
        // Past the end of what was sold, and past the time that unpaid tokens are kept.
        1 => Just(Operation::Wait { seconds: 4_200 }),
        1 => Just(Operation::Wait { seconds: 8 * 24 * 60 * 60 }),
        1 => Just(Operation::Restart),
    ]
}

struct Pair<'b, B> {
    books: &'b B,
    /// `None` only while it is being opened again.
    ledger: Option<Arc<dyn LedgerStore>>,
    model: MemoryLedger,
    now: Timestamp,
    processes: usize,
    payments: u64,
}

impl<'b, B: Books> Pair<'b, B> {
    fn new(books: &'b B) -> Self {
        let ledger = Some(books.open(instance(0), ANSWERS_KEPT_FOR, START));
        let model = MemoryLedger::new(instance(0), ANSWERS_KEPT_FOR);
        Self { books, ledger, model, now: START, processes: 0, payments: 0 }
    }

    async fn live_through(mut self, history: Vec<Operation>) -> Result<(), TestCaseError> {
        for operation in history {
            match operation {
                Operation::Wait { seconds } => self.now = self.now.plus(Duration::from_secs(seconds)),
                Operation::Restart => self.restart(),
                ref act => {
                    self.payments += 10;
                    let expected = self.act(&self.model, act.clone()).await;
                    let found = self.act(&*self.open(), act.clone()).await;
                    prop_assert_eq!(expected, found, "told differently after {:?}", act);
                }
            }
            let expected = self.everything(&self.model).await;
            prop_assert_eq!(expected, self.everything(&*self.open()).await, "differs after {:?}", operation);
        }
        Ok(())
    }

    fn open(&self) -> Arc<dyn LedgerStore> {
        self.ledger.clone().expect("open")
    }

    fn restart(&mut self) {
        self.processes += 1;
        self.ledger = None;
        self.ledger = Some(self.books.open(instance(self.processes), ANSWERS_KEPT_FOR, self.now));
        self.model = self.model.restarted_at(instance(self.processes), self.now);
    }

    async fn act(&self, ledger: &dyn LedgerStore, operation: Operation) -> String {
        let now = self.now;
        match operation {
            Operation::Sell { token, grant } => told(ledger.sell(test_token(token, grant, now)).await),
            Operation::Draw { token, draw, key, elsewhere } => {
                let payment = test_draw(0, self.payments, instance(0), now).payment;
                let mut draw = Draw { payment, ..test_draw(token, draw, instance(self.processes), now) };
                draw.key = key.map(|key| CallerId::from_key(&[key]));
                if elsewhere {
                    draw.binding.method = "POST".into();
                }
                told(ledger.draw(draw).await)
            }
            Operation::End { token, draw, end } => {
                told(ledger.end_draw(test_pass(token), test_draw_id(draw), end, now).await)
            }
            Operation::News { news, cursor } => {
                let noted = (self.payments..).zip(news).map(|(number, (token, news))| {
                    let payment = test_draw(0, number, instance(0), now).payment;
                    NotedNews { hash: test_preimage(token).hash(), news, payment }
                });
                let read = cursor.map(|c| NewsRead { node: "node".into(), cursor: NewsCursor(c.to_string()) });
                told(ledger.note_news(noted.collect(), read, now).await)
            }
            Operation::Revoke { token } => told(ledger.revoke(test_pass(token), now).await),
            Operation::Wait { .. } | Operation::Restart => String::new(),
        }
    }

    /// Everything that can be read, as text.
    async fn everything(&self, ledger: &dyn LedgerStore) -> Vec<String> {
        let mut seen = vec![
            told(ledger.tokens(&TokenFilter::default()).await),
            told(ledger.list(&PaymentFilter::default()).await),
            told(ledger.unsettled_invoices("node", self.now, 10).await),
            told(ledger.unsettled_elsewhere("other", None, 10).await),
            told(ledger.news_cursor("node").await),
            told(ledger.audit_lines(0, 10_000).await),
        ];
        for token in 0..TOKENS {
            let listed = ledger.token(test_pass(token)).await;
            if let Ok(Some(token)) = &listed {
                seen.push(told(ledger.credits(&token.sold.payer()).await));
            }
            seen.push(told(listed));
        }
        seen
    }
}
