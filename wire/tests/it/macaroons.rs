//! Macaroons, identifiers and caveats.

use std::{num::NonZeroU32, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use farebox_core::{
    Grant, L402Token, Macaroon, Preimage, RootKey, RouteId, Timestamp, TokenScope, TokenTerms, ports::TokenRequest,
};
use farebox_wire::l402::{
    CAVEATS_MAX, Identifier, MACAROON_BYTES_MAX, MacaroonError, SERVICE_CHARS_MAX, add_caveat, caveats,
    decode_macaroon, encode_macaroon, judge, mint, service_name, verify_signature,
};
use proptest::prelude::*;

/// Confirmed against the Go macaroon library.
pub(crate) const VECTOR: &str = "AgEEbHNhdAJCAAAC1EmjH7smfI81Lplop54+X8lcG76qUC/WRU695aS+3CIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiIiAAITc2VydmljZXM9c2VydmljZTE6MAACFnNlcnZpY2UxX2NhcGFiaWxpdGllcz0AAh9zZXJ2aWNlMV92YWxpZF91bnRpbD0xOTAwMDAwMDAwAAAGIKfivR+kTj5n21KaGgkq2jwH5UDwkwRww14HBDgBGdcy";

pub(crate) const PREIMAGE: Preimage = Preimage([0x11; 32]);

fn root_key() -> RootKey {
    RootKey::new(std::array::from_fn(|at| at as u8))
}

fn terms(service: &str) -> TokenTerms {
    TokenTerms {
        grant: Grant::Calls(NonZeroU32::MIN),
        price: "10 sat".parse().unwrap(),
        service: service.into(),
        tier: 0,
        scope: TokenScope::Route,
        valid_for: Duration::from_secs(3600),
    }
}

const NOW: Timestamp = Timestamp::from_unix_s(1_800_000_000);

fn request<'a>(terms: &'a TokenTerms) -> TokenRequest<'a> {
    TokenRequest { terms, method: "GET", resource: "/v1/x?q=1", now: NOW }
}

pub(crate) fn identifier() -> Identifier {
    Identifier { payment_hash: PREIMAGE.hash(), token_id: [0x22; 32] }
}

pub(crate) fn vector() -> Macaroon {
    let terms = terms("service1");
    mint(&root_key(), &identifier().encode(), caveats(&request(&terms), Timestamp::from_unix_s(1_900_000_000)))
}

fn token(macaroon: &Macaroon) -> L402Token {
    L402Token { macaroon: macaroon.clone(), preimage: PREIMAGE }
}

/// What `judge` says of the vector's token with more caveats, for GET /v1/x?q=1 of service1: a code, or `good`.
fn check(more: &[&str], expected: &str) {
    let terms = terms("service1");
    check_with(&request(&terms), more, expected);
}

fn check_with(request: &TokenRequest<'_>, more: &[&str], expected: &str) {
    let macaroon = more.iter().fold(vector(), |macaroon, caveat| add_caveat(&macaroon, caveat));
    assert!(verify_signature(&root_key(), &macaroon), "attenuating needs no root key");
    let said = judge(&token(&macaroon), request).map_or_else(|problem| problem.code(), |()| "good");
    assert_eq!(said, expected, "{more:?}");
}

#[test]
fn the_byte_vector_of_the_go_library_is_ours() {
    let bytes = STANDARD.decode(VECTOR).unwrap();
    assert_eq!(encode_macaroon(&vector()), bytes);
    let read = decode_macaroon(&bytes).unwrap();
    assert_eq!(read, vector());
    assert!(verify_signature(&root_key(), &read));
    assert!(!verify_signature(&RootKey::new([0; 32]), &read));
    assert_eq!(Identifier::decode(&read.identifier), Ok(identifier()));
}

#[test]
fn a_macaroon_cut_at_any_byte_or_with_bytes_after_it_is_refused() {
    let bytes = STANDARD.decode(VECTOR).unwrap();
    for at in 0..bytes.len() {
        assert!(decode_macaroon(&bytes[..at]).is_err(), "cut at {at}");
        let mut longer = bytes.clone();
        longer.insert(at, 0);
        assert!(decode_macaroon(&longer).map_or(true, |read| !verify_signature(&root_key(), &read)), "longer at {at}");
    }
    let trailing = [&bytes[..], &[0]].concat();
    assert_eq!(decode_macaroon(&trailing), Err(MacaroonError::Trailing { count: 1 }));
}

