//! Rows to core's types and back. Every field is checked on the way in: a row that is not exactly what we write is an error
//! that names it.

use std::{borrow::Cow, error::Error, str::FromStr, sync::Arc};

use farebox_core::{
    Amount, Answer, AnswerHeader, AssetId, Binding, BlockRef, CallerId, Credential, Delivery, Finality, InstanceId,
    InvoiceCredential, LaneKey, Network, Payer, Payment, PaymentId, PaymentState, ProofId, RailName, RequestId,
    RouteId, StoredTransaction, Timestamp, TransactionFate, TransactionId, TransferCredential, X402Credential,
};
use rusqlite::{
    Row,
    types::{FromSql, ToSqlOutput, Value, ValueRef},
};
use serde::{Deserialize, Serialize};

/// A row that no Farebox wrote: a damaged file, or somebody's hand.
#[derive(Debug, thiserror::Error)]
#[error("the ledger's row {key} in {table} has a wrong {column}")]
pub struct CorruptRow {
    /// The table.
    pub table: &'static str,
    /// The row's primary key, made printable.
    pub key: String,
    /// The first column that is wrong.
    pub column: &'static str,
    /// What is wrong with it.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

/// In the order in which [`payment`] reads and [`bind_payment`] binds.
pub(crate) const PAYMENT_COLUMNS: &str = "id, proof, state, reason, delivery, runs, rail, route, method, resource, caller, \
     payer, payer_address, units, asset, network, pay_to, transaction_id, block_number, block_hash, valid_until, \
     created_at, updated_at, holder, lease_until, credential, digest, credit, finality, reversed, request, \
     broken_runs";

/// Reads a row of [`PAYMENT_COLUMNS`].
pub(crate) fn payment(row: &Row<'_>) -> Result<Payment, CorruptRow> {
    let mut fields = Fields::of("payments", row);
    let id: PaymentId = fields.parsed("id")?;
    let proof = ProofId::new(fields.text("proof")?);
    let state = fields.with("state", |s| PaymentState::ALL.into_iter().find(|known| known.as_str() == s))?;
    let reason = fields.optional::<String>("reason")?.map(Cow::Owned);
    let delivery = fields.with("delivery", delivery_named)?;
    let runs = fields.number("runs")?;
    let rail = fields.with("rail", |s| RailName::ALL.into_iter().find(|known| known.as_str() == s))?;
    let binding = Binding {
        route: RouteId::new(fields.text("route")?),
        method: fields.text("method")?,
        resource: fields.text("resource")?,
        caller: CallerId::new(fields.text("caller")?),
    };
    let payer = fields.payer("payer")?;
    fields.with("payer_address", |s| (s == address_of(payer.as_str())).then_some(()))?;
    let units = fields.with("units", units)?;
    let asset: AssetId = fields.parsed("asset")?;
    let network: Network = fields.parsed("network")?;
    if network != *asset.network() {
        return Err(fields.wrong("network", "it is not the asset's network"));
    }
    let pay_to: Arc<str> = fields.text("pay_to")?.into();
    let transaction = fields.optional::<String>("transaction_id")?.map(TransactionId::new);
    let block = block(&mut fields)?;
    let valid_until = fields.time("valid_until")?;
    let created_at = fields.time("created_at")?;
    let updated_at = fields.time("updated_at")?;
    let holder = fields.optional::<String>("holder")?.map(InstanceId::new);
    let lease_until = fields.time("lease_until")?;
    let credential: Credential = fields.json("credential")?;
    if credential.rail() != rail {
        return Err(fields.wrong("credential", "it is another rail's"));
    }
    let digest = credential_digest(&recomputed(&credential));
    fields.with("digest", |s| (s == digest).then_some(()))?;
    let credential = Arc::new(credential);
    let amount = Amount { units, asset };
    let credit = fields.with("credit", self::units)?;
    let finality = fields.with("finality", finality_named)?;
    let reversed = fields.get("reversed")?;
    let request = RequestId::new(fields.text("request")?);
    let broken_runs = fields.number("broken_runs")?;
    Ok(Payment {
        id,
        proof,
        credential,
        rail,
        binding,
        payer,
        amount,
        pay_to,
        state,
        reason,
        transaction,
        block,
        delivery,
        credit,
        finality,
        reversed,
        request,
        runs,
        broken_runs,
        valid_until,
        created_at,
        updated_at,
        holder,
        lease_until,
    })
}

fn block(fields: &mut Fields<'_, '_>) -> Result<Option<BlockRef>, CorruptRow> {
    let number: Option<i64> = fields.optional("block_number")?;
    let hash: Option<String> = fields.optional("block_hash")?;
    match (number, hash) {
        (None, None) => Ok(None),
        (Some(number), Some(hash)) => {
            let number = u64::try_from(number).map_err(|e| fields.wrong("block_number", e))?;
            let hash = block_hash(&hash).ok_or_else(|| fields.wrong("block_hash", "expected 0x and 64 hex digits"))?;
            Ok(Some(BlockRef { number, hash }))
        }
        _ => Err(fields.wrong("block_hash", "number and hash go together")),
    }
}

/// Reads `block_number, block_hash`.
pub(crate) fn block_ref(row: &Row<'_>) -> Result<BlockRef, CorruptRow> {
    let mut fields = Fields::of("payments", row);
    block(&mut fields)?.ok_or_else(|| fields.wrong("block_number", "a settled payment has a block"))
}

fn block_hash(text: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    hex::decode_to_slice(text.strip_prefix("0x")?, &mut hash).ok()?;
    Some(hash)
}

pub(crate) fn block_hash_text(hash: &[u8; 32]) -> String {
    format!("0x{}", hex::encode(hash))
}

/// The credential with the digest that it ought to have: the one inside the JSON is only text.
fn recomputed(credential: &Credential) -> Credential {
    match credential.clone() {
        Credential::X402(x402) => {
            Credential::X402(X402Credential::new(x402.version, x402.accepted, x402.authorization, x402.signature))
        }
        Credential::Transfer(transfer) => {
            Credential::Transfer(TransferCredential::new(transfer.code, transfer.announced))
        }
        Credential::L402(invoice) => Credential::L402(InvoiceCredential::new(invoice.payment_hash)),
    }
}

/// Reads `id, asset, credit`.
pub(crate) fn credit(row: &Row<'_>) -> Result<Amount, CorruptRow> {
    let mut fields = Fields::of("payments", row);
    fields.text("id")?;
    let asset = fields.parsed("asset")?;
    Ok(Amount { units: fields.with("credit", units)?, asset })
}

/// Decimal text, in its one spelling.
fn units(text: &str) -> Option<u128> {
    text.parse().ok().filter(|units: &u128| units.to_string() == text)
}

fn finality_named(text: &str) -> Option<Finality> {
    let blocks = text.parse().ok().filter(|blocks| *blocks > 0).map(Finality::Blocks);
    [blocks, Some(Finality::Safe), Some(Finality::Finalized)]
        .into_iter()
        .flatten()
        .find(|known| known.to_string() == text)
}

/// What a credential is found by.
pub(crate) fn credential_digest(credential: &Credential) -> String {
    hex::encode(credential.digest().as_bytes())
}

/// The lower-case address of a CAIP-10 account, for looking payers up.
pub(crate) fn address_of(account: &str) -> String {
    account.rsplit(':').next().unwrap_or(account).to_lowercase()
}

pub(crate) const TRANSACTION_COLUMNS: &str = "hash, lane, nonce, raw, payment, fate, stored_at";

/// Reads a row of [`TRANSACTION_COLUMNS`].
pub(crate) fn transaction(row: &Row<'_>) -> Result<StoredTransaction, CorruptRow> {
    let mut fields = Fields::of("transactions", row);
    Ok(StoredTransaction {
        hash: TransactionId::new(fields.text("hash")?),
        lane: LaneKey::new(fields.text("lane")?),
        nonce: fields.number("nonce")?,
        raw: fields.get("raw")?,
        payment: fields
            .optional::<String>("payment")?
            .map(|id| id.parse().map_err(|e| fields.wrong("payment", e)))
            .transpose()?,
        fate: fields.with("fate", fate_named)?,
        stored_at: fields.time("stored_at")?,
    })
}

/// Reads `payment, status, headers, body`.
pub(crate) fn answer(row: &Row<'_>) -> Result<Answer, CorruptRow> {
    let mut fields = Fields::of("answers", row);
    fields.text("payment")?;
    answer_fields(&mut fields)
}

/// Reads `status, headers, body`.
pub(crate) fn answer_fields(fields: &mut Fields<'_, '_>) -> Result<Answer, CorruptRow> {
    let status = fields.number("status")?;
    let headers: Vec<(String, HeaderValue)> = fields.json("headers")?;
    let headers = headers.into_iter().map(|(name, value)| AnswerHeader { name, value: value.into_bytes() }).collect();
    Ok(Answer { status, headers, body: fields.get("body")? })
}

/// An answer's headers as an operator can read them.
pub(crate) fn headers_json(answer: &Answer) -> Result<String, serde_json::Error> {
    let value = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => HeaderValue::Text(text.to_owned()),
        Err(_) => HeaderValue::Bytes(bytes.to_vec()),
    };
    let headers: Vec<_> = answer.headers.iter().map(|h| (&h.name, value(&h.value))).collect();
    serde_json::to_string(&headers)
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum HeaderValue {
    Text(String),
    Bytes(Vec<u8>),
}

impl HeaderValue {
    fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Text(text) => text.into_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

pub(crate) const fn delivery_name(delivery: Delivery) -> &'static str {
    match delivery {
        Delivery::Pending => "pending",
        Delivery::Delivered => "delivered",
        Delivery::Credited => "credited",
    }
}

fn delivery_named(name: &str) -> Option<Delivery> {
    [Delivery::Pending, Delivery::Delivered, Delivery::Credited].into_iter().find(|known| delivery_name(*known) == name)
}

pub(crate) const fn fate_name(fate: TransactionFate) -> &'static str {
    match fate {
        TransactionFate::Open => "open",
        TransactionFate::Succeeded => "succeeded",
        TransactionFate::Reverted => "reverted",
        TransactionFate::Replaced => "replaced",
    }
}

