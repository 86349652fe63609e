//! Credential headers: what is taken, what is refused, and how that is said.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use farebox_core::{Charged, Retry, X402Credential, X402Version};
use farebox_wire::x402::{Bill, decode_credential, decode_payment_required, encode_credential, match_offer};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::fixtures::{PAYER, credential, header_of, offer, read, two_offers};

fn bill(version: X402Version) -> Bill {
    let challenge = two_offers();
    match version {
        X402Version::V2 => {
            let header = farebox_wire::x402::encode_payment_required(&challenge).unwrap();
            decode_payment_required(Some(header.as_bytes()), None).unwrap()
        }
        X402Version::V1 => {
            let body = farebox_wire::problem::problem_json(&challenge.refusal, Some(&challenge), None);
            decode_payment_required(None, Some(&body)).unwrap()
        }
    }
}

fn encoded(version: X402Version, credential: &X402Credential) -> Vec<u8> {
    let bill = bill(version);
    encode_credential(credential, &bill.requirements[0], &bill).1.as_bytes().to_vec()
}

fn payload(version: X402Version) -> Value {
    let value = encoded(version, &credential(version, &offer("eip155:84532")));
    serde_json::from_slice(&STANDARD.decode(value).unwrap()).unwrap()
}

fn decode_json(version: X402Version, text: &str) -> Result<X402Credential, farebox_wire::CredentialError> {
    decode_credential(version, STANDARD.encode(text).as_bytes())
}

/// Refused with this code, and a message that has each of `said`.
fn check_refused(version: X402Version, text: &str, code: &str, said: &[&str]) {
    let error = decode_json(version, text).unwrap_err();
    let message = error.to_string();
    assert_eq!(error.code(), code, "{message}");
    assert!(message.starts_with(&header_of(version).to_ascii_uppercase()), "{message}");
    for part in said {
        assert!(message.contains(part), "{message:?} without {part:?}");
    }
    let refusal = error.refusal();
    assert_eq!((refusal.status, refusal.retry, refusal.charged), (400, Retry::AfterPayment, Charged::No));
}

/// As [`check_refused`], for a version 2 payload with the member at `pointer` replaced, or removed for `Value::Null`.
fn check_member(pointer: &str, value: Value, code: &str, said: &[&str]) {
    let mut payload = payload(X402Version::V2);
    *payload.pointer_mut(pointer).unwrap() = value;
    check_refused(X402Version::V2, &payload.to_string(), code, said);
}

#[test]
fn no_header_is_no_credential() {
    assert!(read(&[("authorization", b"Bearer x"), ("payment-response", b"e30=")]).unwrap().is_none());
}

#[test]
fn one_payment_in_one_header_and_no_more() {
    let v2 = encoded(X402Version::V2, &credential(X402Version::V2, &offer("eip155:84532")));
    let v1 = encoded(X402Version::V1, &credential(X402Version::V1, &offer("eip155:84532")));
    assert!(read(&[("payment-signature", &v2)]).unwrap().is_some());
    for (headers, said) in [
        (
            vec![("payment-signature", v2.as_slice()), ("payment-signature", &v2)],
            "PAYMENT-SIGNATURE came more than once",
        ),
        (vec![("x-payment", v1.as_slice()), ("X-Payment", &v1)], "X-PAYMENT came more than once"),
        (
            vec![("payment-signature", v2.as_slice()), ("x-payment", &v1)],
            "X-PAYMENT came together with PAYMENT-SIGNATURE",
        ),
    ] {
        let headers: Vec<_> = headers.into_iter().map(|(name, value)| (lower(name), value)).collect();
        let error = read(&headers).unwrap_err();
        assert_eq!(error.code(), "credential_repeated");
        assert!(error.to_string().contains(said), "{error}");
    }
}

