//! Claims that are refused before any chain is asked: each with its own code, and none costs a question to the node.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::time::Duration;

use alloy::{primitives::B256, sol_types::SolValue};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD},
};
use farebox_e2e::{Account, Claim, Next, Quoted, Reply, Shop, ShopOptions, contract::deploy, http_client, now_s};
use http::Method;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
const HOUR: u64 = 3_600;
/// The order of secp256k1. Source: SEC 2.
const ORDER: &str = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";

/// A shop, and a payer with a good claim on a transfer that was made.
struct Gate {
    shop: Shop,
    payer: Account,
    bill: Quoted,
    good: Claim,
    /// What the node had been asked about transactions and wallets when the refusals began.
    asked: usize,
}

/// What the node has been asked about transactions and wallets.
fn asked(shop: &Shop) -> usize {
    let about = ["eth_getTransactionReceipt", "eth_getTransactionByHash", "eth_getCode", "eth_call"];
    about.map(|method| shop.rpc.calls(method).len()).iter().sum()
}

impl Gate {
    async fn open() -> Self {
        Self::open_with(ShopOptions::BOTH).await
    }

    async fn open_with(options: ShopOptions) -> Self {
        let shop = Shop::open_with(options).await.unwrap();
        let payer = shop.spender("payer").await.unwrap();
        let bill = shop.quote(Shop::AFTER).await.unwrap();
        let option = bill.option("USDC").unwrap();
        let transaction = shop.pay(&payer, &option).await.unwrap();
        let good = bill.claim(&option, transaction, payer.address()).signed(&payer).await.unwrap();
        let asked = asked(&shop);
        Self { shop, payer, bill, good, asked }
    }

    async fn send(&self, headers: &[(&str, &str)]) -> Reply {
        let mut request = http_client().unwrap().get(self.shop.farebox.url(Shop::AFTER));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Reply::read(request.send().await.unwrap()).await.unwrap()
    }

    async fn refuses(&self, name: &str, claim: &Claim, status: u16, code: &str) {
        self.shop.claim(claim).await.unwrap().refuses(name, status, code, Next::Mend);
    }

    /// The good claim with one member changed, and signed for.
    async fn signed_with(&self, member: &str, value: impl Into<Value>) -> Claim {
        self.good.clone().with(member, value).signed(&self.payer).await.unwrap()
    }

    /// Nothing was asked of the node about this transaction, forwarded, or written in the books; and the good claim is still good.
    async fn came_to_no_harm(mut self) {
        assert_eq!(asked(&self.shop), self.asked, "a refusal cost a question");
        assert_eq!((self.shop.echo.hits(), self.shop.payments().await.unwrap()), (0, vec![]));
        let log = self.shop.farebox.process().log();
        assert!(!log.contains("panicked"), "{log}");
        let reply = self.shop.claim(&self.good).await.unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(self.shop.audit().await.unwrap().payments.len(), 1);
    }
}

