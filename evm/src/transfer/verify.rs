//! Checks 9 to 14 of a claim: that nobody has claimed it, and that the chain bears it out.

use alloy::primitives::Address;
use farebox_core::{
    Amount, ArrivedFor, Finality, PaymentCode, ProofId, TransactionId,
    ports::{Arrival, Checked, Lookups, Paid, Timely, VerifyError},
};
use farebox_wire::transfer::Quote;

use super::{
    TransferRail,
    authenticate::{late_first, transfer_of},
    claimed::all_claimed,
    judge::{Amiss, Came, Facts, Found, Mined, Wanted, When, native},
    refusal::{already_claimed, code, no, not_found, pending, too_many_claims, unavailable, underpaid},
};
use crate::{address, chain::Chain, node::Agreement};

/// Readings of one transaction by a claim. A second is made when more came than was billed, on the terms of what came; a third if the
/// sources that were asked then tell yet more.
const READINGS_MAX: usize = 3;
const RELAYED: &str = "this transaction was sent by this server to settle another payment; it pays for nothing else";
const AUTHORIZED: &str = "this transfer was made by an authorization (EIP-3009), which is an x402 payment and no transfer; pay by a plain transfer";
const TAKEN: &str = "every transfer of this transaction that could pay has been claimed";

impl TransferRail {
    /// What came by the transaction that a claim names, if it pays.
    ///
    /// # Errors
    /// The first check of 9 to 14 that fails, in their order; unavailable if the chain or the books did not say.
    pub(super) async fn find_payment(&self, checked: &Checked, lookups: &dyn Lookups) -> Result<Paid, VerifyError> {
        let payment_code = &transfer_of(&checked.credential)?.code;
        let quote =
            self.parts.quoter.open(&payment_code.quote).map_err(|error| no(code::UNKNOWN_QUOTE, error.to_string()))?;
        let chain = self.chain(payment_code.asset.network()).map_err(unavailable)?;
        let wanted = Wanted::of(payment_code);
        let claim = Claim { checked, code: payment_code, quote: &quote, chain, wanted };
        self.find(&claim, lookups).await.map_err(|error| late_first(&checked.timely, error))
    }

    async fn find(&self, claim: &Claim<'_>, lookups: &dyn Lookups) -> Result<Paid, VerifyError> {
        self.parties(&claim.wanted)?;
        self.unclaimed(claim).await?;
        let offer = &claim.checked.offer;
        let mut needed = Needed { finality: offer.finality, agreement: claim.chain.agreement(&offer.amount) };
        let mut block = None;
        // What came is believed on the terms of its own worth, which a reading on those terms may show to be more.
        for _ in 0..READINGS_MAX {
            let read = self.read(claim, needed, lookups).await?;
            if block.is_some_and(|before| before != read.block) {
                return Err(unavailable("the transaction's block changed while it was looked at"));
            }
            block = Some(read.block);
            let largest = read.arrivals.iter().map(|arrival| arrival.units).max().unwrap_or(offer.amount.units);
            let of_largest = Needed::of(claim, largest);
            if largest <= offer.amount.units || of_largest == needed {
                self.found.note(claim.key(), read.arrivals.iter().map(|arrival| arrival.proof.clone()).collect());
                return Ok(read);
            }
            needed = of_largest;
        }
        Err(unavailable("every reading of the transaction told another amount"))
    }

    /// One reading of the chain, on these terms. It costs a look-up only if it does not find a transaction of the payer's.
    async fn read(&self, claim: &Claim<'_>, needed: Needed, lookups: &dyn Lookups) -> Result<Paid, VerifyError> {
        lookups.take().map_err(too_many_claims)?;
        let Needed { finality, agreement } = needed;
        let facts =
            Facts::read(claim.chain, claim.wanted.transaction, finality, agreement).await.map_err(unavailable)?;
        let now = claim.chain.clock.now();
        let found = facts.found(claim.wanted.transaction, now, claim.chain.config.head_age_max).map_err(unavailable)?;
        if found.is_of(&claim.wanted) {
            lookups.give_back();
        }
        match found {
            Found::Nowhere => Err(not_found()),
            Found::Waiting(transaction) => {
                self.sender(transaction.from)?;
                // What the sender and the value of a transaction are does not change when it is mined.
                if claim.wanted.token.is_none() {
                    native(transaction, &claim.wanted).map_err(|amiss| refused(&amiss, &claim.wanted))?;
                }
                Err(pending(0, finality))
            }
            Found::Mined(mined) => self.paid(claim, &facts, &mined, finality),
        }
    }

    /// A transfer to oneself moves nothing, and our relayer pays for others.
    fn parties(&self, wanted: &Wanted) -> Result<(), VerifyError> {
        if wanted.payer == wanted.pay_to {
            return Err(no(code::WRONG_PAYER, "the payer is the recipient; a transfer to oneself pays nobody"));
        }
        if self.relayers.contains(&wanted.payer) {
            return Err(no(
                code::WRONG_PAYER,
                "the payer is this server's relayer, which pays for nothing by transfer",
            ));
        }
        Ok(())
    }

