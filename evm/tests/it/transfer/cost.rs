//! What a claim costs: questions to the chain, and time of ours.

use std::sync::atomic::Ordering;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_good_claim_is_two_round_trips_and_a_replayed_one_is_none() {
    let (proxy, shop) = Shop::proxied(&[], |_| ()).await;
    let transaction = shop.pay(PRICE).await;
    let asked = || proxy.requests.load(Ordering::SeqCst);
    let before = asked();
    let credential = shop.sign(&shop.draft(transaction));
    shop.look(&credential, &Unlimited).await.unwrap();
    assert_eq!(asked() - before, 2);
    shop.claim(&credential).await.unwrap();
    let before = asked();
    shop.claim(&credential).await.unwrap();
    assert_eq!(shop.claim_code(&shop.draft(transaction)).await, no(409, "already_claimed"));
    let mut malformed = shop.draft(transaction);
    malformed.sealed = Some("AQAAAAE".into());
    assert_eq!(shop.claim_code(&malformed).await, no(402, "unknown_quote"));
    assert_eq!(asked(), before, "neither a repeat nor a replay nor nonsense is asked about");

    let native = shop.native_draft(shop.pay_native(10u128.pow(14)).await);
    let before = asked();
    shop.look(&shop.sign(&native), &Unlimited).await.unwrap();
    assert_eq!(asked() - before, 2);
    shop.claim(&shop.sign(&native)).await.unwrap();
    let before = asked();
    assert_eq!(shop.claim_code(&shop.native_draft(native.transaction)).await, no(409, "already_claimed"));
    assert_eq!(asked(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_contract_wallets_claim_is_three_round_trips() {
    let (proxy, shop) = Shop::proxied(&[], |_| ()).await;
    let wallet: Address = shop.anvil().wallet_of(&shop.payer.address().to_string()).await.parse().unwrap();
    shop.anvil().mint(&wallet.to_string(), 50_000).await;
    shop.anvil().rpc("anvil_impersonateAccount", json!([wallet])).await;
    shop.anvil().rpc("anvil_setBalance", json!([wallet, "0xde0b6b3a7640000"])).await;
    let data = Bytes::from(transferCall { to: seller(), value: U256::from(PRICE) }.abi_encode());
    let hash = shop.anvil().rpc("eth_sendTransaction", json!([{"from": wallet, "to": USDC, "data": data}])).await;
    shop.anvil().receipt(&hash).await;
    let draft = Draft { payer: wallet, ..shop.draft(hash.as_str().unwrap().parse().unwrap()) };
    let before = proxy.requests.load(Ordering::SeqCst);
    shop.look(&shop.sign(&draft), &Unlimited).await.unwrap();
    assert_eq!(proxy.requests.load(Ordering::SeqCst) - before, 3);
}

/// What this thread has computed so far, in microseconds.
fn cpu_us() -> u64 {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    schedstat.split(' ').next().unwrap().parse::<u64>().unwrap() / 1_000
}

/// Everything runs on this one thread: the rail, the HTTP client, the books. Anvil is another process.
#[tokio::test(flavor = "current_thread")]
async fn a_good_claim_is_verified_in_less_than_300_microseconds_of_cpu() {
    const CLAIMS: u64 = 200;
    let shop = Shop::new(&[]).await;
    let transaction = shop.pay(PRICE).await;
    let credentials: Vec<_> = (0..CLAIMS).map(|_| shop.sign(&shop.draft(transaction))).collect();
    for credential in &credentials[..20] {
        shop.look(credential, &Unlimited).await.unwrap();
    }
    let started = cpu_us();
    for credential in &credentials {
        shop.authenticate(credential, &Unlimited).await.unwrap();
    }
    let authenticated = cpu_us();
    for credential in &credentials {
        shop.look(credential, &Unlimited).await.unwrap();
    }
    let looked = cpu_us();
    let (authenticate, whole) = ((authenticated - started) / CLAIMS, (looked - authenticated) / CLAIMS);
    println!("authenticate: {authenticate} µs, with verification: {whole} µs of CPU");
    // Without optimisation hashing and parsing take many times as long.
    let slack = if cfg!(debug_assertions) { 20 } else { 1 };
    assert!(authenticate <= 60 * slack && whole <= 300 * slack, "{authenticate} µs, {whole} µs");
}
