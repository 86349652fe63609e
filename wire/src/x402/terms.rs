//! A challenge as the wire writes it: the `PAYMENT-REQUIRED` header and the members of a JSON body. Source: x402 v2 §5.1, v1 §5.1.
//!
//! Every unpaid request takes this path, so it writes borrowed data straight into one buffer.

use farebox_core::{Challenge, NetworkFee, Offer, RailName};
use serde::{
    Serialize, Serializer,
    ser::{SerializeMap, SerializeSeq},
};

use crate::{base64_text, json, x402::v1_name};

/// The value of `PAYMENT-REQUIRED`: padded standard base64 of `{x402Version: 2, error, resource, accepts}`. `None` if no offer is
/// x402's: a client that finds an empty `accepts` can do no more than one that finds no bill of its protocol.
#[must_use]
pub fn encode_payment_required(challenge: &Challenge) -> Option<String> {
    let terms = V2::new(challenge, &challenge.refusal.code)?;
    Some(base64_text::encode(&json::bytes(&terms, 256 + 512 * challenge.offers.len())))
}

/// The version 1 members of a body, `{x402Version: 1, error, accepts}`; `None` if no x402 offer's network has a version 1 name: an
/// empty `accepts` breaks version 1 clients.
#[must_use]
pub fn payment_required_v1_members(challenge: &Challenge) -> Option<serde_json::Value> {
    V1::new(challenge, &challenge.refusal.code).map(|members| serde_json::json!(members))
}

/// The terms that a body carries: version 1 where some offer can be said in it, for clients that read nothing else, and version 2
/// otherwise.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum BodyTerms<'a> {
    V1(V1<'a>),
    V2(V2<'a>),
}

impl<'a> BodyTerms<'a> {
    /// `None` if no offer is x402's.
    pub(crate) fn new(challenge: &'a Challenge, error: &'a str) -> Option<Self> {
        V1::new(challenge, error).map(Self::V1).or_else(|| V2::new(challenge, error).map(Self::V2))
    }
}

#[derive(Serialize)]
pub(crate) struct V2<'a> {
    #[serde(rename = "x402Version")]
    x402_version: u8,
    error: &'a str,
    resource: ResourceV2<'a>,
    #[serde(serialize_with = "accepts_v2")]
    accepts: &'a [Offer],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceV2<'a> {
    url: &'a str,
    description: &'a str,
    mime_type: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RequirementV2<'a> {
    scheme: &'a str,
    network: &'a str,
    #[serde(serialize_with = "display")]
    amount: u128,
    asset: &'a str,
    pay_to: &'a str,
    max_timeout_seconds: u64,
    extra: Extra<'a>,
}

/// Ours among the offers.
fn of_x402(offers: &[Offer]) -> impl Iterator<Item = &Offer> {
    offers.iter().filter(|offer| offer.rail == RailName::X402)
}

impl<'a> V2<'a> {
    fn new(challenge: &'a Challenge, error: &'a str) -> Option<Self> {
        let resource = &challenge.resource;
        of_x402(&challenge.offers).next().is_some().then_some(Self {
            x402_version: 2,
            error,
            resource: ResourceV2 {
                url: &resource.url,
                description: &resource.description,
                mime_type: &resource.mime_type,
            },
            accepts: &challenge.offers,
        })
    }
}

fn accepts_v2<S: Serializer>(offers: &[Offer], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(of_x402(offers).map(|offer| RequirementV2 {
        scheme: &offer.scheme,
        network: offer.network().as_str(),
        amount: offer.amount.units,
        asset: &offer.asset_on_wire,
        pay_to: &offer.pay_to,
        max_timeout_seconds: offer.max_timeout_s,
        extra: Extra(offer),
    }))
}

#[derive(Serialize)]
pub(crate) struct V1<'a> {
    #[serde(rename = "x402Version")]
    x402_version: u8,
    error: &'a str,
    accepts: AcceptsV1<'a>,
}

struct AcceptsV1<'a>(&'a Challenge);

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RequirementV1<'a> {
    scheme: &'a str,
    network: &'static str,
    #[serde(serialize_with = "display")]
    max_amount_required: u128,
    resource: &'a str,
    description: &'a str,
    mime_type: &'a str,
    pay_to: &'a str,
    max_timeout_seconds: u64,
    asset: &'a str,
    extra: Extra<'a>,
}

impl<'a> V1<'a> {
    fn new(challenge: &'a Challenge, error: &'a str) -> Option<Self> {
        let sayable = of_x402(&challenge.offers).any(|offer| v1_name(offer.network()).is_some());
        sayable.then_some(Self { x402_version: 1, error, accepts: AcceptsV1(challenge) })
    }
}

impl Serialize for AcceptsV1<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let resource = &self.0.resource;
        let mut list = serializer.serialize_seq(None)?;
        for offer in of_x402(&self.0.offers) {
            let Some(network) = v1_name(offer.network()) else { continue };
            list.serialize_element(&RequirementV1 {
                scheme: &offer.scheme,
                network,
                max_amount_required: offer.amount.units,
                resource: &resource.url,
                description: &resource.description,
                mime_type: &resource.mime_type,
                pay_to: &offer.pay_to,
                max_timeout_seconds: offer.max_timeout_s,
                asset: &offer.asset_on_wire,
                extra: Extra(offer),
            })?;
        }
        list.end()
    }
}

/// An offer's `extra`, and in it what part of the amount the network's fee is: `networkFee: {included: "<units>"}` if it was added to
/// the price, `{absorbed: "<units>"}` if the seller bears it. Clients read the members of `extra` that they know and echo the rest, which
/// is not compared.
struct Extra<'a>(&'a Offer);

impl Serialize for Extra<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in &self.0.extra {
            map.serialize_entry(name, value)?;
        }
        match self.0.network_fee {
            Some(NetworkFee::Included(units)) => {
                map.serialize_entry(NETWORK_FEE, &Fee { included: Some(units), absorbed: None })?
            }
            Some(NetworkFee::Absorbed(units)) => {
                map.serialize_entry(NETWORK_FEE, &Fee { included: None, absorbed: Some(units) })?
            }
            // Not of a rail where the seller pays the gas.
            Some(NetworkFee::OnTop(_)) | None => {}
        }
        map.end()
    }
}

/// The member of `extra` that tells the network's fee.
pub(crate) const NETWORK_FEE: &str = "networkFee";

#[derive(Serialize)]
struct Fee {
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "display_some")]
    included: Option<u128>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "display_some")]
    absorbed: Option<u128>,
}

fn display_some<S: Serializer>(units: &Option<u128>, serializer: S) -> Result<S::Ok, S::Error> {
    match units {
        Some(units) => display(units, serializer),
        None => serializer.serialize_none(),
    }
}

fn display<S: Serializer>(units: &u128, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(units)
}
