//! How many questions to a chain one caller may cause by naming transactions and contracts that nobody has vouched for.

use std::{net::IpAddr, num::NonZeroU32, time::Duration};

use farebox_core::ports::{Lookups, NoLookup};
use governor::{
    Quota, RateLimiter, clock::Clock, middleware::NoOpMiddleware, nanos::Nanos, state::keyed::HashMapStateStore,
};
use tokio::time::Instant;

/// The most callers that are told apart. A stranger with a whole IPv6 prefix has as many addresses as he likes: all that come when
/// there is no room for another share one account.
const CALLERS_MAX: usize = 65_536;

/// How often callers who have been quiet are forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

type Limiter = RateLimiter<u64, HashMapStateStore<u64>, SinceStart, NoOpMiddleware<Nanos>>;

/// The accounts of all callers.
#[derive(Debug)]
pub(crate) struct LookupLimit {
    by_caller: Limiter,
    callers_max: usize,
}

/// One caller's account.
#[derive(Debug)]
pub(crate) struct CallerLookups<'a> {
    limit: &'a LookupLimit,
    caller: u64,
}

/// What all callers share who came when there was no room for another.
const THE_REST: u64 = u64::MAX;

impl LookupLimit {
    /// So many a minute, a quarter of them at once; at least one.
    pub(crate) fn new(per_minute: u32) -> Self {
        Self::of(per_minute, CALLERS_MAX)
    }

    fn of(per_minute: u32, callers_max: usize) -> Self {
        let at_least_one = |count| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_minute(at_least_one(per_minute)).allow_burst(at_least_one(per_minute / 4));
        let store = HashMapStateStore::new(Default::default());
        Self { by_caller: RateLimiter::new(quota, store, SinceStart(Instant::now())), callers_max }
    }

    /// The account of the caller at `address`. Of an IPv6 address the /64 counts, within which hosts change theirs.
    pub(crate) fn of_caller(&self, address: IpAddr) -> CallerLookups<'_> {
        let caller = match address.to_canonical() {
            IpAddr::V4(v4) => u64::from(u32::from(v4)),
            // The upper half of what is no IPv4 address, kept apart from those.
            IpAddr::V6(v6) => ((u128::from(v6) >> 64) as u64).clamp(1 << 32, THE_REST - 1),
        };
        CallerLookups { limit: self, caller }
    }

    /// Forgets quiet callers, for ever. Nothing is lost when it is dropped.
    pub(crate) async fn sweep(&self) {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            self.by_caller.retain_recent();
            self.by_caller.shrink_to_fit();
        }
    }

    fn take(&self, caller: u64) -> Result<(), NoLookup> {
        let caller = if self.by_caller.len() < self.callers_max { caller } else { THE_REST };
        self.by_caller.check_key(&caller).map_err(|until| {
            let wait = until.wait_time_from(self.by_caller.clock().now());
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            NoLookup { retry_after_s: u32::try_from(seconds).unwrap_or(u32::MAX) }
        })
    }
}

impl Lookups for CallerLookups<'_> {
    fn take(&self) -> Result<(), NoLookup> {
        self.limit.take(self.caller)
    }
}

/// Time since the start, which unlike the wall clock does not jump.
#[derive(Clone, Debug)]
struct SinceStart(Instant);

impl Clock for SinceStart {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.elapsed().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(callers_max: usize) -> LookupLimit {
        LookupLimit::of(60, callers_max)
    }

    fn take(limit: &LookupLimit, address: &str) -> Result<(), NoLookup> {
        limit.of_caller(address.parse().unwrap()).take()
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_has_a_burst_and_then_one_a_second() {
        let limit = limit(100);
        for _ in 0..15 {
            assert_eq!(take(&limit, "192.0.2.1"), Ok(()));
        }
        assert_eq!(take(&limit, "192.0.2.1"), Err(NoLookup { retry_after_s: 1 }));
        assert_eq!(take(&limit, "192.0.2.2"), Ok(()), "another caller has another account");
        tokio::time::advance(Duration::from_millis(1_010)).await;
        assert_eq!(take(&limit, "192.0.2.1"), Ok(()));
        assert!(take(&limit, "192.0.2.1").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_hosts_of_one_ipv6_network_share_an_account() {
        let limit = limit(100);
        for host in 1..=15 {
            assert_eq!(take(&limit, &format!("2001:db8:1:2::{host}")), Ok(()));
        }
        assert!(take(&limit, "2001:db8:1:2:ffff::9").is_err());
        assert_eq!(take(&limit, "2001:db8:1:3::1"), Ok(()));
        for _ in 0..15 {
            assert_eq!(take(&limit, "192.0.2.1"), Ok(()));
        }
        assert!(take(&limit, "::ffff:192.0.2.1").is_err(), "an IPv4 address has one account in either spelling");
    }

    #[tokio::test(start_paused = true)]
    async fn callers_beyond_the_limit_share_an_account_until_others_are_quiet() {
        let limit = limit(4);
        for host in 0..4 {
            assert_eq!(take(&limit, &format!("192.0.2.{host}")), Ok(()));
        }
        let refused = (0..100).filter(|host| take(&limit, &format!("198.51.100.{host}")).is_err()).count();
        assert_eq!(refused, 85);
        assert!(limit.by_caller.len() <= 5, "{}", limit.by_caller.len());
        tokio::time::advance(Duration::from_secs(60)).await;
        limit.by_caller.retain_recent();
        assert_eq!(take(&limit, "198.51.100.200"), Ok(()));
        assert_eq!(limit.by_caller.len(), 1);
    }
}
