//! The statements of draws. A held token's call is one of them before the upstream and one after it, so the common way touches as little as it
//! can: the token's first columns, its count, and the draw's own row. All of it runs inside the writer's transaction.

use farebox_core::{
    Answer, AuditEntry, Binding, CallerId, CredentialDigest, Draw, DrawEnd, DrawId, DrawPermit, DrawRuling, Drawn,
    Grant, InstanceId, InvoiceState, KeptAnswers, KeyUse, Network, PaidBefore, PassAccount, PassId, PassPayment, Payer,
    PaymentEvent, PaymentHash, PaymentId, Timestamp,
};
use rusqlite::{Connection, Row, params};

use crate::{
    audit,
    query::{self, PRUNED_PER_WRITE, StoreError, many, one},
    row::{self, CorruptRow, Fields, Unsigned},
    tokens,
};

/// What of a token its draws need.
struct Pass {
    sequence: i64,
    payment_hash: PaymentHash,
    account: PassAccount,
    payment: Option<PaymentId>,
    network: Network,
}

const PASS: &str = "SELECT sequence, payment_hash, state, calls, time_ms, used, broken, valid_until, revoked_at, payment, network \
     FROM tokens WHERE pass = ?1";

/// Reads a row of [`PASS`].
fn pass(row: &Row<'_>) -> Result<Pass, CorruptRow> {
    let mut fields = Fields::of("tokens", row);
    let sequence = fields.get("sequence")?;
    let payment_hash = PaymentHash(fields.get("payment_hash")?);
    let invoice = fields.with("state", tokens::invoice_state)?;
    let grant = tokens::grant(&mut fields)?;
    let (used, broken) = (fields.number("used")?, fields.number("broken")?);
    let valid_until = fields.time("valid_until")?;
    let revoked_at = fields.optional_time("revoked_at")?;
    let payment = tokens::payment_id(&mut fields)?;
    let network = fields.parsed("network")?;
    let account = PassAccount { grant, invoice, valid_until, revoked_at, used, broken };
    Ok(Pass { sequence, payment_hash, account, payment, network })
}

/// Route, method and resource as one digest: what a key is good for.
fn called_for(binding: &Binding) -> [u8; 32] {
    let parts = [binding.route.as_str(), &binding.method, &binding.resource].map(str::as_bytes);
    *CredentialDigest::of(&parts).as_bytes()
}

pub(crate) fn draw(connection: &Connection, draw: &Draw) -> Result<Drawn, StoreError> {
    let found = one(connection, PASS, [draw.pass.0], pass)?.filter(|pass| pass.payment_hash == draw.proved);
    let Some(mut pass) = found else { return Ok(Drawn::Unknown) };
    let paid_before = if pass.payment.is_some() { PaidBefore::Known } else { PaidBefore::Unheard };
    if pass.account.invoice != InvoiceState::Settled {
        hear_preimage(connection, draw, &mut pass)?;
    }
    let mut key = key_use(connection, pass.sequence, draw)?;
    let mut ruling = pass.account.rule(key.told, draw.now);
    if ruling == DrawRuling::NoneLeft && return_lapsed(connection, draw, &mut pass)? {
        key = key_use(connection, pass.sequence, draw)?;
        ruling = pass.account.rule(key.told, draw.now);
    }
    let Pass { sequence, payment, network, .. } = &pass;
    let payment = payment
        .map(|id| PassPayment { id, payer: Payer::new(network, &draw.pass.to_string()) })
        .ok_or(StoreError::Unbooked(draw.pass));
    let permit = |payment, left| DrawPermit::granted(draw.pass, draw.id, payment, left, paid_before);
    Ok(match ruling {
        DrawRuling::Take { left } => {
            let mut account = pass.account;
            account.take();
            count(connection, *sequence, &account)?;
            insert(connection, *sequence, draw)?;
            Drawn::Granted(permit(payment?, left))
        }
        DrawRuling::Look => Drawn::Granted(permit(payment?, None)),
        DrawRuling::Replay => Drawn::Replayed { payment: payment?, answer: key.answer },
        DrawRuling::NoneLeft if under_way(connection, *sequence)? => Drawn::Busy,
        DrawRuling::NoneLeft => Drawn::Spent,
        DrawRuling::Foreign => Drawn::Foreign,
        DrawRuling::Expired => Drawn::Expired,
        DrawRuling::Revoked => Drawn::Revoked,
        DrawRuling::Underpaid => Drawn::Underpaid,
    })
}

