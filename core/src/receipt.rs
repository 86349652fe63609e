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
}
