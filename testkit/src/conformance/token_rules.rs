//! What books of tokens do: each rule with its answer written out.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use farebox_core::{
    Answer, AuditOutcome, BROKEN_DRAWS_MAX, BitcoinNetwork, CallerId, Delivery, Draw, DrawEnd, Drawn, Grant, Invoice,
    InvoiceNews, InvoiceState, KEPT_ANSWERS_MAX, KEPT_BODY_BYTES_MAX, NewToken, PaidBefore, PassId, Payment,
    PaymentHash, PaymentId, PaymentState, SOLD_RESOURCE_BYTES_MAX, Timestamp, Token,
    ports::{CreditIs, NewsCursor, NewsRead, NotedNews, PaymentFilter, TokenFilter},
};

use super::{ANSWERS_KEPT_FOR, Books, LEASE, LedgerStore, START, instance, payment_id, route};
use crate::{TEST_TOKEN_MSAT, test_draw, test_draw_id, test_pass, test_preimage, test_token};

/// Runs every rule on fresh books.
pub(super) async fn all<B: Books>(fresh: &impl Fn() -> B) {
    let open = |books: &B| books.open(instance(0), ANSWERS_KEPT_FOR, START);
    of_many_draws_as_many_are_granted_as_there_are_calls(open(&fresh()), 1).await;
    of_many_draws_as_many_are_granted_as_there_are_calls(open(&fresh()), 2).await;
    a_call_is_taken_before_it_ends_and_comes_back_if_it_was_not_made(&*open(&fresh())).await;
    answers_that_break_off_are_counted_once_they_did_too_often(&*open(&fresh())).await;
    a_key_has_its_answer_again_until_it_ends(&*open(&fresh())).await;
    of_a_pass_so_many_answers_and_bytes_are_kept_and_no_more(&*open(&fresh())).await;
    the_first_news_of_a_paid_invoice_makes_its_payment_once(&*open(&fresh()), NewsFrom::Node).await;
    the_first_news_of_a_paid_invoice_makes_its_payment_once(&*open(&fresh()), NewsFrom::Caller).await;
    what_came_over_the_amount_is_credit_and_less_buys_nothing(&*open(&fresh())).await;
    more_money_than_was_known_is_more_credit_or_buys_after_all(&*open(&fresh())).await;
    a_pass_ends_by_its_time_or_by_the_operator(&*open(&fresh())).await;
    bought_time_is_looked_at_and_not_counted(&*open(&fresh())).await;
    a_pass_that_was_never_sold_or_is_of_another_invoice_is_unknown(&*open(&fresh())).await;
    a_token_is_sold_once(&*open(&fresh())).await;
    news_are_noted_with_how_far_they_were_read(&*open(&fresh())).await;
    invoices_whose_time_is_over_are_asked_for_until_their_end_is_known(&*open(&fresh())).await;
    invoices_of_other_nodes_are_listed_page_by_page(&*open(&fresh())).await;
    unpaid_tokens_go_some_time_after_their_end_and_paid_ones_stay(&*open(&fresh())).await;
    each_sale_takes_more_unpaid_tokens_away_than_it_adds(&*open(&fresh())).await;
    what_a_stranger_asked_for_is_kept_in_short(&*open(&fresh())).await;
    tokens_are_listed_newest_first_and_pages_meet(&*open(&fresh())).await;
    a_payment_without_a_block_disturbs_nobody(&*open(&fresh())).await;
    a_draw_whose_lease_is_over_is_returned_when_another_process_wants_its_call(&*open(&fresh())).await;
    a_process_keeps_its_own_draws_past_their_lease(&*open(&fresh())).await;
    a_restart_returns_what_the_dead_had_drawn(&fresh()).await;
    the_log_has_a_line_for_a_payment_and_none_for_a_call(&*open(&fresh())).await;
}

const fn calls(number: u32) -> Grant {
    match NonZeroU32::new(number) {
        Some(number) => Grant::Calls(number),
        None => panic!("a pass of no calls"),
    }
}

const HOUR: Grant = Grant::For(Duration::from_secs(3600));

async fn sell(ledger: &dyn LedgerStore, number: u64, grant: Grant) -> NewToken {
    let token = test_token(number, grant, START);
    ledger.sell(token.clone()).await.expect("sold");
    token
}

fn draw(number: u64, id: u64, now: Timestamp) -> Draw {
    test_draw(number, id, instance(0), now)
}

fn with_key(key: &[u8], draw: Draw) -> Draw {
    Draw { key: Some(CallerId::from_key(key)), ..draw }
}

/// What a draw is told, shortly: `granted, 2 left`.
async fn drawn(ledger: &dyn LedgerStore, draw: Draw) -> String {
    match ledger.draw(draw).await.expect("answered") {
        Drawn::Granted(permit) => match permit.left() {
            Some(left) => format!("granted, {left} left"),
            None => "granted".into(),
        },
        Drawn::Replayed { answer, .. } => {
            format!("replayed {:?}", answer.map(|answer| String::from_utf8_lossy(&answer.body).into_owned()))
        }
        other => format!("{other:?}").to_lowercase(),
    }
}

