//! What somebody may try with a token that he has, or with one that he makes.

use std::{num::NonZeroU32, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use farebox_core::{Drawn, Grant, L402Token, Macaroon, PaymentHash, Preimage, RootKey, RouteId};
use farebox_wire::{
    CredentialError, PresentedCredential, Tokens, credentials,
    l402::{Identifier, add_caveat, caveats, encode_macaroon, mint, service_name},
};
use proptest::prelude::*;

use crate::shop::{Route, Shop, macaroon, rejected};

fn route() -> Route {
    Route::of("GET /x")
}

/// A shop and a good token of its route.
async fn sold() -> (Shop, L402Token) {
    let shop = Shop::open();
    let token = shop.token(&route()).await;
    (shop, token)
}

fn with_macaroon(token: &L402Token, change: impl FnOnce(&mut Macaroon)) -> L402Token {
    let mut macaroon = token.macaroon.clone();
    change(&mut macaroon);
    L402Token { macaroon, preimage: token.preimage }
}

/// As it comes over the wire.
fn sent(macaroon: &str, preimage: &str) -> Result<Option<PresentedCredential>, CredentialError> {
    let mut headers = http::HeaderMap::new();
    headers.insert(http::header::AUTHORIZATION, format!("L402 {macaroon}:{preimage}").parse().unwrap());
    credentials(&headers, Tokens::Taken)
}

#[tokio::test]
async fn a_caveat_that_is_dropped_moved_or_changed_breaks_the_signature() {
    let (shop, token) = sold().await;
    let count = token.macaroon.caveats.len();
    let mut changed = Vec::new();
    for at in 0..count {
        changed.push(with_macaroon(&token, |macaroon| drop(macaroon.caveats.remove(at))));
        changed.push(with_macaroon(&token, |macaroon| macaroon.caveats.swap(at, (at + 1) % count)));
        changed.push(with_macaroon(&token, |macaroon| macaroon.caveats[at].push('0')));
        changed.push(with_macaroon(&token, |macaroon| macaroon.caveats.insert(at, macaroon.caveats[at].clone())));
    }
    changed.push(with_macaroon(&token, |macaroon| macaroon.caveats.clear()));
    changed.push(with_macaroon(&token, |macaroon| macaroon.caveats.push("services=GET%20%2Fx:0".to_owned())));
    for token in changed {
        assert_eq!(rejected(shop.check(&token, &route()).await), "token_signature", "{:?}", token.macaroon.caveats);
    }
}

#[tokio::test]
async fn a_caveat_that_is_added_can_only_narrow() {
    let (shop, token) = sold().await;
    let check = async |caveat: &str, code: &str| {
        let token = L402Token { macaroon: add_caveat(&token.macaroon, caveat), preimage: token.preimage };
        match code {
            "" => assert!(shop.check(&token, &route()).await.is_ok(), "{caveat}"),
            _ => assert_eq!(rejected(shop.check(&token, &route()).await), code, "{caveat}"),
        }
    };
    check("services=GET%20%2Fx:0", "").await;
    check("GET%20%2Fx_capabilities=", "").await;
    check("services=GET%20%2Fx:0,GET%20%2Fdear:0", "token_caveat_widens").await;
    check("services=GET%20%2Fdear:0", "token_caveat_widens").await;
    check("GET%20%2Fx_valid_until=99999999999", "token_caveat_widens").await;
    check("GET%20%2Fx_capabilities=admin", "token_other_capability").await;
    check("account=7", "token_caveat_unknown").await;
    check("GET%20%2Fdear_valid_until=1", "token_caveat_unknown").await;
    check("", "token_caveat_unknown").await;
}

#[tokio::test]
async fn who_makes_his_own_token_needs_our_root_key() {
    let (shop, token) = sold().await;
    let identifier = token.macaroon.identifier.clone();
    let forged = mint(&RootKey::new([7; 32]), &identifier, token.macaroon.caveats.clone());
    let forged = L402Token { macaroon: forged, preimage: token.preimage };
    assert_eq!(rejected(shop.check(&forged, &route()).await), "token_signature");
    // The signature itself is no root key, nor is another token's.
    let forged = mint(&RootKey::new(token.macaroon.signature), &identifier, token.macaroon.caveats.clone());
    assert_eq!(
        rejected(shop.check(&L402Token { macaroon: forged, ..token.clone() }, &route()).await),
        "token_signature"
    );
    let other = shop.token(&Route::of("GET /other")).await;
    let swapped = with_macaroon(&token, |macaroon| macaroon.signature = other.macaroon.signature);
    assert_eq!(rejected(shop.check(&swapped, &route()).await), "token_signature");
}

#[tokio::test]
async fn a_preimage_of_another_token_or_of_none_is_refused() {
    let (shop, token) = sold().await;
    let other = shop.token(&Route::of("GET /other")).await;
    for preimage in [other.preimage, Preimage([0; 32]), Preimage(other.preimage.hash().0)] {
        let token = L402Token { preimage, ..token.clone() };
        assert_eq!(rejected(shop.check(&token, &route()).await), "token_other_preimage");
    }
}

#[tokio::test]
async fn an_unpaid_token_is_none_without_its_preimage() {
    let shop = Shop::open();
    let bill = shop.bill(&route()).await;
    let hash_as_preimage = L402Token { macaroon: macaroon(&bill), preimage: Preimage(bill.invoice.payment_hash.0) };
    assert_eq!(rejected(shop.check(&hash_as_preimage, &route()).await), "token_other_preimage");
}

#[tokio::test]
async fn upper_case_hex_is_no_preimage() {
    let (_, token) = sold().await;
    let text = BASE64_STANDARD.encode(encode_macaroon(&token.macaroon));
    let preimage = token.preimage.reveal();
    assert_eq!(sent(&text, &preimage).unwrap(), Some(PresentedCredential::Token(token.clone())));
    let upper = "AB".repeat(32);
    assert!(sent(&text, &upper).is_err());
    assert!(sent(&text, &upper.to_lowercase()).is_ok());
    assert!(sent(&text, &preimage[1..]).is_err());
    assert!(sent(&text, &format!("{preimage}0")).is_err());
}

#[tokio::test]
async fn a_token_id_cannot_be_used_for_another_payment() {
    let (shop, token) = sold().await;
    let bought = Identifier::decode(&token.macaroon.identifier).unwrap();
    let cheap = shop.token(&Route::of("GET /cheap").at("1 msat")).await;
    let cheap_hash = Identifier::decode(&cheap.macaroon.identifier).unwrap().payment_hash;
    // The dear token's id on the cheap invoice: a token that nobody sold.
    let mixed = Identifier { payment_hash: cheap_hash, token_id: bought.token_id };
    let mixed = with_macaroon(&token, |macaroon| macaroon.identifier = mixed.encode().to_vec());
    let mixed = L402Token { preimage: cheap.preimage, ..mixed };
    assert_eq!(rejected(shop.check(&mixed, &route()).await), "token_unknown");
    // And one of his own making.
    let preimage = Preimage([5; 32]);
    let own = Identifier { payment_hash: preimage.hash(), token_id: bought.token_id };
    let own = mint(&RootKey::new([7; 32]), &own.encode(), token.macaroon.caveats.clone());
    assert_eq!(rejected(shop.check(&L402Token { macaroon: own, preimage }, &route()).await), "token_unknown");
}

#[tokio::test]
async fn another_version_or_length_of_identifier_is_no_token_of_ours() {
    let (shop, token) = sold().await;
    let mut others = vec![with_macaroon(&token, |macaroon| macaroon.identifier[1] = 1)];
    others.push(with_macaroon(&token, |macaroon| macaroon.identifier[0] = 1));
    others.push(with_macaroon(&token, |macaroon| macaroon.identifier.push(0)));
    others.push(with_macaroon(&token, |macaroon| macaroon.identifier.truncate(65)));
    others.push(with_macaroon(&token, |macaroon| macaroon.identifier.clear()));
    for other in others {
        assert_eq!(rejected(shop.check(&other, &route()).await), "token_unknown");
    }
}

#[tokio::test]
async fn a_token_of_another_route_tier_method_path_or_gateway_is_refused() {
    let (shop, token) = sold().await;
    assert_eq!(rejected(shop.check(&token, &Route::of("GET /dear")).await), "token_other_route");
    assert_eq!(rejected(shop.check(&token, &Route::of("POST /x")).await), "token_other_route");
    let mut raised = route();
    raised.terms.tier = 1;
    assert_eq!(rejected(shop.check(&token, &raised).await), "token_other_tier");
    assert_eq!(rejected(Shop::open().check(&token, &route()).await), "token_unknown");
    let bound = Route::of("/any").bound();
    let token = shop.token(&bound).await;
    let at = async |method, resource| shop.check_for(&token, &bound, method, resource).await;
    assert!(at("GET", "/x").await.is_ok());
    assert_eq!(rejected(at("POST", "/x").await), "token_other_method");
    for resource in ["/y", "/x?", "/x?a=1", "/X", "/x/"] {
        assert_eq!(rejected(at("GET", resource).await), "token_other_path", "{resource}");
    }
}

#[tokio::test]
async fn no_path_writes_a_right_into_a_token() {
    for name in [
        "GET /x:0,GET%20%2Fdear:0",
        "GET /x:0,dear",
        "GET /x_capabilities=admin",
        "GET /x\nservices=dear:0",
        "GET /%2Fdear",
        "services=dear",
        "",
    ] {
        let shop = Shop::open();
        let route = Route::of(name);
        let token = shop.token(&route).await;
        assert!(shop.check(&token, &route).await.is_ok(), "{name:?}");
        for dear in ["GET /dear", "dear", "GET /x", "x"] {
            assert_eq!(rejected(shop.check(&token, &Route::of(dear)).await), "token_other_route", "{name:?}");
        }
        assert_eq!(token.macaroon.caveats[0], format!("services={}:0", service_name(&RouteId::new(name))));
        assert_eq!(token.macaroon.caveats[0].matches([':', ',', '\n']).count(), 1, "{name:?}");
    }
}

#[tokio::test]
async fn a_hostile_path_in_a_bound_token_is_a_digest() {
    let shop = Shop::open();
    let bound = Route::of("GET /{any}").bound();
    let resource = "/x,services=dear:0?a=_valid_until=9&preimage=00";
    let bill = shop.ask("192.0.2.1", &bound, resource).await.unwrap();
    let token = shop.buy(&bill);
    assert!(token.macaroon.caveats.iter().all(|caveat| !caveat.contains("dear")));
    assert!(shop.check_for(&token, &bound, "GET", resource).await.is_ok());
}

#[tokio::test]
async fn ten_thousand_caveats_and_a_megabyte_are_refused_before_they_cost_anything() {
    let (shop, token) = sold().await;
    let preimage = token.preimage.reveal();
    let root_key = shop.books.sold_tokens()[0].sold.root_key.clone().unwrap();
    let of = |caveats: usize, bytes: usize| {
        let added = std::iter::repeat_n("x".repeat(bytes), caveats);
        let caveats = token.macaroon.caveats.iter().cloned().chain(added).collect();
        let macaroon = mint(&root_key, &token.macaroon.identifier, caveats);
        sent(&BASE64_STANDARD.encode(encode_macaroon(&macaroon)), &preimage)
    };
    assert!(of(10_000, 1).is_err());
    assert!(of(1, 1 << 20).is_err());
    assert!(of(62, 1).is_err(), "one more than we read");
    // As many as we read are judged, and not believed.
    let Ok(Some(PresentedCredential::Token(most))) = of(61, 1) else { panic!("64 caveats are read") };
    assert_eq!(most.macaroon.caveats.len(), 64);
    assert_eq!(rejected(shop.check(&most, &route()).await), "token_caveat_unknown");
}

#[tokio::test]
async fn a_hundred_uses_at_once_of_a_call_draw_it_once() {
    let (shop, token) = sold().await;
    let next = shop.restarted();
    let mut granted = 0;
    for number in 0..100u8 {
        let gateway = if number % 2 == 0 { &shop } else { &next };
        let held = gateway.check(&token, &route()).await.unwrap();
        granted += u32::from(matches!(gateway.draw(held, number).await, Drawn::Granted(_)));
    }
    assert_eq!(granted, 1);
}

#[tokio::test]
async fn nobody_fills_the_memory_with_tokens_that_nobody_bought() {
    let shop = Shop::open();
    let asked = shop.books.operations();
    for number in 0..50u8 {
        let preimage = Preimage([number; 32]);
        let identifier = Identifier { payment_hash: preimage.hash(), token_id: [number; 32] };
        let macaroon = mint(&RootKey::new([7; 32]), &identifier.encode(), Vec::new());
        assert_eq!(rejected(shop.check(&L402Token { macaroon, preimage }, &route()).await), "token_unknown");
    }
    assert_eq!(shop.books.operations(), asked + 50, "each is a look into the books and nothing more");
    let wrong = L402Token {
        macaroon: mint(
            &RootKey::new([7; 32]),
            &Identifier { payment_hash: PaymentHash([1; 32]), token_id: [2; 32] }.encode(),
            Vec::new(),
        ),
        preimage: Preimage([3; 32]),
    };
    assert_eq!(rejected(shop.check(&wrong, &route()).await), "token_other_preimage");
    assert_eq!(shop.books.operations(), asked + 50, "a wrong preimage not even that");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a holder adds, and whatever anybody changes: what is accepted is a token that we sold, with caveats added to it.
    #[test]
    fn only_what_was_sold_and_narrowed_is_accepted(
        drop_at in prop::option::of(0..3usize),
        added in prop::collection::vec("[a-zA-Z0-9%_=:,]{0,40}", 0..4),
        flip in prop::option::of((0..32usize, 1..=255u8)),
        tier in 0..2u8,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (shop, token) = sold().await;
            let mut macaroon = token.macaroon.clone();
            if let Some(at) = drop_at {
                macaroon.caveats.remove(at);
            }
            if let Some((at, bits)) = flip {
                macaroon.signature[at] ^= bits;
            }
            for caveat in &added {
                macaroon = add_caveat(&macaroon, caveat);
            }
            let mut route = route();
            route.terms.tier = tier;
            let changed = L402Token { macaroon, preimage: token.preimage };
            let good = shop.check(&changed, &route).await.is_ok();
            let untouched = drop_at.is_none() && flip.is_none() && tier == 0;
            assert!(!good || untouched);
            if added.is_empty() {
                assert_eq!(good, untouched);
            }
        });
    }

    /// A token of one route is good for no other, whatever the routes are called.
    #[test]
    fn routes_do_not_share_tokens(one in ".{0,300}", other in ".{0,300}", seconds in 1..1_000u64) {
        prop_assume!(one != other);
        let (one, other) = (Route::of(&one), Route::of(&other));
        let grant = Grant::For(Duration::from_secs(seconds));
        let (one, other) = (one.granting(grant), other.granting(Grant::Calls(NonZeroU32::MIN)));
        let request = |route: &Route| farebox_core::ports::TokenRequest {
            terms: Box::leak(Box::new(route.terms.clone())),
            method: "GET",
            resource: "/",
            now: crate::shop::START,
        };
        let key = RootKey::new([1; 32]);
        let preimage = Preimage([2; 32]);
        let until = crate::shop::START.plus(Duration::from_secs(60));
        let macaroon = mint(&key, b"", caveats(&request(&one), until));
        let token = L402Token { macaroon, preimage };
        prop_assert!(farebox_wire::l402::judge(&token, &request(&one)).is_ok());
        prop_assert!(farebox_wire::l402::judge(&token, &request(&other)).is_err());
    }
}
