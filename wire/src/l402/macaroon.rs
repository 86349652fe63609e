//! Macaroons in version 2's binary form, and their signatures. Source: libmacaroons `doc/format.txt`; gopkg.in/macaroon.v2.
//!
//! `02`, packet 1 (location, may be missing), packet 2 (identifier), `00`; for each caveat packet 2, `00`; then `00` and packet 6, the
//! signature. A packet is its number, its length as a varint, and its bytes.

use farebox_core::{Macaroon, RootKey};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// The longest binary macaroon we read. One of ours has under 1.5 KiB; the rest is for caveats that its holders add.
pub const MACAROON_BYTES_MAX: usize = 4 * 1024;
/// The most caveats we read. Each costs an HMAC before we know that it is worth one.
pub const CAVEATS_MAX: usize = 64;

const VERSION: u8 = 2;
const LOCATION: &[u8] = b"lsat";
const END: u8 = 0;
const FIELD_LOCATION: u8 = 1;
const FIELD_IDENTIFIER: u8 = 2;
const FIELD_VERIFICATION: u8 = 4;
const FIELD_SIGNATURE: u8 = 6;
/// Source: libmacaroons `macaroons.c`; a 32-byte key, zeros included, which HMAC pads alike.
const KEY_GENERATOR: &[u8] = b"macaroons-key-generator";

/// Why bytes are no macaroon that we read.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum MacaroonError {
    /// More bytes than we read.
    #[error("the macaroon is {found} bytes long; at most {MACAROON_BYTES_MAX} are read")]
    TooLong {
        /// How many came.
        found: usize,
    },
    /// More caveats than we read.
    #[error("the macaroon has more than {CAVEATS_MAX} caveats")]
    TooManyCaveats,
    /// Version 1, JSON, or no macaroon at all.
    #[error("the macaroon begins with byte 0x{found:02x}; expected 0x02, version 2's binary form")]
    Version {
        /// The first byte.
        found: u8,
    },
    /// It ends too early.
    #[error("the macaroon is cut off at byte {at}")]
    CutOff {
        /// Where it ends.
        at: usize,
    },
    /// Not what comes here, or not in this order.
    #[error("the macaroon has field {found} at byte {at}; expected {expected}")]
    Field {
        /// Where.
        at: usize,
        /// What comes here.
        expected: &'static str,
        /// What is there.
        found: u8,
    },
    /// A length in more bytes than it needs, or beyond everything.
    #[error("the macaroon has a length at byte {at} that is not the shortest form of a varint")]
    LengthForm {
        /// Where.
        at: usize,
    },
    /// Not 32 bytes.
    #[error("the macaroon's signature is {found} bytes long; expected 32")]
    SignatureLength {
        /// How many came.
        found: usize,
    },
    /// A caveat for a third party to discharge.
    #[error("the macaroon has a third party's caveat; only first-party caveats are read")]
    ThirdParty,
    /// A caveat that is no text.
    #[error("the macaroon's caveat {index} is not UTF-8")]
    NotText {
        /// Its place, from 0.
        index: usize,
    },
    /// Bytes after the end.
    #[error("the macaroon has {count} bytes after its end")]
    Trailing {
        /// How many.
        count: usize,
    },
}

impl MacaroonError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "macaroon_too_long",
            Self::TooManyCaveats => "macaroon_too_many_caveats",
            Self::Version { .. } => "macaroon_version",
            Self::CutOff { .. } => "macaroon_cut_off",
            Self::Field { .. } => "macaroon_field",
            Self::LengthForm { .. } => "macaroon_length_form",
            Self::SignatureLength { .. } => "macaroon_signature_length",
            Self::ThirdParty => "macaroon_third_party",
            Self::NotText { .. } => "macaroon_caveat_not_text",
            Self::Trailing { .. } => "macaroon_trailing_bytes",
        }
    }
}

/// Reads a macaroon. The location is passed over: no signature covers it. One macaroon has one spelling but for that.
///
/// # Errors
/// [`MacaroonError`].
pub fn decode_macaroon(bytes: &[u8]) -> Result<Macaroon, MacaroonError> {
    if bytes.len() > MACAROON_BYTES_MAX {
        return Err(MacaroonError::TooLong { found: bytes.len() });
    }
    let mut reader = Reader { bytes, at: 0 };
    match reader.byte()? {
        VERSION => {}
        found => return Err(MacaroonError::Version { found }),
    }
    if reader.peek()? == FIELD_LOCATION {
        reader.field(FIELD_LOCATION, "the location")?;
    }
    let identifier = reader.field(FIELD_IDENTIFIER, "the identifier")?.to_vec();
    reader.end("the end of the identifier's section")?;
    let mut caveats = Vec::new();
    while reader.peek()? != END {
        if caveats.len() == CAVEATS_MAX {
            return Err(MacaroonError::TooManyCaveats);
        }
        caveats.push(reader.caveat(caveats.len())?);
    }
    reader.end("the end of the caveats")?;
    let signature = reader.field(FIELD_SIGNATURE, "the signature")?;
    let signature = signature.try_into().map_err(|_| MacaroonError::SignatureLength { found: signature.len() })?;
    match bytes.len() - reader.at {
        0 => Ok(Macaroon { identifier, caveats, signature }),
        count => Err(MacaroonError::Trailing { count }),
    }
}

