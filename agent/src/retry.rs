//! How long an agent tries, and how it waits between attempts.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// The limits of one fetch. Waits double from `first_wait` to `wait_max`, each lengthened by up to its own length at random, so
/// that agents that failed together do not come back together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// From the first byte sent until the head of the answer, all attempts together.
    pub deadline: Duration,
    /// For the head of one answer: longer than a slow chain takes to confirm.
    pub attempt_timeout: Duration,
    /// Between two reads of a body.
    pub read_timeout: Duration,
    /// To connect.
    pub connect_timeout: Duration,
    /// The wait after the first unclear answer.
    pub first_wait: Duration,
    /// The longest wait between two attempts. A longer `Retry-After` is honoured as far as the deadline allows.
    pub wait_max: Duration,
    /// How often the same bytes are sent in one fetch.
    pub attempts_max: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(120),
            attempt_timeout: Duration::from_secs(60),
            read_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(10),
            first_wait: Duration::from_millis(250),
            wait_max: Duration::from_secs(8),
            attempts_max: 12,
        }
    }
}

impl RetryPolicy {
    pub(crate) fn waits(&self, seed: u64) -> ExponentialBackoff {
        ExponentialBuilder::default()
            .with_min_delay(self.first_wait)
            .with_max_delay(self.wait_max)
            .with_max_times(usize::try_from(self.attempts_max.saturating_sub(1)).unwrap_or(usize::MAX))
            .with_jitter()
            .with_jitter_seed(seed)
            .build()
    }
}

/// Whether redirects of unpaid requests are followed. A request that carries a payment is never redirected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Redirects {
    /// The 3xx is the answer.
    #[default]
    Return,
    /// At most so many; the bill is that of the last URL.
    Follow {
        /// How many.
        hops_max: u32,
    },
}
