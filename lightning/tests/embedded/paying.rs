//! Paying.

use std::time::Duration;

use farebox_core::{
    BitcoinNetwork, Invoice, PaymentHash, Preimage, Timestamp,
    ports::{Clock as _, LightningNode as _, LightningWallet as _, Outgoing, PayOrder, PayOutcome},
};
use farebox_e2e::lightning::{InvoiceState, Lnd, Regtest};
use ldk_node::lightning_invoice::Bolt11Invoice;

use super::{HOUR, SystemClock, open, order, ready, with_channel};

/// As a caller that has read and checked it would have it.
fn read(invoice: &farebox_e2e::lightning::Invoice) -> Invoice {
    let read: Bolt11Invoice = invoice.bolt11.parse().unwrap();
    let created_at = Timestamp::from_unix_s(read.duration_since_epoch().as_secs());
    Invoice {
        payment_hash: PaymentHash::from_hex(&invoice.payment_hash).unwrap(),
        bolt11: invoice.bolt11.as_str().into(),
        amount_msat: read.amount_milli_satoshis().unwrap(),
        created_at,
        expires_at: created_at.plus(read.expiry_time()),
    }
}

fn payment(invoice: &Invoice) -> PayOrder {
    PayOrder { invoice: invoice.clone(), fee_max_msat: 1_000, timeout: Duration::from_secs(20) }
}

async fn invoice(lnd: &Lnd, amount_msat: u64) -> Invoice {
    read(&lnd.invoice(amount_msat, HOUR).await.unwrap())
}

#[tokio::test]
async fn a_payment_is_made_once_held_ones_are_under_way_and_refused_ones_are_told_why() {
    let (regtest, dir) = (Regtest::start().await.unwrap(), tempfile::tempdir().unwrap());
    let lnd = with_channel(dir.path(), &regtest).await.unwrap();
    let node = open(dir.path(), &regtest).await.unwrap();
    ready(&node).await.unwrap();
    assert_eq!(node.network().await.unwrap(), Some(BitcoinNetwork::Regtest));
    let before = node.spendable_msat().await.unwrap();

    let bought = invoice(&lnd, 12_345).await;
    assert_eq!(node.outgoing(bought.payment_hash).await.unwrap(), Outgoing::Never);
    let PayOutcome::Paid(paid) = node.pay(&payment(&bought)).await else { panic!("not paid") };
    assert_eq!(paid.preimage.map(|preimage| preimage.hash()), Some(bought.payment_hash));
    assert_eq!(paid.fee_msat, Some(0), "the payee is the peer");
    let again = node.pay(&payment(&bought)).await;
    assert!(matches!(again, PayOutcome::Paid(same) if same == paid));
    assert_eq!(before - node.spendable_msat().await.unwrap(), 12_345);

    // Held: neither paid nor failed, however often it is asked for and paid, and across a stop.
    let held = lnd.hold_invoice(50_000, [3; 32]).await.unwrap();
    let held_read = read(&held.invoice);
    let mut brief = payment(&held_read);
    brief.timeout = Duration::from_millis(700);
    assert!(matches!(node.pay(&brief).await, PayOutcome::Unknown { .. }));
    lnd.wait_for_invoice(&held.invoice.payment_hash, InvoiceState::Accepted).await.unwrap();
    assert!(matches!(node.pay(&brief).await, PayOutcome::Unknown { .. }));
    node.stop().await;
    let node = open(dir.path(), &regtest).await.unwrap();
    assert_eq!(node.outgoing(held_read.payment_hash).await.unwrap(), Outgoing::InFlight);
    assert_eq!(node.outgoing(bought.payment_hash).await.unwrap(), Outgoing::Paid(paid));
    ready(&node).await.unwrap();
    let again_held = payment(&held_read);
    let settle = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        lnd.settle(&held.preimage).await.unwrap();
    };
    let (outcome, ()) = tokio::join!(node.pay(&again_held), settle);
    assert!(matches!(outcome, PayOutcome::Paid(paid) if paid.preimage == Some(Preimage([3; 32]))));

    let cancelled = lnd.invoice(2_000, HOUR).await.unwrap();
    lnd.cancel(&cancelled.payment_hash).await.unwrap();
    let cancelled = read(&cancelled);
    let refused = node.pay(&payment(&cancelled)).await;
    assert!(matches!(refused, PayOutcome::Failed { code: "refused", .. }), "{refused:?}");
    assert_eq!(node.outgoing(cancelled.payment_hash).await.unwrap(), Outgoing::Failed);

    let dear = invoice(&lnd, before + 1_000_000).await;
    let outcome = node.pay(&payment(&dear)).await;
    assert!(matches!(outcome, PayOutcome::Failed { code: "insufficient_balance", .. }), "{outcome:?}");
    let own = node.create_invoice(&order(1_000, HOUR)).await.unwrap();
    let circular = node.pay(&payment(&own)).await;
    assert!(matches!(circular, PayOutcome::Failed { code: "refused", .. }), "{circular:?}");
    let brief = read(&lnd.invoice(1_000, Duration::from_secs(1)).await.unwrap());
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    assert!(SystemClock.now() > brief.expires_at);
    let late = node.pay(&payment(&brief)).await;
    assert!(matches!(late, PayOutcome::Failed { code: "invoice_expired", .. }), "{late:?}");
    let mut changed = bought.clone();
    changed.amount_msat = 1;
    changed.payment_hash = PaymentHash([8; 32]);
    let forged = node.pay(&payment(&changed)).await;
    assert!(matches!(forged, PayOutcome::Failed { code: "refused", .. }), "{forged:?}");
}

/// The store of news and ldk-node's are written one after the other, and a process can be killed in between.
#[tokio::test]
async fn a_payment_cut_off_by_a_kill_is_under_way_until_no_channel_has_it_and_can_then_be_made() {
    let (regtest, dir) = (Regtest::start().await.unwrap(), tempfile::tempdir().unwrap());
    let lnd = with_channel(dir.path(), &regtest).await.unwrap();
    let bought = invoice(&lnd, 3_000).await;
    let news = rusqlite::Connection::open(dir.path().join("news.sqlite")).unwrap();
    let row = "INSERT INTO sent (hash, session, state) SELECT ?1, session, 'begun' FROM meta";
    news.execute(row, [bought.payment_hash.0]).unwrap();
    drop(news);

    let node = open(dir.path(), &regtest).await.unwrap();
    assert_eq!(node.outgoing(bought.payment_hash).await.unwrap(), Outgoing::InFlight, "it may have left");
    let mut brief = payment(&bought);
    brief.timeout = Duration::from_millis(100);
    assert!(matches!(node.pay(&brief).await, PayOutcome::Unknown { .. }), "and is not sent again meanwhile");
    ready(&node).await.unwrap();
    let until = tokio::time::Instant::now() + super::WITHIN;
    while node.outgoing(bought.payment_hash).await.unwrap() == Outgoing::InFlight {
        assert!(tokio::time::Instant::now() < until);
        tokio::time::sleep(super::LOOK).await;
    }
    assert_eq!(node.outgoing(bought.payment_hash).await.unwrap(), Outgoing::Failed);
    assert!(matches!(node.pay(&payment(&bought)).await, PayOutcome::Paid(_)));
}
