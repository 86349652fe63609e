//! Rates from a real feed on a real chain and a real page over HTTP, and prices that follow them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use alloy::{
    primitives::{I256, U256},
    sol_types::SolValue,
};
use farebox_core::{
    Decimal, FeeTerms, Network, NetworkFee, Price, Timestamp,
    ports::{Clock, OfferError, Offering, Rail},
};
use farebox_evm::{ChainConfig, EvmChains, NoRate, RateConfig, RateSource, Rates, parse_address};
use parking_lot::Mutex;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::harness::{Anvil, CHAIN_ID, Store, World, config, now, transaction_of};

const FEED: &str = "0xfEEDFEEDfeEDFEedFEEdFEEDFeEdfEEdFeEdFEEd";

fn decimal(text: &str) -> Decimal {
    text.parse().unwrap()
}

/// A clock that tests move.
#[derive(Debug)]
struct Moved(AtomicU64);

impl Moved {
    fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(0)))
    }

    fn forward(&self, by_s: u64) {
        self.0.fetch_add(by_s, Ordering::SeqCst);
    }
}

impl Clock for Moved {
    fn now(&self) -> Timestamp {
        now().plus(Duration::from_secs(self.0.load(Ordering::SeqCst)))
    }
}

fn rate(source: RateSource) -> RateConfig {
    RateConfig {
        symbol: "ETH".to_owned(),
        source,
        min: Some(decimal("100")),
        max: Some(decimal("100000")),
        stale_after: Duration::from_secs(3600),
        refresh: Duration::from_millis(100),
    }
}

fn fixed(dollars: &str) -> RateConfig {
    rate(RateSource::Fixed(decimal(dollars)))
}

async fn chains(anvil: &Anvil, rates: &Arc<Rates>, change: impl FnOnce(&mut ChainConfig)) -> EvmChains {
    let clock = Arc::new(crate::harness::WallClock);
    let config = config(&anvil.url, change);
    EvmChains::connect(vec![config], Arc::new(Store::default()), clock, rates.clone()).await.unwrap()
}

/// Puts a contract there that answers `latestRoundData` with this round, and anything else with `decimals`.
async fn feed(anvil: &Anvil, decimals: u8, round: (u64, i64, u64, u64)) {
    let (id, answer, updated_at, answered_in) = round;
    let at = U256::from(updated_at);
    let words = (U256::from(id), I256::try_from(answer).unwrap(), at, at, U256::from(answered_in)).abi_encode_params();
    // PUSH0 CALLDATALOAD PUSH1 f8 SHR PUSH1 fe EQ PUSH1 13 JUMPI PUSH1 decimals PUSH0 MSTORE PUSH1 20 PUSH0 RETURN
    // 13: JUMPDEST PUSH1 a0 PUSH1 1e PUSH0 CODECOPY PUSH1 a0 PUSH0 RETURN 1e: the five words
    let words = hex::encode(words);
    let code = format!("0x5f3560f81c60fe1460135760{decimals:02x}5f5260205ff35b60a0601e5f3960a05ff3{words}");
    anvil.rpc("anvil_setCode", json!([FEED, code])).await;
}

