//! JSON from strangers: bounded depth, no repeated keys, and members read with errors that name their path.

use std::{cell::RefCell, fmt};

use farebox_core::Untrusted;
use serde::{
    Serialize,
    de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

/// The deepest nesting of objects and lists we read. Payments need 4, bills 4 and what their extensions bring.
pub(crate) const DEPTH_MAX: usize = 24;

/// Why a text is not JSON that we read.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// No JSON.
    #[error("is not JSON: {0}")]
    Syntax(#[source] serde_json::Error),
    /// An object has two members of one name. Parsers differ in which they believe, so a checker and a settler could read
    /// different payments.
    #[error("has a JSON object with two members {key}; send each once")]
    RepeatedKey {
        /// The name.
        key: Untrusted,
    },
    /// Nested too deeply.
    #[error("is nested deeper than {DEPTH_MAX} levels of JSON")]
    TooDeep,
    /// JSON, but no object.
    #[error("expected a JSON object, found {found}")]
    NotAnObject {
        /// `a list`, `a number` and so on.
        found: &'static str,
    },
}

/// What is wrong with a member.
#[derive(Debug, thiserror::Error)]
#[error("{path} {problem}")]
pub struct MemberError {
    /// Which: names joined by dots, from the outermost object.
    pub path: &'static str,
    /// What.
    pub problem: MemberProblem,
}

/// What can be wrong with a member.
#[derive(Debug, thiserror::Error)]
pub enum MemberProblem {
    /// It is not there.
    #[error("is missing; expected {expected}")]
    Missing {
        /// What it must be.
        expected: &'static str,
    },
    /// It is of another JSON type.
    #[error("is {found}; expected {expected}")]
    Type {
        /// What it must be.
        expected: &'static str,
        /// `a list`, `a number` and so on.
        found: &'static str,
    },
    /// It is of the right type, but not of the right form.
    #[error("is {found}; expected {expected}")]
    Form {
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: Untrusted,
    },
    /// It is a number that we do not take.
    #[error("is {found}, which is out of range; expected {expected}")]
    Range {
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: Untrusted,
    },
}

/// A JSON object out of a stranger's text.
pub(crate) fn object(text: &str) -> Result<Map<String, Value>, JsonError> {
    match strict(text)? {
        Value::Object(object) => Ok(object),
        other => Err(JsonError::NotAnObject { found: kind(&other) }),
    }
}

/// The value as compact JSON.
pub(crate) fn bytes(value: &impl Serialize, size_hint: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(size_hint);
    match serde_json::to_writer(&mut out, value) {
        Ok(()) => out,
        Err(error) => unreachable!("a vector takes every byte and our objects have text keys only: {error}"),
    }
}

/// The member that `path` ends with. `null` is as good as absent: Python clients write it for what they leave out.
pub(crate) fn optional<'a>(object: &'a Map<String, Value>, path: &'static str) -> Option<&'a Value> {
    let name = path.rsplit('.').next().unwrap_or(path);
    object.get(name).filter(|value| !value.is_null())
}

pub(crate) fn required<'a>(
    object: &'a Map<String, Value>,
    path: &'static str,
    expected: &'static str,
) -> Result<&'a Value, MemberError> {
    optional(object, path).ok_or(MemberError { path, problem: MemberProblem::Missing { expected } })
}

pub(crate) fn object_member<'a>(
    object: &'a Map<String, Value>,
    path: &'static str,
) -> Result<&'a Map<String, Value>, MemberError> {
    let expected = "an object";
    let value = required(object, path, expected)?;
    value.as_object().ok_or_else(|| wrong_type(path, expected, value))
}

pub(crate) fn text_member<'a>(
    object: &'a Map<String, Value>,
    path: &'static str,
    expected: &'static str,
) -> Result<&'a str, MemberError> {
    let value = required(object, path, expected)?;
    value.as_str().ok_or_else(|| wrong_type(path, expected, value))
}

/// A text member of the form that `parse` takes.
pub(crate) fn parsed_member<T>(
    object: &Map<String, Value>,
    path: &'static str,
    expected: &'static str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, MemberError> {
    let text = text_member(object, path, expected)?;
    parse(text).ok_or_else(|| wrong_form(path, expected, text))
}

/// Smallest units: a decimal string `0|[1-9][0-9]*` below 2^128. A uint256 above is real, and refused by name.
pub(crate) fn units_member(object: &Map<String, Value>, path: &'static str) -> Result<u128, MemberError> {
    let expected = "smallest units as a decimal string without leading zeros, below 2^128";
    let text = text_member(object, path, expected)?;
    decimal(path, expected, text)
}

