//! Exact money. There is no float here, no silent rounding and no arithmetic that can wrap.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{AssetId, Untrusted};

/// A non-negative decimal number, exact: at most 30 digits in all, of which at most 18 after the point.
///
/// Parses `[0-9]+(\.[0-9]+)?` and nothing else: no sign, exponent, separator or bare point.
#[derive(Clone, Copy, Debug)]
pub struct Decimal {
    mantissa: u128,
    scale: u8,
}

/// Why a text is no [`Decimal`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "expected a plain decimal number such as 0.01, with at most 30 digits and 18 of them after the point, found {found}"
)]
pub struct DecimalError {
    /// What was found instead.
    pub found: Untrusted,
}

/// Why a [`Decimal`] has no whole number of an asset's smallest units.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ToUnitsError {
    /// It lies between two units. Rounding is never done here: a caller decides who gains.
    #[error("{value} is not a whole number of units with {decimals} decimals; the smallest step is {smallest}")]
    NotExact {
        /// The number.
        value: Decimal,
        /// The asset's decimals.
        decimals: u8,
        /// One unit, as a decimal.
        smallest: Decimal,
    },
    /// It is more than 2^128 - 1 units.
    #[error("{value} with {decimals} decimals is more than 2^128 units")]
    TooLarge {
        /// The number.
        value: Decimal,
        /// The asset's decimals.
        decimals: u8,
    },
}

const SCALE_MAX: usize = 18;
const DIGITS_MAX: usize = 30;

impl Decimal {
    /// `units` of an asset with `decimals` decimals, as a decimal number. `decimals` above 38 reads as 38, which no token has.
    #[must_use]
    pub const fn from_units(units: u128, decimals: u8) -> Self {
        Self { mantissa: units, scale: if decimals > 38 { 38 } else { decimals } }.trimmed()
    }

    /// The exact count of smallest units of an asset with `decimals` decimals.
    ///
    /// # Errors
    /// [`ToUnitsError::NotExact`] rather than a rounded figure, [`ToUnitsError::TooLarge`] rather than a wrapped one.
    pub fn to_units(self, decimals: u8) -> Result<u128, ToUnitsError> {
        let value = self.trimmed();
        let Some(shift) = decimals.checked_sub(value.scale) else {
            return Err(ToUnitsError::NotExact { value, decimals, smallest: Self::from_units(1, decimals) });
        };
        10u128
            .checked_pow(u32::from(shift))
            .and_then(|factor| value.mantissa.checked_mul(factor))
            .ok_or(ToUnitsError::TooLarge { value, decimals })
    }

    /// True for 0, 0.0 and so on.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.mantissa == 0
    }

    /// Without trailing zeros after the point.
    const fn trimmed(mut self) -> Self {
        while self.scale > 0 && self.mantissa.is_multiple_of(10) {
            self.mantissa /= 10;
            self.scale -= 1;
        }
        self
    }
}

impl PartialEq for Decimal {
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (self.trimmed(), other.trimmed());
        (a.mantissa, a.scale) == (b.mantissa, b.scale)
    }
}

impl Eq for Decimal {}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        // Whole part, then the fraction at the widest scale there is, which fits.
        let parts = |decimal: &Self| {
            let one = 10u128.saturating_pow(u32::from(decimal.scale));
            let widen = 10u128.saturating_pow(u32::from(38 - decimal.scale.min(38)));
            (decimal.mantissa / one, (decimal.mantissa % one) * widen)
        };
        parts(self).cmp(&parts(other))
    }
}

impl FromStr for Decimal {
    type Err = DecimalError;

