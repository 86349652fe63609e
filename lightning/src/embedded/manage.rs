//! What its operator asks of a node: how it is, where to send coins, channels.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use ldk_node::{
    ChannelDetails, Node, NodeError as LdkError, PendingSweepBalance, UserChannelId,
    bitcoin::secp256k1::PublicKey,
    config::{ChannelConfig, MaxDustHTLCExposure},
    lightning::ln::msgs::SocketAddress,
};
use serde::{Deserialize, Serialize};

use super::{Core, pay::spendable_msat};

/// Kept on chain for each channel, so that it can be closed whatever fees are then. ldk-node's default.
pub(super) const RESERVE_SAT: u64 = 25_000;
/// How long a new channel's peer may take to agree to it.
const AGREE_TIMEOUT: Duration = Duration::from_secs(30);
const AGREE_LOOK: Duration = Duration::from_millis(100);
/// Below this, what can be received is called little: some hundred calls at usual prices.
const LITTLE_MSAT: u64 = 10_000_000;

/// What can be asked of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Command {
    /// How it is.
    Status,
    /// A new address on chain.
    Address,
    /// To connect to a peer, now and after restarts.
    Connect {
        /// To whom.
        peer: Peer,
    },
    /// To open a channel; it is usable once the chain has confirmed it.
    Open {
        /// With whom.
        peer: Peer,
        /// Paid in by this node, satoshis.
        amount_sat: u64,
        /// Of that, given to the peer at once, satoshis: as much can then be received. A gift, unless it was agreed on.
        gift_sat: u64,
        /// The most that payments too small for the chain may put at risk, satoshis; a multiple of the fee rate if it is not told. Peers with
        /// another way of counting (Electrum) need it.
        dust_max_sat: Option<u64>,
    },
    /// To close a channel.
    Close {
        /// Its id, or how it begins.
        channel: String,
        /// Without the peer: money is then locked for days, and fees are higher.
        force: bool,
    },
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "done", rename_all = "snake_case")]
pub enum Done {
    /// How it is.
    Status(Box<Report>),
    /// An address.
    Address {
        /// On the node's network.
        address: String,
    },
    /// Connected.
    Connected {
        /// To whom.
        peer: Peer,
    },
    /// The peer agreed to a channel, and its transaction is on its way.
    Opening {
        /// Its id.
        channel: String,
        /// The transaction that pays into it.
        funding: String,
    },
    /// A channel is being closed.
    Closing {
        /// Its id.
        channel: String,
    },
}

/// How a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its public key.
    pub node_id: String,
    /// Its network.
    pub network: farebox_core::BitcoinNetwork,
    /// Whom it asks about the chain.
    pub chain: String,
    /// Whether it heard of the chain lately.
    pub synced: bool,
    /// The newest block that it knows.
    pub height: u32,
    /// Where peers may connect to it.
    pub listen: Vec<String>,
    /// Its coins on chain.
    pub on_chain: Balances,
    /// Its channels.
    pub channels: Vec<ChannelReport>,
    /// Coming back from closed channels, satoshis.
    pub returning_sat: u64,
    /// What can be received now, millisatoshis.
    pub receivable_msat: u64,
    /// What can be sent now, millisatoshis.
    pub sendable_msat: u64,
    /// What its operator should know or do, for people.
    pub advice: Vec<String>,
}

/// Coins on chain, satoshis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balances {
    /// All of them, unconfirmed ones too.
    pub total_sat: u64,
    /// What can be put into a channel or sent.
    pub spendable_sat: u64,
    /// Kept back so that channels can be closed.
    pub reserve_sat: u64,
}

/// A channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelReport {
    /// Its id here.
    pub id: String,
    /// Its peer's public key.
    pub peer: String,
    /// How it is.
    pub state: ChannelState,
    /// What is in it, satoshis.
    pub capacity_sat: u64,
    /// What it can receive, millisatoshis.
    pub receivable_msat: u64,
    /// What it can send, millisatoshis.
    pub sendable_msat: u64,
    /// The transaction that paid into it.
    pub funding: Option<String>,
}

/// How a channel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum ChannelState {
    /// Usable.
    Ready,
    /// Usable once the peer is back.
    PeerAway,
    /// Not in the chain deep enough.
    Confirming {
        /// Blocks on it.
        confirmations: u32,
        /// Blocks that it needs.
        of: u32,
    },
    /// The peer has not agreed yet, or it is being closed.
    Negotiating,
}