fn fate_named(name: &str) -> Option<TransactionFate> {
    use TransactionFate as F;
    [F::Open, F::Succeeded, F::Reverted, F::Replaced].into_iter().find(|known| fate_name(*known) == name)
}

/// An unsigned number as SQLite has it. What does not fit 63 bits is a time or height far beyond any real one, and is cut to
/// the largest that fits.
#[derive(Clone, Copy)]
pub(crate) struct Unsigned(pub(crate) u64);

impl rusqlite::ToSql for Unsigned {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Owned(Value::Integer(i64::try_from(self.0).unwrap_or(i64::MAX))))
    }
}

impl From<Timestamp> for Unsigned {
    fn from(time: Timestamp) -> Self {
        Self(time.unix_ms())
    }
}

/// Reads a row's fields one after another, and names the row in errors.
pub(crate) struct Fields<'r, 's> {
    table: &'static str,
    row: &'r Row<'s>,
    next: usize,
}

impl<'r, 's> Fields<'r, 's> {
    /// The first column must be the row's key.
    pub(crate) const fn of(table: &'static str, row: &'r Row<'s>) -> Self {
        Self { table, row, next: 0 }
    }

    pub(crate) fn wrong(&self, column: &'static str, source: impl Into<Box<dyn Error + Send + Sync>>) -> CorruptRow {
        let key = match self.row.get_ref(0) {
            Ok(ValueRef::Integer(number)) => number.to_string(),
            Ok(value) => farebox_core::Untrusted::from_bytes(value.as_bytes().unwrap_or(b"?")).to_string(),
            Err(error) => error.to_string(),
        };
        CorruptRow { table: self.table, key, column, source: source.into() }
    }