#[test]
fn no_bit_of_a_macaroon_but_its_locations_can_be_changed() {
    let bytes = STANDARD.decode(VECTOR).unwrap();
    let location = 3..7;
    for bit in 0..bytes.len() * 8 {
        let mut wrong = bytes.clone();
        wrong[bit / 8] ^= 1 << (bit % 8);
        let good = decode_macaroon(&wrong).is_ok_and(|read| verify_signature(&root_key(), &read));
        assert_eq!(good, location.contains(&(bit / 8)), "bit {bit}");
    }
}

#[test]
fn what_is_too_much_is_not_read() {
    let with = |count: usize| Macaroon { caveats: vec!["a=b".to_owned(); count], ..vector() };
    assert!(decode_macaroon(&encode_macaroon(&with(CAVEATS_MAX))).is_ok());
    for count in [CAVEATS_MAX + 1, 600] {
        assert_eq!(decode_macaroon(&encode_macaroon(&with(count))), Err(MacaroonError::TooManyCaveats), "{count}");
    }
    // 10,000 caveats, and a megabyte.
    for huge in [encode_macaroon(&with(10_000)), vec![2; 1 << 20]] {
        assert_eq!(decode_macaroon(&huge), Err(MacaroonError::TooLong { found: huge.len() }));
    }
    let long = |bytes: usize| Macaroon { caveats: vec!["x".repeat(bytes)], ..vector() };
    let head = encode_macaroon(&long(3000)).len() - 3000;
    assert!(decode_macaroon(&encode_macaroon(&long(MACAROON_BYTES_MAX - head))).is_ok());
    assert!(decode_macaroon(&encode_macaroon(&long(MACAROON_BYTES_MAX - head + 1))).is_err());
}

#[test]
fn other_forms_of_macaroons_say_what_they_are() {
    let field = |number: u8, content: &[u8]| [&[number, content.len() as u8][..], content].concat();
    let signature = field(6, &[7; 32]);
    let bytes = |parts: &[&[u8]]| parts.concat();
    for (bytes, expected) in [
        (b"0021location lsat\n".to_vec(), "macaroon_version"),
        (b"{\"v\":2}".to_vec(), "macaroon_version"),
        (vec![], "macaroon_cut_off"),
        (bytes(&[&[2], &field(1, b"lsat"), &[0], &[0], &signature]), "macaroon_field"),
        (bytes(&[&[2], &field(2, b"id"), &field(1, b"lsat"), &[0, 0], &signature]), "macaroon_field"),
        (
            bytes(&[&[2], &field(2, b"id"), &[0], &field(2, b"a=b"), &field(4, b"v"), &[0, 0], &signature]),
            "macaroon_third_party",
        ),
        (
            bytes(&[
                &[2],
                &field(2, b"id"),
                &[0],
                &field(1, b"there"),
                &field(2, b"a"),
                &field(4, b"v"),
                &[0, 0],
                &signature,
            ]),
            "macaroon_third_party",
        ),
        (bytes(&[&[2], &field(2, b"id"), &[0], &field(2, b"\xff"), &[0, 0], &signature]), "macaroon_caveat_not_text"),
        (bytes(&[&[2], &field(2, b"id"), &[0, 0], &field(6, &[7; 31])]), "macaroon_signature_length"),
        (bytes(&[&[2, 2, 0x82, 0x00], b"id", &[0, 0], &signature]), "macaroon_length_form"),
        (bytes(&[&[2, 2, 0xff, 0xff, 0xff, 0xff, 0x0f], b"id", &[0, 0], &signature]), "macaroon_length_form"),
    ] {
        assert_eq!(decode_macaroon(&bytes).unwrap_err().code(), expected, "{bytes:?}");
    }
    let without_location = bytes(&[&[2], &field(2, b"id"), &[0, 0], &signature]);
    assert_eq!(decode_macaroon(&without_location).unwrap().identifier, b"id");
}

