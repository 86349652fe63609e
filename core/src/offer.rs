//! What we ask for: offers, and the challenge that carries them.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{Amount, Network, Refusal};

/// Which rail an offer, credential or payment belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RailName {
    /// x402.
    X402,
}

impl RailName {
    /// As config, books and logs spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::X402 => "x402",
        }
    }
}

impl fmt::Display for RailName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One way to pay one price: so much, of this asset, to this account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The rail that takes it.
    pub rail: RailName,
    /// x402's scheme, such as `exact`.
    pub scheme: Arc<str>,
    /// How much of what. The asset names the network too.
    pub amount: Amount,
    /// The asset as the wire writes it: for ERC-20 the EIP-55 address.
    pub asset_on_wire: Arc<str>,
    /// The recipient as the wire writes it: for EVM the EIP-55 address.
    pub pay_to: Arc<str>,
    /// How long the payer has, seconds, 1 or more.
    pub max_timeout_s: u64,
    /// Scheme data, a JSON object: for EIP-3009 {name, version} of the token's EIP-712 domain, read from the chain.
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Offer {
    /// The network it is paid on.
    #[must_use]
    pub const fn network(&self) -> &Network {
        self.amount.asset.network()
    }
}

/// Who paid: a CAIP-10 account such as `eip155:8453:0xAb16a96D359eC26a11e2C2b3d8f8B8942d5Bfcdb` (EIP-55 on EVM).
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Payer(Arc<str>);

impl Payer {
    /// The account `address` on `network`.
    #[must_use]
    pub fn new(network: &Network, address: &str) -> Self {
        Self(format!("{network}:{address}").into())
    }

    /// The CAIP-10 name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address alone, without its network.
    #[must_use]
    pub fn address(&self) -> &str {
        self.0.rsplit_once(':').map_or(&*self.0, |(_, address)| address)
    }
}

impl fmt::Display for Payer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Payer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is for sale, as the bill names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Absolute public URL with path and query, no fragment.
    pub url: String,
    /// For people; may be empty.
    pub description: Arc<str>,
    /// The answer's media type if the seller said; may be empty.
    pub mime_type: Arc<str>,
}

/// The answer to an unpaid request: every way to pay, and why we ask (again).
#[derive(Clone, Debug)]
pub struct Challenge {
    /// What is for sale.
    pub resource: Resource,
    /// Every way to pay, in the seller's order of preference; never empty.
    pub offers: Arc<[Offer]>,
    /// Why: `payment_required`, or what was wrong with the credential that came.
    pub refusal: Refusal,
}
