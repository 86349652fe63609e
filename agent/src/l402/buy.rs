//! Buying a token: the invoice is judged, noted, and paid once; what the wallet did not say is looked up.

use std::{sync::Arc, time::Duration};

use farebox_core::{
    PaymentHash, Preimage, Untrusted,
    ports::{LightningWallet, Outgoing, PaidOut, PayOrder, PayOutcome},
};
use tokio::time::{Instant, timeout};

use super::{
    Begun, L402Bill, LightningError, LightningRule, Run,
    purchase::{NewPurchase, PaidToken, Purchase, SecretPreimage, Stage, TokenStanding},
};
use crate::{
    agent::{Agent, Note, Started},
    entry::{Authorization, Proof, SecretHeader, Standing, TokenProof},
    error::{FetchError, RefusedOffer},
    journal::{JournalError, Lock},
    pay::chain,
    policy::{Outstanding, PolicyRule},
    request::Replayable,
};

/// How much longer than it was told to take a wallet is waited for, before it is asked what became of the payment.
const WALLET_GRACE: Duration = Duration::from_secs(5);
/// How often a wallet that says "paid" without a preimage is asked for it: some know it a little later.
const PREIMAGE_LOOKS_MAX: usize = 4;
/// How long after an invoice's end what a wallet says of it is doubted before the same request pays another: nobody can pay an invoice that ended, but
/// what was on its way when it ended may arrive, as long as a payee can hold it.
const DOUBTED_FOR: Duration = Duration::from_secs(24 * 3600);
/// The reasons of a wallet for which it sent nothing, by their meaning.
const NOTHING_SENT: [&str; 3] = ["insufficient_balance", "invoice_expired", "not_allowed"];
/// With so many tokens of which the seller said that they have calls left, and takes none, no other is bought for the same.
const DOUBTED_MAX: usize = 2;
/// How many failed ones of a request are looked up again.
const FAILED_LOOKS_MAX: usize = 4;

/// A payment by Lightning that is neither noted nor made.
pub(crate) struct Ordered {
    pub(crate) authorization: Authorization,
    pub(crate) begun: Begun,
}

/// Why a bill's terms for Lightning led to no payment.
pub(crate) enum NoToken {
    /// A rule forbids it.
    Forbidden(RefusedOffer),
    /// It may be paid and cannot be.
    Failed(FetchError),
    /// The invoice is paid already, for another request: the seller has to be asked for another.
    Taken(RefusedOffer),
}

