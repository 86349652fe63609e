//! The nouns of Farebox and the rules that hold between them: money, tariffs, offers, proofs, payment states,
//! receipts, and the ports behind which rails and ledgers stand.
//!
//! Nothing here does IO, reads a clock or knows a runtime. What a word means is in GLOSSARY.md.

mod answer;
mod asset;
mod audit;
mod credential;
mod draw;
mod id;
mod lightning;
mod money;
mod offer;
mod payment;
pub mod ports;
mod receipt;
mod refusal;
mod tariff;
mod text;
mod time;
mod token;
mod transfer;

pub use answer::{Answer, AnswerHeader};
pub use asset::{AssetId, AssetIdError, Network, NetworkError};
pub use audit::{AuditEntry, AuditLine, AuditOutcome, AuditProblem, AuditSubject, verify_audit};
pub use credential::{
    AcceptedTerms, Credential, CredentialDigest, EchoedRequirement, EvmAddress, EvmAddressError, InvoiceCredential,
    TransferAuthorization, X402Credential, X402Version,
};
pub use draw::{
    BROKEN_DRAWS_MAX, Draw, DrawEnd, DrawId, DrawPermit, DrawRuling, Drawn, KEPT_ANSWERS_MAX, KEPT_BODY_BYTES_MAX,
    KeptAnswers, KeyUse, PaidBefore, PassAccount, PassPayment,
};
pub use id::{CallerId, InstanceId, LaneKey, PaymentId, PaymentIdError, ProofId, RequestId, RouteId, TransactionId};
pub use lightning::{BitcoinNetwork, Invoice, InvoiceNews, InvoiceState, PaymentHash, Preimage};
pub use money::{Amount, AmountError, Decimal, DecimalError, Price, PriceError, ToUnitsError};
pub use offer::{Challenge, Finality, NetworkFee, Offer, Payer, RailName, Resource, UnavailableRail};
pub use payment::{
    Arrived, ArrivedFor, Binding, BlockRef, Claim, Claimed, Contest, Delivery, IllegalEvent, Payment, PaymentEvent,
    PaymentState, Permit, StoredTransaction, TransactionFate,
};
pub use receipt::Receipt;
pub use refusal::{Charged, Refusal, Retry};
pub use tariff::{Access, FeeTerms, LiveOffers, OfferBoard, Pricing, SettleWhen, Tariff};
pub use text::{Untrusted, shortened};
pub use time::Timestamp;
pub use token::{
    Grant, L402Token, Macaroon, NewToken, PassId, RootKey, SOLD_RESOURCE_BYTES_MAX, SoldToken, Token, TokenScope,
    TokenTerms,
};
pub use transfer::{PaymentCode, TransferCredential};
