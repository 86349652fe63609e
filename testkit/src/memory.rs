//! The model that every ledger is compared with: books in a map, with faults on demand.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use farebox_core::{
    Amount, Answer, AssetId, AuditEntry, AuditLine, BlockRef, Claim, Claimed, Contest, CredentialDigest, InstanceId,
    LaneKey, Network, Offer, Payer, Payment, PaymentEvent, PaymentId, PaymentState, Permit, ProofId, RouteId,
    StoredTransaction, Timestamp, TransactionFate, TransactionId,
    ports::{
        CreditIs, Ledger, LedgerUnavailable, PaymentFilter, QuoteKey, QuoteKeyRotation, RecordError, TransactionStore,
    },
};
use parking_lot::Mutex;

mod tokens;

/// Rows per page when a filter does not say, the same as every ledger's.
const PAGE_ROWS: u32 = 100;

/// What goes wrong with one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `Unavailable`, and nothing was done.
    FailBefore,
    /// `Unavailable`, but it was done.
    FailAfter,
    /// Nothing was done, and this handle is dead from then on, as a killed process is.
    DieBefore,
    /// It was done, and this handle is dead from then on.
    DieAfter,
}

/// Books in memory, seen by one process. Clones of the books live on in [`MemoryLedger::restarted`].
#[derive(Debug)]
pub struct MemoryLedger {
    instance: InstanceId,
    answers_kept_for: Duration,
    books: Arc<Mutex<Books>>,
    faults: Mutex<Faults>,
}

#[derive(Clone, Debug, Default)]
struct Books {
    payments: BTreeMap<PaymentId, Payment>,
    answers: BTreeMap<PaymentId, (Timestamp, Answer)>,
    transactions: Vec<StoredTransaction>,
    /// Offers of each route, in order of first use, with the time they were retired.
    offers: BTreeMap<RouteId, Vec<(Offer, Option<Timestamp>)>>,
    quote_keys: Vec<QuoteKey>,
    audit: Vec<AuditLine>,
    compared: BTreeMap<Network, u64>,
    tokens: tokens::Tokens,
}

#[derive(Debug, Default)]
struct Faults {
    operations: u64,
    planned: BTreeMap<u64, Fault>,
    dead: bool,
}

impl MemoryLedger {
    /// Empty books of one process.
    #[must_use]
    pub fn new(instance: InstanceId, answers_kept_for: Duration) -> Self {
        Self { instance, answers_kept_for, books: Arc::default(), faults: Mutex::default() }
    }

    /// As [`Self::restarted_at`], at the time of what happened last.
    #[must_use]
    pub fn restarted(&self, instance: InstanceId) -> Self {
        let last = self.books.lock().drawn_last();
        self.restarted_at(instance, last)
    }

    /// The same books in the hands of the next process: leases of all others are over, and what they drew is returned.
    #[must_use]
    pub fn restarted_at(&self, instance: InstanceId, now: Timestamp) -> Self {
        // An entry of the audit log is text and numbers, which always make a line.
        drop(self.books.lock().return_draws_of_others(&instance, now));
        for payment in self.books.lock().payments.values_mut() {
            if payment.holder.as_ref().is_some_and(|h| *h != instance) {
                payment.lease_until = Timestamp::from_unix_ms(0);
            }
        }
        let answers_kept_for = self.answers_kept_for;
        Self { instance, answers_kept_for, books: self.books.clone(), faults: Mutex::default() }
    }

    /// Plans a fault for the `nth` operation of this handle from now, counted from 0.
    pub fn plan(&self, nth: u64, fault: Fault) {
        let mut faults = self.faults.lock();
        let at = faults.operations + nth;
        faults.planned.insert(at, fault);
    }

    /// How many operations this handle was asked for; a sweep over every fault place takes its bound from a run without faults.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.faults.lock().operations
    }

    /// Every payment, oldest first.
    #[must_use]
    pub fn payments(&self) -> Vec<Payment> {
        self.books.lock().payments.values().cloned().collect()
    }

    /// Every transaction, in order of storing.
    #[must_use]
    pub fn transactions(&self) -> Vec<StoredTransaction> {
        self.books.lock().transactions.clone()
    }

    /// The audit log, oldest first.
    #[must_use]
    pub fn audit_log(&self) -> Vec<AuditLine> {
        self.books.lock().audit.clone()
    }

    /// Does `work` on the books, under this operation's fault if one is planned.
    fn with<T>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&mut Books) -> Result<T, RecordError>,
    ) -> Result<T, RecordError> {
        let fault = {
            let mut faults = self.faults.lock();
            if faults.dead {
                return Err(unavailable(operation, "this process is dead").into());
            }
            let number = faults.operations;
            faults.operations += 1;
            let fault = faults.planned.remove(&number);
            faults.dead = matches!(fault, Some(Fault::DieBefore | Fault::DieAfter));
            fault
        };
        let mut books = self.books.lock();
        match fault {
            Some(Fault::FailBefore | Fault::DieBefore) => Err(unavailable(operation, "a planned fault, before").into()),
            Some(Fault::FailAfter | Fault::DieAfter) => {
                work(&mut books)?;
                Err(unavailable(operation, "a planned fault, after").into())
            }
            None => work(&mut books),
        }
    }

    fn ask<T>(&self, operation: &'static str, work: impl FnOnce(&mut Books) -> T) -> Result<T, LedgerUnavailable> {
        self.with(operation, |books| Ok(work(books))).map_err(|error| match error {
            RecordError::Unavailable(unavailable) => unavailable,
            other => LedgerUnavailable { operation, source: other.into() },
        })
    }
}

