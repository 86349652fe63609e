//! The token as x402 uses it: EIP-3009 with EOA and EIP-1271 signatures, in Circle's words.

use alloy::primitives::{Address, B256, Signature, U256, keccak256};
use alloy::providers::{DynProvider, Provider as _};
use alloy::rpc::types::{Filter, TransactionReceipt};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{SolEvent as _, SolValue as _};
use farebox_devchain::{DemoUsd, DemoWallet};

use crate::harness::{
    CHAIN_ID, CancelAuthorization, Network, ReceiveWithAuthorization, TOKEN, TransferWithAuthorization, authorization,
    bytes, now_s, refusal, signed,
};

type Token = DemoUsd::DemoUsdInstance<DynProvider>;

const USED: &str = "FiatTokenV2: authorization is used or canceled";
const INVALID: &str = "FiatTokenV2: invalid signature";

/// A payer with 5000 units and no ether.
async fn payer(token: &Token) -> PrivateKeySigner {
    let payer = PrivateKeySigner::random();
    mint(token, payer.address()).await;
    payer
}

async fn mint(token: &Token, to: Address) {
    let minted = token.mint(to, U256::from(5000)).send().await.unwrap().get_receipt().await.unwrap();
    assert!(minted.status());
}

async fn settle(token: &Token, a: &TransferWithAuthorization, signature: &Signature) -> TransactionReceipt {
    // With a gas limit given, nothing is simulated first: what fails, fails in a block.
    let call = token.transferWithAuthorization_0(
        a.from,
        a.to,
        a.value,
        a.validAfter,
        a.validBefore,
        a.nonce,
        bytes(signature),
    );
    call.gas(300_000).send().await.unwrap().get_receipt().await.unwrap()
}

/// The simulation reverts with `reason`, and so does the transaction; nothing moves.
async fn check_refused(token: &Token, a: &TransferWithAuthorization, signature: &Signature, reason: &str) {
    let before = token.balanceOf(a.from).call().await.unwrap();
    let call = token.transferWithAuthorization_0(
        a.from,
        a.to,
        a.value,
        a.validAfter,
        a.validBefore,
        a.nonce,
        bytes(signature),
    );
    let error = match call.call().await.map(|_| ()) {
        Err(alloy::contract::Error::TransportError(error)) => refusal::<()>(Err(error)),
        other => panic!("{reason} expected, found {other:?}"),
    };
    assert_eq!((error.code, error.message.as_ref()), (3, format!("execution reverted: {reason}").as_str()));

    let receipt = settle(token, a, signature).await;
    assert!(!receipt.status(), "{reason}");
    assert!(receipt.inner.logs().is_empty(), "{reason}");
    assert_eq!(token.balanceOf(a.from).call().await.unwrap(), before);
}

pub(crate) async fn an_authorization_moves_tokens_once(network: Network) {
    let token = network.token().await;
    let payer = payer(&token).await;
    let a = authorization(payer.address());
    assert!(!token.authorizationState(a.from, a.nonce).call().await.unwrap());

    let receipt = settle(&token, &a, &signed(&a, &payer)).await;
    assert!(receipt.status());
    let logs = receipt.inner.logs();
    let used = DemoUsd::AuthorizationUsed::decode_log(&logs[0].inner).unwrap();
    assert_eq!((used.authorizer, used.nonce), (a.from, a.nonce));
    let moved = DemoUsd::Transfer::decode_log(&logs[1].inner).unwrap();
    assert_eq!((moved.from, moved.to, moved.value), (a.from, a.to, a.value));
    assert_eq!(token.balanceOf(a.from).call().await.unwrap(), U256::from(4000));
    assert_eq!(token.balanceOf(a.to).call().await.unwrap(), U256::from(1000));
    assert!(token.authorizationState(a.from, a.nonce).call().await.unwrap());

    check_refused(&token, &a, &signed(&a, &payer), USED).await;
}

pub(crate) async fn an_authorization_with_v_r_s_is_as_good(network: Network) {
    let token = network.token().await;
    let payer = payer(&token).await;
    let a = authorization(payer.address());
    let signature = signed(&a, &payer);
    let (v, r, s) = (27 + u8::from(signature.v()), signature.r().into(), signature.s().into());
    let call = token.transferWithAuthorization_1(a.from, a.to, a.value, a.validAfter, a.validBefore, a.nonce, v, r, s);
    assert!(call.send().await.unwrap().get_receipt().await.unwrap().status());
    assert_eq!(token.balanceOf(a.to).call().await.unwrap(), U256::from(1000));
}

pub(crate) async fn an_authorization_outside_its_time_is_refused(network: Network) {
    let token = network.token().await;
    let payer = payer(&token).await;
    let mut early = authorization(payer.address());
    early.validAfter = U256::from(now_s() + 600);
    check_refused(&token, &early, &signed(&early, &payer), "FiatTokenV2: authorization is not yet valid").await;
    let mut late = authorization(payer.address());
    late.validBefore = U256::from(now_s() - 1);
    check_refused(&token, &late, &signed(&late, &payer), "FiatTokenV2: authorization is expired").await;
}

pub(crate) async fn an_authorization_by_another_key_or_over_another_amount_is_refused(network: Network) {
    let token = network.token().await;
    let payer = payer(&token).await;
    let a = authorization(payer.address());
    check_refused(&token, &a, &signed(&a, &PrivateKeySigner::random()), INVALID).await;
    let mut raised = authorization(payer.address());
    raised.value += U256::ONE;
    check_refused(&token, &raised, &signed(&a, &payer), INVALID).await;
}

