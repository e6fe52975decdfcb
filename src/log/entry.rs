//! Entries: decoding and the hash chain.

use serde::Deserialize;
use std::collections::HashMap;
use uuid::Uuid;

use sha1::{Digest, Sha1};

use super::fact::Facts;
use super::wire::{Blob, Id, hex};
use crate::domain::TimestampMs;
use crate::telemetry::trace::TraceMark;

/// The version of the entry format that this build reads and the scripts write.
pub const FORMAT_VERSION: u64 = 1;

/// An entry as it stands in Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawEntry {
    pub epoch: u64,
    pub seq: u64,
    pub payload: Vec<u8>,
    /// `sha1(previous tip · payload)`, in hex.
    pub tip: String,
    /// Of the batch's requests, refused ones among them; may be empty. No part of the chain: nothing rests on it.
    pub traces: Vec<u8>,
}

/// A decoded entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub seq: u64,
    pub decided_at: TimestampMs,
    pub facts: Facts,
    /// Each fact as it stood in the entry: what an idempotency record keeps.
    pub raw_facts: Vec<Vec<u8>>,
    /// By the id of what was decided.
    pub traces: HashMap<Uuid, TraceMark>,
}

#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    #[error("the entry's format is version {0}, this build reads version {FORMAT_VERSION}: upgrade it")]
    Version(u64),
    #[error("the entry's kind `{0}` is unknown")]
    Kind(String),
    #[error("the entry cannot be decoded: {0}")]
    Decode(#[from] rmp_serde::decode::Error),
}

/// The tip that an entry with this payload has after `previous_tip`.
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
        // The version comes first, so that a later format with other fields is still recognised.
        if let Ok((version,)) = rmp_serde::from_slice::<(u64,)>(&self.payload)
            && version != FORMAT_VERSION
        {
            return Err(EntryError::Version(version));
        }
        let payload: Payload = rmp_serde::from_slice(&self.payload)?;
        if payload.version != FORMAT_VERSION {
            return Err(EntryError::Version(payload.version));
        }
        let facts = decode_facts(&payload.kind, &payload.facts)?;
        let raw_facts = payload.facts.into_iter().map(|blob| blob.0).collect();
        let traces = self.traces();
        Ok(Entry { seq: self.seq, decided_at: payload.decided_at, facts, raw_facts, traces })
    }

    fn traces(&self) -> HashMap<Uuid, TraceMark> {
        let packed: Vec<(Id, Blob, Option<String>)> = rmp_serde::from_slice(&self.traces).unwrap_or_default();
        let mut marks = HashMap::with_capacity(packed.len());
        for (id, mark) in packed.into_iter().filter_map(TraceMark::unpacked) {
            marks.entry(id).or_insert(mark); // whoever came first was decided
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
        "put_product" => Facts::ProductsPut(all(blobs)?),
        "adjust_stock" => Facts::StocksAdjusted(all(blobs)?),
        "put_template" => Facts::TemplatesPut(all(blobs)?),
        other => return Err(EntryError::Kind(other.to_owned())),
    })
}
