//! A number in a page of JSON. It is never a float here: the digits are taken as they are written.

use std::{collections::HashMap, time::Duration};

use farebox_core::{Decimal, Untrusted, ports::BoxError};
use serde_json::value::RawValue;
use tokio::time::Instant;
use url::{Host, Url};

use crate::node::http;

/// The longest page that is read.
const PAGE_BYTES_MAX: usize = 256 << 10;
/// Digits after the point that a rate keeps; more are cut off, which is less than a millionth of a millionth of a cent.
const SCALE_MAX: usize = 18;
/// The largest exponent, up or down, of a number that is read.
const EXPONENT_MAX: i32 = 40;

pub(super) struct Page {
    client: reqwest::Client,
    url: Url,
    /// Tokens of the pointer.
    path: Vec<String>,
    timeout: Duration,
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Page").field("host", &self.url.host_str()).field("path", &self.path).finish_non_exhaustive()
    }
}

impl Page {
    pub(super) fn new(url: &Url, pointer: &str, timeout: Duration) -> Result<Self, String> {
        let own = match url.host() {
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        };
        if url.scheme() != "https" && !(url.scheme() == "http" && own) {
            return Err("expected an https URL: whoever changes the page on its way changes the prices".to_owned());
        }
        if !pointer.is_empty() && !pointer.starts_with('/') {
            return Err(format!("the pointer is {pointer:?}, expected one such as /data/amount"));
        }
        let unescaped = |token: &str| token.replace("~1", "/").replace("~0", "~");
        let client = http::client(timeout).map_err(|e| e.to_string())?;
        Ok(Self { client, url: url.clone(), path: pointer.split('/').skip(1).map(unescaped).collect(), timeout })
    }

    pub(super) async fn read(&self) -> Result<Decimal, BoxError> {
        let asked = http::fetch(self.client.get(self.url.clone()), PAGE_BYTES_MAX);
        let page = tokio::time::timeout_at(Instant::now() + self.timeout, asked).await??;
        number_at(&page, &self.path)
    }
}

fn number_at(page: &[u8], path: &[String]) -> Result<Decimal, BoxError> {
    let mut at: &RawValue = serde_json::from_slice(page)?;
    for token in path {
        let missing = || format!("the page has nothing at {}", Untrusted::new(path.join("/")));
        at = match at.get().as_bytes().first() {
            Some(b'{') => {
                let members: HashMap<String, &RawValue> = serde_json::from_str(at.get())?;
                *members.get(token).ok_or_else(missing)?
            }
            Some(b'[') => {
                let elements: Vec<&RawValue> = serde_json::from_str(at.get())?;
                let index: usize = token.parse().map_err(|_| missing())?;
                *elements.get(index).ok_or_else(missing)?
            }
            _ => return Err(missing().into()),
        };
    }
    let text = match at.get().starts_with('"') {
        true => serde_json::from_str::<String>(at.get())?,
        false => at.get().to_owned(),
    };
    decimal(&text).ok_or_else(|| format!("expected a number greater than 0, found {}", Untrusted::new(text)).into())
}

/// A JSON number, exactly, up to its 18th digit after the point.
fn decimal(text: &str) -> Option<Decimal> {
    let (digits, exponent) = match text.split_once(['e', 'E']) {
        Some((digits, exponent)) => (digits, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    if exponent.abs() > EXPONENT_MAX {
        return None;
    }
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !all(whole) || !all(fraction) || (fraction.is_empty() && digits.contains('.')) {
        return None;
    }
    // The point moves to the right by the exponent, over zeros where there are no digits.
    let shift = usize::try_from(exponent.unsigned_abs()).ok()?;
    let zeros = "0".repeat(shift);
    let (whole, fraction) = if exponent < 0 {
        let padded = format!("{zeros}{whole}");
        let (left, right) = padded.split_at(padded.len() - shift);
        (left.to_owned(), format!("{right}{fraction}"))
    } else {
        let padded = format!("{fraction}{zeros}");
        let (left, right) = padded.split_at(shift);
        (format!("{whole}{left}"), right.trim_end_matches('0').to_owned())
    };
    let kept = fraction.get(..SCALE_MAX).unwrap_or(&fraction);
    let whole = match whole.trim_start_matches('0') {
        "" => "0",
        whole => whole,
    };
    let text = if kept.is_empty() { whole.to_owned() } else { format!("{whole}.{kept}") };
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, expected: Option<&str>) {
        assert_eq!(decimal(text), expected.map(|text| text.parse().unwrap()), "{text}");
    }

    #[test]
    fn numbers_are_read_as_they_are_written() {
        check("3012.45", Some("3012.45"));
        check("0.1", Some("0.1"));
        check("3.01245e3", Some("3012.45"));
        check("3012450E-3", Some("3012.45"));
        check("1e-3", Some("0.001"));
        check("1e3", Some("1000"));
        check("3012.4500000000000001", Some("3012.4500000000000001"));
        check("0.0000000000000000019", Some("0.000000000000000001"));
        for wrong in ["-1", "+1", "NaN", "1.", ".5", "1e", "1e99", "1 ", "", "true", "null", "1e1e1", "0x1"] {
            check(wrong, None);
        }
    }

    #[test]
    fn a_pointer_finds_its_number() {
        let page = br#"{"data": [{"a/b": {"~": "1.5"}}, 2.5], "n": 1}"#;
        let at = |pointer: &str| {
            let page_at = Page::new(&"https://x.example".parse().unwrap(), pointer, Duration::from_secs(1)).unwrap();
            number_at(page, &page_at.path).map(|found| found.to_string()).ok()
        };
        assert_eq!(at("/data/0/a~1b/~0"), Some("1.5".to_owned()));
        assert_eq!(at("/data/1"), Some("2.5".to_owned()));
        for wrong in ["", "/data", "/data/2", "/data/x", "/n/0", "/m"] {
            assert_eq!(at(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_page_that_anybody_can_change_is_refused() {
        let page = |url: &str| Page::new(&url.parse().unwrap(), "/x", Duration::from_secs(1)).is_ok();
        assert!(page("https://rates.example/") && page("http://127.0.0.1:1/") && page("http://[::1]/"));
        assert!(!page("http://rates.example/") && !page("http://10.0.0.1/") && !page("ftp://localhost/"));
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read(units in 0u128..10u128.pow(28), decimals in 0u8..=18) {
            let number = Decimal::from_units(units, decimals);
            prop_assert_eq!(decimal(&number.to_string()), Some(number));
        }

        #[test]
        fn an_exponent_moves_the_point(units in 1u128..10u128.pow(9), decimals in 0u8..=9, up in 0u32..=9) {
            let text = format!("{}e{up}", Decimal::from_units(units, decimals));
            prop_assert_eq!(decimal(&text), Some(Decimal::from_units(units * 10u128.pow(up), decimals)));
        }

        #[test]
        fn reading_never_panics(text in "\\PC*", page: Vec<u8>) {
            let _ = decimal(&text);
            let _ = number_at(&page, &[text]);
        }
    }
}
