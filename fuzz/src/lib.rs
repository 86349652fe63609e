//! What must hold for any bytes. One function a header parser: called by the fuzz targets, and by the wire crate's tests over the
//! corpus, so that every toolchain runs it.
//!
//! Each takes the bytes both as a header's value and, in base64, as the JSON inside one: the encoding must not hide the rest from
//! the fuzzer.

use std::time::Duration;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use farebox_core::{
    AcceptedTerms, Amount, AssetId, Credential, EvmAddress, Finality, Grant, L402Token, Macaroon, Network, Offer,
    Preimage, RailName, RootKey, Timestamp, TokenScope, TokenTerms, TransferAuthorization, X402Credential, X402Version,
    ports::{QuoteKey, TokenRequest},
};
use farebox_wire::{
    CREDENTIAL_BYTES_MAX, PresentedCredential, Tokens, credentials,
    l402::{
        CAVEATS_MAX, CHALLENGES_MAX, MACAROON, MACAROON_BYTES_MAX, add_caveat, authorization, challenges,
        decode_macaroon, encode_macaroon, is_token_authorization, judge, verify_signature,
    },
    transfer::{CODE_BYTES_MAX, OPTIONS_MAX, Quoter, decode_bill, decode_code, encode_code},
    x402::{
        Bill, Requirement, decode_credential, decode_payment_required, decode_settlement, encode_credential,
        match_offer,
    },
};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, WWW_AUTHENTICATE},
};

/// `PAYMENT-SIGNATURE`.
pub fn payment_signature(data: &[u8]) {
    credential(X402Version::V2, "payment-signature", data);
    credential(X402Version::V2, "payment-signature", STANDARD.encode(data).as_bytes());
}

/// `X-PAYMENT`.
pub fn x_payment(data: &[u8]) {
    credential(X402Version::V1, "x-payment", data);
    credential(X402Version::V1, "x-payment", STANDARD.encode(data).as_bytes());
}

/// `PAYMENT-REQUIRED`, and the same terms in a body.
pub fn payment_required(data: &[u8]) {
    bill(Some(data), None);
    bill(Some(STANDARD.encode(data).as_bytes()), None);
    bill(None, Some(data));
}

/// `PAYMENT-RESPONSE` and `X-PAYMENT-RESPONSE`.
pub fn payment_response(data: &[u8]) {
    settlement(data);
    settlement(STANDARD.encode(data).as_bytes());
}

/// `X-Payment-Code`, beside a hash that is good.
pub fn payment_code(data: &[u8]) {
    code(data);
    code(URL_SAFE_NO_PAD.encode(data).as_bytes());
}

/// A quote that comes back: nothing opens but what was sealed.
pub fn quote(data: &[u8]) {
    let key = QuoteKey { id: 1, secret: [1; 32], since: Timestamp::from_unix_s(0) };
    let quoter = Quoter::new(vec![key]).expect("it has a key");
    let opened = |text: &str| quoter.open(text).inspect(|quote| assert_eq!(quoter.seal(quote), text));
    if let Ok(text) = std::str::from_utf8(data) {
        drop(opened(text));
    }
    drop(opened(&URL_SAFE_NO_PAD.encode(data)));
}

/// The `transfer` member of a 402's body.
pub fn transfer_bill(data: &[u8]) {
    match decode_bill(data) {
        Ok(None) => {}
        Ok(Some(read)) => {
            assert!(read.bill.options.len() <= OPTIONS_MAX);
            read.skipped.iter().for_each(|skipped| printable(&skipped.to_string()));
            read.bill.options.iter().for_each(|option| printable(&option.symbol));
            printable(&read.bill.method);
            let body = serde_json::json!({ "transfer": read.bill }).to_string();
            if body.len() <= farebox_wire::transfer::BILL_BODY_BYTES_MAX {
                let again = decode_bill(body.as_bytes()).expect("we read what we write").expect("it is there");
                assert_eq!(again.bill, read.bill);
                assert!(again.skipped.is_empty());
            }
        }
        Err(error) => printable(&error.to_string()),
    }
}

/// A macaroon in its binary form, and its caveats.
pub fn macaroon(data: &[u8]) {
    match decode_macaroon(data) {
        Ok(read) => {
            assert!(data.len() <= MACAROON_BYTES_MAX && read.caveats.len() <= CAVEATS_MAX);
            let again = decode_macaroon(&encode_macaroon(&read));
            if encode_macaroon(&read).len() <= MACAROON_BYTES_MAX {
                assert_eq!(again.as_ref(), Ok(&read));
            }
            assert!(!verify_signature(&RootKey::new([1; 32]), &read), "nobody has that key");
            judged(read);
        }
        Err(error) => printable(&error.to_string()),
    }
}

