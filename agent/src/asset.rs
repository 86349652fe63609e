//! What is paid with, and what it is worth to the agent's owner: never what a seller says that it is worth.

use std::{fmt, sync::Arc};

use farebox_core::{AssetId, Decimal, EvmAddress, Network, Untrusted};
use serde::{Deserialize, Serialize};

/// The decimals in which [`Usd`] counts.
const USD_DECIMALS: u8 = 18;

/// US dollars, exact to 10^-18, below 2^128 * 10^-18.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Usd(u128);

impl Usd {
    pub(crate) const TEN_CENTS: Self = Self(100_000_000_000_000_000);

    /// # Errors
    /// More than 10^20 dollars.
    pub fn new(dollars: Decimal) -> Result<Self, farebox_core::ToUnitsError> {
        dollars.to_units(USD_DECIMALS).map(Self)
    }

    /// The sum, or the largest value there is: an overflow must read as too much, never as little.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${}", Decimal::from_units(self.0, USD_DECIMALS))
    }
}

impl fmt::Debug for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The decimals in which the worth of one whole token is kept.
const EACH_DECIMALS: u8 = 6;

/// The decimals in which a price of bitcoin is quoted: of msat in one bitcoin.
const BITCOIN_MSAT_DECIMALS: u8 = 11;
const SAT_DECIMALS: u8 = 3;

/// A token or coin and what one of it is worth in US dollars, as the agent's owner knows it. Of sats it may not be known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DollarAsset {
    id: AssetId,
    symbol: Arc<str>,
    decimals: u8,
    /// Millionths of a dollar for one whole token; 0: not known.
    #[serde(default = "one_dollar", skip_serializing_if = "is_one_dollar")]
    each_micros: u64,
    /// Of what that is the worth, if not of one whole token: sats are counted by the sat and quoted by the bitcoin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quoted_decimals: Option<u8>,
}

const fn one_dollar() -> u64 {
    1_000_000
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
const fn is_one_dollar(micros: &u64) -> bool {
    *micros == one_dollar()
}

/// Why there is no such [`DollarAsset`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DollarAssetError {
    /// More than 18 decimals.
    #[error("expected 0 to 18 decimals, found {found}")]
    Decimals {
        /// What was found instead.
        found: u8,
    },
    /// Not a symbol.
    #[error("expected a symbol of 1 to 16 letters, digits or points, found {found}")]
    Symbol {
        /// What was found instead.
        found: Untrusted,
    },
    /// Not a worth.
    #[error(
        "expected what one of it is worth: more than $0, with at most {EACH_DECIMALS} digits after the point, found {found}"
    )]
    Worth {
        /// What was found instead.
        found: Decimal,
    },
}

impl DollarAsset {
    /// A token that is worth one dollar.
    ///
    /// # Errors
    /// More than 18 decimals, or a symbol that is not 1 to 16 of `[A-Za-z0-9.]`.
    pub fn new(id: AssetId, symbol: &str, decimals: u8) -> Result<Self, DollarAssetError> {
        if decimals > USD_DECIMALS {
            return Err(DollarAssetError::Decimals { found: decimals });
        }
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'.';
        if !(1..=16).contains(&symbol.len()) || !symbol.bytes().all(fits) {
            return Err(DollarAssetError::Symbol { found: Untrusted::new(symbol) });
        }
        Ok(Self { id, symbol: symbol.into(), decimals, each_micros: one_dollar(), quoted_decimals: None })
    }

    /// The same, worth so many dollars each: for a coin, the most that its owner would say it is worth.
    ///
    /// # Errors
    /// No dollars, more than 6 digits after the point, or more than 10^12 dollars.
    pub fn worth_each(self, dollars: Decimal) -> Result<Self, DollarAssetError> {
        let micros = dollars.to_units(EACH_DECIMALS).ok().and_then(|micros| u64::try_from(micros).ok());
        match micros {
            Some(each_micros @ 1..=1_000_000_000_000_000_000) => Ok(Self { each_micros, ..self }),
            _ => Err(DollarAssetError::Worth { found: dollars }),
        }
    }

