//! A payer whose credentials have the right form and a signature that only a [`crate::ScriptedRail`] believes.

use std::{sync::Arc, time::Duration};

use farebox_core::{
    AcceptedTerms, Amount, AssetId, Binding, CallerId, Claim, Credential, EchoedRequirement, EvmAddress, InstanceId,
    Network, Offer, Payer, PaymentId, ProofId, RailName, RouteId, Timestamp, TransferAuthorization, X402Credential,
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
        Credential::X402(X402Credential::new(X402Version::V2, accepted, authorization, vec![self.0; 65]))
    }
}

/// What `credential` consumes if it pays in `asset`, spelled as the EVM rail spells it.
#[must_use]
pub fn proof_of(credential: &Credential, asset: &AssetId) -> ProofId {
    let Credential::X402(x402) = credential;
    let token = asset.erc20_address().unwrap_or(EvmAddress([0; 20]));
    let nonce: String = x402.authorization.nonce.iter().map(|b| format!("{b:02x}")).collect();
    ProofId::new(format!("eip3009:{}:{token:x}:{:x}:0x{nonce}", asset.network(), x402.authorization.from))
}

/// The claim of payment `number`, of 0.01 USDC, held for 30 s. The same number makes the same proof and id.
#[must_use]
pub fn test_claim(number: u64, holder: InstanceId, now: Timestamp) -> Claim {
    let offer = Offer {
        rail: RailName::X402,
        scheme: "exact".into(),
        amount: Amount { units: 10_000, asset: test_asset() },
        asset_on_wire: "0x5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c".into(),
        pay_to: crate::ScriptedRail::PAY_TO.into(),
        max_timeout_s: 60,
        extra: serde_json::Map::from_iter([("name".to_owned(), "USDC".into()), ("version".to_owned(), "2".into())]),
    };
    let payer = TestPayer(1);
    let valid_until = now.plus(Duration::from_secs(60));
    let credential = payer.pay(&offer, number, valid_until);
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.to_be_bytes());
    Claim {
        id: PaymentId::new(now, random),
        proof: proof_of(&credential, &test_asset()),
        credential: Arc::new(credential),
        rail: RailName::X402,
        binding: Binding {
            route: RouteId::new("route"),
            method: "GET".into(),
            resource: "/v1/x".into(),
            caller: CallerId::from_key(b"k"),
        },
        payer: payer.account(&test_network()),
        amount: offer.amount,
        pay_to: offer.pay_to,
        valid_until,
        holder,
        lease: Duration::from_secs(30),
        now,
    }
}