/// `Authorization`, and `Macaroon`.
pub fn l402_credential(data: &[u8]) {
    l402_header(AUTHORIZATION, data);
    l402_header(AUTHORIZATION, &[b"L402 ", data].concat());
    let preimage = [b":".as_slice(), &[b'7'; 64]].concat();
    l402_header(AUTHORIZATION, &[b"LSAT ", STANDARD.encode(data).as_bytes(), &preimage].concat());
    l402_header(MACAROON, data);
    l402_header(MACAROON, hex::encode(data).as_bytes());
}

/// `WWW-Authenticate` of another seller.
pub fn l402_challenge(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|b| *b == b'\n') {
        if let Ok(line) = HeaderValue::from_bytes(line) {
            headers.append(WWW_AUTHENTICATE, line);
        }
    }
    let read = challenges(&headers);
    assert!(read.len() <= CHALLENGES_MAX);
    for one in read {
        let (name, value) =
            authorization(one.scheme, &one.macaroon_b64, &Preimage([7; 32])).expect("it can be sent back");
        let sent = HeaderMap::from_iter([(name, value)]);
        let again = credentials(&sent, Tokens::Taken);
        match (one.macaroon, again) {
            (Some(a), Ok(Some(PresentedCredential::Token(token)))) => assert_eq!(a, token.macaroon),
            // Too long for a credential, or with a preimage's caveat.
            (_, Err(error)) => printable(&error.refusal().detail),
            (a, b) => panic!("{a:?} is not {b:?}"),
        }
    }
}

/// A Lightning invoice.
pub fn bolt11(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match farebox_wire::bolt11::decode(text) {
        Ok(read) => {
            assert!(read.invoice.amount_msat > 0 && read.invoice.expires_at >= read.invoice.created_at);
            assert!(read.network.candidates().next().is_some());
            let again = farebox_wire::bolt11::decode(&read.invoice.bolt11).expect("in lower case too");
            assert_eq!(again.invoice, read.invoice);
        }
        Err(error) => printable(&error.to_string()),
    }
}

fn l402_header(name: HeaderName, value: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(value) else { return };
    match credentials(&HeaderMap::from_iter([(name.clone(), value.clone())]), Tokens::Taken) {
        Ok(None) => assert!(name == AUTHORIZATION && !is_token_authorization(&value)),
        Ok(Some(PresentedCredential::Token(token))) => judged(token.macaroon),
        Ok(Some(other)) => panic!("{other:?}"),
        Err(error) => {
            let refusal = error.refusal();
            assert_eq!((refusal.status, &*refusal.code), (400, "malformed_l402_token"));
            printable(&refusal.detail);
        }
    }
}

/// No more caveats make a token good for what it was not.
fn judged(macaroon: Macaroon) {
    let terms = TokenTerms {
        grant: Grant::default(),
        price: "1 sat".parse().expect("a price"),
        service: "service1".into(),
        tier: 0,
        scope: TokenScope::Route,
        valid_for: Duration::from_secs(60),
    };
    let request =
        TokenRequest { terms: &terms, method: "GET", resource: "/", now: Timestamp::from_unix_s(1_800_000_000) };
    let verdict = |macaroon| judge(&L402Token { macaroon, preimage: Preimage([0x11; 32]) }, &request);
    if let Err(problem) = verdict(macaroon.clone()) {
        printable(&problem.to_string());
        for more in ["services=service1:0", "service1_valid_until=1900000000", "service1_capabilities="] {
            // All that a mint writes names services: without that, this one would be the first.
            let minted = macaroon.caveats.iter().any(|caveat| caveat.starts_with("services="));
            assert!(!minted || verdict(add_caveat(&macaroon, more)).is_err(), "{problem}");
        }
    }
}

fn code(value: &[u8]) {
    let hash = [b"0x".as_slice(), &[b'7'; 64]].concat();
    let read = decode_code(&hash, value);
    match &read {
        Ok(credential) => {
            assert!(value.len() <= CODE_BYTES_MAX);
            assert!(credential.code.amount > 0);
            let [(_, hash), (_, code)] = encode_code(credential);
            if code.len() <= CODE_BYTES_MAX {
                assert_eq!(&decode_code(hash.as_bytes(), code.as_bytes()).expect("we read what we write"), credential);
            }
        }
        Err(error) => {
            let refusal = error.refusal();
            assert_eq!((refusal.status, &*refusal.code), (400, "malformed_payment_code"));
            printable(&refusal.detail);
        }
    }
    let (Ok(hash), Ok(value)) = (HeaderValue::from_bytes(&hash), HeaderValue::from_bytes(value)) else { return };
    let names = ["x-payment-hash", "x-payment-code"].map(HeaderName::from_static);
    let headers = HeaderMap::from_iter(names.into_iter().zip([hash, value]));
    match (farebox_wire::proof(&headers), read) {
        (Ok(Some(Credential::Transfer(a))), Ok(b)) => assert_eq!(a, b),
        (Err(a), Err(b)) => assert_eq!(a.to_string(), b.to_string()),
        (a, b) => panic!("{a:?} is not {b:?}"),
    }
}

