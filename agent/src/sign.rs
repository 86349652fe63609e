//! Signing for a bill: the first way to pay that is offered, allowed and possible; and once more after a refusal, where no money can
//! be lost by it.

use farebox_core::{
    Amount, EvmAddress, Offer, RailName, Timestamp, X402Credential,
    ports::{Wallet, WalletError},
};
use farebox_wire::transfer::ReadBill;
use http::{HeaderValue, Method};

use crate::{
    agent::{Agent, Note, Started},
    bill::{self, Bill, Billed},
    entry::{Authorization, Entry, Proof, SecretHeader, Standing},
    error::{FetchError, RefusedOffer, RequestError, Stake},
    journal::Lock,
    l402::{Begun, LightningError, NoToken, Ordered},
    next::Tried,
    pay::Made,
    policy::{Choice, Outstanding, Policy, PolicyRule},
    request::{IDEMPOTENCY_KEY, Replayable},
    transfer::{NoTransfer, SignedNow, Terms},
    verdict::Cure,
};

/// How often one fetch signs: once, and once more if the first is refused without a charge. A seller that keeps asking for fresh
/// signatures is collecting them.
const SIGNATURES_MAX: u32 = 2;

/// What was signed for a bill, not yet noted.
pub(crate) struct Signed {
    pub(crate) authorization: Authorization,
    /// See [`Begun::account`].
    pub(crate) account: Option<Lock>,
    /// The invoice that was chosen, if it is to be paid by Lightning.
    pub(crate) begun: Option<Begun>,
}

/// Why nothing was signed for a bill.
pub(crate) enum NotSigned {
    Failed(FetchError),
    /// Its invoice is paid for another request: another bill is needed.
    Taken(RefusedOffer),
}

impl<E: Into<FetchError>> From<E> for NotSigned {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Agent {
    /// Signs for the first way to pay, in the order that the policy has them, that is offered, allowed and possible.
    pub(crate) async fn sign(
        &self,
        request: &Replayable,
        billed: &Billed,
        outstanding: Outstanding,
        tried: &Tried,
        started: Started,
    ) -> Result<Signed, NotSigned> {
        let policy = &self.parts.policy;
        if request.method == Method::HEAD {
            return Err(FetchError::HeadNotSold { price: policy.cheapest(billed) }.into());
        }
        if let Some(rule) = self.barrier(request) {
            return Err(FetchError::Policy(refused_by(billed, |_| Some(rule.clone()))).into());
        }
        let (mut refused, mut failed) = (Vec::new(), None);
        let key = self.idempotency_key(request)?;
        for rail in &policy.rails {
            let signed = match rail {
                RailName::X402 => self.sign_by_x402(request, billed, outstanding).await,
                RailName::L402 => {
                    Box::pin(self.sign_by_lightning(request, billed, outstanding, &key, tried, started)).await
                }
                RailName::Transfer => {
                    Box::pin(self.sign_by_transfer(request, billed, outstanding, &key, started)).await
                }
            };
            match signed {
                Ok(signed) => return Ok(signed),
                Err(NotBy::Forbidden(rules)) => refused.extend(rules),
                Err(NotBy::Failed(error)) => _ = failed.get_or_insert(error),
                Err(NotBy::Stop(reason)) => return Err(*reason),
            }
        }
        if let Some(LightningError::NotPaid { wallet, code, detail }) = &tried.lightning {
            let (wallet, code, detail) = (wallet.clone(), *code, detail.clone());
            failed = Some(LightningError::NotPaid { wallet, code, detail }.into());
        }
        let is_no_wallet = |offer: &RefusedOffer| matches!(offer.rule, PolicyRule::NoWallet { .. });
        if failed.is_none() && !refused.is_empty() && refused.iter().all(is_no_wallet) {
            let rules: Vec<String> = refused.iter().map(|offer| offer.rule.to_string()).collect();
            failed = Some(WalletError::Unsupported { reason: rules.join("; ") }.into());
        }
        refused.extend(unwanted(policy, billed));
        Err(failed.unwrap_or(FetchError::Policy(refused)).into())
    }

    async fn sign_by_x402(
        &self,
        request: &Replayable,
        billed: &Billed,
        outstanding: Outstanding,
    ) -> Result<Signed, NotBy> {
        let Some(bill) = &billed.x402 else { return Err(NotBy::Forbidden(Vec::new())) };
        let choice = self.parts.policy.choose(bill, outstanding).map_err(NotBy::Forbidden)?;
        let Some(wallet) = &self.parts.wallet else { return Err(no_wallet(&choice.asked.offer)) };
        match self.sign_x402(&**wallet, request, bill, choice).await {
            Ok(authorization) => Ok(Signed { authorization, account: None, begun: None }),
            Err(error @ FetchError::Wallet(WalletError::Unsupported { .. })) => Err(NotBy::Failed(error)),
            Err(error) => Err(NotBy::Stop(Box::new(error.into()))),
        }
    }