    /// Sats over Lightning on a network, of a worth that is not known: they can be paid within a limit in sats alone.
    #[must_use]
    pub fn sats(network: &Network) -> Self {
        let (id, symbol) = (AssetId::lightning(network), "sat".into());
        Self { id, symbol, decimals: SAT_DECIMALS, each_micros: 0, quoted_decimals: Some(BITCOIN_MSAT_DECIMALS) }
    }

    /// Which token.
    #[must_use]
    pub const fn id(&self) -> &AssetId {
        &self.id
    }

    /// Such as `USDC`.
    #[must_use]
    pub fn symbol(&self) -> &str {
        &self.symbol
    }

    /// Of one whole token.
    #[must_use]
    pub const fn decimals(&self) -> u8 {
        self.decimals
    }

    /// `units` as a number of whole tokens.
    #[must_use]
    pub const fn tokens(&self, units: u128) -> Decimal {
        Decimal::from_units(units, self.decimals)
    }

    /// The worth of `units`, rounded up; what does not fit is the most there is. `None`: not known.
    #[must_use]
    pub fn worth(&self, units: u128) -> Option<Usd> {
        let (micros, decimals) =
            (units.saturating_mul(self.each_micros.into()), self.quoted_decimals.unwrap_or(self.decimals));
        let shift = USD_DECIMALS - EACH_DECIMALS;
        let power = |exponent: u8| 10u128.saturating_pow(exponent.into());
        let worth = Usd(match shift.checked_sub(decimals) {
            Some(up) => micros.saturating_mul(power(up)),
            // A product that has saturated must not be made small again.
            None if micros == u128::MAX => micros,
            None => micros.div_ceil(power(decimals - shift)),
        });
        (self.each_micros > 0).then_some(worth)
    }
}

/// Circle's USDC where x402 is commonly paid: network and token. Source: Circle's list of USDC contract addresses. All have
/// 6 decimals.
const USDC: [(u64, [u8; 20]); 7] = [
    (1, address("A0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48")),
    (137, address("3c499c542cEF5E3811e1192ce70d8cC03d5c3359")),
    (8453, address("833589fCD6eDb6E08f4c7C32D4f71b54bdA02913")),
    (42161, address("af88d065e77c8cC2239327C5EDb3A432268e5831")),
    (43114, address("B97EF9Ef8734C71904D8002F8b6Bc66Dd9c48a6E")),
    (84532, address("036CbD53842c5426634e7929541eC2318f3dCF7e")),
    (421_614, address("75faf114eafb1BDbe2F0316DF893fd58CE46AA4d")),
];

/// The USDC of the networks on which x402 is commonly paid, test networks among them.
#[must_use]
pub fn well_known_assets() -> Vec<DollarAsset> {
    let usdc = |(chain, address)| DollarAsset {
        id: AssetId::erc20(Network::evm(chain), EvmAddress(address)),
        symbol: "USDC".into(),
        decimals: 6,
        each_micros: one_dollar(),
        quoted_decimals: None,
    };
    USDC.into_iter().map(usdc).collect()
}

const fn address(hex: &str) -> [u8; 20] {
    const fn digit(byte: u8) -> u8 {
        match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => panic!("not a hex digit"),
        }
    }
    let (text, mut bytes, mut i) = (hex.as_bytes(), [0; 20], 0);
    assert!(text.len() == 40, "an address has 40 digits");
    while i < 20 {
        bytes[i] = digit(text[2 * i]) << 4 | digit(text[2 * i + 1]);
        i += 1;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use farebox_core::BitcoinNetwork;

    use super::*;

    #[test]
    fn sats_are_counted_by_the_sat_and_worth_what_bitcoin_is() {
        let sats = DollarAsset::sats(&BitcoinNetwork::Bitcoin.network());
        assert_eq!((sats.tokens(10_500).to_string(), sats.worth(10_500)), ("10.5".to_owned(), None));
        let priced = sats.worth_each("60123.45".parse().unwrap()).unwrap();
        assert_eq!(priced.worth(10_000).unwrap().to_string(), "$0.006012345");
        assert_eq!(priced.worth(100_000_000_000).unwrap().to_string(), "$60123.45");
        let kept: DollarAsset = serde_json::from_str(&serde_json::to_string(&priced).unwrap()).unwrap();
        assert_eq!(kept, priced);
    }
}
