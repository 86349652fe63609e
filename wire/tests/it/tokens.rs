//! L402 tokens as clients send them, and as nobody should.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD},
};
use farebox_core::{Charged, L402Token, Macaroon, Refusal, Retry};
use farebox_wire::{
    PresentedCredential, Tokens, credentials,
    l402::{add_caveat, encode_macaroon, is_token_authorization},
};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::macaroons::{PREIMAGE, VECTOR, vector};

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let line = |(name, value): &(&str, &str)| {
        (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    let mut map = HeaderMap::new();
    lines.iter().map(line).for_each(|(name, value)| {
        map.append(name, value);
    });
    map
}

fn read(lines: &[(&str, &str)]) -> Result<Option<Macaroon>, Refusal> {
    match credentials(&headers(lines), Tokens::Taken) {
        Ok(None) => Ok(None),
        Ok(Some(PresentedCredential::Token(L402Token { macaroon, preimage }))) => {
            assert_eq!(preimage, PREIMAGE);
            Ok(Some(macaroon))
        }
        Ok(Some(PresentedCredential::Proof(proof))) => panic!("{proof:?} is no token"),
        Err(error) => Err(error.refusal()),
    }
}

fn check_good(lines: &[(&str, &str)]) {
    let macaroon = read(lines).unwrap_or_else(|refusal| panic!("{lines:?}: {refusal:?}")).expect("it has a token");
    assert_eq!(macaroon.identifier, vector().identifier, "{lines:?}");
}

/// Nothing was charged, and a token that was paid is not to be paid again.
fn check_malformed(lines: &[(&str, &str)], said: &str) {
    let refusal = read(lines).expect_err(&format!("{lines:?}"));
    assert_eq!((refusal.status, &*refusal.code), (400, "malformed_l402_token"), "{refusal:?}");
    assert_eq!((refusal.retry, refusal.charged), (Retry::Never, Charged::No));
    assert!(refusal.detail.contains(said), "{said:?} is not in {:?}", refusal.detail);
}

fn preimage() -> String {
    PREIMAGE.reveal()
}

/// As gRPC clients write it: hex, the preimage in a caveat.
fn grpc() -> String {
    hex::encode(encode_macaroon(&add_caveat(&vector(), &format!("preimage={}", preimage()))))
}

#[test]
fn every_form_that_clients_send_is_read() {
    let (p, mac) = (preimage(), VECTOR);
    for scheme in ["L402", "LSAT", "l402", "lsat", "L402 LSAT", "L402 L402", "LSAT  ", "L402\t"] {
        check_good(&[("authorization", &format!("{scheme} {mac}:{p}"))]);
    }
    let bytes = STANDARD.decode(mac).unwrap();
    for spelling in [STANDARD_NO_PAD.encode(&bytes), URL_SAFE.encode(&bytes), URL_SAFE_NO_PAD.encode(&bytes)] {
        check_good(&[("authorization", &format!("L402 {spelling}:{p}"))]);
    }
    for header in ["macaroon", "grpc-metadata-macaroon"] {
        check_good(&[(header, &grpc())]);
        check_good(&[(header, &grpc().to_uppercase())]);
    }
    check_good(&[("macaroon", &grpc()), ("grpc-metadata-macaroon", &grpc())]);
}

#[test]
fn a_token_that_names_its_preimage_too_is_read() {
    // lnget adds the caveat and sends the preimage beside it.
    let with = |hex: &str| STANDARD.encode(encode_macaroon(&add_caveat(&vector(), &format!("preimage={hex}"))));
    check_good(&[("authorization", &format!("LSAT {}:{}", with(&preimage()), preimage()))]);
    let other = format!("LSAT {}:{}", with(&"12".repeat(32)), preimage());
    check_malformed(&[("authorization", &other)], "another preimage");
}

#[test]
fn one_token_on_two_lines_is_one_token() {
    // Aperture's Go package writes both schemes.
    let line = |scheme: &str, mac: &str| format!("{scheme} {mac}:{}", preimage());
    let [lsat, l402] = [line("LSAT", VECTOR), line("L402", VECTOR)];
    check_good(&[("authorization", &lsat), ("authorization", &l402)]);
    let other = line("L402", &STANDARD.encode(encode_macaroon(&add_caveat(&vector(), "services=service1:0"))));
    for second in [other.as_str(), "Bearer abc", "L402 x"] {
        check_malformed(&[("authorization", &lsat), ("authorization", second)], "more than once");
        assert!(read(&[("authorization", second), ("authorization", &lsat)]).is_err());
    }
    check_malformed(&[("authorization", lsat.as_str()); 20], "more than once");
    check_malformed(&[("authorization", &format!("{lsat}, {l402}"))], "joined by a comma");
}

#[test]
fn another_scheme_is_the_upstreams_and_hides_the_headers_of_grpc() {
    for foreign in ["Bearer abc", "Basic YTpi", "", "L4020 a:b", "L40", "L402:a"] {
        assert_eq!(read(&[("authorization", foreign), ("macaroon", &grpc())]), Ok(None), "{foreign}");
        assert!(!is_token_authorization(&HeaderValue::from_str(foreign).unwrap()));
    }
    let ours = format!("L402 {VECTOR}:{}", preimage());
    check_good(&[("authorization", &ours), ("macaroon", "not looked at")]);
    assert!(is_token_authorization(&HeaderValue::from_str(&ours).unwrap()));
}

#[test]
fn without_tokens_nothing_of_it_is_looked_at() {
    for lines in [[("authorization", "L402 broken")], [("macaroon", "broken")], [("grpc-metadata-macaroon", "broken")]]
    {
        assert!(matches!(credentials(&headers(&lines), Tokens::NotTaken), Ok(None)));
        assert!(credentials(&headers(&lines), Tokens::Taken).is_err());
    }
}

#[test]
fn a_token_and_a_payment_are_not_sent_together() {
    let ours = format!("L402 {VECTOR}:{}", preimage());
    for (header, charged) in [
        ("payment-signature", Charged::No),
        ("x-payment", Charged::No),
        ("x-payment-hash", Charged::Unknown),
        ("x-payment-code", Charged::Unknown),
    ] {
        for token in [("authorization", ours.as_str()), ("macaroon", &grpc())] {
            let refusal = read(&[token, (header, "anything")]).unwrap_err();
            assert_eq!((refusal.status, &*refusal.code), (400, "credential_repeated"), "{header}");
            assert_eq!((refusal.retry, refusal.charged), (Retry::Never, charged), "{header}");
        }
    }
}

#[test]
fn wrong_short_and_upper_case_preimages_are_malformed() {
    let p = preimage();
    for wrong in [
        "",
        &p[..63],
        &p[..2],
        &format!("{p}0"),
        &"AB".repeat(32),
        &"zz".repeat(32),
        &format!("0x{}", &p[2..]),
        &format!("{p}:{p}"),
    ] {
        check_malformed(&[("authorization", &format!("L402 {VECTOR}:{wrong}"))], "64 lower-case hex digits");
    }
    for (caveats, said) in
        [(vec![], "found"), (vec![p.clone(), p.clone()], "2 caveats"), (vec!["AB".repeat(32)], "64 lower-case")]
    {
        let with = |macaroon: Macaroon, hex: &String| add_caveat(&macaroon, &format!("preimage={hex}"));
        let sent = hex::encode(encode_macaroon(&caveats.iter().fold(vector(), with)));
        let said = if caveats.is_empty() { "0 caveats" } else { said };
        check_malformed(&[("macaroon", &sent)], said);
    }
}

#[test]
fn what_is_no_token_is_told_why() {
    let p = preimage();
    let bytes = STANDARD.decode(VECTOR).unwrap();
    for (credential, said) in [
        ("L402".to_owned(), "is no L402 credential"),
        ("L402 ".to_owned(), "is no L402 credential"),
        (format!("L402 {VECTOR}"), "is no L402 credential"),
        (format!("L402 :{p}"), "cut off"),
        (format!("L402 ***:{p}"), "not base64"),
        (format!("L402 {}:{p}", STANDARD.encode(&bytes[..100])), "cut off"),
        (format!("L402 {}:{p}", STANDARD.encode([&bytes[..], &[0]].concat())), "after its end"),
        (format!("L402 {}:{p}", STANDARD.encode(b"0021location lsat\n")), "version 2"),
        (format!("L402 {}:{p}", "A".repeat(1 << 20)), "at most 4096"),
    ] {
        check_malformed(&[("authorization", &credential)], said);
    }
    check_malformed(&[("macaroon", "zz")], "not hex");
    check_malformed(&[("macaroon", &"02".repeat(1 << 20))], "at most 4096");
}

#[test]
fn a_token_cut_at_any_character_is_malformed() {
    let line = format!("{VECTOR}:{}", preimage());
    for at in 0..line.len() {
        check_malformed(&[("authorization", &format!("L402 {}", &line[..at]))], "");
    }
}
