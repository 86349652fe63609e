//! What a price is by transfer.

use farebox_core::{Amount, NetworkFee, Offer, Price, RailName, ports::OfferError};

use super::{SCHEME, TransferRail, asset_on_wire};
use crate::{chain::Chain, checksum, fee::those_made, token::Coin};

/// Gas of a transaction that moves the native coin and nothing else. Source: yellow paper, G_transaction.
const NATIVE_GAS: u128 = 21_000;
/// Gas of an ERC-20 `transfer`: FiatTokenV2_2 to an account that has none of it yet. Measured.
const TOKEN_GAS: u128 = 65_000;

impl TransferRail {
    /// One offer for each coin of each chain that the price can be paid in.
    pub(super) fn offers_for(&self, price: &Price) -> Result<Vec<Offer>, OfferError> {
        let each = self.chains.iter().flat_map(|chain| chain.coins.iter().map(move |coin| (chain, coin)));
        those_made(price, each.map(|(chain, coin)| self.offer(chain, coin, price)))
    }

    fn offer(&self, chain: &Chain, coin: &Coin, price: &Price) -> Result<Option<Offer>, OfferError> {
        let Some(units) = coin.units(price, &chain.rates)? else { return Ok(None) };
        let gas = if coin.asset.is_native() { NATIVE_GAS } else { TOKEN_GAS };
        Ok(Some(Offer {
            rail: RailName::Transfer,
            scheme: SCHEME.into(),
            amount: Amount { units, asset: coin.asset.clone() },
            asset_on_wire: asset_on_wire(&coin.asset),
            pay_to: checksum(chain.config.pay_to).into(),
            max_timeout_s: self.parts.times.pay_within.as_secs().max(1),
            extra: [("symbol", coin.symbol.clone().into()), ("decimals", coin.decimals.into())]
                .map(|(key, value): (&str, serde_json::Value)| (key.to_owned(), value))
                .into_iter()
                .collect(),
            finality: chain.config.finality(coin.dollars(units, &chain.rates)),
            network_fee: chain.follower.fee_per_gas().map(|fee| NetworkFee::OnTop(gas.saturating_mul(fee))),
        }))
    }
}
