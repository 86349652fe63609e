//! Bills to be paid by transfer.

use std::{sync::Arc, time::Duration};

use farebox_core::{
    Offer, RailName, Timestamp,
    ports::{Clock, Entropy},
};
use farebox_wire::transfer::{OPTIONS_MAX, Quote, Quoter, TransferBill, TransferOption, TransferTimes};

/// What bills by transfer are written with.
#[derive(Debug)]
pub(crate) struct Quotes {
    pub(crate) quoter: Arc<Quoter>,
    pub(crate) times: TransferTimes,
}

/// What a bill is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sale<'a> {
    pub(crate) route: &'a farebox_core::RouteId,
    pub(crate) method: &'a str,
    pub(crate) url: &'a str,
    pub(crate) offers: &'a [Offer],
}

impl Quotes {
    /// The bill for this sale; `None` if no offer is a transfer.
    pub(crate) fn bill(&self, sale: Sale<'_>, clock: &dyn Clock, entropy: &dyn Entropy) -> Option<TransferBill> {
        let transfers = sale.offers.iter().filter(|offer| offer.rail == RailName::Transfer);
        let offered_for = transfers.clone().map(|offer| offer.max_timeout_s).min()?;
        let options: Vec<_> = transfers.filter_map(TransferOption::of).take(OPTIONS_MAX).collect();
        // Whole seconds, as the seal keeps them.
        let issued_at = Timestamp::from_unix_s(clock.now().unix_s());
        let pay_by = issued_at.plus(self.times.pay_within.min(Duration::from_secs(offered_for)));
        let claim_by = issued_at.plus(self.times.claim_within).max(pay_by);
        let mut nonce = [0; 8];
        entropy.fill(&mut nonce);
        let quote = Quote {
            target: Quote::target(sale.route, sale.method, sale.url),
            options: options.iter().map(TransferOption::quoted).collect(),
            issued_at,
            pay_by,
            claim_by,
            nonce,
        };
        Some(TransferBill {
            quote: self.quoter.seal(&quote),
            resource: sale.url.to_owned(),
            method: sale.method.to_owned(),
            pay_by,
            claim_by,
            options,
        })
    }
}