    fn from_str(text: &str) -> Result<Self, DecimalError> {
        let wrong = || DecimalError { found: Untrusted::new(text) };
        let (whole, fraction) = match text.split_once('.') {
            Some((_, "")) => return Err(wrong()),
            Some(parts) => parts,
            None => (text, ""),
        };
        let digits_ok = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !digits_ok(whole) || !digits_ok(fraction) {
            return Err(wrong());
        }
        if fraction.len() > SCALE_MAX || whole.len() + fraction.len() > DIGITS_MAX {
            return Err(wrong());
        }
        let mantissa = format!("{whole}{fraction}").parse().map_err(|_| wrong())?;
        Ok(Self { mantissa, scale: u8::try_from(fraction.len()).map_err(|_| wrong())? })
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mantissa, scale } = self.trimmed();
        let scale = usize::from(scale);
        let digits = format!("{mantissa:0>width$}", width = scale + 1);
        let (whole, fraction) = digits.split_at(digits.len() - scale);
        if fraction.is_empty() { f.write_str(whole) } else { write!(f, "{whole}.{fraction}") }
    }
}

/// A price as a seller writes it: `$0.01`, to be charged in any dollar token that the route accepts, or `0.01 USDC`, in that
/// token alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Price {
    /// US dollars.
    Usd(Decimal),
    /// A number of whole tokens (not smallest units) of the asset with this symbol.
    Token {
        /// How many.
        amount: Decimal,
        /// Of what, such as `USDC`; 1 to 16 of `[A-Za-z0-9.]`.
        symbol: String,
    },
}

/// Why a text is no [`Price`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PriceError {
    /// Neither form.
    #[error("expected a price such as \"$0.01\" or \"0.01 USDC\", found {found}")]
    Form {
        /// What was found instead.
        found: Untrusted,
    },
    /// Free is said in words (`free = true`), never by a price that a slip of the finger can produce.
    #[error("a price of zero is not a price; a route is free only if it says so")]
    Zero,
}

impl FromStr for Price {
    type Err = PriceError;

    fn from_str(text: &str) -> Result<Self, PriceError> {
        let wrong = || PriceError::Form { found: Untrusted::new(text) };
        let (amount, price): (Decimal, fn(Decimal, &str) -> Self) = match text.strip_prefix('$') {
            Some(rest) => (rest.parse().map_err(|_| wrong())?, |usd, _| Self::Usd(usd)),
            None => {
                let (amount, symbol) = text.split_once(' ').ok_or_else(wrong)?;
                let symbol_ok =
                    (1..=16).contains(&symbol.len()) && symbol.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
                if !symbol_ok {
                    return Err(wrong());
                }
                (amount.parse().map_err(|_| wrong())?, |amount, text| Self::Token {
                    amount,
                    symbol: text.split_once(' ').map_or_else(String::new, |(_, symbol)| symbol.to_owned()),
                })
            }
        };
        if amount.is_zero() { Err(PriceError::Zero) } else { Ok(price(amount, text)) }
    }
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usd(usd) => write!(f, "${usd}"),
            Self::Token { amount, symbol } => write!(f, "{amount} {symbol}"),
        }
    }
}

/// A count of an asset's smallest units.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Amount {
    /// Smallest units (for USDC: millionths), 0 to 2^128 - 1. The limit is ours; EVM amounts above it are refused as malformed.
    #[serde(with = "decimal_string")]
    pub units: u128,
    /// Of what.
    pub asset: AssetId,
}

/// Why two amounts have no sum or difference.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AmountError {
    /// They are of different assets.
    #[error("cannot combine amounts of {left} and {right}")]
    Assets {
        /// The first.
        left: AssetId,
        /// The second.
        right: AssetId,
    },
    /// The result would not fit 128 bits, or would be negative.
    #[error("the result is out of range")]
    Range,
}

impl Amount {
    /// # Errors
    /// Different assets, or a sum of 2^128 or more.
    pub fn checked_add(&self, other: &Self) -> Result<Self, AmountError> {
        self.combine(other, u128::checked_add)
    }

    /// # Errors
    /// Different assets, or `other` larger than this.
    pub fn checked_sub(&self, other: &Self) -> Result<Self, AmountError> {
        self.combine(other, u128::checked_sub)
    }

