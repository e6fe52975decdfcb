//! The encoding of a batch for a deciding script: one flat MessagePack list with the values of all
//! requests, one request after the other. The header of `lua/shared/batch.lua` describes the
//! format.
//!
//! A [`Batch`] collects requests with [`Batch::add`] and becomes the script's second argument with
//! [`Batch::into_bytes`]. Its [`Batch::shape`] goes into the first argument.

use rmp::encode as msgpack;
use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};

use crate::domain::Line;

/// MessagePack markers: `fixarray`, with up to 15 values, and `array 32`, with its length in the
/// next four bytes.
const SHORT_LIST: u8 = 0x90;
const LONG_LIST: u8 = 0xdd;
/// The values of each request before its body: deadline and idempotency key.
const VALUES_BEFORE_BODY: u8 = 2;

/// The body is not a list of at most 15 values, or has another length than the bodies before it.
/// Such a batch must not be sent: its verdicts would be matched to the wrong requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body of a request does not have the format that its script expects")]
pub struct BadBody;

/// Requests for one script. All bodies have the same number of values.
#[derive(Clone, Debug)]
pub struct Batch {
    requests: u32,
    values_each: u8,
    list: Vec<u8>,
}

impl Batch {
    /// Reserves `bytes` for the keys and bodies.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut list = Vec::with_capacity(bytes + 5);
        list.extend_from_slice(&[LONG_LIST, 0, 0, 0, 0]);
        Self { requests: 0, values_each: VALUES_BEFORE_BODY, list }
    }

    /// `key`: MessagePack `[scope, request hash]`. `body`: a MessagePack list of at most 15 values.
    pub fn add(
        &mut self,
        deadline_ms: i64,
        key: Option<&[u8]>,
        body: &[u8],
    ) -> Result<(), BadBody> {
        let Some((mark @ SHORT_LIST..=0x9f, values)) = body.split_first() else {
            return Err(BadBody);
        };
        let values_each = VALUES_BEFORE_BODY + (mark - SHORT_LIST);
        if self.requests > 0 && values_each != self.values_each {
            return Err(BadBody);
        }
        self.values_each = values_each;
        self.requests += 1;
        let _ = msgpack::write_sint(&mut self.list, deadline_ms); // writing to a Vec cannot fail
        match key {
            Some(key) => self.list.extend_from_slice(key),
            None => self.list.extend_from_slice(NIL),
        }
        self.list.extend_from_slice(values);
        Ok(())
    }

    /// The number of requests and the values per request, for the script's head argument.
    pub fn shape(&self) -> (u32, u8) {
        (self.requests, self.values_each)
    }

    pub fn into_bytes(mut self) -> Vec<u8> {
        let values = self.requests * u32::from(self.values_each);
        self.list[1..5].copy_from_slice(&values.to_be_bytes());
        self.list
    }
}

const NIL: &[u8] = &[0xc0];

/// The lines of an order in the scripts' format: product, quantity, product, quantity, …
pub struct FlatLines<'a>(pub &'a [Line]);

impl Serialize for FlatLines<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len() * 2))?;
        for line in self.0 {
            list.serialize_element(line.product_id.as_str())?;
            list.serialize_element(&line.quantity)?;
        }
        list.end()
    }
}

/// The same, of borrowed pairs.
pub struct FlatPairs<'a>(pub &'a [(&'a str, u64)]);

impl Serialize for FlatPairs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len() * 2))?;
        for (product, quantity) in self.0 {
            list.serialize_element(product)?;
            list.serialize_element(quantity)?;
        }
        list.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::wire::pack;

    #[test]
    fn requests_stand_one_after_the_other() {
        let mut batch = Batch::with_capacity(0);
        batch.add(7, None, &pack(&("a", 1)).unwrap()).unwrap();
        let (key, body) = (pack(&("scope", "hash")).unwrap(), pack(&("b", None::<u64>)).unwrap());
        batch.add(8, Some(&key), &body).unwrap();
        assert_eq!(batch.shape(), (2, 4));
        type Values<'a> =
            (u8, Option<()>, &'a str, u8, u8, (&'a str, &'a str), &'a str, Option<u8>);
        let bytes = batch.into_bytes();
        let values: Values<'_> = rmp_serde::from_slice(&bytes).unwrap();
        assert_eq!(values, (7, None, "a", 1, 8, ("scope", "hash"), "b", None));
    }

    #[test]
    fn what_would_move_the_verdicts_of_others_is_not_taken() {
        let mut batch = Batch::with_capacity(0);
        batch.add(7, None, &pack(&("a", 1)).unwrap()).unwrap();
        let before = batch.clone().into_bytes();
        for bad in
            [pack(&("a",)).unwrap(), pack(&("a", 1, 2)).unwrap(), pack(&"a").unwrap(), vec![]]
        {
            assert_eq!(batch.add(7, None, &bad), Err(BadBody), "{bad:02x?}");
        }
        assert_eq!((batch.shape(), batch.into_bytes()), ((1, 4), before));
    }

    #[test]
    fn an_empty_batch_has_no_step_of_nothing() {
        // The script loops in steps of this size; a step of 0 would never end.
        assert_eq!(Batch::with_capacity(0).shape(), (0, VALUES_BEFORE_BODY));
    }
}
