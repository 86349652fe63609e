//! Every statement, as functions on a connection. Those that write run inside the writer's transaction.

use std::{collections::BTreeMap, num::TryFromIntError, time::Duration};

use farebox_core::{
    Amount, AmountError, Answer, AssetId, AuditEntry, BlockRef, Claim, Claimed, Contest, CredentialDigest,
    IllegalEvent, InstanceId, LaneKey, Network, PassId, Payer, Payment, PaymentEvent, PaymentId, Permit, ProofId,
    StoredTransaction, Timestamp, TransactionFate, TransactionId,
    ports::{CreditIs, PaymentFilter},
};
use rusqlite::{Connection, OptionalExtension as _, Params, Row, ToSql, params, params_from_iter};

use crate::{
    audit,
    row::{
        self, CorruptRow, Fields, PAYMENT_COLUMNS, TRANSACTION_COLUMNS, Unsigned, address_of, block_hash_text,
        credential_digest, delivery_name, fate_name,
    },
};

/// Rows per page when a filter does not say.
pub(crate) const PAGE_ROWS: u32 = 100;

/// The most rows that one call returns; a caller that wants more pages with `before`.
pub(crate) const ROWS_MAX: u32 = 1_000;

/// Ended answers deleted with each new one: more than one, so that the table shrinks, and few, so that no write waits long.
pub(crate) const PRUNED_PER_WRITE: u32 = 8;

/// How far a payment's id may lie from its `created_at`; both come from one `now` in practice. Ids have an index, times do not.
const ID_SLACK: Duration = Duration::from_secs(24 * 60 * 60);

/// An asset as people know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssetName {
    /// Which.
    pub asset: AssetId,
    /// Such as `USDC`.
    pub symbol: String,
    /// Smallest units are 10^-decimals of one.
    pub decimals: u8,
}

