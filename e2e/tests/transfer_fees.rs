//! Prices that carry the network's fee, and prices in what is no dollar: what the bill says is what is paid.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::time::Duration;

use alloy::{
    network::TransactionBuilder,
    primitives::{I256, U256},
    rpc::types::TransactionRequest,
    sol_types::SolCall,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use farebox_e2e::{
    Account, Anvil, Echo, Farebox, ForeignClient, Job, Setup, Shop, ShopOptions, bill,
    contract::{Contracts, deploy},
    http_client, now_s,
};
use serde_json::{Value, json};

/// Far above what anything here takes, for a machine with ten other things to do.
const SOON: Duration = Duration::from_secs(30);
/// Gas of a settlement is above this and below twice this. Source: FiatTokenV2_2, measured.
const SETTLEMENT_GAS: u128 = 60_000;
const GWEI: u128 = 1_000_000_000;
const FEE: ShopOptions = ShopOptions {
    routes: "[[route]]\nmatch = \"GET /fee/*\"\nupstream = \"$UPSTREAM\"\nprice = \"$0.01\"\n\
             network_fee = { include = true, buffer = \"25%\" }\n",
    ..ShopOptions::BOTH
};

#[tokio::test]
async fn a_price_that_carries_the_fee_says_so_and_the_official_client_pays_it() {
    let shop = Shop::open_with(FEE).await.unwrap();
    let url = shop.farebox.url("/fee/report");
    let offer = bill(&url).await.unwrap()["accepts"][0].clone();
    let units: u128 = offer["amount"].as_str().unwrap().parse().unwrap();
    let included: u128 = offer["extra"]["networkFee"]["included"].as_str().unwrap().parse().unwrap();
    assert_eq!(units, Shop::PRICE + included, "{offer}");
    // At 2500 dollars an ether, a wei is 2.5e-9 units: the fee is that of a settlement at what anvil asks for a unit of gas.
    let wei = included * 1_000_000_000 * 2 / 5;
    let (least, most) = (SETTLEMENT_GAS * GWEI / 10, SETTLEMENT_GAS * 20 * GWEI);
    assert!((least..most).contains(&wei), "{included} units are {wei} wei");

    let plain = bill(&shop.farebox.url(Shop::AFTER)).await.unwrap()["accepts"][0].clone();
    assert_eq!(plain["amount"], Shop::PRICE.to_string(), "{plain}");
    let transfer = shop.quote("/fee/report").await.unwrap().option("USDC").unwrap();
    assert_eq!(transfer.units, Shop::PRICE, "whoever pays the gas beside it pays it once");

    for client in [ForeignClient::X402Fetch, ForeignClient::PypiHttpx] {
        let payer = shop.payer(&format!("{client:?}")).await.unwrap();
        let outcome = client.pay(&Job::get(&url, &payer)).await.unwrap();
        assert_eq!(outcome.status, Some(200), "{client:?}: {outcome:?}");
        let paid = shop.usdc.transfers(payer.address(), Shop::SELLER).await.unwrap();
        assert!(paid.len() == 1 && paid[0].1 > Shop::PRICE, "{client:?}: {paid:?}");
    }
    assert_eq!(shop.audit().await.unwrap().in_state("settled").count(), 2);
}

#[tokio::test]
async fn an_offer_whose_fee_has_come_to_be_too_large_a_share_is_not_made_while_it_is() {
    let routes = "[[route]]\nmatch = \"GET /share/*\"\nupstream = \"$UPSTREAM\"\nprice = \"$1\"\nmax_fee_share = \"50%\"\n\
                  network_fee = { include = true, buffer = \"25%\" }\n";
    let options = ShopOptions { routes, top: "pricing.refresh = \"1s\"", ..ShopOptions::BOTH };
    let shop = Shop::open_with(options).await.unwrap();
    assert!(is_offered_by_x402(&shop).await);
    // A fee a hundred times as high, for as many blocks as are looked at.
    for (gwei, offered) in [(100, false), (1, true)] {
        let until = tokio::time::Instant::now() + SOON;
        while is_offered_by_x402(&shop).await != offered {
            assert!(tokio::time::Instant::now() < until, "at {gwei} gwei, offered {}", !offered);
            let wei = U256::from(gwei * GWEI);
            shop.anvil.rpc("anvil_setNextBlockBaseFeePerGas", json!([wei])).await.unwrap();
            shop.anvil.mine(1).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let payer = shop.spender("payer").await.unwrap();
    let claim = shop.buy(&payer, "/share/report", "USDC").await.unwrap();
    assert_eq!(shop.claim(&claim).await.unwrap().status, 200);
}

/// The route can be paid by transfer at any time.
async fn is_offered_by_x402(shop: &Shop) -> bool {
    let answer = http_client().unwrap().get(shop.farebox.url("/share/report")).send().await.unwrap();
    assert_eq!(answer.status(), 402);
    let problem: Value = answer.json().await.unwrap();
    assert!(problem["transfer"]["options"].as_array().is_some_and(|options| options.len() == 2), "{problem}");
    problem["accepts"].as_array().is_some_and(|accepts| !accepts.is_empty())
}

#[tokio::test]
async fn a_fee_above_the_share_that_is_allowed_is_warned_of_at_start_and_the_other_rail_sells() {
    let routes = "[[route]]\nmatch = \"GET /share/*\"\nupstream = \"$UPSTREAM\"\nprice = \"$0.01\"\nmax_fee_share = \"5%\"\n\
                  network_fee = { include = true, buffer = \"25%\" }\n";
    let mut shop = Shop::open_with(ShopOptions { routes, ..ShopOptions::BOTH }).await.unwrap();
    let warned = |line: &str| (line.contains("WARN") && line.contains("more than the 5 % allowed")).then_some(());
    shop.farebox.process().wait_for_line(SOON, warned).await.unwrap();
    assert!(!is_offered_by_x402(&shop).await);
    let payer = shop.spender("payer").await.unwrap();
    let claim = shop.buy(&payer, "/share/report", "USDC").await.unwrap();
    assert_eq!(shop.claim(&claim).await.unwrap().status, 200);
}

/// A gateway that takes ether at the rate of an aggregator on its own chain.
struct Exchange {
    anvil: Anvil,
    aggregator: alloy::primitives::Address,
    farebox: Farebox,
    _echo: Echo,
}

impl Exchange {
    async fn open(dollars: i64, updated_at: u64) -> anyhow::Result<Self> {
        let anvil = Anvil::start(&[]).await?;
        let aggregator = deploy(&anvil, "Aggregator", &[]).await?;
        let echo = Echo::start().await?;
        set(&anvil, aggregator, dollars, updated_at).await?;
        let config = format!(
            "public_url = \"$ORIGIN\"\ntransfer = {{}}\npricing.refresh = \"1s\"\n\
             [[rate]]\nsymbol = \"ETH\"\nchainlink = {{ network = \"eip155:84532\", address = \"{aggregator}\" }}\n\
             min = \"100\"\nmax = \"10000\"\nstale_after = \"60s\"\nrefresh = \"1s\"\n\
             [[chain]]\nnetwork = \"eip155:84532\"\nrpc = \"{}\"\nassets = [\"native\"]\npay_to = \"{}\"\n\
             [[route]]\nmatch = \"GET /v1/*\"\nupstream = \"{}\"\nprice = \"$0.01\"\n",
            anvil.url(),
            Shop::SELLER,
            echo.url(),
        );
        let farebox = Farebox::start(Setup::new(&config)?).await?;
        Ok(Self { anvil, aggregator, farebox, _echo: echo })
    }

    /// The status of an unpaid call, and what it asks for in wei.
    async fn asks(&self) -> (u16, Option<u128>) {
        let answer = http_client().unwrap().get(self.farebox.url("/v1/report")).send().await.unwrap();
        let status = answer.status().as_u16();
        let problem: Value = answer.json().await.unwrap();
        (status, problem["transfer"]["options"][0]["amount"].as_str().map(|wei| wei.parse().unwrap()))
    }

    async fn wait_until_it_asks(&self, wanted: (u16, Option<u128>)) {
        let until = tokio::time::Instant::now() + SOON;
        loop {
            let asks = self.asks().await;
            if asks == wanted {
                return;
            }
            assert!(tokio::time::Instant::now() < until, "{asks:?}, expected {wanted:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn set(
    anvil: &Anvil,
    aggregator: alloy::primitives::Address,
    dollars: i64,
    updated_at: u64,
) -> anyhow::Result<()> {
    let owner = Account::named("oracle")?;
    anvil.set_balance(owner.address(), 1_000_000_000_000_000_000).await?;
    let answer = I256::try_from(dollars)? * I256::try_from(100_000_000)?;
    let call = Contracts::setCall { answer, updatedAt: U256::from(updated_at) }.abi_encode();
    anvil.send(&owner, TransactionRequest::default().with_to(aggregator).with_input(call)).await?;
    Ok(())
}

#[tokio::test]
async fn a_price_in_dollars_follows_the_rate_and_is_not_made_up_when_there_is_none() {
    let exchange = Exchange::open(2_000, now_s()).await.unwrap();
    exchange.wait_until_it_asks((402, Some(5_000_000_000_000))).await;
    set(&exchange.anvil, exchange.aggregator, 3_000, now_s()).await.unwrap();
    // A third, rounded up to a whole wei.
    exchange.wait_until_it_asks((402, Some(3_333_333_333_334))).await;
    for (dollars, updated_at) in [(3_000_000, now_s()), (1, now_s()), (-1, now_s()), (0, now_s())] {
        set(&exchange.anvil, exchange.aggregator, dollars, updated_at).await.unwrap();
        // What nobody may believe changes nothing until what was believed is too old.
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        let (status, wei) = exchange.asks().await;
        assert!(
            wei.is_none_or(|wei| wei == 3_333_333_333_334) && matches!(status, 402 | 503),
            "{dollars}: {status} {wei:?}"
        );
    }
    set(&exchange.anvil, exchange.aggregator, 2_000, now_s()).await.unwrap();
    exchange.wait_until_it_asks((402, Some(5_000_000_000_000))).await;
    set(&exchange.anvil, exchange.aggregator, 2_500, now_s() - 58).await.unwrap();
    exchange.wait_until_it_asks((503, None)).await;
    set(&exchange.anvil, exchange.aggregator, 2_500, now_s()).await.unwrap();
    exchange.wait_until_it_asks((402, Some(4_000_000_000_000))).await;
}

#[tokio::test]
async fn offers_of_the_other_rail_are_nothing_to_a_client_that_does_not_know_it() {
    let shop = Shop::open_with(ShopOptions::BOTH).await.unwrap();
    let url = shop.farebox.url(Shop::AFTER);
    let answer = http_client().unwrap().get(&url).send().await.unwrap();
    let header = answer.headers()["payment-required"].clone();
    let header: Value = serde_json::from_slice(&BASE64_STANDARD.decode(header).unwrap()).unwrap();
    let body: Value = answer.json().await.unwrap();
    assert_eq!((header["accepts"].as_array().unwrap().len(), body["accepts"].as_array().unwrap().len()), (1, 1));
    assert!(body["transfer"]["options"].as_array().unwrap().len() == 2 && header["transfer"] == Value::Null);
    assert_eq!(header["accepts"][0]["scheme"], json!("exact"));
    for client in [ForeignClient::X402Fetch, ForeignClient::X402FetchV1, ForeignClient::PypiRequests] {
        let payer = shop.payer(&format!("{client:?}")).await.unwrap();
        let outcome = client.pay(&Job::get(&url, &payer)).await.unwrap();
        assert_eq!(outcome.status, Some(200), "{client:?}: {outcome:?}");
    }
    assert_eq!(shop.audit().await.unwrap().in_state("settled").count(), 3);
}