    async fn sign_by_transfer(
        &self,
        request: &Replayable,
        billed: &Billed,
        outstanding: Outstanding,
        key: &SecretHeader,
        started: Started,
    ) -> Result<Signed, NotBy> {
        let Some(read) = &billed.transfer else { return Err(NotBy::Forbidden(Vec::new())) };
        let terms = self.terms(read, request);
        let Some(wallet) = &self.parts.wallet else {
            return Err(terms.offers().first().map_or_else(|| NotBy::Forbidden(Vec::new()), no_wallet));
        };
        match self.sign_transfer(&**wallet, &terms, outstanding, key, started).await {
            Ok(SignedNow { authorization, account }) => {
                Ok(Signed { authorization, account: Some(account), begun: None })
            }
            Err(NoTransfer::Forbidden(rules)) => Err(NotBy::Forbidden(rules)),
            Err(NoTransfer::Failed(error)) => Err(NotBy::Failed(error)),
        }
    }

    async fn sign_by_lightning(
        &self,
        request: &Replayable,
        billed: &Billed,
        outstanding: Outstanding,
        key: &SecretHeader,
        tried: &Tried,
        started: Started,
    ) -> Result<Signed, NotBy> {
        let Some(bill) = billed.l402.as_ref().filter(|_| tried.lightning.is_none()) else {
            return Err(NotBy::Forbidden(Vec::new()));
        };
        match self.order_token(request, bill, outstanding, key, started).await {
            Ok(Ordered { authorization, begun }) => Ok(Signed { authorization, account: None, begun: Some(begun) }),
            Err(NoToken::Forbidden(rule)) => Err(NotBy::Forbidden(vec![rule])),
            // What may be on its way must be known before anything else is paid.
            Err(NoToken::Failed(error)) if error.stake() != Stake::Nothing => Err(NotBy::Stop(Box::new(error.into()))),
            Err(NoToken::Failed(error)) => Err(NotBy::Failed(error)),
            Err(NoToken::Taken(rule)) => Err(NotBy::Stop(Box::new(NotSigned::Taken(rule)))),
        }
    }

    pub(crate) fn terms<'a>(&'a self, read: &'a ReadBill, request: &'a Replayable) -> Terms<'a> {
        let (payer, now) = (self.payer(), self.parts.clock.now());
        Terms { read, request, policy: &self.parts.policy, payer, now }
    }

    async fn sign_x402(
        &self,
        wallet: &dyn Wallet,
        request: &Replayable,
        bill: &Bill,
        choice: Choice<'_>,
    ) -> Result<Authorization, FetchError> {
        let parts = &self.parts;
        let offer = choice.asked.offer.clone();
        let mut signed_for = offer.clone();
        signed_for.max_timeout_s = signed_for.max_timeout_s.clamp(1, parts.policy.valid_for_max.as_secs().max(1));
        let now = parts.clock.now();
        let credential = wallet.authorize(&signed_for, now).await?;
        let payer = wallet.evm_address();
        check_signed(&credential, &signed_for, payer, now)?;
        let expires_at = Timestamp::from_unix_s(credential.authorization.valid_before);
        let proof = Proof::Header(bill::credential_header(bill, choice.asked, &credential));
        let (asset, standing) = (choice.acceptable.asset, Standing::Open);
        let (payer, idempotency_key) = (Some(payer), self.idempotency_key(request)?);
        Ok(Authorization { proof, idempotency_key, payer, offer, asset, signed_at: now, expires_at, standing })
    }

    /// The caller's own, or 128 random bits as a quoted string of hex.
    pub(crate) fn idempotency_key(&self, request: &Replayable) -> Result<SecretHeader, RequestError> {
        let value = match request.idempotency_key() {
            Some(own) => own.clone(),
            None => {
                let mut bits = [0; 16];
                self.parts.entropy.fill(&mut bits);
                let quoted = format!("\"{}\"", hex::encode(bits));
                HeaderValue::try_from(quoted).map_err(|_| RequestError::IdempotencyKey)?
            }
        };
        Ok(SecretHeader::new(IDEMPOTENCY_KEY, value))
    }

    /// A new authorization in place of one the seller refused, or `None` if a new one would not help or is one too many.
    pub(crate) async fn sign_again(
        &self,
        request: &Replayable,
        entry: &Entry,
        billed: Option<Billed>,
        cure: Cure,
        made: &mut Made,
        started: Started,
    ) -> Result<Option<Authorization>, FetchError> {
        let Some(Billed { x402: Some(bill), notes: odd, .. }) = billed else { return Ok(None) };
        let refused = &entry.current;
        let still_offered = bill.requirements.iter().any(|asked| asked.offer == refused.offer);
        // A refusal of what an earlier call signed is no reason to be stuck with it until it expires.
        let from_before = made.signatures == 0 && refused.signed_at <= started.at;
        let may_help = match cure {
            // Of the wallet itself, the caller has made sure that it is another.
            Cure::Renew | Cure::OtherPayer => true,
            Cure::IfTermsChanged => !still_offered || from_before,
            Cure::None => false,
        };
        if !may_help || self.barrier(request).is_some() || made.signatures >= SIGNATURES_MAX {
            return Ok(None);
        }
        let outstanding = entry.outstanding(self.parts.clock.now(), started.at);
        let choice = self.parts.policy.choose(&bill, outstanding).map_err(FetchError::Policy)?;
        let Some(wallet) = &self.parts.wallet else { return Ok(None) };
        let next = self.sign_x402(&**wallet, request, &bill, choice).await?;
        let notes = &mut made.notes;
        notes.extend(odd);
        if next.offer.pay_to != refused.offer.pay_to {
            notes.push(Note::PayToChanged { was: refused.offer.pay_to.clone(), now: next.offer.pay_to.clone() });
        }
        if let (Some(was), Some(now)) = (refused.worth(), next.worth())
            && was != now
        {
            notes.push(Note::PriceChanged { was, now });
        }
        Ok(Some(next))
    }
}