async fn end(ledger: &dyn LedgerStore, number: u64, id: u64, end: DrawEnd, now: Timestamp) {
    ledger.end_draw(test_pass(number), test_draw_id(id), end, now).await.expect("ended");
}

const DELIVERED: DrawEnd = DrawEnd::Delivered { answer: None };

fn delivered(body: &str) -> DrawEnd {
    DrawEnd::Delivered { answer: Some(Answer { status: 200, headers: Vec::new(), body: body.into() }) }
}

fn heard(number: u64, news: InvoiceNews, payment: usize) -> NotedNews {
    NotedNews { hash: test_preimage(number).hash(), news, payment: payment_id(payment, START) }
}

fn settled(received_msat: u64) -> InvoiceNews {
    InvoiceNews::Settled { received_msat }
}

/// The passes that are paid now.
async fn note(ledger: &dyn LedgerStore, news: NotedNews, now: Timestamp) -> Vec<PassId> {
    ledger.note_news(vec![news], None, now).await.expect("noted")
}

async fn token(ledger: &dyn LedgerStore, number: u64) -> Token {
    ledger.token(test_pass(number)).await.expect("asked").expect("known")
}

async fn payments(ledger: &dyn LedgerStore) -> Vec<Payment> {
    ledger.list(&PaymentFilter::default()).await.expect("listed")
}

async fn only_payment(ledger: &dyn LedgerStore) -> Payment {
    let mut payments = payments(ledger).await;
    assert_eq!(payments.len(), 1, "{payments:?}");
    payments.remove(0)
}

async fn outcomes(ledger: &dyn LedgerStore) -> Vec<(String, u64)> {
    let lines = ledger.audit_lines(0, 1_000).await.expect("read");
    let value =
        |line: farebox_core::AuditLine| -> serde_json::Value { serde_json::from_str(&line.text).expect("JSON") };
    let told = |line: serde_json::Value| {
        (line["outcome"].as_str().unwrap_or_default().to_owned(), line["count"].as_u64().unwrap_or(1))
    };
    lines.into_iter().map(value).map(told).collect()
}

async fn of_many_draws_as_many_are_granted_as_there_are_calls(ledger: Arc<dyn LedgerStore>, granted: u32) {
    sell(&*ledger, 1, calls(granted)).await;
    let draws = (0..100).map(|id| {
        let ledger = ledger.clone();
        tokio::spawn(async move { (id, drawn(&*ledger, draw(1, id, START)).await) })
    });
    let mut told = Vec::new();
    for task in draws.collect::<Vec<_>>() {
        told.push(task.await.expect("joined"));
    }
    let grants: Vec<_> = told.iter().filter(|(_, told)| told.starts_with("granted")).collect();
    assert_eq!(grants.len(), granted as usize, "{told:?}");
    assert!(told.iter().all(|(_, told)| told.starts_with("granted") || told == "busy"), "{told:?}");
    for (id, _) in grants {
        end(&*ledger, 1, *id, DELIVERED, START).await;
    }
    assert_eq!(drawn(&*ledger, draw(1, 200, START)).await, "spent");
    assert_eq!(token(&*ledger, 1).await.used, granted);
    only_payment(&*ledger).await;
}

async fn a_call_is_taken_before_it_ends_and_comes_back_if_it_was_not_made(ledger: &dyn LedgerStore) {
    sell(ledger, 1, calls(2)).await;
    assert_eq!(drawn(ledger, draw(1, 1, START)).await, "granted, 1 left");
    assert_eq!(drawn(ledger, draw(1, 2, START)).await, "granted, 0 left");
    assert_eq!(drawn(ledger, draw(1, 3, START)).await, "busy", "one under way may come back");
    end(ledger, 1, 1, DrawEnd::Returned, START).await;
    end(ledger, 1, 1, DrawEnd::Returned, START).await;
    end(ledger, 1, 99, DrawEnd::Returned, START).await;
    end(ledger, 7, 2, DrawEnd::Returned, START).await;
    assert_eq!(token(ledger, 1).await.used, 1, "it came back once");
    assert_eq!(only_payment(ledger).await.delivery, Delivery::Pending);
    assert_eq!(drawn(ledger, draw(1, 4, START)).await, "granted, 0 left");
    end(ledger, 1, 2, DELIVERED, START).await;
    end(ledger, 1, 2, DrawEnd::Returned, START).await;
    assert_eq!(only_payment(ledger).await.delivery, Delivery::Delivered);
    end(ledger, 1, 4, DELIVERED, START).await;
    assert_eq!(drawn(ledger, draw(1, 5, START)).await, "spent");
    assert_eq!(token(ledger, 1).await.used, 2);
}

