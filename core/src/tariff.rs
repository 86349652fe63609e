//! What a route costs and when it is charged.

use std::sync::Arc;

use crate::{Offer, Price, RouteId, Timestamp};

/// When, within a paid request, the money is moved. The claim always comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettleWhen {
    /// Before the upstream is called. An upstream that then fails leaves a payment that the same credential redeems.
    BeforeUpstream,
    /// After the upstream's head and before ours: an upstream status of 400 or more is not charged.
    BeforeResponse,
}

/// The price rules of one paid route.
#[derive(Clone, Debug)]
pub struct Tariff {
    /// Which route.
    pub route: RouteId,
    /// What the seller wrote.
    pub price: Price,
    /// The price in every way it can be paid; never empty.
    pub offers: Arc<[Offer]>,
    /// Offers of this route from before its price changed, honoured until the bills that carried them have run out.
    pub earlier_offers: Arc<[Offer]>,
    /// Until when: the start of this process plus the longest `max_timeout_s` among them.
    pub earlier_until: Timestamp,
    /// When to settle.
    pub settle: SettleWhen,
    /// For people; may be empty.
    pub description: Arc<str>,
    /// Media type of the answer; may be empty.
    pub mime_type: Arc<str>,
}

/// Whether a route is paid. There is no default: a route without a price says that it is free.
#[derive(Clone, Debug)]
pub enum Access {
    /// The config says `free = true`.
    Free,
    /// By this tariff.
    Paid(Arc<Tariff>),
}