#[test]
fn identifiers_are_66_bytes_of_version_0() {
    let bytes = identifier().encode();
    assert!(Identifier::decode(&bytes[..65]).is_err());
    assert!(Identifier::decode(&[&bytes[..], &[0]].concat()).is_err());
    assert!(Identifier::decode(&[&[0, 1], &bytes[2..]].concat()).is_err());
    assert_ne!(identifier().pass(), Identifier { token_id: [0x23; 32], ..identifier() }.pass());
}

#[test]
fn caveats_of_holders_only_narrow() {
    check(&[], "good");
    check(&["services=service1:0"], "good");
    check(&["service1_capabilities="], "good");
    check(&["service1_valid_until=1800000001", "service1_valid_until=1800000001"], "good");
    check(&["services=service1:0,service2:0"], "token_caveat_widens");
    check(&["services=service2:0"], "token_caveat_widens");
    check(&["services=service1:1"], "token_caveat_widens");
    check(&["service1_valid_until=1900000001"], "token_caveat_widens");
    check(&["service1_valid_until=1800000001", "service1_valid_until=1800000002"], "token_caveat_widens");
    check(&["service1_capabilities=read"], "token_other_capability");
    check(&["service1_method=GET"], "good");
    check(&["service1_method=POST"], "token_other_method");
    check(&["service1_method=get"], "token_other_method");
}

#[test]
fn a_token_ends_at_its_second() {
    check(&["service1_valid_until=1800000001"], "good");
    check(&["service1_valid_until=1800000000"], "token_expired");
    check(&["service1_valid_until=0"], "token_expired");
    for wrong in ["", "-1", "+1800000001", "01800000001", "1800000001 ", "1.8e9", "99999999999999999999999"] {
        check(&[&format!("service1_valid_until={wrong}")], "token_caveat_malformed");
    }
}

#[test]
fn unknown_conditions_are_refused() {
    for unknown in [
        "tier=0",
        "service2_valid_until=1900000000",
        "service1valid_until=1900000000",
        "service1_=",
        " services=service1:0",
        "Services=service1:0",
        "services",
        "",
        "=",
        "service1_valid_until =1900000000",
    ] {
        check(&[unknown], "token_caveat_unknown");
    }
    for wrong in [
        "services=",
        "services=service1",
        "services=service1:0,",
        "services=service1:256",
        "services=service1:00",
        "services=:0",
    ] {
        check(&[wrong], "token_caveat_malformed");
    }
}

#[test]
fn a_token_of_another_route_or_tier_is_not_this_ones() {
    let (other, dearer) = (terms("service2"), TokenTerms { tier: 1, ..terms("service1") });
    check_with(&request(&other), &[], "token_other_route");
    check_with(&request(&dearer), &[], "token_other_tier");
    let bare = mint(&root_key(), &identifier().encode(), vec![]);
    assert_eq!(judge(&token(&bare), &request(&other)).unwrap_err().code(), "token_other_route");
}

#[test]
fn a_token_of_one_request_is_good_for_that_alone() {
    let terms = TokenTerms { scope: TokenScope::Request, ..terms("a%2Fb") };
    let sold = request(&terms);
    let minted = mint(&root_key(), &identifier().encode(), caveats(&sold, NOW.plus(Duration::from_secs(60))));
    let said = |request: &TokenRequest<'_>| judge(&token(&minted), request).map_err(|problem| problem.code());
    assert_eq!(said(&sold), Ok(()));
    assert_eq!(said(&TokenRequest { method: "POST", ..sold }), Err("token_other_method"));
    for resource in ["/v1/x", "/v1/x?q=2", "/v1/x?q=1&", "/v1/y?q=1", ""] {
        assert_eq!(said(&TokenRequest { resource, ..sold }), Err("token_other_path"), "{resource}");
    }
    assert_eq!(minted.caveats.len(), 5);
}

