//! L402: tokens sold by Lightning invoices, and what becomes of both.

mod bills;
mod check;
mod config;
mod elsewhere;
mod follow;
mod limits;
mod link;
mod make;
mod price;
mod rail;

pub use config::{L402Config, L402ConfigError, PaidBy};
pub use link::NodeTrouble;
pub use make::WrongInvoice;
pub use rail::{L402, L402Parts};
