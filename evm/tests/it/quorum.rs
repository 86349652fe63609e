//! One source of three that lies where two have to agree: about a wallet, a price, a token, an authorization, a block.

use std::{sync::Arc, time::Duration};

use alloy::{
    primitives::{B256, U256, keccak256},
    sol_types::SolValue,
};
use farebox_core::{
    BlockRef, Network, Payment,
    ports::{Canonical, Rail, Settlement},
};
use farebox_evm::{ChainConfig, ConnectError, EvmChains, Quorum, RateConfig, RateSource, Rates, RpcUrl, parse_address};
use serde_json::{Value, json};

use crate::{
    harness::{Anvil, CHAIN_ID, Store, WallClock, World, config, in_doubt, now, transaction_of, x402},
    proxy::{Fault, Proxy},
    sources::{quorum, shop},
    transfer::{PRICE, Payer, no},
};

/// Three sources of one chain, each behind a proxy, two of which have to agree.
fn three(url: &str) -> (Vec<Arc<Proxy>>, ChainConfig) {
    let (proxies, urls): (Vec<_>, Vec<_>) = (0..3).map(|_| Proxy::start(url)).unzip();
    let config = config(url, |config| {
        config.rpc = urls.iter().map(|url| RpcUrl::parse(url).unwrap().into()).collect();
        config.limits.rpc_timeout = Duration::from_secs(2);
        quorum(config);
    });
    (proxies, config)
}

async fn connect(config: ChainConfig, rates: Arc<Rates>) -> Result<EvmChains, ConnectError> {
    EvmChains::connect(vec![config], Arc::new(Store::default()), Arc::new(WallClock), rates).await
}

/// Answers calls of one function with this word.
fn calls(selector: &'static str, word: U256) -> Fault {
    calls_with(selector, move |answer| *answer = json!(B256::from(word)))
}

