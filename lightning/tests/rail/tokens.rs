//! Tokens that come back.

use std::{num::NonZeroU32, time::Duration};

use farebox_core::{
    Drawn, Grant, InvoiceNews, InvoiceState, L402Token,
    ports::{InvoiceStatus, TokenBooks as _, TokenError},
};
use farebox_testkit::Fault;
use farebox_wire::l402::add_caveat;

use crate::{
    node::Look,
    shop::{Route, Shop, rejected},
};

const S: Duration = Duration::from_secs(1);

fn route() -> Route {
    Route::of("GET /x")
}

#[tokio::test]
async fn a_paid_token_is_good_and_makes_its_payment_at_the_first_draw() {
    let shop = Shop::open();
    let bill = shop.bill(&route()).await;
    let token =
        L402Token { macaroon: crate::shop::macaroon(&bill), preimage: shop.node.preimage(bill.invoice.payment_hash) };
    let held = shop.check(&token, &route()).await.unwrap();
    assert_eq!((held.pass, held.payment_hash), (bill.pass, bill.invoice.payment_hash));
    assert!(shop.payment(bill.pass).is_none(), "a check books nothing");
    assert!(matches!(shop.draw(held, 1).await, Drawn::Granted(_)));
    assert_eq!(shop.payment(bill.pass).unwrap().amount.units, 10_000);
    assert_eq!(shop.node.looks(), 0, "nobody asked the node");
}

#[tokio::test]
async fn a_holder_may_narrow_a_token_and_pass_it_on() {
    let shop = Shop::open();
    let token = shop.token(&route()).await;
    let narrowed = L402Token { macaroon: add_caveat(&token.macaroon, "GET%20%2Fx_path=00"), ..token.clone() };
    assert_eq!(rejected(shop.check(&narrowed, &route()).await), "token_caveat_malformed");
    let until = format!("GET%20%2Fx_valid_until={}", crate::shop::START.unix_s() + 10);
    let narrowed = L402Token { macaroon: add_caveat(&token.macaroon, &until), ..token.clone() };
    assert!(shop.check(&narrowed, &route()).await.is_ok());
    shop.clock.advance(10 * S);
    assert_eq!(rejected(shop.check(&narrowed, &route()).await), "token_expired");
    assert!(shop.check(&token, &route()).await.is_ok(), "the whole one is still good");
}

#[tokio::test]
async fn a_preimage_in_a_caveat_is_as_good_as_beside_it_and_no_other_is() {
    let shop = Shop::open();
    let token = shop.token(&route()).await;
    let with = |caveat: &str| L402Token { macaroon: add_caveat(&token.macaroon, caveat), ..token.clone() };
    assert!(shop.check(&with(&format!("preimage={}", token.preimage.reveal())), &route()).await.is_ok());
    let other = format!("preimage={}", "22".repeat(32));
    assert_eq!(rejected(shop.check(&with(&other), &route()).await), "token_other_preimage");
}

#[tokio::test]
async fn the_books_are_asked_for_a_root_key_once() {
    let shop = Shop::open();
    let token = shop.token(&route()).await;
    shop.check(&token, &route()).await.unwrap();
    let asked = shop.books.operations();
    for _ in 0..100 {
        shop.check(&token, &route()).await.unwrap();
    }
    assert_eq!(shop.books.operations(), asked);
}

#[tokio::test]
async fn a_token_that_another_process_revoked_ends_at_once() {
    let route = route().granting(Grant::For(3_600 * S));
    let shop = Shop::open();
    let token = shop.token(&route).await;
    let held = shop.check(&token, &route).await.unwrap();
    assert!(matches!(shop.draw(held, 1).await, Drawn::Granted(_)));
    shop.books.revoke(held.pass, crate::shop::START).await.unwrap();
    // The key may still be at hand: the books decide.
    let held = shop.check(&token, &route).await.unwrap();
    assert!(matches!(shop.draw(held, 2).await, Drawn::Revoked));
    shop.clock.advance(300 * S);
    assert_eq!(rejected(shop.check(&token, &route).await), "token_revoked", "and its key does not outlive it for long");
    assert_eq!(rejected(shop.restarted().check(&token, &route).await), "token_revoked");
}

#[tokio::test]
async fn books_that_do_not_answer_are_never_a_no() {
    let shop = Shop::open();
    let token = shop.token(&route()).await;
    shop.books.plan(0, Fault::FailBefore);
    assert!(matches!(shop.check(&token, &route()).await, Err(TokenError::Unavailable { .. })));
    assert!(shop.check(&token, &route()).await.is_ok());
}

#[tokio::test]
async fn a_token_outlives_the_process_and_the_node_that_sold_it() {
    let shop = Shop::open();
    let token = shop.token(&route()).await;
    shop.node.go_down();
    let next = shop.restarted();
    let held = next.check(&token, &route()).await.unwrap();
    assert!(matches!(next.draw(held, 1).await, Drawn::Granted(_)));
}

