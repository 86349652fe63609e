//! What a price becomes once the network's fee has a part in it.

use farebox_core::{
    FeeTerms, NetworkFee, Offer, Price,
    ports::{BoxError, OfferError},
};

use crate::{
    chain::Chain,
    rates,
    token::{Coin, Token},
};

impl Chain {
    /// The offer for `price` in a token that we settle, with the settlement's gas in it as `terms` say; `None` if the token is not meant
    /// by the price. Without terms the fee is told if it is known.
    pub(crate) fn settled_offer(
        &self,
        token: &Token,
        price: &Price,
        terms: FeeTerms,
    ) -> Result<Option<Offer>, OfferError> {
        let Some(mut offer) = token.offer(price, &self.config, &self.rates)? else { return Ok(None) };
        let coin = Coin::of(token);
        let fee = match self.settlement_fee(token, &coin) {
            Ok(fee) => fee,
            Err(_) if terms == FeeTerms::default() => return Ok(Some(offer)),
            Err(source) => return Err(coin.no_rate(price, source)),
        };
        let (units, told) = priced(offer.amount.units, fee, terms).map_err(|not| match not {
            NotPriced::TooLarge => coin.no_rate(price, "the network fee makes it 2^128 units or more"),
            NotPriced::Share { fee_percent, percent_max } => OfferError::FeeShare {
                price: Box::new(price.clone()),
                symbol: token.symbol.clone(),
                network: self.config.network.clone(),
                fee_percent,
                percent_max,
            },
        })?;
        offer.amount.units = units;
        offer.network_fee = Some(told);
        // What waits for finality is the whole amount.
        offer.finality = self.config.finality(coin.dollars(units, &self.rates));
        Ok(Some(offer))
    }

    /// What a settlement costs us, in the token's units.
    fn settlement_fee(&self, token: &Token, coin: &Coin) -> Result<u128, BoxError> {
        let lane = self.lane.as_ref().ok_or("no relayer is configured")?;
        let native = self.config.native.as_ref().ok_or("the chain's own coin has no symbol in the config")?;
        let native = self.rates.dollars(&native.symbol)?.dollars;
        let wei = lane.settlement_cost(token.address)?;
        let fee = rates::fee_units(wei, native, coin.rate(&self.rates)?, token.decimals);
        fee.ok_or_else(|| "the network fee makes 2^128 units or more".into())
    }
}

/// The offers of one rail, of what came of each of its assets.
pub(crate) fn those_made(
    price: &Price,
    tried: impl Iterator<Item = Result<Option<Offer>, OfferError>>,
) -> Result<Vec<Offer>, OfferError> {
    let (mut offers, mut first) = (Vec::new(), None);
    for offer in tried {
        match offer {
            Ok(offer) => offers.extend(offer),
            // A price that the seller wrote wrong is told; an asset whose price is not known now, or too dear, is left out.
            Err(error @ OfferError::NotExact { .. }) => return Err(error),
            Err(error) => first = first.or(Some(error)),
        }
    }
    match first {
        _ if !offers.is_empty() => Ok(offers),
        Some(error) => Err(error),
        None => Err(OfferError::NoAsset { price: Box::new(price.clone()) }),
    }
}

/// Why there is no price with the fee in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotPriced {
    /// The fee is a larger part of what is charged than the terms allow.
    Share {
        /// Rounded up.
        fee_percent: u64,
        percent_max: u32,
    },
    /// 2^128 units or more.
    TooLarge,
}

