//! What outstanding bills rest on: the offers that a route was billed at, and the keys that quotes are sealed with.

use std::time::Duration;

use farebox_core::{
    Offer, RouteId, Timestamp,
    ports::{QuoteKey, QuoteKeyRotation},
};
use rusqlite::{Connection, Row, params};

use crate::{
    query::{StoreError, many},
    row::{CorruptRow, Fields, Unsigned},
};

pub(crate) fn exchange_offers(
    connection: &Connection,
    route: &RouteId,
    current: &[Offer],
    now: Timestamp,
) -> Result<Vec<Offer>, StoreError> {
    let known = many(
        connection,
        "SELECT sequence, offer, retired_at FROM offers WHERE route = ?1 ORDER BY sequence",
        [route.as_str()],
        known_offer,
    )?;
    for (index, offer) in current.iter().enumerate() {
        // A caller may name an offer twice; it is one offer all the same.
        if known.iter().any(|k| k.offer.same_terms(offer)) || current[..index].iter().any(|c| c.same_terms(offer)) {
            continue;
        }
        let sql = "INSERT INTO offers (route, offer) VALUES (?1, ?2)";
        connection.prepare_cached(sql)?.execute(params![route.as_str(), serde_json::to_string(offer)?])?;
    }
    let mut owed = Vec::new();
    for KnownOffer { sequence, offer, retired_at } in known {
        if current.iter().any(|c| c.same_terms(&offer)) {
            retire(connection, sequence, None)?;
            continue;
        }
        let at = retired_at.unwrap_or(now);
        if now < at.plus(Duration::from_secs(offer.max_timeout_s)) {
            retire(connection, sequence, Some(at))?;
            owed.push(offer);
        } else {
            connection.prepare_cached("DELETE FROM offers WHERE sequence = ?1")?.execute([sequence])?;
        }
    }
    Ok(owed)
}

struct KnownOffer {
    sequence: i64,
    offer: Offer,
    retired_at: Option<Timestamp>,
}

fn known_offer(row: &Row<'_>) -> Result<KnownOffer, CorruptRow> {
    let mut fields = Fields::of("offers", row);
    let sequence = fields.number("sequence")?;
    let offer = fields.json("offer")?;
    Ok(KnownOffer { sequence, offer, retired_at: fields.optional_time("retired_at")? })
}

fn retire(connection: &Connection, sequence: i64, at: Option<Timestamp>) -> Result<(), StoreError> {
    let sql = "UPDATE offers SET retired_at = ?2 WHERE sequence = ?1";
    connection.prepare_cached(sql)?.execute(params![sequence, at.map(Unsigned::from)])?;
    Ok(())
}

pub(crate) fn quote_keys(
    connection: &Connection,
    rotation: &QuoteKeyRotation,
    now: Timestamp,
) -> Result<Vec<QuoteKey>, StoreError> {
    let before = many(connection, "SELECT id, secret, since FROM quote_keys", [], quote_key)?;
    let keys = rotation.apply(before.clone(), now);
    for old in before.iter().filter(|old| !keys.contains(old)) {
        connection.execute("DELETE FROM quote_keys WHERE id = ?1", [old.id])?;
    }
    for new in keys.iter().filter(|new| !before.contains(new)) {
        let sql = "INSERT INTO quote_keys (id, secret, since) VALUES (?1, ?2, ?3)";
        connection.execute(sql, params![new.id, new.secret, Unsigned::from(new.since)])?;
    }
    Ok(keys)
}

/// The keys as they are, newest first.
pub(crate) fn stored_quote_keys(connection: &Connection) -> Result<Vec<QuoteKey>, StoreError> {
    many(connection, "SELECT id, secret, since FROM quote_keys ORDER BY id DESC", [], quote_key)
}

fn quote_key(row: &Row<'_>) -> Result<QuoteKey, CorruptRow> {
    let mut fields = Fields::of("quote_keys", row);
    let (id, secret) = (fields.number("id")?, fields.get("secret")?);
    Ok(QuoteKey { id, secret, since: Timestamp::from_unix_ms(fields.number("since")?) })
}
