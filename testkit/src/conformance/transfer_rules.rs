//! Money that was there before its claim: surplus and credit, reversals, and the keys of quotes.

use std::time::Duration;

use farebox_core::{
    Amount, Claim, Claimed, Delivery, Payer, Payment, PaymentEvent, PaymentState, Timestamp,
    ports::{CreditIs, PaymentFilter, QuoteKeyRotation, RecordError},
};

use super::{
    ANSWERS_KEPT_FOR, Books, ClaimOf, LedgerStore, PRICE, START, block, delivered, granted, instance, payment_id,
    settled, settled_payment,
};
use crate::{TestPayer, test_asset, test_network};

/// The payer of the suite's claims whose proof is a multiple of 3.
const PAYER: TestPayer = TestPayer(0);

pub(super) async fn all<B: Books>(fresh: &impl Fn() -> B) {
    let open = |books: &B| books.open(instance(0), ANSWERS_KEPT_FOR, START);
    a_transfer_is_settled_when_it_is_claimed(&*open(&fresh())).await;
    a_log_of_a_transfer_is_good_for_one_claim(&*open(&fresh())).await;
    one_credential_makes_one_payment(&*open(&fresh())).await;
    late_money_is_credit_and_never_delivered(&*open(&fresh())).await;
    surplus_is_credit_once_however_often_it_is_claimed(&*open(&fresh())).await;
    credits_are_summed_by_payer_and_asset(&*open(&fresh())).await;
    credit_goes_with_a_reversal_and_comes_back(&*open(&fresh())).await;
    payers_are_marked_until_their_money_is_there_again(&*open(&fresh())).await;
    a_reversed_delivery_that_is_refused_marks_for_good(&*open(&fresh())).await;
    marked_payers_are_told_once_and_the_latest_first(&*open(&fresh())).await;
    a_restart_keeps_credit_marks_and_keys(&fresh()).await;
    quote_keys_are_exchanged_and_kept_as_long_as_quotes_last(&*open(&fresh())).await;
}

async fn a_transfer_is_settled_when_it_is_claimed(ledger: &dyn LedgerStore) {
    let payment = granted(ledger, ClaimOf::transfer(4, PRICE, START).build()).await;
    assert_eq!((payment.state, payment.delivery, payment.credit), (PaymentState::Settled, Delivery::Pending, 0));
    assert_eq!(payment.block, Some(block(4)));
    assert_eq!(ledger.find(payment.digest()).await.expect("asked"), Some(payment.clone()));
    assert_eq!(ledger.find_proof(&payment.proof).await.expect("asked"), Some(payment.clone()));
    assert_eq!(ledger.settled_blocks(&test_network(), 0, 10).await.expect("asked"), [block(4)], "it is looked after");
    assert_eq!(ledger.unresolved(later(3_600), 9).await.expect("asked"), [], "there is nothing to find out");
    let done = ledger.record(payment.id, vec![delivered(b"x")], START).await.expect("delivered");
    assert_eq!((done.state, done.delivery), (PaymentState::Settled, Delivery::Delivered));
    let again = ledger.claim(ClaimOf::transfer(4, PRICE, later(3_600)).build()).await.expect("asked");
    assert!(matches!(again, Claimed::Replayed(ref known) if *known == done), "{again:?}");
}

async fn a_log_of_a_transfer_is_good_for_one_claim(ledger: &dyn LedgerStore) {
    let first = granted(ledger, ClaimOf::transfer(4, PRICE, START).build()).await;
    let another_quote = ClaimOf { signature: 2, ..ClaimOf::transfer(4, PRICE, later(3_600)) };
    let elsewhere = ClaimOf { resource: 1, ..ClaimOf::transfer(4, PRICE, later(3_600)) };
    for claim in [another_quote, elsewhere] {
        let told = ledger.claim(claim.build()).await.expect("asked");
        assert!(matches!(told, Claimed::Foreign(ref known) if known.id == first.id), "{told:?}");
    }
}

