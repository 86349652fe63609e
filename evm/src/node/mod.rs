//! Asking a chain. Every question has one time limit however many sources it takes, goes to the next source if one fails or is
//! late, and tells an answer from a failure to answer.
//!
//! A source may lie, lag or hang. What lags does not decide a "no": see [`Doubt`]. What lies is found out by asking several: see
//! [`Agreement`].

mod agree;
pub(crate) mod ask;
mod broadcast;
mod error;
mod explorer;
mod health;
pub(crate) mod http;
mod jsonrpc;
mod outgoing;
mod poll;
mod race;
mod source;
mod types;
mod websocket;

use std::{sync::Arc, time::Duration};

use alloy::primitives::{Address, B256, Bytes, U256};
use farebox_core::ports::BoxError;
use tokio::time::Instant;

pub use self::source::{SecretText, SourceConfig, SourceKind};
pub(crate) use self::{
    agree::{Agreement, Answer},
    error::{Answered, Broadcast, NoAnswer, SourceError},
    outgoing::{Draft, Estimate},
    source::Source,
    types::{Call, FeeHistory, Header, Log, LogFilter, Receipt, Transaction},
};
use self::{
    ask::{Batch, Doubt},
    race::{Haste, Hedges, Raced, race},
    source::Order,
};
use crate::ConnectError;

/// Questions in one batch; nodes that take batches take this many.
const BATCH_MAX: usize = 50;

/// The sources of one chain, the preferred one first.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    sources: Arc<[Source]>,
    timeout: Duration,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    hedges: Hedges,
    heads_asked_at: parking_lot::Mutex<Option<Instant>>,
}

/// What a call came to.
#[derive(Debug)]
pub(crate) enum Called {
    Returned(Bytes),
    /// The chain executed it and it failed. Nothing else is a "no".
    Reverted(Answered),
}

impl Node {
    /// Nothing is asked yet. `chain_id` picks the chain at explorers, which serve many; `timeout` is for a whole question.
    pub(crate) fn new(sources: &[SourceConfig], chain_id: u64, timeout: Duration) -> Result<Self, BoxError> {
        let sources: Vec<_> =
            sources.iter().map(|config| Source::new(config, chain_id, timeout)).collect::<Result<_, _>>()?;
        Ok(Self { sources: sources.into(), timeout, shared: Arc::default() })
    }

