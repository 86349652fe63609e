//! What can be said of a credential without asking anybody, cheapest first.

use std::{slice, sync::Arc};

use farebox_core::{
    AssetId, Credential, EvmAddress, Offer, Payer, ProofId, Timestamp, TransferAuthorization, X402Credential,
    ports::{Checked, Rejected, SignatureCheck, Timely},
};
use farebox_wire::x402::match_offer;

use crate::{ChainLimits, address, checksum, signature, token::Token};

/// How far ahead a payer's clock may run.
pub(crate) const CLOCK_SKEW_S: u64 = 30;
/// An authorization that lives longer is refused: a transfer that failed stays in doubt until its authorization ends.
const VALIDITY_MAX_S: u64 = 24 * 3600;

pub(crate) mod code {
    //! x402's reasons, as the official facilitator spells them.
    pub(crate) const SIGNATURE: &str = "invalid_exact_evm_signature";
    pub(crate) const VALID_BEFORE: &str = "invalid_exact_evm_payload_authorization_valid_before";
    pub(crate) const VALID_AFTER: &str = "invalid_exact_evm_payload_authorization_valid_after";
    pub(crate) const NETWORK: &str = "invalid_exact_evm_network_mismatch";
    pub(crate) const NONCE_USED: &str = "invalid_exact_evm_nonce_already_used";
    pub(crate) const BALANCE: &str = "invalid_exact_evm_insufficient_balance";
    pub(crate) const SIMULATION: &str = "invalid_exact_evm_transaction_simulation_failed";
    pub(crate) const TRANSACTION: &str = "invalid_exact_evm_transaction_failed";
    pub(crate) const TRANSFER_EVENT: &str = "invalid_exact_evm_transfer_event_mismatch";
    pub(crate) const UNDEPLOYED: &str = "invalid_exact_evm_payload_undeployed_smart_wallet";
    pub(crate) const FACTORY: &str = "eip6492_factory_not_allowed";
}

pub(crate) fn rejected(code: &'static str, detail: impl Into<String>) -> Rejected {
    Rejected { code: code.into(), detail: detail.into() }
}

/// Checks terms, times and a key's signature. `find` gives our token and its chain's limits for an offer's asset.
pub(crate) fn check<'a>(
    credential: &Credential,
    offers: &[Offer],
    now: Timestamp,
    find: impl Fn(&AssetId) -> Option<(&'a Token, &'a ChainLimits)>,
) -> Result<Checked, Rejected> {
    let Credential::X402(x402) = credential else {
        return Err(rejected(code::NETWORK, "this is no x402 payment"));
    };
    let first = match_offer(&x402.accepted, &x402.authorization, offers)
        .map_err(|e| Rejected { code: e.code().into(), detail: e.to_string() })?;
    let known = |offer: &Offer| {
        find(&offer.amount.asset)
            .ok_or_else(|| rejected(code::NETWORK, format!("{} is no asset of this server", offer.amount.asset)))
    };
    let (_, limits) = known(first)?;
    times(&x402.authorization, now, limits)?;
    // Version 1 does not echo the asset: only the signature tells which of several tokens is meant.
    let from = address::alloy(x402.authorization.from);
    let key = signature::of_key(&x402.signature);
    let mut signed = None;
    if let Some(key) = key {
        for offer in offers {
            // Offers of other rails, or of a token that was dropped from the config, are not ours to check.
            let Some((token, _)) = find(&offer.amount.asset) else { continue };
            let fits = || match_offer(&x402.accepted, &x402.authorization, slice::from_ref(offer)).is_ok();
            if fits() && signature::signer(signature::digest(token.domain, &x402.authorization), &key) == Some(from) {
                signed = Some(offer);
                break;
            }
        }
    }
    let signature = if signed.is_some() { SignatureCheck::Recovered } else { SignatureCheck::NeedsContract };
    let offer = signed.unwrap_or(first);
    known(offer)?;
    Ok(Checked {
        credential: Arc::new(credential.clone()),
        payer: Payer::new(offer.network(), &checksum(x402.authorization.from)),
        valid_until: Timestamp::from_unix_s(x402.authorization.valid_before),
        offer: offer.clone(),
        signature,
        timely: Timely::Yes,
    })
}

fn times(a: &TransferAuthorization, now: Timestamp, limits: &ChainLimits) -> Result<(), Rejected> {
    let now_s = now.unix_s();
    let ends_min = now_s.saturating_add(limits.valid_for_min.as_secs());
    if a.valid_before < ends_min {
        let detail = format!(
            "validBefore is {}, expected {ends_min} or later; ask for a new bill and sign a new authorization",
            a.valid_before
        );
        return Err(rejected(code::VALID_BEFORE, detail));
    }
    if a.valid_before > now_s.saturating_add(VALIDITY_MAX_S) {
        let detail =
            format!("validBefore is {}, more than a day ahead; expected seconds, and at most a day", a.valid_before);
        return Err(rejected(code::VALID_BEFORE, detail));
    }
    if a.valid_after > now_s.saturating_add(CLOCK_SKEW_S) {
        let detail =
            format!("validAfter is {}, which is {} s ahead; set the clock", a.valid_after, a.valid_after - now_s);
        return Err(rejected(code::VALID_AFTER, detail));
    }
    Ok(())
}

/// What this authorization consumes when it is used.
pub(crate) fn proof(offer: &Offer, token: EvmAddress, x402: &X402Credential) -> ProofId {
    let a = &x402.authorization;
    ProofId::new(format!("eip3009:{}:{token:x}:{:x}:0x{}", offer.network(), a.from, hex::encode(a.nonce)))
}

#[cfg(test)]
mod tests;