async fn answers_that_break_off_are_counted_once_they_did_too_often(ledger: &dyn LedgerStore) {
    sell(ledger, 1, calls(1)).await;
    for broken in 0..u64::from(BROKEN_DRAWS_MAX) {
        assert_eq!(drawn(ledger, draw(1, broken, START)).await, "granted, 0 left");
        end(ledger, 1, broken, DrawEnd::BrokeOff, START).await;
    }
    let last = u64::from(BROKEN_DRAWS_MAX);
    assert_eq!(drawn(ledger, draw(1, last, START)).await, "granted, 0 left");
    end(ledger, 1, last, DrawEnd::BrokeOff, START).await;
    assert_eq!(drawn(ledger, draw(1, last + 1, START)).await, "spent");
    assert_eq!(only_payment(ledger).await.delivery, Delivery::Pending, "nobody had a whole answer");
}

async fn a_key_has_its_answer_again_until_it_ends(ledger: &dyn LedgerStore) {
    sell(ledger, 1, calls(3)).await;
    let keyed = |id, now| with_key(b"k", draw(1, id, now));
    let elsewhere = |id| {
        let mut draw = keyed(id, START);
        draw.binding.resource = "/elsewhere".into();
        draw
    };
    assert_eq!(drawn(ledger, keyed(1, START)).await, "granted, 2 left");
    assert_eq!(drawn(ledger, keyed(2, START)).await, "busy", "its call is under way");
    assert_eq!(drawn(ledger, elsewhere(3)).await, "foreign");
    end(ledger, 1, 1, DrawEnd::Returned, START).await;
    assert_eq!(drawn(ledger, keyed(4, START)).await, "granted, 2 left", "a returned call leaves its key free");
    end(ledger, 1, 4, delivered("hello"), START).await;
    assert_eq!(drawn(ledger, keyed(5, START)).await, "replayed Some(\"hello\")");
    assert_eq!(drawn(ledger, elsewhere(6)).await, "foreign");
    assert_eq!(drawn(ledger, with_key(b"l", draw(1, 7, START))).await, "granted, 1 left");
    end(ledger, 1, 7, DELIVERED, START).await;
    assert_eq!(drawn(ledger, with_key(b"l", draw(1, 8, START))).await, "replayed None", "too large to keep");
    assert_eq!(token(ledger, 1).await.used, 2, "answers of old cost nothing");
    // Another pass has keys of its own.
    sell(ledger, 2, calls(1)).await;
    assert_eq!(drawn(ledger, with_key(b"k", draw(2, 9, START))).await, "granted, 0 left");
    end(ledger, 2, 9, delivered("spent"), START).await;
    assert_eq!(drawn(ledger, with_key(b"k", draw(2, 10, START))).await, "replayed Some(\"spent\")");
    assert_eq!(drawn(ledger, draw(2, 11, START)).await, "spent", "without its key nothing is had again");
    let later = START.plus(ANSWERS_KEPT_FOR);
    assert_eq!(drawn(ledger, with_key(b"k", draw(2, 12, later))).await, "spent");
    assert_eq!(drawn(ledger, keyed(13, later)).await, "granted, 0 left", "the key is new again");
    end(ledger, 1, 13, delivered("again"), later).await;
    assert_eq!(drawn(ledger, keyed(14, later)).await, "replayed Some(\"again\")");
}

