//! What was refused before any claim, on its way into the audit log: in a queue of its own, so that a flood of bad claims neither waits
//! for the books nor fills them.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use farebox_core::{AuditEntry, AuditOutcome, AuditSubject, Timestamp, ports::Ledger, shortened};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Entries that wait to be written, while the books do not answer.
const WAITING_MAX: usize = 4_096;

/// Refusals of one minute that are told apart by payer and transaction. A stranger makes as many keys as he likes, and what is in the
/// log stays there: all others are counted by their reason alone.
const TOLD_APART_MAX: usize = 128;

/// The same of one hour, whatever their minutes: nothing is ever deleted from the log, so this bounds what strangers add to it in a day.
const TOLD_APART_PER_HOUR_MAX: u32 = 600;

/// Bytes of a path and query that are kept of a refused request; of a longer one the beginning, and a digest of it all.
const RESOURCE_BYTES_MAX: usize = 256;

/// Reasons of one minute that are counted.
const REASONS_MAX: usize = 64;

/// How long repeats of one refusal are counted together.
const FOLD_FOR: Duration = Duration::from_secs(60);

/// How often what waits is written.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// The refusals that are not in the books yet.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    pending: Mutex<Pending>,
    /// How many there was no room for, not told yet.
    dropped: AtomicU64,
    /// The same since the start.
    dropped_in_all: AtomicU64,
}

#[derive(Debug, Default)]
struct Pending {
    waiting: Vec<AuditEntry>,
    folded: HashMap<FoldKey, Folded>,
    /// When the hour began, and how many were told apart in it.
    hour: (Option<Timestamp>, u32),
}

impl Pending {
    /// Whether a refusal of a new kind may still be told apart.
    fn has_room(&mut self, at: Timestamp) -> bool {
        if self.hour.0.is_none_or(|began| at.since(began) >= Duration::from_secs(3600)) {
            self.hour = (Some(at), 0);
        }
        self.folded.len() < TOLD_APART_MAX && self.hour.1 < TOLD_APART_PER_HOUR_MAX
    }
}

/// Refusals of one kind: of this payer and transaction, for this reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct FoldKey {
    payer: Option<String>,
    reason: Option<Cow<'static, str>>,
    transaction: Option<String>,
}

impl FoldKey {
    fn of(entry: &AuditEntry) -> Self {
        Self {
            payer: entry.subject.payer.as_ref().map(|payer| payer.as_str().to_ascii_lowercase()),
            reason: entry.reason.clone(),
            transaction: entry.subject.transaction.as_ref().map(|hash| hash.as_str().to_owned()),
        }
    }
}

/// Repeats of a refusal that was noted at `since`.
#[derive(Debug)]
struct Folded {
    since: Timestamp,
    /// The last of them, with their count.
    repeats: Option<AuditEntry>,
}

impl Refused {
    /// Notes a refusal: the first of its kind at once, its repeats of the next minute as one.
    pub(crate) fn note(&self, subject: AuditSubject, reason: Cow<'static, str>, at: Timestamp) {
        let subject = AuditSubject { resource: shortened(subject.resource, RESOURCE_BYTES_MAX), ..subject };
        let mut entry = AuditEntry { at, outcome: AuditOutcome::Rejected, reason: Some(reason), subject, count: 1 };
        let mut key = FoldKey::of(&entry);
        let mut pending = self.pending.lock();
        let known = pending.folded.contains_key(&key);
        if !known && pending.has_room(at) {
            pending.hour.1 += 1;
        } else if !known {
            (entry.subject.payer, entry.subject.transaction, entry.subject.amount) = (None, None, None);
            key = FoldKey::of(&entry);
        }
        if let Some(folded) = pending.folded.get_mut(&key) {
            let count = folded.repeats.as_ref().map_or(0, |repeats| repeats.count);
            folded.repeats = Some(AuditEntry { count: count.saturating_add(1), ..entry });
            return;
        }
        if pending.waiting.len() >= WAITING_MAX || pending.folded.len() >= TOLD_APART_MAX + REASONS_MAX {
            self.count_dropped(1);
            return;
        }
        pending.folded.insert(key, Folded { since: at, repeats: None });
        pending.waiting.push(entry);
    }

    /// Writes until `closed`, and then what is left.
    pub(crate) async fn keep_writing(
        self: Arc<Self>,
        ledger: Arc<dyn Ledger>,
        now: impl Fn() -> Timestamp,
        closed: CancellationToken,
    ) {
        while closed.run_until_cancelled(tokio::time::sleep(WRITE_EVERY)).await.is_some() {
            self.write(&*ledger, Some(now())).await;
        }
        self.write(&*ledger, None).await;
    }

    /// Writes what waits, and the repeats whose minute is over; all of them without a time. What the books do not take waits on.
    async fn write(&self, ledger: &dyn Ledger, now: Option<Timestamp>) {
        let entries = self.due(now);
        if !entries.is_empty()
            && let Err(error) = ledger.audit(entries.clone()).await
        {
            warn!(error = &error as &dyn std::error::Error, "refusals are not in the audit log yet");
            self.put_back(entries);
        }
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            warn!(dropped, "more refusals than the audit log's queue has room for: so many are not in the log");
        }
    }

    fn due(&self, now: Option<Timestamp>) -> Vec<AuditEntry> {
        let mut pending = self.pending.lock();
        let mut due = std::mem::take(&mut pending.waiting);
        pending.folded.retain(|_, folded| {
            let over = now.is_none_or(|now| now.since(folded.since) >= FOLD_FOR);
            if over {
                due.extend(folded.repeats.take());
            }
            !over
        });
        due
    }

    /// How many entries wait to be written.
    pub(crate) fn waiting(&self) -> usize {
        self.pending.lock().waiting.len()
    }

    /// How many there was no room for, since the start.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped_in_all.load(Ordering::Relaxed)
    }

    fn count_dropped(&self, count: u64) {
        self.dropped.fetch_add(count, Ordering::Relaxed);
        self.dropped_in_all.fetch_add(count, Ordering::Relaxed);
    }

    fn put_back(&self, mut entries: Vec<AuditEntry>) {
        let mut pending = self.pending.lock();
        let later = std::mem::take(&mut pending.waiting);
        entries.extend(later);
        let over = entries.len().saturating_sub(WAITING_MAX);
        entries.truncate(WAITING_MAX);
        pending.waiting = entries;
        self.count_dropped(over as u64);
    }
}

