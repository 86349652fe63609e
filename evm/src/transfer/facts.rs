//! Asking the chain about a transaction: two round trips at most, however many sources have to agree.

use alloy::primitives::B256;
use farebox_core::Finality;

use super::judge::Facts;
use crate::{
    chain::Chain,
    node::{Agreement, NoAnswer, ask},
};

impl Facts {
    /// One batch for the transaction, its receipt and the newest blocks; a second for the block that the receipt names.
    ///
    /// # Errors
    /// Too few sources answered, or they disagree. Never "there is none".
    pub(super) async fn read(
        chain: &Chain,
        hash: B256,
        finality: Finality,
        agreement: Agreement,
    ) -> Result<Self, NoAnswer> {
        let tag = match finality {
            Finality::Blocks(_) => None,
            Finality::Safe => Some("safe"),
            Finality::Finalized => Some("finalized"),
        };
        let (receipt, transaction) = (ask::receipt(hash), ask::transaction(hash));
        // The head is asked for last: nodes that answer in order then never tell one that is behind the receipt.
        let (receipt, transaction, tagged, head) = match tag {
            None => {
                let asked = (receipt, transaction, ask::head());
                let (receipt, transaction, head) = chain.node.agreed(asked, agreement).await?;
                (receipt, transaction, None, head)
            }
            Some(tag) => {
                let asked = (receipt, transaction, ask::tagged(tag), ask::head());
                let (receipt, transaction, tagged, head) = chain.node.agreed(asked, agreement).await?;
                (receipt, transaction, Some(tagged), head)
            }
        };
        let block = match &receipt {
            Some(receipt) => chain.node.agreed(ask::block(receipt.block_number.to()), agreement).await?,
            None => None,
        };
        Ok(Self { receipt, transaction, head, tagged, block })
    }
}
