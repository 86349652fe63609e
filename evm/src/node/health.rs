//! How a source has done lately: what decides whom we ask first, and for how long we wait before we ask somebody else too.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Header;

/// A source that failed rests for so long, and twice as long each time it fails again.
const REST_MIN: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(60);
/// How long a source that limits us rests if it does not say how long; what it says is believed up to the maximum.
const LIMITED: Duration = Duration::from_secs(5);
const LIMITED_MAX: Duration = Duration::from_secs(120);
/// The next source is asked too once the first takes three times its usual time, but never sooner than this: a second question
/// costs the operator money.
const PATIENCE_MIN: Duration = Duration::from_millis(150);
/// The same for a source whose usual time is not known yet.
const PATIENCE_FIRST: Duration = Duration::from_secs(1);
/// A source is behind the others if it lacks more blocks than this and is older by more than that: fast chains differ by blocks,
/// slow ones by seconds, and neither is a fault.
const BEHIND_BLOCKS: u64 = 2;
const BEHIND_S: u64 = 15;
/// For how long a head that was seen is compared with.
const HEAD_KNOWN: Duration = Duration::from_secs(60);
/// A source that fails in more than so many of a thousand questions, of the last ten or so, is asked after the others.
const FAILING_PERMILLE: u32 = 250;

/// A head as a source told it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) number: u64,
    pub(super) timestamp: u64,
    pub(super) at: Instant,
}

#[derive(Debug, Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Moving average of the time of an answer.
    usual: Option<Duration>,
    /// Moving average of failures, in a thousand.
    failing: u32,
    /// Failures since the last answer.
    misses: u32,
    resting_until: Option<Instant>,
    limited_until: Option<Instant>,
    head: Option<Seen>,
    behind: u64,
}

impl State {
    fn rest(&mut self) {
        let rest = REST_MIN.saturating_mul(1 << self.misses.min(6)).min(REST_MAX);
        self.misses = self.misses.saturating_add(1);
        self.resting_until = Some(Instant::now() + rest);
    }
}

impl Health {
    pub(super) fn answered(&self, took: Duration) {
        let mut state = self.0.lock();
        state.usual = Some(state.usual.map_or(took, |usual| (usual * 7 + took) / 8));
        state.failing = state.failing * 7 / 8;
        (state.misses, state.resting_until) = (0, None);
    }

    pub(super) fn failed(&self) {
        let mut state = self.0.lock();
        state.failing = state.failing * 7 / 8 + 125;
        state.rest();
    }

    /// An error object: it is alive and of no use for this question.
    pub(super) fn refused(&self) {
        let mut state = self.0.lock();
        state.failing = state.failing * 7 / 8 + 125;
    }

    /// It asked us to ask less, which is no fault of its health.
    pub(super) fn limited(&self, retry_after: Option<Duration>) {
        let pause = retry_after.unwrap_or(LIMITED).clamp(REST_MIN, LIMITED_MAX);
        self.0.lock().limited_until = Some(Instant::now() + pause);
    }

    /// Somebody else answered while this one was still waited for, or nobody did.
    pub(super) fn late(&self, waited: Duration) {
        let mut state = self.0.lock();
        // That long at least: it takes the rank of a slow one until it has shown that it is not.
        state.usual = Some(state.usual.map_or(waited, |usual| usual.max(waited)));
        state.failing = state.failing * 7 / 8 + 125;
        if waited >= PATIENCE_FIRST {
            state.rest();
        }
    }

    /// How long it may take before somebody else is asked too: three times what it usually takes, or what the fastest source does,
    /// so that one that has become slow is not waited for ever longer.
    pub(super) fn patience(&self, fastest: Option<Duration>) -> Duration {
        let usual = self.0.lock().usual.map(|usual| fastest.map_or(usual, |fastest| usual.min(fastest)));
        usual.map_or(PATIENCE_FIRST, |usual| (usual * 3).max(PATIENCE_MIN))
    }

    pub(super) fn usual(&self) -> Option<Duration> {
        self.0.lock().usual
    }

    pub(super) fn is_resting(&self) -> bool {
        let (state, now) = (self.0.lock(), Instant::now());
        [state.resting_until, state.limited_until].into_iter().flatten().any(|until| now < until)
    }

    pub(super) fn is_limited(&self) -> bool {
        let (state, now) = (self.0.lock(), Instant::now());
        state.limited_until.is_some_and(|until| now < until)
    }