async fn late_money_is_credit_and_never_delivered(ledger: &dyn LedgerStore) {
    let payment = granted(ledger, ClaimOf::late(3, PRICE + 5, START).build()).await;
    assert_eq!((payment.state, payment.delivery), (PaymentState::Settled, Delivery::Credited));
    assert_eq!((payment.credit, payment.amount.units), (PRICE + 5, PRICE + 5));
    assert_eq!((payment.reason.as_deref(), &payment.holder), (Some("paid_too_late"), &None));
    let refused = ledger.record(payment.id, vec![delivered(b"x")], START).await;
    assert!(matches!(refused, Err(RecordError::Illegal(_))), "{refused:?}");
    // In time by another clock, or on another gateway: the books have decided.
    for claim in [ClaimOf::late(3, PRICE + 5, later(9)), ClaimOf::transfer(3, PRICE + 5, later(3_600))] {
        let told = ledger.claim(claim.build()).await.expect("asked");
        assert!(matches!(told, Claimed::Replayed(ref known) if *known == payment), "{told:?}");
    }
    assert_eq!(credit_of(ledger, PAYER).await, [PRICE + 5]);
}

async fn surplus_is_credit_once_however_often_it_is_claimed(ledger: &dyn LedgerStore) {
    let payment = granted(ledger, ClaimOf::transfer(3, PRICE + 7, START).build()).await;
    assert_eq!((payment.credit, payment.amount.units, payment.delivery), (7, PRICE, Delivery::Pending));
    ledger.record(payment.id, vec![PaymentEvent::RunEnded], START).await.expect("ended");
    let again = ClaimOf { id: payment_id(9, START), ..ClaimOf::transfer(3, PRICE + 7, later(1)) };
    let taken = granted(ledger, again.build()).await;
    assert_eq!((taken.id, taken.credit, taken.runs), (payment.id, 7, 2));
    ledger.record(payment.id, vec![delivered(b"x")], START).await.expect("delivered");
    assert_eq!(credit_of(ledger, PAYER).await, [7]);
}

async fn credits_are_summed_by_payer_and_asset(ledger: &dyn LedgerStore) {
    assert_eq!(credit_of(ledger, PAYER).await, []);
    // Beyond 2^64 together; a transfer without surplus, an x402 payment and another payer's credit count for nothing.
    let wide = u128::from(u64::MAX);
    for claim in [ClaimOf::late(0, wide, START), ClaimOf::transfer(3, PRICE + wide, START)] {
        granted(ledger, claim.build()).await;
    }
    granted(ledger, ClaimOf::transfer(6, PRICE, START).build()).await;
    settled_payment(ledger, ClaimOf::first(9, START)).await;
    granted(ledger, ClaimOf::late(1, 5, START).build()).await;
    let owed = vec![Amount { units: 2 * wide, asset: test_asset() }];
    let account = PAYER.account(&test_network());
    assert_eq!(ledger.credits(&account).await.expect("asked"), owed);
    let filter = PaymentFilter { credit: Some(CreditIs::Owed), ..PaymentFilter::default() };
    let listed = ledger.list(&filter).await.expect("listed");
    assert_eq!(listed.iter().rev().map(|p| p.credit).collect::<Vec<_>>(), [wide, 5, wide]);
    let shouted = Payer::new(&test_network(), &account.address().to_uppercase().replace("0X", "0x"));
    assert_eq!(ledger.credits(&shouted).await.expect("asked"), owed, "one address in two spellings");
    let elsewhere = PAYER.account(&farebox_core::Network::evm(1));
    assert_eq!(ledger.credits(&elsewhere).await.expect("asked"), []);
    granted(ledger, ClaimOf::late(12, u128::MAX, START).build()).await;
    assert!(ledger.credits(&account).await.is_err(), "a sum that cannot be told is not told wrong");
}