/// What goes wrong in one operation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("SQLite failed")]
    Sqlite(#[from] rusqlite::Error),
    #[error(transparent)]
    Corrupt(#[from] CorruptRow),
    #[error("a row could not be written as JSON")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Illegal(#[from] IllegalEvent),
    #[error("there is no payment {0}")]
    NoPayment(PaymentId),
    #[error("there is no transaction {0}")]
    NoTransaction(TransactionId),
    #[error("transaction {0} is stored already, with other contents")]
    HashTaken(TransactionId),
    #[error("the id {0} is taken")]
    IdTaken(PaymentId),
    #[error("the token {0} or its invoice is in the books already, with other contents")]
    TokenTaken(PassId),
    #[error("there is no token {0}")]
    NoToken(PassId),
    #[error("the token {0} is paid, and its payment is not in the books")]
    Unbooked(PassId),
    #[error("{msat} msat are more than there are")]
    TooMuch {
        msat: u64,
        #[source]
        source: TryFromIntError,
    },
    #[error("the credits of {payer} could not be summed")]
    CreditSum {
        payer: Payer,
        #[source]
        source: AmountError,
    },
}

pub(crate) fn find(connection: &Connection, credential: CredentialDigest) -> Result<Option<Payment>, StoreError> {
    let sql = format!("SELECT {PAYMENT_COLUMNS} FROM payments WHERE digest = ?1 AND state <> 'void'");
    one(connection, &sql, [hex::encode(credential.as_bytes())], row::payment)
}

/// The payment that holds this proof.
pub(crate) fn holding(connection: &Connection, proof: &ProofId) -> Result<Option<Payment>, StoreError> {
    let sql = format!("SELECT {PAYMENT_COLUMNS} FROM payments WHERE proof = ?1 AND state <> 'void'");
    one(connection, &sql, [proof.as_str()], row::payment)
}

pub(crate) fn claim(connection: &Connection, claim: Claim) -> Result<Claimed, StoreError> {
    let now = claim.now;
    let payment = match holding(connection, &claim.proof)?.map(|held| held.contest(&claim)) {
        None => {
            if let Some(made) = find(connection, claim.credential.digest())? {
                return Ok(Claimed::Busy(made));
            }
            let payment = Payment::first(claim);
            insert(connection, &payment)?;
            payment
        }
        Some(Contest::Grant(payment)) => {
            update(connection, &payment)?;
            payment
        }
        Some(Contest::Answer(answer)) => return Ok(answer),
    };
    audit::append(connection, &[AuditEntry::claimed(&payment, now)])?;
    Ok(Claimed::Granted(Permit::granted(payment)))
}

/// Applies `events` told by process `by`, and keeps a delivered answer until `answers_until`.
pub(crate) fn record(
    connection: &Connection,
    id: PaymentId,
    events: &[PaymentEvent],
    by: &InstanceId,
    now: Timestamp,
    answers_until: Timestamp,
) -> Result<Payment, StoreError> {
    let mut payment = payment(connection, id)?;
    let mut decisions = Vec::with_capacity(events.len());
    for event in events {
        let before = payment.state;
        payment.apply(event, by, now)?;
        decisions.extend(AuditEntry::of(before, &payment, event, now));
    }
    if !events.is_empty() {
        update(connection, &payment)?;
    }
    audit::append(connection, &decisions)?;
    for event in events {
        if let PaymentEvent::Delivered { answer: Some(answer) } = event {
            keep_answer(connection, id, answer, answers_until)?;
            prune_answers(connection, now, PRUNED_PER_WRITE)?;
        }
    }
    Ok(payment)
}

pub(crate) fn payment(connection: &Connection, id: PaymentId) -> Result<Payment, StoreError> {
    let sql = format!("SELECT {PAYMENT_COLUMNS} FROM payments WHERE id = ?1");
    one(connection, &sql, [id.to_string()], row::payment)?.ok_or(StoreError::NoPayment(id))
}

pub(crate) fn insert(connection: &Connection, payment: &Payment) -> Result<(), StoreError> {
    let sql = format!(
        "INSERT INTO payments ({PAYMENT_COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, \
         ?22, ?23, ?24, ?25, ?26, ?27, ?28, ?29, ?30, ?31, ?32) ON CONFLICT (id) DO NOTHING"
    );
    let account = payment.payer.as_str();
    let asset = &payment.amount.asset;
    let inserted = connection.prepare_cached(&sql)?.execute(params![
        payment.id.to_string(),
        payment.proof.as_str(),
        payment.state.as_str(),
        payment.reason.as_deref(),
        delivery_name(payment.delivery),
        payment.runs,
        payment.rail.as_str(),
        payment.binding.route.as_str(),
        payment.binding.method,
        payment.binding.resource,
        payment.binding.caller.as_str(),
        account,
        address_of(account),
        payment.amount.units.to_string(),
        asset.to_string(),
        asset.network().as_str(),
        &*payment.pay_to,
        payment.transaction.as_ref().map(TransactionId::as_str),
        payment.block.map(|b| Unsigned(b.number)),
        payment.block.map(|b| block_hash_text(&b.hash)),
        Unsigned::from(payment.valid_until),
        Unsigned::from(payment.created_at),
        Unsigned::from(payment.updated_at),
        payment.holder.as_ref().map(InstanceId::as_str),
        Unsigned::from(payment.lease_until),
        serde_json::to_string(&*payment.credential)?,
        credential_digest(&payment.credential),
        payment.credit.to_string(),
        payment.finality.to_string(),
        payment.reversed,
        payment.request.as_str(),
        payment.broken_runs,
    ])?;
    if inserted == 1 { Ok(()) } else { Err(StoreError::IdTaken(payment.id)) }
}

/// Writes what events and take-overs change; the rest of a row is fixed by its claim.
pub(crate) fn update(connection: &Connection, payment: &Payment) -> Result<(), StoreError> {
    let sql = "UPDATE payments SET state = ?2, reason = ?3, delivery = ?4, runs = ?5, transaction_id = ?6, \
               block_number = ?7, block_hash = ?8, updated_at = ?9, holder = ?10, lease_until = ?11, \
               reversed = ?12, request = ?13, broken_runs = ?14 WHERE id = ?1";
    let changed = connection.prepare_cached(sql)?.execute(params![
        payment.id.to_string(),
        payment.state.as_str(),
        payment.reason.as_deref(),
        delivery_name(payment.delivery),
        payment.runs,
        payment.transaction.as_ref().map(TransactionId::as_str),
        payment.block.map(|b| Unsigned(b.number)),
        payment.block.map(|b| block_hash_text(&b.hash)),
        Unsigned::from(payment.updated_at),
        payment.holder.as_ref().map(InstanceId::as_str),
        Unsigned::from(payment.lease_until),
        payment.reversed,
        payment.request.as_str(),
        payment.broken_runs,
    ])?;
    if changed == 1 { Ok(()) } else { Err(StoreError::NoPayment(payment.id)) }
}

/// Writes what more money changes, beside what [`update`] does.
pub(crate) fn update_money(connection: &Connection, payment: &Payment) -> Result<(), StoreError> {
    let sql = "UPDATE payments SET units = ?2, credit = ?3 WHERE id = ?1";
    let money = params![payment.id.to_string(), payment.amount.units.to_string(), payment.credit.to_string()];
    connection.prepare_cached(sql)?.execute(money)?;
    update(connection, payment)
}

fn keep_answer(connection: &Connection, id: PaymentId, answer: &Answer, until: Timestamp) -> Result<(), StoreError> {
    let sql = "INSERT INTO answers (payment, status, headers, body, expires_at) VALUES (?1, ?2, ?3, ?4, ?5)";
    connection.prepare_cached(sql)?.execute(params![
        id.to_string(),
        answer.status,
        row::headers_json(answer)?,
        answer.body,
        Unsigned::from(until)
    ])?;
    Ok(())
}

/// Deletes at most `limit` answers whose time is over.
pub(crate) fn prune_answers(connection: &Connection, now: Timestamp, limit: u32) -> Result<usize, StoreError> {
    let sql = "DELETE FROM answers WHERE payment IN (SELECT payment FROM answers WHERE expires_at <= ?1 LIMIT ?2)";
    Ok(connection.prepare_cached(sql)?.execute(params![Unsigned::from(now), limit])?)
}

pub(crate) fn answer(connection: &Connection, id: PaymentId, now: Timestamp) -> Result<Option<Answer>, StoreError> {
    let sql = "SELECT payment, status, headers, body FROM answers WHERE payment = ?1 AND expires_at > ?2";
    one(connection, sql, params![id.to_string(), Unsigned::from(now)], row::answer)
}

pub(crate) fn unresolved(connection: &Connection, now: Timestamp, limit: u32) -> Result<Vec<Payment>, StoreError> {
    let sql = format!(
        "SELECT {PAYMENT_COLUMNS} FROM payments WHERE state IN ('claimed', 'settling', 'in_doubt') \
         AND (state = 'in_doubt' OR holder IS NULL OR lease_until <= ?1) ORDER BY updated_at, id LIMIT ?2"
    );
    many(connection, &sql, params![Unsigned::from(now), limit], row::payment)
}

pub(crate) fn settled_blocks(
    connection: &Connection,
    network: &Network,
    from: u64,
    limit: u32,
) -> Result<Vec<BlockRef>, StoreError> {
    let sql = "SELECT DISTINCT block_number, block_hash FROM payments \
               WHERE state = 'settled' AND network = ?1 AND block_number >= ?2 ORDER BY block_number, block_hash \
               LIMIT ?3";
    many(connection, sql, params![network.as_str(), Unsigned(from), limit], row::block_ref)
}

pub(crate) fn compared_below(connection: &Connection, network: &Network) -> Result<u64, StoreError> {
    let sql = "SELECT below FROM compared WHERE network = ?1";
    let found = one(connection, sql, [network.as_str()], |row| Fields::of("compared", row).number("below"))?;
    Ok(found.unwrap_or(0))
}

pub(crate) fn set_compared_below(connection: &Connection, network: &Network, height: u64) -> Result<(), StoreError> {
    let sql = "INSERT INTO compared (network, below) VALUES (?1, ?2) \
               ON CONFLICT (network) DO UPDATE SET below = excluded.below WHERE excluded.below > below";
    connection.prepare_cached(sql)?.execute(params![network.as_str(), Unsigned(height)])?;
    Ok(())
}

pub(crate) fn settled_in(
    connection: &Connection,
    network: &Network,
    block: &BlockRef,
    limit: u32,
) -> Result<Vec<Payment>, StoreError> {
    let sql = format!(
        "SELECT {PAYMENT_COLUMNS} FROM payments WHERE state = 'settled' AND network = ?1 AND block_number = ?2 AND block_hash = ?3 \
         ORDER BY id LIMIT ?4"
    );
    let key = params![network.as_str(), Unsigned(block.number), block_hash_text(&block.hash), limit];
    many(connection, &sql, key, row::payment)
}

pub(crate) fn list(connection: &Connection, filter: &PaymentFilter) -> Result<Vec<Payment>, StoreError> {
    let mut terms: Vec<&str> = Vec::new();
    let mut values: Vec<Box<dyn ToSql>> = Vec::new();
    let mut also = |term: &'static str, value: Option<Box<dyn ToSql>>| {
        if let Some(value) = value {
            terms.push(term);
            values.push(value);
        }
    };
    let text = |s: &str| Some(Box::new(s.to_owned()) as Box<dyn ToSql>);
    let time = |t: Timestamp| Some(Box::new(Unsigned::from(t)) as Box<dyn ToSql>);
    let id_at = |t: Timestamp| Some(Box::new(PaymentId::new(t, [0; 10]).to_string()) as Box<dyn ToSql>);
    also("id = ?", filter.id.and_then(|id| text(&id.to_string())));
    also("state = ?", filter.state.and_then(|s| text(s.as_str())));
    also("route = ?", filter.route.as_ref().and_then(|r| text(r.as_str())));
    also("payer_address = ?", filter.payer.as_ref().and_then(|p| text(&address_of(p))));
    let account = filter.payer.as_ref().filter(|p| p.contains(':'));
    also("lower(payer) = ?", account.and_then(|p| text(&p.to_lowercase())));
    also("network = ?", filter.network.as_ref().and_then(|n| text(n.as_str())));
    also("transaction_id = ?", filter.transaction.as_ref().and_then(|t| text(t.as_str())));
    also("credit <> ? AND state = 'settled'", filter.credit.and_then(|CreditIs::Owed| text("0")));
    also("created_at >= ?", filter.since.and_then(time));
    also("id >= ?", filter.since.and_then(|t| id_at(t.minus(ID_SLACK))));
    also("created_at < ?", filter.until.and_then(time));
    also("id < ?", filter.until.and_then(|t| id_at(t.plus(ID_SLACK))));
    also("id < ?", filter.before.and_then(|id| text(&id.to_string())));
    let condition = if terms.is_empty() { "TRUE".to_owned() } else { terms.join(" AND ") };
    let limit = if filter.limit == 0 { PAGE_ROWS } else { filter.limit.min(ROWS_MAX) };
    let sql = format!("SELECT {PAYMENT_COLUMNS} FROM payments WHERE {condition} ORDER BY id DESC LIMIT {limit}");
    many(connection, &sql, params_from_iter(values), row::payment)
}

