//! The gateway as its user runs it: a binary, a config file, a folder.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::{Process, Tool, free_port, tool};

/// Far above what it takes, for a machine with ten other things to do.
const START_WITHIN: Duration = Duration::from_secs(20);

/// What a gateway is started with; kept over restarts.
#[derive(Debug)]
pub struct Setup {
    dir: TempDir,
    port: u16,
    env: Vec<(String, String)>,
    wrapper: Vec<String>,
    clock_ahead: Duration,
}

impl Setup {
    /// A folder with `farebox.toml`: a `listen` line with a free port, then `config`, in which `$ORIGIN` stands for the gateway's own
    /// origin.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn new(config: &str) -> Result<Self> {
        let setup = Self {
            dir: tempfile::tempdir()?,
            port: free_port()?,
            env: vec![],
            wrapper: vec![],
            clock_ahead: Duration::ZERO,
        };
        setup.configure(config)?;
        Ok(setup)
    }

    /// Writes the config anew, for the next start.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn configure(&self, config: &str) -> Result<()> {
        let config = config.replace("$ORIGIN", &self.url(""));
        let config = format!("listen = \"127.0.0.1:{}\"\n{config}", self.port);
        Ok(std::fs::write(self.dir.path().join("farebox.toml"), config)?)
    }

    /// With one more environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Started by this command, which is given the binary and its arguments and must end by becoming it.
    #[must_use]
    pub fn wrapped(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// The folder: config, ledger.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The address of `path` on the gateway.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// `farebox ARGUMENTS..` in the folder.
    ///
    /// # Errors
    /// The binary is not built.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let binary = tool(Tool::Farebox)?;
        let mut command = match self.wrapper.split_first() {
            Some((wrapper, words)) => {
                let mut command = Command::new(wrapper);
                command.args(words).arg(binary);
                command
            }
            None => Command::new(binary),
        };
        command.args(arguments).current_dir(self.dir.path());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if !self.clock_ahead.is_zero() {
            command.env("LD_PRELOAD", tool(Tool::Faketime)?);
            command.env("FAKETIME", format!("+{}", self.clock_ahead.as_secs()));
            // Waits and timeouts keep their length.
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        Ok(command)
    }
}

/// A running gateway.
#[derive(Debug)]
pub struct Farebox {
    setup: Setup,
    process: Process,
}

impl Farebox {
    /// Starts `farebox serve` and waits until it accepts connections.
    ///
    /// # Errors
    /// It ends or does not listen in time; the error carries what it said.
    pub async fn start(setup: Setup) -> Result<Self> {
        let mut process = Process::start("farebox", &mut setup.command(&["serve"])?)?;
        wait_until_it_listens(&setup, &mut process).await?;
        Ok(Self { setup, process })
    }

    /// The address of `path` on it.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        self.setup.url(path)
    }

    /// What it was started with.
    #[must_use]
    pub const fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The process, for its log and for signals.
    pub const fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// SIGKILL, with no chance to tidy up.
    ///
    /// # Errors
    /// It cannot be signalled.
    pub fn kill_9(&mut self) -> Result<()> {
        self.process.kill_9()
    }

    /// [`Farebox::restart`] with a wall clock that is so much ahead, whole seconds.
    ///
    /// # Errors
    /// As [`Farebox::start`].
    pub async fn restart_ahead(&mut self, by: Duration) -> Result<()> {
        self.setup.clock_ahead = by;
        self.restart().await
    }

    /// Starts it again on the same port, config and ledger, killing it first if it still runs.
    ///
    /// # Errors
    /// As [`Farebox::start`].
    pub async fn restart(&mut self) -> Result<()> {
        self.process.kill_9()?;
        self.process = Process::start("farebox", &mut self.setup.command(&["serve"])?)?;
        wait_until_it_listens(&self.setup, &mut self.process).await
    }
}

async fn wait_until_it_listens(setup: &Setup, process: &mut Process) -> Result<()> {
    let address = format!("127.0.0.1:{}", setup.port);
    let listens = async {
        loop {
            if let Some(status) = process.ended()? {
                bail!("farebox ended with {status} at its start; it said:\n{}", process.last_words().await);
            }
            if tokio::net::TcpStream::connect(&address).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(START_WITHIN, listens).await;
    waited.with_context(|| format!("farebox did not listen on {address} within {START_WITHIN:?}"))?
}
