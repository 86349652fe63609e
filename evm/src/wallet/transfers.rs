//! Transfers that the wallet makes itself.

use alloy::{
    consensus::{SignableTransaction, TxEip1559, TxEnvelope},
    eips::Encodable2718,
    primitives::{Address, B256, Bytes, TxKind, U64, U256},
    sol_types::SolCall,
};
use async_trait::async_trait;
use farebox_core::{
    Finality, Network, PaymentCode, TransactionId,
    ports::{
        BroadcastAnswer, Depth, Execution, GasFee, MinedTransfer, Outlook, SentTransfer, SignedTransfer, TransferFate,
        TransferGas, TransferOrder, TransferWallet, WalletError,
    },
};
use futures_util::try_join;

use super::{LocalWallet, unavailable, unsupported};
use crate::{
    abi, address,
    node::{Broadcast, Call, Draft, Estimate, NoAnswer, Node, Receipt, ask},
    transfer::code,
};

/// Of every EVM network's coin.
const COIN_DECIMALS: u8 = 18;
/// A tip when the last block tells none, wei: 0.001 gwei.
const TIP_MIN: u128 = 1_000_000;

#[async_trait]
impl TransferWallet for LocalWallet {
    async fn outlook(&self, order: &TransferOrder) -> Result<Outlook, WalletError> {
        let asset = &order.amount.asset;
        let node = self.node(asset.network())?;
        let of_network = node.chain_id().await.map_err(unavailable)?;
        if Some(of_network) != asset.network().evm_chain_id() {
            return Err(unavailable(format!("the node for {} says that its chain is {of_network}", asset.network())));
        }
        let payer = self.key.alloy_address();
        let state = (ask::balance(payer), ask::pending_nonce(payer), ask::mined_nonce(payer), ask::fee_history(1));
        let (coin, pending, mined, fees) = node.batch(state).await.map_err(unavailable)?;
        let (held_units, pending, mined_nonce) = (self.held(asset).await?, pending.to::<u64>(), mined.to::<u64>());
        let gas = if held_units < order.amount.units { None } else { self.gas_of(node, order).await? };
        let small = |wei: &U256| u128::try_from(*wei).unwrap_or(u128::MAX);
        let base = fees.base_fee_per_gas.last().map_or(0, small);
        let tip = fees.reward.iter().flatten().flatten().next().map_or(0, small).max(TIP_MIN);
        Ok(Outlook {
            held_units,
            coin_wei: small(&coin),
            decimals: decimals(node, order).await?,
            gas,
            // Twice the base fee carries a transaction over six full blocks.
            fee: GasFee { max: base.saturating_mul(2).saturating_add(tip), tip },
            next_nonce: pending.max(mined_nonce),
            mined_nonce,
        })
    }

    fn sign_transfer(&self, order: &TransferOrder, gas: TransferGas) -> Result<SignedTransfer, WalletError> {
        let (to, value, input) = call_of(order)?;
        let network = order.amount.asset.network();
        let chain_id = network.evm_chain_id().ok_or_else(|| unsupported(format!("{network} is no EVM network")))?;
        let tx = TxEip1559 {
            chain_id,
            nonce: gas.nonce,
            gas_limit: gas.limit,
            max_fee_per_gas: gas.fee.max,
            max_priority_fee_per_gas: gas.fee.tip,
            to: TxKind::Call(to),
            value,
            access_list: Default::default(),
            input,
        };
        let signature = self.key.sign(tx.signature_hash());
        let envelope = TxEnvelope::from(tx.into_signed(signature));
        let transaction = TransactionId::new(format!("{:#x}", envelope.tx_hash()));
        Ok(SignedTransfer { transaction, raw: envelope.encoded_2718() })
    }

    async fn broadcast(&self, network: &Network, raw: &[u8]) -> Result<BroadcastAnswer, WalletError> {
        let answer = self.node(network)?.broadcast(&Bytes::copy_from_slice(raw)).await.map_err(unavailable)?;
        Ok(match answer {
            Broadcast::Taken => BroadcastAnswer::Taken,
            Broadcast::NonceTooLow => BroadcastAnswer::NonceTooLow,
            Broadcast::Underpriced => BroadcastAnswer::Underpriced,
            Broadcast::Unclear => BroadcastAnswer::Unclear,
        })
    }

