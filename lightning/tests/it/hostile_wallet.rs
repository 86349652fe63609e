//! Wallets and relays as they should not be, and as some are.

use std::time::Duration;

use farebox_core::{
    Invoice, InvoiceNews, PaymentHash, Preimage, Timestamp,
    ports::{InvoiceStatus, NewsCursor, NodeError, Outgoing, PaidOut, PayOrder, PayOutcome},
};
use farebox_lightning::node::{Connected, NodeConfig, NodeUriError, NwcConfig, NwcUri};
use serde_json::{Value, json};

use crate::{
    relay::{Info, Relay, Request, sent},
    support::{connected, hashes, settled, to_pay},
};

const PREIMAGE: Preimage = Preimage([0x11; 32]);
const METHODS: &str = "pay_invoice make_invoice lookup_invoice get_balance get_info";
const MODERN: Info =
    Info { methods: METHODS, encryption: Some("nip44_v2 nip04"), notifications: None, introduced_only: false };

fn nwc(relay: &Relay) -> Connected {
    let timeout = Duration::from_secs(1);
    connected(&NodeConfig::Nwc(NwcConfig { uri: relay.uri().parse().unwrap(), timeout }))
}

fn invoice() -> Invoice {
    let (created_at, expires_at) = (Timestamp::from_unix_s(1_738_000_000), Timestamp::from_unix_s(1_738_604_800));
    Invoice { payment_hash: PREIMAGE.hash(), bolt11: "lnbc1".into(), amount_msat: 50_000, created_at, expires_at }
}

/// As the wallet tells of the payment or the invoice for [`PREIMAGE`].
fn transaction(direction: &str, state: &str) -> Value {
    let settled_at = (state == "settled").then_some(1_738_000_100);
    json!({
        "type": direction, "state": state, "payment_hash": PREIMAGE.hash().to_string(), "amount": 50_000, "fees_paid": 7,
        "preimage": if state == "settled" { PREIMAGE.reveal() } else { String::new() }, "created_at": 1_738_000_000,
        "expires_at": null, "settled_at": settled_at, "metadata": {},
    })
}

#[tokio::test]
async fn only_what_the_wallet_signed_about_a_waiting_request_is_an_answer() {
    let relay = Relay::start(MODERN, |request| {
        let balance = |msat: u64| json!({ "balance": msat });
        let mut altered = sent(&request.result(&balance(5)));
        altered[2]["content"] = request.result(&balance(6)).content.into();
        let mut other = request.clone();
        other.event.id = nostr::EventId::all_zeros();
        vec![
            json!(["NOTICE", "hello"]),
            json!("garbage"),
            sent(&request.forged(&balance(1))),
            altered,
            sent(&other.result(&balance(2))),
            sent(&request.told(&json!({ "result_type": "get_balance", "result": balance(3) }), 1)),
            sent(&request.result(&balance(42))),
            sent(&request.result(&balance(4))),
        ]
    })
    .await;
    let wallet = nwc(&relay).wallet;
    for _ in 0..3 {
        assert_eq!(wallet.spendable_msat().await.unwrap(), 42);
    }
    assert_eq!(relay.requests().len(), 3);
    // Whoever holds the relay or the URI's other parts: the wallet's key says which wallet it is.
    assert_eq!(*wallet.id().await.unwrap(), *relay.uri().split_once("://").unwrap().1.get(..64).unwrap());
}

#[tokio::test]
async fn an_answer_that_is_none_is_not_taken_for_one() {
    let check = async |answer: fn(&Request) -> Vec<Value>| {
        let relay = Relay::start(MODERN, answer).await;
        let news = nwc(&relay).node.invoice_news(PREIMAGE.hash()).await;
        assert!(matches!(news, Err(NodeError::Unavailable { .. })), "{news:?}");
    };
    check(|_| vec![]).await;
    check(|request| vec![sent(&request.forged(&transaction("incoming", "settled")))]).await;
    check(|request| vec![json!(["OK", request.event.id, false, "blocked: \u{1b}[2J"])]).await;
    check(|request| vec![sent(&request.told(&json!("x"), 23_195))]).await;
    check(|request| vec![sent(&request.told(&json!({ "result_type": "lookup_invoice" }), 23_195))]).await;
    check(|request| vec![sent(&request.told(&json!({ "result_type": "get_info", "result": {} }), 23_195))]).await;
    check(|request| {
        vec![sent(&request.result(&json!({ "type": "incoming", "payment_hash": "ab".repeat(32), "state": "settled" })))]
    })
    .await;
    check(|request| vec![sent(&request.error("INTERNAL"))]).await;
    check(|_| vec![json!(["CLOSED", "answers", "error: shutting down"])]).await;
    check(|_| vec![json!(["NOTICE", "x".repeat(2 << 20)])]).await;
}

