//! From TOML to literal values: every mistake is noted and reading goes on, so that one run tells them all.
//!
//! A table's keys are declared once, by [`keys!`]; its reader, its list of known keys and its page of the reference are made
//! from that declaration.

use std::ops::Range;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::mistake::Mistake;

/// A value that can be read from a TOML value.
pub(crate) trait Literal: Sized {
    /// What to write, with its limits: for the reference page and for messages, as in "expected a duration such as \"30s\"".
    fn expected() -> String;

    /// Reads it; `None` after noting every mistake in it.
    fn read(value: &Spanned<DeValue<'_>>, at: &At<'_>, notes: &mut Notes) -> Option<Self>;
}

/// A literal value and where it stands.
pub(crate) type Located<T> = Spanned<T>;

/// The mistakes found so far.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    pub(crate) list: Vec<Mistake>,
    /// Keys that an unknown key was taken for: that they are absent is the same mistake, told already.
    supposed: Vec<String>,
}

impl Notes {
    /// With these from the start.
    pub(crate) const fn with(list: Vec<Mistake>) -> Self {
        Self { list, supposed: Vec::new() }
    }

    /// Whether the mistake behind this key's absence was told.
    pub(crate) fn told(&self, key: &str) -> bool {
        self.supposed.iter().any(|supposed| supposed == key) || self.list.iter().any(|mistake| mistake.key == key)
    }

    /// Notes a mistake; always `None`, so that a reader can end with it.
    pub(crate) fn wrong<T>(
        &mut self,
        span: Range<usize>,
        key: impl Into<String>,
        what: impl Into<String>,
    ) -> Option<T> {
        self.list.push(Mistake { span, key: key.into(), what: what.into(), hint: None });
        None
    }

    /// Notes a mistake that has a remedy.
    pub(crate) fn wrong_hint<T>(
        &mut self,
        span: Range<usize>,
        key: impl Into<String>,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) -> Option<T> {
        self.list.push(Mistake { span, key: key.into(), what: what.into(), hint: Some(hint.into()) });
        None
    }
}

/// Where a value stands in the file, as a path of keys.
#[derive(Clone, Debug)]
pub(crate) struct At<'a> {
    parent: Option<&'a At<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Debug)]
enum Step<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

impl<'a> At<'a> {
    /// The file.
    pub(crate) const fn root() -> Self {
        At { parent: None, step: Step::Root }
    }

    pub(crate) const fn key(&'a self, key: &'a str) -> Self {
        At { parent: Some(self), step: Step::Key(key) }
    }

    pub(crate) const fn index(&'a self, index: usize) -> Self {
        At { parent: Some(self), step: Step::Index(index) }
    }

    /// Such as `route[1].price`.
    pub(crate) fn path(&self) -> String {
        let before = self.parent.map(At::path).unwrap_or_default();
        match self.step {
            Step::Root => before,
            Step::Key(key) if before.is_empty() => key.to_owned(),
            Step::Key(key) => format!("{before}.{key}"),
            Step::Index(index) => format!("{before}[{index}]"),
        }
    }
}

/// What holds if a key is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absent {
    /// A mistake.
    Refused,
    /// This TOML value.
    Default(&'static str),
    /// What these words say.
    Means(&'static str),
}

/// A key of a table, as the reference page tells it.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct KeyInfo {
    pub(crate) name: &'static str,
    pub(crate) about: String,
    pub(crate) expected: String,
    pub(crate) absent: Absent,
}

/// A table whose keys are declared by [`keys!`].
pub(crate) trait Keys: Literal {
    /// As messages name it: `[server]`, `[[route]]`, `the file`.
    const TITLE: &'static str;

    /// What the table is for.
    #[cfg(test)]
    fn about() -> String;

    /// Its keys, in the order of the reference page.
    #[cfg(test)]
    fn keys() -> Vec<KeyInfo>;
}

