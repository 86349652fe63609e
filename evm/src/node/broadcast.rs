//! Handing signed transactions to the chain. The bytes are the same for every source, so a second copy charges nobody twice.

use std::time::Duration;

use alloy::primitives::{B256, Bytes};
use tokio::time::Instant;

use super::{
    Broadcast, NoAnswer, Node, Receipt, SourceError,
    ask::{self, Reply},
    race::{Haste, Raced, race},
    source::{Order, Source},
};

impl Node {
    /// Hands transactions over in this order; gives what the source said of each.
    ///
    /// Not hedged: two sources that get one lane's transactions at different times each see gaps in its nonces, and a node drops or
    /// shelves what comes after a gap. The next source is asked only if the first fails, or has used up half of the time.
    pub(crate) async fn broadcast_group(&self, group: &[Bytes]) -> Result<Vec<Broadcast>, NoAnswer> {
        let questions: Vec<_> = group.iter().map(ask::broadcast).collect();
        let asking = |source: Source| {
            let questions = &questions;
            async move { source.exchange(questions, Order::Kept).await?.into_iter().map(taken).collect() }
        };
        let deadline = Instant::now() + self.timeout;
        match race(self.ranked(), deadline, Haste::Patient, &self.shared.hedges, asking).await {
            Raced::Won(_, answers) => Ok(answers),
            Raced::Lost(lost) => Err(self.lost("eth_sendRawTransaction", lost)),
        }
    }

    /// Hands one transaction to every source: for one that is late, which perhaps only the source that took it knows. The best that
    /// any of them says is given.
    pub(crate) async fn broadcast(&self, raw: &Bytes) -> Result<Broadcast, NoAnswer> {
        let deadline = Instant::now() + self.timeout;
        let each = self.sources.iter().map(|source| async move {
            let question = [ask::broadcast(raw)];
            match tokio::time::timeout_at(deadline, source.exchange(&question, Order::Kept)).await {
                Ok(Ok(replies)) => replies.into_iter().next().map_or(Err(SourceError::garbled("no answer")), taken),
                Ok(Err(error)) => Err(error),
                Err(_) => Err(SourceError::TimedOut(self.timeout)),
            }
            .map_err(|error| (source.clone(), error))
        });
        let mut best: Option<Broadcast> = None;
        let mut failed = None;
        for outcome in futures_util::future::join_all(each).await {
            match outcome {
                Ok(answer) => best = Some(best.map_or(answer, |best| best.min(answer))),
                Err(lost) => failed = Some(lost),
            }
        }
        best.ok_or_else(|| self.lost("eth_sendRawTransaction", failed))
    }

    /// Hands transactions to the preferred source in this order and waits there for their receipts, if it can (EIP-7966). `None`: it
    /// cannot, or not in time; a transaction without a receipt may be there all the same.
    pub(crate) async fn broadcast_sync(&self, group: &[(B256, Bytes)], wait: Duration) -> Option<Vec<Option<Receipt>>> {
        let source = self.ranked().into_iter().next().filter(Source::sync_send)?;
        source.send_sync(group, wait).await
    }
}

fn taken(reply: Reply) -> Result<Broadcast, SourceError> {
    match reply {
        Ok(_) => Ok(Broadcast::Taken),
        Err(answer) => Ok(answer.as_broadcast()),
    }
}
