//! The audit log: every decision that moved or refused money, in a chain of hashes.
//!
//! Each entry is one line of JSON that names the SHA-256 of the line before it, so that a line which is altered, removed or put in
//! between shows, with no more than `sha256sum`. What was cut off at the end shows only against a copy, or the last hash, kept
//! elsewhere.

use std::borrow::Cow;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    Amount, Delivery, Payer, Payment, PaymentEvent, PaymentId, PaymentState, RailName, RequestId, RouteId, Timestamp,
    Token, TransactionId,
};

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditOutcome {
    /// A proof was taken, for a request to be served; or taken over, for another try.
    Claimed,
    /// A settling transaction was signed.
    Settling,
    /// The money is ours.
    Settled,
    /// Money came that buys nothing: it is the payer's credit.
    Credited,
    /// The answer was handed over.
    Delivered,
    /// Whether the money moved is not known.
    InDoubt,
    /// A reorganisation took the money back.
    Reversed,
    /// A claimed payment will never be settled.
    Refused,
    /// A claim was given back; nothing was charged.
    Released,
    /// A credential of a known payer was refused before any claim.
    Rejected,
    /// The operator ended a token.
    Revoked,
}

/// Whom and what a decision was about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditSubject {
    /// The payment, once there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payment: Option<PaymentId>,
    /// The request.
    pub request: RequestId,
    /// The rail.
    pub rail: RailName,
    /// The route.
    pub route: RouteId,
    /// The method as sent.
    pub method: String,
    /// Canonical path, and the query as sent.
    pub resource: String,
    /// Who pays, as far as that is proven.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payer: Option<Payer>,
    /// How much of what.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amount: Option<Amount>,
    /// How many of the amount's asset are credit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credit: Option<String>,
    /// The transaction that moves or moved the money.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transaction: Option<TransactionId>,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// When.
    pub at: Timestamp,
    /// What was decided.
    pub outcome: AuditOutcome,
    /// Why, as a stable code, if it was a no.
    pub reason: Option<Cow<'static, str>>,
    /// About what.
    pub subject: AuditSubject,
    /// How many like it this entry stands for; 1 or more.
    pub count: u32,
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditLine {
    /// 1 for the first.
    pub sequence: u64,
    /// A JSON object without line breaks.
    pub text: String,
}

/// What is wrong with a log, at the first line where something is.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AuditProblem {
    /// A line is missing, or stands at another place.
    #[error("entry {expected} is missing: the next one is {found}")]
    Missing {
        /// The number that should come.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// A line does not follow from the one before it: one of the two was altered.
    #[error("entry {sequence} does not follow from the one before it: one of the two was altered")]
    Broken {
        /// The later of the two.
        sequence: u64,
    },
    /// A line is not one that we write.
    #[error("entry {sequence} cannot be read")]
    Unreadable {
        /// Its place.
        sequence: u64,
    },
}

impl AuditEntry {
    /// What `event` decided, told by the state before it and the row after it; nothing for an event that decides nothing, or only says
    /// again what was known: a doubt is told when it begins, and not every time that somebody looks.
    #[must_use]
    pub fn of(before: PaymentState, after: &Payment, event: &PaymentEvent, at: Timestamp) -> Option<Self> {
        let outcome = match event {
            PaymentEvent::Settled { .. } | PaymentEvent::Doubted if before == after.state => return None,
            PaymentEvent::SettlementStarted { .. } => AuditOutcome::Settling,
            PaymentEvent::Settled { .. } => AuditOutcome::Settled,
            PaymentEvent::Delivered { .. } => AuditOutcome::Delivered,
            PaymentEvent::Doubted => AuditOutcome::InDoubt,
            PaymentEvent::Reversed => AuditOutcome::Reversed,
            PaymentEvent::Released { .. } | PaymentEvent::LeaseExpired => AuditOutcome::Released,
            PaymentEvent::Refused { .. } if after.state == PaymentState::Void => AuditOutcome::Released,
            PaymentEvent::Refused { .. } => AuditOutcome::Refused,
            PaymentEvent::RunEnded | PaymentEvent::BrokeOff => return None,
        };
        Some(Self::about(after, outcome, at))
    }

