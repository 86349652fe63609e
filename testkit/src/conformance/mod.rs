//! The suite that every ledger passes. A ledger crate's tests call [`passes_everything`] with a way to make fresh books.
#![expect(clippy::expect_used, reason = "a test suite; a panic is how it reports")]

mod model;
mod rules;

use std::{fmt, sync::Arc, time::Duration};

use farebox_core::{
    Amount, Answer, AnswerHeader, Binding, BlockRef, CallerId, Claim, Claimed, Credential, InstanceId, LaneKey, Offer,
    Payment, PaymentEvent, PaymentId, RailName, RouteId, StoredTransaction, Timestamp, TransactionFate, TransactionId,
    X402Credential,
    ports::{Ledger, TransactionStore},
};

pub use model::agrees_with_the_model;
pub use rules::obeys_the_rules;

use crate::{ScriptedRail, TestPayer, proof_of, test_asset, test_network};

/// What the gateway needs of one ledger.
pub trait LedgerStore: Ledger + TransactionStore {}

impl<T: Ledger + TransactionStore> LedgerStore for T {}

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
    Offer {
        rail: RailName::X402,
        scheme: "exact".into(),
        amount: Amount { units, asset: test_asset() },
        asset_on_wire: "0x5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c".into(),
        pay_to: ScriptedRail::PAY_TO.into(),
        max_timeout_s: 60,
        extra: serde_json::Map::from_iter([("name".to_owned(), "USDC".into()), ("version".to_owned(), "2".into())]),
    }
}

/// A claim of proof `proof` for the resource `resource`; another `signature` makes another credential of the same proof.
struct ClaimOf {
    id: PaymentId,
    proof: usize,
    signature: u8,
    resource: usize,
    holder: InstanceId,
    now: Timestamp,
}

impl ClaimOf {
    fn first(proof: usize, now: Timestamp) -> Self {
        Self { id: payment_id(proof, now), proof, signature: 1, resource: 0, holder: instance(0), now }
    }

    fn build(self) -> Claim {
        // Units beyond 2^64, which a careless column type would cut.
        let offer = offer(u128::MAX - self.proof as u128);
        let payer = TestPayer(u8::try_from(self.proof % 3).unwrap_or(0));
        let valid_until = START.plus(Duration::from_secs(600));
        let Credential::X402(signed) = payer.pay(&offer, self.proof as u64, valid_until);
        let credential = Credential::X402(X402Credential::new(
            signed.version,
            signed.accepted,
            signed.authorization,
            vec![self.signature; 65],
        ));
        Claim {
            id: self.id,
            proof: proof_of(&credential, &test_asset()),
            rail: RailName::X402,
            binding: Binding {
                route: route(self.resource % 2),
                method: "GET".into(),
                resource: format!("/{}?q='\"%00\u{1b}é", self.resource),
                caller: CallerId::from_key(b"key"),
            },
            payer: payer.account(&test_network()),
            amount: offer.amount,
            pay_to: offer.pay_to,
            valid_until,
            holder: self.holder,
            lease: LEASE,
            now: self.now,
            credential: Arc::new(credential),
        }
    }
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
