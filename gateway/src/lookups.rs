//! How many questions to a chain one caller may cause by naming transactions and contracts that nobody has vouched for.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use farebox_core::ports::{Lookups, NoLookup};
use parking_lot::Mutex;
use tokio::time::Instant;

/// The most callers that are told apart. A stranger with a whole IPv6 prefix has as many addresses as he likes: all that come when
/// there is no room for another share one account.
const CALLERS_MAX: usize = 65_536;

/// How often callers who have been quiet are forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// The accounts of all callers. No crate's limiter gives back what was taken, and an honest look-up has to cost nothing: else a fleet behind
/// one address could not pay more often than a stranger may guess.
#[derive(Debug)]
pub(crate) struct LookupLimit {
    accounts: Mutex<HashMap<u64, Account>>,
    /// How long one look-up takes to come back by itself.
    each: Duration,
    burst: u32,
    callers_max: usize,
}

/// What a caller has used up: it is even again at `even_at`.
#[derive(Clone, Copy, Debug)]
struct Account {
    even_at: Instant,
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
        let each = Duration::from_secs(60) / per_minute.max(1);
        Self { accounts: Mutex::default(), each, burst: (per_minute / 4).max(1), callers_max }
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
            self.forget_quiet();
        }
    }

    fn forget_quiet(&self) {
        let now = Instant::now();
        let mut accounts = self.accounts.lock();
        accounts.retain(|_, account| account.even_at > now);
        accounts.shrink_to_fit();
    }

    /// Each look-up puts off by `each` when the account is even; no further than a burst ahead.
    fn take(&self, caller: u64) -> Result<(), NoLookup> {
        let now = Instant::now();
        let mut accounts = self.accounts.lock();
        let caller =
            if accounts.contains_key(&caller) || accounts.len() < self.callers_max { caller } else { THE_REST };
        let account = accounts.entry(caller).or_insert(Account { even_at: now });
        let even_at = account.even_at.max(now) + self.each;
        let wait = even_at.saturating_duration_since(now + self.each * self.burst);
        if wait > Duration::ZERO {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            return Err(NoLookup { retry_after_s: u32::try_from(seconds).unwrap_or(u32::MAX) });
        }
        account.even_at = even_at;
        Ok(())
    }

    fn give_back(&self, caller: u64) {
        let mut accounts = self.accounts.lock();
        // Whoever came when there was no room took of the account that all such share.
        let caller = if accounts.contains_key(&caller) { caller } else { THE_REST };
        if let Some(account) = accounts.get_mut(&caller) {
            account.even_at = account.even_at.checked_sub(self.each).unwrap_or(account.even_at);
        }
    }
}

impl Lookups for CallerLookups<'_> {
    fn take(&self) -> Result<(), NoLookup> {
        self.limit.take(self.caller)
    }

    fn give_back(&self) {
        self.limit.give_back(self.caller);
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
    async fn what_is_given_back_can_be_taken_again() {
        let limit = limit(100);
        let caller = limit.of_caller("192.0.2.1".parse().unwrap());
        for _ in 0..1_000 {
            assert_eq!(caller.take(), Ok(()));
            caller.give_back();
        }
        // Giving back makes nobody rich.
        caller.give_back();
        let left = (0..100).filter(|_| caller.take().is_ok()).count();
        assert_eq!(left, 15);
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
        assert_eq!(limit.accounts.lock().len(), 5);
        tokio::time::advance(Duration::from_secs(60)).await;
        limit.forget_quiet();
        assert_eq!(take(&limit, "198.51.100.200"), Ok(()));
        assert_eq!(limit.accounts.lock().len(), 1);
    }
}
