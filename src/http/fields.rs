//! Types for the members of request bodies. Deserializing checks the contract's bounds, so a parsed
//! value is within them.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error, MapAccess, Visitor};
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaFormat, SchemaType, Type};
use utoipa::openapi::{KnownFormat, RefOr};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

use crate::domain::TimestampMs;
use crate::domain::limits::{MAX_ATTRIBUTE_NAME_CHARS, MAX_ATTRIBUTES_BYTES, MAX_NAME_CHARS};

/// A JSON object. (A derived `Deserialize` would also accept an array of the members' values.)
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(members)).map(Object)
            }
        }
        deserializer.deserialize_map(Members(PhantomData))
    }
}

impl<T: ToSchema> PartialSchema for Object<T> {
    fn schema() -> RefOr<Schema> {
        T::schema()
    }
}

impl<T: ToSchema> ToSchema for Object<T> {
    fn name() -> std::borrow::Cow<'static, str> {
        T::name()
    }
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        T::schemas(schemas);
    }
}

/// One of the words that an enumeration serializes to. (A derived `Deserialize` would also accept
/// `{"word": null}`.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnumStr<T>(pub T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for EnumStr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        T::deserialize(StrDeserializer::<D::Error>::new(&word)).map(EnumStr)
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntRange<const MIN: i64, const MAX: i64>(i64);

impl<const MIN: i64, const MAX: i64> IntRange<MIN, MAX> {
    pub fn get(self) -> u64 {
        self.0.unsigned_abs()
    }

    /// The value, for ranges that begin below zero.
    pub fn signed(self) -> i64 {
        self.0
    }
}

impl<'de, const MIN: i64, const MAX: i64> Deserialize<'de> for IntRange<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number<const MIN: i64, const MAX: i64>;
        impl<const MIN: i64, const MAX: i64> Number<MIN, MAX> {
            fn rule<E: Error>() -> E {
                E::custom(format_args!("must be a whole number from {MIN} to {MAX}"))
            }
        }
        impl<const MIN: i64, const MAX: i64> Visitor<'_> for Number<MIN, MAX> {
            type Value = IntRange<MIN, MAX>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "a whole number from {MIN} to {MAX}")
            }
            fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
                if (MIN..=MAX).contains(&value) { Ok(IntRange(value)) } else { Err(Self::rule()) }
            }
            fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
                i64::try_from(value)
                    .map_or_else(|_| Err(Self::rule()), |value| self.visit_i64(value))
            }
        }
        deserializer.deserialize_i64(Number)
    }
}

impl<const MIN: i64, const MAX: i64> PartialSchema for IntRange<MIN, MAX> {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::Integer))
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
            .minimum(Some(MIN))
            .maximum(Some(MAX))
            .into()
    }
}

impl<const MIN: i64, const MAX: i64> ToSchema for IntRange<MIN, MAX> {}

/// A limit of the domain as a type parameter of [`IntRange`].
pub const fn bound(limit: u64) -> i64 {
    // All bounds stay far below 2^53 (see `domain::limits`).
    limit.cast_signed()
}

/// A name or a reason: 1 to 200 characters, without control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(pub String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let chars = text.chars().count();
        if chars == 0 || chars > MAX_NAME_CHARS || text.chars().any(char::is_control) {
            let rule =
                format_args!("must be 1 to {MAX_NAME_CHARS} characters without control characters");
            return Err(D::Error::custom(rule));
        }
        Ok(Self(text))
    }
}

/// 1 to `MAX` printable ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Printable<const MAX: usize>(pub String);

impl<const MAX: usize> Printable<MAX> {
    pub fn rule() -> String {
        format!("must be 1 to {MAX} printable ASCII characters")
    }

    pub fn parse(text: &str) -> Option<Self> {
        let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        ((1..=MAX).contains(&text.len()) && printable).then(|| Self(text.to_owned()))
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Printable<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom(Self::rule()))
    }
}

/// Attributes of a product: an object of strings, with names like ids and bounded as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes(pub BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Attributes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = BTreeMap<String, String>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
                let mut all = BTreeMap::new();
                while let Some((name, value)) = members.next_entry::<String, String>()? {
                    if !is_attribute_name(&name) {
                        return Err(A::Error::custom(format_args!(
                            "names must be 1 to {MAX_ATTRIBUTE_NAME_CHARS} of A-Z a-z 0-9 . _ -"
                        )));
                    }
                    if all.insert(name, value).is_some() {
                        return Err(A::Error::custom("has a name twice"));
                    }
                }
                Ok(all)
            }
        }
        let all = deserializer.deserialize_map(Members)?;
        if Self(all.clone()).json().len() > MAX_ATTRIBUTES_BYTES {
            let rule = format_args!("must be at most {MAX_ATTRIBUTES_BYTES} bytes of JSON");
            return Err(D::Error::custom(rule));
        }
        Ok(Self(all))
    }
}

impl Attributes {
    /// Equal attributes are equal texts.
    pub fn json(&self) -> String {
        serde_json::to_string(&self.0).unwrap_or_default()
    }
}

fn is_attribute_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_ATTRIBUTE_NAME_CHARS).contains(&name.len()) && name.bytes().all(plain)
}

/// A point in time, in any offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rfc3339(pub TimestampMs);

impl Rfc3339 {
    pub const RULE: &str = "must be a time like 2026-11-22T09:00:00Z (RFC 3339), from 1970 on";

    pub fn from_text(text: &str) -> Option<Self> {
        // jiff accepts more than RFC 3339: annotations such as [Asia/Seoul].
        let parsed = if text.contains('[') { None } else { text.parse::<jiff::Timestamp>().ok() };
        parsed.map(jiff::Timestamp::as_millisecond).filter(|ms| *ms >= 0).map(Self)
    }
}

impl<'de> Deserialize<'de> for Rfc3339 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_text(&text).ok_or_else(|| D::Error::custom(Self::RULE))
    }
}

/// A UUID in its usual form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UuidText(pub Uuid);

impl<'de> Deserialize<'de> for UuidText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_uuid(&text).map(Self).ok_or_else(|| D::Error::custom("must be a UUID"))
    }
}

/// Accepts `8-4-4-4-12` hexadecimal digits only; the library accepts other spellings, too.
pub fn parse_uuid(text: &str) -> Option<Uuid> {
    if text.len() == 36 { Uuid::try_parse(text).ok() } else { None }
}

/// The schema of an id that the shop chooses.
pub struct ShopId;

impl PartialSchema for ShopId {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::String))
            .description(Some("An id that the shop chooses."))
            .min_length(Some(1))
            .max_length(Some(64))
            .pattern(Some("^[A-Za-z0-9._-]{1,64}$"))
            .into()
    }
}

impl ToSchema for ShopId {}
