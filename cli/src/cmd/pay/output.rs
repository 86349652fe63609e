//! What the command prints: the body, the receipt, the bill, the error.

use std::{
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{self, Write},
};

use anyhow::Context as _;
use farebox_agent::{
    Charge, DollarAsset, Entry, FetchError, Fetched, LightningError, LightningMade, Note, PaymentMade, Purchase, Quote,
    QuotedInvoice, QuotedOffer, Stake, TransferMade,
};
use farebox_core::{Decimal, NetworkFee, Offer, RailName, Timestamp, Untrusted};
use http::Method;
use reqwest::Response;
use serde_json::{Value, json};
use url::Url;

use super::{COIN_DECIMALS, Failure, PayArgs, SAT_DECIMALS};

/// The largest body that `--json` holds in memory.
const JSON_BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Opens the file of `-o`, if there is one, and leaves what it holds for as long as there is no answer.
pub(super) fn open(args: &PayArgs) -> anyhow::Result<Option<File>> {
    let Some(path) = args.output.as_ref().filter(|path| path.as_os_str() != "-") else { return Ok(None) };
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    Ok(Some(file.with_context(|| format!("cannot write {}; nothing was paid", path.display()))?))
}

/// Why an answer was not printed whole.
#[derive(Debug)]
enum PrintError {
    BrokenOff(reqwest::Error),
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for PrintError {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Prints the answer as it comes in, then the receipt.
pub(super) async fn answer(
    args: &PayArgs,
    out: Option<File>,
    method: &Method,
    url: &Url,
    fetched: Fetched,
) -> Result<(), Failure> {
    let Fetched { response, payment } = fetched;
    let printed =
        if args.json { json_answer(response, payment.as_ref()).await } else { plain_answer(args, out, response).await };
    // A body that broke off is no reason to keep quiet about the money.
    if let Some(made) = &payment {
        say(&receipt(args, method, url, made)).map_err(Failure::Other)?;
    }
    match (printed, payment) {
        (Ok(()), _) => Ok(()),
        (Err(PrintError::BrokenOff(source)), Some(payment)) => {
            Err(Failure::BrokenOff { payment: Box::new(payment), source })
        }
        (Err(PrintError::BrokenOff(source)), None) => {
            Err(Failure::Other(anyhow::Error::new(source).context("the answer broke off; run the same command again")))
        }
        (Err(PrintError::Other(error)), _) => Err(Failure::Other(error)),
    }
}

async fn plain_answer(args: &PayArgs, out: Option<File>, mut response: Response) -> Result<(), PrintError> {
    let mut out: Box<dyn Write + Send> = match out {
        Some(file) => {
            if file.metadata()?.is_file() {
                file.set_len(0)?;
            }
            Box::new(file)
        }
        None => Box::new(io::stdout()),
    };
    if args.include || args.head {
        out.write_all(&head(&response))?;
    }
    while let Some(piece) = response.chunk().await.map_err(PrintError::BrokenOff)? {
        out.write_all(&piece)?;
    }
    out.flush()?;
    Ok(())
}

fn head(response: &Response) -> Vec<u8> {
    let mut bytes = format!("{:?} {}\r\n", response.version(), response.status()).into_bytes();
    for (name, value) in response.headers() {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

async fn json_answer(mut response: Response, payment: Option<&PaymentMade>) -> Result<(), PrintError> {
    let (status, url) = (response.status().as_u16(), response.url().to_string());
    let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())])
    };
    let headers: Vec<Value> = response.headers().iter().map(header).collect();
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(PrintError::BrokenOff)? {
        body.extend_from_slice(&piece);
        if body.len() > JSON_BODY_BYTES_MAX {
            let limit = format!("the body is longer than the {JSON_BODY_BYTES_MAX} bytes that --json holds; use -o");
            return Err(PrintError::Other(anyhow::anyhow!(limit)));
        }
    }
    let mut object = json!({"status": status, "url": url, "headers": headers, "payment": payment.map(payment_json)});
    match String::from_utf8(body) {
        Ok(text) => object["body"] = text.into(),
        Err(bytes) => {
            object["body_base64"] = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, bytes.as_bytes()).into()
        }
    }
    Ok(print(&format!("{object}\n"))?)
}

