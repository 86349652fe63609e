//! Paying by a plain transaction, step by step.

use std::time::Duration;

use alloy::{
    network::TransactionBuilder,
    primitives::{B256, U256},
    rpc::types::TransactionRequest,
};
use anyhow::{Result, ensure};
use http::Method;

use super::{Reply, Shop, insist};
use crate::{Account, Asked, Claim, Quoted};

impl Shop {
    /// Asks for `path` without paying: the bill's `transfer` member.
    ///
    /// # Errors
    /// There is none.
    pub async fn quote(&self, path: &str) -> Result<Quoted> {
        self.quote_for(Method::GET, path).await
    }

    /// [`Shop::quote`] for another method.
    ///
    /// # Errors
    /// There is none.
    pub async fn quote_for(&self, method: Method, path: &str) -> Result<Quoted> {
        let request = self.client.request(method, self.farebox.url(path)).header("connection", "close");
        let reply = Reply::read(request.send().await?).await?;
        ensure!(reply.status == 402, "{path} answered an unpaid request {reply:?}");
        let json = reply.problem()["transfer"].clone();
        ensure!(json.is_object(), "a 402 without transfer: {}", reply.problem());
        Ok(Quoted { json, path: path.to_owned() })
    }

    /// Pays an option of a bill the ordinary way, and waits until it is mined.
    ///
    /// # Errors
    /// The node refuses it.
    pub async fn pay(&self, payer: &Account, option: &Asked) -> Result<B256> {
        self.anvil.send(payer, self.transfer_of(option, option.units)).await
    }

    /// The plain transaction that pays so many units of an option's asset to whom it says.
    #[must_use]
    pub fn transfer_of(&self, option: &Asked, units: u128) -> TransactionRequest {
        if option.json["asset"] == "native" {
            return TransactionRequest::default().with_to(option.pay_to).with_value(U256::from(units));
        }
        self.usdc.transfer(option.pay_to, units)
    }

    /// Asks for `path`, pays what it costs in what has this symbol, and signs the claim.
    ///
    /// # Errors
    /// As the steps of it.
    pub async fn buy(&self, payer: &Account, path: &str, symbol: &str) -> Result<Claim> {
        let bill = self.quote(path).await?;
        let option = bill.option(symbol)?;
        let transaction = self.pay(payer, &option).await?;
        bill.claim(&option, transaction, payer.address()).signed(payer).await
    }

    /// Sends a claim, on a connection of its own.
    ///
    /// # Errors
    /// No answer, or one that broke off.
    pub async fn claim(&self, claim: &Claim) -> Result<Reply> {
        Reply::read(self.claim_request(Method::GET, claim).send().await?).await
    }

    /// The request of [`Shop::claim`], for a task of its own or a body to be read bit by bit.
    pub fn claim_request(&self, method: Method, claim: &Claim) -> reqwest::RequestBuilder {
        let request = self.client.request(method, self.farebox.url(&claim.path)).header("connection", "close");
        request.header("x-payment-hash", &claim.announced).header("x-payment-code", claim.encoded())
    }

    /// Sends the identical claim until an answer does not ask for that, as an agent does.
    ///
    /// # Errors
    /// There is none within `within`; the error tells the last.
    pub async fn insist_on(&self, claim: &Claim, within: Duration) -> Result<Reply> {
        insist(within, || self.claim(claim)).await
    }
}
