//! What the chain says of a credential, and what happens when it says nothing.

use std::{sync::Arc, time::Duration};

use farebox_core::{
    Credential, EvmAddress, Network, X402Credential,
    ports::{Rail, SignatureCheck, VerifyError, Wallet},
};
use farebox_evm::{ConnectError, EvmChains, EvmKey, LocalWallet, Rates, RpcUrl};

use crate::{
    harness::{
        Random, Store, USDC, Unlimited, WallClock, World, config, now, payment, submit_call, transaction_of, x402,
    },
    proxy::{Fault, Proxy},
};

async fn rejected(world: &World, credential: &Credential) -> String {
    match world.verify(&world.check(credential)).await {
        Err(VerifyError::Rejected(rejected)) => rejected.code.into_owned(),
        other => panic!("expected Rejected, found {other:?}"),
    }
}

fn change(credential: &Credential, change: impl FnOnce(&mut X402Credential)) -> Credential {
    let x402 = x402(credential);
    let mut x402 = x402.clone();
    change(&mut x402);
    Credential::X402(X402Credential::new(x402.version, x402.accepted, x402.authorization, x402.signature))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_authorization_passes_with_one_question() {
    let mut proxy = None;
    let world = World::through(
        &[],
        |url| {
            let (shared, url) = Proxy::start(url);
            proxy = Some(shared);
            url
        },
        |_| (),
    )
    .await;
    let proxy = proxy.unwrap();
    let checked = world.check(&world.credential().await);
    assert_eq!(checked.signature, SignatureCheck::Recovered);
    let before = proxy.requests.load(std::sync::atomic::Ordering::SeqCst);
    world.verify(&checked).await.unwrap();
    assert_eq!(proxy.requests.load(std::sync::atomic::Ordering::SeqCst) - before, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chain_says_no_for_what_it_knows() {
    let world = World::new(&[]).await;
    let good = world.credential().await;
    assert_eq!(rejected(&world, &change(&good, |c| c.signature[5] ^= 1)).await, "invalid_exact_evm_signature");
    assert_eq!(
        rejected(&world, &change(&good, |c| c.authorization.from = EvmAddress([9; 20]))).await,
        "invalid_exact_evm_signature"
    );
    assert_eq!(rejected(&world, &change(&good, |c| c.signature = vec![])).await, "invalid_exact_evm_signature");

    world.anvil.send(USDC, submit_call(&good)).await;
    assert_eq!(rejected(&world, &good).await, "invalid_exact_evm_nonce_already_used");

    let poor = LocalWallet::new(EvmKey::from_bytes(&[3; 32]).unwrap(), Arc::new(Random));
    let poor = poor.authorize(&world.offers[0], now()).await.unwrap();
    assert_eq!(rejected(&world, &Credential::X402(poor)).await, "invalid_exact_evm_insufficient_balance");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undeployed_wallet_is_refused_by_name_and_a_deployed_one_pays() {
    let world = World::new(&[]).await;
    let wallet = world.anvil.wallet_of(&world.payer).await;
    world.anvil.mint(&wallet, 10_000).await;
    // The owner signs for the wallet: an authorization whose `from` is the contract.
    let from = wallet.parse::<EvmAddress>().unwrap();
    let credential = signed_for(&world, from);
    let checked = world.check(&credential);
    assert_eq!(checked.signature, SignatureCheck::NeedsContract);
    world.verify(&checked).await.unwrap();
    transaction_of(&world.settle(&payment(&checked)).await);
    assert_eq!(world.anvil.balance(&wallet).await, 0);

    let forged = change(&credential, |c| c.signature[5] ^= 1);
    assert_eq!(rejected(&world, &forged).await, "invalid_exact_evm_signature");
    let nowhere = change(&signed_for(&world, EvmAddress([8; 20])), |c| c.signature = wrapped([7; 20], &c.signature));
    assert_eq!(rejected(&world, &nowhere).await, "eip6492_factory_not_allowed");
    let nowhere = change(&signed_for(&world, EvmAddress([8; 20])), |c| c.signature = wrapped([0; 20], &c.signature));
    assert_eq!(rejected(&world, &nowhere).await, "invalid_exact_evm_payload_undeployed_smart_wallet");
}

/// ERC-6492: abi.encode(factory, calldata, signature) and the magic suffix.
fn wrapped(factory: [u8; 20], signature: &[u8]) -> Vec<u8> {
    use alloy::{
        primitives::{Address, Bytes},
        sol_types::SolValue,
    };
    let mut bytes = (Address::from(factory), Bytes::new(), Bytes::copy_from_slice(signature)).abi_encode_params();
    bytes.extend([0x64, 0x92].repeat(16));
    bytes
}

/// Signed by alloy, which is an opinion of its own on what EIP-712 says.
pub(crate) fn signed_for(world: &World, from: EvmAddress) -> Credential {
    use alloy::{
        primitives::{Address, B256, U256},
        signers::{SignerSync, local::PrivateKeySigner},
        sol,
        sol_types::{SolStruct, eip712_domain},
    };
    sol! {
        struct TransferWithAuthorization {
            address from;
            address to;
            uint256 value;
            uint256 validAfter;
            uint256 validBefore;
            bytes32 nonce;
        }
    }
    let offer = &world.offers[0];
    let mut nonce = [0; 32];
    farebox_core::ports::Entropy::fill(&Random, &mut nonce);
    let authorization = farebox_core::TransferAuthorization {
        from,
        to: offer.pay_to.parse().unwrap(),
        value: offer.amount.units,
        valid_after: 0,
        valid_before: now().unix_s() + 60,
        nonce,
    };
    let message = TransferWithAuthorization {
        from: Address::from(from.0),
        to: Address::from(authorization.to.0),
        value: U256::from(authorization.value),
        validAfter: U256::ZERO,
        validBefore: U256::from(authorization.valid_before),
        nonce: B256::from(nonce),
    };
    let domain =
        eip712_domain! { name: "USDC", version: "2", chain_id: 84532, verifying_contract: USDC.parse().unwrap(), };
    let signer = PrivateKeySigner::from_bytes(&B256::from(world.payer_key)).unwrap();
    let signature = signer.sign_hash_sync(&message.eip712_signing_hash(&domain)).unwrap().as_bytes().to_vec();
    let accepted =
        farebox_core::AcceptedTerms { scheme: "exact".into(), network: offer.network().clone(), requirement: None };
    Credential::X402(X402Credential::new(farebox_core::X402Version::V1, accepted, authorization, signature))
}

#[tokio::test(flavor = "multi_thread")]
async fn alloy_and_we_agree_on_what_is_signed() {
    let world = World::new(&[]).await;
    let credential = signed_for(&world, world.wallet.evm_address());
    assert_eq!(world.check(&credential).signature, SignatureCheck::Recovered);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_cannot_be_relied_on_is_never_a_no() {
    let mut proxy = None;
    let world = World::through(
        &[],
        |url| {
            let (shared, url) = Proxy::start(url);
            proxy = Some(shared);
            url
        },
        |config| config.limits.rpc_timeout = Duration::from_millis(500),
    )
    .await;
    let proxy = proxy.unwrap();
    let checked = world.check(&world.credential().await);
    for fault in [
        Fault::Down,
        Fault::LoseAnswer("eth_call"),
        Fault::Say("eth_call", "<html>busy</html>"),
        Fault::Say("eth_call", r#"{"jsonrpc":"2.0","id":0,"error":{"code":-32005,"message":"limit exceeded"}}"#),
        Fault::Say("eth_call", r#"{"jsonrpc":"2.0","id":0,"error":{"code":-32603,"message":"Internal error"}}"#),
        Fault::Say("eth_call", r#"{"jsonrpc":"2.0","id":0,"result":7}"#),
    ] {
        proxy.set(fault.clone());
        let verdict = world.verify(&checked).await;
        assert!(matches!(verdict, Err(VerifyError::Unavailable { .. })), "{fault:?}: {verdict:?}");
    }
    proxy.set(None);
    world.verify(&checked).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_is_passed_over_and_a_wrong_one_refused() {
    let world = World::new(&[]).await;
    let dead = RpcUrl::parse("http://127.0.0.1:1/secret").unwrap();
    let both = config(&world.anvil.url, |c| c.rpc.insert(0, dead.clone().into()));
    let connect = |c| {
        let clock = Arc::new(WallClock);
        EvmChains::connect(vec![c], Arc::new(Store::default()), clock.clone(), Rates::none(clock))
    };
    let rail = connect(both).await.unwrap().x402().unwrap();
    rail.verify(&world.check(&world.credential().await), &Unlimited).await.unwrap();

    let only_dead = connect(config(&world.anvil.url, |c| c.rpc = vec![dead.into()])).await.unwrap_err();
    assert!(matches!(only_dead, ConnectError::Unreachable { .. }));
    assert!(!format!("{only_dead:?}").contains("secret"), "{only_dead:?}");
    let other_chain = connect(config(&world.anvil.url, |c| c.network = Network::evm(8453))).await.unwrap_err();
    assert!(matches!(other_chain, ConnectError::WrongChain { found: 84532, .. }));
    let no_token = connect(config(&world.anvil.url, |c| c.assets[0].address = EvmAddress([9; 20]))).await.unwrap_err();
    assert_eq!(no_token.code(), "unusable_token");
    let wallet = world.anvil.wallet_of(&world.payer).await;
    let no_eip3009 =
        connect(config(&world.anvil.url, |c| c.assets[0].address = wallet.parse().unwrap())).await.unwrap_err();
    assert_eq!(no_eip3009.code(), "unusable_token");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wallet_tells_its_balance_or_that_it_could_not_ask() {
    let world = World::new(&[]).await;
    let asset = &world.offers[0].amount.asset;
    assert!(world.wallet.balance(asset).await.is_err());
    let key = EvmKey::from_bytes(&world.payer_key).unwrap();
    let rpc = RpcUrl::parse(&world.anvil.url).unwrap();
    let wallet = LocalWallet::new(key, Arc::new(Random)).with_rpc(asset.network().clone(), &[rpc]).unwrap();
    assert_eq!(wallet.balance(asset).await.unwrap().units, 100_000_000);
}
