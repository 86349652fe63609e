//! A payer with a wallet and an HTTP client and no library of ours: reads the `transfer` member of a 402 as JSON, and signs the
//! payment code by alloy's EIP-712. A second implementation of the page that specifies both.

use alloy::{
    primitives::{Address, B256, U256, address},
    signers::Signer,
    sol,
    sol_types::{Eip712Domain, SolStruct, eip712_domain},
};
use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};

use crate::{Account, now_s};

/// What is signed where the asset is the network's own coin.
const NATIVE: Address = address!("EeeeeEeeeEeEeeEeEeEeeEEEeeeeEeeeeeeeEEeE");
/// How long a code lives that nothing else is said of, seconds.
const CODE_LIVES_S: u64 = 300;

sol! {
    struct PaymentCode {
        string quote;
        string method;
        string resource;
        bytes32 transaction;
        address asset;
        address payer;
        address payTo;
        uint256 amount;
        uint256 expiresAt;
    }
}

/// The `transfer` member of a 402's body, and the path that it was asked for.
#[derive(Clone, Debug)]
pub struct Quoted {
    /// As it came.
    pub json: Value,
    /// Path and query.
    pub path: String,
}

/// A transfer's claim in the making: the code's members as JSON, to be signed, spoilt and sent.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The code.
    pub code: Map<String, Value>,
    /// What `X-Payment-Hash` says.
    pub announced: String,
    /// Path and query that it is sent to.
    pub path: String,
}

impl Quoted {
    /// The option to pay in what has this symbol.
    ///
    /// # Errors
    /// There is none.
    pub fn option(&self, symbol: &str) -> Result<Asked> {
        let options = self.json["options"].as_array().context("a bill without options")?;
        let option = options.iter().find(|option| option["symbol"] == symbol);
        Asked::read(option.with_context(|| format!("no option in {symbol}: {}", self.json))?)
    }

    /// A claim that `payer` has paid this option by `transaction`: nothing is signed yet.
    #[must_use]
    pub fn claim(&self, option: &Asked, transaction: B256, payer: Address) -> Claim {
        let code = json!({
            "version": 1,
            "quote": self.json["quote"],
            "network": option.json["network"],
            "asset": option.json["asset"],
            "transaction": transaction,
            "payer": payer.to_string(),
            "payTo": option.json["payTo"],
            "amount": option.json["amount"],
            "resource": self.json["resource"],
            "method": self.json["method"],
            "expiresAt": now_s() + CODE_LIVES_S,
        });
        let code = match code {
            Value::Object(code) => code,
            _ => Map::new(),
        };
        Claim { code, announced: transaction.to_string(), path: self.path.clone() }
    }
}

/// One option of a bill.
#[derive(Clone, Debug)]
pub struct Asked {
    /// As it came.
    pub json: Value,
    /// Whom to pay.
    pub pay_to: Address,
    /// Smallest units.
    pub units: u128,
}

impl Asked {
    fn read(json: &Value) -> Result<Self> {
        let pay_to = json["payTo"].as_str().context("an option without payTo")?.parse()?;
        let units = json["amount"].as_str().context("an option without amount")?.parse()?;
        Ok(Self { json: json.clone(), pay_to, units })
    }
}

impl Claim {
    /// With another value of one member: before it is signed, for a lie that is signed for; after it, for one that is not.
    #[must_use]
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.code.insert(member.to_owned(), value.into());
        self
    }

    /// Without one member.
    #[must_use]
    pub fn without(mut self, member: &str) -> Self {
        self.code.remove(member);
        self
    }

    /// Sent to another path.
    #[must_use]
    pub fn to(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// Signed by `signer` as it stands.
    ///
    /// # Errors
    /// A member is not what can be signed.
    pub async fn signed(self, signer: &Account) -> Result<Self> {
        let signature = self.signature(signer).await?;
        Ok(self.with("signature", signature))
    }

    /// The signature of `signer` under it as it stands: 65 bytes in hex.
    ///
    /// # Errors
    /// A member is not what can be signed.
    pub async fn signature(&self, signer: &Account) -> Result<String> {
        let signature = signer.signer().sign_hash(&self.digest()?).await?;
        Ok(format!("0x{}", hex::encode(signature.as_bytes())))
    }

    fn digest(&self) -> Result<B256> {
        let chain_id: u64 = self.text("network")?.strip_prefix("eip155:").context("an EVM network")?.parse()?;
        let asset = match self.text("asset")? {
            "native" => NATIVE,
            token => token.parse()?,
        };
        let message = PaymentCode {
            quote: self.text("quote")?.into(),
            method: self.text("method")?.into(),
            resource: self.text("resource")?.into(),
            transaction: self.text("transaction")?.parse()?,
            asset,
            payer: self.text("payer")?.parse()?,
            payTo: self.text("payTo")?.parse()?,
            amount: self.text("amount")?.parse::<U256>()?,
            expiresAt: U256::from(self.code["expiresAt"].as_u64().context("expiresAt")?),
        };
        let domain: Eip712Domain = eip712_domain! { name: "Farebox Payment Code", version: "1", chain_id: chain_id, };
        Ok(message.eip712_signing_hash(&domain))
    }

    fn text(&self, member: &str) -> Result<&str> {
        self.code.get(member).and_then(Value::as_str).with_context(|| format!("no text {member}"))
    }

    /// `X-Payment-Code` as it stands.
    #[must_use]
    pub fn encoded(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(Value::Object(self.code.clone()).to_string())
    }
}
