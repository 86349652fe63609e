//! What the config speaks of, asked one by one. A fault is noted and the rest is asked nevertheless.

use std::{collections::BTreeSet, net::SocketAddr, path::Path, time::Duration};

use anyhow::Context as _;
use farebox_core::{Timestamp, ports::Clock as _};
use farebox_evm::{ChainConfig, ChainReport, is_test_network};
use farebox_gateway::Methods;
use farebox_ledger::{OpenError, SqliteLedger, SqliteOptions};
use farebox_wire::{
    transfer::decode_bill,
    x402::{BILL_BODY_BYTES_MAX, decode_payment_required},
};
use http::Method;

use super::{finding::Findings, lightning, trial::Trial};
use crate::{
    config::{Config, Route, Secrets, never_offered},
    system::{self, OsEntropy, SystemClock},
};

/// What a gateway answers that has no invoice to show and no other way to be paid.
const NO_NODE: &str = "node_unavailable";

/// How long an upstream or a gateway may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

const WORTHLESS: &str = "this is a test network: what is paid here is worth nothing; name a real one before you sell";

/// Whether what is paid is worth something.
pub(super) fn worth(config: &Config, findings: &mut Findings) {
    if config.routes.iter().all(|route| route.paid.is_none()) {
        findings.warn("nothing_sold", "routes", "every route is free; give one a price to be paid for it");
        return;
    }
    for told in never_offered(config) {
        findings.warn("never_offered", "assets", told);
    }
    for chain in config.chains.iter().filter(|chain| is_test_network(&chain.network)) {
        findings.warn("test_network", chain.network.to_string(), WORTHLESS);
    }
    if let Some(lightning) = config.lightning.as_ref().filter(|lightning| lightning.network.is_test()) {
        findings.warn("test_network", format!("Bitcoin's {}", lightning.network), WORTHLESS);
    }
}

/// Asks chains, the Lightning node, ledger, upstreams and the gateway itself.
pub(super) async fn ask(config: &Config, secrets: Secrets, findings: &mut Findings) {
    let mut chains_answer = true;
    for chain in &secrets.chains {
        let report = Box::pin(farebox_evm::inspect(chain, SystemClock.now())).await;
        chains_answer &= answers(&report);
        findings.chain(report);
    }
    lightning::look(config, secrets.node.as_ref(), findings).await;
    ledger(config, findings);
    upstreams(config, findings).await;
    bill(config, chains_answer.then_some(secrets.chains), findings).await;
}

/// Whether any of a chain's sources does: one is enough for a gateway to start.
pub(super) fn answers(report: &ChainReport) -> bool {
    report.findings.iter().any(|finding| matches!(finding.code, "rpc_reachable" | "rpc_lags"))
}

/// Whether the other side's certificate is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Certificates {
    Checked,
    /// A gateway's own names its public host, and not the address it is asked at.
    Ignored,
}

/// Follows no redirect and uses no proxy: what is asked is what a caller or the gateway would ask.
pub(super) fn client(certificates: Certificates, ca: Option<&Path>) -> anyhow::Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        .timeout(ANSWER_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .tls_danger_accept_invalid_certs(certificates == Certificates::Ignored);
    if let Some(path) = ca {
        let pem = std::fs::read(path).with_context(|| format!("the file {} could not be read", path.display()))?;
        builder = builder.tls_certs_merge(reqwest::Certificate::from_pem_bundle(&pem)?);
    }
    Ok(builder.build()?)
}

