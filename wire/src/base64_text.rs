//! Padded standard base64 of UTF-8 text, strictly: one text has one spelling. Source: RFC 4648 §4.

use base64::{DecodeError, Engine as _, engine::general_purpose::STANDARD};
use http::HeaderValue;

/// Why bytes are not padded standard base64 of UTF-8 text.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Base64TextError {
    /// More bytes than we read.
    #[error("is {length} bytes long; at most {max} are read")]
    TooLong {
        /// How many came.
        length: usize,
        /// How many are read.
        max: usize,
    },
    /// Nothing at all.
    #[error("is empty; send padded standard base64 of a JSON object")]
    Empty,
    /// The alphabet of base64url.
    #[error("is base64url ({character:?} at byte {offset}); encode with + and / (standard base64), padded with =")]
    UrlAlphabet {
        /// `-` or `_`.
        character: char,
        /// Where.
        offset: usize,
    },
    /// JSON, not encoded at all.
    #[error("is plain JSON; encode it with padded standard base64")]
    PlainJson,
    /// No character of base64.
    #[error("is not base64: byte 0x{byte:02x} at {offset}; send padded standard base64 (A-Z a-z 0-9 + / =)")]
    Character {
        /// The byte.
        byte: u8,
        /// Where.
        offset: usize,
    },
    /// The padding is missing or wrong.
    #[error("has wrong base64 padding: {length} characters; fill up with = to a multiple of 4")]
    Padding {
        /// How many came.
        length: usize,
    },
    /// The last character has bits that mean nothing: another spelling of the same bytes.
    #[error(
        "is not canonical base64: the last character before the padding has unused bits set; encode the JSON again"
    )]
    TrailingBits,
    /// Base64, but of other bytes.
    #[error("is base64 of bytes that are not UTF-8 from byte {offset} on; encode UTF-8 JSON")]
    NotUtf8 {
        /// The first byte that is not.
        offset: usize,
    },
}

/// The text that `encoded` stands for.
pub(crate) fn decode(encoded: &[u8], max: usize) -> Result<String, Base64TextError> {
    if encoded.len() > max {
        return Err(Base64TextError::TooLong { length: encoded.len(), max });
    }
    if encoded.is_empty() {
        return Err(Base64TextError::Empty);
    }
    let bytes = STANDARD.decode(encoded).map_err(|error| explain(encoded, error))?;
    String::from_utf8(bytes).map_err(|error| Base64TextError::NotUtf8 { offset: error.utf8_error().valid_up_to() })
}

/// `bytes` in base64.
pub(crate) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// `bytes` in base64, as the value of a header.
pub(crate) fn header_value(bytes: &[u8]) -> HeaderValue {
    match HeaderValue::try_from(STANDARD.encode(bytes)) {
        Ok(value) => value,
        Err(error) => unreachable!("base64 has only characters that headers may have: {error}"),
    }
}

fn explain(encoded: &[u8], error: DecodeError) -> Base64TextError {
    if encoded.first() == Some(&b'{') {
        return Base64TextError::PlainJson;
    }
    let foreign = |b: &u8| !(b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'='));
    match (encoded.iter().position(foreign), error) {
        (Some(offset), _) => match encoded[offset] {
            byte @ (b'-' | b'_') => Base64TextError::UrlAlphabet { character: char::from(byte), offset },
            byte => Base64TextError::Character { byte, offset },
        },
        (None, DecodeError::InvalidLastSymbol(..)) => Base64TextError::TrailingBits,
        (None, _) => Base64TextError::Padding { length: encoded.len() },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(encoded: &str, expected: &str) {
        let shown = decode(encoded.as_bytes(), 64).unwrap_err().to_string();
        assert!(shown.contains(expected), "{encoded}: {shown}");
    }

    #[test]
    fn what_is_wrong_with_base64_is_said_precisely() {
        check("", "is empty");
        check("e30", "padding");
        check("e30==", "padding");
        check("e3=0", "padding");
        check("e31=", "not canonical");
        check("eyI_", "base64url ('_' at byte 3)");
        check("{\"x402Version\":2}", "plain JSON");
        check("e30 ", "byte 0x20 at 3");
        check("//8=", "not UTF-8 from byte 0");
        check(&"A".repeat(65), "65 bytes long; at most 64");
    }

    proptest! {
        #[test]
        fn one_text_has_one_spelling(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(text) = decode(&bytes, 80) {
                prop_assert_eq!(encode(text.as_bytes()).into_bytes(), bytes);
            }
        }
    }
}