#[async_trait]
impl Ledger for MemoryLedger {
    async fn find(&self, credential: CredentialDigest) -> Result<Option<Payment>, LedgerUnavailable> {
        self.ask("look a credential up", |books| books.made_by(credential).cloned())
    }

    async fn find_proof(&self, proof: &ProofId) -> Result<Option<Payment>, LedgerUnavailable> {
        self.ask("look a proof up", |books| books.holding(proof).cloned())
    }

    async fn claim(&self, claim: Claim) -> Result<Claimed, LedgerUnavailable> {
        self.ask("claim a proof", |books| {
            let now = claim.now;
            let held = books.holding(&claim.proof).cloned();
            let granted = match held.map(|payment| payment.contest(&claim)) {
                None if let Some(made) = books.made_by(claim.credential.digest()) => {
                    return Ok(Claimed::Busy(made.clone()));
                }
                None if books.payments.contains_key(&claim.id) => {
                    return Err(unavailable("claim a proof", "its id is taken"));
                }
                None => Payment::first(claim),
                Some(Contest::Grant(payment)) => payment,
                Some(Contest::Answer(answer)) => return Ok(answer),
            };
            books.append(&[AuditEntry::claimed(&granted, now)])?;
            books.payments.insert(granted.id, granted.clone());
            Ok(Claimed::Granted(Permit::granted(granted)))
        })?
    }

    async fn record(&self, id: PaymentId, events: Vec<PaymentEvent>, now: Timestamp) -> Result<Payment, RecordError> {
        self.with("record events", |books| {
            let payment = books.apply(id, &events, &self.instance, now)?;
            for event in events {
                if let PaymentEvent::Delivered { answer: Some(answer) } = event {
                    books.answers.insert(id, (now.plus(self.answers_kept_for), answer));
                }
            }
            Ok(payment)
        })
    }

    async fn answer(&self, id: PaymentId, now: Timestamp) -> Result<Option<Answer>, LedgerUnavailable> {
        self.ask("read a kept answer", |books| {
            books.answers.get(&id).filter(|(until, _)| now < *until).map(|(_, answer)| answer.clone())
        })
    }

    async fn unresolved(&self, now: Timestamp, limit: u32) -> Result<Vec<Payment>, LedgerUnavailable> {
        self.ask("list unresolved payments", |books| {
            let open = |p: &&Payment| match p.state {
                PaymentState::InDoubt => true,
                PaymentState::Claimed | PaymentState::Settling => p.holder.is_none() || p.lease_until <= now,
                PaymentState::Settled | PaymentState::Refused | PaymentState::Void => false,
            };
            let mut found: Vec<_> = books.payments.values().filter(open).cloned().collect();
            found.sort_by_key(|p| (p.updated_at, p.id));
            found.truncate(limit as usize);
            found
        })
    }

    async fn compared_below(&self, network: &Network) -> Result<u64, LedgerUnavailable> {
        self.ask("read how far the books were compared", |books| books.compared.get(network).copied().unwrap_or(0))
    }

    async fn set_compared_below(&self, network: &Network, height: u64) -> Result<(), LedgerUnavailable> {
        self.ask("note how far the books were compared", |books| {
            let below = books.compared.entry(network.clone()).or_default();
            *below = height.max(*below);
        })
    }

    async fn settled_blocks(
        &self,
        network: &Network,
        from: u64,
        limit: u32,
    ) -> Result<Vec<BlockRef>, LedgerUnavailable> {
        self.ask("list settled blocks", |books| {
            let mut found: Vec<_> =
                books.settled_on(network).filter_map(|p| p.block).filter(|b| b.number >= from).collect();
            found.sort_by_key(|b| (b.number, b.hash));
            found.dedup();
            found.truncate(limit as usize);
            found
        })
    }

