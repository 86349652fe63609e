//! `farebox check --live`: what to know before strangers' money comes in. Every line says what was looked at, and what to do.

mod bills;
mod clocks;
mod public;

use std::{net::SocketAddr, path::Path};

use farebox_core::{Access, NetworkFee, Offer, RailName, ports::Clock as _};
use farebox_evm::checksum;
use farebox_ledger::{OpenError, SqliteReader};
use farebox_wire::transfer::Quoter;
use url::Url;

use super::{
    finding::Findings,
    lightning,
    trial::Trial,
    world::{self, Certificates},
};
use crate::{
    config::{
        Chain, Config, Secrets,
        values::{LogFormat, PayTo},
    },
    system::{self, SystemClock},
};

/// Looks at everything. A fault is noted and the rest is looked at nevertheless.
pub(super) async fn look(config: &Config, secrets: &Secrets, url: Option<&Url>, findings: &mut Findings) {
    versions(config, findings);
    for chain in &config.chains {
        written(config, chain, findings);
    }
    let mut chains_answer = true;
    let chains = &secrets.chains;
    for chain in chains {
        let report = Box::pin(farebox_evm::inspect(chain, SystemClock.now())).await;
        chains_answer &= world::answers(&report);
        findings.chain_for_money(report);
    }
    lightning::look(config, secrets.node.as_ref(), findings).await;
    world::ledger(config, findings);
    let dates = world::upstreams(config, findings).await;
    clocks::look(chains, dates, findings).await;
    public::look(config, findings).await;
    outputs(config, findings);
    let running = match url {
        Some(url) => Some(url.as_str().trim_end_matches('/').to_owned()),
        None => world::running(config).await,
    };
    if !chains_answer {
        let message = "not asked for bills, for without its chains the gateway does not start; see the faults above";
        return findings.warn("bill", "gateway", message);
    }
    match Box::pin(Trial::start(config, chains.clone())).await {
        Ok(trial) => {
            let place = if url.is_some() { Place::Named } else { Place::Here };
            Box::pin(gateway(config, &trial, running, place, findings)).await;
            if let Err(error) = trial.stop().await {
                findings.fail("gateway_start", "gateway", format!("it ended: {error:#}"));
            }
        }
        Err(error) => findings.fail("gateway_start", "gateway", format!("it does not start: {error:#}")),
    }
}

/// Where a running gateway was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Where the config says.
    Here,
    /// Where the command line says.
    Named,
}

/// The gateway: the one that runs, or a trial of this config. Prices are the trial's either way.
async fn gateway(config: &Config, trial: &Trial, running: Option<String>, place: Place, findings: &mut Findings) {
    match &running {
        Some(base) => {
            findings.pass("gateway", "gateway", format!("somebody answers at {base}, and is asked for bills"))
        }
        None => findings.pass("gateway", "gateway", "none runs; a trial of this config is asked for bills"),
    }
    trial.oversized_headers(config, findings);
    trial.unpriced(config, findings);
    // A running gateway's keys are in its own books; one that is asked by --url may have others than these.
    let theirs = running.as_ref().filter(|_| place == Place::Here).and_then(|_| quoter_of(config));
    for (route, access) in config.routes.iter().zip(&trial.accesses) {
        let Access::Paid(tariff) = access else { continue };
        for offer in &*tariff.board.now().offers {
            fee_share(&format!("route {}", route.id), offer, findings);
        }
        // A trial's node makes no invoices, so a bill by Lightning alone is not to be had from it.
        if running.is_none() && tariff.board.now().offers.iter().all(|offer| offer.rail == RailName::L402) {
            let message =
                "is billed by Lightning alone; start the gateway and check again, to have an invoice looked at";
            findings.pass("bill", format!("route {}", route.id), message);
            continue;
        }
        let asked = bills::Asked {
            route,
            tariff,
            base: running.as_deref().unwrap_or(&trial.base),
            invoices: if running.is_some() { bills::Invoices::Made } else { bills::Invoices::NotMade },
            quoter: if running.is_none() { trial.quoter.as_deref() } else { theirs.as_ref() },
            config,
        };
        bills::look(&asked, findings).await;
    }
    metrics(config, trial, running.is_some(), findings).await;
}

/// What a gateway with this config's books seals quotes with; none if the books cannot be read, which is told elsewhere.
fn quoter_of(config: &Config) -> Option<Quoter> {
    let keys = SqliteReader::open(&config.ledger).ok()?.quote_keys().ok()?;
    Quoter::new(keys).ok()
}

