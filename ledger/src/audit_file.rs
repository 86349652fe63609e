//! The audit log as a file of JSON lines too, for programs that follow files.
//!
//! A thread of its own copies what the writer has committed: a file system that is full or hangs stops the copy and nothing else. The
//! table is what counts; the file is completed from it, from the number in the file's last line on. Nothing is flushed to disk here, for
//! what a power cut takes is written again.

use std::{
    error::Error as _,
    fs::{self, File, TryLockError},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel},
    thread,
    time::Duration,
};

use farebox_core::AuditLine;
use rusqlite::{Connection, OpenFlags};

use crate::{
    OpenError, audit,
    file::{FileId, connect, file_id, private},
    query::StoreError,
};

/// Lines per write.
const PAGE_LINES: u32 = 1_000;

/// The end of the file that is searched for its last line: more than the longest line that we write.
const TAIL_BYTES: u64 = 1 << 20;

/// After a failure, the first wait before the next try; it doubles up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_secs(1);

/// The longest wait between two tries, and so between two errors in the log of the program.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// How long closing waits for the last lines.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(2);

/// The copying thread. Dropping this lets it write what is left.
#[derive(Debug)]
pub(crate) struct AuditFile {
    wake: Option<SyncSender<()>>,
    /// Never used: its end says that the ledger closes, to a thread that waits before its next try.
    open: Option<Sender<()>>,
    done: Receiver<()>,
}

impl AuditFile {
    /// Starts the thread, which first completes the file at `path` from the ledger at `ledger`.
    pub(crate) fn start(ledger: PathBuf, path: PathBuf) -> io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        let (open, closing) = channel();
        let (finished, done) = channel();
        thread::Builder::new().name("farebox-audit".into()).spawn(move || {
            run(Copier { ledger, path, connection: None, target: None, written: 0 }, &woken, &closing);
            drop(finished);
        })?;
        Ok(Self { wake: Some(wake), open: Some(open), done })
    }

    /// Says that there may be new lines. Never waits: if the thread has not yet looked since the last call, it will.
    pub(crate) fn wake(&self) {
        if let Some(wake) = &self.wake {
            // Full is as good, and a thread that is gone said why.
            let _ = wake.try_send(());
        }
    }
}

impl Drop for AuditFile {
    fn drop(&mut self) {
        self.wake = None;
        self.open = None;
        if self.done.recv_timeout(CLOSE_WAIT_MAX) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("the audit file could not be completed in time; the next start does");
        }
    }
}

fn run(mut copier: Copier, woken: &Receiver<()>, closing: &Receiver<()>) {
    let mut retry: Option<Duration> = None;
    let mut closed = false;
    loop {
        match copier.catch_up() {
            Ok(()) if retry.take().is_some() => {
                tracing::info!(path = %copier.path.display(), "the audit file is written again");
            }
            Ok(()) => {}
            Err(error) => {
                let cause = error.source().map(tracing::field::display);
                tracing::error!(path = %copier.path.display(), %error, cause, "the audit file is not written; the ledger has it all");
                retry = Some(retry.map_or(RETRY_FIRST, |wait| (wait * 2).min(RETRY_MAX)));
            }
        }
        if closed {
            return;
        }
        closed = match retry {
            Some(wait) => closing.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected),
            None => woken.recv().is_err(),
        };
    }
}

/// Why the file is not written now.
#[derive(Debug, thiserror::Error)]
enum CopyError {
    #[error("the audit log could not be read")]
    Store(#[from] StoreError),
    #[error("the ledger could not be opened")]
    Open(#[from] OpenError),
    #[error("the file could not be opened or written")]
    File(#[from] io::Error),
    #[error("another program holds a lock on the file")]
    Locked,
    #[error("the file ends with something that is not of this ledger's log; move it away, and a new one is made")]
    NotOurs,
}

struct Copier {
    ledger: PathBuf,
    path: PathBuf,
    connection: Option<Connection>,
    target: Option<Target>,
    /// The newest line that this process has written: a file that was rotated away goes on after it.
    written: u64,
}

/// The file, open at its end.
struct Target {
    /// Locked until closed.
    file: File,
    id: FileId,
    /// The number of its last line.
    last: u64,
}

impl Copier {
    /// Appends every line that the file lacks.
    fn catch_up(&mut self) -> Result<(), CopyError> {
        // Taken, so that whatever fails below is begun anew from what the file then has.
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.ledger, OpenFlags::SQLITE_OPEN_READ_ONLY)?,
        };
        let mut target = match self.target.take() {
            Some(target) if file_id(&self.path).is_ok_and(|id| id == target.id) => target,
            _ => Target::open(&self.path, self.written, &connection)?,
        };
        loop {
            let lines = audit::lines(&connection, target.last, PAGE_LINES)?;
            let Some(newest) = lines.last() else { break };
            target
                .file
                .write_all(lines.iter().map(|line| format!("{}\n", line.text)).collect::<String>().as_bytes())?;
            target.last = newest.sequence;
            self.written = target.last;
        }
        (self.connection, self.target) = (Some(connection), Some(target));
        Ok(())
    }
}

impl Target {
    /// Opens or creates the file. An empty one goes on after line `written`, one with lines after its last; what a crash left of a line
    /// is cut off.
    fn open(path: &Path, written: u64, ledger: &Connection) -> Result<Self, CopyError> {
        let mut file = private().append(true).create(true).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(CopyError::Locked),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let id = file_id(path)?;
        let length = fs::metadata(path)?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut tail = Vec::new();
        (&file).take(TAIL_BYTES).read_to_end(&mut tail)?;
        let complete = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let (lines, rest) = tail.split_at(complete);
        let last = match lines.strip_suffix(b"\n") {
            Some(lines) => number_of_last(lines, ledger)?,
            None => written,
        };
        if !rest.is_empty() {
            // Nulls are what some file systems leave of a write that a power cut took.
            let next = line_after(last, ledger)?.is_some_and(|line| line.text.as_bytes().starts_with(rest));
            if !next && rest.iter().any(|byte| *byte != 0) {
                return Err(CopyError::NotOurs);
            }
            file.set_len(length.saturating_sub(rest.len() as u64))?;
        }
        Ok(Self { file, id, last })
    }
}

/// The number of the last of these lines, if it is that line of this ledger.
fn number_of_last(lines: &[u8], ledger: &Connection) -> Result<u64, CopyError> {
    let start = lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let text = std::str::from_utf8(&lines[start..]).map_err(|_| CopyError::NotOurs)?;
    let line = AuditLine::read(text, 0).map_err(|_| CopyError::NotOurs)?;
    let before = line.sequence.checked_sub(1).ok_or(CopyError::NotOurs)?;
    match line_after(before, ledger)? {
        Some(known) if known == line => Ok(line.sequence),
        _ => Err(CopyError::NotOurs),
    }
}

fn line_after(number: u64, ledger: &Connection) -> Result<Option<AuditLine>, CopyError> {
    Ok(audit::lines(ledger, number, 1)?.pop())
}