/// The caller showed the preimage of an invoice that is not known to be settled.
fn hear_preimage(connection: &Connection, draw: &Draw, pass: &mut Pass) -> Result<(), StoreError> {
    let stored = tokens::token(connection, draw.pass)?;
    let mut stored = stored.ok_or(StoreError::NoToken(draw.pass))?;
    tokens::hear(connection, &mut stored, draw.payment, draw.now, farebox_core::Token::hear_preimage)?;
    pass.account.invoice = stored.token.state;
    pass.payment = stored.token.payment;
    Ok(())
}

struct Key {
    told: KeyUse,
    answer: Option<Answer>,
}

fn key_use(connection: &Connection, token: i64, draw: &Draw) -> Result<Key, StoreError> {
    let told = |told| Ok(Key { told, answer: None });
    let Some(key) = &draw.key else { return told(KeyUse::NoKey) };
    let wanted = called_for(&draw.binding);
    let sql = "SELECT token, called_for FROM draws WHERE token = ?1 AND key = ?2";
    let under_way: Option<[u8; 32]> = one(connection, sql, params![token, key.as_str()], |row| {
        let mut fields = Fields::of("draws", row);
        let _: i64 = fields.get("token")?;
        fields.get("called_for")
    })?;
    if let Some(called_for) = under_way {
        return told(if called_for == wanted { KeyUse::UnderWay } else { KeyUse::Foreign });
    }
    let sql = "SELECT sequence, called_for, status IS NOT NULL, status, headers, body FROM draw_answers \
               WHERE token = ?1 AND key = ?2 AND expires_at > ?3";
    let kept = one(connection, sql, params![token, key.as_str(), Unsigned::from(draw.now)], |row| {
        let mut fields = Fields::of("draw_answers", row);
        let _: i64 = fields.get("sequence")?;
        let called_for: [u8; 32] = fields.get("called_for")?;
        let kept: bool = fields.get("status")?;
        let answer = kept.then(|| row::answer_fields(&mut fields)).transpose()?;
        Ok((called_for, answer))
    })?;
    match kept {
        None => told(KeyUse::New),
        Some((called_for, _)) if called_for != wanted => told(KeyUse::Foreign),
        Some((_, answer)) => Ok(Key { told: KeyUse::Delivered, answer }),
    }
}

fn under_way(connection: &Connection, token: i64) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM draws WHERE token = ?1)";
    Ok(connection.prepare_cached(sql)?.query_row([token], |row| row.get(0))?)
}

fn count(connection: &Connection, token: i64, account: &PassAccount) -> Result<(), StoreError> {
    let sql = "UPDATE tokens SET used = ?2, broken = ?3 WHERE sequence = ?1";
    connection.prepare_cached(sql)?.execute(params![token, account.used, account.broken])?;
    Ok(())
}

fn insert(connection: &Connection, token: i64, draw: &Draw) -> Result<(), StoreError> {
    let sql = "INSERT INTO draws (token, draw, key, called_for, holder, lease_until) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    connection.prepare_cached(sql)?.execute(params![
        token,
        draw.id.0,
        draw.key.as_ref().map(CallerId::as_str),
        draw.key.as_ref().map(|_| called_for(&draw.binding)),
        draw.holder.as_str(),
        Unsigned::from(draw.now.plus(draw.lease)),
    ])?;
    Ok(())
}

/// Takes back the draws of a pass that other processes have left lying. Whether there were any.
fn return_lapsed(connection: &Connection, draw: &Draw, pass: &mut Pass) -> Result<bool, StoreError> {
    let sql = "DELETE FROM draws WHERE token = ?1 AND lease_until <= ?2 AND holder <> ?3";
    let by = params![pass.sequence, Unsigned::from(draw.now), draw.holder.as_str()];
    let lapsed = connection.prepare_cached(sql)?.execute(by)?;
    let lapsed = u32::try_from(lapsed).unwrap_or(u32::MAX);
    if lapsed > 0 {
        pass.account = give_back(connection, draw.pass, lapsed, draw.now)?;
    }
    Ok(lapsed > 0)
}

/// Uncounts draws whose rows are gone.
fn give_back(connection: &Connection, id: PassId, draws: u32, now: Timestamp) -> Result<PassAccount, StoreError> {
    let stored = tokens::token(connection, id)?.ok_or(StoreError::NoToken(id))?;
    let mut account = stored.account();
    for _ in 0..draws {
        account.end(&DrawEnd::Returned);
    }
    count(connection, stored.sequence, &account)?;
    audit::append(connection, &[AuditEntry::returned(&stored.token, draws, now)])?;
    Ok(account)
}