    /// That `after` was claimed, or taken over. Money that was there before it was claimed is ours from its claim on.
    #[must_use]
    pub fn claimed(after: &Payment, at: Timestamp) -> Self {
        let outcome = match (after.delivery, after.state, after.runs) {
            (Delivery::Credited, _, _) => AuditOutcome::Credited,
            (_, PaymentState::Settled, 1) => AuditOutcome::Settled,
            _ => AuditOutcome::Claimed,
        };
        Self::about(after, outcome, at)
    }

    /// That more came for `after` than was known `before`.
    #[must_use]
    pub fn raised(before: &Payment, after: &Payment, at: Timestamp) -> Self {
        let bought = before.delivery == Delivery::Credited && after.delivery != Delivery::Credited;
        Self::about(after, if bought { AuditOutcome::Settled } else { AuditOutcome::Credited }, at)
    }

    /// That the operator ended `token`.
    #[must_use]
    pub fn revoked(token: &Token, at: Timestamp) -> Self {
        Self::about_token(token, AuditOutcome::Revoked, at)
    }

    /// That `count` calls of `token` were given back, since whoever made them is gone.
    #[must_use]
    pub fn returned(token: &Token, count: u32, at: Timestamp) -> Self {
        let reason = Some(Cow::Borrowed("lease_expired"));
        Self { reason, count, ..Self::about_token(token, AuditOutcome::Released, at) }
    }

    fn about_token(token: &Token, outcome: AuditOutcome, at: Timestamp) -> Self {
        let sold = &token.sold;
        let subject = AuditSubject {
            payment: token.payment,
            request: sold.request.clone(),
            rail: RailName::L402,
            route: sold.route.clone(),
            method: sold.method.clone(),
            resource: sold.resource.clone(),
            payer: Some(sold.payer()),
            amount: None,
            credit: None,
            transaction: None,
        };
        Self { at, outcome, reason: None, subject, count: 1 }
    }

    fn about(payment: &Payment, outcome: AuditOutcome, at: Timestamp) -> Self {
        let subject = AuditSubject {
            payment: Some(payment.id),
            request: payment.request.clone(),
            rail: payment.rail,
            route: payment.binding.route.clone(),
            method: payment.binding.method.clone(),
            resource: payment.binding.resource.clone(),
            payer: Some(payment.payer.clone()),
            amount: Some(payment.amount.clone()),
            credit: (payment.credit > 0).then(|| payment.credit.to_string()),
            transaction: payment.transaction.clone(),
        };
        Self { at, outcome, reason: payment.reason.clone(), subject, count: 1 }
    }

    /// The line that this entry makes after `last`, the newest there is.
    ///
    /// # Errors
    /// As [`AuditEntry::line`].
    pub fn after(&self, last: Option<&AuditLine>) -> Result<AuditLine, serde_json::Error> {
        let (sequence, previous) = AuditLine::next(last);
        self.line(sequence, &previous)
    }

    /// The line that this entry makes after one with the hash `previous`; 64 zeros before the first.
    ///
    /// # Errors
    /// Never in practice: every member is text or a number.
    pub fn line(&self, sequence: u64, previous: &str) -> Result<AuditLine, serde_json::Error> {
        let time = jiff::Timestamp::from_millisecond(i64::try_from(self.at.unix_ms()).unwrap_or(i64::MAX))
            .map_or_else(|_| self.at.unix_ms().to_string(), |time| format!("{time:.3}"));
        let on_file = OnFile {
            sequence,
            time,
            outcome: self.outcome,
            reason: self.reason.as_deref(),
            subject: &self.subject,
            count: (self.count > 1).then_some(self.count),
            previous,
        };
        Ok(AuditLine { sequence, text: serde_json::to_string(&on_file)? })
    }
}

impl AuditLine {
    /// What the next line names as `previous`: SHA-256 of the text, lower-case hex.
    #[must_use]
    pub fn hash(&self) -> String {
        hex::encode(Sha256::digest(self.text.as_bytes()))
    }

    /// What comes before the first line.
    pub const NOTHING_BEFORE: &str = "0000000000000000000000000000000000000000000000000000000000000000";

    /// Number and `previous` of the line that comes after `last`.
    fn next(last: Option<&Self>) -> (u64, String) {
        match last {
            Some(last) => (last.sequence.saturating_add(1), last.hash()),
            None => (1, Self::NOTHING_BEFORE.to_owned()),
        }
    }