#[tokio::test]
async fn headers_that_are_no_payment_code_are_400() {
    let gate = Gate::open().await;
    let (hash, code) = (gate.good.announced.clone(), gate.good.encoded());
    let text = Value::Object(gate.good.code.clone()).to_string();
    let url = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let twice = text.replacen("\"version\":1", "\"version\":1,\"version\":1", 1);
    assert_ne!(twice, text);
    // A length whose last character has bits to spare, and then other ones than zeros.
    let spare = format!("{text}{}", " ".repeat(4 - text.len() % 3));
    let mut uncanonical = url(spare.as_bytes());
    assert_eq!(uncanonical.pop(), Some('A'), "a space is 0x20: its last bits are zeros");
    uncanonical.push('B');
    let standard = BASE64_STANDARD_NO_PAD.encode(format!("{text}{}", " ~~~???".repeat(3)));
    assert!(standard.contains(['+', '/']));

    for (name, hash, code) in [
        ("empty", &*hash, ""),
        ("words", &hash, "let me in"),
        ("plain JSON", &hash, &text),
        ("padded", &hash, &BASE64_URL_SAFE.encode(format!("{text}{}", " ".repeat(3 - text.len() % 3 + 1)))),
        ("standard base64", &hash, &standard),
        ("not canonical", &hash, &uncanonical),
        ("cut", &hash, &code[..code.len() - 9]),
        ("not UTF-8", &hash, &url(&[0xff, 0xfe, 0x00])),
        ("a list", &hash, &url(b"[]")),
        ("null", &hash, &url(b"null")),
        ("empty object", &hash, &url(b"{}")),
        ("deep", &hash, &url("[".repeat(8_000).as_bytes())),
        ("a key twice", &hash, &url(twice.as_bytes())),
        ("more than 12 KiB", &hash, &url(format!("{text}{}", " ".repeat(9_300)).as_bytes())),
        ("no 0x", &hash[2..], &code),
        ("a short hash", &hash[..64], &code),
        ("a long hash", &format!("{hash}00"), &code),
        ("a hash of words", "the last one", &code),
    ] {
        let reply = gate.send(&[("x-payment-hash", hash), ("x-payment-code", code)]).await;
        reply.refuses(name, 400, "malformed_payment_code", Next::Mend);
    }
    for (name, headers) in [
        ("no hash", vec![("x-payment-code", &*code)]),
        ("no code", vec![("x-payment-hash", &*hash)]),
        ("two codes", vec![("x-payment-hash", &hash), ("x-payment-code", &code), ("x-payment-code", &code)]),
        ("two hashes", vec![("x-payment-hash", &hash), ("x-payment-hash", &hash), ("x-payment-code", &code)]),
    ] {
        gate.send(&headers).await.refuses(name, 400, "malformed_payment_code", Next::Mend);
    }
    gate.came_to_no_harm().await;
}

#[tokio::test]
async fn members_that_are_missing_mistyped_or_out_of_range_are_400() {
    let gate = Gate::open().await;
    let members: Vec<String> = gate.good.code.keys().cloned().collect();
    assert_eq!(members.len(), 12);
    for member in members {
        gate.refuses(&member, &gate.good.clone().without(&member), 400, "malformed_payment_code").await;
        let wrong = gate.good.clone().with(&member, json!([]));
        gate.refuses(&format!("a list as {member}"), &wrong, 400, "malformed_payment_code").await;
    }
    let payer = gate.payer.address().to_string();
    let upper = format!("0x{}", payer[2..].to_uppercase());
    let flipped: String = payer
        .chars()
        .map(|c| {
            if c == 'x' {
                c
            } else if c.is_lowercase() {
                c.to_ascii_uppercase()
            } else {
                c.to_ascii_lowercase()
            }
        })
        .collect();
    for (member, value) in [
        ("version", json!(2)),
        ("version", json!("1")),
        ("version", json!(1.5)),
        ("amount", json!(10_000)),
        ("amount", json!("0")),
        ("amount", json!("010000")),
        ("amount", json!("+10000")),
        ("amount", json!("-1")),
        ("amount", json!("1e4")),
        ("amount", json!("0x2710")),
        ("amount", json!("10000.0")),
        ("amount", json!(" 10000")),
        ("amount", json!(format!("1{}", "0".repeat(80)))),
        ("expiresAt", json!((now_s() + 60).to_string())),
        ("expiresAt", json!(1.5e9 + 0.5)),
        ("expiresAt", json!(-1)),
        ("payer", json!(upper)),
        ("payer", json!(flipped)),
        ("payer", json!(payer[2..])),
        ("payer", json!(payer[..40])),
        ("payTo", json!("seller.eth")),
        ("asset", json!("Native")),
        ("asset", json!("USDC")),
        ("transaction", json!("0x12")),
        ("network", json!("base-sepolia")),
        ("network", json!("solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp")),
        ("signature", json!("0x")),
        ("signature", json!(format!("0x{}", "ab".repeat(64)))),
        ("signature", json!(format!("0x{}", "zz".repeat(65)))),
        ("signature", json!("ab".repeat(65))),
        ("quote", json!("")),
        ("resource", json!("")),
        ("method", json!("")),
    ] {
        let name = format!("{member} = {value}");
        gate.refuses(&name, &gate.good.clone().with(member, value), 400, "malformed_payment_code").await;
    }
    gate.came_to_no_harm().await;
}

