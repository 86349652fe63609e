//! Unpadded base64url, strictly: the same bytes have one spelling. Source: RFC 4648 §5.

use base64::{DecodeError, Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// Why bytes are not unpadded base64url of UTF-8 text.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Base64UrlError {
    /// More bytes than we read.
    #[error("is {length} bytes long; at most {max} are read")]
    TooLong {
        /// How many came.
        length: usize,
        /// How many are read.
        max: usize,
    },
    /// Nothing at all.
    #[error("is empty; send unpadded base64url of a JSON object")]
    Empty,
    /// JSON, not encoded at all.
    #[error("is plain JSON; encode it with base64url, without padding")]
    PlainJson,
    /// Padding.
    #[error("is padded with =; send base64url without padding")]
    Padded,
    /// The alphabet of standard base64.
    #[error("is standard base64 ({character:?} at byte {offset}); encode with - and _ (base64url), without padding")]
    StandardAlphabet {
        /// `+` or `/`.
        character: char,
        /// Where.
        offset: usize,
    },
    /// No character of base64url.
    #[error("is not base64url: byte 0x{byte:02x} at {offset}; send A-Z a-z 0-9 - and _ alone")]
    Character {
        /// The byte.
        byte: u8,
        /// Where.
        offset: usize,
    },
    /// A length that no bytes have, or a last character with bits that mean nothing: cut off, or another spelling.
    #[error("ends in the middle of a byte; it was cut off, or is not canonical base64url")]
    End,
    /// Base64url, but of other bytes.
    #[error("is base64url of bytes that are not UTF-8 from byte {offset} on; encode UTF-8 JSON")]
    NotUtf8 {
        /// The first byte that is not.
        offset: usize,
    },
}

/// The text that `encoded` stands for.
pub(crate) fn decode_text(encoded: &[u8], max: usize) -> Result<String, Base64UrlError> {
    if encoded.len() > max {
        return Err(Base64UrlError::TooLong { length: encoded.len(), max });
    }
    if encoded.is_empty() {
        return Err(Base64UrlError::Empty);
    }
    let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|error| explain(encoded, error))?;
    String::from_utf8(bytes).map_err(|error| Base64UrlError::NotUtf8 { offset: error.utf8_error().valid_up_to() })
}

/// The bytes that `encoded` stands for, if it is their one spelling.
pub(crate) fn decode_bytes(encoded: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(encoded).ok()
}

/// `bytes` in unpadded base64url.
pub(crate) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn explain(encoded: &[u8], error: DecodeError) -> Base64UrlError {
    if encoded.first() == Some(&b'{') {
        return Base64UrlError::PlainJson;
    }
    let foreign = |b: &u8| !(b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    match encoded.iter().position(foreign).map(|offset| (offset, encoded[offset])) {
        Some((_, b'=')) => Base64UrlError::Padded,
        Some((offset, byte @ (b'+' | b'/'))) => {
            Base64UrlError::StandardAlphabet { character: char::from(byte), offset }
        }
        Some((offset, byte)) => Base64UrlError::Character { byte, offset },
        None => match error {
            DecodeError::InvalidByte(..)
            | DecodeError::InvalidLength(_)
            | DecodeError::InvalidLastSymbol(..)
            | DecodeError::InvalidPadding => Base64UrlError::End,
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(encoded: &str, expected: &str) {
        let shown = decode_text(encoded.as_bytes(), 64).unwrap_err().to_string();
        assert!(shown.contains(expected), "{encoded}: {shown}");
    }

    #[test]
    fn what_is_wrong_with_base64url_is_said_precisely() {
        check("", "is empty");
        check("e30=", "padded");
        check("e31", "canonical");
        check("e", "canonical");
        check("ey+_", "standard base64 ('+' at byte 2)");
        check("{\"version\":1}", "plain JSON");
        check("e30 ", "byte 0x20 at 3");
        check("__8", "not UTF-8 from byte 0");
        check(&"A".repeat(65), "65 bytes long; at most 64");
    }

    proptest! {
        #[test]
        fn one_text_has_one_spelling(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(text) = decode_text(&bytes, 80) {
                prop_assert_eq!(encode(text.as_bytes()).into_bytes(), bytes);
            }
        }
    }
}
