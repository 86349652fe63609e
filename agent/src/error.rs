//! Why a fetch did not end in an answer.

use std::fmt;

use farebox_core::{AssetId, EvmAddress, Network, PaymentId, Timestamp, TransactionId, Untrusted, ports::WalletError};
use farebox_wire::transfer::TransferBillError;

use crate::{
    asset::Usd,
    bill::BillError,
    journal::JournalError,
    l402::{L402BillError, LightningError},
    policy::{PolicyRule, date, until_text},
    transfer::NotSent,
};

/// Why a fetch did not end in an answer. Which of them leave money at risk, [`FetchError::stake`] says.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The request cannot be sent twice, or carries a payment of its own. Nothing was sent.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The server did not answer the unpaid request. Nothing was signed.
    #[error("no answer from {host}")]
    Network {
        /// The host asked.
        host: String,
        /// What went wrong.
        #[source]
        source: TransportError,
    },
    /// The 402 is no bill that this agent can read. Nothing was signed.
    #[error("the seller's 402 is not a bill this agent can read")]
    Bill(#[from] UnreadableBill),
    /// Nothing in the bill may be paid. No new signature was made.
    #[error("the policy forbids this payment: {}", refusals(.0))]
    Policy(Vec<RefusedOffer>),
    /// A HEAD was billed. The gateway never takes money for one, so nothing is signed for it.
    #[error("HEAD is not sold; the same URL by GET costs {}", price.map_or_else(|| "money".to_owned(), |p| p.to_string()))]
    HeadNotSold {
        /// The cheapest offer of the bill, if one is in a known token.
        price: Option<Usd>,
    },
    /// The transfer that the policy allows cannot be made. Nothing was signed.
    #[error("no transfer was made: {0}")]
    NotSent(Box<NotSent>),
    /// A Lightning payment ended without a token.
    #[error(transparent)]
    Lightning(#[from] LightningError),
    /// The wallet did not sign.
    #[error("the wallet did not sign")]
    Wallet(#[from] WalletError),
    /// The wallet signed something else than the offer. It was thrown away unsent.
    #[error("the wallet signed another {field} than the offer's: expected {expected}, found {found}")]
    WalletStrayed {
        /// Such as `to`.
        field: &'static str,
        /// By the offer.
        expected: String,
        /// In what was signed.
        found: String,
    },
    /// The journal could not be read or written. Nothing was signed over it, and nothing new was sent.
    #[error("the payment journal stands in the way")]
    Journal(#[from] JournalError),
    /// The seller refused the payment and says that it was not charged.
    #[error(
        "the seller refused the payment and says it was not charged: {reason}{}",
        then.as_deref().map_or_else(String::new, |rules| format!("; the policy forbids another: {}", refusals(rules)))
    )]
    Refused {
        /// The seller's reason, cut and escaped.
        reason: String,
        /// Why no other payment was made instead, if one was thought of.
        then: Option<Vec<RefusedOffer>>,
        /// Until when the seller could break its word: what was signed is valid until then. `None` if it no longer is.
        valid_until: Option<Timestamp>,
    },
    /// The seller says that the wallet has not enough, and that nothing was charged. The same bytes are good until they expire.
    #[error("the wallet {payer:x} has not enough, and the seller says it was not charged: {reason}")]
    InsufficientBalance {
        /// Who would have paid.
        payer: EvmAddress,
        /// The seller's reason, cut and escaped.
        reason: String,
        /// As in [`FetchError::Refused`].
        valid_until: Option<Timestamp>,
    },
    /// The seller could not serve the request and says that it has not charged for it so far; it would take the same bytes again.
    #[error("the seller did not serve it and says it was not charged: {reason}{}", stays_valid(*valid_until))]
    NotServed {
        /// The seller's reason, cut and escaped.
        reason: String,
        /// As in [`FetchError::Refused`].
        valid_until: Option<Timestamp>,
    },
    /// Charged, and the seller could not serve it yet: the same request, made again with the same journal, redeems it.
    #[error(
        "the payment was charged{} and the seller could not serve it yet: {reason}",
        named(transaction.as_ref(), *payment)
    )]
    ChargedNotServed {
        /// The seller's reason, cut and escaped.
        reason: String,
        /// The transaction, if the seller named one.
        transaction: Option<TransactionId>,
        /// The seller's name for the payment, if it gave one.
        payment: Option<PaymentId>,
    },
    /// The seller refused a payment and says that it was not charged, and wallet or journal then kept another from being made.
    #[error("the seller refused the payment and says it was not charged: {reason}; no other could be made")]
    StoppedAfterRefusal {
        /// The seller's reason, cut and escaped.
        reason: String,
        /// As in [`FetchError::Refused`].
        valid_until: Option<Timestamp>,
        /// What went wrong.
        #[source]
        source: Box<FetchError>,
    },
    /// Paid, or used up, and the seller does not answer for it again.
    #[error("the payment was charged and the seller gives no answer for it: {reason}")]
    ChargedNotDelivered {
        /// The seller's reason, cut and escaped.
        reason: String,
        /// The transaction, if the seller named one.
        transaction: Option<TransactionId>,
    },
    /// An earlier transfer for this request is another wallet's, and only that one can claim it.
    #[error(
        "wallet {payer:x} made a transfer for this request, {transaction}; run it again with that wallet, which alone can claim it"
    )]
    OtherWallet {
        /// Who paid.
        payer: EvmAddress,
        /// The newest transaction of it.
        transaction: TransactionId,
    },
    /// A transfer was sent, and what became of it is not known yet. The same request, made again with the same journal, goes on
    /// with this one transfer and makes no other.
    #[error("the transfer {transaction} is not confirmed yet: {last}; run the same request again")]
    TransferUnconfirmed {
        /// The newest transaction of it.
        transaction: TransactionId,
        /// What is known, or why it is not known.
        last: String,
    },
    /// A transfer was not mined before its bill ended. It is not sent again. If it is mined none the less it is the payer's credit
    /// with the seller, and the same request, made again, claims that.
    #[error(
        "the transfer {transaction} was not mined before the bill's payBy, {}; it was not sent again, and no other was made; if it is \
         mined none the less, it is credit",
        date(*pay_by)
    )]
    TransferLate {
        /// The newest transaction of it.
        transaction: TransactionId,
        /// When it had to be mined.
        pay_by: Timestamp,
    },
    /// A transfer moved nothing and never will: it failed on the chain, or another transaction has used its nonce. The same
    /// request, made again, pays anew.
    #[error(
        "the transfer {transaction} moved nothing and never will: {reason}; the same request, made again, pays anew"
    )]
    TransferVoid {
        /// The transaction that failed, or the newest of those that cannot be mined.
        transaction: TransactionId,
        /// Which of the two.
        reason: String,
    },
    /// The transfer was made and came too late for its bill: the seller keeps it as the payer's credit and did not serve the request.
    #[error("the transfer {transaction} came too late for its bill, and the seller keeps it as your credit: {reason}")]
    Credited {
        /// The seller's reason, cut and escaped.
        reason: String,
        /// The transaction.
        transaction: TransactionId,
        /// What the seller says that it keeps, cut and escaped, if it says so.
        credit: Option<String>,
    },
    /// Whether the payment was charged could not be found out in time. The same request, made again with the same journal, sends the
    /// identical bytes and cannot pay twice.
    #[error(
        "whether the payment was charged is not known after {attempts} attempts: {last}; run the same request again"
    )]
    OutcomeUnclear {
        /// How often the bytes were sent.
        attempts: u32,
        /// What was last heard, cut and escaped.
        last: String,
    },
}

