//! What only the chain knows of a credential. One question in the good case; an error is never a "no".

use std::time::Duration;

use alloy::primitives::{U64, U256};
use alloy::sol_types::SolCall;
use farebox_core::{
    Credential, X402Credential,
    ports::{BoxError, Checked, Rejected, SignatureCheck, Verified, VerifyError},
};

use crate::{
    abi, address,
    chain::{Chain, contract_signature, transfer_call},
    check::{CLOCK_SKEW_S, code, proof, rejected},
    node::{Agreement, Answered, Call, Called, ask},
    signature,
    token::Token,
};

fn unavailable(source: impl Into<BoxError>) -> VerifyError {
    VerifyError::Unavailable { source: source.into() }
}

fn no<T>(code: &'static str, detail: impl Into<String>) -> Result<T, VerifyError> {
    Err(VerifyError::Rejected(rejected(code, detail)))
}

impl Chain {
    /// # Errors
    /// Rejected only by what the chain executed or stores.
    pub(crate) async fn verify(&self, checked: &Checked) -> Result<Verified, VerifyError> {
        let Credential::X402(x402) = checked.credential.as_ref() else {
            return no(code::NETWORK, "this is no x402 payment");
        };
        let Some(token) = self.token(&checked.offer.amount.asset) else {
            return no(code::NETWORK, "this token is not configured");
        };
        let (Some(lane), Some(relayer)) = (&self.lane, self.config.relayer_address()) else {
            return Err(unavailable("no relayer is configured on this network"));
        };
        if let Some(unsent) = lane.stalled() {
            return Err(VerifyError::Unavailable { source: unsent.into() });
        }
        if let Some(left) = self.bounced.left(x402.authorization.from) {
            return no(
                code::TRANSACTION,
                format!("a settlement of this payer reverted on the chain; it may pay again in {} s", left.as_secs()),
            );
        }
        if checked.signature == SignatureCheck::NeedsContract {
            self.ask_wallet(token, x402).await?;
        }
        self.wait_for_validity(x402).await;
        let call = Call {
            from: Some(relayer),
            to: token.address,
            gas: Some(U64::from(self.config.limits.gas_limit_max)),
            data: transfer_call(token, x402),
        };
        match self.node.call(call, None).await.map_err(unavailable)? {
            Called::Returned(_) => Ok(Verified::Authorised(proof(&checked.offer, address::core(token.address), x402))),
            Called::Reverted(answer) => Err(self.diagnose(token, x402, &answer).await),
        }
    }

    /// A payer whose clock is up to half a minute fast is waited for.
    async fn wait_for_validity(&self, x402: &X402Credential) {
        let now_s = self.clock.now().unix_s();
        let ahead_s = x402.authorization.valid_after.saturating_add(1).saturating_sub(now_s);
        if ahead_s > 0 {
            tokio::time::sleep(Duration::from_secs(ahead_s.min(CLOCK_SKEW_S + 1))).await;
        }
    }

    /// Whether the contract at the payer's address accepts the signature. Source: EIP-1271, ERC-6492.
    async fn ask_wallet(&self, token: &Token, x402: &X402Credential) -> Result<(), VerifyError> {
        let wallet = address::alloy(x402.authorization.from);
        if self.node.code(wallet).await.map_err(unavailable)?.is_empty() {
            return Err(VerifyError::Rejected(without_code(x402)));
        }
        let digest = signature::digest(token.domain, &x402.authorization);
        let call = Call {
            from: Some(token.address),
            to: wallet,
            gas: Some(U64::from(self.config.limits.gas_limit_max)),
            data: abi::is_valid_signature(digest, &contract_signature(x402)),
        };
        match self.node.call(call, None).await.map_err(unavailable)? {
            Called::Returned(word) if word.get(..32) == Some(&abi::EIP1271_YES) => Ok(()),
            Called::Returned(_) => no(code::SIGNATURE, "the contract wallet does not accept the signature"),
            Called::Reverted(answer) => {
                no(code::SIGNATURE, format!("the contract wallet fails on the signature: {}", answer.message))
            }
        }
    }

    /// Why the transfer cannot be made, by what the token stores.
    async fn diagnose(&self, token: &Token, x402: &X402Credential, answer: &Answered) -> VerifyError {
        self.reason(token, x402, answer).await.map_or_else(unavailable, VerifyError::Rejected)
    }

    async fn reason(&self, token: &Token, x402: &X402Credential, answer: &Answered) -> Result<Rejected, BoxError> {
        let a = &x402.authorization;
        let from = address::alloy(a.from);
        if self.authorization_ended(token.address, from, a.nonce.into(), None, Agreement::ONE).await? {
            return Ok(rejected(code::NONCE_USED, "this authorization was used or cancelled before; sign a new one"));
        }
        let balance = self.token_balance(token, from).await?;
        if balance < U256::from(a.value) {
            let detail = format!("the payer has {balance} of {} units of {}", a.value, token.symbol);
            return Ok(rejected(code::BALANCE, detail));
        }
        let chain_s: u64 = self.node.head().await?.timestamp.to();
        if chain_s <= a.valid_after {
            return Err("the authorization is not valid yet by the chain's clock; send it again in a moment".into());
        }
        Ok(rejected(code::SIMULATION, format!("the token refuses the transfer: {}", answer.message)))
    }

    /// Whether an authorization is used or cancelled, at `block` or now.
    pub(crate) async fn authorization_ended(
        &self,
        token: alloy::primitives::Address,
        authorizer: alloy::primitives::Address,
        nonce: alloy::primitives::B256,
        block: Option<u64>,
        agreement: Agreement,
    ) -> Result<bool, BoxError> {
        let call = abi::Token::authorizationStateCall { authorizer, nonce };
        let call = Call { from: None, to: token, gas: None, data: call.abi_encode().into() };
        match self.node.agreed(ask::call(&call, block), agreement).await? {
            Called::Returned(word) => Ok(abi::Token::authorizationStateCall::abi_decode_returns_validate(&word)?),
            Called::Reverted(answer) => Err(Box::new(answer)),
        }
    }

    async fn token_balance(&self, token: &Token, account: alloy::primitives::Address) -> Result<U256, BoxError> {
        let call = abi::Token::balanceOfCall { account };
        let call = Call { from: None, to: token.address, gas: None, data: call.abi_encode().into() };
        match self.node.call(call, None).await? {
            Called::Returned(word) => Ok(abi::Token::balanceOfCall::abi_decode_returns_validate(&word)?),
            Called::Reverted(answer) => Err(Box::new(answer)),
        }
    }
}

/// Why a signature that no key made is refused where there is no contract.
fn without_code(x402: &X402Credential) -> Rejected {
    match abi::with_deployment(&x402.signature) {
        Some(wrapped) if !wrapped.factory.is_zero() => rejected(
            code::FACTORY,
            format!(
                "the payer's wallet is not deployed, and its factory {} is not allowed here; deploy it first",
                wrapped.factory
            ),
        ),
        Some(_) => rejected(code::UNDEPLOYED, "the payer's wallet is not deployed; deploy it first"),
        None => rejected(code::SIGNATURE, "the signature is not the payer's, over exactly this transfer and token"),
    }
}
