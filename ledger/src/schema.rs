//! The tables, and how an older file becomes a newer one.

use rusqlite::{Connection, TransactionBehavior};

use crate::OpenError;

/// Marks a file as a Farebox ledger in SQLite's header: `FARE`.
pub(crate) const APPLICATION_ID: i32 = 0x4641_5245;

/// Each entry brings a file from the version before to its own; the first makes an empty file version 1. Released entries
/// never change.
pub(crate) const MIGRATIONS: &[&str] = &[V1, V2, V3];

/// Times are milliseconds since the Unix epoch, amounts decimal text (SQLite's integers end at 2^63).
///
/// The indexes on what is held and what is unresolved are partial, so that payments at rest cost them nothing. The unique
/// index on the proof is what makes a double claim impossible, whatever the code above it does.
const V1: &str = "
CREATE TABLE payments (
    id             TEXT    NOT NULL PRIMARY KEY,
    proof          TEXT    NOT NULL,
    state          TEXT    NOT NULL CHECK (state IN ('claimed', 'settling', 'in_doubt', 'settled', 'refused', 'void')),
    reason         TEXT,
    delivery       TEXT    NOT NULL CHECK (delivery IN ('pending', 'delivered')),
    runs           INTEGER NOT NULL CHECK (runs >= 1),
    rail           TEXT    NOT NULL,
    route          TEXT    NOT NULL,
    method         TEXT    NOT NULL,
    resource       TEXT    NOT NULL,
    caller         TEXT    NOT NULL,
    payer          TEXT    NOT NULL,
    payer_address  TEXT    NOT NULL,
    units          TEXT    NOT NULL CHECK (units <> '' AND units NOT GLOB '*[^0-9]*'),
    asset          TEXT    NOT NULL,
    network        TEXT    NOT NULL,
    pay_to         TEXT    NOT NULL,
    transaction_id TEXT,
    block_number   INTEGER,
    block_hash     TEXT,
    valid_until    INTEGER NOT NULL,
    created_at     INTEGER NOT NULL,
    updated_at     INTEGER NOT NULL,
    holder         TEXT,
    lease_until    INTEGER NOT NULL,
    credential     TEXT    NOT NULL,
    digest         TEXT    NOT NULL
) STRICT;
CREATE UNIQUE INDEX payments_proof ON payments (proof) WHERE state <> 'void';
CREATE INDEX payments_digest ON payments (digest) WHERE state <> 'void';
CREATE INDEX payments_payer ON payments (payer_address, id);
CREATE INDEX payments_transaction ON payments (transaction_id) WHERE transaction_id IS NOT NULL;
CREATE INDEX payments_block ON payments (network, block_number, block_hash) WHERE state = 'settled';
CREATE INDEX payments_unresolved ON payments (updated_at, id) WHERE state IN ('claimed', 'settling', 'in_doubt');
CREATE INDEX payments_held ON payments (holder) WHERE holder IS NOT NULL;

