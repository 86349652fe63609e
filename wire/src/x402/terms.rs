//! A challenge as the wire writes it: the `PAYMENT-REQUIRED` header and the members of a JSON body. Source: x402 v2 §5.1, v1 §5.1.
//!
//! Every unpaid request takes this path, so it writes borrowed data straight into one buffer.

use farebox_core::{Challenge, Offer};
use serde::{Serialize, Serializer, ser::SerializeSeq};

use crate::{base64_text, json, x402::v1_name};

/// The value of `PAYMENT-REQUIRED`: padded standard base64 of `{x402Version: 2, error, resource, accepts}`.
#[must_use]
pub fn encode_payment_required(challenge: &Challenge) -> String {
    base64_text::encode(&json::bytes(&V2::new(challenge, &challenge.refusal.code), 256 + 512 * challenge.offers.len()))
}

/// The version 1 members of a body, `{x402Version: 1, error, accepts}`; `None` if no offer's network has a version 1 name: an
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
    pub(crate) fn new(challenge: &'a Challenge, error: &'a str) -> Self {
        V1::new(challenge, error).map_or_else(|| Self::V2(V2::new(challenge, error)), Self::V1)
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
    extra: &'a serde_json::Map<String, serde_json::Value>,
}

impl<'a> V2<'a> {
    fn new(challenge: &'a Challenge, error: &'a str) -> Self {
        let resource = &challenge.resource;
        Self {
            x402_version: 2,
            error,
            resource: ResourceV2 {
                url: &resource.url,
                description: &resource.description,
                mime_type: &resource.mime_type,
            },
            accepts: &challenge.offers,
        }
    }
}

fn accepts_v2<S: Serializer>(offers: &[Offer], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(offers.iter().map(|offer| RequirementV2 {
        scheme: &offer.scheme,
        network: offer.network().as_str(),
        amount: offer.amount.units,
        asset: &offer.asset_on_wire,
        pay_to: &offer.pay_to,
        max_timeout_seconds: offer.max_timeout_s,
        extra: &offer.extra,
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
    extra: &'a serde_json::Map<String, serde_json::Value>,
}

impl<'a> V1<'a> {
    fn new(challenge: &'a Challenge, error: &'a str) -> Option<Self> {
        let sayable = challenge.offers.iter().any(|offer| v1_name(offer.network()).is_some());
        sayable.then_some(Self { x402_version: 1, error, accepts: AcceptsV1(challenge) })
    }
}

impl Serialize for AcceptsV1<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let resource = &self.0.resource;
        let mut list = serializer.serialize_seq(None)?;
        for offer in self.0.offers.iter() {
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
                extra: &offer.extra,
            })?;
        }
        list.end()
    }
}

fn display<S: Serializer>(units: &u128, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(units)
}
