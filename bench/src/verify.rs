//! CPU of judging one payment without RPC: header to checked credential, on one core.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use farebox_core::{
    FeeTerms, Finality, InstanceId, RouteId, Timestamp,
    ports::{Clock, Offering, Presented, Rail as _},
};
use farebox_e2e::{Account, Authorization, NETWORK, Usdc, now_s};
use farebox_evm::{AssetConfig, ChainConfig, ChainLimits, EvmChains, EvmKey, FinalityTier, Pegged, Rates, RpcUrl};
use farebox_testkit::{ManualClock, MemoryLedger, TestLookups};
use http::{HeaderMap, HeaderValue};

use crate::{contender::node, contender::pay_to, host, report::Report};

const PAYMENTS: u32 = 2_000;

/// Parses and checks `PAYMENTS` different payments and divides the CPU they took.
pub(crate) async fn run(report: &mut Report) -> Result<()> {
    let (anvil, _usdc) = node().await?;
    let clock = Arc::new(ManualClock::at(Timestamp::from_unix_s(now_s())));
    let store = Arc::new(MemoryLedger::new(InstanceId::new("bench"), std::time::Duration::from_secs(600)));
    let config = ChainConfig {
        network: NETWORK.parse()?,
        rpc: vec![RpcUrl::parse(anvil.url())?.into()],
        confirmations: vec![FinalityTier { up_to: None, finality: Finality::default() }],
        marked_finality: Finality::default(),
        native: None,
        head_age_max: Duration::from_secs(120),
        quorum: None,
        assets: vec![AssetConfig {
            address: farebox_core::EvmAddress(Usdc::ADDRESS.into_array()),
            symbol: "USDC".into(),
            pegged: Pegged::UsDollar,
        }],
        pay_to: farebox_core::EvmAddress(pay_to()?.into_array()),
        relayer: Some(EvmKey::from_hex(&Account::named("relayer")?.key())?),
        limits: ChainLimits { max_timeout_s: 600, ..ChainLimits::default() },
    };
    let chains = EvmChains::connect(vec![config], store, clock.clone(), Rates::none(clock.clone())).await?;
    let rail = chains.x402().context("there is no x402 rail")?;
    let offers = rail.offers(&"$0.01".parse()?, FeeTerms::default())?;
    let offer = offers.first().context("the rail makes no offer")?;

    let payer = Account::named("payer")?;
    let mut requests = Vec::new();
    for n in 0..PAYMENTS {
        let authorization = Authorization::new(&payer, pay_to()?, offer.amount.units, &format!("verify {n}"));
        let signature = authorization.sign(&payer).await?;
        let header = crate::paid::header(&crate::paid::accepted(offer), &authorization, &signature);
        requests.push(HeaderMap::from_iter([(
            http::header::HeaderName::from_static("payment-signature"),
            HeaderValue::try_from(header)?,
        )]));
    }
    let (route, lookups) = (RouteId::new("paid"), TestLookups::Enough);
    let pid = std::process::id();
    let before = host::cpu_s(pid)?;
    let mut rounds = 0;
    while host::cpu_s(pid)? - before < 2.0 {
        for headers in &requests {
            let credential = farebox_wire::proof(headers)?.context("no credential")?;
            rail.check(&Presented {
                credential: &credential,
                route: &route,
                method: "GET",
                url: "",
                offers: &offers,
                now: clock.now(),
                lookups: &lookups,
            })?;
        }
        rounds += 1;
    }
    let us = (host::cpu_s(pid)? - before) * 1e6 / f64::from(PAYMENTS * rounds);
    report.fact("verification without RPC", format!("{us:.0} us of CPU"), "<= 150 us");
    Ok(())
}
