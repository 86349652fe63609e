//! Asking sources one after the other, and the next one early if the first is slower than it usually is.

use std::{
    future::Future,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::Instant;

use super::{SourceError, source::Source};

/// Early second questions are at most one in ten, after a start of ten: a chain whose every source is slow must not be asked twice as
/// often for it.
const HEDGE_COST: u32 = 10;
const HEDGES_SAVED_MAX: u32 = 10 * HEDGE_COST;

/// What is left to spend on early second questions.
#[derive(Debug)]
pub(super) struct Hedges(AtomicU32);

impl Default for Hedges {
    fn default() -> Self {
        Self(AtomicU32::new(HEDGES_SAVED_MAX))
    }
}

impl Hedges {
    fn earn(&self) {
        let more = |saved: u32| Some(saved.saturating_add(1).min(HEDGES_SAVED_MAX));
        // An update that always gives a value never fails.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    fn spend(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |saved| saved.checked_sub(HEDGE_COST)).is_ok()
    }
}

/// When the next source is asked although the one before has not failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Haste {
    /// Once it is late by its own standard.
    Hedged,
    /// Once half of the time that is left is over.
    Patient,
}

/// What a race came to.
pub(super) enum Raced<T> {
    Won(Source, T),
    /// Nobody gave an answer: who was last to fail, and why.
    Lost(Option<(Source, SourceError)>),
}

/// Asks `sources` in their order until one answers or `deadline` is over. Whoever is still being waited for then is dropped.
pub(super) async fn race<T, F>(
    sources: Vec<Source>,
    deadline: Instant,
    haste: Haste,
    hedges: &Hedges,
    ask: impl Fn(Source) -> F,
) -> Raced<T>
where
    T: Send,
    F: Future<Output = Result<T, SourceError>> + Send,
{
    hedges.earn();
    let began = Instant::now();
    let fastest = sources.iter().filter_map(|source| source.health().usual()).min();
    let mut waiting = sources.into_iter().peekable();
    let mut running: FuturesUnordered<BoxFuture<'_, (Source, Result<T, SourceError>)>> = FuturesUnordered::new();
    let mut failed = None;
    let mut newest = None;
    let mut next_at = began;
    let mut early = false;
    loop {
        if running.is_empty() && waiting.peek().is_none() {
            return Raced::Lost(failed);
        }
        tokio::select! {
            biased;
            Some((source, outcome)) = running.next(), if !running.is_empty() => match outcome {
                Ok(answer) => return Raced::Won(source, answer),
                Err(error) => {
                    tracing::debug!(node = source.label(), error = &error as &dyn std::error::Error, "a source did not answer");
                    failed = Some((source, error));
                    (next_at, early) = (Instant::now(), false);
                }
            },
            () = tokio::time::sleep_until(next_at), if waiting.peek().is_some() => {
                if early && !hedges.spend() {
                    (next_at, early) = (half_of_the_rest(deadline), false);
                } else if let Some(source) = waiting.next() {
                    early = haste == Haste::Hedged;
                    let patience = source.health().patience(fastest);
                    next_at = half_of_the_rest(deadline);
                    if early {
                        next_at = next_at.min(Instant::now() + patience);
                    }
                    newest = Some(source.clone());
                    let attempt = Attempt::new(source.clone(), patience);
                    let asked = ask(source);
                    running.push(Box::pin(async move { attempt.end(asked.await) }));
                }
            }
            () = tokio::time::sleep_until(deadline) => {
                return Raced::Lost(newest.map(|source| (source, SourceError::TimedOut(began.elapsed()))));
            }
        }
    }
}

fn half_of_the_rest(deadline: Instant) -> Instant {
    let now = Instant::now();
    now + deadline.saturating_duration_since(now) / 2
}

/// One question to one source. What becomes of it is noted as the source's health; dropped, the source was late.
pub(super) struct Attempt {
    source: Source,
    /// What it was given before somebody else would be asked: dropped sooner, it was not late.
    patience: Duration,
    began: Instant,
    over: bool,
}

impl Attempt {
    pub(super) fn new(source: Source, patience: Duration) -> Self {
        Self { source, patience, began: Instant::now(), over: false }
    }

    pub(super) fn end<T>(mut self, outcome: Result<T, SourceError>) -> (Source, Result<T, SourceError>) {
        self.over = true;
        let health = self.source.health();
        match &outcome {
            Ok(_) => health.answered(self.began.elapsed()),
            Err(SourceError::Limited { retry_after }) => health.limited(*retry_after),
            Err(SourceError::Answered(_) | SourceError::Garbled(_)) => health.refused(),
            Err(SourceError::TimedOut(_) | SourceError::Transport(_)) => health.failed(),
            // What it cannot do, and that it lags, is no failure to answer.
            Err(SourceError::Unsupported(_) | SourceError::Lagging { .. }) => {}
        }
        (self.source.clone(), outcome)
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.over && self.began.elapsed() >= self.patience {
            self.source.health().late(self.began.elapsed());
        }
    }
}
