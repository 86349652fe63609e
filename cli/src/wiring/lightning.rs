//! The node that is paid by Lightning, and the rail that sells tokens through it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use farebox_core::{
    BitcoinNetwork, Invoice, PaymentHash,
    ports::{
        Clock, DollarRates, Entropy, InvoiceOrder, InvoiceStatus, LightningNode, NewsCursor, NodeError, NodeInfo,
        Settlements, TokenBooks,
    },
};
use farebox_ledger::{AssetName, SqliteLedger};
#[cfg(feature = "ldk")]
use farebox_lightning::embedded::EmbeddedNode;
use farebox_lightning::{L402, L402Config, L402Parts, PaidBy, node};
use tracing::{info, warn};

use crate::{
    config::{Config, Lightning as Settings, NodeSource, read::Notes},
    metrics::LightningMeter,
};

/// What prices and lists call bitcoin over Lightning, and how many of its decimals are millisatoshis.
const SAT: (&str, u8) = ("sat", 3);

/// How Lightning payments are taken in one run of the gateway.
#[derive(Clone, Debug)]
pub(crate) struct Lightning {
    pub(crate) rail: Arc<L402>,
    /// The books, as rail and gateway see them.
    pub(crate) books: Arc<dyn TokenBooks>,
    /// What is counted of node and books.
    pub(crate) meter: LightningMeter,
    /// The node, if it runs in this process.
    #[cfg(feature = "ldk")]
    embedded: Option<Arc<EmbeddedNode>>,
}

impl Lightning {
    /// Stops the node, if it runs in this process. Without it nothing is lost, but its peers are not told.
    pub(crate) async fn stop(&self) {
        #[cfg(feature = "ldk")]
        if let Some(node) = &self.embedded {
            node.stop().await;
        }
    }
}

/// What the rail stands on, besides the node.
pub(crate) struct Parts<'a> {
    pub(crate) ledger: &'a Arc<SqliteLedger>,
    pub(crate) rates: Arc<dyn DollarRates>,
    pub(crate) entropy: &'a Arc<dyn Entropy>,
    pub(crate) clock: &'a Arc<dyn Clock>,
}

/// The rail, over the node of the config.
///
/// # Errors
/// The node's secrets cannot be used, it is on another network, or not the one of the config. One that does not answer may answer later.
pub(crate) async fn open(
    config: &Config,
    settings: &Settings,
    source: &NodeSource,
    parts: Parts<'_>,
) -> anyhow::Result<Lightning> {
    let Parts { ledger, rates, entropy, clock } = parts;
    let connected = connect(config, settings, source, clock).await?;
    let meter = LightningMeter::new();
    let node = meter.node(connected.node.clone(), clock.clone());
    if !matches!(source, NodeSource::Idle) {
        look(config, settings, &*node).await?;
    }
    let (symbol, decimals) = (SAT.0.to_owned(), SAT.1);
    ledger.name_assets(vec![AssetName { asset: settings.network.asset(), symbol, decimals }]).await?;
    let books = meter.books(ledger.clone());
    let parts = L402Parts { node, books: books.clone(), rates, entropy: entropy.clone(), clock: clock.clone() };
    Ok(Lightning {
        rail: L402::new(rail_config(settings), parts)?,
        books,
        meter,
        #[cfg(feature = "ldk")]
        embedded: connected.embedded,
    })
}

fn rail_config(settings: &Settings) -> L402Config {
    L402Config {
        network: settings.network,
        paid_by: if settings.strict { PaidBy::Settlement } else { PaidBy::Preimage },
        invoice_expiry: settings.invoice_expiry,
        reuse_left_min: settings.invoice_reuse,
        unpaid_per_client_per_minute: settings.invoices_per_client,
        unpaid_per_minute: settings.invoices,
        node_timeout: settings.node_timeout,
    }
}

/// A node that can be asked.
pub(crate) struct Connected {
    pub(crate) node: Arc<dyn LightningNode>,
    #[cfg(feature = "ldk")]
    embedded: Option<Arc<EmbeddedNode>>,
}

impl From<Arc<dyn LightningNode>> for Connected {
    fn from(node: Arc<dyn LightningNode>) -> Self {
        Self {
            node,
            #[cfg(feature = "ldk")]
            embedded: None,
        }
    }
}

