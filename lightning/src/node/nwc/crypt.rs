//! What travels between client and wallet, closed to everybody else: NIP-44, and NIP-04 for wallets that have nothing better.

use std::time::Duration;

use farebox_core::ports::BoxError;
use nostr::{
    Event, EventBuilder, Kind, Tag, Timestamp,
    nips::{nip04, nip44},
};
use serde_json::{Value, json};

use super::{NwcError, NwcUri, relay::NOTICES};

/// Kind of a request.
const REQUEST: u16 = 23_194;

/// How contents are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encryption {
    Nip04,
    Nip44,
}

impl Encryption {
    /// The better one that the wallet's info names; a wallet that names none has NIP-04. Source: NIP-47, "Encryption".
    pub(super) fn of(info: Option<&Event>) -> Self {
        let named = |event: &Event| words(event, "encryption").any(|word| word == "nip44_v2");
        if info.is_some_and(named) { Self::Nip44 } else { Self::Nip04 }
    }

    /// A request for the wallet, signed by this client. A wallet leaves it alone that sees it after `good_for`.
    pub(super) fn request(
        self,
        uri: &NwcUri,
        call: (&str, &Value),
        now: Timestamp,
        good_for: Option<Duration>,
    ) -> Result<Event, NwcError> {
        let (method, parameters) = call;
        let content = json!({ "method": method, "params": parameters }).to_string();
        let (secret, wallet) = (uri.keys.secret_key(), &uri.wallet);
        let closed = match self {
            Self::Nip04 => nip04::encrypt(secret, wallet, content).map_err(unsealed)?,
            Self::Nip44 => nip44::encrypt(secret, wallet, content, nip44::Version::V2).map_err(unsealed)?,
        };
        let named = match self {
            Self::Nip04 => "nip04",
            Self::Nip44 => "nip44_v2",
        };
        let encryption = Tag::parse(["encryption", named]).map_err(unsealed)?;
        let until = good_for.map(|good_for| Tag::expiration(now + good_for));
        let request = EventBuilder::new(Kind::Custom(REQUEST), closed).tag(Tag::public_key(uri.wallet)).tag(encryption);
        request.tags(until).custom_created_at(now).sign_with_keys(&uri.keys).map_err(unsealed)
    }

    /// What is inside a wallet's answer to a request that was closed so.
    pub(super) fn open(self, uri: &NwcUri, answer: &Event) -> Result<String, NwcError> {
        let (secret, wallet) = (uri.keys.secret_key(), &uri.wallet);
        match self {
            Self::Nip04 => nip04::decrypt(secret, wallet, &answer.content).map_err(unsealed),
            Self::Nip44 => nip44::decrypt(secret, wallet, &answer.content).map_err(unsealed),
        }
    }

    /// Whether the wallet's notice is the one closed so, of the two that it may send of one thing.
    pub(super) fn is_of(self, notice: &Event) -> bool {
        let [nip04, nip44] = NOTICES;
        let own = match self {
            Self::Nip04 => nip04,
            Self::Nip44 => nip44,
        };
        notice.kind.as_u16() == own
    }
}

/// The words of a tag, of which an info event has one.
pub(super) fn words<'a>(event: &'a Event, tag: &'a str) -> impl Iterator<Item = &'a str> {
    let values =
        event.tags.iter().map(Tag::as_slice).filter(move |values| values.first().is_some_and(|name| name == tag));
    values.flat_map(|values| values.get(1..).unwrap_or_default()).flat_map(|value| value.split_whitespace())
}

fn unsealed(error: impl Into<BoxError>) -> NwcError {
    NwcError::Crypt(error.into())
}
