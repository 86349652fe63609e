//! Lightning invoices as text. Source: BOLT 11.

use std::fmt;

use farebox_core::{BitcoinNetwork, Invoice, PaymentHash, Timestamp, Untrusted};
use lightning_invoice::{Bolt11Invoice, Bolt11InvoiceDescriptionRef, Currency, ParseOrSemanticError};

/// The longest invoice we read, characters: what a QR code can hold.
pub const BOLT11_CHARS_MAX: usize = 7089;

/// An invoice, and what it says beside.
#[derive(Clone, Debug)]
pub struct Bolt11 {
    /// The terms.
    pub invoice: Invoice,
    /// Where it is paid.
    pub network: InvoiceNetwork,
    /// What for, unless it only has the hash of a longer text.
    pub description: Option<Untrusted>,
    /// The public key of the node that is paid.
    pub payee: [u8; 33],
    /// Blocks that the last hop wants between its own deadline and the chain's head.
    pub min_final_cltv_delta: u64,
}

/// A network as an invoice names it: testnet3 and testnet4 have one name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InvoiceNetwork(&'static str);

impl InvoiceNetwork {
    /// Whether it is this one, as far as an invoice can tell.
    #[must_use]
    pub fn is(self, network: BitcoinNetwork) -> bool {
        self.0 == network.invoice_prefix()
    }

    /// Those that it can be: one, or testnet3 and testnet4.
    pub fn candidates(self) -> impl Iterator<Item = BitcoinNetwork> {
        BitcoinNetwork::ALL.into_iter().filter(move |network| self.is(*network))
    }
}

impl fmt::Display for InvoiceNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.candidates().next().map_or(self.0, BitcoinNetwork::as_str))
    }
}

impl fmt::Debug for InvoiceNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no invoice that can be paid.
#[derive(Debug, thiserror::Error)]
pub enum Bolt11Error {
    /// More characters than we read.
    #[error("the invoice is {found} characters long; at most {BOLT11_CHARS_MAX} are read")]
    TooLong {
        /// How many came.
        found: usize,
    },
    /// Not BOLT 11, or not signed by whom it names, or incomplete.
    #[error("not a BOLT 11 invoice: {why}")]
    Malformed {
        /// The parser's words; its errors are no [`std::error::Error`], and may have a stranger's character in them.
        why: Untrusted,
    },
    /// It leaves the amount to the payer.
    #[error("the invoice names no amount; ask for one that does")]
    Amountless,
    /// It asks for nothing.
    #[error("the invoice asks for 0")]
    Zero,
    /// A network that we do not know.
    #[error("the invoice is for a network that is none of Bitcoin's")]
    Network,
}

impl Bolt11Error {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "invoice_too_long",
            Self::Malformed { .. } => "invoice_malformed",
            Self::Amountless => "invoice_amountless",
            Self::Zero => "invoice_zero",
            Self::Network => "invoice_network",
        }
    }
}

/// Reads an invoice, in either case. Its signature holds, and its amount is whole millisatoshis, 1 or more; whether it is expired is not looked
/// at.
///
/// # Errors
/// [`Bolt11Error`].
pub fn decode(text: &str) -> Result<Bolt11, Bolt11Error> {
    if text.len() > BOLT11_CHARS_MAX {
        return Err(Bolt11Error::TooLong { found: text.len() });
    }
    let read: Bolt11Invoice = text.parse().map_err(|why: ParseOrSemanticError| malformed(&why))?;
    let network = network(&read.currency()).ok_or(Bolt11Error::Network)?;
    let amount_msat = match read.amount_milli_satoshis() {
        None => return Err(Bolt11Error::Amountless),
        Some(0) => return Err(Bolt11Error::Zero),
        Some(amount_msat) => amount_msat,
    };
    let created_at = Timestamp::from_unix_s(read.duration_since_epoch().as_secs());
    let description = match read.description() {
        Bolt11InvoiceDescriptionRef::Direct(text) => Some(Untrusted::new(text.as_inner().0.as_str())),
        Bolt11InvoiceDescriptionRef::Hash(_) => None,
    };
    Ok(Bolt11 {
        invoice: Invoice {
            payment_hash: PaymentHash(*read.payment_hash().as_ref()),
            bolt11: text.to_ascii_lowercase().into(),
            amount_msat,
            created_at,
            expires_at: created_at.plus(read.expiry_time()),
        },
        network,
        description,
        payee: read.get_payee_pub_key().serialize(),
        min_final_cltv_delta: read.min_final_cltv_expiry_delta(),
    })
}

fn malformed(error: &ParseOrSemanticError) -> Bolt11Error {
    Bolt11Error::Malformed { why: Untrusted::new(error.to_string()) }
}

fn network(currency: &Currency) -> Option<InvoiceNetwork> {
    let network = match currency {
        Currency::Bitcoin => BitcoinNetwork::Bitcoin,
        Currency::BitcoinTestnet => BitcoinNetwork::Testnet,
        Currency::Regtest => BitcoinNetwork::Regtest,
        Currency::Signet => BitcoinNetwork::Signet,
        Currency::Simnet => return None,
    };
    Some(InvoiceNetwork(network.invoice_prefix()))
}
