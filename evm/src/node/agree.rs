//! When several sources have to say the same.

use alloy::primitives::{B256, Bytes, U64, U256};

use super::{Called, Header, Receipt, Transaction};

/// How many sources must give the same answer before it is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreement(pub(crate) usize);

impl Agreement {
    /// Whichever source answers first is believed.
    pub(crate) const ONE: Self = Self(1);
}

/// Answers that can be compared between sources.
pub(crate) trait Answer: Sized {
    /// Whether both say the same of the matter that is decided.
    fn agrees(&self, other: &Self) -> bool;

    /// One answer from two that agree: of what moves with time, the more careful one.
    fn merged(self, other: Self) -> Self {
        let _ = other;
        self
    }
}

impl Answer for Receipt {
    fn agrees(&self, other: &Self) -> bool {
        let told = |receipt: &Self| {
            (
                receipt.transaction_hash,
                receipt.block_hash,
                receipt.block_number,
                receipt.status,
                receipt.from,
                receipt.to,
            )
        };
        // Not by their own hash alone: some nodes leave fields of a log out that others have.
        let events = |receipt: &Self| -> Vec<_> {
            receipt.logs.iter().map(|log| (log.address, log.topics.clone(), log.data.clone())).collect()
        };
        told(self) == told(other) && events(self) == events(other)
    }
}

impl Answer for Transaction {
    fn agrees(&self, other: &Self) -> bool {
        self == other
    }
}

/// The newest block, or the one of a tag: sources are never at the same, and the lowest is the careful choice.
impl Answer for Header {
    fn agrees(&self, _: &Self) -> bool {
        true
    }

    fn merged(self, other: Self) -> Self {
        if other.number < self.number { other } else { self }
    }
}

/// The block at a given height.
impl Answer for Option<Header> {
    fn agrees(&self, other: &Self) -> bool {
        let told = |found: &Self| found.as_ref().map(|header| (header.hash, header.number, header.timestamp));
        told(self) == told(other)
    }
}

impl Answer for Called {
    fn agrees(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Returned(mine), Self::Returned(theirs)) => mine == theirs,
            (Self::Reverted(_), Self::Reverted(_)) => true,
            _ => false,
        }
    }
}

macro_rules! equal {
    ($($plain:ty),+) => {
        $(impl Answer for $plain {
            fn agrees(&self, other: &Self) -> bool {
                self == other
            }
        })+
    };
}

equal!(U64, U256, B256, Bytes);

macro_rules! found {
    ($($thing:ty),+) => {
        $(impl Answer for Option<$thing> {
            fn agrees(&self, other: &Self) -> bool {
                match (self, other) {
                    (Some(mine), Some(theirs)) => mine.agrees(theirs),
                    (None, None) => true,
                    _ => false,
                }
            }
        })+
    };
}

found!(Receipt, Transaction);

impl<A: Answer> Answer for Vec<A> {
    fn agrees(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().zip(other).all(|(mine, theirs)| mine.agrees(theirs))
    }

    fn merged(self, other: Self) -> Self {
        self.into_iter().zip(other).map(|(mine, theirs)| mine.merged(theirs)).collect()
    }
}

macro_rules! tuple {
    ($($part:ident $at:tt),+) => {
        impl<$($part: Answer),+> Answer for ($($part,)+) {
            fn agrees(&self, other: &Self) -> bool {
                $(self.$at.agrees(&other.$at))&&+
            }

            fn merged(self, other: Self) -> Self {
                ($(self.$at.merged(other.$at),)+)
            }
        }
    };
}

tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);
