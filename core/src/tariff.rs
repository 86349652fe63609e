//! What a route costs and when it is charged.

use std::{borrow::Cow, sync::Arc, time::Duration};

use arc_swap::ArcSwap;

use crate::{Offer, Price, RailName, RouteId, Timestamp, TokenTerms};

/// When, within a paid request, the money is moved. The claim always comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettleWhen {
    /// Before the upstream is called. An upstream that then fails leaves a payment that the same credential redeems.
    BeforeUpstream,
    /// After the upstream's head and before ours: an upstream status of 400 or more is not charged.
    BeforeResponse,
}

/// What one paid route costs, and by which rails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pricing {
    /// What the seller wrote for one call.
    pub price: Price,
    /// What the price has to do with the network's fee.
    pub network_fee: FeeTerms,
    /// The rails that the route takes, in the seller's order of preference.
    pub rails: Vec<RailName>,
    /// How it sells tokens, if it does.
    pub token: Option<TokenTerms>,
}

/// The price rules of one paid route.
#[derive(Debug)]
pub struct Tariff {
    /// Which route.
    pub route: RouteId,
    /// What it costs.
    pub pricing: Pricing,
    /// The price in every way it can be paid, now.
    pub board: LiveOffers,
    /// When to settle.
    pub settle: SettleWhen,
    /// For people; may be empty.
    pub description: Arc<str>,
    /// Media type of the answer; may be empty.
    pub mime_type: Arc<str>,
}

/// What a price has to do with the network's fee, on rails where the seller pays it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeeTerms {
    /// The expected fee is added to the price, and so many percent of it on top. Without it the seller bears the fee.
    pub added_with_buffer_percent: Option<u32>,
    /// The most that the fee may be of what is charged, percent: an offer over it is not made.
    pub share_percent_max: Option<u32>,
}

/// The offers of a route at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferBoard {
    /// The price in every way it can be paid. Empty only while no rail can price it, because a rate or a fee is not known: then the
    /// route answers 503.
    pub offers: Arc<[Offer]>,
    /// Offers from before the price changed, honoured until the bills that carried them have run out.
    pub earlier_offers: Arc<[Offer]>,
    /// Until when: the change plus the longest `max_timeout_s` among them.
    pub earlier_until: Timestamp,
}

impl OfferBoard {
    /// What is offered from `now` on, beside the earlier offers that the ledger says are still owed to whoever holds a bill.
    #[must_use]
    pub fn since(now: Timestamp, offers: Vec<Offer>, earlier: Vec<Offer>) -> Self {
        let longest = earlier.iter().map(|offer| offer.max_timeout_s).max().unwrap_or(0);
        let earlier_until = now.plus(Duration::from_secs(longest));
        Self { offers: offers.into(), earlier_offers: earlier.into(), earlier_until }
    }

    /// What may be paid at `now`: what is offered, and what was until lately, for a bill from before a price change is good until it
    /// ends.
    #[must_use]
    pub fn honoured(&self, now: Timestamp) -> Cow<'_, [Offer]> {
        if self.earlier_offers.is_empty() || now >= self.earlier_until {
            return Cow::Borrowed(&self.offers);
        }
        self.offers.iter().chain(self.earlier_offers.iter()).cloned().collect::<Vec<_>>().into()
    }
}

/// What a route is offered for: read by every request, exchanged when a rate or the network's fee moves the price.
#[derive(Debug)]
pub struct LiveOffers(ArcSwap<OfferBoard>);

impl LiveOffers {
    /// Offers from the start on.
    #[must_use]
    pub fn new(board: OfferBoard) -> Self {
        Self(ArcSwap::from_pointee(board))
    }

    /// What is offered now. One request works with one board, so that its bill and its checks agree.
    #[must_use]
    pub fn now(&self) -> Arc<OfferBoard> {
        self.0.load_full()
    }

    /// From now on. The ledger has to know the new offers first: a bill that no ledger remembers is lost in a restart.
    pub fn exchange(&self, board: OfferBoard) {
        self.0.store(Arc::new(board));
    }
}

/// Whether a route is paid. There is no default: a route without a price says that it is free.
#[derive(Clone, Debug)]
pub enum Access {
    /// The config says `free = true`.
    Free,
    /// By this tariff.
    Paid(Arc<Tariff>),
}