/// Writes a macaroon, with `lsat` as its location. It is read again only within [`MACAROON_BYTES_MAX`] and [`CAVEATS_MAX`].
#[must_use]
pub fn encode_macaroon(macaroon: &Macaroon) -> Vec<u8> {
    let caveats: usize = macaroon.caveats.iter().map(|caveat| caveat.len() + 4).sum();
    let mut bytes = Vec::with_capacity(64 + macaroon.identifier.len() + caveats);
    bytes.push(VERSION);
    write_field(&mut bytes, FIELD_LOCATION, LOCATION);
    write_field(&mut bytes, FIELD_IDENTIFIER, &macaroon.identifier);
    bytes.push(END);
    for caveat in &macaroon.caveats {
        write_field(&mut bytes, FIELD_IDENTIFIER, caveat.as_bytes());
        bytes.push(END);
    }
    bytes.push(END);
    write_field(&mut bytes, FIELD_SIGNATURE, &macaroon.signature);
    bytes
}

/// A new macaroon, signed.
#[must_use]
pub fn mint(root_key: &RootKey, identifier: &[u8], caveats: Vec<String>) -> Macaroon {
    let signature = sign(root_key, identifier, &caveats);
    Macaroon { identifier: identifier.to_vec(), caveats, signature }
}

/// Whether the holder got it from somebody with the root key and changed nothing but by adding caveats. In constant time.
#[must_use]
pub fn verify_signature(root_key: &RootKey, macaroon: &Macaroon) -> bool {
    sign(root_key, &macaroon.identifier, &macaroon.caveats).ct_eq(&macaroon.signature).into()
}

/// With one more caveat: good for less, and whoever gets it cannot take the caveat off again. Needs no root key.
#[must_use]
pub fn add_caveat(macaroon: &Macaroon, caveat: &str) -> Macaroon {
    let mut narrowed = macaroon.clone();
    narrowed.signature = hmac(&macaroon.signature, caveat.as_bytes());
    narrowed.caveats.push(caveat.to_owned());
    narrowed
}

fn sign(root_key: &RootKey, identifier: &[u8], caveats: &[String]) -> [u8; 32] {
    let first = hmac(&hmac(KEY_GENERATOR, root_key.bytes()), identifier);
    caveats.iter().fold(first, |signature, caveat| hmac(&signature, caveat.as_bytes()))
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    // A key of up to 64 bytes is padded with zeros to a block. Source: RFC 2104.
    let mut block = [0; 64];
    block[..key.len()].copy_from_slice(key);
    let mut mac = Hmac::<Sha256>::new(&block.into());
    mac.update(message);
    mac.finalize().into_bytes().into()
}

fn write_field(bytes: &mut Vec<u8>, field: u8, content: &[u8]) {
    bytes.push(field);
    let mut length = content.len();
    while length >= 0x80 {
        bytes.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend_from_slice(content);
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Result<u8, MacaroonError> {
        self.bytes.get(self.at).copied().ok_or(MacaroonError::CutOff { at: self.at })
    }

    fn byte(&mut self) -> Result<u8, MacaroonError> {
        let byte = self.peek()?;
        self.at += 1;
        Ok(byte)
    }

    fn tag(&mut self, wanted: u8, expected: &'static str) -> Result<(), MacaroonError> {
        let at = self.at;
        match self.byte()? {
            found if found == wanted => Ok(()),
            found => Err(MacaroonError::Field { at, expected, found }),
        }
    }

    fn end(&mut self, expected: &'static str) -> Result<(), MacaroonError> {
        self.tag(END, expected)
    }

    fn field(&mut self, field: u8, expected: &'static str) -> Result<&'a [u8], MacaroonError> {
        self.tag(field, expected)?;
        let length = self.length()?;
        let content = self.bytes[self.at..].get(..length).ok_or(MacaroonError::CutOff { at: self.bytes.len() })?;
        self.at += length;
        Ok(content)
    }

    /// A varint, little end first, in its shortest form. Three bytes reach far beyond [`MACAROON_BYTES_MAX`].
    fn length(&mut self) -> Result<usize, MacaroonError> {
        let at = self.at;
        let mut length = 0;
        for shift in [0, 7, 14] {
            let byte = self.byte()?;
            length |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return if byte == 0 && shift > 0 { Err(MacaroonError::LengthForm { at }) } else { Ok(length) };
            }
        }
        Err(MacaroonError::LengthForm { at })
    }

    fn caveat(&mut self, index: usize) -> Result<String, MacaroonError> {
        // A caveat's location stands only before a third party's.
        if self.peek()? == FIELD_LOCATION {
            return Err(MacaroonError::ThirdParty);
        }
        let caveat = self.field(FIELD_IDENTIFIER, "a caveat")?;
        if self.peek()? == FIELD_VERIFICATION {
            return Err(MacaroonError::ThirdParty);
        }
        self.end("the end of the caveat")?;
        let caveat = std::str::from_utf8(caveat).map_err(|_| MacaroonError::NotText { index })?;
        Ok(caveat.to_owned())
    }
}