pub(crate) fn marked_payers(connection: &Connection, limit: u32) -> Result<Vec<Payer>, StoreError> {
    let sql = "SELECT payer FROM payments WHERE reversed = 1 \
               AND (state IN ('settling', 'in_doubt') OR (state = 'refused' AND delivery = 'delivered')) \
               GROUP BY payer ORDER BY max(updated_at) DESC, payer LIMIT ?1";
    many(connection, sql, [limit], |row| Fields::of("payments", row).payer("payer"))
}

pub(crate) fn credits(connection: &Connection, payer: &Payer) -> Result<Vec<Amount>, StoreError> {
    let sql = "SELECT id, asset, credit FROM payments \
               WHERE payer_address = ?1 AND lower(payer) = ?2 AND credit <> '0' AND state = 'settled'";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![address_of(payer.as_str()), payer.as_str().to_lowercase()])?;
    let mut sums: BTreeMap<AssetId, Amount> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let one = row::credit(row)?;
        let sum = match sums.get(&one.asset) {
            Some(sum) => {
                sum.checked_add(&one).map_err(|source| StoreError::CreditSum { payer: payer.clone(), source })?
            }
            None => one,
        };
        sums.insert(sum.asset.clone(), sum);
    }
    Ok(sums.into_values().collect())
}

