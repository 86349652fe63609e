//! How many invoices that nobody pays may be made: each costs the node a write, and asking for one costs a stranger nothing.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use farebox_core::Timestamp;
use parking_lot::Mutex;

/// The most clients that are told apart. A stranger with a whole IPv6 prefix has as many addresses as he likes: all that come when there is
/// no room for another share one account.
const CLIENTS_MAX: usize = 65_536;

/// A client: an IPv4 address, or an IPv6 network of 64 bits, within which hosts change their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Client(u64);

impl Client {
    /// What all share who came when there was no room for another.
    const THE_REST: Self = Self(u64::MAX);

    pub(crate) fn at(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(u64::from(u32::from(v4))),
            // The upper half of what is no IPv4 address, kept apart from those.
            IpAddr::V6(v6) => Self(((u128::from(v6) >> 64) as u64).clamp(1 << 32, Self::THE_REST.0 - 1)),
        }
    }
}

/// The accounts of all clients, and the one that all of them share.
#[derive(Debug)]
pub(crate) struct InvoiceLimits {
    accounts: Mutex<Accounts>,
    one: Allowance,
    all: Allowance,
    clients_max: usize,
}

/// When what was taken will have come back by itself.
#[derive(Debug)]
struct Accounts {
    clients: HashMap<Client, Timestamp>,
    all: Timestamp,
}

/// There is none left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoneLeft {
    pub(crate) retry_after_s: u32,
}

impl InvoiceLimits {
    /// So many a minute for each client and for all together, 1 to 60,000; a quarter of them at once.
    pub(crate) fn new(one_per_minute: u32, all_per_minute: u32) -> Self {
        Self {
            accounts: Mutex::new(Accounts { clients: HashMap::new(), all: Timestamp::from_unix_ms(0) }),
            one: Allowance::per_minute(one_per_minute),
            all: Allowance::per_minute(all_per_minute),
            clients_max: CLIENTS_MAX,
        }
    }

    /// Takes one from the client's account and from the common one, or from neither.
    pub(crate) fn take(&self, client: Client, now: Timestamp) -> Result<(), NoneLeft> {
        let mut accounts = self.accounts.lock();
        if accounts.clients.len() >= self.clients_max && !accounts.clients.contains_key(&client) {
            accounts.forget_quiet(now);
        }
        let client = accounts.slot(client, self.clients_max);
        accounts.all = self.all.within(accounts.all, now);
        let even_at = match accounts.clients.get_mut(&client) {
            Some(even_at) => {
                *even_at = self.one.within(*even_at, now);
                *even_at
            }
            None => now,
        };
        let (one, all) = (self.one.take(even_at, now)?, self.all.take(accounts.all, now)?);
        accounts.clients.insert(client, one);
        accounts.all = all;
        Ok(())
    }

    /// Gives one back: its invoice was paid. Only invoices that nobody pays are to be limited, else whoever buys call by call could
    /// not buy more often than a stranger may ask.
    pub(crate) fn give_back(&self, client: Client) {
        let mut accounts = self.accounts.lock();
        let client = accounts.slot(client, self.clients_max);
        if let Some(even_at) = accounts.clients.get_mut(&client) {
            *even_at = even_at.minus(self.one.each);
        }
        accounts.all = accounts.all.minus(self.all.each);
    }

    /// Forgets clients that owe nothing.
    pub(crate) fn forget_quiet(&self, now: Timestamp) {
        self.accounts.lock().forget_quiet(now);
    }
}

impl Accounts {
    fn slot(&self, client: Client, clients_max: usize) -> Client {
        let room = self.clients.len() < clients_max || self.clients.contains_key(&client);
        if room { client } else { Client::THE_REST }
    }

    fn forget_quiet(&mut self, now: Timestamp) {
        self.clients.retain(|_, even_at| *even_at > now);
    }
}

/// One taken puts off by `each` when the account is even; no further than `ahead_max` from now.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    each: Duration,
    ahead_max: Duration,
}

impl Allowance {
    fn per_minute(count: u32) -> Self {
        let each = Duration::from_millis(60_000 / u64::from(count.clamp(1, 60_000)));
        Self { each, ahead_max: each * (count / 4).max(1) }
    }