fn payment_json(made: &PaymentMade) -> Value {
    let (charged, transaction, until) = match &made.charge {
        Charge::Charged { transaction } => (json!(true), transaction.as_ref(), None),
        Charge::NotCharged { .. } | Charge::Prepaid => (json!(false), None, None),
        Charge::NoReceipt { until } | Charge::NotSettled { until } => (json!("unknown"), None, Some(*until)),
    };
    let mut object = json!({
        "amount": made.asset.tokens(made.offer.amount.units).to_string(),
        "symbol": made.asset.symbol(),
        "units": made.offer.amount.units.to_string(),
        "asset": made.offer.amount.asset,
        "rail": made.offer.rail,
        "network": made.offer.network(),
        "pay_to": made.offer.pay_to,
        "charged": charged,
        "may_be_charged_until": until.map(utc),
        "transaction": transaction,
        "payment": made.payment,
        "signatures": made.signatures,
        "notes": made.notes.iter().map(note).collect::<Vec<_>>(),
    });
    if let Charge::NotCharged { until } = &made.charge {
        object["authorizationValidUntil"] = until.unix_s().into();
    }
    if let Some(transfer) = &made.transfer {
        object["confirmations"] = transfer.confirmations.into();
        object["gas_wei"] = transfer.gas_wei.map(|wei| wei.to_string()).into();
        object["credit_units"] = transfer.credit_units.map(|units| units.to_string()).into();
    }
    if let Some(LightningMade { payment_hash, fee_msat, held, calls_left, valid_until }) = &made.lightning {
        object["payment_hash"] = json!(payment_hash);
        object["fee_msat"] = json!(fee_msat);
        object["held_token"] = json!(held);
        object["calls_left"] = json!(calls_left);
        object["token_valid_until"] = json!(valid_until.map(utc));
    }
    object
}

/// One line for people unless it is not wanted, and one for each note.
fn receipt(args: &PayArgs, method: &Method, url: &Url, made: &PaymentMade) -> String {
    let mut text = if args.silent { String::new() } else { receipt_line(method, url, made) };
    for odd in &made.notes {
        writeln!(text, "note: {}", note(odd)).unwrap_or_default();
    }
    text
}

fn receipt_line(method: &Method, url: &Url, made: &PaymentMade) -> String {
    let amount = made.asset.tokens(made.offer.amount.units);
    let what = format!(
        "{amount} {} on {} to {} for {method} {url}",
        made.asset.symbol(),
        made.offer.network(),
        made.offer.pay_to
    );
    let mut text = match &made.charge {
        Charge::Charged { transaction: Some(hash) } if made.lightning.is_some() => format!("paid {what} hash {hash}"),
        Charge::Charged { transaction: Some(hash) } => format!("paid {what} tx {hash}"),
        Charge::Prepaid => format!("used a token that was bought before for {what}"),
        Charge::Charged { transaction: None } => format!("paid {what}"),
        Charge::NotCharged { until } => {
            format!("offered {what}; the seller did not charge it; the signature stays valid until {}", utc(*until))
        }
        Charge::NoReceipt { until } => {
            format!("sent {what}; the seller gave no receipt, it may charge until {}", utc(*until))
        }
        Charge::NotSettled { until } => {
            format!("offered {what}; the seller did not settle it, it may until {}", utc(*until))
        }
    };
    if let Some(id) = made.payment {
        write!(text, " ({id})").unwrap_or_default();
    }
    if let Some(transfer) = &made.transfer {
        text.push_str(&transfer_text(made, transfer));
    }
    if let Some(lightning) = &made.lightning {
        text.push_str(&lightning_text(lightning));
    }
    text.push('\n');
    text
}

/// What a transfer has beside its payment.
fn transfer_text(made: &PaymentMade, transfer: &TransferMade) -> String {
    let mut parts = Vec::new();
    parts.extend(transfer.confirmations.map(|n| format!("{n} confirmation{}", if n == 1 { "" } else { "s" })));
    parts.extend(transfer.gas_wei.map(|wei| format!("gas {} of the network's coin", coins(wei))));
    let credit = |units| format!("credit {} {}", made.asset.tokens(units), made.asset.symbol());
    parts.extend(transfer.credit_units.map(credit));
    parts.iter().fold(String::new(), |text, part| text + "; " + part)
}