async fn of_a_pass_so_many_answers_and_bytes_are_kept_and_no_more(ledger: &dyn LedgerStore) {
    let one_call = async |number: u64, id: u64, body: &str, now| {
        let keyed = |id: u64| with_key(&id.to_be_bytes(), draw(number, id, now));
        drawn(ledger, keyed(id)).await;
        end(ledger, number, id, delivered(body), now).await;
        drawn(ledger, keyed(id)).await
    };
    sell(ledger, 1, HOUR).await;
    for id in 0..KEPT_ANSWERS_MAX {
        assert_eq!(one_call(1, id, "x", START).await, "replayed Some(\"x\")");
    }
    assert_eq!(one_call(1, 900, "x", START).await, "replayed None", "its key is used all the same");
    sell(ledger, 2, HOUR).await;
    let half = "y".repeat(usize::try_from(KEPT_BODY_BYTES_MAX / 2).expect("fits"));
    assert_ne!(one_call(2, 1, &half, START).await, "replayed None");
    assert_eq!(one_call(2, 2, &format!("{half}y"), START).await, "replayed None");
    assert_ne!(one_call(2, 3, &half, START).await, "replayed None", "what was not kept takes no room");
    assert_eq!(one_call(2, 4, "y", START).await, "replayed None");
    let later = START.plus(ANSWERS_KEPT_FOR);
    assert_eq!(one_call(2, 5, "y", later).await, "replayed Some(\"y\")", "those of before are gone");
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum NewsFrom {
    Node,
    Caller,
}

async fn the_first_news_of_a_paid_invoice_makes_its_payment_once(ledger: &dyn LedgerStore, first: NewsFrom) {
    let later = START.plus(Duration::from_secs(1));
    let node_first = first == NewsFrom::Node;
    let sold = sell(ledger, 1, calls(2)).await;
    assert_eq!(token(ledger, 1).await, Token::first(sold));
    let (mut paid, mut before) = (Vec::new(), PaidBefore::Unheard);
    if node_first {
        paid = note(ledger, heard(1, settled(TEST_TOKEN_MSAT), 50), START).await;
        before = PaidBefore::Known;
    }
    let Drawn::Granted(permit) = ledger.draw(draw(1, 60, START)).await.expect("drawn") else { panic!("granted") };
    assert_eq!(permit.paid_before(), before);
    paid.extend(note(ledger, heard(1, settled(TEST_TOKEN_MSAT), 51), later).await);
    paid.extend(note(ledger, heard(1, InvoiceNews::Expired, 52), later).await);
    paid.extend(note(ledger, heard(1, InvoiceNews::Cancelled, 53), later).await);
    assert_eq!(paid.len(), usize::from(node_first), "a pass is told to be paid once");
    let payment = only_payment(ledger).await;
    assert_eq!(payment.id, if node_first { payment_id(50, START) } else { payment_id(60, START) });
    assert_eq!(permit.payment().id, payment.id);
    assert_eq!(permit.payment().payer, payment.payer);
    assert_eq!(payment.payer.address(), test_pass(1).to_string());
    assert_eq!((payment.state, payment.delivery, payment.credit), (PaymentState::Settled, Delivery::Pending, 0));
    assert_eq!(payment.amount.units, u128::from(TEST_TOKEN_MSAT));
    assert_eq!(payment.amount.asset, BitcoinNetwork::Regtest.asset());
    let receipt = payment.receipt().expect("the money moved");
    assert_eq!(receipt.transaction.as_str(), test_preimage(1).hash().to_string());
    let token = token(ledger, 1).await;
    assert_eq!((token.state, token.received_msat), (InvoiceState::Settled, TEST_TOKEN_MSAT));
    assert_eq!((token.payment, token.used), (Some(payment.id), 1));
    assert_eq!(ledger.find(payment.digest()).await.expect("asked"), Some(payment));
}

async fn what_came_over_the_amount_is_credit_and_less_buys_nothing(ledger: &dyn LedgerStore) {
    for number in [1, 2] {
        sell(ledger, number, calls(1)).await;
    }
    note(ledger, heard(1, settled(TEST_TOKEN_MSAT + 5), 1), START).await;
    let paid = note(ledger, heard(2, settled(TEST_TOKEN_MSAT - 1), 2), START).await;
    assert_eq!(paid, [], "it buys nothing");
    assert_eq!(drawn(ledger, draw(1, 1, START)).await, "granted, 0 left");
    assert_eq!(drawn(ledger, draw(2, 2, START)).await, "underpaid", "though the payer has the preimage");
    let owed = PaymentFilter { credit: Some(CreditIs::Owed), ..PaymentFilter::default() };
    let owed = ledger.list(&owed).await.expect("listed");
    let credit: Vec<_> = owed.iter().map(|p| (p.credit, p.amount.units, p.delivery, p.reason.as_deref())).collect();
    let (asked, less) = (u128::from(TEST_TOKEN_MSAT), u128::from(TEST_TOKEN_MSAT - 1));
    let expected = [(less, less, Delivery::Credited, Some("underpaid")), (5, asked, Delivery::Pending, None)];
    assert_eq!(credit, expected);
    for payment in owed {
        let credits = ledger.credits(&payment.payer).await.expect("summed");
        assert_eq!(credits.iter().map(|amount| amount.units).collect::<Vec<_>>(), [payment.credit]);
    }
    assert_eq!(token(ledger, 2).await.state, InvoiceState::Underpaid);
    note(ledger, heard(2, InvoiceNews::Expired, 3), START).await;
    assert_eq!(token(ledger, 2).await.state, InvoiceState::Underpaid);
}

async fn more_money_than_was_known_is_more_credit_or_buys_after_all(ledger: &dyn LedgerStore) {
    sell(ledger, 1, calls(1)).await;
    assert_eq!(drawn(ledger, draw(1, 1, START)).await, "granted, 0 left");
    end(ledger, 1, 1, DELIVERED, START).await;
    note(ledger, heard(1, settled(TEST_TOKEN_MSAT + 7), 2), START).await;
    note(ledger, heard(1, settled(TEST_TOKEN_MSAT + 7), 3), START).await;
    note(ledger, heard(1, settled(1), 4), START).await;
    let payment = only_payment(ledger).await;
    assert_eq!((payment.credit, payment.delivery), (7, Delivery::Delivered));
    sell(ledger, 2, calls(1)).await;
    note(ledger, heard(2, settled(1), 5), START).await;
    let paid = note(ledger, heard(2, settled(TEST_TOKEN_MSAT), 6), START).await;
    assert_eq!(paid, [test_pass(2)]);
    let payment = ledger.list(&PaymentFilter { id: token(ledger, 2).await.payment, ..PaymentFilter::default() }).await;
    let payment = payment.expect("listed").remove(0);
    assert_eq!((payment.id, payment.credit, payment.delivery), (payment_id(5, START), 0, Delivery::Pending));
    assert_eq!((payment.amount.units, payment.reason), (u128::from(TEST_TOKEN_MSAT), None));
    assert_eq!(drawn(ledger, draw(2, 2, START)).await, "granted, 0 left");
    let told: Vec<_> = outcomes(ledger).await.into_iter().map(|(outcome, _)| outcome).collect();
    assert_eq!(told, ["settled", "credited", "credited", "settled"]);
}

async fn a_pass_ends_by_its_time_or_by_the_operator(ledger: &dyn LedgerStore) {
    for (number, grant) in [(1, calls(9)), (2, HOUR)] {
        let sold = sell(ledger, number, grant).await;
        let keyed = |id, now| with_key(b"k", draw(number, id, now));
        assert!(drawn(ledger, keyed(number, START)).await.starts_with("granted"));
        end(ledger, number, number, delivered("had"), START).await;
        let last = sold.valid_until.minus(Duration::from_millis(1));
        assert!(drawn(ledger, draw(number, number + 10, last)).await.starts_with("granted"));
        assert_eq!(drawn(ledger, draw(number, number + 20, sold.valid_until)).await, "expired");
        assert_eq!(ledger.revoke(test_pass(number), START).await.expect("revoked"), Some(token(ledger, number).await));
        let revoked = token(ledger, number).await;
        assert_eq!((revoked.sold.root_key, revoked.revoked_at), (None, Some(START)));
        assert_eq!(drawn(ledger, draw(number, number + 30, START)).await, "revoked");
        assert_eq!(drawn(ledger, keyed(number + 40, START)).await, "revoked", "not even an answer that it had");
        ledger.revoke(test_pass(number), sold.valid_until).await.expect("again");
        assert_eq!(token(ledger, number).await.revoked_at, Some(START), "once");
    }
    assert_eq!(ledger.revoke(test_pass(99), START).await.expect("asked"), None);
    // What is paid for a revoked token is in the books all the same.
    sell(ledger, 3, calls(1)).await;
    ledger.revoke(test_pass(3), START).await.expect("revoked");
    assert_eq!(note(ledger, heard(3, settled(TEST_TOKEN_MSAT), 70), START).await, [test_pass(3)]);
    assert_eq!(token(ledger, 3).await.payment, Some(payment_id(70, START)));
    let revocations = outcomes(ledger).await.into_iter().filter(|(outcome, _)| outcome == "revoked").count();
    assert_eq!(revocations, 3);
}

async fn bought_time_is_looked_at_and_not_counted(ledger: &dyn LedgerStore) {
    sell(ledger, 1, HOUR).await;
    for id in 0..3 {
        assert_eq!(drawn(ledger, draw(1, id, START)).await, "granted");
    }
    assert_eq!(only_payment(ledger).await.delivery, Delivery::Pending);
    end(ledger, 1, 0, DrawEnd::Returned, START).await;
    end(ledger, 1, 1, DrawEnd::BrokeOff, START).await;
    assert_eq!(only_payment(ledger).await.delivery, Delivery::Pending);
    end(ledger, 1, 2, DELIVERED, START).await;
    assert_eq!(only_payment(ledger).await.delivery, Delivery::Delivered);
    assert_eq!(token(ledger, 1).await.used, 0);
    let keyed = |id| with_key(b"k", draw(1, id, START));
    assert_eq!(drawn(ledger, keyed(4)).await, "granted");
    assert_eq!(drawn(ledger, keyed(5)).await, "busy");
    assert_eq!(drawn(ledger, draw(1, 6, START)).await, "granted", "others do not wait for it");
    end(ledger, 1, 4, delivered("kept"), START).await;
    assert_eq!(drawn(ledger, keyed(7)).await, "replayed Some(\"kept\")");
}

async fn a_pass_that_was_never_sold_or_is_of_another_invoice_is_unknown(ledger: &dyn LedgerStore) {
    sell(ledger, 1, calls(1)).await;
    assert_eq!(drawn(ledger, draw(2, 1, START)).await, "unknown");
    let stolen = Draw { proved: test_preimage(2).hash(), ..draw(1, 1, START) };
    assert_eq!(drawn(ledger, stolen).await, "unknown");
    assert_eq!(payments(ledger).await, []);
    assert_eq!(ledger.token(test_pass(2)).await.expect("asked"), None);
}

async fn a_token_is_sold_once(ledger: &dyn LedgerStore) {
    let sold = sell(ledger, 1, calls(1)).await;
    ledger.sell(sold.clone()).await.expect("the same again");
    let other = NewToken { pass: test_pass(2), ..sold.clone() };
    ledger.sell(other).await.expect_err("two tokens of one invoice");
    let other = NewToken { grant: HOUR, ..sold.clone() };
    ledger.sell(other).await.expect_err("another token by its name");
    let mut free = test_token(3, calls(1), START);
    free.invoice.amount_msat = 0;
    ledger.sell(free).await.expect_err("an invoice of nothing");
    assert_eq!(drawn(ledger, draw(1, 1, START)).await, "granted, 0 left");
    ledger.sell(sold).await.expect("nothing is sold again");
    assert_eq!(token(ledger, 1).await.used, 1);
    assert_eq!(ledger.tokens(&TokenFilter::default()).await.expect("listed").len(), 1);
}

async fn news_are_noted_with_how_far_they_were_read(ledger: &dyn LedgerStore) {
    for number in [1, 2, 3] {
        sell(ledger, number, calls(1)).await;
    }
    assert_eq!(ledger.news_cursor("node").await.expect("asked"), None);
    let read = |node: &str, cursor: &str| Some(NewsRead { node: node.into(), cursor: NewsCursor(cursor.into()) });
    let news = vec![
        heard(2, settled(TEST_TOKEN_MSAT), 1),
        heard(77, settled(TEST_TOKEN_MSAT), 2),
        heard(1, InvoiceNews::Held, 3),
        heard(3, settled(TEST_TOKEN_MSAT), 4),
    ];
    let paid = ledger.note_news(news, read("node", "17"), START).await.expect("noted");
    assert_eq!(paid, [test_pass(2), test_pass(3)], "others' invoices are passed over");
    assert_eq!(token(ledger, 1).await.state, InvoiceState::Held);
    ledger.note_news(Vec::new(), read("other", "3"), START).await.expect("noted");
    ledger.note_news(Vec::new(), None, START).await.expect("noted");
    assert_eq!(ledger.news_cursor("node").await.expect("asked"), Some(NewsCursor("17".into())));
    // All of it or nothing: the second payment's id is taken.
    sell(ledger, 99, calls(1)).await;
    let clash = vec![heard(1, settled(TEST_TOKEN_MSAT), 5), heard(99, settled(TEST_TOKEN_MSAT), 4)];
    ledger.note_news(clash, read("node", "18"), START).await.expect_err("an id is taken");
    assert_eq!(token(ledger, 1).await.state, InvoiceState::Held);
    assert_eq!(ledger.news_cursor("node").await.expect("asked"), Some(NewsCursor("17".into())));
    assert_eq!(payments(ledger).await.len(), 2);
}

async fn invoices_whose_time_is_over_are_asked_for_until_their_end_is_known(ledger: &dyn LedgerStore) {
    let mut invoices = Vec::new();
    for number in 1..=4 {
        let now = START.plus(Duration::from_secs(10 - number));
        let token = test_token(number, calls(1), now);
        ledger.sell(token.clone()).await.expect("sold");
        invoices.push(token.invoice);
    }
    let elsewhere = NewToken { node: "other".into(), ..test_token(5, calls(1), START) };
    ledger.sell(elsewhere).await.expect("sold");
    note(ledger, heard(2, InvoiceNews::Held, 2), START).await;
    note(ledger, heard(3, settled(TEST_TOKEN_MSAT), 3), START).await;
    let list = async |before, limit| ledger.unsettled_invoices("node", before, limit).await.expect("listed");
    assert_eq!(list(invoices[3].expires_at, 10).await, [], "before, not at");
    let late = START.plus(Duration::from_secs(10_000));
    let [one, two, _, four] = &invoices[..] else { panic!("four were sold") };
    assert_eq!(list(late, 10).await, [four.clone(), two.clone(), one.clone()], "the oldest first");
    assert_eq!(list(late, 2).await, [four.clone(), two.clone()]);
    note(ledger, heard(4, InvoiceNews::Expired, 4), late).await;
    note(ledger, heard(2, InvoiceNews::Cancelled, 2), late).await;
    assert_eq!(list(late, 10).await, std::slice::from_ref(one));
}

async fn invoices_of_other_nodes_are_listed_page_by_page(ledger: &dyn LedgerStore) {
    let mut elsewhere = Vec::new();
    for (number, node) in [(1, "b"), (2, "a"), (3, "b"), (4, "node"), (5, "b"), (6, "a")] {
        let token = NewToken { node: node.into(), ..test_token(number, calls(1), START) };
        ledger.sell(token.clone()).await.expect("sold");
        elsewhere.extend((node != "node" && number < 5).then_some(token.invoice));
    }
    note(ledger, heard(2, InvoiceNews::Held, 2), START).await;
    note(ledger, heard(5, InvoiceNews::Expired, 5), START).await;
    note(ledger, heard(6, settled(TEST_TOKEN_MSAT), 6), START).await;
    let place = |invoice: &Invoice| (invoice.expires_at, invoice.payment_hash);
    elsewhere.sort_by_key(place);
    let list = async |after, limit| ledger.unsettled_elsewhere("node", after, limit).await.expect("listed");
    assert_eq!(list(None, 10).await, elsewhere);
    assert_eq!(list(None, 1).await, elsewhere[..1]);
    assert_eq!(list(Some(place(&elsewhere[0])), 10).await, elsewhere[1..], "those of one time are told apart");
    assert_eq!(list(Some((elsewhere[0].expires_at, PaymentHash([0; 32]))), 10).await, elsewhere);
    assert_eq!(list(Some(place(&elsewhere[2])), 10).await, []);
}

async fn unpaid_tokens_go_some_time_after_their_end_and_paid_ones_stay(ledger: &dyn LedgerStore) {
    for number in 1..=4 {
        sell(ledger, number, calls(1)).await;
    }
    note(ledger, heard(1, InvoiceNews::Expired, 1), START).await;
    note(ledger, heard(2, InvoiceNews::Cancelled, 2), START).await;
    note(ledger, heard(3, settled(1), 3), START).await;
    let kept = Duration::from_secs(7 * 24 * 60 * 60);
    let gone = test_token(1, calls(1), START).invoice.expires_at.plus(kept);
    let numbers = async |now| {
        ledger.note_news(Vec::new(), None, now).await.expect("noted");
        let listed = ledger.tokens(&TokenFilter::default()).await.expect("listed");
        listed.into_iter().map(|token| token.sold.pass).collect::<Vec<_>>()
    };
    assert_eq!(numbers(gone.minus(Duration::from_millis(1))).await.len(), 4);
    // One that nobody knows the end of may have been paid.
    assert_eq!(numbers(gone).await, [test_pass(4), test_pass(3)]);
}

async fn each_sale_takes_more_unpaid_tokens_away_than_it_adds(ledger: &dyn LedgerStore) {
    for number in 1..=3 {
        sell(ledger, number, calls(1)).await;
        note(ledger, heard(number, InvoiceNews::Expired, 1), START).await;
    }
    let week = START.plus(Duration::from_secs(8 * 24 * 60 * 60));
    ledger.sell(test_token(4, calls(1), week)).await.expect("sold");
    let left = ledger.tokens(&TokenFilter::default()).await.expect("listed");
    assert_eq!(left.into_iter().map(|token| token.sold.pass).collect::<Vec<_>>(), [test_pass(4)]);
}

async fn what_a_stranger_asked_for_is_kept_in_short(ledger: &dyn LedgerStore) {
    let long = NewToken { resource: format!("/{}", "q".repeat(30_000)), ..test_token(1, calls(1), START) };
    ledger.sell(long.clone()).await.expect("sold");
    ledger.sell(long.clone()).await.expect("the same again");
    let stored = token(ledger, 1).await.sold.resource;
    assert!(stored.starts_with(&long.resource[..SOLD_RESOURCE_BYTES_MAX]), "{stored}");
    assert!(stored.len() < SOLD_RESOURCE_BYTES_MAX + 100, "{} bytes", stored.len());
    assert_eq!(drawn(ledger, draw(1, 1, START)).await, "granted, 0 left");
    assert_eq!(only_payment(ledger).await.binding.resource, stored);
}

async fn tokens_are_listed_newest_first_and_pages_meet(ledger: &dyn LedgerStore) {
    for number in 1..=5 {
        sell(ledger, number, calls(1)).await;
    }
    note(ledger, heard(3, settled(TEST_TOKEN_MSAT), 3), START).await;
    note(ledger, heard(4, settled(1), 4), START).await;
    let list = async |filter: TokenFilter| {
        let listed = ledger.tokens(&filter).await.expect("listed");
        listed.into_iter().map(|token| token.sold.pass).collect::<Vec<_>>()
    };
    let passes = |numbers: &[u64]| numbers.iter().map(|number| test_pass(*number)).collect::<Vec<_>>();
    let any = TokenFilter::default;
    assert_eq!(list(any()).await, passes(&[5, 4, 3, 2, 1]));
    assert_eq!(list(TokenFilter { limit: 2, ..any() }).await, passes(&[5, 4]));
    assert_eq!(list(TokenFilter { limit: 2, before: Some(test_pass(4)), ..any() }).await, passes(&[3, 2]));
    assert_eq!(list(TokenFilter { before: Some(test_pass(1)), ..any() }).await, []);
    assert_eq!(list(TokenFilter { route: Some(route(1)), ..any() }).await, passes(&[5, 3, 1]));
    assert_eq!(list(TokenFilter { paid: Some(true), ..any() }).await, passes(&[3]));
    assert_eq!(list(TokenFilter { paid: Some(false), route: Some(route(0)), ..any() }).await, passes(&[4, 2]));
    assert_eq!(list(TokenFilter { pass: Some(test_pass(2)), ..any() }).await, passes(&[2]));
    let nowhere = TokenFilter { before: Some(test_pass(9)), ..any() };
    ledger.tokens(&nowhere).await.expect_err("a page after nothing is not the last one");
}

async fn a_payment_without_a_block_disturbs_nobody(ledger: &dyn LedgerStore) {
    sell(ledger, 1, calls(1)).await;
    assert_eq!(drawn(ledger, draw(1, 1, START)).await, "granted, 0 left");
    let network = BitcoinNetwork::Regtest.network();
    assert_eq!(ledger.settled_blocks(&network, 0, 10).await.expect("listed"), []);
    let block = farebox_core::BlockRef { number: 0, hash: [0; 32] };
    assert_eq!(ledger.settled_in(&network, &block, 10).await.expect("listed"), []);
    assert_eq!(ledger.unresolved(START.plus(LEASE * 2), 10).await.expect("listed"), []);
    assert_eq!(ledger.marked_payers(10).await.expect("listed"), []);
    let on_network = PaymentFilter { network: Some(network), ..PaymentFilter::default() };
    assert_eq!(ledger.list(&on_network).await.expect("listed").len(), 1);
    let payer = PaymentFilter { payer: Some(test_pass(1).to_string()), ..PaymentFilter::default() };
    assert_eq!(ledger.list(&payer).await.expect("listed").len(), 1);
    let payment = only_payment(ledger).await;
    assert_eq!(ledger.find_proof(&payment.proof).await.expect("asked"), Some(payment));
}

async fn a_process_keeps_its_own_draws_past_their_lease(ledger: &dyn LedgerStore) {
    sell(ledger, 1, calls(1)).await;
    assert_eq!(drawn(ledger, draw(1, 1, START)).await, "granted, 0 left");
    // A stream that is held for days has not ended, and its caller has had most of it.
    assert_eq!(drawn(ledger, draw(1, 2, START.plus(LEASE * 2))).await, "busy");
    end(ledger, 1, 1, DELIVERED, START.plus(LEASE * 2)).await;
    assert_eq!(drawn(ledger, draw(1, 3, START.plus(LEASE * 2))).await, "spent");
    assert_eq!(outcomes(ledger).await, [("settled".into(), 1)]);
}

async fn a_draw_whose_lease_is_over_is_returned_when_another_process_wants_its_call(ledger: &dyn LedgerStore) {
    sell(ledger, 1, calls(1)).await;
    let dead = |draw| Draw { holder: instance(9), ..draw };
    assert_eq!(drawn(ledger, dead(with_key(b"k", draw(1, 1, START)))).await, "granted, 0 left");
    let lapsed = START.plus(LEASE);
    assert_eq!(drawn(ledger, draw(1, 2, lapsed.minus(Duration::from_millis(1)))).await, "busy");
    assert_eq!(drawn(ledger, with_key(b"k", draw(1, 3, lapsed))).await, "granted, 0 left");
    end(ledger, 1, 1, DELIVERED, lapsed).await;
    assert_eq!(only_payment(ledger).await.delivery, Delivery::Pending, "it came back and is over");
    end(ledger, 1, 3, DELIVERED, lapsed).await;
    assert_eq!(drawn(ledger, draw(1, 4, lapsed.plus(LEASE))).await, "spent");
    assert_eq!(outcomes(ledger).await, [("settled".into(), 1), ("released".into(), 1)]);
}

async fn a_restart_returns_what_the_dead_had_drawn<B: Books>(books: &B) {
    let first = books.open(instance(0), ANSWERS_KEPT_FOR, START);
    sell(&*first, 1, calls(5)).await;
    sell(&*first, 2, calls(1)).await;
    for id in 1..=3 {
        drawn(&*first, draw(1, id, START)).await;
    }
    end(&*first, 1, 1, DELIVERED, START).await;
    drawn(&*first, with_key(b"k", draw(2, 4, START))).await;
    first
        .note_news(Vec::new(), Some(NewsRead { node: "node".into(), cursor: NewsCursor("5".into()) }), START)
        .await
        .expect("noted");
    drop(first);
    let second = books.open(instance(1), ANSWERS_KEPT_FOR, START);
    let second = &*second;
    assert_eq!(token(second, 1).await.used, 1, "what was delivered is");
    assert_eq!(second.news_cursor("node").await.expect("asked"), Some(NewsCursor("5".into())));
    let mine = |draw: Draw| Draw { holder: instance(1), ..draw };
    assert_eq!(drawn(second, mine(with_key(b"k", draw(2, 5, START)))).await, "granted, 0 left");
    end(second, 2, 4, DELIVERED, START).await;
    assert_eq!(drawn(second, mine(draw(2, 6, START))).await, "busy", "the draw of the dead ends nothing");
    let told = outcomes(second).await;
    assert_eq!(told[2..], [("released".into(), 2), ("released".into(), 1)]);
}

async fn the_log_has_a_line_for_a_payment_and_none_for_a_call(ledger: &dyn LedgerStore) {
    sell(ledger, 1, calls(9)).await;
    for id in 1..=9 {
        drawn(ledger, draw(1, id, START)).await;
        end(ledger, 1, id, DELIVERED, START).await;
    }
    sell(ledger, 2, calls(1)).await;
    note(ledger, heard(2, settled(3), 20), START).await;
    ledger.revoke(test_pass(1), START).await.expect("revoked");
    let lines = ledger.audit_lines(0, 100).await.expect("read");
    let told = [AuditOutcome::Settled, AuditOutcome::Credited, AuditOutcome::Revoked];
    assert_eq!(lines.len(), told.len(), "{lines:?}");
    let payment: PaymentId = token(ledger, 1).await.payment.expect("paid");
    for (line, outcome) in lines.iter().zip(told) {
        let line: serde_json::Value = serde_json::from_str(&line.text).expect("JSON");
        assert_eq!(line["outcome"], serde_json::to_value(outcome).expect("a name"));
        assert_eq!(line["rail"], "l402");
    }
    assert!(lines[2].text.contains(&payment.to_string()), "{lines:?}");
    farebox_core::verify_audit(None, lines).expect("a chain");
}