    /// A line as it stands in a file.
    ///
    /// # Errors
    /// [`AuditProblem::Unreadable`], at `place` counted from 1.
    pub fn read(text: &str, place: u64) -> Result<Self, AuditProblem> {
        let head: Head<'_> = serde_json::from_str(text).map_err(|_| AuditProblem::Unreadable { sequence: place })?;
        Ok(Self { sequence: head.sequence, text: text.to_owned() })
    }

    fn previous(&self) -> Result<String, AuditProblem> {
        let head: Head<'_> =
            serde_json::from_str(&self.text).map_err(|_| AuditProblem::Unreadable { sequence: self.sequence })?;
        if head.sequence != self.sequence {
            return Err(AuditProblem::Broken { sequence: self.sequence });
        }
        Ok(head.previous.into_owned())
    }
}

/// Checks that `lines` follow `last`, the line before them, and one another. Gives the last of them all.
///
/// # Errors
/// [`AuditProblem`], at the first line where something is wrong.
pub fn verify_audit(
    last: Option<AuditLine>,
    lines: impl IntoIterator<Item = AuditLine>,
) -> Result<Option<AuditLine>, AuditProblem> {
    let mut last = last;
    for line in lines {
        let (expected, before) = AuditLine::next(last.as_ref());
        if line.sequence != expected {
            return Err(AuditProblem::Missing { expected, found: line.sequence });
        }
        if line.previous()? != before {
            return Err(AuditProblem::Broken { sequence: line.sequence });
        }
        last = Some(line);
    }
    Ok(last)
}

#[derive(Serialize)]
struct OnFile<'a> {
    sequence: u64,
    time: String,
    outcome: AuditOutcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(flatten)]
    subject: &'a AuditSubject,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u32>,
    previous: &'a str,
}

