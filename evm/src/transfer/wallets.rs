//! Contract wallets: whether there is one at a payer's address, and whether it accepts a signature.

use std::{collections::HashMap, time::Duration};

use alloy::primitives::{Address, B256, U64};
use farebox_core::{
    Network,
    ports::{Lookups, VerifyError},
};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::refusal::{code, no, too_many_claims, unavailable};
use crate::{
    abi,
    chain::Chain,
    node::{Call, Called, ask},
};

/// How long an address without code is remembered: somebody may deploy a wallet there any time.
const NO_CODE_KEPT: Duration = Duration::from_secs(30);
/// How long one with code is remembered: that it still accepts a signature is asked each time.
const CODE_KEPT: Duration = Duration::from_secs(3600);
/// How many addresses are remembered; the oldest make room.
const ADDRESSES_MAX: usize = 10_000;

/// Which addresses have code.
#[derive(Debug, Default)]
pub(super) struct Wallets(Mutex<HashMap<(Network, Address), Known>>);

#[derive(Clone, Copy, Debug)]
struct Known {
    has_code: bool,
    since: Instant,
}

impl Known {
    fn holds(&self) -> bool {
        self.since.elapsed() < if self.has_code { CODE_KEPT } else { NO_CODE_KEPT }
    }
}

impl Wallets {
    /// Whether the contract at `wallet` accepts `signature` over `digest`. Source: EIP-1271.
    ///
    /// # Errors
    /// `bad_signature` if there is no contract, or it says no or fails; `too_many_claims`; unavailable if the chain did not say.
    pub(super) async fn accepts(
        &self,
        chain: &Chain,
        wallet: Address,
        digest: B256,
        signature: &[u8],
        lookups: &dyn Lookups,
    ) -> Result<(), VerifyError> {
        let key = (chain.config.network.clone(), wallet);
        let known = self.known(&key);
        if known == Some(false) {
            return Err(bad_signature());
        }
        lookups.take().map_err(too_many_claims)?;
        // A stranger's code: it gets as much gas as one of our settlements, and no more.
        let call = Call {
            from: None,
            to: wallet,
            gas: Some(U64::from(chain.config.limits.gas_limit_max)),
            data: abi::is_valid_signature(digest, signature),
        };
        // Whatever the payment is worth: who is taken for the payer gets what others have paid for.
        let agreement = chain.config.agreement();
        let called = match known {
            Some(_) => chain.node.agreed(ask::call(&call, None), agreement).await.map_err(unavailable)?,
            // Both at once: where there is no code, the call says nothing.
            None => {
                let asked = (ask::code(wallet), ask::call(&call, None));
                let (found, called) = chain.node.agreed(asked, agreement).await.map_err(unavailable)?;
                self.note(key, !found.is_empty());
                if found.is_empty() {
                    return Err(bad_signature());
                }
                called
            }
        };
        match called {
            Called::Returned(word) if word.get(..32) == Some(&abi::EIP1271_YES) => Ok(()),
            Called::Returned(_) => {
                Err(no(code::SIGNATURE, "the payer's contract wallet does not accept the signature"))
            }
            Called::Reverted(answer) => {
                let detail = format!("the payer's contract wallet fails on the signature: {}", answer.message);
                Err(no(code::SIGNATURE, detail))
            }
        }
    }

    fn known(&self, key: &(Network, Address)) -> Option<bool> {
        self.0.lock().get(key).filter(|known| known.holds()).map(|known| known.has_code)
    }

    fn note(&self, key: (Network, Address), has_code: bool) {
        let mut known = self.0.lock();
        if known.len() >= ADDRESSES_MAX {
            known.retain(|_, known| known.holds());
        }
        if known.len() >= ADDRESSES_MAX
            && let Some(oldest) = known.iter().min_by_key(|(_, known)| known.since).map(|(key, _)| key.clone())
        {
            known.remove(&oldest);
        }
        known.insert(key, Known { has_code, since: Instant::now() });
    }
}

fn bad_signature() -> VerifyError {
    no(
        code::SIGNATURE,
        "the signature is not the payer's, over exactly this payment code; sign what the bill's claim member says",
    )
}
