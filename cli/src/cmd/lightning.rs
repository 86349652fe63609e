//! `farebox lightning`: a Lightning node of one's own, for sellers who have none.

mod report;
mod words;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use farebox_core::BitcoinNetwork;
use farebox_lightning::embedded::{
    self, ChainSource, Command, ControlError, Done, EmbeddedConfig, EmbeddedNode, HomeError, OpenError, Peer,
};
use tracing::warn;

use super::{Globals, print, serve};
use crate::{
    config::{self, LoadError, node::OwnNode},
    logging,
    system::{self, OsEntropy, SystemClock},
};

/// How long a node that was started for one question may take to hear of the chain before it is answered from what it knows.
const SYNC_TIMEOUT: Duration = Duration::from_secs(30);
const SYNC_LOOK: Duration = Duration::from_millis(200);
/// How long a node that was started to open or close a channel goes on, so that its transaction reaches the chain.
const BROADCAST_WAIT: Duration = Duration::from_secs(5);

/// Make and look after a Lightning node that runs within Farebox
///
/// While `farebox serve` or `farebox lightning run` runs the node, these commands ask that process; else they start the node for as long
/// as they need it. Peers see a node that is not running as away: channels open, and payments arrive, only while it runs.
#[derive(Debug, clap::Args)]
pub(crate) struct LightningArgs {
    /// The node's directory [default: as the config says]
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Whom the node asks about the chain: an Esplora API (https://…), an Electrum server (ssl://host:port, tcp://host:port) or a Bitcoin
    /// Core node (bitcoind://user:password@host:port) [default: as the config says]
    #[arg(long, global = true, value_name = "SOURCE", env = "FAREBOX_LIGHTNING_CHAIN", hide_env_values = true)]
    chain: Option<ChainSource>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: LightningCommand,
}

#[derive(Debug, clap::Subcommand)]
enum LightningCommand {
    /// Make a node: its directory and the 24 words of its seed
    ///
    /// The words are shown once. They bring back the coins on chain, not the channels: see `farebox lightning backup`.
    Init(words::InitArgs),
    /// Make a node from words that were written down
    ///
    /// It has the coins on chain of the node that was; its channels are gone. Reads the words from standard input.
    Restore(words::RestoreArgs),
    /// Say how the node is: coins, channels, what can be received, and what to do to receive more
    Status,
    /// Give a new address on chain, to send coins to
    Address,
    /// Connect to a peer, now and after every restart
    Connect {
        /// Its public key and address: 02ab…@host:port
        peer: Peer,
    },
    /// Open a channel: what is put into it can be sent, and what was sent can be received
    Open {
        /// The peer's public key and address: 02ab…@host:port
        peer: Peer,
        /// What to put into it, satoshis
        #[arg(long, value_name = "SAT")]
        sat: u64,
        /// Give so much of it away to the peer at once, satoshis: as much can be received from the start
        #[arg(long, value_name = "SAT", default_value_t = 0)]
        gift_sat: u64,
        /// The most that payments too small for the chain may put at risk, satoshis; peers that run Electrum need 5000 or so
        #[arg(long, value_name = "SAT")]
        dust_max_sat: Option<u64>,
    },
    /// Close a channel; its coins come back on chain
    Close {
        /// Its id as `status` shows it, or how it begins
        channel: String,
        /// Without the peer's help: the coins are locked for days, and fees are higher
        #[arg(long)]
        force: bool,
    },
    /// Say what to back up, and what never to
    Backup,
    /// Run the node without a gateway, until SIGTERM or SIGINT: while a channel opens, or to pay from it
    Run,
}

/// Does it.
///
/// # Errors
/// Whatever kept it from that.
pub(crate) fn run(args: LightningArgs, globals: &Globals) -> anyhow::Result<ExitCode> {
    logging::start(&logging::QUIET)?;
    let LightningArgs { dir, chain, json, command } = args;
    let place = Place::find(dir, chain, globals)?;
    let command = match command {
        LightningCommand::Init(args) => return words::init(&args, &place.dir, json, &OsEntropy),
        LightningCommand::Restore(args) => return words::restore(&args, &place.dir, json),
        LightningCommand::Run => {
            serve::runtime()?.block_on(hold(&place))?;
            return Ok(ExitCode::SUCCESS);
        }
        LightningCommand::Backup => {
            embedded::network_of(&place.dir)?;
            // What to back up is told even if the node cannot be asked for its channels.
            let channels = match serve::runtime()?.block_on(done(&place, Command::Status)) {
                Ok(Done::Status(report)) => Some(report.channels),
                Ok(_) => None,
                Err(error) => {
                    warn!("the channels cannot be listed: {error:#}");
                    None
                }
            };
            print(&report::backup(&place.dir, channels.as_deref(), json)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        LightningCommand::Status => Command::Status,
        LightningCommand::Address => Command::Address,
        LightningCommand::Connect { peer } => Command::Connect { peer },
        LightningCommand::Open { peer, sat, gift_sat, dust_max_sat } => {
            Command::Open { peer, amount_sat: sat, gift_sat, dust_max_sat }
        }
        LightningCommand::Close { channel, force } => Command::Close { channel, force },
    };
    let done = serve::runtime()?.block_on(done(&place, command))?;
    print(&if json { format!("{}\n", serde_json::to_string(&done)?) } else { report::human(&done) })?;
    Ok(ExitCode::SUCCESS)
}

/// Where the node is, and whom it asks, by the command line, else by the config.
struct Place {
    dir: PathBuf,
    /// Not every command needs it.
    chain: Result<ChainSource, String>,
    listen: Vec<SocketAddr>,
}

impl Place {
    fn find(dir: Option<PathBuf>, chain: Option<ChainSource>, globals: &Globals) -> anyhow::Result<Self> {
        let own = match config::load(&globals.config) {
            Ok(config) => config.lightning.as_ref().and_then(|lightning| lightning.own_node(&system::environment)),
            // The command line may say it all.
            Err(LoadError::Missing { .. }) => None,
            Err(_) if dir.is_some() && chain.is_some() => None,
            Err(error) => return Err(error.into()),
        };
        let config = globals.config.display();
        let (known_dir, known_chain, listen) = match own {
            Some(OwnNode { dir, chain, listen }) => (Some(dir), chain, listen),
            None => (None, Err(format!("name it with --chain, or in [lightning] of {config}")), Vec::new()),
        };
        let dir = dir.or(known_dir).with_context(|| {
            format!("{config} has no [lightning] with `node = {{ ldk = .. }}`; name the node's directory with --dir")
        })?;
        Ok(Self { dir, chain: chain.map_or(known_chain, Ok), listen })
    }

    fn config(&self) -> anyhow::Result<EmbeddedConfig> {
        let network = embedded::network_of(&self.dir)?;
        let chain = self
            .chain
            .clone()
            .map_err(|why| anyhow::anyhow!("whom the node asks about the chain is not known: {why}"))?;
        Ok(EmbeddedConfig { dir: self.dir.clone(), network, chain, listen: self.listen.clone() })
    }
}

/// Asks the process that runs the node, or runs it for as long as it takes.
async fn done(place: &Place, command: Command) -> anyhow::Result<Done> {
    match embedded::ask(&place.dir, &command).await {
        Err(ControlError::NotRunning) => {}
        Err(error @ ControlError::Broken(_)) => {
            return Err(error).context(
                "the process that runs the node was asked; whether it did it is seen in `farebox lightning status`",
            );
        }
        answered => return Ok(answered?),
    }
    let node = open(place).await?;
    until_synced(&node).await;
    let outcome = node.command(command).await;
    if let Ok(Done::Opening { .. } | Done::Closing { .. }) = outcome {
        tokio::time::sleep(BROADCAST_WAIT).await;
    }
    node.stop().await;
    Ok(outcome?)
}

async fn open(place: &Place) -> anyhow::Result<Arc<EmbeddedNode>> {
    let config = place.config()?;
    match EmbeddedNode::open(config, Arc::new(SystemClock)).await {
        Err(OpenError::Home(held @ HomeError::Held { .. })) => {
            Err(held).context("that process cannot be asked; stop it, and try again")
        }
        opened => opened.context("the node could not be started"),
    }
}

/// A node that was just started knows what it knew when it was stopped.
async fn until_synced(node: &EmbeddedNode) {
    let until = tokio::time::Instant::now() + SYNC_TIMEOUT;
    let mut caught_up = false;
    while !caught_up && tokio::time::Instant::now() < until {
        tokio::time::sleep(SYNC_LOOK).await;
        caught_up = node.caught_up();
    }
    if !caught_up {
        warn!("the node has not heard of the chain within {} s; what it says may be old", SYNC_TIMEOUT.as_secs());
    }
}

async fn hold(place: &Place) -> anyhow::Result<()> {
    let mut stop = serve::Stop::new()?;
    let node = tokio::select! {
        opened = open(place) => opened?,
        () = stop.asked() => return Ok(()),
    };
    print("the node runs; stop it with SIGTERM or SIGINT\n")?;
    stop.asked().await;
    node.stop().await;
    Ok(())
}

/// `regtest` and the like.
fn network(text: &str) -> Result<BitcoinNetwork, String> {
    let found = BitcoinNetwork::ALL.into_iter().find(|network| network.as_str() == text);
    found.ok_or_else(|| format!("expected one of {}", BitcoinNetwork::ALL.map(BitcoinNetwork::as_str).join(", ")))
}

/// As it is written in a shell.
fn shell(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
    if plain && !text.is_empty() { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