#[tokio::test]
async fn a_hash_that_is_not_the_codes_is_400() {
    let gate = Gate::open().await;
    let mut other = gate.good.clone();
    other.announced = B256::repeat_byte(1).to_string();
    let reply = gate.shop.claim(&other).await.unwrap();
    reply.refuses("another hash", 400, "transaction_mismatch", Next::Mend);
    // The same number in other letters is the same hash.
    let mut upper = gate.good.clone();
    upper.announced = format!("0x{}", upper.announced[2..].to_uppercase());
    assert_eq!(gate.shop.claim(&upper).await.unwrap().status, 200);
    assert_eq!(gate.shop.echo.hits(), 1);
}

#[tokio::test]
async fn quotes_that_are_not_ours_are_unknown() {
    let gate = Gate::open().await;
    let other = Shop::open_with(ShopOptions::BOTH).await.unwrap();
    let foreign = other.quote(Shop::AFTER).await.unwrap().json["quote"].as_str().unwrap().to_owned();
    let quote = gate.bill.json["quote"].as_str().unwrap().to_owned();
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(&quote).unwrap();
    let mut forged = vec![
        ("another gateway's".to_owned(), foreign),
        ("words".to_owned(), "quote".to_owned()),
        ("long".to_owned(), "A".repeat(4_000)),
        ("with a tail".to_owned(), BASE64_URL_SAFE_NO_PAD.encode([&bytes[..], &[0]].concat())),
        ("padded".to_owned(), format!("{quote}=")),
        ("in another alphabet".to_owned(), format!("{}+", &quote[..quote.len() - 1])),
    ];
    for cut in [1, bytes.len() / 2, bytes.len() - 1] {
        forged.push((format!("cut to {cut} bytes"), BASE64_URL_SAFE_NO_PAD.encode(&bytes[..cut])));
    }
    for at in (0..bytes.len()).step_by(3) {
        let mut altered = bytes.clone();
        altered[at] ^= 1;
        forged.push((format!("byte {at} altered"), BASE64_URL_SAFE_NO_PAD.encode(altered)));
    }
    for (name, quote) in forged {
        gate.refuses(&name, &gate.signed_with("quote", quote).await, 402, "unknown_quote").await;
    }
    gate.came_to_no_harm().await;
}

#[tokio::test]
async fn quotes_survive_a_restart_and_a_rotation_of_keys_and_no_longer_than_they_must() {
    let mut gate = Gate::open().await;
    gate.shop.farebox.restart().await.unwrap();
    assert_eq!(gate.shop.claim(&gate.good).await.unwrap().status, 200);

    // Quoted an hour before the key's thirty days are over, and claimed an hour after it.
    let [before, after] = [30 * 24 - 1, 30 * 24 + 1].map(|hours| Duration::from_secs(hours * HOUR));
    gate.shop.anvil.later(before).await.unwrap();
    gate.shop.farebox.restart_ahead(before).await.unwrap();
    let claim = gate.shop.buy(&gate.payer, Shop::AFTER, "USDC").await.unwrap();
    gate.shop.anvil.later(after - before).await.unwrap();
    gate.shop.farebox.restart_ahead(after).await.unwrap();
    let renewed = claim.with("expiresAt", now_s() + after.as_secs() + 60).signed(&gate.payer).await.unwrap();
    let reply = gate.shop.claim(&renewed).await.unwrap();
    assert_eq!((reply.status, reply.is_replay()), (200, false), "{reply:?}");

    // Long after its last quote has ended a key is gone, which takes one restart to replace it and one to forget it.
    let unpaid = gate.shop.quote(Shop::AFTER).await.unwrap();
    let option = unpaid.option("USDC").unwrap();
    let [long, longer] = [90, 150].map(|days| Duration::from_secs(days * 24 * HOUR));
    for ahead in [long, longer] {
        gate.shop.farebox.restart_ahead(ahead).await.unwrap();
    }
    let gone = unpaid.claim(&option, B256::repeat_byte(3), gate.payer.address());
    let gone = gone.with("expiresAt", now_s() + longer.as_secs() + 60).signed(&gate.payer).await.unwrap();
    gate.refuses("a quote under a key that is gone", &gone, 402, "unknown_quote").await;
}