/// A peer: its public key and where it listens, `02ab…@host:port`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Peer {
    key: PublicKey,
    address: SocketAddress,
}

/// Not a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a node's public key and address, as 02ab…@host:port")]
pub struct PeerError;

impl FromStr for Peer {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, PeerError> {
        let (key, address) = text.split_once('@').ok_or(PeerError)?;
        let (key, address) = (key.parse().map_err(|_| PeerError)?, address.parse().map_err(|_| PeerError)?);
        Ok(Self { key, address })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.key, self.address)
    }
}

impl TryFrom<String> for Peer {
    type Error = PeerError;

    fn try_from(text: String) -> Result<Self, PeerError> {
        text.parse()
    }
}

impl From<Peer> for String {
    fn from(peer: Peer) -> Self {
        peer.to_string()
    }
}

/// Why a command was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct CommandError {
    /// Stable, snake_case.
    pub code: String,
    /// For people.
    pub message: String,
}

impl CommandError {
    pub(super) fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }
}

impl Core {
    pub(super) async fn command(self: Arc<Self>, command: Command) -> Result<Done, CommandError> {
        let (core, tasks) = (self.clone(), self.tasks.clone());
        let ended = tasks.spawn_blocking(move || core.do_command(command)).await;
        match ended.map_err(|panic| CommandError::new("node_unavailable", panic.to_string()))?? {
            Next::Done(done) => Ok(done),
            Next::Agreed { peer, channel } => self.agreed(peer, channel).await,
        }
    }

    fn do_command(&self, command: Command) -> Result<Next, CommandError> {
        let node = self.node().map_err(|error| {
            let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            CommandError::new(error.code(), format!("{}: {why}", self.label))
        })?;
        match command {
            Command::Status => Ok(Next::Done(Done::Status(Box::new(self.report(&node))))),
            Command::Address => {
                let address = node.onchain_payment().new_address().map_err(|error| failed(&error))?;
                Ok(Next::Done(Done::Address { address: address.to_string() }))
            }
            Command::Connect { peer } => {
                node.connect(peer.key, peer.address.clone(), true).map_err(|error| self.not_connected(error, &peer))?;
                Ok(Next::Done(Done::Connected { peer }))
            }
            Command::Open { peer, amount_sat, gift_sat, dust_max_sat } => {
                let mut config = ChannelConfig::default();
                if let Some(sat) = dust_max_sat {
                    config.max_dust_htlc_exposure =
                        MaxDustHTLCExposure::FixedLimit { limit_msat: sat.saturating_mul(1_000) };
                }
                let gift = (gift_sat > 0).then(|| gift_sat.saturating_mul(1_000));
                let opened = node.open_channel(peer.key, peer.address.clone(), amount_sat, gift, Some(config));
                let channel = opened.map_err(|error| match error {
                    LdkError::InsufficientFunds => not_enough(&node, amount_sat),
                    LdkError::ChannelCreationFailed => CommandError::new(
                        "channel_refused",
                        format!("a channel of {amount_sat} sat with {gift_sat} sat of it given away is not one; at least 1000 sat, and a hundredth for each side's reserve"),
                    ),
                    error => self.not_connected(error, &peer),
                })?;
                Ok(Next::Agreed { peer, channel })
            }
            Command::Close { channel, force } => close(&node, &channel, force).map(Next::Done),
        }
    }

    fn not_connected(&self, error: LdkError, peer: &Peer) -> CommandError {
        match error {
            LdkError::ConnectionFailed => CommandError::new(
                "peer_unreachable",
                format!("no node with that key answered at {}; look at key, host and port", peer.address),
            ),
            error => failed(&error),
        }
    }

    async fn agreed(&self, peer: Peer, channel: UserChannelId) -> Result<Done, CommandError> {
        let deadline = tokio::time::Instant::now() + AGREE_TIMEOUT;
        while tokio::time::Instant::now() < deadline {
            tokio::time::sleep(AGREE_LOOK).await;
            let node = self.node().map_err(|error| CommandError::new(error.code(), error.to_string()))?;
            let Some(details) = node.list_channels().into_iter().find(|known| known.user_channel_id == channel) else {
                return Err(CommandError::new(
                    "channel_refused",
                    format!(
                        "{peer} did not agree to the channel; it may be too small for it, and its reason is in the log"
                    ),
                ));
            };
            if let Some(funding) = details.funding_txo {
                return Ok(Done::Opening { channel: shown(channel), funding: funding.to_string() });
            }
        }
        let message = format!(
            "{peer} did not answer within {} s; `farebox lightning status` tells if it does later",
            AGREE_TIMEOUT.as_secs()
        );
        Err(CommandError::new("channel_unanswered", message))
    }

