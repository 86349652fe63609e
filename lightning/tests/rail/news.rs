//! What becomes of invoices ends in the books, whoever was down meanwhile and whatever the node says twice.

use std::{sync::Arc, time::Duration};

use farebox_core::{
    BitcoinNetwork, Delivery, InvoiceNews, InvoiceState, PaymentHash,
    ports::{Clock as _, InvoiceStatus, NewsCursor, TokenBill, TokenBooks as _},
};
use farebox_lightning::L402;
use farebox_testkit::Fault;
use proptest::prelude::*;
use tokio::task::JoinHandle;

use crate::{
    node::{Look, NODE_ID, Tell},
    shop::{Route, Shop},
};

const S: Duration = Duration::from_secs(1);

fn route() -> Route {
    Route::of("GET /x")
}

/// Runs the follower until it is dropped.
pub(crate) struct Following(JoinHandle<()>);

impl Following {
    pub(crate) fn of(rail: &Arc<L402>) -> Self {
        Self(tokio::spawn(rail.clone().follow()))
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Waits for something that the follower does, ten minutes of virtual time at most.
#[track_caller]
pub(crate) fn until(reached: impl Fn() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        for _ in 0..60_000 {
            if reached() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not reached: {caller}");
    }
}

async fn open_bills<const N: usize>(shop: &Shop) -> [Arc<TokenBill>; N] {
    let mut bills = Vec::new();
    for host in 0..N {
        let address = format!("10.{}.{}.1", host / 256, host % 256);
        bills.push(shop.ask(&address, &route(), "/x").await.unwrap());
        shop.clock.advance(Duration::from_millis(60));
    }
    bills.try_into().unwrap()
}

fn state(shop: &Shop, bill: &TokenBill) -> InvoiceState {
    shop.in_books(bill.pass).state
}

async fn cursor(shop: &Shop) -> Option<NewsCursor> {
    match shop.books.news_cursor(NODE_ID).await {
        Ok(cursor) => cursor,
        // A planned fault that nobody had yet.
        Err(_) => shop.books.news_cursor(NODE_ID).await.unwrap(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_paid_invoice_is_learnt_without_anybody_showing_its_token() {
    let shop = Shop::open();
    let _following = Following::of(&shop.rail);
    let bill = shop.bill(&route()).await;
    shop.node.pay(&bill.invoice);
    until(|| shop.payment(bill.pass).is_some()).await;
    let payment = shop.payment(bill.pass).unwrap();
    assert_eq!((payment.amount.units, payment.credit, payment.delivery), (10_000, 0, Delivery::Pending));
    assert_ne!(shop.bill(&route()).await, bill, "who asks again is shown another");
}

#[tokio::test(start_paused = true)]
async fn over_and_underpaid_invoices_end_in_the_books() {
    let shop = Shop::open();
    let _following = Following::of(&shop.rail);
    let [over, under] = open_bills(&shop).await;
    shop.node.happen(over.invoice.payment_hash, InvoiceNews::Settled { received_msat: 15_000 });
    shop.node.happen(under.invoice.payment_hash, InvoiceNews::Settled { received_msat: 1 });
    until(|| shop.payment(over.pass).is_some() && shop.payment(under.pass).is_some()).await;
    assert_eq!((state(&shop, &over), shop.payment(over.pass).unwrap().credit), (InvoiceState::Settled, 5_000));
    assert_eq!((state(&shop, &under), shop.payment(under.pass).unwrap().credit), (InvoiceState::Underpaid, 1));
    let asked_again = shop.ask("10.0.1.1", &route(), "/x").await.unwrap();
    assert_ne!(asked_again, under);
}

#[tokio::test(start_paused = true)]
async fn what_happened_while_the_gateway_was_down_is_learnt() {
    let shop = Shop::open();
    let [before, meanwhile] = open_bills(&shop).await;
    let following = Following::of(&shop.rail);
    shop.node.pay(&before.invoice);
    until(|| shop.payment(before.pass).is_some()).await;
    drop(following);
    shop.node.pay(&meanwhile.invoice);
    let next = shop.restarted();
    let _following = Following::of(&next.rail);
    until(|| next.payment(meanwhile.pass).is_some()).await;
    assert_eq!(cursor(&next).await, Some(NewsCursor("2".to_owned())));
    assert!(shop.node.reads().iter().skip(1).all(|read| read.as_deref() != Some("0")));
    assert!(shop.node.reads().contains(&Some("1".to_owned())), "the news were read on from where they were left");
}

#[tokio::test(start_paused = true)]
async fn what_happened_while_the_node_was_away_is_learnt() {
    let shop = Shop::open();
    let [bill] = open_bills(&shop).await;
    let _following = Following::of(&shop.rail);
    until(|| !shop.node.reads().is_empty()).await;
    shop.node.go_down();
    until(|| shop.rail.node_trouble().is_some()).await;
    shop.node.pay(&bill.invoice);
    tokio::time::sleep(600 * S).await;
    let reads = shop.node.reads().len();
    assert!(shop.payment(bill.pass).is_none());
    tokio::time::sleep(600 * S).await;
    assert!(shop.node.reads().len() - reads <= 41, "it is not asked more often than every 15 s or so");
    shop.node.come_up();
    until(|| shop.payment(bill.pass).is_some()).await;
    assert_eq!(shop.rail.node_trouble(), None);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_hangs_is_asked_again() {
    let shop = Shop::open();
    let [bill] = open_bills(&shop).await;
    shop.node.tell(Tell::Hang);
    let _following = Following::of(&shop.rail);
    until(|| shop.rail.node_trouble().is_some()).await;
    shop.node.tell(Tell::Once);
    shop.node.pay(&bill.invoice);
    until(|| shop.payment(bill.pass).is_some()).await;
}

#[tokio::test(start_paused = true)]
async fn news_that_are_told_for_ever_change_nothing_and_keep_nobody_busy() {
    for tell in [Tell::Everything, Tell::OneBehind] {
        let shop = Shop::open();
        let [one, two] = open_bills(&shop).await;
        shop.node.tell(tell);
        shop.node.pay(&one.invoice);
        shop.node.happen(two.invoice.payment_hash, InvoiceNews::Settled { received_msat: 11_000 });
        let _following = Following::of(&shop.rail);
        until(|| shop.payment(two.pass).is_some()).await;
        let (payments, lines, reads) = (shop.books.payments(), shop.books.audit_log(), shop.node.reads().len());
        tokio::time::sleep(60 * S).await;
        assert!(shop.node.reads().len() - reads <= 61, "{tell:?}: {}", shop.node.reads().len());
        assert_eq!((shop.books.payments(), shop.books.audit_log()), (payments, lines), "{tell:?}");
        assert_eq!(shop.books.payments().len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn news_of_invoices_that_are_not_ours_are_passed_over() {
    let shop = Shop::open();
    let [bill] = open_bills(&shop).await;
    shop.node.happen(PaymentHash([9; 32]), InvoiceNews::Settled { received_msat: 1 });
    let _following = Following::of(&shop.rail);
    until(|| !shop.node.reads().is_empty()).await;
    tokio::time::sleep(5 * S).await;
    assert_eq!((shop.books.payments(), cursor(&shop).await), (vec![], Some(NewsCursor("1".to_owned()))));
    assert_eq!(state(&shop, &bill), InvoiceState::Open);
}

#[tokio::test(start_paused = true)]
async fn more_news_than_fit_into_one_commit_are_all_noted() {
    let shop = Shop::with(|config| config.unpaid_per_minute = 60_000);
    let bills = open_bills::<501>(&shop).await;
    for bill in &bills {
        shop.node.pay(&bill.invoice);
    }
    let _following = Following::of(&shop.rail);
    until(|| shop.books.payments().len() == 501).await;
    until(|| bills.iter().all(|bill| state(&shop, bill) == InvoiceState::Settled)).await;
}

#[tokio::test(start_paused = true)]
async fn news_that_the_books_did_not_take_are_read_again() {
    for fault in [Fault::FailBefore, Fault::FailAfter] {
        for nth in 0..6 {
            let shop = Shop::open();
            let [bill] = open_bills(&shop).await;
            shop.node.pay(&bill.invoice);
            shop.books.plan(nth, fault);
            let _following = Following::of(&shop.rail);
            until(|| shop.payment(bill.pass).is_some()).await;
            tokio::time::sleep(120 * S).await;
            assert_eq!((shop.books.payments().len(), cursor(&shop).await), (1, Some(NewsCursor("1".to_owned()))));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn invoices_whose_time_is_over_are_asked_for() {
    let shop = Shop::open();
    let bills: [Arc<TokenBill>; 6] = open_bills(&shop).await;
    let [expired, cancelled, held, paid, open, unknown] = &bills;
    for (bill, news) in [
        (expired, InvoiceNews::Expired),
        (cancelled, InvoiceNews::Cancelled),
        (held, InvoiceNews::Held),
        (paid, InvoiceNews::Settled { received_msat: 10_000 }),
    ] {
        shop.node.become_quietly(bill.invoice.payment_hash, InvoiceStatus::News(news));
    }
    let _following = Following::of(&shop.rail);
    tokio::time::sleep(90 * S).await;
    assert_eq!(shop.node.looks(), 0, "their time is not over");
    shop.clock.advance(640 * S);
    until(|| state(&shop, paid) == InvoiceState::Settled).await;
    assert_eq!(state(&shop, expired), InvoiceState::Expired);
    assert_eq!(state(&shop, cancelled), InvoiceState::Cancelled);
    assert_eq!(state(&shop, held), InvoiceState::Held);
    assert_eq!((state(&shop, open), state(&shop, unknown)), (InvoiceState::Open, InvoiceState::Open));
    // What is held is asked for until it ends; what the node forgot to end is ended.
    shop.clock.advance(3_600 * S);
    until(|| state(&shop, open) == InvoiceState::Expired).await;
    shop.node
        .become_quietly(held.invoice.payment_hash, InvoiceStatus::News(InvoiceNews::Settled { received_msat: 10_000 }));
    until(|| state(&shop, held) == InvoiceState::Settled).await;
    assert_eq!(shop.books.payments().len(), 2);
    let asked = shop.node.looks();
    tokio::time::sleep(600 * S).await;
    assert_eq!(shop.node.looks(), asked, "nothing is left to ask for");
}

#[tokio::test(start_paused = true)]
async fn an_invoice_that_the_node_denies_is_over_and_late_money_counts_all_the_same() {
    let shop = Shop::open();
    let [bill] = open_bills(&shop).await;
    shop.node.look(Look::Deny);
    let _following = Following::of(&shop.rail);
    shop.clock.advance(640 * S);
    until(|| state(&shop, &bill) == InvoiceState::Expired).await;
    shop.node.pay(&bill.invoice);
    until(|| state(&shop, &bill) == InvoiceState::Settled).await;
    assert_eq!(shop.payment(bill.pass).unwrap().amount.units, 10_000);
}

#[tokio::test(start_paused = true)]
async fn invoices_that_do_not_end_do_not_keep_others_from_ending() {
    let shop = Shop::with(|config| config.unpaid_per_minute = 60_000);
    let bills = open_bills::<190>(&shop).await;
    let (held, over) = bills.split_at(120);
    for bill in held {
        shop.node.become_quietly(bill.invoice.payment_hash, InvoiceStatus::News(InvoiceNews::Held));
    }
    for bill in over {
        shop.node.become_quietly(bill.invoice.payment_hash, InvoiceStatus::News(InvoiceNews::Expired));
    }
    shop.clock.advance(700 * S);
    let _following = Following::of(&shop.rail);
    until(|| over.iter().all(|bill| state(&shop, bill) == InvoiceState::Expired)).await;
    assert!(held.iter().all(|bill| state(&shop, bill) == InvoiceState::Held));
}

#[tokio::test(start_paused = true)]
async fn a_sweep_that_is_refused_or_cut_short_goes_on() {
    let shop = Shop::open();
    let [one, two] = open_bills(&shop).await;
    for bill in [&one, &two] {
        shop.node.become_quietly(bill.invoice.payment_hash, InvoiceStatus::News(InvoiceNews::Expired));
    }
    shop.clock.advance(700 * S);
    shop.node.look(Look::Refuse);
    let _following = Following::of(&shop.rail);
    until(|| shop.node.looks() >= 2).await;
    assert_eq!(state(&shop, &one), InvoiceState::Open);
    shop.node.look(Look::Hang);
    tokio::time::sleep(200 * S).await;
    assert_eq!(state(&shop, &one), InvoiceState::Open);
    shop.node.look(Look::Honest);
    until(|| state(&shop, &two) == InvoiceState::Expired).await;
}

#[tokio::test(start_paused = true)]
async fn a_wallet_that_tells_no_news_is_asked_for_each_invoice_in_the_end() {
    let shop = Shop::open();
    let [bill] = open_bills(&shop).await;
    shop.node.tell(Tell::Refuse);
    shop.node.pay(&bill.invoice);
    let _following = Following::of(&shop.rail);
    tokio::time::sleep(90 * S).await;
    assert!(shop.payment(bill.pass).is_none());
    shop.clock.advance(640 * S);
    until(|| shop.payment(bill.pass).is_some()).await;
}

#[tokio::test(start_paused = true)]
async fn another_nodes_news_are_read_from_their_beginning() {
    let shop = Shop::open();
    let [bill] = open_bills(&shop).await;
    let following = Following::of(&shop.rail);
    shop.node.pay(&bill.invoice);
    until(|| shop.payment(bill.pass).is_some()).await;
    drop(following);
    shop.node.become_another("03", BitcoinNetwork::Regtest);
    let next = shop.restarted();
    let before = shop.node.reads().len();
    let _following = Following::of(&next.rail);
    until(|| shop.node.reads().len() > before).await;
    assert_eq!(shop.node.reads()[before], None);
    assert_eq!(next.books.payments().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_is_asked_for_the_invoices_of_the_one_before_it() {
    let shop = Shop::with(|config| config.unpaid_per_minute = 60_000);
    let bills = open_bills::<150>(&shop).await;
    let [lost @ .., expired, held, paid] = &bills;
    for bill in lost {
        shop.node.forget(bill.invoice.payment_hash);
    }
    let become_news = |bill: &TokenBill, news| {
        shop.node.become_quietly(bill.invoice.payment_hash, InvoiceStatus::News(news));
    };
    become_news(expired, InvoiceNews::Expired);
    become_news(held, InvoiceNews::Held);
    become_news(paid, InvoiceNews::Settled { received_msat: 10_000 });
    shop.node.become_another("03", BitcoinNetwork::Regtest);
    shop.clock.advance(7_200 * S);
    let next = shop.restarted();
    let _following = Following::of(&next.rail);
    until(|| next.payment(paid.pass).is_some()).await;
    until(|| next.rail.unknown_of_other_nodes() == 147).await;
    assert_eq!((state(&next, expired), state(&next, held)), (InvoiceState::Expired, InvoiceState::Held));
    assert!(lost.iter().all(|bill| state(&next, bill) == InvoiceState::Open), "it cannot know that they were not paid");
    let asked = shop.node.looks();
    tokio::time::sleep(3_000 * S).await;
    assert_eq!(shop.node.looks(), asked, "not before an hour is over");
    become_news(held, InvoiceNews::Settled { received_msat: 10_000 });
    tokio::time::sleep(700 * S).await;
    assert_eq!((shop.node.looks(), state(&next, held)), (asked + 148, InvoiceState::Settled));
}

#[tokio::test(start_paused = true)]
async fn an_invoice_that_the_new_node_cannot_be_asked_for_keeps_no_other_from_it() {
    let shop = Shop::open();
    let [first, second] = open_bills(&shop).await;
    shop.node.become_quietly(
        second.invoice.payment_hash,
        InvoiceStatus::News(InvoiceNews::Settled { received_msat: 10_000 }),
    );
    shop.node.become_another("03", BitcoinNetwork::Regtest);
    shop.node.look(Look::Hang);
    let next = shop.restarted();
    let _following = Following::of(&next.rail);
    until(|| shop.node.looks() == 1).await;
    tokio::time::sleep(5 * S).await;
    shop.node.look(Look::Honest);
    until(|| next.payment(second.pass).is_some()).await;
    assert_eq!(state(&next, &first), InvoiceState::Open);
}

/// One thing that happens.
#[derive(Clone, Copy, Debug)]
enum Event {
    News(usize, InvoiceNews),
    Quietly(usize, InvoiceNews),
    Restart,
    Down,
    Up,
    Fault(u64, Fault),
    Tell(Tell),
    Time(u64),
    Wait(u64),
}

fn any_news() -> impl Strategy<Value = InvoiceNews> {
    prop_oneof![
        Just(InvoiceNews::Held),
        (1u64..30_000).prop_map(|received_msat| InvoiceNews::Settled { received_msat }),
        Just(InvoiceNews::Expired),
        Just(InvoiceNews::Cancelled),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    let fault = prop_oneof![Just(Fault::FailBefore), Just(Fault::FailAfter)];
    let tell = prop_oneof![Just(Tell::Once), Just(Tell::Everything), Just(Tell::OneBehind), Just(Tell::Hang)];
    prop_oneof![
        4 => (0..4usize, any_news()).prop_map(|(bill, news)| Event::News(bill, news)),
        2 => (0..4usize, any_news()).prop_map(|(bill, news)| Event::Quietly(bill, news)),
        1 => Just(Event::Restart),
        1 => Just(Event::Down),
        1 => Just(Event::Up),
        1 => (0..10u64, fault).prop_map(|(nth, fault)| Event::Fault(nth, fault)),
        1 => tell.prop_map(Event::Tell),
        1 => (0..900u64).prop_map(Event::Time),
        2 => (0..90u64).prop_map(Event::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever fails on the way, in the end the books say of each invoice at least what the node says of it, and each payment is there once,
    /// over what came.
    #[test]
    fn the_books_end_where_the_node_is(events in prop::collection::vec(any_event(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(the_end_of(events));
    }
}

async fn the_end_of(events: Vec<Event>) {
    let mut shop = Shop::open();
    let bills: [Arc<TokenBill>; 4] = open_bills(&shop).await;
    let mut received = [0u64; 4];
    let mut ended = [false; 4];
    let mut following = Following::of(&shop.rail);
    for event in events {
        match event {
            Event::News(bill, news) | Event::Quietly(bill, news) => {
                // An invoice is paid once, and nothing becomes of it afterwards. A node may say late that an invoice is paid which it had
                // called over; but then it says so, and not only when asked.
                let over = ended[bill] || shop.clock.now() > bills[bill].invoice.expires_at;
                if received[bill] > 0 || over && matches!(event, Event::Quietly(..)) {
                    continue;
                }
                ended[bill] |= matches!(news, InvoiceNews::Expired | InvoiceNews::Cancelled);
                let hash = bills[bill].invoice.payment_hash;
                if let InvoiceNews::Settled { received_msat } = news {
                    received[bill] = received_msat;
                }
                match event {
                    Event::News(..) => shop.node.happen(hash, news),
                    _ => shop.node.become_quietly(hash, InvoiceStatus::News(news)),
                }
            }
            Event::Restart => {
                drop(following);
                shop = shop.restarted();
                following = Following::of(&shop.rail);
            }
            Event::Down => shop.node.go_down(),
            Event::Up => shop.node.come_up(),
            Event::Fault(nth, fault) => shop.books.plan(nth, fault),
            Event::Tell(tell) => shop.node.tell(tell),
            Event::Time(s) => shop.clock.advance(Duration::from_secs(s)),
            Event::Wait(s) => tokio::time::sleep(Duration::from_secs(s)).await,
        }
    }
    shop.node.come_up();
    shop.node.tell(Tell::Once);
    shop.clock.advance(640 * S);
    tokio::time::sleep(600 * S).await;
    for (bill, received) in bills.iter().zip(received) {
        let token = shop.in_books(bill.pass);
        let payment = shop.payment(bill.pass);
        match received {
            0 => assert!(payment.is_none(), "{token:?}"),
            _ => {
                let payment = payment.unwrap_or_else(|| panic!("{received} came for {token:?}"));
                let asked = u64::min(received, 10_000);
                let credit = if received < 10_000 { received } else { received - 10_000 };
                assert_eq!((payment.amount.units, payment.credit), (asked.into(), credit.into()));
                assert_eq!(token.state == InvoiceState::Settled, received >= 10_000);
            }
        }
    }
    let paid = received.iter().filter(|received| **received > 0).count();
    assert_eq!(shop.books.payments().len(), paid);
}
