//! Bitcoin Lightning: invoices, hashes and preimages, and the networks they live on.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{AssetId, Network, Timestamp};

/// A Bitcoin network. Lightning payments stay within one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BitcoinNetwork {
    /// The real one.
    Bitcoin,
    /// testnet3.
    Testnet,
    /// testnet4.
    Testnet4,
    /// The default signet.
    Signet,
    /// A private chain; every one has the same genesis block.
    Regtest,
}

impl BitcoinNetwork {
    /// Every network.
    pub const ALL: [Self; 5] = [Self::Bitcoin, Self::Testnet, Self::Testnet4, Self::Signet, Self::Regtest];

    /// As config and nodes spell it: `bitcoin`, `testnet`, `testnet4`, `signet`, `regtest`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bitcoin => "bitcoin",
            Self::Testnet => "testnet",
            Self::Testnet4 => "testnet4",
            Self::Signet => "signet",
            Self::Regtest => "regtest",
        }
    }

    /// The CAIP-2 name: `bip122:` and the first 32 hex digits of the genesis block's hash. Source: CAIP-4.
    #[must_use]
    pub const fn caip2(self) -> &'static str {
        match self {
            Self::Bitcoin => "bip122:000000000019d6689c085ae165831e93",
            Self::Testnet => "bip122:000000000933ea01ad0ee984209779ba",
            Self::Testnet4 => "bip122:00000000da84f2bafbbc53dee25a72ae",
            Self::Signet => "bip122:00000008819873e925422c1ff0f99f7c",
            Self::Regtest => "bip122:0f9188f13cb7b2c71f2a335e3a4fc328",
        }
    }

    /// The network by its CAIP-2 name.
    #[must_use]
    pub fn of(network: &Network) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.caip2() == network.as_str())
    }

    /// What a BOLT 11 invoice begins with, after `ln`: testnet3 and testnet4 share theirs. Source: BOLT 11.
    #[must_use]
    pub const fn invoice_prefix(self) -> &'static str {
        match self {
            Self::Bitcoin => "bc",
            Self::Testnet | Self::Testnet4 => "tb",
            Self::Signet => "tbs",
            Self::Regtest => "bcrt",
        }
    }

    /// Whether what moves on it is worth nothing.
    #[must_use]
    pub const fn is_test(self) -> bool {
        !matches!(self, Self::Bitcoin)
    }

    /// Bitcoin over Lightning on this network, counted in millisatoshis.
    #[must_use]
    pub fn asset(self) -> AssetId {
        AssetId::lightning(&self.network())
    }

    /// As a [`Network`].
    #[must_use]
    pub fn network(self) -> Network {
        Network::bitcoin(self)
    }
}

impl fmt::Display for BitcoinNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// SHA-256 of a preimage: what a Lightning invoice asks to be paid for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PaymentHash(pub [u8; 32]);

impl PaymentHash {
    /// From 64 lower-case hex digits.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        lower_hex(text).map(Self)
    }
}

impl fmt::Display for PaymentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PaymentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for PaymentHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PaymentHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_hex(&text).ok_or_else(|| serde::de::Error::custom("expected 64 lower-case hex digits"))
    }
}

/// What a payer gets for paying an invoice: 32 bytes whose SHA-256 is the [`PaymentHash`]. Every node on the payment's way learns it, so it
/// proves nothing by itself; it does not print all the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Preimage(pub [u8; 32]);

impl Preimage {
    /// From 64 lower-case hex digits.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        lower_hex(text).map(Self)
    }

    /// The 64 lower-case hex digits, for the wire and the payer's own store.
    #[must_use]
    pub fn reveal(&self) -> String {
        hex::encode(self.0)
    }

    /// What it is the preimage of.
    #[must_use]
    pub fn hash(&self) -> PaymentHash {
        PaymentHash(Sha256::digest(self.0).into())
    }

    /// Whether both are the same, in constant time.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for Preimage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Preimage(..)")
    }
}

