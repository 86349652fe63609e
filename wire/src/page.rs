//! The 402 for browsers: one self-contained page, no script, nothing loaded from elsewhere.

mod lightning;

use std::fmt::{self, Display, Write as _};

use farebox_core::{Challenge, Charged, Finality, Offer, Price, RailName, Retry, Timestamp};

use crate::{
    problem::Title,
    transfer::{TransferBill, TransferOption, calendar, eip55},
};

/// A policy under which [`html`] shows as meant and nothing else runs.
pub const CONTENT_SECURITY_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page for `challenge`, whose price the seller wrote as `price`. Says what the problem body says; every text is escaped.
#[must_use]
pub fn html(challenge: &Challenge, price: &Price, transfer: Option<&TransferBill>) -> String {
    let mut page = String::with_capacity(4096);
    match write_page(&mut page, challenge, price, transfer) {
        Ok(()) => page,
        Err(fmt::Error) => unreachable!("a string takes every write"),
    }
}

fn write_page(page: &mut String, challenge: &Challenge, price: &Price, transfer: Option<&TransferBill>) -> fmt::Result {
    let (resource, refusal) = (&challenge.resource, &challenge.refusal);
    let title = Title(&refusal.code).to_string();
    page.push_str(HEAD);
    write!(page, "<title>402: {title}</title></head><body><main><h1>{title}</h1>", title = Escaped(&title))?;
    write!(page, "<p>{}</p>", Escaped(&refusal.detail))?;
    page.push_str("<dl>");
    fact(page, "Price", &Escaped(&price.to_string()))?;
    fact(page, "For", &format_args!("<code>{}</code>", Escaped(&resource.url)))?;
    if !resource.description.is_empty() {
        fact(page, "Description", &Escaped(&resource.description))?;
    }
    if !resource.mime_type.is_empty() {
        fact(page, "Media type", &Escaped(&resource.mime_type))?;
    }
    let charged = match refusal.charged {
        Charged::Yes => "yes",
        Charged::No => "no",
        Charged::Unknown => "not known yet",
    };
    fact(page, "Charged", &charged)?;
    let next = match refusal.retry {
        Retry::AfterPayment => "pay, then send the request again",
        Retry::SameProof => "send the identical request again, never a new payment",
        Retry::Never => "this request will not be served",
    };
    fact(page, "Next", &next)?;
    fact(page, "Code", &format_args!("<code>{}</code>", Escaped(&refusal.code)))?;
    page.push_str("</dl><h2>How to pay</h2><p>From a terminal:</p>");
    write_command(page, challenge, transfer)?;
    write_x402(page, challenge)?;
    if let Some(bill) = transfer {
        write_transfer(page, bill)?;
    }
    if let Some(bill) = &challenge.token {
        lightning::write(page, bill)?;
    }
    for rail in &challenge.unavailable {
        write!(page, "<p>By {}: not now. {}</p>", rail.rail, Escaped(&rail.detail))?;
    }
    page.push_str("</main></body></html>\n");
    Ok(())
}

/// The line to paste. Lightning needs to be told a wallet; a transfer a node, and what the payer, not the seller, takes one token to be worth.
fn write_command(page: &mut String, challenge: &Challenge, transfer: Option<&TransferBill>) -> fmt::Result {
    let url = shell_quoted(&challenge.resource.url);
    let by_x402 = challenge.offers.iter().any(|offer| offer.rail == RailName::X402);
    if challenge.token.is_some() && !by_x402 {
        let line = format!("farebox pay --lightning WALLET {url}");
        return write!(
            page,
            "<pre>{}</pre><p>with your node or wallet for <code>WALLET</code>: <code>farebox pay --help</code> says how it is written.</p>",
            Escaped(&line)
        );
    }
    let Some(option) = transfer.and_then(|bill| bill.options.first()).filter(|_| !by_x402) else {
        return write!(page, "<pre>farebox pay {}</pre>", Escaped(&url));
    };
    let TransferOption { amount, symbol, decimals, .. } = option;
    let rpc = format!("{}=NODE_URL", amount.asset.network());
    let asset = shell_quoted(&format!("{},{symbol},{decimals},DOLLARS", amount.asset));
    let line = format!("farebox pay --rail transfer --rpc {rpc} --asset {asset} {url}");
    write!(
        page,
        "<pre>{}</pre><p>with a node of that network for <code>NODE_URL</code>, and for <code>DOLLARS</code> what one {} is worth.</p>",
        Escaped(&line),
        Escaped(symbol)
    )
}

fn write_x402(page: &mut String, challenge: &Challenge) -> fmt::Result {
    let mut offers = challenge.offers.iter().filter(|offer| offer.rail == RailName::X402).peekable();
    if offers.peek().is_none() {
        return Ok(());
    }
    page.push_str(
        "<p>Any x402 client pays it too: the terms are in the <code>PAYMENT-REQUIRED</code> header of this answer, and in a \
         JSON body for clients that do not ask for HTML.</p><h2>Ways to pay</h2>",
    );
    offers.try_for_each(|offer| write_offer(page, offer))
}

