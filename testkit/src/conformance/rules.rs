//! One rule after another, each with the answer written out, so that a mistake in the model is not a mistake in all.

use std::{sync::Arc, time::Duration};

use farebox_core::{
    Claimed, PaymentEvent, PaymentId, PaymentState, Timestamp, TransactionFate,
    ports::{PaymentFilter, RecordError},
};

use super::{
    ANSWERS_KEPT_FOR, Books, ClaimOf, LEASE, LedgerStore, START, block, delivered, granted, instance, lane, log_rules,
    offer, payment_id, request_of, route, settled, settled_payment, token_rules, transaction, transaction_id,
    transfer_rules,
};
use crate::test_network;

/// Runs every rule on fresh books.
///
/// # Panics
/// If one is broken.
pub fn obeys_the_rules<B: Books>(fresh: &impl Fn() -> B) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().expect("a runtime");
    let open = |books: &B| books.open(instance(0), ANSWERS_KEPT_FOR, START);
    runtime.block_on(async {
        of_many_claims_of_one_proof_one_is_granted(open(&fresh())).await;
        events_are_recorded_together_or_not_at_all(&*open(&fresh())).await;
        a_transaction_that_does_not_fit_its_payment_is_not_stored(&*open(&fresh())).await;
        storing_a_transaction_twice_changes_nothing(&*open(&fresh())).await;
        a_void_payment_does_not_hold_its_proof(&*open(&fresh())).await;
        answers_end(&*open(&fresh())).await;
        earlier_offers_are_owed_until_their_bills_end(&*open(&fresh())).await;
        unresolved_payments_are_those_nobody_works_on(&*open(&fresh())).await;
        settled_payments_are_found_by_block(&*open(&fresh())).await;
        filters_say_what_they_mean_and_pages_meet(&*open(&fresh())).await;
        a_restart_keeps_the_books_and_ends_other_leases(&fresh()).await;
        transfer_rules::all(fresh).await;
        log_rules::all(fresh).await;
        token_rules::all(fresh).await;
    });
}

