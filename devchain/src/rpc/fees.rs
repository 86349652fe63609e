//! `eth_feeHistory`.

use alloy::consensus::Transaction as _;
use alloy::eips::BlockNumberOrTag;
use alloy::primitives::U64;
use alloy::rpc::types::FeeHistory;

use super::{Params, RpcError, numbered};
use crate::chain::{Block, Chain};
use crate::limits::{FEE_HISTORY_BLOCKS_MAX, FEE_HISTORY_PERCENTILES_MAX};

/// `[count, newest block, percentiles]`. The base fees are one more than the blocks: the last is the next block's.
pub(super) fn history(chain: &Chain, params: &Params) -> Result<FeeHistory, RpcError> {
    let (count, newest): (U64, BlockNumberOrTag) = (params.required(0)?, params.required(1)?);
    let percentiles: Vec<f64> = params.optional(2)?.unwrap_or_default();
    check_percentiles(&percentiles)?;
    let newest = numbered(chain, newest).ok_or_else(|| RpcError::new(-32000, "request beyond head block"))?;
    let newest = newest.header.number;
    let available = newest - chain.oldest().header.number + 1;
    let count = count.to::<u64>().min(FEE_HISTORY_BLOCKS_MAX).min(available);
    let oldest_block = newest + 1 - count;
    if count == 0 {
        return Ok(FeeHistory::default());
    }
    let blocks: Vec<_> = (oldest_block..=newest).filter_map(|number| chain.block(number)).collect();
    let base_fee = |block: &Block| block.header.base_fee_per_gas.unwrap_or_default();
    let next = chain.block(newest + 1).map_or_else(|| chain.next_base_fee(), |block| base_fee(block));
    Ok(FeeHistory {
        base_fee_per_gas: blocks.iter().map(|block| base_fee(block)).chain([next]).map(u128::from).collect(),
        gas_used_ratio: blocks.iter().map(|b| b.header.gas_used as f64 / b.header.gas_limit as f64).collect(),
        // No block has blobs, and one wei is the least a blob's gas can cost (EIP-4844).
        base_fee_per_blob_gas: vec![1; blocks.len() + 1],
        blob_gas_used_ratio: vec![0.0; blocks.len()],
        oldest_block,
        reward: (!percentiles.is_empty()).then(|| blocks.iter().map(|block| rewards(block, &percentiles)).collect()),
    })
}

fn check_percentiles(percentiles: &[f64]) -> Result<(), RpcError> {
    let within = percentiles.iter().all(|percentile| (0.0..=100.0).contains(percentile));
    if percentiles.len() > FEE_HISTORY_PERCENTILES_MAX || !within || !percentiles.is_sorted() {
        let message =
            format!("invalid reward percentile: at most {FEE_HISTORY_PERCENTILES_MAX}, ascending, from 0 to 100");
        return Err(RpcError::new(-32000, message));
    }
    Ok(())
}

/// The tip, in wei per gas, at each percentile of the block's gas; zeros for an empty block.
fn rewards(block: &Block, percentiles: &[f64]) -> Vec<u128> {
    let base_fee = block.header.base_fee_per_gas.unwrap_or_default();
    let tips = block.transactions.iter().map(|tx| tx.effective_tip_per_gas(base_fee).unwrap_or_default());
    let mut tips: Vec<_> = tips.zip(block.outcomes.iter().map(|outcome| outcome.gas_used)).collect();
    tips.sort_unstable();
    let at = |percentile: &f64| {
        let threshold = (block.header.gas_used as f64 * percentile / 100.0) as u64;
        let mut gas = 0;
        let reached = tips.iter().find(|(_, used)| {
            gas += used;
            gas >= threshold
        });
        reached.or(tips.last()).map_or(0, |(tip, _)| *tip)
    };
    percentiles.iter().map(at).collect()
}
