//! Core Lightning, as it is published: there is none to run here. The answers are those of its documentation's examples, shortened.

use std::time::Duration;

use farebox_core::{
    BitcoinNetwork, Invoice, InvoiceNews, PaymentHash, Preimage, Timestamp,
    ports::{InvoiceStatus, NewsCursor, NodeError, Outgoing, PaidOut, PayOutcome},
};
use farebox_lightning::node::{ClnConfig, Connected, NodeConfig, SecretSource};
use serde_json::{Value, json};

use crate::{
    server::{Asked, End, Reply, Server},
    support::{connected, order, settled, to_pay},
};

const RUNE: &str = "OSqc7ixY6F-gjcigBfxtzKUI54uzgFSA6YfBQoWGDV89MA==";
/// Whose hash [`invoice`] is for.
const PREIMAGE: Preimage = Preimage([0x11; 32]);

/// For the hash of [`PREIMAGE`]; what a node pays it does not read again.
fn invoice() -> Invoice {
    let (created_at, expires_at) = (Timestamp::from_unix_s(1_738_000_000), Timestamp::from_unix_s(1_738_604_800));
    Invoice {
        payment_hash: PREIMAGE.hash(),
        bolt11: "lnbcrt500n1pne035q".into(),
        amount_msat: 50_000,
        created_at,
        expires_at,
    }
}

fn cln(server: &Server) -> Connected {
    let rune = SecretSource::Text(format!("{RUNE}\n").into());
    let timeout = Duration::from_secs(1);
    connected(&NodeConfig::Cln(ClnConfig { url: server.url().parse().unwrap(), rune, certificate: None, timeout }))
}

/// The method that was called, and its parameters.
fn call(asked: &Asked) -> (String, Value) {
    assert!(asked.headers.contains(&format!("rune: {}", RUNE.to_lowercase())), "{asked:?}");
    let method = asked.line.strip_prefix("POST /v1/").and_then(|rest| rest.strip_suffix(" HTTP/1.1"));
    (method.unwrap().to_owned(), serde_json::from_str(&asked.body).unwrap())
}

/// clnrest answers 201 to what went well.
fn good(result: &Value) -> Reply {
    Reply::new(201, result.to_string())
}

fn refused(status: u16, code: i64, message: &str) -> Reply {
    Reply::new(status, json!({ "code": code, "message": message, "data": null }).to_string())
}

#[tokio::test]
async fn the_node_says_who_it_is_as_far_as_its_rune_allows() {
    let server = Server::start(|asked| match &*call(asked).0 {
        "getinfo" => good(&json!({
            "id": "033845802d25b4e074ccfd7cd8b339a41dc75bf9978a034800444b51d42b07799a", "alias": "SILENTARTIST-v26.09", "color": "033845",
            "num_peers": 0, "num_pending_channels": 0, "num_active_channels": 2, "num_inactive_channels": 0, "version": "v26.09",
            "blockheight": 114, "network": "regtest", "fees_collected_msat": 0,
            "warning_lightningd_sync": "Still loading latest blocks from bitcoind.",
        })),
        "listpeerchannels" => good(&json!({ "channels": [
            { "state": "CHANNELD_NORMAL", "peer_connected": true, "spendable_msat": 599_507_210, "receivable_msat": 363_951_708 },
            { "state": "CHANNELD_NORMAL", "peer_connected": true, "spendable_msat": "1000msat", "receivable_msat": "2000msat" },
            { "state": "CHANNELD_NORMAL", "peer_connected": false, "spendable_msat": 1, "receivable_msat": 1 },
            { "state": "ONCHAIN", "peer_connected": true },
        ] })),
        other => refused(404, -32601, other),
    })
    .await;
    let Connected { node, wallet } = cln(&server);
    let info = node.info().await.unwrap();
    assert_eq!(&*info.id, "033845802d25b4e074ccfd7cd8b339a41dc75bf9978a034800444b51d42b07799a");
    assert_eq!((info.network, info.synced, info.channels), (Some(BitcoinNetwork::Regtest), false, Some(2)));
    assert_eq!(info.receivable_msat, Some(363_953_708));
    assert_eq!(wallet.spendable_msat().await.unwrap(), 599_508_210);
    assert_eq!(wallet.network().await.unwrap(), Some(BitcoinNetwork::Regtest));

    let server = Server::start(|_| refused(401, 1502, "Not permitted: method is not equal to invoice")).await;
    let Connected { node, wallet } = cln(&server);
    assert_eq!(&*node.info().await.unwrap().id, node.label());
    assert!(matches!(wallet.spendable_msat().await, Err(NodeError::Refused { .. })));
}

