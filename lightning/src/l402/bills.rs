//! Open bills, so that whoever asks again is shown the same invoice, and whoever asks a thousand times at once causes one.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use farebox_core::{
    CallerId, Grant, PassId, PaymentHash, RouteId, Timestamp, TokenScope,
    ports::{BillAsk, NoBill, TokenBill},
};
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::{limits::Client, make::Unmade};

/// The most bills that are remembered. Forgetting an open one costs its client another invoice, and nobody any money.
const BILLS_MAX: usize = 50_000;
/// The most bills that are being made at once: a node that hangs must not fill the memory with waiting calls.
const MAKING_MAX: usize = 64;

/// What a bill was made for. Two requests with the same may be shown the same invoice.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct BillKey {
    caller: CallerId,
    /// At whose expense it was made.
    client: Client,
    route: RouteId,
    amount_msat: u64,
    grant: Grant,
    valid_for: Duration,
    tier: u8,
    /// Of method, path and query, for a token that is good for nothing else.
    request: Option<[u8; 32]>,
}

impl BillKey {
    pub(crate) fn of(ask: &BillAsk<'_>, amount_msat: u64) -> Self {
        let request = match ask.terms.scope {
            TokenScope::Route => None,
            // No method has a space in it.
            TokenScope::Request => Some(Sha256::digest(format!("{} {}", ask.method, ask.resource)).into()),
        };
        Self {
            caller: ask.caller.clone(),
            client: Client::at(ask.client),
            route: ask.route.clone(),
            amount_msat,
            grant: ask.terms.grant,
            valid_for: ask.terms.valid_for,
            tier: ask.terms.tier,
            request,
        }
    }

    pub(crate) const fn client(&self) -> Client {
        self.client
    }
}

/// A bill that is being made, for everybody who waits for it.
pub(crate) type Flight = Shared<BoxFuture<'static, Result<Arc<TokenBill>, Unmade>>>;

/// What a request is shown.
pub(crate) enum Found {
    Open(Arc<TokenBill>),
    Making(Flight),
}

/// The open bills, and those that are being made.
pub(crate) struct Bills {
    shelf: Mutex<Shelf>,
    /// A bill with less time left is not shown to anybody any more.
    left_min: Duration,
    bills_max: usize,
}

#[derive(Default)]
struct Shelf {
    open: HashMap<Arc<BillKey>, Arc<TokenBill>>,
    making: HashMap<Arc<BillKey>, Flight>,
    /// Whose bill it is that sells a pass; also while another has taken its place.
    passes: HashMap<PassId, Sold>,
    hashes: HashMap<PaymentHash, PassId>,
}

struct Sold {
    key: Arc<BillKey>,
    invoice: PaymentHash,
    expires_at: Timestamp,
}

impl Bills {
    pub(crate) fn new(left_min: Duration) -> Self {
        Self { shelf: Mutex::default(), left_min, bills_max: BILLS_MAX }
    }

    /// The open bill with enough time left, or the one that is being made, or else the one that `start` begins to make.
    ///
    /// # Errors
    /// What `start` says, or that too many are being made.
    pub(crate) fn open_or_start(
        &self,
        key: &Arc<BillKey>,
        now: Timestamp,
        start: impl FnOnce() -> Result<Flight, NoBill>,
    ) -> Result<Found, NoBill> {
        let mut shelf = self.shelf.lock();
        if let Some(bill) = shelf.open.get(key).filter(|bill| bill.invoice.expires_at.since(now) >= self.left_min) {
            return Ok(Found::Open(bill.clone()));
        }
        if let Some(flight) = shelf.making.get(key) {
            return Ok(Found::Making(flight.clone()));
        }
        if shelf.making.len() >= MAKING_MAX {
            return Err(NoBill::Limited { retry_after_s: 1 });
        }
        let flight = start()?;
        shelf.making.insert(key.clone(), flight.clone());
        Ok(Found::Making(flight))
    }

    /// Ends the making of a bill. Dropped without one it frees the place all the same.
    pub(crate) fn landing(self: &Arc<Self>, key: Arc<BillKey>) -> Landing {
        Landing { bills: self.clone(), key: Some(key) }
    }

    /// Drops the bill of a pass that is paid, and tells who was shown it; `None` if that was told before.
    pub(crate) fn bought(&self, pass: PassId) -> Option<Client> {
        self.shelf.lock().drop_pass(pass).map(|key| key.client)
    }

    /// Drops the bill with this invoice: it cannot be paid any more, or is being paid.
    pub(crate) fn withdraw(&self, invoice: PaymentHash) {
        let mut shelf = self.shelf.lock();
        if let Some(key) =
            shelf.hashes.get(&invoice).and_then(|pass| shelf.passes.get(pass)).map(|sold| sold.key.clone())
            && shelf.open.get(&key).is_some_and(|bill| bill.invoice.payment_hash == invoice)
        {
            shelf.open.remove(&key);
        }
    }

    /// Drops the bills whose time is over.
    pub(crate) fn forget_expired(&self, now: Timestamp) {
        self.shelf.lock().forget_expired(now);
    }
}

impl fmt::Debug for Bills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shelf = self.shelf.lock();
        f.debug_struct("Bills").field("open", &shelf.open.len()).field("making", &shelf.making.len()).finish()
    }
}

impl Shelf {
    fn put(&mut self, key: Arc<BillKey>, bill: Arc<TokenBill>) {
        let (invoice, expires_at) = (bill.invoice.payment_hash, bill.invoice.expires_at);
        self.hashes.insert(invoice, bill.pass);
        self.passes.insert(bill.pass, Sold { key: key.clone(), invoice, expires_at });
        self.open.insert(key, bill);
    }

