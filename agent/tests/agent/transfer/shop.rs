//! A seller's side of a transfer: bills, and answers to claims.

use std::time::Duration;

use axum::response::Response;
use farebox_core::{Amount, AssetId, Credential, Finality, PaymentCode, Timestamp, ports::Clock as _};
use farebox_wire::transfer::{TransferBill, TransferOption};
use serde_json::{Value, json};

use crate::support::*;

/// A tenth of a cent less than a cent would be odd: one cent of USDC.
pub(crate) const CENT: u128 = 10_000;

pub(crate) fn now() -> Timestamp {
    TestClock::default().now()
}

pub(crate) fn usdc() -> AssetId {
    format!("eip155:84532/erc20:{USDC}").parse().unwrap()
}

pub(crate) fn option(asset: AssetId, units: u128) -> TransferOption {
    let (symbol, decimals) = if asset.is_native() { ("ETH", 18) } else { ("USDC", 6) };
    TransferOption {
        amount: Amount { units, asset },
        symbol: symbol.into(),
        decimals,
        pay_to: SELLER.parse().unwrap(),
        finality: Finality::Blocks(1),
        network_fee_wei: Some(21_000_000_000_000),
    }
}

/// A cent of USDC with one confirmation.
pub(crate) fn cent_option() -> TransferOption {
    option(usdc(), CENT)
}

/// The URL that the request was made for.
pub(crate) fn resource(seen: &Seen) -> String {
    format!("http://{}{}", seen.headers["host"].to_str().unwrap(), seen.path)
}

pub(crate) fn terms(seen: &Seen, options: Vec<TransferOption>) -> TransferBill {
    let mut nonce = [0; 8];
    getrandom::fill(&mut nonce).unwrap();
    TransferBill {
        quote: format!("quote-{}", hex::encode(nonce)),
        resource: resource(seen),
        method: seen.method.to_string(),
        pay_by: now().plus(Duration::from_secs(600)),
        claim_by: now().plus(Duration::from_secs(86_400)),
        options,
    }
}

/// A 402 with terms for a transfer alone.
pub(crate) fn bill_of(terms: &TransferBill) -> Response {
    respond(402, &[("content-type", "application/problem+json")], json!({"transfer": terms}).to_string())
}

pub(crate) fn transfer_bill(seen: &Seen) -> Response {
    bill_of(&terms(seen, vec![cent_option()]))
}

/// A 402 or another status that answers a claim in the gateway's words.
pub(crate) fn says(status: u16, code: &str, retry: &str, charged: Value) -> Response {
    let body = json!({"code": code, "detail": "no", "retry": retry, "charged": charged});
    respond(status, &[("content-type", "application/problem+json"), ("retry-after", "0")], body.to_string())
}

pub(crate) fn pending() -> Response {
    says(402, "payment_pending", "same_proof", json!("unknown"))
}

/// What the request claims.
pub(crate) fn code(seen: &Seen) -> PaymentCode {
    match farebox_wire::proof(&seen.headers).unwrap() {
        Some(Credential::Transfer(transfer)) => {
            assert_eq!(transfer.announced, transfer.code.transaction);
            transfer.code
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) fn hash(code: &PaymentCode) -> String {
    format!("0x{}", hex::encode(code.transaction))
}

impl Seller {
    /// Bills a cent by transfer, and answers claims by script: the function gets the number of the claim, from 1.
    pub(crate) async fn of_transfers(script: impl Fn(usize, &Seen) -> Response + Send + Sync + 'static) -> Self {
        Self::start(move |attempt, seen| if attempt == 0 { transfer_bill(seen) } else { script(attempt, seen) }).await
    }

    /// The codes that came, in order.
    pub(crate) fn codes(&self) -> Vec<PaymentCode> {
        self.seen().iter().filter(|seen| seen.credential().is_some()).map(code).collect()
    }

    /// The distinct transactions that were claimed.
    pub(crate) fn claimed(&self) -> Vec<String> {
        let mut hashes: Vec<_> = self.codes().iter().map(hash).collect();
        hashes.dedup();
        hashes
    }
}
