//! A bill's terms for Lightning, held against the request that was made and the policy.

use std::time::Duration;

use farebox_core::{
    Amount, BitcoinNetwork, Finality, Macaroon, Offer, PaymentHash, Preimage, RailName, Timestamp, Untrusted,
};
use farebox_wire::{
    bolt11::{self, Bolt11, Bolt11Error},
    l402::{self, Identifier, L402Challenge, L402Scheme},
};
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{LightningRule, purchase::SecretText};
use crate::{
    policy::{Acceptable, Outstanding, Policy, PolicyRule},
    request::Replayable,
};

/// An invoice that ends sooner than this is not paid: a payment takes seconds to find its way.
const LEFT_MIN: Duration = Duration::from_secs(15);
/// A token that ends sooner than this is not bought: it would be over before it is there.
const TOKEN_LEFT_MIN: Duration = Duration::from_secs(5);

/// How many blocks a payee may ask to be left with: about a day. For so long, and the rest of the way, a payee who neither takes a payment nor
/// gives it back keeps the payer's sats locked.
const FINAL_BLOCKS_MAX: u64 = 144;

const MSAT_PER_SAT: u64 = 1_000;

/// A bill's terms for Lightning.
#[derive(Clone, Debug)]
pub(crate) struct L402Bill {
    pub(crate) scheme: L402Scheme,
    pub(crate) macaroon: SecretText,
    pub(crate) facts: TokenFacts,
    /// The invoice that the macaroon says it is of, if it can be read.
    token: Option<PaymentHash>,
    pub(crate) bolt11: Bolt11,
    /// The invoice as an offer.
    pub(crate) offer: Offer,
    body: BodyTerms,
}

/// Why a 402 that asks for Lightning is no bill.
#[derive(Debug, thiserror::Error)]
pub enum L402BillError {
    /// Which of them is meant is not ours to guess.
    #[error("the 402 has {found} Lightning invoices, of which one alone can be meant")]
    Several {
        /// How many.
        found: usize,
    },
    /// It could not be sent back.
    #[error("the macaroon has characters that no header can carry")]
    Macaroon,
    /// The invoice cannot be read or has no amount.
    #[error(transparent)]
    Invoice(#[from] Bolt11Error),
}

impl L402BillError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Several { .. } => "several_invoices",
            Self::Macaroon => "macaroon_malformed",
            Self::Invoice(error) => error.code(),
        }
    }
}

/// What a macaroon says of itself. Nothing of it is proven, for only the seller can check its signature; it is used to find a token
/// again, and to refuse one that says of itself that it is no good.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenFacts {
    /// The services that it is for.
    pub services: Vec<String>,
    /// When it ends.
    pub valid_until: Option<Timestamp>,
    /// Whether it is for the method, path and query alone that it was bought for.
    pub one_request: bool,
}

/// What the body of the 402 says of the invoice, in the words that sellers use.
#[derive(Clone, Debug, Default, Deserialize)]
struct BodyTerms {
    #[serde(rename = "amountSats")]
    amount: Option<Value>,
    #[serde(rename = "priceSats")]
    price: Option<Value>,
    invoice: Option<Value>,
}

/// The Lightning terms of a 402; `None` if it has none. `json` is its body, if that is JSON.
pub(crate) fn read(headers: &HeaderMap, json: Option<&[u8]>) -> Result<Option<L402Bill>, L402BillError> {
    let mut challenges = l402::challenges(headers);
    let found = challenges.len();
    let Some(L402Challenge { scheme, macaroon_b64, macaroon, invoice }) = challenges.pop() else { return Ok(None) };
    if found > 1 {
        return Err(L402BillError::Several { found });
    }
    // Found out before it is paid for.
    l402::authorization(scheme, &macaroon_b64, &Preimage([0; 32])).map_err(|_| L402BillError::Macaroon)?;
    let bolt11 = bolt11::decode(&invoice)?;
    let body = json.and_then(|json| serde_json::from_slice(json).ok()).unwrap_or_default();
    let facts = macaroon.as_ref().map(TokenFacts::of).unwrap_or_default();
    let offer = offer(&bolt11);
    let token = macaroon.as_ref().and_then(|macaroon| Identifier::decode(&macaroon.identifier).ok());
    let token = token.map(|identifier| identifier.payment_hash);
    Ok(Some(L402Bill { scheme, macaroon: SecretText(macaroon_b64), facts, token, bolt11, offer, body }))
}