#[tokio::test]
async fn a_claim_is_good_for_the_quoted_request_alone() {
    let gate = Gate::open().await;
    let elsewhere = gate.shop.farebox.url(Shop::BEFORE);
    for path in [Shop::BEFORE, "/after/other", "/after/report?page=2", "/after/report?", "/after/hasty"] {
        gate.refuses(path, &gate.good.clone().to(path), 402, "resource_mismatch").await;
    }
    gate.refuses(
        "a code for another",
        &gate.signed_with("resource", elsewhere.clone()).await,
        402,
        "resource_mismatch",
    )
    .await;
    let both = gate.signed_with("resource", elsewhere).await.to(Shop::BEFORE);
    gate.refuses("code and request, and not the quote", &both, 402, "resource_mismatch").await;
    let fragment = format!("{}#top", gate.shop.farebox.url(Shop::AFTER));
    gate.refuses("with a fragment", &gate.signed_with("resource", fragment).await, 402, "resource_mismatch").await;
    let localhost = gate.shop.farebox.url(Shop::AFTER).replace("127.0.0.1", "localhost");
    gate.refuses("another origin", &gate.signed_with("resource", localhost).await, 402, "resource_mismatch").await;
    gate.refuses("another method", &gate.signed_with("method", "POST").await, 402, "resource_mismatch").await;
    let posted = Reply::read(gate.shop.claim_request(Method::POST, &gate.good).send().await.unwrap()).await.unwrap();
    posted.refuses("a POST", 402, "resource_mismatch", Next::Mend);
    gate.came_to_no_harm().await;
}

#[tokio::test]
async fn the_host_header_is_nobodys_word() {
    let gate = Gate::open().await;
    let request = gate.shop.claim_request(Method::GET, &gate.good).header("host", "attacker.example");
    let reply =
        Reply::read(request.header("x-forwarded-host", "attacker.example").send().await.unwrap()).await.unwrap();
    assert_eq!(reply.status, 200, "{reply:?}");
}

#[tokio::test]
async fn codes_that_have_ended_or_live_too_long_are_expired_and_the_transfer_is_not_lost() {
    let gate = Gate::open().await;
    for expires_at in [0, now_s() - 35, now_s() + 640, u64::from(u32::MAX)] {
        let claim = gate.signed_with("expiresAt", expires_at).await;
        gate.refuses(&expires_at.to_string(), &claim, 402, "payment_code_expired").await;
    }
    gate.came_to_no_harm().await;
}

#[tokio::test]
async fn terms_that_are_not_one_option_of_the_quote_are_refused() {
    let gate = Gate::open().await;
    let ether = gate.bill.option("ETH").unwrap();
    let stranger = Account::named("stranger").unwrap().address().to_string();
    for (member, value) in [
        ("network", json!("eip155:8453")),
        ("network", json!("eip155:1")),
        ("asset", json!(stranger)),
        ("asset", json!("native")),
        ("payTo", json!(stranger)),
        ("payTo", json!(gate.payer.address().to_string())),
        ("amount", json!("1")),
        ("amount", json!("9999")),
        ("amount", json!("10001")),
        ("amount", json!(ether.units.to_string())),
    ] {
        let name = format!("{member} = {value}");
        gate.refuses(&name, &gate.signed_with(member, value).await, 402, "terms_mismatch").await;
    }
    gate.came_to_no_harm().await;
}

#[tokio::test]
async fn signatures_that_are_not_the_payers_are_refused() {
    let gate = Gate::open().await;
    let stranger = Account::named("stranger").unwrap();
    let good = gate.good.code["signature"].as_str().unwrap().to_owned();
    let (r, s, v) = (&good[2..66], &good[66..130], &good[130..]);
    let order = alloy::primitives::U256::from_str_radix(ORDER, 16).unwrap();
    let high_s = order - alloy::primitives::U256::from_str_radix(s, 16).unwrap();
    let other_v = if v == "1b" { "1c" } else { "1b" };
    let strangers = gate.good.clone().signature(&stranger).await.unwrap();
    let older = gate.good.clone().with("expiresAt", now_s() + 1).signature(&gate.payer).await.unwrap();
    let untyped = Account::named("payer").unwrap();
    let untyped = alloy::signers::Signer::sign_message(untyped.signer(), gate.good.encoded().as_bytes()).await.unwrap();
    for (name, signature) in [
        ("a stranger's", strangers),
        ("of another expiry", older),
        ("by personal_sign", format!("0x{}", hex::encode(untyped.as_bytes()))),
        ("of zeros", format!("0x{}", "00".repeat(65))),
        ("of ones", format!("0x{}", "ff".repeat(65))),
        ("the other v", format!("0x{r}{s}{other_v}")),
        ("v of 0 or 1", format!("0x{r}{s}{}", if v == "1b" { "00" } else { "01" })),
        ("v of 29", format!("0x{r}{s}1d")),
        ("high s", format!("0x{r}{high_s:064x}{other_v}")),
        ("r and s exchanged", format!("0x{s}{r}{v}")),
        ("66 bytes", format!("0x{r}{s}{v}00")),
    ] {
        gate.refuses(name, &gate.good.clone().with("signature", signature), 402, "bad_signature").await;
    }
    // Whether the payer has code is asked once, together with what it would say; and nothing of the transaction.
    assert_eq!(gate.shop.rpc.calls("eth_getTransactionReceipt"), Vec::<Value>::new());
    assert!(asked(&gate.shop) <= gate.asked + 2, "{:?}", gate.shop.rpc.calls("eth_getCode"));
    assert_eq!(gate.shop.claim(&gate.good).await.unwrap().status, 200);
}

