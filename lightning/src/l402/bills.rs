//! Open bills, so that whoever asks again is shown the same invoice, and whoever asks a thousand times at once causes one.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use farebox_core::{
    Grant, PassId, PaymentHash, RouteId, Timestamp, TokenScope,
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