impl From<JournalError> for NoToken {
    fn from(error: JournalError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<LightningError> for NoToken {
    fn from(error: LightningError) -> Self {
        Self::Failed(error.into())
    }
}

impl Agent {
    /// Chooses the bill's invoice, if it may be paid and this agent does not know it as paid.
    pub(crate) async fn order_token(
        &self,
        request: &Replayable,
        bill: &L402Bill,
        outstanding: Outstanding,
        idempotency_key: &SecretHeader,
        started: Started,
    ) -> Result<Ordered, NoToken> {
        let (parts, offer) = (&self.parts, &bill.offer);
        let refused = |rule| RefusedOffer { network: offer.network().clone(), asset: offer.amount.asset.clone(), rule };
        let forbidden = |rule| NoToken::Forbidden(refused(rule));
        let Some(wallet) = &parts.lightning else { return Err(forbidden(PolicyRule::NoWallet { rail: offer.rail })) };
        let acceptable = bill.judge(&parts.policy, request, outstanding, parts.clock.now()).map_err(forbidden)?;
        let wallet_id = wallet.id().await.map_err(LightningError::from)?;
        if let Some(blind) = parts.journal.paid_blind(Arc::clone(&wallet_id)).await? {
            let (payment_hash, wallet) = (blind.payment_hash(), wallet.label().to_owned());
            return Err(forbidden(LightningRule::WalletBlind { wallet, payment_hash, url: blind.url }.into()));
        }
        if let Some(network) = wallet.network().await.map_err(LightningError::from)? {
            bill.check_network(network).map_err(|rule| forbidden(rule.into()))?;
        }
        let wait = started.until.saturating_duration_since(Instant::now());
        if let Some(risen) = self.risen(request, &**wallet, &wallet_id).await? {
            let lock = parts.journal.hold_invoice(risen.payment_hash(), wait).await?;
            let authorization = order(&risen, idempotency_key, parts.clock.now());
            return Ok(Ordered { authorization, begun: Begun { purchase: Box::new(risen), lock, is_fresh: false } });
        }
        if let Some(rule) = self.forgotten(request).await? {
            return Err(forbidden(rule.into()));
        }
        let lock = parts.journal.hold_invoice(bill.payment_hash(), wait).await?;
        if let Some(known) = parts.journal.purchase(bill.payment_hash()).await?
            && !self.is_unpaid(&known, &**wallet, &wallet_id).await?
        {
            let rule = LightningRule::PaidBefore { payment_hash: bill.payment_hash() };
            return Err(NoToken::Taken(refused(rule.into())));
        }
        let purchase = Purchase::new(NewPurchase {
            request,
            bill,
            asset: acceptable.asset,
            wallet: wallet.label().to_owned(),
            wallet_id,
            fee_max_msat: parts.policy.fee_max_msat(bill.bolt11.invoice.amount_msat),
            // After the wait for the lock.
            now: parts.clock.now(),
        });
        let authorization = order(&purchase, idempotency_key, purchase.noted_at);
        Ok(Ordered { authorization, begun: Begun { purchase: Box::new(purchase), lock, is_fresh: true } })
    }

    /// Whether an invoice that an earlier run noted was not paid and is not being paid, by the word of the wallet that was asked.
    async fn is_unpaid(
        &self,
        known: &Purchase,
        wallet: &dyn LightningWallet,
        wallet_id: &str,
    ) -> Result<bool, LightningError> {
        match &known.stage {
            Stage::Paid(_) | Stage::PaidBlind { .. } => Ok(false),
            Stage::Paying | Stage::Failed { .. } => {
                check_wallet(known, wallet, wallet_id)?;
                let payment_hash = known.payment_hash();
                let unclear =
                    |error: &dyn std::error::Error| LightningError::Unclear { payment_hash, last: chain(error) };
                let found = wallet.outgoing(payment_hash).await.map_err(|error| unclear(&error))?;
                let is_ended = matches!(known.stage, Stage::Failed { .. }) || !known.asked;
                Ok(found == Outgoing::Failed || (found == Outgoing::Never && is_ended))
            }
        }
    }

    /// A seller that forgets the calls it sold is not paid for them again and again.
    async fn forgotten(&self, request: &Replayable) -> Result<Option<LightningRule>, JournalError> {
        let now = self.parts.clock.now();
        let mut doubted = self.parts.journal.purchases_of(request.origin()).await?;
        doubted.retain(|one| {
            one.is_doubted() && one.calls_left() > Some(0) && !one.is_over(now) && one.is_of_path(request)
        });
        let calls = doubted.iter().filter_map(Purchase::calls_left).fold(0, u32::saturating_add);
        let tokens = doubted.len();
        Ok((tokens >= DOUBTED_MAX).then_some(LightningRule::CallsForgotten { tokens, calls }))
    }

    /// An invoice of this request that the wallet said it had not paid, and now says that it did, or is about to.
    async fn risen(
        &self,
        request: &Replayable,
        wallet: &dyn LightningWallet,
        wallet_id: &str,
    ) -> Result<Option<Purchase>, NoToken> {
        let now = self.parts.clock.now();
        let mut failed = self.parts.journal.purchases_of(request.origin()).await?;
        failed.retain(|purchase| {
            purchase.fingerprint == request.fingerprint()
                && matches!(purchase.stage, Stage::Failed { .. })
                && *purchase.wallet_id == *wallet_id
                && now < purchase.invoice.expires_at.plus(DOUBTED_FOR)
        });
        failed.sort_by_key(|purchase| std::cmp::Reverse(purchase.noted_at));
        for mut purchase in failed.into_iter().take(FAILED_LOOKS_MAX) {
            if !self.is_unpaid(&purchase, wallet, wallet_id).await? {
                tracing::warn!(payment_hash = %purchase.payment_hash(), "a Lightning payment that had failed did not");
                purchase.stage = Stage::Paying;
                return Ok(Some(purchase));
            }
        }
        Ok(None)
    }
}

fn order(purchase: &Purchase, key: &SecretHeader, now: farebox_core::Timestamp) -> Authorization {
    Authorization {
        proof: Proof::Token(TokenProof { payment_hash: purchase.payment_hash(), is_held: false }),
        idempotency_key: key.clone(),
        payer: None,
        offer: purchase.offer.clone(),
        asset: purchase.asset.clone(),
        signed_at: now,
        expires_at: purchase.invoice.expires_at,
        standing: Standing::Open,
    }
}

/// Another wallet's "never heard of it" says nothing of a payment that this one was asked for.
fn check_wallet(purchase: &Purchase, wallet: &dyn LightningWallet, id: &str) -> Result<(), LightningError> {
    if *purchase.wallet_id == *id {
        return Ok(());
    }
    let named = |label: &str, id: &str| if label == id { label.to_owned() } else { format!("{label} ({id})") };
    let (asked, found) = (named(&purchase.wallet, &purchase.wallet_id), named(wallet.label(), id));
    Err(LightningError::OtherWallet { payment_hash: purchase.payment_hash(), wallet: asked, found })
}

impl Run<'_> {
    /// Brings the payment to its end, under the invoice's lock: asks the wallet to pay if it was not asked yet, and else what became of it. The
    /// inner error: nothing was paid, nothing will be, and that is noted.
    pub(super) async fn settle(
        &mut self,
        lock: Option<Lock>,
        is_fresh: bool,
    ) -> Result<Result<(), LightningError>, FetchError> {
        let hash = self.purchase.payment_hash();
        let _lock = match lock {
            Some(lock) => lock,
            None => self.agent.parts.journal.hold_invoice(hash, self.left()).await?,
        };
        let Some(wallet) = self.agent.parts.lightning.clone() else {
            return Err(self.unclear("there is no Lightning wallet to ask".to_owned()).into());
        };
        let ended = if is_fresh { self.pay(&wallet).await } else { self.look_up(&wallet).await };
        match ended {
            Ok(paid) => self.paid(&wallet, paid).await.map(Ok),
            Err(FetchError::Lightning(error @ LightningError::NotPaid { code, .. })) => {
                let at = self.agent.parts.clock.now();
                self.purchase.stage = Stage::Failed { at, code: code.to_owned() };
                self.agent.parts.journal.put(&self.purchase, at).await?;
                self.held.take_back(&mut self.entry).await?;
                Ok(Err(error))
            }
            Err(error) => Err(error),
        }
    }

    /// Asks the wallet to pay. Whatever it says but "paid", what it knows of the payment afterwards counts.
    async fn pay(&mut self, wallet: &Arc<dyn LightningWallet>) -> Result<PaidOut, FetchError> {
        let now = self.agent.parts.clock.now();
        let is_first = !std::mem::replace(&mut self.purchase.asked, true);
        if is_first {
            self.agent.parts.journal.put(&self.purchase, now).await?;
        }
        let ends = self.purchase.invoice.expires_at.since(now);
        let limit = self.agent.parts.retry.pay_timeout.min(self.left()).min(ends);
        let order = PayOrder {
            invoice: self.purchase.invoice.clone(),
            fee_max_msat: self.purchase.fee_max_msat,
            timeout: limit,
        };
        match timeout(limit + WALLET_GRACE.min(limit), wallet.pay(&order)).await {
            Ok(PayOutcome::Paid(paid)) => Ok(paid),
            Ok(PayOutcome::Failed { code, detail }) => {
                let is_sure = is_first && NOTHING_SENT.contains(&code);
                match wallet.outgoing(self.purchase.payment_hash()).await {
                    Ok(Outgoing::Paid(paid)) => Ok(paid),
                    Ok(Outgoing::Failed) => Err(not_paid(&**wallet, code, &detail).into()),
                    Ok(Outgoing::Never) | Err(_) if is_sure => Err(not_paid(&**wallet, code, &detail).into()),
                    // Some fail by their own word alone, and know nothing of what is on its way.
                    Ok(Outgoing::Never) => {
                        let detail = Untrusted::new(detail);
                        let last =
                            format!("{} says {code}: {detail}, and knows of no payment that failed", wallet.label());
                        Err(self.unclear(last).into())
                    }
                    Ok(Outgoing::InFlight) => self.watch(wallet, "it is on its way".to_owned()).await,
                    Err(error) => self.watch(wallet, chain(&error)).await,
                }
            }
            Ok(PayOutcome::Unknown { source }) => self.watch(wallet, chain(&*source)).await,
            Err(_) => {
                let last = format!("{} did not answer within {} s", wallet.label(), limit.as_secs());
                self.watch(wallet, last).await
            }
        }
    }

    /// Finds out about a payment that an earlier run began. It may have died before it asked the wallet: what that never heard of is paid now if the
    /// policy of today allows it, for a wallet pays one hash once.
    async fn look_up(&mut self, wallet: &Arc<dyn LightningWallet>) -> Result<PaidOut, FetchError> {
        let id = wallet.id().await.map_err(|error| self.unclear(chain(&error)))?;
        check_wallet(&self.purchase, &**wallet, &id)?;
        match wallet.outgoing(self.purchase.payment_hash()).await {
            Ok(Outgoing::Paid(paid)) => Ok(paid),
            Ok(Outgoing::Failed) => Err(not_paid(&**wallet, "failed", "an earlier attempt failed").into()),
            Ok(Outgoing::Never) if matches!(self.purchase.stage, Stage::PaidBlind { .. }) => {
                Ok(PaidOut { preimage: None, fee_msat: None })
            }
            Ok(Outgoing::Never) => match self.judge_again() {
                Ok(()) => {
                    self.payments += 1;
                    self.pay(wallet).await
                }
                Err(rule) if self.is_dead() => Err(not_paid(&**wallet, rule.code(), &rule.to_string()).into()),
                Err(rule) => {
                    let last = format!("{} does not know of it, and is not asked again: {rule}", wallet.label());
                    Err(self.unclear(last).into())
                }
            },
            Ok(Outgoing::InFlight) => self.watch(wallet, "it is on its way".to_owned()).await,
            Err(error) => self.watch(wallet, chain(&error)).await,
        }
    }

    /// Whether the invoice may be paid now: the policy may be another than the one by which it was noted, and time has gone by.
    fn judge_again(&mut self) -> Result<(), PolicyRule> {
        let (policy, now) = (&self.agent.parts.policy, self.agent.parts.clock.now());
        policy.judge_with(&self.purchase.offer, self.entry.outstanding_before(now, self.purchase.noted_at))?;
        self.purchase.facts.check_ends(self.purchase.invoice.expires_at, now)?;
        let fee_max_msat = policy.fee_max_msat(self.purchase.invoice.amount_msat);
        self.purchase.fee_max_msat = self.purchase.fee_max_msat.min(fee_max_msat);
        Ok(())
    }

    /// Whether nothing can have paid an invoice that the wallet says it never heard of.
    fn is_dead(&self) -> bool {
        !self.purchase.asked || self.agent.parts.clock.now() >= self.purchase.invoice.expires_at.plus(DOUBTED_FOR)
    }

    /// Asks again and again what became of the payment, until it is known or the time is over. Never pays.
    async fn watch(&self, wallet: &Arc<dyn LightningWallet>, mut last: String) -> Result<PaidOut, FetchError> {
        let mut looks = self.agent.looks();
        loop {
            match looks.next().filter(|wait| *wait < self.left()) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(self.unclear(last).into()),
            }
            match wallet.outgoing(self.purchase.payment_hash()).await {
                Ok(Outgoing::Paid(paid)) => return Ok(paid),
                Ok(Outgoing::Failed) => return Err(not_paid(&**wallet, "failed", "it was tried and failed").into()),
                Ok(Outgoing::InFlight) => last = "it is on its way".to_owned(),
                // It may not have heard of it yet.
                Ok(Outgoing::Never) => last = "the wallet does not know of it yet".to_owned(),
                Err(error) => last = chain(&error),
            }
        }
    }

