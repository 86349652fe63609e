//! The suite that every ledger passes. A ledger crate's tests call [`passes_everything`] with a way to make fresh books.
#![expect(clippy::expect_used, reason = "a test suite; a panic is how it reports")]

mod log_rules;
mod model;
mod rules;
mod token_model;
mod token_rules;
mod transfer_rules;

use std::{fmt, sync::Arc, time::Duration};

use farebox_core::{
    Amount, Answer, AnswerHeader, Arrived, ArrivedFor, AuditEntry, AuditOutcome, AuditSubject, Binding, BlockRef,
    CallerId, Claim, Claimed, Credential, Finality, InstanceId, LaneKey, Offer, Payment, PaymentEvent, PaymentId,
    ProofId, RailName, RequestId, RouteId, StoredTransaction, Timestamp, TransactionFate, TransactionId,
    X402Credential,
    ports::{Ledger, TokenBooks, TransactionStore},
};

pub use model::agrees_with_the_model;
pub use rules::obeys_the_rules;
pub use token_model::sells_as_the_model_does;

use crate::{Purchase, TestPayer, proof_of, test_asset, test_hash, test_network, test_offer, transaction_of};

/// What the gateway needs of one ledger.
pub trait LedgerStore: Ledger + TransactionStore + TokenBooks {}

impl<T: Ledger + TransactionStore + TokenBooks> LedgerStore for T {}

/// A place where books are kept, such as a folder or a schema of a database; empty at first, gone when dropped.
pub trait Books {
    /// Opens the books in the name of a new process. The suite has dropped every earlier ledger of these books by then.
    fn open(&self, instance: InstanceId, answers_kept_for: Duration, now: Timestamp) -> Arc<dyn LedgerStore>;
}

/// Runs everything. `fresh` makes empty books, once for each test and each random case.
///
/// # Panics
/// If the ledger breaks a rule; the message has the seed of a random case.
pub fn passes_everything<B: Books>(fresh: impl Fn() -> B) {
    obeys_the_rules(&fresh);
    agrees_with_the_model(&fresh, 48);
    sells_as_the_model_does(&fresh, 32);
}

/// How long the suite's ledgers keep answers.
const ANSWERS_KEPT_FOR: Duration = Duration::from_secs(60);

/// How long the suite's claims are held.
const LEASE: Duration = Duration::from_secs(30);

const START: Timestamp = Timestamp::from_unix_s(1_800_000_000);

fn instance(number: usize) -> InstanceId {
    InstanceId::new(format!("instance-{number}"))
}

fn payment_id(number: usize, now: Timestamp) -> PaymentId {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&(number as u64).to_be_bytes());
    PaymentId::new(now, random)
}

fn route(number: usize) -> RouteId {
    RouteId::new(format!("route-{number}"))
}

fn offer(units: u128) -> Offer {
    Offer { amount: Amount { units, asset: test_asset() }, ..test_offer(RailName::X402) }
}

/// A claim of proof `proof` for the resource `resource`; another `signature` makes another credential of the same proof.
struct ClaimOf {
    id: PaymentId,
    proof: usize,
    signature: u8,
    resource: usize,
    /// So many units came by a transfer, and for what; nothing for an x402 credential.
    arrived: Option<(u128, ArrivedFor)>,
    holder: InstanceId,
    now: Timestamp,
}

impl ClaimOf {
    fn first(proof: usize, now: Timestamp) -> Self {
        let id = payment_id(proof, now);
        Self { id, proof, signature: 1, resource: 0, arrived: None, holder: instance(0), now }
    }

    /// By a transfer of `units` for a price of [`PRICE`].
    fn transfer(proof: usize, units: u128, now: Timestamp) -> Self {
        Self { arrived: Some((units, ArrivedFor::Delivery)), ..Self::first(proof, now) }
    }

    /// By a transfer of `units` that came too late.
    fn late(proof: usize, units: u128, now: Timestamp) -> Self {
        let late = ArrivedFor::Credit { code: "paid_too_late".into() };
        Self { arrived: Some((units, late)), ..Self::first(proof, now) }
    }

    fn payer(&self) -> TestPayer {
        TestPayer(u8::try_from(self.proof % 3).unwrap_or(0))
    }

    fn build(self) -> Claim {
        let valid_until = START.plus(Duration::from_secs(600));
        let (offer, credential, proof, arrived) = match &self.arrived {
            None => self.x402(valid_until),
            Some((units, purpose)) => self.transferred(*units, purpose.clone(), valid_until),
        };
        let payer = self.payer().account(&test_network());
        Claim {
            id: self.id,
            proof,
            rail: offer.rail,
            binding: Binding {
                route: route(self.resource % 2),
                method: "GET".into(),
                resource: format!("/{}?q='\"%00\u{1b}é", self.resource),
                caller: CallerId::from_key(b"key"),
            },
            payer,
            amount: offer.amount,
            pay_to: offer.pay_to,
            valid_until,
            finality: if self.proof.is_multiple_of(2) { Finality::Blocks(3) } else { Finality::Safe },
            arrived,
            request: request_of(self.id),
            holder: self.holder,
            lease: LEASE,
            now: self.now,
            credential: Arc::new(credential),
        }
    }

