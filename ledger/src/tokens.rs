//! The statements of tokens: sold, paid, listed, revoked. Those that write run inside the writer's transaction.

use std::{sync::Arc, time::Duration};

use farebox_core::{
    AuditEntry, Grant, Invoice, InvoiceState, Network, NewToken, PassAccount, PassId, PaymentHash, PaymentId,
    RequestId, RootKey, RouteId, SoldToken, Timestamp, Token,
    ports::{NewsCursor, NewsRead, NotedNews, TokenFilter},
};
use rusqlite::{Connection, Row, ToSql, params, params_from_iter};

use crate::{
    audit,
    query::{self, PAGE_ROWS, ROWS_MAX, StoreError, many, one},
    row::{CorruptRow, Fields, Unsigned},
};

/// How long a token whose invoice was never paid is kept after its time: longer than a node that was down tells of a payment.
const UNPAID_KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Such tokens deleted with each write of news: more than twice those whose end one sweep of a node notes, so that what a flood left goes
/// faster than it came, and few, so that no write waits long.
const UNPAID_PRUNED_PER_NEWS: u32 = 256;

/// The same with each token that is sold: more go than come, even while no news are written.
const UNPAID_PRUNED_PER_SALE: u32 = 4;

/// A token and the row it stands in.
pub(crate) struct StoredToken {
    pub(crate) sequence: i64,
    /// See [`PassAccount::broken`].
    pub(crate) broken: u32,
    pub(crate) token: Token,
}

impl StoredToken {
    pub(crate) const fn account(&self) -> PassAccount {
        let Token { sold, state, used, revoked_at, .. } = &self.token;
        PassAccount {
            grant: sold.grant,
            invoice: *state,
            valid_until: sold.valid_until,
            revoked_at: *revoked_at,
            used: *used,
            broken: self.broken,
        }
    }
}

const TOKEN_COLUMNS: &str = "sequence, pass, payment_hash, state, calls, time_ms, used, broken, valid_until, revoked_at, payment, network, \
     received_msat, amount_msat, created_at, expires_at, node, route, method, resource, request, root_key, bolt11";

/// Reads a row of [`TOKEN_COLUMNS`].
fn stored(row: &Row<'_>) -> Result<StoredToken, CorruptRow> {
    let mut fields = Fields::of("tokens", row);
    let sequence = fields.get("sequence")?;
    let pass = PassId(fields.get("pass")?);
    let payment_hash = PaymentHash(fields.get("payment_hash")?);
    let state = fields.with("state", invoice_state)?;
    let grant = grant(&mut fields)?;
    let (used, broken) = (fields.number("used")?, fields.number("broken")?);
    let valid_until = fields.time("valid_until")?;
    let revoked_at = fields.optional_time("revoked_at")?;
    let payment = payment_id(&mut fields)?;
    let network: Network = fields.parsed("network")?;
    let received_msat = fields.number("received_msat")?;
    let amount_msat = fields.number("amount_msat")?;
    let (created_at, expires_at) = (fields.time("created_at")?, fields.time("expires_at")?);
    let node: Arc<str> = fields.text("node")?.into();
    let route = RouteId::new(fields.text("route")?);
    let (method, resource) = (fields.text("method")?, fields.text("resource")?);
    let request = RequestId::new(fields.text("request")?);
    let root_key = fields.optional("root_key")?.map(RootKey::new);
    let bolt11: Arc<str> = fields.text("bolt11")?.into();
    let invoice = Invoice { payment_hash, bolt11, amount_msat, created_at, expires_at };
    let sold =
        SoldToken { pass, root_key, invoice, network, node, route, method, resource, request, grant, valid_until };
    Ok(StoredToken { sequence, broken, token: Token { sold, state, received_msat, payment, used, revoked_at } })
}

pub(crate) fn invoice_state(name: &str) -> Option<InvoiceState> {
    InvoiceState::ALL.into_iter().find(|known| known.as_str() == name)
}

/// Reads `calls, time_ms`.
pub(crate) fn grant(fields: &mut Fields<'_, '_>) -> Result<Grant, CorruptRow> {
    let calls: Option<u32> = fields.optional("calls")?;
    let time_ms: Option<i64> = fields.optional("time_ms")?;
    let calls = calls.and_then(std::num::NonZeroU32::new).map(Grant::Calls);
    let time = time_ms.and_then(|ms| u64::try_from(ms).ok()).map(|ms| Grant::For(Duration::from_millis(ms)));
    match (calls, time) {
        (Some(grant), None) | (None, Some(grant)) => Ok(grant),
        _ => Err(fields.wrong("calls", "calls or time, one of them")),
    }
}

/// Reads `payment`.
pub(crate) fn payment_id(fields: &mut Fields<'_, '_>) -> Result<Option<PaymentId>, CorruptRow> {
    fields.optional_with("payment", |text| text.parse().ok())
}

