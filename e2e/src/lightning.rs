//! Real Lightning: Bitcoin Core on regtest, lnd nodes on it, and a channel between two of them.

mod aperture;
mod buyer;
mod grpc;
mod lnd;
mod nwc;
mod regtest;
mod stall;

use anyhow::{Context, Result};

pub use aperture::{Aperture, Goods};
pub use buyer::{Answered, Bought, Buyer, Wanted};
pub use grpc::{GrpcBought, GrpcBuyer, GrpcService};
pub use lnd::{Decoded, Hash, HoldInvoice, Invoice, InvoiceState, Lnd, Macaroon, Paid, Payment};
pub use nwc::{NwcWallet, Preimages};
pub use regtest::{Regtest, RpcLogin};
pub use stall::{Stall, lnd_node, table};

/// What a channel of [`LightningPair`] holds, in satoshis. Each side starts with half, less fees and reserve.
pub const CHANNEL_SAT: u64 = 10_000_000;

/// Where a Lightning node is found by another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its public key: 33 bytes in hex.
    pub node_id: String,
    /// `host:port`.
    pub address: String,
}

/// A chain, two nodes, and a channel of [`CHANNEL_SAT`] between them through which either can pay the other.
#[derive(Debug)]
pub struct LightningPair {
    /// Who sells in most tests.
    pub seller: Lnd,
    /// Who buys.
    pub payer: Lnd,
    /// The chain under both. Last, so that it is stopped after those who ask it.
    pub regtest: Regtest,
}

impl LightningPair {
    /// Starts all of it.
    ///
    /// # Errors
    /// A tool is missing, or a node does not do its part in time.
    pub async fn start() -> Result<Self> {
        let regtest = Regtest::start().await?;
        let (seller, payer) = tokio::try_join!(Lnd::start(&regtest, "seller"), Lnd::start(&regtest, "payer"))?;
        payer.fund(&regtest, 2 * CHANNEL_SAT).await.context("fund the payer")?;
        payer.open_channel(&regtest, &seller.peer(), CHANNEL_SAT, CHANNEL_SAT / 2).await.context("open a channel")?;
        seller.wait_for_way_to(payer.node_id()).await?;
        Ok(Self { seller, payer, regtest })
    }

    /// [`Lnd::restart`] of the seller, and waits until either can pay the other again.
    ///
    /// # Errors
    /// As there.
    pub async fn restart_seller(&mut self) -> Result<()> {
        self.seller.restart().await?;
        self.payer.connect(&self.seller.peer()).await?;
        self.payer.wait_for_way_to(self.seller.node_id()).await?;
        self.seller.wait_for_way_to(self.payer.node_id()).await
    }
}