/// Declares a literal table: a struct whose fields are `Option<Located<T>>`, its [`Literal`] reader and its [`Keys`].
macro_rules! keys {
    (
        $(#[doc = $about:literal])+
        $table:ident = $title:literal {
            $( $(#[doc = $doc:literal])+ $key:literal $field:ident: $type:ty, $absent:expr; )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug)]
        pub(crate) struct $table {
            $( $(#[doc = $doc])+ pub(crate) $field: Option<$crate::config::read::Located<$type>>, )+
        }

        impl $crate::config::read::Literal for $table {
            fn expected() -> String {
                format!("a table as in {}", $title)
            }

            fn read(
                value: &toml::Spanned<toml::de::DeValue<'_>>,
                at: &$crate::config::read::At<'_>,
                notes: &mut $crate::config::read::Notes,
            ) -> Option<Self> {
                let table = $crate::config::read::table_of::<Self>(value, at, notes)?;
                $crate::config::read::refuse_unknown(table, $title, &[$($key),+], at, notes);
                Some(Self {
                    $( $field: $crate::config::read::field::<$type>(table, value.span(), $key, $absent, $title, at, notes), )+
                })
            }
        }

        impl $crate::config::read::Keys for $table {
            const TITLE: &'static str = $title;

            #[cfg(test)]
            fn about() -> String {
                concat!($($about),+).trim().to_owned()
            }

            #[cfg(test)]
            fn keys() -> Vec<$crate::config::read::KeyInfo> {
                vec![$( $crate::config::read::KeyInfo {
                    name: $key,
                    about: concat!($($doc),+).trim().to_owned(),
                    expected: <$type as $crate::config::read::Literal>::expected(),
                    absent: $absent,
                } ),+]
            }
        }
    };
}
pub(crate) use keys;

/// The table in `value`, or a note that there is none.
pub(crate) fn table_of<'v, 'i, T: Keys>(
    value: &'v Spanned<DeValue<'i>>,
    at: &At<'_>,
    notes: &mut Notes,
) -> Option<&'v DeTable<'i>> {
    match value.get_ref().as_table() {
        Some(table) => Some(table),
        None => notes.wrong(value.span(), at.path(), format!("expected {}, found {}", T::expected(), found(value))),
    }
}

/// Notes every key that `known` does not name.
pub(crate) fn refuse_unknown(table: &DeTable<'_>, title: &str, known: &[&str], at: &At<'_>, notes: &mut Notes) {
    for key in table.keys() {
        let name = key.get_ref().as_ref();
        if known.contains(&name) {
            continue;
        }
        let what = format!("unknown key `{}` in {title}", name.escape_default());
        let hint = match nearest(name, known) {
            Some(nearest) => {
                notes.supposed.push(at.key(nearest).path());
                format!("did you mean `{nearest}`?")
            }
            None => format!("{title} takes {}", known.join(", ")),
        };
        notes.wrong_hint::<()>(key.span(), at.key(name).path(), what, hint);
    }
}

/// One key of a table: its value, its default, or a note.
pub(crate) fn field<T: Literal>(
    table: &DeTable<'_>,
    table_span: Range<usize>,
    key: &str,
    absent: Absent,
    title: &str,
    at: &At<'_>,
    notes: &mut Notes,
) -> Option<Located<T>> {
    let at = at.key(key);
    if let Some(value) = table.get(key) {
        return T::read(value, &at, notes).map(|read| Located::new(value.span(), read));
    }
    match absent {
        Absent::Means(_) => None,
        Absent::Refused if notes.told(&at.path()) => None,
        Absent::Refused => {
            let what = format!("{title} lacks the key `{key}`: expected {}", T::expected());
            notes.wrong(table_span, at.path(), what)
        }
        Absent::Default(fragment) => {
            let value = DeValue::parse(fragment).ok()?;
            T::read(&value, &at, notes).map(|read| Located::new(table_span, read))
        }
    }
}

/// The known name that a slip of the finger may have meant.
pub(crate) fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let lower = name.to_lowercase().replace('-', "_");
    known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(&lower, &known.to_lowercase()), *known))
        .filter(|(distance, known)| *distance <= known.len().max(3) / 3 || known.starts_with(&lower) && lower.len() > 2)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// What a value is, for a message: a short one as written, a long one by its kind. Never used where a secret may stand.
pub(crate) fn found(value: &Spanned<DeValue<'_>>) -> String {
    match value.get_ref() {
        DeValue::String(text) => farebox_core::Untrusted::new(text.as_ref()).to_string(),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(true) => "true".to_owned(),
        DeValue::Boolean(false) => "false".to_owned(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
        DeValue::Datetime(_) => "a date".to_owned(),
    }
}

/// A string that another type parses; the note tells what was expected and found, and why not if `Err` says more.
pub(crate) fn read_text<T: Literal>(
    value: &Spanned<DeValue<'_>>,
    at: &At<'_>,
    notes: &mut Notes,
    parse: impl FnOnce(&str) -> Result<T, Option<String>>,
) -> Option<T> {
    let wrong = |why: Option<String>| match why {
        Some(why) => why,
        None => format!("expected {}, found {}", T::expected(), found(value)),
    };
    match value.get_ref().as_str() {
        None => notes.wrong(value.span(), at.path(), wrong(None)),
        Some(text) => match parse(text) {
            Ok(read) => Some(read),
            Err(why) => notes.wrong(value.span(), at.path(), wrong(why)),
        },
    }
}