/// Seconds since the Unix epoch: a decimal string, or (old clients) a JSON integer.
pub(crate) fn seconds_member(object: &Map<String, Value>, path: &'static str) -> Result<u64, MemberError> {
    let expected = "seconds since the Unix epoch as a decimal string, below 2^64";
    match required(object, path, expected)? {
        Value::String(text) => decimal(path, expected, text),
        Value::Number(number) => integer(path, expected, number),
        other => Err(wrong_type(path, expected, other)),
    }
}

/// A JSON integer from 0 to 2^64 - 1.
pub(crate) fn integer_member(object: &Map<String, Value>, path: &'static str) -> Result<u64, MemberError> {
    let expected = "a whole number, below 2^64";
    match required(object, path, expected)? {
        Value::Number(number) => integer(path, expected, number),
        other => Err(wrong_type(path, expected, other)),
    }
}

pub(crate) fn wrong_type(path: &'static str, expected: &'static str, found: &Value) -> MemberError {
    MemberError { path, problem: MemberProblem::Type { expected, found: kind(found) } }
}

pub(crate) fn wrong_form(path: &'static str, expected: &'static str, found: &str) -> MemberError {
    MemberError { path, problem: MemberProblem::Form { expected, found: Untrusted::new(found) } }
}

fn decimal<T: std::str::FromStr>(path: &'static str, expected: &'static str, text: &str) -> Result<T, MemberError> {
    let canonical =
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if !canonical {
        return Err(wrong_form(path, expected, text));
    }
    text.parse().map_err(|_| out_of_range(path, expected, text))
}

fn integer(path: &'static str, expected: &'static str, number: &serde_json::Number) -> Result<u64, MemberError> {
    number.as_u64().ok_or_else(|| out_of_range(path, expected, &number.to_string()))
}

fn out_of_range(path: &'static str, expected: &'static str, found: &str) -> MemberError {
    MemberError { path, problem: MemberProblem::Range { expected, found: Untrusted::new(found) } }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn strict(text: &str) -> Result<Value, JsonError> {
    let fault = RefCell::new(None);
    let mut deserializer = serde_json::Deserializer::from_str(text);
    Strict { depth: 0, fault: &fault }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| fault.take().unwrap_or(JsonError::Syntax(error)))
}

/// Builds a [`Value`] as serde_json does, but stops at a repeated key or beyond [`DEPTH_MAX`].
#[derive(Clone, Copy)]
struct Strict<'a> {
    depth: usize,
    /// serde's errors carry only text, so the reason goes around them.
    fault: &'a RefCell<Option<JsonError>>,
}

impl Strict<'_> {
    fn inside<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == DEPTH_MAX {
            return Err(self.fail(JsonError::TooDeep));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }

    fn fail<E: serde::de::Error>(self, fault: JsonError) -> E {
        let error = E::custom(&fault);
        self.fault.replace(Some(fault));
        error
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let inside = self.inside()?;
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(inside)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inside = self.inside()?;
        let mut object = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(self.fail(JsonError::RepeatedKey { key: Untrusted::new(key) }));
            }
            let value = members.next_value_seed(inside)?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_keys_are_refused_at_any_depth_and_in_any_spelling() {
        for text in [r#"{"a":1,"a":1}"#, r#"{"b":[{"a":1,"\u0061":2}]}"#] {
            assert!(matches!(strict(text), Err(JsonError::RepeatedKey { .. })), "{text}");
        }
        assert!(object(r#"{"a":{"b":1},"b":{"a":1}}"#).is_ok());
    }

    #[test]
    fn depth_ends_before_the_stack_does() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(strict(&nested(DEPTH_MAX)).is_ok());
        assert!(matches!(strict(&nested(DEPTH_MAX + 1)), Err(JsonError::TooDeep)));
        assert!(matches!(strict(&"[".repeat(100_000)), Err(JsonError::TooDeep)));
        assert!(matches!(strict(&r#"{"a":"#.repeat(100_000)), Err(JsonError::TooDeep)));
    }

    #[test]
    fn strict_reads_what_serde_json_reads() {
        let text = r#"{"a":[1,-2,3.5,1e300,true,null,"é\n"],"b":{"":{}}}"#;
        assert_eq!(strict(text).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        for wrong in ["", "{", "{} {}", "1e999", r#""\ud800""#, "{'a':1}", "NaN", "\u{feff}{}"] {
            assert!(matches!(strict(wrong), Err(JsonError::Syntax(_))), "{wrong}");
        }
    }
}
