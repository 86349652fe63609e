//! A bill's terms for a transfer, held against the request that was made and the policy.

use std::time::Duration;

use farebox_core::{EvmAddress, Finality, NetworkFee, Offer, RailName, Timestamp, Untrusted};
use farebox_wire::transfer::{ReadBill, TransferBill, TransferOption, eip55};
use serde_json::json;
use url::Url;

use crate::{
    error::RefusedOffer,
    policy::{Acceptable, Outstanding, Policy, PolicyRule, date},
    request::Replayable,
};

/// What a transfer needs to be mined.
const MINING_TIME: Duration = Duration::from_secs(30);
/// How long one block takes, at most: a wait of so many confirmations must end before the bill does. Ethereum's 12 s and some.
const BLOCK_TIME: Duration = Duration::from_secs(15);
/// How long it takes until a block is safe, and until it is final. Ethereum's one and two epochs and a missed one.
const SAFE_TIME: Duration = Duration::from_secs(15 * 60);
const FINAL_TIME: Duration = Duration::from_secs(22 * 60);
/// More confirmations than this are not waited for.
const CONFIRMATIONS_MAX: u64 = 1_000;

/// A bill's terms for a transfer, and what they are judged against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms<'a> {
    pub(crate) read: &'a ReadBill,
    pub(crate) request: &'a Replayable,
    pub(crate) policy: &'a Policy,
    /// Who would pay, if there is a wallet.
    pub(crate) payer: Option<EvmAddress>,
    pub(crate) now: Timestamp,
}

/// An option that may be paid.
#[derive(Clone, Debug)]
pub(crate) struct TransferChoice {
    /// Its place among the bill's options.
    pub(crate) index: usize,
    pub(crate) offer: Offer,
    pub(crate) pay_to: EvmAddress,
    pub(crate) acceptable: Acceptable,
}

impl Terms<'_> {
    pub(crate) const fn bill(&self) -> &TransferBill {
        &self.read.bill
    }

    /// The options as offers, in the bill's order.
    pub(crate) fn offers(&self) -> Vec<Offer> {
        self.bill().options.iter().map(|option| self.offer(option)).collect()
    }

    /// The options that may be paid, the cheapest first, of equals the seller's first; and why the others may not.
    pub(crate) fn choices(&self, outstanding: Outstanding) -> (Vec<TransferChoice>, Vec<RefusedOffer>) {
        let (mut choices, mut refused) = (Vec::new(), Vec::new());
        for (index, option) in self.bill().options.iter().enumerate() {
            let offer = self.offer(option);
            match self.judge(option, &offer, outstanding) {
                Ok(acceptable) => choices.push(TransferChoice { index, offer, pay_to: option.pay_to, acceptable }),
                Err(rule) => {
                    let asset = option.amount.asset.clone();
                    refused.push(RefusedOffer { network: asset.network().clone(), asset, rule });
                }
            }
        }
        choices.sort_by_key(|choice| choice.acceptable.price);
        (choices, refused)
    }

    /// Whether each option may be paid, in the bill's order.
    pub(crate) fn judgements(&self) -> Vec<Result<Acceptable, PolicyRule>> {
        let judged = |option| self.judge(option, &self.offer(option), Outstanding::default());
        self.bill().options.iter().map(judged).collect()
    }

    fn judge(
        &self,
        option: &TransferOption,
        offer: &Offer,
        outstanding: Outstanding,
    ) -> Result<Acceptable, PolicyRule> {
        let acceptable = self.policy.judge_with(offer, outstanding)?;
        self.check_request()?;
        if Some(option.pay_to) == self.payer {
            return Err(PolicyRule::ToItself { pay_to: option.pay_to });
        }
        let (billed, known) = (option.decimals, acceptable.asset.decimals());
        if billed != known {
            return Err(PolicyRule::Decimals { symbol: acceptable.asset.symbol().to_owned(), billed, known });
        }
        self.check_times(option.finality)?;
        Ok(acceptable)
    }

    /// A quote is good for the resource and method that it names, and for nothing else.
    fn check_request(&self) -> Result<(), PolicyRule> {
        let (asked, billed) = (self.request.resource(), Untrusted::new(self.bill().resource.as_str()));
        if Url::parse(billed.as_raw()).ok().as_ref() != Some(&asked) {
            return Err(PolicyRule::OtherRequest { field: "resource", asked: asked.to_string(), billed });
        }
        let (asked, billed) = (&self.request.method, Untrusted::new(self.bill().method.as_str()));
        if billed.as_raw() != asked.as_str() {
            return Err(PolicyRule::OtherRequest { field: "method", asked: asked.to_string(), billed });
        }
        Ok(())
    }

    fn check_times(&self, finality: Finality) -> Result<(), PolicyRule> {
        let confirming = match finality {
            Finality::Blocks(blocks) if blocks > CONFIRMATIONS_MAX => {
                return Err(PolicyRule::TooDeep { blocks, max: CONFIRMATIONS_MAX });
            }
            Finality::Blocks(blocks) => BLOCK_TIME * u32::try_from(blocks).unwrap_or(u32::MAX),
            Finality::Safe => SAFE_TIME,
            Finality::Finalized => FINAL_TIME,
        };
        let bill = self.bill();
        for (what, needed, end) in
            [("payBy", MINING_TIME, bill.pay_by), ("claimBy", MINING_TIME + confirming, bill.claim_by)]
        {
            if self.now.plus(needed) > end {
                return Err(PolicyRule::TooShort { what, needed_s: needed.as_secs(), ends: date(end) });
            }
        }
        Ok(())
    }

    fn offer(&self, option: &TransferOption) -> Offer {
        let asset = &option.amount.asset;
        let extra = json!({"symbol": &*option.symbol, "decimals": option.decimals});
        Offer {
            rail: RailName::Transfer,
            scheme: "transfer".into(),
            amount: option.amount.clone(),
            asset_on_wire: asset.erc20_address().map_or_else(|| "native".into(), |token| eip55(token).into()),
            pay_to: eip55(option.pay_to).into(),
            max_timeout_s: self.bill().pay_by.since(self.now).as_secs().max(1),
            extra: extra.as_object().cloned().unwrap_or_default(),
            finality: option.finality,
            network_fee: option.network_fee_wei.map(NetworkFee::OnTop),
        }
    }
}
