//! The node as a seller's: invoices, and what became of them.

use std::time::Duration;

use async_trait::async_trait;
use farebox_core::{
    BitcoinNetwork, Invoice, InvoiceNews, PaymentHash, Timestamp,
    ports::{InvoiceOrder, InvoiceStatus, LightningNode, NewsCursor, NodeError, NodeInfo, Settlements},
};
use ldk_node::{
    Node,
    lightning::ln::channelmanager::PaymentId,
    lightning_invoice::{Bolt11Invoice, Bolt11InvoiceDescription, Description},
};

use super::{Core, EmbeddedNode, blocking, events::received};

/// Settlements told in one answer.
const NEWS_MAX: u32 = 500;
/// A node that heard nothing of the chain for so long has not caught up. Sources are asked every 2 to 80 seconds.
const SYNC_AGE_MAX: Duration = Duration::from_secs(300);

#[async_trait]
impl LightningNode for EmbeddedNode {
    fn label(&self) -> &str {
        &self.core.label
    }

    async fn info(&self) -> Result<NodeInfo, NodeError> {
        blocking(&self.core, |core| core.node().map(|node| core.info(&node))).await?
    }

    /// Refused if no channel could receive the amount, for nobody could pay it.
    async fn create_invoice(&self, order: &InvoiceOrder) -> Result<Invoice, NodeError> {
        let order = order.clone();
        blocking(&self.core, move |core| core.create_invoice(&*core.node()?, &order)).await?
    }

    async fn invoice_news(&self, hash: PaymentHash) -> Result<Option<InvoiceStatus>, NodeError> {
        blocking(&self.core, move |core| core.invoice_news(&*core.node()?, hash)).await?
    }

    async fn settlements(&self, after: Option<&NewsCursor>, wait: Duration) -> Result<Settlements, NodeError> {
        let deadline = tokio::time::Instant::now() + wait;
        let mut told = self.core.told.subscribe();
        loop {
            told.mark_unchanged();
            let after = after.cloned();
            let (news, cursor) = blocking(&self.core, move |core| {
                core.node()?;
                core.news.settlements(after.as_ref(), NEWS_MAX).map_err(|error| core.unavailable(error))
            })
            .await??;
            let waited = tokio::time::timeout_at(deadline, told.changed());
            if news.is_empty() && matches!(waited.await, Ok(Ok(()))) {
                continue;
            }
            let told = |(hash, received_msat)| (hash, InvoiceNews::Settled { received_msat });
            return Ok(Settlements { news: news.into_iter().map(told).collect(), cursor: Some(cursor) });
        }
    }
}

impl Core {
    fn info(&self, node: &Node) -> NodeInfo {
        let channels = node.list_channels();
        let usable = channels.iter().filter(|channel| channel.is_usable);
        NodeInfo {
            id: node.node_id().to_string().into(),
            alias: node.node_alias().map(|alias| alias.to_string()).unwrap_or_default(),
            network: Some(self.config.network),
            synced: self.synced(node),
            receivable_msat: Some(usable.clone().map(|channel| channel.inbound_capacity_msat).sum()),
            channels: u32::try_from(usable.count()).ok(),
        }
    }

    /// Whether it heard of the chain lately.
    pub(super) fn synced(&self, node: &Node) -> bool {
        let heard = node.status().latest_lightning_wallet_sync_timestamp.map(Timestamp::from_unix_s);
        heard.is_some_and(|heard| self.clock.now().since(heard) <= SYNC_AGE_MAX)
    }

    fn create_invoice(&self, node: &Node, order: &InvoiceOrder) -> Result<Invoice, NodeError> {
        // A peer that is away for a moment may be back when the invoice is paid.
        let ready = node.list_channels().into_iter().filter(|channel| channel.is_channel_ready);
        let receivable: u64 = ready.map(|channel| channel.inbound_capacity_msat).sum();
        if receivable < order.amount_msat {
            return Err(self.refused(format!(
                "{} msat cannot be received: its channels have room for {receivable} msat; `farebox lightning status` says what to do",
                order.amount_msat
            )));
        }
        let description =
            Description::new(order.description.clone()).map_err(|error| self.refused(error.to_string()))?;
        let seconds = order.expiry.as_secs().max(1);
        let expiry =
            u32::try_from(seconds).map_err(|_| self.refused(format!("{seconds} s is too long for an invoice")))?;
        let made = node
            .bolt11_payment()
            .receive(order.amount_msat, &Bolt11InvoiceDescription::Direct(description), expiry)
            .map_err(|error| self.unavailable(error))?;
        let invoice =
            invoice_of(&made, self.config.network).ok_or_else(|| self.unavailable("its invoice is not one"))?;
        self.news.invoice(invoice.payment_hash, invoice.expires_at).map_err(|error| self.unavailable(error))?;
        Ok(invoice)
    }

    fn invoice_news(&self, node: &Node, hash: PaymentHash) -> Result<Option<InvoiceStatus>, NodeError> {
        let settled = |received_msat| Ok(Some(InvoiceStatus::News(InvoiceNews::Settled { received_msat })));
        let broken = |error| self.unavailable(error);
        if let Some(received_msat) = self.news.settlement(hash).map_err(broken)? {
            return settled(received_msat);
        }
        // Paid a moment ago, and its event not handled yet.
        if let Some((_, received_msat)) = node.payment(&PaymentId(hash.0)).as_ref().and_then(received) {
            return settled(received_msat);
        }
        let end = self.news.invoice_end(hash).map_err(broken)?;
        Ok(end.map(|end| match self.clock.now() {
            now if now < end => InvoiceStatus::Open,
            _ => InvoiceStatus::News(InvoiceNews::Expired),
        }))
    }
}

/// What an invoice says; `None` if it names no amount or another network.
pub(super) fn invoice_of(invoice: &Bolt11Invoice, network: BitcoinNetwork) -> Option<Invoice> {
    let created_at = Timestamp::from_unix_s(invoice.duration_since_epoch().as_secs());
    (invoice.network() == super::ldk_network(network) || network == BitcoinNetwork::Testnet4).then_some(())?;
    Some(Invoice {
        payment_hash: PaymentHash(*AsRef::<[u8; 32]>::as_ref(invoice.payment_hash())),
        bolt11: invoice.to_string().into(),
        amount_msat: invoice.amount_milli_satoshis()?,
        created_at,
        expires_at: created_at.plus(invoice.expiry_time()),
    })
}
