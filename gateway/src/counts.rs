//! What became of requests, counted: atomics alone, and nothing allocated for a request.

use std::{
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use farebox_core::{Refusal, RouteId};

use crate::server::Shared;

/// The most codes of refusals that are told apart; further ones are counted together. There are about sixty.
const CODES_MAX: usize = 256;

/// What became of a request to a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream's answer on a free route, or an OPTIONS, which costs nothing on any.
    Free,
    /// 402, for a request that brought no payment.
    Billed,
    /// The upstream's answer, and the payment for it.
    Paid,
    /// The kept answer of a payment, once more.
    Replayed,
    /// The upstream's own refusal on a paid route, for which nothing is charged.
    Uncharged,
    /// A payment that was not taken, or a request that cannot be.
    Refused,
    /// Nobody could tell, or the upstream failed: 5xx.
    Unavailable,
}

impl Outcome {
    /// Every one.
    pub const ALL: [Self; 7] =
        [Self::Free, Self::Billed, Self::Paid, Self::Replayed, Self::Uncharged, Self::Refused, Self::Unavailable];

    /// Stable, snake_case.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Billed => "billed",
            Self::Paid => "paid",
            Self::Replayed => "replayed",
            Self::Uncharged => "uncharged",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
        }
    }
}

/// A window into a gateway that serves.
#[derive(Clone, Debug)]
pub struct Watch(pub(crate) Arc<Shared>);

impl Watch {
    /// How many requests to each route came to what, since the start.
    pub fn routes(&self) -> impl Iterator<Item = (&RouteId, Outcome, u64)> {
        let counts = self.0.till.counts.routes.iter();
        let of_routes = self.0.routes.routes().iter().zip(counts);
        of_routes.flat_map(|(route, counts)| {
            Outcome::ALL.into_iter().zip(&counts.0).map(|(outcome, count)| (&route.id, outcome, read(count)))
        })
    }

    /// How often each code was answered, since the start: refusals, and bills as `payment_required`.
    pub fn codes(&self) -> impl Iterator<Item = (&str, u64)> {
        let counts = &self.0.till.counts;
        let told = counts.codes.iter().filter_map(|slot| Some((&**slot.code.get()?, read(&slot.count))));
        told.chain((read(&counts.other_codes) > 0).then(|| ("other", read(&counts.other_codes))))
    }

    /// How many refusals wait to be written into the audit log.
    #[must_use]
    pub fn audit_waiting(&self) -> usize {
        self.0.till.refused.waiting()
    }

    /// How many refusals the audit log had no room for, since the start.
    #[must_use]
    pub fn audit_dropped(&self) -> u64 {
        self.0.till.refused.dropped()
    }
}

/// The counters of one gateway.
#[derive(Debug)]
pub(crate) struct Counts {
    routes: Box<[RouteCounts]>,
    codes: Box<[Slot]>,
    other_codes: AtomicU64,
}

/// By [`Outcome`]. A line of the processor's cache for itself, so that workers on different routes do not wait for one another.
#[derive(Debug, Default)]
#[repr(align(64))]
struct RouteCounts([AtomicU64; Outcome::ALL.len()]);

/// A code that was answered, once there is one.
#[derive(Debug, Default)]
struct Slot {
    code: OnceLock<Box<str>>,
    count: AtomicU64,
}

impl Counts {
    pub(crate) fn new(routes: usize) -> Self {
        Self {
            routes: (0..routes).map(|_| RouteCounts::default()).collect(),
            codes: (0..CODES_MAX).map(|_| Slot::default()).collect(),
            other_codes: AtomicU64::new(0),
        }
    }

    /// Counts a request to the route with this index.
    pub(crate) fn add(&self, route: usize, outcome: Outcome) {
        if let Some(counts) = self.routes.get(route) {
            add(&counts.0[outcome as usize]);
        }
    }

    /// Counts a refusal, or a bill, of this route.
    pub(crate) fn refused(&self, route: usize, refusal: &Refusal) {
        self.add(
            route,
            match refusal.status {
                402 if refusal.code == "payment_required" => Outcome::Billed,
                500.. => Outcome::Unavailable,
                _ => Outcome::Refused,
            },
        );
        self.code(&refusal.code);
    }

    /// Counts an answer with this code. Slots are filled and never emptied, so that the first of its code, or the first empty one,
    /// is this code's.
    pub(crate) fn code(&self, code: &str) {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(code) as usize;
        let mut slots = (0..self.codes.len()).map(|step| &self.codes[hash.wrapping_add(step) % self.codes.len()]);
        match slots.find(|slot| **slot.code.get_or_init(|| code.into()) == *code) {
            Some(slot) => add(&slot.count),
            None => add(&self.other_codes),
        }
    }
}

fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

fn read(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(counts: &Counts) -> std::collections::BTreeMap<String, u64> {
        let slots = counts.codes.iter().filter_map(|slot| Some((slot.code.get()?.to_string(), read(&slot.count))));
        slots.collect()
    }

    #[test]
    fn codes_are_counted_apart_from_many_threads_and_without_a_bound_on_their_number() {
        let counts = Counts::new(1);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(|n| counts.code(&format!("code_{}", n % 50))));
            }
        });
        let all = told(&counts);
        assert!(all.len() == 50 && all.values().all(|count| *count == 80), "{all:?}");
        (0..CODES_MAX * 2).for_each(|n| counts.code(&format!("more_{n}")));
        assert_eq!(told(&counts).len(), CODES_MAX);
        let more = u64::try_from(CODES_MAX * 2 - (CODES_MAX - 50)).unwrap();
        assert_eq!(read(&counts.other_codes), more);
        assert_eq!(told(&counts)["code_7"], 80, "what had a place keeps it");
    }

    #[test]
    fn a_bill_is_no_refusal_and_what_could_not_be_told_is_neither() {
        let counts = Counts::new(2);
        for (status, code) in
            [(402, "payment_required"), (402, "underpaid"), (409, "already_claimed"), (503, "payment_unverifiable")]
        {
            counts.refused(1, &Refusal::new(status, code, ""));
        }
        counts.refused(9, &Refusal::new(404, "no_such_route", ""));
        let of = |outcome: Outcome| read(&counts.routes[1].0[outcome as usize]);
        assert_eq!((of(Outcome::Billed), of(Outcome::Refused), of(Outcome::Unavailable)), (1, 2, 1));
        assert!(counts.routes[0].0.iter().all(|count| read(count) == 0));
    }
}
