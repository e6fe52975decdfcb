//! Reading a cell's log, on connections of its own so that a blocking read holds up nobody.

use bytes::Bytes;
use fred::interfaces::{KeysInterface, StreamsInterface};
use fred::prelude::*;
use std::collections::HashMap;

use super::RawEntry;
use crate::config::bounds::LOG_POLL;
use crate::gate::RedisSetupError;
use crate::gate::cell::Meta;
use crate::gate::keys::Keys;
use crate::gate::redis::connect;

/// One stream element: its id and fields.
type Element = (String, HashMap<String, Bytes>);

/// Redis did not answer, or answered something that is no log.
#[derive(Debug, thiserror::Error)]
#[error("Redis: {0}")]
pub struct LogError(pub String);

impl From<Error> for LogError {
    fn from(e: Error) -> Self {
        Self(e.details().to_owned())
    }
}

/// Reads the log of one cell. A clone uses the same connections.
#[derive(Clone)]
pub struct LogReader {
    pub cell: u32,
    /// For commands that answer at once.
    pub client: Client,
    blocking: Client,
}

impl LogReader {
    pub async fn connect(redis_url: &str, cell: u32) -> Result<Self, RedisSetupError> {
        Ok(Self { cell, client: connect(redis_url).await?, blocking: connect(redis_url).await? })
    }

    pub async fn meta(&self) -> Result<Meta, LogError> {
        Ok(Meta::read(&self.client, self.cell).await?)
    }

    /// See [`entries_after`].
    pub async fn after(&self, epoch: u64, seq: u64, count: u64) -> Result<Vec<RawEntry>, LogError> {
        entries_after(&self.client, self.cell, epoch, seq, count).await
    }

    /// Returns when there is an entry after `seq`, or after a short time.
    pub async fn wait_after(&self, epoch: u64, seq: u64) -> Result<(), LogError> {
        let key = Keys::new(self.cell, epoch).log();
        let block_ms = u64::try_from(LOG_POLL.as_millis()).unwrap_or(u64::MAX);
        let _: Value = self.blocking.xread(Some(1), Some(block_ms), key, format!("{epoch}-{seq}")).await?;
        Ok(())
    }

    /// Removes what an abandoned rebuild has left under `epoch`.
    pub async fn unlink_epoch(&self, epoch: u64) -> Result<(), LogError> {
        self.unlink_where(&format!("rg:{{{}}}:{epoch}:*", self.cell), |_, _| true).await
    }

    /// Removes all keys of epochs before `epoch`.
    pub async fn unlink_before(&self, epoch: u64) -> Result<(), LogError> {
        self.unlink_where(&format!("rg:{{{}}}:*", self.cell), |key_epoch, _| key_epoch < epoch).await
    }

    /// Removes the idempotency buckets of days before `day`.
    pub async fn unlink_records_before(&self, epoch: u64, day: i64) -> Result<(), LogError> {
        let pattern = format!("rg:{{{}}}:{epoch}:idem:*", self.cell);
        self.unlink_where(&pattern, |_, last| last.parse::<i64>().is_ok_and(|d| d < day)).await
    }

    /// `chosen` gets a key's epoch and its last part.
    async fn unlink_where(&self, pattern: &str, chosen: impl Fn(u64, &str) -> bool) -> Result<(), LogError> {
        let mut cursor = String::from("0");
        loop {
            let (next, keys): (String, Vec<String>) =
                self.client.scan_page(cursor, pattern.to_owned(), Some(1_000), None).await?;
            let doomed: Vec<String> = keys
                .into_iter()
                .filter(|key| {
                    let mut parts = key.split(':').skip(2);
                    let epoch = parts.next().and_then(|e| e.parse().ok());
                    epoch.is_some_and(|epoch| chosen(epoch, parts.last().unwrap_or("")))
                })
                .collect();
            if !doomed.is_empty() {
                let _: i64 = self.client.unlink(doomed).await?;
            }
            if next == "0" {
                return Ok(());
            }
            cursor = next;
        }
    }
}

/// Up to `count` entries after `seq`, in order, up to the first element that is no entry. A log that is missing, or that
/// is no stream, has none.
pub async fn entries_after(
    client: &Client,
    cell: u32,
    epoch: u64,
    seq: u64,
    count: u64,
) -> Result<Vec<RawEntry>, LogError> {
    let key = Keys::new(cell, epoch).log();
    let start = format!("({epoch}-{seq}");
    let elements: Vec<Element> = match client.xrange_values(key, start, "+", Some(count)).await {
        Err(e) if e.details().starts_with("WRONGTYPE") => Vec::new(),
        other => other?,
    };
    Ok(elements.into_iter().map_while(entry).collect())
}

/// `None`: somebody else has put this into the log.
fn entry((id, mut fields): Element) -> Option<RawEntry> {
    let (epoch, seq) = id.split_once('-')?;
    Some(RawEntry {
        epoch: epoch.parse().ok()?,
        seq: seq.parse().ok()?,
        payload: fields.remove("p")?.to_vec(),
        tip: String::from_utf8(fields.remove("t")?.to_vec()).ok()?,
        traces: fields.remove("x").unwrap_or_default().to_vec(),
    })
}
