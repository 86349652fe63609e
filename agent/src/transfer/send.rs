//! Making a transfer: what it takes is looked at, every reason not to make it is told, and it is signed once.

use farebox_core::{
    Decimal, EvmAddress, Network, Timestamp,
    ports::{Outlook, TransferGas, TransferOrder, TransferWallet, Wallet, WalletError},
};
use tokio::time::Instant;

use super::terms::{Terms, TransferChoice};
use crate::{
    agent::{Agent, Started},
    entry::{Authorization, Proof, RawBytes, SecretHeader, SignedTransaction, Standing, Transfer},
    error::{FetchError, RefusedOffer},
    journal::Lock,
    policy::Outstanding,
};

/// Added to a gas estimate, percent: the chain moves between the estimate and the block.
const GAS_BUFFER_PERCENT: u64 = 25;

/// The decimals of every EVM network's coin.
const COIN_DECIMALS: u8 = 18;

/// Why a transfer that the policy allows was not made. Nothing was signed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotSent {
    /// The wallet holds less than is to be paid.
    #[error("the wallet {payer:x} holds {held} {symbol} on {network}, and {needed} are to be paid")]
    Short {
        /// Who would pay.
        payer: EvmAddress,
        /// On which network.
        network: Network,
        /// Of what.
        symbol: String,
        /// Whole tokens.
        held: Decimal,
        /// Whole tokens.
        needed: Decimal,
    },
    /// The wallet's coins do not pay the gas, and the amount if that is in coins too.
    #[error(
        "the wallet {payer:x} holds {held} of {network}'s coin, and {needed} may be needed: {gas} of it for gas, with {GAS_BUFFER_PERCENT} % \
         to spare"
    )]
    ShortOfGas {
        /// Who would pay.
        payer: EvmAddress,
        /// On which network.
        network: Network,
        /// Whole coins.
        held: Decimal,
        /// Whole coins.
        needed: Decimal,
        /// Whole coins, at most.
        gas: Decimal,
    },
    /// Gas may cost more than the policy allows.
    #[error("the gas of a transfer on {network} may cost {cost} of its coin, over the limit of {max}")]
    GasOverMax {
        /// On which network.
        network: Network,
        /// Whole coins.
        cost: Decimal,
        /// Whole coins.
        max: Decimal,
    },
    /// The chain says that the transfer would fail.
    #[error("the chain says that a transfer of {symbol} on {network} to {pay_to:x} would fail")]
    WouldFail {
        /// On which network.
        network: Network,
        /// Of what.
        symbol: String,
        /// To whom.
        pay_to: EvmAddress,
    },
    /// The token has other decimals than the policy's table says, so that an amount would be worth something else.
    #[error("{symbol} on {network} says that it has {} decimals, and it is known with {known}", found.map_or_else(|| "no".to_owned(), |n| n.to_string()))]
    Decimals {
        /// On which network.
        network: Network,
        /// Which token.
        symbol: String,
        /// By its own word.
        found: Option<u8>,
        /// In the table.
        known: u8,
    },
}

impl NotSent {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Short { .. } => "insufficient_balance",
            Self::ShortOfGas { .. } => "insufficient_gas",
            Self::GasOverMax { .. } => "gas_over_max",
            Self::WouldFail { .. } => "transfer_would_fail",
            Self::Decimals { .. } => "token_decimals_differ",
        }
    }
}

/// A transfer that is signed and neither noted nor sent.
#[derive(Debug)]
pub(crate) struct SignedNow {
    pub(crate) authorization: Authorization,
    /// Whoever holds it gives the account's nonces: kept until the transfer is noted and sent.
    pub(crate) account: Lock,
}

/// Why a bill's terms for a transfer led to none.
pub(crate) enum NoTransfer {
    /// No option may be paid.
    Forbidden(Vec<RefusedOffer>),
    /// None that may be paid can be.
    Failed(FetchError),
}

impl Agent {
    /// Signs a transfer for the cheapest option that may be paid and can be.
    pub(crate) async fn sign_transfer(
        &self,
        owner: &dyn Wallet,
        terms: &Terms<'_>,
        outstanding: Outstanding,
        idempotency_key: &SecretHeader,
        started: Started,
    ) -> Result<SignedNow, NoTransfer> {
        let (choices, refused) = terms.choices(outstanding);
        let mut first = None;
        for choice in choices {
            match self.sign_choice(owner, terms, choice, idempotency_key, started).await {
                Ok(signed) => return Ok(signed),
                // Nothing was signed: another asset or network may do.
                Err(error) => _ = first.get_or_insert(error),
            }
        }
        Err(first.map_or(NoTransfer::Forbidden(refused), NoTransfer::Failed))
    }