async fn credit_goes_with_a_reversal_and_comes_back(ledger: &dyn LedgerStore) {
    let late = granted(ledger, ClaimOf::late(0, 100, START).build()).await;
    let surplus = granted(ledger, ClaimOf::transfer(3, PRICE + 1, START).build()).await;
    assert_eq!(credit_of(ledger, PAYER).await, [101]);
    let reversed = reverse(ledger, &late).await;
    assert_eq!((reversed.state, reversed.delivery, reversed.credit), (PaymentState::InDoubt, Delivery::Credited, 100));
    assert_eq!(credit_of(ledger, PAYER).await, [1], "it is owed only while it is here");
    let back = ledger.record(late.id, vec![settled(8)], later(2)).await.expect("mined again");
    assert_eq!((back.delivery, back.reason.as_deref()), (Delivery::Credited, Some("paid_too_late")));
    assert_eq!(credit_of(ledger, PAYER).await, [101]);
    reverse(ledger, &surplus).await;
    ledger.record(surplus.id, vec![refused()], later(3)).await.expect("refused");
    assert_eq!(credit_of(ledger, PAYER).await, [100]);
}

async fn one_credential_makes_one_payment(ledger: &dyn LedgerStore) {
    let claim = ClaimOf::transfer(3, PRICE, START).build();
    let first = granted(ledger, claim.clone()).await;
    let other = ClaimOf::transfer(4, PRICE, START).build();
    let second = ledger.claim(Claim { id: other.id, proof: other.proof, ..claim.clone() }).await.expect("asked");
    assert!(matches!(&second, Claimed::Busy(known) if known.id == first.id), "{second:?}");
    assert_eq!(ledger.list(&PaymentFilter::default()).await.expect("asked").len(), 1);
}

async fn payers_are_marked_until_their_money_is_there_again(ledger: &dyn LedgerStore) {
    let payment = granted(ledger, ClaimOf::transfer(3, PRICE, START).build()).await;
    let doubted = granted(ledger, ClaimOf::transfer(4, PRICE, START).build()).await;
    ledger.record(doubted.id, vec![PaymentEvent::Doubted], START).await.expect("doubted");
    assert_eq!(marked(ledger).await, [], "a node that is not sure is no reorganisation");
    assert!(reverse(ledger, &payment).await.reversed);
    assert_eq!(marked(ledger).await, [PAYER.account(&test_network())]);
    let twice = ledger.record(payment.id, vec![PaymentEvent::Reversed], START).await;
    assert!(matches!(twice, Err(RecordError::Illegal(_))), "{twice:?}");
    let back = ledger.record(payment.id, vec![settled(8)], later(1)).await.expect("mined again");
    assert!(!back.reversed && marked(ledger).await.is_empty());
    reverse(ledger, &payment).await;
    ledger.record(payment.id, vec![refused()], later(2)).await.expect("refused");
    assert_eq!(marked(ledger).await, [], "nothing was delivered for it, so nothing is lost");
}

async fn a_reversed_delivery_that_is_refused_marks_for_good(ledger: &dyn LedgerStore) {
    let payment = granted(ledger, ClaimOf::transfer(3, PRICE, START).build()).await;
    ledger.record(payment.id, vec![delivered(b"x")], START).await.expect("delivered");
    reverse(ledger, &payment).await;
    let lost = ledger.record(payment.id, vec![refused()], later(1)).await.expect("refused");
    assert_eq!((lost.state, lost.delivery, lost.reversed), (PaymentState::Refused, Delivery::Delivered, true));
    assert_eq!(marked(ledger).await, [PAYER.account(&test_network())]);
    let told = ledger.claim(ClaimOf::transfer(3, PRICE, later(3_600)).build()).await.expect("asked");
    assert!(matches!(told, Claimed::Replayed(_)), "{told:?}");
}

async fn marked_payers_are_told_once_and_the_latest_first(ledger: &dyn LedgerStore) {
    for (number, at) in [(3, 1), (1, 2), (6, 3), (2, 1)] {
        let payment = granted(ledger, ClaimOf::transfer(number, PRICE, START).build()).await;
        ledger.record(payment.id, vec![PaymentEvent::Reversed], later(at)).await.expect("reversed");
    }
    let account = |payer: u8| TestPayer(payer).account(&test_network());
    assert_eq!(marked(ledger).await, [account(0), account(1), account(2)]);
    assert_eq!(ledger.marked_payers(2).await.expect("asked"), [account(0), account(1)]);
}