    fn x402(&self, valid_until: Timestamp) -> (Offer, Credential, ProofId, Option<Arrived>) {
        // Units beyond 2^64, which a careless column type would cut.
        let offer = offer(u128::MAX - self.proof as u128);
        let Credential::X402(signed) = self.payer().pay(&offer, self.proof as u64, valid_until) else {
            panic!("a test payer pays by x402")
        };
        let signature = vec![self.signature; 65];
        let x402 = X402Credential::new(signed.version, signed.accepted, signed.authorization, signature);
        let credential = Credential::X402(x402);
        let proof = proof_of(&credential, &test_asset());
        (offer, credential, proof, None)
    }

    fn transferred(
        &self,
        units: u128,
        purpose: ArrivedFor,
        valid_until: Timestamp,
    ) -> (Offer, Credential, ProofId, Option<Arrived>) {
        let offer = Offer { amount: Amount { units: PRICE, asset: test_asset() }, ..test_offer(RailName::Transfer) };
        let quote = format!("quote-{}", self.signature);
        let url = "https://api.example.com/0";
        let purchase = Purchase { quote: &quote, method: "GET", url, code_expires_at: valid_until };
        let hash = test_hash(self.proof as u64);
        let credential = self.payer().claim_transfer(&offer, hash, purchase);
        let transaction = transaction_of(&hash);
        let proof = ProofId::transfer(&test_network(), &transaction, Some(0));
        let arrived = Arrived { transaction, block: block(self.proof as u64), units, purpose };
        (offer, credential, proof, Some(arrived))
    }
}

/// What a transfer has to bring.
const PRICE: u128 = 10_000;

/// Every claim comes with a request of its own.
fn request_of(id: PaymentId) -> RequestId {
    RequestId::new(id.to_string().replace("pay_", "req_"))
}

fn transaction(number: u64, payment: Option<PaymentId>, now: Timestamp) -> StoredTransaction {
    StoredTransaction {
        hash: transaction_id(number),
        lane: lane(),
        nonce: number,
        raw: vec![0, 0xff, u8::try_from(number % 256).unwrap_or(0)],
        payment,
        fate: TransactionFate::Open,
        stored_at: now,
    }
}

fn lane() -> LaneKey {
    LaneKey::new("eip155:84532:0xe1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1e1")
}

fn transaction_id(number: u64) -> TransactionId {
    TransactionId::new(format!("0x{number:064x}"))
}

fn settled(number: u64) -> PaymentEvent {
    PaymentEvent::Settled { transaction: transaction_id(number), block: block(number) }
}

fn block(number: u64) -> BlockRef {
    BlockRef { number, hash: [u8::try_from(number % 256).unwrap_or(0); 32] }
}

fn delivered(body: &[u8]) -> PaymentEvent {
    let header = |name: &str, value: &[u8]| AnswerHeader { name: name.into(), value: value.to_vec() };
    // Header values need not be UTF-8.
    let headers = vec![header("content-type", b"text/plain"), header("x-odd", &[0x80, 0xff])];
    PaymentEvent::Delivered { answer: Some(Answer { status: 200, headers, body: body.to_vec() }) }
}

/// A credential that was refused before any claim.
fn rejection(at: Timestamp) -> AuditEntry {
    let subject = AuditSubject {
        payment: None,
        request: RequestId::new("req_rejected"),
        rail: RailName::Transfer,
        route: route(0),
        method: "GET".into(),
        resource: "/\"\n\u{1b}é".into(),
        payer: Some(TestPayer(0).account(&test_network())),
        amount: None,
        credit: None,
        transaction: Some(transaction_of(&test_hash(0))),
    };
    AuditEntry { at, outcome: AuditOutcome::Rejected, reason: Some("wrong_payer".into()), subject, count: 3 }
}

async fn granted(ledger: &dyn LedgerStore, claim: Claim) -> Payment {
    let proof = claim.proof.clone();
    match ledger.claim(claim).await.expect("the ledger takes the claim") {
        Claimed::Granted(permit) => permit.into_payment(),
        other => panic!("the claim of {proof} was not granted but {other:?}"),
    }
}

/// A settled payment, mined in block and transaction `proof`.
async fn settled_payment(ledger: &dyn LedgerStore, claim: ClaimOf) -> Payment {
    let (number, now) = (claim.proof as u64, claim.now);
    let payment = granted(ledger, claim.build()).await;
    ledger.store_transaction(transaction(number, Some(payment.id), now)).await.expect("stored");
    ledger.record(payment.id, vec![settled(number)], now).await.expect("recorded")
}

/// What a caller is told, without the sources of errors, which are a ledger's own.
fn told<T: fmt::Debug>(result: Result<T, impl Into<farebox_core::ports::RecordError>>) -> String {
    use farebox_core::ports::RecordError as E;
    match result.map_err(Into::into) {
        Ok(value) => format!("{value:?}"),
        Err(E::Unavailable(_)) => "unavailable".into(),
        Err(definite @ (E::Illegal(_) | E::NotFound { .. })) => format!("{definite:?}"),
    }
}