    /// Further ahead than anybody can be brings only a clock that was set back: that must not shut anybody out.
    fn within(self, even_at: Timestamp, now: Timestamp) -> Timestamp {
        if even_at > now.plus(self.ahead_max) { now } else { even_at.max(now) }
    }

    fn take(self, even_at: Timestamp, now: Timestamp) -> Result<Timestamp, NoneLeft> {
        let even_at = even_at.plus(self.each);
        let wait = even_at.since(now.plus(self.ahead_max));
        if wait.is_zero() {
            return Ok(even_at);
        }
        let seconds = wait.as_millis().div_ceil(1_000);
        Err(NoneLeft { retry_after_s: u32::try_from(seconds).unwrap_or(u32::MAX) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_unix_s(1_900_000_000);

    fn client(address: &str) -> Client {
        Client::at(address.parse().unwrap())
    }

    fn taken(limits: &InvoiceLimits, address: &str, times: usize) -> usize {
        (0..times).filter(|_| limits.take(client(address), START).is_ok()).count()
    }

    #[test]
    fn a_client_has_a_quarter_at_once_and_then_one_at_a_time() {
        let limits = InvoiceLimits::new(60, 60_000);
        assert_eq!(taken(&limits, "192.0.2.1", 100), 15);
        assert_eq!(limits.take(client("192.0.2.1"), START), Err(NoneLeft { retry_after_s: 1 }));
        assert_eq!(taken(&limits, "192.0.2.2", 1), 1, "another client has another account");
        let later = START.plus(Duration::from_millis(1_000));
        assert_eq!(limits.take(client("192.0.2.1"), later), Ok(()));
        assert!(limits.take(client("192.0.2.1"), later).is_err());
    }

    #[test]
    fn all_together_have_a_limit_too() {
        let limits = InvoiceLimits::new(60, 60);
        let served = (0..100).filter(|host| taken(&limits, &format!("192.0.2.{host}"), 1) == 1).count();
        assert_eq!(served, 15);
        assert_eq!(limits.accounts.lock().clients.len(), 15, "who was refused has no account");
    }

    #[test]
    fn invoices_that_are_paid_do_not_count() {
        let limits = InvoiceLimits::new(60, 60);
        for _ in 0..1_000 {
            assert_eq!(limits.take(client("192.0.2.1"), START), Ok(()));
            limits.give_back(client("192.0.2.1"));
        }
        for _ in 0..100 {
            limits.give_back(client("192.0.2.1"));
        }
        assert_eq!(taken(&limits, "192.0.2.1", 100), 15, "giving back makes nobody rich");
    }

    #[test]
    fn the_hosts_of_one_ipv6_network_are_one_client() {
        assert_eq!(client("2001:db8:1:2::1"), client("2001:db8:1:2:ffff::9"));
        assert_ne!(client("2001:db8:1:2::1"), client("2001:db8:1:3::1"));
        assert_eq!(client("::ffff:192.0.2.1"), client("192.0.2.1"));
        assert_ne!(client("0:0:c000:201::"), client("192.0.2.1"), "no network is an IPv4 address");
        assert_ne!(client("ffff:ffff:ffff:ffff::1"), Client::THE_REST);
    }

    #[test]
    fn clients_beyond_the_limit_share_an_account_until_others_are_quiet() {
        let limits = InvoiceLimits { clients_max: 4, ..InvoiceLimits::new(60, 60_000) };
        for host in 0..4 {
            assert_eq!(taken(&limits, &format!("192.0.2.{host}"), 1), 1);
        }
        let served = (0..100).filter(|host| taken(&limits, &format!("198.51.100.{host}"), 1) == 1).count();
        assert_eq!(served, 15);
        assert_eq!(limits.accounts.lock().clients.len(), 5);
        let later = START.plus(Duration::from_secs(60));
        assert_eq!(limits.take(client("203.0.113.1"), later), Ok(()));
        assert_eq!(limits.accounts.lock().clients.len(), 1);
    }

    #[test]
    fn a_clock_that_is_set_back_shuts_nobody_out() {
        let limits = InvoiceLimits::new(60, 60);
        assert_eq!(taken(&limits, "192.0.2.1", 100), 15);
        let earlier = START.minus(Duration::from_secs(86_400));
        let served = (0..100).filter(|_| limits.take(client("192.0.2.1"), earlier).is_ok()).count();
        assert_eq!(served, 15);
    }
}
