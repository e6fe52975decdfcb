//! MessagePack helpers. The scripts' `cmsgpack` has one string type, so bytes that come back from Lua may be marked as
//! a string or as binary; these types accept both.

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use uuid::Uuid;

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

/// Bytes, written as binary, read from binary or string.
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

/// A UUID as its 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub Uuid);

impl Id {
    /// A new UUIDv7.
    pub fn new() -> Self {
        Self(Uuid::now_v7())
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
        let bytes = d.deserialize_any(AnyBytes)?;
        Uuid::from_slice(&bytes).map(Id).map_err(|_| D::Error::custom("an id must have 16 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_blobs_read_both_marks() {
        for bytes in [[0x41u8; 16], [0xffu8; 16]] {
            let id = Id(Uuid::from_bytes(bytes));
            let as_binary = rmp_serde::to_vec(&id).unwrap();
            assert_eq!(rmp_serde::from_slice::<Id>(&as_binary).unwrap(), id);
            // what cmsgpack writes: a string mark (0xa0 | 16) before any bytes
            let mut as_string = vec![0xa0 | 16];
            as_string.extend(bytes);
            assert_eq!(rmp_serde::from_slice::<Id>(&as_string).unwrap(), id);
            assert_eq!(rmp_serde::from_slice::<Blob>(&as_string).unwrap().0, bytes);
        }
        assert!(rmp_serde::from_slice::<Id>(&[0xa1, 0x41]).is_err());
    }
}