/// Takes back what every process but `me` had drawn: none of them handed out its last byte, or the draw would have been ended. Gives how
/// many.
pub(crate) fn return_draws_of_others(
    connection: &Connection,
    me: &InstanceId,
    now: Timestamp,
) -> Result<u32, StoreError> {
    let sql = "SELECT t.sequence, t.pass, count(*) FROM draws d JOIN tokens t ON t.sequence = d.token \
               WHERE d.holder <> ?1 GROUP BY t.sequence ORDER BY t.sequence";
    let of_passes: Vec<(PassId, u32)> = many(connection, sql, [me.as_str()], |row| {
        let mut fields = Fields::of("tokens", row);
        let _: i64 = fields.get("sequence")?;
        Ok((PassId(fields.get("pass")?), fields.number("draws")?))
    })?;
    connection.execute("DELETE FROM draws WHERE holder <> ?1", [me.as_str()])?;
    let mut returned = 0;
    for (pass, draws) in of_passes {
        give_back(connection, pass, draws, now)?;
        returned += draws;
    }
    Ok(returned)
}

pub(crate) fn end(
    connection: &Connection,
    (id, draw): (PassId, DrawId),
    end: &DrawEnd,
    by: &InstanceId,
    (now, answers_until): (Timestamp, Timestamp),
) -> Result<(), StoreError> {
    let Some(mut pass) = one(connection, PASS, [id.0], pass)? else { return Ok(()) };
    let sql = "DELETE FROM draws WHERE token = ?1 AND draw = ?2 RETURNING token, key, called_for";
    let ended = one(connection, sql, params![pass.sequence, draw.0], |row| {
        let mut fields = Fields::of("draws", row);
        let _: i64 = fields.get("token")?;
        let key: Option<String> = fields.optional("key")?;
        let called_for: Option<[u8; 32]> = fields.optional("called_for")?;
        Ok(key.zip(called_for))
    })?;
    if ended.is_some() {
        let before = pass.account;
        pass.account.end(end);
        if pass.account != before {
            count(connection, pass.sequence, &pass.account)?;
        }
    }
    let DrawEnd::Delivered { answer } = end else { return Ok(()) };
    let looked = ended.is_none() && matches!(pass.account.grant, Grant::For(_));
    if (ended.is_some() || looked)
        && let Some(payment) = pass.payment
    {
        deliver(connection, payment, by, now)?;
    }
    if let Some(Some((key, called_for))) = ended {
        let answer = kept_answers(connection, pass.sequence, now)?.room_for(answer.as_ref());
        keep_answer(connection, pass.sequence, (&key, called_for), answer, answers_until)?;
        prune_answers(connection, now, PRUNED_PER_WRITE)?;
    }
    Ok(())
}

/// The first delivered call delivers the payment. No line of the audit log: it would be one for every call of one.
fn deliver(connection: &Connection, id: PaymentId, by: &InstanceId, now: Timestamp) -> Result<(), StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM payments WHERE id = ?1 AND delivery = 'pending')";
    let pending: bool = connection.prepare_cached(sql)?.query_row([id.to_string()], |row| row.get(0))?;
    if pending {
        let mut payment = query::payment(connection, id)?;
        payment.apply(&PaymentEvent::Delivered { answer: None }, by, now)?;
        query::update(connection, &payment)?;
    }
    Ok(())
}

fn kept_answers(connection: &Connection, token: i64, now: Timestamp) -> Result<KeptAnswers, StoreError> {
    let sql = "SELECT count(*), coalesce(sum(length(body)), 0) FROM draw_answers \
               WHERE token = ?1 AND status IS NOT NULL AND expires_at > ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let (answers, body_bytes) =
        statement.query_row(params![token, Unsigned::from(now)], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(KeptAnswers { answers, body_bytes })
}

fn keep_answer(
    connection: &Connection,
    token: i64,
    (key, called_for): (&str, [u8; 32]),
    answer: Option<&Answer>,
    until: Timestamp,
) -> Result<(), StoreError> {
    // Over one whose time is over and that was not deleted yet.
    let sql = "INSERT INTO draw_answers (token, key, called_for, status, headers, body, expires_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) \
               ON CONFLICT (token, key) DO UPDATE SET called_for = excluded.called_for, status = excluded.status, \
               headers = excluded.headers, body = excluded.body, expires_at = excluded.expires_at";
    connection.prepare_cached(sql)?.execute(params![
        token,
        key,
        called_for,
        answer.map(|answer| answer.status),
        answer.map(row::headers_json).transpose()?,
        answer.map(|answer| &answer.body),
        Unsigned::from(until),
    ])?;
    Ok(())
}

/// Deletes at most `limit` answers whose time is over.
pub(crate) fn prune_answers(connection: &Connection, now: Timestamp, limit: u32) -> Result<usize, StoreError> {
    let sql = "DELETE FROM draw_answers WHERE sequence IN \
               (SELECT sequence FROM draw_answers WHERE expires_at <= ?1 LIMIT ?2)";
    Ok(connection.prepare_cached(sql)?.execute(params![Unsigned::from(now), limit])?)
}
