//! The audit log's table: lines as core makes them, appended by the writer in the commit of what they tell.
//!
//! Triggers refuse every change of a line and every gap. They stop accidents, not somebody with the file in hand, who can drop
//! them: the chain of hashes shows what such a hand did.

use farebox_core::{AuditEntry, AuditLine};
use rusqlite::{Connection, Row, params};

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

/// Lines after number `after`, in order.
pub(crate) fn lines(connection: &Connection, after: u64, limit: u32) -> Result<Vec<AuditLine>, StoreError> {
    let sql = "SELECT sequence, line FROM audit WHERE sequence > ?1 ORDER BY sequence LIMIT ?2";
    many(connection, sql, params![Unsigned(after), limit], line)
}

fn line(row: &Row<'_>) -> Result<AuditLine, CorruptRow> {
    let mut fields = Fields::of("audit", row);
    Ok(AuditLine { sequence: fields.number("sequence")?, text: fields.text("line")? })
}
