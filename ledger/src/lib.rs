//! The books on SQLite: one file, one gateway process that writes it, any number of readers.
//!
//! The rules of a payment's life are core's; this crate keeps rows and makes them durable. Every change waits in one queue
//! for one writer thread, which commits whatever is waiting as a group, so that many callers share one flush to disk.
//!
//! Each decision's line of the audit log is in the commit of what it tells, and names the hash of the newest line that the same transaction
//! sees, so that an operator who revokes a token beside a running gateway adds to the same chain. The table refuses
//! changes, which stops accidents; what somebody does with the file in hand shows in the chain, and at its end only against a hash that was
//! kept elsewhere.

mod audit;
mod audit_file;
mod beside;
mod bills;
mod draws;
mod file;
mod query;
mod reader;
mod reads;
mod row;
mod schema;
mod sqlite;
mod token_books;
mod tokens;
mod writer;

pub use audit::AuditFilter;
pub use beside::{ChangeError, revoke_token};
pub use file::OpenError;
pub use query::AssetName;
pub use reader::SqliteReader;
pub use row::CorruptRow;
pub use sqlite::{SqliteLedger, SqliteOptions};

#[cfg(test)]
mod tests;
