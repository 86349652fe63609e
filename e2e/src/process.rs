//! A child process whose output is kept, shown when a test fails, and which never outlives its value.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use tokio::time::Instant;

/// How many lines of a process's output are kept: a test that needs more is reading the wrong thing.
const LINES_MAX: usize = 20_000;
const POLL: Duration = Duration::from_millis(5);

/// Below the range from which the system takes ports for outgoing connections: one of those could take a port between its
/// choice here and the start, or the restart, of the process that is to listen on it.
const PORTS: std::ops::Range<u32> = 20_000..32_000;

/// A port that nothing listened on a moment ago, another one at each call.
///
/// # Errors
/// All are taken.
pub fn free_port() -> Result<u16> {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    // Test binaries that run side by side start at different places.
    let start = std::process::id().wrapping_mul(97);
    for _ in PORTS {
        let turn = start.wrapping_add(CALLS.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(PORTS.start + turn % (PORTS.end - PORTS.start))?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port of {PORTS:?} is free")
}

/// A running child. Dropped, it is killed and waited for, and prints its output if the test is failing.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Mutex<Output>>,
}

#[derive(Debug, Default)]
struct Output {
    lines: VecDeque<String>,
    pipes_closed: usize,
}

impl Process {
    /// Starts `command` with no input and both outputs kept.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(name: &str, command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {name}: {command:?}"))?;
        let output = Arc::<Mutex<Output>>::default();
        for pipe in [child.stdout.take().map(boxed), child.stderr.take().map(boxed)].into_iter().flatten() {
            let output = Arc::clone(&output);
            std::thread::spawn(move || keep(&output, pipe));
        }
        Ok(Self { name: name.to_owned(), child, output })
    }

    /// Waits until a line of output gives `Some`, looking at every line since the start.
    ///
    /// # Errors
    /// The process ends, or `within` passes, before such a line comes.
    pub async fn wait_for_line<T>(&self, within: Duration, mut found: impl FnMut(&str) -> Option<T>) -> Result<T> {
        let until = Instant::now() + within;
        loop {
            let ended = {
                let output = self.output.lock();
                if let Some(value) = output.lines.iter().find_map(|line| found(line)) {
                    return Ok(value);
                }
                output.pipes_closed == 2
            };
            if ended {
                bail!("{} ended before the line that was waited for; it said:\n{}", self.name, self.log());
            }
            if Instant::now() >= until {
                bail!("{} did not say what was waited for within {within:?}; it said:\n{}", self.name, self.log());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// All output so far, both pipes in the order of arrival.
    #[must_use]
    pub fn log(&self) -> String {
        self.output.lock().lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    /// [`Process::log`] of a process that has ended: what is still on its way is waited for, a second at most.
    pub async fn last_words(&self) -> String {
        let until = Instant::now() + Duration::from_secs(1);
        while self.output.lock().pipes_closed < 2 && Instant::now() < until {
            tokio::time::sleep(POLL).await;
        }
        self.log()
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and waits for the end: what a power cut leaves is what is on disk.
    ///
    /// # Errors
    /// It cannot be signalled.
    pub fn kill_9(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.name))?;
        self.child.wait().with_context(|| format!("wait for {}", self.name))?;
        Ok(())
    }

    /// Sends a signal by name, such as `TERM` or `STOP`.
    ///
    /// # Errors
    /// The signal cannot be sent.
    pub fn signal(&self, name: &str) -> Result<()> {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status()?;
        anyhow::ensure!(status.success(), "kill -s {name} {} failed: {status}", self.name);
        Ok(())
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// It still runs after `within`.
    pub async fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= until {
                bail!("{} still runs after {within:?}; it said:\n{}", self.name, self.log());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whether it has ended, and how.
    ///
    /// # Errors
    /// The system cannot tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only where the process has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            print_log(&self.name, &self.log());
        }
    }
}

fn keep(output: &Mutex<Output>, pipe: Box<dyn Read + Send>) {
    for line in BufReader::new(pipe).lines().map_while(Result::ok) {
        let mut output = output.lock();
        if output.lines.len() == LINES_MAX {
            output.lines.pop_front();
        }
        output.lines.push_back(line);
    }
    output.lock().pipes_closed += 1;
}

fn boxed(pipe: impl Read + Send + 'static) -> Box<dyn Read + Send> {
    Box::new(pipe)
}

#[expect(clippy::print_stderr, reason = "the log of a process whose test is failing")]
fn print_log(name: &str, log: &str) {
    eprintln!("--- {name} said:\n{log}\n--- end of {name}");
}
