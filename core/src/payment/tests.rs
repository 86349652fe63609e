use proptest::prelude::*;

use super::*;
use crate::{AcceptedTerms, AssetId, EvmAddress, Network, TransferAuthorization, X402Credential, X402Version};

fn binding(resource: &str) -> Binding {
    Binding {
        route: RouteId::new("r"),
        method: "GET".into(),
        resource: resource.into(),
        caller: CallerId::from_key(b"k"),
    }
}

fn claim(holder: &str, now_s: u64) -> Claim {
    let network = Network::evm(84532);
    let address = EvmAddress([1; 20]);
    let credential = X402Credential::new(
        X402Version::V2,
        AcceptedTerms { scheme: "exact".into(), network: network.clone(), requirement: None },
        TransferAuthorization {
            from: address,
            to: EvmAddress([2; 20]),
            value: 10_000,
            valid_after: 0,
            valid_before: 1_000,
            nonce: [3; 32],
        },
        vec![4; 65],
    );
    Claim {
        id: PaymentId::new(Timestamp::from_unix_s(now_s), [0; 10]),
        proof: ProofId::new("eip3009:x"),
        credential: Arc::new(Credential::X402(credential)),
        rail: RailName::X402,
        binding: binding("/a?b"),
        payer: Payer::new(&network, "0x01"),
        amount: Amount { units: 10_000, asset: AssetId::erc20(network, address) },
        pay_to: "0x02".into(),
        valid_until: Timestamp::from_unix_s(1_000),
        finality: Finality::default(),
        arrived: None,
        request: RequestId::new("req_1"),
        holder: InstanceId::new(holder),
        lease: Duration::from_secs(60),
        now: Timestamp::from_unix_s(now_s),
    }
}

fn apply(payment: &mut Payment, by: &str, now_s: u64, event: PaymentEvent) -> bool {
    payment.apply(&event, &InstanceId::new(by), Timestamp::from_unix_s(now_s)).is_ok()
}

fn started() -> PaymentEvent {
    PaymentEvent::SettlementStarted { transaction: TransactionId::new("0xaa") }
}

fn settled() -> PaymentEvent {
    PaymentEvent::Settled { transaction: TransactionId::new("0xaa"), block: BlockRef { number: 7, hash: [7; 32] } }
}

fn contest(payment: &Payment, by: Claim) -> &'static str {
    match payment.clone().contest(&by) {
        Contest::Grant(_) => "grant",
        Contest::Answer(Claimed::Granted(_)) => "granted",
        Contest::Answer(Claimed::Replayed(_)) => "replayed",
        Contest::Answer(Claimed::Busy(_)) => "busy",
        Contest::Answer(Claimed::Foreign(_)) => "foreign",
    }
}

#[test]
fn a_proof_is_good_for_one_request_only() {
    let payment = Payment::first(claim("a", 1));
    let stranger = Binding { caller: CallerId::from_address([192, 0, 2, 1].into(), b""), ..binding("/a?b") };
    assert_eq!(contest(&payment, Claim { binding: stranger, ..claim("a", 100) }), "foreign");
    let elsewhere = Claim { binding: binding("/dear"), ..claim("a", 100) };
    assert_eq!(contest(&payment, elsewhere), "foreign");
    let mut other = claim("a", 100);
    let Credential::X402(x402) = Arc::make_mut(&mut other.credential) else { unreachable!("an x402 claim") };
    *x402 = X402Credential::new(x402.version, x402.accepted.clone(), x402.authorization.clone(), vec![5; 65]);
    assert_eq!(contest(&payment, other), "foreign");
}

#[test]
fn a_live_claim_is_busy_and_an_orphaned_one_is_taken_over() {
    let payment = Payment::first(claim("a", 1));
    assert_eq!(contest(&payment, claim("a", 2)), "busy");
    assert_eq!(contest(&payment, claim("b", 62)), "grant");
}

#[test]
fn a_payment_that_may_be_charged_is_never_granted_again() {
    let mut payment = Payment::first(claim("a", 1));
    assert!(apply(&mut payment, "a", 2, started()));
    assert_eq!(contest(&payment, claim("b", 1_000)), "busy");
    assert!(apply(&mut payment, "b", 2, PaymentEvent::Doubted));
    assert_eq!(contest(&payment, claim("b", 1_000)), "busy");
    assert!(!apply(&mut payment, "b", 1_000, PaymentEvent::LeaseExpired));
    assert!(!apply(&mut payment, "a", 3, PaymentEvent::Released { code: "x".into() }));
}

