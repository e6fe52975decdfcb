//! MessagePack in the dialect of the scripts' `cmsgpack` library. It has strings but no binary
//! type. So [`pack`] writes bytes as strings, and [`Blob`] and [`Id`] accept both types when read.

use rmp::Marker;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use uuid::Uuid;

/// The initial capacity: large enough for nearly every request, so that the buffer rarely grows.
const USUAL_BYTES: usize = 120;

/// Packs a value in the scripts' dialect.
pub fn pack(value: &impl Serialize) -> Result<Vec<u8>, rmp_serde::encode::Error> {
    let mut packed = Vec::with_capacity(USUAL_BYTES);
    rmp_serde::encode::write(&mut packed, value)?;
    mark_bytes_as_strings(&mut packed);
    Ok(packed)
}

/// Replaces each binary marker by the string marker with the same size of length field. Only the
/// marker byte changes.
fn mark_bytes_as_strings(packed: &mut [u8]) {
    let mut at = 0;
    while at < packed.len() {
        let marker = Marker::from_u8(packed[at]);
        if let Marker::Bin8 | Marker::Bin16 | Marker::Bin32 = marker {
            packed[at] += Marker::Str8.to_u8() - Marker::Bin8.to_u8();
        }
        let length = |bytes: usize| {
            let field = packed.get(at + 1..at + 1 + bytes).unwrap_or_default();
            bytes + field.iter().fold(0, |n, byte| n << 8 | usize::from(*byte))
        };
        at += 1 + match marker {
            Marker::FixStr(n) => usize::from(n),
            Marker::Str8 | Marker::Bin8 => length(1),
            Marker::Str16 | Marker::Bin16 => length(2),
            Marker::Str32 | Marker::Bin32 => length(4),
            Marker::U8 | Marker::I8 => 1,
            Marker::U16 | Marker::I16 | Marker::Array16 | Marker::Map16 => 2,
            Marker::U32 | Marker::I32 | Marker::F32 | Marker::Array32 | Marker::Map32 => 4,
            Marker::U64 | Marker::I64 | Marker::F64 => 8,
            // All other markers have no content, or are followed by their elements.
            _ => 0,
        };
    }
}

struct AnyBytes;

impl<'de> Visitor<'de> for AnyBytes {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a string or bytes")
    }
    fn visit_bytes<E: Error>(self, v: &[u8]) -> Result<Vec<u8>, E> {
        Ok(v.to_vec())
    }
    fn visit_byte_buf<E: Error>(self, v: Vec<u8>) -> Result<Vec<u8>, E> {
        Ok(v)
    }
    fn visit_str<E: Error>(self, v: &str) -> Result<Vec<u8>, E> {
        Ok(v.as_bytes().to_vec())
    }
    fn visit_string<E: Error>(self, v: String) -> Result<Vec<u8>, E> {
        Ok(v.into_bytes())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Vec<u8>, A::Error> {
        Err(A::Error::custom("expected bytes, found a list"))
    }
}

/// Bytes borrowed from the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packed<'a>(pub &'a [u8]);

impl<'de: 'a, 'a> Deserialize<'de> for Packed<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct InPlace;
        impl<'de> Visitor<'de> for InPlace {
            type Value = &'de [u8];
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string or bytes")
            }
            fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<&'de [u8], E> {
                Ok(bytes)
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<&'de [u8], E> {
                Ok(text.as_bytes())
            }
        }
        d.deserialize_any(InPlace).map(Packed)
    }
}

/// Owned bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Blob(pub Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(AnyBytes).map(Blob)
    }
}

/// A UUID, packed as its 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub Uuid);

impl Id {
    /// A new UUIDv7 of the current time.
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// A new UUIDv7 of the given time, in milliseconds since the Unix epoch.
    pub fn at(ms: i64) -> Self {
        let ms = u64::try_from(ms).unwrap_or(0);
        let nanos = u32::try_from(ms % 1_000 * 1_000_000).unwrap_or(0);
        Self(Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, ms / 1_000, nanos)))
    }
}

impl Default for Id {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(self.0.as_bytes())
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Sixteen;
        impl Visitor<'_> for Sixteen {
            type Value = Id;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("the 16 bytes of an id")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Id, E> {
                Uuid::from_slice(bytes).map(Id).map_err(|_| E::invalid_length(bytes.len(), &self))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Id, E> {
                self.visit_bytes(text.as_bytes())
            }
        }
        d.deserialize_any(Sixteen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_packed_as_strings_wherever_they_stand() {
        let id = Id(Uuid::from_bytes([0xc4; 16]));
        let long = Blob(vec![0xc5; 300]);
        let value = (1_000_000u64, "한글", vec![(id, -5i64)], long, None::<u64>, true, 70_000u64);
        let packed = pack(&value).unwrap();
        let strings =
            packed.windows(2).filter(|w| w[0] == Marker::Str8.to_u8() && w[1] == 16).count();
        assert_eq!(strings, 1, "the id is a string of 16 bytes");
        assert!(
            packed.windows(3).any(|w| w == [Marker::Str16.to_u8(), 1, 44]),
            "the blob is one of 300"
        );
        let (number, text, ids, blob): (u64, String, Vec<(Id, i64)>, Blob) =
            rmp_serde::from_slice(&pack(&(value.0, value.1, &value.2, &value.3)).unwrap()).unwrap();
        assert_eq!((number, text.as_str(), ids, blob), (value.0, value.1, value.2, value.3));
    }

    #[test]
    fn ids_and_blobs_read_both_marks() {
        for bytes in [[0x41u8; 16], [0xffu8; 16]] {
            let id = Id(Uuid::from_bytes(bytes));
            let as_binary = rmp_serde::to_vec(&id).unwrap();
            assert_eq!(rmp_serde::from_slice::<Id>(&as_binary).unwrap(), id);
            // cmsgpack writes a string marker (0xa0 | 16) before any bytes.
            let mut as_string = vec![0xa0 | 16];
            as_string.extend(bytes);
            assert_eq!(rmp_serde::from_slice::<Id>(&as_string).unwrap(), id);
            assert_eq!(rmp_serde::from_slice::<Blob>(&as_string).unwrap().0, bytes);
        }
        assert!(rmp_serde::from_slice::<Id>(&[0xa1, 0x41]).is_err());
    }
}
