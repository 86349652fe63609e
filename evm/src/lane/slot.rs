//! Where a settlement and the lane that carries it out meet: whoever waits may leave at any time and knows what exists.

use std::{error::Error, fmt, sync::Arc};

use alloy::primitives::B256;
use farebox_core::ports::{BoxError, Rejected};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::node::Receipt;

/// What became of a job.
#[derive(Debug)]
pub(crate) enum Ended {
    /// One of its transactions was mined, with success or not.
    Mined(Box<Receipt>),
    /// No transaction exists for it, and none ever will.
    Unsent(Unsent),
    /// No transaction exists, and none would have helped.
    TooLate(Rejected),
    /// A transaction may exist.
    Unclear { hash: B256, source: BoxError },
}

/// Why no transaction was made.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Unsent {
    #[error("no place among the relayer's transactions in flight became free in time")]
    NoPlace,
    #[error("the fee market could not be read")]
    FeeUnknown(#[source] Arc<dyn Error + Send + Sync>),
    #[error("the base fee is {base_fee} wei and the cap fee_per_gas_max {cap} wei")]
    FeeOverCap { base_fee: u128, cap: u128 },
    #[error("gas_per_day_max of {cap} wei is spent")]
    DayOverCap { cap: u128 },
    #[error("the relayer has {balance} wei and needs {needed} wei for gas; send it some")]
    NoGas { balance: u128, needed: u128 },
    #[error("the transaction could not be stored")]
    NotStored(#[source] Arc<dyn Error + Send + Sync>),
    #[error("this payment already has a transaction in flight")]
    Twice,
    #[error("the relayer's lane is not running")]
    Stopped,
}

impl Unsent {
    /// Whether the next settlement would end the same way.
    pub(super) const fn holds_for_others(&self) -> bool {
        match self {
            Self::FeeUnknown(_)
            | Self::FeeOverCap { .. }
            | Self::DayOverCap { .. }
            | Self::NoGas { .. }
            | Self::Stopped => true,
            Self::NoPlace | Self::NotStored(_) | Self::Twice => false,
        }
    }
}

#[derive(Debug)]
enum State {
    Queued,
    /// The waiter left before anything was signed.
    Withdrawn,
    /// The newest transaction; it may be stored.
    Signed(B256),
    Ended(Option<Ended>),
}

/// Shared by the lane and the one who waits.
pub(crate) struct Slot {
    state: Mutex<State>,
    changed: Notify,
}

impl Slot {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State::Queued), changed: Notify::new() })
    }

    /// For the lane: whether somebody still wants it. After a yes only [`Slot::end`] ends it.
    pub(super) fn sign(&self, hash: B256) -> bool {
        let mut state = self.state.lock();
        match *state {
            State::Queued | State::Signed(_) => *state = State::Signed(hash),
            State::Withdrawn => return false,
            State::Ended(_) => {}
        }
        true
    }

    pub(super) fn wanted(&self) -> bool {
        !matches!(*self.state.lock(), State::Withdrawn)
    }

    /// The first end counts.
    pub(super) fn end(&self, ended: Ended) {
        let mut state = self.state.lock();
        if !matches!(*state, State::Ended(_)) {
            *state = State::Ended(Some(ended));
            self.changed.notify_one();
        }
    }

    /// Waits for the end until `deadline`; then says what may exist.
    pub(crate) async fn wait(&self, deadline: Instant) -> Ended {
        loop {
            let changed = self.changed.notified();
            if let State::Ended(ended) = &mut *self.state.lock() {
                return ended.take().unwrap_or(Ended::Unsent(Unsent::Stopped));
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return self.leave();
            }
        }
    }

    /// Gives up waiting. What is only queued is withdrawn, so that it never becomes a transaction.
    fn leave(&self) -> Ended {
        let mut state = self.state.lock();
        match &mut *state {
            State::Queued | State::Withdrawn => {
                *state = State::Withdrawn;
                Ended::Unsent(Unsent::NoPlace)
            }
            State::Signed(hash) => Ended::Unclear { hash: *hash, source: "it was not mined in settle_timeout".into() },
            State::Ended(ended) => ended.take().unwrap_or(Ended::Unsent(Unsent::Stopped)),
        }
    }

    /// For a waiter that is dropped.
    pub(crate) fn withdraw(&self) {
        let mut state = self.state.lock();
        if matches!(*state, State::Queued) {
            *state = State::Withdrawn;
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.state.lock(), f)
    }
}
