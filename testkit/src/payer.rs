//! A payer whose credentials have the right form and a signature that only a [`crate::ScriptedRail`] believes.

use std::{sync::Arc, time::Duration};

use farebox_core::{
    AcceptedTerms, Amount, Arrived, ArrivedFor, AssetId, Binding, BlockRef, CallerId, Claim, Credential,
    EchoedRequirement, EvmAddress, Finality, InstanceId, Network, Offer, Payer, PaymentCode, PaymentId, ProofId,
    RailName, RequestId, RouteId, Timestamp, TransactionId, TransferAuthorization, TransferCredential, X402Credential,
    X402Version,
};

/// Decimals of [`test_asset`].
pub const TEST_ASSET_DECIMALS: u8 = 6;

/// The network that scripted offers are on.
#[must_use]
pub fn test_network() -> Network {
    Network::evm(84532)
}

/// The token that scripted offers are in: a dollar token with the symbol `USDC`.
#[must_use]
pub fn test_asset() -> AssetId {
    AssetId::erc20(test_network(), EvmAddress([0x5c; 20]))
}

/// Somebody who pays, by the last byte of his address.
#[derive(Clone, Copy, Debug)]
pub struct TestPayer(pub u8);

impl TestPayer {
    /// His address.
    #[must_use]
    pub const fn address(self) -> EvmAddress {
        let mut bytes = [0xaa; 20];
        bytes[19] = self.0;
        EvmAddress(bytes)
    }

    /// His account on `network`.
    #[must_use]
    pub fn account(self, network: &Network) -> Payer {
        Payer::new(network, &format!("{:x}", self.address()))
    }

    /// A credential that meets `offer`, valid until `valid_until`; `nonce` tells two of them apart.
    #[must_use]
    pub fn pay(self, offer: &Offer, nonce: u64, valid_until: Timestamp) -> Credential {
        let mut wide = [0; 32];
        wide[24..].copy_from_slice(&nonce.to_be_bytes());
        let authorization = TransferAuthorization {
            from: self.address(),
            to: offer.pay_to.parse().unwrap_or(EvmAddress([0; 20])),
            value: offer.amount.units,
            valid_after: 0,
            valid_before: valid_until.unix_s(),
            nonce: wide,
        };
        let accepted = AcceptedTerms {
            scheme: offer.scheme.clone(),
            network: offer.network().clone(),
            requirement: Some(EchoedRequirement {
                amount: offer.amount.units.to_string().into(),
                asset: offer.asset_on_wire.clone(),
                pay_to: offer.pay_to.clone(),
                max_timeout_s: offer.max_timeout_s,
                extra: serde_json::Value::Object(offer.extra.clone()),
            }),
        };
        Credential::X402(X402Credential::new(X402Version::V2, accepted, authorization, self.signature()))
    }

    /// A code that claims the transfer which he made in `transaction` for `purchase`.
    #[must_use]
    pub fn claim_transfer(self, offer: &Offer, transaction: [u8; 32], purchase: Purchase<'_>) -> Credential {
        let code = PaymentCode {
            quote: purchase.quote.into(),
            asset: offer.amount.asset.clone(),
            transaction,
            payer: self.address(),
            pay_to: offer.pay_to.parse().unwrap_or(EvmAddress([0; 20])),
            amount: offer.amount.units,
            resource: purchase.url.into(),
            method: purchase.method.into(),
            expires_at: purchase.code_expires_at.unix_s(),
            signature: self.signature(),
        };
        Credential::Transfer(TransferCredential::new(code, transaction))
    }

    /// What he signs everything with.
    pub(crate) fn signature(self) -> Vec<u8> {
        vec![self.0; 65]
    }
}

/// What a transfer is claimed for.
#[derive(Clone, Copy, Debug)]
pub struct Purchase<'a> {
    /// The bill's quote.
    pub quote: &'a str,
    /// The request's method.
    pub method: &'a str,
    /// The request's public URL.
    pub url: &'a str,
    /// When the code ends.
    pub code_expires_at: Timestamp,
}

