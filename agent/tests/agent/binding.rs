//! What ties a payment to its caller, its wallet and its receipt.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use farebox_agent::{FetchError, Note, Quote, Stake};
use farebox_core::{
    Amount, AssetId, EvmAddress, Offer, Timestamp, X402Credential,
    ports::{Wallet, WalletError},
};
use serde_json::json;

use crate::support::*;

fn keys(seller: &Seller) -> Vec<Option<String>> {
    let key = |seen: &Seen| seen.headers.get("idempotency-key").map(|key| key.to_str().unwrap().to_owned());
    seller.seen().iter().map(key).collect()
}

#[tokio::test]
async fn every_attempt_of_a_payment_carries_its_one_secret_key_after_a_restart_too() {
    let down = Arc::new(AtomicBool::new(true));
    let seller_down = Arc::clone(&down);
    let seller = Seller::start(move |attempt, _| match attempt {
        0 => bill(&[cent()]),
        _ if seller_down.load(Ordering::SeqCst) => respond(503, &[], ""),
        _ => goods(),
    })
    .await;
    let payer = Payer::new();
    payer.agent().fetch(get(seller.url("/"))).await.unwrap_err();
    down.store(false, Ordering::SeqCst);
    assert_eq!(read(payer.agent().fetch(get(seller.url("/"))).await).await.0, 200);
    assert_eq!(read(payer.agent().fetch(get(seller.url("/"))).await).await.0, 200);

    let keys = keys(&seller);
    // An unpaid request, five attempts and one after the restart; then an unpaid request and a payment of its own.
    assert_eq!((keys.len(), &keys[0], &keys[7]), (9, &None, &None));
    let key = keys[1].clone().unwrap();
    let digits = key.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap();
    assert!(digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit()), "{key}");
    assert!(keys[1..7].iter().all(|other| other.as_ref() == Some(&key)), "{keys:?}");
    assert!(keys[8].is_some() && keys[8] != keys[1]);
}

#[tokio::test]
async fn a_callers_own_key_is_used_and_the_journals_goes_before_a_later_one() {
    let seller = Seller::start(|attempt, _| match attempt {
        0 => bill(&[cent()]),
        1..=5 => respond(503, &[], ""),
        _ => goods(),
    })
    .await;
    let payer = Payer::new();
    let with_key = |key: &str| {
        let mut request = get(seller.url("/"));
        request.headers_mut().append("idempotency-key", key.parse().unwrap());
        request
    };
    let error = payer.agent().fetch(with_key("\"mine\"")).await.unwrap_err();
    assert!(!format!("{error:?}").contains("mine"));
    let journal = payer.builder().build().unwrap();
    assert_eq!(read(journal.fetch(with_key("\"other\"")).await).await.0, 200);
    assert!(keys(&seller)[1..].iter().all(|key| key.as_deref() == Some("\"mine\"")), "{:?}", keys(&seller));

    let mut twice = with_key("a");
    twice.headers_mut().append("idempotency-key", "b".parse().unwrap());
    assert_eq!(payer.agent().fetch(twice).await.unwrap_err().code(), "idempotency_key_malformed");
}

/// Changes what an honest wallet signed.
#[derive(Debug)]
struct Straying(fn(&mut X402Credential));

#[async_trait]
impl Wallet for Straying {
    fn evm_address(&self) -> EvmAddress {
        EvmAddress([7; 20])
    }

    async fn authorize(&self, offer: &Offer, now: Timestamp) -> Result<X402Credential, WalletError> {
        let mut signed = CountingWallet::default().authorize(offer, now).await?;
        (self.0)(&mut signed);
        Ok(signed)
    }

    async fn balance(&self, asset: &AssetId) -> Result<Amount, WalletError> {
        Ok(Amount { units: 0, asset: asset.clone() })
    }
}