pub(crate) fn token(connection: &Connection, pass: PassId) -> Result<Option<StoredToken>, StoreError> {
    let sql = format!("SELECT {TOKEN_COLUMNS} FROM tokens WHERE pass = ?1");
    one(connection, &sql, [pass.0], stored)
}

fn token_of(connection: &Connection, invoice: PaymentHash) -> Result<Option<StoredToken>, StoreError> {
    let sql = format!("SELECT {TOKEN_COLUMNS} FROM tokens WHERE payment_hash = ?1");
    one(connection, &sql, [invoice.0], stored)
}

/// Stores a token, at the time at which its invoice was made. Storing the same again changes nothing: a caller that was told `Unavailable` may find out by repeating.
pub(crate) fn sell(connection: &Connection, new: NewToken) -> Result<(), StoreError> {
    let Token { sold, state, received_msat, .. } = Token::first(new);
    let known = match token(connection, sold.pass)? {
        None => token_of(connection, sold.invoice.payment_hash)?,
        known => known,
    };
    if let Some(known) = known {
        return if known.token.sold == sold { Ok(()) } else { Err(StoreError::TokenTaken(sold.pass)) };
    }
    let (calls, time_ms) = match sold.grant {
        Grant::Calls(calls) => (Some(calls.get()), None),
        Grant::For(time) => (None, Some(Unsigned(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))),
    };
    let invoice = &sold.invoice;
    let sql = "INSERT INTO tokens (pass, payment_hash, state, calls, time_ms, used, broken, valid_until, network, received_msat, \
               amount_msat, created_at, expires_at, node, route, method, resource, request, root_key, bolt11) \
               VALUES (?1, ?2, ?3, ?4, ?5, 0, 0, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)";
    connection.prepare_cached(sql)?.execute(params![
        sold.pass.0,
        invoice.payment_hash.0,
        state.as_str(),
        calls,
        time_ms,
        Unsigned::from(sold.valid_until),
        sold.network.as_str(),
        msat(received_msat)?,
        msat(invoice.amount_msat)?,
        Unsigned::from(invoice.created_at),
        Unsigned::from(invoice.expires_at),
        &*sold.node,
        sold.route.as_str(),
        sold.method,
        sold.resource,
        sold.request.as_str(),
        sold.root_key.as_ref().map(RootKey::bytes),
        &*invoice.bolt11,
    ])?;
    prune_unpaid(connection, invoice.created_at, UNPAID_PRUNED_PER_SALE)?;
    Ok(())
}

/// Money is never cut to what fits.
fn msat(msat: u64) -> Result<i64, StoreError> {
    i64::try_from(msat).map_err(|source| StoreError::TooMuch { msat, source })
}

/// Writes what was heard of the token's invoice, and books what came for it: `heard` is what the row says so far.
pub(crate) fn hear(
    connection: &Connection,
    stored: &mut StoredToken,
    payment: PaymentId,
    now: Timestamp,
    hear: impl FnOnce(&mut Token),
) -> Result<(), StoreError> {
    let before = stored.token.clone();
    let token = &mut stored.token;
    hear(token);
    let known = token.payment.map(|id| query::payment(connection, id)).transpose()?;
    if let Some(due) = token.payment_due(known.as_ref(), payment, now) {
        let entry = match &known {
            None => {
                query::insert(connection, &due)?;
                AuditEntry::claimed(&due, now)
            }
            Some(known) => {
                query::update_money(connection, &due)?;
                AuditEntry::raised(known, &due, now)
            }
        };
        audit::append(connection, &[entry])?;
        token.payment = Some(due.id);
    }
    // A node without a memory of what it told says everything twice.
    if *token != before {
        let sql = "UPDATE tokens SET state = ?2, received_msat = ?3, payment = ?4 WHERE sequence = ?1";
        let payment = token.payment.map(|id| id.to_string());
        let heard = params![stored.sequence, token.state.as_str(), msat(token.received_msat)?, payment];
        connection.prepare_cached(sql)?.execute(heard)?;
    }
    Ok(())
}

pub(crate) fn note_news(
    connection: &Connection,
    news: &[NotedNews],
    read: Option<&NewsRead>,
    now: Timestamp,
) -> Result<Vec<PassId>, StoreError> {
    let mut paid = Vec::new();
    for noted in news {
        let Some(mut stored) = token_of(connection, noted.hash)? else { continue };
        let before = stored.token.state;
        hear(connection, &mut stored, noted.payment, now, |token| token.hear(noted.news))?;
        if stored.token.state == InvoiceState::Settled && before != InvoiceState::Settled {
            paid.push(stored.token.sold.pass);
        }
    }
    if let Some(NewsRead { node, cursor: NewsCursor(cursor) }) = read {
        let sql = "INSERT INTO news_cursors (node, cursor) VALUES (?1, ?2) \
                   ON CONFLICT (node) DO UPDATE SET cursor = excluded.cursor";
        connection.prepare_cached(sql)?.execute(params![&**node, cursor])?;
    }
    prune_unpaid(connection, now, UNPAID_PRUNED_PER_NEWS)?;
    Ok(paid)
}

