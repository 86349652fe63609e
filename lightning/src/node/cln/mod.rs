//! Core Lightning over clnrest. Source: Core Lightning v26.06, `doc/schemas/*.json`, `doc/developers-guide/app-development/rest.md` and
//! `plugins/rest-plugin/src/structs.rs`. Written against that and tested against a server that speaks it; not yet run against the node itself.

mod invoices;
mod payments;
mod wire;

use std::{
    fmt,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use async_trait::async_trait;
use farebox_core::{
    BitcoinNetwork, Invoice, PaymentHash,
    ports::{
        Clock, InvoiceOrder, InvoiceStatus, LightningNode, LightningWallet, NewsCursor, NodeError, NodeInfo, Outgoing,
        PayOrder, PayOutcome, Settlements,
    },
};
use reqwest::header::HeaderValue;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use self::wire::{Channels, GetInfo};
use super::{
    ClnConfig, ConnectError, config, network,
    once::Paying,
    rest::{Rest, RestError},
};

/// clnrest: the rune is none, or does not allow this.
const RUNE_REFUSED: std::ops::RangeInclusive<i64> = 1501..=1502;

/// A Core Lightning node.
pub(super) struct Cln {
    rest: Rest,
    clock: Arc<dyn Clock>,
    /// Invoices made since the start: a part of their labels.
    made: AtomicU64,
    paying: Paying,
}

impl Cln {
    pub(super) fn new(config: &ClnConfig, clock: Arc<dyn Clock>) -> Result<Self, ConnectError> {
        let trust = config::trust(config.certificate.as_deref())?;
        let rest = Rest::new("cln", &config.url, &trust, ("rune", rune(config)?), config.timeout)?;
        Ok(Self { rest, clock, made: AtomicU64::new(0), paying: Paying::default() })
    }

    async fn info(&self) -> Result<GetInfo, RestError> {
        call(&self.rest, "getinfo", json!({})).await
    }

    async fn channels(&self) -> Result<Channels, RestError> {
        call(&self.rest, "listpeerchannels", json!({})).await
    }
}

#[async_trait]
impl LightningNode for Cln {
    fn label(&self) -> &str {
        self.rest.label()
    }

    async fn info(&self) -> Result<NodeInfo, NodeError> {
        let (info, channels) = tokio::join!(self.info(), self.channels());
        let channels = told(channels).map_err(|e| self.rest.error(e))?;
        let receivable_msat = channels.as_ref().map(Channels::receivable_msat);
        Ok(match told(info).map_err(|e| self.rest.error(e))? {
            Some(info) => NodeInfo {
                network: network(&info.network),
                synced: info.synced(),
                id: info.id.into(),
                alias: info.alias,
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
        invoices::create(&self.rest, &self.made, order, self.clock.now()).await
    }

    async fn invoice_news(&self, hash: PaymentHash) -> Result<Option<InvoiceStatus>, NodeError> {
        invoices::news(&self.rest, hash).await
    }

    async fn settlements(&self, after: Option<&NewsCursor>, wait: Duration) -> Result<Settlements, NodeError> {
        invoices::settlements(&self.rest, after, wait).await
    }
}

#[async_trait]
impl LightningWallet for Cln {
    fn label(&self) -> &str {
        self.rest.label()
    }

    async fn id(&self) -> Result<Arc<str>, NodeError> {
        let told = told(self.info().await).map_err(|e| self.rest.error(e))?;
        Ok(told.map_or_else(|| self.rest.label().into(), |info| info.id.into()))
    }

    async fn network(&self) -> Result<Option<BitcoinNetwork>, NodeError> {
        let info = self.info().await.map_err(|e| self.rest.error(e))?;
        Ok(network(&info.network))
    }

    async fn spendable_msat(&self) -> Result<u64, NodeError> {
        let channels = self.channels().await.map_err(|e| self.rest.error(e))?;
        Ok(channels.spendable_msat())
    }

    async fn pay(&self, order: &PayOrder) -> PayOutcome {
        payments::pay(&self.rest, &self.paying, order).await
    }

    async fn outgoing(&self, hash: PaymentHash) -> Result<Outgoing, NodeError> {
        payments::outgoing(&self.rest, hash).await.map_err(|e| self.rest.error(e))
    }
}

impl fmt::Debug for Cln {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cln").field("rest", &self.rest).finish_non_exhaustive()
    }
}

/// One method of the node's, with its parameters by name.
async fn call<T: DeserializeOwned>(rest: &Rest, method: &str, parameters: Value) -> Result<T, RestError> {
    rest.ask(rest.post(&format!("v1/{method}"), &parameters)).await
}

/// `None` where the rune does not allow the question.
fn told<T>(answer: Result<T, RestError>) -> Result<Option<T>, RestError> {
    match answer {
        Err(RestError::Said(said)) if RUNE_REFUSED.contains(&said.code) => Ok(None),
        answer => answer.map(Some),
    }
}

fn rune(config: &ClnConfig) -> Result<HeaderValue, ConnectError> {
    let wrong = ConnectError::Credential("expected a rune: one line of URL-safe base64");
    let bytes = config.rune.read()?;
    let Ok(rune) = std::str::from_utf8(&bytes).map(str::trim) else { return Err(wrong) };
    let is_rune = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'=');
    if rune.is_empty() || !rune.bytes().all(is_rune) {
        return Err(wrong);
    }
    let Ok(mut value) = HeaderValue::from_str(rune) else { return Err(wrong) };
    value.set_sensitive(true);
    Ok(value)
}
