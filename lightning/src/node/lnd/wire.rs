//! lnd's messages, as its gateway writes them: 64-bit numbers as text, bytes in base64, and nothing left out.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use farebox_core::{PaymentHash, Preimage};
use serde::{Deserialize, Deserializer, de};

#[derive(Debug, Deserialize)]
pub(super) struct GetInfo {
    pub(super) identity_pubkey: String,
    pub(super) alias: String,
    pub(super) synced_to_chain: bool,
    pub(super) num_active_channels: u32,
    chains: Vec<Chain>,
}

#[derive(Debug, Deserialize)]
struct Chain {
    network: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Channels {
    channels: Vec<Channel>,
}

#[derive(Debug, Deserialize)]
struct Channel {
    #[serde(deserialize_with = "number")]
    local_balance: u64,
    #[serde(deserialize_with = "number")]
    remote_balance: u64,
    local_constraints: Constraints,
    remote_constraints: Constraints,
}

#[derive(Debug, Deserialize)]
struct Constraints {
    #[serde(deserialize_with = "number")]
    chan_reserve_sat: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Added {
    #[serde(deserialize_with = "hash")]
    pub(super) r_hash: PaymentHash,
    pub(super) payment_request: String,
}

/// An invoice of the node's own.
#[derive(Debug, Deserialize)]
pub(super) struct OwnInvoice {
    #[serde(deserialize_with = "hash")]
    pub(super) r_hash: PaymentHash,
    pub(super) state: State,
    #[serde(deserialize_with = "number")]
    pub(super) creation_date: u64,
    #[serde(deserialize_with = "number")]
    pub(super) expiry: u64,
    #[serde(deserialize_with = "number")]
    pub(super) settle_index: u64,
    #[serde(deserialize_with = "number")]
    pub(super) amt_paid_msat: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum State {
    Open,
    Settled,
    Canceled,
    Accepted,
}

#[derive(Debug, Deserialize)]
pub(super) struct InvoicePage {
    pub(super) invoices: Vec<OwnInvoice>,
    #[serde(deserialize_with = "number")]
    pub(super) last_index_offset: u64,
}

/// A payment that the node makes or made.
#[derive(Debug, Deserialize)]
pub(super) struct OwnPayment {
    pub(super) payment_hash: String,
    payment_preimage: String,
    pub(super) status: Status,
    #[serde(deserialize_with = "number")]
    pub(super) fee_msat: u64,
    pub(super) failure_reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum Status {
    Unknown,
    Initiated,
    InFlight,
    Succeeded,
    Failed,
}

impl GetInfo {
    pub(super) fn network(&self) -> Option<&str> {
        self.chains.first().map(|chain| &*chain.network)
    }
}

impl Channels {
    /// What may come in at once, less what each peer must keep.
    pub(super) fn receivable_msat(&self) -> u64 {
        sum(&self.channels, |channel| {
            channel.remote_balance.saturating_sub(channel.remote_constraints.chan_reserve_sat)
        })
    }

    /// What may go out at once, less what must be kept.
    pub(super) fn spendable_msat(&self) -> u64 {
        sum(&self.channels, |channel| channel.local_balance.saturating_sub(channel.local_constraints.chan_reserve_sat))
    }
}

impl OwnPayment {
    /// All zeros while there is none.
    pub(super) fn preimage(&self) -> Option<Preimage> {
        Preimage::from_hex(&self.payment_preimage)
    }
}

fn sum(channels: &[Channel], sats: impl Fn(&Channel) -> u64) -> u64 {
    channels.iter().fold(0, |total, channel| total.saturating_add(sats(channel).saturating_mul(1000)))
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| de::Error::custom("expected a whole number of 0 or more, as text"))
}

fn hash<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PaymentHash, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes = STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.map(PaymentHash).ok_or_else(|| de::Error::custom("expected 32 bytes in base64"))
}
