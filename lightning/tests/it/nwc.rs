//! Wallets over Nostr: Alby's wallet service before lnd, with a relay.

use std::time::Duration;

use farebox_core::{
    BitcoinNetwork, InvoiceNews,
    ports::{InvoiceStatus, NodeError, Outgoing, PaidOut, PayOutcome},
};
use farebox_e2e::lightning::{LightningPair, NwcWallet, Preimages};
use farebox_lightning::node::{Connected, NodeConfig, NwcConfig};

use crate::support::{LONG, connected, hashes, order, paid, settled, to_pay};

fn nwc(uri: &str) -> Connected {
    connected(&NodeConfig::Nwc(NwcConfig { uri: uri.parse().unwrap(), timeout: Duration::from_secs(5) }))
}

#[tokio::test]
async fn a_wallet_sells_and_another_pays_and_nothing_is_lost_while_the_relay_is_gone() {
    let LightningPair { seller, payer, regtest } = LightningPair::start().await.unwrap();
    let mut selling = NwcWallet::start(&seller, Preimages::Told).await.unwrap();
    let buying = NwcWallet::start(&payer, Preimages::Told).await.unwrap();
    let (shop, wallet) = (nwc(selling.url()).node, nwc(buying.url()).wallet);

    let info = shop.info().await.unwrap();
    assert_eq!((&*info.alias, info.network), ("seller", Some(BitcoinNetwork::Regtest)));
    assert!(info.id.starts_with("nwc:"), "{info:?}");
    assert_eq!(wallet.network().await.unwrap(), Some(BitcoinNetwork::Regtest));
    assert!(wallet.spendable_msat().await.unwrap() > 1_000_000_000);

    let nothing = shop.settlements(None, Duration::from_millis(200)).await.unwrap();
    assert_eq!(nothing.news, []);
    let mut cursor = nothing.cursor;

    // Told as it happens.
    let invoice = shop.create_invoice(&order(21_000)).await.unwrap();
    assert_eq!((invoice.amount_msat, invoice.expires_at.since(invoice.created_at)), (21_000, Duration::from_secs(600)));
    assert_eq!(shop.invoice_news(invoice.payment_hash).await.unwrap(), Some(InvoiceStatus::Open));
    let before = seller.channel_sat().await.unwrap();
    let wish = to_pay(&invoice);
    let (told, outcome) = tokio::join!(shop.settlements(cursor.as_ref(), LONG), wallet.pay(&wish));
    let told = told.unwrap();
    assert_eq!(told.news, [(invoice.payment_hash, settled(21_000))]);
    cursor = told.cursor;
    let preimage = paid(outcome, invoice.payment_hash);
    let status = shop.invoice_news(invoice.payment_hash).await.unwrap();
    assert_eq!(status, Some(InvoiceStatus::News(settled(21_000))));

    // Once.
    assert_eq!(paid(wallet.pay(&to_pay(&invoice)).await, invoice.payment_hash), preimage);
    let made = PaidOut { preimage: Some(preimage), fee_msat: Some(0) };
    assert_eq!(wallet.outgoing(invoice.payment_hash).await.unwrap(), Outgoing::Paid(made));
    assert_eq!(seller.channel_sat().await.unwrap(), before + 21);
    let other = farebox_core::PaymentHash([9; 32]);
    assert_eq!(wallet.outgoing(other).await.unwrap(), Outgoing::Never);
    assert_eq!(shop.invoice_news(other).await.unwrap(), None);

    // Gone in the middle of waiting: told so at once. Paid meanwhile: in the list when it is back.
    let missed = shop.create_invoice(&order(5_000)).await.unwrap();
    let (told, ()) = tokio::join!(shop.settlements(cursor.as_ref(), LONG), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        selling.kill_9().unwrap();
    });
    assert!(matches!(told, Err(NodeError::Unavailable { .. })), "{told:?}");
    assert!(matches!(shop.invoice_news(missed.payment_hash).await, Err(NodeError::Unavailable { .. })));
    paid(wallet.pay(&to_pay(&missed)).await, missed.payment_hash);
    selling.restart().await.unwrap();
    let told = shop.settlements(cursor.as_ref(), LONG).await.unwrap();
    assert!(hashes(&told).contains(&missed.payment_hash), "{told:?}");

    let dear = shop.create_invoice(&order(9_000_000_000)).await.unwrap();
    let outcome = wallet.pay(&to_pay(&dear)).await;
    assert!(matches!(outcome, PayOutcome::Failed { code: "refused", .. }), "{outcome:?}");
    seller.cancel(&dear.payment_hash.to_string()).await.unwrap();
    let over = shop.invoice_news(dear.payment_hash).await.unwrap();
    assert_eq!(over, Some(InvoiceStatus::News(InvoiceNews::Expired)));
    drop(regtest);
}

#[tokio::test]
async fn a_wallet_that_withholds_preimages_has_paid_all_the_same() {
    let LightningPair { seller, payer, regtest } = LightningPair::start().await.unwrap();
    let buying = NwcWallet::start(&payer, Preimages::Withheld).await.unwrap();
    let shop = crate::support::lnd(&seller, farebox_e2e::lightning::Macaroon::Invoice).node;
    let invoice = shop.create_invoice(&order(3_000)).await.unwrap();
    let wallet = nwc(buying.url()).wallet;
    let outcome = wallet.pay(&to_pay(&invoice)).await;
    assert!(matches!(outcome, PayOutcome::Paid(PaidOut { preimage: None, fee_msat: Some(0) })), "{outcome:?}");
    let made = Outgoing::Paid(PaidOut { preimage: None, fee_msat: Some(0) });
    assert_eq!(wallet.outgoing(invoice.payment_hash).await.unwrap(), made);
    drop(regtest);
}