/// Stores a transaction and starts its payment's settlement. Storing the same again changes nothing: a caller that was told
/// `Unavailable` may find out by repeating.
pub(crate) fn store_transaction(
    connection: &Connection,
    transaction: &StoredTransaction,
    by: &InstanceId,
) -> Result<(), StoreError> {
    if let Some(known) = self::transaction(connection, &transaction.hash)? {
        let same = known.raw == transaction.raw && known.payment == transaction.payment;
        return if same { Ok(()) } else { Err(StoreError::HashTaken(known.hash)) };
    }
    if let Some(id) = transaction.payment {
        let started = PaymentEvent::SettlementStarted { transaction: transaction.hash.clone() };
        record(connection, id, &[started], by, transaction.stored_at, transaction.stored_at)?;
    }
    let sql = format!("INSERT INTO transactions ({TRANSACTION_COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)");
    connection.prepare_cached(&sql)?.execute(params![
        transaction.hash.as_str(),
        transaction.lane.as_str(),
        Unsigned(transaction.nonce),
        transaction.raw,
        transaction.payment.map(|id| id.to_string()),
        fate_name(transaction.fate),
        Unsigned::from(transaction.stored_at),
    ])?;
    Ok(())
}

pub(crate) fn transaction(
    connection: &Connection,
    hash: &TransactionId,
) -> Result<Option<StoredTransaction>, StoreError> {
    let sql = format!("SELECT {TRANSACTION_COLUMNS} FROM transactions WHERE hash = ?1");
    one(connection, &sql, [hash.as_str()], row::transaction)
}

