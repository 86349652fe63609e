//! Sources that lie, lag, hang, limit us or answer nonsense: the verdict is right, or it could not be told.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use alloy::primitives::{B256, TxKind, U256};
use farebox_core::{
    Decimal,
    ports::{Rail, Settlement, VerifyError},
};
use farebox_evm::{ChainConfig, Finding, Quorum, RpcUrl, SecretText, SourceConfig, SourceKind, inspect};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    time::Instant,
};

use crate::{
    harness::{Anvil, SELLER, USDC, Unlimited, World, config, http_client, now},
    proxy::{Fault, Line, Proxy},
    transfer::{PRICE, Shop, told},
};

const RECEIPT: &str = "eth_getTransactionReceipt";

/// A shop whose chain has so many sources, each behind a proxy.
pub(crate) async fn shop(count: usize, change: impl FnOnce(&mut ChainConfig)) -> (Vec<Arc<Proxy>>, Shop) {
    let proxies = Mutex::new(Vec::new());
    let route = |url: &str| {
        *proxies.lock() = (0..count).map(|_| Proxy::start(url)).collect::<Vec<_>>();
        proxies.lock()[0].1.clone()
    };
    let sources = |config: &mut ChainConfig| {
        config.rpc = proxies.lock().iter().map(|(_, url)| RpcUrl::parse(url).unwrap().into()).collect();
        config.limits.rpc_timeout = Duration::from_secs(2);
        change(config);
    };
    let shop = Shop::through(&[], route, sources).await;
    (proxies.into_inner().into_iter().map(|(proxy, _)| proxy).collect(), shop)
}

pub(crate) fn quorum(config: &mut ChainConfig) {
    config.quorum = Some(Quorum { agree: 2, above: "0".parse::<Decimal>().unwrap() });
}

/// What a claim on this transaction comes to: `paid`, a refusal's code, or `unknown`.
pub(crate) async fn verdict(shop: &Shop, transaction: B256) -> String {
    match shop.look(&shop.sign(&shop.draft(transaction)), &Unlimited).await {
        Ok(_) => "paid".to_owned(),
        Err(error) => match told(&error) {
            (503, _) => "unknown".to_owned(),
            (_, code) => code,
        },
    }
}

/// A transfer of more than the payer has: mined, and failed.
async fn reverted(shop: &Shop) -> B256 {
    shop.pay(10u128.pow(30)).await
}

