//! The audit log's table: lines as core makes them, appended by the writer in the commit of what they tell.
//!
//! Triggers refuse every change of a line and every gap. They stop accidents, not somebody with the file in hand, who can drop
//! them: the chain of hashes shows what such a hand did.

use farebox_core::{AuditEntry, AuditLine, PaymentId, Timestamp};
use rusqlite::{Connection, Row, ToSql, params, params_from_iter};

use crate::{
    query::{StoreError, many, one},
    row::{CorruptRow, Fields, Unsigned},
};

/// Appends the lines of `entries`, within the caller's transaction: one connection writes, so each line follows the one before it.
pub(crate) fn append(connection: &Connection, entries: &[AuditEntry]) -> Result<(), StoreError> {
    if entries.is_empty() {
        return Ok(());
    }
    let newest = "SELECT sequence, line FROM audit ORDER BY sequence DESC LIMIT 1";
    let mut last = one(connection, newest, [], line)?;
    let mut insert =
        connection.prepare_cached("INSERT INTO audit (sequence, at, payment, line) VALUES (?1, ?2, ?3, ?4)")?;
    for entry in entries {
        let next = entry.after(last.as_ref())?;
        let payment = entry.subject.payment.map(|id| id.to_string());
        insert.execute(params![Unsigned(next.sequence), Unsigned::from(entry.at), payment, next.text])?;
        last = Some(next);
    }
    Ok(())
}

/// Which lines of the audit log to read. `None` means any.
#[derive(Clone, Copy, Debug, Default)]
pub struct AuditFilter {
    /// After the line with this number; 0: from the first.
    pub after: u64,
    /// Decided at or after.
    pub since: Option<Timestamp>,
    /// Decided before.
    pub until: Option<Timestamp>,
    /// About this payment.
    pub payment: Option<PaymentId>,
}

/// Lines after number `after`, in order.
pub(crate) fn lines(connection: &Connection, after: u64, limit: u32) -> Result<Vec<AuditLine>, StoreError> {
    matching(connection, &AuditFilter { after, ..AuditFilter::default() }, limit)
}

/// Lines that pass `filter`, in order.
pub(crate) fn matching(
    connection: &Connection,
    filter: &AuditFilter,
    limit: u32,
) -> Result<Vec<AuditLine>, StoreError> {
    let mut sql = "SELECT sequence, line FROM audit WHERE sequence > ?".to_owned();
    let mut values: Vec<Box<dyn ToSql>> = vec![Box::new(Unsigned(filter.after))];
    if let Some(since) = filter.since {
        sql.push_str(" AND at >= ?");
        values.push(Box::new(Unsigned::from(since)));
    }
    if let Some(until) = filter.until {
        sql.push_str(" AND at < ?");
        values.push(Box::new(Unsigned::from(until)));
    }
    if let Some(payment) = filter.payment {
        sql.push_str(" AND payment = ?");
        values.push(Box::new(payment.to_string()));
    }
    sql.push_str(" ORDER BY sequence LIMIT ?");
    values.push(Box::new(limit));
    many(connection, &sql, params_from_iter(values), line)
}

fn line(row: &Row<'_>) -> Result<AuditLine, CorruptRow> {
    let mut fields = Fields::of("audit", row);
    Ok(AuditLine { sequence: fields.number("sequence")?, text: fields.text("line")? })
}