    /// Check 9, as far as the books tell without the chain.
    async fn unclaimed(&self, claim: &Claim<'_>) -> Result<(), VerifyError> {
        let proofs = match claim.wanted.token {
            None => Some(vec![claim.proof(None)]),
            Some(_) => self.found.of(&claim.key()),
        };
        if let Some(proofs) = proofs
            && all_claimed(&*self.parts.ledger, &proofs, &claim.checked.credential).await.map_err(unavailable)?
        {
            return Err(already_claimed(TAKEN));
        }
        // Known here from before it was broadcast, so that nobody can be quicker with it than its own payment.
        match claim.chain.store.transaction(&claim.transaction()).await.map_err(unavailable)? {
            Some(_) => Err(already_claimed(RELAYED)),
            None => Ok(()),
        }
    }

    fn sender(&self, from: Address) -> Result<(), VerifyError> {
        if self.relayers.contains(&from) { Err(already_claimed(RELAYED)) } else { Ok(()) }
    }

    fn paid(
        &self,
        claim: &Claim<'_>,
        facts: &Facts,
        mined: &Mined<'_>,
        finality: Finality,
    ) -> Result<Paid, VerifyError> {
        self.sender(mined.receipt.from)?;
        let came = mined.arrivals(&claim.wanted).map_err(|amiss| refused(&amiss, &claim.wanted))?;
        let purpose = purpose(claim, mined.when(claim.quote.issued_at, claim.quote.pay_by))?;
        let block = mined.receipt.block();
        if !facts.is_final(&block, finality).map_err(unavailable)? {
            return Err(pending(facts.confirmations(&block), finality));
        }
        let arrivals: Vec<Arrival> =
            came.iter().map(|&Came { position, units }| Arrival { proof: claim.proof(position), units }).collect();
        self.senders.note(mined.transaction);
        Ok(Paid { transaction: claim.transaction(), block, arrivals, purpose })
    }
}

/// What a reading must bear before it is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Needed {
    finality: Finality,
    agreement: Agreement,
}

impl Needed {
    /// For so many units of what was billed. Of two counts of blocks the larger, for the bill's may be a marked payer's; if one of them
    /// is a tag, both are held against the same block, one after the other.
    fn of(claim: &Claim<'_>, units: u128) -> Self {
        let billed = &claim.checked.offer;
        let came = Amount { units, asset: billed.amount.asset.clone() };
        let finality = match (billed.finality, claim.chain.finality(&came)) {
            (Finality::Blocks(billed), Finality::Blocks(of_worth)) => Finality::Blocks(billed.max(of_worth)),
            (_, of_worth) => of_worth,
        };
        Self { finality, agreement: claim.chain.agreement(&came) }
    }
}

/// A claim under examination.
#[derive(Clone, Copy)]
struct Claim<'a> {
    checked: &'a Checked,
    code: &'a PaymentCode,
    quote: &'a Quote,
    chain: &'a Chain,
    wanted: Wanted,
}

impl Claim<'_> {
    fn transaction(&self) -> TransactionId {
        TransactionId::new(self.wanted.transaction.to_string())
    }

    fn proof(&self, position: Option<u32>) -> ProofId {
        ProofId::transfer(self.code.asset.network(), &self.transaction(), position)
    }

    fn key(&self) -> String {
        let Wanted { transaction, payer, pay_to, amount, .. } = self.wanted;
        format!("{}:{transaction}:{payer}:{pay_to}:{amount}", self.code.asset)
    }
}

impl Wanted {
    pub(super) fn of(code: &PaymentCode) -> Self {
        Self {
            transaction: code.transaction.into(),
            payer: address::alloy(code.payer),
            pay_to: address::alloy(code.pay_to),
            token: code.asset.erc20_address().map(address::alloy),
            amount: code.amount,
        }
    }
}

/// Check 13, and what a claim that is late is good for.
fn purpose(claim: &Claim<'_>, when: When) -> Result<ArrivedFor, VerifyError> {
    match (&claim.checked.timely, when) {
        (_, When::Before) => Err(no(
            code::EARLY,
            "the transfer is older than the quote that it is claimed for; what was paid before is no payment for it",
        )),
        (Timely::Yes, When::InTime) => Ok(ArrivedFor::Delivery),
        (Timely::Yes, When::After) => Ok(ArrivedFor::Credit { code: code::LATE.into() }),
        (Timely::ForCredit(late), _) => Ok(ArrivedFor::Credit { code: late.code.clone() }),
        // Whoever asks has refused it already; a claim out of time buys nothing, whoever asks.
        (Timely::No(late), _) => Err(VerifyError::Rejected(late.clone())),
    }
}

fn refused(amiss: &Amiss, wanted: &Wanted) -> VerifyError {
    let Wanted { payer, pay_to, .. } = wanted;
    match amiss {
        Amiss::Reverted => {
            no(code::REVERTED, "the transaction was mined and reverted, so nothing was paid; send another one")
        }
        Amiss::WrongAsset => {
            no(code::WRONG_ASSET, format!("{payer} sent {pay_to} something else than the asset of this payment code"))
        }
        Amiss::WrongPayer => no(code::WRONG_PAYER, format!("the transaction pays {pay_to}, but not from {payer}")),
        Amiss::WrongRecipient => {
            no(code::WRONG_RECIPIENT, format!("the transaction moves nothing from {payer} to {pay_to}"))
        }
        Amiss::Underpaid { received } => underpaid(wanted.amount, received),
        Amiss::Authorized => already_claimed(AUTHORIZED),
    }
}
