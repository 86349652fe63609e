//! Transfers: quotes, payment codes and bills.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use farebox_core::{
    Amount, AssetId, Charged, Credential, EvmAddress, Finality, Network, NetworkFee, Offer, PaymentCode, RailName,
    Refusal, Retry, Timestamp, TransferCredential, ports::QuoteKey,
};
use farebox_wire::{
    CredentialError,
    page::html,
    problem::problem_json,
    transfer::{
        CODE_BYTES_MAX, OPTIONS_MAX, Quote, QuoteOption, Quoter, TransferBill, TransferOption, UnknownQuote,
        decode_bill, decode_code, encode_code,
    },
    x402::{decode_payment_required, encode_payment_required},
};
use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::fixtures::{PAY_TO, PAYER, USDC, address, challenge, offer};

const VECTORS: &str = include_str!("../vectors/transfer.json");
const URL: &str = "https://api.example.com/v1/report?id=7&of=a%20b";
const NOW_S: u64 = 1_795_500_000;

fn key(id: u32) -> QuoteKey {
    QuoteKey { id, secret: [u8::try_from(id).unwrap(); 32], since: Timestamp::from_unix_s(NOW_S) }
}

pub(crate) fn quoter(ids: &[u32]) -> Quoter {
    Quoter::new(ids.iter().map(|id| key(*id)).collect()).unwrap()
}

fn network() -> Network {
    Network::evm(8453)
}

fn options() -> Vec<TransferOption> {
    let usdc = TransferOption {
        amount: Amount { units: 10_000, asset: AssetId::erc20(network(), address(USDC)) },
        symbol: "USDC".into(),
        decimals: 6,
        pay_to: address(PAY_TO),
        finality: Finality::Blocks(3),
        network_fee_wei: Some(21_000_000_000_000),
    };
    let native = TransferOption {
        amount: Amount { units: 3_000_000_000_000, asset: AssetId::native(network()) },
        symbol: "ETH".into(),
        decimals: 18,
        finality: Finality::Safe,
        network_fee_wei: None,
        ..usdc.clone()
    };
    vec![usdc, native]
}

pub(crate) fn quote() -> Quote {
    Quote {
        target: Quote::target(&farebox_core::RouteId::new("report"), "GET", URL),
        options: options().iter().map(TransferOption::quoted).collect(),
        issued_at: Timestamp::from_unix_s(NOW_S),
        pay_by: Timestamp::from_unix_s(NOW_S + 600),
        claim_by: Timestamp::from_unix_s(NOW_S + 86_400),
        nonce: [1, 2, 3, 4, 5, 6, 7, 8],
    }
}

/// Two options on Base, sealed with key 3.
pub(crate) fn bill() -> TransferBill {
    TransferBill {
        quote: quoter(&[3]).seal(&quote()),
        resource: URL.to_owned(),
        method: "GET".to_owned(),
        pay_by: quote().pay_by,
        claim_by: quote().claim_by,
        options: options(),
    }
}

pub(crate) fn credential() -> TransferCredential {
    let code = PaymentCode {
        quote: bill().quote.into(),
        asset: options()[0].amount.asset.clone(),
        transaction: [0x5a; 32],
        payer: address(PAYER),
        pay_to: address(PAY_TO),
        amount: 10_000,
        resource: URL.into(),
        method: "GET".into(),
        expires_at: NOW_S + 300,
        signature: vec![0x1b; 65],
    };
    TransferCredential::new(code, [0x5a; 32])
}

fn code_json() -> Value {
    let [_, (_, code)] = encode_code(&credential());
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(code).unwrap()).unwrap()
}

