//! What all tests here need.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use farebox_core::{
    Invoice, InvoiceNews, PaymentHash, Preimage, Timestamp,
    ports::{Clock, InvoiceOrder, PaidOut, PayOrder, PayOutcome, Settlements},
};
use farebox_e2e::lightning::{Lnd, Macaroon};
use farebox_lightning::node::{Connected, LndConfig, NodeConfig, SecretSource, connect};

/// Longer than anything here takes.
pub(crate) const LONG: Duration = Duration::from_secs(20);
/// Long enough for a node on this machine.
pub(crate) const SOON: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(crate) struct WallClock;

impl Clock for WallClock {
    #[expect(clippy::disallowed_methods, reason = "a real node keeps real time")]
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap())
    }
}

pub(crate) fn connected(config: &NodeConfig) -> Connected {
    let clock: Arc<dyn Clock> = Arc::new(WallClock);
    connect(config, &clock).unwrap()
}

pub(crate) fn lnd_config(url: &str, macaroon: PathBuf, certificate: Option<PathBuf>) -> NodeConfig {
    let url = url.parse().unwrap();
    NodeConfig::Lnd(LndConfig { url, macaroon: SecretSource::File(macaroon), certificate, timeout: SOON })
}

pub(crate) fn lnd(node: &Lnd, macaroon: Macaroon) -> Connected {
    lnd_at(&node.rest_url(), node, macaroon)
}

/// By way of a proxy at `url`.
pub(crate) fn lnd_at(url: &str, node: &Lnd, macaroon: Macaroon) -> Connected {
    connected(&lnd_config(url, node.macaroon_file(macaroon), Some(node.tls_cert())))
}

pub(crate) fn order(amount_msat: u64) -> InvoiceOrder {
    let expiry = Duration::from_secs(600);
    InvoiceOrder { amount_msat, description: "a hundred calls of /weather".to_owned(), expiry, now: WallClock.now() }
}

pub(crate) fn to_pay(invoice: &Invoice) -> PayOrder {
    PayOrder { invoice: invoice.clone(), fee_max_msat: 10_000, timeout: LONG }
}

pub(crate) const fn settled(received_msat: u64) -> InvoiceNews {
    InvoiceNews::Settled { received_msat }
}

/// The preimage, once it is seen to be that of `hash`.
pub(crate) fn paid(outcome: PayOutcome, hash: PaymentHash) -> Preimage {
    let PayOutcome::Paid(PaidOut { preimage: Some(preimage), .. }) = outcome else { panic!("not paid: {outcome:?}") };
    assert_eq!(preimage.hash(), hash);
    preimage
}

pub(crate) fn hashes(settlements: &Settlements) -> Vec<PaymentHash> {
    settlements.news.iter().map(|(hash, _)| *hash).collect()
}

/// An invoice that the harness made, as the port has it.
pub(crate) fn as_invoice(made: &farebox_e2e::lightning::Invoice, amount_msat: u64) -> Invoice {
    let now = WallClock.now();
    Invoice {
        payment_hash: PaymentHash::from_hex(&made.payment_hash).unwrap(),
        bolt11: made.bolt11.as_str().into(),
        amount_msat,
        created_at: now,
        expires_at: now.plus(Duration::from_secs(600)),
    }
}