    async fn settled_in(
        &self,
        network: &Network,
        block: &BlockRef,
        limit: u32,
    ) -> Result<Vec<Payment>, LedgerUnavailable> {
        self.ask("list payments settled in a block", |books| {
            books.settled_on(network).filter(|p| p.block == Some(*block)).take(limit as usize).cloned().collect()
        })
    }

    async fn list(&self, filter: &PaymentFilter) -> Result<Vec<Payment>, LedgerUnavailable> {
        let limit = if filter.limit == 0 { PAGE_ROWS } else { filter.limit };
        self.ask("list payments", |books| {
            books.payments.values().rev().filter(|p| matches(p, filter)).take(limit as usize).cloned().collect()
        })
    }

    async fn exchange_offers(
        &self,
        route: &RouteId,
        current: &[Offer],
        now: Timestamp,
    ) -> Result<Vec<Offer>, LedgerUnavailable> {
        self.ask("exchange offers", |books| {
            let known = books.offers.entry(route.clone()).or_default();
            for (offer, retired) in known.iter_mut() {
                *retired = if current.iter().any(|c| c.same_terms(offer)) { None } else { retired.or(Some(now)) };
            }
            for offer in current {
                if !known.iter().any(|(k, _)| k.same_terms(offer)) {
                    known.push((offer.clone(), None));
                }
            }
            known.retain(|(offer, retired)| {
                retired.is_none_or(|at| now < at.plus(Duration::from_secs(offer.max_timeout_s)))
            });
            known.iter().filter(|(_, retired)| retired.is_some()).map(|(offer, _)| offer.clone()).collect()
        })
    }

    async fn marked_payers(&self, limit: u32) -> Result<Vec<Payer>, LedgerUnavailable> {
        self.ask("list marked payers", |books| {
            let mut marking: Vec<_> = books.payments.values().filter(|p| p.marks_payer()).collect();
            marking.sort_by(|a, b| b.updated_at.cmp(&a.updated_at).then(a.payer.as_str().cmp(b.payer.as_str())));
            let mut payers: Vec<Payer> = Vec::new();
            for payment in marking {
                if !payers.contains(&payment.payer) {
                    payers.push(payment.payer.clone());
                }
            }
            payers.truncate(limit as usize);
            payers
        })
    }

    async fn credits(&self, payer: &Payer) -> Result<Vec<Amount>, LedgerUnavailable> {
        self.ask("sum a payer's credits", |books| {
            let mut sums: BTreeMap<AssetId, u128> = BTreeMap::new();
            let theirs = |p: &&Payment| p.payer.as_str().eq_ignore_ascii_case(payer.as_str()) && p.credit > 0;
            for payment in books.payments.values().filter(theirs).filter(|p| p.state == PaymentState::Settled) {
                let sum = sums.entry(payment.amount.asset.clone()).or_default();
                let next = sum.checked_add(payment.credit);
                *sum = next.ok_or_else(|| unavailable("sum a payer's credits", "they are 2^128 units or more"))?;
            }
            Ok(sums.into_iter().map(|(asset, units)| Amount { units, asset }).collect())
        })?
    }

    async fn quote_keys(&self, rotation: QuoteKeyRotation, now: Timestamp) -> Result<Vec<QuoteKey>, LedgerUnavailable> {
        self.ask("exchange quote keys", |books| {
            books.quote_keys = rotation.apply(std::mem::take(&mut books.quote_keys), now);
            books.quote_keys.clone()
        })
    }

    async fn audit(&self, entries: Vec<AuditEntry>) -> Result<(), LedgerUnavailable> {
        self.ask("write the audit log", |books| books.append(&entries))?
    }

    async fn audit_lines(&self, after: u64, limit: u32) -> Result<Vec<AuditLine>, LedgerUnavailable> {
        self.ask("read the audit log", |books| {
            books.audit.iter().filter(|line| line.sequence > after).take(limit as usize).cloned().collect()
        })
    }
}

#[async_trait]
impl TransactionStore for MemoryLedger {
    async fn store_transaction(&self, transaction: StoredTransaction) -> Result<(), RecordError> {
        self.with("store a transaction", |books| {
            if let Some(known) = books.transactions.iter().find(|t| t.hash == transaction.hash) {
                let same = known.raw == transaction.raw && known.payment == transaction.payment;
                return if same { Ok(()) } else { Err(unavailable("store a transaction", "its hash is taken").into()) };
            }
            if let Some(id) = transaction.payment {
                let started = PaymentEvent::SettlementStarted { transaction: transaction.hash.clone() };
                books.apply(id, &[started], &self.instance, transaction.stored_at)?;
            }
            books.transactions.push(transaction);
            Ok(())
        })
    }

