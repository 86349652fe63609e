//! A bill: an invoice of the node's, a macaroon that it buys, and the books that know of both before anybody else does.

use std::{fmt, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use farebox_core::{
    BitcoinNetwork, Grant, Invoice, NewToken, RequestId, RootKey, RouteId, Timestamp, TokenScope, TokenTerms,
    ports::{
        BillAsk, BoxError, Clock, Entropy, InvoiceOrder, LedgerUnavailable, NoBill, NodeError, TokenBill, TokenBooks,
        TokenRequest,
    },
};
use farebox_wire::{bolt11, l402};

use super::link::Link;

/// The longest text that an invoice tells its payer. BOLT 11 takes 639 bytes; a QR code wants few.
const DESCRIPTION_BYTES_MAX: usize = 200;
/// How far the node's clock may be from ours.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(300);

/// What makes bills.
#[derive(Debug)]
pub(crate) struct Maker {
    pub(crate) network: BitcoinNetwork,
    pub(crate) invoice_expiry: Duration,
    pub(crate) link: Link,
    pub(crate) books: Arc<dyn TokenBooks>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) clock: Arc<dyn Clock>,
}

/// A [`BillAsk`] that can wait for the node without its request.
#[derive(Clone, Debug)]
pub(crate) struct BillOrder {
    route: RouteId,
    method: String,
    resource: String,
    description: String,
    terms: TokenTerms,
    request: RequestId,
    amount_msat: u64,
}

impl BillOrder {
    pub(crate) fn of(ask: &BillAsk<'_>, amount_msat: u64) -> Self {
        Self {
            route: ask.route.clone(),
            method: ask.method.to_owned(),
            resource: ask.resource.to_owned(),
            description: description(ask),
            terms: ask.terms.clone(),
            request: ask.request.clone(),
            amount_msat,
        }
    }
}