    async fn sign_choice(
        &self,
        owner: &dyn Wallet,
        terms: &Terms<'_>,
        choice: TransferChoice,
        idempotency_key: &SecretHeader,
        started: Started,
    ) -> Result<SignedNow, FetchError> {
        let no_transfers = || WalletError::Unsupported { reason: "the wallet makes no transfers".to_owned() };
        let (wallet, payer) = (owner.transfers().ok_or_else(no_transfers)?, owner.evm_address());
        let network = choice.offer.network();
        let wait = started.transfer_until(&self.parts.retry).saturating_duration_since(Instant::now());
        let account = self.parts.journal.hold_account(network, payer, wait).await?;
        let order = TransferOrder { amount: choice.offer.amount.clone(), pay_to: choice.pay_to };
        let outlook = wallet.outlook(&order).await?;
        let gas_limit = check(&choice, payer, &outlook, self.parts.policy.max_gas_wei).map_err(FetchError::NotSent)?;
        let nonce = self.next_nonce(wallet, network, payer, terms.now, &outlook).await?;
        let gas = TransferGas { nonce, limit: gas_limit, fee: outlook.fee };
        let signed = wallet.sign_transfer(&order, gas)?;
        let bill = terms.bill();
        let transfer = Transfer {
            quote: bill.quote.clone(),
            resource: bill.resource.clone(),
            pay_by: bill.pay_by,
            nonce,
            gas_limit,
            first: SignedTransaction { transaction: signed.transaction, fee: gas.fee, raw: RawBytes(signed.raw) },
            raised: Vec::new(),
        };
        let authorization = Authorization {
            proof: Proof::Transfer(Box::new(transfer)),
            idempotency_key: idempotency_key.clone(),
            payer: Some(payer),
            offer: choice.offer,
            asset: choice.acceptable.asset,
            signed_at: terms.now,
            expires_at: bill.claim_by,
            standing: Standing::Open,
        };
        Ok(SignedNow { authorization, account })
    }

    /// The account's next nonce by the node, or by the journal: an earlier run may have died before it sent what it had signed. That
    /// is sent now, for what comes after it waits for it. What is too late for its bill is left alone, so that its nonce is used
    /// for something better.
    async fn next_nonce(
        &self,
        wallet: &dyn TransferWallet,
        network: &Network,
        payer: EvmAddress,
        now: Timestamp,
        outlook: &Outlook,
    ) -> Result<u64, FetchError> {
        let mut next = outlook.next_nonce;
        for entry in self.parts.journal.transfers_of(network.clone(), payer).await? {
            let Some(transfer) = entry.current.transfer() else { continue };
            let waits = matches!(entry.current.standing, Standing::Open) && transfer.nonce >= outlook.mined_nonce;
            if !waits || transfer.pay_by <= now {
                continue;
            }
            next = next.max(transfer.nonce.saturating_add(1));
            if transfer.nonce >= outlook.next_nonce
                && let Err(error) = wallet.broadcast(network, &transfer.newest().raw.0).await
            {
                tracing::warn!(error = &error as &dyn std::error::Error, "an earlier transfer could not be sent again");
            }
        }
        Ok(next)
    }
}

/// Whether the wallet can make the transfer within the policy; the gas limit to make it with.
fn check(
    choice: &TransferChoice,
    payer: EvmAddress,
    outlook: &Outlook,
    max_gas_wei: u128,
) -> Result<u64, Box<NotSent>> {
    let (amount, asset) = (&choice.offer.amount, &choice.acceptable.asset);
    let (network, symbol) = (|| amount.asset.network().clone(), || asset.symbol().to_owned());
    let coins = |wei| Decimal::from_units(wei, COIN_DECIMALS);
    if outlook.decimals != Some(asset.decimals()) {
        let (found, known) = (outlook.decimals, asset.decimals());
        return Err(Box::new(NotSent::Decimals { network: network(), symbol: symbol(), found, known }));
    }
    if outlook.held_units < amount.units {
        let (held, needed) = (asset.tokens(outlook.held_units), asset.tokens(amount.units));
        return Err(Box::new(NotSent::Short { payer, network: network(), symbol: symbol(), held, needed }));
    }
    let would_fail = || Box::new(NotSent::WouldFail { network: network(), symbol: symbol(), pay_to: choice.pay_to });
    let gas = outlook.gas.ok_or_else(would_fail)?;
    let limit = gas.saturating_add(gas.saturating_mul(GAS_BUFFER_PERCENT).div_ceil(100));
    let cost = outlook.fee.max.saturating_mul(limit.into());
    if cost > max_gas_wei {
        let (cost, max) = (coins(cost), coins(max_gas_wei));
        return Err(Box::new(NotSent::GasOverMax { network: network(), cost, max }));
    }
    let in_coins = if amount.asset.is_native() { amount.units } else { 0 };
    let needed = in_coins.saturating_add(cost);
    if outlook.coin_wei < needed {
        let (held, needed, gas) = (coins(outlook.coin_wei), coins(needed), coins(cost));
        return Err(Box::new(NotSent::ShortOfGas { payer, network: network(), held, needed, gas }));
    }
    Ok(limit)
}
