//! lnd as it never answers, and as it answers from behind a bad proxy.

use std::time::Duration;

use base64::Engine as _;
use farebox_core::{
    Invoice, PaymentHash, Timestamp,
    ports::{NodeError, Outgoing, PayOutcome},
};
use farebox_lightning::node::{LndConfig, NodeConfig, SecretSource};
use serde_json::json;

use crate::{
    server::{End, Reply, Server},
    support::{connected, order, to_pay},
};

const HASH: PaymentHash = PaymentHash([0xab; 32]);
/// `HASH` in base64, and another.
const HASH_B64: &str = "q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=";
const OTHER_B64: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
/// Source: BOLT 11, examples.
const BOLT11: &str = "lnbc2500u1pvjluezsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygspp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5xysxxatsyp3k7enxv4jsxqzpu9qrsgquk0rl77nj30yxdy8j9vdx85fkpmdla2087ne0xh8nhedh8w27kyke0lp53ut353s06fv3qfegext0eh0ymjpf39tuven09sam30g4vgpfna3rh";
const BOLT11_HASH: &str = "0001020304050607080900010203040506070809000102030405060708090102";

fn bolt11() -> Invoice {
    let (created_at, expires_at) = (Timestamp::from_unix_s(1_496_314_658), Timestamp::from_unix_s(1_496_314_718));
    let payment_hash = PaymentHash::from_hex(BOLT11_HASH).unwrap();
    Invoice { payment_hash, bolt11: BOLT11.into(), amount_msat: 250_000_000, created_at, expires_at }
}

fn lnd(url: &str) -> farebox_lightning::node::Connected {
    let macaroon = SecretSource::Text("0201aabb".to_owned().into());
    let timeout = Duration::from_secs(1);
    connected(&NodeConfig::Lnd(LndConfig { url: url.parse().unwrap(), macaroon, certificate: None, timeout }))
}

fn invoice(hash: &str, state: &str) -> serde_json::Value {
    json!({
        "r_hash": hash, "state": state, "creation_date": "1000", "expiry": "600", "settle_index": "1",
        "amt_paid_msat": "5000", "memo": "", "unknown_member": [1, 2],
    })
}

/// What is not a clear answer is never an answer.
async fn check_news(reply: Reply) {
    let server = Server::start(move |_| reply.clone()).await;
    let news = lnd(&server.url()).node.invoice_news(HASH).await;
    assert!(matches!(news, Err(NodeError::Unavailable { .. })), "{news:?}");
}

#[tokio::test]
async fn an_answer_that_is_no_answer_is_not_taken_for_unpaid() {
    check_news(Reply::new(200, "<html>502 Bad Gateway</html>")).await;
    check_news(Reply::new(502, "<html>502 Bad Gateway</html>")).await;
    check_news(Reply::new(404, "not found")).await;
    check_news(Reply::new(301, "")).await;
    check_news(Reply::new(200, "{}")).await;
    check_news(Reply::new(200, vec![b' '; 20 << 20])).await;
    check_news(Reply::json(&invoice(HASH_B64, "HODLED"))).await;
    check_news(Reply::json(&invoice(OTHER_B64, "SETTLED"))).await;
    check_news(Reply::json(&invoice("q6s=", "SETTLED"))).await;
    check_news(Reply::json(&invoice(HASH_B64, "SETTLED")).ends(End::Broken)).await;
    check_news(Reply::new(200, "").ends(End::Silent)).await;
    let locked = json!({ "code": 2, "message": "wallet locked, unlock it to enable full RPC access", "details": [] });
    check_news(Reply::new(500, locked.to_string())).await;
    check_news(Reply::new(503, json!({ "code": 14, "message": "transport is closing" }).to_string())).await;
}

