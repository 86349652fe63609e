//! What a seller's headers say: the bill of a 402, and the settlement that answers a payment.

use farebox_core::{TransactionId, X402Credential};
use farebox_wire::x402::{
    self, PAYMENT_REQUIRED, PAYMENT_RESPONSE, Requirement, SettlementResponse, X_PAYMENT_RESPONSE,
    decode_payment_required,
};
pub use farebox_wire::x402::{BILL_BODY_BYTES_MAX, Bill, BillError};
use http::HeaderMap;

use crate::entry::CredentialHeader;

/// The bill of a 402: the header's terms, or the body's if there is no header. A body longer than [`BILL_BODY_BYTES_MAX`] is
/// `None`, and no bill.
pub(crate) fn read(headers: &HeaderMap, body: Option<&[u8]>) -> Result<Bill, BillError> {
    decode_payment_required(headers.get(PAYMENT_REQUIRED).map(http::HeaderValue::as_bytes), body)
}

/// The header that pays what is `asked` in the bill.
pub(crate) fn credential_header(bill: &Bill, asked: &Requirement, credential: &X402Credential) -> CredentialHeader {
    let (name, mut value) = x402::encode_credential(credential, asked, bill);
    value.set_sensitive(true);
    CredentialHeader { name, value }
}

/// What an answer says of the settlement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SettlementWord {
    pub(crate) success: bool,
    pub(crate) transaction: Option<String>,
    pub(crate) reason: Option<String>,
}

impl SettlementWord {
    /// The settlement header if there is one. One that cannot be read says neither yes nor no.
    pub(crate) fn read(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(PAYMENT_RESPONSE).or_else(|| headers.get(X_PAYMENT_RESPONSE))?;
        Some(match x402::decode_settlement(value.as_bytes()) {
            Ok(SettlementResponse { success, transaction, error_reason, .. }) => {
                Self { success, transaction: Some(transaction).filter(|hash| !hash.is_empty()), reason: error_reason }
            }
            Err(error) => Self { success: false, transaction: None, reason: Some(error.code().to_owned()) },
        })
    }

    /// The transaction if it looks like one of an EVM network.
    pub(crate) fn transaction_id(&self) -> Option<TransactionId> {
        let text = self.transaction.as_deref()?.to_ascii_lowercase();
        let digits = text.strip_prefix("0x")?;
        (digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit())).then(|| TransactionId::new(text))
    }
}
