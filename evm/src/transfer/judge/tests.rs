use alloy::{
    primitives::{Bytes, U64},
    sol_types::SolEvent,
};

use super::*;
use crate::{abi::Token, testing};

const TOKEN: Address = Address::repeat_byte(1);
const PAYER: Address = Address::repeat_byte(2);
const SELLER: Address = Address::repeat_byte(3);
const OTHER: Address = Address::repeat_byte(4);
const HASH: B256 = B256::repeat_byte(5);

fn log(address: Address, event: &impl SolEvent) -> Log {
    let data = event.encode_log_data();
    Log { address, topics: data.topics().to_vec(), data: data.data, transaction_hash: None, removed: false }
}

fn moved(from: Address, to: Address, value: u64) -> Log {
    log(TOKEN, &Token::Transfer { from, to, value: U256::from(value) })
}

fn used() -> Log {
    log(TOKEN, &Token::AuthorizationUsed { authorizer: PAYER, nonce: HASH })
}

fn change(mut log: Log, change: impl FnOnce(&mut Log)) -> Log {
    change(&mut log);
    log
}

fn wanted() -> Wanted {
    Wanted { transaction: HASH, payer: PAYER, pay_to: SELLER, token: Some(TOKEN), amount: 10 }
}

fn header(number: u64, hash: u8, timestamp: u64) -> Header {
    Header {
        number: U64::from(number),
        hash: B256::repeat_byte(hash),
        parent_hash: B256::repeat_byte(hash - 1),
        timestamp: U64::from(timestamp),
    }
}

/// A transaction in block 100 with these logs, seen from block 101.
fn facts(logs: Vec<Log>) -> Facts {
    let block = header(100, 0x64, 1_000);
    Facts {
        receipt: Some(Receipt {
            transaction_hash: HASH,
            from: PAYER,
            block_hash: block.hash,
            block_number: block.number,
            logs,
            ..testing::receipt(TOKEN, 1)
        }),
        transaction: Some(Transaction {
            hash: HASH,
            from: PAYER,
            to: Some(TOKEN),
            value: U256::ZERO,
            nonce: U64::from(0),
            block_hash: Some(block.hash),
            block_number: Some(block.number),
        }),
        head: header(101, 0x65, 1_002),
        tagged: None,
        block: Some(block),
    }
}

fn mined(facts: &Facts) -> Mined<'_> {
    let found = facts.found(HASH, Timestamp::from_unix_s(1_002), Duration::from_secs(120)).unwrap();
    let Found::Mined(mined) = found else { panic!("expected a mined transaction, found {found:?}") };
    mined
}

fn check(logs: Vec<Log>, expected: Result<&[(u32, u128)], Amiss>) {
    let facts = facts(logs);
    let came = |came: Vec<Came>| came.iter().map(|came| (came.position.unwrap(), came.units)).collect::<Vec<_>>();
    assert_eq!(mined(&facts).arrivals(&wanted()).map(came), expected.map(<[_]>::to_vec), "{:?}", facts.receipt);
}

#[test]
fn a_position_counts_every_log_of_the_receipt() {
    let elsewhere = log(OTHER, &Token::Transfer { from: PAYER, to: SELLER, value: U256::from(99) });
    check(vec![elsewhere, moved(PAYER, OTHER, 50), moved(PAYER, SELLER, 10)], Ok(&[(2, 10)]));
    check(vec![moved(PAYER, SELLER, 10), moved(PAYER, SELLER, 9), moved(PAYER, SELLER, 11)], Ok(&[(0, 10), (2, 11)]));
}

#[test]
fn a_log_that_is_not_this_tokens_transfer_of_this_transaction_is_none() {
    let good = || moved(PAYER, SELLER, 10);
    check(vec![change(good(), |log| log.removed = true)], Err(Amiss::WrongRecipient));
    check(vec![change(good(), |log| log.transaction_hash = Some(B256::ZERO))], Err(Amiss::WrongRecipient));
    check(vec![change(good(), |log| log.transaction_hash = Some(HASH))], Ok(&[(0, 10)]));
    check(vec![change(good(), |log| log.address = OTHER)], Err(Amiss::WrongAsset));
    check(vec![change(good(), |log| log.topics.truncate(2))], Err(Amiss::WrongRecipient));
    check(vec![change(good(), |log| log.topics.push(B256::ZERO))], Err(Amiss::WrongRecipient));
    check(vec![change(good(), |log| log.topics[0] = B256::ZERO)], Err(Amiss::WrongRecipient));
    check(vec![change(good(), |log| log.topics.clear())], Err(Amiss::WrongRecipient));
    check(vec![change(good(), |log| log.data = Bytes::new())], Err(Amiss::WrongRecipient));
    check(
        vec![change(good(), |log| log.data = [log.data.as_ref(), &[0; 32]].concat().into())],
        Err(Amiss::WrongRecipient),
    );
}