#[tokio::test]
async fn an_invoice_is_made_under_a_label_of_its_own() {
    // BOLT 11, examples.
    const BOLT11: &str = "lnbc2500u1pvjluezsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygspp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5xysxxatsyp3k7enxv4jsxqzpu9qrsgquk0rl77nj30yxdy8j9vdx85fkpmdla2087ne0xh8nhedh8w27kyke0lp53ut353s06fv3qfegext0eh0ymjpf39tuven09sam30g4vgpfna3rh";
    const HASH: &str = "0001020304050607080900010203040506070809000102030405060708090102";
    let answer = |hash: &'static str, taken: usize| {
        let labels = parking_lot::Mutex::new(Vec::new());
        move |asked: &Asked| {
            let (method, wanted) = call(asked);
            assert_eq!(method, "invoice");
            assert_eq!(wanted["amount_msat"], 250_000_000);
            assert_eq!((&wanted["expiry"], &wanted["description"]), (&json!(600), &json!("two\u{20}lines")));
            let label = wanted["label"].as_str().unwrap().to_owned();
            let mut labels = labels.lock();
            assert!(!labels.contains(&label), "{label} again");
            labels.push(label);
            if labels.len() <= taken {
                return refused(500, 900, "Duplicate label");
            }
            good(&json!({ "payment_hash": hash, "expires_at": 1_496_314_718, "bolt11": BOLT11, "created_index": 2 }))
        }
    };
    let wanted = farebox_core::ports::InvoiceOrder { description: "two\nlines".to_owned(), ..order(250_000_000) };

    let server = Server::start(answer(HASH, 2)).await;
    let made = cln(&server).node.create_invoice(&wanted).await.unwrap();
    assert_eq!((made.payment_hash.to_string(), made.amount_msat), (HASH.to_owned(), 250_000_000));
    assert_eq!(server.asked().len(), 3);

    let server = Server::start(answer(HASH, 100)).await;
    let made = cln(&server).node.create_invoice(&wanted).await;
    assert!(matches!(made, Err(NodeError::Refused { .. })), "{made:?}");
    assert_eq!(server.asked().len(), 5);

    let server = Server::start(answer("ab", 0)).await;
    assert!(matches!(cln(&server).node.create_invoice(&wanted).await, Err(NodeError::Unavailable { .. })));
}

#[tokio::test]
async fn what_becomes_of_an_invoice_is_told_in_the_words_of_the_books() {
    let hash = PREIMAGE.hash();
    let check = async |invoices: Value, expected: Option<InvoiceStatus>| {
        let server = Server::start(move |asked| {
            assert_eq!(
                call(asked),
                ("listinvoices".to_owned(), json!({ "payment_hash": PREIMAGE.hash().to_string() }))
            );
            good(&json!({ "invoices": invoices }))
        })
        .await;
        assert_eq!(cln(&server).node.invoice_news(hash).await.unwrap(), expected);
    };
    let own = |status: &str| json!({ "label": "l", "payment_hash": hash.to_string(), "amount_msat": 200_000, "status": status });
    let mut paid = own("paid");
    paid["amount_received_msat"] = 400_000.into();
    paid["pay_index"] = 4.into();
    check(json!([]), None).await;
    check(json!([own("unpaid")]), Some(InvoiceStatus::Open)).await;
    check(json!([own("expired")]), Some(InvoiceStatus::News(InvoiceNews::Expired))).await;
    check(json!([paid]), Some(InvoiceStatus::News(settled(400_000)))).await;

    for wrong in [
        good(
            &json!({ "invoices": [{ "payment_hash": "ab".repeat(32), "status": "paid", "amount_received_msat": 1 }] }),
        ),
        good(&json!({ "invoices": [own("paid")] })),
        good(&json!({ "invoices": [own("hodled")] })),
        good(&json!({})),
        Reply::new(500, json!({ "code": null, "message": "connection refused" }).to_string()),
        refused(500, -5, "lightningd is shutting down"),
        Reply::new(201, "{").ends(End::Broken),
        Reply::new(201, "").ends(End::Silent),
    ] {
        let server = Server::start(move |_| wrong.clone()).await;
        let news = cln(&server).node.invoice_news(hash).await;
        assert!(matches!(news, Err(NodeError::Unavailable { .. })), "{news:?}");
    }
}

