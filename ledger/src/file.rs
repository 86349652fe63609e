//! The file itself: who may open it, how, and what can be wrong with it.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags};

/// How long a statement waits for a lock that another process holds, such as an operator's `sqlite3` that writes.
pub(crate) const BUSY_WAIT_MAX: Duration = Duration::from_secs(3);

/// The write-ahead log is cut back to this size when it is reset, in bytes.
const LOG_BYTES_KEPT: u32 = 64 << 20;

/// Prepared statements kept per connection: more than this crate has.
const STATEMENTS_KEPT: usize = 128;

/// Why a ledger was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A gateway has it open.
    #[error("another gateway is using this ledger (it holds {})\nhint: stop it first, or give this one a ledger of its own", lock.display())]
    InUse {
        /// The lock file.
        lock: PathBuf,
    },
    /// It could not be created, locked or read.
    #[error("cannot open {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is another program's database, or no database.
    #[error("the file is not a Farebox ledger, or its first page is damaged")]
    NotALedger {
        /// What SQLite said, if it is no database at all.
        #[source]
        source: Option<rusqlite::Error>,
    },
    /// It was written by a newer Farebox.
    #[error(
        "the ledger has schema version {found}, this program knows up to {known}\nhint: run the newer farebox that wrote it"
    )]
    Newer {
        /// The file's version.
        found: usize,
        /// Ours.
        known: usize,
    },
    /// A reader found an older schema, which only a gateway migrates.
    #[error(
        "the ledger has schema version {found}, expected {expected}\nhint: start `farebox serve` once, which migrates it"
    )]
    Older {
        /// The file's version.
        found: usize,
        /// Ours.
        expected: usize,
    },
    /// Rows of an older file refer to payments that it does not have.
    #[error("{rows} rows of the ledger belong to payments that it does not have, so it was not migrated")]
    Dangling {
        /// How many.
        rows: i64,
    },
    /// The file system cannot hold a write-ahead log, as some network file systems cannot.
    #[error(
        "the ledger's file system does not support write-ahead logging (journal mode is {mode})\nhint: put the file on a local disk"
    )]
    NoLog {
        /// The journal mode that SQLite stayed in.
        mode: String,
    },
    /// SQLite failed: a damaged file, a full disk, a lock.
    #[error("the ledger could not be read or written")]
    Sqlite(#[source] rusqlite::Error),
    /// The writer thread could not be started.
    #[error("the ledger's writer thread could not be started")]
    Thread(#[source] io::Error),
}

impl OpenError {
    /// A stable name.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::InUse { .. } => "ledger_in_use",
            Self::File { .. } => "ledger_file",
            Self::NotALedger { .. } => "not_a_ledger",
            Self::Newer { .. } => "ledger_newer",
            Self::Older { .. } => "ledger_older",
            Self::Dangling { .. } => "ledger_dangling",
            Self::NoLog { .. } => "ledger_no_log",
            Self::Sqlite(_) => "ledger_sqlite",
            Self::Thread(_) => "ledger_thread",
        }
    }
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => Self::NotALedger { source: Some(error) },
            _ => Self::Sqlite(error),
        }
    }
}

/// A ledger file that this process alone writes, until dropped.
#[derive(Debug)]
pub(crate) struct Exclusive {
    /// Without symbolic links: two names of one file must meet at one lock.
    pub(crate) path: PathBuf,
    /// Unlocked when closed, and by the kernel when the process dies.
    _lock: File,
}

/// Creates the file if there is none and takes the lock beside it.
pub(crate) fn take(path: &Path) -> Result<Exclusive, OpenError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::File { path, source }
    };
    create(path).map_err(at(path))?;
    let path = fs::canonicalize(path).map_err(at(path))?;
    let lock_path = beside(&path, ".lock");
    // Not the ledger file itself: closing any handle of it would drop SQLite's own POSIX locks on it.
    let lock = private().create(true).truncate(false).open(&lock_path).map_err(at(&lock_path))?;
    match lock.try_lock() {
        Ok(()) => Ok(Exclusive { path, _lock: lock }),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { lock: lock_path }),
        Err(TryLockError::Error(source)) => Err(at(&lock_path)(source)),
    }
}

/// A connection that writes durably: a commit is on disk when it returns.
pub(crate) fn connect_writer(path: &Path) -> Result<Connection, OpenError> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if mode != "wal" {
        return Err(OpenError::NoLog { mode });
    }
    connection.pragma_update(None, "synchronous", "full")?;
    // On macOS fsync does not reach the disk; elsewhere these two do nothing.
    connection.pragma_update(None, "fullfsync", true)?;
    connection.pragma_update(None, "checkpoint_fullfsync", true)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // What a savepoint needs to undo itself stays in memory.
    connection.pragma_update(None, "temp_store", "memory")?;
    let _: i64 = connection.pragma_update_and_check(None, "journal_size_limit", LOG_BYTES_KEPT, |row| row.get(0))?;
    Ok(connection)
}

/// A connection that only reads. `flags` choose whether it may take part in the write-ahead log's upkeep.
pub(crate) fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, OpenError> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_WAIT_MAX)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    Ok(connection)
}

/// Which files a connection writes to. Deleted or replaced, they still take every write, and no later start finds any of it.
#[derive(Debug)]
pub(crate) struct Files(Vec<(PathBuf, FileId)>);

impl Files {
    /// The ledger at `path`, once a connection has it open: by then SQLite has made the two files beside it.
    pub(crate) fn of(path: &Path) -> Result<Self, OpenError> {
        let paths = [path.to_owned(), beside(path, "-wal"), beside(path, "-shm")];
        let identified = paths.into_iter().map(|path| match file_id(&path) {
            Ok(id) => Ok((path, id)),
            Err(source) => Err(OpenError::File { path, source }),
        });
        Ok(Self(identified.collect::<Result<_, _>>()?))
    }

    /// Fails as SQLite does when it notices: it does so for rollback journals, and not for a write-ahead log.
    pub(crate) fn in_place(&self) -> rusqlite::Result<()> {
        let Some((path, _)) = self.0.iter().find(|(path, id)| file_id(path).ok().as_ref() != Some(id)) else {
            return Ok(());
        };
        let moved = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_READONLY_DBMOVED);
        let told = format!("{} was deleted or replaced while in use; restart the gateway", path.display());
        Err(rusqlite::Error::SqliteFailure(moved, Some(told)))
    }
}

/// Device and inode.
#[cfg(unix)]
pub(crate) type FileId = (u64, u64);

#[cfg(unix)]
pub(crate) fn file_id(path: &Path) -> io::Result<FileId> {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

/// A file that is open cannot be deleted here.
#[cfg(not(unix))]
pub(crate) type FileId = ();

#[cfg(not(unix))]
pub(crate) fn file_id(path: &Path) -> io::Result<FileId> {
    fs::metadata(path).map(drop)
}

fn create(path: &Path) -> io::Result<()> {
    match private().create_new(true).open(path) {
        Ok(_) => sync_folder(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            warn_if_public(path);
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Readable by its owner alone: the files hold credentials, paid answers, and who bought what.
pub(crate) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// A new file survives a power cut only once its folder is on disk too.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(unix)]
fn warn_if_public(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    if let Ok(metadata) = fs::metadata(path)
        && metadata.permissions().mode() & 0o077 != 0
    {
        tracing::warn!(path = %path.display(), "other users may read the ledger, which holds paid answers; chmod 600 it");
    }
}

#[cfg(not(unix))]
const fn warn_if_public(_path: &Path) {}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}
