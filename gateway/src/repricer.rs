//! Prices that move: asks the rails again what a route is offered for, and exchanges the board that every request reads.

use std::{sync::Arc, time::Duration};

use farebox_core::{
    Access, Offer, OfferBoard, Tariff,
    ports::{Clock, Ledger, OfferError, Rail},
};
use tracing::{info, warn};

use crate::Route;

/// Works until it is dropped. A dropped round leaves a route with its last board, or the next.
pub(crate) async fn run(
    routes: &[Route],
    rails: &[Arc<dyn Rail>],
    ledger: &dyn Ledger,
    clock: &dyn Clock,
    interval: Duration,
) {
    loop {
        tokio::time::sleep(interval).await;
        for route in routes {
            if let Access::Paid(tariff) = &route.access {
                reprice(tariff, rails, ledger, clock).await;
            }
        }
    }
}

async fn reprice(tariff: &Tariff, rails: &[Arc<dyn Rail>], ledger: &dyn Ledger, clock: &dyn Clock) {
    let (offers, failures) = offers_now(tariff, rails);
    let board = tariff.board.now();
    if *board.offers == *offers {
        return;
    }
    for (rail, error) in &failures {
        warn!(route = %tariff.route, %rail, error = error as &dyn std::error::Error, "no offer now");
    }
    if same_terms(&board.offers, &offers) {
        // What is owed has not changed, and so not what bills are honoured for.
        tariff.board.exchange(OfferBoard { offers: offers.into(), ..(*board).clone() });
        return;
    }
    let now = clock.now();
    let earlier = match ledger.exchange_offers(&tariff.route, &offers, now).await {
        Ok(earlier) => earlier,
        // Without a price nothing is sold, whether the books have heard of it or not. They know the offers that are honoured.
        Err(error) if offers.is_empty() => {
            warn!(route = %tariff.route, error = &error as &dyn std::error::Error, "offers not exchanged in the books yet");
            honoured(&board, now)
        }
        Err(error) => {
            warn!(route = %tariff.route, error = &error as &dyn std::error::Error, "prices stay: the books could not be told");
            return;
        }
    };
    match offers.is_empty() {
        true => warn!(route = %tariff.route, "no rail can price this route now: it answers 503"),
        false => info!(route = %tariff.route, offers = offers.len(), "new prices"),
    }
    let longest = earlier.iter().map(|offer| offer.max_timeout_s).max().unwrap_or(0);
    let earlier_until = now.plus(Duration::from_secs(longest));
    tariff.board.exchange(OfferBoard { offers: offers.into(), earlier_offers: earlier.into(), earlier_until });
}

/// The price in every way it can be paid now, and the rails that cannot tell.
fn offers_now(tariff: &Tariff, rails: &[Arc<dyn Rail>]) -> (Vec<Offer>, Vec<(farebox_core::RailName, OfferError)>) {
    let (mut offers, mut failures) = (Vec::new(), Vec::new());
    for name in &tariff.rails {
        for rail in rails.iter().filter(|rail| rail.name() == *name) {
            match rail.offers(&tariff.price, tariff.network_fee) {
                Ok(more) => offers.extend(more),
                Err(error) => failures.push((*name, error)),
            }
        }
    }
    (offers, failures)
}

/// Whether two lists ask for the same: what part of it is the network's fee changes nothing.
fn same_terms(a: &[Offer], b: &[Offer]) -> bool {
    let same = |(a, b): (&Offer, &Offer)| *a == Offer { network_fee: a.network_fee, ..b.clone() };
    a.len() == b.len() && a.iter().zip(b).all(same)
}

/// What bills written until now may be paid with.
fn honoured(board: &OfferBoard, now: farebox_core::Timestamp) -> Vec<Offer> {
    let earlier = board.earlier_offers.iter().filter(|_| now < board.earlier_until);
    board.offers.iter().chain(earlier).cloned().collect()
}