    /// Each source by itself, for questions that every one has to answer.
    pub(crate) fn each(&self) -> impl Iterator<Item = Self> + '_ {
        self.sources.iter().map(|source| Self { sources: Arc::new([source.clone()]), ..self.clone() })
    }

    /// With only those of the sources that are among `nodes`; none if none is.
    pub(crate) fn only(&self, nodes: &[Self]) -> Option<Self> {
        let kept = |source: &&Source| nodes.iter().flat_map(|node| node.sources.iter()).any(|other| other.is(source));
        let sources: Vec<_> = self.sources.iter().filter(kept).cloned().collect();
        (!sources.is_empty()).then(|| Self { sources: sources.into(), ..self.clone() })
    }

    /// The sources, in the configured order.
    pub(crate) fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Scheme and host of each source.
    pub(crate) fn label(&self) -> String {
        self.sources.iter().map(Source::label).collect::<Vec<_>>().join(", ")
    }

    /// Several questions to one source, in one round trip if it takes batches. If the answers could be a "no" because the source is
    /// behind, the others are asked before they are believed.
    ///
    /// # Errors
    /// No source answered in time, or only such as are behind.
    pub(crate) async fn batch<B: Batch>(&self, batch: B) -> Result<B::Answers, NoAnswer> {
        self.ask(&batch).await
    }

    /// The same, believed once `agreement` sources say it. Sources that say "there is none" and are behind do not count. Of the
    /// newest block, which no two sources see alike, the lowest is given.
    ///
    /// # Errors
    /// Too few answered in time, or they disagree.
    pub(crate) async fn agreed<B>(&self, batch: B, agreement: Agreement) -> Result<B::Answers, NoAnswer>
    where
        B: Batch,
        B::Answers: Answer,
    {
        if agreement.0 <= 1 { self.ask(&batch).await } else { self.poll(&batch, agreement).await }
    }

    /// A mined transaction's receipt.
    pub(crate) async fn agreed_receipt(&self, hash: B256, agreement: Agreement) -> Result<Option<Receipt>, NoAnswer> {
        self.agreed(ask::receipt(hash), agreement).await
    }

    pub(crate) async fn chain_id(&self) -> Result<u64, NoAnswer> {
        self.ask(&ask::chain_id()).await.map(|id| id.to())
    }

    pub(crate) async fn code(&self, address: Address) -> Result<Bytes, NoAnswer> {
        self.ask(&ask::code(address)).await
    }

    pub(crate) async fn balance(&self, address: Address) -> Result<U256, NoAnswer> {
        self.ask(&ask::balance(address)).await
    }

    /// How many transactions of `address` are mined, which is its next nonce.
    pub(crate) async fn mined_nonce(&self, address: Address) -> Result<u64, NoAnswer> {
        self.ask(&ask::mined_nonce(address)).await.map(|nonce| nonce.to())
    }

    pub(crate) async fn head(&self) -> Result<Header, NoAnswer> {
        self.ask(&ask::head()).await
    }

    /// The block that the source calls `tag`: `safe` or `finalized`.
    pub(crate) async fn tagged(&self, tag: &'static str) -> Result<Header, NoAnswer> {
        self.ask(&ask::tagged(tag)).await
    }

    pub(crate) async fn block(&self, number: u64) -> Result<Option<Header>, NoAnswer> {
        self.ask(&ask::block(number)).await
    }

    pub(crate) async fn logs(&self, filter: LogFilter) -> Result<Vec<Log>, NoAnswer> {
        self.ask(&ask::logs(&filter)).await
    }

    /// The receipts of those that are mined as far as one source says, in as few questions as it allows. That one is missing decides
    /// nothing.
    pub(crate) async fn receipts(&self, hashes: &[B256]) -> Result<Vec<Receipt>, NoAnswer> {
        let mut found = Vec::new();
        for chunk in hashes.chunks(BATCH_MAX) {
            let asked: Vec<_> = chunk.iter().map(|hash| ask::polled_receipt(*hash)).collect();
            found.extend(self.ask(&asked).await?.into_iter().flatten());
        }
        Ok(found)
    }

    /// Executes a call on the latest block, or on `block`.
    pub(crate) async fn call(&self, call: Call, block: Option<u64>) -> Result<Called, NoAnswer> {
        self.ask(&ask::call(&call, block)).await
    }

    async fn ask<B: Batch>(&self, batch: &B) -> Result<B::Answers, NoAnswer> {
        let questions = batch.questions();
        let Some(method) = questions.first().map(|question| question.method) else {
            // Nothing asked is answered at once.
            let nothing = batch.read(&mut std::iter::empty());
            return nothing.map_err(|error| self.no_answer("nothing", error));
        };
        self.keep_heads();
        let deadline = Instant::now() + self.timeout;
        let mut sources = self.ranked();
        loop {
            let asking = |source: Source| {
                let questions = &questions;
                async move { self.read(batch, questions, &source).await }
            };
            let raced = race(sources.clone(), deadline, Haste::Hedged, &self.shared.hedges, asking).await;
            let (source, answers) = match raced {
                Raced::Won(source, answers) => (source, answers),
                Raced::Lost(lost) => return Err(self.lost(method, lost)),
            };
            let doubt = batch.doubt(&answers);
            if doubt == Doubt::None || self.sources.len() == 1 {
                return Ok(answers);
            }
            if doubt == Doubt::Absent {
                return self.everywhere(batch, source, answers, deadline).await;
            }
            match self.up_to_date(&source, deadline).await {
                Ok(()) => return Ok(answers),
                // Others may be up to date.
                Err(error) => {
                    sources.retain(|other| !other.is(&source));
                    if sources.is_empty() {
                        return Err(NoAnswer { method, node: source.label(), source: Box::new(error) });
                    }
                }
            }
        }
    }

    /// One source's answers; its head, if it told it, is noted.
    async fn read<B: Batch>(
        &self,
        batch: &B,
        questions: &[ask::Question],
        source: &Source,
    ) -> Result<B::Answers, SourceError> {
        let replies = source.exchange(questions, Order::Any).await?;
        let answers = batch.read(&mut replies.into_iter())?;
        if let Some(head) = batch.head(&answers) {
            self.saw(source, head);
        }
        Ok(answers)
    }

    fn lost(&self, method: &'static str, lost: Option<(Source, SourceError)>) -> NoAnswer {
        match lost {
            Some((source, error)) => NoAnswer { method, node: source.label(), source: Box::new(error) },
            None => self.no_answer(method, "no source is configured"),
        }
    }

    fn no_answer(&self, method: &'static str, why: impl Into<BoxError>) -> NoAnswer {
        NoAnswer { method, node: self.label(), source: why.into() }
    }

    /// The sources, in the order in which they are asked now.
    fn ranked(&self) -> Vec<Source> {
        let fastest = self.sources.iter().filter_map(|source| source.health().usual()).min();
        let mut ranked: Vec<_> = self.sources.iter().map(|source| (source.health().rank(fastest), source)).collect();
        // Stable, so that the configured order holds within a rank.
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked.into_iter().map(|(_, source)| source.clone()).collect()
    }

    /// The error of a caller that cannot start without this answer.
    pub(crate) fn unreachable(&self, network: &farebox_core::Network, source: NoAnswer) -> ConnectError {
        ConnectError::Unreachable { network: network.clone(), tried: self.label(), source: Box::new(source) }
    }
}
