//! The chain behind its lock, and word of each new block.

use std::time::Duration;

use alloy::primitives::B256;
use alloy::rpc::types::TransactionReceipt;
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::chain::Chain;
use crate::view;

pub(crate) struct Node {
    chain: RwLock<Chain>,
    /// Number of the newest block.
    head: watch::Sender<u64>,
}

impl Node {
    pub(crate) fn new(chain: Chain) -> Self {
        Self { head: watch::Sender::new(chain.head().header.number), chain: RwLock::new(chain) }
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&Chain) -> T) -> T {
        read(&self.chain.read())
    }

    pub(crate) fn write<T>(&self, write: impl FnOnce(&mut Chain) -> T) -> T {
        let mut chain = self.chain.write();
        let result = write(&mut chain);
        let number = chain.head().header.number;
        drop(chain);
        // Never back: of two writers, the later may come here first.
        self.head.send_if_modified(|head| number > std::mem::replace(head, number.max(*head)));
        result
    }

    /// The receipt of a transaction, as soon as it is in a block; `None` if it is in none within `timeout`.
    pub(crate) async fn receipt(&self, hash: &B256, timeout: Duration) -> Option<TransactionReceipt> {
        // Subscribed before the first look, so that no block in between is missed.
        let mut head = self.head.subscribe();
        let found = async {
            loop {
                let receipt = self.read(|chain| chain.place(hash).map(|(block, index)| view::receipt(block, index)));
                if receipt.is_some() || head.changed().await.is_err() {
                    return receipt;
                }
            }
        };
        tokio::time::timeout(timeout, found).await.unwrap_or_default()
    }
}
