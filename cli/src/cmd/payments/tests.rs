use std::{collections::HashMap, sync::Arc, time::Duration};

use clap::Parser;
use farebox_core::{
    ArrivedFor, Binding, CallerId, Credential, EvmAddress, FeeTerms, Grant, InstanceId, InvoiceNews, Payer,
    PaymentEvent, Price,
    ports::{Ledger as _, NotedNews, Offering as _, TokenBooks as _, TransactionStore as _},
};
use farebox_ledger::{AssetName, SqliteLedger, SqliteOptions};
use farebox_testkit::{
    ManualClock, MemoryLedger, ScriptedRail, TEST_TOKEN_MSAT, TestPayer, proof_of, test_asset, test_draw, test_network,
    test_pass, test_preimage, test_token, test_transfer_claim,
};

use super::*;

const NOW: Timestamp = Timestamp::from_unix_s(1_795_000_000);

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: PaymentsArgs,
}

struct Books {
    folder: tempfile::TempDir,
    ledger: Arc<SqliteLedger>,
}

/// A ledger in use, with payments claimed one a minute: the first settled, the others not.
async fn books(count: u64) -> Books {
    let folder = tempfile::tempdir().unwrap();
    let options =
        SqliteOptions { instance: InstanceId::new("i"), answers_kept_for: Duration::from_secs(60), audit_file: None };
    let ledger = Arc::new(SqliteLedger::open(&folder.path().join("farebox.db"), options, NOW).unwrap());
    // At once, so that they share commits.
    let mut claims = tokio::task::JoinSet::new();
    for number in 0..count {
        let ledger = ledger.clone();
        claims.spawn(async move { claim(&ledger, number).await });
    }
    claims.join_all().await;
    Books { folder, ledger }
}

async fn claim(ledger: &SqliteLedger, number: u64) {
    let books: Arc<MemoryLedger> = Arc::new(MemoryLedger::new(InstanceId::new("i"), Duration::ZERO));
    let rail = ScriptedRail::new(books, Arc::new(ManualClock::at(NOW)));
    let offer = rail.offers(&Price::Usd("0.01".parse().unwrap()), FeeTerms::default()).unwrap().remove(0);
    let now = NOW.plus(Duration::from_secs(60 * number));
    let credential: Credential = TestPayer(1).pay(&offer, number, NOW.plus(Duration::from_secs(600)));
    let id = PaymentId::new(now, [u8::try_from(number % 256).unwrap(); 10]);
    let claim = farebox_core::Claim {
        id,
        proof: proof_of(&credential, &test_asset()),
        credential: Arc::new(credential),
        rail: offer.rail,
        binding: Binding {
            route: RouteId::new("reports"),
            method: "GET".into(),
            resource: "=cmd|'/c calc'!A1,\"\n".into(),
            caller: CallerId::from_key(b"key"),
        },
        payer: Payer::new(&test_network(), &format!("{:x}", EvmAddress([0xab; 20]))),
        amount: offer.amount,
        pay_to: offer.pay_to,
        valid_until: now,
        finality: offer.finality,
        arrived: None,
        request: farebox_testkit::test_request(number),
        holder: InstanceId::new("i"),
        lease: Duration::from_secs(60),
        now,
    };
    ledger.claim(claim).await.unwrap();
    if number == 0 {
        let hash = TransactionId::new(format!("0x{:064x}", 7));
        let transaction = farebox_core::StoredTransaction {
            hash: hash.clone(),
            lane: farebox_core::LaneKey::new("lane"),
            nonce: 1,
            raw: vec![1],
            payment: Some(id),
            fate: farebox_core::TransactionFate::Open,
            stored_at: now,
        };
        ledger.store_transaction(transaction).await.unwrap();
        let block = farebox_core::BlockRef { number: 9, hash: [9; 32] };
        let settled = farebox_core::PaymentEvent::Settled { transaction: hash, block };
        ledger.record(id, vec![settled], now).await.unwrap();
    }
}

/// Transfers at the price, over it, and too late.
async fn transfers(books: &Books) {
    let late = || ArrivedFor::Credit { code: "paid_too_late".into() };
    for (number, units, purpose) in
        [(1, 10_000, ArrivedFor::Delivery), (2, 10_001, ArrivedFor::Delivery), (3, 7, late()), (4, 20_000, late())]
    {
        let claim = test_transfer_claim(number, units, purpose, InstanceId::new("i"), NOW);
        books.ledger.claim(claim).await.unwrap();
    }
}

async fn name_usdc(books: &Books) {
    let name = AssetName { asset: test_asset(), symbol: "USDC".into(), decimals: 6 };
    books.ledger.name_assets(vec![name]).await.unwrap();
}

