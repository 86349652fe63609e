//! Pays for HTTP calls: sends a request, reads the bill of a 402, decides by [`Policy`] whether to pay it, signs once, and sends
//! the identical bytes again whenever the outcome is unclear, across restarts too, by means of a [`Journal`].
//!
//! ```no_run
//! # async fn example(wallet: std::sync::Arc<dyn farebox_core::ports::Wallet>,
//! #     clock: std::sync::Arc<dyn farebox_core::ports::Clock>, entropy: std::sync::Arc<dyn farebox_core::ports::Entropy>)
//! #     -> Result<(), Box<dyn std::error::Error>> {
//! use farebox_agent::{Agent, Journal};
//!
//! let journal = Journal::open("payments".as_ref(), clock.now())?;
//! let agent = Agent::builder().wallet(wallet).journal(journal).clock(clock).entropy(entropy).build()?;
//! let url = "https://api.example.com/report".parse()?;
//! let fetched = agent.fetch(reqwest::Request::new(http::Method::GET, url)).await?;
//! println!("{:?}", fetched.payment);
//! println!("{}", fetched.response.text().await?);
//! # Ok(()) }
//! ```

mod agent;
mod asset;
mod bill;
mod delivery;
mod entry;
mod error;
mod journal;
mod l402;
mod next;
mod pay;
mod policy;
mod request;
mod retry;
mod sign;
mod transfer;
mod verdict;

pub use agent::{Agent, AgentBuilder, Charge, Fetched, Note, PaymentMade, Quote, QuotedInvoice, QuotedOffer};
pub use asset::{DollarAsset, DollarAssetError, Usd, well_known_assets};
pub use bill::{BILL_BODY_BYTES_MAX, Bill, BillError};
pub use entry::{Authorization, Entry, Fingerprint, SignedTransaction, Standing, Transfer};
pub use error::{BuildError, FetchError, RefusedOffer, RequestError, Stake, TransportError, UnreadableBill};
pub use journal::{EXPIRY_GRACE, Journal, JournalError, RECEIPTS_MAX, REDELIVERY_WITHIN, UNRESOLVED_KEPT_FOR};
pub use l402::{
    L402BillError, LightningError, LightningMade, LightningRule, PaidToken, Purchase, Stage, TokenFacts, TokenStanding,
};
pub use policy::{Acceptable, Policy, PolicyRule, RoutingFee, VALID_FOR_MAX};
pub use retry::{PlainHttp, Redirects, RetryPolicy};
pub use transfer::{NotSent, TransferMade};
