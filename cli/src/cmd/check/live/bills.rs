//! What an unpaid call is answered with, on every rail, read as a payer would read it.

use anyhow::{Context as _, bail, ensure};
use farebox_core::{Decimal, NetworkFee, Offer, RailName, Tariff};
use farebox_wire::{
    bolt11,
    l402::{self, Identifier, L402Challenge},
    transfer::{Quote, Quoter, TransferOption, decode_bill},
    x402::{BILL_BODY_BYTES_MAX, decode_payment_required},
};
use http::Method;

use crate::{
    cmd::check::{
        finding::Findings,
        world::{self, Certificates},
    },
    config::{Config, Route},
};

/// A paid route, and where to ask for it.
pub(super) struct Asked<'a> {
    pub(super) route: &'a Route,
    /// What it costs now, by this config.
    pub(super) tariff: &'a Tariff,
    /// Scheme and address.
    pub(super) base: &'a str,
    /// What its quotes are sealed with, if that is known here.
    pub(super) quoter: Option<&'a Quoter>,
    /// Whether the gateway there has a node that makes invoices.
    pub(super) invoices: Invoices,
    pub(super) config: &'a Config,
}

/// What a gateway does to bill by Lightning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Invoices {
    /// Its node makes one, which expires.
    Made,
    /// It is a trial, whose node makes none.
    NotMade,
}

/// One line a rail, and one for what costs nothing.
pub(super) async fn look(asked: &Asked<'_>, findings: &mut Findings) {
    let Some(target) = world::sample(asked.route) else { return };
    let board = asked.tariff.board.now();
    // It is answered 503, and why is told already.
    if board.offers.is_empty() {
        return;
    }
    let method = world::target_method(asked.route);
    let subject = format!("unpaid {method} {target}");
    let answer = match unpaid(asked, &method, &target).await {
        Ok(answer) => answer,
        Err(error) => return findings.fail("bill", subject, format!("{error:#}")),
    };
    for rail in RailName::ALL {
        let offers: Vec<&Offer> = board.offers.iter().filter(|offer| offer.rail == rail).collect();
        if offers.is_empty() {
            continue;
        }
        let read = match rail {
            RailName::X402 => x402(asked, &answer, &offers),
            RailName::L402 => lightning(asked, &answer, offers[0]),
            RailName::Transfer => transfer(asked, &answer, &offers, &method, &target),
        };
        let subject = format!("{subject}, {rail}");
        match read {
            Ok(message) => findings.pass("bill", subject, message),
            Err(error) => findings.fail("bill", subject, format!("{error:#}")),
        }
    }
    match costs_nothing(asked, &target).await {
        Ok(()) => findings.pass("bill_free", subject, "HEAD and OPTIONS are answered and cost nothing"),
        Err(error) => findings.fail("bill_free", subject, format!("{error:#}")),
    }
}

/// A 402.
struct Answer {
    header: Option<Vec<u8>>,
    challenges: Vec<L402Challenge>,
    body: Vec<u8>,
}

async fn unpaid(asked: &Asked<'_>, method: &Method, target: &str) -> anyhow::Result<Answer> {
    let client = world::client(Certificates::Ignored, None)?;
    let mut response = client.request(method.clone(), format!("{}{target}", asked.base)).send().await?;
    let status = response.status().as_u16();
    ensure!(
        status == 402,
        "expected a 402, found {status}; is it this config's gateway that listens at {}?",
        asked.base
    );
    let header = response.headers().get("payment-required").map(|value| value.as_bytes().to_vec());
    let challenges = l402::challenges(response.headers());
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        ensure!(body.len() + chunk.len() <= BILL_BODY_BYTES_MAX, "the 402's body is longer than any bill");
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { header, challenges, body })
}

fn x402(asked: &Asked<'_>, answer: &Answer, offers: &[&Offer]) -> anyhow::Result<String> {
    let header =
        answer.header.as_deref().context("the 402 has no PAYMENT-REQUIRED header; does a proxy take it off?")?;
    let by_header = decode_payment_required(Some(header), None).context("the PAYMENT-REQUIRED header")?;
    let by_body = decode_payment_required(None, Some(&answer.body)).context("the 402's body")?;
    for (bill, place) in [(by_header, "header"), (by_body, "body")] {
        let same = |offer: &Offer| {
            let billed = bill.requirements.iter().map(|requirement| &requirement.offer);
            let mut of_asset = billed.filter(|billed| billed.amount.asset == offer.amount.asset);
            of_asset.find(|billed| billed.pay_to.eq_ignore_ascii_case(&offer.pay_to)).map(|billed| billed.amount.units)
        };
        for offer in offers {
            // Version 1 names networks by words, and not every network has one.
            if place == "body" && bill.requirements.is_empty() {
                continue;
            }
            priced_as(asked, offer, same(offer), place)?;
        }
    }
    Ok(format!("is billed in header and body: {}", told(offers)))
}