fn write_transfer(page: &mut String, bill: &TransferBill) -> fmt::Result {
    page.push_str(
        "<h2>By an ordinary transfer</h2><ol><li>Send one of the amounts below, in one transfer, to its address, from a wallet that can \
         sign messages (EIP-712) with the same account: a withdrawal from an exchange cannot be claimed. More is kept as your credit; \
         less buys nothing and is not kept as credit.</li><li>Wait for the confirmations.</li><li>Send the same request again with the headers \
         <code>X-Payment-Hash</code> (the transaction) and <code>X-Payment-Code</code> (signed by the wallet that paid). The JSON body of \
         this answer, for clients that do not ask for HTML, says how the code is written.</li></ol>",
    );
    for option in &bill.options {
        write_option(page, option)?;
    }
    page.push_str("<dl>");
    fact(page, "Mined by", &Time(bill.pay_by))?;
    fact(page, "Claimed by", &Time(bill.claim_by))?;
    fact(page, "Quote", &format_args!("<code>{}</code>", Escaped(&bill.quote)))?;
    page.push_str("</dl>");
    Ok(())
}

fn write_option(page: &mut String, option: &TransferOption) -> fmt::Result {
    let asset = &option.amount.asset;
    page.push_str("<dl>");
    let whole = Whole { units: option.amount.units, decimals: option.decimals };
    let symbol = Escaped(&option.symbol);
    fact(page, "Amount", &format_args!("{whole} {symbol} ({} smallest units)", option.amount.units))?;
    fact(page, "Network", &format_args!("<code>{}</code>", Escaped(asset.network().as_str())))?;
    match asset.erc20_address() {
        Some(token) => fact(page, "Token", &format_args!("<code>{}</code>", eip55(token)))?,
        None => fact(page, "Token", &"none: the network&#39;s own coin")?,
    }
    fact(page, "Pay to", &format_args!("<code>{}</code>", eip55(option.pay_to)))?;
    match option.finality {
        Finality::Blocks(1) => fact(page, "Confirmations", &"1 block")?,
        Finality::Blocks(blocks) => fact(page, "Confirmations", &format_args!("{blocks} blocks"))?,
        tag @ (Finality::Safe | Finality::Finalized) => fact(page, "Confirmations", &format_args!("{tag} block"))?,
    }
    if let Some(wei) = option.network_fee_wei {
        fact(
            page,
            "Network fee",
            &format_args!("about {} of the network&#39;s coin, beside the amount", Whole { units: wei, decimals: 18 }),
        )?;
    }
    page.push_str("</dl>");
    Ok(())
}

fn write_offer(page: &mut String, offer: &Offer) -> fmt::Result {
    page.push_str("<dl>");
    let token = offer.extra.get("name").and_then(serde_json::Value::as_str);
    fact(page, "Amount", &format_args!("{} smallest units{}", offer.amount.units, Of(token)))?;
    fact(page, "Network", &format_args!("<code>{}</code>", Escaped(offer.network().as_str())))?;
    fact(page, "Token", &format_args!("<code>{}</code>", Escaped(&offer.asset_on_wire)))?;
    fact(page, "Pay to", &format_args!("<code>{}</code>", Escaped(&offer.pay_to)))?;
    fact(page, "Scheme", &format_args!("{} <code>{}</code>", offer.rail, Escaped(&offer.scheme)))?;
    fact(page, "Within", &format_args!("{} seconds", offer.max_timeout_s))?;
    page.push_str("</dl>");
    Ok(())
}

fn fact(page: &mut String, name: &str, value: &dyn Display) -> fmt::Result {
    write!(page, "<dt>{name}</dt><dd>{value}</dd>")
}

/// ` of <name>`, or nothing.
struct Of<'a>(Option<&'a str>);

impl Display for Of<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |name| write!(f, " of {}", Escaped(name)))
    }
}

/// Smallest units in whole ones, exactly: no trailing zeros, no exponent.
struct Whole {
    units: u128,
    decimals: u8,
}

impl Display for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = usize::from(self.decimals);
        let digits = format!("{:0width$}", self.units, width = places + 1);
        let (whole, part) = digits.split_at(digits.len() - places);
        match part.trim_end_matches('0') {
            "" => f.write_str(whole),
            part => write!(f, "{whole}.{part}"),
        }
    }
}

/// A time for people and programs.
struct Time(Timestamp);

impl Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = calendar(self.0);
        write!(f, "<time datetime=\"{time}\">{} UTC</time>", time.strftime("%Y-%m-%d %H:%M:%S"))
    }
}

/// One shell word: a URL with `&` or `'` in it must not run a second command when pasted.
fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Text, safe in HTML content and quoted attributes.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c if c.is_control() => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

const HEAD: &str = concat!(
    "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">",
    "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"robots\" content=\"noindex\"><style>",
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;margin:0}",
    "main{max-width:44rem;margin:3rem auto;padding:0 1rem}h1{font-size:1.6rem}h2{font-size:1.1rem;margin-top:2rem}",
    "dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1.2rem;padding:1rem;border:1px solid #8886;border-radius:.5rem}",
    "ol{padding-left:1.2rem}dt{opacity:.7}dd{margin:0;overflow-wrap:anywhere}pre{padding:1rem;overflow-x:auto;border-radius:.5rem;background:#8882}",
    "</style>",
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact_in_whole_tokens() {
        for (units, decimals, shown) in [
            (10_000, 6, "0.01"),
            (1_000_000, 6, "1"),
            (1, 18, "0.000000000000000001"),
            (0, 6, "0"),
            (7, 0, "7"),
            (u128::MAX, 0, "340282366920938463463374607431768211455"),
            (u128::MAX, 38, "3.40282366920938463463374607431768211455"),
        ] {
            assert_eq!(Whole { units, decimals }.to_string(), shown);
        }
    }
}
