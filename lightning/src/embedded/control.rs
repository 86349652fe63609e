//! How another process of the same user asks the one that runs the node: a Unix socket in the node's directory, which nobody else can
//! enter. One line of JSON each way.

use std::{io, path::Path, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    Core,
    manage::{Command, CommandError, Done},
};

const SOCKET: &str = "control.sock";
/// The longest line: a report of some thousand channels.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// How long a question may take to arrive.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may take; opening a channel waits for its peer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Questions answered at the same time.
const QUESTIONS_MAX: usize = 8;

/// Why no answer was had.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody runs the node, or not so that it can be asked.
    #[error("the node does not run")]
    NotRunning,
    /// The running node said no.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// It did not answer as it should; whether it did what it was asked is not known.
    #[error("the running node did not answer")]
    Broken(#[source] io::Error),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Ok(Done),
    Error(CommandError),
}

#[cfg(not(unix))]
mod socket {
    use super::*;

    pub(in super::super) fn serve(_core: &Arc<Core>, _stop: watch::Receiver<bool>) {}

    /// Asks the process that runs the node in `dir`.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn ask(_dir: &Path, _command: &Command) -> Result<Done, ControlError> {
        Err(ControlError::NotRunning)
    }
}

#[cfg(unix)]
mod socket {
    use tokio::{
        io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
        net::{UnixListener, UnixStream},
        sync::Semaphore,
        time::timeout,
    };

    use super::{
        super::{home, stopped},
        *,
    };

    /// Listens for questions until told to stop. Without a socket the node works all the same, and a warning says so.
    pub(in super::super) fn serve(core: &Arc<Core>, stop: watch::Receiver<bool>) {
        let path = core.home.dir.join(SOCKET);
        let _within = core.tasks.enter();
        // The lock on the directory is ours: what is there was left behind.
        let left = match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        let bound = left.and_then(|()| UnixListener::bind(&path)).and_then(|listener| {
            home::private(&path, 0o600)?;
            Ok(listener)
        });
        match bound {
            Ok(listener) => drop(core.tasks.spawn(accept(core.clone(), listener, stop))),
            Err(error) => tracing::warn!(
                node = core.label, %error, path = %path.display(),
                "`farebox lightning` cannot ask this process; stop it to use those commands"
            ),
        }
    }

    async fn accept(core: Arc<Core>, listener: UnixListener, mut stop: watch::Receiver<bool>) {
        let room = Arc::new(Semaphore::new(QUESTIONS_MAX));
        loop {
            let permit = tokio::select! {
                () = stopped(&mut stop) => return,
                permit = room.clone().acquire_owned() => permit,
            };
            let stream = tokio::select! {
                () = stopped(&mut stop) => return,
                accepted = listener.accept() => accepted,
            };
            match stream {
                Ok((stream, _)) => {
                    let core = core.clone();
                    tokio::spawn(async move {
                        if let Err(error) = answer(core, stream).await {
                            tracing::debug!(%error, "a question to the node was not answered");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(node = core.label, %error, "a question to the node could not be taken");
                    tokio::time::sleep(READ_TIMEOUT).await;
                }
            }
        }
    }

    async fn answer(core: Arc<Core>, mut stream: UnixStream) -> io::Result<()> {
        let command: Command = timeout(READ_TIMEOUT, read_line(&mut stream)).await??;
        let answer = match core.command(command).await {
            Ok(done) => Answer::Ok(done),
            Err(error) => Answer::Error(error),
        };
        timeout(READ_TIMEOUT, write_line(&mut stream, &answer)).await?
    }

    /// Asks the process that runs the node in `dir`.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn ask(dir: &Path, command: &Command) -> Result<Done, ControlError> {
        let mut stream = match UnixStream::connect(dir.join(SOCKET)).await {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Err(ControlError::NotRunning);
            }
            Err(error) => return Err(ControlError::Broken(error)),
        };
        let asked = async {
            write_line(&mut stream, command).await?;
            read_line(&mut stream).await
        };
        let answer = timeout(ANSWER_TIMEOUT, asked).await.unwrap_or_else(|late| Err(late.into()));
        match answer.map_err(ControlError::Broken)? {
            Answer::Ok(done) => Ok(done),
            Answer::Error(error) => Err(error.into()),
        }
    }

    async fn write_line(stream: &mut UnixStream, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        stream.write_all(&line).await
    }

    async fn read_line<T: for<'de> Deserialize<'de>>(stream: &mut UnixStream) -> io::Result<T> {
        let mut line = Vec::new();
        BufReader::new(stream.take(LINE_BYTES_MAX)).read_until(b'\n', &mut line).await?;
        Ok(serde_json::from_slice(&line)?)
    }
}

pub use socket::ask;
pub(super) use socket::serve;
