//! The decoding of log entries, and their hash chain. A [`RawEntry`] is read from Redis, checked
//! with [`RawEntry::follows`], and decoded into an [`Entry`].

use serde::Deserialize;
use std::collections::HashMap;
use uuid::Uuid;

use sha1::{Digest, Sha1};

use crate::domain::TimestampMs;
use crate::domain::fact::Facts;
use crate::domain::hex::hex;
use crate::domain::trace_mark::TraceMark;
use crate::domain::wire::{Blob, Id};

/// The latest version of the entry format that this build reads. Its scripts write version 1 for
/// entries without anything that is new in version 2: kinds and fields, see [`crate::domain::fact`].
pub const FORMAT_VERSION: u64 = 2;

/// An entry as stored in Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawEntry {
    pub epoch: u64,
    pub seq: u64,
    pub payload: Vec<u8>,
    /// `sha1(previous tip · payload)`, in hex.
    pub tip: String,
    /// The traces of the batch's requests, including refused ones; may be empty. They are not part
    /// of the hash chain, since no decision depends on them.
    pub traces: Vec<u8>,
}

/// A decoded entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub seq: u64,
    /// The version of its format.
    pub version: u64,
    pub decided_at: TimestampMs,
    pub facts: Facts,
    /// The bytes of each fact, as an idempotency record stores them.
    pub raw_facts: Vec<Vec<u8>>,
    /// By the id of the order that was placed or cancelled.
    pub traces: HashMap<Uuid, TraceMark>,
}

#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    #[error(
        "the entry has format version {0}, but this build reads versions up to {FORMAT_VERSION}: upgrade Rushgate"
    )]
    Version(u64),
    #[error("the entry's kind `{0}` is unknown")]
    Kind(String),
    #[error("the entry cannot be decoded: {0}")]
    Decode(#[from] rmp_serde::decode::Error),
}

/// The tip of an entry with this payload that follows `previous_tip`.
pub fn chain_tip(previous_tip: &str, payload: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(previous_tip.as_bytes());
    hash.update(payload);
    hex(&hash.finalize())
}

/// The tip of an epoch's empty log.
pub fn genesis_tip(cell: u32, epoch: u64) -> String {
    chain_tip("", format!("rushgate {cell} {epoch}").as_bytes())
}

impl RawEntry {
    pub fn follows(&self, previous_tip: &str) -> bool {
        self.tip == chain_tip(previous_tip, &self.payload)
    }

    pub fn decode(&self) -> Result<Entry, EntryError> {
        #[derive(Deserialize)]
        struct Payload {
            version: u64,
            kind: String,
            decided_at: TimestampMs,
            facts: Vec<Blob>,
        }
        // The version comes first, so that an entry of a later format is reported as such even if
        // its fields differ.
        if let Ok((version,)) = rmp_serde::from_slice::<(u64,)>(&self.payload)
            && !(1..=FORMAT_VERSION).contains(&version)
        {
            return Err(EntryError::Version(version));
        }
        let mut payload: Payload = rmp_serde::from_slice(&self.payload)?;
        let facts = decode_facts(&payload.kind, &payload.facts)?;
        let raw_facts = std::mem::take(&mut payload.facts).into_iter().map(|blob| blob.0).collect();
        let traces = self.traces();
        let Payload { version, decided_at, .. } = payload;
        Ok(Entry { seq: self.seq, version, decided_at, facts, raw_facts, traces })
    }

    fn traces(&self) -> HashMap<Uuid, TraceMark> {
        let packed: Vec<(Id, Blob, Option<String>)> =
            rmp_serde::from_slice(&self.traces).unwrap_or_default();
        let mut marks = HashMap::with_capacity(packed.len());
        for (id, mark) in packed.into_iter().filter_map(TraceMark::unpacked) {
            // Of several requests for one order, the first was decided.
            marks.entry(id).or_insert(mark);
        }
        marks
    }
}

fn decode_facts(kind: &str, blobs: &[Blob]) -> Result<Facts, EntryError> {
    fn all<T: serde::de::DeserializeOwned>(blobs: &[Blob]) -> Result<Vec<T>, EntryError> {
        blobs.iter().map(|blob| Ok(rmp_serde::from_slice(&blob.0)?)).collect()
    }
    Ok(match kind {
        "issue_coupon" => Facts::CouponsIssued(all(blobs)?),
        "charge_wallet" => Facts::WalletsCharged(all(blobs)?),
        "place_order" => Facts::OrdersPlaced(all(blobs)?),
        "cancel_order" => Facts::OrdersCancelled(all(blobs)?),
        "confirm_order" => Facts::OrdersConfirmed(all(blobs)?),
        "expire_order" => Facts::OrdersExpired(all(blobs)?),
        "put_product" => Facts::ProductsPut(all(blobs)?),
        "adjust_stock" => Facts::StocksAdjusted(all(blobs)?),
        "put_template" => Facts::TemplatesPut(all(blobs)?),
        other => return Err(EntryError::Kind(other.to_owned())),
    })
}
