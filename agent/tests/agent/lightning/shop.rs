//! A seller's side of L402: invoices, macaroons, and answers to tokens.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, Ordering},
};

use axum::response::Response;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use farebox_core::{PaymentHash, Preimage, RootKey};
use farebox_wire::l402::{self, Identifier};
use serde_json::{Value, json};

use super::wallet::*;
use crate::support::*;

/// What a till sells.
#[derive(Debug)]
pub(crate) struct Till {
    lightning: Arc<Lightning>,
    pub(crate) wanted: Mutex<Wanted>,
    pub(crate) caveats: Vec<String>,
    /// Invoices shown, by payment hash.
    pub(crate) shown: Mutex<Vec<PaymentHash>>,
    pub(crate) calls: AtomicU32,
}

impl Till {
    /// Ten sats a token.
    pub(crate) fn new(lightning: &Arc<Lightning>) -> Self {
        Self {
            lightning: Arc::clone(lightning),
            wanted: Mutex::new(Wanted::sats(10)),
            caveats: ["services=shop:0", "shop_capabilities=", "shop_valid_until=4000000000"].map(str::to_owned).into(),
            shown: Mutex::default(),
            calls: AtomicU32::default(),
        }
    }

    /// Macaroon and invoice.
    pub(crate) fn terms(&self) -> (String, String) {
        let (hash, invoice) = self.lightning.invoice(&self.wanted.lock().unwrap());
        self.shown.lock().unwrap().push(hash);
        (self.macaroon(hash), invoice)
    }

    pub(crate) fn macaroon(&self, payment_hash: PaymentHash) -> String {
        let mut token_id = [0; 32];
        getrandom::fill(&mut token_id).unwrap();
        let identifier = Identifier { payment_hash, token_id }.encode();
        let macaroon = l402::mint(&RootKey::new([3; 32]), &identifier, self.caveats.clone());
        BASE64_STANDARD.encode(l402::encode_macaroon(&macaroon))
    }

    pub(crate) fn bill(&self) -> Response {
        let (macaroon, invoice) = self.terms();
        bill_of(&macaroon, &invoice, &json!({}))
    }

    /// A 402 that says why, with a fresh bill.
    pub(crate) fn refuse(&self, code: &str) -> Response {
        let (macaroon, invoice) = self.terms();
        bill_of(&macaroon, &invoice, &json!({"code": code, "detail": "no", "retry": "after_payment", "charged": false}))
    }

    /// One good answer more.
    pub(crate) fn serve(&self, left: Option<u32>) -> Response {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let id = ("farebox-payment-id", "pay_01hzxk3vd4s0q7r2m9n8b5c6e1");
        match left {
            Some(left) => respond(200, &[id, ("farebox-pass-remaining", &left.to_string())], "goods"),
            None => respond(200, &[id], "goods"),
        }
    }

    pub(crate) fn served(&self) -> u32 {
        self.calls.load(Ordering::SeqCst)
    }
}

pub(crate) fn bill_of(macaroon: &str, invoice: &str, body: &Value) -> Response {
    let lsat = format!("LSAT macaroon=\"{macaroon}\", invoice=\"{invoice}\"");
    let l402 = format!("L402 macaroon=\"{macaroon}\", invoice=\"{invoice}\", version=\"0\", token=\"{macaroon}\"");
    let headers =
        [("www-authenticate", &*lsat), ("www-authenticate", &*l402), ("content-type", "application/problem+json")];
    respond(402, &headers, body.to_string())
}

/// The payment hash of the token that came; its preimage is right.
pub(crate) fn token_of(seen: &Seen) -> PaymentHash {
    let (_, value) = seen.credential().unwrap();
    let (macaroon, preimage) = value.split_once(' ').unwrap().1.split_once(':').unwrap();
    let macaroon = l402::decode_macaroon(&BASE64_STANDARD.decode(macaroon).unwrap()).unwrap();
    let hash = Identifier::decode(&macaroon.identifier).unwrap().payment_hash;
    assert_eq!(Preimage::from_hex(preimage).unwrap().hash(), hash);
    hash
}

pub(crate) fn key_of(seen: &Seen) -> String {
    seen.headers["idempotency-key"].to_str().unwrap().to_owned()
}

impl Seller {
    /// Bills by the till, and answers tokens by script: the function gets the number of the attempt with a token, from 1.
    pub(crate) async fn of_tokens(
        till: &Arc<Till>,
        script: impl Fn(usize, &Seen, &Till) -> Response + Send + Sync + 'static,
    ) -> Self {
        let till = Arc::clone(till);
        Self::start(move |attempt, seen| if attempt == 0 { till.bill() } else { script(attempt, seen, &till) }).await
    }
}