/// What part of a price its settlement costs, where we pay it.
fn fee_share(subject: &str, offer: &Offer, findings: &mut Findings) {
    let (NetworkFee::Included(fee) | NetworkFee::Absorbed(fee)) = (match offer.network_fee {
        Some(fee) => fee,
        None if offer.rail == RailName::X402 => {
            let message = format!(
                "what settling costs on {} is not known in {}; add a [[rate]] for the network's coin to see it",
                offer.network(),
                offer.asset_on_wire
            );
            return findings.warn("network_fee", subject, message);
        }
        None => return,
    }) else {
        return;
    };
    let charged = offer.amount.units.max(1);
    let percent = fee.saturating_mul(100).div_ceil(charged);
    let on = offer.network();
    match offer.network_fee {
        Some(NetworkFee::Absorbed(_)) if percent > 100 => {
            let message = format!(
                "settling on {on} costs about {percent} % of the price: every call loses money; raise the price, or set network_fee = {{ include = true }}"
            );
            findings.warn("network_fee", subject, message);
        }
        Some(NetworkFee::Absorbed(_)) => {
            findings.pass(
                "network_fee",
                subject,
                format!("settling on {on} costs about {percent} % of the price, borne by you"),
            );
        }
        _ => findings.pass(
            "network_fee",
            subject,
            format!("{percent} % of what is charged on {on} is the network fee, added to the price"),
        ),
    }
}

/// This program, and what it has to fit.
fn versions(config: &Config, findings: &mut Findings) {
    let version = env!("CARGO_PKG_VERSION");
    findings.pass("version", "farebox", format!("this is version {version}, and it knows every key of the config"));
    let subject = format!("ledger {}", config.ledger.display());
    if !config.ledger.exists() {
        return;
    }
    match SqliteReader::open(&config.ledger) {
        Ok(_) => findings.pass("ledger_schema", subject, "has the schema of this version"),
        Err(error @ OpenError::Older { .. }) => {
            findings.warn(error.code(), subject, format!("{error}; copy the file before you start this version"));
        }
        Err(error) => findings.fail(error.code(), subject, world::chain_of(&error)),
    }
}

/// The recipient as somebody wrote it: capitals are a checksum, and without it a typing error is a loss.
fn written(config: &Config, chain: &Chain, findings: &mut Findings) {
    let text = match chain.pay_to.get_ref() {
        PayTo::Address(_) => config.source.text.get(chain.pay_to.span()).map(str::to_owned),
        PayTo::Env(name) => system::environment(name),
    };
    let (Some(text), Ok(address)) = (text, chain.pay_to.get_ref().fetch(&system::environment)) else { return };
    let (text, checked) = (text.trim_matches(['"', '\'', ' ']), checksum(address));
    let subject = chain.network.to_string();
    if address.0 == [0; 20] {
        findings.fail("pay_to_checksum", subject, "pay_to is the zero address; what is sent there is lost");
    } else if text == checked {
        findings.pass("pay_to_checksum", subject, format!("pay_to {checked} is written with its checksum (EIP-55)"));
    } else {
        let message = format!(
            "pay_to is written without its checksum, so a typing error would not show; compare it, then write {checked}"
        );
        findings.warn("pay_to_checksum", subject, message);
    }
}

/// Log and audit file.
fn outputs(config: &Config, findings: &mut Findings) {
    let format = match config.log.format {
        LogFormat::Pretty => "text for people",
        LogFormat::Json => "JSON",
    };
    let message = format!("{format} from level {} on, to standard error", config.log.level.to_string().to_lowercase());
    if config.log.level > tracing::Level::INFO {
        findings.warn("log", "log", format!("{message}; that is slow and long for service, set level = \"info\""));
    } else {
        findings.pass("log", "log", message);
    }
    match &config.audit_file {
        None => findings.pass("audit_file", "audit log", "is in the ledger; `farebox audit export` prints it"),
        Some(path) => match writable(path) {
            Ok(()) => findings.pass("audit_file", "audit log", format!("is also written to {}", path.display())),
            Err(error) => {
                let message =
                    format!("{} cannot be written: {error}; make the folder, or change audit_file", path.display());
                findings.fail("audit_file", "audit log", message);
            }
        },
    }
}

/// Whether a file can be written, or made; leaves nothing behind.
fn writable(path: &Path) -> std::io::Result<()> {
    let new = !path.exists();
    std::fs::OpenOptions::new().append(true).create(true).open(path)?;
    if new { std::fs::remove_file(path) } else { Ok(()) }
}

/// Whether the admin listener tells metrics.
async fn metrics(config: &Config, trial: &Trial, running: bool, findings: &mut Findings) {
    let Some(configured) = config.admin else {
        let message = "there is none, so nobody sees when payments fail; add an [admin] table, and scrape http://127.0.0.1:8403/metrics";
        return findings.warn("metrics", "metrics", message);
    };
    if !configured.ip().is_loopback() {
        let message = format!(
            "[admin] listens on {configured}, and asks for no password; make sure that strangers cannot reach it"
        );
        findings.warn("metrics_public", "metrics", message);
    }
    let address = trial.admin.filter(|_| !running).unwrap_or_else(|| world::reachable(configured));
    match scrape(address).await {
        Ok(()) => findings.pass("metrics", "metrics", format!("http://{configured}/metrics tells them")),
        Err(error) => {
            let message = format!(
                "http://{configured}/metrics does not tell them: {error:#}; restart the gateway if [admin] is new"
            );
            findings.fail("metrics", "metrics", message);
        }
    }
}

async fn scrape(address: SocketAddr) -> anyhow::Result<()> {
    let client = world::client(Certificates::Checked, None)?;
    let text = client.get(format!("http://{address}/metrics")).send().await?.error_for_status()?.text().await?;
    anyhow::ensure!(text.contains("farebox_requests_total"), "somebody else answers there");
    Ok(())
}