pub(crate) async fn the_malleable_twin_of_a_signature_is_refused(network: Network) {
    let token = network.token().await;
    let payer = payer(&token).await;
    let a = authorization(payer.address());
    let signature = signed(&a, &payer);
    let order: U256 = "0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141".parse().unwrap();
    let twin = Signature::new(signature.r(), order - signature.s(), !signature.v());
    check_refused(&token, &a, &twin, "ECRecover: invalid signature 's' value").await;
}

pub(crate) async fn more_than_the_balance_cannot_be_moved(network: Network) {
    let token = network.token().await;
    let payer = payer(&token).await;
    let mut a = authorization(payer.address());
    a.value = U256::from(5001);
    check_refused(&token, &a, &signed(&a, &payer), "ERC20: transfer amount exceeds balance").await;
    assert!(!token.authorizationState(a.from, a.nonce).call().await.unwrap());
}

pub(crate) async fn only_the_payee_may_receive(network: Network) {
    let token = network.token().await;
    let payer = payer(&token).await;
    for to in [Address::repeat_byte(0x77), network.funded.address()] {
        let TransferWithAuthorization { from, value, validAfter, validBefore, nonce, .. } =
            authorization(payer.address());
        let a = ReceiveWithAuthorization { from, to, value, validAfter, validBefore, nonce };
        let signature = bytes(&signed(&a, &payer));
        let call = token.receiveWithAuthorization_0(from, to, value, validAfter, validBefore, nonce, signature);
        let receipt = call.gas(300_000).send().await.unwrap().get_receipt().await.unwrap();
        assert_eq!(receipt.status(), to == network.funded.address());
    }
}

pub(crate) async fn a_canceled_authorization_is_refused(network: Network) {
    let token = network.token().await;
    let payer = payer(&token).await;
    let a = authorization(payer.address());
    let cancel = CancelAuthorization { authorizer: a.from, nonce: a.nonce };
    let call = token.cancelAuthorization_1(a.from, a.nonce, bytes(&signed(&cancel, &payer)));
    let receipt = call.send().await.unwrap().get_receipt().await.unwrap();
    DemoUsd::AuthorizationCanceled::decode_log(&receipt.inner.logs()[0].inner).unwrap();
    check_refused(&token, &a, &signed(&a, &payer), USED).await;
}

pub(crate) async fn a_contract_wallet_pays_by_its_owners_signature(network: Network) {
    let token = network.token().await;
    let owner = PrivateKeySigner::random();
    let wallet = DemoWallet::deploy(network.provider.clone(), owner.address()).await.unwrap();
    mint(&token, *wallet.address()).await;
    let a = authorization(*wallet.address());
    check_refused(&token, &a, &signed(&a, &PrivateKeySigner::random()), INVALID).await;
    assert!(settle(&token, &a, &signed(&a, &owner)).await.status());
    assert_eq!(token.balanceOf(a.to).call().await.unwrap(), a.value);
}

pub(crate) async fn logs_are_found_by_address_topic_and_block(network: Network) {
    let token = network.token().await;
    let payer = payer(&token).await;
    let a = authorization(payer.address());
    let receipt = settle(&token, &a, &signed(&a, &payer)).await;
    let find = async |filter: Filter| network.provider.get_logs(&filter).await.unwrap();
    let expected = receipt.inner.logs();

    assert_eq!(find(Filter::new().address(TOKEN).at_block_hash(receipt.block_hash.unwrap())).await, expected);
    let used = Filter::new().event_signature(DemoUsd::AuthorizationUsed::SIGNATURE_HASH).from_block(0);
    assert_eq!(find(used.clone().topic2(a.nonce)).await, expected[..1]);
    assert_eq!(find(used.topic2(B256::repeat_byte(1))).await, []);
    let transfers = Filter::new().event_signature(DemoUsd::Transfer::SIGNATURE_HASH).from_block(0);
    assert_eq!(find(transfers.clone()).await.len(), 2, "the mint and the payment");
    assert_eq!(find(transfers.clone().topic1(a.from.into_word())).await, expected[1..]);
    assert_eq!(find(transfers.address(Address::repeat_byte(1))).await, []);
    let number = receipt.block_number.unwrap();
    assert_eq!(find(Filter::new().from_block(number).to_block(number)).await, expected);
    let unknown = Filter::new().at_block_hash(B256::repeat_byte(1));
    assert!(network.provider.get_logs(&unknown).await.unwrap_err().is_error_resp());
}

pub(crate) async fn the_token_says_what_a_facilitator_asks_for(network: Network) {
    let token = network.token().await;
    assert_eq!(token.name().call().await.unwrap(), "USDC");
    assert_eq!(token.symbol().call().await.unwrap(), "USDC");
    assert_eq!(token.version().call().await.unwrap(), "2");
    assert_eq!(token.decimals().call().await.unwrap(), 6);
    let domain = (
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
        keccak256("USDC"),
        keccak256("2"),
        U256::from(CHAIN_ID),
        TOKEN,
    );
    assert_eq!(token.DOMAIN_SEPARATOR().call().await.unwrap(), keccak256(domain.abi_encode()));
    let again = token.initialize("EVIL".into(), "EVIL".into(), "1".into(), 0);
    let receipt = again.gas(300_000).send().await.unwrap().get_receipt().await.unwrap();
    assert!(!receipt.status());
}