#[tokio::test]
async fn a_wallet_that_has_only_the_old_encryption_is_spoken_to_in_it() {
    for (info, nip44) in [
        (MODERN, true),
        (Info { encryption: Some("nip04"), ..MODERN }, false),
        (Info { encryption: None, ..MODERN }, false),
        (Info { introduced_only: true, ..MODERN }, true),
    ] {
        let relay = Relay::start(info, |request| vec![sent(&request.result(&json!({ "balance": 1 })))]).await;
        assert_eq!(nwc(&relay).wallet.spendable_msat().await.unwrap(), 1);
        let request = relay.requests().pop().unwrap();
        assert_eq!(request.event.content.contains("?iv="), !nip44);
        assert_eq!(request.method, "get_balance");
    }
}

#[tokio::test]
async fn what_becomes_of_an_invoice_is_told_in_the_words_of_the_books() {
    let check = async |found: Value, expected: Option<InvoiceStatus>| {
        let relay = Relay::start(MODERN, move |request| vec![sent(&request.result(&found))]).await;
        assert_eq!(nwc(&relay).node.invoice_news(PREIMAGE.hash()).await.unwrap(), expected);
    };
    let own = |state: &str| transaction("incoming", state);
    let mut over = own("pending");
    over["expires_at"] = 1_738_000_600.into();
    let mut old = own("settled");
    old["state"] = Value::Null;
    check(own("pending"), Some(InvoiceStatus::Open)).await;
    check(own("accepted"), Some(InvoiceStatus::News(InvoiceNews::Held))).await;
    check(own("settled"), Some(InvoiceStatus::News(settled(50_000)))).await;
    check(old, Some(InvoiceStatus::News(settled(50_000)))).await;
    check(own("expired"), Some(InvoiceStatus::News(InvoiceNews::Expired))).await;
    check(over, Some(InvoiceStatus::News(InvoiceNews::Expired))).await;
    check(own("failed"), Some(InvoiceStatus::News(InvoiceNews::Cancelled))).await;
    check(transaction("outgoing", "settled"), None).await;
    let relay = Relay::start(MODERN, |request| vec![sent(&request.error("NOT_FOUND"))]).await;
    assert_eq!(nwc(&relay).node.invoice_news(PREIMAGE.hash()).await.unwrap(), None);
}

/// What a payment comes to. The wallet looks it up as `found` says, once before it pays and then again.
async fn check(
    found: [Value; 2],
    pay: impl Fn(&Request) -> Vec<Value> + Send + Sync + 'static,
    expected: &str,
    pays: usize,
) {
    let looked_up = std::sync::atomic::AtomicUsize::new(0);
    let relay = Relay::start(MODERN, move |request| {
        if request.method == "pay_invoice" {
            assert_eq!(request.params, json!({ "invoice": "lnbc1" }));
            assert!(request.event.tags.expiration().is_some(), "a wallet that sleeps must not pay tomorrow");
            return pay(request);
        }
        assert_eq!(request.params, json!({ "payment_hash": PREIMAGE.hash().to_string() }));
        let found = &found[looked_up.fetch_add(1, std::sync::atomic::Ordering::SeqCst).min(1)];
        vec![sent(&found.as_str().map_or_else(|| request.result(found), |code| request.error(code)))]
    })
    .await;
    let wish = PayOrder { timeout: Duration::from_millis(500), ..to_pay(&invoice()) };
    let outcome = nwc(&relay).wallet.pay(&wish).await;
    let name = match &outcome {
        PayOutcome::Paid(PaidOut { preimage: Some(preimage), .. }) if *preimage == PREIMAGE => "paid",
        PayOutcome::Paid(PaidOut { preimage: None, .. }) => "paid, without a preimage",
        PayOutcome::Failed { code, .. } => code,
        PayOutcome::Unknown { .. } => "unknown",
        PayOutcome::Paid(_) => "a lie",
    };
    assert_eq!(name, expected, "{outcome:?}");
    assert_eq!(relay.requests().iter().filter(|request| request.method == "pay_invoice").count(), pays);
}