    fn drop_pass(&mut self, pass: PassId) -> Option<Arc<BillKey>> {
        let Sold { key, invoice, .. } = self.passes.remove(&pass)?;
        self.hashes.remove(&invoice);
        if self.open.get(&key).is_some_and(|bill| bill.pass == pass) {
            self.open.remove(&key);
        }
        Some(key)
    }

    fn forget_expired(&mut self, now: Timestamp) {
        let Self { open, passes, hashes, .. } = self;
        open.retain(|_, bill| bill.invoice.expires_at > now);
        passes.retain(|_, sold| sold.expires_at > now);
        hashes.retain(|_, pass| passes.contains_key(pass));
    }

    fn make_room(&mut self, bills_max: usize, now: Timestamp) {
        if self.passes.len() < bills_max {
            return;
        }
        self.forget_expired(now);
        let surplus = (self.passes.len() + 1).saturating_sub(bills_max);
        let surplus: Vec<PassId> = self.passes.keys().take(surplus).copied().collect();
        for pass in surplus {
            self.drop_pass(pass);
        }
    }
}

/// The end of a flight.
pub(crate) struct Landing {
    bills: Arc<Bills>,
    key: Option<Arc<BillKey>>,
}

impl Landing {
    /// Shows the bill to everybody who asks from now on; or lets the next one who asks try again.
    pub(crate) fn with(mut self, made: &Result<Arc<TokenBill>, Unmade>, now: Timestamp) {
        let Some(key) = self.key.take() else { return };
        let mut shelf = self.bills.shelf.lock();
        shelf.making.remove(&key);
        if let Ok(bill) = made {
            shelf.make_room(self.bills.bills_max, now);
            shelf.put(key, bill.clone());
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            self.bills.shelf.lock().making.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use farebox_core::Invoice;
    use futures_util::FutureExt as _;

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix_s(1_900_000_000);

    fn key(host: u8) -> Arc<BillKey> {
        Arc::new(BillKey {
            caller: CallerId::new("caller"),
            client: Client::at([192, 0, 2, host].into()),
            route: RouteId::new("GET /x"),
            amount_msat: 1,
            grant: Grant::default(),
            valid_for: Duration::ZERO,
            tier: 0,
            request: None,
        })
    }

    fn bill(number: u8) -> Arc<TokenBill> {
        let expires_at = NOW.plus(Duration::from_secs(600));
        let payment_hash = PaymentHash([number; 32]);
        let invoice = Invoice { payment_hash, bolt11: "lnbcrt".into(), amount_msat: 1, created_at: NOW, expires_at };
        Arc::new(TokenBill { pass: PassId([number; 32]), macaroon: "m".into(), invoice })
    }

    fn never() -> Flight {
        futures_util::future::pending().boxed().shared()
    }

    fn sizes(bills: &Bills) -> [usize; 4] {
        let shelf = bills.shelf.lock();
        [shelf.open.len(), shelf.making.len(), shelf.passes.len(), shelf.hashes.len()]
    }

    #[test]
    fn only_so_many_bills_are_remembered() {
        let bills = Arc::new(Bills { bills_max: 3, ..Bills::new(Duration::ZERO) });
        for number in 0..10 {
            bills.landing(key(number)).with(&Ok(bill(number)), NOW);
        }
        assert_eq!(sizes(&bills), [3, 0, 3, 3]);
        bills.landing(key(9)).with(&Ok(bill(10)), NOW.plus(Duration::from_secs(600)));
        assert_eq!(sizes(&bills), [1, 0, 1, 1], "those whose time is over go first");
        bills.forget_expired(NOW.plus(Duration::from_secs(600)));
        assert_eq!(sizes(&bills), [0, 0, 0, 0]);
    }

    #[test]
    fn a_bill_whose_making_died_is_made_anew() {
        let bills = Arc::new(Bills::new(Duration::ZERO));
        let landing = bills.landing(key(1));
        assert!(matches!(bills.open_or_start(&key(1), NOW, || Ok(never())), Ok(Found::Making(_))));
        let unasked = || panic!("it is being made");
        assert!(matches!(bills.open_or_start(&key(1), NOW, unasked), Ok(Found::Making(_))));
        drop(landing);
        let mut begun = false;
        let again = bills.open_or_start(&key(1), NOW, || {
            begun = true;
            Ok(never())
        });
        assert!(begun && again.is_ok());
        bills.landing(key(1)).with(&Err(Unmade::by_node("refused")), NOW);
        assert_eq!(sizes(&bills), [0, 0, 0, 0]);
    }

    #[test]
    fn what_is_bought_or_withdrawn_leaves_its_successor_alone() {
        let bills = Arc::new(Bills::new(Duration::ZERO));
        bills.landing(key(1)).with(&Ok(bill(1)), NOW);
        bills.landing(key(1)).with(&Ok(bill(2)), NOW);
        bills.withdraw(bill(1).invoice.payment_hash);
        assert_eq!(bills.bought(bill(1).pass), Some(key(1).client), "the late payer is told of");
        assert_eq!(bills.bought(bill(1).pass), None);
        assert_eq!(sizes(&bills), [1, 0, 1, 1]);
        bills.withdraw(bill(2).invoice.payment_hash);
        assert_eq!(sizes(&bills), [0, 0, 1, 1]);
        assert_eq!(bills.bought(bill(2).pass), Some(key(1).client));
        assert_eq!(sizes(&bills), [0, 0, 0, 0]);
    }
}
