//! EIP-55 addresses: how they are read from people and written to the wire.

use alloy::primitives::Address;
use farebox_core::{EvmAddress, EvmAddressError};

/// Why a text is no address that a person should have written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    /// Not `0x` and 40 hex digits.
    #[error(transparent)]
    Form(#[from] EvmAddressError),
    /// Mixed case whose EIP-55 checksum is wrong: most likely a slip of the finger.
    #[error("the address {found} has a wrong EIP-55 checksum; if its digits are right it is written {expected}")]
    Checksum {
        /// As written.
        found: String,
        /// The same digits with their checksum.
        expected: String,
    },
}

/// The address in the case that carries its checksum. Source: EIP-55.
#[must_use]
pub fn checksum(address: EvmAddress) -> String {
    Address::from(address.0).to_checksum(None)
}

/// Reads an address that a person wrote: all lower or all upper case, or with a right EIP-55 checksum.
///
/// # Errors
/// [`AddressError`] for anything else.
pub fn parse_address(text: &str) -> Result<EvmAddress, AddressError> {
    let address: EvmAddress = text.parse()?;
    let digits = &text[2..];
    let has = |test: fn(&u8) -> bool| digits.as_bytes().iter().any(test);
    let mixed = has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase);
    let expected = checksum(address);
    if mixed && expected != text {
        return Err(AddressError::Checksum { found: text.to_owned(), expected });
    }
    Ok(address)
}

/// Ours and alloy's addresses are the same 20 bytes.
pub(crate) fn alloy(address: EvmAddress) -> Address {
    Address::from(address.0)
}

pub(crate) fn core(address: Address) -> EvmAddress {
    EvmAddress(address.into_array())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_checksum_is_told_from_a_right_one() {
        let right = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913";
        let address = parse_address(right).unwrap();
        assert_eq!(checksum(address), right);
        assert_eq!(parse_address(&right.to_lowercase()), Ok(address));
        let slip = right.replace("fCD6", "fcD6");
        assert!(matches!(parse_address(&slip), Err(AddressError::Checksum { expected, .. }) if expected == right));
        assert!(matches!(parse_address("0x12"), Err(AddressError::Form(_))));
    }
}