/// What a Lightning payment has beside its amount.
fn lightning_text(made: &LightningMade) -> String {
    let mut parts = Vec::new();
    parts.extend(made.fee_msat.filter(|_| !made.held).map(|fee| format!("fee {} sat", sats(fee))));
    parts.extend(made.calls_left.map(|left| format!("{left} call{} left", if left == 1 { "" } else { "s" })));
    parts.iter().fold(String::new(), |text, part| text + "; " + part)
}

fn sats(msat: u64) -> Decimal {
    Decimal::from_units(msat.into(), SAT_DECIMALS)
}

fn coins(wei: u128) -> Decimal {
    Decimal::from_units(wei, COIN_DECIMALS)
}

fn note(note: &Note) -> String {
    match note {
        Note::PayToChanged { was, now } => format!("a second bill named the recipient {now} instead of {was}"),
        Note::PriceChanged { was, now } => format!("a second bill asked for {now} instead of {was}"),
        Note::TokenNotTaken { payment_hash, calls_left } => {
            let calls = calls_left
                .map_or_else(String::new, |calls| format!(", which has {calls} calls left by its earlier word"));
            format!(
                "the seller did not take the token of the invoice {payment_hash}{calls}; it is kept, and another was paid for"
            )
        }
        Note::RoutingFeeOverLimit { fee_msat, max_msat } => {
            format!(
                "the wallet paid {} sat for the way; it was told to pay {} at most",
                sats(*fee_msat),
                sats(*max_msat)
            )
        }
        Note::RedirectNotFollowed => "the paid request was redirected, which was not followed".to_owned(),
        Note::BodyDisagrees => "the body of the 402 asks for other terms than its header, which was taken".to_owned(),
        Note::TermsUnreadable { rail, reason } => format!("the bill's terms for {rail} cannot be read: {reason}"),
        Note::ReceiptDiffers { field, signed, receipt } => {
            format!("the receipt names the {field} {receipt}; {signed} was signed")
        }
    }
}

/// The bill, readable.
pub(super) fn quote(args: &PayArgs, quote: &Quote) -> anyhow::Result<()> {
    let (url, description, skipped, offers, invoice, token, notes, open) = match quote {
        Quote::Free(response) if args.json => {
            return print(&format!("{}\n", json!({"status": response.status().as_u16(), "offers": null})));
        }
        Quote::Free(response) => return print(&format!("no bill: the server answers {}\n", response.status())),
        Quote::Bill { url, description, skipped, offers, invoice, token, notes, open } => {
            (url, description, skipped, offers, invoice.as_deref(), token.as_deref(), notes, open)
        }
    };
    if args.json {
        let offers: Vec<Value> = offers.iter().map(offer_json).collect();
        let notes: Vec<String> = notes.iter().map(note).collect();
        let open = open.as_deref().map(open_json);
        let (invoice, token) = (invoice.map(invoice_json), token.map(token_json));
        let object = json!({"status": 402, "url": url, "offers": offers, "invoice": invoice, "held_token": token, "skipped": skipped,
            "notes": notes, "open": open});
        return print(&format!("{object}\n"));
    }
    let mut text = format!("{url} wants to be paid\n");
    if let Some(description) = description {
        writeln!(text, "  for {description}")?;
    }
    for QuotedOffer { offer, judgement, chosen } in offers {
        let mark = if *chosen { "*" } else { " " };
        let (units, to, rail) = (offer.amount.units, &offer.pay_to, offer.rail);
        match judgement {
            Ok(fine) => {
                let (tokens, symbol) = (fine.asset.tokens(units), fine.asset.symbol());
                let price = fine.price.map_or_else(|| "worth not known".to_owned(), |price| price.to_string());
                let (network, fee) = (offer.network(), fee_text(offer, &fine.asset));
                writeln!(text, "{mark} {rail}: {tokens} {symbol} ({price}{fee}) on {network} to {to}")?;
            }
            Err(rule) => {
                writeln!(text, "{mark} {rail}: {} to {to}", refused_amount(&args.known_assets(), offer))?;
                writeln!(text, "    not payable: {rule}")?;
            }
        }
    }
    if let Some(invoice) = invoice {
        text.push_str(&invoice_text(invoice));
    }
    skipped.iter().try_for_each(|skipped| writeln!(text, "  {skipped}"))?;
    notes.iter().try_for_each(|odd| writeln!(text, "note: {}", note(odd)))?;
    if let Some(entry) = open.as_deref() {
        let until = utc(entry.current.expires_at);
        let payer = payer_text(entry);
        writeln!(text, "an earlier payment for this request, by {payer}, is open until {until}")?;
    }
    if let Some(token) = token {
        let (bought, url) = (utc(token.noted_at), &token.url);
        writeln!(text, "a token bought at {bought} for {url} is held and would be used first, at no cost")?;
    }
    text.push_str(if offers.iter().any(|offer| offer.chosen) {
        "the offer marked * would be paid; nothing was signed\n"
    } else {
        "none of it would be paid; nothing was signed\n"
    });
    print(&text)
}