#[tokio::test]
async fn what_the_wallet_signed_beside_the_offer_is_not_sent() {
    let check = async |stray: fn(&mut X402Credential), expected: Option<&str>| {
        let seller = Seller::start(|attempt, _| if attempt == 0 { bill(&[cent()]) } else { goods() }).await;
        let payer = Payer::new();
        let agent = payer.builder().wallet(Arc::new(Straying(stray))).build().unwrap();
        let found = match agent.fetch(get(seller.url("/"))).await {
            Ok(_) => None,
            Err(error @ FetchError::WalletStrayed { field, .. }) => {
                assert_eq!((error.code(), error.stake()), ("wallet_strayed", Stake::Nothing));
                Some(field)
            }
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(found, expected);
        let sent = usize::from(expected.is_none());
        assert_eq!((seller.credentials().len(), payer.files("open").len()), (sent, sent));
    };
    check(|_| {}, None).await;
    check(|signed| signed.authorization.from = EvmAddress([8; 20]), Some("from")).await;
    check(|signed| signed.authorization.to = EvmAddress([8; 20]), Some("to")).await;
    check(|signed| signed.authorization.value += 1, Some("value")).await;
    check(|signed| signed.authorization.valid_before += 1, Some("validBefore")).await;
    check(|signed| signed.accepted.network = "eip155:1".parse().unwrap(), Some("network")).await;
}

#[tokio::test]
async fn a_receipt_for_another_payment_is_told() {
    let check = async |receipt: serde_json::Value, expected: &[&str]| {
        let receipt = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, receipt.to_string());
        let seller = Seller::start(move |attempt, _| match attempt {
            0 => bill(&[cent()]),
            _ => respond(200, &[("payment-response", &receipt)], "goods"),
        })
        .await;
        let fetched = Payer::new().agent().fetch(get(seller.url("/"))).await.unwrap();
        let field = |note: &Note| match note {
            Note::ReceiptDiffers { field, .. } => *field,
            other => panic!("{other:?}"),
        };
        let found: Vec<_> = fetched.payment.unwrap().notes.iter().map(field).collect();
        assert_eq!(found, expected);
    };
    let (mine, other) = (format!("0x{}", "07".repeat(20)), format!("0x{}", "08".repeat(20)));
    let network = "eip155:84532";
    check(json!({"success": true, "transaction": HASH, "network": network}), &[]).await;
    check(json!({"success": true, "transaction": HASH, "network": network, "payer": mine, "amount": "10000"}), &[])
        .await;
    check(
        json!({"success": true, "transaction": HASH, "network": "eip155:1", "payer": other, "amount": "10001"}),
        &["amount", "network", "payer"],
    )
    .await;
}

#[tokio::test]
async fn a_body_that_contradicts_the_header_is_told_and_not_believed() {
    let check = async |body: String, expected: &[Note]| {
        let seller = Seller::start(move |attempt, _| match attempt {
            0 => bill_with(&[cent()], body.clone()),
            _ => goods(),
        })
        .await;
        let payer = Payer::new();
        let Quote::Bill { notes, .. } = payer.agent().quote(get(seller.url("/"))).await.unwrap() else { panic!() };
        assert_eq!(notes, expected);
        let made = payer.agent().fetch(get(seller.url("/"))).await.unwrap().payment.unwrap();
        assert_eq!((&made.notes[..], made.price.unwrap().to_string()), (expected, "$0.01".to_owned()));
    };
    let v2 = |units: u128| {
        json!({"x402Version": 2, "resource": {"url": "http://x.test/"}, "accepts": [{
            "scheme": "exact", "network": "eip155:84532", "amount": units.to_string(), "asset": USDC, "payTo": SELLER,
            "maxTimeoutSeconds": 60, "extra": {"name": "USDC", "version": "2"},
        }]})
        .to_string()
    };
    check("{}".to_owned(), &[]).await;
    check(v2(10_000), &[]).await;
    check(v2(1), &[Note::BodyDisagrees]).await;
    check(v1_terms(&[cent()]), &[]).await;
    check(v1_terms(&[offer(1)]), &[Note::BodyDisagrees]).await;
}
