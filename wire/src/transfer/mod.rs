//! Transfers claimed by their hash: the bill's `transfer` member, the quote in it, and the two headers that come back. Source: the
//! docs' page on transfers; there is no outside standard.

mod base64url;
mod bill;
mod code;
mod quote;

use farebox_core::{AssetId, EvmAddress, Timestamp};
use http::HeaderName;
use sha3::{Digest, Keccak256};

pub use base64url::Base64UrlError;
pub use bill::{
    BILL_BODY_BYTES_MAX, OPTIONS_MAX, ReadBill, SkippedOption, TransferBill, TransferBillError, TransferBillProblem,
    TransferOption, decode_bill,
};
pub use code::{CODE_BYTES_MAX, SIGNATURE_BYTES, decode_code, encode_code};
pub use quote::{NoQuoteKey, QUOTE_CHARS_MAX, Quote, QuoteOption, Quoter, TransferTimes, UnknownQuote};

/// The transaction: `0x` and 64 hex digits.
pub const X_PAYMENT_HASH: HeaderName = HeaderName::from_static("x-payment-hash");
/// The payment code: unpadded base64url of JSON.
pub const X_PAYMENT_CODE: HeaderName = HeaderName::from_static("x-payment-code");

/// The name in the code's EIP-712 domain, which is {name, version, chainId}.
pub const DOMAIN_NAME: &str = "Farebox Payment Code";
/// The version in the code's EIP-712 domain.
pub const DOMAIN_VERSION: &str = "1";
/// What a payer signs, as EIP-712 encodes a type.
pub const CODE_TYPE: &str = "PaymentCode(string quote,string method,string resource,bytes32 transaction,address asset,address payer,\
                             address payTo,uint256 amount,uint256 expiresAt)";
/// What stands for the network's own coin where an address is signed.
pub const NATIVE_PLACEHOLDER: EvmAddress = EvmAddress([0xee; 20]);
/// How long a payment code may live, seconds.
pub const CODE_LIFETIME_MAX_S: u64 = 600;
/// How far clocks may be apart, seconds.
pub const CLOCK_SKEW_S: u64 = 30;

/// The word for the network's own coin where an asset is named.
pub(crate) const NATIVE: &str = "native";

/// An asset as transfers name it: `native`, or the token's address in EIP-55.
#[must_use]
pub fn asset_name(asset: &AssetId) -> String {
    asset.erc20_address().map_or_else(|| NATIVE.to_owned(), eip55)
}

/// An address with the capitals of EIP-55.
#[must_use]
pub fn eip55(address: EvmAddress) -> String {
    let lower = hex::encode(address.0);
    let hash = Keccak256::digest(lower.as_bytes());
    let capital = |at: usize| (hash[at / 2] >> (if at.is_multiple_of(2) { 4 } else { 0 })) & 0xf >= 8;
    let digits = lower.chars().enumerate().map(|(at, c)| if capital(at) { c.to_ascii_uppercase() } else { c });
    ['0', 'x'].into_iter().chain(digits).collect()
}

/// An address as people and programs may write it here: all lower case, or with the capitals of EIP-55. Any other capitals are a
/// typing error that a checksum was meant to catch.
pub(crate) fn address(text: &str) -> Option<EvmAddress> {
    let address: EvmAddress = text.parse().ok()?;
    let lower = !text.bytes().any(|b| b.is_ascii_uppercase());
    (lower || eip55(address) == text).then_some(address)
}

/// `0x` and 64 hex digits, any case.
pub(crate) fn hash(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text.strip_prefix("0x")?, &mut bytes).ok()?;
    Some(bytes)
}

/// For people's eyes: times beyond the year 9999 show as its end.
pub(crate) fn calendar(time: Timestamp) -> jiff::Timestamp {
    let second = i64::try_from(time.unix_s()).ok().and_then(|second| jiff::Timestamp::from_second(second).ok());
    second.unwrap_or(jiff::Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_lower_case_or_carry_their_checksum() {
        // Vectors of EIP-55.
        for good in [
            "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
            "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
            "0x52908400098527886E0F7030069857D2E4169EE7",
            "0xde709f2102306220921060314715629080e2fb77",
        ] {
            let read = address(good).unwrap();
            assert_eq!(eip55(read), good);
            assert_eq!(address(&good.to_lowercase()), Some(read));
        }
        for wrong in [
            "0x5AAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
            "0x5AAEB6053F3E94C9B9A09F33669435E7EF1BEAED",
            "5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
            "0x5aaeb6053f3e94c9b9a09f33669435e7ef1beae",
            "",
        ] {
            assert_eq!(address(wrong), None, "{wrong}");
        }
    }
}
