//! Read connections, and threads to use them on: a disk that hangs must hang a reader's thread, not the runtime's.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use crate::{OpenError, file::connect, query::StoreError};

/// Reads at the same time, and so connections.
const READERS_MAX: usize = 4;

/// How long a caller waits for a connection and its read together.
const READ_WAIT_MAX: Duration = Duration::from_secs(5);

/// Why a read has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a read connection could not be opened")]
    Open(#[from] OpenError),
    #[error("the ledger did not answer within {} s", READ_WAIT_MAX.as_secs())]
    TimedOut,
    #[error("the read was broken off")]
    Broken,
}

/// Connections that see every commit made before the read began.
#[derive(Debug)]
pub(crate) struct Reads {
    pool: Arc<Pool>,
    permits: Arc<Semaphore>,
}

#[derive(Debug)]
struct Pool {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Reads {
    pub(crate) fn new(path: PathBuf) -> Self {
        let pool = Pool { path, idle: Mutex::new(Vec::with_capacity(READERS_MAX)) };
        Self { pool: Arc::new(pool), permits: Arc::new(Semaphore::new(READERS_MAX)) }
    }

    /// Runs `work` on a connection of its own.
    pub(crate) async fn read<T, W>(&self, work: W) -> Result<T, ReadError>
    where
        T: Send + 'static,
        W: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let pool = self.pool.clone();
        let permits = self.permits.clone();
        let answered = async {
            let permit = permits.acquire_owned().await.map_err(|_| ReadError::Broken)?;
            let task = spawn_blocking(move || {
                // Held by the thread, not by the caller: one that timed out must not make room for a fifth connection.
                let _permit = permit;
                pool.with(work)
            });
            task.await.map_err(|_| ReadError::Broken)?
        };
        timeout(READ_WAIT_MAX, answered).await.map_err(|_| ReadError::TimedOut)?
    }
}

impl Pool {
    fn with<T>(&self, work: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, ReadError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => connect(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY)?,
        };
        let result = work(&connection)?;
        // A connection that failed is not used again.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        Ok(result)
    }
}
