//! What the gateway must not take, as attackers, broken clients and broken nodes send it: a plain no, and nothing on chain.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::time::Duration;

use alloy::{
    primitives::{Address, Bytes, address},
    sol_types::{SolValue, eip712_domain},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use farebox_e2e::{
    Account, Authorization, CHAIN_ID, Counter, Farebox, FaultProxy, Process, Usdc, bill, books, header, http_client,
    now_s, payment, signed_payment,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

const DOLLAR: u128 = 1_000_000;
const CENT: u128 = 10_000;
const STRANGER: Address = address!("00000000000000000000000000000000000a77ac");
const PAID: &str = "/v1/report";
/// Far above what anything here takes.
const PATIENCE: Duration = Duration::from_secs(50);

/// A gateway with one paid route, and a payer with a dollar.
struct Gate {
    counter: Counter,
    farebox: Farebox,
    payer: Account,
    /// What the relayer had sent, and the upstream had seen, when the refusals began.
    before: (u64, usize),
}

/// What came back.
#[derive(Debug)]
struct Told {
    status: u16,
    headers: http::HeaderMap,
    body: String,
}

impl Told {
    fn problem(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// Status, code, retry, `charged`; the reason is there, and the fresh bill where a payment may follow.
    #[track_caller]
    fn refuses(&self, name: &str, status: u16, code: &str, retry: &str) {
        let problem = self.problem();
        let told = (self.status, problem["code"].as_str(), problem["retry"].as_str(), &problem["charged"]);
        assert_eq!(told, (status, Some(code), Some(retry), &json!(false)), "{name}: {problem}");
        assert!(problem["detail"].as_str().is_some_and(|reason| reason.len() > 20), "{name}: {problem}");
        assert_eq!(self.headers["cache-control"], "no-store", "{name}");
        let billed = self.headers.contains_key("payment-required") && problem["accepts"].is_array();
        assert_eq!(billed, retry == "after_payment", "{name}: {problem}");
    }
}

impl Gate {
    async fn open(anvil_flags: &[&str]) -> Self {
        let counter = Counter::open(anvil_flags).await.unwrap();
        // Little time for the upstream, so that a short authorization is long enough.
        let routes = counter.route("GET /v1/*", "price = \"$0.01\"");
        let farebox = counter.serve(&(routes + &counter.route("GET /free/*", "free = true"))).await.unwrap();
        let payer = counter.payer("payer", DOLLAR).await.unwrap();
        let before = (counter.anvil.transaction_count(counter.relayer.address()).await.unwrap(), 0);
        Self { counter, farebox, payer, before }
    }

    async fn send(&self, headers: &[(&str, &str)]) -> Told {
        let mut request = http_client().unwrap().get(self.farebox.url(PAID));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Told { status, headers, body: answer.text().await.unwrap() }
    }

    async fn pay(&self, payment: &Value) -> Told {
        self.send(&[("payment-signature", &header(payment))]).await
    }

    async fn bill(&self) -> Value {
        bill(&self.farebox.url(PAID)).await.unwrap()
    }

    fn authorization(&self, seed: &str) -> Authorization {
        Authorization::new(&self.payer, Counter::SELLER, CENT, seed)
    }

    /// A good payment as JSON, to be spoilt.
    async fn payment(&self, seed: &str) -> Value {
        let authorization = self.authorization(seed);
        let signature = authorization.sign(&self.payer).await.unwrap();
        payment(&self.bill().await, &authorization, &signature)
    }

    /// Nothing was forwarded, claimed, sent to the chain or moved; and the same process still sells.
    async fn came_to_no_harm(mut self) {
        let relayer = self.counter.relayer.address();
        let sent = self.counter.anvil.transaction_count(relayer).await.unwrap();
        assert_eq!((sent, self.counter.echo.hits()), self.before);
        assert_eq!(self.counter.usdc.balance_of(self.payer.address()).await.unwrap(), DOLLAR);
        assert_eq!(self.counter.usdc.balance_of(Counter::SELLER).await.unwrap(), 0);
        assert_eq!(books(self.farebox.setup()).await.unwrap(), Vec::<Value>::new());
        assert!(self.farebox.process().ended().unwrap().is_none());
        let log = self.farebox.process().log();
        assert!(!log.contains("panicked"), "{log}");

        let good = self.pay(&self.payment("good").await).await;
        assert_eq!(good.status, 200, "{good:?}");
        assert_eq!(self.counter.paid_by(self.payer.address()).await.unwrap(), [CENT]);
        assert_eq!(self.counter.echo.hits(), self.before.1 + 1);
    }
}

/// `payment` with the member at this JSON pointer replaced.
fn with(payment: &Value, pointer: &str, value: Value) -> Value {
    let mut spoilt = payment.clone();
    *spoilt.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = value;
    spoilt
}

/// `payment` without the member `name` of the object at this JSON pointer.
fn without(payment: &Value, pointer: &str, name: &str) -> Value {
    let mut spoilt = payment.clone();
    spoilt.pointer_mut(pointer).and_then(Value::as_object_mut).and_then(|object| object.remove(name)).unwrap();
    spoilt
}

#[tokio::test]
async fn headers_that_are_no_payment_are_400_with_a_reason_and_a_fresh_bill() {
    let gate = Gate::open(&[]).await;
    let good = gate.payment("spoilt").await;
    let text = good.to_string();
    let encode = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
    let doubled = text.replacen("\"x402Version\":2", "\"x402Version\":2,\"x402Version\":2", 1);
    assert_ne!(doubled, text);
    let url_safe = base64::prelude::BASE64_URL_SAFE.encode(format!("{text}{}", " ???>>>".repeat(3)));
    assert!(url_safe.contains(['-', '_']));

    let not_text = encode(&[0xff, 0xfe, 0x00]);
    for (name, value, code) in [
        ("empty", "", "credential_not_base64"),
        ("words", "let me in", "credential_not_base64"),
        ("plain JSON", &text, "credential_not_base64"),
        ("base64url", &url_safe, "credential_not_base64"),
        ("unpadded", header(&good).trim_end_matches('=').get(..101).unwrap(), "credential_not_base64"),
        ("not UTF-8", &not_text, "credential_not_base64"),
        ("cut JSON", &encode(&text.as_bytes()[..text.len() - 9]), "credential_not_json"),
        ("a list", &encode(b"[]"), "credential_not_json"),
        ("null", &encode(b"null"), "credential_not_json"),
        ("deep", &encode("[".repeat(9000).as_bytes()), "credential_json_too_deep"),
        ("a key twice", &encode(doubled.as_bytes()), "credential_json_key_repeated"),
        ("an empty object", &encode(b"{}"), "credential_member_missing"),
        ("16 KiB and more", &encode(&[b' '; 13_000]), "credential_too_large"),
    ] {
        gate.send(&[("payment-signature", value)]).await.refuses(name, 400, code, "after_payment");
    }
    let good = header(&good);
    let twice = gate.send(&[("payment-signature", &good), ("payment-signature", &good)]).await;
    twice.refuses("twice", 400, "credential_repeated", "after_payment");
    let both = gate.send(&[("payment-signature", &good), ("x-payment", &good)]).await;
    both.refuses("both versions", 400, "credential_repeated", "after_payment");
    let old = gate.send(&[("x-payment", &good)]).await;
    old.refuses("version 2 in X-PAYMENT", 400, "invalid_x402_version", "after_payment");
    gate.came_to_no_harm().await;
}

#[tokio::test]
async fn members_that_are_missing_mistyped_or_out_of_range_are_400() {
    let gate = Gate::open(&[]).await;
    let good = gate.payment("spoilt").await;
    const SIGNED: &str = "/payload/authorization";
    let signed = |name: &str, value: Value| with(&good, &format!("{SIGNED}/{name}"), value);
    let over = format!("1{}", "0".repeat(80));

    for (payment, code) in [
        (without(&good, "", "payload"), "credential_member_missing"),
        (without(&good, "", "accepted"), "credential_member_missing"),
        (without(&good, "", "x402Version"), "credential_member_missing"),
        (without(&good, "/payload", "signature"), "credential_member_missing"),
        (without(&good, "/payload", "authorization"), "credential_member_missing"),
        (without(&good, SIGNED, "nonce"), "credential_member_missing"),
        (with(&good, "/x402Version", json!(3)), "invalid_x402_version"),
        (with(&good, "/x402Version", json!("2")), "invalid_x402_version"),
        (with(&good, "/accepted", json!([])), "credential_member_type"),
        (with(&good, "/payload/signature", json!(7)), "credential_member_type"),
        (with(&good, "/payload/signature", json!("0xzz")), "credential_member_invalid"),
        (with(&good, "/payload/signature", json!("")), "credential_member_invalid"),
        (with(&good, "/payload/signature", json!(format!("0x{}", "ab".repeat(4097)))), "credential_member_invalid"),
        (signed("from", json!("0x12")), "credential_member_invalid"),
        (signed("nonce", json!("0x12")), "credential_member_invalid"),
        (signed("value", json!("-1")), "credential_member_invalid"),
        (signed("value", json!("0x2710")), "credential_member_invalid"),
        (signed("value", json!("1e4")), "credential_member_invalid"),
        (signed("value", json!(over)), "credential_number_out_of_range"),
        (signed("validBefore", json!("tomorrow")), "credential_member_invalid"),
        (with(&good, "/accepted/amount", json!(over)), "credential_number_out_of_range"),
        (with(&good, "/accepted/maxTimeoutSeconds", json!(-1)), "credential_number_out_of_range"),
        (with(&good, "/accepted/scheme", json!("upto")), "invalid_exact_evm_scheme"),
        (with(&good, "/accepted/network", json!("mars")), "invalid_network"),
        (with(&good, "/payload", json!({ "permit2Authorization": {} })), "unsupported_payload_type"),
        (with(&good, "/payload", json!({ "transaction": "AQAB" })), "unsupported_payload_type"),
    ] {
        gate.pay(&payment).await.refuses(&payment.to_string(), 400, code, "after_payment");
    }
    gate.came_to_no_harm().await;
}

#[tokio::test]
async fn payments_for_other_terms_than_the_bills_are_402_and_never_settled() {
    let gate = Gate::open(&[]).await;
    let terms = gate.bill().await;
    let good = gate.payment("terms").await;
    const MISMATCH: &str = "invalid_exact_evm_payload_authorization_value_mismatch";
    for (pointer, value, code) in [
        ("/accepted/network", json!("eip155:1"), "invalid_exact_evm_network_mismatch"),
        ("/accepted/network", json!("eip155:999999"), "invalid_exact_evm_network_mismatch"),
        ("/accepted/network", json!("solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp"), "invalid_exact_evm_network_mismatch"),
        ("/accepted/asset", json!(STRANGER), "invalid_payment_requirements"),
        ("/accepted/payTo", json!(STRANGER), "invalid_exact_evm_recipient_mismatch"),
        ("/accepted/amount", json!("1"), MISMATCH),
        ("/accepted/maxTimeoutSeconds", json!(61), "invalid_payment_requirements"),
        ("/accepted/extra/name", json!("USD Coin"), "invalid_exact_evm_token_name_mismatch"),
        ("/accepted/extra/version", json!("1"), "invalid_exact_evm_token_version_mismatch"),
    ] {
        let told = gate.pay(&with(&good, pointer, value)).await;
        told.refuses(pointer, 402, code, "after_payment");
    }
    // Signed as told, so that only the terms are wrong.
    let honest = gate.authorization("dishonest");
    let cheaper = Authorization { value: CENT - 1, ..honest };
    let dearer = Authorization { value: CENT + 1, ..honest };
    let elsewhere = Authorization { to: STRANGER, ..honest };
    let to_themselves = Authorization { to: gate.payer.address(), ..honest };
    for (name, authorization, code) in [
        ("a unit less", cheaper, MISMATCH),
        ("a unit more", dearer, MISMATCH),
        ("nothing", Authorization { value: 0, ..honest }, MISMATCH),
        ("to a stranger", elsewhere, "invalid_exact_evm_recipient_mismatch"),
        ("to themselves", to_themselves, "invalid_exact_evm_recipient_mismatch"),
    ] {
        let signature = authorization.sign(&gate.payer).await.unwrap();
        gate.pay(&payment(&terms, &authorization, &signature)).await.refuses(name, 402, code, "after_payment");
    }
    gate.came_to_no_harm().await;
}

#[tokio::test]
async fn signatures_that_are_not_the_payers_over_this_token_and_chain_are_402() {
    let gate = Gate::open(&[]).await;
    let terms = gate.bill().await;
    let authorization = gate.authorization("forged");
    let good = authorization.sign(&gate.payer).await.unwrap();
    let thief = Account::named("thief").unwrap();
    let domain = |name: &'static str, chain_id: u64, token: Address| {
        eip712_domain! { name: name, version: "2", chain_id: chain_id, verifying_contract: token, }
    };
    let foreign = [
        ("mainnet", domain("USDC", 8453, Usdc::ADDRESS)),
        ("the attacker's token", domain("USDC", CHAIN_ID, STRANGER)),
        ("another name", domain("USD Coin", CHAIN_ID, Usdc::ADDRESS)),
    ];
    let mut forged = vec![
        ("a thief's", authorization.sign(&thief).await.unwrap()),
        ("another nonce", gate.authorization("other").sign(&gate.payer).await.unwrap()),
        ("cut", good.slice(..64)),
        ("padded", [&good[..], &[0; 32]].concat().into()),
        ("zeroes", Bytes::from(vec![0; 65])),
        ("long", Bytes::from(vec![0xab; 4096])),
    ];
    for (name, domain) in foreign {
        forged.push((name, authorization.sign_for(&gate.payer, &domain).await.unwrap()));
    }
    for (name, signature) in forged {
        let told = gate.pay(&payment(&terms, &authorization, &signature)).await;
        told.refuses(name, 402, "invalid_exact_evm_signature", "after_payment");
    }
    gate.came_to_no_harm().await;
}

#[tokio::test]
async fn ten_minutes_of_clock_skew_are_refused_either_way() {
    let gate = Gate::open(&[]).await;
    let terms = gate.bill().await;
    let honest = gate.authorization("skewed");
    let now = now_s();
    // A client of the official kind: valid from ten minutes ago, by its own clock, for as long as the bill says.
    let at = |clock: u64| Authorization { valid_after: clock, valid_before: clock + 60, ..honest };
    const BEFORE: &str = "invalid_exact_evm_payload_authorization_valid_before";
    const AFTER: &str = "invalid_exact_evm_payload_authorization_valid_after";
    for (name, authorization, code) in [
        ("ten minutes slow", at(now - 600), BEFORE),
        ("ten minutes fast", at(now + 600), AFTER),
        ("ended now", Authorization { valid_before: now, ..honest }, BEFORE),
        ("too short to serve", Authorization { valid_before: now + 6, ..honest }, BEFORE),
        ("milliseconds", Authorization { valid_before: (now + 60) * 1000, ..honest }, BEFORE),
        ("for ever", Authorization { valid_before: u64::MAX, ..honest }, BEFORE),
        ("never", Authorization { valid_after: u64::MAX, ..honest }, AFTER),
    ] {
        let signature = authorization.sign(&gate.payer).await.unwrap();
        gate.pay(&payment(&terms, &authorization, &signature)).await.refuses(name, 402, code, "after_payment");
    }
    gate.came_to_no_harm().await;
}

#[tokio::test]
async fn half_a_minute_of_clock_skew_is_borne_either_way() {
    // Blocks as on a live chain, whose clock goes on.
    let gate = Gate::open(&["--block-time", "1"]).await;
    let terms = gate.bill().await;
    let (slow, fast) = (gate.authorization("slow"), gate.authorization("fast"));
    // As a client signs: as long as the bill says, by its own clock.
    let lives = terms["accepts"][0]["maxTimeoutSeconds"].as_u64().unwrap();
    let slow = Authorization { valid_after: now_s() - 30, valid_before: now_s() - 30 + lives, ..slow };
    let fast = Authorization { valid_after: now_s() + 29, valid_before: now_s() + 29 + lives, ..fast };
    let pay = async |authorization: Authorization| {
        let signature = authorization.sign(&gate.payer).await.unwrap();
        let payment = payment(&terms, &authorization, &signature);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let told = gate.pay(&payment).await;
            if told.status != 503 || Instant::now() > deadline {
                return told;
            }
            // A client that does as it is told.
            let problem = told.problem();
            assert_eq!((&problem["retry"], &problem["charged"]), (&json!("same_proof"), &json!(false)), "{problem}");
            tokio::time::sleep(Duration::from_secs(problem["retryAfter"].as_u64().unwrap())).await;
        }
    };
    let (slow, fast) = tokio::join!(pay(slow), pay(fast));
    assert_eq!((slow.status, fast.status), (200, 200), "{slow:?} {fast:?}");
    assert_eq!(gate.counter.paid_by(gate.payer.address()).await.unwrap(), [CENT, CENT]);
}

#[tokio::test]
async fn what_the_chain_would_refuse_is_found_before_anything_is_sent() {
    let gate = Gate::open(&[]).await;
    let terms = gate.bill().await;
    let poor = gate.counter.payer("poor", CENT - 1).await.unwrap();
    let blocked = gate.counter.payer("blocked", DOLLAR).await.unwrap();
    let block = gate.counter.usdc.contract().blacklist(blocked.address()).from(gate.counter.anvil.rich());
    drop(block.send().await.unwrap());
    // Whether or not instant mining has taken it.
    gate.counter.anvil.mine(1).await.unwrap();
    for (payer, code) in [
        (&poor, "invalid_exact_evm_insufficient_balance"),
        (&blocked, "invalid_exact_evm_transaction_simulation_failed"),
    ] {
        let authorization = Authorization::new(payer, Counter::SELLER, CENT, code);
        let signature = authorization.sign(payer).await.unwrap();
        gate.pay(&payment(&terms, &authorization, &signature)).await.refuses(code, 402, code, "after_payment");
    }
    // An authorization that its owner spent elsewhere, by somebody else's relayer.
    let other = Account::named("other relayer").unwrap();
    gate.counter.anvil.set_balance(other.address(), 1_000_000_000_000_000_000).await.unwrap();
    let spender = gate.counter.payer("spender", DOLLAR).await.unwrap();
    let spent = Authorization::new(&spender, Counter::SELLER, CENT, "spent");
    let signature = spent.sign(&spender).await.unwrap();
    let relay = gate.counter.anvil.provider_for(&other).unwrap();
    gate.counter.usdc.transfer_with_authorization(&relay, &spent, signature.clone()).await.unwrap();
    let told = gate.pay(&payment(&terms, &spent, &signature)).await;
    told.refuses("spent elsewhere", 402, "invalid_exact_evm_nonce_already_used", "after_payment");

    let sent = gate.counter.anvil.transaction_count(gate.counter.relayer.address()).await.unwrap();
    assert_eq!((sent, gate.counter.echo.hits()), (0, 0));
    assert_eq!(books(gate.farebox.setup()).await.unwrap(), Vec::<Value>::new());
}

#[tokio::test]
async fn a_contract_wallet_pays_by_its_owners_signature_alone() {
    let gate = Gate::open(&[]).await;
    let terms = gate.bill().await;
    let owner = Account::named("owner").unwrap();
    let code = hex::decode(demo_wallet()["bytecode"].as_str().unwrap().trim_start_matches("0x")).unwrap();
    let wallet = gate.counter.anvil.deploy(&code, &owner.address().abi_encode()).await.unwrap();
    gate.counter.usdc.mint(wallet, DOLLAR).await.unwrap();
    let from_wallet = Authorization { from: wallet, ..gate.authorization("wallet") };

    let forged = from_wallet.sign(&gate.payer).await.unwrap();
    let told = gate.pay(&payment(&terms, &from_wallet, &forged)).await;
    told.refuses("a stranger's signature", 402, "invalid_exact_evm_signature", "after_payment");
    // Not deployed: plain, and wrapped (ERC-6492) with a factory that the payer chose.
    let nowhere = Authorization { from: STRANGER, ..gate.authorization("undeployed") };
    let plain = nowhere.sign(&owner).await.unwrap();
    let wrapped = |factory: Address| -> Bytes {
        let inner = (factory, Bytes::from(vec![1, 2, 3]), plain.clone()).abi_encode_params();
        [&inner[..], &hex::decode("6492".repeat(16)).unwrap()].concat().into()
    };
    for (name, signature, code) in [
        ("undeployed", plain.clone(), "invalid_exact_evm_signature"),
        ("a factory", wrapped(STRANGER), "eip6492_factory_not_allowed"),
        ("no factory", wrapped(Address::ZERO), "invalid_exact_evm_payload_undeployed_smart_wallet"),
    ] {
        gate.pay(&payment(&terms, &nowhere, &signature)).await.refuses(name, 402, code, "after_payment");
    }
    assert_eq!(gate.counter.echo.hits(), 0);

    let signature = from_wallet.sign(&owner).await.unwrap();
    let paid = gate.pay(&payment(&terms, &from_wallet, &signature)).await;
    assert_eq!(paid.status, 200, "{paid:?}");
    assert_eq!(gate.counter.paid_by(wallet).await.unwrap(), [CENT]);
    assert_eq!(gate.counter.usdc.balance_of(wallet).await.unwrap(), DOLLAR - CENT);
}

fn demo_wallet() -> Value {
    serde_json::from_str(include_str!("../../devchain/contracts/DemoWallet.json")).unwrap()
}

#[tokio::test]
async fn no_spelling_of_a_paid_path_is_served_unpaid() {
    let gate = Gate::open(&[]).await;
    let spellings = [
        "/v1/../v1/report",
        "/v1/./report",
        "/./v1/report",
        "/%2e/v1/report",
        "/v1/%2e%2e/v1/report",
        "/v1/%2E/report",
        "/v1%2freport",
        "/v1%2Freport",
        "/%2fv1/report",
        "//v1/report",
        "/v1//report",
        "/v1/report//",
        "/v1\\report",
        "/v1%5creport",
        "/v1/report;x=1",
        "/v1;a=b/report",
        "/v1/report%3b",
        "/V1/report",
        "/v1/report/",
        "/v1/report/.",
        "/v1/report/..",
        "/%76%31/report",
        "/v1/%72eport",
        "/v1/report%00",
        "/v1/report%20",
        "/v1/%252e/report",
        "/v1/%c0%ae/report",
        "/v1/report%0d%0ax:y",
        "/v1/report#x",
        "/v1/report?",
        "/v1/report?a=/free/",
        "/free/../v1/report",
        "/free/%2e%2e/v1/report",
        "/free/..%2fv1/report",
        "/free/..\\v1/report",
        "/free//../v1/report",
        "/free/..;/v1/report",
        "/free/%2e%2e%2fv1/report",
        "/free/%252e%252e/v1/report",
        "/free/./../v1/report",
        "http://127.0.0.1/v1/report",
        "http://127.0.0.1/free/../v1/report",
        "v1/report",
        "*",
        "",
    ];
    for method in ["GET", "HEAD", "OPTIONS", "POST", "get", "GET\t", "PROPFIND"] {
        for path in spellings.iter().chain(&[PAID]) {
            let answer = raw(&gate.farebox, &format!("{method} {path} HTTP/1.1\r\nhost: a\r\n")).await;
            let status: u16 = answer.get(9..12).unwrap_or("400").parse().unwrap();
            let refused = (400..500).contains(&status) || status == 204 && method == "OPTIONS" || status == 501;
            assert!(refused, "{method} {path}: {answer}");
        }
    }
    for header in [
        "x-http-method-override: OPTIONS",
        "x-original-url: /free/x",
        "x-rewrite-url: /free/x",
        "x-forwarded-prefix: /free",
    ] {
        let answer = raw(&gate.farebox, &format!("GET {PAID} HTTP/1.1\r\nhost: a\r\n{header}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 402 "), "{header}: {answer}");
    }
    // Even a good payment buys neither: they would run the upstream for nothing, or for a head alone.
    let good = signed_payment(&gate.farebox.url(PAID), &gate.payer, "head").await.unwrap();
    for (method, status) in [("HEAD", "402"), ("OPTIONS", "204")] {
        let head = format!("{method} {PAID} HTTP/1.1\r\nhost: a\r\npayment-signature: {good}\r\n");
        let answer = raw(&gate.farebox, &head).await;
        assert_eq!(answer.get(9..12), Some(status), "{method}: {answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{method} has a body: {answer}");
    }
    gate.came_to_no_harm().await;
}

#[tokio::test]
async fn heads_beyond_every_bound_end_in_a_refusal_and_not_in_the_process() {
    let gate = Gate::open(&[]).await;
    let (large, many) = ("a".repeat(64 * 1024), "x-a: b\r\n".repeat(500));
    // Both lengths: RFC 9112 has it read as chunked, and what follows is never a request of its own.
    for (head, status) in [
        (format!("GET {PAID} HTTP/1.1\r\nhost: a\r\npayment-signature: {large}\r\n"), "431"),
        (format!("GET {PAID} HTTP/1.1\r\nhost: a\r\n{many}"), "431"),
        (format!("GET {PAID} HTTP/1.1\r\nhost: a\r\npayment-signature: \u{e4}\u{0}\r\n"), "400"),
        (format!("GET {PAID} HTTP/1.1\r\nhost: a\r\npayment-signature : x\r\n"), "400"),
        (format!("GET {PAID} HTTP/1.1\r\nhost: a\r\nhost: b\r\n"), "400"),
        (format!("GET {PAID} HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n"), "402"),
        (format!("GET {PAID} HTTP/9.9\r\nhost: a\r\n"), "400"),
        ("\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}".to_owned(), "400"),
    ] {
        let answer = raw(&gate.farebox, &head).await;
        let shown: String = head.chars().take(80).collect();
        // Closing without a word is a refusal too; an answer must be the right one.
        assert!(answer.is_empty() || answer.get(9..12) == Some(status), "{shown:?}: {answer}");
    }
    let bytes = gate.send(&[("payment-signature", "\u{e4}\u{f6}\u{fc}")]).await;
    bytes.refuses("not ASCII", 400, "credential_not_base64", "after_payment");
    gate.came_to_no_harm().await;
}

/// Sends a head, to which `connection: close` and its end are added, and gives all that comes back.
async fn raw(farebox: &Farebox, head: &str) -> String {
    let address = farebox.url("").replace("http://", "");
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A server that refuses early closes while we still write.
    stream.write_all(format!("{head}connection: close\r\n\r\n").as_bytes()).await.ok();
    let mut answer = vec![];
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    read.unwrap_or_else(|_| panic!("no end of the answer to {head:?}")).ok();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_a_503_and_never_a_bill() {
    let counter = Counter::open(&[]).await.unwrap();
    let node = FaultProxy::start(counter.anvil.url()).await.unwrap();
    let config =
        counter.chain(&node.url()) + "rpc_timeout = \"2s\"\n" + &counter.route("GET /v1/*", "price = \"$0.01\"");
    let farebox = Farebox::start(counter.setup(&config).unwrap()).await.unwrap();
    let payer = counter.payer("payer", DOLLAR).await.unwrap();
    let gate = Gate { counter, farebox, payer, before: (0, 0) };
    let payment = gate.payment("cut off").await;

    node.cut_off();
    let told = gate.pay(&payment).await;
    told.refuses("cut off", 503, "payment_unverifiable", "same_proof");
    assert!(told.headers.contains_key("retry-after"));
    // What needs no node is known without it, and the bill is in hand.
    let forged = with(&payment, "/accepted/amount", json!("1"));
    let code = "invalid_exact_evm_payload_authorization_value_mismatch";
    gate.pay(&forged).await.refuses("forged", 402, code, "after_payment");
    gate.bill().await;
    node.heal();
    let deadline = Instant::now() + PATIENCE;
    while gate.pay(&payment).await.status != 200 {
        assert!(Instant::now() < deadline, "never served after the node came back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(gate.counter.paid_by(gate.payer.address()).await.unwrap(), [CENT]);
    assert_eq!(gate.counter.echo.hits(), 1);
}

#[tokio::test]
async fn a_gateway_whose_chain_is_not_there_or_another_one_does_not_start() {
    let counter = Counter::open(&[]).await.unwrap();
    let route = counter.route("GET /v1/*", "price = \"$0.01\"");
    let nobody = format!("http://127.0.0.1:{}", farebox_e2e::free_port().unwrap());
    let other = counter.chain(counter.anvil.url()).replace("eip155:84532", "eip155:8453");
    let no_token = counter
        .chain(counter.anvil.url())
        .replace("[\"USDC\"]", &format!("[{{ address = \"{STRANGER}\", symbol = \"FAKE\", dollar = true }}]"));
    let cases = [
        ("no node", counter.chain(&nobody), ["eip155:84532", "no node answered"]),
        ("another chain", other, ["8453", "84532"]),
        ("no token", no_token, ["0x00000000000000000000000000000000000a77ac", "no code"]),
    ];
    for (name, chain, said) in cases {
        let setup = counter.setup(&(chain + &route)).unwrap();
        let mut process = Process::start("farebox", &mut setup.command(&["serve"]).unwrap()).unwrap();
        let status = process.wait(PATIENCE).await.unwrap();
        let log = process.log();
        assert_eq!(status.code(), Some(1), "{name}: {log}");
        assert!(said.iter().all(|word| log.to_lowercase().contains(&word.to_lowercase())), "{name}: {log}");
        assert!(!log.contains("panicked"), "{name}: {log}");
        assert!(http_client().unwrap().get(setup.url(PAID)).send().await.is_err(), "{name}: it listens");
    }
}
