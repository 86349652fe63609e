//! The audit log: one line for each decision, none for what failed, and a chain that holds across restarts.

use std::sync::Arc;

use farebox_core::{AuditLine, Payment, PaymentEvent, verify_audit};
use serde_json::{Value, json};

use super::{
    ANSWERS_KEPT_FOR, Books, ClaimOf, LedgerStore, PRICE, START, delivered, granted, instance, payment_id, rejection,
    request_of, settled, settled_payment, transaction, transaction_id,
};
use crate::{TestPayer, test_asset, test_network};

pub(super) async fn all<B: Books>(fresh: &impl Fn() -> B) {
    let open = |books: &B| books.open(instance(0), ANSWERS_KEPT_FOR, START);
    every_decision_makes_one_line(&*open(&fresh())).await;
    a_line_says_who_what_and_why(&*open(&fresh())).await;
    what_failed_or_decided_nothing_makes_no_line(&*open(&fresh())).await;
    lines_are_read_in_pages(&*open(&fresh())).await;
    many_at_once_make_one_chain(open(&fresh())).await;
    the_chain_goes_on_after_a_restart(&fresh()).await;
}

async fn every_decision_makes_one_line(ledger: &dyn LedgerStore) {
    let payment = settled_payment(ledger, ClaimOf::first(1, START)).await;
    let events = vec![delivered(b"x"), PaymentEvent::Reversed, PaymentEvent::Doubted];
    ledger.record(payment.id, events, START).await.expect("recorded");
    ledger.record(payment.id, vec![settled(2)], START).await.expect("recorded");
    let released = granted(ledger, ClaimOf::first(2, START).build()).await;
    let event = PaymentEvent::Released { code: "upstream_failed".into() };
    ledger.record(released.id, vec![event], START).await.expect("recorded");
    granted(ledger, ClaimOf::late(3, PRICE, START).build()).await;
    let refused = granted(ledger, ClaimOf::transfer(4, PRICE, START).build()).await;
    let events = vec![PaymentEvent::Reversed, PaymentEvent::Refused { code: "payment_not_found".into() }];
    ledger.record(refused.id, events, START).await.expect("recorded");
    ledger.audit(vec![rejection(START)]).await.expect("written");
    let told: Vec<_> = log(ledger).await.iter().map(|line| text(&line["outcome"])).collect();
    let expected = "claimed settling settled delivered reversed settled \
                    claimed released credited settled reversed refused rejected";
    assert_eq!(told.join(" "), expected);
}

async fn a_line_says_who_what_and_why(ledger: &dyn LedgerStore) {
    let late = granted(ledger, ClaimOf::late(3, PRICE + 1, START).build()).await;
    ledger.audit(vec![rejection(START)]).await.expect("written");
    let [credited, rejected] = &log(ledger).await[..] else { panic!("two lines") };
    let account = TestPayer(0).account(&test_network());
    let hash = format!("0x{}{:016x}", "dd".repeat(24), 3);
    assert_eq!(
        *credited,
        json!({
            "sequence": 1, "time": "2027-01-15T08:00:00.000Z", "outcome": "credited", "reason": "paid_too_late",
            "payment": late.id.to_string(), "request": request_of(late.id).as_str(), "rail": "transfer",
            "route": "route-0", "method": "GET", "resource": "/0?q='\"%00\u{1b}é", "payer": account.as_str(),
            "amount": { "units": (PRICE + 1).to_string(), "asset": test_asset().to_string() },
            "credit": (PRICE + 1).to_string(), "transaction": hash, "previous": AuditLine::NOTHING_BEFORE,
        })
    );
    let [first, _] = &ledger.audit_lines(0, 9).await.expect("lines")[..] else { panic!("two lines") };
    assert_eq!(
        *rejected,
        json!({
            "sequence": 2, "time": "2027-01-15T08:00:00.000Z", "outcome": "rejected", "reason": "wrong_payer",
            "request": "req_rejected", "rail": "transfer", "route": "route-0", "method": "GET",
            "resource": "/\"\n\u{1b}é", "payer": account.as_str(), "count": 3,
            "transaction": hash.replace(&format!("{:016x}", 3), &format!("{:016x}", 0)), "previous": first.hash(),
        })
    );
}

