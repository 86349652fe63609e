//! How many invoices that nobody pays may be made: each costs the node a write, and asking for one costs a stranger nothing.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use farebox_core::Timestamp;
use parking_lot::Mutex;

/// The most clients that are told apart. A stranger with a whole IPv6 prefix has as many addresses as he likes: all that come when there is
/// no room for another share one account.
const CLIENTS_MAX: usize = 65_536;
/// A site may have so many times what one client may: an IPv6 /48 is what a tunnel or a home is given, and has 65,536 networks.
const SITE_TIMES: u32 = 4;
/// For so long an invoice that is not paid keeps its client, and his site, out of the reserve.
const UNPAID_FOR: Duration = Duration::from_secs(600);

/// A client: an IPv4 address, or an IPv6 network of 64 bits, within which hosts change their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Client(u64);

/// An IPv6 network of 48 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Site(u64);

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

    fn site(self) -> Option<Site> {
        (self != Self::THE_REST && self.0 >= 1 << 32).then_some(Site(self.0 >> 16))
    }
}

/// The accounts of all clients and sites, and the one that all of them share. Half of that one is a reserve for those that have nothing
/// unpaid, so that a few who never pay leave invoices for those who might.
#[derive(Debug)]
pub(crate) struct InvoiceLimits {
    accounts: Mutex<Accounts>,
    one: Allowance,
    site: Allowance,
    all: Allowance,
    clients_max: usize,
}

#[derive(Debug)]
struct Accounts {
    clients: HashMap<Client, Account>,
    sites: HashMap<Site, Account>,
    all: Timestamp,
}

#[derive(Clone, Copy, Debug)]
struct Account {
    /// When what was taken will have come back by itself.
    even_at: Timestamp,
    /// Invoices that were made and not paid.
    unpaid: u32,
    /// When those are forgotten.
    unpaid_until: Timestamp,
}

/// There is none left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoneLeft {
    pub(crate) retry_after_s: u32,
}

impl InvoiceLimits {
    /// So many a minute for each client and for all together, 1 to 60,000; a quarter of them at once.
    pub(crate) fn new(one_per_minute: u32, all_per_minute: u32) -> Self {
        let accounts = Accounts { clients: HashMap::new(), sites: HashMap::new(), all: Timestamp::from_unix_ms(0) };
        Self {
            accounts: Mutex::new(accounts),
            one: Allowance::per_minute(one_per_minute),
            site: Allowance::per_minute(one_per_minute.saturating_mul(SITE_TIMES)),
            all: Allowance::per_minute(all_per_minute),
            clients_max: CLIENTS_MAX,
        }
    }

    /// Takes one from the client's account, its site's and the common one, or from none of them.
    pub(crate) fn take(&self, client: Client, now: Timestamp) -> Result<(), NoneLeft> {
        let mut accounts = self.accounts.lock();
        accounts.make_room(client, self.clients_max, now);
        let client = accounts.slot(client, self.clients_max);
        let one = accounts.clients.get(&client).copied().unwrap_or(Account::even(now));
        let site = client.site().map(|site| (site, accounts.sites.get(&site).copied().unwrap_or(Account::even(now))));
        let unpaid = one.has_unpaid(now) || site.is_some_and(|(_, site)| site.has_unpaid(now));
        let one = one.one_more(self.one, now)?;
        let site = site.map(|(site, account)| account.one_more(self.site, now).map(|account| (site, account)));
        let site = site.transpose()?;
        let at_once = if unpaid { self.all.at_once.div_ceil(2) } else { self.all.at_once };
        accounts.all = self.all.take(accounts.all, at_once, now)?;
        accounts.clients.insert(client, one);
        accounts.sites.extend(site);
        Ok(())
    }

    /// Gives one back: its invoice was paid. Only invoices that nobody pays are to be limited, else whoever buys call by call could
    /// not buy more often than a stranger may ask.
    pub(crate) fn give_back(&self, client: Client) {
        let mut accounts = self.accounts.lock();
        let client = accounts.slot(client, self.clients_max);
        if let Some(account) = accounts.clients.get_mut(&client) {
            account.one_less(self.one);
        }
        if let Some(account) = client.site().and_then(|site| accounts.sites.get_mut(&site)) {
            account.one_less(self.site);
        }
        accounts.all = accounts.all.minus(self.all.each);
    }

    /// Forgets clients that owe nothing.
    pub(crate) fn forget_quiet(&self, now: Timestamp) {
        self.accounts.lock().retain(|account| account.even_at > now || account.has_unpaid(now));
    }
}

impl Accounts {
    fn has_room(&self, client: Client, clients_max: usize) -> bool {
        let site = client.site().is_none_or(|site| self.sites.len() < clients_max || self.sites.contains_key(&site));
        site && (self.clients.len() < clients_max || self.clients.contains_key(&client))
    }

    fn slot(&self, client: Client, clients_max: usize) -> Client {
        if self.has_room(client, clients_max) { client } else { Client::THE_REST }
    }

    /// Whoever may ask again goes, even if he has not paid: that costs the reserve a little, and nobody his limit.
    fn make_room(&mut self, client: Client, clients_max: usize, now: Timestamp) {
        if !self.has_room(client, clients_max) {
            self.retain(|account| account.even_at > now);
        }
    }