fn credential(version: X402Version, name: &'static str, value: &[u8]) {
    let read = decode_credential(version, value);
    match &read {
        Ok(credential) => {
            assert!(value.len() <= CREDENTIAL_BYTES_MAX);
            assert_eq!(credential.version, version);
            let again = X402Credential::new(
                version,
                credential.accepted.clone(),
                credential.authorization.clone(),
                credential.signature.clone(),
            );
            assert_eq!(again.digest, credential.digest, "the digest covers what was read");
            if let Ok(offer) = match_offer(&credential.accepted, &credential.authorization, &[offer()]) {
                assert_eq!(offer.amount.units, credential.authorization.value);
                assert_eq!(offer.pay_to.parse(), Ok(credential.authorization.to));
                assert_eq!(offer.network(), &credential.accepted.network);
            }
        }
        Err(error) => {
            let refusal = error.refusal();
            assert_eq!(refusal.status, 400);
            printable(&refusal.detail);
        }
    }
    let Ok(value) = HeaderValue::from_bytes(value) else { return };
    let headers = HeaderMap::from_iter([(HeaderName::from_static(name), value)]);
    match (farebox_wire::proof(&headers), read) {
        (Ok(Some(Credential::X402(a))), Ok(b)) => assert_eq!(a, b),
        (Err(a), Err(b)) => assert_eq!(a.to_string(), b.to_string()),
        (a, b) => panic!("{a:?} is not {b:?}"),
    }
}

fn bill(header: Option<&[u8]>, body: Option<&[u8]>) {
    match decode_payment_required(header, body) {
        Ok(bill) => {
            bill.skipped.iter().for_each(|skipped| printable(&skipped.to_string()));
            bill.requirements.iter().for_each(|requirement| pay(&bill, requirement));
        }
        Err(error) => printable(&error.to_string()),
    }
}

/// Whatever bill we can read, we can answer, and a gateway that made it would take the answer for what it asked.
fn pay(bill: &Bill, requirement: &Requirement) {
    let offer = &requirement.offer;
    let to: EvmAddress = offer.pay_to.parse().expect("a requirement's recipient is an address");
    let authorization = TransferAuthorization {
        from: EvmAddress([7; 20]),
        to,
        value: offer.amount.units,
        valid_after: 0,
        valid_before: u64::MAX,
        nonce: [9; 32],
    };
    let accepted = AcceptedTerms { scheme: offer.scheme.clone(), network: offer.network().clone(), requirement: None };
    let sent = X402Credential::new(bill.version, accepted, authorization, vec![1; 65]);
    let (_, value) = encode_credential(&sent, requirement, bill);
    if value.len() > CREDENTIAL_BYTES_MAX {
        return;
    }
    let read = decode_credential(bill.version, value.as_bytes()).expect("we read what we write");
    assert_eq!((&read.authorization, &read.signature), (&sent.authorization, &sent.signature));
    let matched = match_offer(&read.accepted, &read.authorization, std::slice::from_ref(offer));
    assert_eq!(matched.expect("what was billed is what is paid"), offer);
}

fn settlement(value: &[u8]) {
    match decode_settlement(value) {
        Ok(read) => {
            [&read.transaction]
                .into_iter()
                .chain(&read.payer)
                .chain(&read.error_reason)
                .for_each(|text| printable(text));
            for version in [X402Version::V1, X402Version::V2] {
                let (_, written) = read.encode(version);
                assert_eq!(decode_settlement(written.as_bytes()).expect("we read what we write"), read);
            }
        }
        Err(error) => printable(&error.to_string()),
    }
}

fn printable(text: &str) {
    assert!(text.len() < 1500 && !text.chars().any(char::is_control), "{text:?}");
}

fn offer() -> Offer {
    let network: Network = "eip155:84532".parse().expect("a network");
    let asset = "0x036CbD53842c5426634e7929541eC2318f3dCF7e";
    Offer {
        rail: RailName::X402,
        scheme: "exact".into(),
        amount: Amount { units: 10_000, asset: AssetId::erc20(network, asset.parse().expect("an address")) },
        asset_on_wire: asset.into(),
        pay_to: "0x209693Bc6afc0C5328bA36FaF03C514EF312287C".into(),
        max_timeout_s: 60,
        extra: serde_json::from_str(r#"{"name":"USDC","version":"2"}"#).expect("an object"),
        finality: Finality::default(),
        network_fee: None,
    }
}
