//! What a node says, in words.

use std::{fmt::Write as _, path::Path};

use farebox_lightning::embedded::{ChannelReport, ChannelState, Done, Report};
use serde_json::json;

use super::shell;

/// For people.
pub(super) fn human(done: &Done) -> String {
    match done {
        Done::Status(report) => status(report),
        Done::Address { address } => format!("{address}\n"),
        Done::Connected { peer } => format!("connected to {peer}\n"),
        Done::Opening { channel, funding } => format!(
            "the peer agreed; the channel {channel} is paid for by {funding}\nit is usable once the chain has confirmed that, and the node has to run meanwhile: `farebox serve`, or `farebox lightning run`\n"
        ),
        Done::Closing { channel } => {
            format!("the channel {channel} is being closed; its coins come back on chain while the node runs\n")
        }
    }
}

fn status(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |words: String| {
        text.push_str(&words);
        text.push('\n');
    };
    line(format!("node      {}", report.node_id));
    let heard = if report.synced { "" } else { ", and nothing newer was heard of lately" };
    line(format!("chain     {}: block {} by {}{heard}", report.network, report.height, report.chain));
    if !report.listen.is_empty() {
        line(format!("listens   {}", report.listen.join(", ")));
    }
    let coins = report.on_chain;
    line(format!(
        "on chain  {} sat: {} can be spent, {} are kept to close channels with",
        grouped(coins.total_sat),
        grouped(coins.spendable_sat),
        grouped(coins.reserve_sat)
    ));
    line(format!("receive   {} sat now", grouped(report.receivable_msat / 1_000)));
    line(format!("send      {} sat now", grouped(report.sendable_msat / 1_000)));
    for channel in &report.channels {
        line(String::new());
        line(format!("channel   {}, {}", channel.id, state(channel.state)));
        line(format!("          with {}", channel.peer));
        line(format!(
            "          {} sat: can receive {}, can send {}",
            grouped(channel.capacity_sat),
            grouped(channel.receivable_msat / 1_000),
            grouped(channel.sendable_msat / 1_000)
        ));
    }
    for advice in &report.advice {
        line(String::new());
        line(advice.clone());
    }
    text
}

fn state(state: ChannelState) -> String {
    match state {
        ChannelState::Ready => "ready".to_owned(),
        ChannelState::PeerAway => "its peer is away".to_owned(),
        ChannelState::Confirming { confirmations, of } => {
            format!("waits for the chain: {confirmations} of {of} confirmations")
        }
        ChannelState::Negotiating => "being opened or closed".to_owned(),
    }
}

/// `1234567` as `1,234,567`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What to back up; without channels if they could not be listed.
///
/// # Errors
/// JSON says no, which it has no reason to.
pub(super) fn backup(dir: &Path, channels: Option<&[ChannelReport]>, json: bool) -> anyhow::Result<String> {
    let at_stake_sat =
        channels.map(|channels| channels.iter().map(|channel| channel.sendable_msat / 1_000).sum::<u64>());
    if json {
        let listed = |channels: &[ChannelReport]| -> Vec<_> {
            channels.iter().map(|channel| json!({ "peer": channel.peer, "funding": channel.funding })).collect()
        };
        let seed = dir.join("seed");
        let told =
            json!({ "seed": seed, "dir": dir, "in_channels_sat": at_stake_sat, "channels": channels.map(listed) });
        return Ok(format!("{told}\n"));
    }
    let now = at_stake_sat.map(|sat| format!(" ({} sat now)", grouped(sat))).unwrap_or_default();
    let mut text =
        BACKUP.replace("$SEED", &shell(&dir.join("seed"))).replace("$DIR", &shell(dir)).replace("$NOW", &now);
    let Some(channels) = channels else { return Ok(text) };
    if channels.is_empty() {
        text.push_str("There are no channels now.\n");
        return Ok(text);
    }
    text.push_str(PEERS);
    for channel in channels {
        let funding = channel.funding.as_deref().unwrap_or("not paid for yet");
        writeln!(text, "    {}  {funding}", channel.peer)?;
    }
    Ok(text)
}

const BACKUP: &str = "\
The words
  They bring back the coins on chain (`farebox lightning restore`), and nothing else. They are not shown again; they are
  in $SEED, which only its owner can read.

The directory $DIR
  It has the newest state of every channel. Without it, what is in the channels$NOW may be lost.
  Keep it on a disk that mirrors itself. To move to another machine, stop the node and move the directory.

Never a copy
  A node that starts from an older copy shows its peers an old state, and they may take all that is in the channel.
  So no copy of the directory may ever be started, not one of last night's either, and nothing here makes one.

";

const PEERS: &str = "\
This list
  If the directory is lost, ask these peers to close their channels with you. Nobody promises what can be had back then.

";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_three() {
        for (n, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (21_000_000, "21,000,000")] {
            assert_eq!(grouped(n), text);
        }
    }
}