fn good(request: &Request) -> Vec<Value> {
    vec![sent(&request.result(&json!({ "preimage": PREIMAGE.reveal(), "fees_paid": 7 })))]
}

#[tokio::test]
async fn an_invoice_is_paid_once_and_only_what_is_certain_is_said_of_it() {
    let (none, no, out) = (
        || json!("NOT_FOUND"),
        |code: &'static str| move |request: &Request| vec![sent(&request.error(code))],
        |state| transaction("outgoing", state),
    );
    check([none(), none()], good, "paid", 1).await;
    check([json!("NOT_IMPLEMENTED"), none()], good, "paid", 1).await;
    check([out("failed"), none()], good, "paid", 1).await;
    // Asked before.
    check([out("settled"), none()], good, "paid", 0).await;
    check([out("pending"), none()], good, "unknown", 0).await;
    check([transaction("incoming", "pending"), none()], good, "unknown", 0).await;
    // The preimage is asked for where it was not given, or was another text.
    for preimage in [json!(""), json!("internal transfer"), json!("22".repeat(32)), Value::Null] {
        let paid = json!({ "preimage": preimage });
        let without = {
            let paid = paid.clone();
            move |request: &Request| vec![sent(&request.result(&paid))]
        };
        check([none(), out("settled")], without, "paid", 1).await;
        let without = move |request: &Request| vec![sent(&request.result(&paid))];
        check([none(), none()], without, "paid, without a preimage", 1).await;
    }
    // Said no, and looked up.
    check([none(), none()], no("INSUFFICIENT_BALANCE"), "insufficient_balance", 1).await;
    check([none(), none()], no("QUOTA_EXCEEDED"), "not_allowed", 1).await;
    check([none(), out("failed")], no("PAYMENT_FAILED"), "refused", 1).await;
    check([none(), out("failed")], no("INTERNAL"), "refused", 1).await;
    check([none(), out("pending")], no("PAYMENT_FAILED"), "unknown", 1).await;
    check([none(), out("settled")], no("PAYMENT_FAILED"), "paid", 1).await;
    check([none(), none()], no("INTERNAL"), "unknown", 1).await;
    // Said nothing.
    check([none(), out("settled")], |_| vec![], "paid", 1).await;
    check([none(), out("failed")], |_| vec![], "unknown", 1).await;
    check([none(), none()], |_| vec![], "unknown", 1).await;
    check(
        [none(), none()],
        |request| vec![sent(&request.forged(&json!({ "preimage": PREIMAGE.reveal() })))],
        "unknown",
        1,
    )
    .await;
    check([none(), none()], |request| vec![json!(["OK", request.event.id, false, "rate-limited"])], "unknown", 1).await;
}

#[tokio::test]
async fn a_payment_that_a_wallet_does_not_look_up_is_sought_in_its_list() {
    const LISTS: Info = Info { methods: "pay_invoice lookup_invoice list_transactions", ..MODERN };
    let check = async |listed: Value, expected: Outgoing| {
        let relay = Relay::start(LISTS, move |request| match (&*request.method, request.params["offset"].as_u64()) {
            ("list_transactions", Some(0)) => vec![sent(&request.result(&json!({ "transactions": listed })))],
            ("list_transactions", _) => vec![sent(&request.result(&json!({ "transactions": [] })))],
            _ => vec![sent(&request.error("NOT_FOUND"))],
        })
        .await;
        assert_eq!(nwc(&relay).wallet.outgoing(PREIMAGE.hash()).await.unwrap(), expected);
    };
    check(json!([]), Outgoing::Never).await;
    check(json!([transaction("incoming", "settled")]), Outgoing::Never).await;
    check(json!([transaction("outgoing", "pending")]), Outgoing::InFlight).await;
    let made = PaidOut { preimage: Some(PREIMAGE), fee_msat: Some(7) };
    check(json!([transaction("outgoing", "settled")]), Outgoing::Paid(made)).await;
}