/// What a failed fetch leaves at risk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stake {
    /// Nothing was signed, or what was signed never left this process or can never be charged.
    Nothing,
    /// Signed, and by the seller's word not charged.
    Declined,
    /// It may have been charged, or may yet be.
    Unclear,
    /// Charged.
    Charged,
}

impl FetchError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Request(error) => error.code(),
            Self::Network { .. } => "network",
            Self::Bill(error) => error.code(),
            Self::Policy(_) => "policy_refused",
            Self::HeadNotSold { .. } => "head_not_sold",
            Self::NotSent(error) => error.code(),
            Self::Lightning(error) => error.code(),
            Self::Wallet(WalletError::Unsupported { .. }) => "wallet_cannot_pay",
            Self::Wallet(WalletError::NoNode { .. }) => "wallet_without_node",
            Self::Wallet(WalletError::Unavailable { .. }) => "wallet_unavailable",
            Self::WalletStrayed { .. } => "wallet_strayed",
            Self::Journal(error) => error.code(),
            Self::StoppedAfterRefusal { source, .. } => source.code(),
            Self::Refused { .. } => "payment_refused",
            Self::InsufficientBalance { .. } => "insufficient_balance",
            Self::NotServed { .. } => "not_served",
            Self::ChargedNotServed { .. } => "charged_not_served",
            Self::ChargedNotDelivered { .. } => "charged_not_delivered",
            Self::OutcomeUnclear { .. } => "outcome_unclear",
            Self::OtherWallet { .. } => "other_wallet",
            Self::TransferUnconfirmed { .. } => "transfer_unconfirmed",
            Self::TransferLate { .. } => "transfer_late",
            Self::TransferVoid { .. } => "transfer_void",
            Self::Credited { .. } => "paid_as_credit",
        }
    }

    /// Whether the same call, made again as it is, may succeed.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Network { .. }
            | Self::Wallet(WalletError::Unavailable { .. })
            | Self::NotServed { .. }
            | Self::ChargedNotServed { .. }
            | Self::OutcomeUnclear { .. }
            | Self::TransferUnconfirmed { .. }
            | Self::TransferVoid { .. } => true,
            Self::Journal(error) => error.retryable(),
            Self::Lightning(error) => error.retryable(),
            Self::StoppedAfterRefusal { source, .. } => source.retryable(),
            Self::Request(_)
            | Self::Bill(_)
            | Self::Policy(_)
            | Self::HeadNotSold { .. }
            | Self::NotSent(_)
            | Self::Wallet(WalletError::Unsupported { .. } | WalletError::NoNode { .. })
            | Self::WalletStrayed { .. }
            | Self::OtherWallet { .. }
            | Self::TransferLate { .. }
            | Self::Credited { .. }
            | Self::Refused { .. }
            | Self::InsufficientBalance { .. }
            | Self::ChargedNotDelivered { .. } => false,
        }
    }

    /// What it leaves at risk.
    #[must_use]
    pub const fn stake(&self) -> Stake {
        match self {
            // A payment was made for this request that cannot be looked at, or somebody is making one.
            Self::Journal(
                JournalError::Busy
                | JournalError::Unreadable { .. }
                | JournalError::Corrupt { .. }
                | JournalError::Foreign { .. },
            )
            | Self::OutcomeUnclear { .. }
            | Self::OtherWallet { .. }
            | Self::TransferUnconfirmed { .. }
            | Self::TransferLate { .. } => Stake::Unclear,
            Self::Lightning(error) => error.stake(),
            Self::Request(_)
            | Self::Network { .. }
            | Self::Bill(_)
            | Self::Policy(_)
            | Self::HeadNotSold { .. }
            | Self::NotSent(_)
            | Self::TransferVoid { .. }
            | Self::Wallet(_)
            | Self::WalletStrayed { .. }
            | Self::Journal(JournalError::Io { .. } | JournalError::Interrupted) => Stake::Nothing,
            Self::Refused { .. }
            | Self::InsufficientBalance { .. }
            | Self::NotServed { .. }
            | Self::StoppedAfterRefusal { .. } => Stake::Declined,
            Self::ChargedNotServed { .. } | Self::ChargedNotDelivered { .. } | Self::Credited { .. } => Stake::Charged,
        }
    }

    /// Until when something that the seller declined is still valid; `None` if nothing is.
    #[must_use]
    pub const fn declined_valid_until(&self) -> Option<Timestamp> {
        match self {
            Self::Refused { valid_until, .. }
            | Self::InsufficientBalance { valid_until, .. }
            | Self::NotServed { valid_until, .. }
            | Self::StoppedAfterRefusal { valid_until, .. } => *valid_until,
            _ => None,
        }
    }
}

