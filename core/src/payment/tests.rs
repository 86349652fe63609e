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
fn answers_that_break_off_in_the_middle_come_to_an_end_soon() {
    let mut payment = Payment::first(claim("a", 1));
    assert!(apply(&mut payment, "a", 2, started()) && apply(&mut payment, "a", 3, settled()));
    for second in 4..4 + u64::from(BROKEN_RUNS_MAX) {
        let Contest::Grant(row) = payment.clone().contest(&claim("a", second + 60)) else { panic!("{payment:?}") };
        payment = row;
        assert!(apply(&mut payment, "a", second, PaymentEvent::BrokeOff));
    }
    assert_eq!(contest(&payment, claim("a", 99)), "replayed");
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

/// By a transfer of `units` for a price of 10 000, mined in block 7.
fn transfer(units: u128, purpose: ArrivedFor, now_s: u64) -> Claim {
    let arrived = Arrived {
        transaction: TransactionId::new("0xaa"),
        block: BlockRef { number: 7, hash: [7; 32] },
        units,
        purpose,
    };
    Claim { arrived: Some(arrived), ..claim("a", now_s) }
}

fn late(units: u128, now_s: u64) -> Claim {
    transfer(units, ArrivedFor::Credit { code: "paid_too_late".into() }, now_s)
}

fn refused() -> PaymentEvent {
    PaymentEvent::Refused { code: "payment_not_found".into() }
}

fn delivered() -> PaymentEvent {
    PaymentEvent::Delivered { answer: None }
}

#[test]
fn what_came_over_the_price_is_credit_and_not_revenue() {
    for (units, credit) in [(10_000, 0), (10_001, 1), (u128::MAX, u128::MAX - 10_000)] {
        let payment = Payment::first(transfer(units, ArrivedFor::Delivery, 1));
        assert_eq!((payment.state, payment.delivery), (PaymentState::Settled, Delivery::Pending));
        assert_eq!((payment.amount.units, payment.credit), (10_000, credit));
        assert_eq!(payment.receipt().map(|r| (r.amount.units, r.credit)), Some((10_000, credit)));
    }
}

#[test]
fn late_money_is_credit_whole_and_buys_nothing_even_if_a_later_claim_says_so() {
    let mut payment = Payment::first(late(9, 1));
    assert_eq!((payment.amount.units, payment.credit, payment.holder.as_ref()), (9, 9, None));
    for now_s in [2, 100, 5_000] {
        assert_eq!(contest(&payment, late(9, now_s)), "replayed");
        assert_eq!(contest(&payment, transfer(10_000, ArrivedFor::Delivery, now_s)), "replayed");
        assert!(!apply(&mut payment, "a", now_s, delivered()));
    }
    assert_eq!(contest(&payment, Claim { binding: binding("/dear"), ..late(9, 100) }), "foreign");
}

#[test]
fn money_that_came_back_after_a_reorganisation_is_as_it_was() {
    for claim in [late(9, 1), transfer(10_005, ArrivedFor::Delivery, 1)] {
        let first = Payment::first(claim);
        let mut payment = first.clone();
        assert!(apply(&mut payment, "b", 2, PaymentEvent::Reversed));
        assert_eq!((payment.state, payment.reversed, payment.receipt()), (PaymentState::InDoubt, true, None));
        assert_eq!(contest(&payment, Claim { now: Timestamp::from_unix_s(5_000), ..claim_like(&first) }), "busy");
        assert!(!apply(&mut payment, "b", 2, PaymentEvent::Reversed));
        assert!(apply(&mut payment, "b", 3, settled()));
        assert_eq!(payment, Payment { updated_at: payment.updated_at, ..first });
    }
}

/// The claim that made this row, by its credential and binding.
fn claim_like(payment: &Payment) -> Claim {
    Claim { binding: payment.binding.clone(), credential: payment.credential.clone(), ..claim("b", 1) }
}

#[test]
fn a_delivered_payment_that_is_reversed_stays_delivered() {
    let mut payment = Payment::first(transfer(10_000, ArrivedFor::Delivery, 1));
    for event in [delivered(), PaymentEvent::Reversed] {
        assert!(apply(&mut payment, "a", 2, event));
    }
    assert!(payment.marks_payer());
    let mut lost = payment.clone();
    assert!(apply(&mut payment, "a", 3, settled()));
    assert_eq!((payment.delivery, payment.reversed, payment.marks_payer()), (Delivery::Delivered, false, false));
    assert_eq!(contest(&payment, transfer(10_000, ArrivedFor::Delivery, 5_000)), "replayed");
    assert!(apply(&mut lost, "a", 3, refused()));
    assert!(lost.reversed && lost.marks_payer() && lost.delivery == Delivery::Delivered);
}

#[test]
fn an_answer_that_was_on_its_way_while_the_money_went_is_delivered() {
    // Whatever the reconciler did meanwhile: it asked, signed again, or learned that the money is gone.
    for meanwhile in [vec![], vec![started()], vec![refused()], vec![started(), refused()]] {
        let mut payment = Payment::first(claim("a", 1));
        for event in [started(), settled(), PaymentEvent::Reversed].into_iter().chain(meanwhile) {
            assert!(apply(&mut payment, "a", 2, event));
        }
        assert!(!payment.marks_payer() || payment.state != PaymentState::Refused, "nothing is lost yet");
        assert!(apply(&mut payment, "a", 3, delivered()), "{}", payment.state.as_str());
        assert!(payment.marks_payer());
        if payment.state != PaymentState::Refused {
            assert!(apply(&mut payment, "a", 4, settled()));
        }
        assert_eq!(contest(&payment, claim("b", 5_000)), "replayed", "one delivery for one payment");
    }
}

#[test]
fn an_answer_is_not_delivered_for_money_that_never_came() {
    let doubted = vec![started(), PaymentEvent::Doubted];
    for before in [vec![], vec![started()], doubted, vec![started(), refused()]] {
        let mut payment = Payment::first(claim("a", 1));
        assert!(before.into_iter().all(|event| apply(&mut payment, "a", 2, event)));
        assert!(!apply(&mut payment, "a", 3, delivered()), "{}", payment.state.as_str());
    }
}

#[test]
fn a_take_over_is_told_by_its_own_request_and_changes_no_money() {
    let first = Payment::first(transfer(10_003, ArrivedFor::Delivery, 1));
    let again = Claim { request: RequestId::new("req_2"), ..transfer(99_999, ArrivedFor::Delivery, 100) };
    let Contest::Grant(taken) = first.clone().contest(&again) else { panic!("not granted") };
    assert_eq!((taken.request.as_str(), taken.runs), ("req_2", 2));
    assert_eq!((taken.amount, taken.credit, taken.finality), (first.amount, first.credit, first.finality));
}

fn any_event() -> impl Strategy<Value = PaymentEvent> {
    prop_oneof![
        Just(PaymentEvent::Released { code: "x".into() }),
        Just(PaymentEvent::LeaseExpired),
        Just(started()),
        Just(PaymentEvent::Doubted),
        Just(PaymentEvent::Reversed),
        Just(settled()),
        Just(refused()),
        Just(delivered()),
        Just(PaymentEvent::RunEnded),
        Just(PaymentEvent::BrokeOff),
    ]
}

fn any_claim() -> impl Strategy<Value = Claim> {
    prop_oneof![
        Just(claim("a", 1)),
        (10_000..10_003u128).prop_map(|units| transfer(units, ArrivedFor::Delivery, 1)),
        (1..10_003u128).prop_map(|units| late(units, 1)),
    ]
}

proptest! {
    /// Whatever happens in whatever order, take-overs between: a stored transaction is never forgotten by a Void, the end states
    /// end, an answer is delivered once and never for credit, and no event makes money or loses it.
    #[test]
    fn no_order_of_events_loses_money(
        first in any_claim(),
        events in prop::collection::vec((any_event(), any::<bool>(), 0u8..2, 1u64..200), 0..40),
    ) {
        let mut payment = Payment::first(first.clone());
        let start = payment.clone();
        let mut deliveries = 0;
        for (event, claimed_again, by, now_s) in events {
            let before = payment.clone();
            if claimed_again {
                let again = Claim { now: Timestamp::from_unix_s(now_s), ..first.clone() };
                if let Contest::Grant(row) = payment.clone().contest(&again) {
                    prop_assert!(start.delivery != Delivery::Credited);
                    prop_assert_eq!(deliveries, 0);
                    payment = row;
                }
            }
            let unchanged = payment.clone();
            let taken = apply(&mut payment, if by == 0 { "a" } else { "b" }, now_s, event.clone());
            if !taken {
                prop_assert_eq!(&payment, &unchanged);
                continue;
            }
            deliveries += u32::from(matches!(event, PaymentEvent::Delivered { .. }));
            let again = matches!(event, PaymentEvent::Doubted | PaymentEvent::Settled { .. }) && unchanged.state == payment.state;
            let silent = again || matches!(event, PaymentEvent::RunEnded | PaymentEvent::BrokeOff);
            let told = crate::AuditEntry::of(unchanged.state, &payment, &event, payment.updated_at);
            prop_assert_eq!(told.is_none(), silent);
            prop_assert!(payment.state != PaymentState::Void || payment.transaction.is_none());
            prop_assert!(before.state != PaymentState::Void);
            prop_assert!(before.state != PaymentState::Refused || payment.state == PaymentState::Refused);
            prop_assert!(before.delivery != Delivery::Delivered || payment.delivery == Delivery::Delivered);
            prop_assert!(!payment.reversed || !matches!(payment.state, PaymentState::Settled | PaymentState::Claimed | PaymentState::Void));
        }
        prop_assert!(deliveries <= 1);
        prop_assert_eq!(deliveries == 1, payment.delivery == Delivery::Delivered);
        prop_assert_eq!(start.delivery == Delivery::Credited, payment.delivery == Delivery::Credited);
        prop_assert_eq!((&payment.amount, payment.credit), (&start.amount, start.credit));
        prop_assert_eq!(payment.receipt().is_some(), payment.state == PaymentState::Settled);
    }
}
