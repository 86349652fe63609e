//! What may stand to the right of a `=`: one type a kind of value, with its limits in the type.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use farebox_core::{Decimal, EvmAddress, Network, Price, RailName, SettleWhen};
use farebox_evm::{AddressError, parse_address};
use farebox_gateway::{Methods, PathPattern, UpstreamHost, UpstreamUrl, UpstreamUrlError, parse_match};
use ipnet::IpNet;
use toml::{Spanned, de::DeValue};
use url::Url;

use super::{
    read::{At, Keys, Literal, Located, Notes, found, keys, read_text},
    secret::{Environment, not_set, variable_name},
};

/// The longest text a config may hold.
const TEXT_CHARS_MAX: usize = 1_000;

impl Literal for String {
    fn expected() -> String {
        format!("a text of 1 to {TEXT_CHARS_MAX} characters")
    }

    fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self> {
        read_text(value, at, notes, |text| {
            let printable = !text.chars().any(char::is_control);
            let fits = (1..=TEXT_CHARS_MAX).contains(&text.chars().count());
            if printable && fits { Ok(text.to_owned()) } else { Err(None) }
        })
    }
}

impl Literal for bool {
    fn expected() -> String {
        "true or false".to_owned()
    }

    fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self> {
        match value.get_ref().as_bool() {
            Some(read) => Some(read),
            None => {
                notes.wrong(value.span(), at.path(), format!("expected {}, found {}", Self::expected(), found(value)))
            }
        }
    }
}

/// A path, relative to the config file's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FilePath(pub(crate) PathBuf);

impl Literal for FilePath {
    fn expected() -> String {
        "a path, relative to the config file's folder".to_owned()
    }

    fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self> {
        read_text(value, at, notes, |text| {
            if text.is_empty() || text.contains('\0') { Err(None) } else { Ok(Self(PathBuf::from(text))) }
        })
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count<const MIN: u64, const MAX: u64>(pub(crate) u64);

impl<const MIN: u64, const MAX: u64> Literal for Count<MIN, MAX> {
    fn expected() -> String {
        format!("a whole number, {MIN} to {MAX}")
    }

    fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self> {
        let number = whole_number(value).filter(|number| (MIN..=MAX).contains(number));
        number.map(Self).or_else(|| {
            notes.wrong(value.span(), at.path(), format!("expected {}, found {}", Self::expected(), found(value)))
        })
    }
}

pub(super) fn whole_number(value: &Spanned<DeValue<'_>>) -> Option<u64> {
    let number = value.get_ref().as_integer()?;
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// A duration from `MIN` to `MAX` milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Millis<const MIN: u64, const MAX: u64>(pub(crate) Duration);

impl<const MIN: u64, const MAX: u64> Literal for Millis<MIN, MAX> {
    fn expected() -> String {
        format!("a duration such as \"250ms\", \"30s\", \"10m\" or \"1h\", {} to {}", ms_text(MIN), ms_text(MAX))
    }

    fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self> {
        read_text(value, at, notes, |text| {
            let ms = scaled(text, &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)]);
            let ms = ms.filter(|ms| (MIN..=MAX).contains(ms)).ok_or(None)?;
            Ok(Self(Duration::from_millis(ms)))
        })
    }
}

/// Milliseconds as the config writes them.
pub(crate) fn ms_text(ms: u64) -> String {
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
    match units.iter().find(|(_, unit)| ms > 0 && ms.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", ms / unit),
        None => format!("{ms}ms"),
    }
}

/// A count of bytes from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bytes<const MIN: u64, const MAX: u64>(pub(crate) u64);

impl<const MIN: u64, const MAX: u64> Literal for Bytes<MIN, MAX> {
    fn expected() -> String {
        format!("a size such as 65536, \"64KiB\" or \"8MiB\", {} to {}", bytes_text(MIN), bytes_text(MAX))
    }

    fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self> {
        let number = match value.get_ref().as_str() {
            Some(text) => scaled(text, &[("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)]),
            None => whole_number(value),
        };
        number.filter(|number| (MIN..=MAX).contains(number)).map(Self).or_else(|| {
            notes.wrong(value.span(), at.path(), format!("expected {}, found {}", Self::expected(), found(value)))
        })
    }
}

fn bytes_text(bytes: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

/// Digits and a unit, multiplied; `None` for anything else and on overflow.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text.get(..digits)?.parse().ok()?;
    let unit = text.get(digits..)?;
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*factor)
}

/// 1 to `MAX` values, as a list or, if there is one, bare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OneOrMany<T, const MAX: usize>(pub(crate) Vec<Located<T>>);

impl<T: Literal, const MAX: usize> Literal for OneOrMany<T, MAX> {
    fn expected() -> String {
        format!("{}, or a list of 1 to {MAX} of them", T::expected())
    }

    fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self> {
        if value.get_ref().is_array() {
            return Many::<T, 1, MAX>::read(value, at, notes).map(|many| Self(many.0));
        }
        T::read(value, at, notes).map(|one| Self(vec![Located::new(value.span(), one)]))
    }
}

/// A list of `MIN` to `MAX` values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Many<T, const MIN: usize, const MAX: usize>(pub(crate) Vec<Located<T>>);

impl<T: Literal, const MIN: usize, const MAX: usize> Literal for Many<T, MIN, MAX> {
    fn expected() -> String {
        format!("a list of {MIN} to {MAX}: {}", T::expected())
    }

    fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self> {
        let Some(array) = value.get_ref().as_array() else {
            let what = format!("expected {}, found {}", Self::expected(), found(value));
            return notes.wrong(value.span(), at.path(), what);
        };
        if !(MIN..=MAX).contains(&array.len()) {
            let what = format!("expected {}, found {} of them", Self::expected(), array.len());
            return notes.wrong(value.span(), at.path(), what);
        }
        let mut all = Some(Vec::new());
        for (index, item) in array.iter().enumerate() {
            match (T::read(item, &at.index(index), notes), &mut all) {
                (Some(read), Some(all)) => all.push(Located::new(item.span(), read)),
                (None, all) => *all = None,
                (Some(_), None) => {}
            }
        }
        all.map(Self)
    }
}

/// A type that parses itself from a string, with what to write for it.
macro_rules! parsed {
    ($type:ty, $expected:literal, $parse:expr) => {
        impl Literal for $type {
            fn expected() -> String {
                $expected.to_owned()
            }

            fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self> {
                let parse: fn(&str) -> Result<Self, Option<String>> = $parse;
                read_text(value, at, notes, parse)
            }
        }
    };
}

pub(crate) use parsed;

parsed!(SocketAddr, "an address and port such as \"127.0.0.1:8402\"", |text| text.parse().map_err(|_| None));
parsed!(IpNet, "a network such as \"10.0.0.0/8\" or an address such as \"::1\"", |text| {
    text.parse().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from)).map_err(|_| None)
});
parsed!(Network, "an EVM network by its CAIP-2 name, such as \"eip155:8453\"", |text| {
    let network: Network = text.parse().map_err(|_| None)?;
    if network.evm_chain_id().is_some() { Ok(network) } else { Err(None) }
});
parsed!(Price, "a price such as \"$0.01\", \"0.01 USDC\" or \"10 sat\"", |text| {
    text.parse().map_err(|error: farebox_core::PriceError| Some(error.to_string()))
});

/// An account or contract on an EVM network, whose EIP-55 checksum holds if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address(pub(crate) EvmAddress);

parsed!(Address, "an address of 0x and 40 hex digits", |text| {
    parse_address(text).map(Self).map_err(|error| match error {
        AddressError::Form(_) => None,
        AddressError::Checksum { .. } => Some(error.to_string()),
    })
});

/// Who is paid: an address, or the environment variable that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PayTo {
    /// As written.
    Address(EvmAddress),
    /// The variable's name.
    Env(String),
}

impl Literal for PayTo {
    fn expected() -> String {
        format!("{}, or \"${{NAME}}\" for an environment variable that holds one", Address::expected())
    }

    fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self> {
        match value.get_ref().as_str().and_then(variable_name) {
            Some(name) => Some(Self::Env(name.to_owned())),
            None => {
                let address = Address::read(value, at, notes)?.0;
                match nobody(address) {
                    Some(why) => notes.wrong(value.span(), at.path(), why),
                    None => Some(Self::Address(address)),
                }
            }
        }
    }
}

impl PayTo {
    /// The address.
    ///
    /// # Errors
    /// The variable is not set or holds no address; says which.
    pub(crate) fn fetch(&self, env: Environment<'_>) -> Result<EvmAddress, String> {
        match self {
            Self::Address(address) => Ok(*address),
            Self::Env(name) => {
                let told = |why: String| format!("the environment variable {name}: {why}");
                let address =
                    parse_address(&env(name).ok_or_else(|| not_set(name))?).map_err(|error| told(error.to_string()))?;
                nobody(address).map_or(Ok(address), |why| Err(told(why.to_owned())))
            }
        }
    }
}

/// Why nobody could be paid there.
fn nobody(address: EvmAddress) -> Option<&'static str> {
    (address.0 == [0; 20]).then_some("the zero address has no owner: what is sent there is lost for good")
}

impl std::fmt::Display for PayTo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => f.write_str(&farebox_evm::checksum(*address)),
            Self::Env(name) => write!(f, "${{{name}}}"),
        }
    }
}

/// A price of gas.
pub(crate) type Gwei = Coins<9>;

/// A sum of a chain's native coin.
pub(crate) type NativeCoins = Coins<18>;