pub(super) fn chain_of(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

pub(super) fn ledger(config: &Config, findings: &mut Findings) {
    let path = config.ledger.as_path();
    let subject = format!("ledger {}", path.display());
    if !path.exists() {
        return new_ledger(path, subject, findings);
    }
    let options = SqliteOptions {
        instance: system::instance(&OsEntropy),
        answers_kept_for: config.replay.keep_for,
        audit_file: None,
    };
    match SqliteLedger::open(path, options, SystemClock.now()) {
        Ok(_) => findings.pass("ledger", subject, "can be read and written"),
        Err(error @ OpenError::InUse { .. }) => {
            findings.warn(error.code(), subject, "a gateway is using it; stop that one before you start another");
        }
        Err(error) => findings.fail(error.code(), subject, chain_of(&error)),
    }
}

/// A ledger that is not there yet is not made by a check; whether it could be, a file beside it shows.
fn new_ledger(path: &Path, subject: String, findings: &mut Findings) {
    let mut probe = path.as_os_str().to_owned();
    probe.push(".check");
    let made = std::fs::OpenOptions::new().write(true).create_new(true).open(&probe);
    match made.and_then(|_| std::fs::remove_file(&probe)) {
        Ok(()) => findings.pass("ledger", subject, "is not there yet and can be made"),
        Err(error) => findings.fail("ledger_file", subject, format!("cannot be made: {error}")),
    }
}

pub(super) async fn upstreams(config: &Config, findings: &mut Findings) -> Vec<Dated> {
    let mut dates = Vec::new();
    let mut asked = BTreeSet::new();
    for route in &config.routes {
        let origin = route.upstream.origin.to_string();
        if !asked.insert(origin.clone()) {
            continue;
        }
        let subject = format!("upstream {origin}");
        match ask_upstream(route, &origin).await {
            Ok(answer) => {
                findings.pass("upstream", subject.clone(), format!("answers ({})", answer.status().as_u16()));
                dates.extend(date(&answer).map(|theirs| (subject, theirs, SystemClock.now())));
            }
            Err(error) => findings.fail("upstream", subject, format!("does not answer: {error:#}")),
        }
    }
    dates
}

/// Who told the time, what they said, and what our clock said then.
pub(super) type Dated = (String, Timestamp, Timestamp);

/// What an answer says the time is, in whole seconds. RFC 9110 §6.6.1.
fn date(answer: &reqwest::Response) -> Option<Timestamp> {
    let date = httpdate::parse_http_date(answer.headers().get(http::header::DATE)?.to_str().ok()?).ok()?;
    Some(Timestamp::from_unix_s(date.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs()))
}

/// OPTIONS asks for nothing to be done, and any answer shows that somebody answers.
async fn ask_upstream(route: &Route, origin: &str) -> anyhow::Result<reqwest::Response> {
    let client = client(Certificates::Checked, route.upstream.ca.as_deref())?;
    Ok(client.request(Method::OPTIONS, origin).send().await?)
}

/// Whether a gateway starts with this config, and an unpaid call to its first paid route: at the gateway that runs, or at the one that
/// is started for it.
async fn bill(config: &Config, chains: Option<Vec<ChainConfig>>, findings: &mut Findings) {
    let Some((route, target)) = config.routes.iter().find_map(|route| Some((route, sample(route)?))) else { return };
    let subject = format!("unpaid {} {target}", target_method(route));
    // One that runs would have its node make an invoice for us.
    let running = if takes_lightning(route) { None } else { running(config).await };
    let Some(chains) = chains else {
        return match running {
            Some(base) => ask_bill(route, &format!("{base}{target}"), subject, findings).await,
            None => findings.warn("bill", subject, "not asked, for without its chains the gateway does not start"),
        };
    };
    match Box::pin(Trial::start(config, chains)).await {
        Ok(trial) => {
            trial.oversized_headers(config, findings);
            trial.unpriced(config, findings);
            // What is not offered is told.
            if running.is_some() || trial.offers(config, route) {
                let base = running.as_ref().unwrap_or(&trial.base);
                ask_bill(route, &format!("{base}{target}"), subject.clone(), findings).await;
            }
            if let Err(error) = trial.stop().await {
                findings.fail("gateway_start", subject, format!("the gateway ended: {error:#}"));
            }
        }
        Err(error) => findings.fail("gateway_start", subject, format!("the gateway does not start: {error:#}")),
    }
}

/// Where somebody answers at an address that the config listens on.
pub(super) async fn running(config: &Config) -> Option<String> {
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    for address in &config.listen {
        let address = reachable(*address);
        if tokio::net::TcpStream::connect(address).await.is_ok() {
            return Some(format!("{scheme}://{address}"));
        }
    }
    None
}

/// An address to connect to: whoever listens on all addresses is also at loopback.
pub(super) fn reachable(address: SocketAddr) -> SocketAddr {
    let loopback: std::net::IpAddr = match address {
        SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    if address.ip().is_unspecified() { SocketAddr::new(loopback, address.port()) } else { address }
}

/// Whether its bills need an invoice.
pub(super) fn takes_lightning(route: &Route) -> bool {
    route.paid.as_ref().is_some_and(|paid| paid.pricing.token.is_some())
}

async fn ask_bill(route: &Route, url: &str, subject: String, findings: &mut Findings) {
    let invoiced = if takes_lightning(route) { ", and by Lightning, for which a check makes no invoice" } else { "" };
    match bill_of(target_method(route), url, takes_lightning(route)).await {
        Ok(0) => findings.pass("bill", subject, "is billed by Lightning alone, for which a check makes no invoice"),
        Ok(offers) => {
            let offers = super::count(offers, "offer");
            findings.pass("bill", subject, format!("is answered 402 with a bill of {offers}{invoiced}"))
        }
        Err(error) => findings.fail("bill", subject, format!("{error:#}")),
    }
}

/// How many offers its bill has, by every rail that needs no invoice. `by_lightning`: whether there may be none but that.
async fn bill_of(method: Method, url: &str, by_lightning: bool) -> anyhow::Result<usize> {
    let client = client(Certificates::Ignored, None)?;
    let mut response = client.request(method, url).send().await?;
    let status = response.status().as_u16();
    if status == 503 && by_lightning {
        let problem: serde_json::Value = serde_json::from_slice(&response.bytes().await?).unwrap_or_default();
        let code = problem["code"].as_str().unwrap_or_default();
        anyhow::ensure!(code == NO_NODE, "expected a 402, found 503 {code}: {}", problem["detail"]);
        return Ok(0);
    }
    anyhow::ensure!(
        status != 503,
        "is answered 503: the gateway that runs cannot tell a price now; its log names the [[rate]] or the max_fee_share that is in the way"
    );
    anyhow::ensure!(status == 402, "expected a 402, found {status}; is it this config's gateway that listens there?");
    let header = response.headers().get("payment-required").map(|value| value.as_bytes().to_vec());
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        anyhow::ensure!(body.len() + chunk.len() <= BILL_BODY_BYTES_MAX, "the 402's body is longer than any bill");
        body.extend_from_slice(&chunk);
    }
    let transfers = decode_bill(&body)?.map_or(0, |read| read.bill.options.len());
    let offers = match decode_payment_required(header.as_deref(), Some(&body)) {
        Ok(bill) => bill.requirements.len() + transfers,
        // A bill that takes transfers alone has no terms of x402.
        Err(_) if header.is_none() && (transfers > 0 || by_lightning) => transfers,
        // Its text has its cause in it.
        Err(error) => anyhow::bail!("{error}"),
    };
    anyhow::ensure!(offers > 0 || by_lightning, "the bill has no offer that could be paid");
    Ok(offers)
}

/// A path that the route matches, if the route is paid.
pub(super) fn sample(route: &Route) -> Option<String> {
    route.paid.as_ref()?;
    let segment = |segment: &str| match segment {
        "*" => "check".to_owned(),
        named if named.starts_with('{') => "check".to_owned(),
        literal => literal.to_owned(),
    };
    Some(route.matches.pattern.as_str().split('/').map(segment).collect::<Vec<_>>().join("/"))
}

pub(super) fn target_method(route: &Route) -> Method {
    match &route.matches.methods {
        Methods::Only(methods) => methods.first().cloned().unwrap_or(Method::GET),
        Methods::Any => Method::GET,
    }
}
