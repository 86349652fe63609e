//! What the chain says against a claim, and every trick by which a transaction of somebody's would pass for a payment.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::time::Duration;

use alloy::{
    network::TransactionBuilder,
    primitives::{Address, B256, Bytes, U256, address},
    providers::Provider,
    rpc::types::TransactionRequest,
    sol_types::{SolCall, SolValue},
};
use farebox_e2e::{
    Account, Asked, Authorization, Claim, Fault, Next, Quoted, Reply, Shop, ShopOptions, Times, Usdc,
    contract::{Contracts, deploy},
    now_s,
};
use serde_json::{Value, json};

/// Far above what anything here takes, for a machine with ten other things to do.
const SOON: Duration = Duration::from_secs(30);
const HOUR: Duration = Duration::from_secs(3_600);
/// Long after the test.
const NEVER: Duration = Duration::from_secs(600);
const STRANGER: Address = address!("00000000000000000000000000000000000a77ac");
const SEND_SYNC: &str = "eth_sendRawTransactionSync";

/// A shop, a payer, and a bill for what they want to have for nothing.
struct Till {
    shop: Shop,
    payer: Account,
    bill: Quoted,
    usdc: Asked,
    ether: Asked,
}

impl Till {
    async fn open() -> Self {
        Self::open_with(ShopOptions::BOTH).await
    }

    async fn open_with(options: ShopOptions) -> Self {
        let shop = Shop::open_with(options).await.unwrap();
        let payer = shop.spender("payer").await.unwrap();
        let bill = shop.quote(Shop::AFTER).await.unwrap();
        let (usdc, ether) = (bill.option("USDC").unwrap(), bill.option("ETH").unwrap());
        Self { shop, payer, bill, usdc, ether }
    }

    /// Sends `request` as the payer.
    async fn send(&self, request: TransactionRequest) -> B256 {
        self.shop.anvil.send(&self.payer, request).await.unwrap()
    }

    /// The payer's claim on `transaction` by an option of the bill.
    async fn claim(&self, option: &Asked, transaction: B256) -> Claim {
        self.bill.claim(option, transaction, self.payer.address()).signed(&self.payer).await.unwrap()
    }

    async fn refuses(&self, name: &str, option: &Asked, transaction: B256, code: &str) -> Reply {
        let reply = self.shop.claim(&self.claim(option, transaction).await).await.unwrap();
        let next = if ["underpaid", "payment_reverted"].contains(&code) { Next::Pay } else { Next::Mend };
        reply.refuses(name, 402, code, next);
        reply
    }

    /// Nothing was served or booked, each refusal is in the audit log with its payer, and the payer can still pay.
    async fn sold_nothing(&self, refused: &[&str]) {
        assert_eq!((self.shop.echo.hits(), self.shop.payments().await.unwrap()), (0, vec![]));
        let log = rejections(&self.shop, refused.len()).await;
        let payer = format!("eip155:84532:{}", self.payer.address());
        for (entry, code) in log.iter().zip(refused) {
            let told = json!([entry["reason"], entry["payer"], entry["rail"], entry["method"], entry["resource"]]);
            assert_eq!(told, json!([code, payer, "transfer", "GET", Shop::AFTER]), "{entry}");
            assert!(entry["transaction"].is_string() && entry["request"].is_string(), "{entry}");
        }
        let good = self.shop.buy(&self.payer, Shop::AFTER, "USDC").await.unwrap();
        assert_eq!(self.shop.claim(&good).await.unwrap().status, 200);
        assert!(self.shop.verify_audit_log().await.unwrap().0);
    }
}

