//! The reference page, made from the declarations in `literal.rs`.

use std::fmt::Write as _;

use super::{
    lightning::{ClnLiteral, LdkLiteral, LightningLiteral, LndLiteral, NodeLiteral, RouteTokenLiteral},
    literal::{
        AdminLiteral, AdmissionLiteral, ChainLiteral, FileLiteral, LogLiteral, ReconcilerLiteral, RelayerLiteral,
        ReplayLiteral, RouteLiteral, ServerLiteral, TlsLiteral, UpstreamLiteral,
    },
    money::{
        ChainlinkLiteral, HttpRateLiteral, NetworkFeeLiteral, PricingLiteral, QuorumLiteral, RateLiteral,
        SourceLiteral, TierLiteral, TransferLiteral,
    },
    read::{Absent, Keys},
    values::TokenLiteral,
};

const INTRO: &str = "# farebox.toml

Made from the code by `FAREBOX_BLESS=1 cargo test -p farebox`; do not edit.

`farebox init` writes a commented file, `farebox check` says whether it works, `farebox price GET /v1/x` which route and price
apply. An unknown key is a mistake, and every mistake is told in one run, with line, key and what was expected.

Ten lines are enough:

```toml
[[chain]]
network = \"eip155:84532\"
rpc = [\"http://127.0.0.1:8545\"]
assets = [\"USDC\"]
pay_to = \"0x209693Bc6afc0C5328bA36FaF03C514EF312287C\"
relayer = { key = \"${FAREBOX_RELAYER_KEY}\" }

[[route]]
match = \"GET /v1/*\"
upstream = \"http://127.0.0.1:9000\"
price = \"$0.01\"
```

By Bitcoin Lightning alone, as many:

```toml
[lightning]
network = \"bitcoin\"
node = { lnd = { url = \"https://127.0.0.1:8080\", macaroon = \"file:invoice.macaroon\", cert = \"tls.cert\" } }

[[route]]
match = \"GET /v1/*\"
upstream = \"http://127.0.0.1:9000\"
price = \"10 sat\"
```

A secret is never written in the file: `\"${NAME}\"` is an environment variable, `\"file:PATH\"` a file. Paths are relative to the
folder of the config file. Durations are written `\"250ms\"`, `\"30s\"`, `\"10m\"`, `\"1h\"`; sizes `\"64KiB\"`, `\"8MiB\"` or a number of
bytes. A `$` price needs a dollar token on every chain, and for Lightning the [[rate]] of BTC; a price such as `\"0.01 USDC\"` that token on one
chain at least; one in `sat` or `msat` is paid by Lightning alone. A route with a price is not served if the config has both test
networks and real ones.
";

fn page() -> String {
    let mut page = INTRO.to_owned();
    section::<FileLiteral>(&mut page);
    section::<TlsLiteral>(&mut page);
    section::<AdminLiteral>(&mut page);
    section::<ServerLiteral>(&mut page);
    section::<UpstreamLiteral>(&mut page);
    section::<ReplayLiteral>(&mut page);
    section::<AdmissionLiteral>(&mut page);
    section::<ReconcilerLiteral>(&mut page);
    section::<LogLiteral>(&mut page);
    section::<ChainLiteral>(&mut page);
    section::<TokenLiteral>(&mut page);
    section::<RelayerLiteral>(&mut page);
    section::<SourceLiteral>(&mut page);
    section::<QuorumLiteral>(&mut page);
    section::<TierLiteral>(&mut page);
    section::<TransferLiteral>(&mut page);
    section::<LightningLiteral>(&mut page);
    section::<NodeLiteral>(&mut page);
    section::<LndLiteral>(&mut page);
    section::<ClnLiteral>(&mut page);
    section::<LdkLiteral>(&mut page);
    section::<PricingLiteral>(&mut page);
    section::<RateLiteral>(&mut page);
    section::<ChainlinkLiteral>(&mut page);
    section::<HttpRateLiteral>(&mut page);
    section::<RouteLiteral>(&mut page);
    section::<RouteTokenLiteral>(&mut page);
    section::<NetworkFeeLiteral>(&mut page);
    page
}

fn section<T: Keys>(page: &mut String) {
    let title = if T::TITLE == "the file" { "At the top".to_owned() } else { format!("`{}`", T::TITLE) };
    write!(page, "\n## {title}\n\n{}\n\n| key | what | value | if absent |\n|---|---|---|---|\n", T::about()).unwrap();
    for key in T::keys() {
        let absent = match key.absent {
            Absent::Refused => "a mistake".to_owned(),
            Absent::Default(value) => format!("`{value}`"),
            Absent::Means(words) => words.to_owned(),
        };
        let cell = |text: &str| text.replace('|', "\\|");
        let row = [format!("`{}`", key.name), cell(&key.about), cell(&key.expected), cell(&absent)];
        writeln!(page, "| {} |", row.join(" | ")).unwrap();
    }
}

#[test]
fn the_reference_page_is_up_to_date() {
    crate::cmd::help::check_page("config.md", &page());
}

/// Every default is read by the reader of its key, so a default that cannot be read would be one that is never there.
#[test]
fn every_default_can_be_read() {
    fn check<T: Keys>() {
        for key in T::keys() {
            let Absent::Default(fragment) = key.absent else { continue };
            assert!(toml::de::DeValue::parse(fragment).is_ok(), "{}.{}", T::TITLE, key.name);
        }
    }
    check::<FileLiteral>();
    check::<AdminLiteral>();
    check::<ServerLiteral>();
    check::<UpstreamLiteral>();
    check::<ReplayLiteral>();
    check::<AdmissionLiteral>();
    check::<ReconcilerLiteral>();
    check::<LogLiteral>();
    check::<ChainLiteral>();
    check::<TokenLiteral>();
    check::<RouteLiteral>();
    check::<SourceLiteral>();
    check::<QuorumLiteral>();
    check::<TransferLiteral>();
    check::<LightningLiteral>();
    check::<LdkLiteral>();
    check::<RouteTokenLiteral>();
    check::<PricingLiteral>();
    check::<RateLiteral>();
    check::<NetworkFeeLiteral>();
}
