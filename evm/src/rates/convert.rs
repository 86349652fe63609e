//! Dollars and gas in a coin's smallest units. Every division rounds up, by less than one unit, and the seller gains it: a price
//! rounded down would be underpaid.

use alloy::primitives::U512;
use farebox_core::Decimal;

/// Decimals that rates and dollars are compared with.
const SCALE: u8 = 18;

/// The units of a coin with `decimals` decimals, worth `rate` dollars a whole, that are worth `dollars`. Rounded up. `None` if that is
/// 2^128 units or more, or the rate is zero or has more than 18 digits after the point.
pub(crate) fn units_for(dollars: Decimal, rate: Decimal, decimals: u8) -> Option<u128> {
    let (dollars, rate) = (dollars.to_units(SCALE).ok()?, rate.to_units(SCALE).ok()?);
    divided(U512::from(dollars) * power(decimals)?, U512::from(rate))
}

/// The units of a coin that are worth `wei` of a native coin; each coin at its rate in dollars. Rounded up, `None` as above.
pub(crate) fn fee_units(wei: u128, native: Decimal, rate: Decimal, decimals: u8) -> Option<u128> {
    let (native, rate) = (native.to_units(SCALE).ok()?, rate.to_units(SCALE).ok()?);
    let dollars = U512::from(wei) * U512::from(native);
    divided(dollars * power(decimals)?, U512::from(rate) * power(18)?)
}

/// What so many units of a coin worth `rate` dollars a whole are worth, dollars, rounded up: what depends on it is caution.
pub(crate) fn worth(units: u128, rate: Decimal, decimals: u8) -> Option<Decimal> {
    let rate = rate.to_units(SCALE).ok()?;
    let dollars = divided(U512::from(units) * U512::from(rate), power(decimals)?)?;
    Some(Decimal::from_units(dollars, SCALE))
}

fn power(decimals: u8) -> Option<U512> {
    // No coin has more than 38 decimals, and 128 bits times 128 bits times 10^38 fit.
    (decimals <= 38).then(|| U512::from(10).pow(U512::from(decimals)))
}

fn divided(whole: U512, by: U512) -> Option<u128> {
    if by.is_zero() { None } else { u128::try_from(whole.div_ceil(by)).ok() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decimal(text: &str) -> Decimal {
        text.parse().unwrap()
    }

    #[test]
    fn dollars_become_units_rounded_up() {
        let check = |dollars, rate, decimals, expected| {
            assert_eq!(units_for(decimal(dollars), decimal(rate), decimals), expected, "{dollars} at {rate}");
        };
        check("0.01", "1", 6, Some(10_000));
        check("3000", "3000", 18, Some(10u128.pow(18)));
        check("0.01", "3", 18, Some(3_333_333_333_333_334));
        check("0.0000001", "1", 6, Some(1));
        check("0", "1", 6, Some(0));
        check("1", "0", 6, None);
        check("100000000000", "0.000000000000000001", 18, None);
    }

    #[test]
    fn gas_becomes_units_rounded_up() {
        // 104,000 gas at 0.01 gwei, 3,000 dollars an ether: 0.00312 dollars.
        let wei = 104_000 * 10_000_000;
        assert_eq!(fee_units(wei, decimal("3000"), decimal("1"), 6), Some(3_120));
        assert_eq!(fee_units(1, decimal("3000"), decimal("1"), 6), Some(1));
        assert_eq!(fee_units(0, decimal("3000"), decimal("1"), 6), Some(0));
        assert_eq!(fee_units(wei, decimal("3000"), decimal("3000"), 18), Some(wei));
        assert_eq!(fee_units(u128::MAX, decimal("3000"), decimal("0.000001"), 18), None);
    }

    #[test]
    fn what_is_held_is_worth_its_rate() {
        assert_eq!(worth(10u128.pow(18), decimal("3000.5"), 18), Some(decimal("3000.5")));
        assert_eq!(worth(1, decimal("3000"), 18), Some(decimal("0.000000000000003")));
        assert_eq!(worth(1, decimal("0.000001"), 18), Some(decimal("0.000000000000000001")));
        assert_eq!(worth(u128::MAX, decimal("3000"), 0), None);
    }

    proptest! {
        #[test]
        fn what_is_charged_is_worth_the_price_and_less_than_a_unit_more(
            dollars in 1u128..10u128.pow(24), rate in 1u128..10u128.pow(24), decimals in 0u8..=18,
        ) {
            let (price, value) = (Decimal::from_units(dollars, 18), Decimal::from_units(rate, 18));
            let units = units_for(price, value, decimals).unwrap();
            let worth = |units: u128| U512::from(units) * U512::from(rate);
            let due = U512::from(dollars) * U512::from(10u128.pow(decimals.into()));
            prop_assert!(worth(units) >= due);
            prop_assert!(units == 0 || worth(units - 1) < due);
        }

        #[test]
        fn more_gas_never_costs_less(wei in 0u128..10u128.pow(24), more in 0u128..10u128.pow(20), native in 1u128..10u128.pow(24)) {
            let fee = |wei| fee_units(wei, Decimal::from_units(native, 18), Decimal::from_units(1, 0), 6).unwrap();
            prop_assert!(fee(wei + more) >= fee(wei));
        }
    }
}
