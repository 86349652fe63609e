//! The node as a payer's.
//!
//! ldk-node hands a payment to its channels first and stores it afterwards. A crash in between leaves a payment that may be on its way and
//! that its store does not know, or one that the store thinks is on its way and that never left. So a payment is written down here
//! before it is handed over, and after a crash it is called failed only when no channel has it any more.

use std::{str::FromStr as _, time::Duration};

use async_trait::async_trait;
use farebox_core::{
    BitcoinNetwork, PaymentHash, Preimage,
    ports::{LightningWallet, NodeError, Outgoing, PaidOut, PayOrder, PayOutcome},
};
use ldk_node::{
    LightningBalance, Node, NodeError as LdkError,
    lightning::{ln::channelmanager::PaymentId, routing::router::RouteParametersConfig},
    lightning_invoice::Bolt11Invoice,
    payment::{PaymentDetails, PaymentDirection, PaymentKind, PaymentStatus},
};

use super::{Core, EmbeddedNode, State, blocking, news::Sent, receive::invoice_of};

/// How long after a start nothing may be seen of a payment that an earlier run left behind, with every channel's peer back, before it is
/// called failed. Channels are back in step within a second of their peer's return, and then have whatever was on its way.
const QUIET: Duration = Duration::from_secs(10);

#[async_trait]
impl LightningWallet for EmbeddedNode {
    fn label(&self) -> &str {
        &self.core.label
    }

    async fn network(&self) -> Result<Option<BitcoinNetwork>, NodeError> {
        Ok(Some(self.core.config.network))
    }

    async fn spendable_msat(&self) -> Result<u64, NodeError> {
        blocking(&self.core, |core| core.node().map(|node| spendable_msat(&node))).await?
    }

    async fn pay(&self, order: &PayOrder) -> PayOutcome {
        let hash = order.invoice.payment_hash;
        let deadline = tokio::time::Instant::now() + order.timeout;
        let order = order.clone();
        let mut told = self.core.told.subscribe();
        let sent = match blocking(&self.core, move |core| core.send(&order)).await {
            Ok(sent) => sent,
            Err(error) => return PayOutcome::Unknown { source: error.into() },
        };
        if let Some(outcome) = sent {
            return outcome;
        }
        loop {
            told.mark_unchanged();
            match self.outgoing(hash).await {
                Ok(Outgoing::Paid(paid)) => return PayOutcome::Paid(paid),
                Ok(Outgoing::Failed) => return self.core.failed(hash),
                Ok(Outgoing::InFlight | Outgoing::Never) => {}
                Err(error) => return PayOutcome::Unknown { source: error.into() },
            }
            if tokio::time::timeout_at(deadline, told.changed()).await.is_err() {
                return PayOutcome::Unknown { source: "it is still under way; look it up later".into() };
            }
        }
    }

    async fn outgoing(&self, hash: PaymentHash) -> Result<Outgoing, NodeError> {
        blocking(&self.core, move |core| core.outgoing(&*core.node()?, hash)).await?
    }
}

impl Core {
    /// Hands a payment to the node, unless it has it; `None` if it is under way now.
    fn send(&self, order: &PayOrder) -> Option<PayOutcome> {
        let refused = |code, detail: String| Some(PayOutcome::Failed { code, detail });
        let node = match self.node() {
            Ok(node) => node,
            // Nothing was sent now, but what an earlier run sent is not known.
            Err(error) => return Some(PayOutcome::Unknown { source: error.into() }),
        };
        let hash = order.invoice.payment_hash;
        match self.outgoing(&node, hash) {
            Ok(Outgoing::Never | Outgoing::Failed) => {}
            Ok(Outgoing::InFlight) => return None,
            Ok(Outgoing::Paid(paid)) => return Some(PayOutcome::Paid(paid)),
            Err(error) => return Some(PayOutcome::Unknown { source: error.into() }),
        }
        let Ok(invoice) = Bolt11Invoice::from_str(&order.invoice.bolt11) else {
            return refused("refused", "it is not an invoice".to_owned());
        };
        if invoice_of(&invoice, self.config.network).is_none_or(|read| read != order.invoice) {
            let detail = format!(
                "the invoice is for another network than {}, or does not say what it was said to say",
                self.config.network
            );
            return refused("refused", detail);
        }
        // ldk-node would call it a duplicate of the payment that it waits for.
        if invoice.recover_payee_pub_key() == node.node_id() {
            return refused("refused", "the invoice is the node's own".to_owned());
        }
        if self.clock.now() >= order.invoice.expires_at {
            return refused("invoice_expired", "the invoice can no longer be paid".to_owned());
        }
        if spendable_msat(&node) < order.invoice.amount_msat {
            let detail = format!(
                "{} msat are asked for, {} msat could be sent",
                order.invoice.amount_msat,
                spendable_msat(&node)
            );
            return refused("insufficient_balance", detail);
        }
        if let Err(error) = self.news.begin(hash) {
            return refused("refused", format!("the payment could not be written down first: {error}"));
        }
        let limits = RouteParametersConfig {
            max_total_routing_fee_msat: Some(order.fee_max_msat),
            ..RouteParametersConfig::default()
        };
        match node.bolt11_payment().send(&invoice, Some(limits)) {
            // A duplicate is under way: another task was a moment earlier.
            Ok(_) | Err(LdkError::DuplicatePayment) => None,
            Err(LdkError::PaymentSendingFailed) => {
                let detail = format!("no way to the payee for a fee of at most {} msat", order.fee_max_msat);
                self.not_sent(hash, "no_route", detail)
            }
            Err(LdkError::InvalidInvoice) => {
                self.not_sent(hash, "refused", "the node does not take the invoice".to_owned())
            }
            Err(LdkError::NotRunning) => self.not_sent(hash, "refused", "the node is stopping".to_owned()),
            Err(error) => Some(PayOutcome::Unknown { source: error.into() }),
        }
    }