    /// Takes the preimage, and asks for it if it is missing or another invoice's.
    async fn paid(&mut self, wallet: &Arc<dyn LightningWallet>, mut paid: PaidOut) -> Result<(), FetchError> {
        let hash = self.purchase.payment_hash();
        let mut looks = self.agent.looks().take(PREIMAGE_LOOKS_MAX);
        let why = loop {
            let why = match &paid.preimage {
                Some(preimage) if preimage.hash() == hash => {
                    self.keep(*preimage, paid.fee_msat).await;
                    return Ok(());
                }
                Some(_) => "it gave the preimage of another invoice",
                None => "it gives none for this payment",
            };
            match looks.next().filter(|wait| *wait < self.left()) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => break why.to_owned(),
            }
            match wallet.outgoing(hash).await {
                Ok(Outgoing::Paid(found)) => paid = PaidOut { fee_msat: found.fee_msat.or(paid.fee_msat), ..found },
                Ok(_) => {}
                Err(error) => break format!("{why}, and was not reached to ask again: {}", chain(&error)),
            }
        };
        self.purchase.stage = Stage::PaidBlind { at: self.agent.parts.clock.now() };
        self.agent.parts.journal.put(&self.purchase, self.agent.parts.clock.now()).await?;
        let (wallet, amount_msat) = (wallet.label().to_owned(), self.purchase.invoice.amount_msat);
        Err(LightningError::NoPreimage { wallet, payment_hash: hash, amount_msat, why }.into())
    }

    /// Notes the token. If it cannot be noted it is used all the same: the next run asks the wallet for it.
    async fn keep(&mut self, preimage: Preimage, fee_msat: Option<u64>) {
        let max_msat = self.purchase.fee_max_msat;
        if let Some(fee_msat) = fee_msat.filter(|fee| *fee > max_msat) {
            self.notes.push(Note::RoutingFeeOverLimit { fee_msat, max_msat });
        }
        let at = self.agent.parts.clock.now();
        let (preimage, standing) = (SecretPreimage(preimage), TokenStanding::Reserved);
        self.purchase.stage = Stage::Paid(PaidToken { at, preimage, fee_msat, standing, doubted_at: None });
        self.store_purchase().await;
    }

    pub(super) async fn store_purchase(&self) {
        if let Err(error) = self.agent.parts.journal.put(&self.purchase, self.agent.parts.clock.now()).await {
            tracing::warn!(error = chain(&error), "a paid token could not be noted");
        }
    }

    fn unclear(&self, last: String) -> LightningError {
        let payment_hash: PaymentHash = self.purchase.payment_hash();
        LightningError::Unclear { payment_hash, last }
    }

    pub(super) fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

fn not_paid(wallet: &dyn LightningWallet, code: &'static str, detail: &str) -> LightningError {
    LightningError::NotPaid { wallet: wallet.label().to_owned(), code, detail: Untrusted::new(detail) }
}
