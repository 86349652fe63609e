//! A token as the chain describes it: its EIP-712 domain is proven against its own separator, never taken from a table.

use alloy::{
    primitives::{Address, B256, Bytes, U64},
    sol_types::SolCall,
};
use farebox_core::{
    Amount, AssetId, Decimal, EvmAddress, Offer, Price, RailName,
    ports::{BoxError, OfferError},
};

use crate::{
    AssetConfig, ChainConfig, ConnectError, NoRate, Pegged, Rates,
    abi::Token as Abi,
    address, checksum,
    known::known_token,
    node::{Call, Called, Node, ask},
    rates,
    signature::domain_separator,
};

/// Versions tried for a token that does not tell its own. Source: EIP-3009's reference token says "1", Circle's "2".
const VERSIONS: [&str; 2] = ["1", "2"];
/// Gas of one question to a token's view functions: they are read from strangers' contracts.
const VIEW_GAS_MAX: u64 = 1_000_000;
/// Of the native coin, on every EVM chain.
pub(crate) const NATIVE_DECIMALS: u8 = 18;
/// The longest name or version that we put into bills.
const NAME_BYTES_MAX: usize = 64;

/// What a payment is made in: a token, or the native coin.
#[derive(Clone, Debug)]
pub(crate) struct Coin {
    pub(crate) asset: AssetId,
    pub(crate) symbol: String,
    pub(crate) decimals: u8,
    pub(crate) pegged: Pegged,
}

impl Coin {
    /// Reads a token that need not take authorizations.
    ///
    /// # Errors
    /// Unreachable, or a contract that does not tell its decimals, or not those that its issuer does.
    pub(crate) async fn read(node: &Node, config: &ChainConfig, asset: &AssetConfig) -> Result<Self, ConnectError> {
        let reader = Reader { node, config, token: asset.address };
        if reader.code().await?.is_empty() {
            return Err(reader.unusable("has no code on this chain"));
        }
        Ok(Self {
            asset: AssetId::erc20(config.network.clone(), asset.address),
            symbol: asset.symbol.clone(),
            decimals: reader.decimals().await?,
            pegged: asset.pegged,
        })
    }

    /// The chain's own coin, if it is taken.
    pub(crate) fn native(config: &ChainConfig) -> Option<Self> {
        let native = config.native.as_ref().filter(|_| config.takes_native())?;
        Some(Self {
            asset: AssetId::native(config.network.clone()),
            symbol: native.symbol.clone(),
            decimals: NATIVE_DECIMALS,
            pegged: Pegged::No,
        })
    }

    pub(crate) fn of(token: &Token) -> Self {
        let Token { asset, symbol, decimals, pegged, .. } = token;
        Self { asset: asset.clone(), symbol: symbol.clone(), decimals: *decimals, pegged: *pegged }
    }

    /// What so many units are worth in US dollars, if anybody knows.
    pub(crate) fn dollars(&self, units: u128, rates: &Rates) -> Option<Decimal> {
        match self.pegged {
            Pegged::UsDollar => Some(Decimal::from_units(units, self.decimals)),
            Pegged::No => rates::worth(units, rates.dollars(&self.symbol).ok()?.dollars, self.decimals),
        }
    }

    /// What one whole coin is worth in US dollars.
    pub(crate) fn rate(&self, rates: &Rates) -> Result<Decimal, NoRate> {
        match self.pegged {
            Pegged::UsDollar => Ok(Decimal::from_units(1, 0)),
            Pegged::No => rates.dollars(&self.symbol).map(|rate| rate.dollars),
        }
    }

    /// The units for `price`, if this coin is meant by it. A price in dollars is charged in a coin that is none at its rate, rounded up
    /// to the unit: the seller gains less than one.
    pub(crate) fn units(&self, price: &Price, rates: &Rates) -> Result<Option<u128>, OfferError> {
        let amount = match price {
            Price::Usd(dollars) if self.pegged == Pegged::UsDollar => dollars,
            Price::Usd(dollars) if rates.knows(&self.symbol) => {
                let rate = self.rate(rates).map_err(|source| self.no_rate(price, source))?;
                let units = rates::units_for(*dollars, rate, self.decimals);
                return units.map(Some).ok_or_else(|| self.no_rate(price, "the rate makes it 2^128 units or more"));
            }
            Price::Token { amount, symbol } if *symbol == self.symbol => amount,
            Price::Usd(_) | Price::Token { .. } => return Ok(None),
        };
        amount.to_units(self.decimals).map(Some).map_err(|source| OfferError::NotExact {
            price: Box::new(price.clone()),
            symbol: self.symbol.clone(),
            network: self.asset.network().clone(),
            source: Box::new(source),
        })
    }

    pub(crate) fn no_rate(&self, price: &Price, source: impl Into<BoxError>) -> OfferError {
        OfferError::NoRate {
            price: Box::new(price.clone()),
            symbol: self.symbol.clone(),
            network: self.asset.network().clone(),
            source: source.into(),
        }
    }
}

/// A token that takes EIP-3009 authorizations.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) asset: AssetId,
    pub(crate) address: Address,
    pub(crate) symbol: String,
    pub(crate) pegged: Pegged,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) decimals: u8,
    pub(crate) domain: B256,
}