async fn what_failed_or_decided_nothing_makes_no_line(ledger: &dyn LedgerStore) {
    let payment = settled_payment(ledger, ClaimOf::first(1, START)).await;
    let lines = log(ledger).await;
    assert_eq!(lines.len(), 3);
    // The first event fits; the whole is refused, and its line with it.
    let twice = vec![delivered(b"x"), delivered(b"y")];
    ledger.record(payment.id, twice, START).await.expect_err("delivered twice");
    ledger.record(payment_id(99, START), vec![PaymentEvent::Doubted], START).await.expect_err("nobody's");
    ledger.record(payment.id, vec![], START).await.expect("nothing");
    ledger.record(payment.id, vec![PaymentEvent::RunEnded], START).await.expect("ended");
    let other_contents = farebox_core::StoredTransaction { raw: vec![9], ..transaction(1, Some(payment.id), START) };
    ledger.store_transaction(other_contents).await.expect_err("its hash is taken");
    ledger.store_transaction(transaction(1, Some(payment.id), START)).await.expect("the same again");
    ledger.store_transaction(transaction(7, None, START)).await.expect("one that only fills its nonce");
    ledger.store_transaction(transaction(8, Some(payment.id), START)).await.expect_err("settled already");
    let foreign = ClaimOf { signature: 2, id: payment_id(5, START), ..ClaimOf::first(1, START) };
    ledger.claim(foreign.build()).await.expect("asked");
    let taken = ClaimOf { id: payment.id, ..ClaimOf::first(2, START) };
    ledger.claim(taken.build()).await.expect_err("its id is taken");
    ledger.audit(vec![]).await.expect("nothing");
    assert_eq!(log(ledger).await, lines);
    assert_eq!(ledger.transaction(&transaction_id(8)).await.expect("asked"), None);
}

async fn lines_are_read_in_pages(ledger: &dyn LedgerStore) {
    ledger.audit(vec![rejection(START); 7]).await.expect("written");
    let numbers = async |after, limit| {
        let lines = ledger.audit_lines(after, limit).await.expect("lines");
        lines.into_iter().map(|line| line.sequence).collect::<Vec<_>>()
    };
    assert_eq!(numbers(0, 3).await, [1, 2, 3]);
    assert_eq!(numbers(3, 3).await, [4, 5, 6]);
    assert_eq!(numbers(6, 3).await, [7]);
    assert_eq!(numbers(7, 3).await, [0; 0]);
    assert_eq!(numbers(u64::MAX, 3).await, [0; 0]);
}

async fn many_at_once_make_one_chain(ledger: Arc<dyn LedgerStore>) {
    let mut tasks = Vec::new();
    for number in 0..50 {
        let ledger = ledger.clone();
        tasks.push(tokio::spawn(async move {
            let payment: Payment = settled_payment(&*ledger, ClaimOf::first(number, START)).await;
            ledger.record(payment.id, vec![delivered(b"x")], START).await.expect("delivered");
        }));
    }
    for task in tasks {
        task.await.expect("joined");
    }
    assert_eq!(log(&*ledger).await.len(), 200);
}

async fn the_chain_goes_on_after_a_restart<B: Books>(books: &B) {
    let ledger = books.open(instance(0), ANSWERS_KEPT_FOR, START);
    let claim = ClaimOf::first(1, START).build();
    granted(&*ledger, claim).await;
    let before = ledger.audit_lines(0, 9).await.expect("lines");
    drop(ledger);
    let ledger = books.open(instance(1), ANSWERS_KEPT_FOR, START);
    let id = payment_id(3, START);
    granted(&*ledger, ClaimOf { id, holder: instance(1), ..ClaimOf::first(1, START) }.build()).await;
    let lines = ledger.audit_lines(0, 9).await.expect("lines");
    assert_eq!(lines[..1], before);
    let [first, second] = &log(&*ledger).await[..] else { panic!("two lines") };
    assert_eq!((&second["outcome"], &second["payment"]), (&json!("claimed"), &first["payment"]), "taken over");
    assert_eq!(second["request"], request_of(id).as_str());
}

/// The whole log, checked.
async fn log(ledger: &dyn LedgerStore) -> Vec<Value> {
    let lines = ledger.audit_lines(0, 1_000).await.expect("lines");
    let last = verify_audit(None, lines.clone()).expect("a chain without a break");
    assert_eq!(last.map_or(0, |line| line.sequence), lines.len() as u64);
    lines.iter().map(|line| serde_json::from_str(&line.text).expect("JSON")).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