fn printed(books: &Books, line: &str, width: Option<u16>) -> String {
    let args = Cli::try_parse_from(std::iter::once("payments").chain(line.split_whitespace())).unwrap().args;
    let reader = SqliteReader::open(&books.folder.path().join("farebox.db")).unwrap();
    let mut out = Vec::new();
    print(&args, &reader, NOW.plus(Duration::from_secs(3600)), width, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[tokio::test]
async fn a_table_fits_the_terminal_and_sums_exactly() {
    let books = books(3).await;
    assert!(printed(&books, "", None).contains(&format!("10000 units of {}", test_asset())));
    name_usdc(&books).await;
    let wide = printed(&books, "", None);
    assert!(!wide.contains("credit"), "{wide}");
    assert!(wide.contains("0x0000000000000000000000000000000000000000000000000000000000000007"), "{wide}");
    let sums: Vec<_> = wide.lines().rev().take(2).map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(sums, ["0.01 USDC 1 settled eip155:84532", "0.02 USDC 2 claimed eip155:84532"]);
    for columns in [80, 120, 160] {
        let narrow = printed(&books, "", Some(columns));
        assert!(narrow.lines().all(|line| line.chars().count() <= usize::from(columns)), "{columns}:\n{narrow}");
    }
    assert!(printed(&books, "--limit 1", None).contains("the newest 1 are shown"));
    assert_eq!(printed(&books, "--state void", None), "no payments match\n");
}

#[tokio::test]
async fn credit_is_summed_apart_from_what_is_earned() {
    let books = books(1).await;
    name_usdc(&books).await;
    transfers(&books).await;
    let sums = |line: &str| {
        let table = printed(&books, line, None);
        let lines = table.lines().skip_while(|line| !line.trim_start().starts_with("sum ")).skip(1);
        lines.map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    // 0.050008 came: the price three times, one unit over it, 7 and 20,000 too late.
    let on = "eip155:84532";
    assert_eq!(sums(""), [format!("0.03 USDC 3 settled {on}"), format!("0.020008 USDC 3 settled, credit {on}")]);
    assert_eq!(
        sums("--credit"),
        [format!("0.01 USDC 1 settled {on}"), format!("0.020008 USDC 3 settled, credit {on}")]
    );
    let late = test_transfer_claim(3, 7, ArrivedFor::Delivery, InstanceId::new("i"), NOW).id;
    books.ledger.record(late, vec![PaymentEvent::Reversed], NOW).await.unwrap();
    assert!(sums("").contains(&format!("0.000007 USDC 1 in_doubt, credit {on}")), "{:?}", sums(""));
    assert_eq!(printed(&books, "--credit --json", None).lines().count(), 2, "what was taken back is not owed");
    let table = printed(&books, &format!("--id {late}"), None);
    assert!(table.contains("in_doubt: reversed, paid_too_late") && table.contains("credited"), "{table}");
    for columns in [80, 120, 160] {
        let narrow = printed(&books, "", Some(columns));
        assert!(narrow.lines().all(|line| line.chars().count() <= usize::from(columns)), "{columns}:\n{narrow}");
    }
}

#[tokio::test]
async fn transfers_are_exported_with_rail_credit_and_reversal() {
    let books = books(0).await;
    name_usdc(&books).await;
    transfers(&books).await;
    let text = printed(&books, "--csv", None);
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let rows: Vec<HashMap<String, String>> = reader.deserialize().map(Result::unwrap).collect();
    let told = |row: &HashMap<String, String>| {
        ["rail", "amount", "credit", "credit_units", "delivery", "reason", "reversed"]
            .map(|name| row[name].clone())
            .join(" ")
    };
    assert_eq!(
        rows.iter().rev().map(told).collect::<Vec<_>>(),
        [
            "transfer 0.01 0 0 pending  false",
            "transfer 0.01 0.000001 1 pending  false",
            "transfer 0.000007 0.000007 7 credited paid_too_late false",
            "transfer 0.02 0.02 20000 credited paid_too_late false",
        ]
    );
    let arrived: u128 = rows
        .iter()
        .map(|row| {
            let number = |name: &str| row[name].parse::<u128>().unwrap();
            if row["delivery"] == "credited" { number("units") } else { number("units") + number("credit_units") }
        })
        .sum();
    assert_eq!(arrived, 10_000 + 10_001 + 7 + 20_000, "what came, to the unit");
    let json: serde_json::Value =
        serde_json::from_str(printed(&books, "--json", None).lines().next().unwrap()).unwrap();
    assert_eq!((&json["reversed"], &json["request"]), (&false.into(), &"req_00000000000000000000000004".into()));
}

#[tokio::test]
async fn csv_keeps_every_field_and_runs_no_formula() {
    let books = books(2).await;
    name_usdc(&books).await;
    let text = printed(&books, "--csv", None);
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    assert_eq!(reader.headers().unwrap().iter().collect::<Vec<_>>(), CSV_COLUMNS);
    let rows: Vec<HashMap<String, String>> = reader.deserialize().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[1]["resource"], "'=cmd|'/c calc'!A1,\"\n");
    assert_eq!((rows[1]["amount"].as_str(), rows[1]["units"].as_str()), ("0.01", "10000"));
    assert_eq!((rows[1]["state"].as_str(), rows[1]["block"].as_str()), ("settled", "9"));
    assert_eq!(rows[1]["created_at"], "2026-11-18T11:06:40.000Z");
    assert_eq!(rows[0]["transaction"], "");
}

#[tokio::test]
async fn json_has_one_object_a_line_across_pages() {
    let books = books(u64::from(PAGE_ROWS) + 2).await;
    let text = printed(&books, "--json", None);
    let entries: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(entries.len(), PAGE_ROWS as usize + 2);
    assert!(entries.windows(2).all(|pair| pair[0]["id"].as_str() > pair[1]["id"].as_str()));
    assert_eq!(entries[0]["units"], "10000");
    assert_eq!(entries[0]["amount"], serde_json::Value::Null);
    let names: Vec<_> = entries[0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>(), CSV_COLUMNS.iter().collect());
    assert_eq!(printed(&books, "--json --limit 501", None).lines().count(), 501);
}

#[tokio::test]
async fn filters_narrow_the_list() {
    let books = books(3).await;
    for (line, rows) in [
        ("--json --state settled", 1),
        ("--json --route reports", 3),
        ("--json --route other", 0),
        ("--json --payer 0xABABABABABABABABABABABABABABABABABABABAB", 3),
        ("--json --network eip155:1", 0),
        ("--json --tx 0x0000000000000000000000000000000000000000000000000000000000000007", 1),
        ("--json --since 59m", 2),
        ("--json --until 2026-11-18T11:07:40Z", 1),
        ("--json --since 2026-11-18 --until 2026-11-19", 3),
    ] {
        assert_eq!(printed(&books, line, None).lines().count(), rows, "{line}");
    }
}

#[test]
fn times_are_dates_times_or_ages() {
    let at = |text| parse_time(text, NOW).map(Timestamp::unix_s).ok();
    assert_eq!(at("24h"), Some(NOW.unix_s() - 86_400));
    assert_eq!(at("2w"), Some(NOW.unix_s() - 14 * 86_400));
    assert_eq!(at("2026-11-23"), Some(1_795_392_000));
    assert_eq!(at("2026-11-23T01:00:00+01:00"), Some(1_795_392_000));
    for wrong in ["", "h", "-1h", "2026-13-01", "2026-11-23T00:00:00", "1969-01-01", "99999999999999999999h", "é"] {
        assert_eq!(at(wrong), None, "{wrong}");
    }
}

/// One token paid and one underpaid.
async fn tokens(books: &Books) {
    let noted = |number, received_msat| NotedNews {
        hash: test_preimage(number).hash(),
        news: InvoiceNews::Settled { received_msat },
        payment: test_draw(number, number, InstanceId::new("i"), NOW).payment,
    };
    for number in [50, 51] {
        books.ledger.sell(test_token(number, Grant::default(), NOW)).await.unwrap();
    }
    books.ledger.note_news(vec![noted(50, TEST_TOKEN_MSAT), noted(51, 9_999)], None, NOW).await.unwrap();
}

#[tokio::test]
async fn lightning_payments_stand_beside_the_others_in_satoshis() {
    let books = books(1).await;
    name_usdc(&books).await;
    tokens(&books).await;
    let table = printed(&books, "--network regtest", None);
    let rows: Vec<_> = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let paid = rows.iter().find(|row| row.contains(&test_pass(50).to_string())).unwrap();
    let expected = format!("l402 {} 10 sat regtest {} settled pending", test_pass(50), test_preimage(50).hash());
    assert!(paid.ends_with(&expected), "{paid}");
    let short = rows.iter().find(|row| row.contains(&test_pass(51).to_string())).unwrap();
    assert!(
        short.contains(" 9.999 sat 9.999 sat regtest ") && short.ends_with("settled: underpaid credited"),
        "{short}"
    );
    assert!(rows.contains(&"10 sat 1 settled regtest".to_owned()), "{rows:#?}");
    assert!(rows.contains(&"9.999 sat 1 settled, credit regtest".to_owned()), "{rows:#?}");
    let all = printed(&books, "", None);
    assert!(all.contains(" x402 ") && all.contains(" l402 "), "{all}");
    let json = printed(&books, &format!("--json --payer {}", test_pass(50)), None);
    let entry: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&entry["rail"], &entry["amount"], &entry["symbol"]), (&"l402".into(), &"10".into(), &"sat".into()));
    assert_eq!((&entry["units"], &entry["block"]), (&"10000".into(), &serde_json::Value::Null));
    let network = farebox_core::BitcoinNetwork::Regtest.caip2();
    assert_eq!(entry["network"], network);
    assert_eq!(entry["payer"], format!("{network}:{}", test_pass(50)));
    assert_eq!(printed(&books, &format!("--json --network {network}"), None).lines().count(), 2);
    for columns in [80, 120, 160] {
        let narrow = printed(&books, "", Some(columns));
        assert!(narrow.lines().all(|line| line.chars().count() <= usize::from(columns)), "{columns}:\n{narrow}");
    }
}
