//! Other people's clients of L402 buy from other people's server on our ground: what fails between them and us is then ours.

use std::time::Duration;

use farebox_e2e::{
    Echo,
    lightning::{Aperture, Buyer, Goods, LightningPair, NwcWallet, Preimages, Wanted},
};

const PRICE_SAT: u64 = 25;
const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn the_foreign_clients_buy_from_aperture_and_keep_their_tokens() {
    let pair = LightningPair::start().await.unwrap();
    let origin = Echo::start().await.unwrap();
    let goods = Goods { upstream: origin.url(), price_sat: PRICE_SAT, good_for: HOUR };
    let aperture = Aperture::start(&pair.seller, &goods).await.unwrap();

    for buyer in Buyer::ALL {
        let again = Wanted::get(aperture.url("/report"));
        let bought = buyer.buy(&pair.payer, &[again.clone(), again]).await.unwrap();
        assert_eq!(bought.statuses(), [Some(200), Some(200)], "{buyer:?}: {bought:?}");
        // pyl402 sends a token it kept with its scheme twice, and Aperture does not take that.
        let invoices = if buyer == Buyer::Pyl402 { 2 } else { 1 };
        assert_eq!(bought.paid.len(), invoices, "{buyer:?}: {bought:?}");
    }
}

#[tokio::test]
async fn wallets_over_nostr_pay_in_either_encryption_and_are_there_again_after_a_kill() {
    let pair = LightningPair::start().await.unwrap();
    let origin = Echo::start().await.unwrap();
    let goods = Goods { upstream: origin.url(), price_sat: PRICE_SAT, good_for: HOUR };
    let aperture = Aperture::start(&pair.seller, &goods).await.unwrap();
    let mut wallet = NwcWallet::start(&pair.payer, Preimages::Told).await.unwrap();
    let wanted = [Wanted::get(aperture.url("/report"))];
    for buyer in [Buyer::AlbyFetch402, Buyer::L402Requests] {
        let bought = buyer.buy_over_nwc(&pair.payer, wallet.url(), &wanted).await.unwrap();
        assert_eq!((bought.statuses(), bought.paid.len()), (vec![Some(200)], 1), "{buyer:?}: {bought:?}");
    }
    wallet.kill_9().unwrap();
    wallet.restart().await.unwrap();
    let bought = Buyer::AlbyFetchWithL402.buy_over_nwc(&pair.payer, wallet.url(), &wanted).await.unwrap();
    assert_eq!((bought.statuses(), bought.paid.len()), (vec![Some(200)], 1), "{bought:?}");
}