fn lower(name: &'static str) -> &'static str {
    if name == "X-Payment" { "x-payment" } else { name }
}

#[test]
fn what_is_no_json_in_base64_is_told_apart() {
    let check = |value: &[u8], code: &str, said: &str| {
        let error = read(&[("payment-signature", value)]).unwrap_err();
        assert!(error.code() == code && error.to_string().contains(said), "{}: {error}", error.code());
    };
    check(b"", "credential_not_base64", "is empty");
    check(b"eyJ4NDAyVmVyc2lvbiI6Mn0", "credential_not_base64", "padding");
    check(b"eyJ4IjoiPz8_In0=", "credential_not_base64", "base64url ('_' at byte 11)");
    check(b"{\"x402Version\":2}", "credential_not_base64", "plain JSON");
    check(b"\xff\xfe", "credential_not_base64", "0xff at 0");
    check(STANDARD.encode(b"\xc3\x28").as_bytes(), "credential_not_base64", "not UTF-8 from byte 0");
    check(STANDARD.encode("hello").as_bytes(), "credential_not_json", "not JSON");
    check(STANDARD.encode("[1]").as_bytes(), "credential_not_json", "expected a JSON object, found a list");
    check(STANDARD.encode("{} {}").as_bytes(), "credential_not_json", "not JSON");
    check(&[b'A'; 16 * 1024 + 4], "credential_too_large", "16388 bytes long; at most 16384");
}

#[test]
fn repeated_keys_and_deep_nesting_are_refused() {
    let good = payload(X402Version::V2).to_string();
    let twice = good.replacen("\"value\":", "\"value\":\"1\",\"value\":", 1);
    check_refused(X402Version::V2, &twice, "credential_json_key_repeated", &["two members \"value\""]);
    let escaped = good.replacen("\"to\":", "\"t\\u006f\":\"0x00\",\"to\":", 1);
    check_refused(X402Version::V2, &escaped, "credential_json_key_repeated", &["two members \"to\""]);
    check_refused(X402Version::V2, &"{\"a\":".repeat(2000), "credential_json_too_deep", &["deeper than 24"]);
}

#[test]
fn versions_stay_in_their_headers() {
    let (v1, v2) = (payload(X402Version::V1).to_string(), payload(X402Version::V2).to_string());
    check_refused(X402Version::V2, &v1, "invalid_x402_version", &["x402Version \"1\"; expected 2"]);
    check_refused(X402Version::V1, &v2, "invalid_x402_version", &["x402Version \"2\"; expected 1"]);
    check_member("/x402Version", json!(3), "invalid_x402_version", &["\"3\"; expected 2"]);
    check_member("/x402Version", json!("2"), "invalid_x402_version", &["expected 2"]);
    check_member("/x402Version", Value::Null, "credential_member_missing", &["x402Version is missing"]);
}

#[test]
fn members_that_are_missing_or_wrong_are_named() {
    check_member("/accepted", Value::Null, "credential_member_missing", &["accepted is missing; expected an object"]);
    check_member("/accepted", json!([]), "credential_member_type", &["accepted is a list; expected an object"]);
    check_member("/accepted/payTo", json!(5), "credential_member_type", &["accepted.payTo is a number"]);
    check_member(
        "/accepted/maxTimeoutSeconds",
        json!("60"),
        "credential_member_type",
        &["is a string; expected a whole number"],
    );
    check_member("/accepted/maxTimeoutSeconds", json!(60.5), "credential_number_out_of_range", &["60.5"]);
    check_member("/accepted/network", json!("base"), "invalid_network", &["\"base\"", "CAIP-2"]);
    check_member("/accepted/scheme", json!("upto"), "invalid_exact_evm_scheme", &["\"upto\"; expected \"exact\""]);
    let a = "/payload/authorization";
    check_member(a, Value::Null, "credential_member_missing", &["payload.authorization is missing"]);
    check_member(
        &format!("{a}/from"),
        json!("0x1"),
        "credential_member_invalid",
        &["authorization.from is \"0x1\"", "40 hex"],
    );
    check_member(&format!("{a}/nonce"), json!("0xab"), "credential_member_invalid", &["64 hex digits"]);
    check_member("/payload/signature", json!("0x"), "credential_member_invalid", &["1 to 4096 bytes"]);
    check_member("/payload/signature", json!("0xabc"), "credential_member_invalid", &["hex"]);
    check_member(
        "/payload/signature",
        json!(format!("0x{}", "00".repeat(4097))),
        "credential_member_invalid",
        &["4096"],
    );
}

#[test]
fn numbers_are_exact_or_refused() {
    let value = "/payload/authorization/value";
    for wrong in ["", "-1", "+1", "01", "1e3", "1.0", "0x10", " 1", "1_000", "٣"] {
        check_member(value, json!(wrong), "credential_member_invalid", &["authorization.value", "decimal string"]);
    }
    check_member(value, json!(10_000), "credential_member_type", &["is a number"]);
    let two_128 = "340282366920938463463374607431768211456";
    check_member(value, json!(two_128), "credential_number_out_of_range", &[two_128, "below 2^128"]);
    let before = "/payload/authorization/validBefore";
    check_member(before, json!("18446744073709551616"), "credential_number_out_of_range", &["below 2^64"]);
    check_member(before, json!(-1), "credential_number_out_of_range", &["-1"]);
    check_member(before, json!(1.5), "credential_number_out_of_range", &["1.5"]);
    check_member("/accepted/amount", json!("010000"), "credential_member_invalid", &["accepted.amount"]);
}

#[test]
fn times_may_be_json_integers_as_old_clients_send_them() {
    let mut payload = payload(X402Version::V1);
    payload["payload"]["authorization"]["validAfter"] = json!(1_700_000_000);
    payload["payload"]["authorization"]["validBefore"] = json!(u64::MAX);
    let read = decode_json(X402Version::V1, &payload.to_string()).unwrap();
    assert_eq!((read.authorization.valid_after, read.authorization.valid_before), (1_700_000_000, u64::MAX));
}

#[test]
fn other_ways_to_pay_are_called_by_name() {
    for (payload, said) in [
        (json!({"signature": "0x00", "permit2Authorization": {}}), "Permit2"),
        (json!({"transaction": "AQID"}), "a signed transaction"),
        (json!({"delegationManager": "0x00"}), "ERC-7710"),
    ] {
        check_member("/payload", payload, "unsupported_payload_type", &[said, "EIP-3009"]);
    }
}

#[test]
fn version_1_names_only_networks_that_all_clients_mean_alike() {
    for name in ["story", "eip155:84532", "solana", "\u{1b}[2J"] {
        let mut payload = payload(X402Version::V1);
        payload["network"] = json!(name);
        check_refused(X402Version::V1, &payload.to_string(), "invalid_network", &["version 1 network name"]);
    }
}

#[test]
fn unknown_members_and_nulls_are_borne() {
    let mut payload = payload(X402Version::V2);
    payload["extensions"] = Value::Null;
    payload["resource"] = Value::Null;
    payload["novelty"] = json!({"a": [1]});
    payload["accepted"]["novelty"] = json!(1);
    payload["accepted"]["extra"]["more"] = json!(true);
    let read = decode_json(X402Version::V2, &payload.to_string()).unwrap();
    assert!(match_offer(&read.accepted, &read.authorization, &[offer("eip155:84532")]).is_ok());
}

#[test]
fn the_digest_sees_through_the_spelling_of_the_json() {
    let one = payload(X402Version::V2);
    let a = decode_json(X402Version::V2, &one.to_string()).unwrap();
    let b = decode_json(X402Version::V2, &serde_json::to_string_pretty(&one).unwrap()).unwrap();
    let c = decode_json(X402Version::V2, &one.to_string().replace(PAYER, &PAYER.to_uppercase().replace("0X", "0x")))
        .unwrap();
    assert!(a.digest == b.digest && a.digest == c.digest);
}

/// A single-bit fault anywhere in the header, or in the JSON in it, is refused, changes nothing, or changes the digest: what a
/// payer signed never silently becomes another authorization.
#[test]
fn no_single_bit_fault_makes_another_authorization_of_the_same_digest() {
    for version in [X402Version::V1, X402Version::V2] {
        let offers = [offer("eip155:84532"), offer("eip155:8453")];
        let original = credential(version, &offers[0]);
        let header = encoded(version, &original);
        let text = STANDARD.decode(&header).unwrap();
        let judge = |result: Result<X402Credential, _>| {
            let Ok(read) = result else { return };
            if (&read.authorization, &read.signature) != (&original.authorization, &original.signature) {
                assert_ne!(read.digest, original.digest);
            }
            if let Ok(offer) = match_offer(&read.accepted, &read.authorization, &offers) {
                let paid = &read.authorization;
                assert_eq!((offer.amount.units, offer.pay_to.parse()), (paid.value, Ok(paid.to)));
                assert!(offer == &offers[0] || read.digest != original.digest, "another network under the same digest");
            }
        };
        for (bytes, is_header) in [(&header, true), (&text, false)] {
            for at in 0..bytes.len() {
                for bit in [0, 1, 5] {
                    let mut wrong = bytes.clone();
                    wrong[at] ^= 1 << bit;
                    let wrong = if is_header { wrong } else { STANDARD.encode(wrong).into_bytes() };
                    judge(decode_credential(version, &wrong));
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(
        value: u128, valid_after: u64, valid_before: u64, nonce: [u8; 32], from: [u8; 20],
        signature in proptest::collection::vec(any::<u8>(), 1..200), v2: bool,
    ) {
        let version = if v2 { X402Version::V2 } else { X402Version::V1 };
        let mut sent = credential(version, &offer("eip155:84532"));
        sent.authorization.from = farebox_core::EvmAddress(from);
        sent.authorization.value = value;
        sent.authorization.valid_after = valid_after;
        sent.authorization.valid_before = valid_before;
        sent.authorization.nonce = nonce;
        let sent = X402Credential::new(version, sent.accepted, sent.authorization, signature);
        prop_assert_eq!(decode_credential(version, &encoded(version, &sent)).unwrap(), sent);
    }

    #[test]
    fn no_header_panics(value in proptest::collection::vec(any::<u8>(), 0..400), text in "\\PC{0,200}") {
        for version in [X402Version::V1, X402Version::V2] {
            prop_assert!(decode_credential(version, &value).is_err());
            prop_assert!(decode_json(version, &text).is_err());
        }
    }
}
