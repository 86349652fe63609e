//! Which offer a credential pays, and what is said if none.

use farebox_core::{Offer, X402Credential, X402Version};
use farebox_wire::x402::{MatchField, match_offer};
use serde_json::{Value, json};

use crate::fixtures::{PAY_TO, USDC, address, credential, offer};

/// A change to a credential before it is matched.
type Change = fn(&mut X402Credential);

fn found(version: X402Version, change: Change, offers: &[Offer]) -> Result<Offer, (MatchField, &'static str)> {
    let mut credential = credential(version, &offers[0]);
    change(&mut credential);
    match_offer(&credential.accepted, &credential.authorization, offers)
        .cloned()
        .map_err(|error| (error.field, error.code()))
}

fn check_v2(change: Change, field: MatchField, code: &str) {
    assert_eq!(found(X402Version::V2, change, &[offer("eip155:84532")]), Err((field, code)));
}

fn echoed(credential: &mut X402Credential) -> &mut farebox_core::EchoedRequirement {
    credential.accepted.requirement.as_mut().unwrap()
}

#[test]
fn each_difference_has_its_own_reason() {
    let terms = "invalid_payment_requirements";
    let recipient = "invalid_exact_evm_recipient_mismatch";
    let value = "invalid_exact_evm_payload_authorization_value_mismatch";
    check_v2(|c| c.accepted.scheme = "upto".into(), MatchField::Scheme, "invalid_exact_evm_scheme");
    check_v2(
        |c| c.accepted.network = "eip155:1".parse().unwrap(),
        MatchField::Network,
        "invalid_exact_evm_network_mismatch",
    );
    check_v2(|c| echoed(c).asset = PAY_TO.into(), MatchField::Asset, terms);
    check_v2(|c| echoed(c).pay_to = USDC.into(), MatchField::PayTo, recipient);
    check_v2(|c| echoed(c).amount = "9999".into(), MatchField::Amount, value);
    check_v2(|c| echoed(c).max_timeout_s = 61, MatchField::MaxTimeout, terms);
    check_v2(
        |c| echoed(c).extra["name"] = json!("USDCoin"),
        MatchField::TokenName,
        "invalid_exact_evm_token_name_mismatch",
    );
    check_v2(
        |c| echoed(c).extra["version"] = json!(2),
        MatchField::TokenVersion,
        "invalid_exact_evm_token_version_mismatch",
    );
    check_v2(|c| echoed(c).extra = Value::Null, MatchField::TokenName, "invalid_exact_evm_token_name_mismatch");
    check_v2(|c| c.authorization.to = address(USDC), MatchField::AuthorizationTo, recipient);
    check_v2(|c| c.authorization.value = 9_999, MatchField::AuthorizationValue, value);
    check_v2(|c| c.authorization.value = 10_001, MatchField::AuthorizationValue, value);
}

#[test]
fn version_1_is_matched_by_network_recipient_and_value() {
    let dear = |units| {
        let mut offer = offer("eip155:84532");
        offer.amount.units = units;
        offer
    };
    let offers = [offer("eip155:1"), dear(20_000), dear(10_000)];
    let choose: Change = |c| c.accepted.network = "eip155:84532".parse().unwrap();
    assert_eq!(found(X402Version::V1, choose, &offers), Ok(offers[2].clone()));
    let overpay: Change = |c| {
        c.accepted.network = "eip155:84532".parse().unwrap();
        c.authorization.value = 10_001;
    };
    let value = "invalid_exact_evm_payload_authorization_value_mismatch";
    assert_eq!(found(X402Version::V1, overpay, &offers), Err((MatchField::AuthorizationValue, value)));
}

#[test]
fn addresses_are_compared_by_value_and_extra_may_grow() {
    let grown: Change = |c| {
        let echoed = c.accepted.requirement.as_mut().unwrap();
        echoed.asset = echoed.asset.to_lowercase().into();
        echoed.pay_to = echoed.pay_to.to_lowercase().into();
        echoed.extra["deep"]["more"] = json!({"x": 1});
    };
    let mut nested = offer("eip155:84532");
    nested.extra.insert("deep".to_owned(), json!({"list": [1, 2]}));
    assert!(found(X402Version::V2, grown, std::slice::from_ref(&nested)).is_ok());
    let shorter: Change = |c| c.accepted.requirement.as_mut().unwrap().extra["deep"]["list"] = json!([1]);
    assert_eq!(found(X402Version::V2, shorter, &[nested]), Err((MatchField::Extra, "invalid_payment_requirements")));
}

#[test]
fn the_nearest_offer_is_the_one_that_is_explained() {
    let offers = [offer("eip155:84532"), offer("eip155:1"), offer("eip155:137")];
    let credential = {
        let mut credential = credential(X402Version::V2, &offers[1]);
        credential.authorization.value = 1;
        credential
    };
    let error = match_offer(&credential.accepted, &credential.authorization, &offers).unwrap_err();
    assert_eq!(
        error.to_string(),
        "payload.authorization.value is \"1\"; expected \"10000\"; ask for a new bill and pay exactly one of its requirements"
    );
    assert!(match_offer(&credential.accepted, &credential.authorization, &[]).is_err());
}
