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
    /// How often the same bytes are sent in one fetch. Claims on a transfer that the seller has not seen confirmed yet go on until
    /// `transfer_deadline`.
    pub attempts_max: u32,
    /// In place of `deadline` once a transfer is to be made: it has to be mined and confirmed first.
    pub transfer_deadline: Duration,
    /// A transfer unmined for so long is sent again with a higher fee, at the same nonce.
    pub bump_after: Duration,
    /// The longest wait between two looks at the chain for a transfer, or at a wallet for a Lightning payment.
    pub poll_max: Duration,
    /// How long a Lightning wallet may try to pay one invoice, within `deadline`.
    pub pay_timeout: Duration,
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
            transfer_deadline: Duration::from_secs(20 * 60),
            bump_after: Duration::from_secs(30),
            poll_max: Duration::from_secs(4),
            pay_timeout: Duration::from_secs(60),
        }
    }
}

impl RetryPolicy {
    pub(crate) fn waits(&self, seed: u64) -> ExponentialBackoff {
        let attempts = usize::try_from(self.attempts_max.saturating_sub(1)).unwrap_or(usize::MAX);
        self.growing(seed, self.wait_max).with_max_times(attempts).build()
    }

    /// The waits between looks at the chain; endless, for the deadline ends them.
    pub(crate) fn looks(&self, seed: u64) -> ExponentialBackoff {
        self.growing(seed, self.poll_max).without_max_times().build()
    }

    /// The waits between claims on a transfer; endless likewise.
    pub(crate) fn claims(&self, seed: u64) -> ExponentialBackoff {
        self.growing(seed, self.wait_max).without_max_times().build()
    }

    fn growing(&self, seed: u64, wait_max: Duration) -> ExponentialBuilder {
        ExponentialBuilder::new()
            .with_min_delay(self.first_wait)
            .with_max_delay(wait_max)
            .with_jitter()
            .with_jitter_seed(seed)
    }
}

/// Whether redirects of unpaid requests are followed. A request that carries a payment is never redirected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Redirects {
    /// The 3xx is the answer.
    #[default]
    Return,
    /// At most so many; the bill is that of the last URL. Once another origin answers nothing is paid and no held token sent: a redirect is not
    /// the owner's word on whom to pay.
    Follow {
        /// How many.
        hops_max: u32,
    },
    /// At most so many, and whoever the last one leads to is paid.
    FollowAndPay {
        /// How many.
        hops_max: u32,
    },
}

/// Whether payments travel without TLS, where whoever is on the way reads tokens and puts his own bill in the seller's place. To this
/// machine they always may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlainHttp {
    /// Over `http` nothing is paid and no held token sent.
    #[default]
    Unpaid,
    /// Paid as over `https`.
    Paid,
}