fn stays_valid(until: Option<Timestamp>) -> String {
    until.map_or_else(String::new, |until| format!("; the signature stays valid{}", until_text(Some(until))))
}

fn named(transaction: Option<&TransactionId>, payment: Option<PaymentId>) -> String {
    let transaction = transaction.map(|hash| format!(" in transaction {hash}")).unwrap_or_default();
    let payment = payment.map(|id| format!(" as {id}")).unwrap_or_default();
    transaction + &payment
}

/// Why a 402 is no bill that can be read.
#[derive(Debug, thiserror::Error)]
pub enum UnreadableBill {
    /// It has no terms for x402 or wrong ones, and none for a transfer.
    #[error(transparent)]
    X402(#[from] BillError),
    /// It has no terms for x402, and wrong ones for a transfer.
    #[error(transparent)]
    Transfer(TransferBillError),
    /// It has no terms that can be read but wrong ones for Lightning.
    #[error(transparent)]
    L402(L402BillError),
}

impl UnreadableBill {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::X402(error) => error.code(),
            Self::Transfer(error) => error.code(),
            Self::L402(error) => error.code(),
        }
    }
}

/// Why a request is not one that can be paid for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RequestError {
    /// Its body is a stream.
    #[error("the body is a stream, which cannot be sent again after a 402; give the body as bytes")]
    BodyNotReplayable,
    /// It has a payment header already.
    #[error("the request already carries a payment in {header}; leave it out and let the agent pay")]
    CredentialPresent {
        /// Which header.
        header: &'static str,
    },
    /// `Idempotency-Key` comes more than once or is not visible ASCII.
    #[error("expected one Idempotency-Key of visible ASCII; leave it out and the agent makes one")]
    IdempotencyKey,
    /// Not http or https.
    #[error("expected an http or https URL, found scheme {scheme}")]
    Scheme {
        /// What was found instead.
        scheme: Untrusted,
    },
    /// More redirects than allowed, or one that leads nowhere.
    #[error("{reason}")]
    Redirect {
        /// Why.
        reason: String,
    },
}