#[tokio::test]
async fn a_refusal_is_told_in_its_words_made_safe_to_print() {
    let said = json!({ "code": 2, "message": "verification failed: \u{1b}[2J signature mismatch", "details": [] });
    let server = Server::start(move |_| Reply::new(500, said.to_string())).await;
    let refused = lnd(&server.url()).node.create_invoice(&order(1)).await.unwrap_err();
    assert_eq!(refused.code(), "node_refused");
    let text = refused.to_string();
    assert!(text.contains("verification failed: \\u{1b}[2J signature mismatch"), "{text}");
    let asked = server.asked().pop().unwrap();
    assert!(asked.headers.contains("grpc-metadata-macaroon: 0201aabb"), "{asked:?}");
    assert!(asked.body.contains(r#""value_msat":"1""#) && asked.body.contains(r#""expiry":"600""#), "{asked:?}");
}

#[tokio::test]
async fn an_invoice_for_another_hash_than_lnd_says_is_not_taken() {
    let added = json!({ "r_hash": HASH_B64, "payment_request": BOLT11, "add_index": "1" });
    let server = Server::start(move |_| Reply::json(&added)).await;
    let made = lnd(&server.url()).node.create_invoice(&order(5_000)).await;
    assert!(matches!(made, Err(NodeError::Unavailable { .. })), "{made:?}");

    let bytes = base64::engine::general_purpose::STANDARD.encode(bolt11().payment_hash.0);
    let added = json!({ "r_hash": bytes, "payment_request": BOLT11, "add_index": "1" });
    let server = Server::start(move |_| Reply::json(&added)).await;
    assert_eq!(lnd(&server.url()).node.create_invoice(&order(250_000_000)).await.unwrap(), bolt11());
}

/// What a stream of settlements that begins so ends as.
async fn check_stream(stream: Vec<u8>, end: End) -> Result<farebox_core::ports::Settlements, NodeError> {
    let server = Server::start(move |asked| match asked.line.contains("subscribe") {
        true => Reply::new(200, stream.clone()).ends(end),
        false => Reply::json(&json!({ "invoices": [], "last_index_offset": "0" })),
    })
    .await;
    lnd(&server.url()).node.settlements(None, Duration::from_secs(2)).await
}

#[tokio::test]
async fn a_stream_that_breaks_gives_what_came_whole_and_then_an_error() {
    let line = |index: u32| {
        let mut settled = invoice(HASH_B64, "SETTLED");
        settled["settle_index"] = index.to_string().into();
        format!("{}\n", json!({ "result": settled })).into_bytes()
    };
    let cut = |line: Vec<u8>| line[..line.len() - 9].to_vec();
    let told = check_stream([line(1), cut(line(2))].concat(), End::Broken).await.unwrap();
    assert_eq!((told.news.len(), told.cursor.unwrap().0), (1, "1".to_owned()));
    // A settlement that lnd left out is asked for again from the last that was told.
    let told = check_stream([line(1), line(3)].concat(), End::Whole).await.unwrap();
    assert_eq!((told.news.len(), told.cursor.unwrap().0), (1, "1".to_owned()));

    for broken in [cut(line(1)), vec![b'x'; 5 << 20], b"\n\nnot json\n".to_vec(), Vec::new()] {
        let told = check_stream(broken, End::Broken).await;
        assert!(matches!(told, Err(NodeError::Unavailable { .. })), "{told:?}");
    }
    let ended = format!("{}\n", json!({ "error": { "code": 2, "message": "invoice registry shutting down" } }));
    let told = check_stream(ended.into_bytes(), End::Whole).await;
    assert!(matches!(told, Err(NodeError::Unavailable { .. })), "{told:?}");
}

#[tokio::test]
async fn a_payment_whose_answer_is_unclear_is_not_known() {
    let payment = |status: &str, preimage: &str, hash: &str| {
        let hash = if hash.is_empty() { BOLT11_HASH.to_owned() } else { hash.to_owned() };
        format!(
            "{}\n",
            json!({ "result": {
            "payment_hash": hash, "payment_preimage": preimage, "status": status, "fee_msat": "0",
            "failure_reason": "FAILURE_REASON_NONE",
        } })
        )
    };
    let zeros = "00".repeat(32);
    let not_found = Reply::new(404, json!({ "code": 5, "message": "payment isn't initiated" }).to_string());
    let check = async |sent: Reply, track: Reply, expected: &str| {
        let server =
            Server::start(move |asked| if asked.line.contains("send") { sent.clone() } else { track.clone() }).await;
        let outcome = lnd(&server.url()).wallet.pay(&to_pay(&bolt11())).await;
        let found = match &outcome {
            PayOutcome::Paid(_) => "paid",
            PayOutcome::Failed { code, .. } => code,
            PayOutcome::Unknown { .. } => "unknown",
        };
        assert_eq!(found, expected, "{outcome:?}");
        let sent = server.asked().iter().filter(|asked| asked.line.contains("send")).count();
        assert_eq!(sent, 1, "a payment is asked for once");
        let bounded = server.asked().iter().any(|asked| asked.body.contains(r#""cltv_limit":1008"#));
        assert!(bounded, "nobody may hold the money for longer than a week");
    };
    let in_flight = Reply::new(200, payment("IN_FLIGHT", &zeros, ""));
    let failed = Reply::new(200, payment("FAILED", &zeros, ""));
    let exists = Reply::new(409, json!({ "error": { "code": 6, "message": "payment is in transition" } }).to_string());

    // Success with a preimage that is none, or for another payment.
    check(Reply::new(200, payment("SUCCEEDED", &zeros, "")), not_found.clone(), "unknown").await;
    check(Reply::new(200, payment("SUCCEEDED", &zeros, &HASH.to_string())), not_found.clone(), "unknown").await;
    // It broke before it told, and lnd has not heard of it: the question may still arrive.
    check(Reply::new(200, "").ends(End::Broken), not_found.clone(), "unknown").await;
    check(Reply::new(200, "{"), failed.clone(), "unknown").await;
    check(in_flight.clone(), in_flight.clone(), "unknown").await;
    check(exists.clone(), in_flight, "unknown").await;
    check(exists.clone(), Reply::new(502, ""), "unknown").await;
    check(failed.clone(), not_found.clone(), "refused").await;
    let said = json!({ "error": { "code": 2, "message": "self-payments not allowed" } });
    check(Reply::new(500, said.to_string()), not_found, "refused").await;
}

#[tokio::test]
async fn a_payment_that_is_looked_up_is_the_one_that_was_asked_for() {
    let told = json!({ "result": {
        "payment_hash": "cd".repeat(32), "payment_preimage": "00".repeat(32), "status": "FAILED", "fee_msat": "0",
        "failure_reason": "FAILURE_REASON_NO_ROUTE",
    } });
    let server = Server::start(move |_| Reply::new(200, format!("{told}\n"))).await;
    let outgoing = lnd(&server.url()).wallet.outgoing(HASH).await;
    assert!(matches!(outgoing, Err(NodeError::Unavailable { .. })), "{outgoing:?}");
    assert!(!matches!(outgoing, Ok(Outgoing::Failed)));
}