/// Deletes at most `limit` tokens whose invoices ended long ago and were never paid.
pub(crate) fn prune_unpaid(connection: &Connection, now: Timestamp, limit: u32) -> Result<usize, StoreError> {
    let sql = "DELETE FROM tokens WHERE sequence IN (SELECT sequence FROM tokens \
               WHERE state IN ('expired', 'cancelled') AND expires_at <= ?1 ORDER BY expires_at LIMIT ?2)";
    let ended = Unsigned::from(now.minus(UNPAID_KEPT_FOR));
    Ok(connection.prepare_cached(sql)?.execute(params![ended, limit])?)
}

pub(crate) fn news_cursor(connection: &Connection, node: &str) -> Result<Option<NewsCursor>, StoreError> {
    let sql = "SELECT cursor FROM news_cursors WHERE node = ?1";
    one(connection, sql, [node], |row| Ok(NewsCursor(Fields::of("news_cursors", row).text("cursor")?)))
}

pub(crate) fn unsettled_invoices(
    connection: &Connection,
    node: &str,
    expired_before: Timestamp,
    limit: u32,
) -> Result<Vec<Invoice>, StoreError> {
    let sql = format!(
        "SELECT {TOKEN_COLUMNS} FROM tokens WHERE state IN ('open', 'held') AND node = ?1 AND expires_at < ?2 \
         ORDER BY expires_at, sequence LIMIT ?3"
    );
    let found = many(connection, &sql, params![node, Unsigned::from(expired_before), limit], stored)?;
    Ok(found.into_iter().map(|stored| stored.token.sold.invoice).collect())
}

pub(crate) fn unsettled_elsewhere(
    connection: &Connection,
    node: &str,
    after: Option<(Timestamp, PaymentHash)>,
    limit: u32,
) -> Result<Vec<Invoice>, StoreError> {
    let sql = format!(
        "SELECT {TOKEN_COLUMNS} FROM tokens WHERE state IN ('open', 'held') AND node <> ?1 \
         AND (?2 IS NULL OR (expires_at, payment_hash) > (?2, ?3)) ORDER BY expires_at, payment_hash LIMIT ?4"
    );
    let (over, hash) = after.map(|(over, hash)| (Unsigned::from(over), hash.0)).unzip();
    let found = many(connection, &sql, params![node, over, hash, limit], stored)?;
    Ok(found.into_iter().map(|stored| stored.token.sold.invoice).collect())
}

pub(crate) fn list(connection: &Connection, filter: &TokenFilter) -> Result<Vec<Token>, StoreError> {
    let mut sql = format!("SELECT {TOKEN_COLUMNS} FROM tokens WHERE TRUE");
    let mut values: Vec<Box<dyn ToSql>> = Vec::new();
    if let Some(pass) = filter.pass {
        sql.push_str(" AND pass = ?");
        values.push(Box::new(pass.0));
    }
    if let Some(route) = &filter.route {
        sql.push_str(" AND route = ?");
        values.push(Box::new(route.as_str().to_owned()));
    }
    if let Some(paid) = filter.paid {
        sql.push_str(if paid { " AND state = 'settled'" } else { " AND state <> 'settled'" });
    }
    if let Some(before) = filter.before {
        let from = token(connection, before)?.ok_or(StoreError::NoToken(before))?;
        sql.push_str(" AND sequence < ?");
        values.push(Box::new(from.sequence));
    }
    sql.push_str(" ORDER BY sequence DESC LIMIT ?");
    values.push(Box::new(if filter.limit == 0 { PAGE_ROWS } else { filter.limit.min(ROWS_MAX) }));
    let found = many(connection, &sql, params_from_iter(values), stored)?;
    Ok(found.into_iter().map(|stored| stored.token).collect())
}

pub(crate) fn between(
    connection: &Connection,
    first: PassId,
    last: PassId,
    limit: u32,
) -> Result<Vec<Token>, StoreError> {
    let sql = format!("SELECT {TOKEN_COLUMNS} FROM tokens WHERE pass BETWEEN ?1 AND ?2 ORDER BY pass LIMIT ?3");
    let found = many(connection, &sql, params![first.0, last.0, limit], stored)?;
    Ok(found.into_iter().map(|stored| stored.token).collect())
}

/// Deletes a token's root key. Every draw asks the row, so that it takes effect at once, whoever writes it.
pub(crate) fn revoke(connection: &Connection, pass: PassId, now: Timestamp) -> Result<Option<Token>, StoreError> {
    let Some(StoredToken { sequence, mut token, .. }) = token(connection, pass)? else { return Ok(None) };
    if token.revoked_at.is_none() {
        (token.sold.root_key, token.revoked_at) = (None, Some(now));
        let sql = "UPDATE tokens SET root_key = NULL, revoked_at = ?2 WHERE sequence = ?1";
        connection.prepare_cached(sql)?.execute(params![sequence, Unsigned::from(now)])?;
        audit::append(connection, &[AuditEntry::revoked(&token, now)])?;
    }
    Ok(Some(token))
}