/// A decimal number above 0 with at most `DECIMALS` digits after the point, kept as a count of the smallest unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Coins<const DECIMALS: u8>(pub(crate) u128);

impl<const DECIMALS: u8> Literal for Coins<DECIMALS> {
    fn expected() -> String {
        format!("a number above 0 such as 50 or 0.5, at most {DECIMALS} digits after the point")
    }

    fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self> {
        let text = match value.get_ref() {
            DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
            DeValue::Float(number) => number.as_str(),
            _ => "",
        };
        let units = text.parse::<Decimal>().ok().and_then(|number| number.to_units(DECIMALS).ok());
        units.filter(|units| *units > 0).map(Self).or_else(|| {
            notes.wrong(value.span(), at.path(), format!("expected {}, found {}", Self::expected(), found(value)))
        })
    }
}

/// Under which URL the gateway is known: scheme, host and maybe a base path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PublicUrl(pub(crate) Url);

parsed!(PublicUrl, "an http or https URL without user, query and fragment, such as \"https://api.example\"", |text| {
    refuse_user(text)?;
    let url = Url::parse(text).map_err(|_| None)?;
    let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    let plain = plain && url.fragment().is_none() && url.has_host();
    if plain && matches!(url.scheme(), "http" | "https") { Ok(Self(url)) } else { Err(None) }
});
parsed!(
    UpstreamUrl,
    "an http or https URL without user, query and fragment, such as \"http://127.0.0.1:9000\"",
    |text| {
        refuse_user(text)?;
        text.parse().map_err(|error: UpstreamUrlError| Some(error.to_string()))
    }
);

/// Before anything else is said of a URL: what stands before the `@` is a password.
fn refuse_user(text: &str) -> Result<(), Option<String>> {
    if text.contains('@') { Err(Some("a URL here carries no user name and no password".to_owned())) } else { Ok(()) }
}

/// What a route matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Match {
    /// As written.
    pub(crate) text: String,
    pub(crate) methods: Methods,
    pub(crate) pattern: PathPattern,
}

parsed!(Match, "methods and a path such as \"GET /v1/*\", \"GET,POST /v1/{id}\" or \"* /x\"", |text| {
    let (methods, pattern) = parse_match(text).map_err(|error| Some(error.to_string()))?;
    Ok(Self { text: text.to_owned(), methods, pattern })
});

/// One of a few words.
macro_rules! words {
    ($type:ty, $($word:literal => $value:expr),+ $(,)?) => {
        impl Literal for $type {
            fn expected() -> String {
                [$(concat!("\"", $word, "\"")),+].join(" or ")
            }

            fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self> {
                match value.get_ref().as_str() {
                    $( Some($word) => Some($value), )+
                    other => {
                        let what = format!("expected {}, found {}", Self::expected(), found(value));
                        match other.and_then(|other| $crate::config::read::nearest(other, &[$($word),+])) {
                            None => notes.wrong(value.span(), at.path(), what),
                            Some(nearest) => notes.wrong_hint(
                                value.span(), at.path(), what, format!("did you mean \"{nearest}\"?"),
                            ),
                        }
                    }
                }
            }
        }
    };
}

pub(crate) use words;

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

words!(LogFormat, "pretty" => Self::Pretty, "json" => Self::Json);
words!(
    tracing::Level,
    "error" => Self::ERROR, "warn" => Self::WARN, "info" => Self::INFO, "debug" => Self::DEBUG, "trace" => Self::TRACE,
);
words!(SettleWhen, "before_response" => Self::BeforeResponse, "before_upstream" => Self::BeforeUpstream);
words!(UpstreamHost, "upstream" => Self::Upstream, "preserve" => Self::Preserve);
words!(RailName, "x402" => Self::X402, "l402" => Self::L402, "transfer" => Self::Transfer);

keys! {
    /// A token by its contract. Its name, version and decimals are read from the chain.
    TokenLiteral = "assets = [{ .. }]" {
        /// The token's contract.
        "address" address: Address, super::read::Absent::Refused;
        /// What prices call it.
        "symbol" symbol: Symbol, super::read::Absent::Refused;
        /// Whether one token is one US dollar, so that `$` prices can be charged in it.
        "dollar" dollar: bool, super::read::Absent::Default("false");
    }
}

/// What prices call a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Symbol(pub(crate) String);

parsed!(Symbol, "a symbol of 1 to 16 letters, digits and points, such as \"USDC\"", |text| {
    let ok = (1..=16).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
    if ok { Ok(Self(text.to_owned())) } else { Err(None) }
});

/// The network's own coin, a known token by its symbol, or any by its contract.
#[derive(Clone, Debug)]
pub(crate) enum AssetLiteral {
    /// The coin that pays for gas.
    Native,
    /// Looked up in the table of well-known tokens.
    Known(Symbol),
    /// As written.
    Token(Box<TokenLiteral>),
}