fn calls_with(selector: &'static str, change: impl Fn(&mut Value) + Send + Sync + 'static) -> Fault {
    Fault::Lie(Arc::new(move |request, mut answer| {
        let call = &request["params"][0];
        let data = call["data"].as_str().or_else(|| call["input"].as_str()).unwrap_or_default();
        if request["method"] == "eth_call" && data.starts_with(selector) {
            change(&mut answer["result"]);
        }
        answer
    }))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_source_makes_no_wallet_of_a_payer_who_has_none() {
    let dear = |config: &mut ChainConfig| {
        config.quorum = Some(Quorum { agree: 2, above: "1000".parse().unwrap() });
    };
    let (proxies, shop) = shop(3, dear).await;
    let transaction = shop.pay(PRICE).await;
    let garbage = || shop.sign_by(&shop.draft(transaction), &Payer::random().signer);
    proxies[0].set(Fault::Lie(Arc::new(|request, mut answer| {
        match request["method"].as_str().unwrap() {
            "eth_getCode" => answer["result"] = json!("0x60"),
            "eth_call" => answer["result"] = json!(format!("0x1626ba7e{}", "0".repeat(56))),
            _ => {}
        }
        answer
    })));
    assert_eq!(shop.claim(&garbage()).await.unwrap_err(), no(402, "bad_signature"));
    assert_eq!(shop.claim(&garbage()).await.unwrap_err(), no(402, "bad_signature"), "what was learnt is no lie either");
    // Alone it decides nothing.
    proxies[1].set(Fault::Down);
    proxies[2].set(Fault::Down);
    tokio::time::sleep(Duration::from_millis(10)).await;
    let stranger = Payer::random();
    let draft = crate::transfer::Draft { payer: stranger.address(), ..shop.draft(transaction) };
    let unknown = shop.claim(&shop.sign_by(&draft, &Payer::random().signer)).await.unwrap_err();
    assert_eq!(unknown, no(503, "payment_unverifiable"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_source_sets_no_rate() {
    let anvil = Anvil::start(&[]).await;
    let feed = "0xfEEDFEEDfeEDFEedFEEdFEEDFeEdfEEdFeEdFEEd";
    let at = U256::from(now().unix_s());
    let words = (U256::from(7), U256::from(300_000_000_000u64), at, at, U256::from(7)).abi_encode_params();
    // As in the tests of rates: five words for `latestRoundData`, 8 for anything else.
    let words = hex::encode(words);
    let code = format!("0x5f3560f81c60fe1460135760085f5260205ff35b60a0601e5f3960a05ff3{words}");
    anvil.rpc("anvil_setCode", json!([feed, code])).await;
    let (proxies, config) = three(&anvil.url);
    proxies[0].set(calls_with("0xfeaf968c", |answer| {
        let lie = answer.as_str().unwrap().replace(&format!("{:064x}", 300_000_000_000u64), &format!("{:064x}", 1));
        *answer = json!(lie);
    }));
    let rate = RateConfig {
        symbol: "ETH".to_owned(),
        source: RateSource::Chainlink { network: Network::evm(CHAIN_ID), address: parse_address(feed).unwrap() },
        min: None,
        max: None,
        stale_after: Duration::from_secs(3600),
        refresh: Duration::from_secs(60),
    };
    let rates = Rates::start(vec![rate], Arc::new(WallClock)).unwrap();
    let _chains = connect(config, rates.clone()).await.unwrap();
    assert_eq!(rates.dollars("ETH").unwrap().dollars, "3000".parse().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_source_tells_no_decimals() {
    let anvil = Anvil::start(&[]).await;
    let (proxies, config) = three(&anvil.url);
    let lie = || calls("0x313ce567", U256::ZERO);
    proxies[0].set(lie());
    for with_relayer in [true, false] {
        let mut config = config.clone();
        if !with_relayer {
            config.relayer = None;
        }
        let chains = connect(config, Rates::none(Arc::new(WallClock))).await.unwrap();
        assert_eq!(chains.assets()[0].2, 6);
    }
    // Where it is the only one, what is known of the token is the measure.
    for with_relayer in [true, false] {
        let mut alone = config.clone();
        alone.rpc.truncate(1);
        alone.quorum = None;
        if !with_relayer {
            alone.relayer = None;
        }
        let refused = connect(alone, Rates::none(Arc::new(WallClock))).await.unwrap_err();
        assert_eq!(refused.code(), "unusable_token");
        assert!(refused.to_string().contains("has 0 decimals"), "{refused}");
    }
}

/// A payment whose transaction waits in the pool.
async fn unmined(world: &World) -> Payment {
    world.anvil.rpc("evm_setAutomine", json!([false])).await;
    let claimed = world.claimed().await;
    let dropped = tokio::time::timeout(Duration::from_millis(500), world.settle(&claimed)).await;
    assert!(dropped.is_err());
    in_doubt(&claimed, &world.store)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_source_ends_no_authorization() {
    let (proxies, shop) = shop(3, quorum).await;
    let world = &shop.world;
    let other = transaction_of(&world.settle(&world.claimed().await).await);
    let payment = unmined(world).await;

    // Its time is over, by a block that only one source has.
    proxies[0].set(Fault::result("eth_getBlockByNumber", |block| block["timestamp"] = json!("0xffffffff")));
    let over = world.rail.resolve(&payment).await;
    assert!(matches!(over, Settlement::InDoubt { .. }), "{over:?}");

    // It was used, in another payment's transaction: its event is given this one's nonce, and another sender.
    let used = keccak256("AuthorizationUsed(address,bytes32)");
    let nonce = B256::from(x402(&payment.credential).authorization.nonce);
    let mut receipt = world.anvil.receipt(&json!(other)).await;
    receipt["from"] = json!("0x00000000000000000000000000000000000000Aa");
    for log in receipt["logs"].as_array_mut().unwrap() {
        if log["topics"][0] == json!(used) {
            log["topics"][2] = json!(nonce);
        }
    }
    let log = receipt["logs"].as_array().unwrap().iter().find(|log| log["topics"][0] == json!(used)).unwrap().clone();
    let (told_receipt, hash) = (receipt, other.clone());
    let everything = move |request: &Value, mut answer: Value| {
        match request["method"].as_str().unwrap() {
            "eth_call" => answer["result"] = json!(B256::from(U256::ONE)),
            "eth_getLogs" => answer["result"] = json!([log]),
            "eth_getTransactionReceipt" if request["params"][0] == json!(hash) => {
                answer["result"] = told_receipt.clone()
            }
            _ => {}
        }
        answer
    };
    proxies[0].set(Fault::Lie(Arc::new(everything.clone())));
    let paid = world.rail.resolve(&payment).await;
    assert!(matches!(paid, Settlement::InDoubt { .. }), "{paid:?}");

    // Two who say that it is used, and one who names that transaction, whose receipt nobody else has so.
    for proxy in &proxies[1..] {
        proxy.set(calls("0xe94a0102", U256::ONE));
    }
    let paid = world.rail.resolve(&payment).await;
    assert!(matches!(paid, Settlement::InDoubt { .. }), "{paid:?}");

    proxies.iter().for_each(|proxy| proxy.set(None));
    world.anvil.rpc("evm_setAutomine", json!([true])).await;
    world.anvil.rpc("evm_mine", json!([])).await;
    transaction_of(&world.resolved(&payment).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_source_undoes_no_block() {
    let (proxies, shop) = shop(3, |config| config.limits.rpc_timeout = Duration::from_millis(500)).await;
    let network = Network::evm(CHAIN_ID);
    let behind = shop.anvil().rpc("eth_blockNumber", json!([])).await;
    let behind = u64::from_str_radix(&behind.as_str().unwrap()[2..], 16).unwrap();
    let receipt = shop.anvil().receipt(&json!(shop.pay(PRICE).await)).await;
    let block = BlockRef {
        number: u64::from_str_radix(&receipt["blockNumber"].as_str().unwrap()[2..], 16).unwrap(),
        hash: receipt["blockHash"].as_str().unwrap().parse::<B256>().unwrap().0,
    };
    let says = async || shop.rail.is_canonical(&network, &block).await;
    assert_eq!(says().await.unwrap(), Canonical::Holds);

    let lie = || Fault::result("eth_getBlockByNumber", |block| block["hash"] = json!(B256::repeat_byte(7)));
    proxies[0].set(lie());
    says().await.expect_err("the nodes disagree");
    proxies[1].set(Fault::Down);
    proxies[2].set(Fault::Down);
    says().await.expect_err("one alone undoes nothing");
    proxies[1].set(lie());
    assert_eq!(says().await.unwrap(), Canonical::Gone);

    // Whoever is not that far has nothing to say.
    proxies[0].set(Fault::Lag(behind));
    proxies[1].set(Fault::Lag(behind));
    says().await.expect_err("both lag");
    proxies[2].set(None);
    assert_eq!(says().await.unwrap(), Canonical::Holds);

    // Another branch, on all of them: of the same height, then shorter, then grown past it.
    proxies.iter().for_each(|proxy| proxy.set(None));
    shop.anvil().rpc("anvil_reorg", json!([1, []])).await;
    assert_eq!(says().await.unwrap(), Canonical::Gone);
    shop.anvil().rpc("anvil_rollback", json!([1])).await;
    says().await.expect_err("the block may be yet to come to them");
    shop.anvil().rpc("anvil_mine", json!(["0x2"])).await;
    assert_eq!(says().await.unwrap(), Canonical::Gone);
}