#[test]
fn a_preimage_caveat_names_the_preimage_that_came() {
    check(&[&format!("preimage={}", PREIMAGE.reveal())], "good");
    check(&[&format!("preimage={}", "12".repeat(32))], "token_other_preimage");
    check(&["preimage=11"], "token_caveat_malformed");
}

#[test]
fn no_path_writes_itself_a_right() {
    let evil = "GET /x:0,expensive=1\r\n%41é";
    let name = service_name(&RouteId::new(evil));
    assert_eq!(&*name, "GET%20%2Fx%3A0%2Cexpensive%3D1%0D%0A%2541%C3%A9");
    let terms = terms(&name);
    let cheap = mint(&root_key(), &identifier().encode(), caveats(&request(&terms), NOW.plus(Duration::from_secs(60))));
    assert!(judge(&token(&cheap), &request(&terms)).is_ok());
    let expensive = self::terms("expensive");
    assert_eq!(judge(&token(&cheap), &request(&expensive)).unwrap_err().code(), "token_other_route");
}

#[test]
fn long_and_empty_routes_have_names_of_their_own() {
    let long = |last: char| format!("GET /{}{last}", "é/".repeat(300));
    let [a, b, none] = [long('a'), long('b'), String::new()].map(|route| service_name(&RouteId::new(route)));
    assert_eq!((a.len(), b.len()), (SERVICE_CHARS_MAX, SERVICE_CHARS_MAX));
    assert!(a != b && !none.is_empty());
    // A route cannot be called as the shortened form of another: its percent sign is encoded.
    assert_ne!(service_name(&RouteId::new(a.to_string())), a);
}

proptest! {
    #[test]
    fn one_macaroon_has_one_spelling(bytes in any_macaroon_bytes()) {
        if let Ok(read) = decode_macaroon(&bytes) {
            prop_assert_eq!(encode_macaroon(&read), bytes);
        }
    }

    #[test]
    fn what_is_written_is_read(
        identifier in proptest::collection::vec(any::<u8>(), 0..300),
        caveats in proptest::collection::vec(".{0,40}", 0..20),
        signature in any::<[u8; 32]>(),
    ) {
        let macaroon = Macaroon { identifier, caveats, signature };
        prop_assert_eq!(decode_macaroon(&encode_macaroon(&macaroon)), Ok(macaroon));
    }

    #[test]
    fn no_caveat_of_a_holder_makes_a_token_good_for_more(more in proptest::collection::vec(any_caveat(), 0..4)) {
        let narrowed = more.iter().fold(vector(), |macaroon, caveat| add_caveat(&macaroon, caveat));
        for (service, tier) in [("service1", 0), ("service1", 1), ("service2", 0), ("x", 0)] {
            let terms = TokenTerms { tier, ..terms(service) };
            let request = request(&terms);
            let allowed = judge(&token(&vector()), &request).is_ok();
            prop_assert!(allowed || judge(&token(&narrowed), &request).is_err());
        }
    }

    #[test]
    fn names_of_services_are_safe_and_differ(a in ".{0,200}", b in ".{0,200}") {
        let [name, other] = [&a, &b].map(|route| service_name(&RouteId::new(route.as_str())));
        prop_assert!((1..=SERVICE_CHARS_MAX).contains(&name.len()));
        prop_assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.%-".contains(&b)));
        prop_assert_eq!(a == b, name == other);
    }
}

/// The vector with its location and some of its bytes changed.
fn any_macaroon_bytes() -> impl Strategy<Value = Vec<u8>> {
    let bytes = STANDARD.decode(VECTOR).unwrap();
    (proptest::collection::vec((7..bytes.len(), any::<u8>()), 0..3)).prop_map(move |changes| {
        let mut changed = bytes.clone();
        changes.into_iter().for_each(|(at, byte)| changed[at] = byte);
        changed
    })
}

fn any_caveat() -> impl Strategy<Value = String> {
    prop_oneof![
        "(services|service1_(capabilities|method|path|valid_until)|preimage)=(service[12]:[01],?){0,2}",
        "services=(service[12]|x):[0-2](,(service[12]|x):[0-2])?",
        "service[12]_valid_until=[0-9]{1,12}",
        ".{0,30}",
    ]
}
