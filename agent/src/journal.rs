//! What an agent has signed, on disk before it is sent: after a crash the identical bytes go out again, and nothing is signed
//! twice for one request.
//!
//! The folder holds `open/<fingerprint>.json`, one file a request whose payment is not known to be over;
//! `closed/<ms>-<fingerprint>.json`, the receipts; and `lock/<fingerprint>`, held by the process at work on a request, and
//! `lock/<network>-<account>`, held while a transaction of that account is given its nonce, noted and sent. All are readable by
//! their owner alone, for an authorization is money to whoever holds it. Beside them are the tokens that Lightning payments buy; see `l402/store.rs`.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use farebox_core::{EvmAddress, Network, Timestamp};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    entry::{Entry, Fingerprint},
    l402::{SPENT, TOKENS},
};

/// How many receipts are kept; the oldest go first.
pub const RECEIPTS_MAX: usize = 10_000;

/// How long an open entry is kept after its last authorization has expired, before it is filed with its outcome unknown.
pub const UNRESOLVED_KEPT_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long a charged request whose answer did not arrive whole is asked for again with the same authorization.
pub const REDELIVERY_WITHIN: Duration = Duration::from_secs(3600);

/// How long after its end an authorization is still taken for usable: the chain's clock decides, and it may be behind ours.
pub const EXPIRY_GRACE: Duration = Duration::from_secs(120);

/// The largest journal file that is read; ours are far smaller.
const ENTRY_BYTES_MAX: u64 = 1 << 20;

/// How often a lock held by somebody else is tried.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// The journal of one or many agents, in one folder. Safe to share between threads and between processes.
#[derive(Clone, Debug)]
pub struct Journal {
    pub(crate) folder: Arc<Path>,
}

/// Why the journal could not be used. Nothing is signed when it cannot.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system said no.
    #[error("could not {operation} {path}")]
    Io {
        /// Such as `write`.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// An entry is there and the file system does not give it. It may stand for money.
    #[error("could not read {path}, which may stand for a payment")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// A file is not one that this version wrote. It may stand for money, so it is never overwritten or skipped.
    #[error("{path} is not a readable journal entry; look at it, and move it away once you know its payment is over")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The file is of another request than its name says, or larger than any entry.
    #[error("{path} does not belong here: {reason}; look at it, and move it away once you know its payment is over")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// Somebody else works on the same request, or with the same account, and did not finish in time.
    #[error(
        "another agent is paying for the same request or from the same account and did not finish in time; run this again later"
    )]
    Busy,
    /// The thread that worked on the files ended.
    #[error("the work on the journal was interrupted")]
    Interrupted,
}

impl JournalError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } | Self::Unreadable { .. } | Self::Interrupted => "journal_unavailable",
            Self::Corrupt { .. } | Self::Foreign { .. } => "journal_corrupt",
            Self::Busy => "journal_busy",
        }
    }

    /// Whether the same call may succeed later without anybody's help.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Busy | Self::Interrupted => true,
            Self::Io { .. } | Self::Unreadable { .. } | Self::Corrupt { .. } | Self::Foreign { .. } => false,
        }
    }
}