/// The units to charge for a price of `units` whose settlement costs `fee` units, and what of them the fee is. Whatever is added is
/// rounded up, by less than one unit, for the seller.
pub(crate) fn priced(units: u128, fee: u128, terms: FeeTerms) -> Result<(u128, NetworkFee), NotPriced> {
    let (charged, part, told) = match terms.added_with_buffer_percent {
        Some(buffer) => {
            let percent = 100 + u128::from(buffer);
            let added = fee.checked_mul(percent).ok_or(NotPriced::TooLarge)?.div_ceil(100);
            let charged = units.checked_add(added).ok_or(NotPriced::TooLarge)?;
            (charged, added, NetworkFee::Included(added))
        }
        None => (units, fee, NetworkFee::Absorbed(fee)),
    };
    if let Some(percent_max) = terms.share_percent_max {
        // Without a product that could overflow: part * 100 > charged * max.
        let hundredfold = part.checked_mul(100).ok_or(NotPriced::TooLarge)?;
        let fee_percent = if charged == 0 { u128::MAX } else { hundredfold.div_ceil(charged) };
        if fee_percent > u128::from(percent_max) {
            return Err(NotPriced::Share { fee_percent: u64::try_from(fee_percent).unwrap_or(u64::MAX), percent_max });
        }
    }
    Ok((charged, told))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn terms(buffer: Option<u32>, share: Option<u32>) -> FeeTerms {
        FeeTerms { added_with_buffer_percent: buffer, share_percent_max: share }
    }

    #[test]
    fn a_fee_is_added_with_its_buffer_or_borne() {
        assert_eq!(priced(10_000, 3_120, terms(Some(25), None)), Ok((13_900, NetworkFee::Included(3_900))));
        assert_eq!(priced(10_000, 1, terms(Some(25), None)), Ok((10_002, NetworkFee::Included(2))));
        assert_eq!(priced(10_000, 0, terms(Some(25), None)), Ok((10_000, NetworkFee::Included(0))));
        assert_eq!(priced(10_000, 3_120, terms(None, None)), Ok((10_000, NetworkFee::Absorbed(3_120))));
        assert_eq!(priced(u128::MAX, 1, terms(Some(0), None)), Err(NotPriced::TooLarge));
    }

    #[test]
    fn a_fee_that_is_too_large_a_part_makes_no_offer() {
        let share = |fee_percent, percent_max| Err(NotPriced::Share { fee_percent, percent_max });
        assert!(priced(100, 50, terms(None, Some(50))).is_ok());
        assert_eq!(priced(100, 51, terms(None, Some(50))), share(51, 50));
        assert_eq!(priced(1_000, 501, terms(None, Some(50))), share(51, 50));
        assert_eq!(priced(100, 1_000, terms(None, Some(50))), share(1_000, 50));
        assert!(priced(100, 100, terms(Some(0), Some(50))).is_ok());
        assert_eq!(priced(100, 102, terms(Some(0), Some(50))), share(51, 50));
    }

    proptest! {
        #[test]
        fn what_is_charged_covers_price_and_buffered_fee_and_less_than_a_unit_more(
            units in 1u128..10u128.pow(30), fee in 0u128..10u128.pow(30), buffer in 0u32..1_000,
        ) {
            let (charged, told) = priced(units, fee, terms(Some(buffer), None)).unwrap();
            let NetworkFee::Included(added) = told else { panic!("{told:?}") };
            let due = fee * u128::from(100 + buffer);
            prop_assert_eq!(charged, units + added);
            prop_assert!(added * 100 >= due && added * 100 < due + 100);
        }

        #[test]
        fn the_share_is_never_above_what_is_allowed(
            units in 1u128..10u128.pow(30), fee in 0u128..10u128.pow(30), buffer in proptest::option::of(0u32..500), max in 0u32..200,
        ) {
            match priced(units, fee, terms(buffer, Some(max))) {
                Ok((charged, NetworkFee::Included(part) | NetworkFee::Absorbed(part))) => {
                    prop_assert!(part * 100 <= charged * u128::from(max));
                }
                Ok(other) => panic!("{other:?}"),
                Err(NotPriced::Share { fee_percent, .. }) => prop_assert!(fee_percent > u64::from(max)),
                Err(NotPriced::TooLarge) => prop_assert!(false),
            }
        }
    }
}
