//! Bitcoin and Lightning: a channel between two real nodes, and what survives when one of them is killed.

use std::time::Duration;

use farebox_e2e::lightning::{InvoiceState, LightningPair, Payment};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_payment_arrives_through_a_channel_that_a_killed_node_takes_up_again() {
    let mut pair = LightningPair::start().await.unwrap();

    let first = pair.seller.invoice(21_500, HOUR).await.unwrap();
    assert_eq!(pair.seller.invoice_state(&first.payment_hash).await.unwrap(), InvoiceState::Open);
    let paid = pair.payer.pay(&first.bolt11).await.unwrap();
    assert_eq!(pair.seller.invoice_state(&first.payment_hash).await.unwrap(), InvoiceState::Settled);
    assert_eq!(pair.payer.payment(&first.payment_hash).await.unwrap(), Some(Payment::Succeeded(paid)));

    let second = pair.seller.invoice(1_000, HOUR).await.unwrap();
    pair.seller.kill_9().unwrap();
    assert!(pair.seller.invoice_state(&second.payment_hash).await.is_err(), "a dead node does not answer");
    pair.restart_seller().await.unwrap();
    assert_eq!(pair.seller.invoice_state(&first.payment_hash).await.unwrap(), InvoiceState::Settled);
    pair.payer.pay(&second.bolt11).await.unwrap();

    let back = pair.payer.invoice(5_000_000, HOUR).await.unwrap();
    pair.seller.pay(&back.bolt11).await.unwrap();
    assert_eq!(pair.payer.payment(&back.payment_hash).await.unwrap(), None, "never tried");
}

#[tokio::test]
async fn a_held_payment_is_the_sellers_once_settled_and_the_payers_once_cancelled() {
    let pair = LightningPair::start().await.unwrap();
    let (kept, refused) = (
        pair.seller.hold_invoice(10_000, [1; 32]).await.unwrap(),
        pair.seller.hold_invoice(10_000, [2; 32]).await.unwrap(),
    );
    let settle = async {
        pair.seller.wait_for_invoice(&kept.invoice.payment_hash, InvoiceState::Accepted).await.unwrap();
        pair.seller.settle(&kept.preimage).await.unwrap();
    };
    let (paid, ()) = tokio::join!(pair.payer.pay(&kept.invoice.bolt11), settle);
    assert_eq!(paid.unwrap().preimage, kept.preimage);

    let cancel = async {
        pair.seller.wait_for_invoice(&refused.invoice.payment_hash, InvoiceState::Accepted).await.unwrap();
        pair.seller.cancel(&refused.invoice.payment_hash).await.unwrap();
    };
    let (failed, ()) = tokio::join!(pair.payer.try_to_pay(&refused.invoice.bolt11), cancel);
    assert!(matches!(failed.unwrap(), Payment::Failed(_)));
    let state = pair.seller.invoice_state(&refused.invoice.payment_hash).await.unwrap();
    assert_eq!(state, InvoiceState::Canceled);
}
