//! BOLT 11.

use std::time::Duration;

use bitcoin::{
    hashes::{Hash as _, sha256},
    secp256k1::{PublicKey, Secp256k1, SecretKey},
};
use farebox_core::{BitcoinNetwork, Timestamp};
use farebox_wire::bolt11::{BOLT11_CHARS_MAX, Bolt11, Bolt11Error, decode};
use lightning_invoice::{Currency, InvoiceBuilder, PaymentSecret};
use proptest::prelude::*;

use crate::macaroons::PREIMAGE;

/// From BOLT 11's examples: 2,500 micro-bitcoin for a cup of coffee within a minute.
const COFFEE: &str = "lnbc2500u1pvjluezsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygspp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5xysxxatsyp3k7enxv4jsxqzpu9qrsgquk0rl77nj30yxdy8j9vdx85fkpmdla2087ne0xh8nhedh8w27kyke0lp53ut353s06fv3qfegext0eh0ymjpf39tuven09sam30g4vgpfna3rh";
/// The same, for a donation of any amount.
const DONATION: &str = "lnbc1pvjluezsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygspp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdpl2pkx2ctnv5sxxmmwwd5kgetjypeh2ursdae8g6twvus8g6rfwvs8qun0dfjkxaq9qrsgq357wnc5r2ueh7ck6q93dj32dlqnls087fxdwk8qakdyafkq3yap9us6v52vjjsrvywa6rt52cm9r9zqt8r2t7mlcwspyetp5h2tztugp9lfyql";

/// An invoice over `msat` for the test preimage's hash, made at 1,800,000,000 for 10 minutes.
fn invoice(currency: Currency, msat: Option<u64>) -> String {
    let key = SecretKey::from_slice(&[0x42; 32]).unwrap();
    let builder = InvoiceBuilder::new(currency)
        .description("GET /v1/x".to_owned())
        .payment_hash(sha256::Hash::from_byte_array(PREIMAGE.hash().0))
        .payment_secret(PaymentSecret([7; 32]))
        .duration_since_epoch(Duration::from_secs(1_800_000_000))
        .expiry_time(Duration::from_secs(600))
        .min_final_cltv_expiry_delta(80);
    let builder = match msat {
        Some(msat) => builder.amount_milli_satoshis(msat),
        None => builder,
    };
    builder.build_signed(|hash| Secp256k1::new().sign_ecdsa_recoverable(hash, &key)).unwrap().to_string()
}

fn check(text: &str, code: &str) {
    assert_eq!(decode(text).unwrap_err().code(), code, "{text}");
}

#[test]
fn an_invoice_says_its_terms() {
    let text = invoice(Currency::Regtest, Some(10_001));
    let Bolt11 { invoice, network, description, payee, min_final_cltv_delta } = decode(&text).unwrap();
    assert_eq!((invoice.amount_msat, invoice.payment_hash), (10_001, PREIMAGE.hash()));
    assert_eq!((&*invoice.bolt11, min_final_cltv_delta), (text.as_str(), 80));
    assert_eq!(invoice.created_at, Timestamp::from_unix_s(1_800_000_000));
    assert_eq!(invoice.expires_at, Timestamp::from_unix_s(1_800_000_600));
    assert_eq!(description.unwrap().as_raw(), "GET /v1/x");
    let key = SecretKey::from_slice(&[0x42; 32]).unwrap();
    assert_eq!(payee, PublicKey::from_secret_key(&Secp256k1::new(), &key).serialize());
    assert_eq!(network.to_string(), "regtest");
}

#[test]
fn the_specifications_examples_are_read() {
    let coffee = decode(COFFEE).unwrap();
    assert_eq!(coffee.invoice.amount_msat, 250_000_000);
    assert_eq!(coffee.invoice.expires_at.since(coffee.invoice.created_at), Duration::from_secs(60));
    assert_eq!(coffee.description.unwrap().as_raw(), "1 cup coffee");
    assert_eq!(hex::encode(coffee.payee), "03e7156ae33b0a208d0744199163177e909e80176e55d97a2f221ede0f934dd9ad");
    let upper = decode(&COFFEE.to_uppercase()).unwrap();
    assert_eq!(upper.invoice, coffee.invoice);
    check(DONATION, "invoice_amountless");
    check(&COFFEE.replacen("lnbc", "LNBC", 1), "invoice_malformed");
}

#[test]
fn networks_are_told_apart_but_for_the_two_testnets() {
    for (currency, expected) in [
        (Currency::Bitcoin, vec![BitcoinNetwork::Bitcoin]),
        (Currency::BitcoinTestnet, vec![BitcoinNetwork::Testnet, BitcoinNetwork::Testnet4]),
        (Currency::Signet, vec![BitcoinNetwork::Signet]),
        (Currency::Regtest, vec![BitcoinNetwork::Regtest]),
    ] {
        let network = decode(&invoice(currency, Some(1))).unwrap().network;
        assert_eq!(network.candidates().collect::<Vec<_>>(), expected);
        for other in BitcoinNetwork::ALL {
            assert_eq!(network.is(other), expected.contains(&other));
        }
    }
    check(&invoice(Currency::Simnet, Some(1)), "invoice_network");
}

#[test]
fn amounts_are_whole_millisatoshis_and_more_than_none() {
    for msat in [1, 999, 1_000, 100_000_000_000, 1_000_000_000_000_000_000] {
        assert_eq!(decode(&invoice(Currency::Regtest, Some(msat))).unwrap().invoice.amount_msat, msat);
    }
    check(&invoice(Currency::Regtest, None), "invoice_amountless");
    check(&invoice(Currency::Regtest, Some(0)), "invoice_zero");
}

#[test]
fn what_was_changed_on_the_way_is_refused() {
    for at in 0..COFFEE.len() {
        let mut changed = COFFEE.as_bytes().to_vec();
        changed[at] = if changed[at] == b'q' { b'p' } else { b'q' };
        let changed = String::from_utf8(changed).unwrap();
        check(&changed, "invoice_malformed");
        check(&COFFEE[..at], "invoice_malformed");
    }
    assert!(matches!(decode(&"a".repeat(BOLT11_CHARS_MAX + 1)), Err(Bolt11Error::TooLong { .. })));
    check(&"a".repeat(BOLT11_CHARS_MAX), "invoice_malformed");
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(lnbcrt|LNBC|lntb)[0-9a-z]{0,12}1[0-9a-z]{0,200}|\\PC{0,60}") {
        let _ = decode(&text);
    }
}
