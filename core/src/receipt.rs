//! What a payer gets for a charge.

use serde::{Deserialize, Serialize};

use crate::{Amount, Network, Payer, PaymentId, TransactionId};

/// Proof, to the payer, of one charge. Travels as PAYMENT-RESPONSE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Our name for the payment.
    pub payment: PaymentId,
    /// The transaction that moved the money.
    pub transaction: TransactionId,
    /// Where.
    pub network: Network,
    /// Who paid.
    pub payer: Payer,
    /// How much was charged.
    pub amount: Amount,
    /// For a transfer, which log of the transaction's receipt it is, counted from 0. Nothing for the native coin and other rails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u32>,
    /// Units that came beside the charge and are the payer's credit; 0 as a rule.
    #[serde(default, with = "crate::money::decimal_string")]
    pub credit: u128,
}