/// What an x402 `credential` consumes if it pays in `asset`, spelled as the EVM rail spells it.
///
/// # Panics
/// If it is another rail's.
#[must_use]
pub fn proof_of(credential: &Credential, asset: &AssetId) -> ProofId {
    let Credential::X402(x402) = credential else { panic!("only x402 credentials consume by themselves") };
    let token = asset.erc20_address().unwrap_or(EvmAddress([0; 20]));
    let nonce: String = x402.authorization.nonce.iter().map(|b| format!("{b:02x}")).collect();
    ProofId::new(format!("eip3009:{}:{token:x}:{:x}:0x{nonce}", asset.network(), x402.authorization.from))
}

/// A transaction by its 32 bytes, spelled as the EVM rail spells it.
#[must_use]
pub fn transaction_of(hash: &[u8; 32]) -> TransactionId {
    let digits: String = hash.iter().map(|b| format!("{b:02x}")).collect();
    TransactionId::new(format!("0x{digits}"))
}

/// The hash of test transfer `number`.
#[must_use]
pub fn test_hash(number: u64) -> [u8; 32] {
    let mut hash = [0xdd; 32];
    hash[24..].copy_from_slice(&number.to_be_bytes());
    hash
}

/// One way to pay 0.01 USDC over `rail`.
#[must_use]
pub fn test_offer(rail: RailName) -> Offer {
    let (scheme, extra) = match rail {
        RailName::X402 => ("exact", serde_json::json!({ "name": "USDC", "version": "2" })),
        RailName::Transfer => ("transfer", serde_json::json!({ "symbol": "USDC", "decimals": TEST_ASSET_DECIMALS })),
        RailName::L402 => ("l402", serde_json::json!({ "symbol": "sat", "decimals": 3 })),
    };
    Offer {
        rail,
        scheme: scheme.into(),
        amount: Amount { units: 10_000, asset: test_asset() },
        asset_on_wire: "0x5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c".into(),
        pay_to: crate::ScriptedRail::PAY_TO.into(),
        max_timeout_s: 60,
        extra: extra.as_object().cloned().unwrap_or_default(),
        finality: Finality::default(),
        network_fee: None,
    }
}

/// The claim of payment `number`, of 0.01 USDC, held for 30 s. The same number makes the same proof and id.
#[must_use]
pub fn test_claim(number: u64, holder: InstanceId, now: Timestamp) -> Claim {
    let credential = TestPayer(1).pay(&test_offer(RailName::X402), number, now.plus(Duration::from_secs(60)));
    claim(number, proof_of(&credential, &test_asset()), credential, holder, now)
}

/// The claim of transfer `number`, by which `units` came for a price of 0.01 USDC. The same number makes the same proof and id.
#[must_use]
pub fn test_transfer_claim(number: u64, units: u128, purpose: ArrivedFor, holder: InstanceId, now: Timestamp) -> Claim {
    let purchase = Purchase {
        quote: "quote",
        method: "GET",
        url: "https://api.example.com/v1/x",
        code_expires_at: now.plus(Duration::from_secs(60)),
    };
    let hash = test_hash(number);
    let credential = TestPayer(1).claim_transfer(&test_offer(RailName::Transfer), hash, purchase);
    let transaction = transaction_of(&hash);
    let block = BlockRef { number, hash: test_hash(number) };
    let proof = ProofId::transfer(&test_network(), &transaction, Some(0));
    let arrived = Some(Arrived { transaction, block, units, purpose });
    Claim { arrived, ..claim(number, proof, credential, holder, now) }
}

fn claim(number: u64, proof: ProofId, credential: Credential, holder: InstanceId, now: Timestamp) -> Claim {
    let rail = credential.rail();
    let offer = test_offer(rail);
    let payer = TestPayer(1).account(&test_network());
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.to_be_bytes());
    Claim {
        id: PaymentId::new(now, random),
        proof,
        credential: Arc::new(credential),
        rail,
        binding: Binding {
            route: RouteId::new("route"),
            method: "GET".into(),
            resource: "/v1/x".into(),
            caller: match rail {
                RailName::X402 => CallerId::from_key(b"k"),
                RailName::Transfer | RailName::L402 => CallerId::from_payer(&payer),
            },
        },
        payer,
        amount: offer.amount,
        pay_to: offer.pay_to,
        valid_until: now.plus(Duration::from_secs(60)),
        finality: offer.finality,
        arrived: None,
        request: test_request(number),
        holder,
        lease: Duration::from_secs(30),
        now,
    }
}

/// The id of request `number`.
#[must_use]
pub fn test_request(number: u64) -> RequestId {
    RequestId::new(format!("req_{number:026}"))
}