fn transfer(
    asked: &Asked<'_>,
    answer: &Answer,
    offers: &[&Offer],
    method: &Method,
    target: &str,
) -> anyhow::Result<String> {
    let bill = decode_bill(&answer.body)?.context("the 402's body has no `transfer`")?.bill;
    let public = asked.config.public_url.as_ref().map(|url| url.as_str().trim_end_matches('/')).unwrap_or_default();
    let resource = format!("{public}{target}");
    ensure!(bill.resource == resource, "the bill is for {}, expected {resource}", bill.resource);
    for offer in offers {
        let option = TransferOption::of(offer).context("an offer lacks what a bill says")?;
        let billed = bill
            .options
            .iter()
            .find(|billed| billed.amount.asset == option.amount.asset && billed.pay_to == option.pay_to);
        priced_as(asked, offer, billed.map(|billed| billed.amount.units), "transfer")?;
    }
    let Some(quoter) = asked.quoter else { return Ok(format!("is billed: {}", told(offers))) };
    let quote = quoter.open(&bill.quote).context("the quote was not sealed with our keys")?;
    let right = quote.target == Quote::target(&asked.route.id, method.as_str(), &resource);
    ensure!(right && quote.options.len() == bill.options.len(), "the quote is for something else than the bill");
    Ok(format!("is billed, and the quote is ours: {}", told(offers)))
}

fn lightning(asked: &Asked<'_>, answer: &Answer, offer: &Offer) -> anyhow::Result<String> {
    let sat = |msat: u128| format!("{} sat", Decimal::from_units(msat, 3));
    if asked.invoices == Invoices::NotMade {
        return Ok(format!(
            "is offered for {}; start the gateway to have an invoice looked at",
            sat(offer.amount.units)
        ));
    }
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let unavailable = body["unavailable"].as_array().into_iter().flatten().find(|rail| rail["rail"] == "l402");
    if let Some(told) = unavailable {
        bail!("is not offered now: {}, {}", told["code"], told["detail"]);
    }
    let [challenge] = &answer.challenges[..] else {
        bail!(
            "expected one L402 challenge in WWW-Authenticate, found {}; does a proxy take it off?",
            answer.challenges.len()
        )
    };
    let macaroon = challenge.macaroon.as_ref().context("the challenge's macaroon cannot be read")?;
    let identifier = Identifier::decode(&macaroon.identifier).context("the challenge's macaroon")?;
    let read = bolt11::decode(&challenge.invoice).context("the challenge's invoice")?;
    let network = asked.config.lightning.as_ref().context("there is no [lightning]")?.network;
    ensure!(read.network.is(network), "the invoice is for {}, and the config says {network}", read.network);
    ensure!(identifier.payment_hash == read.invoice.payment_hash, "the macaroon is not for the invoice beside it");
    priced_as(asked, offer, Some(u128::from(read.invoice.amount_msat)), "invoice")?;
    Ok(format!("is billed by an invoice over {}, which expires unpaid", sat(u128::from(read.invoice.amount_msat))))
}

fn priced_as(asked: &Asked<'_>, offer: &Offer, billed: Option<u128>, place: &str) -> anyhow::Result<()> {
    let (network, expected) = (offer.network(), offer.amount.units);
    let billed =
        billed.with_context(|| format!("the {place} has no offer of {} to {}", offer.amount.asset, offer.pay_to))?;
    // With the network's fee or a rate in it, a price may have moved between the two.
    let moves = matches!(offer.network_fee, Some(NetworkFee::Included(_))) || !asked.config.rates.is_empty();
    let near = billed.abs_diff(expected) <= expected / 2;
    ensure!(
        billed == expected || (moves && near),
        "the {place} asks for {billed} units on {network}, and the config's price is {expected}; restart the gateway if the config is newer"
    );
    Ok(())
}

/// Such as `10000 units of 0x.. on eip155:8453`.
fn told(offers: &[&Offer]) -> String {
    let each = offers.iter().map(|offer| {
        // A transfer's offer has the symbol, x402's the token's name.
        let names = ["symbol", "name"].into_iter().filter_map(|key| offer.extra.get(key)?.as_str());
        let symbol = names.chain([&*offer.asset_on_wire]).next().unwrap_or_default();
        format!("{} units of {symbol} on {}", offer.amount.units, offer.network())
    });
    each.collect::<Vec<_>>().join(", ")
}

/// Neither may reach the upstream, for then it could be had for nothing.
async fn costs_nothing(asked: &Asked<'_>, target: &str) -> anyhow::Result<()> {
    let client = world::client(Certificates::Ignored, None)?;
    let gets = world::target_method(asked.route) == Method::GET;
    for (method, expected) in [(Method::HEAD, 402), (Method::OPTIONS, 204)] {
        // A route that has no GET has no HEAD.
        if method == Method::HEAD && !gets {
            continue;
        }
        let answer = client.request(method.clone(), format!("{}{target}", asked.base)).send().await?;
        let status = answer.status().as_u16();
        ensure!(status == expected, "{method} is answered {status}, expected {expected}");
    }
    Ok(())
}
