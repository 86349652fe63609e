//! The ledger as the gateway sees it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use farebox_core::{
    Amount, Answer, AuditEntry, AuditLine, BlockRef, Claim, Claimed, CredentialDigest, InstanceId, LaneKey, Network,
    Offer, Payer, Payment, PaymentEvent, PaymentId, ProofId, RouteId, StoredTransaction, Timestamp, TransactionFate,
    TransactionId,
    ports::{
        BoxError, Ledger, LedgerUnavailable, PaymentFilter, QuoteKey, QuoteKeyRotation, RecordError, TransactionStore,
    },
};
use rusqlite::Connection;

use crate::{
    AssetName, OpenError, audit,
    audit_file::AuditFile,
    bills, draws,
    file::{Files, connect_writer, take},
    query::{self, StoreError},
    reads::Reads,
    schema, tokens,
    writer::{Orphan, WriteError, Writer},
};

/// Ended answers, and unpaid tokens, deleted when the ledger is opened; the rest go with later writes.
const PRUNED_AT_OPEN: u32 = 10_000;

/// How a ledger is opened.
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    /// This run of this process.
    pub instance: InstanceId,
    /// How long a delivered answer can be had again.
    pub answers_kept_for: Duration,
    /// A file that gets a copy of the audit log as JSON lines, created if there is none and completed if it lags. It never holds up a
    /// payment: while it cannot be written, an error is logged and it is tried again. Rename it to rotate: the next line goes to a new one.
    pub audit_file: Option<PathBuf>,
}

/// The books in one SQLite file. One process has them open at a time; a lock on `<file>.lock` sees to that.
///
/// Every write is on disk (WAL, `synchronous=FULL`) when its future returns `Ok`. A dropped future may leave it done or not
/// done, except that a claim or a transaction whose turn has not come is dropped with it. Needs a Tokio runtime with time.
/// Dropping the ledger waits for the last commit.
#[derive(Debug)]
pub struct SqliteLedger {
    pub(crate) instance: InstanceId,
    pub(crate) answers_kept_for: Duration,
    writer: Writer,
    reads: Reads,
}

impl SqliteLedger {
    /// Opens the ledger at `path`, or creates it (mode 0600); migrates an older schema; ends the leases that processes
    /// before this one left behind, all of which are dead, for the lock is ours.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path, options: SqliteOptions, now: Timestamp) -> Result<Self, OpenError> {
        Self::open_with(path, options, now, |_| Ok(()))
    }

    /// `prepare` has the writer's connection before anything else; tests make disks small with it.
    pub(crate) fn open_with(
        path: &Path,
        options: SqliteOptions,
        now: Timestamp,
        prepare: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<Self, OpenError> {
        let exclusive = take(path)?;
        let mut connection = connect_writer(&exclusive.path)?;
        prepare(&connection)?;
        let had = schema::migrate(&mut connection, schema::MIGRATIONS)?;
        if had != 0 && had != schema::MIGRATIONS.len() {
            tracing::info!(from = had, to = schema::MIGRATIONS.len(), "migrated the ledger");
        }
        let orphans = query::end_other_leases(&connection, &options.instance).map_err(at_open)?;
        if orphans > 0 {
            tracing::info!(payments = orphans, "ended the leases of a process that is gone");
        }
        let transaction = connection.transaction()?;
        let draws = draws::return_draws_of_others(&transaction, &options.instance, now).map_err(at_open)?;
        transaction.commit()?;
        if draws > 0 {
            tracing::info!(draws, "returned the calls that a process that is gone had taken from passes");
        }
        query::prune_answers(&connection, now, PRUNED_AT_OPEN).map_err(at_open)?;
        draws::prune_answers(&connection, now, PRUNED_AT_OPEN).map_err(at_open)?;
        tokens::prune_unpaid(&connection, now, PRUNED_AT_OPEN).map_err(at_open)?;
        let reads = Reads::new(exclusive.path.clone());
        let files = Files::of(&exclusive.path)?;
        let copy = options.audit_file.map(|path| AuditFile::start(exclusive.path.clone(), path));
        let copy = copy.transpose().map_err(OpenError::Thread)?;
        let writer = Writer::start(connection, files, exclusive, copy).map_err(OpenError::Thread)?;
        Ok(Self { instance: options.instance, answers_kept_for: options.answers_kept_for, writer, reads })
    }

    /// Remembers symbols and decimals, so that people reading the books see `0.01 USDC` and not a count of units.
    ///
    /// # Errors
    /// Unavailable.
    pub async fn name_assets(&self, names: Vec<AssetName>) -> Result<(), LedgerUnavailable> {
        self.write("name assets", Orphan::Do, move |c| query::name_assets(c, &names)).await
    }

    pub(crate) async fn read<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, LedgerUnavailable> {
        self.reads.read(work).await.map_err(|error| LedgerUnavailable { operation, source: error.into() })
    }

    pub(crate) async fn write<T: Send + 'static>(
        &self,
        operation: &'static str,
        orphan: Orphan,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, LedgerUnavailable> {
        self.writer.write(orphan, work).await.map_err(|error| LedgerUnavailable { operation, source: error.into() })
    }

    /// As `write`, for operations that know a definite no.
    pub(crate) async fn change<T: Send + 'static>(
        &self,
        operation: &'static str,
        orphan: Orphan,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, RecordError> {
        self.writer.write(orphan, work).await.map_err(|error| match error {
            WriteError::Refused(StoreError::Illegal(illegal)) => RecordError::Illegal(illegal),
            WriteError::Refused(StoreError::NoPayment(id)) => RecordError::NotFound { id },
            other => LedgerUnavailable { operation, source: BoxError::from(other) }.into(),
        })
    }
}