/// An amount that is not to be paid: of what is not known by the bill's own word, if it says what it is.
fn refused_amount(known: &[DollarAsset], offer: &Offer) -> String {
    let (units, asset) = (offer.amount.units, &offer.amount.asset);
    if asset.is_lightning() {
        return format!("{} sat on {}", Decimal::from_units(units, SAT_DECIMALS), asset.network());
    }
    if let Some(known) = known.iter().find(|known| known.id() == asset) {
        return format!("{} {} on {}", known.tokens(units), known.symbol(), asset.network());
    }
    let symbol = offer.extra.get("symbol").and_then(Value::as_str).map(|symbol| Untrusted::new(symbol).to_string());
    let decimals = offer.extra.get("decimals").and_then(Value::as_u64).and_then(|decimals| u8::try_from(decimals).ok());
    match (symbol, decimals.filter(|decimals| *decimals <= COIN_DECIMALS)) {
        (Some(symbol), Some(decimals)) => {
            format!(
                "{} {symbol}, as the bill has it, which is {units} units of {asset}",
                Decimal::from_units(units, decimals)
            )
        }
        _ => format!("{units} units of {asset}"),
    }
}

fn invoice_text(invoice: &QuotedInvoice) -> String {
    let mut text = format!("  invoice {} ends {}\n", invoice.payment_hash, utc(invoice.expires_at));
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!("    {name}: {value}\n"));
        }
    };
    line("for", invoice.description.as_ref().map(ToString::to_string));
    line("payee", Some(invoice.payee.clone()));
    let services = Untrusted::new(invoice.services.join(", ")).to_string();
    line("token for", Some(services).filter(|_| !invoice.services.is_empty()));
    line("token ends", invoice.token_valid_until.map(utc));
    text
}

fn invoice_json(invoice: &QuotedInvoice) -> Value {
    json!({
        "bolt11": invoice.bolt11,
        "payment_hash": invoice.payment_hash,
        "description": invoice.description.as_ref().map(Untrusted::as_raw),
        "payee": invoice.payee,
        "expires_at": utc(invoice.expires_at),
        "services": invoice.services,
        "token_valid_until": invoice.token_valid_until.map(utc),
    })
}

fn token_json(token: &Purchase) -> Value {
    json!({
        "payment_hash": token.payment_hash(),
        "bought_at": utc(token.noted_at),
        "bought_for": token.url,
        "valid_until": token.facts.valid_until.map(utc),
    })
}

/// Who pays the gas, and about how much it is, by the seller's word.
fn fee_text(offer: &Offer, asset: &DollarAsset) -> String {
    let tokens = |units| format!("{} {}", asset.tokens(units), asset.symbol());
    match offer.network_fee {
        Some(NetworkFee::Included(units)) => format!(", of which {} for gas", tokens(units)),
        Some(NetworkFee::OnTop(wei)) => format!(", and about {} of the network's coin for gas", coins(wei)),
        None if offer.rail == RailName::Transfer => ", and gas".to_owned(),
        Some(NetworkFee::Absorbed(_)) | None => String::new(),
    }
}

fn open_json(entry: &Entry) -> Value {
    let made = &entry.current;
    json!({
        "amount": made.asset.tokens(made.offer.amount.units).to_string(),
        "symbol": made.asset.symbol(),
        "network": made.offer.network(),
        "pay_to": made.offer.pay_to,
        "rail": made.offer.rail,
        "payer": made.payer.map(|payer| format!("{payer:x}")),
        "payment_hash": made.payment_hash(),
        "signed_at": utc(made.signed_at),
        "authorizationValidUntil": made.expires_at.unix_s(),
    })
}

/// Told before the payment of another wallet is sent again.
pub(super) fn foreign_resend(entry: &Entry) {
    // A standard error that is closed is no reason to keep a payment from being finished.
    let _ = say(&foreign_resend_line(entry));
}

