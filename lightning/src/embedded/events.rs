//! The task that keeps up with the node: starts it when its chain source answers, and writes down what it tells.

use std::{sync::Arc, time::Duration};

use farebox_core::{PaymentHash, Preimage};
use ldk_node::{
    Event, Node,
    lightning::{events::PaymentFailureReason, ln::channelmanager::PaymentId},
    payment::{PaymentDetails, PaymentDirection, PaymentKind, PaymentStatus},
};
use tokio::sync::watch;

use super::{Core, RETRY_FIRST, RETRY_MAX, StartError, State, stopped};

/// How long an invoice that can no longer be paid is remembered. ldk-node has all of them in memory.
const INVOICES_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often those older are forgotten, and how many at a time.
const PRUNE_EVERY: Duration = Duration::from_secs(600);
const PRUNED_AT_A_TIME: u32 = 1_000;
/// Until an event that could not be written down is tried again; meanwhile ldk-node queues.
const WRITE_RETRY: Duration = Duration::from_secs(1);

impl Core {
    /// Runs until told to stop.
    pub(super) async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let Some(node) = self.started(&mut stop).await else { return };
        let mut prune = tokio::time::interval(PRUNE_EVERY);
        loop {
            tokio::select! {
                () = stopped(&mut stop) => return,
                event = node.next_event_async() => {
                    if !self.handle(&node, event).await {
                        tokio::time::sleep(WRITE_RETRY).await;
                    }
                }
                _ = prune.tick() => self.prune(&node).await,
            }
        }
    }

    async fn started(self: &Arc<Self>, stop: &mut watch::Receiver<bool>) -> Option<Arc<Node>> {
        let mut wait = RETRY_FIRST;
        loop {
            match &*self.state.read() {
                State::Up { node, .. } => return Some(node.clone()),
                State::Stopped => return None,
                State::Waiting(_) => {}
            }
            tokio::select! {
                () = stopped(stop) => return None,
                () = tokio::time::sleep(wait) => {}
            }
            wait = (wait * 2).min(RETRY_MAX);
            let core = self.clone();
            match self.tasks.spawn_blocking(move || core.start()).await {
                Ok(Ok(())) => {}
                Ok(Err(StartError::Chain(why))) => self.wait_for_chain(why),
                Ok(Err(StartError::Build(error))) => self.wait_for_chain(error.to_string()),
                Err(panic) => self.wait_for_chain(panic.to_string()),
            }
        }
    }

    /// Writes down what an event says, and only then lets ldk-node forget it: after a crash in between it is told again, and changes nothing.
    async fn handle(self: &Arc<Self>, node: &Arc<Node>, event: Event) -> bool {
        let (core, node) = (self.clone(), node.clone());
        let handled = self.tasks.spawn_blocking(move || {
            core.write_down(&node, &event)?;
            // Not acknowledged is only repeated.
            if let Err(error) = node.event_handled() {
                tracing::warn!(node = core.label, %error, "an event of the node will be told again");
            }
            Ok::<_, rusqlite::Error>(())
        });
        match handled.await {
            Ok(Ok(())) => {
                self.told.send_modify(|n| *n += 1);
                true
            }
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(node = self.label, error, "what the node told could not be written down; trying again");
                false
            }
            Err(panic) => {
                tracing::error!(node = self.label, %panic, "an event of the node was not handled; trying again");
                false
            }
        }
    }

    fn write_down(&self, node: &Node, event: &Event) -> rusqlite::Result<()> {
        let label = &self.label;
        match event {
            Event::PaymentReceived { payment_hash, amount_msat, .. } => {
                self.news.settled(PaymentHash(payment_hash.0), *amount_msat)?;
            }
            Event::PaymentSuccessful { payment_hash, payment_preimage, fee_paid_msat, .. } => {
                let preimage = payment_preimage.map(|preimage| Preimage(preimage.0));
                self.news.paid(PaymentHash(payment_hash.0), preimage, *fee_paid_msat)?;
            }
            Event::PaymentFailed { payment_hash: Some(hash), reason, .. } => {
                self.news.failed(PaymentHash(hash.0), failure_code(*reason))?;
            }
            // No invoice of ours is for a preimage that we do not know, so nobody would ever claim it.
            Event::PaymentClaimable { payment_hash, .. } => {
                if let Err(error) = node.bolt11_payment().fail_for_hash(*payment_hash) {
                    tracing::warn!(node = label, %error, "a payment that is not ours to claim was not given back");
                }
            }
            Event::ChannelPending { counterparty_node_id, funding_txo, .. } => {
                tracing::info!(node = label, peer = %counterparty_node_id, funding = %funding_txo, "a channel waits for the chain");
            }
            Event::ChannelReady { counterparty_node_id: Some(peer), .. } => {
                tracing::info!(node = label, %peer, "a channel is ready");
            }
            Event::ChannelClosed { counterparty_node_id: Some(peer), reason, .. } => {
                let reason = reason.as_ref().map(ToString::to_string);
                tracing::warn!(node = label, %peer, reason, "a channel was closed");
            }
            _ => {}
        }
        Ok(())
    }

    /// Adds settlements that the node knows and the store of news does not: those of a store that was lost.
    pub(super) fn learn(&self, node: &Node) -> rusqlite::Result<()> {
        let mut settled = node.list_payments_with_filter(|payment| received(payment).is_some());
        settled.sort_by_key(|payment| payment.latest_update_timestamp);
        for payment in &settled {
            if let Some((hash, msat)) = received(payment)
                && self.news.settlement(hash)?.is_none()
            {
                self.news.settled(hash, msat)?;
            }
        }
        Ok(())
    }

    async fn prune(self: &Arc<Self>, node: &Arc<Node>) {
        let (core, node) = (self.clone(), node.clone());
        let pruned = self.tasks.spawn_blocking(move || {
            let before = core.clock.now().minus(INVOICES_KEPT);
            for hash in core.news.ended_invoices(before, PRUNED_AT_A_TIME)? {
                let id = PaymentId(hash.0);
                let settled = node.payment(&id).as_ref().and_then(received).is_some();
                // Paid, and not written down yet: the event is still to come.
                if settled && core.news.settlement(hash)?.is_none() {
                    continue;
                }
                if let Err(error) = node.remove_payment(&id) {
                    tracing::warn!(node = core.label, %error, "an old invoice could not be forgotten");
                    break;
                }
                core.news.forget_invoice(hash)?;
            }
            Ok::<_, rusqlite::Error>(())
        });
        if let Ok(Err(error)) = pruned.await {
            tracing::warn!(
                node = self.label,
                error = &error as &dyn std::error::Error,
                "old invoices could not be forgotten"
            );
        }
    }
}

/// What a payment brought, if it is one that was received.
pub(super) fn received(payment: &PaymentDetails) -> Option<(PaymentHash, u64)> {
    let inbound = payment.direction == PaymentDirection::Inbound && payment.status == PaymentStatus::Succeeded;
    match &payment.kind {
        PaymentKind::Bolt11 { hash, .. } if inbound => Some((PaymentHash(hash.0), payment.amount_msat?)),
        _ => None,
    }
}

fn failure_code(reason: Option<PaymentFailureReason>) -> &'static str {
    use PaymentFailureReason as Reason;
    match reason {
        Some(Reason::RecipientRejected | Reason::UnknownRequiredFeatures | Reason::InvoiceRequestRejected) => "refused",
        Some(Reason::PaymentExpired | Reason::InvoiceRequestExpired) => "invoice_expired",
        _ => "no_route",
    }
}