impl Literal for AssetLiteral {
    fn expected() -> String {
        "a known symbol such as \"USDC\", \"native\" for the network's own coin, or { address = \"0x..\", symbol = \"USDC\", dollar = true }"
            .to_owned()
    }

    fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self> {
        match value.get_ref() {
            DeValue::String(text) if text == "native" => Some(Self::Native),
            DeValue::String(_) => Symbol::read(value, at, notes).map(Self::Known),
            DeValue::Table(_) => TokenLiteral::read(value, at, notes).map(|token| Self::Token(Box::new(token))),
            _ => notes.wrong(value.span(), at.path(), format!("expected {}, found {}", Self::expected(), found(value))),
        }
    }
}

/// Lists of tables, written `[[name]]`. Empty if absent.
#[derive(Clone, Debug)]
pub(crate) struct Tables<T, const MAX: usize>(pub(crate) Vec<Located<T>>);

impl<T: Keys, const MAX: usize> Literal for Tables<T, MAX> {
    fn expected() -> String {
        format!("tables written {}, at most {MAX}", T::TITLE)
    }

    fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self> {
        let Some(array) = value.get_ref().as_array() else {
            let what = format!("expected {}, found {}", Self::expected(), found(value));
            return notes.wrong_hint(value.span(), at.path(), what, format!("write {} with two brackets", T::TITLE));
        };
        if array.len() > MAX {
            let what = format!("expected {}, found {}", Self::expected(), array.len());
            return notes.wrong(value.span(), at.path(), what);
        }
        let read: Vec<Option<Located<T>>> = array
            .iter()
            .enumerate()
            .map(|(index, item)| Some(Located::new(item.span(), T::read(item, &at.index(index), notes)?)))
            .collect();
        read.into_iter().collect::<Option<_>>().map(Self)
    }
}

/// Reads one value from a fragment of TOML; for tests and defaults.
#[cfg(test)]
pub(crate) fn read_fragment<T: Literal>(fragment: &str) -> Result<T, Vec<super::mistake::Mistake>> {
    let mut notes = Notes::default();
    let value = DeValue::parse(fragment).expect("a TOML value");
    T::read(&value, &At::root(), &mut notes).ok_or(notes.list)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check<T: Literal + PartialEq + std::fmt::Debug>(fragment: &str, expected: Option<T>) {
        assert_eq!(read_fragment::<T>(fragment).ok(), expected, "{fragment}");
    }

    #[test]
    fn durations_need_a_unit_and_keep_to_their_limits() {
        type Timeout = Millis<1, 3_600_000>;
        check("\"250ms\"", Some(Millis::<1, 3_600_000>(Duration::from_millis(250))));
        check("\"1h\"", Some(Millis::<1, 3_600_000>(Duration::from_secs(3_600))));
        for wrong in [
            "30",
            "\"30\"",
            "\"0s\"",
            "\"2h\"",
            "\"-1s\"",
            "\"1.5s\"",
            "\"1 s\"",
            "\"99999999999999999999s\"",
            "\"18446744073709551615h\"",
        ] {
            check::<Timeout>(wrong, None);
        }
    }

    #[test]
    fn sizes_are_bytes_or_have_a_binary_unit() {
        check("65536", Some(Bytes::<1, 1_000_000>(65_536)));
        check("\"64KiB\"", Some(Bytes::<1, 1_000_000>(65_536)));
        for wrong in ["0", "-1", "\"64KB\"", "\"64k\"", "\"1GiB\"", "1.5", "\"KiB\""] {
            check::<Bytes<1, 1_000_000>>(wrong, None);
        }
    }

    #[test]
    fn gas_prices_are_exact() {
        assert_eq!(read_fragment::<Gwei>("0.5").unwrap().0, 500_000_000);
        assert_eq!(read_fragment::<Gwei>("50").unwrap().0, 50_000_000_000);
        for wrong in ["0", "0.0", "-1", "1e3", "inf", "nan", "0.0000000001", "\"50\""] {
            check::<Gwei>(wrong, None);
        }
    }

    #[test]
    fn public_urls_are_origins_with_at_most_a_path() {
        assert!(read_fragment::<PublicUrl>("\"https://api.example/base\"").is_ok());
        for wrong in ["api.example", "ftp://a", "http://u@a", "http://a?q", "http://a#f", "http://", "unix:/a"] {
            check::<PublicUrl>(&format!("{wrong:?}"), None);
        }
    }

    proptest! {
        #[test]
        fn durations_print_as_they_read(ms in 1u64..86_400_000_000) {
            let text = format!("{:?}", ms_text(ms));
            prop_assert_eq!(read_fragment::<Millis<1, { u64::MAX }>>(&text).unwrap().0, Duration::from_millis(ms));
        }
    }
}