pub(super) fn foreign_resend_line(entry: &Entry) -> String {
    let made = &entry.current;
    let (payer, at, until) = (payer_text(entry), utc(made.signed_at), utc(made.expires_at));
    format!("resending the payment that {payer} signed at {at}; it stays valid until {until}\n")
}

fn payer_text(entry: &Entry) -> String {
    entry.current.payer.map_or_else(|| "a Lightning wallet".to_owned(), |payer| format!("wallet {payer:x}"))
}

fn offer_json(quoted: &QuotedOffer) -> Value {
    let QuotedOffer { offer, judgement, chosen } = quoted;
    let fee = match offer.network_fee {
        Some(NetworkFee::OnTop(wei)) => json!({"payer": "you", "wei": wei.to_string()}),
        Some(NetworkFee::Included(units)) => json!({"payer": "seller", "included_units": units.to_string()}),
        Some(NetworkFee::Absorbed(units)) => json!({"payer": "seller", "absorbed_units": units.to_string()}),
        None => Value::Null,
    };
    let mut object = json!({
        "rail": offer.rail,
        "network_fee": fee,
        "units": offer.amount.units.to_string(),
        "asset": offer.amount.asset,
        "network": offer.network(),
        "pay_to": offer.pay_to,
        "chosen": chosen,
    });
    match judgement {
        Ok(fine) => {
            object["amount"] = fine.asset.tokens(offer.amount.units).to_string().into();
            object["symbol"] = fine.asset.symbol().into();
        }
        Err(rule) => object["refused"] = json!({"code": rule.code(), "detail": rule.to_string()}),
    }
    object
}

/// Tells why the command failed: on standard error, or as an object on standard output.
pub(super) fn failure(args: &PayArgs, failure: &Failure) -> anyhow::Result<()> {
    if args.json {
        return print(&format!("{}\n", failure_json(failure)));
    }
    let lines = failure.lines();
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        let lead = if index == 0 { "error: " } else { "  caused by: " };
        writeln!(text, "{lead}{line}")?;
    }
    if let Some(hint) = failure.hint() {
        writeln!(text, "hint: {hint}")?;
    }
    say(&text)
}

pub(super) fn failure_json(failure: &Failure) -> Value {
    let charged = match failure.stake() {
        Stake::Nothing | Stake::Declined => json!(false),
        Stake::Unclear => json!("unknown"),
        Stake::Charged => json!(true),
    };
    let mut error = json!({
        "code": failure.code(),
        "detail": failure.lines().join(": "),
        "charged": charged,
        "retryable": failure.retryable(),
    });
    if let Failure::Fetch(fetch) = failure
        && let Some(until) = fetch.declined_valid_until()
    {
        error["authorizationValidUntil"] = until.unix_s().into();
    }
    match failure {
        Failure::Fetch(FetchError::ChargedNotServed { transaction, payment, .. }) => {
            error["transaction"] = json!(transaction);
            error["payment"] = json!(payment);
        }
        Failure::Fetch(FetchError::ChargedNotDelivered { transaction, .. }) => {
            error["transaction"] = json!(transaction)
        }
        Failure::Fetch(FetchError::Credited { transaction, credit, .. }) => {
            error["transaction"] = json!(transaction);
            error["credit"] = json!(credit);
        }
        Failure::Fetch(
            FetchError::TransferUnconfirmed { transaction, .. }
            | FetchError::TransferLate { transaction, .. }
            | FetchError::TransferVoid { transaction, .. }
            | FetchError::OtherWallet { transaction, .. },
        ) => error["transaction"] = json!(transaction),
        Failure::Fetch(FetchError::Lightning(
            LightningError::Unclear { payment_hash, .. }
            | LightningError::NoPreimage { payment_hash, .. }
            | LightningError::OtherWallet { payment_hash, .. },
        )) => error["payment_hash"] = json!(payment_hash),
        _ => {}
    }
    let mut object = json!({ "error": error });
    if let Failure::BrokenOff { payment, .. } = failure {
        object["payment"] = payment_json(payment);
    }
    object
}

fn utc(at: Timestamp) -> String {
    i64::try_from(at.unix_ms())
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| format!("{} s after 1970", at.unix_s()), |time| time.to_string())
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn say(text: &str) -> anyhow::Result<()> {
    Ok(io::stderr().write_all(text.as_bytes())?)
}