async fn of_many_claims_of_one_proof_one_is_granted(ledger: Arc<dyn LedgerStore>) {
    let mut tasks = Vec::new();
    for number in 0..100 {
        let ledger = ledger.clone();
        let claim = ClaimOf { id: payment_id(number, START), ..ClaimOf::first(7, START) }.build();
        tasks.push(tokio::spawn(async move { ledger.claim(claim).await }));
    }
    let mut grants = Vec::new();
    let mut others = Vec::new();
    for task in tasks {
        match task.await.expect("joined").expect("answered") {
            Claimed::Granted(permit) => grants.push(permit.payment().id),
            Claimed::Busy(payment) => others.push(payment.id),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(grants.len(), 1);
    assert!(others.len() == 99 && others.iter().all(|id| *id == grants[0]), "{others:?}");
}

async fn events_are_recorded_together_or_not_at_all(ledger: &dyn LedgerStore) {
    let payment = settled_payment(ledger, ClaimOf::first(1, START)).await;
    let twice = vec![delivered(b"x"), delivered(b"y")];
    let refused = ledger.record(payment.id, twice, START).await;
    assert!(matches!(refused, Err(RecordError::Illegal(_))), "{refused:?}");
    assert_eq!(ledger.find(payment.digest()).await.expect("found"), Some(payment.clone()));
    assert_eq!(ledger.answer(payment.id, START).await.expect("asked"), None);
    let nobody = payment_id(99, START);
    let missing = ledger.record(nobody, vec![PaymentEvent::Doubted], START).await;
    assert!(matches!(missing, Err(RecordError::NotFound { id }) if id == nobody), "{missing:?}");
}

async fn a_transaction_that_does_not_fit_its_payment_is_not_stored(ledger: &dyn LedgerStore) {
    let payment = granted(ledger, ClaimOf::first(1, START).build()).await;
    let released = PaymentEvent::Released { code: "upstream_failed".into() };
    ledger.record(payment.id, vec![released], START).await.expect("released");
    let late = ledger.store_transaction(transaction(1, Some(payment.id), START)).await;
    assert!(matches!(late, Err(RecordError::Illegal(_))), "{late:?}");
    let nobody = ledger.store_transaction(transaction(2, Some(payment_id(99, START)), START)).await;
    assert!(matches!(nobody, Err(RecordError::NotFound { .. })), "{nobody:?}");
    assert_eq!(ledger.last_nonce(&lane()).await.expect("asked"), None);
    assert_eq!(ledger.transactions_of(payment.id).await.expect("asked"), []);
}

async fn storing_a_transaction_twice_changes_nothing(ledger: &dyn LedgerStore) {
    let payment = settled_payment(ledger, ClaimOf::first(1, START)).await;
    let again = transaction(1, Some(payment.id), START);
    ledger.store_transaction(again.clone()).await.expect("the same again is no error");
    assert_eq!(ledger.find(payment.digest()).await.expect("found"), Some(payment.clone()));
    assert_eq!(ledger.transactions_of(payment.id).await.expect("asked"), std::slice::from_ref(&again));
    assert_eq!(ledger.transaction(&again.hash).await.expect("asked"), Some(again.clone()));
    assert_eq!(ledger.transaction(&transaction_id(8)).await.expect("asked"), None);
    let other = ledger.store_transaction(farebox_core::StoredTransaction { raw: vec![9], ..again }).await;
    assert!(matches!(other, Err(RecordError::Unavailable(_))), "{other:?}");
    // A nonce without a payment, and fees bumped at the same nonce.
    let filler = farebox_core::StoredTransaction { nonce: 7, ..transaction(8, None, START) };
    let bumped = farebox_core::StoredTransaction { nonce: 7, ..transaction(6, None, START) };
    ledger.store_transaction(filler.clone()).await.expect("stored");
    ledger.store_transaction(bumped.clone()).await.expect("stored");
    ledger.close_transaction(&transaction_id(1), TransactionFate::Succeeded).await.expect("closed");
    ledger.close_transaction(&transaction_id(1), TransactionFate::Succeeded).await.expect("closed again");
    assert_eq!(ledger.open_transactions(&lane()).await.expect("asked"), [filler, bumped]);
    assert_eq!(ledger.last_nonce(&lane()).await.expect("asked"), Some(7));
    let unknown = ledger.close_transaction(&transaction_id(5), TransactionFate::Reverted).await;
    assert!(unknown.is_err());
}

async fn a_void_payment_does_not_hold_its_proof(ledger: &dyn LedgerStore) {
    let first = granted(ledger, ClaimOf::first(1, START).build()).await;
    let released = PaymentEvent::Released { code: "upstream_failed".into() };
    let void = ledger.record(first.id, vec![released], START).await.expect("released");
    assert_eq!((void.state, void.reason.as_deref()), (PaymentState::Void, Some("upstream_failed")));
    assert_eq!(ledger.find(first.digest()).await.expect("asked"), None);
    assert_eq!(ledger.find_proof(&first.proof).await.expect("asked"), None);
    let second = granted(ledger, ClaimOf { id: payment_id(2, START), ..ClaimOf::first(1, START) }.build()).await;
    assert_eq!(ledger.find(first.digest()).await.expect("asked"), Some(second.clone()));
    assert_eq!(ledger.find_proof(&first.proof).await.expect("asked"), Some(second));
}

async fn answers_end(ledger: &dyn LedgerStore) {
    let payment = settled_payment(ledger, ClaimOf::first(1, START)).await;
    ledger.record(payment.id, vec![delivered(&[0, 0xff])], START).await.expect("delivered");
    let end = START.plus(ANSWERS_KEPT_FOR);
    let kept = ledger.answer(payment.id, end.minus(Duration::from_millis(1))).await.expect("asked").expect("kept");
    assert_eq!(delivered(&[0, 0xff]), PaymentEvent::Delivered { answer: Some(kept) });
    assert_eq!(ledger.answer(payment.id, end).await.expect("asked"), None);
}

async fn earlier_offers_are_owed_until_their_bills_end(ledger: &dyn LedgerStore) {
    let exchange = async |units: &[u128], now: Timestamp| {
        let current: Vec<_> = units.iter().copied().map(offer).collect();
        let owed = ledger.exchange_offers(&route(0), &current, now).await.expect("exchanged");
        owed.into_iter().map(|o| o.amount.units).collect::<Vec<_>>()
    };
    let after = |seconds| START.plus(Duration::from_secs(seconds));
    assert_eq!(exchange(&[1, 2], START).await, []);
    assert_eq!(exchange(&[2, 3], after(100)).await, [1]);
    assert_eq!(exchange(&[2, 3], after(159)).await, [1]);
    assert_eq!(exchange(&[2, 3], after(160)).await, []);
    assert_eq!(exchange(&[1], after(170)).await, [2, 3]);
    assert_eq!(exchange(&[2], after(180)).await, [3, 1]);
    let fee = |units| farebox_core::Offer { network_fee: Some(farebox_core::NetworkFee::OnTop(units)), ..offer(2) };
    for units in [1, 2] {
        let owed = ledger.exchange_offers(&route(0), &[fee(units)], after(190)).await.expect("exchanged");
        assert_eq!(owed, [offer(3), offer(1)], "what is told of the network's fee makes no other offer");
    }
    let other = ledger.exchange_offers(&route(1), &[offer(9)], START).await.expect("exchanged");
    assert_eq!(other, [], "another route's offers are its own");
}

async fn unresolved_payments_are_those_nobody_works_on(ledger: &dyn LedgerStore) {
    let later = |seconds| START.plus(Duration::from_secs(seconds));
    let doubted = settled_payment(ledger, ClaimOf::first(1, later(3))).await;
    ledger.record(doubted.id, vec![PaymentEvent::Doubted], later(3)).await.expect("doubted");
    let claimed = granted(ledger, ClaimOf::first(2, later(1)).build()).await;
    let settling = granted(ledger, ClaimOf::first(3, START).build()).await;
    ledger.store_transaction(transaction(3, Some(settling.id), later(2))).await.expect("stored");
    settled_payment(ledger, ClaimOf::first(4, START)).await;
    let unresolved = async |now, limit| {
        let found = ledger.unresolved(now, limit).await.expect("asked");
        found.into_iter().map(|p| p.id).collect::<Vec<_>>()
    };
    assert_eq!(unresolved(later(4), 10).await, [doubted.id], "only what is in doubt, while leases hold");
    let end = START.plus(LEASE).plus(Duration::from_secs(1));
    assert_eq!(unresolved(end, 10).await, [claimed.id, settling.id, doubted.id], "the longest untouched first");
    assert_eq!(unresolved(end, 2).await, [claimed.id, settling.id]);
    ledger.record(settling.id, vec![PaymentEvent::RunEnded], later(4)).await.expect("ended");
    assert_eq!(unresolved(later(4), 10).await, [doubted.id, settling.id], "a run that ended holds nothing");
}

async fn settled_payments_are_found_by_block(ledger: &dyn LedgerStore) {
    let mut ids = Vec::new();
    for number in [3, 1, 2] {
        ids.push(settled_payment(ledger, ClaimOf::first(number, START)).await.id);
    }
    let fourth = settled_payment(ledger, ClaimOf::first(4, START)).await.id;
    ledger.record(fourth, vec![settled(3)], START).await.expect("mined again, in block 3");
    let undone = settled_payment(ledger, ClaimOf::first(5, START)).await.id;
    ledger.record(undone, vec![PaymentEvent::Doubted], START).await.expect("doubted");
    let network = test_network();
    assert_eq!(ledger.settled_blocks(&network, 2, 9).await.expect("asked"), [block(2), block(3)]);
    assert_eq!(ledger.settled_blocks(&network, 2, 1).await.expect("asked"), [block(2)]);
    let in_third = ledger.settled_in(&network, &block(3), 10).await.expect("asked");
    assert_eq!(in_third.iter().map(|p| p.id).collect::<Vec<_>>(), [ids[0], fourth]);
    let forked = farebox_core::BlockRef { number: 3, hash: [0xfe; 32] };
    assert_eq!(ledger.settled_in(&network, &forked, 10).await.expect("asked"), []);
    let elsewhere = farebox_core::Network::evm(1);
    assert_eq!(ledger.settled_blocks(&elsewhere, 0, 9).await.expect("asked"), []);
}

async fn filters_say_what_they_mean_and_pages_meet(ledger: &dyn LedgerStore) {
    let at = |number: usize| START.plus(Duration::from_secs(number as u64));
    let mut payments = Vec::new();
    for number in 0..7 {
        let claim = ClaimOf { resource: number, ..ClaimOf::first(number, at(number)) };
        payments.push(settled_payment(ledger, claim).await);
    }
    ledger.record(payments[5].id, vec![PaymentEvent::Doubted], at(7)).await.expect("doubted");
    let list = async |filter: PaymentFilter| {
        let found = ledger.list(&filter).await.expect("listed");
        let number = |id: PaymentId| payments.iter().position(|p| p.id == id).expect("known");
        found.into_iter().map(|p| number(p.id)).collect::<Vec<_>>()
    };
    let any = PaymentFilter::default;
    assert_eq!(list(any()).await, [6, 5, 4, 3, 2, 1, 0], "newest first");
    assert_eq!(list(PaymentFilter { limit: 3, ..any() }).await, [6, 5, 4]);
    let before = Some(payments[4].id);
    assert_eq!(list(PaymentFilter { limit: 3, before, ..any() }).await, [3, 2, 1]);
    assert_eq!(list(PaymentFilter { id: Some(payments[2].id), ..any() }).await, [2]);
    assert_eq!(list(PaymentFilter { state: Some(PaymentState::InDoubt), ..any() }).await, [5]);
    assert_eq!(list(PaymentFilter { route: Some(route(1)), ..any() }).await, [5, 3, 1]);
    let account = payments[1].payer.as_str();
    let address = account.rsplit(':').next().expect("an address");
    for payer in [account.to_owned(), address.to_owned(), address.to_uppercase()] {
        assert_eq!(list(PaymentFilter { payer: Some(payer), ..any() }).await, [4, 1]);
    }
    assert_eq!(list(PaymentFilter { payer: Some(format!("eip155:1:{address}")), ..any() }).await, [0; 0]);
    assert_eq!(list(PaymentFilter { network: Some(farebox_core::Network::evm(1)), ..any() }).await, [0; 0]);
    assert_eq!(list(PaymentFilter { transaction: Some(transaction_id(3)), ..any() }).await, [3]);
    let (since, until) = (Some(at(2)), Some(at(4)));
    assert_eq!(list(PaymentFilter { since, until, ..any() }).await, [3, 2]);
}

async fn a_restart_keeps_the_books_and_ends_other_leases<B: Books>(books: &B) {
    let ledger = books.open(instance(0), ANSWERS_KEPT_FOR, START);
    let held = granted(&*ledger, ClaimOf::first(1, START).build()).await;
    let rested = settled_payment(&*ledger, ClaimOf::first(2, START)).await;
    let rested = ledger.record(rested.id, vec![delivered(b"x")], START).await.expect("delivered");
    drop(ledger);
    let ledger = books.open(instance(1), ANSWERS_KEPT_FOR, START);
    assert_eq!(ledger.find(rested.digest()).await.expect("asked"), Some(rested.clone()));
    assert!(ledger.answer(rested.id, START).await.expect("asked").is_some());
    assert_eq!(ledger.last_nonce(&lane()).await.expect("asked"), Some(2));
    let orphans = ledger.unresolved(START, 10).await.expect("asked");
    assert_eq!(orphans.iter().map(|p| p.id).collect::<Vec<_>>(), [held.id]);
    let id = payment_id(3, START);
    let taken = ClaimOf { id, holder: instance(1), ..ClaimOf::first(1, START) }.build();
    let taken = granted(&*ledger, taken).await;
    assert_eq!((taken.id, taken.runs, taken.holder.clone()), (held.id, 2, Some(instance(1))));
    assert_eq!((held.request, taken.request.clone()), (request_of(held.id), request_of(id)), "who claimed it last");
    let found = ledger.find(taken.digest()).await.expect("asked").expect("found");
    assert_eq!(found.request, taken.request);
}