    async fn open_transactions(&self, lane: &LaneKey) -> Result<Vec<StoredTransaction>, LedgerUnavailable> {
        self.ask("list open transactions", |books| {
            let open = |t: &&StoredTransaction| t.lane == *lane && t.fate == TransactionFate::Open;
            let mut found: Vec<_> = books.transactions.iter().filter(open).cloned().collect();
            found.sort_by_key(|t| t.nonce);
            found
        })
    }

    async fn transactions_of(&self, payment: PaymentId) -> Result<Vec<StoredTransaction>, LedgerUnavailable> {
        self.ask("list a payment's transactions", |books| {
            books.transactions.iter().filter(|t| t.payment == Some(payment)).cloned().collect()
        })
    }

    async fn transaction(&self, hash: &TransactionId) -> Result<Option<StoredTransaction>, LedgerUnavailable> {
        self.ask("look a transaction up", |books| books.transactions.iter().find(|t| t.hash == *hash).cloned())
    }

    async fn last_nonce(&self, lane: &LaneKey) -> Result<Option<u64>, LedgerUnavailable> {
        self.ask("read a lane's last nonce", |books| {
            books.transactions.iter().filter(|t| t.lane == *lane).map(|t| t.nonce).max()
        })
    }

    async fn close_transaction(&self, hash: &TransactionId, fate: TransactionFate) -> Result<(), LedgerUnavailable> {
        self.ask("close a transaction", |books| match books.transactions.iter_mut().find(|t| t.hash == *hash) {
            Some(transaction) => {
                transaction.fate = fate;
                Ok(())
            }
            None => Err(unavailable("close a transaction", "there is no such transaction")),
        })?
    }
}

impl Books {
    /// Does all of `work`, or nothing if it fails.
    fn whole<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, LedgerUnavailable>,
    ) -> Result<T, LedgerUnavailable> {
        let before = self.clone();
        work(self).inspect_err(|_| *self = before)
    }

    fn made_by(&self, credential: CredentialDigest) -> Option<&Payment> {
        self.payments.values().find(|p| p.digest() == credential && p.state != PaymentState::Void)
    }

    fn settled_on(&self, network: &Network) -> impl Iterator<Item = &Payment> {
        self.payments.values().filter(move |p| p.state == PaymentState::Settled && p.amount.asset.network() == network)
    }

    fn holding(&self, proof: &ProofId) -> Option<&Payment> {
        self.payments.values().find(|p| p.proof == *proof && p.state != PaymentState::Void)
    }

    fn apply(
        &mut self,
        id: PaymentId,
        events: &[PaymentEvent],
        by: &InstanceId,
        now: Timestamp,
    ) -> Result<Payment, RecordError> {
        let mut payment = self.payments.get(&id).ok_or(RecordError::NotFound { id })?.clone();
        let mut decisions = Vec::new();
        for event in events {
            let before = payment.state;
            payment.apply(event, by, now)?;
            decisions.extend(AuditEntry::of(before, &payment, event, now));
        }
        self.append(&decisions)?;
        self.payments.insert(id, payment.clone());
        Ok(payment)
    }

    fn append(&mut self, entries: &[AuditEntry]) -> Result<(), LedgerUnavailable> {
        for entry in entries {
            let line = entry.after(self.audit.last());
            let line = line.map_err(|e| LedgerUnavailable { operation: "write the audit log", source: e.into() })?;
            self.audit.push(line);
        }
        Ok(())
    }
}

fn matches(payment: &Payment, filter: &PaymentFilter) -> bool {
    fn fits<T: PartialEq>(wanted: Option<&T>, found: Option<&T>) -> bool {
        wanted.is_none() || wanted == found
    }
    let payer_fits = filter.payer.as_ref().is_none_or(|wanted| {
        let account = payment.payer.as_str();
        let address = account.rsplit(':').next().unwrap_or(account);
        wanted.eq_ignore_ascii_case(account) || wanted.eq_ignore_ascii_case(address)
    });
    payer_fits
        && fits(filter.id.as_ref(), Some(&payment.id))
        && fits(filter.state.as_ref(), Some(&payment.state))
        && fits(filter.route.as_ref(), Some(&payment.binding.route))
        && fits(filter.network.as_ref(), Some(payment.amount.asset.network()))
        && fits(filter.transaction.as_ref(), payment.transaction.as_ref())
        && filter.credit.is_none_or(|CreditIs::Owed| payment.credit > 0 && payment.state == PaymentState::Settled)
        && filter.since.is_none_or(|since| payment.created_at >= since)
        && filter.until.is_none_or(|until| payment.created_at < until)
        && filter.before.is_none_or(|before| payment.id < before)
}

fn unavailable(operation: &'static str, why: &'static str) -> LedgerUnavailable {
    LedgerUnavailable { operation, source: why.into() }
}
