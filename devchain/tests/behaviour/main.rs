//! One suite of behaviour against the embedded chain and against anvil, with alloy's provider as the client: what holds
//! on both is what the rest of Farebox may rely on.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends at the first surprise, and tells its figures"
)]

mod calls;
mod harness;
mod token;
mod transactions;

/// Makes of each `async fn name(network: Network)` a test on each kind of chain.
macro_rules! on_both {
    ($($file:ident: $($name:ident,)*;)*) => {
        mod on_devchain {
            $($(#[tokio::test]
            async fn $name() {
                crate::$file::$name(crate::harness::Network::devchain().await).await;
            })*)*
        }
        mod on_anvil {
            $($(#[tokio::test]
            async fn $name() {
                crate::$file::$name(crate::harness::Network::anvil().await).await;
            })*)*
        }
    };
}

on_both! {
    transactions:
        a_payment_is_in_a_block_when_its_receipt_is_asked_for,
        blocks_are_linked_by_their_canonical_hashes_and_the_base_fee_follows_eip_1559,
        a_transaction_after_a_nonce_gap_waits_until_it_is_filled,
        a_replacement_must_pay_more_and_then_takes_the_place,
        a_used_nonce_is_too_low,
        a_foreign_poor_or_gasless_transaction_is_refused,
        transactions_in_one_block_share_its_gas_and_log_counters,
        a_synchronous_send_answers_with_the_receipt,
        legacy_and_access_list_transactions_are_taken,
        a_created_contract_has_the_address_its_receipt_names,
        fee_history_has_one_more_base_fee_than_blocks,
        time_goes_forward_by_what_it_is_told,
        a_batch_is_answered_item_by_item_and_an_unknown_method_by_its_code,
    ;
    calls:
        a_revert_answers_with_code_3_the_reason_and_its_data,
        an_account_without_money_may_call,
        an_estimate_is_enough_and_not_much_more,
        an_estimate_of_what_reverts_tells_the_reason,
        state_overrides_hold_for_one_call_only,
        state_can_be_read_as_of_an_older_block,
        blocks_are_found_by_number_tag_and_hash,
    ;
    token:
        an_authorization_moves_tokens_once,
        an_authorization_with_v_r_s_is_as_good,
        an_authorization_outside_its_time_is_refused,
        an_authorization_by_another_key_or_over_another_amount_is_refused,
        the_malleable_twin_of_a_signature_is_refused,
        more_than_the_balance_cannot_be_moved,
        only_the_payee_may_receive,
        a_canceled_authorization_is_refused,
        a_contract_wallet_pays_by_its_owners_signature,
        logs_are_found_by_address_topic_and_block,
        the_token_says_what_a_facilitator_asks_for,
    ;
}
