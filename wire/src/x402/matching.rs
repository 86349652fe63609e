//! Which offer of ours a credential means to pay. The offer is always ours: what the payer echoes only selects it.

use farebox_core::{AcceptedTerms, EchoedRequirement, EvmAddress, Offer, TransferAuthorization, Untrusted};
use serde_json::{Map, Value};

/// Why a credential meets no offer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field} is {found}; expected {expected}; ask for a new bill and pay exactly one of its requirements")]
pub struct MatchError {
    /// What differs.
    pub field: MatchField,
    /// What we offered.
    pub expected: Untrusted,
    /// What came.
    pub found: Untrusted,
}

/// What is compared, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MatchField {
    /// `accepted.scheme`
    Scheme,
    /// `accepted.network`
    Network,
    /// `accepted.asset`
    Asset,
    /// `accepted.payTo`
    PayTo,
    /// `accepted.amount`
    Amount,
    /// `accepted.maxTimeoutSeconds`
    MaxTimeout,
    /// `accepted.extra`, as a whole
    Extra,
    /// `accepted.extra.name`
    TokenName,
    /// `accepted.extra.version`
    TokenVersion,
    /// `payload.authorization.to`
    AuthorizationTo,
    /// `payload.authorization.value`
    AuthorizationValue,
}

impl MatchError {
    /// x402's reason.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self.field {
            MatchField::Scheme => "invalid_exact_evm_scheme",
            MatchField::Network => "invalid_exact_evm_network_mismatch",
            MatchField::PayTo | MatchField::AuthorizationTo => "invalid_exact_evm_recipient_mismatch",
            MatchField::Amount | MatchField::AuthorizationValue => {
                "invalid_exact_evm_payload_authorization_value_mismatch"
            }
            MatchField::TokenName => "invalid_exact_evm_token_name_mismatch",
            MatchField::TokenVersion => "invalid_exact_evm_token_version_mismatch",
            MatchField::Asset | MatchField::MaxTimeout | MatchField::Extra => "invalid_payment_requirements",
        }
    }
}

impl std::fmt::Display for MatchField {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Scheme => "scheme",
            Self::Network => "network",
            Self::Asset => "accepted.asset",
            Self::PayTo => "accepted.payTo",
            Self::Amount => "accepted.amount",
            Self::MaxTimeout => "accepted.maxTimeoutSeconds",
            Self::Extra => "accepted.extra",
            Self::TokenName => "accepted.extra.name",
            Self::TokenVersion => "accepted.extra.version",
            Self::AuthorizationTo => "payload.authorization.to",
            Self::AuthorizationValue => "payload.authorization.value",
        })
    }
}

/// The first of `offers` that the payer accepted and the authorization pays exactly.
///
/// Version 2: scheme, network, asset, payTo, amount and maxTimeoutSeconds of the echoed requirement equal the offer's (addresses
/// by value, in any case), and the offer's `extra` is a recursive subset of the echoed one. Version 1 echoes scheme and network
/// alone. In both the authorization must pay the offer's recipient exactly its amount.
///
/// # Errors
/// [`MatchError`] names the first difference from the offer that came nearest.
pub fn match_offer<'a>(
    accepted: &AcceptedTerms,
    authorization: &TransferAuthorization,
    offers: &'a [Offer],
) -> Result<&'a Offer, MatchError> {
    let mut nearest: Option<MatchError> = None;
    for offer in offers {
        match compare(accepted, authorization, offer) {
            Ok(()) => return Ok(offer),
            Err(error) if nearest.as_ref().is_none_or(|near| near.field < error.field) => nearest = Some(error),
            Err(_) => {}
        }
    }
    Err(nearest.unwrap_or_else(|| MatchError {
        field: MatchField::Network,
        expected: Untrusted::new("no offer at all"),
        found: Untrusted::new(accepted.network.as_str()),
    }))
}

fn compare(accepted: &AcceptedTerms, signed: &TransferAuthorization, offer: &Offer) -> Result<(), MatchError> {
    equal(MatchField::Scheme, &offer.scheme, &accepted.scheme)?;
    equal(MatchField::Network, offer.network().as_str(), accepted.network.as_str())?;
    if let Some(echoed) = &accepted.requirement {
        compare_requirement(echoed, offer)?;
    }
    if offer.pay_to.parse() != Ok(signed.to) {
        return differ(MatchField::AuthorizationTo, &offer.pay_to, &format!("{:x}", signed.to));
    }
    if offer.amount.units != signed.value {
        return differ(MatchField::AuthorizationValue, &offer.amount.units.to_string(), &signed.value.to_string());
    }
    Ok(())
}

fn compare_requirement(echoed: &EchoedRequirement, offer: &Offer) -> Result<(), MatchError> {
    same_address(MatchField::Asset, &offer.asset_on_wire, &echoed.asset)?;
    same_address(MatchField::PayTo, &offer.pay_to, &echoed.pay_to)?;
    equal(MatchField::Amount, &offer.amount.units.to_string(), &echoed.amount)?;
    if offer.max_timeout_s != echoed.max_timeout_s {
        return differ(MatchField::MaxTimeout, &offer.max_timeout_s.to_string(), &echoed.max_timeout_s.to_string());
    }
    compare_extra(&offer.extra, &echoed.extra)
}

fn compare_extra(offered: &Map<String, Value>, echoed: &Value) -> Result<(), MatchError> {
    for (key, value) in offered {
        let found = echoed.get(key);
        if !found.is_some_and(|found| is_subset(value, found)) {
            let field = match key.as_str() {
                "name" => MatchField::TokenName,
                "version" => MatchField::TokenVersion,
                _ => MatchField::Extra,
            };
            let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            return differ(field, &shown(value), &found.map_or_else(|| "absent".to_owned(), shown));
        }
    }
    Ok(())
}

/// Whether `found` has all that `offered` has. The depth of `offered`, which is ours, bounds the recursion.
fn is_subset(offered: &Value, found: &Value) -> bool {
    match (offered, found) {
        (Value::Object(offered), Value::Object(found)) => {
            offered.iter().all(|(key, value)| found.get(key).is_some_and(|found| is_subset(value, found)))
        }
        _ => offered == found,
    }
}

fn same_address(field: MatchField, offered: &str, echoed: &str) -> Result<(), MatchError> {
    if let (Ok(a), Ok(b)) = (offered.parse::<EvmAddress>(), echoed.parse::<EvmAddress>())
        && a == b
    {
        return Ok(());
    }
    equal(field, offered, echoed)
}

fn equal(field: MatchField, offered: &str, echoed: &str) -> Result<(), MatchError> {
    if offered == echoed { Ok(()) } else { differ(field, offered, echoed) }
}

fn differ(field: MatchField, expected: &str, found: &str) -> Result<(), MatchError> {
    Err(MatchError { field, expected: Untrusted::new(expected), found: Untrusted::new(found) })
}
