//! Bills: ours as written, and strangers' as read.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use farebox_core::{Charged, Refusal, Retry, X402Version};
use farebox_wire::{
    problem::problem_json,
    x402::{
        ACCEPTS_MAX, BILL_BODY_BYTES_MAX, BILL_HEADER_BYTES_MAX, Bill, BillError, SkipReason, decode_payment_required,
        encode_credential, encode_payment_required, payment_required_v1_members,
    },
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::fixtures::{PAY_TO, USDC, challenge, credential, offer, two_offers};

fn from_header(value: &Value) -> Result<Bill, BillError> {
    decode_payment_required(Some(STANDARD.encode(value.to_string()).as_bytes()), None)
}

fn a_bill() -> Value {
    let text = STANDARD.decode(encode_payment_required(&two_offers()).unwrap()).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// A version 2 bill with one requirement, changed at `name`.
fn with(name: &str, value: Value) -> Bill {
    let mut bill = a_bill();
    bill["accepts"].as_array_mut().unwrap().truncate(1);
    bill["accepts"][0][name] = value;
    from_header(&bill).unwrap()
}

fn check_skipped(name: &str, value: Value, said: &str) {
    let bill = with(name, value);
    assert!(bill.requirements.is_empty());
    let shown = bill.skipped[0].to_string();
    assert!(shown.starts_with("accepts[0] ") && shown.contains(said), "{shown}");
}

#[test]
fn the_problem_body_has_every_member_and_the_version_1_terms() {
    let challenge = two_offers();
    let body: Value = serde_json::from_slice(&problem_json(&challenge.refusal, Some(&challenge), None)).unwrap();
    for (name, value) in [
        ("type", json!("urn:farebox:problem:payment_required")),
        ("title", json!("Payment required")),
        ("status", json!(402)),
        ("code", json!("payment_required")),
        ("retry", json!("after_payment")),
        ("charged", json!(false)),
        ("x402Version", json!(1)),
        ("error", json!("payment_required")),
    ] {
        assert_eq!(body[name], value, "{name}");
    }
    let members = payment_required_v1_members(&challenge).unwrap();
    assert_eq!(body["accepts"], members["accepts"]);
    assert_eq!(
        members["accepts"].as_array().unwrap().len(),
        1,
        "strict version 1 clients refuse a bill for one unknown name"
    );
    assert_eq!(members["accepts"][0]["network"], "base-sepolia");
}

#[test]
fn networks_without_a_version_1_name_put_version_2_terms_into_the_body() {
    let challenge = challenge(vec![offer("eip155:31337")]);
    assert!(payment_required_v1_members(&challenge).is_none());
    let body = problem_json(&challenge.refusal, Some(&challenge), None);
    let bill = decode_payment_required(None, Some(&body)).unwrap();
    assert_eq!(bill.version, X402Version::V2);
    assert_eq!(bill.requirements[0].offer, challenge.offers[0]);
}

#[test]
fn a_problem_without_a_bill_says_what_is_known_of_the_charge() {
    let refusal = Refusal::could_not_tell("settlement_pending", "wait", Charged::Unknown);
    let body: Value = serde_json::from_slice(&problem_json(&refusal, None, None)).unwrap();
    assert_eq!(
        body,
        json!({
            "type": "urn:farebox:problem:settlement_pending", "title": "Settlement pending", "status": 503, "detail": "wait",
            "code": "settlement_pending", "retry": "same_proof", "charged": "unknown", "retryAfter": 1,
        })
    );
    let paid = Refusal { charged: Charged::Yes, retry: Retry::Never, ..Refusal::new(409, "already_delivered", "gone") };
    let body: Value = serde_json::from_slice(&problem_json(&paid, None, None)).unwrap();
    assert_eq!((&body["charged"], &body["retry"]), (&json!(true), &json!("never")));
}

#[test]
fn our_bills_come_back_as_the_offers_they_were() {
    let challenge = two_offers();
    let bill = decode_payment_required(Some(encode_payment_required(&challenge).unwrap().as_bytes()), None).unwrap();
    assert!(bill.requirements.iter().map(|r| &r.offer).eq(challenge.offers.iter()));
    assert_eq!(bill.resource_url.unwrap().as_raw(), challenge.resource.url);
    assert_eq!(bill.error.unwrap().as_raw(), "payment_required");
    let body = problem_json(&challenge.refusal, Some(&challenge), None);
    let bill = decode_payment_required(None, Some(&body)).unwrap();
    assert_eq!((bill.version, bill.requirements.len()), (X402Version::V1, 1));
    assert_eq!(bill.requirements[0].offer, challenge.offers[0]);
    assert_eq!(bill.resource_url.unwrap().as_raw(), challenge.resource.url);
}

#[test]
fn what_is_echoed_is_what_came_to_the_byte() {
    let requirement = format!(
        r#"{{ "payTo":"{PAY_TO}","zeta":1.50, "scheme":"exact","network":"eip155:84532","amount":"10000","asset":"{USDC}","maxTimeoutSeconds":60,"extra":{{"version":"2","name":"USDC","big":12345678901234567890123}} }}"#
    );
    let text = format!(
        r#"{{"x402Version":2,"extensions":{{"b":1, "a":2}},"resource":{{"url":"https://x","z":1e2}},"accepts":[{requirement}]}}"#
    );
    let bill = decode_payment_required(Some(STANDARD.encode(&text).as_bytes()), None).unwrap();
    assert_eq!(bill.requirements[0].raw_json(), requirement);
    let paid = credential(X402Version::V2, &bill.requirements[0].offer);
    let (_, value) = encode_credential(&paid, &bill.requirements[0], &bill);
    let sent = String::from_utf8(STANDARD.decode(value.as_bytes()).unwrap()).unwrap();
    for part in [requirement.as_str(), r#""extensions":{"b":1, "a":2}"#, r#""resource":{"url":"https://x","z":1e2}"#] {
        assert!(sent.contains(part), "{sent} without {part}");
    }
}

#[test]
fn what_cannot_be_paid_is_skipped_and_said() {
    check_skipped("scheme", json!("upto"), "has the scheme \"upto\"");
    check_skipped("network", json!("solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"), "is on the network \"solana:");
    check_skipped("network", json!("base-sepolia"), "is on the network \"base-sepolia\"");
    check_skipped("network", json!("eip155:99999999999999999999"), "is on the network");
    check_skipped("asset", json!("USDC"), "malformed: asset is \"USDC\"");
    check_skipped("payTo", json!("0x00"), "malformed: payTo");
    check_skipped("amount", json!(10_000), "amount is a number");
    check_skipped("amount", json!("340282366920938463463374607431768211456"), "out of range");
    check_skipped("maxTimeoutSeconds", json!(0), "maxTimeoutSeconds is 0");
    check_skipped("extra", json!([]), "extra is a list");
    check_skipped("extra", json!({"assetTransferMethod": "permit2"}), "permit2");
    assert_eq!(with("extra", json!({"assetTransferMethod": "eip3009"})).requirements.len(), 1);
    assert_eq!(with("extra", Value::Null).requirements.len(), 1);
}

#[test]
fn one_bad_requirement_does_not_hide_a_good_one() {
    let mut bill = a_bill();
    bill["accepts"].as_array_mut().unwrap().insert(0, json!("junk"));
    let bill = from_header(&bill).unwrap();
    assert_eq!((bill.requirements.len(), bill.skipped.len(), bill.skipped[0].index), (2, 1, 0));
}

#[test]
fn long_lists_are_looked_at_up_to_the_limit() {
    let mut bill = a_bill();
    bill["accepts"] = Value::Array(vec![bill["accepts"][0].clone(); ACCEPTS_MAX + 5]);
    let bill = decode_payment_required(None, Some(bill.to_string().as_bytes())).unwrap();
    assert_eq!(bill.requirements.len(), ACCEPTS_MAX);
    assert!(matches!(bill.skipped[0].reason, SkipReason::BeyondLimit { more: 5 }));
    assert_eq!(bill.skipped[0].to_string(), "accepts[32] and 4 more are beyond the 32 that are looked at");
}

#[test]
fn bills_that_cannot_be_read_say_why_and_where() {
    let check = |header: Option<&[u8]>, body: Option<&[u8]>, code: &str, said: &str| {
        let error = decode_payment_required(header, body).unwrap_err();
        assert!(error.code() == code && error.to_string().contains(said), "{}: {error}", error.code());
    };
    let encoded = |value: Value| STANDARD.encode(value.to_string()).into_bytes();
    check(None, None, "bill_absent", "takes no payment by x402");
    check(None, Some(b""), "bill_absent", "no PAYMENT-REQUIRED header");
    check(None, Some(b"{\"error\":\"pay\"}"), "bill_absent", "no x402 terms");
    check(None, Some(b"<html>"), "bill_malformed", "the body of the 402 is not JSON");
    check(None, Some(b"\xff"), "bill_malformed", "is not UTF-8");
    check(None, Some(b"{\"x402Version\":3}"), "bill_version_unsupported", "x402Version \"3\"; expected 1 or 2");
    check(None, Some(&vec![b' '; BILL_BODY_BYTES_MAX + 1]), "bill_too_large", "at most 262144");
    check(Some(&vec![b'A'; BILL_HEADER_BYTES_MAX + 4]), None, "bill_too_large", "at most 65536");
    check(Some(&encoded(json!({"x402Version": 2}))), None, "bill_malformed", "PAYMENT-REQUIRED accepts is missing");
    check(Some(&encoded(json!({"x402Version": 1, "accepts": []}))), None, "bill_version_unsupported", "expected 2");
    let body = a_bill().to_string();
    check(Some(b"garbage!"), Some(body.as_bytes()), "bill_malformed", "PAYMENT-REQUIRED is not base64");
    check(
        None,
        Some(b"{\"x402Version\":2,\"accepts\":[],\"accepts\":[]}"),
        "bill_malformed",
        "two members \"accepts\"",
    );
}

#[test]
fn a_sellers_text_cannot_reach_a_terminal_raw() {
    let mut bill = a_bill();
    bill["error"] = json!("\u{1b}[2Jpaid\r\n");
    bill["resource"]["description"] = json!("\u{202e}gpj");
    let bill = from_header(&bill).unwrap();
    assert_eq!(bill.error.unwrap().to_string(), r#""\u{1b}[2Jpaid\r\n""#);
    assert_eq!(bill.description.unwrap().to_string(), r#""\u{202e}gpj""#);
}

proptest! {
    #[test]
    fn any_terms_survive_the_way_to_the_payer(
        units: u128, timeout in 1u64.., url in "\\PC{0,60}", description in "\\PC{0,60}", name in "\\PC{0,20}", chain: u64,
    ) {
        let mut terms = offer(&format!("eip155:{chain}"));
        terms.amount.units = units;
        terms.max_timeout_s = timeout;
        terms.extra.insert("name".to_owned(), json!(name));
        let mut challenge = challenge(vec![terms]);
        challenge.resource.url = url;
        challenge.resource.description = description.into();
        let bill = decode_payment_required(Some(encode_payment_required(&challenge).unwrap().as_bytes()), None).unwrap();
        prop_assert_eq!(&bill.requirements[0].offer, &challenge.offers[0]);
        prop_assert_eq!(bill.resource_url.as_ref().unwrap().as_raw(), &challenge.resource.url);
        let body = problem_json(&challenge.refusal, Some(&challenge), None);
        let bill = decode_payment_required(None, Some(&body)).unwrap();
        prop_assert_eq!(&bill.requirements[0].offer, &challenge.offers[0]);
    }

    #[test]
    fn no_bill_panics(header in proptest::collection::vec(any::<u8>(), 0..300), body in "\\PC{0,300}") {
        prop_assert!(decode_payment_required(Some(&header), None).is_err());
        prop_assert!(decode_payment_required(None, Some(body.as_bytes())).is_err());
    }
}
