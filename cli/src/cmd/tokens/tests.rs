use clap::Parser;
use farebox_core::{
    Drawn, InstanceId, InvoiceNews, PaymentId,
    ports::{NotedNews, TokenBooks as _},
};
use farebox_ledger::{SqliteLedger, SqliteOptions};
use farebox_testkit::{TEST_TOKEN_MSAT, test_draw, test_pass, test_preimage, test_token};

use super::*;

const NOW: Timestamp = Timestamp::from_unix_s(1_795_000_000);

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: TokensArgs,
}

struct Shop {
    folder: tempfile::TempDir,
    ledger: SqliteLedger,
}

impl Shop {
    /// A gateway in use: token 0 is open, 1 bought three calls of which one is made, 2 bought an hour, 3 is spent, 4 underpaid.
    async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let answers_kept_for = Duration::from_secs(60);
        let options = SqliteOptions { instance: InstanceId::new("i"), answers_kept_for, audit_file: None };
        let ledger = SqliteLedger::open(&folder.path().join("farebox.db"), options, NOW).unwrap();
        let shop = Self { folder, ledger };
        let three = Grant::Calls(3.try_into().unwrap());
        let hour = Grant::For(Duration::from_secs(3600));
        for (number, grant) in (0..).zip([three, three, hour, Grant::default(), three]) {
            let mut token = test_token(number, grant, NOW);
            token.resource = "=cmd|'/c calc'!A1,\"\n".into();
            shop.ledger.sell(token).await.unwrap();
        }
        for number in 1..4 {
            assert!(matches!(shop.draw(number, 100 + number).await, Drawn::Granted(_)));
        }
        let news = InvoiceNews::Settled { received_msat: TEST_TOKEN_MSAT - 1 };
        let payment = PaymentId::new(NOW, [9; 10]);
        let noted = NotedNews { hash: test_preimage(4).hash(), news, payment };
        shop.ledger.note_news(vec![noted], None, NOW).await.unwrap();
        shop
    }

    async fn draw(&self, token: u64, id: u64) -> Drawn {
        self.ledger.draw(test_draw(token, id, InstanceId::new("i"), NOW)).await.unwrap()
    }

    fn try_print(&self, line: &str, width: Option<u16>) -> anyhow::Result<String> {
        let args = Cli::try_parse_from(std::iter::once("tokens").chain(line.split_whitespace()))?.args;
        let mut out = Vec::new();
        print(&args, &self.folder.path().join("farebox.db"), NOW.plus(Duration::from_secs(60)), width, &mut out)?;
        Ok(String::from_utf8(out)?)
    }

    fn printed(&self, line: &str, width: Option<u16>) -> String {
        self.try_print(line, width).unwrap()
    }
}