    /// Notes a head; `others` are what the other sources were at before, so that a source that is behind even those is behind.
    pub(super) fn saw(&self, head: &Header, others: impl Iterator<Item = Seen>) {
        let (number, timestamp) = (head.number.to(), head.timestamp.to());
        let best = best_of(others.collect());
        let behind = best.map_or(0, |best| {
            let blocks = best.number.saturating_sub(number);
            let old = best.timestamp.saturating_sub(timestamp) > BEHIND_S;
            if old && blocks > BEHIND_BLOCKS { blocks } else { 0 }
        });
        let mut state = self.0.lock();
        (state.head, state.behind) = (Some(Seen { number, timestamp, at: Instant::now() }), behind);
    }

    /// Its head, if that is known well enough to compare with.
    pub(super) fn head(&self) -> Option<Seen> {
        self.0.lock().head.filter(|seen| seen.at.elapsed() < HEAD_KNOWN)
    }

    /// How many blocks it was behind the others when its head was last seen; 0 if not worth the name.
    pub(super) fn behind(&self) -> u64 {
        self.0.lock().behind
    }

    /// Lower is asked first. Coarse on purpose, so that sources do not change places with every answer: who rests or limits us
    /// comes last, then who is behind, then who fails often, then who takes three times as long as the fastest; within a rank
    /// the configured order holds.
    pub(super) fn rank(&self, fastest: Option<Duration>) -> u32 {
        let resting = self.is_resting();
        let state = self.0.lock();
        let slow = match (state.usual, fastest) {
            (Some(usual), Some(fastest)) => usual > fastest * 3 + PATIENCE_MIN,
            _ => false,
        };
        let failing = state.failing > FAILING_PERMILLE;
        u32::from(resting) * 8 + u32::from(state.behind > 0) * 4 + u32::from(failing) * 2 + u32::from(slow)
    }
}

/// What to compare a head with: the highest that the others have told; of three or more sources the second highest, so that one that
/// makes up a head does not make all the others look late.
fn best_of(mut others: Vec<Seen>) -> Option<Seen> {
    others.sort_by_key(|seen| std::cmp::Reverse(seen.number));
    others.get(usize::from(others.len() >= 2)).copied()
}

#[cfg(test)]
mod tests {
    use alloy::primitives::{B256, U64};

    use super::*;

    fn header(number: u64, timestamp: u64) -> Header {
        Header { number: U64::from(number), timestamp: U64::from(timestamp), hash: B256::ZERO, parent_hash: B256::ZERO }
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_failed_rests_longer_each_time_and_comes_back_by_itself() {
        let health = Health::default();
        assert_eq!(health.rank(None), 0);
        health.failed();
        assert!(health.rank(None) >= 8);
        tokio::time::advance(REST_MIN).await;
        assert_eq!(health.rank(None), 0);
        (0..20).for_each(|_| health.failed());
        tokio::time::advance(REST_MAX).await;
        assert!(!health.is_resting(), "no rest is longer than the longest");
        assert_eq!(health.rank(None), 2, "it still fails often");
        (0..20).for_each(|_| health.answered(Duration::from_millis(1)));
        assert_eq!(health.rank(None), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_rests_a_source_for_as_long_as_it_says_within_bounds_and_is_no_failure() {
        let health = Health::default();
        health.limited(Some(Duration::from_secs(100_000)));
        assert!(health.is_limited() && health.rank(None) == 8);
        tokio::time::advance(LIMITED_MAX).await;
        assert_eq!(health.rank(None), 0);
        health.limited(Some(Duration::ZERO));
        assert!(health.is_limited());
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_is_behind_by_blocks_and_seconds_and_one_made_up_head_does_not_count() {
        let at = |number, timestamp| Seen { number, timestamp, at: Instant::now() };
        let check = |head: Header, others: Vec<Seen>, expected| {
            let health = Health::default();
            health.saw(&head, others.into_iter());
            assert_eq!(health.behind(), expected, "{head:?}");
        };
        check(header(100, 1000), vec![], 0);
        check(header(100, 1000), vec![at(110, 1020)], 10);
        check(header(100, 1000), vec![at(150, 1005)], 0);
        check(header(100, 1000), vec![at(101, 1100)], 0);
        check(header(100, 1000), vec![at(u64::MAX, u64::MAX), at(101, 1001)], 0);
        check(header(100, 1000), vec![at(u64::MAX, u64::MAX), at(120, 1060), at(120, 1060)], 20);
    }

    #[tokio::test(start_paused = true)]
    async fn patience_follows_the_usual_time() {
        let health = Health::default();
        assert_eq!(health.patience(None), PATIENCE_FIRST);
        health.answered(Duration::from_millis(2));
        assert_eq!(health.patience(None), PATIENCE_MIN);
        (0..60).for_each(|_| health.answered(Duration::from_millis(200)));
        assert!(health.patience(None) > Duration::from_millis(550));
        assert_eq!(health.rank(Some(Duration::from_millis(1))), 1);
    }
}
