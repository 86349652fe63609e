//! Why a Lightning invoice was not paid, or did not buy anything.

use farebox_core::{BitcoinNetwork, Decimal, PaymentHash, Timestamp, Untrusted, ports::NodeError};
use farebox_wire::bolt11::InvoiceNetwork;

use crate::{asset::Usd, error::Stake, policy::date};

/// Why a Lightning payment ended without a token.
#[derive(Debug, thiserror::Error)]
pub enum LightningError {
    /// The wallet could not be asked. Nothing was paid.
    #[error("the Lightning wallet could not be asked, and nothing was paid")]
    Wallet(#[from] NodeError),
    /// The wallet did not pay, and nothing is under way that still could.
    #[error("{wallet} did not pay the invoice, and nothing is on its way: {code}: {detail}")]
    NotPaid {
        /// Which wallet.
        wallet: String,
        /// The wallet's reason, stable.
        code: &'static str,
        /// Its words, cut and escaped.
        detail: Untrusted,
    },
    /// Whether the invoice is paid could not be found out in time. The same request, made again with the same journal, asks the wallet before it
    /// does anything else.
    #[error("whether the invoice {payment_hash} is paid is not known yet: {last}; run the same request again")]
    Unclear {
        /// The invoice's.
        payment_hash: PaymentHash,
        /// What was last heard.
        last: String,
    },
    /// Paid, and the wallet does not give what was bought. It is not paid again.
    #[error(
        "{wallet} paid {} sat for the invoice {payment_hash} and gave no preimage, without which the seller gives nothing: {why}",
        Decimal::from_units((*amount_msat).into(), 3)
    )]
    NoPreimage {
        /// Which wallet.
        wallet: String,
        /// The invoice's.
        payment_hash: PaymentHash,
        /// What it was for, millisatoshis.
        amount_msat: u64,
        /// What the wallet said.
        why: String,
    },
    /// Another wallet was asked to pay this invoice, and only that one knows whether it did.
    #[error(
        "the invoice {payment_hash} was given to {wallet} to pay, which alone can tell what became of it; this wallet is {found}"
    )]
    OtherWallet {
        /// The invoice's.
        payment_hash: PaymentHash,
        /// Who was asked.
        wallet: String,
        /// Who is here.
        found: String,
    },
}

impl LightningError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Wallet(error) => error.code(),
            Self::NotPaid { .. } => "lightning_not_paid",
            Self::Unclear { .. } => "lightning_unclear",
            Self::NoPreimage { .. } => "wallet_gave_no_preimage",
            Self::OtherWallet { .. } => "other_lightning_wallet",
        }
    }

    /// Whether the same call, made again as it is, may succeed.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Wallet(error) => error.retryable(),
            Self::NotPaid { .. } | Self::Unclear { .. } => true,
            Self::NoPreimage { .. } | Self::OtherWallet { .. } => false,
        }
    }

    /// What it leaves at risk.
    #[must_use]
    pub const fn stake(&self) -> Stake {
        match self {
            Self::Wallet(_) | Self::NotPaid { .. } => Stake::Nothing,
            Self::Unclear { .. } | Self::OtherWallet { .. } => Stake::Unclear,
            Self::NoPreimage { .. } => Stake::Charged,
        }
    }
}

/// The rule of Lightning's that forbids to pay an invoice.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum LightningRule {
    /// Neither a limit in sats nor the worth of one is known.
    #[error("nothing says how many sats a call may cost, nor what a sat is worth")]
    NoLimit,
    /// Dearer than one call may be.
    #[error("{} sat is over the limit of {} sat a call", Decimal::from_units(*amount_msat, 3), Decimal::from_units((*max_msat).into(), 3))]
    OverMax {
        /// Millisatoshis.
        amount_msat: u128,
        /// Millisatoshis.
        max_msat: u64,
    },
    /// Something that is signed for this request is counted in dollars, and what a sat is worth is not known.
    #[error("{outstanding} is already signed for this request, and what a sat is worth is not known")]
    CannotSum {
        /// What may yet be, or was, charged.
        outstanding: Usd,
    },
    /// The wallet pays on another network.
    #[error("the invoice is of {invoice}, and the wallet pays on {wallet}")]
    OtherNetwork {
        /// By its prefix.
        invoice: InvoiceNetwork,
        /// By its word.
        wallet: BitcoinNetwork,
    },
    /// There is no time to pay it.
    #[error("the invoice ends at {}, which is too soon to pay it", date(*ends))]
    Ends {
        /// When.
        ends: Timestamp,
    },
    /// What would be bought is over.
    #[error("the token that the invoice buys ends at {}", date(*ends))]
    TokenEnds {
        /// When.
        ends: Timestamp,
    },
    /// The body of the 402 names other terms than its header.
    #[error("the body's {member} is {body}, and the invoice says {invoice}")]
    BodyDiffers {
        /// Of the body.
        member: &'static str,
        /// The body's, cut and escaped.
        body: Untrusted,
        /// The header's, cut and escaped.
        invoice: Untrusted,
    },
    /// The macaroon is of another invoice: paying this one would not buy it.
    #[error("the token is of the invoice {token}, and {invoice} is to be paid: that would buy nothing here")]
    TokenOfAnotherInvoice {
        /// By the macaroon.
        token: PaymentHash,
        /// By the invoice.
        invoice: PaymentHash,
    },
    /// A token goes into the header that the request uses itself.
    #[error("the request has an Authorization of its own, whose place the token would take")]
    AuthorizationTaken,
    /// The payee may keep the payer's sats locked for too long.
    #[error(
        "the payee wants {blocks} blocks to take the payment in, and may keep it locked for so long; at most {max} are given"
    )]
    LockedTooLong {
        /// By the invoice.
        blocks: u64,
        /// What is given.
        max: u64,
    },
    /// The wallet paid before and did not give what was bought: whatever it pays buys nothing.
    #[error(
        "{wallet} paid the invoice {payment_hash} for {url} and gave no preimage, without which nothing is bought: pay with another wallet, or run that \
         request again when this one tells preimages"
    )]
    WalletBlind {
        /// Which wallet.
        wallet: String,
        /// The invoice's.
        payment_hash: PaymentHash,
        /// What it was for.
        url: String,
    },
    /// The seller takes none of the tokens that have calls left by its own word.
    #[error(
        "{calls} calls are left in {tokens} tokens by the seller's own word, and it takes none of them: another is not bought"
    )]
    CallsForgotten {
        /// How many tokens.
        tokens: usize,
        /// How many calls, all together.
        calls: u32,
    },
    /// It is paid already, and asked for again.
    #[error("the invoice {payment_hash} is paid already")]
    PaidBefore {
        /// The invoice's.
        payment_hash: PaymentHash,
    },
}

impl LightningRule {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoLimit => "no_sat_limit",
            Self::OverMax { .. } => "over_max_sat",
            Self::CannotSum { .. } => "sat_worth_unknown",
            Self::OtherNetwork { .. } => "other_bitcoin_network",
            Self::Ends { .. } => "invoice_ends",
            Self::TokenEnds { .. } => "token_ends",
            Self::BodyDiffers { .. } => "invoice_differs",
            Self::TokenOfAnotherInvoice { .. } => "token_of_another_invoice",
            Self::AuthorizationTaken => "authorization_taken",
            Self::LockedTooLong { .. } => "locked_too_long",
            Self::WalletBlind { .. } => "wallet_gives_no_preimages",
            Self::CallsForgotten { .. } => "calls_forgotten",
            Self::PaidBefore { .. } => "invoice_paid_before",
        }
    }
}
