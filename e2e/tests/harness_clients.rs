//! Other people's clients pay other people's server on our ground: what fails between them and us is then ours.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
};

use alloy::primitives::{Address, B256, Bytes, address};
use base64::{Engine, prelude::BASE64_STANDARD};
use farebox_e2e::{Account, Anvil, Authorization, ExpressPeer, ForeignClient, Job, Usdc};
use serde_json::{Value, json};

const SELLER: Address = address!("209693Bc6afc0C5328bA36FaF03C514EF312287C");
const ETHER: u128 = 1_000_000_000_000_000_000;
const DOLLAR: u128 = 1_000_000;
const CENT: u128 = 10_000;

#[tokio::test]
async fn the_official_clients_pay_the_official_server() {
    let anvil = Anvil::start(&["--hardfork", "cancun", "--prune-history", "200"]).await.unwrap();
    let usdc = Usdc::deploy(&anvil).await.unwrap();
    let relayer = Account::named("relayer").unwrap();
    anvil.set_balance(relayer.address(), ETHER).await.unwrap();
    let server = ExpressPeer::start(anvil.url(), SELLER, &relayer).await.unwrap();

    let version_2 =
        [ForeignClient::X402Fetch, ForeignClient::X402Axios, ForeignClient::PypiRequests, ForeignClient::PypiHttpx];
    for client in version_2 {
        let payer = Account::named(&format!("{client:?}")).unwrap();
        usdc.mint(payer.address(), DOLLAR).await.unwrap();
        let outcome = client.pay(&Job::get(server.url("/paid"), &payer)).await.unwrap();
        assert_eq!((outcome.status, outcome.body.as_str()), (Some(200), r#"{"ok":true}"#), "{client:?}: {outcome:?}");
        let transfers = usdc.transfers(payer.address(), SELLER).await.unwrap();
        assert_eq!(transfers.len(), 1, "{client:?}");
        assert_eq!(transfers[0].1, CENT, "{client:?}");
        let receipt = outcome.payment_response.unwrap();
        assert_eq!(receipt["transaction"], json!(transfers[0].0), "{client:?}");
        assert_eq!(receipt["success"], true, "{client:?}");
    }
}

#[tokio::test]
async fn a_client_without_money_gets_its_402_back_and_a_free_route_is_free() {
    let anvil = Anvil::start(&["--hardfork", "cancun", "--prune-history", "200"]).await.unwrap();
    let usdc = Usdc::deploy(&anvil).await.unwrap();
    let relayer = Account::named("relayer").unwrap();
    anvil.set_balance(relayer.address(), ETHER).await.unwrap();
    let server = ExpressPeer::start(anvil.url(), SELLER, &relayer).await.unwrap();
    let pauper = Account::named("pauper").unwrap();

    let paid = ForeignClient::X402Fetch.pay(&Job::get(server.url("/paid"), &pauper)).await.unwrap();
    assert_eq!(paid.status, Some(402), "{paid:?}");
    let free = ForeignClient::X402Fetch.pay(&Job::get(server.url("/free"), &pauper)).await.unwrap();
    assert_eq!((free.status, free.payment_response), (Some(200), None));
    assert_eq!(usdc.balance_of(SELLER).await.unwrap(), 0);
}

#[tokio::test]
async fn the_legacy_client_signs_what_the_chain_takes() {
    let anvil = Anvil::start(&[]).await.unwrap();
    let usdc = Usdc::deploy(&anvil).await.unwrap();
    let (payer, relayer) = (Account::named("payer").unwrap(), Account::named("relayer").unwrap());
    usdc.mint(payer.address(), DOLLAR).await.unwrap();
    anvil.set_balance(relayer.address(), ETHER).await.unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/report", listener.local_addr().unwrap());
    let bill = version_1_bill(&url);
    let served = std::thread::spawn(move || {
        serve_one(&listener, "402 Payment Required", &bill);
        serve_one(&listener, "200 OK", "{}").expect("an X-PAYMENT header on the second request")
    });
    let outcome = ForeignClient::X402FetchV1.pay(&Job::get(url, &payer)).await.unwrap();
    assert_eq!(outcome.status, Some(200), "{outcome:?}");

    let payment: Value = serde_json::from_slice(&BASE64_STANDARD.decode(served.join().unwrap()).unwrap()).unwrap();
    assert_eq!((&payment["x402Version"], &payment["network"]), (&json!(1), &json!("base-sepolia")));
    let a = &payment["payload"]["authorization"];
    let text = |name: &str| a[name].as_str().unwrap().to_owned();
    let authorization = Authorization {
        from: text("from").parse().unwrap(),
        to: text("to").parse().unwrap(),
        value: text("value").parse().unwrap(),
        valid_after: text("validAfter").parse().unwrap(),
        valid_before: text("validBefore").parse().unwrap(),
        nonce: text("nonce").parse::<B256>().unwrap(),
    };
    let signature: Bytes = payment["payload"]["signature"].as_str().unwrap().parse().unwrap();
    let relay = anvil.provider_for(&relayer).unwrap();
    usdc.transfer_with_authorization(&relay, &authorization, signature).await.unwrap();
    assert_eq!(usdc.balance_of(SELLER).await.unwrap(), CENT);
}

fn version_1_bill(url: &str) -> String {
    let terms = json!({
        "scheme": "exact", "network": "base-sepolia", "maxAmountRequired": CENT.to_string(), "resource": url,
        "description": "a report", "mimeType": "application/json", "payTo": SELLER, "maxTimeoutSeconds": 60,
        "asset": Usdc::ADDRESS, "extra": { "name": "USDC", "version": "2" },
    });
    json!({ "x402Version": 1, "error": "payment required", "accepts": [terms] }).to_string()
}

/// Answers one request, then closes; its X-PAYMENT header, if it had one.
fn serve_one(listener: &TcpListener, status: &str, body: &str) -> Option<String> {
    let (mut stream, _) = listener.accept().unwrap();
    let payment = read_head(&stream).into_iter().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("x-payment").then(|| value.trim().to_owned())
    });
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
    .unwrap();
    payment
}

fn read_head(stream: &TcpStream) -> Vec<String> {
    let head = BufReader::new(stream.take(64 * 1024)).lines().map(Result::unwrap);
    head.take_while(|line| !line.is_empty()).collect()
}