/// Whatever a source can make of what it is asked, none of it a lie.
fn faults() -> Vec<Fault> {
    vec![
        Fault::Down,
        Fault::Hang,
        Fault::LoseAnswer("eth_"),
        Fault::Status(429, 1),
        Fault::Status(500, 0),
        Fault::Status(302, 0),
        Fault::Truncate,
        Fault::Huge,
        Fault::Drip(Duration::from_millis(20)),
        Fault::Say("eth_", "<html>busy</html>"),
        Fault::Say("eth_", "[]"),
        Fault::Say("eth_", r#"{"jsonrpc":"2.0","id":0,"result":7}"#),
        Fault::Say("eth_", r#"{"jsonrpc":"2.0","id":0,"error":{"code":-32005,"message":"limit exceeded"}}"#),
        Fault::Say("eth_", r#"{"jsonrpc":"2.0","id":0,"error":{"code":-32603,"message":"Internal error"}}"#),
        Fault::Say("eth_", r#"{"jsonrpc":"2.0","id":0,"error":{"code":-32000,"message":"header not found"}}"#),
        Fault::every(|answer| answer["id"] = json!(1_000_000)),
        Fault::every(|answer| answer["id"] = json!("1")),
        Fault::every(|answer| answer["id"] = Value::Null),
        Fault::every(|answer| drop(answer.as_object_mut().unwrap().remove("result"))),
        Fault::every(|answer| answer["error"] = json!({"code": -32603, "message": "and an error"})),
        Fault::result(RECEIPT, |receipt| receipt["transactionHash"] = json!(B256::repeat_byte(7))),
        Fault::result(RECEIPT, |receipt| receipt["status"] = json!("0x2")),
        Fault::result(RECEIPT, |receipt| receipt["logs"] = json!("none")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn one_source_that_fails_changes_no_verdict_and_two_make_it_unknown() {
    let (proxies, shop) = shop(2, |config| config.limits.rpc_timeout = Duration::from_millis(1200)).await;
    let (good, failed) = (shop.pay(PRICE).await, reverted(&shop).await);
    let never = B256::repeat_byte(9);
    for fault in faults() {
        let started = Instant::now();
        proxies[0].set(fault.clone());
        assert_eq!(verdict(&shop, good).await, "paid", "{fault:?}");
        assert_eq!(verdict(&shop, failed).await, "payment_reverted", "{fault:?}");
        let took = started.elapsed();
        assert!(took < Duration::from_secs(3), "two claims took {took:?} with {fault:?}");
        proxies[1].set(fault.clone());
        assert_eq!(verdict(&shop, good).await, "unknown", "{fault:?}");
        let verdict = verdict(&shop, never).await;
        assert!(verdict == "unknown" || verdict == "payment_not_found", "{fault:?}: {verdict}");
        proxies.iter().for_each(|proxy| proxy.set(None));
    }
}

/// Lies about a payment to somebody else, a failed one, and a good one.
fn lies() -> Vec<Fault> {
    let topic = |address: &str| json!(format!("0x{:0>64}", address[2..].to_lowercase()));
    let payee = topic(SELLER);
    vec![
        Fault::result(RECEIPT, move |receipt| {
            receipt["status"] = json!("0x1");
            for log in receipt["logs"].as_array_mut().unwrap() {
                log["topics"][2] = payee.clone();
            }
        }),
        Fault::result(RECEIPT, |receipt| receipt["status"] = json!("0x0")),
        Fault::result(RECEIPT, |receipt| receipt["status"] = json!("0x1")),
        Fault::result(RECEIPT, |receipt| receipt["logs"] = json!([])),
        Fault::result(RECEIPT, |receipt| receipt["blockHash"] = json!(B256::repeat_byte(7))),
        Fault::result(RECEIPT, |receipt| receipt["blockNumber"] = json!("0x1")),
        Fault::result(RECEIPT, |receipt| {
            for log in receipt["logs"].as_array_mut().unwrap() {
                log["data"] =
                    json!(U256::from(10u128.pow(12)).to_be_bytes::<32>().map(|b| format!("{b:02x}")).concat());
            }
        }),
        Fault::result(RECEIPT, |receipt| *receipt = Value::Null),
        Fault::result("eth_getTransactionByHash", |transaction| *transaction = Value::Null),
        Fault::result("eth_getBlockByNumber", |block| block["hash"] = json!(B256::repeat_byte(7))),
        Fault::result("eth_getBlockByNumber", |block| block["number"] = json!("0xffffff")),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn one_liar_of_three_changes_no_verdict_where_two_have_to_agree() {
    let (proxies, shop) = shop(3, quorum).await;
    let elsewhere = "0x00000000000000000000000000000000000000Aa".parse().unwrap();
    let data = crate::transfer::transferCall { to: elsewhere, value: U256::from(PRICE) };
    let data = alloy::sol_types::SolCall::abi_encode(&data);
    let astray = shop.payer.send(shop.anvil(), TxKind::Call(USDC.parse().unwrap()), 0, data).await;
    let (good, failed, never) = (shop.pay(PRICE).await, reverted(&shop).await, B256::repeat_byte(9));
    for lie in lies() {
        for liar in &proxies {
            liar.set(lie.clone());
            let verdicts = [
                verdict(&shop, good).await,
                verdict(&shop, failed).await,
                verdict(&shop, astray).await,
                verdict(&shop, never).await,
            ];
            assert_eq!(verdicts, ["paid", "payment_reverted", "wrong_recipient", "payment_not_found"]);
            liar.set(None);
        }
    }
    // Nobody is left to agree with the one that is honest.
    proxies[0].set(Fault::result(RECEIPT, |receipt| receipt["blockHash"] = json!(B256::repeat_byte(7))));
    proxies[1].set(Fault::result(RECEIPT, |receipt| receipt["logs"] = json!([])));
    assert_eq!(verdict(&shop, good).await, "unknown");
    proxies[0].set(Fault::Down);
    assert_eq!(verdict(&shop, good).await, "unknown");
    proxies[1].set(Fault::Down);
    assert_eq!(verdict(&shop, good).await, "unknown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_lags_decides_nothing() {
    let (proxies, shop) = shop(2, |_| ()).await;
    let behind = shop.anvil().rpc("eth_blockNumber", json!([])).await;
    let behind = u64::from_str_radix(&behind.as_str().unwrap()[2..], 16).unwrap();
    shop.anvil().rpc("anvil_setBlockTimestampInterval", json!([10])).await;
    let good = shop.pay(PRICE).await;
    shop.anvil().rpc("anvil_mine", json!(["0x4"])).await;
    proxies[0].set(Fault::Lag(behind));
    assert_eq!(verdict(&shop, good).await, "paid");
    assert_eq!(verdict(&shop, B256::repeat_byte(9)).await, "payment_not_found");

    let asked = proxies[0].asked();
    for _ in 0..20 {
        assert_eq!(verdict(&shop, good).await, "paid");
    }
    assert!(proxies[0].asked() < asked + 5, "a source that is known to lag is asked last");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_balance_is_no_reason_to_refuse() {
    let (proxies, shop) = shop(2, |_| ()).await;
    let world = &shop.world;
    let broke = shop.world.anvil.balance(&world.payer).await;
    let data = crate::transfer::transferCall { to: crate::transfer::seller(), value: U256::from(broke) };
    let data = alloy::sol_types::SolCall::abi_encode(&data);
    shop.payer.send(shop.anvil(), TxKind::Call(USDC.parse().unwrap()), 0, data).await;
    let behind = world.anvil.rpc("eth_blockNumber", json!([])).await;
    let behind = u64::from_str_radix(&behind.as_str().unwrap()[2..], 16).unwrap();
    world.anvil.rpc("anvil_setBlockTimestampInterval", json!([10])).await;
    world.anvil.mint(&world.payer, 1_000_000).await;
    world.anvil.rpc("anvil_mine", json!(["0x4"])).await;
    proxies[0].set(Fault::Lag(behind));
    // A head that was seen a moment before is what the other source's is compared with.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let checked = world.check(&world.credential().await);
    world.rail.verify(&checked, &Unlimited).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_source_is_overtaken_and_a_dead_one_passed_over_at_once() {
    let (proxies, shop) = shop(2, |_| ()).await;
    let checked = shop.world.check(&shop.world.credential().await);
    let timed = async |what: &str| {
        let started = Instant::now();
        shop.world.rail.verify(&checked, &Unlimited).await.unwrap();
        println!("{what}: {:?}", started.elapsed());
        started.elapsed()
    };
    for _ in 0..10 {
        timed("both well").await;
    }
    proxies[0].set(Fault::Hang);
    let hedged = timed("the first hangs, first question").await;
    assert!(hedged < Duration::from_millis(600), "{hedged:?}");
    proxies[0].set(None);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    proxies[0].set(Fault::Slow(Duration::from_millis(700)));
    let mut overtaken = Duration::ZERO;
    for _ in 0..8 {
        overtaken = timed("the first answers in 700 ms").await;
        assert!(overtaken < Duration::from_millis(600), "{overtaken:?}");
    }
    assert!(overtaken < Duration::from_millis(120), "it still comes first after eight: {overtaken:?}");
    proxies[0].set(Fault::Down);
    let failed_over = timed("the first is down").await;
    assert!(failed_over < Duration::from_millis(300), "{failed_over:?}");
    let asked = proxies[0].asked();
    for _ in 0..10 {
        timed("the first rests").await;
    }
    assert!(proxies[0].asked() <= asked + 2, "a source that rests is asked last");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_limits_us_is_left_alone_for_as_long_as_it_says() {
    let (proxies, shop) = shop(2, |_| ()).await;
    let checked = shop.world.check(&shop.world.credential().await);
    proxies[0].set(Fault::Status(429, 2));
    let verify = || async { shop.world.rail.verify(&checked, &Unlimited).await.unwrap() };
    verify().await;
    let asked = proxies[0].asked();
    for _ in 0..20 {
        verify().await;
    }
    assert_eq!(proxies[0].asked(), asked);
    proxies[0].set(None);
    tokio::time::sleep(Duration::from_millis(2100)).await;
    verify().await;
    assert!(proxies[0].asked() > asked, "it comes back by itself, and first");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_that_is_cut_is_made_again() {
    let line = Mutex::new(None);
    let route = |url: &str| {
        let (started, address) = Line::start(url);
        *line.lock() = Some(started);
        format!("ws://{address}")
    };
    let world = World::through(&[], route, |config| config.limits.rpc_timeout = Duration::from_secs(2)).await;
    let line = line.into_inner().unwrap();
    let checked = world.check(&world.credential().await);
    world.rail.verify(&checked, &Unlimited).await.unwrap();
    let before = line.connections.load(Ordering::SeqCst);
    line.cut(false);
    world.rail.verify(&checked, &Unlimited).await.unwrap();
    assert!(line.connections.load(Ordering::SeqCst) > before);

    line.cut(true);
    let verdict = world.rail.verify(&checked, &Unlimited).await;
    assert!(matches!(verdict, Err(VerifyError::Unavailable { .. })), "{verdict:?}");
    line.restore();
    for _ in 0..40 {
        if world.rail.verify(&checked, &Unlimited).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the connection was never made again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_that_is_worth_it_is_final_once_enough_sources_say_so() {
    let (proxies, shop) = shop(3, quorum).await;
    let world = &shop.world;
    proxies[1].set(Fault::result(RECEIPT, |receipt| receipt["blockHash"] = json!(B256::repeat_byte(7))));
    let settled = world.settle(&world.claimed().await).await;
    assert!(matches!(settled, Settlement::Final { .. }), "{settled:?}");

    proxies[2].set(Fault::Down);
    let claimed = world.claimed().await;
    let doubted = tokio::time::timeout(Duration::from_secs(40), world.settle(&claimed)).await.unwrap();
    assert!(matches!(doubted, Settlement::InDoubt { transaction: Some(_), .. }), "{doubted:?}");
    proxies.iter().for_each(|proxy| proxy.set(None));
    let resolved = world.resolved(&crate::harness::in_doubt(&claimed, &world.store)).await;
    assert!(matches!(resolved, Settlement::Final { .. }), "{resolved:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inspection_tells_of_every_source_once() {
    let anvil = Anvil::start(&[]).await;
    anvil.rpc("anvil_mine", json!(["0x5"])).await;
    let proxies: Vec<_> = (0..4).map(|_| Proxy::start(&anvil.url)).collect();
    let config = config(&anvil.url, |config| {
        config.rpc = proxies.iter().map(|(_, url)| RpcUrl::parse(url).unwrap().into()).collect();
        config.limits.rpc_timeout = Duration::from_millis(500);
    });
    let look = async || inspect(&config, now()).await.findings;
    let found = |findings: &[Finding], code: &str| -> Vec<String> {
        findings.iter().filter(|finding| finding.code == code).map(|finding| finding.message.clone()).collect()
    };
    let fine = look().await;
    assert_eq!(found(&fine, "rpc_reachable").len(), 4, "{fine:?}");
    assert_eq!(found(&fine, "rpc_agree").len(), 1, "{fine:?}");

    proxies[1].0.set(Fault::Down);
    proxies[2].0.set(Fault::result("eth_getBlockByNumber", |block| block["hash"] = json!(B256::repeat_byte(7))));
    proxies[3].0.set(Fault::Lag(3));
    let (dead, liar) = (&proxies[1].1, &proxies[2].1);
    let findings = look().await;
    assert_eq!(found(&findings, "rpc_unreachable").len(), 1, "a dead source is told of once: {findings:?}");
    assert!(found(&findings, "rpc_unreachable")[0].contains(dead), "{findings:?}");
    let disagree = found(&findings, "rpc_disagree");
    assert!(disagree.len() == 1 && disagree[0].contains(liar), "{findings:?}");
    let reachable = found(&findings, "rpc_reachable");
    let behind = |message: &&String| message.contains("the node") && !message.contains(" 0 behind");
    assert_eq!(reachable.iter().filter(behind).count(), 1, "{findings:?}");

    proxies.iter().for_each(|(proxy, _)| proxy.set(Fault::Down));
    let findings = look().await;
    assert_eq!(found(&findings, "rpc_unreachable").len(), 4, "{findings:?}");
    assert!(found(&findings, "token").is_empty() && found(&findings, "relayer").is_empty(), "{findings:?}");
}

/// A block explorer before a node: one GET a question, its own names for the parameters, failures under 200.
async fn explorer(anvil: &str, says: Arc<Mutex<Option<&'static str>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let anvil = anvil.to_owned();
    tokio::spawn(async move {
        let http = http_client();
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            let path = line.split(' ').nth(1).unwrap();
            let url = url::Url::parse(&format!("http://x{path}")).unwrap();
            let get = |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
            assert_eq!((get("apikey").as_deref(), get("chainid").as_deref()), (Some("SECRET"), Some("84532")));
            let said = *says.lock();
            let answer = match said {
                Some(said) => said.to_owned(),
                None => {
                    let params = match get("action").unwrap().as_str() {
                        "eth_getBlockByNumber" => json!([get("tag"), get("boolean").unwrap() == "true"]),
                        _ => json!([get("txhash")]),
                    };
                    let question = json!({"jsonrpc": "2.0", "id": 83, "method": get("action"), "params": params});
                    http.post(&anvil).json(&question).send().await.unwrap().text().await.unwrap()
                }
            };
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", answer.len());
            stream.write_all(format!("{head}{answer}").as_bytes()).await.unwrap();
        }
    });
    format!("http://{address}/v2/api")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explorer_answers_when_the_node_does_not() {
    let says = Arc::new(Mutex::new(None));
    let started = Mutex::new(None);
    let upstream = Mutex::new(String::new());
    let route = |url: &str| {
        let (proxy, through) = Proxy::start(url);
        *started.lock() = Some(proxy);
        *upstream.lock() = url.to_owned();
        through
    };
    let explorer_url = |config: &mut ChainConfig| {
        let url = upstream.lock().clone();
        let says = says.clone();
        let explorer = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async move { explorer(&url, says).await })
        });
        config.limits.rpc_timeout = Duration::from_secs(2);
        config.rpc.push(SourceConfig {
            url: RpcUrl::parse(&explorer).unwrap(),
            kind: SourceKind::Explorer,
            key: Some(SecretText::new("SECRET".to_owned())),
        });
        assert!(!format!("{config:?}").contains("SECRET"), "{config:?}");
    };
    let shop = Shop::through(&[], route, explorer_url).await;
    let node = started.into_inner().unwrap();
    let (good, failed) = (shop.pay(PRICE).await, reverted(&shop).await);
    node.set(Fault::Down);
    assert_eq!(verdict(&shop, good).await, "paid");
    assert_eq!(verdict(&shop, failed).await, "payment_reverted");
    for said in [
        r#"{"status":"0","message":"NOTOK","result":"Invalid API Key SECRET"}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":"Error! Missing transaction hash SECRET"}"#,
        r#"{"status":"0","message":"NOTOK","result":"Max rate limit reached"}"#,
    ] {
        *says.lock() = Some(said);
        let error = shop.look(&shop.sign(&shop.draft(good)), &Unlimited).await.unwrap_err();
        assert_eq!(told(&error).0, 503, "{said}: {error:?}");
        assert!(!format!("{error:?}").contains("SECRET"), "{error:?}");
    }
}

/// Every source fails in its own way now and then, one of them lies, and two have to agree.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_sources_do_the_verdict_is_right_or_unknown() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let (proxies, shop) = shop(3, |config| {
        quorum(config);
        config.limits.rpc_timeout = Duration::from_millis(500);
    })
    .await;
    let good = [shop.pay(PRICE).await, shop.pay(2 * PRICE).await];
    let failed = reverted(&shop).await;
    for (at, proxy) in proxies.iter().enumerate() {
        let dice = Mutex::new(StdRng::seed_from_u64(seed ^ at as u64));
        proxy.set(Fault::Mixed(Arc::new(move |_| {
            let mut dice = dice.lock();
            let mut kinds = faults();
            if at == 2 {
                kinds.extend(lies());
            }
            dice.random_bool(0.2).then(|| kinds.swap_remove(dice.random_range(0..kinds.len())))
        })));
    }
    let mut known = 0;
    for round in 0..60 {
        let (transaction, right) = match round % 4 {
            0 | 1 => (good[round % 2], "paid"),
            2 => (failed, "payment_reverted"),
            _ => (B256::repeat_byte(9), "payment_not_found"),
        };
        let found = verdict(&shop, transaction).await;
        assert!(found == right || found == "unknown", "seed {seed}, round {round}: {found}, expected {right}");
        known += u32::from(found == right);
    }
    println!("{known} of 60 verdicts were told");
    assert!(known >= 10, "seed {seed}: {known}");
}
