//! Reading the books from outside the gateway, whether it runs or not.

use std::{fs, path::Path};

use farebox_core::{
    AuditLine, PassId, Payment, StoredTransaction, Token,
    ports::{LedgerUnavailable, PaymentFilter, QuoteKey, TokenFilter},
};
use rusqlite::{Connection, OpenFlags};

use crate::{
    AssetName, AuditFilter, OpenError, audit, bills,
    file::connect,
    query::{self, StoreError},
    schema, tokens,
};

/// A view of a ledger that cannot change it. Each call sees all that was committed before it.
///
/// Blocking: for command lines, not for a server.
#[derive(Debug)]
pub struct SqliteReader {
    connection: Connection,
}

impl SqliteReader {
    /// Opens the ledger at `path`, which must exist and have today's schema.
    ///
    /// SQLite itself may have to write beside the file, in its `-wal` and `-shm`: the user needs write access to the folder
    /// unless a gateway is running.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        fs::metadata(path).map_err(|source| OpenError::File { path: path.to_owned(), source })?;
        // Not SQLITE_OPEN_READ_ONLY: without a running gateway such a connection cannot recover the log that a crash left,
        // and leaves an empty one behind. query_only refuses our own writes just as well.
        let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.pragma_update(None, "query_only", true)?;
        schema::check_current(&connection)?;
        Ok(Self { connection })
    }

    /// As [`farebox_core::ports::Ledger::list`].
    ///
    /// # Errors
    /// Unavailable.
    pub fn list(&self, filter: &PaymentFilter) -> Result<Vec<Payment>, LedgerUnavailable> {
        query::list(&self.connection, filter).map_err(unavailable("list payments"))
    }

    /// As [`farebox_core::ports::TransactionStore::transactions_of`].
    ///
    /// # Errors
    /// Unavailable.
    pub fn transactions_of(&self, payment: &Payment) -> Result<Vec<StoredTransaction>, LedgerUnavailable> {
        query::transactions_of(&self.connection, payment.id).map_err(unavailable("list a payment's transactions"))
    }

    /// As [`farebox_core::ports::TokenBooks::tokens`].
    ///
    /// # Errors
    /// Unavailable.
    pub fn tokens(&self, filter: &TokenFilter) -> Result<Vec<Token>, LedgerUnavailable> {
        tokens::list(&self.connection, filter).map_err(unavailable("list tokens"))
    }

    /// Tokens whose pass lies between these two, both included, in the order of passes; at most `limit`.
    ///
    /// # Errors
    /// Unavailable.
    pub fn tokens_between(&self, first: PassId, last: PassId, limit: u32) -> Result<Vec<Token>, LedgerUnavailable> {
        tokens::between(&self.connection, first, last, limit).map_err(unavailable("look a token up"))
    }

    /// Lines of the audit log that pass `filter`, in order, at most `limit`.
    ///
    /// # Errors
    /// Unavailable.
    pub fn audit_lines(&self, filter: &AuditFilter, limit: u32) -> Result<Vec<AuditLine>, LedgerUnavailable> {
        audit::matching(&self.connection, filter, limit).map_err(unavailable("read the audit log"))
    }

    /// The keys that quotes are sealed with, newest first.
    ///
    /// # Errors
    /// Unavailable.
    pub fn quote_keys(&self) -> Result<Vec<QuoteKey>, LedgerUnavailable> {
        bills::stored_quote_keys(&self.connection).map_err(unavailable("read quote keys"))
    }

    /// Symbols and decimals of the assets that the gateway was ever configured with.
    ///
    /// # Errors
    /// Unavailable.
    pub fn asset_names(&self) -> Result<Vec<AssetName>, LedgerUnavailable> {
        query::asset_names(&self.connection).map_err(unavailable("list assets"))
    }
}

fn unavailable(operation: &'static str) -> impl FnOnce(StoreError) -> LedgerUnavailable {
    move |error| LedgerUnavailable { operation, source: error.into() }
}
