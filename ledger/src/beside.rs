//! Writing the books from outside the gateway, while it runs or not.

use std::{fs, path::Path};

use farebox_core::{PassId, Timestamp, Token, ports::LedgerUnavailable};
use rusqlite::{OpenFlags, TransactionBehavior};

use crate::{
    OpenError,
    file::{connect, connect_writer},
    query::StoreError,
    schema, tokens,
};

/// Why an operator's change was not made. It may or may not be on disk if it is [`ChangeError::Unavailable`].
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The ledger cannot be opened, or has an older schema.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It was not written; another program may hold the file.
    #[error(transparent)]
    Unavailable(#[from] LedgerUnavailable),
}

impl ChangeError {
    /// A stable name.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Open(open) => open.code(),
            Self::Unavailable(_) => "ledger_unavailable",
        }
    }
}

/// Revokes a token in the ledger at `path`, durably, as [`farebox_core::ports::TokenBooks::revoke`] does. A gateway that has the ledger open sees
/// it at its next draw: every draw reads the token's row, and every line of the audit log the one before it, within a transaction.
///
/// Blocking: for command lines, not for a server.
///
/// # Errors
/// [`ChangeError`]. `Ok(None)` says that there is no such token.
pub fn revoke_token(path: &Path, pass: PassId, now: Timestamp) -> Result<Option<Token>, ChangeError> {
    fs::metadata(path).map_err(|source| OpenError::File { path: path.to_owned(), source })?;
    // Before anything that a writer's connection changes: the file may be another program's.
    schema::check_current(&connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?)?;
    let mut connection = connect_writer(path)?;
    let mut revoke = || {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let revoked = tokens::revoke(&transaction, pass, now)?;
        transaction.commit()?;
        Ok(revoked)
    };
    revoke().map_err(|error: StoreError| LedgerUnavailable { operation: "revoke a token", source: error.into() }.into())
}
