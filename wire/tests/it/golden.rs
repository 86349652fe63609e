//! Recorded bytes. `vectors/README.md` says how they were made.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use farebox_core::{X402Credential, X402Version};
use farebox_wire::{
    problem::problem_json,
    x402::{
        SettlementResponse, decode_payment_required, decode_settlement, encode_credential, encode_payment_required,
        match_offer,
    },
};
use serde_json::{Value, json};

use crate::{
    fixtures::{PAY_TO, PAYER, USDC, address, credential, header_of, offer, read, two_offers_with_fees},
    transfers,
};

const OURS: &str = include_str!("../vectors/ours.json");
const NPM: &str = include_str!("../vectors/npm.json");
const PYPI: &str = include_str!("../vectors/pypi.json");

/// What this crate writes today, in the form of `vectors/ours.json`.
fn ours() -> Value {
    let challenge = two_offers_with_fees();
    let header = encode_payment_required(&challenge).unwrap();
    // Clients of x402 get the terms of transfers too, and have to pass over them.
    let body = problem_json(&challenge.refusal, Some(&challenge), Some(&transfers::bill()));
    let body: Value = serde_json::from_slice(&body).unwrap();
    let v2 = decode_payment_required(Some(header.as_bytes()), None).unwrap();
    let v1 = decode_payment_required(None, Some(body.to_string().as_bytes())).unwrap();
    let pay = |version, bill: &farebox_wire::x402::Bill| {
        let (name, value) =
            encode_credential(&credential(version, &bill.requirements[0].offer), &bill.requirements[0], bill);
        assert_eq!(name.as_str(), header_of(version));
        value.to_str().unwrap().to_owned()
    };
    let settled = |version| settlement().encode(version).1.to_str().unwrap().to_owned();
    json!({
        "payment_required": header,
        "body": body,
        "payment_signature": pay(X402Version::V2, &v2),
        "x_payment": pay(X402Version::V1, &v1),
        "payment_response": settled(X402Version::V2),
        "x_payment_response": settled(X402Version::V1),
    })
}

fn settlement() -> SettlementResponse {
    SettlementResponse {
        success: true,
        transaction: format!("0x{}", "5a".repeat(32)),
        network: "eip155:84532".parse().unwrap(),
        payer: Some(PAYER.to_owned()),
        asset: None,
        amount: Some(10_000),
        log_index: None,
        credit: None,
        error_reason: None,
    }
}

fn vectors(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn text<'a>(vector: &'a Value, name: &str) -> &'a str {
    vector[name].as_str().unwrap_or_else(|| panic!("vector without {name}"))
}

#[test]
fn what_we_write_is_what_the_official_decoders_accepted() {
    let ours = ours();
    assert_eq!(ours, vectors(OURS), "now written:\n{ours:#}\nput it in vectors/ours.json and run the recorders again");
}

/// The credential of a recorded vector, checked against what the client says it signed.
fn check_recorded(vector: &Value, version: X402Version) -> X402Credential {
    let read = read(&[(header_of(version), text(vector, "header").as_bytes())]).unwrap().unwrap();
    let said: Value = serde_json::from_slice(&STANDARD.decode(text(vector, "header")).unwrap()).unwrap();
    let said = &said["payload"];
    let signed = &read.authorization;
    assert_eq!(read.version, version);
    assert_eq!(signed.from, address(PAYER));
    assert_eq!(signed.to, address(PAY_TO));
    assert_eq!(signed.value, 10_000);
    assert_eq!(signed.valid_after.to_string(), said["authorization"]["validAfter"].as_str().unwrap());
    assert_eq!(signed.valid_before.to_string(), said["authorization"]["validBefore"].as_str().unwrap());
    assert_eq!(format!("0x{}", hex::encode(signed.nonce)), said["authorization"]["nonce"].as_str().unwrap());
    assert_eq!(format!("0x{}", hex::encode(&read.signature)), said["signature"].as_str().unwrap());
    assert_eq!(read.signature.len(), 65);
    let offers = [offer("eip155:8453"), offer("eip155:84532")];
    assert_eq!(match_offer(&read.accepted, signed, &offers).unwrap(), &offers[1]);
    read
}

#[test]
fn payments_of_the_official_npm_client_are_read_exactly() {
    let vectors = vectors(NPM);
    let v2 = check_recorded(&vectors["v2"], X402Version::V2);
    assert_eq!(v2.authorization.valid_after, 0);
    assert_eq!(&*v2.accepted.requirement.unwrap().asset, USDC);
    check_recorded(&vectors["v1"], X402Version::V1);
}

#[test]
fn payments_of_the_legacy_npm_client_are_read_exactly() {
    let legacy = check_recorded(&vectors(NPM)["legacy_v1"], X402Version::V1);
    assert!(legacy.authorization.valid_after > 1_700_000_000, "it sends now - 600");
}

#[test]
fn payments_of_the_official_python_client_are_read_exactly() {
    let vectors = vectors(PYPI);
    check_recorded(&vectors["v2"], X402Version::V2);
    check_recorded(&vectors["v1"], X402Version::V1);
}

#[test]
fn bills_of_the_official_servers_are_read_exactly() {
    for vectors in [vectors(NPM), vectors(PYPI)] {
        let bill = decode_payment_required(Some(text(&vectors, "payment_required").as_bytes()), None).unwrap();
        assert_eq!(bill.version, X402Version::V2);
        assert_eq!(bill.requirements.len(), 1, "{:?}", bill.skipped);
        assert_eq!(bill.requirements[0].offer, two_offers_with_fees().offers[0]);
        assert_eq!(bill.resource_url.unwrap().as_raw(), "https://api.example.com/v1/answer?q=1&lang=en");
    }
}

#[test]
fn settlements_of_the_official_servers_are_read_exactly() {
    for vectors in [vectors(NPM), vectors(PYPI)] {
        let read = decode_settlement(text(&vectors, "payment_response").as_bytes()).unwrap();
        assert_eq!(read, settlement());
        let refused = decode_settlement(text(&vectors, "payment_response_refused").as_bytes()).unwrap();
        assert!(!refused.success && refused.transaction.is_empty());
        assert_eq!(refused.error_reason.as_deref(), Some("invalid_exact_evm_insufficient_balance"));
    }
}

#[test]
fn our_settlements_come_back_as_they_went() {
    for version in [X402Version::V1, X402Version::V2] {
        let refused = SettlementResponse {
            success: false,
            transaction: String::new(),
            payer: None,
            amount: None,
            error_reason: Some("settlement_pending".to_owned()),
            ..settlement()
        };
        for sent in [settlement(), refused] {
            assert_eq!(decode_settlement(sent.encode(version).1.as_bytes()).unwrap(), sent);
        }
    }
    let v1 = STANDARD.decode(settlement().encode(X402Version::V1).1.as_bytes()).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&v1).unwrap()["network"], "base-sepolia");
}
