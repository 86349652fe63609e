//! What a mined transaction did to an authorization.

use alloy::primitives::{Address, B256, U256};
use farebox_core::{Credential, Payment};

use crate::{
    abi::TokenEvent,
    address,
    node::{Log, Receipt},
};

/// The one transfer that a payment stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    pub(crate) token: Address,
    pub(crate) from: Address,
    pub(crate) to: Address,
    pub(crate) value: U256,
    pub(crate) nonce: B256,
    /// Seconds since the epoch; not valid at or after.
    pub(crate) valid_before: u64,
}

/// What a transaction did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It moved exactly this transfer's money by this transfer's authorization.
    Paid,
    /// It ended the authorization without that.
    Ended,
    /// It has nothing to do with the authorization.
    Nothing,
}

impl Transfer {
    /// `None` for a payment that is not by x402, or not of an ERC-20 token.
    pub(crate) fn of(payment: &Payment) -> Option<Self> {
        let Credential::X402(x402) = payment.credential.as_ref() else { return None };
        let a = &x402.authorization;
        Some(Self {
            token: address::alloy(payment.amount.asset.erc20_address()?),
            from: address::alloy(a.from),
            to: address::alloy(a.to),
            value: U256::from(a.value),
            nonce: a.nonce.into(),
            valid_before: a.valid_before,
        })
    }

    /// What a transaction of our own did: a direct call of the token with this very authorization, so that every event of the
    /// token in it is this call's, in whatever order the token tells them.
    pub(crate) fn outcome_of_ours(&self, receipt: &Receipt) -> Outcome {
        let events = self.events(receipt);
        let ended = events.iter().any(|event| self.is_end(*event));
        let moved = events.contains(&self.moved());
        match (receipt.succeeded() && receipt.to == Some(self.token), ended, moved) {
            (true, true, true) => Outcome::Paid,
            (true, true, false) => Outcome::Ended,
            _ => Outcome::Nothing,
        }
    }

    /// What a transaction did to this authorization, whoever sent it.
    ///
    /// The transfer must be the token's next event after the use of this very authorization. Anybody can wrap calls into one
    /// transaction: a payer could use this nonce to pay himself and, next to it, another nonce to pay us, and would have one
    /// transfer count for two payments if events were only searched for.
    pub(crate) fn outcome(&self, receipt: &Receipt) -> Outcome {
        let events = self.events(receipt);
        let Some(at) = events.iter().position(|event| self.is_end(*event)) else {
            return Outcome::Nothing;
        };
        let moved = self.moved();
        let used = matches!(events[at], TokenEvent::Used { .. });
        if receipt.succeeded() && used && events.get(at + 1) == Some(&moved) { Outcome::Paid } else { Outcome::Ended }
    }

    /// Whether a log of the token ends this authorization.
    pub(crate) fn ended_by(&self, log: &Log) -> bool {
        log.address == self.token && !log.removed && TokenEvent::read(log).is_some_and(|event| self.is_end(event))
    }

    /// The token's own events, in order.
    fn events(&self, receipt: &Receipt) -> Vec<TokenEvent> {
        let ours = |log: &&Log| log.address == self.token && !log.removed;
        receipt.logs.iter().filter(ours).filter_map(TokenEvent::read).collect()
    }

    const fn moved(&self) -> TokenEvent {
        TokenEvent::Moved { from: self.from, to: self.to, value: self.value }
    }

    fn is_end(&self, event: TokenEvent) -> bool {
        match event {
            TokenEvent::Used { authorizer, nonce } | TokenEvent::Canceled { authorizer, nonce } => {
                (authorizer, nonce) == (self.from, self.nonce)
            }
            TokenEvent::Moved { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use alloy::{
        primitives::{Bytes, U64},
        sol_types::SolEvent,
    };

    use super::*;
    use crate::abi::Token;

    const TOKEN: Address = Address::repeat_byte(1);
    const PAYER: Address = Address::repeat_byte(2);
    const SELLER: Address = Address::repeat_byte(3);
    const NONCE: B256 = B256::repeat_byte(4);
    const OTHER_NONCE: B256 = B256::repeat_byte(5);

    fn log(address: Address, event: &impl SolEvent) -> Log {
        let data = event.encode_log_data();
        Log { address, topics: data.topics().to_vec(), data: data.data, transaction_hash: None, removed: false }
    }

    fn used(nonce: B256) -> Log {
        log(TOKEN, &Token::AuthorizationUsed { authorizer: PAYER, nonce })
    }

    fn moved(to: Address, value: u64) -> Log {
        log(TOKEN, &Token::Transfer { from: PAYER, to, value: U256::from(value) })
    }

    fn check(expected: Outcome, status: u64, logs: Vec<Log>) {
        let receipt = Receipt {
            transaction_hash: B256::ZERO,
            from: PAYER,
            to: Some(TOKEN),
            block_hash: B256::ZERO,
            block_number: U64::from(1),
            status: U64::from(status),
            gas_used: U64::from(1),
            effective_gas_price: U256::from(1),
            l1_fee: None,
            logs,
        };
        let transfer =
            Transfer { token: TOKEN, from: PAYER, to: SELLER, value: U256::from(10), nonce: NONCE, valid_before: 1 };
        assert_eq!(transfer.outcome(&receipt), expected);
    }

    #[test]
    fn only_the_transfer_of_this_authorization_counts() {
        let wrapped = log(Address::repeat_byte(9), &Token::AuthorizationUsed { authorizer: PAYER, nonce: NONCE });
        check(Outcome::Paid, 1, vec![used(NONCE), moved(SELLER, 10)]);
        check(
            Outcome::Paid,
            1,
            vec![used(OTHER_NONCE), moved(PAYER, 1), used(NONCE), wrapped.clone(), moved(SELLER, 10)],
        );
        check(Outcome::Ended, 0, vec![used(NONCE), moved(SELLER, 10)]);
        check(Outcome::Ended, 1, vec![used(NONCE), moved(SELLER, 9)]);
        check(Outcome::Ended, 1, vec![used(NONCE), moved(PAYER, 10)]);
        check(Outcome::Ended, 1, vec![log(TOKEN, &Token::AuthorizationCanceled { authorizer: PAYER, nonce: NONCE })]);
        check(Outcome::Nothing, 1, vec![moved(SELLER, 10)]);
        check(Outcome::Nothing, 1, vec![wrapped, moved(SELLER, 10)]);
        check(Outcome::Nothing, 1, vec![used(OTHER_NONCE), moved(SELLER, 10)]);
    }

    #[test]
    fn one_transfer_never_counts_for_two_authorizations_of_one_transaction() {
        check(Outcome::Ended, 1, vec![used(NONCE), moved(PAYER, 10), used(OTHER_NONCE), moved(SELLER, 10)]);
        check(Outcome::Ended, 1, vec![used(NONCE), used(OTHER_NONCE), moved(SELLER, 10), moved(SELLER, 10)]);
    }

    #[test]
    fn a_log_with_the_right_topic_and_wrong_shape_is_no_event() {
        let mut bent = moved(SELLER, 10);
        bent.data = Bytes::new();
        check(Outcome::Ended, 1, vec![used(NONCE), bent]);
    }
}