impl Token {
    /// Reads the token from the chain.
    ///
    /// # Errors
    /// Unreachable, or a token that has no code, no EIP-3009, other decimals than its issuer tells, or a domain that its name and version
    /// do not explain.
    pub(crate) async fn read(
        node: &Node,
        config: &ChainConfig,
        chain_id: u64,
        asset: &AssetConfig,
    ) -> Result<Self, ConnectError> {
        let reader = Reader { node, config, token: asset.address };
        if reader.code().await?.is_empty() {
            return Err(reader.unusable("has no code on this chain"));
        }
        let name: String = reader.must(Abi::nameCall {}).await?;
        let decimals = reader.decimals().await?;
        let domain: B256 = reader.must(Abi::DOMAIN_SEPARATORCall {}).await?;
        // A token without EIP-3009 has no such function; asked of any address and nonce, one that has it answers.
        let nobody = Abi::authorizationStateCall { authorizer: Address::ZERO, nonce: B256::ZERO };
        if reader.ask(nobody).await?.is_none() {
            return Err(reader.unusable("does not take EIP-3009 authorizations (it has no authorizationState)"));
        }
        let told: Option<String> = reader.ask(Abi::versionCall {}).await?;
        let candidates: Vec<&str> = told.as_deref().map_or(VERSIONS.to_vec(), |version| vec![version]);
        let token = address::alloy(asset.address);
        let proven = candidates.into_iter().find(|v| domain_separator(&name, v, chain_id, token) == domain);
        let Some(version) = proven.map(str::to_owned) else {
            return Err(reader.unusable("has a DOMAIN_SEPARATOR that its name, version and this chain id do not make"));
        };
        if name.len() > NAME_BYTES_MAX || version.len() > NAME_BYTES_MAX {
            return Err(reader.unusable("has a name or version of more than 64 bytes"));
        }
        Ok(Self {
            asset: AssetId::erc20(config.network.clone(), asset.address),
            address: token,
            symbol: asset.symbol.clone(),
            pegged: asset.pegged,
            name,
            version,
            decimals,
            domain,
        })
    }

    /// The x402 offer for `price`, if this token is meant by it.
    pub(crate) fn offer(&self, price: &Price, chain: &ChainConfig, rates: &Rates) -> Result<Option<Offer>, OfferError> {
        let coin = Coin::of(self);
        let Some(units) = coin.units(price, rates)? else { return Ok(None) };
        Ok(Some(Offer {
            rail: RailName::X402,
            scheme: "exact".into(),
            amount: Amount { units, asset: self.asset.clone() },
            asset_on_wire: self.address.to_checksum(None).into(),
            pay_to: checksum(chain.pay_to).into(),
            max_timeout_s: chain.limits.max_timeout_s,
            extra: [("name", &self.name), ("version", &self.version)]
                .map(|(key, value)| (key.to_owned(), value.clone().into()))
                .into_iter()
                .collect(),
            finality: chain.finality(coin.dollars(units, rates)),
            network_fee: None,
        }))
    }
}

/// Reads what every bill is made by, from as many sources as have to agree on a payment.
struct Reader<'a> {
    node: &'a Node,
    config: &'a ChainConfig,
    token: EvmAddress,
}

impl Reader<'_> {
    async fn code(&self) -> Result<Bytes, ConnectError> {
        let code = self.node.agreed(ask::code(address::alloy(self.token)), self.config.agreement()).await;
        code.map_err(|source| self.node.unreachable(&self.config.network, source))
    }

    /// The function's answer; `None` if the token has no such function or answers with something else.
    async fn ask<C: SolCall>(&self, call: C) -> Result<Option<C::Return>, ConnectError> {
        let call = Call {
            from: None,
            to: address::alloy(self.token),
            gas: Some(U64::from(VIEW_GAS_MAX)),
            data: call.abi_encode().into(),
        };
        match self.node.agreed(ask::call(&call, None), self.config.agreement()).await {
            Ok(Called::Returned(bytes)) => Ok(C::abi_decode_returns_validate(&bytes).ok()),
            Ok(Called::Reverted(_)) => Ok(None),
            Err(source) => Err(self.node.unreachable(&self.config.network, source)),
        }
    }

    async fn must<C: SolCall>(&self, call: C) -> Result<C::Return, ConnectError> {
        let answer = self.ask(call).await?;
        answer.ok_or_else(|| self.unusable(&format!("does not answer {}", C::SIGNATURE)))
    }

    /// A source that lies about them makes every price a thousandth, so what the issuer tells is the measure where it is known.
    async fn decimals(&self) -> Result<u8, ConnectError> {
        let found = self.must(Abi::decimalsCall {}).await?;
        match known_token(&self.config.network, self.token) {
            Some(known) if known.decimals != found => {
                let problem =
                    format!("has {found} decimals by its nodes, expected the {} of {}", known.decimals, known.symbol);
                Err(self.unusable(&problem))
            }
            _ => Ok(found),
        }
    }

    fn unusable(&self, problem: &str) -> ConnectError {
        ConnectError::Token { network: self.config.network.clone(), token: self.token, problem: problem.to_owned() }
    }
}