fn headers(values: &[(&'static str, &[u8])]) -> Result<Option<Credential>, CredentialError> {
    let mut map = HeaderMap::new();
    for (name, value) in values {
        map.append(*name, HeaderValue::from_bytes(value).unwrap());
    }
    farebox_wire::proof(&map)
}

fn hash() -> String {
    format!("0x{}", "5a".repeat(32))
}

fn with_code(code: &[u8]) -> Result<Option<Credential>, CredentialError> {
    headers(&[("x-payment-hash", hash().as_bytes()), ("x-payment-code", code)])
}

/// Refused as malformed, with a message that has `said`. A transfer may have been made: nobody is told to make another.
fn check_malformed(result: Result<Option<Credential>, CredentialError>, said: &str) {
    let error = result.expect_err(said);
    let message = error.to_string();
    assert!(message.contains(said), "{message:?} without {said:?}");
    assert!(message.starts_with("X-PAYMENT-"), "{message}");
    let refusal = error.refusal();
    assert_eq!(refusal.code, "malformed_payment_code", "{message}");
    assert_eq!((refusal.status, refusal.retry, refusal.charged), (400, Retry::Never, Charged::Unknown));
}

/// As [`check_malformed`], for a code with one member replaced.
fn check_member(name: &str, value: Value, said: &str) {
    let mut code = code_json();
    code[name] = value;
    check_malformed(with_code(URL_SAFE_NO_PAD.encode(code.to_string()).as_bytes()), said);
}

#[test]
fn what_we_write_is_what_was_recorded() {
    let [(_, announced), (_, code)] = encode_code(&credential());
    let body: Value = serde_json::from_slice(&problem_json(&payment_required(), None, Some(&bill()))).unwrap();
    let now = json!({
        "quote": bill().quote,
        "x_payment_hash": announced.to_str().unwrap(),
        "x_payment_code": code.to_str().unwrap(),
        "body": body,
    });
    assert_eq!(now, serde_json::from_str::<Value>(VECTORS).unwrap(), "now written:\n{now:#}");
}

fn payment_required() -> Refusal {
    Refusal::payment("payment_required", "pay it")
}

#[test]
fn a_recorded_quote_opens_as_what_was_sealed() {
    let recorded: Value = serde_json::from_str(VECTORS).unwrap();
    assert_eq!(quoter(&[3]).open(recorded["quote"].as_str().unwrap()), Ok(quote()));
}

#[test]
fn quotes_of_older_keys_open_until_the_key_is_gone() {
    let old = quoter(&[3]).seal(&quote());
    let both = quoter(&[3, 4]);
    assert_eq!(both.open(&old), Ok(quote()));
    let new = both.seal(&quote());
    assert_eq!(quoter(&[4]).open(&new), Ok(quote()), "the newest key seals, whatever the order");
    assert_eq!(quoter(&[3]).open(&new), Err(UnknownQuote));
    both.replace(vec![key(4)]).unwrap();
    assert_eq!(both.open(&old), Err(UnknownQuote));
    both.replace(Vec::new()).unwrap_err();
    assert_eq!(both.open(&new), Ok(quote()), "it goes on with the keys it has");
}

#[test]
fn a_foreign_key_of_the_same_id_opens_nothing() {
    let foreign = Quoter::new(vec![QuoteKey { secret: [9; 32], ..key(3) }]).unwrap();
    assert_eq!(foreign.open(&bill().quote), Err(UnknownQuote));
    // Nor does the seal of one key id hold under another.
    let renamed = Quoter::new(vec![QuoteKey { id: 4, ..key(3) }]).unwrap();
    let mut bytes = URL_SAFE_NO_PAD.decode(bill().quote).unwrap();
    bytes[4] = 4;
    assert_eq!(renamed.open(&URL_SAFE_NO_PAD.encode(bytes)), Err(UnknownQuote));
}

#[test]
fn quotes_keep_to_their_limits() {
    let many = Quote { options: vec![options()[0].quoted(); OPTIONS_MAX + 1], ..quote() };
    let sealed = quoter(&[3]).seal(&many);
    assert!(sealed.len() <= farebox_wire::transfer::QUOTE_CHARS_MAX, "{}", sealed.len());
    assert_eq!(quoter(&[3]).open(&sealed).unwrap().options.len(), OPTIONS_MAX);
    assert!(quoter(&[3]).seal(&quote()).len() < 400);
    assert_eq!(quoter(&[3]).open(&"A".repeat(1_000_000)), Err(UnknownQuote));
}

#[test]
fn a_target_is_of_one_route_method_and_url() {
    let target = |route: &str, method: &str, url: &str| Quote::target(&farebox_core::RouteId::new(route), method, url);
    let all = [target("a", "GET", "bc"), target("aG", "ET", "bc"), target("a", "GETb", "c"), target("a", "POST", "bc")];
    for (at, one) in all.iter().enumerate() {
        assert!(!all[..at].contains(one));
    }
}

#[test]
fn a_code_comes_back_as_it_went() {
    let [(_, announced), (_, code)] = encode_code(&credential());
    let read = headers(&[("x-payment-hash", announced.as_bytes()), ("x-payment-code", code.as_bytes())]).unwrap();
    assert_eq!(read, Some(Credential::Transfer(credential())));
    let mut native = credential().code;
    native.asset = AssetId::native(network());
    native.signature = vec![7; 4096];
    native.quote = "q".into();
    let native = TransferCredential::new(native, [0; 32]);
    let [(_, announced), (_, code)] = encode_code(&native);
    assert_eq!(decode_code(announced.as_bytes(), code.as_bytes()).unwrap(), native, "hashes are compared by the rail");
}

#[test]
fn spelling_that_means_the_same_is_the_same_credential() {
    let mut code = code_json();
    code["payTo"] = json!(PAY_TO);
    code["asset"] = json!(USDC);
    code["transaction"] = json!(format!("0x{}", "5A".repeat(32)));
    code["more"] = json!({"unknown": [1, 2]});
    let text = format!(" {code:#} ");
    let upper = format!("0x{}", "5A".repeat(32));
    let read = decode_code(upper.as_bytes(), URL_SAFE_NO_PAD.encode(text).as_bytes()).unwrap();
    assert_eq!(read, credential());
}

#[test]
fn both_headers_come_and_each_once_and_nothing_beside() {
    let [(_, announced), (_, code)] = encode_code(&credential());
    let (announced, code) = (announced.as_bytes(), code.as_bytes());
    check_malformed(headers(&[("x-payment-hash", announced)]), "X-PAYMENT-CODE is missing");
    check_malformed(headers(&[("x-payment-code", code)]), "X-PAYMENT-HASH is missing");
    let (one, other) = (("x-payment-hash", announced), ("x-payment-code", code));
    check_malformed(headers(&[one, one, other]), "X-PAYMENT-HASH came more than once");
    check_malformed(headers(&[one, other, other]), "X-PAYMENT-CODE came more than once");
    for x402 in ["payment-signature", "x-payment"] {
        for with in [vec![one, other], vec![one], vec![other]] {
            let error = headers(&[vec![(x402, &b"e30="[..])], with].concat()).unwrap_err();
            assert_eq!(error.code(), "credential_repeated");
            assert_eq!(error.refusal().retry, Retry::Never, "one of the two may have been paid");
        }
    }
}

#[test]
fn a_hash_is_32_bytes_of_hex() {
    let code = encode_code(&credential())[1].1.clone();
    for wrong in ["", "0x", "5a5a", &"5a".repeat(32), &format!("0X{}", "5a".repeat(32)), &hash()[..65], "\u{e9}"] {
        let read = headers(&[("x-payment-hash", wrong.as_bytes()), ("x-payment-code", code.as_bytes())]);
        check_malformed(read, "X-PAYMENT-HASH is ");
    }
}

#[test]
fn a_code_is_canonical_unpadded_base64url_of_json() {
    let code = code_json().to_string();
    check_malformed(with_code(code.as_bytes()), "plain JSON");
    check_malformed(with_code(b"e30="), "padded");
    check_malformed(with_code(b"e31"), "canonical");
    check_malformed(with_code(b""), "empty");
    check_malformed(with_code(b"ey+_"), "standard base64");
    check_malformed(with_code("A".repeat(CODE_BYTES_MAX + 1).as_bytes()), "at most 12288");
    check_malformed(with_code(b"W10"), "expected a JSON object, found a list");
    check_malformed(with_code(b"e30"), "version is missing");
    check_malformed(with_code(b"_w"), "not UTF-8");
    let twice = code.replacen('{', r#"{"amount":"1","#, 1);
    check_malformed(with_code(URL_SAFE_NO_PAD.encode(twice).as_bytes()), "two members");
    let deep = code.replacen('{', &format!(r#"{{"x":{}{},"#, "[".repeat(40), "]".repeat(40)), 1);
    check_malformed(with_code(URL_SAFE_NO_PAD.encode(deep).as_bytes()), "deeper");
}

#[test]
fn every_member_of_a_code_is_there_and_of_its_form() {
    for name in code_json().as_object().unwrap().keys() {
        check_member(name, Value::Null, &format!("{name} is missing"));
        check_member(name, json!([]), &format!("{name} is a list"));
    }
    for amount in ["01", "1e3", "0", "-1", "+1", "1.0", "", " 1", "0x1", "1_000", "٣"] {
        check_member("amount", json!(amount), "amount is ");
    }
    check_member("amount", json!(u128::MAX.to_string() + "0"), "out of range");
    check_member("amount", json!(10_000), "amount is a number");
    check_member("expiresAt", json!(1_763_823_600.5), "out of range");
    check_member("expiresAt", json!(1e9), "out of range");
    check_member("expiresAt", json!("1763823600"), "expiresAt is a string");
    check_member("expiresAt", json!(-1), "out of range");
    check_member("version", json!(2), "version 2; expected 1");
    check_member("version", json!("1"), "version is a string");
    for name in ["payer", "payTo", "asset"] {
        check_member(name, json!(USDC.replace('C', "c")), &format!("{name} is "));
        check_member(name, json!(format!("0x{}", USDC[2..].to_uppercase())), &format!("{name} is "));
        check_member(name, json!(&USDC[..41]), &format!("{name} is "));
    }
    check_member("asset", json!("NATIVE"), "asset is ");
    for network in ["base", "eip155:08453", "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", "eip155:8453/slip44:60"] {
        check_member("network", json!(network), "network is ");
    }
    for bytes in [0, 1, 64, 4097] {
        check_member("signature", json!(format!("0x{}", "1b".repeat(bytes))), "signature is ");
    }
    check_member("signature", json!(format!("0x{}1", "1b".repeat(64))), "signature is ");
    check_member("signature", json!("1b".repeat(65)), "signature is ");
    check_member("transaction", json!("5a".repeat(32)), "transaction is ");
    for name in ["quote", "resource", "method"] {
        check_member(name, json!(""), &format!("{name} is "));
    }
}

fn a_body() -> Value {
    serde_json::from_slice(&problem_json(&payment_required(), None, Some(&bill()))).unwrap()
}

#[test]
fn a_bill_comes_back_as_it_went() {
    let read = decode_bill(a_body().to_string().as_bytes()).unwrap().unwrap();
    assert!(read.skipped.is_empty());
    assert_eq!(read.bill, bill());
    assert!(decode_bill(br#"{"x402Version":1,"accepts":[]}"#).unwrap().is_none());
}

#[test]
fn a_bill_says_how_it_is_claimed() {
    let claim = &a_body()["transfer"]["claim"];
    assert_eq!(claim["signature"]["domain"]["name"], "Farebox Payment Code");
    assert_eq!(claim["signature"]["nativeAsset"], "0xEeeeeEeeeEeEeeEeEeEeeEEEeeeeEeeeeeeeEEeE");
    assert!(claim["signature"]["type"].as_str().unwrap().ends_with("address payTo,uint256 amount,uint256 expiresAt)"));
    for header in ["X-Payment-Hash", "X-Payment-Code"] {
        assert!(claim["headers"][header].is_string());
    }
}

#[test]
fn options_that_we_do_not_understand_are_skipped_and_said() {
    let mut body = a_body();
    let good = body["transfer"]["options"][0].clone();
    let faults = [
        ("network", json!("solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp")),
        ("asset", json!(USDC.to_uppercase())),
        ("amount", json!("0")),
        ("amount", json!("1e3")),
        ("payTo", json!(PAY_TO.replace('B', "b"))),
        ("decimals", json!(39)),
        ("symbol", json!("US\u{1b}[2J")),
        ("confirmations", json!(0)),
        ("confirmations", json!("soon")),
    ];
    let spoilt = faults.iter().map(|(name, value)| {
        let mut option = good.clone();
        option[*name] = value.clone();
        option
    });
    let listed: Vec<Value> = spoilt.chain([json!(7), good.clone()]).collect();
    let many = vec![good.clone(); OPTIONS_MAX + 1];
    body["transfer"]["options"] = json!(listed);
    let read = decode_bill(body.to_string().as_bytes()).unwrap().unwrap();
    assert_eq!((read.bill.options.len(), read.skipped.len()), (1, faults.len() + 1));
    body["transfer"]["options"] = json!(many);
    let read = decode_bill(body.to_string().as_bytes()).unwrap().unwrap();
    assert_eq!((read.bill.options.len(), read.skipped.len()), (OPTIONS_MAX, 1));
}

#[test]
fn a_bill_without_what_it_needs_is_malformed() {
    for (name, value) in [
        ("quote", json!("")),
        ("quote", json!("a b")),
        ("quote", json!("q".repeat(10_000))),
        ("payBy", json!("tomorrow")),
        ("payBy", json!(7)),
        ("claimBy", Value::Null),
        ("options", json!({})),
        ("resource", json!("https://x/\u{202e}")),
        ("method", json!("G".repeat(33))),
    ] {
        let mut body = a_body();
        body["transfer"][name] = value;
        assert_eq!(decode_bill(body.to_string().as_bytes()).unwrap_err().code(), "bill_malformed", "{name}");
    }
    assert_eq!(decode_bill(&vec![b' '; 300 * 1024]).unwrap_err().code(), "bill_too_large");
}

fn transfer_offer() -> Offer {
    Offer {
        rail: RailName::Transfer,
        extra: serde_json::from_str(r#"{"symbol":"USDC","decimals":6}"#).unwrap(),
        network_fee: Some(NetworkFee::OnTop(7)),
        ..offer("eip155:84532")
    }
}

#[test]
fn an_option_is_what_a_transfer_offer_says() {
    let option = TransferOption::of(&transfer_offer()).unwrap();
    assert_eq!((&*option.symbol, option.decimals, option.network_fee_wei), ("USDC", 6, Some(7)));
    assert_eq!(TransferOption::of(&offer("eip155:84532")), None);
    let mut without = transfer_offer();
    without.extra.remove("decimals");
    assert_eq!(TransferOption::of(&without), None);
}

#[test]
fn x402_bills_name_x402_offers_alone() {
    let both = challenge(vec![transfer_offer(), offer("eip155:84532")]);
    let header = encode_payment_required(&both).unwrap();
    assert_eq!(decode_payment_required(Some(header.as_bytes()), None).unwrap().requirements.len(), 1);
    let body: Value = serde_json::from_slice(&problem_json(&both.refusal, Some(&both), Some(&bill()))).unwrap();
    assert_eq!(body["accepts"].as_array().unwrap().len(), 1);
    assert!(body["transfer"]["quote"].is_string());
    let transfer_only = challenge(vec![transfer_offer()]);
    assert_eq!(encode_payment_required(&transfer_only), None);
    let body: Value =
        serde_json::from_slice(&problem_json(&both.refusal, Some(&transfer_only), Some(&bill()))).unwrap();
    assert!(body.get("accepts").is_none() && body.get("x402Version").is_none());
}

#[test]
fn a_bill_tells_what_part_the_network_fee_is() {
    for (fee, name) in [(NetworkFee::Included(1234), "included"), (NetworkFee::Absorbed(1234), "absorbed")] {
        let told = Offer { network_fee: Some(fee), ..offer("eip155:84532") };
        let challenge = challenge(vec![told]);
        let header = encode_payment_required(&challenge).unwrap();
        let read = decode_payment_required(Some(header.as_bytes()), None).unwrap();
        let read = &read.requirements[0];
        assert_eq!(read.offer, challenge.offers[0]);
        assert!(read.raw_json().contains("networkFee"), "it is echoed as it came");
        let body = problem_json(&challenge.refusal, Some(&challenge), None);
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["accepts"][0]["extra"]["networkFee"], json!({ name: "1234" }));
    }
}

#[test]
fn facts_are_members_of_the_problem() {
    let refusal =
        Refusal::payment("underpaid", "too little").with_fact("required", "10000").with_fact("received", "9999");
    let body: Value = serde_json::from_slice(&problem_json(&refusal, None, None)).unwrap();
    assert_eq!((&body["required"], &body["received"]), (&json!("10000"), &json!("9999")));
}

#[test]
fn the_page_tells_people_how_to_pay_by_transfer() {
    let page = html(&challenge(vec![transfer_offer()]), &"$0.01".parse().unwrap(), Some(&bill()));
    for part in [
        "0.01 USDC (10000 smallest units)",
        "0.000003 ETH (3000000000000 smallest units)",
        PAY_TO,
        "<dd>3 blocks</dd>",
        "<dd>safe block</dd>",
        "about 0.000021 of the network",
        "<time datetime=\"2026-11-24T06:10:00Z\">2026-11-24 06:10:00 UTC</time>",
        "X-Payment-Hash",
        "farebox pay --rail transfer --rpc eip155:8453=NODE_URL --asset &#39;eip155:8453/erc20:",
        ",USDC,6,DOLLARS&#39; &#39;https://",
        "a withdrawal from an exchange cannot be claimed",
        &bill().quote,
    ] {
        assert!(page.contains(part), "no {part} in {page}");
    }
    assert!(!page.contains("PAYMENT-REQUIRED"), "there is no x402 offer");
    let eternal = TransferBill { pay_by: Timestamp::from_unix_ms(u64::MAX), ..bill() };
    assert!(html(&challenge(vec![transfer_offer()]), &"$1".parse().unwrap(), Some(&eternal)).contains("9999-12-30"));
    let body = problem_json(&payment_required(), None, Some(&eternal));
    assert!(String::from_utf8(body).unwrap().contains("9999-12-30"));
}

fn any_option() -> impl Strategy<Value = QuoteOption> {
    let finality =
        prop_oneof![(1..u64::MAX).prop_map(Finality::Blocks), Just(Finality::Safe), Just(Finality::Finalized)];
    (any::<u64>(), any::<Option<[u8; 20]>>(), any::<[u8; 20]>(), any::<u128>(), finality).prop_map(
        |(chain, token, pay_to, units, finality)| QuoteOption {
            asset: token.map_or_else(
                || AssetId::native(Network::evm(chain)),
                |token| AssetId::erc20(Network::evm(chain), EvmAddress(token)),
            ),
            pay_to: EvmAddress(pay_to),
            units,
            finality,
        },
    )
}

fn any_quote() -> impl Strategy<Value = Quote> {
    let times = (any::<u32>(), any::<u32>(), any::<u32>());
    (any::<[u8; 32]>(), prop::collection::vec(any_option(), 0..6), times, any::<[u8; 8]>()).prop_map(
        |(target, options, (issued_at, pay_by, claim_by), nonce)| Quote {
            target,
            options,
            issued_at: Timestamp::from_unix_s(issued_at.into()),
            pay_by: Timestamp::from_unix_s(pay_by.into()),
            claim_by: Timestamp::from_unix_s(claim_by.into()),
            nonce,
        },
    )
}

proptest! {
    #[test]
    fn what_is_sealed_opens(quote in any_quote()) {
        prop_assert_eq!(quoter(&[2, 1]).open(&quoter(&[2]).seal(&quote)), Ok(quote));
    }

    #[test]
    fn nothing_but_our_own_bytes_opens(quote in any_quote(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let ours = quoter(&[1]);
        let sealed = ours.seal(&quote);
        let cut = &sealed[..at.index(sealed.len())];
        prop_assert_eq!(ours.open(cut), Err(UnknownQuote));
        let mut bytes = URL_SAFE_NO_PAD.decode(&sealed).unwrap();
        let place = at.index(bytes.len());
        bytes[place] ^= 1 << bit;
        prop_assert_eq!(ours.open(&URL_SAFE_NO_PAD.encode(&bytes)), Err(UnknownQuote));
        let mut text = sealed.clone().into_bytes();
        let place = at.index(text.len());
        text[place] ^= 1 << bit;
        let text = String::from_utf8_lossy(&text).into_owned();
        prop_assert_eq!(ours.open(&text), Err(UnknownQuote));
        prop_assert_eq!(ours.open(&format!("{sealed}=")), Err(UnknownQuote));
        prop_assert_eq!(ours.open(&format!("{sealed}A")), Err(UnknownQuote));
    }

    #[test]
    fn no_code_panics(announced in prop::collection::vec(any::<u8>(), 0..80), code in "\\PC{0,200}", raw in any::<bool>()) {
        let code = if raw { code.into_bytes() } else { URL_SAFE_NO_PAD.encode(code).into_bytes() };
        if let Err(error) = decode_code(&announced, &code) {
            prop_assert_eq!(error.code(), "malformed_payment_code");
        }
        let _ = decode_code(hash().as_bytes(), &code);
    }

    #[test]
    fn no_fault_in_a_code_makes_another_of_the_same_digest(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut text = code_json().to_string().into_bytes();
        let place = at.index(text.len());
        text[place] = to;
        if let Ok(read) = decode_code(hash().as_bytes(), URL_SAFE_NO_PAD.encode(&text).as_bytes())
            && read.digest == credential().digest
        {
            // What the digest leaves out is signed, and the books compare it.
            let (a, b) = (&read.code, &credential().code);
            prop_assert_eq!((&a.quote, a.transaction, a.payer), (&b.quote, b.transaction, b.payer));
        }
    }
}
