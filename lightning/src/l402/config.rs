//! How L402 tokens are sold and believed.

use std::time::Duration;

use farebox_core::BitcoinNetwork;

/// Invoices live at least so long: a payer has to route the payment.
const EXPIRY_MIN: Duration = Duration::from_secs(30);
/// And at most so long: a price in dollars is that of the moment when the invoice was made.
const EXPIRY_MAX: Duration = Duration::from_secs(24 * 3600);
/// One a millisecond, the step in which limits are counted.
const PER_MINUTE_MAX: u32 = 60_000;
/// The longest that a node is waited for.
const NODE_TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// How tokens are sold and believed, on one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L402Config {
    /// Where invoices are paid.
    pub network: BitcoinNetwork,
    /// What is taken as proof that an invoice is paid.
    pub paid_by: PaidBy,
    /// How long an invoice can be paid; whole seconds, 30 s to a day.
    pub invoice_expiry: Duration,
    /// An open invoice with less time left is not offered again; shorter than `invoice_expiry`.
    pub reuse_left_min: Duration,
    /// So many invoices a minute may one client (an IPv4 address, an IPv6 /64) have made that it does not pay, a quarter of them at once;
    /// 1 to 60,000. An IPv6 /48 may have four times as many.
    pub unpaid_per_client_per_minute: u32,
    /// And all clients together; 1 to 60,000. Half of those at once are for clients that have nothing unpaid.
    pub unpaid_per_minute: u32,
    /// How long one answer of the node is waited for; at most a minute.
    pub node_timeout: Duration,
}

/// What is taken as proof that an invoice is paid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PaidBy {
    /// Its preimage, which a payer gets for the money. The nodes that forwarded the payment know it too, but not the macaroon.
    #[default]
    Preimage,
    /// The node's word that the money is ours, beside the preimage; once seen it is remembered. Costs a question for each new token.
    Settlement,
}

impl L402Config {
    /// What suits most sellers.
    #[must_use]
    pub const fn on(network: BitcoinNetwork) -> Self {
        Self {
            network,
            paid_by: PaidBy::Preimage,
            invoice_expiry: Duration::from_secs(600),
            reuse_left_min: Duration::from_secs(120),
            unpaid_per_client_per_minute: 30,
            unpaid_per_minute: 1_200,
            node_timeout: Duration::from_secs(10),
        }
    }

    pub(crate) fn checked(self) -> Result<Self, L402ConfigError> {
        let Self { invoice_expiry, reuse_left_min, node_timeout, .. } = self;
        let wrong = |field, expected: &str| Err(L402ConfigError { field, expected: expected.to_owned() });
        if !(EXPIRY_MIN..=EXPIRY_MAX).contains(&invoice_expiry) || invoice_expiry.subsec_nanos() != 0 {
            return wrong("invoice_expiry", "whole seconds, from 30 s to 24 h");
        }
        if reuse_left_min >= invoice_expiry {
            return wrong("reuse_left_min", "less than invoice_expiry");
        }
        for (field, value) in [
            ("unpaid_per_client_per_minute", self.unpaid_per_client_per_minute),
            ("unpaid_per_minute", self.unpaid_per_minute),
        ] {
            if !(1..=PER_MINUTE_MAX).contains(&value) {
                return wrong(field, "1 to 60000");
            }
        }
        if node_timeout.is_zero() || node_timeout > NODE_TIMEOUT_MAX {
            return wrong("node_timeout", "more than nothing, and at most 60 s");
        }
        Ok(self)
    }
}

/// Why tokens cannot be sold as configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: expected {expected}")]
pub struct L402ConfigError {
    /// Which field of [`L402Config`].
    pub field: &'static str,
    /// What it may be.
    pub expected: String,
}

impl L402ConfigError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        "l402_config"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_bounds_is_refused() {
        let usual = L402Config::on(BitcoinNetwork::Regtest);
        assert_eq!(usual.clone().checked(), Ok(usual.clone()));
        let s = Duration::from_secs;
        let check = |field: &str, wrong: L402Config| assert_eq!(wrong.checked().unwrap_err().field, field);
        for invoice_expiry in [s(0), s(29), s(86_401), Duration::from_millis(30_500)] {
            check("invoice_expiry", L402Config { invoice_expiry, ..usual.clone() });
        }
        check("reuse_left_min", L402Config { reuse_left_min: s(600), ..usual.clone() });
        for per_minute in [0, 60_001] {
            check(
                "unpaid_per_client_per_minute",
                L402Config { unpaid_per_client_per_minute: per_minute, ..usual.clone() },
            );
            check("unpaid_per_minute", L402Config { unpaid_per_minute: per_minute, ..usual.clone() });
        }
        for node_timeout in [s(0), s(61)] {
            check("node_timeout", L402Config { node_timeout, ..usual.clone() });
        }
    }
}