    fn not_sent(&self, hash: PaymentHash, code: &'static str, detail: String) -> Option<PayOutcome> {
        if let Err(error) = self.news.failed(hash, code) {
            tracing::warn!(
                node = self.label,
                error = &error as &dyn std::error::Error,
                "a payment that failed was not written down as such"
            );
        }
        Some(PayOutcome::Failed { code, detail })
    }

    fn failed(&self, hash: PaymentHash) -> PayOutcome {
        let code = match self.news.sent(hash) {
            Ok(Some(Sent::Failed { code })) => code,
            _ => String::new(),
        };
        let (code, detail) = match code.as_str() {
            "refused" => ("refused", "the payee refused it"),
            "invoice_expired" => ("invoice_expired", "the invoice ended before a way was found"),
            _ => ("no_route", "every way that was tried failed"),
        };
        PayOutcome::Failed { code, detail: detail.to_owned() }
    }

    fn outgoing(&self, node: &Node, hash: PaymentHash) -> Result<Outgoing, NodeError> {
        let noted = self.news.sent(hash).map_err(|error| self.unavailable(error))?;
        if let Some(Sent::Paid { preimage, fee_msat }) = noted {
            return Ok(Outgoing::Paid(PaidOut { preimage, fee_msat }));
        }
        let stored = node.payment(&PaymentId(hash.0)).filter(|payment| payment.direction == PaymentDirection::Outbound);
        match (stored.as_ref().map(|payment| payment.status), noted) {
            (Some(PaymentStatus::Succeeded), _) => Ok(stored.as_ref().map_or(Outgoing::InFlight, paid_out)),
            // Whatever an earlier attempt came to.
            (_, Some(Sent::Begun { now: true })) => Ok(Outgoing::InFlight),
            (Some(PaymentStatus::Failed), _) | (None, Some(Sent::Failed { .. })) => Ok(Outgoing::Failed),
            (None, None) => Ok(Outgoing::Never),
            (Some(PaymentStatus::Pending), _) | (None, Some(_)) => self.left_behind(node, hash),
        }
    }

    /// A payment of an earlier run of which no end is known.
    fn left_behind(&self, node: &Node, hash: PaymentHash) -> Result<Outgoing, NodeError> {
        let quiet = matches!(&*self.state.read(), State::Up { since, .. } if since.elapsed() >= QUIET);
        let back = node.list_channels().iter().all(|channel| channel.is_usable);
        if !quiet || !back || may_be_under_way(node, hash) {
            return Ok(Outgoing::InFlight);
        }
        // ldk-node would call another attempt a duplicate.
        node.remove_payment(&PaymentId(hash.0)).map_err(|error| self.unavailable(error))?;
        self.news.failed(hash, "no_route").map_err(|error| self.unavailable(error))?;
        tracing::info!(node = self.label, %hash, "a payment that a crash cut off never left");
        Ok(Outgoing::Failed)
    }
}

/// Whether a channel has a part of it, or has parts too small to be told apart: those are only summed up.
fn may_be_under_way(node: &Node, hash: PaymentHash) -> bool {
    node.list_balances().lightning_balances.iter().any(|balance| match balance {
        LightningBalance::ClaimableOnChannelClose { outbound_payment_htlc_rounded_msat, .. } => {
            *outbound_payment_htlc_rounded_msat > 0
        }
        LightningBalance::MaybeTimeoutClaimableHTLC { payment_hash, .. } => payment_hash.0 == hash.0,
        _ => false,
    })
}

fn paid_out(payment: &PaymentDetails) -> Outgoing {
    let preimage = match &payment.kind {
        PaymentKind::Bolt11 { preimage, .. } => preimage.map(|preimage| Preimage(preimage.0)),
        _ => None,
    };
    Outgoing::Paid(PaidOut { preimage, fee_msat: payment.fee_paid_msat })
}

/// What channels whose peer is there could send.
pub(super) fn spendable_msat(node: &Node) -> u64 {
    node.list_channels().iter().filter(|channel| channel.is_usable).map(|channel| channel.outbound_capacity_msat).sum()
}
