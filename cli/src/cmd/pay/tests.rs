use axum::{Router, http::HeaderMap, response::Response};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use clap::Parser as _;
use http::Method;
use serde_json::json;

use super::*;
use crate::system::{OsEntropy, SystemClock};

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    args: PayArgs,
}

fn parse(line: &[&str]) -> PayArgs {
    Line::try_parse_from(["pay"].iter().chain(line)).unwrap().args
}

fn context() -> PayContext {
    // A well-known development key; it holds nothing anywhere.
    let environment = |name: &str| {
        let key = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
        (name == "FAREBOX_WALLET_KEY").then(|| key.to_owned())
    };
    PayContext { clock: Arc::new(SystemClock), entropy: Arc::new(OsEntropy), environment }
}

fn respond(status: u16, header: (&str, String), body: &'static str) -> Response {
    Response::builder().status(status).header(header.0, header.1).body(body.into()).unwrap()
}

/// A seller of one-cent answers: /ok delivers, /doubt never says, /no refuses, /late charges and delivers no more, /dear wants a
/// dollar, /gone is not found once paid, /lost likewise and says it did not charge, /down does not serve and /owed charged for it, /free is 404 for nothing.
async fn seller() -> String {
    async fn answer(uri: http::Uri, headers: HeaderMap) -> Response {
        let bill = |units: &str| {
            let accepts = json!([{
                "scheme": "exact", "network": "eip155:84532", "amount": units, "maxTimeoutSeconds": 60,
                "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
                "payTo": "0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
                "extra": {"name": "USDC", "version": "2"},
            }]);
            let bill = json!({"x402Version": 2, "resource": {"url": "http://x.test/"}, "accepts": accepts});
            respond(402, ("payment-required", BASE64_STANDARD.encode(bill.to_string())), "{}")
        };
        let settled = |success: bool, reason: Option<&str>| {
            let hash = if success { format!("0x{}", "ab".repeat(32)) } else { String::new() };
            let word =
                json!({"success": success, "transaction": hash, "network": "eip155:84532", "errorReason": reason});
            ("payment-response", BASE64_STANDARD.encode(word.to_string()))
        };
        if uri.path() == "/send" {
            let host = headers["host"].to_str().unwrap();
            return transfer_bill(&format!("http://{host}{uri}"));
        }
        match (uri.path(), headers.contains_key("payment-signature")) {
            ("/free", _) => respond(404, ("x-a", String::new()), "nothing"),
            ("/dear", false) => bill("1000000"),
            ("/odd", _) => respond(402, ("x-a", String::new()), "pay me"),
            (_, false) => bill("10000"),
            ("/doubt", true) => respond(503, ("x-a", String::new()), ""),
            ("/no", true) => respond(402, settled(false, Some("insufficient_funds")), "{}"),
            ("/late", true) => respond(402, settled(false, Some("invalid_exact_evm_nonce_already_used")), "{}"),
            ("/torn", true) => {
                let torn = futures_util::stream::once(async {
                    // Not before the head is out.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Err(std::io::Error::other("torn"))
                });
                let pieces = futures_util::StreamExt::chain(futures_util::stream::iter([Ok("goo")]), torn);
                let mut response = respond(200, settled(true, None), "");
                *response.body_mut() = axum::body::Body::from_stream(pieces);
                response
            }
            ("/gone", true) => respond(404, ("x-a", String::new()), "gone"),
            ("/lost", true) => respond(404, settled(false, Some("upstream_error")), "gone"),
            ("/down", true) => {
                respond(502, settled(false, None), r#"{"code":"down","retry":"same_proof","charged":false}"#)
            }
            ("/owed", true) => {
                respond(502, settled(true, None), r#"{"code":"down","retry":"same_proof","charged":true}"#)
            }
            (_, true) => respond(200, settled(true, None), "\u{0}goods"),
        }
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.unwrap() });
    format!("http://{address}")
}

/// A bill of one cent by transfer alone.
fn transfer_bill(resource: &str) -> Response {
    let later = |hours: u64| {
        let at = SystemClock.now().plus(Duration::from_secs(hours * 3600));
        jiff::Timestamp::from_second(at.unix_s().try_into().unwrap()).unwrap().to_string()
    };
    let bill = json!({"transfer": {
        "quote": "q", "resource": resource, "method": "GET", "payBy": later(1), "claimBy": later(24),
        "options": [{
            "network": "eip155:84532", "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "symbol": "USDC", "decimals": 6,
            "payTo": "0x209693Bc6afc0C5328bA36FaF03C514EF312287C", "amount": "10000", "confirmations": "safe",
            "networkFee": {"asset": "native", "estimate": "21000000000000", "unit": "wei"},
        }],
    }});
    Response::builder().status(402).body(bill.to_string().into()).unwrap()
}

#[tokio::test]
async fn a_transfer_needs_a_node_and_the_owners_leave() {
    let (base, folder) = (seller().await, tempfile::tempdir().unwrap());
    let journal = folder.path().join("journal");
    let url = format!("{base}/send");
    let line = ["--json", "--timeout", "1", "--journal", journal.to_str().unwrap(), &url];
    let failed = async |more: &[&str]| {
        let failure = Box::pin(pay(&parse(&[&line[..], more].concat()), &context())).await.unwrap_err();
        let code = output::failure_json(&failure)["error"]["code"].clone();
        (failure.exit_code(), code, failure.hint().unwrap_or_default().to_owned())
    };
    let (exit, code, hint) = failed(&[]).await;
    assert_eq!((exit, code), (ExitCode::from(3), json!("wallet_without_node")));
    assert!(hint.contains("--rpc"), "{hint}");
    let (exit, code, _) = failed(&["--rpc", "eip155:84532=http://127.0.0.1:1"]).await;
    assert_eq!((exit, code), (ExitCode::from(3), json!("wallet_unavailable")));
    assert_eq!(failed(&["--rail", "x402"]).await.0, ExitCode::from(4));
    assert_eq!(failed(&["--max", "0.001"]).await.0, ExitCode::from(4));
    assert_eq!(std::fs::read_dir(journal.join("open")).unwrap().count(), 0);
    let dry = |more: &[&str]| parse(&[&line[..], &["--dry-run"], more].concat());
    assert_eq!(Box::pin(run(dry(&[]), context())).await.unwrap(), ExitCode::SUCCESS);
    assert_eq!(Box::pin(run(dry(&["--rail", "x402"]), context())).await.unwrap(), ExitCode::from(4));
}

#[test]
fn ways_to_pay_nodes_and_limits_are_read_and_mistakes_do_not_repeat_a_key() {
    let args = parse(&["--rail", "transfer", "--rail", "x402", "--max-gas", "0.5", "http://example.test"]);
    assert_eq!(
        (args.rails, args.max_gas.unwrap().0),
        (vec![RailName::Transfer, RailName::X402], 500_000_000_000_000_000)
    );
    let args =
        parse(&["--rpc", "eip155:1=https://a.test/KEY", "--rpc", "eip155:1=wss://b.test", "http://example.test"]);
    assert_eq!(args.rpc.len(), 2);
    assert!(!format!("{args:?}").contains("KEY"));
    let coin = dollar_asset("eip155:1/slip44:60,ETH,18,$4000.5").unwrap();
    assert_eq!(coin.worth(10_000_000_000_000_000).unwrap().to_string(), "$40.005");
    for wrong in ["eip155:1/slip44:60,ETH,18", "eip155:1/slip44:60,ETH,18,0", "eip155:1/slip44:60,ETH,18,1,1"] {
        assert!(dollar_asset(wrong).is_err(), "{wrong}");
    }
    for wrong in ["https://a.test/KEY", "eip155:1=KEY", "base=https://a.test/KEY"] {
        let error = format!("{:#}", network_rpc(wrong).unwrap_err());
        assert!(!error.contains("KEY"), "{error}");
    }
    assert!(rail("lightning").is_err() && coins("-1").is_err() && coins("1e3").is_err());
}

#[test]
fn what_became_of_a_transfer_has_its_own_exit_codes() {
    let transaction = farebox_core::TransactionId::new("0xabc");
    let void = FetchError::TransferVoid { transaction: transaction.clone(), reason: "r".to_owned() };
    let credit = FetchError::Credited { reason: "late".to_owned(), transaction: transaction.clone(), credit: None };
    let open = FetchError::TransferUnconfirmed { transaction, last: "l".to_owned() };
    for (error, exit, charged) in [(void, 11, json!(false)), (credit, 12, json!(true)), (open, 6, json!("unknown"))] {
        let failure = Failure::Fetch(error);
        assert_eq!(failure.exit_code(), ExitCode::from(exit));
        let object = output::failure_json(&failure);
        assert_eq!((&object["error"]["charged"], &object["error"]["transaction"]), (&charged, &json!("0xabc")));
    }
}

#[tokio::test]
async fn exit_codes_say_what_became_of_the_money() {
    let (base, folder) = (seller().await, tempfile::tempdir().unwrap());
    let (journal, out) = (folder.path().join("journal"), folder.path().join("out"));
    let (journal, out) = (journal.to_str().unwrap(), out.to_str().unwrap());
    let check = async |context: PayContext, path: &str, more: &[&str], expected: u8| {
        let url = format!("{base}{path}");
        let line = [&["--journal", journal, "-s", "--timeout", "1", "-o", out, &url], more].concat();
        let code = Box::pin(run(parse(&line), context)).await.unwrap();
        assert_eq!(code, ExitCode::from(expected), "{path} {more:?}");
    };
    check(context(), "/ok", &[], 0).await;
    assert_eq!(std::fs::read(out).unwrap(), b"\0goods");
    check(context(), "/free", &[], 22).await;
    check(context(), "/gone", &[], 23).await;
    check(context(), "/dear", &[], 4).await;
    check(context(), "/dear", &["--max", "$1"], 0).await;
    check(context(), "/dear", &["--dry-run"], 4).await;
    check(context(), "/ok", &["--dry-run"], 0).await;
    check(context(), "/ok", &["--network", "eip155:8453"], 4).await;
    check(context(), "/no", &[], 5).await;
    check(context(), "/no", &["--network", "eip155:8453"], 5).await;
    check(context(), "/down", &[], 5).await;
    check(context(), "/owed", &[], 9).await;
    check(context(), "/lost", &[], 23).await;
    check(context(), "/ok", &["-I"], 4).await;
    check(context(), "/free", &["-I"], 22).await;
    check(context(), "/doubt", &[], 6).await;
    check(context(), "/late", &[], 9).await;
    check(context(), "/odd", &[], 8).await;
    check(context(), "/torn", &[], 10).await;
    assert_eq!(std::fs::read(out).unwrap(), b"goo");
    let keyless = PayContext { environment: |_| None, ..context() };
    check(keyless.clone(), "/free", &[], 22).await;
    check(keyless.clone(), "/ok", &[], 3).await;
    check(keyless, "/ok", &["--dry-run"], 0).await;
    let wrong = PayContext { environment: |_| Some("no key".to_owned()), ..context() };
    check(wrong, "/ok", &[], 3).await;
    check(context(), "/ok", &["-H", "no header"], 2).await;
    check(context(), "/ok", &["-H", "X-PAYMENT: mine"], 2).await;
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_found_out_before_anything_is_signed() {
    let (base, folder) = (seller().await, tempfile::tempdir().unwrap());
    let (journal, out) = (folder.path().join("journal"), folder.path().join("none").join("out"));
    let line = ["--journal", journal.to_str().unwrap(), "-o", out.to_str().unwrap(), &format!("{base}/ok")];
    assert_eq!(Box::pin(run(parse(&line), context())).await.unwrap(), ExitCode::from(2));
    for part in ["open", "closed"] {
        assert_eq!(std::fs::read_dir(journal.join(part)).unwrap().count(), 0, "{part}");
    }
}

#[tokio::test]
async fn a_file_keeps_what_it_holds_until_there_is_an_answer() {
    let (base, folder) = (seller().await, tempfile::tempdir().unwrap());
    let (journal, out) = (folder.path().join("journal"), folder.path().join("out"));
    std::fs::write(&out, "what was there before").unwrap();
    let fetch = async |path: &str| {
        let url = format!("{base}{path}");
        let line = ["-s", "--journal", journal.to_str().unwrap(), "-o", out.to_str().unwrap(), &url];
        Box::pin(run(parse(&line), context())).await.unwrap();
        std::fs::read_to_string(&out).unwrap()
    };
    assert_eq!(fetch("/dear").await, "what was there before");
    assert_eq!(fetch("/ok").await, "\0goods");
}

#[tokio::test]
async fn a_dry_run_makes_no_journal() {
    let (base, folder) = (seller().await, tempfile::tempdir().unwrap());
    let journal = folder.path().join("journal");
    let line = ["--dry-run", "--journal", journal.to_str().unwrap(), &format!("{base}/ok")];
    assert_eq!(Box::pin(run(parse(&line), context())).await.unwrap(), ExitCode::SUCCESS);
    assert!(!journal.exists());
}

#[tokio::test]
async fn a_program_is_told_what_may_still_be_charged() {
    let (base, folder) = (seller().await, tempfile::tempdir().unwrap());
    let journal = folder.path().join("journal");
    let failed = async |path: &str| {
        let url = format!("{base}{path}");
        let line = ["--json", "--timeout", "1", "--journal", journal.to_str().unwrap(), &url];
        let failure = Box::pin(pay(&parse(&line), &context())).await.unwrap_err();
        let mut object = output::failure_json(&failure);
        (object["error"]["charged"].take(), object["error"]["authorizationValidUntil"].as_u64(), object)
    };
    let now_s = SystemClock.now().unix_s();
    let (charged, until, _) = failed("/dear").await;
    assert_eq!((charged, until), (json!(false), None));
    let (charged, until, _) = failed("/no").await;
    assert_eq!(charged, json!(false));
    assert!((now_s + 1..=now_s + 70).contains(&until.unwrap()), "{until:?}");
    let (charged, until, object) = failed("/down").await;
    assert_eq!((charged, &object["error"]["code"], until.is_some()), (json!(false), &json!("not_served"), true));
    let (charged, _, object) = failed("/owed").await;
    assert_eq!((charged, &object["error"]["code"]), (json!(true), &json!("charged_not_served")));
    assert_eq!(object["error"]["transaction"], format!("0x{}", "ab".repeat(32)));
    assert_eq!(failed("/doubt").await.0, json!("unknown"));
    assert_eq!(failed("/late").await.0, json!(true));
    let (charged, _, object) = failed("/torn").await;
    assert_eq!((charged, &object["error"]["code"]), (json!(true), &json!("answer_broke_off")));
    assert_eq!((&object["error"]["retryable"], &object["payment"]["charged"]), (&json!(true), &json!(true)));
}

#[tokio::test]
async fn a_payment_of_another_wallet_is_named_before_it_goes_out_again() {
    let (base, folder) = (seller().await, tempfile::tempdir().unwrap());
    let journal = folder.path().join("journal");
    let url = format!("{base}/no");
    let line = ["-s", "--journal", journal.to_str().unwrap(), &url];
    assert_eq!(Box::pin(run(parse(&line), context())).await.unwrap(), ExitCode::from(5));
    let entries = Journal::open(&journal, SystemClock.now()).unwrap().unresolved().unwrap();
    let said = output::foreign_resend_line(&entries[0]);
    assert!(
        said.starts_with("resending the payment that wallet 0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266 signed at ")
    );
    assert!(said.contains("; it stays valid until ") && said.matches('\n').count() == 1, "{said}");
    // A dry run has no wallet and shows the same payment.
    assert_eq!(
        Box::pin(run(parse(&[&line[..], &["--dry-run"]].concat()), context())).await.unwrap(),
        ExitCode::SUCCESS
    );
}

fn built(line: &[&str]) -> reqwest::Request {
    request::build(&parse(line)).unwrap()
}

#[test]
fn data_means_post_and_a_form_as_with_curl() {
    let request = built(&["example.test/x", "-d", "a=1", "-d", "b=2"]);
    assert_eq!((request.method(), request.url().as_str()), (&Method::POST, "https://example.test/x"));
    assert_eq!(built(&["localhost:8402/x"]).url().as_str(), "http://localhost:8402/x");
    assert_eq!(built(&["127.0.0.1.example.test"]).url().scheme(), "https");
    assert_eq!(request.headers()["content-type"], "application/x-www-form-urlencoded");
    assert_eq!(request.body().unwrap().as_bytes(), Some(&b"a=1&b=2"[..]));

    let request = built(&["-X", "put", "-H", "Content-Type: text/plain", "--data-binary", "x", "https://example.test"]);
    assert_eq!(
        (request.method().as_str(), &request.headers()["content-type"]),
        ("put", &"text/plain".parse().unwrap())
    );

    let request =
        built(&["-H", "A: 1", "-H", "A: 2", "-H", "B;", "-d", "x", "-H", "Content-Type:", "http://example.test"]);
    assert_eq!(request.headers().get_all("a").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(request.headers()["b"], "");
    assert!(!request.headers().contains_key("content-type"));
    assert_eq!(built(&["-I", "http://example.test"]).method(), Method::HEAD);
}

#[test]
fn files_lose_their_line_ends_as_form_data_and_keep_them_as_binary() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    std::fs::write(&path, b"a\r\nb\0\xff\n").unwrap();
    let at = format!("@{}", path.display());
    let sent = |line: &[&str]| built(line).body().unwrap().as_bytes().unwrap().to_vec();
    assert_eq!(sent(&["-d", &at, "http://example.test"]), b"ab\xff");
    assert_eq!(sent(&["--data-binary", &at, "http://example.test"]), b"a\r\nb\0\xff\n");
}

#[test]
fn a_mistake_is_told() {
    for (line, part) in [
        (&["ftp://example.test"][..], "http or https"),
        (&["http://me:secret@example.test"], "Authorization"),
        (&["-H", "x", "http://example.test"], "Name: value"),
        (&["-H", "a b: c", "http://example.test"], "header name"),
        (&["-X", "G T", "http://example.test"], "method"),
        (&["-d", "@/no/such/file", "http://example.test"], "cannot read"),
    ] {
        let error = request::build(&parse(line)).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains("secret"), "{line:?}: {error}");
    }
    for line in [
        &["--max", "-1", "http://x"][..],
        &["--max", "1e3", "http://x"],
        &["--asset", "USDC", "http://x"],
        &["--asset", "eip155:1/erc20:0x1,USDC,6", "http://x"],
        &["--asset", "eip155:1/erc20:0x0000000000000000000000000000000000000001,X,19", "http://x"],
        &["--network", "base", "http://x"],
        &["--pay-to", "0x209693bc6afC0C5328bA36FaF03C514EF312287C", "http://x"],
        &["--timeout", "0", "http://x"],
        &["--key-file", "a", "--keystore", "b", "http://x"],
    ] {
        assert!(Line::try_parse_from(["pay"].iter().chain(line)).is_err(), "{line:?}");
    }
}

#[test]
fn limits_in_sats_and_dollars_are_read_and_a_wallets_secret_is_not_repeated() {
    let max_msat = |line: &[&str]| parse(&[line, &["http://example.test"]].concat()).max_msat();
    assert_eq!(max_msat(&[]), Some(MAX_MSAT_DEFAULT));
    assert_eq!(max_msat(&["--max-sat", "2.5"]), Some(2_500));
    // A limit in dollars alone says nothing of sats without a rate, and with one says enough.
    assert_eq!(max_msat(&["--max", "0.01"]), None);
    assert_eq!(max_msat(&["--btc-usd", "60000"]), None);
    assert_eq!(max_msat(&["--btc-usd", "60000", "--max", "1", "--max-sat", "7"]), Some(7_000));
    let args = parse(&["--rail", "l402", "--lightning", "nostr+walletconnect://x?secret=KEY", "http://example.test"]);
    assert_eq!(args.rails, [RailName::L402]);
    assert!(!format!("{args:?}").contains("KEY"));
    let fee = |text: &str| routing_fee(text).map(|fee| (fee.percent, fee.floor_msat)).ok();
    assert_eq!(fee("5,10"), Some((5, 10_000)));
    assert_eq!(fee("0"), Some((0, 0)));
    assert!(["", "1.5", "5,", "-1", "5,10,1"].into_iter().all(|wrong| fee(wrong).is_none()));
    assert!(["0.0001", "-1", "1e3", "99999999999999999999"].into_iter().all(|wrong| sats(wrong).is_err()));
    for wrong in ["KEY", "nostr+walletconnect://KEY", "lnd+https://127.0.0.1:1?macaroon=/no/such/KEY"] {
        let args = parse(&["--lightning", wrong, "--journal", "/no/such", "http://example.test"]);
        let Err(error) = wallet::open(&args, &context()) else { panic!("{wrong} is no wallet") };
        let text = format!("{error:#}");
        assert!(wrong.starts_with("lnd") || !text.contains("KEY"), "{text}");
    }
}

#[test]
fn what_became_of_a_lightning_payment_has_its_own_exit_codes() {
    let payment_hash = farebox_core::PaymentHash([0xab; 32]);
    let (wallet, why) = ("w".to_owned(), "y".to_owned());
    let blind = LightningError::NoPreimage { wallet: wallet.clone(), payment_hash, amount_msat: 1_500, why };
    let open = LightningError::Unclear { payment_hash, last: "l".to_owned() };
    let other = LightningError::OtherWallet { payment_hash, wallet: wallet.clone(), found: "f".to_owned() };
    let not = LightningError::NotPaid { wallet, code: "no_route", detail: farebox_core::Untrusted::new("d") };
    let hash = json!("ab".repeat(32));
    for (error, exit, charged, named) in [
        (blind, 13, json!(true), &hash),
        (open, 6, json!("unknown"), &hash),
        (other, 6, json!("unknown"), &hash),
        (not, 3, json!(false), &json!(null)),
    ] {
        let failure = Failure::Fetch(error.into());
        assert_eq!(failure.exit_code(), ExitCode::from(exit));
        let object = output::failure_json(&failure);
        assert_eq!((&object["error"]["charged"], &object["error"]["payment_hash"]), (&charged, named));
        assert!(failure.hint().is_some());
    }
}