pub(crate) fn at_open(error: StoreError) -> OpenError {
    match error {
        StoreError::Sqlite(error) => error.into(),
        other => OpenError::Sqlite(rusqlite::Error::ToSqlConversionFailure(other.into())),
    }
}

#[async_trait]
impl Ledger for SqliteLedger {
    async fn find(&self, credential: CredentialDigest) -> Result<Option<Payment>, LedgerUnavailable> {
        self.read("look a credential up", move |c| query::find(c, credential)).await
    }

    async fn find_proof(&self, proof: &ProofId) -> Result<Option<Payment>, LedgerUnavailable> {
        let proof = proof.clone();
        self.read("look a proof up", move |c| query::holding(c, &proof)).await
    }

    async fn claim(&self, claim: Claim) -> Result<Claimed, LedgerUnavailable> {
        self.write("claim a proof", Orphan::Skip, move |c| query::claim(c, claim)).await
    }

    async fn record(&self, id: PaymentId, events: Vec<PaymentEvent>, now: Timestamp) -> Result<Payment, RecordError> {
        let by = self.instance.clone();
        let until = now.plus(self.answers_kept_for);
        self.change("record events", Orphan::Do, move |c| query::record(c, id, &events, &by, now, until)).await
    }

    async fn answer(&self, id: PaymentId, now: Timestamp) -> Result<Option<Answer>, LedgerUnavailable> {
        self.read("read a kept answer", move |c| query::answer(c, id, now)).await
    }

    async fn unresolved(&self, now: Timestamp, limit: u32) -> Result<Vec<Payment>, LedgerUnavailable> {
        self.read("list unresolved payments", move |c| query::unresolved(c, now, limit)).await
    }

    async fn settled_blocks(
        &self,
        network: &Network,
        from: u64,
        limit: u32,
    ) -> Result<Vec<BlockRef>, LedgerUnavailable> {
        let network = network.clone();
        self.read("list settled blocks", move |c| query::settled_blocks(c, &network, from, limit)).await
    }

    async fn compared_below(&self, network: &Network) -> Result<u64, LedgerUnavailable> {
        let network = network.clone();
        self.read("read how far the books were compared", move |c| query::compared_below(c, &network)).await
    }