/// 64 lower-case hex digits and nothing else: one spelling for one value.
pub(crate) fn lower_hex(text: &str) -> Option<[u8; 32]> {
    let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let mut bytes = [0; 32];
    (lower && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(bytes)
}

/// A BOLT 11 invoice with an amount, and what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invoice {
    /// What it asks to be paid for.
    pub payment_hash: PaymentHash,
    /// The invoice itself, lower case.
    pub bolt11: Arc<str>,
    /// Millisatoshis, 1 or more.
    pub amount_msat: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// From when on it cannot be paid.
    pub expires_at: Timestamp,
}

/// Where an invoice of ours stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InvoiceState {
    /// Not paid yet, as far as we know.
    Open,
    /// The money is on its way to us and not ours yet: its sender is bound, the node has not taken it.
    Held,
    /// Paid.
    Settled,
    /// Paid with less than was asked: buys nothing.
    Underpaid,
    /// Not paid in time.
    Expired,
    /// Taken back before it was paid.
    Cancelled,
}

/// What was learnt of an invoice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvoiceNews {
    /// See [`InvoiceState::Held`].
    Held,
    /// It is paid.
    Settled {
        /// With so many millisatoshis; more than was asked is the payer's credit.
        received_msat: u64,
    },
    /// Its time is over.
    Expired,
    /// It was taken back.
    Cancelled,
}

impl InvoiceState {
    /// As books and logs spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Held => "held",
            Self::Settled => "settled",
            Self::Underpaid => "underpaid",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }

    /// Every state.
    pub const ALL: [Self; 6] = [Self::Open, Self::Held, Self::Settled, Self::Underpaid, Self::Expired, Self::Cancelled];

    /// The state after `news` of an invoice over `amount_msat`. Paid stays paid, whatever is heard later; and money that comes after the time was
    /// over has come all the same.
    #[must_use]
    pub const fn after(self, news: InvoiceNews, amount_msat: u64) -> Self {
        match (self, news) {
            (Self::Settled, _) => Self::Settled,
            (_, InvoiceNews::Settled { received_msat }) if received_msat >= amount_msat => Self::Settled,
            (_, InvoiceNews::Settled { .. }) | (Self::Underpaid, _) => Self::Underpaid,
            (_, InvoiceNews::Held) => Self::Held,
            (_, InvoiceNews::Expired) => Self::Expired,
            (_, InvoiceNews::Cancelled) => Self::Cancelled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_known_by_their_genesis_blocks() {
        for network in BitcoinNetwork::ALL {
            assert_eq!(BitcoinNetwork::of(&network.network()), Some(network));
            assert_eq!(network.asset().to_string().parse(), Ok(network.asset()));
            assert_eq!(network.asset().network(), &network.network());
        }
        assert_eq!(BitcoinNetwork::of(&Network::evm(1)), None);
    }

    #[test]
    fn a_preimage_hashes_to_its_payment_hash_and_does_not_print() {
        // Wire page L402, test vector.
        let preimage = Preimage([0x11; 32]);
        assert_eq!(preimage.hash().to_string(), "02d449a31fbb267c8f352e9968a79e3e5fc95c1bbeaa502fd6454ebde5a4bedc");
        assert_eq!(format!("{preimage:?}"), "Preimage(..)");
        assert_eq!(Preimage::from_hex(&preimage.reveal()), Some(preimage));
        for wrong in ["", "11", &preimage.reveal().to_uppercase().replace('1', "A"), &preimage.reveal()[2..]] {
            assert_eq!(Preimage::from_hex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn paid_stays_paid_and_late_money_counts() {
        use {InvoiceNews as N, InvoiceState as S};
        let settled = N::Settled { received_msat: 10 };
        for state in S::ALL {
            assert_eq!(state.after(settled, 10), S::Settled, "{state:?}");
            assert_eq!(S::Settled.after(N::Expired, 10), S::Settled);
            if state != S::Settled {
                assert_eq!(state.after(N::Settled { received_msat: 9 }, 10), S::Underpaid);
            }
        }
        assert_eq!(S::Underpaid.after(N::Expired, 10), S::Underpaid);
        assert_eq!(S::Held.after(N::Cancelled, 10), S::Cancelled);
    }
}
