//! A process that dies, or books that fail, at every single step.

use std::{sync::atomic::Ordering, time::Duration};

use farebox_core::{Delivery, PaymentState, SettleWhen};
use farebox_testkit::{Fault, TestPayer};
use reqwest::Method;

use crate::shop::{Shop, counting};

/// The whole way with the books failing, or the process dying, at every single operation: whatever happens, the same bytes sent
/// again end in one charge and one delivery.
#[tokio::test]
async fn a_fault_at_any_step_ends_in_one_charge_and_one_delivery() {
    for settle in [SettleWhen::BeforeResponse, SettleWhen::BeforeUpstream] {
        let (url, _) = counting().await;
        let smooth = Shop::open(settle, url).await;
        let credential = smooth.sign("/paid/x", 1).await;
        let before = smooth.ledger.operations();
        assert_eq!(smooth.get("/paid/x", Some(&credential)).await.status, 200);
        // The reconciler asks too; a few more places than needed do no harm.
        let operations = smooth.ledger.operations() - before;
        assert!(operations >= 4);
        for nth in 0..operations + 2 {
            for fault in [Fault::FailBefore, Fault::FailAfter, Fault::DieBefore, Fault::DieAfter] {
                one_life(settle, nth, fault).await;
            }
        }
    }
}

async fn one_life(settle: SettleWhen, nth: u64, fault: Fault) {
    let (url, calls) = counting().await;
    let mut shop = Shop::open(settle, url).await;
    let credential = shop.sign("/paid/x", 1).await;
    shop.ledger.plan(nth, fault);
    let mut delivered = vec![];
    let case = format!("{settle:?} {fault:?} at operation {nth}");
    for attempt in 0..40 {
        let got = shop.get("/paid/x", Some(&credential)).await;
        match got.status {
            200 if !got.body.starts_with("broken") => delivered.push(got.body.clone()),
            200 | 502 | 503 => {
                assert!(!got.has_bill(), "{case}: a new bill for a payment that may be charged: {got:?}");
            }
            _ => panic!("{case}: {got:?}"),
        }
        if delivered.len() == 2 {
            break;
        }
        if attempt == 0 && matches!(fault, Fault::DieBefore | Fault::DieAfter) {
            shop = shop.restart(&format!("{}", attempt + 2)).await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        // Leases of failed operations end with time alone.
        shop.clock.advance(Duration::from_secs(1));
        if attempt == 5 {
            shop.clock.advance(Duration::from_secs(40));
        }
    }
    assert_eq!(shop.rail.charged().len(), 1, "{case}: charges; {:?}", shop.ledger.payments());
    assert_eq!(delivered.len(), 2, "{case}: not delivered; {:?}", shop.ledger.payments());
    assert_eq!(delivered[0], delivered[1], "{case}: delivered twice");
    let settled = shop.ledger.payments().into_iter().filter(|payment| payment.state == PaymentState::Settled).count();
    assert_eq!(settled, 1, "{case}");
    assert!(calls.load(Ordering::SeqCst) >= 1);
}

/// The same for a transfer: one delivery, whatever fails at whatever step, and no bill on the way.
#[tokio::test]
async fn a_fault_at_any_step_redeems_a_transfer_once() {
    let (url, _) = counting().await;
    let smooth = Shop::open(SettleWhen::BeforeResponse, url).await;
    let claim = smooth.pay("/paid/x", TestPayer(1), &[10_000]).await;
    let before = smooth.ledger.operations();
    assert_eq!(smooth.send(Method::GET, "/paid/x", claim).await.status, 200);
    let operations = smooth.ledger.operations() - before;
    assert!(operations >= 4);
    for nth in 0..operations + 4 {
        for fault in [Fault::FailBefore, Fault::FailAfter, Fault::DieBefore, Fault::DieAfter] {
            one_life_of_a_transfer(nth, fault).await;
        }
    }
}

async fn one_life_of_a_transfer(nth: u64, fault: Fault) {
    let (url, calls) = counting().await;
    let mut shop = Shop::open(SettleWhen::BeforeResponse, url).await;
    // Twice the price in two transfers, of which one bill takes one.
    let claim = shop.pay("/paid/x", TestPayer(1), &[10_000, 10_000]).await;
    shop.ledger.plan(nth, fault);
    let mut delivered = vec![];
    let case = format!("{fault:?} at operation {nth}");
    for attempt in 0..40 {
        let got = shop.send(Method::GET, "/paid/x", claim.clone()).await;
        match got.status {
            200 if !got.body.starts_with("broken") => delivered.push(got.body.clone()),
            200 | 502 | 503 => assert!(!got.has_bill(), "{case}: a bill for what is paid: {got:?}"),
            _ => panic!("{case}: {got:?}"),
        }
        if delivered.len() == 2 {
            break;
        }
        if attempt == 0 && matches!(fault, Fault::DieBefore | Fault::DieAfter) {
            shop = shop.restart("2").await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        if attempt == 5 {
            shop.clock.advance(Duration::from_secs(40));
        }
    }
    assert_eq!(delivered.len(), 2, "{case}: not delivered; {:?}", shop.ledger.payments());
    assert_eq!(delivered[0], delivered[1], "{case}: delivered twice");
    let payments = shop.ledger.payments();
    assert_eq!(payments.len(), 1, "{case}: {payments:?}");
    assert_eq!((payments[0].state, payments[0].delivery), (PaymentState::Settled, Delivery::Delivered), "{case}");
    assert!(calls.load(Ordering::SeqCst) >= 1);
}