impl RequestError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BodyNotReplayable => "body_not_replayable",
            Self::CredentialPresent { .. } => "credential_present",
            Self::IdempotencyKey => "idempotency_key_malformed",
            Self::Scheme { .. } => "scheme_not_http",
            Self::Redirect { .. } => "redirect",
        }
    }
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Connecting, sending or reading failed.
    #[error(transparent)]
    Http(#[from] reqwest::Error),
    /// No head came in time.
    #[error("no answer within {after_ms} ms")]
    Timeout {
        /// The limit.
        after_ms: u128,
    },
}

impl TransportError {
    /// Whether not a byte of the request was sent.
    pub(crate) fn is_before_sending(&self) -> bool {
        matches!(self, Self::Http(error) if error.is_connect())
    }
}

/// An offer of a bill and the rule that forbids it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedOffer {
    /// On which network it asks.
    pub network: Network,
    /// For what.
    pub asset: AssetId,
    /// The rule.
    pub rule: PolicyRule,
}

impl fmt::Display for RefusedOffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} on {})", self.rule, self.asset, self.network)
    }
}

fn refusals(offers: &[RefusedOffer]) -> String {
    if offers.is_empty() {
        return "the bill has no offer that this agent can read".to_owned();
    }
    let mut rules = Vec::new();
    for offer in offers {
        let rule = offer.rule.to_string();
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
    rules.join("; ")
}

/// Why an agent could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A part is missing.
    #[error("an agent needs a {part}")]
    Missing {
        /// Which.
        part: &'static str,
    },
    /// The HTTP client could not be set up.
    #[error("the HTTP client could not be set up")]
    Client(#[from] reqwest::Error),
}
