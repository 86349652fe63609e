//! Prices that move: asks the rails again what a route is offered for, and exchanges the board that every request reads.

use std::{sync::Arc, time::Duration};

use farebox_core::{
    Access, Offer, OfferBoard, Tariff,
    ports::{Clock, Ledger, Offering, offers_by},
};
use tracing::{info, warn};

use crate::Route;

/// Works until it is dropped. A dropped round leaves a route with its last board, or the next.
pub(crate) async fn run(
    routes: &[Route],
    rails: &[Arc<dyn Offering>],
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

async fn reprice(tariff: &Tariff, rails: &[Arc<dyn Offering>], ledger: &dyn Ledger, clock: &dyn Clock) {
    let (offers, failures) = offers_by(&tariff.pricing, rails);
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
            board.honoured(now).into_owned()
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
    tariff.board.exchange(OfferBoard::since(now, offers, earlier));
}

/// Whether two lists ask for the same: what part of it is the network's fee changes nothing.
fn same_terms(a: &[Offer], b: &[Offer]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same_terms(b))
}
