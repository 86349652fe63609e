//! What a wallet pays. It may be anybody's, with books of any quality: it is asked before it is told to pay, and after it did not answer.

use std::time::Duration;

use farebox_core::{
    PaymentHash,
    ports::{Outgoing, PaidOut, PayOrder, PayOutcome},
};
use serde_json::json;

use super::{
    Nwc, NwcError, Said,
    settlements::PAGE,
    wire::{Direction, Paid, State, Transaction, Transactions, preimage},
};

/// A wallet that sees the request only after so long leaves it alone, if its clock is right.
const GOOD_FOR_MIN: Duration = Duration::from_secs(60);
/// Pages of the wallet's payments that are searched for one that it does not look up. On a later one it may still be.
const PAGES_MAX: usize = 5;

impl Nwc {
    pub(super) async fn pay_once(&self, order: &PayOrder) -> PayOutcome {
        let hash = order.invoice.payment_hash;
        let Some(_turn) = self.paying.begin(hash) else {
            return self.unknown(NwcError::Wrong("the invoice is being paid already".to_owned()));
        };
        match self.paid_out(hash).await {
            Ok(Outgoing::Paid(paid)) => return PayOutcome::Paid(paid),
            Ok(Outgoing::InFlight) => {
                return self.unknown(NwcError::Wrong("the invoice is being paid already".to_owned()));
            }
            // A wallet that cannot look payments up says so; an invoice is paid once at its receiver too.
            Ok(Outgoing::Never | Outgoing::Failed) | Err(NwcError::Said(_) | NwcError::NoList | NwcError::LongList) => {
            }
            Err(error) => return self.unknown(error),
        }
        let good_for = Some(order.timeout.max(GOOD_FOR_MIN));
        let wanted = json!({ "invoice": &*order.invoice.bolt11 });
        match self.ask_within::<Paid>(order.timeout, good_for, "pay_invoice", wanted).await {
            Ok(paid) => self.with_preimage(hash, paid).await,
            Err(error) => self.after(hash, error).await,
        }
    }

    pub(super) async fn paid_out(&self, hash: PaymentHash) -> Result<Outgoing, NwcError> {
        let found = match self.transaction(hash).await? {
            // Some look up what they were paid alone.
            None => self.listed_payment(hash).await?,
            found => found,
        };
        match found {
            None => Ok(Outgoing::Never),
            Some(found) if found.direction == Direction::Incoming => {
                Err(NwcError::Wrong("it knows the invoice as its own and no payment of it".to_owned()))
            }
            Some(found) if found.is_settled() => {
                Ok(Outgoing::Paid(PaidOut { preimage: found.preimage(), fee_msat: found.fees_paid }))
            }
            Some(found) if matches!(found.state, Some(State::Failed | State::Expired)) => Ok(Outgoing::Failed),
            Some(_) => Ok(Outgoing::InFlight),
        }
    }

    async fn listed_payment(&self, hash: PaymentHash) -> Result<Option<Transaction>, NwcError> {
        // A look-up that finds invoices alone says nothing of payments: taken for "never paid", what was paid would be paid again.
        if !self.session().await?.offers("list_transactions") {
            return Err(NwcError::NoList);
        }
        let mut seen = 0;
        for _ in 0..PAGES_MAX {
            let wanted = json!({ "limit": PAGE, "offset": seen, "unpaid": true, "type": "outgoing" });
            let Transactions { transactions } = self.ask("list_transactions", wanted).await?;
            let end = transactions.is_empty();
            seen += transactions.len();
            let found =
                transactions.into_iter().find(|one| one.direction == Direction::Outgoing && one.payment_hash == hash);
            if found.is_some() || end {
                return Ok(found);
            }
        }
        Err(NwcError::LongList)
    }

    /// The preimage is what was bought: a wallet that did not give it with the payment may when it is asked for it.
    async fn with_preimage(&self, hash: PaymentHash, paid: Paid) -> PayOutcome {
        let told = preimage(paid.preimage.as_deref(), hash);
        if told.is_none()
            && let Ok(Outgoing::Paid(looked_up)) = self.paid_out(hash).await
            && looked_up.preimage.is_some()
        {
            return PayOutcome::Paid(looked_up);
        }
        PayOutcome::Paid(PaidOut { preimage: told, fee_msat: paid.fees_paid })
    }

    async fn after(&self, hash: PaymentHash, error: NwcError) -> PayOutcome {
        match (self.paid_out(hash).await, &error) {
            (Ok(Outgoing::Paid(paid)), _) => PayOutcome::Paid(paid),
            (Ok(Outgoing::InFlight), _) => self.unknown(error),
            // It says that it failed, or did not begin, and nothing that it says else is against that.
            (_, NwcError::Said(said)) if said.is_refusal() => failed(said),
            (Ok(Outgoing::Failed), NwcError::Said(said)) => failed(said),
            // The request itself may still be on its way: that the wallet knows of no payment says nothing yet.
            (Ok(Outgoing::Never | Outgoing::Failed) | Err(_), _) => self.unknown(error),
        }
    }

    fn unknown(&self, error: NwcError) -> PayOutcome {
        PayOutcome::Unknown { source: Box::new(self.error(error)) }
    }
}

fn failed(said: &Said) -> PayOutcome {
    let code = match &*said.code {
        "INSUFFICIENT_BALANCE" => "insufficient_balance",
        "QUOTA_EXCEEDED" | "RESTRICTED" | "UNAUTHORIZED" | "NOT_IMPLEMENTED" => "not_allowed",
        // Some fail when they no longer wait for what is on its way.
        _ => "refused",
    };
    PayOutcome::Failed { code, detail: said.to_string() }
}

impl Said {
    /// Whether it says of `pay_invoice` that nothing was paid. An internal error says nothing. Source: NIP-47, "Error codes".
    fn is_refusal(&self) -> bool {
        matches!(
            &*self.code,
            "PAYMENT_FAILED"
                | "INSUFFICIENT_BALANCE"
                | "QUOTA_EXCEEDED"
                | "RESTRICTED"
                | "UNAUTHORIZED"
                | "RATE_LIMITED"
                | "NOT_IMPLEMENTED"
                | "UNSUPPORTED_ENCRYPTION"
        )
    }
}