#[tokio::test]
async fn a_wallet_that_shows_no_list_of_its_payments_or_never_its_end_has_not_said_that_it_paid_nothing() {
    const LISTS: Info = Info { methods: "pay_invoice lookup_invoice list_transactions", ..MODERN };
    for info in [MODERN, LISTS] {
        let relay = Relay::start(info, |request| {
            let mut other = transaction("outgoing", "settled");
            other["payment_hash"] = "ab".repeat(32).into();
            vec![sent(&match &*request.method {
                "lookup_invoice" => request.error("NOT_FOUND"),
                "list_transactions" => request.result(&json!({ "transactions": [other] })),
                _ => request.result(&json!({ "preimage": PREIMAGE.reveal() })),
            })]
        })
        .await;
        let wallet = nwc(&relay).wallet;
        let found = wallet.outgoing(PREIMAGE.hash()).await;
        assert!(matches!(found, Err(NodeError::Unavailable { .. })), "{found:?}");
        // It is good for a first payment all the same.
        let outcome = wallet.pay(&to_pay(&invoice())).await;
        assert!(matches!(outcome, PayOutcome::Paid(_)), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_wallet_that_tells_nothing_by_itself_has_its_list_read() {
    const LISTS: Info = Info { methods: "make_invoice lookup_invoice list_transactions", ..MODERN };
    let of = |byte: u8| {
        let mut one = transaction("incoming", "settled");
        one["payment_hash"] = PaymentHash([byte; 32]).to_string().into();
        one
    };
    let relay = Relay::start(LISTS, move |request| {
        // Nine a page, although twenty were asked for.
        let offset = request.params["offset"].as_u64().unwrap();
        let page: Vec<Value> = (offset..25).take(9).map(|i| of(u8::try_from(i).unwrap())).collect();
        vec![sent(&request.result(&json!({ "transactions": page })))]
    })
    .await;
    let node = nwc(&relay).node;
    let after = NewsCursor("1738000000".to_owned());
    let told = node.settlements(Some(&after), Duration::from_millis(100)).await.unwrap();
    assert_eq!(hashes(&told), (0..25).map(|i| PaymentHash([i; 32])).collect::<Vec<_>>());
    assert!(told.cursor.unwrap().0.parse::<u64>().unwrap() > 1_738_000_000);
    let asked = relay.requests();
    assert!(
        asked.iter().all(|request| request.params["from"] == 1_738_000_000 - 86_400 && request.params["limit"] == 20)
    );
    // Nothing by itself: the question waits, and the next one reads the list again.
    assert_eq!(node.settlements(Some(&after), Duration::from_millis(50)).await.unwrap().news, []);
    assert_eq!(node.settlements(Some(&after), Duration::from_millis(50)).await.unwrap().news.len(), 25);
}

#[tokio::test]
async fn a_notice_counts_if_the_wallet_closed_it_for_this_client() {
    const TELLS: Info = Info { methods: "get_balance", notifications: Some("payment_received payment_sent"), ..MODERN };
    let relay = Relay::start(TELLS, |request| {
        let told = |kind: &str, direction: &str, byte: u8| {
            let mut one = transaction(direction, "settled");
            one["payment_hash"] = PaymentHash([byte; 32]).to_string().into();
            json!({ "notification_type": kind, "notification": one })
        };
        let mut stolen = request.clone();
        stolen.event.pubkey = nostr::Keys::generate().public_key();
        vec![
            sent(&request.told(&told("payment_sent", "outgoing", 1), 23_197)),
            sent(&request.told(&told("payment_received", "outgoing", 2), 23_197)),
            sent(&stolen.told(&told("payment_received", "incoming", 3), 23_197)),
            sent(&request.told(&told("payment_received", "incoming", 4), 23_196)),
            sent(&request.told(&json!({ "notification_type": "payment_received" }), 23_197)),
            sent(&request.told(&told("hold_invoice_accepted", "incoming", 5), 23_197)),
            sent(&request.told(&told("payment_received", "incoming", 6), 23_197)),
            sent(&request.result(&json!({ "balance": 1 }))),
        ]
    })
    .await;
    let Connected { node, wallet } = nwc(&relay);
    wallet.spendable_msat().await.unwrap();
    let mut news = Vec::new();
    loop {
        let told = node.settlements(None, Duration::from_millis(100)).await.unwrap().news;
        if told.is_empty() {
            break;
        }
        news.extend(told);
    }
    assert_eq!(news, [(PaymentHash([5; 32]), InvoiceNews::Held), (PaymentHash([6; 32]), settled(50_000))]);
}

#[tokio::test]
async fn a_relay_that_is_dead_is_left_for_the_next() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay = Relay::start(MODERN, |request| vec![sent(&request.result(&json!({ "balance": 1 })))]).await;
    let first = format!("?relay=ws%3A%2F%2F{}&relay=", silent.local_addr().unwrap());
    let uri = relay.uri().replace("?relay=", &first).parse().unwrap();
    let timeout = Duration::from_millis(300);
    let wallet = connected(&NodeConfig::Nwc(NwcConfig { uri, timeout })).wallet;
    assert!(matches!(wallet.spendable_msat().await, Err(NodeError::Unavailable { .. })));
    for _ in 0..3 {
        assert_eq!(wallet.spendable_msat().await.unwrap(), 1);
    }
}

#[tokio::test]
async fn a_secret_prints_nowhere() {
    let relay = Relay::start(MODERN, |request| vec![sent(&request.error("UNAUTHORIZED"))]).await;
    let config = NodeConfig::Nwc(NwcConfig { uri: relay.uri().parse().unwrap(), timeout: Duration::from_secs(1) });
    let Connected { node, wallet } = connected(&config);
    let refused = wallet.spendable_msat().await.unwrap_err();
    assert!(matches!(refused, NodeError::Refused { .. }), "{refused:?}");
    for shown in [
        format!("{config:?}"),
        format!("{node:?}"),
        node.label().to_owned(),
        format!("{refused:?}"),
        refused.to_string(),
    ] {
        assert!(!shown.contains(&relay.secret()) && !shown.contains('\u{1b}'), "{shown}");
    }
}

#[test]
fn a_line_that_names_no_wallet_is_told_so_without_its_secret() {
    let (key, secret) = (
        "b889ff5b1513b641e2a139f661a661364979c5beee91842f8f0ef42ab558e9d4",
        "71a8c14c1407c113601079c4302dab36460f0ccd0ad506f1f2dc73b5100e4f3c",
    );
    let good = format!("nostr+walletconnect://{key}?relay=wss%3A%2F%2Frelay.damus.io&secret={secret}");
    assert!(matches!(good.parse(), Ok(NodeConfig::Nwc(_))));
    let check = |text: &str, code: &str| {
        let error: NodeUriError = text.parse::<NwcUri>().map(drop).unwrap_err();
        assert_eq!(error.code(), code, "{text}");
        assert!(!format!("{error} {error:?}").contains(&secret[..8]), "{error:?}");
    };
    check(&good.replace("nostr+", "nostr"), "node_uri_scheme");
    check(&good.replace(key, "b889"), "node_uri_value");
    check(&good.replace(secret, &secret[..62]), "node_uri_value");
    check(&good.replace("wss", "https"), "node_uri_value");
    check(&good.replace("relay=", "other="), "node_uri_missing");
    check(&good.replace("secret=", "other="), "node_uri_missing");
    check(&format!("{good}&secret={secret}"), "node_uri_twice");
    check(&format!("{good}{}", "&relay=wss://a.example".repeat(8)), "node_uri_value");
    let check = |text: &str| {
        let error = text.parse::<NodeConfig>().map(drop).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(&secret[..8]), "{error:?}");
    };
    check(&good.replace("%3A%2F%2F", "://").replace("connect://", "connect:"));
    check(&format!("{secret}://host"));
    check(&format!("lnd+https://host?macaroon=a&{secret}"));
    for name in ["lnd+https://host?macaroon=", "cln+https://host?rune="] {
        let config: NodeConfig = format!("{name}{}", secret.repeat(2)).parse().unwrap();
        let clock: std::sync::Arc<dyn farebox_core::ports::Clock> = std::sync::Arc::new(crate::support::WallClock);
        let error = farebox_lightning::node::connect(&config, &clock).unwrap_err();
        assert_eq!(error.code(), "node_credential");
        assert!(!format!("{error} {error:?} {config:?}").contains(&secret[..8]), "{error:?}");
    }
}
