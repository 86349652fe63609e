//! Requests and answers in the wallet's own words. Source: NIP-47, "Commands" and "Notifications".

use std::fmt;

use farebox_core::{InvoiceNews, PaymentHash, Preimage, Timestamp, Untrusted, ports::InvoiceStatus};
use serde::Deserialize;
use serde_json::Value;

/// What is inside an answer.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    pub(super) result_type: String,
    #[serde(default)]
    pub(super) error: Option<Said>,
    #[serde(default)]
    pub(super) result: Option<Value>,
}

/// What a wallet says when it says no.
#[derive(Debug, Deserialize)]
pub(super) struct Said {
    pub(super) code: String,
    /// For people; not safe to print.
    #[serde(default)]
    pub(super) message: String,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", Untrusted::new(&*self.message), Untrusted::new(&*self.code))
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct GetInfo {
    #[serde(default)]
    pub(super) alias: Option<String>,
    #[serde(default)]
    pub(super) network: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Balance {
    pub(super) balance: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Made {
    pub(super) invoice: String,
    #[serde(default)]
    pub(super) payment_hash: Option<PaymentHash>,
}

/// What `pay_invoice` says of a payment that was made. A custodial wallet may have no preimage, and then says an empty or any text.
#[derive(Debug, Deserialize)]
pub(super) struct Paid {
    #[serde(default)]
    pub(super) preimage: Option<String>,
    #[serde(default)]
    pub(super) fees_paid: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Transactions {
    pub(super) transactions: Vec<Transaction>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Notice {
    pub(super) notification_type: String,
    pub(super) notification: Value,
}

/// An invoice of the wallet's, or a payment that it makes or made.
#[derive(Debug, Deserialize)]
pub(super) struct Transaction {
    #[serde(rename = "type")]
    pub(super) direction: Direction,
    #[serde(default)]
    pub(super) state: Option<State>,
    pub(super) payment_hash: PaymentHash,
    #[serde(default)]
    preimage: Option<String>,
    #[serde(default)]
    amount: u64,
    #[serde(default)]
    pub(super) fees_paid: Option<u64>,
    #[serde(default)]
    expires_at: Option<u64>,
    #[serde(default)]
    settled_at: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Direction {
    Incoming,
    Outgoing,
}

/// Newer than many wallets, which say only when it was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    Pending,
    Settled,
    Accepted,
    Expired,
    Failed,
}

impl Transaction {
    pub(super) fn is_settled(&self) -> bool {
        match self.state {
            Some(state) => state == State::Settled,
            None => self.settled_at.is_some_and(|at| at > 0),
        }
    }

    /// What has become of it as an invoice.
    pub(super) fn status(&self, now: Timestamp) -> InvoiceStatus {
        let over = self.expires_at.is_some_and(|at| at > 0 && now.unix_s() >= at);
        match self.state {
            _ if self.is_settled() => InvoiceStatus::News(self.settled()),
            Some(State::Accepted) => InvoiceStatus::News(InvoiceNews::Held),
            Some(State::Failed) => InvoiceStatus::News(InvoiceNews::Cancelled),
            // Some wallets never say that an invoice has expired.
            Some(State::Expired) => InvoiceStatus::News(InvoiceNews::Expired),
            _ if over => InvoiceStatus::News(InvoiceNews::Expired),
            _ => InvoiceStatus::Open,
        }
    }

    pub(super) const fn settled(&self) -> InvoiceNews {
        InvoiceNews::Settled { received_msat: self.amount }
    }

    pub(super) fn preimage(&self) -> Option<Preimage> {
        preimage(self.preimage.as_deref(), self.payment_hash)
    }
}

/// Only one that is the preimage of `hash`: some wallets say another text where they have none.
pub(super) fn preimage(text: Option<&str>, hash: PaymentHash) -> Option<Preimage> {
    text.and_then(Preimage::from_hex).filter(|preimage| preimage.hash() == hash)
}