    pub(crate) fn get<T: FromSql>(&mut self, column: &'static str) -> Result<T, CorruptRow> {
        let value = self.row.get(self.next).map_err(|error| self.wrong(column, error))?;
        self.next += 1;
        Ok(value)
    }

    pub(crate) fn optional<T: FromSql>(&mut self, column: &'static str) -> Result<Option<T>, CorruptRow> {
        self.get(column)
    }

    pub(crate) fn time(&mut self, column: &'static str) -> Result<Timestamp, CorruptRow> {
        self.number(column).map(Timestamp::from_unix_ms)
    }

    pub(crate) fn optional_time(&mut self, column: &'static str) -> Result<Option<Timestamp>, CorruptRow> {
        let ms: Option<i64> = self.get(column)?;
        let ms = ms.map(u64::try_from).transpose().map_err(|error| self.wrong(column, error))?;
        Ok(ms.map(Timestamp::from_unix_ms))
    }

    pub(crate) fn text(&mut self, column: &'static str) -> Result<String, CorruptRow> {
        self.get(column)
    }

    /// A number that must not be negative, and must fit.
    pub(crate) fn number<T: TryFrom<i64>>(&mut self, column: &'static str) -> Result<T, CorruptRow>
    where
        T::Error: Error + Send + Sync + 'static,
    {
        let value: i64 = self.get(column)?;
        T::try_from(value).map_err(|error| self.wrong(column, error))
    }

    pub(crate) fn parsed<T: FromStr>(&mut self, column: &'static str) -> Result<T, CorruptRow>
    where
        T::Err: Error + Send + Sync + 'static,
    {
        let text = self.text(column)?;
        text.parse().map_err(|error| self.wrong(column, error))
    }

    pub(crate) fn with<T>(
        &mut self,
        column: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, CorruptRow> {
        let value = self.row.get_ref(self.next).map_err(|error| self.wrong(column, error))?;
        let text = value.as_str().map_err(|error| self.wrong(column, error))?;
        self.next += 1;
        read(text).ok_or_else(|| self.wrong(column, format!("found {}", farebox_core::Untrusted::new(text))))
    }

    pub(crate) fn optional_with<T>(
        &mut self,
        column: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, CorruptRow> {
        if self.row.get_ref(self.next).is_ok_and(|value| value == ValueRef::Null) {
            self.next += 1;
            return Ok(None);
        }
        self.with(column, read).map(Some)
    }

    pub(crate) fn json<T: for<'de> Deserialize<'de>>(&mut self, column: &'static str) -> Result<T, CorruptRow> {
        let text = self.row.get_ref(self.next).map_err(|error| self.wrong(column, error))?;
        self.next += 1;
        let bytes = text.as_bytes().map_err(|error| self.wrong(column, error))?;
        serde_json::from_slice(bytes).map_err(|error| self.wrong(column, error))
    }

    /// By serde, the type's only door.
    pub(crate) fn payer(&mut self, column: &'static str) -> Result<Payer, CorruptRow> {
        let text = self.text(column)?;
        let value = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(&text);
        Payer::deserialize(value).map_err(|error| self.wrong(column, error))
    }
}
