//! One chain in service: its nodes, its tokens and its relayer's lane.

use std::{sync::Arc, time::Duration};

use alloy::primitives::Bytes;
use farebox_core::{
    Amount, AssetId, BlockRef, Decimal, Finality, X402Credential,
    ports::{BoxError, Canonical, ChainWindow, Clock, TransactionStore},
};

use crate::{
    ChainConfig, ConnectError, FinalityTier, Rates, abi, address,
    bounced::Bounced,
    follower::Follower,
    lane::Lane,
    node::{Agreement, Header, NoAnswer, Node, ask},
    signature,
    token::{Coin, Token},
};

/// The least that `valid_for_min` may be. Source: x402 v2, scheme `exact` on EVM.
const VALID_FOR_MIN: Duration = Duration::from_secs(6);

#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) config: ChainConfig,
    pub(crate) node: Node,
    /// What the relayer settles in; none without a relayer.
    pub(crate) tokens: Vec<Token>,
    /// What we are paid in by transfer: every token, then the native coin.
    pub(crate) coins: Vec<Coin>,
    /// Where we pay gas; without a relayer there is none, and no x402 payment.
    pub(crate) lane: Option<Lane>,
    pub(crate) follower: Follower,
    pub(crate) store: Arc<dyn TransactionStore>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) bounced: Bounced,
    pub(crate) rates: Arc<Rates>,
}

impl Chain {
    /// Checks the configuration against itself and then against the chain.
    pub(crate) async fn connect(
        config: ChainConfig,
        store: Arc<dyn TransactionStore>,
        clock: Arc<dyn Clock>,
        rates: Arc<Rates>,
    ) -> Result<Self, ConnectError> {
        let chain_id = validate(&config)?;
        let node = node_of(&config, chain_id)?;
        serves(&node, &config, chain_id).await?;
        let mut tokens = Vec::with_capacity(config.assets.len());
        let mut coins = Vec::with_capacity(config.assets.len() + 1);
        for asset in &config.assets {
            if config.relayer.is_some() {
                let token = Token::read(&node, &config, chain_id, asset).await?;
                coins.push(Coin::of(&token));
                tokens.push(token);
            } else {
                coins.push(Coin::read(&node, &config, asset).await?);
            }
        }
        coins.extend(Coin::native(&config));
        let lane = match &config.relayer {
            Some(relayer) => Some(Lane::start(&config, relayer, chain_id, &node, store.clone(), clock.clone()).await?),
            None => None,
        };
        let follower = Follower::default();
        follower.refresh_fee(&node).await;
        Ok(Self { config, node, tokens, coins, lane, follower, store, clock, bounced: Bounced::default(), rates })
    }

    pub(crate) fn token(&self, asset: &AssetId) -> Option<&Token> {
        self.tokens.iter().find(|token| token.asset == *asset)
    }

    /// Whether a block at `number` is as final as asked for. A node that does not know the tag could not tell.
    pub(crate) async fn is_final(
        &self,
        number: u64,
        finality: Finality,
        agreement: Agreement,
    ) -> Result<bool, NoAnswer> {
        // The node that has a receipt has its block, which is the first confirmation.
        if let Finality::Blocks(0 | 1) = finality {
            return Ok(true);
        }
        Ok(self.final_height(finality, agreement).await? >= number)
    }

    /// The height of the highest block that is as final as asked for.
    async fn final_height(&self, finality: Finality, agreement: Agreement) -> Result<u64, NoAnswer> {
        let (asked, on_top) = match finality {
            Finality::Safe => (ask::tagged("safe"), 0),
            Finality::Finalized => (ask::tagged("finalized"), 0),
            Finality::Blocks(blocks) => (ask::head(), blocks.saturating_sub(1)),
        };
        Ok(self.node.agreed(asked, agreement).await?.number.to::<u64>().saturating_sub(on_top))
    }

    /// The highest block that is as final as asked for.
    pub(crate) async fn final_block(&self, finality: Finality, agreement: Agreement) -> Result<Header, BoxError> {
        // What is agreed on of a head is how low it is; what is in it is agreed on by asking for it by its height.
        let number = self.final_height(finality, agreement).await?;
        let block = self.node.agreed(ask::block(number), agreement).await?;
        Ok(block.ok_or("the node lacks a block below its own head")?)
    }