    async fn set_compared_below(&self, network: &Network, height: u64) -> Result<(), LedgerUnavailable> {
        let network = network.clone();
        let work = move |c: &Connection| query::set_compared_below(c, &network, height);
        self.write("note how far the books were compared", Orphan::Do, work).await
    }

    async fn settled_in(
        &self,
        network: &Network,
        block: &BlockRef,
        limit: u32,
    ) -> Result<Vec<Payment>, LedgerUnavailable> {
        let (network, block) = (network.clone(), *block);
        self.read("list payments settled in a block", move |c| query::settled_in(c, &network, &block, limit)).await
    }

    async fn list(&self, filter: &PaymentFilter) -> Result<Vec<Payment>, LedgerUnavailable> {
        let filter = filter.clone();
        self.read("list payments", move |c| query::list(c, &filter)).await
    }

    async fn exchange_offers(
        &self,
        route: &RouteId,
        current: &[Offer],
        now: Timestamp,
    ) -> Result<Vec<Offer>, LedgerUnavailable> {
        let (route, current) = (route.clone(), current.to_vec());
        self.write("exchange offers", Orphan::Do, move |c| bills::exchange_offers(c, &route, &current, now)).await
    }

    async fn marked_payers(&self, limit: u32) -> Result<Vec<Payer>, LedgerUnavailable> {
        self.read("list marked payers", move |c| query::marked_payers(c, limit)).await
    }

    async fn credits(&self, payer: &Payer) -> Result<Vec<Amount>, LedgerUnavailable> {
        let payer = payer.clone();
        self.read("sum a payer's credits", move |c| query::credits(c, &payer)).await
    }

    async fn quote_keys(&self, rotation: QuoteKeyRotation, now: Timestamp) -> Result<Vec<QuoteKey>, LedgerUnavailable> {
        self.write("exchange quote keys", Orphan::Do, move |c| bills::quote_keys(c, &rotation, now)).await
    }

    async fn audit(&self, entries: Vec<AuditEntry>) -> Result<(), LedgerUnavailable> {
        self.write("write the audit log", Orphan::Do, move |c| audit::append(c, &entries)).await
    }

    async fn audit_lines(&self, after: u64, limit: u32) -> Result<Vec<AuditLine>, LedgerUnavailable> {
        self.read("read the audit log", move |c| audit::lines(c, after, limit)).await
    }
}

#[async_trait]
impl TransactionStore for SqliteLedger {
    async fn store_transaction(&self, transaction: StoredTransaction) -> Result<(), RecordError> {
        let by = self.instance.clone();
        let work = move |c: &Connection| query::store_transaction(c, &transaction, &by);
        self.change("store a transaction", Orphan::Skip, work).await
    }

    async fn open_transactions(&self, lane: &LaneKey) -> Result<Vec<StoredTransaction>, LedgerUnavailable> {
        let lane = lane.clone();
        self.read("list open transactions", move |c| query::open_transactions(c, &lane)).await
    }

    async fn transactions_of(&self, payment: PaymentId) -> Result<Vec<StoredTransaction>, LedgerUnavailable> {
        self.read("list a payment's transactions", move |c| query::transactions_of(c, payment)).await
    }

    async fn transaction(&self, hash: &TransactionId) -> Result<Option<StoredTransaction>, LedgerUnavailable> {
        let hash = hash.clone();
        self.read("look a transaction up", move |c| query::transaction(c, &hash)).await
    }

    async fn last_nonce(&self, lane: &LaneKey) -> Result<Option<u64>, LedgerUnavailable> {
        let lane = lane.clone();
        self.read("read a lane's last nonce", move |c| query::last_nonce(c, &lane)).await
    }

    async fn close_transaction(&self, hash: &TransactionId, fate: TransactionFate) -> Result<(), LedgerUnavailable> {
        let hash = hash.clone();
        self.write("close a transaction", Orphan::Do, move |c| query::close_transaction(c, &hash, fate)).await
    }
}
