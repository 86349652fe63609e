//! The lines of a 402 that ask for a Lightning payment, and its body: ours, and others'.

use farebox_core::{Invoice, PassId, RailName, Refusal, Timestamp, UnavailableRail, ports::TokenBill};
use farebox_wire::{
    PresentedCredential, Tokens, credentials,
    l402::{
        CHALLENGES_MAX, L402Challenge, L402Scheme, authorization, challenges, encode_challenge, grpc_refusal, is_grpc,
    },
    problem::problem_json,
};
use http::{
    HeaderMap, HeaderValue,
    header::{CONTENT_TYPE, WWW_AUTHENTICATE},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{
    fixtures::two_offers,
    macaroons::{PREIMAGE, VECTOR, identifier, vector},
};

const INVOICE: &str = "lnbcrt100n1pj";

/// 10,001 msat for the test vector's macaroon.
pub(crate) fn bill() -> TokenBill {
    TokenBill {
        pass: identifier().pass(),
        macaroon: VECTOR.into(),
        invoice: Invoice {
            payment_hash: PREIMAGE.hash(),
            bolt11: INVOICE.into(),
            amount_msat: 10_001,
            created_at: Timestamp::from_unix_s(1_800_000_000),
            expires_at: Timestamp::from_unix_s(1_800_000_600),
        },
    }
}

fn read(lines: &[&str]) -> Vec<L402Challenge> {
    let line = |line: &&str| (WWW_AUTHENTICATE, HeaderValue::from_bytes(line.as_bytes()).unwrap());
    let mut headers = HeaderMap::new();
    lines.iter().map(line).for_each(|(name, value)| {
        headers.append(name, value);
    });
    challenges(&headers)
}

/// That the lines hold one challenge, for macaroon `m` and invoice `i`.
fn check(lines: &[&str]) {
    let read = read(lines);
    let shown: Vec<_> = read.iter().map(|one| (one.macaroon_b64.as_str(), one.invoice.as_str())).collect();
    assert_eq!(shown, [("m", "i")], "{lines:?}");
}

#[test]
fn the_lines_are_those_that_every_client_reads() {
    let [(first_name, first), (second_name, second)] = encode_challenge(&bill());
    assert_eq!((first_name, second_name), (WWW_AUTHENTICATE, WWW_AUTHENTICATE));
    assert_eq!(first, format!("LSAT macaroon=\"{VECTOR}\", invoice=\"{INVOICE}\""));
    let token = format!("L402 macaroon=\"{VECTOR}\", invoice=\"{INVOICE}\", version=\"0\", token=\"{VECTOR}\"");
    assert_eq!(second, token);
}

#[test]
fn our_own_lines_are_one_challenge_that_can_be_redeemed() {
    let mut headers = HeaderMap::new();
    for (name, value) in encode_challenge(&bill()) {
        headers.append(name, value);
    }
    let read = challenges(&headers);
    let [L402Challenge { scheme: L402Scheme::L402, macaroon_b64, macaroon: Some(macaroon), invoice }] = &read[..]
    else {
        panic!("{read:?}")
    };
    assert_eq!((macaroon, invoice.as_str()), (&vector(), INVOICE));
    let (name, value) = authorization(L402Scheme::L402, macaroon_b64, &PREIMAGE).unwrap();
    assert!(value.is_sensitive());
    let sent = HeaderMap::from_iter([(name, value)]);
    let Ok(Some(PresentedCredential::Token(token))) = credentials(&sent, Tokens::Taken) else { panic!("not redeemed") };
    assert_eq!((token.macaroon, token.preimage), (vector(), PREIMAGE));
}

#[test]
fn every_form_that_sellers_write_is_read() {
    check(&[r#"L402 macaroon="m", invoice="i""#]);
    check(&[r#"LSAT macaroon="m", invoice="i""#]);
    check(&[r#"l402 Macaroon="m",invoice="i""#]);
    check(&[r#"L402 invoice="i", macaroon="m""#]);
    check(&["L402 macaroon=m, invoice=i"]);
    check(&["L402 macaroon='m', invoice='i'"]);
    check(&[r#"L402 macaroon = "m" , invoice = "i""#]);
    check(&[r#"L402 version="0", token="m", invoice="i""#]);
    check(&[r#"L402 macaroon="m", invoice="i", version="0", token="m""#]);
    check(&[r#"LSAT macaroon="m", invoice="i", L402 macaroon="m", invoice="i""#]);
    check(&[r#"LSAT macaroon="m", invoice="i""#, r#"L402 macaroon="m", invoice="i""#]);
    check(&[r#"Payment id="a, b", invoice="x", L402 macaroon="m", invoice="i""#]);
    check(&[r#"L402 macaroon="m", invoice="i", Payment id="a", macaroon="x""#]);
    check(&[r#"Negotiate, Basic realm="L402 \" macaroon=", L402 macaroon="m", invoice="i", Negotiate dG9rZW4="#]);
    check(&[r#"L402 macaroon="\m", invoice="i""#]);
    check(&["", ",,", r#"L402   macaroon="m",, invoice="i","#]);
    assert_eq!(read(&[r#"LSAT macaroon="m", invoice="i""#])[0].scheme, L402Scheme::Lsat);
    assert_eq!(read(&[r#"L402 token="AgE=", invoice="i""#])[0].macaroon_b64, "AgE=");
    assert_eq!(read(&["L402 token=AgE==, invoice=i"])[0].macaroon_b64, "AgE==");
}

#[test]
fn what_cannot_be_paid_or_sent_back_is_passed_over() {
    for line in [
        r#"L402 macaroon="m""#,
        r#"L402 invoice="i""#,
        r#"L402 macaroon="", invoice="i""#,
        r#"L402 macaroon="m:n", invoice="i""#,
        r#"L402 macaroon="m,n", invoice="i""#,
        r#"L402 macaroon="m n", invoice="i""#,
        r#"L402x macaroon="m", invoice="i""#,
        r#"Payment macaroon="m", invoice="i""#,
        r#"Bearer realm="L402 macaroon='m', invoice='i'""#,
        "L402",
        "macaroon=m, invoice=i",
    ] {
        assert_eq!(read(&[line]), [], "{line}");
    }
    let many: Vec<String> = (0..200).map(|n| format!("L402 macaroon=m{n}, invoice=i")).collect();
    assert_eq!(read(&[&many.join(", ")]).len(), CHALLENGES_MAX);
    assert_eq!(read(&[&format!("L402 macaroon={}, invoice=i", "m".repeat(20_000))]), []);
}

#[test]
fn macaroons_of_others_are_kept_as_they_came() {
    let read = read(&["L402 macaroon=AGIAJEemVQUTEyNCR0exk7ek90Cg, invoice=i, LSAT macaroon=not*base64, invoice=j"]);
    assert_eq!(read.len(), 2);
    assert!(read.iter().all(|one| one.macaroon.is_none()));
    assert!(authorization(L402Scheme::Lsat, "m\r\nX: y", &PREIMAGE).is_err());
    assert!(!format!("{read:?}").contains("AGIA"), "a macaroon is a secret");
}

#[test]
fn the_body_says_what_is_to_be_paid() {
    let mut challenge = two_offers();
    let body = |challenge: &farebox_core::Challenge| -> Value {
        serde_json::from_slice(&problem_json(&challenge.refusal, Some(challenge), None)).unwrap()
    };
    let without = body(&challenge);
    for member in ["invoice", "macaroon", "amountSats", "priceSats", "unavailable"] {
        assert!(without.get(member).is_none(), "{member}");
    }
    challenge.token = Some(bill().into());
    let with = body(&challenge);
    assert_eq!(with["invoice"], INVOICE);
    assert_eq!(with["macaroon"], VECTOR);
    // Rounded up: a payer who holds it against a budget pays no more.
    assert_eq!((&with["amountSats"], &with["priceSats"]), (&json!(11), &json!(11)));
    challenge.token = None;
    let detail = "the Lightning node does not answer".to_owned();
    challenge.unavailable.push(UnavailableRail { rail: RailName::L402, code: "node_unavailable".into(), detail });
    let expected =
        json!([{"rail": "l402", "code": "node_unavailable", "detail": "the Lightning node does not answer"}]);
    assert_eq!(body(&challenge)["unavailable"], expected);
}

#[test]
fn grpc_clients_are_asked_to_pay_by_status_13_and_by_nothing_else() {
    let paying = grpc_refusal(&Refusal::payment("payment_required", "pay"), Some(&bill()));
    assert_eq!(
        (&paying["grpc-status"], &paying["grpc-message"]),
        (&"13".parse().unwrap(), &"payment required".parse().unwrap())
    );
    assert_eq!(paying["content-type"], "application/grpc");
    assert_eq!(paying.get_all(WWW_AUTHENTICATE).iter().count(), 2);
    for (refusal, status) in [
        (Refusal::payment("payment_required", "payment required"), "9"),
        (Refusal::new(400, "malformed_l402_token", "ü\r\n%"), "3"),
        (Refusal::new(404, "no_route", ""), "12"),
        (Refusal::new(429, "too_many", ""), "8"),
        (Refusal::new(503, "node_unavailable", ""), "14"),
    ] {
        let told = grpc_refusal(&refusal, Some(&bill()).filter(|_| refusal.status != 402));
        assert_eq!(told["grpc-status"], status);
        assert!(!told.contains_key(WWW_AUTHENTICATE), "some clients pay whatever status it comes with");
    }
    let told = grpc_refusal(&Refusal::new(400, "malformed_l402_token", "ü\r\n%"), None);
    assert_eq!(told["grpc-message"], "malformed_l402_token: %C3%BC%0D%0A%25");
}

#[test]
fn grpc_is_known_by_its_content_type() {
    let is = |value: &str| is_grpc(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_str(value).unwrap())]));
    for grpc in ["application/grpc", "application/grpc+proto", "Application/gRPC; charset=utf-8"] {
        assert!(is(grpc), "{grpc}");
    }
    for other in ["application/grpc-web", "application/grpcx", "application/json", ""] {
        assert!(!is(other), "{other}");
    }
    assert!(!is_grpc(&HeaderMap::new()));
}

#[test]
fn a_pass_is_the_digest_of_the_identifier() {
    let pass: PassId = identifier().pass();
    assert_eq!(pass, PassId(<sha2::Sha256 as sha2::Digest>::digest(vector().identifier).into()));
}

proptest! {
    #[test]
    fn no_line_is_read_as_more_than_it_can_be(
        line in "((L402|LSAT|Payment|Basic)?[ ,]?(macaroon|token|invoice|realm)?[ =,\"'\\\\]{0,3}[a-z ]{0,3}){0,12}",
    ) {
        for one in read(&[&line]) {
            prop_assert!(!one.macaroon_b64.is_empty() && !one.invoice.is_empty());
            let (name, value) = authorization(one.scheme, &one.macaroon_b64, &PREIMAGE).unwrap();
            let again = format!("L402 macaroon=\"{}\", invoice=\"{}\"", one.macaroon_b64, one.invoice);
            prop_assert_eq!(name.as_str(), "authorization");
            prop_assert!(value.to_str().unwrap().ends_with(&PREIMAGE.reveal()));
            if !again.contains('\\') && again.matches('"').count() == 4 {
                prop_assert_eq!(&read(&[&again])[0].macaroon_b64, &one.macaroon_b64);
            }
        }
    }
}