#[tokio::test]
async fn contract_wallets_that_do_not_say_yes_are_refused() {
    let gate = Gate::open().await;
    for name in ["RevertingWallet", "BurningWallet", "ShortWallet", "Token"] {
        let arguments = if name == "Token" { vec![] } else { gate.payer.address().abi_encode() };
        let wallet = deploy(&gate.shop.anvil, name, &arguments).await.unwrap();
        let claim = gate.good.clone().with("payer", wallet.to_string()).signed(&gate.payer).await.unwrap();
        gate.refuses(name, &claim, 402, "bad_signature").await;
    }
    assert_eq!((gate.shop.echo.hits(), gate.shop.payments().await.unwrap()), (0, vec![]));
}

#[tokio::test]
async fn a_replayed_claim_costs_no_question_to_the_node_and_a_good_one_three_at_most() {
    // Nothing asks the node of its own accord.
    let options = ShopOptions { top: "pricing.refresh = \"1h\"", ..ShopOptions::BOTH };
    for symbol in ["USDC", "ETH"] {
        let gate = Gate::open_with(options).await;
        let claim = gate.shop.buy(&gate.payer, Shop::AFTER, symbol).await.unwrap();
        let idle = quiet_messages(&gate.shop).await;
        let before = gate.shop.rpc.messages_total();
        let began = tokio::time::Instant::now();
        assert_eq!(gate.shop.claim(&claim).await.unwrap().status, 200);
        // What the follower asks meanwhile is not the claim's.
        let background = (idle as u128 * began.elapsed().as_millis()).div_ceil(1_000) as usize;
        let spent = gate.shop.rpc.messages_total() - before;
        assert!(
            spent <= 3 + background,
            "{spent} round trips for {symbol}, of which {background} may be the follower's"
        );

        let before = asked(&gate.shop);
        for _ in 0..20 {
            assert!(gate.shop.claim(&claim).await.unwrap().is_replay());
        }
        assert_eq!(asked(&gate.shop), before, "{symbol}");
        assert_eq!(gate.shop.wait_for_books(SOON, |books| books.len() == 1).await.unwrap().len(), 1);
    }
}

/// How many messages a second the gateway sends of its own accord.
async fn quiet_messages(shop: &Shop) -> usize {
    let before = shop.rpc.messages_total();
    tokio::time::sleep(Duration::from_secs(1)).await;
    shop.rpc.messages_total() - before
}

#[tokio::test]
async fn a_standard_base64_credential_of_the_other_rail_is_no_payment_code() {
    let gate = Gate::open().await;
    let x402 = gate.shop.sign(&gate.payer, Shop::AFTER, "other rail").await.unwrap();
    assert!(BASE64_STANDARD.decode(&x402.credential).is_ok());
    let reply = gate.send(&[("x-payment-hash", &gate.good.announced), ("x-payment-code", &x402.credential)]).await;
    reply.refuses("an x402 payment as a code", 400, "malformed_payment_code", Next::Mend);
    let reply = gate.send(&[("payment-signature", &gate.good.encoded())]).await;
    assert_eq!(reply.status, 400, "{reply:?}");
    gate.came_to_no_harm().await;
}