    fn combine(&self, other: &Self, op: fn(u128, u128) -> Option<u128>) -> Result<Self, AmountError> {
        if self.asset != other.asset {
            return Err(AmountError::Assets { left: self.asset.clone(), right: other.asset.clone() });
        }
        let units = op(self.units, other.units).ok_or(AmountError::Range)?;
        Ok(Self { units, asset: self.asset.clone() })
    }
}

/// Amounts travel and rest as decimal strings: JSON numbers and SQLite integers end before 2^128.
pub(crate) mod decimal_string {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(units: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(units)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(D::Error::custom("expected a decimal string of digits"));
        }
        text.parse().map_err(|_| D::Error::custom("expected fewer than 2^128 units"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, decimals: u8, expected: Result<u128, &str>) {
        let found = text
            .parse::<Decimal>()
            .map_err(|e| e.to_string())
            .and_then(|d| d.to_units(decimals).map_err(|e| e.to_string()));
        match expected {
            Ok(units) => assert_eq!(found, Ok(units), "{text}"),
            Err(part) => assert!(found.as_ref().is_err_and(|e| e.contains(part)), "{text}: {found:?}"),
        }
    }

    #[test]
    fn decimals_become_exact_units_or_an_error() {
        check("0.01", 6, Ok(10_000));
        check("0.010000000", 6, Ok(10_000));
        check("10000", 6, Ok(10_000_000_000));
        check("0.0000001", 6, Err("smallest step is 0.000001"));
        check("999999999999999999999999999999", 18, Err("2^128"));
        for wrong in ["", ".5", "5.", "-1", "+1", "1e3", "1_000", "1,5", "0x1", " 1", "1.2.3", "١"] {
            check(wrong, 6, Err("plain decimal"));
        }
    }

    #[test]
    fn prices_read_dollars_or_tokens() {
        assert_eq!("$0.01".parse(), Ok(Price::Usd("0.01".parse().unwrap())));
        assert_eq!("2.5 EURC".parse::<Price>().unwrap().to_string(), "2.5 EURC");
        assert_eq!("$0".parse::<Price>(), Err(PriceError::Zero));
        for wrong in ["0.01", "$", "$ 1", "USDC 1", "1  USDC", "1 US DC", "€1", "$-1"] {
            assert!(wrong.parse::<Price>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn units_survive_the_way_through_a_decimal(units: u128, decimals in 0u8..=38) {
            prop_assert_eq!(Decimal::from_units(units, decimals).to_units(decimals), Ok(units));
        }

        #[test]
        fn printing_and_parsing_agree(units in 0u128..10u128.pow(29), decimals in 0u8..=18) {
            let decimal = Decimal::from_units(units, decimals);
            prop_assert_eq!(decimal.to_string().parse::<Decimal>().unwrap(), decimal);
        }

        #[test]
        fn order_is_that_of_the_units(a in 0u128..10u128.pow(20), b in 0u128..10u128.pow(20), decimals in 0u8..=18) {
            prop_assert_eq!(Decimal::from_units(a, decimals).cmp(&Decimal::from_units(b, decimals)), a.cmp(&b));
        }

        #[test]
        fn order_agrees_with_equality(a: u128, b: u128, x in 0u8..=38, y in 0u8..=38) {
            let (a, b) = (Decimal::from_units(a, x), Decimal::from_units(b, y));
            prop_assert_eq!(a.cmp(&b) == Ordering::Equal, a == b);
            prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
        }

        #[test]
        fn parsing_never_panics(text in "\\PC*") {
            let _ = text.parse::<Decimal>();
            let _ = text.parse::<Price>();
        }

        #[test]
        fn what_is_added_can_be_taken_away(a: u128, b: u128) {
            let asset: AssetId = "eip155:1/slip44:60".parse().unwrap();
            let (a, b) = (Amount { units: a, asset: asset.clone() }, Amount { units: b, asset });
            match a.checked_add(&b) {
                Ok(sum) => prop_assert_eq!(sum.checked_sub(&b), Ok(a)),
                Err(error) => prop_assert_eq!((error, a.units.checked_add(b.units)), (AmountError::Range, None)),
            }
        }
    }
}
