//! The blocks behind scripted rails.

use farebox_core::{
    BlockRef,
    ports::{BoxError, Canonical, ChainWindow},
};

use crate::test_network;

/// Blocks from 0 to the head, each with a hash that nothing else has had.
#[derive(Debug)]
pub(crate) struct ScriptedChain {
    /// By height.
    blocks: Vec<BlockRef>,
    hashes: u64,
    revocable_from: u64,
    /// No node answers.
    pub(crate) is_lost: bool,
}

impl Default for ScriptedChain {
    fn default() -> Self {
        let mut chain = Self { blocks: Vec::new(), hashes: 0, revocable_from: 0, is_lost: false };
        chain.mine();
        chain
    }
}

impl ScriptedChain {
    /// One more block.
    pub(crate) fn mine(&mut self) -> BlockRef {
        let block = BlockRef { number: self.blocks.len() as u64, hash: self.fresh_hash() };
        self.blocks.push(block);
        block
    }

    /// Another block at this height. Those above stay, as if their transactions had been mined again in the same order.
    pub(crate) fn replace(&mut self, height: u64) {
        let hash = self.fresh_hash();
        if let Some(block) = self.blocks.iter_mut().find(|block| block.number == height) {
            block.hash = hash;
        }
    }

    pub(crate) const fn finalise_below(&mut self, height: u64) {
        self.revocable_from = height;
    }

    pub(crate) fn windows(&self) -> Vec<ChainWindow> {
        if self.is_lost {
            return Vec::new();
        }
        let head = self.blocks.len().saturating_sub(1);
        let lowest = usize::try_from(self.revocable_from).unwrap_or(head).min(head);
        vec![ChainWindow { network: test_network(), blocks: self.blocks[lowest..].to_vec() }]
    }

    pub(crate) fn is_canonical(&self, block: &BlockRef) -> Result<Canonical, BoxError> {
        match self.is_lost {
            true => Err("scripted: no node answers".into()),
            false if self.blocks.contains(block) => Ok(Canonical::Holds),
            false => Ok(Canonical::Gone),
        }
    }

    fn fresh_hash(&mut self) -> [u8; 32] {
        self.hashes += 1;
        let mut hash = [0xb1; 32];
        hash[24..].copy_from_slice(&self.hashes.to_be_bytes());
        hash
    }
}