#[derive(serde::Deserialize)]
struct Head<'a> {
    sequence: u64,
    #[serde(borrow)]
    previous: Cow<'a, str>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{AssetId, EvmAddress, Network};

    fn any_entry() -> impl Strategy<Value = AuditEntry> {
        let outcomes = prop::sample::select(vec![
            AuditOutcome::Claimed,
            AuditOutcome::Credited,
            AuditOutcome::Reversed,
            AuditOutcome::Rejected,
        ]);
        // Any text: what is in it is a stranger's.
        let texts = (any::<String>(), any::<String>(), any::<String>(), prop::option::of(any::<String>()));
        let numbers = (any::<u64>(), any::<u128>(), 1..5u32, any::<bool>());
        (outcomes, texts, numbers).prop_map(
            |(outcome, (method, resource, route, reason), (at, units, count, known))| {
                let network = Network::evm(8453);
                let subject = AuditSubject {
                    payment: known.then(|| PaymentId::new(Timestamp::from_unix_s(1), [7; 10])),
                    request: RequestId::new("req_1"),
                    rail: RailName::Transfer,
                    route: RouteId::new(route),
                    method,
                    resource,
                    payer: known.then(|| Payer::new(&network, "0x01")),
                    amount: known
                        .then(|| Amount { units, asset: AssetId::erc20(network.clone(), EvmAddress([3; 20])) }),
                    credit: (!known).then(|| units.to_string()),
                    transaction: known.then(|| TransactionId::new("0xaa")),
                };
                AuditEntry { at: Timestamp::from_unix_ms(at), outcome, reason: reason.map(Cow::Owned), subject, count }
            },
        )
    }

    fn any_log(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<AuditLine>> {
        prop::collection::vec(any_entry(), length).prop_map(|entries| {
            let mut lines: Vec<AuditLine> = Vec::new();
            for entry in entries {
                lines.push(entry.after(lines.last()).unwrap());
            }
            lines
        })
    }

    /// As somebody with an export reads it.
    fn read(texts: &[String]) -> Result<Option<AuditLine>, AuditProblem> {
        let lines: Result<Vec<_>, _> = (1..).zip(texts).map(|(place, text)| AuditLine::read(text, place)).collect();
        verify_audit(None, lines?)
    }

    fn texts(log: &[AuditLine]) -> Vec<String> {
        log.iter().map(|line| line.text.clone()).collect()
    }

    proptest! {
        #[test]
        fn a_log_as_it_was_written_is_whole_in_any_pages(log in any_log(0..8), page in 1..4usize) {
            let whole = read(&texts(&log)).unwrap();
            prop_assert_eq!(whole.as_ref(), log.last());
            let mut last = None;
            for page in log.chunks(page) {
                last = verify_audit(last, page.to_vec()).unwrap();
            }
            prop_assert_eq!(last.as_ref(), log.last());
        }

        #[test]
        fn a_line_is_one_line_of_json_that_names_the_hash_of_the_one_before(log in any_log(1..4)) {
            let mut previous = AuditLine::NOTHING_BEFORE.to_owned();
            for line in &log {
                prop_assert!(!line.text.contains(['\n', '\r']));
                let value: serde_json::Value = serde_json::from_str(&line.text).unwrap();
                prop_assert_eq!(&value["sequence"], line.sequence);
                prop_assert_eq!(&value["previous"], &previous);
                previous = hex::encode(Sha256::digest(&line.text));
                prop_assert_eq!(&previous, &line.hash());
            }
        }

        #[test]
        fn a_line_that_is_removed_before_the_last_is_missed(log in any_log(2..8), at in any::<prop::sample::Index>()) {
            let at = at.index(log.len() - 1);
            let mut texts = texts(&log);
            texts.remove(at);
            let (expected, found) = (at as u64 + 1, at as u64 + 2);
            prop_assert_eq!(read(&texts), Err(AuditProblem::Missing { expected, found }));
        }

        #[test]
        fn a_line_twice_or_in_another_place_is_seen(log in any_log(2..8), at in any::<prop::sample::Index>(), to in any::<prop::sample::Index>()) {
            let (at, to) = (at.index(log.len()), to.index(log.len()));
            let mut twice = texts(&log);
            twice.insert(to, twice[at].clone());
            prop_assert!(read(&twice).is_err());
            let mut swapped = texts(&log);
            swapped.swap(at, to);
            prop_assert_eq!(read(&swapped).is_ok(), at == to);
        }

        /// Any one character of any line but the last, made any other, removed, or put in.
        #[test]
        fn a_line_that_is_altered_before_the_last_is_seen(
            log in any_log(2..6),
            line in any::<prop::sample::Index>(),
            place in any::<prop::sample::Index>(),
            with in any::<Option<char>>(),
            replace in any::<bool>(),
        ) {
            let mut texts = texts(&log);
            let line = line.index(log.len() - 1);
            let mut chars: Vec<char> = texts[line].chars().collect();
            let place = place.index(chars.len());
            if replace { chars.remove(place); }
            if let Some(with) = with { chars.insert(place, with); }
            let altered: String = chars.into_iter().collect();
            prop_assume!(altered != texts[line]);
            texts[line] = altered;
            prop_assert!(read(&texts).is_err(), "{}", texts[line]);
        }

        /// A thief who writes the rest of the log anew makes a good one: only what is kept elsewhere tells.
        #[test]
        fn what_happens_at_the_end_shows_only_against_a_hash_kept_elsewhere(log in any_log(2..6), cut in any::<prop::sample::Index>()) {
            let kept = log.last().unwrap().hash();
            let mut short = texts(&log);
            short.truncate(cut.index(log.len() - 1) + 1);
            let last = read(&short).unwrap().unwrap();
            prop_assert!(last.hash() != kept);
            let mut altered = texts(&log);
            let end = altered.last_mut().unwrap();
            *end = end.replacen("\"rail\":\"transfer\"", "\"rail\":\"x402\"", 1);
            prop_assert!(read(&altered).unwrap().unwrap().hash() != kept);
        }
    }

    #[test]
    fn a_line_that_names_its_place_or_its_forerunner_twice_is_not_read() {
        let zeros = AuditLine::NOTHING_BEFORE;
        let good = format!(r#"{{"sequence":1,"previous":"{zeros}"}}"#);
        assert!(AuditLine::read(&good, 1).is_ok());
        for wrong in [
            "".to_owned(),
            "null".to_owned(),
            "[]".to_owned(),
            format!("{good} {good}"),
            good.replace("1,", "1,\"sequence\":2,"),
            good.replace("1,", "-1,"),
            good.replace("1,", "1.0,"),
            good.replace("1,", "\"1\","),
            good.replace("1,", &format!("1,\"previous\":\"{zeros}\",")),
            good.replace("previous", "Previous"),
        ] {
            assert_eq!(AuditLine::read(&wrong, 5), Err(AuditProblem::Unreadable { sequence: 5 }), "{wrong}");
        }
    }
}
