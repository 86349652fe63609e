//! What a price is in millisatoshis.
//!
//! `sat` and `msat` are charged exactly. Dollars are charged at the rate of `BTC`, rounded up to a whole satoshi: many wallets pay no less,
//! and the seller gains less than one.

use farebox_core::{
    Amount, BitcoinNetwork, Decimal, Offer, Price, RailName, ToUnitsError,
    ports::{BoxError, DollarRates, OfferError},
};

/// All the bitcoin that will ever be, millisatoshis.
const MSAT_MAX: u64 = 21_000_000 * SAT_PER_BTC as u64 * MSAT_PER_SAT;
const SAT_PER_BTC: u128 = 100_000_000;
const MSAT_PER_SAT: u64 = 1_000;
const MSAT_DECIMALS_OF_SAT: u8 = 3;
/// Decimals that rates and dollars are compared with.
const SCALE: u8 = 18;

/// The coin whose rate in dollars is asked for.
const BTC: &str = "BTC";
const SAT: &str = "sat";
const MSAT: &str = "msat";

/// As `Offer::scheme` and `Offer::asset_on_wire` name it.
const SCHEME: &str = "l402";
const ON_WIRE: &str = "lnbtc:msat";
/// Whom to pay stands in the invoice, which is made for each buyer.
const PAY_TO: &str = "invoice";

/// The one way to pay `price` by invoices that can be paid for `expiry_s` seconds.
pub(crate) fn offer(
    price: &Price,
    network: BitcoinNetwork,
    expiry_s: u64,
    rates: &dyn DollarRates,
) -> Result<Offer, OfferError> {
    let msat = msat(price, network, rates)?;
    Ok(Offer {
        rail: RailName::L402,
        scheme: SCHEME.into(),
        amount: Amount { units: u128::from(msat), asset: network.asset() },
        asset_on_wire: ON_WIRE.into(),
        pay_to: PAY_TO.into(),
        max_timeout_s: expiry_s,
        extra: [("symbol", SAT.into()), ("decimals", MSAT_DECIMALS_OF_SAT.into())]
            .map(|(key, value): (&str, serde_json::Value)| (key.to_owned(), value))
            .into_iter()
            .collect(),
        finality: farebox_core::Finality::default(),
        network_fee: None,
    })
}

fn msat(price: &Price, network: BitcoinNetwork, rates: &dyn DollarRates) -> Result<u64, OfferError> {
    let (amount, decimals) = match price {
        Price::Usd(dollars) => {
            let rate = rates.dollars(BTC).map_err(|source| no_rate(price, network, source))?;
            let sats = sats_worth(*dollars, rate).and_then(|sats| sats.checked_mul(MSAT_PER_SAT.into()));
            let msat = sats.and_then(|msat| u64::try_from(msat).ok()).filter(|msat| *msat <= MSAT_MAX);
            return msat.ok_or_else(|| no_rate(price, network, "the rate makes it more than there is".into()));
        }
        Price::Token { amount, symbol } if symbol == SAT => (*amount, MSAT_DECIMALS_OF_SAT),
        Price::Token { amount, symbol } if symbol == MSAT => (*amount, 0),
        Price::Token { .. } => return Err(OfferError::NoAsset { price: Box::new(price.clone()) }),
    };
    let units = amount.to_units(decimals).and_then(|units| match u64::try_from(units) {
        Ok(msat) if msat <= MSAT_MAX => Ok(msat),
        Ok(_) | Err(_) => Err(ToUnitsError::TooLarge { value: amount, decimals }),
    });
    units.map_err(|source| OfferError::NotExact {
        price: Box::new(price.clone()),
        symbol: SAT.to_owned(),
        network: network.network(),
        source: Box::new(source),
    })
}

/// The fewest whole satoshis that are worth `dollars` where a bitcoin is worth `rate`. `None` if that is too much to count, or the rate is
/// zero.
fn sats_worth(dollars: Decimal, rate: Decimal) -> Option<u128> {
    let (dollars, rate) = (dollars.to_units(SCALE).ok()?, rate.to_units(SCALE).ok()?);
    if rate == 0 { None } else { Some(dollars.checked_mul(SAT_PER_BTC)?.div_ceil(rate)) }
}

fn no_rate(price: &Price, network: BitcoinNetwork, source: BoxError) -> OfferError {
    OfferError::NoRate { price: Box::new(price.clone()), symbol: SAT.to_owned(), network: network.network(), source }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug)]
    struct Rate(Option<&'static str>);

    impl DollarRates for Rate {
        fn dollars(&self, symbol: &str) -> Result<Decimal, BoxError> {
            assert_eq!(symbol, "BTC");
            Ok(self.0.ok_or("no exchange answers")?.parse()?)
        }
    }

    #[track_caller]
    fn check(price: &str, rate: Option<&'static str>, expected: Result<u64, &str>) {
        let found = msat(&price.parse().unwrap(), BitcoinNetwork::Regtest, &Rate(rate));
        match (found, expected) {
            (found, Ok(msat)) => assert_eq!(found.unwrap(), msat, "{price}"),
            (found, Err(part)) => assert!(format!("{:?}", found.unwrap_err()).starts_with(part), "{price}"),
        }
    }

    #[test]
    fn satoshis_and_their_thousandths_are_exact() {
        check("10 sat", None, Ok(10_000));
        check("0.001 sat", None, Ok(1));
        check("1.5 sat", None, Ok(1_500));
        check("1 msat", None, Ok(1));
        check("0.0001 sat", None, Err("NotExact"));
        check("0.5 msat", None, Err("NotExact"));
        check("2100000000000000 sat", None, Ok(2_100_000_000_000_000_000));
        check("2100000000000000001 msat", None, Err("NotExact"));
        for other in ["1 BTC", "1 SAT", "1 sats", "1 USDC"] {
            check(other, None, Err("NoAsset"));
        }
    }

    #[test]
    fn dollars_are_rounded_up_to_a_whole_satoshi() {
        check("$1000", Some("100000"), Ok(1_000_000_000));
        check("$0.01", Some("100000"), Ok(10_000));
        check("$0.01", Some("60000"), Ok(17_000));
        check("$0.000000000000000001", Some("100000"), Ok(1_000));
        check("$1", None, Err("NoRate"));
        check("$1", Some("0"), Err("NoRate"));
        check("$999999999999", Some("0.000001"), Err("NoRate"));
        check("$999999999999999999999999999999", Some("100000"), Err("NoRate"));
    }

    #[test]
    fn an_offer_counts_in_satoshis_with_three_decimals() {
        let offer = offer(&"2 sat".parse().unwrap(), BitcoinNetwork::Regtest, 600, &Rate(None)).unwrap();
        assert_eq!((offer.rail, offer.amount.units, offer.max_timeout_s), (RailName::L402, 2_000, 600));
        assert_eq!(offer.amount.asset, BitcoinNetwork::Regtest.asset());
        assert_eq!(serde_json::to_string(&offer.extra).unwrap(), r#"{"decimals":3,"symbol":"sat"}"#);
    }

    proptest! {
        #[test]
        fn what_is_charged_is_worth_the_price_and_less_than_a_satoshi_more(
            dollars in 1u128..10u128.pow(24), rate in 10u128.pow(15)..10u128.pow(25),
        ) {
            let sats = sats_worth(Decimal::from_units(dollars, 18), Decimal::from_units(rate, 18)).unwrap();
            let worth = |sats: u128| (sats * rate, dollars * SAT_PER_BTC);
            let (enough, due) = worth(sats);
            let (less, _) = worth(sats - 1);
            prop_assert!(enough >= due && less < due);
        }
    }
}