#[test]
fn a_settled_payment_is_redeemed_until_it_is_delivered() {
    let mut payment = Payment::first(claim("a", 1));
    assert!(apply(&mut payment, "a", 2, started()));
    assert!(apply(&mut payment, "a", 3, settled()));
    assert_eq!(contest(&payment, claim("a", 4)), "busy");
    assert!(apply(&mut payment, "a", 5, PaymentEvent::RunEnded));
    assert_eq!(contest(&payment, claim("a", 6)), "grant");
    assert!(apply(&mut payment, "a", 7, PaymentEvent::Delivered { answer: None }));
    assert!(!apply(&mut payment, "a", 7, PaymentEvent::Delivered { answer: None }));
    assert_eq!(contest(&payment, claim("a", 8)), "replayed");
    assert_eq!(payment.receipt().map(|r| r.transaction), Some(TransactionId::new("0xaa")));
}

#[test]
fn broken_runs_come_to_an_end() {
    let mut payment = Payment::first(claim("a", 1));
    assert!(apply(&mut payment, "a", 2, started()) && apply(&mut payment, "a", 3, settled()));
    let mut grants = 0;
    for second in 4..2_000 {
        assert!(apply(&mut payment, "a", second, PaymentEvent::RunEnded));
        match payment.clone().contest(&claim("a", second)) {
            Contest::Grant(row) => payment = row,
            Contest::Answer(answer) => {
                assert!(matches!(answer, Claimed::Replayed(_)));
                break;
            }
        }
        grants += 1;
    }
    assert_eq!(grants, RUNS_MAX - 1);
}

#[test]
fn only_the_holder_may_start_a_settlement_of_a_fresh_claim() {
    let mut payment = Payment::first(claim("a", 1));
    assert!(!apply(&mut payment, "b", 2, started()));
    assert!(apply(&mut payment, "b", 61, PaymentEvent::LeaseExpired));
    // Its holder was only slow; by now somebody else may have claimed the proof anew.
    assert!(!apply(&mut payment, "a", 62, started()));
}

#[test]
fn a_reorganisation_puts_revenue_in_doubt_and_can_take_it_back() {
    let mut payment = Payment::first(claim("a", 1));
    for event in [started(), settled(), PaymentEvent::Doubted] {
        assert!(apply(&mut payment, "a", 2, event));
    }
    assert_eq!(payment.receipt(), None);
    assert!(apply(&mut payment, "a", 3, PaymentEvent::Refused { code: "x".into() }));
    assert_eq!(contest(&payment, claim("a", 1_000)), "replayed");
}

fn any_event() -> impl Strategy<Value = PaymentEvent> {
    prop_oneof![
        Just(PaymentEvent::Released { code: "x".into() }),
        Just(PaymentEvent::LeaseExpired),
        Just(started()),
        Just(PaymentEvent::Doubted),
        Just(settled()),
        Just(PaymentEvent::Refused { code: "x".into() }),
        Just(PaymentEvent::Delivered { answer: None }),
        Just(PaymentEvent::RunEnded),
    ]
}

proptest! {
    /// Whatever happens in whatever order: a stored transaction is never forgotten by a Void, the end states end, and a
    /// delivery is recorded once.
    #[test]
    fn no_order_of_events_loses_money(events in prop::collection::vec((any_event(), 0u8..2, 1u64..200), 0..40)) {
        let mut payment = Payment::first(claim("a", 1));
        let mut deliveries = 0;
        for (event, by, now_s) in events {
            let before = payment.clone();
            let taken = apply(&mut payment, if by == 0 { "a" } else { "b" }, now_s, event.clone());
            if !taken {
                prop_assert_eq!(&payment, &before);
                continue;
            }
            deliveries += u32::from(matches!(event, PaymentEvent::Delivered { .. }));
            prop_assert!(payment.state != PaymentState::Void || payment.transaction.is_none());
            prop_assert!(before.state != PaymentState::Void);
            prop_assert!(before.state != PaymentState::Refused || payment.state == PaymentState::Refused);
        }
        prop_assert!(deliveries <= 1);
        prop_assert_eq!(payment.receipt().is_some(), payment.state == PaymentState::Settled);
    }
}
