//! What the hot paths cost. Not a test of speed: run it by hand.

use std::time::Instant;

use farebox_core::{Credential, X402Version};
use farebox_wire::{
    problem::problem_json,
    proof,
    transfer::encode_code,
    x402::{decode_credential, decode_payment_required, encode_credential, encode_payment_required, match_offer},
};

use http::HeaderValue;

use crate::fixtures::{credential, two_offers};

const ROUNDS: u32 = 20_000;

fn measure(what: &str, mut work: impl FnMut() -> usize) {
    #[expect(clippy::disallowed_methods, reason = "measures real time")]
    let start = Instant::now();
    let sum: usize = (0..ROUNDS).map(|_| std::hint::black_box(work())).sum();
    println!(
        "{what}: {:.2} us ({} bytes)",
        start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS),
        sum / ROUNDS as usize
    );
}

#[test]
#[ignore = "a measurement: cargo test --release -p farebox-wire -- --ignored --nocapture"]
fn cost_of_the_hot_paths() {
    let challenge = two_offers();
    let header = encode_payment_required(&challenge).unwrap();
    let bill = decode_payment_required(Some(header.as_bytes()), None).unwrap();
    let paid = credential(X402Version::V2, &challenge.offers[0]);
    let (_, value) = encode_credential(&paid, &bill.requirements[0], &bill);
    measure("encode PAYMENT-REQUIRED, 2 offers", || encode_payment_required(&challenge).unwrap().len());
    measure("encode the problem body, 2 offers", || problem_json(&challenge.refusal, Some(&challenge), None).len());
    let quoter = crate::transfers::quoter(&[3, 4]);
    let claim: http::HeaderMap = encode_code(&crate::transfers::credential()).into_iter().collect();
    let quote = crate::transfers::quote();
    measure("seal a quote of 2 options", || quoter.seal(&quote).len());
    measure("read a payment code and open its quote", || {
        let Ok(Some(Credential::Transfer(read))) = proof(&claim) else { panic!("it was read before") };
        quoter.open(&read.code.quote).unwrap().options.len()
    });
    let mut broken = claim.clone();
    broken.insert("x-payment-code", HeaderValue::from_static("eyJ2ZXJzaW9uIjoxfQ"));
    measure("refuse a malformed payment code", || proof(&broken).unwrap_err().refusal().detail.len());
    measure("decode PAYMENT-SIGNATURE and match", || {
        let read = decode_credential(X402Version::V2, value.as_bytes()).unwrap();
        let offer = match_offer(&read.accepted, &read.authorization, &challenge.offers).unwrap();
        assert_eq!(offer.amount.units, 10_000);
        value.len()
    });
}