fn words(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn a_table_says_what_was_bought_and_what_is_left() {
    let shop = Shop::open().await;
    let table = shop.printed("list", None);
    let rows: Vec<_> = table.lines().skip(1).map(words).collect();
    let payment = |number: u64| test_draw(number, 100 + number, InstanceId::new("i"), NOW).payment.to_string();
    let row = |number: u64, rest: String| format!("{} 2026-11-18 11:06 route-{} {rest}", test_pass(number), number % 2);
    let until = "2026-11-18 12:16";
    let expected = [
        row(4, format!("0 of 3 calls used 10 sat underpaid {until} {}", PaymentId::new(NOW, [9; 10]))),
        row(3, format!("1 of 1 calls used 10 sat spent {until} {}", payment(3))),
        row(2, format!("for 1h 10 sat good {until} {}", payment(2))),
        row(1, format!("1 of 3 calls used 10 sat good {until} {}", payment(1))),
        row(0, format!("0 of 3 calls used 10 sat open {until}")),
    ];
    assert_eq!(rows, expected);
    for columns in [100, 140] {
        let narrow = shop.printed("list", Some(columns));
        assert!(narrow.lines().all(|line| line.chars().count() <= usize::from(columns)), "{columns}:\n{narrow}");
    }
    assert_eq!(shop.printed("list --paid", None).lines().count(), 4);
    assert_eq!(shop.printed("list --unpaid --route route-0", None).lines().count(), 3);
    assert!(shop.printed("list --limit 2", None).contains("the newest 2 are shown"));
    assert_eq!(shop.printed("list --route none", None), "no tokens match\n");
}

#[tokio::test]
async fn exports_have_every_field_and_no_root_key() {
    let shop = Shop::open().await;
    let json = shop.printed("list --json", None);
    let first: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    let fields: Vec<_> = first.as_object().unwrap().keys().map(String::as_str).collect();
    let mut columns = CSV_COLUMNS.to_vec();
    columns.sort_unstable();
    let mut sorted = fields.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, columns);
    assert_eq!(first["amount"], "10");
    assert_eq!(first["received_msat"], TEST_TOKEN_MSAT - 1);
    let csv = shop.printed("list --csv", None);
    assert_eq!(csv.lines().next().unwrap(), CSV_COLUMNS.join(","));
    assert!(csv.contains("\"'=cmd|'/c calc'!A1,\"\"\n\""), "{csv}");
    for number in 0..5 {
        let key = hex::encode(test_token(number, Grant::default(), NOW).root_key.bytes());
        assert!(!json.contains(&key) && !csv.contains(&key), "token {number}");
        assert!(!shop.printed(&format!("show {}", test_pass(number)), None).contains(&key));
    }
}

#[tokio::test]
async fn a_token_is_shown_by_the_digits_that_name_it() {
    let shop = Shop::open().await;
    let pass = test_pass(1).to_string();
    let shown: Vec<_> = shop.printed(&format!("show {pass}"), None).lines().map(words).collect();
    let has = |line: &str| assert!(shown.iter().any(|shown| shown == line), "{line}: {shown:#?}");
    has(&format!("pass {pass}"));
    has("status good");
    has("price 10 sat");
    has("network regtest");
    has("buys 1 of 3 calls used");
    // The passes of these tests differ in their last digits alone.
    let few = shop.try_print("show 5e5e5e5e", None).unwrap_err().to_string();
    assert_eq!(few, "more than one pass begins with 5e5e5e5e; give more of its digits");
    let none = shop.try_print("show ABCDEF", None).unwrap_err().to_string();
    assert_eq!(none, "the ledger has no token whose pass begins with abcdef");
    for wrong in ["show 5e5e5", "show 5e5e5x", &format!("show {pass}0"), "revoke pay_0000000000"] {
        let error = shop.try_print(wrong, None).unwrap_err().to_string();
        assert!(error.contains("6 to 64 hex digits"), "{wrong}: {error}");
    }
    let json: serde_json::Value = serde_json::from_str(&shop.printed(&format!("show --json {pass}"), None)).unwrap();
    assert_eq!(json["status"], "good");
}

#[tokio::test]
async fn a_revoked_token_buys_nothing_from_a_gateway_that_runs() {
    let shop = Shop::open().await;
    let pass = test_pass(1).to_string();
    assert!(matches!(shop.draw(1, 1).await, Drawn::Granted(_)));
    let told = shop.printed(&format!("revoke {pass}"), None);
    assert!(told.starts_with(&format!("revoked {pass}; it was bought by pay_")), "{told}");
    assert!(told.ends_with(", 2 of 3 calls used\n"), "{told}");
    assert!(matches!(shop.draw(1, 2).await, Drawn::Revoked));
    assert!(matches!(shop.draw(2, 3).await, Drawn::Granted(_)), "others go on");
    let again = shop.printed(&format!("revoke {pass}"), None);
    assert_eq!(again, format!("{pass} was revoked at 2026-11-18T11:07:40.000Z already\n"));
    assert!(shop.printed(&format!("show {pass}"), None).contains("revoked, revoked at 2026-11-18T11:07:40.000Z"));
    let unpaid = shop.printed(&format!("revoke {}", test_pass(0)), None);
    assert!(unpaid.ends_with("; its invoice was open\n"), "{unpaid}");
}