    /// Whether the chain still has this block: every source is asked. Where there are several, two must miss it, or one that lies could
    /// take back what was paid while the others rest.
    pub(crate) async fn is_canonical(&self, block: &BlockRef) -> Result<Canonical, BoxError> {
        let (mut holds, mut gone) = (0, 0);
        for node in self.node.each() {
            match self.vote(&node, block).await {
                Ok(Some(Canonical::Holds)) => holds += 1,
                Ok(Some(Canonical::Gone)) => gone += 1,
                Ok(None) => tracing::debug!(node = node.label(), number = block.number, "a node is not that far"),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a block could not be read");
                }
            }
        }
        let needed = self.node.sources().len().min(2);
        match (holds, gone) {
            (1.., 0) => Ok(Canonical::Holds),
            (0, gone) if gone >= needed => Ok(Canonical::Gone),
            // One of them lags or lies.
            (1.., _) => Err(format!("the nodes disagree about block {}", block.number).into()),
            _ => Err(format!("too few nodes said whether block {} still holds", block.number).into()),
        }
    }

    /// What one node says of a block; nothing if there are others and it is not that far itself.
    async fn vote(&self, node: &Node, block: &BlockRef) -> Result<Option<Canonical>, NoAnswer> {
        let found = match node.block(block.number).await? {
            None if self.node.sources().len() > 1 => {
                if node.head().await?.number.to::<u64>() < block.number {
                    return Ok(None);
                }
                // Again: its head may have come there in between.
                node.block(block.number).await?
            }
            found => found,
        };
        let holds = found.is_some_and(|found| found.hash.0 == block.hash);
        Ok(Some(if holds { Canonical::Holds } else { Canonical::Gone }))
    }

    /// The blocks that may still be undone, up to the newest.
    pub(crate) async fn window(&self) -> Result<ChainWindow, BoxError> {
        let blocks = self.follower.window(self).await?;
        Ok(ChainWindow { network: self.config.network.clone(), blocks })
    }

    /// How many sources must say that so much has come.
    pub(crate) fn agreement(&self, amount: &Amount) -> Agreement {
        let Some(quorum) = self.config.quorum else { return Agreement::ONE };
        if self.worth(amount).is_some_and(|worth| worth <= quorum.above) {
            Agreement::ONE
        } else {
            Agreement(quorum.agree)
        }
    }

    /// What so much must wait for when it has come.
    pub(crate) fn finality(&self, amount: &Amount) -> Finality {
        self.config.finality(self.worth(amount))
    }

    /// In US dollars, as far as anybody knows.
    fn worth(&self, amount: &Amount) -> Option<Decimal> {
        let coin = self.coins.iter().find(|coin| coin.asset == amount.asset);
        coin.and_then(|coin| coin.dollars(amount.units, &self.rates))
    }
}

/// The token's call that moves the money: the same bytes in the simulation and in the settlement, encoded from parsed values.
pub(crate) fn transfer_call(token: &Token, x402: &X402Credential) -> Bytes {
    let a = &x402.authorization;
    let by_key = signature::of_key(&x402.signature)
        .filter(|key| signature::signer(signature::digest(token.domain, a), key) == Some(address::alloy(a.from)));
    match by_key {
        Some(key) => abi::transfer_by_key(a, &key),
        None => abi::transfer_by_contract(a, &contract_signature(x402)),
    }
}

/// A contract wallet's signature, without the deployment it may be wrapped in (ERC-6492).
pub(crate) fn contract_signature(x402: &X402Credential) -> Bytes {
    abi::with_deployment(&x402.signature).map_or_else(|| x402.signature.clone().into(), |wrapped| wrapped.inner)
}

pub(crate) fn node_of(config: &ChainConfig, chain_id: u64) -> Result<Node, ConnectError> {
    Node::new(&config.rpc, chain_id, config.limits.rpc_timeout).map_err(|source| ConnectError::Unreachable {
        network: config.network.clone(),
        tried: config.rpc.iter().map(|source| source.url.to_string()).collect::<Vec<_>>().join(", "),
        source,
    })
}