    async fn fate(&self, sent: &SentTransfer<'_>) -> Result<TransferFate, WalletError> {
        let node = self.node(sent.network)?;
        let hashes: Vec<B256> = sent.transactions.iter().map(hash).collect::<Result<_, _>>()?;
        if let Some(mined) = mined(node, sent, &hashes).await? {
            let execution = mined.execution;
            return Ok(TransferFate::Mined(match execution {
                Execution::Succeeded => mined,
                Execution::Reverted => reverted(node, sent, &hashes).await?,
            }));
        }
        if node.mined_nonce(self.key.alloy_address()).await.map_err(unavailable)? <= sent.nonce {
            return Ok(TransferFate::Unmined);
        }
        // One node that lags or has lost its index must not make a payment of ours look impossible.
        for each in node.each() {
            if !is_displaced(&each, self.key.alloy_address(), sent, &hashes).await? {
                return Ok(TransferFate::Unmined);
            }
        }
        Ok(TransferFate::Displaced)
    }

    fn sign_code(&self, code: PaymentCode) -> Result<PaymentCode, WalletError> {
        let of = code.payer;
        if of != self.key.address() {
            return Err(unsupported(format!("the code is for the payer {of:x}, and this wallet is another")));
        }
        let digest = code::digest(&code).ok_or_else(|| unsupported(format!("{} is no EVM asset", code.asset)))?;
        let signature = self.key.sign(digest).as_bytes().to_vec();
        Ok(PaymentCode { signature, ..code })
    }
}

impl LocalWallet {
    async fn gas_of(&self, node: &Node, order: &TransferOrder) -> Result<Option<u64>, WalletError> {
        let (to, value, data) = call_of(order)?;
        let draft = Draft { from: self.key.alloy_address(), to, value, data };
        Ok(match node.estimate(&draft).await.map_err(unavailable)? {
            Estimate::Gas(gas) => Some(gas),
            Estimate::Fails => None,
        })
    }
}

/// Whom the transaction calls, with how much of the coin and which data.
fn call_of(order: &TransferOrder) -> Result<(Address, U256, Bytes), WalletError> {
    let (to, value) = (address::alloy(order.pay_to), U256::from(order.amount.units));
    match order.amount.asset.erc20_address() {
        Some(token) => {
            let data = abi::Token::transferCall { to, value }.abi_encode().into();
            Ok((address::alloy(token), U256::ZERO, data))
        }
        None if order.amount.asset.is_native() => Ok((to, value, Bytes::new())),
        None => Err(unsupported(format!("{} is neither an ERC-20 token nor a coin", order.amount.asset))),
    }
}

async fn decimals(node: &Node, order: &TransferOrder) -> Result<Option<u8>, WalletError> {
    let Some(token) = order.amount.asset.erc20_address() else { return Ok(Some(COIN_DECIMALS)) };
    let data = abi::Token::decimalsCall {}.abi_encode().into();
    let call = Call { from: None, to: address::alloy(token), gas: None::<U64>, data };
    let answer = node.answer(call).await.map_err(unavailable)?;
    Ok(answer.and_then(|word| abi::Token::decimalsCall::abi_decode_returns_validate(&word).ok()))
}

fn hash(id: &TransactionId) -> Result<B256, WalletError> {
    id.as_str().parse().map_err(|_| unsupported(format!("{id} is no transaction of an EVM network")))
}

/// Which of the transactions is in the chain that the node now has. One in a block that the chain has left is not.
async fn mined(node: &Node, sent: &SentTransfer<'_>, hashes: &[B256]) -> Result<Option<MinedTransfer>, WalletError> {
    let receipts = node.receipts(hashes).await.map_err(unavailable)?;
    for receipt in receipts.iter().filter(|receipt| hashes.contains(&receipt.transaction_hash)) {
        let block = receipt.block();
        let (at, head) = try_join!(node.block(block.number), node.head()).map_err(unavailable)?;
        if at.is_none_or(|at| at.hash != receipt.block_hash) {
            continue;
        }
        // A head below the receipt is an older one's answer: it counts no confirmation.
        let confirmations = (head.number.to::<u64>() + 1).saturating_sub(block.number);
        let depth = depth(node, sent.finality, block.number, confirmations).await?;
        return Ok(Some(of_receipt(receipt, confirmations, depth)));
    }
    Ok(None)
}