/// Why no bill was made; told to everybody who waited for it.
#[derive(Clone, Debug)]
pub(crate) enum Unmade {
    Node(Shared),
    Books { operation: &'static str, source: Shared },
}

/// An error that several callers are told.
#[derive(Clone, Debug)]
pub(crate) struct Shared(Arc<dyn std::error::Error + Send + Sync>);

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Shared {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

impl Unmade {
    pub(crate) fn by_node(source: impl Into<BoxError>) -> Self {
        Self::Node(Shared(source.into().into()))
    }
}

impl From<Unmade> for NoBill {
    fn from(unmade: Unmade) -> Self {
        match unmade {
            Unmade::Node(source) => Self::Node { source: source.into() },
            Unmade::Books { operation, source } => Self::Books(LedgerUnavailable { operation, source: source.into() }),
        }
    }
}

impl From<NodeError> for Unmade {
    fn from(error: NodeError) -> Self {
        Self::by_node(error)
    }
}

impl From<LedgerUnavailable> for Unmade {
    fn from(error: LedgerUnavailable) -> Self {
        Self::Books { operation: error.operation, source: Shared(error.source.into()) }
    }
}

/// The node made another invoice than it was asked for; nobody is shown it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node's invoice has {what} {found}; asked for {asked}")]
pub struct WrongInvoice {
    /// `text`, `network`, `payment hash`, `amount` or `time left`.
    pub what: &'static str,
    /// What it says.
    pub found: String,
    /// What it should.
    pub asked: String,
}

impl Maker {
    /// An invoice that crashed between the node's answer and the books is known to nobody and ends by itself.
    pub(crate) async fn make(&self, order: BillOrder) -> Result<Arc<TokenBill>, Unmade> {
        let node = self.link.id().await?;
        let invoice = self.invoice(&order).await?;
        let token_id = self.random();
        let identifier = l402::Identifier { payment_hash: invoice.payment_hash, token_id };
        let root_key = RootKey::new(self.random());
        let valid_until = valid_until(&order.terms, &invoice);
        let now = self.clock.now();
        let request = TokenRequest { terms: &order.terms, method: &order.method, resource: &order.resource, now };
        let macaroon = l402::mint(&root_key, &identifier.encode(), l402::caveats(&request, valid_until));
        let pass = identifier.pass();
        let token = NewToken {
            pass,
            root_key,
            invoice: invoice.clone(),
            network: self.network.network(),
            node,
            route: order.route,
            method: order.method,
            resource: order.resource,
            request: order.request,
            grant: order.terms.grant,
            valid_until,
        };
        self.books.sell(token).await?;
        let macaroon = BASE64_STANDARD.encode(l402::encode_macaroon(&macaroon)).into();
        Ok(Arc::new(TokenBill { pass, macaroon, invoice }))
    }

    async fn invoice(&self, order: &BillOrder) -> Result<Invoice, Unmade> {
        let asked = InvoiceOrder {
            amount_msat: order.amount_msat,
            description: order.description.clone(),
            expiry: self.invoice_expiry,
            now: self.clock.now(),
        };
        let invoice = self.link.create_invoice(&asked).await?;
        if let Err(wrong) = as_asked(&invoice, &asked, self.network) {
            tracing::error!(
                node = self.link.label(),
                error = &wrong as &dyn std::error::Error,
                "an invoice is not offered"
            );
            return Err(Unmade::by_node(wrong));
        }
        Ok(invoice)
    }

    pub(crate) fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.entropy.fill(&mut bytes);
        bytes
    }
}

/// What a payer pays is what the invoice says, whatever the node says of it.
fn as_asked(invoice: &Invoice, order: &InvoiceOrder, network: BitcoinNetwork) -> Result<(), WrongInvoice> {
    let wrong = |what, found: String, asked: String| Err(WrongInvoice { what, found, asked });
    let read = match bolt11::decode(&invoice.bolt11) {
        Ok(read) => read,
        Err(error) => return wrong("text", error.to_string(), "a BOLT 11 invoice".to_owned()),
    };
    if !read.network.is(network) {
        return wrong("network", read.network.to_string(), network.to_string());
    }
    let written = &read.invoice;
    if written.payment_hash != invoice.payment_hash {
        return wrong("payment hash", written.payment_hash.to_string(), invoice.payment_hash.to_string());
    }
    if written.amount_msat != order.amount_msat || invoice.amount_msat != order.amount_msat {
        return wrong("amount", format!("{} msat", written.amount_msat), format!("{} msat", order.amount_msat));
    }
    let left = written.expires_at.since(order.now);
    let agree = written.expires_at == invoice.expires_at;
    if !agree || left + CLOCKS_APART_MAX < order.expiry || left > order.expiry + CLOCKS_APART_MAX {
        return wrong("time left", format!("{} s", left.as_secs()), format!("{} s", order.expiry.as_secs()));
    }
    Ok(())
}

/// Counted from the invoice's end, so that nobody loses time by paying late.
fn valid_until(terms: &TokenTerms, invoice: &Invoice) -> Timestamp {
    let time = match terms.grant {
        Grant::Calls(_) => terms.valid_for,
        Grant::For(time) => time,
    };
    // Caveats count in seconds.
    Timestamp::from_unix_s(invoice.expires_at.plus(time).unix_ms().div_ceil(1_000))
}

/// What a wallet shows: what is bought, and where. Never the query, which may hold what is nobody's business.
fn description(ask: &BillAsk<'_>) -> String {
    let bought = match ask.terms.grant {
        Grant::Calls(calls) if calls.get() == 1 => "1 call".to_owned(),
        Grant::Calls(calls) => format!("{calls} calls"),
        Grant::For(time) => format!("{} s of calls", time.as_secs()),
    };
    let path = ask.url.split(['?', '#']).next().unwrap_or_default();
    let what = match ask.terms.scope {
        TokenScope::Request => format!("{} {path}", ask.method),
        TokenScope::Route => format!("{} at {}", ask.route, origin(path)),
    };
    let mut text: String = format!("{bought}: {what}").chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    while text.len() > DESCRIPTION_BYTES_MAX {
        text.pop();
    }
    text
}

fn origin(url: &str) -> &str {
    let host_at = url.find("://").map_or(0, |scheme| scheme + 3);
    let end = url[host_at..].find('/').map_or(url.len(), |path| host_at + path);
    &url[..end]
}
