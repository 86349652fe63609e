//! Accounts, storage and code, readable as of every block that is kept.

use std::collections::BTreeMap;
use std::convert::Infallible;

use alloy::primitives::map::{AddressMap, B256Map, HashMap};
use alloy::primitives::{Address, B256, U256};
use revm::DatabaseRef;
use revm::bytecode::Bytecode;
use revm::primitives::KECCAK_EMPTY;
use revm::state::{AccountInfo, EvmState};

use crate::limits::BLOCK_HASHES_MAX;

/// Each value with the block that wrote it: a read as of a block finds the last write at or before it, so old states cost
/// only what has changed since.
#[derive(Default)]
pub(crate) struct State {
    accounts: AddressMap<Versions<Option<AccountInfo>>>,
    slots: HashMap<(Address, U256), Versions<U256>>,
    codes: B256Map<Bytecode>,
    block_hashes: BTreeMap<u64, B256>,
    /// States before this block can no longer be asked for.
    oldest: u64,
}

impl State {
    /// The account as of `block`, without its code; `None` if it does not exist (EIP-161: or is empty).
    pub(crate) fn account(&self, address: Address, block: u64) -> Option<AccountInfo> {
        self.accounts.get(&address)?.at(block)?.clone()
    }

    pub(crate) fn set_account(&mut self, address: Address, block: u64, info: &AccountInfo) {
        if let Some(code) = &info.code
            && !code.is_empty()
        {
            self.codes.entry(info.code_hash).or_insert_with(|| code.clone());
        }
        let kept = (!info.is_empty()).then(|| info.copy_without_code());
        self.accounts.entry(address).or_default().set(block, kept, self.oldest);
    }

    /// Applies what one transaction has changed, as part of `block`.
    pub(crate) fn commit(&mut self, block: u64, changes: EvmState) {
        for (address, account) in changes {
            if !account.is_touched() {
                continue;
            }
            if account.is_selfdestructed() {
                // Since EIP-6780 only a contract created in the same transaction goes away: it has no older storage.
                self.accounts.entry(address).or_default().set(block, None, self.oldest);
                continue;
            }
            self.set_account(address, block, &account.info);
            for (key, slot) in account.storage {
                if slot.is_changed() {
                    self.slots.entry((address, key)).or_default().set(block, slot.present_value(), self.oldest);
                }
            }
        }
    }

    pub(crate) fn set_block_hash(&mut self, block: u64, hash: B256) {
        self.block_hashes.insert(block, hash);
        self.block_hashes = self.block_hashes.split_off(&block.saturating_sub(BLOCK_HASHES_MAX));
    }

    /// Gives up states before `block`. Their memory goes with the next write to each value.
    pub(crate) fn forget_before(&mut self, block: u64) {
        self.oldest = block;
    }

    pub(crate) fn at(&self, block: u64) -> StateAt<'_> {
        StateAt { state: self, block }
    }
}

/// The state as of one block, for the EVM to read.
#[derive(Clone, Copy)]
pub(crate) struct StateAt<'a> {
    state: &'a State,
    block: u64,
}

impl DatabaseRef for StateAt<'_> {
    type Error = Infallible;

    fn basic_ref(&self, address: Address) -> Result<Option<AccountInfo>, Infallible> {
        Ok(self.state.account(address, self.block))
    }

    fn code_by_hash_ref(&self, code_hash: B256) -> Result<Bytecode, Infallible> {
        if code_hash == KECCAK_EMPTY {
            return Ok(Bytecode::default());
        }
        Ok(self.state.codes.get(&code_hash).cloned().unwrap_or_default())
    }

    fn storage_ref(&self, address: Address, index: U256) -> Result<U256, Infallible> {
        let slot = self.state.slots.get(&(address, index)).and_then(|versions| versions.at(self.block));
        Ok(slot.copied().unwrap_or_default())
    }

    fn block_hash_ref(&self, number: u64) -> Result<B256, Infallible> {
        Ok(self.state.block_hashes.get(&number).copied().unwrap_or_default())
    }
}

/// One value over time: `(block that wrote it, value)`, ascending.
struct Versions<T>(Vec<(u64, T)>);

impl<T> Default for Versions<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Versions<T> {
    fn at(&self, block: u64) -> Option<&T> {
        let written = self.0.partition_point(|(by, _)| *by <= block);
        self.0.get(written.checked_sub(1)?).map(|(_, value)| value)
    }

    fn set(&mut self, block: u64, value: T, oldest: u64) {
        match self.0.last_mut() {
            Some((by, last)) if *by == block => *last = value,
            _ => self.0.push((block, value)),
        }
        let unreachable = self.0.partition_point(|(by, _)| *by <= oldest).saturating_sub(1);
        self.0.drain(..unreachable);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_as_of_each_block_and_forgotten_with_the_history() {
        let mut versions = Versions::default();
        for block in [2u64, 5, 9] {
            versions.set(block, block * 10, 0);
        }
        versions.set(9, 91, 0);
        let read = |versions: &Versions<u64>, block| versions.at(block).copied();
        assert_eq!(
            [1, 2, 4, 5, 8, 9, 100].map(|b| read(&versions, b)),
            [None, Some(20), Some(20), Some(50), Some(50), Some(91), Some(91)]
        );

        versions.set(12, 120, 6);
        assert_eq!(
            versions.0.iter().map(|(by, _)| *by).collect::<Vec<_>>(),
            [5, 9, 12],
            "block 6 still reads 5's write"
        );
        assert_eq!(read(&versions, 6), Some(50));
    }
}
