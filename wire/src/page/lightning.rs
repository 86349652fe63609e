//! The Lightning offer of the page: the invoice as text, as a link for wallets, and as a picture for their cameras.

use std::fmt::{self, Write as _};

use farebox_core::ports::TokenBill;
use qrcode::{Color, EcLevel, QrCode};

use super::{Escaped, Time, Whole, fact};

/// The margin that readers want around the code, modules. Source: ISO/IEC 18004 §5.3.8.
const QUIET: usize = 4;

pub(super) fn write(page: &mut String, bill: &TokenBill) -> fmt::Result {
    let invoice = &bill.invoice;
    page.push_str(
        "<h2>By Lightning</h2><ol><li>Pay this invoice from a Lightning wallet that shows the preimage of what it paid.</li><li>Send the \
         same request again with the header <code>Authorization: L402 MACAROON:PREIMAGE</code>.</li></ol>",
    );
    write_code(page, &invoice.bolt11)?;
    page.push_str("<dl>");
    let sats = Whole { units: u128::from(invoice.amount_msat), decimals: 3 };
    fact(page, "Amount", &format_args!("{sats} sat"))?;
    let text = Escaped(&invoice.bolt11);
    fact(page, "Invoice", &format_args!("<a href=\"lightning:{text}\"><code>{text}</code></a>"))?;
    fact(page, "Macaroon", &format_args!("<code>{}</code>", Escaped(&bill.macaroon)))?;
    fact(page, "Paid by", &Time(invoice.expires_at))?;
    page.push_str("</dl>");
    Ok(())
}

/// The invoice as an image without a script or a request. Upper case, which takes two thirds of the room. None for one that is too long.
fn write_code(page: &mut String, invoice: &str) -> fmt::Result {
    let text = format!("LIGHTNING:{}", invoice.to_ascii_uppercase());
    let Ok(code) = QrCode::with_error_correction_level(text, EcLevel::L) else { return Ok(()) };
    let (width, modules) = (code.width(), code.into_colors());
    let side = width + 2 * QUIET;
    write!(
        page,
        "<p><svg viewBox=\"0 0 {side} {side}\" width=\"280\" height=\"280\" role=\"img\" aria-label=\"the invoice as a QR code\">\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/><path d=\""
    )?;
    for (y, row) in modules.chunks(width).enumerate() {
        let mut x = 0;
        for run in row.chunk_by(|a, b| a == b) {
            if run[0] == Color::Dark {
                write!(page, "M{} {}h{}v1h-{}z", x + QUIET, y + QUIET, run.len(), run.len())?;
            }
            x += run.len();
        }
    }
    page.push_str("\" fill=\"#000\"/></svg></p>");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(invoice: &str) -> String {
        let mut page = String::new();
        write_code(&mut page, invoice).unwrap();
        page
    }

    /// The modules that a path covers, row by row.
    fn covered(svg: &str, side: usize) -> Vec<bool> {
        let mut modules = vec![false; side * side];
        let path = svg.split("<path d=\"").nth(1).unwrap().split('"').next().unwrap();
        for run in path.split('z').filter(|run| !run.is_empty()) {
            let numbers: Vec<usize> =
                run.split(['M', ' ', 'h', 'v', '-']).filter_map(|number| number.parse().ok()).collect();
            let [x, y, length, 1, back] = numbers[..] else { panic!("{run}") };
            assert_eq!(length, back);
            (x..x + length).for_each(|x| modules[y * side + x] = true);
        }
        modules
    }

    #[test]
    fn the_picture_is_the_code() {
        let code = QrCode::with_error_correction_level("LIGHTNING:LNBCRT100N1PJ", EcLevel::L).unwrap();
        let (width, side) = (code.width(), code.width() + 2 * QUIET);
        let modules = covered(&drawn("lnbcrt100n1pj"), side);
        for (at, color) in code.into_colors().into_iter().enumerate() {
            let (x, y) = (at % width + QUIET, at / width + QUIET);
            assert_eq!(modules[y * side + x], color == Color::Dark, "{x} {y}");
        }
    }

    #[test]
    fn an_invoice_that_no_code_can_hold_has_none() {
        assert_eq!(drawn(&"a".repeat(crate::bolt11::BOLT11_CHARS_MAX)), "");
        assert!(drawn(&"a".repeat(4000)).contains("<svg"));
    }
}