#[test]
fn what_an_authorization_moved_is_not_a_transfer() {
    check(vec![used(), moved(PAYER, SELLER, 10)], Err(Amiss::Authorized));
    check(vec![moved(PAYER, SELLER, 10), used()], Ok(&[(0, 10)]));
    check(vec![used(), moved(PAYER, SELLER, 10), moved(PAYER, SELLER, 10)], Ok(&[(2, 10)]));
    // Another contract's events in between hide nothing.
    let noise = log(OTHER, &Token::Transfer { from: OTHER, to: OTHER, value: U256::from(1) });
    check(vec![used(), noise, moved(PAYER, SELLER, 10)], Err(Amiss::Authorized));
    check(vec![used(), moved(PAYER, OTHER, 1), moved(PAYER, SELLER, 10)], Ok(&[(2, 10)]));
}

#[test]
fn a_no_names_what_is_wrong() {
    check(vec![moved(OTHER, SELLER, 10)], Err(Amiss::WrongPayer));
    check(vec![moved(PAYER, OTHER, 10)], Err(Amiss::WrongRecipient));
    check(vec![], Err(Amiss::WrongRecipient));
    let underpaid = Amiss::Underpaid { received: U256::from(9) };
    check(vec![moved(PAYER, SELLER, 3), moved(PAYER, SELLER, 9), moved(OTHER, SELLER, 10)], Err(underpaid));
    let mut reverted = facts(vec![moved(PAYER, SELLER, 10)]);
    if let Some(receipt) = &mut reverted.receipt {
        receipt.status = U64::ZERO;
    }
    assert_eq!(mined(&reverted).arrivals(&wanted()), Err(Amiss::Reverted));
}

#[test]
fn at_most_so_many_transfers_of_one_transaction_are_looked_at() {
    let facts = facts(vec![moved(PAYER, SELLER, 10); ARRIVALS_MAX + 5]);
    assert_eq!(mined(&facts).arrivals(&wanted()).unwrap().len(), ARRIVALS_MAX);
}

#[test]
fn more_units_than_there_can_be_are_not_wrapped() {
    let huge = log(TOKEN, &Token::Transfer { from: PAYER, to: SELLER, value: U256::MAX });
    check(vec![huge], Ok(&[(0, u128::MAX)]));
}

#[test]
fn a_blocks_time_is_compared_to_the_second() {
    let facts = facts(vec![]);
    let when =
        |issued_s, until_s| mined(&facts).when(Timestamp::from_unix_s(issued_s), Timestamp::from_unix_s(until_s));
    assert_eq!(when(1_030, 2_000), When::InTime, "half a minute of other clocks is borne");
    assert_eq!(when(1_031, 2_000), When::Before);
    assert_eq!(when(900, 1_000), When::InTime);
    assert_eq!(when(900, 999), When::After);
}

#[test]
fn finality_is_counted_from_the_block_itself_or_told_by_its_tag() {
    let mut facts = facts(vec![]);
    let block = facts.receipt.as_ref().unwrap().block();
    assert_eq!(facts.is_final(&block, Finality::Blocks(2)), Ok(true));
    assert_eq!(facts.is_final(&block, Finality::Blocks(3)), Ok(false));
    assert!(facts.is_final(&block, Finality::Safe).is_err());
    facts.tagged = Some(header(99, 0x63, 999));
    assert_eq!(facts.is_final(&block, Finality::Finalized), Ok(false));
    facts.tagged = Some(header(100, 0x64, 1_000));
    assert_eq!(facts.is_final(&block, Finality::Safe), Ok(true));
}

#[test]
fn a_head_is_fresh_for_so_long_and_no_longer() {
    let facts = facts(vec![]);
    let at = |now_s| facts.found(HASH, Timestamp::from_unix_s(now_s), Duration::from_secs(120));
    assert!(matches!(at(1_122), Ok(Found::Mined(_))));
    assert!(at(1_123).is_err());
}