/// Every node that answers must serve this chain, and one must answer.
async fn serves(node: &Node, config: &ChainConfig, chain_id: u64) -> Result<(), ConnectError> {
    let mut silent = None;
    let mut answered = 0;
    for one in node.each() {
        match one.chain_id().await {
            Ok(found) if found == chain_id => answered += 1,
            Ok(found) => {
                return Err(ConnectError::WrongChain { network: config.network.clone(), node: one.label(), found });
            }
            Err(error) => {
                tracing::warn!(network = %config.network, error = &error as &dyn std::error::Error, "a node does not answer");
                silent = Some(error);
            }
        }
    }
    match silent {
        Some(error) if answered == 0 => Err(node.unreachable(&config.network, error)),
        _ => Ok(()),
    }
}

/// What the configuration alone can show; gives the chain id.
pub(crate) fn validate(config: &ChainConfig) -> Result<u64, ConnectError> {
    let network = &config.network;
    let limits = &config.limits;
    let wrong = |problem: &str| Err(ConnectError::Config { network: network.clone(), problem: problem.to_owned() });
    let Some(chain_id) = network.evm_chain_id() else {
        return wrong("expected an EVM network such as eip155:8453");
    };
    if config.rpc.is_empty() {
        return wrong("rpc is empty; name at least one node");
    }
    if config.assets.is_empty() && !config.takes_native() {
        return wrong("assets is empty and the native coin is not taken; name at least one token, such as USDC");
    }
    if config.assets.is_empty() && config.relayer.is_some() {
        return wrong("assets is empty, so the relayer has nothing to settle; name a token, or take the relayer out");
    }
    if (1..config.assets.len()).any(|i| config.assets[..i].iter().any(|a| a.address == config.assets[i].address)) {
        return wrong("assets names one token twice");
    }
    if let Err(problem) = tiers(&config.confirmations) {
        return wrong(problem);
    }
    if config.quorum.is_some_and(|quorum| quorum.agree < 2 || quorum.agree > config.rpc.len()) {
        return wrong("quorum.agree must be 2 or more, and not more than there are sources");
    }
    if config.pay_to.0 == [0; 20] {
        return wrong("pay_to is the zero address; tokens sent there are lost");
    }
    if limits.valid_for_min < VALID_FOR_MIN {
        return wrong("valid_for_min is below 6 s, the least that x402 allows");
    }
    if limits.max_timeout_s <= limits.valid_for_min.as_secs() {
        return wrong("max_timeout must be longer than valid_for_min, or no payment can be in time");
    }
    if limits.in_flight_max == 0 || limits.lane_queue_max == 0 || limits.log_range == 0 || limits.gas_limit_max < 21_000
    {
        return wrong("in_flight_max, lane_queue_max and log_range must be 1 or more and gas_limit_max 21000 or more");
    }
    if [limits.rpc_timeout, limits.settle_timeout, limits.poll_min, limits.poll_max, limits.bump_after]
        .contains(&Duration::ZERO)
        || config.head_age_max.is_zero()
    {
        return wrong("a timeout of zero can never be met");
    }
    Ok(chain_id)
}

/// Rising bounds, and one tier for all the rest.
fn tiers(tiers: &[FinalityTier]) -> Result<(), &'static str> {
    let Some((last, bounded)) = tiers.split_last() else {
        return Err("confirmations is empty; expected 1 block or more");
    };
    if last.up_to.is_some() || bounded.iter().any(|tier| tier.up_to.is_none()) {
        return Err("every tier of confirmations but the last needs up_to, and the last must not have it");
    }
    if bounded.windows(2).any(|pair| pair[0].up_to >= pair[1].up_to) {
        return Err("the tiers of confirmations must be in rising order of up_to");
    }
    if tiers.iter().any(|tier| tier.finality == Finality::Blocks(0)) {
        return Err("a tier of confirmations asks for 0 blocks; expected 1 or more");
    }
    Ok(())
}
