//! lnd over its REST interface. Source: lnd 0.21.2, `lnrpc/lightning.proto`, `routerrpc/router.proto`; run against lnd itself.

mod invoices;
mod payments;
mod wire;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use farebox_core::{
    BitcoinNetwork, Invoice, PaymentHash,
    ports::{
        Clock, InvoiceOrder, InvoiceStatus, LightningNode, LightningWallet, NewsCursor, NodeError, NodeInfo, Outgoing,
        PayOrder, PayOutcome, Settlements,
    },
};
use parking_lot::Mutex;
use reqwest::header::HeaderValue;
use zeroize::Zeroizing;

use self::{
    invoices::Subscription,
    wire::{Channels, GetInfo},
};
use super::{
    ConnectError, LndConfig, config, network,
    rest::{Rest, RestError},
};

/// An lnd node.
pub(super) struct Lnd {
    rest: Rest,
    clock: Arc<dyn Clock>,
    /// Between two questions for settlements, so that the second goes on where the first ended.
    subscription: Mutex<Option<Subscription>>,
}

impl Lnd {
    pub(super) fn new(config: &LndConfig, clock: Arc<dyn Clock>) -> Result<Self, ConnectError> {
        let trust = config::trust(config.certificate.as_deref())?;
        let auth = ("grpc-metadata-macaroon", macaroon(config)?);
        let rest = Rest::new("lnd", &config.url, &trust, auth, config.timeout)?;
        Ok(Self { rest, clock, subscription: Mutex::new(None) })
    }

    async fn channels(&self) -> Result<Channels, RestError> {
        self.rest.ask(self.rest.get("v1/channels?active_only=true")).await
    }

    async fn get_info(&self) -> Result<GetInfo, RestError> {
        self.rest.ask(self.rest.get("v1/getinfo")).await
    }
}

#[async_trait]
impl LightningNode for Lnd {
    fn label(&self) -> &str {
        self.rest.label()
    }

    async fn info(&self) -> Result<NodeInfo, NodeError> {
        let (info, channels) = tokio::join!(self.get_info(), self.channels());
        // A macaroon that can only make and read invoices is the right one for a seller, and then the node does not tell.
        let channels = told(channels).map_err(|e| self.rest.error(e))?;
        let receivable_msat = channels.as_ref().map(Channels::receivable_msat);
        Ok(match told(info).map_err(|e| self.rest.error(e))? {
            Some(info) => NodeInfo {
                network: info.network().and_then(network),
                id: info.identity_pubkey.into(),
                alias: info.alias,
                synced: info.synced_to_chain,
                receivable_msat,
                channels: Some(info.num_active_channels),
            },
            None => NodeInfo {
                id: self.rest.label().into(),
                alias: String::new(),
                network: None,
                synced: true,
                receivable_msat,
                channels: None,
            },
        })
    }

    async fn create_invoice(&self, order: &InvoiceOrder) -> Result<Invoice, NodeError> {
        invoices::create(&self.rest, order).await
    }

    async fn invoice_news(&self, hash: PaymentHash) -> Result<Option<InvoiceStatus>, NodeError> {
        invoices::news(&self.rest, hash, self.clock.now()).await
    }

    async fn settlements(&self, after: Option<&NewsCursor>, wait: Duration) -> Result<Settlements, NodeError> {
        invoices::settlements(&self.rest, &self.subscription, after, wait).await
    }
}

#[async_trait]
impl LightningWallet for Lnd {
    fn label(&self) -> &str {
        self.rest.label()
    }

    async fn id(&self) -> Result<Arc<str>, NodeError> {
        let told = told(self.get_info().await).map_err(|e| self.rest.error(e))?;
        Ok(told.map_or_else(|| self.rest.label().into(), |info| info.identity_pubkey.into()))
    }

    async fn network(&self) -> Result<Option<BitcoinNetwork>, NodeError> {
        let info = self.get_info().await.map_err(|e| self.rest.error(e))?;
        Ok(info.network().and_then(network))
    }

    async fn spendable_msat(&self) -> Result<u64, NodeError> {
        let channels = self.channels().await.map_err(|e| self.rest.error(e))?;
        Ok(channels.spendable_msat())
    }

    async fn pay(&self, order: &PayOrder) -> PayOutcome {
        payments::pay(&self.rest, order).await
    }

    async fn outgoing(&self, hash: PaymentHash) -> Result<Outgoing, NodeError> {
        payments::outgoing(&self.rest, hash).await.map_err(|e| self.rest.error(e))
    }
}

impl fmt::Debug for Lnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lnd").field("rest", &self.rest).finish_non_exhaustive()
    }
}

/// `None` where the macaroon does not allow the question.
fn told<T>(answer: Result<T, RestError>) -> Result<Option<T>, RestError> {
    match answer {
        Err(RestError::Said(said)) if said.message.contains("permission denied") => Ok(None),
        answer => answer.map(Some),
    }
}

/// In hex, as the header has it.
fn macaroon(config: &LndConfig) -> Result<HeaderValue, ConnectError> {
    let bytes = config.macaroon.read()?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default().trim();
    let is_hex = !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    // lnd's own file is binary and begins with the version 2.
    let hex = match bytes.first() {
        Some(2) => Zeroizing::new(hex::encode(&*bytes)),
        _ if is_hex => Zeroizing::new(text.to_owned()),
        _ => return Err(ConnectError::Credential("expected a macaroon as lnd writes it to a file, or its hex digits")),
    };
    let mut value = HeaderValue::from_str(&hex).map_err(|_| ConnectError::Credential("the macaroon is too long"))?;
    value.set_sensitive(true);
    Ok(value)
}