impl Journal {
    /// Opens the journal in `folder`, making it (mode 0700) if it is not there, and tidies up what is past its time as of
    /// `now`.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(folder: &Path, now: Timestamp) -> Result<Self, JournalError> {
        for part in ["open", "closed", "lock", TOKENS, SPENT] {
            make_folder(&folder.join(part))?;
        }
        let journal = Self { folder: folder.into() };
        journal.tidy(now)?;
        journal.tidy_purchases(now)?;
        Ok(journal)
    }

    /// Names the journal in `folder` without making or reading it: enough for [`Agent::quote`](crate::Agent::quote). A payment
    /// with it fails before anything is signed unless the folder was made by [`Journal::open`].
    #[must_use]
    pub fn unopened(folder: &Path) -> Self {
        Self { folder: folder.into() }
    }

    /// Requests whose payment is not known to be over.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn unresolved(&self) -> Result<Vec<Entry>, JournalError> {
        self.names("open")?.into_iter().map(|name| read_entry(&self.folder.join("open").join(name))).collect()
    }

    /// What was paid, newest first, at most `limit`.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn receipts(&self, limit: usize) -> Result<Vec<Entry>, JournalError> {
        let names = self.names("closed")?;
        names.into_iter().rev().take(limit).map(|name| read_entry(&self.folder.join("closed").join(name))).collect()
    }

    /// Whether something is open for this request. Only a hint: the entry itself is read under its lock.
    pub(crate) fn has_open(&self, fingerprint: &Fingerprint) -> bool {
        self.open_path(fingerprint).exists()
    }

    /// What is open for this request, read without its lock: for showing alone.
    pub(crate) fn peek(&self, fingerprint: &Fingerprint) -> Result<Option<Entry>, JournalError> {
        match read_entry(&self.open_path(fingerprint)) {
            Ok(entry) => Ok(Some(entry)),
            Err(JournalError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until nobody else, in this process or another, works on the request, at most `wait`.
    pub(crate) async fn hold(&self, fingerprint: &Fingerprint, wait: Duration) -> Result<Held, JournalError> {
        let lock = self.lock(fingerprint.as_str().to_owned(), wait).await?;
        Ok(Held { journal: self.clone(), fingerprint: fingerprint.clone(), _lock: lock })
    }

    /// Waits until nobody else gives nonces of this account to transactions, at most `wait`.
    pub(crate) async fn hold_account(
        &self,
        network: &Network,
        account: EvmAddress,
        wait: Duration,
    ) -> Result<Lock, JournalError> {
        self.lock(format!("{}-{account:x}", network.as_str().replace(':', "-")), wait).await
    }

    /// The open payments by transfers of this account. A file that cannot be read is left out: it may hide a nonce, but the chain
    /// lets a nonce be used only once.
    pub(crate) async fn transfers_of(&self, network: Network, account: EvmAddress) -> Result<Vec<Entry>, JournalError> {
        let journal = self.clone();
        blocking(move || {
            let mut found = Vec::new();
            for name in journal.names("open")? {
                let path = journal.folder.join("open").join(name);
                match read_entry(&path) {
                    Ok(entry) => found.push(entry),
                    Err(error) => tracing::warn!(path = %path.display(), %error, "unreadable journal entry"),
                }
            }
            found.retain(|entry| {
                let made = &entry.current;
                made.transfer().is_some() && made.payer == Some(account) && *made.offer.network() == network
            });
            Ok(found)
        })
        .await
    }

    pub(crate) async fn lock(&self, name: String, wait: Duration) -> Result<Lock, JournalError> {
        let until = tokio::time::Instant::now() + wait;
        loop {
            let (journal, name) = (self.clone(), name.clone());
            if let Some(lock) = blocking(move || journal.try_lock(&name)).await? {
                return Ok(lock);
            }
            if tokio::time::Instant::now() >= until {
                return Err(JournalError::Busy);
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    fn try_hold(&self, fingerprint: Fingerprint) -> Result<Option<Held>, JournalError> {
        let lock = self.try_lock(fingerprint.as_str())?;
        Ok(lock.map(|lock| Held { journal: self.clone(), fingerprint, _lock: lock }))
    }

    fn try_lock(&self, name: &str) -> Result<Option<Lock>, JournalError> {
        let path = self.folder.join("lock").join(name);
        let file = private(OpenOptions::new().write(true).create(true).truncate(false))
            .open(&path)
            .map_err(io_error("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => return Err(io_error("lock", &path)(source)),
        }
        // Whoever held the lock before removed its file: a third one may already hold a lock on a new file of that name.
        if !same_file(&file, &path).map_err(io_error("look at", &path))? {
            return Ok(None);
        }
        Ok(Some(Lock { path, _file: file }))
    }

    /// The newest entry of this request that was charged after `since`, delivered or not.
    pub(crate) fn paid_after(&self, which: &Fingerprint, since: Timestamp) -> Result<Option<Entry>, JournalError> {
        let suffix = format!("-{which}.json");
        for name in self.names("closed")?.into_iter().rev().filter(|name| name.ends_with(&suffix)) {
            let entry = read_entry(&self.folder.join("closed").join(name))?;
            if entry.charged_at().is_some_and(|at| at > since) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Files an entry among the receipts. A crash before this leaves it open: the same bytes are sent again, which costs
    /// nothing, so nothing is synced.
    pub(crate) fn file(&self, fingerprint: &Fingerprint, signed_at: Timestamp) -> Result<(), JournalError> {
        let from = self.open_path(fingerprint);
        let to = self.folder.join("closed").join(format!("{:013}-{fingerprint}.json", signed_at.unix_ms()));
        match fs::rename(&from, &to) {
            // Two readers of one answer may both come to its end.
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("file", &from)(error)),
            _ => Ok(()),
        }
    }

    fn open_path(&self, fingerprint: &Fingerprint) -> PathBuf {
        self.folder.join("open").join(format!("{fingerprint}.json"))
    }

    /// File names of entries in one folder, oldest first; not the half-written ones.
    pub(crate) fn names(&self, part: &str) -> Result<Vec<String>, JournalError> {
        let folder = self.folder.join(part);
        let mut names = Vec::new();
        for item in fs::read_dir(&folder).map_err(io_error("list", &folder))? {
            let name = item.map_err(io_error("list", &folder))?.file_name();
            names.extend(name.to_str().filter(|name| name.ends_with(".json")).map(str::to_owned));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Files open entries that are long over, and drops the oldest receipts. A file that cannot be read is left for the
    /// request it stands for to complain about.
    fn tidy(&self, now: Timestamp) -> Result<(), JournalError> {
        for name in self.names("open")? {
            let path = self.folder.join("open").join(name);
            let Ok(entry) = read_entry(&path) else {
                tracing::warn!(path = %path.display(), "unreadable journal entry");
                continue;
            };
            if entry.is_long_over(now)
                && let Some(held) = self.try_hold(entry.fingerprint.clone())?
                && let Some(entry) = held.load_now()?.filter(|entry| entry.is_long_over(now))
            {
                held.file_now(&entry)?;
            }
        }
        let closed = self.names("closed")?;
        for name in closed.iter().take(closed.len().saturating_sub(RECEIPTS_MAX)) {
            remove_if_there(&self.folder.join("closed").join(name))?;
        }
        Ok(())
    }
}

/// The right to work on one request. Given back when dropped, and by the system when the process dies.
#[derive(Debug)]
pub(crate) struct Held {
    journal: Journal,
    fingerprint: Fingerprint,
    _lock: Lock,
}

/// A file that one process at a time has locked.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    /// Its lock ends when it is closed.
    _file: File,
}

impl Held {
    /// The open entry of the request, if there is one.
    pub(crate) async fn load(self: &Arc<Self>) -> Result<Option<Entry>, JournalError> {
        let held = Arc::clone(self);
        blocking(move || held.load_now()).await
    }

    /// An entry of this request that somebody else had charged after `since`: it finished while we waited.
    pub(crate) async fn paid_after(self: &Arc<Self>, since: Timestamp) -> Result<Option<Entry>, JournalError> {
        let held = Arc::clone(self);
        blocking(move || held.journal.paid_after(&held.fingerprint, since)).await
    }

    /// Writes the entry so that it outlives a crash of the machine, before this returns. A dropped future may leave it written
    /// or not, never half.
    pub(crate) async fn store(self: &Arc<Self>, entry: &Entry) -> Result<(), JournalError> {
        let (held, entry) = (Arc::clone(self), entry.clone());
        blocking(move || held.store_now(&entry)).await
    }

    /// Files the entry among the receipts.
    pub(crate) async fn file(self: &Arc<Self>, entry: &Entry) -> Result<(), JournalError> {
        let (held, entry) = (Arc::clone(self), entry.clone());
        blocking(move || held.file_now(&entry)).await
    }

    fn load_now(&self) -> Result<Option<Entry>, JournalError> {
        let path = self.journal.open_path(&self.fingerprint);
        match read_entry(&path) {
            Ok(entry) if entry.fingerprint != self.fingerprint => {
                Err(JournalError::Foreign { path, reason: "it is of another request than its name says" })
            }
            Ok(entry) => Ok(Some(entry)),
            Err(JournalError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn store_now(&self, entry: &Entry) -> Result<(), JournalError> {
        write_durably(&self.journal.open_path(&self.fingerprint), entry)
    }

    /// Takes back the entry's authorization, by which nothing was or can be charged: what it superseded counts again, and without such a one
    /// nothing is left of the entry.
    pub(crate) async fn take_back(self: &Arc<Self>, entry: &mut Entry) -> Result<(), JournalError> {
        match entry.superseded.pop() {
            Some(before) => {
                entry.current = before;
                self.store(entry).await
            }
            None => {
                let held = Arc::clone(self);
                blocking(move || remove_if_there(&held.journal.open_path(&held.fingerprint))).await
            }
        }
    }

    fn file_now(&self, entry: &Entry) -> Result<(), JournalError> {
        self.journal.file(&self.fingerprint, entry.signed_at())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while still locked, so that nobody can hold a lock on a file that has lost its name; see `same_file`.
        if let Err(error) = remove_if_there(&self.path) {
            tracing::debug!(%error, "a lock file stays behind, which does no harm");
        }
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, JournalError> + Send + 'static,
) -> Result<T, JournalError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| JournalError::Interrupted)?
}

fn read_entry(path: &Path) -> Result<Entry, JournalError> {
    read_json(path)
}

/// Writes a file so that it outlives a crash of the machine, before this returns: the old one or the new one is there, never half of either.
pub(crate) fn write_durably(path: &Path, value: &impl Serialize) -> Result<(), JournalError> {
    let draft = path.with_extension("draft");
    let bytes =
        serde_json::to_vec_pretty(value).map_err(|source| JournalError::Corrupt { path: path.to_owned(), source })?;
    let mut file = private(OpenOptions::new().write(true).create(true).truncate(true))
        .open(&draft)
        .map_err(io_error("write", &draft))?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(io_error("write", &draft))?;
    fs::rename(&draft, path).map_err(io_error("write", path))?;
    path.parent().map_or(Ok(()), sync_folder)
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, JournalError> {
    let unreadable = |source| JournalError::Unreadable { path: path.to_owned(), source };
    let size = fs::metadata(path).map_err(unreadable)?.len();
    if size > ENTRY_BYTES_MAX {
        return Err(JournalError::Foreign { path: path.to_owned(), reason: "it is larger than any journal entry" });
    }
    let bytes = fs::read(path).map_err(unreadable)?;
    serde_json::from_slice(&bytes).map_err(|source| JournalError::Corrupt { path: path.to_owned(), source })
}

fn make_folder(path: &Path) -> Result<(), JournalError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(io_error("make", path))
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

/// A rename is durable only once its folder is.
fn sync_folder(path: &Path) -> Result<(), JournalError> {
    if cfg!(unix) {
        File::open(path).and_then(|folder| folder.sync_all()).map_err(io_error("write", path))?;
    }
    Ok(())
}

#[cfg(unix)]
fn same_file(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let (held, named) = match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(named)) => (held, named),
        (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    Ok((held.dev(), held.ino()) == (named.dev(), named.ino()))
}

/// Where an open file cannot be removed, its name cannot come to mean another file.
#[cfg(not(unix))]
fn same_file(_: &File, path: &Path) -> io::Result<bool> {
    Ok(path.exists())
}

pub(crate) fn remove_if_there(path: &Path) -> Result<(), JournalError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    move |source| JournalError::Io { operation, path: path.to_owned(), source }
}
