//! The seller's node: asked within a time limit, known by its id, and left alone for a while when it does not answer.

use std::{sync::Arc, time::Duration};

use farebox_core::{
    BitcoinNetwork, Invoice, PaymentHash, Timestamp,
    ports::{
        BoxError, Clock, InvoiceOrder, InvoiceStatus, LightningNode, NewsCursor, NodeError, NodeInfo, Settlements,
    },
};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// How often a node that is down is asked for an invoice all the same: buyers must not each wait for a node that does not answer.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// The most questions for the sake of callers at once; the others wait, within the node's timeout.
const ASKED_AT_ONCE_MAX: usize = 16;
/// What a long poll may take beyond the time it was asked to wait.
const POLL_SLACK: Duration = Duration::from_secs(10);

/// The node, and what is known of it.
#[derive(Debug)]
pub(crate) struct Link {
    node: Arc<dyn LightningNode>,
    network: BitcoinNetwork,
    timeout: Duration,
    clock: Arc<dyn Clock>,
    asking: Semaphore,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    id: Option<Arc<str>>,
    identity: Identity,
    trouble: Option<Trouble>,
}

/// Whether the node is still the one that it said it was.
#[derive(Debug, Default, PartialEq, Eq)]
enum Identity {
    /// It was away, or never asked: another may be in its place.
    #[default]
    Unsure,
    Sure,
}

#[derive(Debug)]
struct Trouble {
    told: NodeTrouble,
    ask_again_at: Timestamp,
}

/// Since when and why no invoices can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeTrouble {
    /// Since when.
    pub since: Timestamp,
    /// Of the [`NodeError`].
    pub code: &'static str,
}

impl Link {
    pub(crate) fn new(
        node: Arc<dyn LightningNode>,
        network: BitcoinNetwork,
        timeout: Duration,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let asking = Semaphore::new(ASKED_AT_ONCE_MAX);
        Self { node, network, timeout, clock, asking, known: Mutex::default() }
    }

    pub(crate) fn label(&self) -> &str {
        self.node.label()
    }

    pub(crate) fn trouble(&self) -> Option<NodeTrouble> {
        self.known.lock().trouble.as_ref().map(|trouble| trouble.told)
    }

    /// Lets one through every now and then while the node is down.
    ///
    /// # Errors
    /// It is known to be down, and was asked only just now.
    pub(crate) fn admit(&self, now: Timestamp) -> Result<(), NodeError> {
        let mut known = self.known.lock();
        let Some(trouble) = &mut known.trouble else { return Ok(()) };
        let wait = trouble.ask_again_at.since(now);
        // A longer wait than we set is a clock that was set back.
        if wait.is_zero() || wait > RETRY_AFTER {
            trouble.ask_again_at = now.plus(RETRY_AFTER);
            return Ok(());
        }
        let NodeTrouble { since, code } = trouble.told;
        Err(self.unavailable(format!("{code} for {} s already", now.since(since).as_secs())))
    }

    /// The id of the node that makes our invoices. Asked for again whenever the node was away.
    ///
    /// # Errors
    /// [`NodeError`]; [`NodeError::Impostor`] if it is on another network, or another than before.
    pub(crate) async fn id(&self) -> Result<Arc<str>, NodeError> {
        {
            let known = self.known.lock();
            if let (Some(id), Identity::Sure) = (&known.id, &known.identity) {
                return Ok(id.clone());
            }
        }
        let found = self.within(self.timeout, self.node.info()).await.and_then(|info| self.recognise(info));
        self.note(found)
    }

    fn recognise(&self, info: NodeInfo) -> Result<Arc<str>, NodeError> {
        let impostor = |detail| NodeError::Impostor { label: self.label().to_owned(), detail };
        if let Some(network) = info.network.filter(|network| *network != self.network) {
            return Err(impostor(format!("expected a node on {}, found one on {network}", self.network)));
        }
        let mut known = self.known.lock();
        if let Some(id) = known.id.as_ref().filter(|id| **id != info.id) {
            return Err(impostor(format!("expected node {id}, found {}; restart to sell through it", info.id)));
        }
        if !info.synced && known.id.is_none() {
            tracing::warn!(node = self.label(), "the Lightning node has not caught up with its chain yet");
        }
        known.id = Some(info.id.clone());
        known.identity = Identity::Sure;
        Ok(info.id)
    }

    pub(crate) async fn create_invoice(&self, order: &InvoiceOrder) -> Result<Invoice, NodeError> {
        self.note(self.within(self.timeout, self.node.create_invoice(order)).await)
    }

    /// So many at once, and all of it within the node's timeout: a caller waits.
    pub(crate) async fn invoice_news(&self, hash: PaymentHash) -> Result<Option<InvoiceStatus>, NodeError> {
        let asked = async {
            self.id().await?;
            let _turn = self.asking.acquire().await.map_err(|closed| self.unavailable(closed))?;
            self.node.invoice_news(hash).await
        };
        self.note(self.within(self.timeout, asked).await)
    }

    pub(crate) async fn settlements(
        &self,
        after: Option<&NewsCursor>,
        wait: Duration,
    ) -> Result<Settlements, NodeError> {
        let limit = wait + self.timeout + POLL_SLACK;
        self.note(self.within(limit, self.node.settlements(after, wait)).await)
    }

    async fn within<T>(
        &self,
        limit: Duration,
        answer: impl Future<Output = Result<T, NodeError>>,
    ) -> Result<T, NodeError> {
        match tokio::time::timeout(limit, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(self.unavailable(format!("no answer within {} ms", limit.as_millis()))),
        }
    }

    fn unavailable(&self, why: impl Into<BoxError>) -> NodeError {
        NodeError::Unavailable { label: self.label().to_owned(), source: why.into() }
    }

    /// A node that refuses one thing is there; one that is silent or another is no good for anything.
    fn note<T>(&self, answer: Result<T, NodeError>) -> Result<T, NodeError> {
        let now = self.clock.now();
        let mut known = self.known.lock();
        match &answer {
            Err(error @ (NodeError::Unavailable { .. } | NodeError::Impostor { .. })) => {
                let code = error.code();
                let since = known.trouble.as_ref().map_or(now, |trouble| trouble.told.since);
                if known.trouble.as_ref().is_none_or(|trouble| trouble.told.code != code) {
                    let error = error as &dyn std::error::Error;
                    tracing::warn!(node = self.label(), error, "no invoices can be made");
                }
                known.identity = Identity::Unsure;
                let told = NodeTrouble { since, code };
                known.trouble = Some(Trouble { told, ask_again_at: now.plus(RETRY_AFTER) });
            }
            Ok(_) | Err(NodeError::Refused { .. }) => {
                if known.trouble.take().is_some() {
                    tracing::info!(node = self.label(), "the Lightning node answers again");
                }
            }
        }
        answer
    }
}
