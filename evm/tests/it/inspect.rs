//! What is told of a chain to whoever runs a gateway.

use std::{sync::Arc, time::Duration};

use farebox_core::ports::Rail;
use farebox_evm::{
    ClockHand, EvmChains, EvmKey, NativeCoin, NativeRole, Rates, Severity, Standing, inspect, parse_address,
};

use crate::harness::{Anvil, DEV, Store, USDC, WallClock, config, now};

#[tokio::test(flavor = "multi_thread")]
async fn an_inspection_tells_what_is_there_and_what_is_wrong() {
    let anvil = Anvil::start(&[]).await;
    let fine = inspect(&config(&anvil.url, |_| ()), now()).await;
    assert_eq!(fine.worst(), Severity::Fine, "{fine:?}");
    let said = |code: &str, part: &str| fine.findings.iter().any(|f| f.code == code && f.message.contains(part));
    assert!(said("token", "\"USDC\" version \"2\" with 6 decimals") && said("relayer_gas", "settlements"), "{fine:?}");
    let poor = inspect(&config(&anvil.url, |c| c.relayer = Some(EvmKey::from_bytes(&[3; 32]).unwrap())), now()).await;
    assert_eq!(poor.worst(), Severity::Error, "{poor:?}");
    let own = inspect(&config(&anvil.url, |c| c.pay_to = c.relayer.as_ref().unwrap().address()), now()).await;
    assert!(own.findings.iter().any(|f| f.code == "pay_to_is_relayer"), "{own:?}");
    let token = inspect(&config(&anvil.url, |c| c.pay_to = parse_address(USDC).unwrap()), now()).await;
    assert!(token.findings.iter().any(|f| f.code == "pay_to_is_token" && f.severity == Severity::Error), "{token:?}");
    let wallet = anvil.wallet_of(DEV).await;
    let contract = inspect(&config(&anvil.url, |c| c.pay_to = parse_address(&wallet).unwrap()), now()).await;
    assert!(contract.findings.iter().any(|f| f.code == "pay_to_contract"), "{contract:?}");
    // The token refuses coins, as most contracts do.
    let coins = |pay_to: &str, token: &str| {
        config(&anvil.url, |c| {
            c.pay_to = parse_address(pay_to).unwrap();
            c.assets[0].address = parse_address(token).unwrap();
            c.native = Some(NativeCoin { symbol: "ETH".into(), role: NativeRole::Payment });
        })
    };
    let refuses = inspect(&coins(USDC, &wallet), now()).await;
    let tried = |report: &farebox_evm::ChainReport| {
        report.findings.iter().find(|f| f.code == "pay_to_takes_coins").map(|f| f.severity)
    };
    assert_eq!(tried(&refuses), Some(Severity::Error), "{refuses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_chain_is_told_of_once_and_one_that_stands_still_by_its_own_head_age_max() {
    let dead = inspect(&config("http://127.0.0.1:1", |_| ()), now()).await;
    let failed: Vec<_> = dead.findings.iter().filter(|f| f.severity == Severity::Error).collect();
    assert_eq!(failed.len(), 1, "one fault is one line: {dead:?}");
    let anvil = Anvil::start(&[]).await;
    let later = now().plus(Duration::from_secs(600));
    let lags = |report: &farebox_evm::ChainReport| {
        report.findings.iter().any(|f| f.code == "rpc_lags" && f.message.contains("stands still"))
    };
    let still = inspect(&config(&anvil.url, |_| ()), later).await;
    assert!(lags(&still), "{still:?}");
    let patient = config(&anvil.url, |c| c.head_age_max = Duration::from_secs(3600));
    assert!(!lags(&inspect(&patient, later).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clocks_of_a_chain_and_of_its_servers_are_read() {
    let anvil = Anvil::start(&[]).await;
    let readings = farebox_evm::clocks(&config(&anvil.url, |_| ()), &WallClock).await;
    let by = |hand| readings.iter().find(|reading| reading.by == hand).unwrap_or_else(|| panic!("{readings:?}"));
    for hand in [ClockHand::Block, ClockHand::HttpDate] {
        let reading = by(hand);
        assert!(reading.ours.unix_s().abs_diff(reading.theirs.unix_s()) <= 5, "{readings:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chains_in_service_tell_how_they_do() {
    let anvil = Anvil::start(&[]).await;
    let clock = Arc::new(WallClock);
    let config = config(&anvil.url, |_| ());
    let chains = EvmChains::connect(vec![config], Arc::new(Store::default()), clock.clone(), Rates::none(clock)).await;
    let chains = chains.unwrap();
    // As the gateway does all the time.
    chains.x402().unwrap().windows().await;
    let status = chains.status();
    let [chain] = &status[..] else { panic!("{status:?}") };
    let relayer = chain.relayer.as_ref().unwrap();
    assert_eq!((relayer.in_flight, chain.reorganisations), (0, 0));
    let [source] = &chain.sources[..] else { panic!("{status:?}") };
    assert!(source.standing == Standing::Good && source.latency.is_some(), "{status:?}");
    assert!(chain.head.is_some_and(|(_, at)| at.unix_s().abs_diff(now().unix_s()) < 60), "{status:?}");
    let balances = chains.relayer_balances().await;
    assert!(balances[0].1.as_ref().is_ok_and(|wei| *wei > farebox_evm::ETHER), "{balances:?}");
}