pub(crate) fn open_transactions(connection: &Connection, lane: &LaneKey) -> Result<Vec<StoredTransaction>, StoreError> {
    let sql = format!(
        "SELECT {TRANSACTION_COLUMNS} FROM transactions WHERE lane = ?1 AND fate = 'open' ORDER BY nonce, sequence"
    );
    many(connection, &sql, [lane.as_str()], row::transaction)
}

pub(crate) fn transactions_of(
    connection: &Connection,
    payment: PaymentId,
) -> Result<Vec<StoredTransaction>, StoreError> {
    let sql = format!("SELECT {TRANSACTION_COLUMNS} FROM transactions WHERE payment = ?1 ORDER BY sequence");
    many(connection, &sql, [payment.to_string()], row::transaction)
}

pub(crate) fn last_nonce(connection: &Connection, lane: &LaneKey) -> Result<Option<u64>, StoreError> {
    let sql = "SELECT lane, nonce FROM transactions WHERE lane = ?1 ORDER BY nonce DESC LIMIT 1";
    one(connection, sql, [lane.as_str()], |row| {
        let mut fields = Fields::of("transactions", row);
        fields.text("lane")?;
        fields.number("nonce")
    })
}

pub(crate) fn close_transaction(
    connection: &Connection,
    hash: &TransactionId,
    fate: TransactionFate,
) -> Result<(), StoreError> {
    let sql = "UPDATE transactions SET fate = ?2 WHERE hash = ?1";
    match connection.prepare_cached(sql)?.execute(params![hash.as_str(), fate_name(fate)])? {
        0 => Err(StoreError::NoTransaction(hash.clone())),
        _ => Ok(()),
    }
}

/// Ends the leases of every process but `me`.
pub(crate) fn end_other_leases(connection: &Connection, me: &InstanceId) -> Result<usize, StoreError> {
    let sql = "UPDATE payments SET lease_until = 0 WHERE holder IS NOT NULL AND holder <> ?1 AND lease_until > 0";
    Ok(connection.execute(sql, [me.as_str()])?)
}

pub(crate) fn name_assets(connection: &Connection, names: &[AssetName]) -> Result<(), StoreError> {
    let sql = "INSERT INTO assets (asset, symbol, decimals) VALUES (?1, ?2, ?3) \
               ON CONFLICT (asset) DO UPDATE SET symbol = excluded.symbol, decimals = excluded.decimals";
    for name in names {
        connection.prepare_cached(sql)?.execute(params![name.asset.to_string(), name.symbol, name.decimals])?;
    }
    Ok(())
}

pub(crate) fn asset_names(connection: &Connection) -> Result<Vec<AssetName>, StoreError> {
    many(connection, "SELECT asset, symbol, decimals FROM assets ORDER BY asset", [], |row| {
        let mut fields = Fields::of("assets", row);
        let asset = fields.parsed("asset")?;
        Ok(AssetName { asset, symbol: fields.text("symbol")?, decimals: fields.number("decimals")? })
    })
}

pub(crate) fn one<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnOnce(&Row<'_>) -> Result<T, CorruptRow>,
) -> Result<Option<T>, StoreError> {
    let mut statement = connection.prepare_cached(sql)?;
    let found = statement.query_row(params, |row| Ok(read(row))).optional()?;
    Ok(found.transpose()?)
}

pub(crate) fn many<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    read: impl Fn(&Row<'_>) -> Result<T, CorruptRow>,
) -> Result<Vec<T>, StoreError> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row)?);
    }
    Ok(found)
}
