//! The one thread that writes: it takes all that waits, up to [`GROUP_MAX`], and commits it as one transaction.
//!
//! Each operation runs inside a savepoint, so that one that fails takes nothing of its neighbours with it. Nobody hears of
//! success before the commit is on disk; if the commit fails, everybody in the group is told that it did.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError, mpsc as sync_mpsc},
    thread,
    time::Duration,
};

use rusqlite::Connection;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{
    audit_file::AuditFile,
    file::{Exclusive, Files},
    query::StoreError,
};

/// The most operations in one commit. Bounds how much one failed commit spoils and how long the first of a group waits.
const GROUP_MAX: usize = 128;

/// Operations that may wait for the writer. A gateway that has more paid requests than this in flight is past its disk.
const QUEUE_MAX: usize = 1_024;

/// How long a caller waits, in the queue and for the disk together, before it is told that nobody knows.
const WRITE_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long closing waits for the last group. A disk that hangs must not hang the shutdown.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(5);

/// Why an operation has no result. Unless [`WriteError::Refused`], it may or may not be on disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// Only this operation failed, and it left nothing behind.
    #[error(transparent)]
    Refused(#[from] StoreError),
    /// The whole group failed.
    #[error("the group of writes was not committed")]
    GroupLost(#[source] Arc<rusqlite::Error>),
    #[error("the writer did not answer within {} s", WRITE_WAIT_MAX.as_secs())]
    TimedOut,
    #[error("the writer thread is gone")]
    Gone,
}

/// What to do with an operation whose caller has gone away before its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Orphan {
    /// Leave it: it would take something that nobody then uses.
    Skip,
    /// Do it: it says what has happened.
    Do,
}

/// The caller's end of the writer. Dropping it lets the queue run out and waits for the last commit.
#[derive(Debug)]
pub(crate) struct Writer {
    jobs: Option<mpsc::Sender<Box<dyn Job>>>,
    closed: Mutex<sync_mpsc::Receiver<()>>,
}

impl Writer {
    /// Starts the thread. It keeps `exclusive`, so that the lock outlives the last write, and wakes `copy` after each.
    pub(crate) fn start(
        connection: Connection,
        files: Files,
        exclusive: Exclusive,
        copy: Option<AuditFile>,
    ) -> io::Result<Self> {
        let (jobs, waiting) = mpsc::channel(QUEUE_MAX);
        let (done, closed) = sync_mpsc::channel();
        thread::Builder::new().name("farebox-ledger".into()).spawn(move || {
            run(&connection, &files, waiting, copy.as_ref());
            drop((copy, connection, exclusive));
            drop(done);
        })?;
        Ok(Self { jobs: Some(jobs), closed: Mutex::new(closed) })
    }

    /// Runs `work` in the next group, and returns its result once that is on disk.
    pub(crate) async fn write<T, W>(&self, orphan: Orphan, work: W) -> Result<T, WriteError>
    where
        T: Send + 'static,
        W: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let jobs = self.jobs.as_ref().ok_or(WriteError::Gone)?;
        let (reply, answer) = oneshot::channel();
        let job = Box::new(Pending { orphan, work: Some(work), result: None, reply });
        let written = async {
            jobs.send(job).await.map_err(|_| WriteError::Gone)?;
            answer.await.map_err(|_| WriteError::Gone)?
        };
        timeout(WRITE_WAIT_MAX, written).await.map_err(|_| WriteError::TimedOut)?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if closed.recv_timeout(CLOSE_WAIT_MAX) == Err(sync_mpsc::RecvTimeoutError::Timeout) {
            tracing::error!("the ledger's last writes did not reach the disk in time; closing without them");
        }
    }
}

fn run(connection: &Connection, files: &Files, mut waiting: mpsc::Receiver<Box<dyn Job>>, copy: Option<&AuditFile>) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    while waiting.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
        let lost = commit(connection, files, &mut group).err().map(Arc::new);
        if let Some(error) = &lost {
            tracing::error!(error = %error, operations = group.len(), "a group of ledger writes was not committed");
            roll_back(connection);
        }
        for job in group.drain(..) {
            job.reply(lost.as_ref());
        }
        if let Some(copy) = copy {
            copy.wake();
        }
    }
}

/// All of the group's operations that succeed, or an error and none.
fn commit(connection: &Connection, files: &Files, group: &mut [Box<dyn Job>]) -> rusqlite::Result<()> {
    files.in_place()?;
    execute(connection, "BEGIN IMMEDIATE")?;
    for job in &mut *group {
        job.run(connection)?;
    }
    execute(connection, "COMMIT")
}

fn roll_back(connection: &Connection) {
    // After some failures, such as a full disk, SQLite has rolled back by itself.
    if !connection.is_autocommit()
        && let Err(error) = execute(connection, "ROLLBACK")
    {
        tracing::error!(%error, "a failed group of ledger writes could not be rolled back");
    }
}

fn execute(connection: &Connection, sql: &'static str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([])?;
    Ok(())
}

/// An operation in the queue, whatever it returns.
trait Job: Send {
    /// Does it inside a savepoint. An error means that the group's transaction is lost.
    fn run(&mut self, connection: &Connection) -> rusqlite::Result<()>;

    /// Tells the caller, if it still listens.
    fn reply(self: Box<Self>, lost: Option<&Arc<rusqlite::Error>>);
}

struct Pending<T, W> {
    orphan: Orphan,
    work: Option<W>,
    result: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, WriteError>>,
}

impl<T, W> Job for Pending<T, W>
where
    T: Send,
    W: FnOnce(&Connection) -> Result<T, StoreError> + Send,
{
    fn run(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let Some(work) = self.work.take() else { return Ok(()) };
        if self.orphan == Orphan::Skip && self.reply.is_closed() {
            return Ok(());
        }
        execute(connection, "SAVEPOINT operation")?;
        let result = work(connection);
        match result {
            Ok(_) => execute(connection, "RELEASE operation")?,
            // The failure took the whole transaction with it: a full disk, an IO error, no memory.
            Err(StoreError::Sqlite(error)) if connection.is_autocommit() => return Err(error),
            Err(_) => {
                execute(connection, "ROLLBACK TO operation")?;
                execute(connection, "RELEASE operation")?;
            }
        }
        self.result = Some(result);
        Ok(())
    }

    fn reply(self: Box<Self>, lost: Option<&Arc<rusqlite::Error>>) {
        let result = match (lost, self.result) {
            (Some(error), _) => Err(WriteError::GroupLost(error.clone())),
            (None, Some(result)) => result.map_err(WriteError::Refused),
            (None, None) => return,
        };
        // A caller that went away learns of it from the books.
        drop(self.reply.send(result));
    }
}