#[tokio::test]
async fn settlements_are_told_from_the_first_on_in_their_order() {
    let paid = |index: u64| {
        json!({
            "label": format!("l{index}"), "payment_hash": format!("{index:02x}").repeat(32), "status": "paid", "pay_index": index,
            "amount_received_msat": index * 1000, "paid_at": 1_738_000_000,
        })
    };
    // 2 was deleted since.
    let answer = move |asked: &Asked| {
        let (method, wanted) = call(asked);
        assert_eq!(method, "waitanyinvoice");
        let last = wanted["lastpay_index"].as_u64().unwrap();
        match [1, 3, 4].into_iter().find(|index| *index > last) {
            Some(index) => good(&paid(index)),
            None => refused(500, 904, "Timed out"),
        }
    };
    let server = Server::start(answer).await;
    let node = cln(&server).node;
    let told = node.settlements(None, Duration::from_secs(1)).await.unwrap();
    let news = [1u8, 3, 4].map(|index| (PaymentHash([index; 32]), settled(u64::from(index) * 1000)));
    assert_eq!((&*told.news, told.cursor), (&news[..], Some(NewsCursor("4".to_owned()))));
    let told = node.settlements(Some(&NewsCursor("3".to_owned())), Duration::from_secs(1)).await.unwrap();
    assert_eq!(told.news, news[2..]);
    let none = node.settlements(Some(&NewsCursor("4".to_owned())), Duration::from_secs(1)).await.unwrap();
    assert_eq!((none.news.len(), none.cursor), (0, Some(NewsCursor("4".to_owned()))));
    // The first of a question waits, those behind it do not.
    let waits: Vec<Value> = server.asked().iter().map(|asked| call(asked).1["timeout"].clone()).collect();
    assert_eq!(waits[..4], [json!(1), json!(0), json!(0), json!(0)]);

    let server = Server::start(move |_| good(&paid(1))).await;
    let told = cln(&server).node.settlements(Some(&NewsCursor("1".to_owned())), Duration::from_secs(1)).await;
    assert!(matches!(told, Err(NodeError::Unavailable { .. })), "{told:?}");
}

/// What a payment comes to, and which methods were called for it. `pays` is what `listpays` says before and after.
async fn check(
    pays: [Value; 2],
    pay: impl Fn(&str, &Value) -> Reply + Send + Sync + 'static,
    expected: &str,
    methods: &[&str],
) {
    let looked_up = std::sync::atomic::AtomicUsize::new(0);
    let server = Server::start(move |asked| {
        let (method, wanted) = call(asked);
        if method != "listpays" {
            return pay(&method, &wanted);
        }
        assert_eq!(wanted, json!({ "payment_hash": PREIMAGE.hash().to_string() }));
        let turn = looked_up.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        good(&json!({ "pays": pays[turn.min(1)] }))
    })
    .await;
    let outcome = cln(&server).wallet.pay(&to_pay(&invoice())).await;
    let found = match &outcome {
        PayOutcome::Paid(PaidOut { preimage, .. }) => {
            assert_eq!(*preimage, Some(PREIMAGE));
            "paid"
        }
        PayOutcome::Failed { code, .. } => code,
        PayOutcome::Unknown { .. } => "unknown",
    };
    assert_eq!(found, expected, "{outcome:?}");
    let called: Vec<String> = server.asked().iter().map(|asked| call(asked).0).collect();
    assert_eq!(called, methods);
}

fn attempt(status: &str) -> Value {
    json!({
        "payment_hash": PREIMAGE.hash().to_string(), "status": status, "created_at": 1_738_000_000, "amount_msat": 50_000,
        "amount_sent_msat": 50_001, "preimage": PREIMAGE.reveal(),
    })
}

fn went_through() -> Reply {
    good(&json!({
        "payment_preimage": PREIMAGE.reveal(), "amount_msat": 50_000, "amount_sent_msat": 50_001, "failed_parts": 0, "successful_parts": 1,
    }))
}