/// Reads until the rate is as expected.
async fn until(rates: &Rates, expected: impl Fn(&Result<farebox_evm::Rate, NoRate>) -> bool) {
    for _ in 0..200 {
        if expected(&rates.dollars("ETH")) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{:?}", rates.dollars("ETH"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_on_the_chain_is_believed_only_while_it_makes_sense() {
    let anvil = Anvil::start(&[]).await;
    let clock = Moved::new();
    let at = || now().unix_s();
    feed(&anvil, 8, (7, 300_012_345_678, at(), 7)).await;
    let source = RateSource::Chainlink { network: Network::evm(CHAIN_ID), address: parse_address(FEED).unwrap() };
    let rates = Rates::start(vec![rate(source)], clock.clone()).unwrap();
    assert!(matches!(rates.dollars("ETH"), Err(NoRate::Stale { .. })), "nothing is served before it is read");
    let _chains = chains(&anvil, &rates, |_| ()).await;
    assert_eq!(rates.dollars("ETH").unwrap().dollars, decimal("3000.12345678"));
    assert!(matches!(rates.dollars("BTC"), Err(NoRate::Unknown { .. })));

    // Half a per cent is no reason for new bills, more is.
    feed(&anvil, 8, (8, 301_400_000_000, at(), 8)).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(rates.dollars("ETH").unwrap().dollars, decimal("3000.12345678"));
    feed(&anvil, 8, (9, 310_000_000_000, at(), 9)).await;
    until(&rates, |rate| rate.as_ref().is_ok_and(|rate| rate.dollars == decimal("3100"))).await;

    // Nonsense leaves the last good one, until that is stale.
    for (decimals, nonsense) in [
        (8, (10, 0, at(), 10)),
        (8, (10, -5, at(), 10)),
        (8, (10, 320_000_000_000, at() - 7200, 10)),
        (8, (10, 320_000_000_000, 0, 10)),
        (8, (10, 320_000_000_000, at(), 9)),
        (8, (10, 9_999_999_999, at(), 10)),
        (8, (10, 10_000_100_000_000, at(), 10)),
        (19, (10, 320_000_000_000, at(), 10)),
    ] {
        feed(&anvil, decimals, nonsense).await;
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert_eq!(rates.dollars("ETH").unwrap().dollars, decimal("3100"), "{nonsense:?}");
    }
    clock.forward(3700);
    let stale = rates.dollars("ETH").unwrap_err();
    assert!(matches!(&stale, NoRate::Stale { source: Some(_), .. }), "{stale:?}");
}

/// A page that answers with what it is given, a status or a body.
async fn page(answer: Arc<Mutex<String>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.lock().clone();
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    format!("http://{address}/SECRET?key=SECRET")
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_json_is_read_within_bounds_and_never_followed_elsewhere() {
    let anvil = Anvil::start(&[]).await;
    let clock = Moved::new();
    let answer = Arc::new(Mutex::new(ok(r#"{"data": {"rates": [{"usd": 3012.450000000000000001}]}}"#)));
    let url = page(answer.clone()).await;
    let source = RateSource::Http { url: url.parse().unwrap(), pointer: "/data/rates/0/usd".to_owned() };
    let config = rate(source);
    assert!(!format!("{config:?}").contains("SECRET"), "{config:?}");
    let rates = Rates::start(vec![config], clock.clone()).unwrap();
    let _chains = chains(&anvil, &rates, |_| ()).await;
    assert_eq!(rates.dollars("ETH").unwrap().dollars, decimal("3012.450000000000000001"));

    let other = page(Arc::new(Mutex::new(ok(r#"{"data":{"rates":[{"usd":9000}]}}"#)))).await;
    for wrong in [
        format!("HTTP/1.1 302 Found\r\nlocation: {other}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
        "HTTP/1.1 500 X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned(),
        ok(r#"{"data":{"rates":[{"usd":99.99}]}}"#),
        ok(r#"{"data":{"rates":[{"usd":"1e9"}]}}"#),
        ok(r#"{"data":{"rates":[{"usd":null}]}}"#),
        ok(r#"{"data":{"rates":[]}}"#),
        ok("<html>busy</html>"),
        ok(&format!(r#"{{"data":{{"rates":[{{"usd":9000}}]}},"x":"{}"}}"#, "x".repeat(300_000))),
    ] {
        *answer.lock() = wrong.clone();
        tokio::time::sleep(Duration::from_millis(250)).await;
        let served = rates.dollars("ETH").unwrap().dollars;
        assert_eq!(served, decimal("3012.450000000000000001"), "{}", &wrong[..60.min(wrong.len())]);
    }
    clock.forward(3700);
    let stale = rates.dollars("ETH").unwrap_err();
    assert!(!format!("{stale:?}").contains("SECRET"), "{stale:?}");
    *answer.lock() = ok(r#"{"data":{"rates":[{"usd":"4000.5"}]}}"#);
    until(&rates, |rate| rate.as_ref().is_ok_and(|rate| rate.dollars == decimal("4000.5"))).await;
}

#[tokio::test]
async fn rates_that_nothing_could_make_good_are_refused() {
    let refused = |change: &dyn Fn(&mut RateConfig)| {
        let mut config = fixed("3000");
        change(&mut config);
        Rates::start(vec![config], Moved::new()).is_err()
    };
    assert!(!refused(&|_| ()));
    assert!(refused(&|config| config.source = RateSource::Fixed(decimal("0"))));
    assert!(refused(&|config| config.min = Some(decimal("200000"))));
    assert!(refused(&|config| config.refresh = Duration::ZERO));
    assert!(refused(&|config| config.stale_after = Duration::from_millis(1)));
    assert!(refused(&|config| config.source =
        RateSource::Http { url: "http://rates.example/".parse().unwrap(), pointer: "/x".to_owned() }));
    assert!(Rates::start(vec![fixed("1"), fixed("2")], Moved::new()).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_price_carries_the_fee_of_its_settlement() {
    let world = World::new(&["--block-base-fee-per-gas", "1000000000"]).await;
    let rates = Rates::start(vec![fixed("3000")], Moved::new()).unwrap();
    let rail = chains(&world.anvil, &rates, |_| ()).await.x402().unwrap();
    let price: Price = "$0.01".parse().unwrap();
    let offer = |terms| rail.offers(&price, terms).map(|mut offers| offers.remove(0));
    let absorbed = offer(FeeTerms::default()).unwrap();
    let Some(NetworkFee::Absorbed(fee)) = absorbed.network_fee else { panic!("{absorbed:?}") };
    assert_eq!(absorbed.amount.units, 10_000);
    // 104,000 gas at a bit more than 1 gwei and 3,000 dollars an ether are 0.312 dollars and a bit.
    assert!((200_000..700_000).contains(&fee), "{fee}");

    let added = FeeTerms { added_with_buffer_percent: Some(25), share_percent_max: None };
    let included = offer(added).unwrap();
    let Some(NetworkFee::Included(part)) = included.network_fee else { panic!("{included:?}") };
    assert_eq!(part, (fee * 125).div_ceil(100));
    assert_eq!(included.amount.units, 10_000 + part);

    let bounded = FeeTerms { added_with_buffer_percent: None, share_percent_max: Some(50) };
    let error = offer(bounded).unwrap_err();
    assert!(matches!(error, OfferError::FeeShare { fee_percent: 2_000..=7_000, percent_max: 50, .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_rate_for_gas_only_prices_that_carry_no_fee_are_told() {
    let world = World::new(&[]).await;
    let rail = chains(&world.anvil, &Rates::none(Moved::new()), |_| ()).await.x402().unwrap();
    let price: Price = "$0.01".parse().unwrap();
    let offers = rail.offers(&price, FeeTerms::default()).unwrap();
    assert_eq!((offers[0].amount.units, offers[0].network_fee), (10_000, None));
    let added = FeeTerms { added_with_buffer_percent: Some(25), share_percent_max: None };
    assert!(matches!(rail.offers(&price, added), Err(OfferError::NoRate { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fee_of_a_price_is_what_settlements_really_cost() {
    let world = World::new(&["--block-base-fee-per-gas", "1000000000"]).await;
    let rates = Rates::start(vec![fixed("3000")], Moved::new()).unwrap();
    let clock = Arc::new(crate::harness::WallClock);
    let store = world.store.clone();
    let chains = EvmChains::connect(vec![config(&world.anvil.url, |_| ())], store, clock, rates).await.unwrap();
    let rail = chains.x402().unwrap();
    let price: Price = "$0.01".parse().unwrap();
    let fee = || match rail.offers(&price, FeeTerms::default()).unwrap()[0].network_fee {
        Some(NetworkFee::Absorbed(fee)) => fee,
        other => panic!("{other:?}"),
    };
    let before = fee();
    let mut cost = 0;
    for _ in 0..24 {
        let settled = rail.settle(&farebox_core::Permit::granted(world.claimed().await)).await;
        let receipt = world.anvil.rpc("eth_getTransactionReceipt", json!([transaction_of(&settled)])).await;
        cost = u64::from_str_radix(&receipt["gasUsed"].as_str().unwrap()[2..], 16).unwrap();
    }
    let expected = before * u128::from(cost) / 104_000;
    let after = fee();
    assert!(after.abs_diff(expected) * 100 <= expected * 12, "{before} became {after}, {cost} gas is {expected}");
}
