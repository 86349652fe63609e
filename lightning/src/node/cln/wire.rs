//! Core Lightning's messages.

use farebox_core::{PaymentHash, Preimage};
use serde::{Deserialize, Deserializer, de};

#[derive(Debug, Deserialize)]
pub(super) struct GetInfo {
    pub(super) id: String,
    pub(super) alias: String,
    pub(super) network: String,
    pub(super) num_active_channels: u32,
    warning_bitcoind_sync: Option<String>,
    warning_lightningd_sync: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Channels {
    channels: Vec<Channel>,
}

#[derive(Debug, Deserialize)]
struct Channel {
    state: String,
    peer_connected: bool,
    #[serde(default)]
    spendable_msat: Msat,
    #[serde(default)]
    receivable_msat: Msat,
}

#[derive(Debug, Deserialize)]
pub(super) struct Made {
    pub(super) bolt11: String,
    pub(super) payment_hash: PaymentHash,
}

#[derive(Debug, Deserialize)]
pub(super) struct Invoices {
    pub(super) invoices: Vec<OwnInvoice>,
}

/// An invoice of the node's own.
#[derive(Debug, Deserialize)]
pub(super) struct OwnInvoice {
    pub(super) payment_hash: PaymentHash,
    pub(super) status: InvoiceState,
    /// There once it is paid.
    pub(super) amount_received_msat: Option<Msat>,
    /// There once it is paid.
    pub(super) pay_index: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum InvoiceState {
    Unpaid,
    Paid,
    Expired,
}

/// What `xpay` and `pay` say of a payment that was made.
#[derive(Debug, Deserialize)]
pub(super) struct Paid {
    #[serde(deserialize_with = "preimage")]
    pub(super) payment_preimage: Preimage,
    pub(super) amount_msat: Msat,
    pub(super) amount_sent_msat: Msat,
}

#[derive(Debug, Deserialize)]
pub(super) struct Pays {
    pub(super) pays: Vec<OwnPayment>,
}

/// A payment that the node makes or made.
#[derive(Debug, Deserialize)]
pub(super) struct OwnPayment {
    pub(super) payment_hash: PaymentHash,
    pub(super) status: PayState,
    pub(super) preimage: Option<String>,
    pub(super) amount_msat: Option<Msat>,
    pub(super) amount_sent_msat: Option<Msat>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PayState {
    Pending,
    Complete,
    Failed,
}

/// Millisatoshis: a number, and before v23.08 a text that ends in `msat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Msat(pub(super) u64);

impl GetInfo {
    /// Level with its chain.
    pub(super) const fn synced(&self) -> bool {
        self.warning_bitcoind_sync.is_none() && self.warning_lightningd_sync.is_none()
    }
}

impl Channels {
    pub(super) fn receivable_msat(&self) -> u64 {
        self.sum(|channel| channel.receivable_msat)
    }

    pub(super) fn spendable_msat(&self) -> u64 {
        self.sum(|channel| channel.spendable_msat)
    }

    fn sum(&self, part: impl Fn(&Channel) -> Msat) -> u64 {
        let usable =
            self.channels.iter().filter(|channel| channel.peer_connected && channel.state == "CHANNELD_NORMAL");
        usable.fold(0, |total, channel| total.saturating_add(part(channel).0))
    }
}

impl<'de> Deserialize<'de> for Msat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u64),
            Text(String),
        }
        let msat = match Form::deserialize(deserializer)? {
            Form::Number(msat) => Some(msat),
            Form::Text(text) => text.strip_suffix("msat").and_then(|digits| digits.parse().ok()),
        };
        msat.map(Self).ok_or_else(|| de::Error::custom("expected whole millisatoshis"))
    }
}

fn preimage<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Preimage, D::Error> {
    let text = String::deserialize(deserializer)?;
    Preimage::from_hex(&text).ok_or_else(|| de::Error::custom("expected 64 lower-case hex digits"))
}