/// The audit log's refusals before any claim, once there are so many.
async fn rejections(shop: &Shop, count: usize) -> Vec<Value> {
    let until = tokio::time::Instant::now() + SOON;
    loop {
        let log = shop.audit_log().await.unwrap();
        let rejected: Vec<Value> = log.iter().filter(|entry| entry["outcome"] == "rejected").cloned().collect();
        if rejected.len() >= count || tokio::time::Instant::now() >= until {
            assert_eq!(rejected.len(), count, "{log:#?}");
            return rejected;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn call(to: Address, data: Vec<u8>) -> TransactionRequest {
    TransactionRequest::default().with_to(to).with_input(data)
}

#[tokio::test]
async fn a_transaction_nobody_knows_is_asked_for_again_and_served_once_it_is_there() {
    let till = Till::open().await;
    for option in [&till.usdc, &till.ether] {
        let runs = till.shop.echo.hits();
        let transfer = till.shop.transfer_of(option, option.units);
        let signed = till.shop.anvil.sign(&till.payer, transfer).await.unwrap();
        let claim = till.claim(option, alloy::primitives::keccak256(&signed)).await;
        till.shop.claim(&claim).await.unwrap().refuses("never sent", 402, "payment_not_found", Next::Again);

        till.shop.anvil.hold_blocks().await.unwrap();
        till.shop.anvil.submit(&signed).await.unwrap();
        let pending = till.shop.claim(&claim).await.unwrap();
        pending.refuses("sent, not mined", 402, "payment_pending", Next::Again);
        assert_eq!((&pending.problem()["have"], &pending.problem()["need"]), (&json!(0), &json!(1)), "{pending:?}");
        assert_eq!(till.shop.echo.hits(), runs);
        till.shop.anvil.mine_at_once().await.unwrap();
        let served = till.shop.insist_on(&claim, SOON).await.unwrap();
        assert_eq!((served.status, till.shop.echo.hits()), (200, runs + 1), "{served:?}");
    }
    till.shop.audit().await.unwrap();
}

#[tokio::test]
async fn confirmations_are_waited_for_by_amount() {
    let routes = "[[route]]\nmatch = \"GET /dear/*\"\nupstream = \"$UPSTREAM\"\nprice = \"$2\"\n";
    let chain = "confirmations = [{ up_to = \"$1\", blocks = 2 }, { blocks = 4 }]";
    let shop = Shop::open_with(ShopOptions { chain, routes, ..ShopOptions::BOTH }).await.unwrap();
    let payer = shop.spender("payer").await.unwrap();
    for symbol in ["USDC", "ETH"] {
        for (path, need) in [(Shop::AFTER, 2), ("/dear/report", 4)] {
            let bill = shop.quote(path).await.unwrap();
            let option = bill.option(symbol).unwrap();
            assert_eq!(option.json["confirmations"], need, "{option:?}");
            let transaction = shop.pay(&payer, &option).await.unwrap();
            let claim = bill.claim(&option, transaction, payer.address()).signed(&payer).await.unwrap();
            for have in 1..need {
                let pending = shop.claim(&claim).await.unwrap();
                pending.refuses(path, 402, "payment_pending", Next::Again);
                let told = (&pending.problem()["have"], &pending.problem()["need"]);
                assert_eq!(told, (&json!(have), &json!(need)), "{pending:?}");
                shop.anvil.mine(1).await.unwrap();
            }
            let served = shop.insist_on(&claim, SOON).await.unwrap();
            assert_eq!(served.status, 200, "{path} {symbol}: {served:?}");
        }
    }
    shop.audit().await.unwrap();
}

#[tokio::test]
async fn blocks_that_the_chain_calls_safe_or_finalized_are_waited_for() {
    for tag in ["safe", "finalized"] {
        let chain = if tag == "safe" { "confirmations = \"safe\"" } else { "confirmations = \"finalized\"" };
        let shop = Shop::open_with(ShopOptions { chain, rails: farebox_e2e::Rails::Transfers, ..ShopOptions::BOTH });
        let shop = shop.await.unwrap();
        let payer = shop.spender("payer").await.unwrap();
        let claim = shop.buy(&payer, Shop::AFTER, "USDC").await.unwrap();
        let bill = shop.quote(Shop::AFTER).await.unwrap();
        assert_eq!(bill.option("USDC").unwrap().json["confirmations"], tag);
        shop.claim(&claim).await.unwrap().refuses(tag, 402, "payment_pending", Next::Again);
        // anvil's safe block is 32 behind its head, its finalized one 64.
        shop.anvil.mine(70).await.unwrap();
        assert_eq!(shop.insist_on(&claim, SOON).await.unwrap().status, 200, "{tag}");
    }
}

#[tokio::test]
async fn a_transaction_that_reverted_paid_nothing() {
    let till = Till::open().await;
    let poor = Account::named("poor").unwrap();
    till.shop.anvil.set_balance(poor.address(), 1_000_000_000_000_000_000).await.unwrap();
    let transfer = till.shop.transfer_of(&till.usdc, till.usdc.units).with_gas_limit(200_000);
    let transaction = till.shop.anvil.send(&poor, transfer).await.unwrap();
    let claim = till.bill.claim(&till.usdc, transaction, poor.address()).signed(&poor).await.unwrap();
    till.shop.claim(&claim).await.unwrap().refuses("no balance", 402, "payment_reverted", Next::Pay);

    // Ether to a contract that takes none.
    let deaf = deploy(&till.shop.anvil, "Liar", &[]).await.unwrap();
    let sent = TransactionRequest::default().with_to(deaf).with_value(U256::from(till.ether.units));
    let transaction = till.send(sent.with_gas_limit(100_000)).await;
    till.refuses("ether", &till.ether, transaction, "payment_reverted").await;
    assert_eq!((till.shop.echo.hits(), till.shop.payments().await.unwrap().len()), (0, 0));
}

#[tokio::test]
async fn transfers_of_others_to_others_and_of_other_things_are_told_apart() {
    let till = Till::open_with(ShopOptions { tokens: &["FeeToken"], ..ShopOptions::TRANSFERS }).await;
    let shop = &till.shop;
    let liar = deploy(&shop.anvil, "Liar", &[]).await.unwrap();
    let foreign = deploy(&shop.anvil, "Token", &[]).await.unwrap();
    let other = shop.spender("somebody else").await.unwrap();
    let units = U256::from(till.usdc.units);
    let lie = Contracts::lieCall { from: till.payer.address(), to: Shop::SELLER, value: units };
    let mint = Contracts::mintCall { to: till.payer.address(), value: units }.abi_encode();
    let transfer = |to: Address| Contracts::transferCall { to, value: units }.abi_encode();
    till.send(call(foreign, mint)).await;

    let faked = till.send(call(liar, lie.abi_encode())).await;
    let worthless = till.send(call(foreign, transfer(Shop::SELLER))).await;
    let misdirected = till.send(call(Usdc::ADDRESS, transfer(STRANGER))).await;
    let nothing = till.send(TransactionRequest::default().with_to(STRANGER).with_value(U256::ONE)).await;
    let one_wei = till.send(TransactionRequest::default().with_to(STRANGER).with_value(U256::ONE)).await;
    let ether = shop.pay(&till.payer, &till.ether).await.unwrap();
    let usdc = shop.pay(&till.payer, &till.usdc).await.unwrap();
    let others = shop.pay(&other, &till.usdc).await.unwrap();
    let others_ether = shop.pay(&other, &till.ether).await.unwrap();
    let cases = [
        ("a log of another contract", &till.usdc, faked, "wrong_asset"),
        ("another token", &till.usdc, worthless, "wrong_asset"),
        ("ether for USDC", &till.usdc, ether, "wrong_asset"),
        ("USDC for ether", &till.ether, usdc, "wrong_asset"),
        ("to a stranger", &till.usdc, misdirected, "wrong_recipient"),
        ("no transfer at all", &till.usdc, nothing, "wrong_recipient"),
        ("ether to a stranger", &till.ether, one_wei, "wrong_recipient"),
        ("somebody else's", &till.usdc, others, "wrong_payer"),
        ("somebody else's ether", &till.ether, others_ether, "wrong_payer"),
    ];
    for (name, option, transaction, code) in cases {
        till.refuses(name, option, transaction, code).await;
    }
    till.sold_nothing(&cases.map(|(_, _, _, code)| code)).await;
}

#[tokio::test]
async fn too_little_is_told_with_both_sums_and_logs_are_never_added_up() {
    let till = Till::open().await;
    let shop = &till.shop;
    let batch = deploy(&shop.anvil, "Batch", &[]).await.unwrap();
    till.send(call(Usdc::ADDRESS, Contracts::approveCall { spender: batch, value: U256::MAX }.abi_encode())).await;
    let values = [9_000, 9_999, 5_000, 0].map(U256::from).to_vec();
    let parts = Contracts::payEachCall { token: Usdc::ADDRESS, to: Shop::SELLER, values }.abi_encode();
    let parts = till.send(call(batch, parts)).await;
    let short = till.send(shop.transfer_of(&till.usdc, 1)).await;
    let zero = till.send(shop.transfer_of(&till.usdc, 0)).await;
    let wei = till.send(shop.transfer_of(&till.ether, till.ether.units - 1)).await;
    let no_wei = till.send(shop.transfer_of(&till.ether, 0)).await;
    for (name, option, transaction, received) in [
        ("in parts", &till.usdc, parts, 9_999),
        ("one unit", &till.usdc, short, 1),
        ("a transfer of nothing", &till.usdc, zero, 0),
        ("a wei too little", &till.ether, wei, till.ether.units - 1),
        ("no wei", &till.ether, no_wei, 0),
    ] {
        let reply = till.refuses(name, option, transaction, "underpaid").await;
        let told = (&reply.problem()["required"], &reply.problem()["received"]);
        assert_eq!(told, (&json!(option.units.to_string()), &json!(received.to_string())), "{name}: {reply:?}");
    }
    till.sold_nothing(&["underpaid"; 5]).await;
}

#[tokio::test]
async fn tokens_that_keep_a_fee_or_say_no_in_silence_pay_what_they_log() {
    let tokens = &["FeeToken", "SilentToken"];
    let till = Till::open_with(ShopOptions { tokens, ..ShopOptions::TRANSFERS }).await;
    let units = U256::from(Shop::PRICE * 2);
    let mut refused = vec![];
    for (symbol, token, code) in
        [("FeeToken", till.shop.tokens[0], "underpaid"), ("SilentToken", till.shop.tokens[1], "wrong_recipient")]
    {
        let option = till.bill.option(symbol).unwrap();
        till.send(call(token, Contracts::mintCall { to: till.payer.address(), value: units }.abi_encode())).await;
        let transfer = Contracts::transferCall { to: Shop::SELLER, value: U256::from(option.units) }.abi_encode();
        let transaction = till.send(call(token, transfer)).await;
        let reply = till.refuses(symbol, &option, transaction, code).await;
        refused.push(code);
        if code == "underpaid" {
            assert_eq!(reply.problem()["received"], "9000", "{reply:?}");
        }
    }
    till.sold_nothing(&refused).await;
}

#[tokio::test]
async fn a_token_that_does_not_tell_its_decimals_is_a_refusal_at_start() {
    let options = ShopOptions { tokens: &["NoDecimalsToken"], ..ShopOptions::TRANSFERS };
    let refused = format!("{:#}", Shop::open_with(options).await.unwrap_err());
    assert!(refused.contains("decimals"), "{refused}");
    assert!(!refused.contains("panicked"), "{refused}");
}

#[tokio::test]
async fn a_transfer_from_before_the_quote_is_no_payment_for_it() {
    let options = ShopOptions { chain_behind_s: 3_600, ..ShopOptions::TRANSFERS };
    let shop = Shop::open_with(options).await.unwrap();
    let payer = shop.spender("payer").await.unwrap();
    let old = shop.anvil.send(&payer, shop.usdc.transfer(Shop::SELLER, Shop::PRICE)).await.unwrap();
    shop.anvil.later(HOUR).await.unwrap();
    let bill = shop.quote(Shop::AFTER).await.unwrap();
    let option = bill.option("USDC").unwrap();
    let claim = bill.claim(&option, old, payer.address()).signed(&payer).await.unwrap();
    shop.claim(&claim).await.unwrap().refuses("an hour old", 402, "paid_before_quote", Next::Mend);
    assert_eq!((shop.echo.hits(), shop.payments().await.unwrap().len()), (0, 0));
}

#[tokio::test]
async fn what_came_too_late_is_credit_and_told_in_the_402_and_in_the_books() {
    let mut till = Till::open().await;
    let late = Duration::from_secs(20 * 60);
    till.shop.anvil.later(late).await.unwrap();
    till.shop.farebox.restart_ahead(late).await.unwrap();
    for (option, symbol) in [(&till.usdc, "USDC"), (&till.ether, "ETH")] {
        let transaction = till.shop.pay(&till.payer, option).await.unwrap();
        let claim = till.claim(option, transaction).await.with("expiresAt", now_s() + late.as_secs() + 60);
        let claim = claim.signed(&till.payer).await.unwrap();
        credited(&till, &claim, option, symbol, "paid_too_late").await;
    }
    assert_eq!(till.shop.audit().await.unwrap().in_state("settled").count(), 2);
}

#[tokio::test]
async fn what_is_claimed_by_a_quote_that_has_ended_is_credit() {
    let mut till = Till::open().await;
    let [usdc, ether] = [&till.usdc, &till.ether].map(|option| till.shop.pay(&till.payer, option));
    let (usdc, ether) = (usdc.await.unwrap(), ether.await.unwrap());
    let late = HOUR * 25;
    till.shop.anvil.later(late).await.unwrap();
    till.shop.farebox.restart_ahead(late).await.unwrap();
    for (option, transaction, symbol) in [(&till.usdc, usdc, "USDC"), (&till.ether, ether, "ETH")] {
        let claim = till.claim(option, transaction).await.with("expiresAt", now_s() + late.as_secs() + 60);
        let claim = claim.signed(&till.payer).await.unwrap();
        credited(&till, &claim, option, symbol, "quote_expired").await;
    }
    // What is no payment is no credit either.
    let unpaid = till.send(till.shop.transfer_of(&till.usdc, 1)).await;
    let claim = till.claim(&till.usdc, unpaid).await.with("expiresAt", now_s() + late.as_secs() + 60);
    let claim = claim.signed(&till.payer).await.unwrap();
    let reply = till.shop.claim(&claim).await.unwrap();
    assert_eq!((reply.status, &reply.problem()["credit"]), (402, &Value::Null), "{reply:?}");
    assert_eq!(till.shop.audit_beside(&[unpaid]).await.unwrap().in_state("settled").count(), 2);
}

/// The claim is answered 402 with the credit and a fresh bill, as often as it is sent, and booked once.
async fn credited(till: &Till, claim: &Claim, option: &Asked, symbol: &str, code: &str) {
    let booked = till.shop.payments().await.unwrap().len();
    for name in ["the first time", "again"] {
        let reply = till.shop.claim(claim).await.unwrap();
        reply.refuses(name, 402, code, Next::PayCredited);
        let credit = reply.problem()["credit"].to_string();
        assert!(credit.contains(&option.units.to_string()), "{name}: {reply:?}");
    }
    let books = till.shop.payments().await.unwrap();
    assert_eq!(books.len(), booked + 1);
    let row = &books[0];
    let told = json!([row["state"], row["delivery"], row["credit_units"], row["symbol"], row["reason"]]);
    assert_eq!(told, json!(["settled", "credited", option.units.to_string(), symbol, code]), "{row}");
    assert_eq!(till.shop.echo.hits(), 0);
    let log = till.shop.audit_log().await.unwrap();
    let entry = log.last().unwrap();
    assert_eq!((&entry["outcome"], &entry["reason"]), (&json!("credited"), &json!(code)), "{entry}");
}

#[tokio::test]
async fn one_transfer_pays_once_whatever_quote_route_or_method_it_is_claimed_for() {
    let till = Till::open().await;
    for option in [&till.usdc, &till.ether] {
        let later = [Shop::AFTER, Shop::BEFORE, "/after/other"];
        let mut bills = vec![];
        for path in later {
            bills.push(till.shop.quote(path).await.unwrap());
        }
        let transaction = till.shop.pay(&till.payer, option).await.unwrap();
        let first = till.claim(option, transaction).await;
        let runs = till.shop.echo.hits();
        assert_eq!(till.shop.claim(&first).await.unwrap().status, 200);
        for bill in &bills {
            let again = bill.claim(option, transaction, till.payer.address()).signed(&till.payer).await.unwrap();
            let reply = till.shop.claim(&again).await.unwrap();
            reply.refuses(&bill.path, 409, "already_claimed", Next::Nothing);
        }
        assert_eq!(till.shop.echo.hits(), runs + 1);
    }
    assert_eq!(till.shop.audit().await.unwrap().payments.len(), 2);
}

#[tokio::test]
async fn what_our_relayer_settled_is_no_transfer_before_its_broadcast_or_after() {
    let till = Till::open().await;
    let paid = till.shop.sign(&till.payer, Shop::AFTER, "settled").await.unwrap();
    assert_eq!(till.shop.send(&paid).await.unwrap().status, 200);
    let settled = till.shop.payments().await.unwrap()[0]["transaction"].as_str().unwrap().parse().unwrap();
    let claim = till.claim(&till.usdc, settled).await;
    till.shop.claim(&claim).await.unwrap().refuses("settled", 409, "already_claimed", Next::Nothing);

    till.shop.rpc.fail(SEND_SYNC, Times::Always, Fault::Delay(NEVER));
    let paid = till.shop.sign(&till.payer, Shop::BEFORE, "stored").await.unwrap();
    let asked = tokio::spawn(till.shop.request(&paid).send());
    let stored = |books: &[Value]| books.iter().any(|row| row["state"] == "settling");
    let books = till.shop.wait_for_books(SOON, stored).await.unwrap();
    let stored = books.iter().find(|row| row["state"] == "settling").unwrap();
    let claim = till.claim(&till.usdc, stored["transaction"].as_str().unwrap().parse().unwrap()).await;
    till.shop.claim(&claim).await.unwrap().refuses("stored", 409, "already_claimed", Next::Nothing);
    assert_eq!(till.shop.transfers().await.unwrap().len(), 1, "it was not broadcast");
    till.shop.rpc.heal();
    asked.abort();
    till.shop.insist(&paid, SOON).await.unwrap();
    assert_eq!(till.shop.audit().await.unwrap().in_state("settled").count(), 2);
}

#[tokio::test]
async fn an_authorization_that_its_signer_submits_is_an_x402_payment_and_no_transfer() {
    let till = Till::open().await;
    let paid = till.shop.sign(&till.payer, Shop::AFTER, "submitted").await.unwrap();
    let authorization: Authorization = paid.authorization;
    let signature = authorization.sign(&till.payer).await.unwrap();
    let own = till.shop.anvil.provider_for(&till.payer).unwrap();
    let transaction = till.shop.usdc.transfer_with_authorization(&own, &authorization, signature).await.unwrap();
    let claim = till.claim(&till.usdc, transaction).await;
    till.shop.claim(&claim).await.unwrap().refuses("submitted", 409, "already_claimed", Next::Nothing);
    assert_eq!(till.shop.echo.hits(), 0);
    // Nor is it settled once more.
    let reply = till.shop.insist(&paid, SOON).await.unwrap();
    let told = (reply.status, reply.problem()["code"].clone());
    assert_eq!(told, (402, json!("invalid_exact_evm_nonce_already_used")), "{reply:?}");
    till.shop.claim(&claim).await.unwrap().refuses("again", 409, "already_claimed", Next::Nothing);
    assert_eq!((till.shop.echo.hits(), till.shop.payments().await.unwrap()), (0, vec![]));
    assert_eq!(till.shop.transfers().await.unwrap().len(), 1);
}

#[tokio::test]
async fn our_relayer_pays_nobody() {
    let till = Till::open().await;
    let relayer = Account::named("relayer").unwrap();
    till.shop.usdc.mint(relayer.address(), Shop::PRICE).await.unwrap();
    for option in [&till.usdc, &till.ether] {
        let transaction = till.shop.anvil.send(&relayer, till.shop.transfer_of(option, option.units)).await.unwrap();
        let claim = till.bill.claim(option, transaction, relayer.address()).signed(&relayer).await.unwrap();
        let reply = till.shop.claim(&claim).await.unwrap();
        reply.refuses("the relayer's own", 402, "wrong_payer", Next::Mend);
    }
    assert_eq!((till.shop.echo.hits(), till.shop.payments().await.unwrap().len()), (0, 0));
}

#[tokio::test]
async fn the_seller_does_not_pay_itself() {
    let till = Till::open().await;
    // The seller as a contract wallet of the payer's: all its signatures and transfers are good.
    let wallet = deploy(&till.shop.anvil, "Wallet", &till.payer.address().abi_encode()).await.unwrap();
    let code = till.shop.anvil.provider().get_code_at(wallet).await.unwrap();
    till.shop.anvil.rpc("anvil_setCode", json!([Shop::SELLER, code])).await.unwrap();
    till.shop.usdc.mint(Shop::SELLER, Shop::PRICE).await.unwrap();
    let data: Bytes = Contracts::transferCall { to: Shop::SELLER, value: U256::from(Shop::PRICE) }.abi_encode().into();
    let execute = Contracts::executeCall { to: Usdc::ADDRESS, value: U256::ZERO, data }.abi_encode();
    let transaction = till.send(call(Shop::SELLER, execute)).await;
    let claim = till.bill.claim(&till.usdc, transaction, Shop::SELLER).signed(&till.payer).await.unwrap();
    let reply = till.shop.claim(&claim).await.unwrap();
    reply.refuses("to oneself", 402, "wrong_payer", Next::Mend);
    assert_eq!((till.shop.echo.hits(), till.shop.payments().await.unwrap().len()), (0, 0));
}

#[tokio::test]
async fn whoever_names_too_many_unknown_transactions_is_told_to_wait() {
    let options = ShopOptions { top: "admission.lookups_per_minute = 40", ..ShopOptions::BOTH };
    let till = Till::open_with(options).await;
    let mut told = vec![];
    for number in 0..16 {
        let claim = till.claim(&till.usdc, B256::repeat_byte(number)).await;
        told.push(till.shop.claim(&claim).await.unwrap());
    }
    let limited: Vec<&Reply> = told.iter().filter(|reply| reply.status == 429).collect();
    // A quarter of a minute's at once, and another every second and a half.
    assert!((2..=6).contains(&limited.len()), "{told:?}");
    for reply in limited {
        let problem = reply.problem();
        assert_eq!(
            (&problem["code"], &problem["retry"]),
            (&json!("too_many_claims"), &json!("same_proof")),
            "{reply:?}"
        );
        assert!(reply.retry_after().is_some_and(|seconds| seconds <= 60), "{reply:?}");
        assert!(!reply.is_bill(), "{reply:?}");
    }
    assert!(till.shop.rpc.calls("eth_getTransactionReceipt").len() <= 14);
}