    fn retain(&mut self, kept: impl Fn(&Account) -> bool) {
        self.clients.retain(|_, account| kept(account));
        self.sites.retain(|_, account| kept(account));
    }
}

impl Account {
    const fn even(now: Timestamp) -> Self {
        Self { even_at: now, unpaid: 0, unpaid_until: now }
    }

    /// Longer than we remember brings only a clock that was set back.
    fn has_unpaid(&self, now: Timestamp) -> bool {
        self.unpaid > 0 && self.unpaid_until > now && self.unpaid_until <= now.plus(UNPAID_FOR)
    }

    fn one_more(self, allowance: Allowance, now: Timestamp) -> Result<Self, NoneLeft> {
        let even_at = allowance.take(self.even_at, allowance.at_once, now)?;
        let unpaid = if self.has_unpaid(now) { self.unpaid.saturating_add(1) } else { 1 };
        Ok(Self { even_at, unpaid, unpaid_until: now.plus(UNPAID_FOR) })
    }

    fn one_less(&mut self, allowance: Allowance) {
        self.even_at = self.even_at.minus(allowance.each);
        self.unpaid = self.unpaid.saturating_sub(1);
    }
}

/// One taken puts off by `each` when the account is even; no further than `at_once` of them from now.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    each: Duration,
    at_once: u32,
}

impl Allowance {
    fn per_minute(count: u32) -> Self {
        let count = count.clamp(1, 60_000);
        Self { each: Duration::from_millis(60_000 / u64::from(count)), at_once: (count / 4).max(1) }
    }

    fn take(self, even_at: Timestamp, at_once: u32, now: Timestamp) -> Result<Timestamp, NoneLeft> {
        // Further ahead than anybody can be brings only a clock that was set back: that must not shut anybody out.
        let even_at = if even_at > now.plus(self.each * self.at_once) { now } else { even_at.max(now) };
        let even_at = even_at.plus(self.each);
        let wait = even_at.since(now.plus(self.each * at_once));
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
        let limits = InvoiceLimits::new(60, 120);
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
        let limits = InvoiceLimits::new(60, 120);
        assert_eq!(taken(&limits, "192.0.2.1", 100), 15);
        let earlier = START.minus(Duration::from_secs(86_400));
        let served = (0..100).filter(|_| limits.take(client("192.0.2.1"), earlier).is_ok()).count();
        assert_eq!(served, 15);
    }

    #[test]
    fn an_ipv6_site_has_a_limit_too() {
        let limits = InvoiceLimits::new(60, 60_000);
        let served = (0..1_000).filter(|network| taken(&limits, &format!("2001:db8:7:{network:x}::1"), 1) == 1).count();
        assert_eq!(served, 60, "four times a client's fifteen");
        assert_eq!(taken(&limits, "2001:db8:8::1", 100), 15, "its neighbour has another account");
        for _ in 0..60 {
            limits.give_back(client("2001:db8:7:1::1"));
        }
        assert_eq!(taken(&limits, "2001:db8:7:ffff::1", 100), 15, "what was paid does not count");
    }

    #[test]
    fn who_has_something_unpaid_leaves_half_to_others() {
        let limits = InvoiceLimits::new(60_000, 40);
        assert_eq!(taken(&limits, "192.0.2.1", 100), 5);
        assert_eq!(taken(&limits, "192.0.2.2", 100), 1, "his second would be out of the reserve");
        let served = (0..100).filter(|host| taken(&limits, &format!("198.51.100.{host}"), 1) == 1).count();
        assert_eq!(served, 4);
        limits.give_back(client("192.0.2.2"));
        assert_eq!(taken(&limits, "192.0.2.2", 100), 1, "who pays may ask again");
        let even = START.plus(Duration::from_secs(300));
        assert_eq!(
            (0..100).filter(|_| limits.take(client("192.0.2.1"), even).is_ok()).count(),
            5,
            "it is not forgotten soon"
        );
    }

    #[test]
    fn where_there_is_one_at_once_there_is_no_reserve() {
        let limits = InvoiceLimits::new(60, 1);
        for minute in 0..5 {
            let now = START.plus(Duration::from_secs(60 * minute));
            assert_eq!(limits.take(client("192.0.2.1"), now), Ok(()));
        }
    }

    /// Ten minutes of 25 a second that nobody pays, each from another network, and an honest buyer each second, each at its own address.
    fn honest_served(thief: impl Fn(u64) -> String) -> usize {
        let limits = InvoiceLimits::new(30, 1_200);
        let mut served = 0;
        for tick in 0..25 * 600 {
            let now = START.plus(Duration::from_millis(tick * 40));
            let _ = limits.take(client(&thief(tick)), now);
            if tick % 25 == 24 {
                let (high, low) = (tick / 25 / 250, tick / 25 % 250);
                served += usize::from(limits.take(client(&format!("198.51.{high}.{low}")), now).is_ok());
            }
        }
        served
    }

    #[test]
    fn floods_shut_out_nobody_who_has_nothing_unpaid() {
        let check = |what: &str, thief: fn(u64) -> String| assert_eq!(honest_served(thief), 600, "{what}");
        check("one IPv6 site", |tick| format!("2001:db8:7:{tick:x}::1"));
        check("64 IPv6 sites", |tick| format!("2001:db8:{:x}:{tick:x}::1", tick % 64));
        check("256 IPv4 addresses", |tick| format!("192.0.2.{}", tick % 256));
    }
}