/// Why one way to pay was not taken.
enum NotBy {
    Forbidden(Vec<RefusedOffer>),
    /// It could not be done, and nothing was signed: the next way may do.
    Failed(FetchError),
    /// No other way may be tried.
    Stop(Box<NotSigned>),
}

fn no_wallet(offer: &Offer) -> NotBy {
    let (network, asset) = (offer.network().clone(), offer.amount.asset.clone());
    NotBy::Forbidden(vec![RefusedOffer { network, asset, rule: PolicyRule::NoWallet { rail: offer.rail } }])
}

/// The offers of a bill on rails that the policy leaves out.
fn unwanted(policy: &Policy, billed: &Billed) -> Vec<RefusedOffer> {
    refused_by(billed, |rail| (!policy.rails.contains(&rail)).then_some(PolicyRule::Rail { rail }))
}

/// The offers of a bill that a rule for their rail forbids.
fn refused_by(billed: &Billed, rule: impl Fn(RailName) -> Option<PolicyRule>) -> Vec<RefusedOffer> {
    let x402 =
        billed.x402.iter().flat_map(|bill| &bill.requirements).map(|asked| (RailName::X402, &asked.offer.amount));
    let transfers = billed.transfer.iter().flat_map(|read| &read.bill.options);
    let transfers = transfers.map(|option| (RailName::Transfer, &option.amount));
    let sats = billed.l402.iter().map(|bill| (RailName::L402, &bill.offer.amount));
    let all = x402.chain(transfers).chain(sats);
    all.filter_map(|(rail, Amount { asset, .. })| {
        Some(RefusedOffer { network: asset.network().clone(), asset: asset.clone(), rule: rule(rail)? })
    })
    .collect()
}

/// Whether the wallet signed this offer and nothing else: it may be a program of somebody else's, and what it signed is about to
/// be given to a stranger.
fn check_signed(signed: &X402Credential, offer: &Offer, payer: EvmAddress, now: Timestamp) -> Result<(), FetchError> {
    fn same<T: PartialEq + ToString>(field: &'static str, expected: &T, found: &T) -> Result<(), FetchError> {
        let (expected, found) =
            if expected == found { return Ok(()) } else { (expected.to_string(), found.to_string()) };
        Err(FetchError::WalletStrayed { field, expected, found })
    }
    let (authorization, accepted) = (&signed.authorization, &signed.accepted);
    let address = |address: EvmAddress| format!("{address:x}");
    same("from", &address(payer), &address(authorization.from))?;
    same("to", &offer.pay_to.to_ascii_lowercase(), &address(authorization.to))?;
    same("value", &offer.amount.units, &authorization.value)?;
    same("scheme", &offer.scheme, &accepted.scheme)?;
    same("network", offer.network(), &accepted.network)?;
    if let Some(echoed) = &accepted.requirement {
        same("asset", &offer.asset_on_wire.to_ascii_lowercase(), &echoed.asset.to_ascii_lowercase())?;
        same("payTo", &offer.pay_to.to_ascii_lowercase(), &echoed.pay_to.to_ascii_lowercase())?;
        same("amount", &offer.amount.units.to_string(), &echoed.amount.to_string())?;
    }
    let (end, found) = (now.unix_s().saturating_add(offer.max_timeout_s), authorization.valid_before);
    if found <= end {
        return Ok(());
    }
    Err(FetchError::WalletStrayed {
        field: "validBefore",
        expected: format!("at most {end}"),
        found: found.to_string(),
    })
}