fn offer(bolt11: &Bolt11) -> Offer {
    let invoice = &bolt11.invoice;
    // Of the test networks that share a prefix the older one; the wallet decides where it is paid.
    let network = bolt11.network.candidates().next().unwrap_or(BitcoinNetwork::Bitcoin);
    let extra = json!({"symbol": "sat", "decimals": 3});
    Offer {
        rail: RailName::L402,
        scheme: "l402".into(),
        amount: Amount { units: invoice.amount_msat.into(), asset: network.asset() },
        asset_on_wire: "msat".into(),
        pay_to: hex::encode(bolt11.payee).into(),
        max_timeout_s: invoice.expires_at.since(invoice.created_at).as_secs().max(1),
        extra: extra.as_object().cloned().unwrap_or_default(),
        finality: Finality::default(),
        network_fee: None,
    }
}

impl L402Bill {
    pub(crate) const fn payment_hash(&self) -> PaymentHash {
        self.bolt11.invoice.payment_hash
    }

    /// Whether the invoice may be paid, as far as the bill itself tells.
    pub(crate) fn judge(
        &self,
        policy: &Policy,
        request: &Replayable,
        outstanding: Outstanding,
        now: Timestamp,
    ) -> Result<Acceptable, PolicyRule> {
        let acceptable = policy.judge_with(&self.offer, outstanding)?;
        if request.has_authorization() {
            return Err(LightningRule::AuthorizationTaken.into());
        }
        self.check_body()?;
        let invoice = self.payment_hash();
        if let Some(token) = self.token.filter(|token| *token != invoice) {
            return Err(LightningRule::TokenOfAnotherInvoice { token, invoice }.into());
        }
        let blocks = self.bolt11.min_final_cltv_delta;
        if blocks > FINAL_BLOCKS_MAX {
            return Err(LightningRule::LockedTooLong { blocks, max: FINAL_BLOCKS_MAX }.into());
        }
        self.facts.check_ends(self.bolt11.invoice.expires_at, now)?;
        Ok(acceptable)
    }

    /// A body that shows another price or invoice than the header shows a price that is not the one to be paid.
    fn check_body(&self) -> Result<(), LightningRule> {
        let Bolt11 { invoice, .. } = &self.bolt11;
        let sat = invoice.amount_msat.div_ceil(MSAT_PER_SAT);
        for (member, said) in [("amountSats", &self.body.amount), ("priceSats", &self.body.price)] {
            if let Some(said) = said.as_ref().filter(|said| said.is_number() && said.as_u64() != Some(sat)) {
                let (body, invoice) = (Untrusted::new(said.to_string()), Untrusted::new(sat.to_string()));
                return Err(LightningRule::BodyDiffers { member, body, invoice });
            }
        }
        match self.body.invoice.as_ref().and_then(Value::as_str) {
            Some(other) if !other.eq_ignore_ascii_case(&invoice.bolt11) => {
                let (body, invoice) = (Untrusted::new(other), Untrusted::new(&*invoice.bolt11));
                Err(LightningRule::BodyDiffers { member: "invoice", body, invoice })
            }
            _ => Ok(()),
        }
    }

    /// Whether a wallet on `wallet` can pay it. Invoices of the two test networks look the same.
    pub(super) fn check_network(&self, wallet: BitcoinNetwork) -> Result<(), LightningRule> {
        if self.bolt11.network.is(wallet) {
            return Ok(());
        }
        Err(LightningRule::OtherNetwork { invoice: self.bolt11.network, wallet })
    }
}

impl TokenFacts {
    /// Whether there is time to pay the invoice, which ends then, and to use what it buys.
    pub(super) fn check_ends(&self, ends: Timestamp, now: Timestamp) -> Result<(), LightningRule> {
        if ends < now.plus(LEFT_MIN) {
            return Err(LightningRule::Ends { ends });
        }
        match self.valid_until {
            Some(ends) if ends < now.plus(TOKEN_LEFT_MIN) => Err(LightningRule::TokenEnds { ends }),
            _ => Ok(()),
        }
    }

    fn of(macaroon: &Macaroon) -> Self {
        let conditions = || macaroon.caveats.iter().filter_map(|caveat| caveat.split_once('='));
        let listed =
            conditions().filter(|(condition, _)| *condition == "services").flat_map(|(_, list)| list.split(','));
        let services: Vec<String> =
            listed.map(|service| service.split(':').next().unwrap_or_default().to_owned()).collect();
        let of_service = |condition: &str, suffix: &str| {
            condition.strip_suffix(suffix).is_some_and(|name| services.iter().any(|service| service == name))
        };
        let ends = conditions().filter(|(condition, _)| of_service(condition, "_valid_until"));
        let valid_until = ends.filter_map(|(_, value)| value.parse().ok()).map(Timestamp::from_unix_s).min();
        let one_request =
            conditions().any(|(condition, _)| of_service(condition, "_path") || of_service(condition, "_method"));
        Self { services, valid_until, one_request }
    }
}