    fn report(&self, node: &Node) -> Report {
        let balances = node.list_balances();
        let channels: Vec<ChannelReport> = node.list_channels().iter().map(channel_report).collect();
        let ready = |channel: &&ChannelReport| channel.state == ChannelState::Ready;
        let mut report = Report {
            node_id: node.node_id().to_string(),
            network: self.config.network,
            chain: self.config.chain.to_string(),
            synced: self.synced(node),
            height: node.status().current_best_block.height,
            listen: self.config.listen.iter().map(ToString::to_string).collect(),
            on_chain: Balances {
                total_sat: balances.total_onchain_balance_sats,
                spendable_sat: balances.spendable_onchain_balance_sats,
                reserve_sat: balances.total_anchor_channels_reserve_sats,
            },
            returning_sat: balances.pending_balances_from_channel_closures.iter().map(returning_sat).sum(),
            receivable_msat: channels.iter().filter(ready).map(|channel| channel.receivable_msat).sum(),
            sendable_msat: spendable_msat(node),
            channels,
            advice: Vec::new(),
        };
        report.advice = advice(&report);
        report
    }
}

enum Next {
    Done(Done),
    /// Whether the peer agrees is to be seen.
    Agreed {
        peer: Peer,
        channel: UserChannelId,
    },
}

fn failed(error: &LdkError) -> CommandError {
    CommandError::new("node_refused", error.to_string().trim_end_matches('.').to_lowercase())
}

fn not_enough(node: &Node, amount_sat: u64) -> CommandError {
    let spendable = node.list_balances().spendable_onchain_balance_sats;
    CommandError::new(
        "insufficient_funds",
        format!(
            "{spendable} sat can be spent on chain; a channel of {amount_sat} sat needs {} sat and the transaction's fee, for {RESERVE_SAT} sat stay on chain to close it with",
            amount_sat.saturating_add(RESERVE_SAT)
        ),
    )
}

fn close(node: &Node, wanted: &str, force: bool) -> Result<Done, CommandError> {
    let channels = node.list_channels();
    let mut fitting =
        channels.iter().filter(|channel| !wanted.is_empty() && shown(channel.user_channel_id).starts_with(wanted));
    let channel = match (fitting.next(), fitting.next()) {
        (Some(channel), None) => channel,
        (Some(_), Some(_)) => {
            return Err(CommandError::new("channel_ambiguous", format!("more than one channel begins with {wanted}")));
        }
        (None, _) => {
            return Err(CommandError::new(
                "channel_unknown",
                format!("no channel {wanted}; `farebox lightning status` lists them"),
            ));
        }
    };
    let (id, peer) = (&channel.user_channel_id, channel.counterparty_node_id);
    let closed = if force {
        node.force_close_channel(id, peer, Some("closed by its operator".to_owned()))
    } else {
        node.close_channel(id, peer)
    };
    closed.map_err(|_| {
        CommandError::new("channel_not_closed", "the peer does not take part; connect to it, or close with --force, which locks the money for days and costs more")
    })?;
    Ok(Done::Closing { channel: shown(*id) })
}

fn shown(channel: UserChannelId) -> String {
    format!("{:032x}", channel.0)
}

fn channel_report(channel: &ChannelDetails) -> ChannelReport {
    let state = if channel.is_usable {
        ChannelState::Ready
    } else if channel.is_channel_ready {
        ChannelState::PeerAway
    } else {
        match (channel.confirmations, channel.confirmations_required) {
            (Some(confirmations), Some(of)) if confirmations < of => ChannelState::Confirming { confirmations, of },
            _ => ChannelState::Negotiating,
        }
    };
    ChannelReport {
        id: shown(channel.user_channel_id),
        peer: channel.counterparty_node_id.to_string(),
        state,
        capacity_sat: channel.channel_value_sats,
        receivable_msat: channel.inbound_capacity_msat,
        sendable_msat: channel.outbound_capacity_msat,
        funding: channel.funding_txo.map(|funding| funding.to_string()),
    }
}

