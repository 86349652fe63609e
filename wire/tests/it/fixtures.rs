//! One challenge and the credential that pays it, shared by all tests and by the recorded vectors.

use farebox_core::{
    AcceptedTerms, Amount, AssetId, Challenge, Credential, EchoedRequirement, EvmAddress, Finality, Network,
    NetworkFee, Offer, RailName, Refusal, Resource, TransferAuthorization, X402Credential, X402Version,
};
use http::{HeaderMap, HeaderValue};

pub(crate) const USDC: &str = "0x036CbD53842c5426634e7929541eC2318f3dCF7e";
pub(crate) const PAY_TO: &str = "0x209693Bc6afc0C5328bA36FaF03C514EF312287C";
/// The account of the first key that every development chain knows.
pub(crate) const PAYER: &str = "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266";

/// 10,000 units of Base Sepolia's USDC.
pub(crate) fn offer(network: &str) -> Offer {
    let network: Network = network.parse().unwrap();
    Offer {
        rail: RailName::X402,
        scheme: "exact".into(),
        amount: Amount { units: 10_000, asset: AssetId::erc20(network, USDC.parse().unwrap()) },
        asset_on_wire: USDC.into(),
        pay_to: PAY_TO.into(),
        max_timeout_s: 60,
        extra: serde_json::from_str(r#"{"name":"USDC","version":"2"}"#).unwrap(),
        finality: Finality::default(),
        network_fee: None,
    }
}

pub(crate) fn challenge(offers: Vec<Offer>) -> Challenge {
    Challenge {
        resource: Resource {
            url: "https://api.example.com/v1/answer?q=1&lang=en".to_owned(),
            description: "An answer – in <b>full</b>".into(),
            mime_type: "application/json".into(),
        },
        offers: offers.into(),
        token: None,
        unavailable: vec![],
        refusal: Refusal::payment("payment_required", "this call costs $0.01; pay one of the offers and send it again"),
    }
}

/// Base Sepolia, which has a version 1 name, and Ethereum, which not every version 1 client knows.
pub(crate) fn two_offers() -> Challenge {
    challenge(vec![offer("eip155:84532"), offer("eip155:1")])
}

/// The same, and each tells its network fee.
pub(crate) fn two_offers_with_fees() -> Challenge {
    let included = Offer { network_fee: Some(NetworkFee::Included(1_234)), ..offer("eip155:84532") };
    let absorbed = Offer { network_fee: Some(NetworkFee::Absorbed(2_345)), ..offer("eip155:1") };
    challenge(vec![included, absorbed])
}

pub(crate) fn authorization() -> TransferAuthorization {
    TransferAuthorization {
        from: PAYER.parse().unwrap(),
        to: PAY_TO.parse().unwrap(),
        value: 10_000,
        valid_after: 0,
        valid_before: 1_800_000_000,
        nonce: [0xab; 32],
    }
}

/// A credential that meets `offer`; its signature is no one's.
pub(crate) fn credential(version: X402Version, offer: &Offer) -> X402Credential {
    let requirement = match version {
        X402Version::V1 => None,
        X402Version::V2 => Some(EchoedRequirement {
            amount: offer.amount.units.to_string().into(),
            asset: offer.asset_on_wire.clone(),
            pay_to: offer.pay_to.clone(),
            max_timeout_s: offer.max_timeout_s,
            extra: serde_json::Value::Object(offer.extra.clone()),
        }),
    };
    let accepted = AcceptedTerms { scheme: offer.scheme.clone(), network: offer.network().clone(), requirement };
    X402Credential::new(version, accepted, authorization(), vec![0x1b; 65])
}

pub(crate) fn address(text: &str) -> EvmAddress {
    text.parse().unwrap()
}

/// What a request with these headers carries.
pub(crate) fn read(headers: &[(&'static str, &[u8])]) -> Result<Option<X402Credential>, farebox_wire::CredentialError> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, HeaderValue::from_bytes(value).unwrap());
    }
    Ok(farebox_wire::proof(&map)?.map(|read| match read {
        Credential::X402(credential) => credential,
        other => panic!("{other:?} is not x402"),
    }))
}

pub(crate) fn header_of(version: X402Version) -> &'static str {
    match version {
        X402Version::V1 => "x-payment",
        X402Version::V2 => "payment-signature",
    }
}