CREATE TABLE transactions (
    sequence   INTEGER PRIMARY KEY,
    hash       TEXT    NOT NULL UNIQUE,
    lane       TEXT    NOT NULL,
    nonce      INTEGER NOT NULL,
    raw        BLOB    NOT NULL,
    payment    TEXT REFERENCES payments (id),
    fate       TEXT    NOT NULL CHECK (fate IN ('open', 'succeeded', 'reverted', 'replaced')),
    stored_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX transactions_lane ON transactions (lane, nonce);
CREATE INDEX transactions_open ON transactions (lane, nonce) WHERE fate = 'open';
CREATE INDEX transactions_payment ON transactions (payment) WHERE payment IS NOT NULL;

CREATE TABLE answers (
    payment    TEXT    NOT NULL PRIMARY KEY REFERENCES payments (id),
    status     INTEGER NOT NULL,
    headers    TEXT    NOT NULL,
    body       BLOB    NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX answers_expiry ON answers (expires_at);

CREATE TABLE offers (
    sequence   INTEGER PRIMARY KEY,
    route      TEXT NOT NULL,
    offer      TEXT NOT NULL,
    retired_at INTEGER
) STRICT;
CREATE INDEX offers_route ON offers (route);

CREATE TABLE assets (
    asset    TEXT    NOT NULL PRIMARY KEY,
    symbol   TEXT    NOT NULL,
    decimals INTEGER NOT NULL CHECK (decimals BETWEEN 0 AND 255)
) STRICT;

CREATE VIEW payments_readable AS
SELECT p.id,
       strftime('%Y-%m-%dT%H:%M:%fZ', p.created_at / 1000.0, 'unixepoch') AS created_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', p.updated_at / 1000.0, 'unixepoch') AS updated_at,
       p.state, p.reason, p.delivery, p.runs, p.rail, p.route, p.method, p.resource, p.payer,
       p.units, a.symbol, a.decimals, p.asset, p.network, p.pay_to, p.transaction_id, p.block_number, p.block_hash, p.holder
FROM payments p LEFT JOIN assets a USING (asset);
";

/// Credit, finality, reversals and request ids; the audit log; the keys of quotes; how far the books were compared with chains.
///
/// A CHECK cannot be changed in place, so the table of payments is made anew; whoever runs this has foreign keys off.
/// What a payment of version 1 had to wait for was in the config alone, so those still to be settled wait for the chain's
/// strongest word. Their request ids were not kept.
///
/// `INSERT OR REPLACE` deletes without a delete trigger, so insertion is guarded too.
const V2: &str = "
DROP VIEW payments_readable;
CREATE TABLE payments_v2 (
    id             TEXT    NOT NULL PRIMARY KEY,
    proof          TEXT    NOT NULL,
    state          TEXT    NOT NULL CHECK (state IN ('claimed', 'settling', 'in_doubt', 'settled', 'refused', 'void')),
    reason         TEXT,
    delivery       TEXT    NOT NULL CHECK (delivery IN ('pending', 'delivered', 'credited')),
    runs           INTEGER NOT NULL CHECK (runs >= 1),
    rail           TEXT    NOT NULL,
    route          TEXT    NOT NULL,
    method         TEXT    NOT NULL,
    resource       TEXT    NOT NULL,
    caller         TEXT    NOT NULL,
    payer          TEXT    NOT NULL,
    payer_address  TEXT    NOT NULL,
    units          TEXT    NOT NULL CHECK (units <> '' AND units NOT GLOB '*[^0-9]*'),
    asset          TEXT    NOT NULL,
    network        TEXT    NOT NULL,
    pay_to         TEXT    NOT NULL,
    transaction_id TEXT,
    block_number   INTEGER,
    block_hash     TEXT,
    valid_until    INTEGER NOT NULL,
    created_at     INTEGER NOT NULL,
    updated_at     INTEGER NOT NULL,
    holder         TEXT,
    lease_until    INTEGER NOT NULL,
    credential     TEXT    NOT NULL,
    digest         TEXT    NOT NULL,
    credit         TEXT    NOT NULL CHECK (credit <> '' AND credit NOT GLOB '*[^0-9]*'),
    finality       TEXT    NOT NULL CHECK (finality IN ('safe', 'finalized') OR (finality GLOB '[1-9]*' AND finality NOT GLOB '*[^0-9]*')),
    reversed       INTEGER NOT NULL CHECK (reversed IN (0, 1)),
    request        TEXT    NOT NULL,
    broken_runs    INTEGER NOT NULL CHECK (broken_runs >= 0)
) STRICT;
INSERT INTO payments_v2 SELECT
    id, proof, state, reason, delivery, runs, rail, route, method, resource, caller, payer, payer_address, units, asset,
    network, pay_to, transaction_id, block_number, block_hash, valid_until, created_at, updated_at, holder, lease_until,
    credential, digest,
    '0', 'finalized', 0, 'unknown', 0
FROM payments;
DROP TABLE payments;
ALTER TABLE payments_v2 RENAME TO payments;
CREATE UNIQUE INDEX payments_proof ON payments (proof) WHERE state <> 'void';
CREATE UNIQUE INDEX payments_digest ON payments (digest) WHERE state <> 'void';
CREATE INDEX payments_payer ON payments (payer_address, id);
CREATE INDEX payments_transaction ON payments (transaction_id) WHERE transaction_id IS NOT NULL;
CREATE INDEX payments_block ON payments (network, block_number, block_hash) WHERE state = 'settled';
CREATE INDEX payments_unresolved ON payments (updated_at, id) WHERE state IN ('claimed', 'settling', 'in_doubt');
CREATE INDEX payments_held ON payments (holder) WHERE holder IS NOT NULL;
CREATE INDEX payments_credit ON payments (payer_address) WHERE credit <> '0';
CREATE INDEX payments_reversed ON payments (payer) WHERE reversed = 1;

CREATE VIEW payments_readable AS
SELECT p.id,
       strftime('%Y-%m-%dT%H:%M:%fZ', p.created_at / 1000.0, 'unixepoch') AS created_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', p.updated_at / 1000.0, 'unixepoch') AS updated_at,
       p.state, p.reason, p.delivery, p.runs, p.rail, p.route, p.method, p.resource, p.payer,
       p.units, p.credit, a.symbol, a.decimals, p.asset, p.network, p.pay_to, p.transaction_id, p.block_number, p.block_hash,
       p.finality, p.reversed, p.request, p.holder
FROM payments p LEFT JOIN assets a USING (asset);

CREATE TABLE audit (
    sequence INTEGER PRIMARY KEY,
    at       INTEGER NOT NULL,
    payment  TEXT,
    line     TEXT    NOT NULL
) STRICT;
CREATE INDEX audit_payment ON audit (payment) WHERE payment IS NOT NULL;
CREATE TRIGGER audit_is_appended_to BEFORE INSERT ON audit
WHEN NEW.sequence IS NOT (SELECT coalesce(max(sequence), 0) + 1 FROM audit)
BEGIN SELECT RAISE(ABORT, 'the audit log has no gaps: entries are appended'); END;
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is not changed: entries are appended'); END;
CREATE TRIGGER audit_is_not_cut BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is not cut: entries are appended'); END;

CREATE TABLE quote_keys (
    id     INTEGER PRIMARY KEY,
    secret BLOB    NOT NULL CHECK (length(secret) = 32),
    since  INTEGER NOT NULL
) STRICT;

CREATE TABLE compared (
    network TEXT    NOT NULL PRIMARY KEY,
    below   INTEGER NOT NULL
) STRICT;
";

/// Tokens with what their draws depend on, the draws that are under way, the answers that keyed draws had, and how far the news of nodes were
/// read.
///
/// A draw's row is there as long as the draw is not ended, so that ending it twice ends it once; a call costs it an insertion and a deletion,
/// and nothing is left behind. `holder` and `lease_until` tell whose draw it is once several gateways share the books.
const V3: &str = "
CREATE TABLE tokens (
    sequence      INTEGER PRIMARY KEY,
    pass          BLOB    NOT NULL UNIQUE CHECK (length(pass) = 32),
    payment_hash  BLOB    NOT NULL UNIQUE CHECK (length(payment_hash) = 32),
    state         TEXT    NOT NULL CHECK (state IN ('open', 'held', 'settled', 'underpaid', 'expired', 'cancelled')),
    calls         INTEGER CHECK (calls >= 1),
    time_ms       INTEGER CHECK (time_ms >= 0),
    used          INTEGER NOT NULL CHECK (used >= 0),
    broken        INTEGER NOT NULL CHECK (broken >= 0),
    valid_until   INTEGER NOT NULL,
    revoked_at    INTEGER,
    payment       TEXT REFERENCES payments (id),
    network       TEXT    NOT NULL,
    received_msat INTEGER NOT NULL CHECK (received_msat >= 0),
    amount_msat   INTEGER NOT NULL CHECK (amount_msat >= 1),
    created_at    INTEGER NOT NULL,
    expires_at    INTEGER NOT NULL,
    node          TEXT    NOT NULL,
    route         TEXT    NOT NULL,
    method        TEXT    NOT NULL,
    resource      TEXT    NOT NULL,
    request       TEXT    NOT NULL,
    root_key      BLOB CHECK (length(root_key) = 32),
    bolt11        TEXT    NOT NULL,
    CHECK ((calls IS NULL) <> (time_ms IS NULL)),
    CHECK ((root_key IS NULL) = (revoked_at IS NOT NULL))
) STRICT;
CREATE INDEX tokens_unsettled ON tokens (node, expires_at) WHERE state IN ('open', 'held');
CREATE INDEX tokens_over ON tokens (expires_at) WHERE state IN ('expired', 'cancelled');

CREATE TABLE draws (
    token       INTEGER NOT NULL REFERENCES tokens (sequence),
    draw        BLOB    NOT NULL CHECK (length(draw) = 16),
    key         TEXT,
    called_for  BLOB,
    holder      TEXT    NOT NULL,
    lease_until INTEGER NOT NULL,
    PRIMARY KEY (token, draw),
    CHECK ((key IS NULL) = (called_for IS NULL))
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX draws_key ON draws (token, key) WHERE key IS NOT NULL;

CREATE TABLE draw_answers (
    sequence   INTEGER PRIMARY KEY,
    token      INTEGER NOT NULL REFERENCES tokens (sequence),
    key        TEXT    NOT NULL,
    called_for BLOB    NOT NULL,
    status     INTEGER,
    headers    TEXT,
    body       BLOB,
    expires_at INTEGER NOT NULL,
    UNIQUE (token, key),
    CHECK ((status IS NULL) = (headers IS NULL) AND (status IS NULL) = (body IS NULL))
) STRICT;
CREATE INDEX draw_answers_expiry ON draw_answers (expires_at);
CREATE INDEX draw_answers_kept ON draw_answers (token, expires_at) WHERE status IS NOT NULL;

CREATE TABLE news_cursors (
    node   TEXT NOT NULL PRIMARY KEY,
    cursor TEXT NOT NULL
) STRICT;

CREATE VIEW tokens_readable AS
SELECT lower(hex(t.pass)) AS pass,
       strftime('%Y-%m-%dT%H:%M:%fZ', t.created_at / 1000.0, 'unixepoch') AS created_at,
       strftime('%Y-%m-%dT%H:%M:%fZ', t.valid_until / 1000.0, 'unixepoch') AS valid_until,
       t.state, t.used, t.calls, t.time_ms / 1000 AS time_s, t.amount_msat, t.received_msat, t.payment, t.route, t.method, t.resource,
       t.request, t.node, lower(hex(t.payment_hash)) AS payment_hash, t.bolt11,
       strftime('%Y-%m-%dT%H:%M:%fZ', t.revoked_at / 1000.0, 'unixepoch') AS revoked_at
FROM tokens t;
";

/// Brings the file to the newest version, all or nothing. Returns the version it had.
pub(crate) fn migrate(connection: &mut Connection, migrations: &[&str]) -> Result<usize, OpenError> {
    let found = version(connection)?;
    if found == migrations.len() {
        return Ok(found);
    }
    check_not_newer(found, migrations.len())?;
    // With foreign keys on, a table that others refer to cannot be made anew. Cannot be changed within a transaction.
    connection.pragma_update(None, "foreign_keys", false)?;
    let migrated = migrate_from(found, connection, migrations);
    connection.pragma_update(None, "foreign_keys", true)?;
    migrated?;
    Ok(found)
}

fn migrate_from(found: usize, connection: &mut Connection, migrations: &[&str]) -> Result<(), OpenError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
    for step in migrations.iter().skip(found) {
        transaction.execute_batch(step)?;
    }
    let dangling: i64 = transaction.query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get(0))?;
    if dangling > 0 {
        return Err(OpenError::Dangling { rows: dangling });
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", i64::try_from(migrations.len()).unwrap_or(i64::MAX))?;
    transaction.commit()?;
    Ok(())
}

/// For readers, which must not migrate.
pub(crate) fn check_current(connection: &Connection) -> Result<(), OpenError> {
    let found = version(connection)?;
    check_not_newer(found, MIGRATIONS.len())?;
    if found == MIGRATIONS.len() { Ok(()) } else { Err(OpenError::Older { found, expected: MIGRATIONS.len() }) }
}

const fn check_not_newer(found: usize, known: usize) -> Result<(), OpenError> {
    if found > known { Err(OpenError::Newer { found, known }) } else { Ok(()) }
}

/// 0 for an empty file; an error for a database of somebody else.
fn version(connection: &Connection) -> Result<usize, OpenError> {
    let application: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let objects: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let empty = application == 0 && version == 0 && objects == 0;
    match usize::try_from(version) {
        Ok(version) if empty || application == APPLICATION_ID => Ok(version),
        _ => Err(OpenError::NotALedger { source: None }),
    }
}