async fn a_restart_keeps_credit_marks_and_keys<B: Books>(books: &B) {
    let ledger = books.open(instance(0), ANSWERS_KEPT_FOR, START);
    granted(&*ledger, ClaimOf::late(3, 50, START).build()).await;
    let reversed = granted(&*ledger, ClaimOf::transfer(1, PRICE, START).build()).await;
    ledger.record(reversed.id, vec![delivered(b"x")], START).await.expect("delivered");
    let reversed = reverse(&*ledger, &reversed).await;
    let keys = ledger.quote_keys(rotation(1), START).await.expect("keys");
    for height in [7, 9, 8] {
        ledger.set_compared_below(&test_network(), height).await.expect("noted");
    }
    drop(ledger);
    let ledger = books.open(instance(1), ANSWERS_KEPT_FOR, START);
    assert_eq!(credit_of(&*ledger, PAYER).await, [50]);
    assert_eq!(marked(&*ledger).await, [TestPayer(1).account(&test_network())]);
    assert_eq!(ledger.find_proof(&reversed.proof).await.expect("asked"), Some(reversed));
    let kept = ledger.quote_keys(rotation(2), later(99)).await.expect("keys");
    assert_eq!(ledger.compared_below(&test_network()).await.expect("asked"), 9);
    assert_eq!(ledger.compared_below(&farebox_core::Network::evm(4_242)).await.expect("asked"), 0);
    assert!(kept == keys, "a bill from before the restart is still good");
}

async fn quote_keys_are_exchanged_and_kept_as_long_as_quotes_last(ledger: &dyn LedgerStore) {
    let keys = async |fresh: u8, at: u64| {
        let keys = ledger.quote_keys(rotation(fresh), later(at)).await.expect("keys");
        keys.into_iter().map(|key| (key.id, key.secret[0], key.since)).collect::<Vec<_>>()
    };
    let (first, second) = ((1, 7, START), (2, 8, later(100)));
    assert_eq!(keys(7, 0).await, [first]);
    assert_eq!(keys(9, 99).await, [first], "it is not due");
    assert_eq!(keys(8, 100).await, [second, first]);
    assert_eq!(keys(9, 150).await, [second, first], "the last quote of the first key may be as old as its end");
    assert_eq!(keys(9, 151).await, [second]);
    // A clock set back neither rotates nor deletes, and a long sleep leaves one key and no id used twice.
    assert_eq!(keys(9, 1).await, [second]);
    assert_eq!(keys(6, 9_999).await, [(3, 6, later(9_999)), second]);
    assert_eq!(keys(5, 99_999).await, [(4, 5, later(99_999)), (3, 6, later(9_999))]);
}

fn rotation(fresh: u8) -> QuoteKeyRotation {
    let (rotate_after, keep_for) = (Duration::from_secs(100), Duration::from_secs(50));
    QuoteKeyRotation { fresh: [fresh; 32], rotate_after, keep_for }
}

async fn credit_of(ledger: &dyn LedgerStore, payer: TestPayer) -> Vec<u128> {
    let credits = ledger.credits(&payer.account(&test_network())).await.expect("asked");
    credits.into_iter().map(|amount| amount.units).collect()
}

async fn marked(ledger: &dyn LedgerStore) -> Vec<Payer> {
    ledger.marked_payers(10).await.expect("asked")
}

async fn reverse(ledger: &dyn LedgerStore, payment: &Payment) -> Payment {
    ledger.record(payment.id, vec![PaymentEvent::Reversed], START).await.expect("reversed")
}

fn refused() -> PaymentEvent {
    PaymentEvent::Refused { code: "payment_not_found".into() }
}

fn later(seconds: u64) -> Timestamp {
    START.plus(Duration::from_secs(seconds))
}