/// What every node says of a transaction that one of them calls reverted: whoever believes that pays again, so that one node that lies
/// or errs must not decide it. Any node that has it as done is believed: a claim on it costs nothing. As deep as the node has it that
/// sees the fewest blocks over it.
async fn reverted(node: &Node, sent: &SentTransfer<'_>, hashes: &[B256]) -> Result<MinedTransfer, WalletError> {
    let mut told: Vec<MinedTransfer> = Vec::new();
    let mut silent = None;
    for each in node.each() {
        match mined(&each, sent, hashes).await {
            Ok(Some(mined)) if mined.execution == Execution::Succeeded => return Ok(mined),
            Ok(Some(mined)) => told.push(mined),
            Ok(None) => {
                silent = Some(unavailable("a node says that a transfer reverted, and another does not know it"))
            }
            Err(error) => silent = Some(error),
        }
    }
    if let Some(error) = silent {
        return Err(error);
    }
    let same = told.iter().all(|one| (&one.transaction, one.block) == (&told[0].transaction, told[0].block));
    let shallowest = told.into_iter().min_by_key(|one| (one.depth == Depth::Reached, one.confirmations));
    shallowest
        .filter(|_| same)
        .ok_or_else(|| unavailable("the nodes say of different transactions or blocks that a transfer reverted"))
}

fn of_receipt(receipt: &Receipt, confirmations: u64, depth: Depth) -> MinedTransfer {
    MinedTransfer {
        transaction: TransactionId::new(format!("{:#x}", receipt.transaction_hash)),
        block: receipt.block(),
        execution: if receipt.succeeded() { Execution::Succeeded } else { Execution::Reverted },
        confirmations,
        depth,
        gas_wei: receipt.gas_cost(),
    }
}

async fn depth(node: &Node, finality: Finality, number: u64, confirmations: u64) -> Result<Depth, WalletError> {
    let reached = match deepest(node, finality).await? {
        Mark::Blocks(blocks) => confirmations >= blocks,
        Mark::Number(mark) => number <= mark,
    };
    Ok(if reached { Depth::Reached } else { Depth::Waiting })
}

/// What a block is held against.
enum Mark {
    /// So many confirmations.
    Blocks(u64),
    /// A block that has them.
    Number(u64),
}

async fn deepest(node: &Node, finality: Finality) -> Result<Mark, WalletError> {
    let tagged = |tag| async move { node.tagged(tag).await.map(|mark| Mark::Number(mark.number.to())) };
    let answer: Result<_, NoAnswer> = match finality {
        Finality::Blocks(blocks) => Ok(Mark::Blocks(blocks)),
        Finality::Safe => tagged("safe").await,
        Finality::Finalized => tagged("finalized").await,
    };
    answer.map_err(unavailable)
}

/// Whether another transaction has used the nonce deep in this node's chain, and the node knows none of ours. The count is read
/// first: what it includes has its receipts.
async fn is_displaced(
    node: &Node,
    payer: Address,
    sent: &SentTransfer<'_>,
    hashes: &[B256],
) -> Result<bool, WalletError> {
    let deep = match deepest(node, sent.finality).await? {
        Mark::Blocks(blocks) => {
            let head: u64 = node.head().await.map_err(unavailable)?.number.to();
            (head + 1).checked_sub(blocks)
        }
        Mark::Number(number) => Some(number),
    };
    let Some(deep) = deep else { return Ok(false) };
    if node.nonce_at(payer, deep).await.map_err(unavailable)? <= sent.nonce {
        return Ok(false);
    }
    Ok(node.receipts(hashes).await.map_err(unavailable)?.is_empty())
}