fn returning_sat(balance: &PendingSweepBalance) -> u64 {
    match balance {
        PendingSweepBalance::PendingBroadcast { amount_satoshis, .. }
        | PendingSweepBalance::BroadcastAwaitingConfirmation { amount_satoshis, .. }
        | PendingSweepBalance::AwaitingThresholdConfirmations { amount_satoshis, .. } => *amount_satoshis,
    }
}

/// What to do next, most pressing first.
fn advice(report: &Report) -> Vec<String> {
    let mut advice = Vec::new();
    let mut tell = |text: String| advice.push(text);
    if !report.synced {
        tell(format!("It has heard nothing of the chain lately: look whether {} answers.", report.chain));
    }
    let in_state =
        |wanted: fn(&ChannelState) -> bool| report.channels.iter().filter(|channel| wanted(&channel.state)).count();
    let away = in_state(|state| *state == ChannelState::PeerAway);
    let confirming = in_state(|state| matches!(state, ChannelState::Confirming { .. }));
    if away > 0 {
        tell(format!(
            "The peers of {away} channels are away; they are asked for every minute, and nothing goes through these channels until they are back."
        ));
    }
    if confirming > 0 {
        tell(format!(
            "{confirming} channels wait for the chain: a block takes about ten minutes, and the node has to run meanwhile."
        ));
    }
    if report.channels.is_empty() && report.on_chain.total_sat < RESERVE_SAT {
        tell(format!(
            "It needs coins first: send more than {RESERVE_SAT} sat to an address of `farebox lightning address`. So much stays on chain for each channel, to close it with, and without it no channel is opened or accepted."
        ));
    }
    if report.receivable_msat < LITTLE_MSAT && confirming == 0 {
        let now = if report.receivable_msat == 0 { "Nothing" } else { "Little" };
        tell(format!(
            "{now} can be received now. What a node can receive is what its peers have on their side of its channels. To have more: let a peer open a channel to you (buy it from a provider of inbound liquidity, or ask somebody; connect to them first, and give them the id {}); or open one with `farebox lightning open` and spend through it, for what you spent can be received again.",
            report.node_id
        ));
    }
    if report.returning_sat > 0 {
        tell(format!(
            "{} sat come back from closed channels; the node has to run until they are on chain.",
            report.returning_sat
        ));
    }
    advice
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";

    #[test]
    fn a_peer_is_a_key_and_an_address() {
        let text = format!("{KEY}@node.example:9735");
        assert_eq!(text.parse::<Peer>().map(|peer| peer.to_string()), Ok(text.clone()));
        for wrong in [KEY, "node.example:9735", "@node.example:9735", &text[2..], &text[..KEY.len() + 8]] {
            assert_eq!(wrong.parse::<Peer>(), Err(PeerError), "{wrong}");
        }
    }

    #[test]
    fn a_new_node_is_told_to_get_coins_and_how_to_receive() {
        let mut report = Report {
            node_id: KEY.to_owned(),
            network: farebox_core::BitcoinNetwork::Regtest,
            chain: "bitcoind at 127.0.0.1:18443".to_owned(),
            synced: true,
            height: 101,
            listen: vec![],
            on_chain: Balances { total_sat: 0, spendable_sat: 0, reserve_sat: 0 },
            channels: vec![],
            returning_sat: 0,
            receivable_msat: 0,
            sendable_msat: 0,
            advice: vec![],
        };
        let told = advice(&report).join("\n");
        assert!(
            told.contains("needs coins first") && told.contains("Nothing can be received") && told.contains(KEY),
            "{told}"
        );
        report.channels.push(ChannelReport {
            id: "00".to_owned(),
            peer: KEY.to_owned(),
            state: ChannelState::Confirming { confirmations: 1, of: 3 },
            capacity_sat: 100_000,
            receivable_msat: 0,
            sendable_msat: 0,
            funding: None,
        });
        let told = advice(&report).join("\n");
        assert!(told.contains("wait for the chain") && !told.contains("can be received"), "{told}");
        report.channels[0].state = ChannelState::Ready;
        report.receivable_msat = 50_000_000;
        assert_eq!(advice(&report), Vec::<String>::new());
    }
}