#[tokio::test]
async fn an_invoice_is_paid_by_whichever_method_there_is() {
    let none = || [json!([]), json!([])];
    let by_xpay = |method: &str, wanted: &Value| {
        assert_eq!(method, "xpay");
        assert_eq!(*wanted, json!({ "invstring": "lnbcrt500n1pne035q", "maxfee": 10_000, "retry_for": 20 }));
        went_through()
    };
    check(none(), by_xpay, "paid", &["listpays", "xpay"]).await;
    let by_pay = |code: i64| {
        move |method: &str, wanted: &Value| match method {
            "xpay" => refused(404, code, "no"),
            _ => {
                assert_eq!(*wanted, json!({ "bolt11": "lnbcrt500n1pne035q", "maxfee": 10_000, "retry_for": 20 }));
                went_through()
            }
        }
    };
    check(none(), by_pay(-32601), "paid", &["listpays", "xpay", "pay"]).await;
    check(none(), by_pay(1502), "paid", &["listpays", "xpay", "pay"]).await;
}

#[tokio::test]
async fn an_invoice_is_paid_once() {
    let never = |_: &str, _: &Value| -> Reply { panic!("it is not paid again") };
    check([json!([attempt("complete")]), json!([])], never, "paid", &["listpays"]).await;
    check([json!([attempt("failed"), attempt("complete")]), json!([])], never, "paid", &["listpays"]).await;
    check([json!([attempt("failed"), attempt("pending")]), json!([])], never, "unknown", &["listpays"]).await;

    // Two wishes at once: the second is not sent, and nothing is said of it.
    let server = Server::start(|asked| match &*call(asked).0 {
        "listpays" => good(&json!({ "pays": [] })),
        _ => Reply::new(201, "").ends(End::Silent),
    })
    .await;
    let wallet = cln(&server).wallet;
    let wish = farebox_core::ports::PayOrder { timeout: Duration::from_millis(1), ..to_pay(&invoice()) };
    let (first, second) = tokio::join!(wallet.pay(&wish), wallet.pay(&wish));
    assert!(
        matches!((&first, &second), (PayOutcome::Unknown { .. }, PayOutcome::Unknown { .. })),
        "{first:?} {second:?}"
    );
    assert_eq!(server.asked().iter().filter(|asked| call(asked).0 == "xpay").count(), 1);
}

#[tokio::test]
async fn a_payment_fails_only_where_the_node_says_so_and_knows_of_none() {
    let all = &["listpays", "xpay", "listpays"];
    let fails = |code: i64| move |_: &str, _: &Value| refused(500, code, "Failed after 1 attempts");
    let then = |attempts: Value| [json!([]), attempts];
    check(then(json!([])), fails(205), "no_route", all).await;
    check(then(json!([attempt("failed")])), fails(207), "invoice_expired", all).await;
    check(then(json!([])), fails(210), "timeout", all).await;
    check(then(json!([])), fails(203), "refused", all).await;
    check(then(json!([attempt("complete")])), fails(219), "paid", all).await;
    check(then(json!([attempt("pending")])), fails(209), "unknown", all).await;
    check(then(json!([])), fails(-4), "unknown", all).await;
    check(then(json!([])), |_, _| Reply::new(502, "bad gateway"), "unknown", all).await;
    check(then(json!([])), |_, _| Reply::new(201, "{").ends(End::Broken), "unknown", all).await;
    let lie = json!({ "payment_preimage": "22".repeat(32), "amount_msat": 1, "amount_sent_msat": 1 });
    check(then(json!([])), move |_, _| good(&lie), "unknown", &["listpays", "xpay"]).await;
}

#[tokio::test]
async fn a_payment_is_looked_up_over_all_its_attempts() {
    let check = async |pays: Value, expected: Option<Outgoing>| {
        let server = Server::start(move |_| good(&json!({ "pays": pays }))).await;
        assert_eq!(cln(&server).wallet.outgoing(PREIMAGE.hash()).await.ok(), expected);
    };
    let made = Outgoing::Paid(PaidOut { preimage: Some(PREIMAGE), fee_msat: Some(1) });
    check(json!([]), Some(Outgoing::Never)).await;
    check(json!([attempt("failed")]), Some(Outgoing::Failed)).await;
    check(json!([attempt("failed"), attempt("pending")]), Some(Outgoing::InFlight)).await;
    check(json!([attempt("complete"), attempt("failed")]), Some(made)).await;
    let mut other = attempt("failed");
    other["payment_hash"] = "ab".repeat(32).into();
    check(json!([other]), None).await;
    let mut lie = attempt("complete");
    lie["preimage"] = "ab".repeat(32).into();
    check(json!([lie]), None).await;
}