#[tokio::test]
async fn a_token_ends_with_its_time() {
    let shop = Shop::open();
    let token = shop.token(&route()).await;
    shop.clock.advance(4_199 * S);
    assert!(shop.check(&token, &route()).await.is_ok());
    shop.clock.advance(S);
    assert_eq!(rejected(shop.check(&token, &route()).await), "token_expired");
}

#[tokio::test]
async fn calls_are_counted_by_the_books() {
    let route = route().granting(Grant::Calls(NonZeroU32::new(3).unwrap()));
    let shop = Shop::open();
    let token = shop.token(&route).await;
    for number in 1..=3 {
        let held = shop.check(&token, &route).await.unwrap();
        let Drawn::Granted(permit) = shop.draw(held, number).await else { panic!("call {number}") };
        shop.books
            .end_draw(permit.pass(), permit.id(), farebox_core::DrawEnd::Delivered { answer: None }, crate::shop::START)
            .await
            .unwrap();
    }
    let held = shop.check(&token, &route).await.unwrap();
    assert!(matches!(shop.draw(held, 4).await, Drawn::Spent));
}

#[tokio::test]
async fn a_strict_seller_asks_the_node_once_and_remembers() {
    let shop = Shop::strict();
    let bill = shop.bill(&route()).await;
    let preimage = shop.node.preimage(bill.invoice.payment_hash);
    let token = L402Token { macaroon: crate::shop::macaroon(&bill), preimage };
    assert!(matches!(shop.check(&token, &route()).await, Err(TokenError::Unsettled)), "nobody has paid");
    shop.node.become_quietly(bill.invoice.payment_hash, InvoiceStatus::News(InvoiceNews::Held));
    assert!(matches!(shop.check(&token, &route()).await, Err(TokenError::Unsettled)), "it is not ours yet");
    shop.node
        .become_quietly(bill.invoice.payment_hash, InvoiceStatus::News(InvoiceNews::Settled { received_msat: 12_000 }));
    shop.check(&token, &route()).await.unwrap();
    assert_eq!(shop.payment(bill.pass).unwrap().credit, 2_000, "what came over is credit");
    let asked = shop.node.looks();
    shop.node.go_down();
    assert!(shop.check(&token, &route()).await.is_ok());
    assert!(shop.restarted().check(&token, &route()).await.is_ok(), "the books remember too");
    assert_eq!((shop.node.looks(), asked), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_strict_seller_whose_node_is_silent_says_neither_yes_nor_no() {
    let shop = Shop::strict();
    let token = shop.token(&route()).await;
    for look in [Look::Hang, Look::Deny, Look::Refuse] {
        shop.node.look(look);
        let asked = tokio::time::Instant::now();
        assert!(matches!(shop.check(&token, &route()).await, Err(TokenError::Unavailable { .. })), "{look:?}");
        assert!(asked.elapsed() <= shop.config.node_timeout);
    }
    shop.node.look(Look::Honest);
    shop.node.go_down();
    assert!(matches!(shop.check(&token, &route()).await, Err(TokenError::Unavailable { .. })));
    shop.node.come_up();
    assert!(shop.check(&token, &route()).await.is_ok());
}

#[tokio::test]
async fn a_strict_seller_takes_no_invoice_that_ended_unpaid() {
    for (news, code, state) in [
        (InvoiceNews::Expired, "invoice_expired", InvoiceState::Expired),
        (InvoiceNews::Cancelled, "invoice_cancelled", InvoiceState::Cancelled),
    ] {
        let shop = Shop::strict();
        let bill = shop.bill(&route()).await;
        let token = shop.buy(&bill);
        shop.node.become_quietly(bill.invoice.payment_hash, InvoiceStatus::News(news));
        assert_eq!(rejected(shop.check(&token, &route()).await), code);
        assert_eq!(shop.in_books(bill.pass).state, state);
        assert!(shop.payment(bill.pass).is_none());
    }
}

#[tokio::test]
async fn what_was_underpaid_buys_nothing_and_is_owed() {
    let shop = Shop::strict();
    let bill = shop.bill(&route()).await;
    let token = shop.buy(&bill);
    let less = InvoiceNews::Settled { received_msat: 9_999 };
    shop.node.become_quietly(bill.invoice.payment_hash, InvoiceStatus::News(less));
    let held = shop.check(&token, &route()).await.unwrap();
    assert!(matches!(shop.draw(held, 1).await, Drawn::Underpaid));
    assert_eq!(shop.payment(bill.pass).unwrap().credit, 9_999);
}

#[tokio::test]
async fn a_strict_seller_books_before_it_believes() {
    let shop = Shop::strict();
    let token = shop.token(&route()).await;
    shop.books.plan(1, Fault::FailBefore);
    assert!(matches!(shop.check(&token, &route()).await, Err(TokenError::Unavailable { .. })));
    assert!(shop.check(&token, &route()).await.is_ok());
}
