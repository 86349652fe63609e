//! What a seller's headers say: the bill of a 402, and the settlement that answers a payment.

use std::error::Error;

use farebox_core::{Network, Offer, RailName, TransactionId, X402Credential, X402Version};
pub use farebox_wire::x402::{BILL_BODY_BYTES_MAX, Bill, BillError};
use farebox_wire::{
    transfer::{self, ReadBill},
    x402::{
        self, PAYMENT_REQUIRED, PAYMENT_RESPONSE, Requirement, SettlementResponse, X_PAYMENT_RESPONSE,
        decode_payment_required,
    },
};
use http::HeaderMap;
use serde::de::IgnoredAny;

use crate::{
    agent::Note,
    entry::SecretHeader,
    error::UnreadableBill,
    l402::{self, L402Bill},
};

/// A bill, and what is odd about it.
#[derive(Debug)]
pub(crate) struct Billed {
    pub(crate) x402: Option<Bill>,
    pub(crate) transfer: Option<ReadBill>,
    pub(crate) l402: Option<Box<L402Bill>>,
    pub(crate) notes: Vec<Note>,
}

/// The bill of a 402: x402's terms by the header, or by the body if there is no header, the body's terms for a transfer, and the headers'
/// for Lightning. A body longer than [`BILL_BODY_BYTES_MAX`] is `None`, and no bill. Of several kinds of terms, those that cannot be read do not
/// spoil the others.
pub(crate) fn read(headers: &HeaderMap, body: Option<&[u8]>) -> Result<Billed, UnreadableBill> {
    // What is no JSON has no member that could be wrong.
    let json = body.filter(|body| serde_json::from_slice::<IgnoredAny>(body).is_ok());
    let (x402, transfer) = (read_x402(headers, body), json.map_or(Ok(None), transfer::decode_bill));
    let l402 = l402::read(headers, json);
    let has_other = matches!(transfer, Ok(Some(_))) || matches!(l402, Ok(Some(_)));
    // A body with other terms alone is not a broken one of x402.
    let is_broken = |error: &BillError| {
        headers.contains_key(PAYMENT_REQUIRED) && !matches!(error.problem, x402::BillProblem::Absent)
    };
    let mut notes = Vec::new();
    let mut unreadable =
        |rail, error: &dyn Error| notes.push(Note::TermsUnreadable { rail, reason: error.to_string() });
    let (x402, odd) = match (x402, &transfer, &l402) {
        (Ok((bill, odd)), ..) => (Some(bill), odd),
        (Err(error), ..) if has_other => {
            if is_broken(&error) {
                unreadable(RailName::X402, &error);
            }
            (None, Vec::new())
        }
        (Err(error), ..) if is_broken(&error) => return Err(UnreadableBill::X402(error)),
        (Err(error), transfer, l402) if transfer.is_ok() && l402.is_ok() => return Err(UnreadableBill::X402(error)),
        (Err(_), ..) => (None, Vec::new()),
    };
    let is_payable = has_other || x402.is_some();
    let transfer = match transfer {
        Err(error) if !is_payable => return Err(UnreadableBill::Transfer(error)),
        read => read.inspect_err(|error| unreadable(RailName::Transfer, error)).ok().flatten(),
    };
    let l402 = match l402 {
        Err(error) if !is_payable => return Err(UnreadableBill::L402(error)),
        read => read.inspect_err(|error| unreadable(RailName::L402, error)).ok().flatten().map(Box::new),
    };
    notes.splice(0..0, odd);
    Ok(Billed { x402, transfer, l402, notes })
}

fn read_x402(headers: &HeaderMap, body: Option<&[u8]>) -> Result<(Bill, Vec<Note>), BillError> {
    let header = headers.get(PAYMENT_REQUIRED).map(http::HeaderValue::as_bytes);
    let bill = decode_payment_required(header, body)?;
    // A body that is no bill says nothing against the header.
    let other = header.and(body).and_then(|body| decode_payment_required(None, Some(body)).ok());
    let odd = other.is_some_and(|body| !agree(&bill, &body));
    Ok((bill, if odd { vec![Note::BodyDisagrees] } else { Vec::new() }))
}

/// Whether a body asks for what the header asks for. Version 1 has names for few networks, so its list may be shorter.
fn agree(header: &Bill, body: &Bill) -> bool {
    let terms = |offer: &Offer| (offer.amount.clone(), offer.pay_to.to_ascii_lowercase());
    let of_header: Vec<_> = header.requirements.iter().map(|asked| terms(&asked.offer)).collect();
    let of_body: Vec<_> = body.requirements.iter().map(|asked| terms(&asked.offer)).collect();
    match body.version {
        X402Version::V1 => of_body.iter().all(|terms| of_header.contains(terms)),
        X402Version::V2 => of_header == of_body,
    }
}

/// The header that pays what is `asked` in the bill.
pub(crate) fn credential_header(bill: &Bill, asked: &Requirement, credential: &X402Credential) -> SecretHeader {
    let (name, value) = x402::encode_credential(credential, asked, bill);
    SecretHeader::new(name, value)
}

/// What an answer says of the settlement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SettlementWord {
    pub(crate) success: bool,
    pub(crate) transaction: Option<String>,
    pub(crate) reason: Option<String>,
    /// `None` if the header could not be read.
    pub(crate) network: Option<Network>,
    pub(crate) payer: Option<String>,
    /// Smallest units.
    pub(crate) amount: Option<u128>,
    /// Smallest units.
    pub(crate) credit: Option<u128>,
}

impl SettlementWord {
    /// The settlement header if there is one. One that cannot be read says neither yes nor no.
    pub(crate) fn read(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(PAYMENT_RESPONSE).or_else(|| headers.get(X_PAYMENT_RESPONSE))?;
        Some(match x402::decode_settlement(value.as_bytes()) {
            Ok(SettlementResponse {
                success,
                transaction,
                network,
                payer,
                amount,
                credit,
                error_reason: reason,
                ..
            }) => {
                let transaction = Some(transaction).filter(|hash| !hash.is_empty());
                Self { success, transaction, reason, network: Some(network), payer, amount, credit }
            }
            Err(error) => Self { reason: Some(error.code().to_owned()), ..Self::default() },
        })
    }

    /// Whether it says, readably, that nothing was charged: no transaction, and no word of one that was sent or may be.
    pub(crate) fn is_uncharged(&self) -> bool {
        let in_doubt = ["pending", "transaction", "settle", "nonce", "mismatch", "unexpected", "unknown", "timeout"];
        let reason = self.reason.as_deref().unwrap_or_default();
        let readable = self.network.is_some();
        readable && !self.success && self.transaction.is_none() && !in_doubt.iter().any(|part| reason.contains(part))
    }

    /// The transaction if it looks like one of an EVM network.
    pub(crate) fn transaction_id(&self) -> Option<TransactionId> {
        let text = self.transaction.as_deref()?.to_ascii_lowercase();
        let digits = text.strip_prefix("0x")?;
        (digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit())).then(|| TransactionId::new(text))
    }
}