#[cfg(test)]
mod tests {
    use farebox_core::{InstanceId, Payer, RailName, RequestId, RouteId, TransactionId};
    use farebox_testkit::{Fault, MemoryLedger, TestPayer, test_network};
    use serde_json::Value;

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix_s(1_700_000_000);

    fn subject(payer: u8, request: u32) -> AuditSubject {
        let payer: Payer = TestPayer(payer).account(&test_network());
        AuditSubject {
            payment: None,
            request: RequestId::new(format!("req_{request}")),
            rail: RailName::Transfer,
            route: RouteId::new("paid"),
            method: "GET".into(),
            resource: "/x".into(),
            payer: Some(payer),
            amount: None,
            credit: None,
            transaction: Some(TransactionId::new("0x1")),
        }
    }

    fn books() -> MemoryLedger {
        MemoryLedger::new(InstanceId::new("1"), Duration::ZERO)
    }

    fn lines(ledger: &MemoryLedger) -> Vec<Value> {
        ledger.audit_log().iter().map(|line| serde_json::from_str(&line.text).unwrap()).collect()
    }

    #[tokio::test]
    async fn the_first_is_written_at_once_and_repeats_as_one() {
        let (refused, ledger) = (Refused::default(), books());
        for request in 0..1_000 {
            refused.note(subject(1, request), "underpaid".into(), NOW);
        }
        refused.note(subject(2, 7), "underpaid".into(), NOW);
        refused.note(subject(1, 8), "wrong_asset".into(), NOW);
        refused.write(&ledger, Some(NOW.plus(WRITE_EVERY))).await;
        assert_eq!(lines(&ledger).len(), 3, "{:?}", lines(&ledger));
        refused.write(&ledger, Some(NOW.plus(FOLD_FOR))).await;
        let written = lines(&ledger);
        assert_eq!(written.len(), 4);
        assert_eq!((&written[3]["count"], &written[3]["request"]), (&999.into(), &"req_999".into()));
        // A new minute, a new first.
        refused.note(subject(1, 9), "underpaid".into(), NOW.plus(FOLD_FOR));
        refused.write(&ledger, Some(NOW.plus(FOLD_FOR))).await;
        assert_eq!(lines(&ledger).len(), 5);
    }

    #[tokio::test]
    async fn a_stranger_with_many_keys_fills_no_log() {
        let (refused, ledger) = (Refused::default(), books());
        for number in 0..100_000u32 {
            let [.., payer] = number.to_le_bytes();
            let transaction = Some(TransactionId::new(format!("0x{number:x}")));
            refused.note(AuditSubject { transaction, ..subject(payer, number) }, "terms_mismatch".into(), NOW);
        }
        refused.write(&ledger, None).await;
        let written = lines(&ledger);
        assert_eq!(written.len(), TOLD_APART_MAX + 2);
        let counted: u64 = written.iter().map(|line| line["count"].as_u64().unwrap_or(1)).sum();
        assert_eq!(counted, 100_000, "every refusal is counted");
        assert_eq!(written[TOLD_APART_MAX + 1].get("payer"), None);
    }

    #[tokio::test]
    async fn a_day_of_strange_keys_and_long_queries_stays_small() {
        let (refused, ledger) = (Refused::default(), books());
        for minute in 0..24 * 60u64 {
            let at = NOW.plus(Duration::from_secs(60 * minute));
            for key in 0..200u64 {
                let transaction = Some(TransactionId::new(format!("0x{minute:x}-{key:x}")));
                let resource = format!("/x?{minute}{}", "q".repeat(7_500));
                refused.note(
                    AuditSubject { transaction, resource, ..subject(1, 1) },
                    "payment_code_expired".into(),
                    at,
                );
            }
            refused.write(&ledger, Some(at)).await;
        }
        let bytes: usize = ledger.audit_log().iter().map(|line| line.text.len()).sum();
        assert!(bytes < 16 << 20, "{bytes} bytes in a day");
    }

    #[tokio::test]
    async fn what_the_books_do_not_take_waits_and_what_has_no_room_is_counted() {
        let (refused, ledger) = (Refused::default(), books());
        ledger.plan(0, Fault::FailBefore);
        refused.note(subject(1, 1), "underpaid".into(), NOW);
        refused.write(&ledger, Some(NOW)).await;
        assert_eq!(lines(&ledger).len(), 0);
        for kind in 0..1_000 {
            refused.note(subject(2, 2), format!("code_{kind}").into(), NOW);
        }
        let room = TOLD_APART_MAX + REASONS_MAX;
        assert_eq!(refused.dropped.load(Ordering::Relaxed), 1_001 - room as u64);
        refused.write(&ledger, None).await;
        assert_eq!(lines(&ledger).len(), room);
        assert_eq!(refused.dropped.load(Ordering::Relaxed), 0, "told, and counted anew");
        assert_eq!(refused.dropped(), 1_001 - room as u64, "and in all");
        assert!(refused.pending.lock().folded.is_empty());
    }
}
