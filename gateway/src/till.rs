//! What stands behind every paid request: rails, books, clock, and what is counted across requests.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use farebox_core::{
    Credential, DrawId, InstanceId, PaymentId, RequestId,
    ports::{Clock, Entropy, Ledger, Offering, Rail},
};
use tokio::runtime::Handle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use crate::{
    counts::Counts, draws::OpenDraws, lookups::LookupLimit, marked::MarkedPayers, places::Places, quotes::Quotes,
    refused::Refused, server::Tokens,
};

/// Bounds of a paid request's way.
#[derive(Clone, Copy, Debug)]
pub struct AdmissionLimits {
    /// How long a request waits for the outcome of another with the same proof. \[10 s\]
    pub busy_wait: Duration,
    /// How long a claim is held without a sign of life. Longer than the longest upstream and settlement together. \[10 min\]
    pub lease: Duration,
    /// How many payments of one payer may be claimed and not yet settled, or verified at once. Each may cost us an upstream call and the
    /// gas of a transaction that reverts, if the payer's balance is gone by then. \[32\]
    pub unsettled_per_payer_max: usize,
    /// How much longer than its upstream may take an authorization must live, for the settlement that follows. \[5 s\]
    pub settle_margin: Duration,
    /// How long the body of an answer that is small enough to be kept may take; after it the payment is not charged. \[60 s\]
    pub answer_timeout: Duration,
    /// How long a bill may wait for an invoice before the 402 goes out without. \[3 s\]
    pub invoice_timeout: Duration,
    /// How many look-ups of transactions that may not exist one client address may cause in a minute, 1 or more; a quarter of them at
    /// once. More is 429. \[120\]
    pub lookups_per_minute: u32,
}

impl Default for AdmissionLimits {
    fn default() -> Self {
        Self {
            busy_wait: Duration::from_secs(10),
            lease: Duration::from_secs(600),
            unsettled_per_payer_max: 32,
            settle_margin: Duration::from_secs(5),
            answer_timeout: Duration::from_secs(60),
            invoice_timeout: Duration::from_secs(3),
            lookups_per_minute: 120,
        }
    }
}

/// All that admission works with.
#[derive(Debug)]
pub(crate) struct Till {
    pub(crate) rails: Vec<Arc<dyn Rail>>,
    pub(crate) tokens: Option<Tokens>,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) instance: InstanceId,
    pub(crate) limits: AdmissionLimits,
    /// Answers up to this size are kept for a payer who lost theirs; bytes.
    pub(crate) answer_bytes_max: u64,
    /// Payments being verified, or claimed and not yet settled, by payer.
    pub(crate) places: Places,
    /// Calls of passes whose end is not in the books yet.
    pub(crate) open_draws: OpenDraws,
    /// Questions to chains, by client.
    pub(crate) lookups: LookupLimit,
    /// Payers whose payments wait for more than others'.
    pub(crate) marked: MarkedPayers,
    /// What bills by transfer are written with, if transfers are taken.
    pub(crate) quotes: Option<Quotes>,
    /// Refusals on their way into the audit log.
    pub(crate) refused: Arc<Refused>,
    /// What became of requests.
    pub(crate) counts: Counts,
    /// Whether the operator was told that a proxy may be missing from the list.
    pub(crate) told_of_proxy: AtomicBool,
    /// Cancelled when the gateway begins to stop.
    pub(crate) stopping: CancellationToken,
    /// Ends of runs on their way into the books.
    pub(crate) ends: Ends,
}

/// What tells the books of runs that nobody waits for: not on a worker's runtime, whose end may be what ended the run.
#[derive(Debug)]
pub(crate) struct Ends {
    runtime: Handle,
    telling: TaskTracker,
    /// Cancelled when the books are told no more: the rest is left to the next start.
    given_up: CancellationToken,
}

impl Ends {
    /// On the runtime of the caller.
    pub(crate) fn here() -> Self {
        Self { runtime: Handle::current(), telling: TaskTracker::new(), given_up: CancellationToken::new() }
    }

    pub(crate) fn tell(&self, end: impl Future<Output = ()> + Send + 'static) {
        let given_up = self.given_up.clone();
        let telling = async move {
            tokio::select! {
                () = end => {}
                () = given_up.cancelled_owned() => {}
            }
        };
        self.telling.spawn_on(telling, &self.runtime);
    }

    /// Waits until the books have all of them, for as long as `patience`.
    pub(crate) async fn finish(&self, patience: Duration) {
        self.telling.close();
        if tokio::time::timeout(patience, self.telling.wait()).await.is_err() {
            warn!(
                left = self.telling.len(),
                "the ends of calls are not in the books: they are as calls that were cut off by a crash"
            );
        }
        self.given_up.cancel();
    }
}

impl Till {
    /// Everything that has a price.
    pub(crate) fn offerings(&self) -> Vec<Arc<dyn Offering>> {
        let rails = self.rails.iter().map(|rail| rail.clone() as Arc<dyn Offering>);
        rails.chain(self.tokens.iter().map(|tokens| tokens.rail.clone() as Arc<dyn Offering>)).collect()
    }

    /// The rail that takes such a credential.
    pub(crate) fn rail(&self, credential: &Credential) -> Option<&Arc<dyn Rail>> {
        self.rails.iter().find(|rail| rail.name() == credential.rail())
    }

    pub(crate) fn new_payment(&self) -> PaymentId {
        PaymentId::new(self.clock.now(), self.random())
    }

    pub(crate) fn new_request(&self) -> RequestId {
        RequestId::at(self.clock.now(), self.random())
    }

    pub(crate) fn new_draw(&self) -> DrawId {
        DrawId(self.random())
    }

    fn random<const BYTES: usize>(&self) -> [u8; BYTES] {
        let mut random = [0; BYTES];
        self.entropy.fill(&mut random);
        random
    }
}