/// The node. One that runs elsewhere is not asked anything yet; one of our own is started.
///
/// # Errors
/// A file that it needs cannot be read, or holds something else; or it does not start.
pub(crate) async fn connect(
    config: &Config,
    settings: &Settings,
    source: &NodeSource,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Connected> {
    let wrong = |error: &dyn std::error::Error| {
        let mut notes = Notes::default();
        notes.wrong::<()>(settings.node.span(), "lightning.node", chain_of(error));
        anyhow::Error::from(config.mistakes(notes))
    };
    match source {
        NodeSource::Idle => {
            let node: Arc<dyn LightningNode> = Arc::new(IdleNode { network: settings.network });
            Ok(node.into())
        }
        NodeSource::Remote(remote) => {
            node::connect(remote, clock).map(|connected| connected.node.into()).map_err(|error| wrong(&error))
        }
        #[cfg(feature = "ldk")]
        NodeSource::Embedded(own) => {
            let node = EmbeddedNode::open((**own).clone(), clock.clone()).await.map_err(|error| wrong(&error))?;
            Ok(Connected { node: node.clone(), embedded: Some(node) })
        }
    }
}

/// What is wrong with a node for good, or for now.
pub(crate) enum Unfit {
    /// It is another one than the config says.
    ForGood(String),
    /// It can be seen to later, and payments are not lost.
    ForNow(String),
}

/// Who the node is, and what of it does not fit.
pub(crate) async fn inspect(settings: &Settings, node: &dyn LightningNode) -> (Option<NodeInfo>, Vec<Unfit>) {
    let asked = tokio::time::timeout(settings.node_timeout, node.info()).await;
    let info = match asked {
        Ok(Ok(info)) => info,
        Ok(Err(error @ NodeError::Unavailable { .. })) => return (None, vec![Unfit::ForNow(chain_of(&error))]),
        Ok(Err(error @ (NodeError::Refused { .. } | NodeError::Impostor { .. }))) => {
            return (None, vec![Unfit::ForGood(chain_of(&error))]);
        }
        Err(_) => {
            let s = settings.node_timeout.as_secs_f64();
            return (None, vec![Unfit::ForNow(format!("{} did not answer within {s} s", node.label()))]);
        }
    };
    let mut unfit = Vec::new();
    match info.network {
        Some(network) if network != settings.network => unfit.push(Unfit::ForGood(format!(
            "{} is on Bitcoin's {network}, and the config says {}: {}",
            node.label(),
            settings.network,
            if network.is_test() { "what is paid there is worth nothing" } else { "what is paid there is real money" },
        ))),
        Some(_) => {}
        None => unfit.push(Unfit::ForNow(format!(
            "{} does not tell its network; each of its invoices is looked at, and one of another network than {} is not shown",
            node.label(),
            settings.network
        ))),
    }
    if !info.synced {
        unfit.push(Unfit::ForNow(format!("{} has not caught up with its chain", node.label())));
    }
    if info.receivable_msat == Some(0) {
        unfit.push(Unfit::ForNow(format!(
            "{} can receive nothing: it has no channel with money on the other side; open one to it, or buy inbound liquidity",
            node.label()
        )));
    }
    (Some(info), unfit)
}

async fn look(config: &Config, settings: &Settings, node: &dyn LightningNode) -> anyhow::Result<()> {
    let (known, unfit) = inspect(settings, node).await;
    for unfit in unfit {
        match unfit {
            Unfit::ForGood(why) => {
                let mut notes = Notes::default();
                notes.wrong::<()>(settings.node.span(), "lightning.node", why);
                return Err(config.mistakes(notes).into());
            }
            Unfit::ForNow(why) => warn!("{why}"),
        }
    }
    if let Some(NodeInfo { id, alias, receivable_msat, .. }) = known {
        let receivable_sat = receivable_msat.map(|msat| msat / 1000);
        let network = settings.network;
        info!(node = node.label(), %network, %id, alias = %farebox_core::Untrusted::new(alias), receivable_sat, "lightning");
    }
    Ok(())
}

fn chain_of(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Stands where a node would: a check has none make an invoice that nobody pays.
#[derive(Debug)]
struct IdleNode {
    network: BitcoinNetwork,
}

impl IdleNode {
    const LABEL: &str = "a check";

    fn refused<T>() -> Result<T, NodeError> {
        Err(NodeError::Refused { label: Self::LABEL.to_owned(), detail: "a check makes no invoices".to_owned() })
    }
}

#[async_trait]
impl LightningNode for IdleNode {
    fn label(&self) -> &str {
        Self::LABEL
    }

    async fn info(&self) -> Result<NodeInfo, NodeError> {
        Ok(NodeInfo {
            id: Self::LABEL.into(),
            alias: String::new(),
            network: Some(self.network),
            synced: true,
            receivable_msat: None,
            channels: None,
        })
    }

    async fn create_invoice(&self, _order: &InvoiceOrder) -> Result<Invoice, NodeError> {
        Self::refused()
    }

    async fn invoice_news(&self, _hash: PaymentHash) -> Result<Option<InvoiceStatus>, NodeError> {
        Ok(None)
    }

    async fn settlements(&self, after: Option<&NewsCursor>, wait: Duration) -> Result<Settlements, NodeError> {
        tokio::time::sleep(wait).await;
        Ok(Settlements { news: Vec::new(), cursor: after.cloned() })
    }
}
