//! Reads a cell's log. A [`LogReader`] has its own connections, so that its blocking reads do not
//! delay decisions or API reads.
//!
//! Every read is bounded by bytes, not by entries: an entry holds a whole batch and may be many
//! megabytes. The bound adapts to the throughput of the link (`Reach`), so that a call stays within
//! its time limit. An entry larger than the bound is read in parts.

use bytes::Bytes;
use fred::interfaces::{KeysInterface, StreamsInterface};
use fred::prelude::*;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::RawEntry;
use crate::config::bounds::{
    LOG_LARGE_ENTRY_BYTES, LOG_LOOK, LOG_POLL, LOG_READ_BYTES, LOG_READ_BYTES_LEAST,
    LOG_READ_SHOULD_TAKE,
};
use crate::domain::TimestampMs;
use crate::redis::RedisSetupError;
use crate::redis::connect::connect;
use crate::redis::control::READ_LOG;
use crate::redis::keys::Keys;
use crate::redis::meta::Meta;

/// The element that opens an epoch's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    pub tip: String,
    /// PostgreSQL's cursor when the epoch was opened: epoch, seq and tip. `None` if an earlier
    /// version has written the element.
    pub origin: Option<(u64, u64, String)>,
}

impl Opening {
    /// The stored format of the origin.
    pub fn origin_text(epoch: u64, seq: u64, tip: &str) -> String {
        format!("{epoch}-{seq} {tip}")
    }

    fn parse(fields: &HashMap<String, Bytes>) -> Option<Self> {
        let text = |name: &str| String::from_utf8(fields.get(name)?.to_vec()).ok();
        let origin = text("o").and_then(|text| {
            let (place, tip) = text.split_once(' ')?;
            let (epoch, seq) = place.split_once('-')?;
            Some((epoch.parse().ok()?, seq.parse().ok()?, tip.to_owned()))
        });
        Some(Self { tip: text("t")?, origin })
    }
}

/// Redis did not answer, or its answer is not part of a log.
#[derive(Debug, thiserror::Error)]
#[error("Redis: {0}")]
pub struct LogError(pub String);

impl From<Error> for LogError {
    fn from(e: Error) -> Self {
        Self(e.details().to_owned())
    }
}

/// Reads the log of one cell. Clones share the connections.
#[derive(Clone)]
pub struct LogReader {
    pub cell: u32,
    /// For commands that do not block.
    pub client: Client,
    blocking: Client,
    reach: Arc<Reach>,
    /// Whether one of the entries read last was large.
    large: Arc<AtomicBool>,
}

/// Consecutive entries, and whether more may follow.
#[derive(Debug)]
pub struct Page {
    pub entries: Vec<RawEntry>,
    pub more: bool,
}

impl LogReader {
    pub async fn connect(redis_url: &str, cell: u32) -> Result<Self, RedisSetupError> {
        let (client, blocking) = (connect(redis_url).await?, connect(redis_url).await?);
        Ok(Self { cell, client, blocking, reach: Arc::default(), large: Arc::default() })
    }

    pub async fn meta(&self) -> Result<Meta, LogError> {
        Ok(Meta::read(&self.client, self.cell).await?)
    }

    /// Up to `count` entries after `seq`, in order, of at most `bytes` in total, but at least one
    /// entry if there is any. Stops before the first element that is not an entry.
    pub async fn page(
        &self,
        epoch: u64,
        seq: u64,
        count: u64,
        bytes: usize,
    ) -> Result<Page, LogError> {
        let mut part = Part::after(epoch, seq, count, bytes);
        let mut read = self.read(&part).await?;
        while let Some(begun) = read.unfinished() {
            part = Part { read_before: begun.text.len(), count: 1, bytes: LOG_READ_BYTES, ..part };
            let more = self.read(&part).await?;
            read.go_on(more)?;
        }
        let large = |entry: &Found| entry.text.len() >= LOG_LARGE_ENTRY_BYTES;
        if !read.found.is_empty() {
            self.large.store(read.found.iter().any(large), Ordering::Relaxed);
        }
        Ok(read.into_page())
    }

    /// Up to `count` entries after `seq`, in order, without a limit on bytes.
    pub async fn after(&self, epoch: u64, seq: u64, count: u64) -> Result<Vec<RawEntry>, LogError> {
        let mut entries: Vec<RawEntry> = Vec::new();
        loop {
            let last = entries.last().map_or(seq, |entry| entry.seq);
            let left = count - entries.len() as u64;
            let page = self.page(epoch, last, left, LOG_READ_BYTES).await?;
            let (came, more) = (page.entries.len() as u64, page.more);
            entries.extend(page.entries);
            if came == 0 || came == left || !more {
                return Ok(entries);
            }
        }
    }

    /// One call. After a timeout, repeats it with fewer bytes.
    async fn read(&self, part: &Part) -> Result<Read, LogError> {
        loop {
            let (most, begun) = (self.reach.bytes().min(part.bytes), Instant::now());
            let outcome = part.call(&self.client, self.cell, most).await;
            let shorter = self.reach.learn(begun.elapsed(), outcome.is_ok());
            match outcome {
                Err(e) if *e.kind() == ErrorKind::Timeout && shorter => {}
                other => return Read::of(other?),
            }
        }
    }

    /// The epochs whose logs Redis holds, in ascending order.
    pub async fn epochs(&self) -> Result<Vec<u64>, LogError> {
        let (mut epochs, mut cursor) = (BTreeSet::new(), String::from("0"));
        loop {
            let pattern = format!("rg:{{{}}}:*:log", self.cell);
            let (next, keys): (String, Vec<String>) =
                self.client.scan_page(cursor, pattern, Some(1_000), None).await?;
            epochs.extend(keys.iter().filter_map(|key| key.split(':').nth(2)?.parse::<u64>().ok()));
            if next == "0" {
                return Ok(epochs.into_iter().collect());
            }
            cursor = next;
        }
    }

    /// The element that opens an epoch's log; `None` if it was trimmed.
    pub async fn opening(&self, epoch: u64) -> Result<Option<Opening>, LogError> {
        let (key, id) = (Keys::new(self.cell, epoch).log(), format!("{epoch}-0"));
        let elements: Vec<(String, HashMap<String, Bytes>)> =
            match self.client.xrange_values(key, id.as_str(), id.as_str(), Some(1)).await {
                Err(e) if e.details().starts_with("WRONGTYPE") => Vec::new(),
                other => other?,
            };
        Ok(elements.into_iter().next().and_then(|(_, fields)| Opening::parse(&fields)))
    }

    /// Returns when there is an entry after `seq`, at the latest after `LOG_POLL`.
    pub async fn wait_after(&self, epoch: u64, seq: u64) -> Result<(), LogError> {
        if self.large.load(Ordering::Relaxed) {
            return self.look_after(epoch, seq).await;
        }
        let key = Keys::new(self.cell, epoch).log();
        let block_ms = u64::try_from(LOG_POLL.as_millis()).unwrap_or(u64::MAX);
        let waited: Result<Value, Error> =
            self.blocking.xread(Some(1), Some(block_ms), key, format!("{epoch}-{seq}")).await;
        match waited {
            // There is an entry, but it is too large to be read within the time limit.
            Err(e) if *e.kind() == ErrorKind::Timeout => self.large.store(true, Ordering::Relaxed),
            other => drop(other?),
        }
        Ok(())
    }

    /// As [`Self::wait_after`], but polls `meta` instead of reading the entry.
    async fn look_after(&self, epoch: u64, seq: u64) -> Result<(), LogError> {
        let until = Instant::now() + LOG_POLL;
        loop {
            let meta = self.meta().await?;
            if (meta.epoch, meta.seq) != (epoch, seq) || Instant::now() >= until {
                return Ok(());
            }
            tokio::time::sleep(LOG_LOOK).await;
        }
    }

    /// Removes all keys of `epoch`, which an abandoned rebuild has left behind.
    pub async fn unlink_epoch(&self, epoch: u64) -> Result<(), LogError> {
        self.unlink_where(&format!("rg:{{{}}}:{epoch}:*", self.cell), |_, _| true).await
    }

    /// Removes all keys of epochs before `epoch`.
    pub async fn unlink_before(&self, epoch: u64) -> Result<(), LogError> {
        self.unlink_where(&format!("rg:{{{}}}:*", self.cell), |key_epoch, _| key_epoch < epoch)
            .await
    }

    /// Removes the idempotency buckets of days before `day`.
    pub async fn unlink_records_before(&self, epoch: u64, day: i64) -> Result<(), LogError> {
        let pattern = format!("rg:{{{}}}:{epoch}:idem:*", self.cell);
        self.unlink_where(&pattern, |_, last| last.parse::<i64>().is_ok_and(|d| d < day)).await
    }

    /// Removes the keys that `chosen` selects by their epoch and the last part of their name.
    async fn unlink_where(
        &self,
        pattern: &str,
        chosen: impl Fn(u64, &str) -> bool,
    ) -> Result<(), LogError> {
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

/// When the entry after `seq` was decided. Reads only the beginning of the entry. `None`: there is
/// no further element, or it is not an entry.
pub async fn decided_after(
    client: &Client,
    cell: u32,
    epoch: u64,
    seq: u64,
) -> Result<Option<TimestampMs>, LogError> {
    /// The version, kind and time are within the first bytes of a payload.
    const HEAD_BYTES: usize = 64;
    let answer = Part::after(epoch, seq, 1, HEAD_BYTES).call(client, cell, HEAD_BYTES).await?;
    Ok(Read::of(answer)?.found.pop().and_then(|entry| decided_at(&entry.text)))
}

/// Parses `decided_at` from the beginning of a payload.
fn decided_at(mut payload: &[u8]) -> Option<TimestampMs> {
    rmp::decode::read_array_len(&mut payload).ok()?;
    let _version: u64 = rmp::decode::read_int(&mut payload).ok()?;
    let kind = rmp::decode::read_str_len(&mut payload).ok()?;
    let mut rest = payload.get(usize::try_from(kind).ok()?..)?;
    rmp::decode::read_int(&mut rest).ok()
}

/// The number of bytes that a call asks for, adapted to the throughput of the link.
struct Reach(AtomicUsize);

impl Default for Reach {
    fn default() -> Self {
        Self(AtomicUsize::new(LOG_READ_BYTES))
    }
}

impl Reach {
    fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Halves the number after a slow or failed call, since a large reply on a slow link may have
    /// caused the failure. Doubles it after a fast call. Returns whether the next call asks for
    /// less.
    fn learn(&self, took: Duration, answered: bool) -> bool {
        let now = self.bytes();
        let next = if !answered || took > LOG_READ_SHOULD_TAKE {
            (now / 2).max(LOG_READ_BYTES_LEAST)
        } else if took < LOG_READ_SHOULD_TAKE / 4 {
            (now * 2).min(LOG_READ_BYTES)
        } else {
            now
        };
        self.0.store(next, Ordering::Relaxed);
        next < now
    }
}

/// The arguments of one read; see `lua/read_log.lua`.
struct Part {
    epoch: u64,
    seq: u64,
    count: u64,
    bytes: usize,
    read_before: usize,
}

impl Part {
    fn after(epoch: u64, seq: u64, count: u64, bytes: usize) -> Self {
        Self { epoch, seq, count, bytes, read_before: 0 }
    }

    async fn call(&self, client: &Client, cell: u32, most: usize) -> Result<Vec<Bytes>, Error> {
        let Self { epoch, seq, count, read_before, .. } = self;
        let args = vec![
            format!("{epoch}-{seq}"),
            count.to_string(),
            most.to_string(),
            read_before.to_string(),
        ];
        READ_LOG.ask(client, vec![Keys::new(cell, *epoch).log()], args).await
    }
}

/// An entry, or the first part of one.
struct Found {
    epoch: u64,
    seq: u64,
    tip: String,
    payload_bytes: usize,
    bytes: usize,
    /// The payload followed by the traces, as far as they were read.
    text: Vec<u8>,
}

struct Read {
    found: Vec<Found>,
    more: bool,
}

impl Read {
    fn of(answer: Vec<Bytes>) -> Result<Self, LogError> {
        let no_log = || LogError("unexpected answer to a read of the log".to_owned());
        let (more, fields) = answer.split_first().ok_or_else(no_log)?;
        let (entries, rest) = fields.as_chunks::<5>();
        if !rest.is_empty() {
            return Err(no_log());
        }
        // Another writer may have added elements that are not entries.
        let found: Vec<Found> = entries.iter().map_while(Found::of).collect();
        Ok(Self { more: found.len() == entries.len() && more.as_ref() == b"1", found })
    }

    /// The first entry, if it was read only in part.
    fn unfinished(&self) -> Option<&Found> {
        self.found.first().filter(|entry| entry.text.len() < entry.bytes)
    }

    /// Appends a further part of the first entry.
    fn go_on(&mut self, part: Self) -> Result<(), LogError> {
        let further = part.found.into_iter().next().filter(|further| !further.text.is_empty());
        match (self.found.first_mut(), further) {
            (Some(begun), Some(further))
                if (begun.seq, &begun.tip, begun.bytes)
                    == (further.seq, &further.tip, further.bytes) =>
            {
                begun.text.extend(further.text);
                Ok(())
            }
            _ => Err(LogError("an entry changed while it was read".to_owned())),
        }
    }

    fn into_page(self) -> Page {
        let entries = self.found.into_iter().map(|found| {
            let Found { epoch, seq, tip, payload_bytes, text: mut payload, .. } = found;
            let traces = payload.split_off(payload_bytes.min(payload.len()));
            RawEntry { epoch, seq, payload, tip, traces }
        });
        Page { more: self.more, entries: entries.collect() }
    }
}

impl Found {
    /// `None`: the element is not an entry.
    fn of([id, tip, payload_bytes, trace_bytes, text]: &[Bytes; 5]) -> Option<Self> {
        let number =
            |bytes: &Bytes| -> Option<usize> { std::str::from_utf8(bytes).ok()?.parse().ok() };
        let (epoch, seq) = std::str::from_utf8(id).ok()?.split_once('-')?;
        let payload_bytes = number(payload_bytes)?;
        Some(Self {
            epoch: epoch.parse().ok()?,
            seq: seq.parse().ok()?,
            tip: String::from_utf8(tip.to_vec()).ok()?,
            payload_bytes,
            bytes: payload_bytes.checked_add(number(trace_bytes)?)?,
            text: text.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_asks_for_what_the_link_brings_in_time() {
        let reach = Reach::default();
        assert!(!reach.learn(LOG_READ_SHOULD_TAKE, true) && reach.bytes() == LOG_READ_BYTES);
        assert!(reach.learn(LOG_READ_SHOULD_TAKE * 2, true) && reach.bytes() == LOG_READ_BYTES / 2);
        assert!(reach.learn(Duration::ZERO, false) && reach.bytes() == LOG_READ_BYTES / 4);
        while reach.learn(Duration::ZERO, false) {}
        assert_eq!(reach.bytes(), LOG_READ_BYTES_LEAST);
        for _ in 0..9 {
            assert!(!reach.learn(Duration::ZERO, true));
        }
        assert_eq!(reach.bytes(), LOG_READ_BYTES);
    }

    #[test]
    fn the_time_of_a_decision_stands_at_its_entrys_beginning() {
        let payload = rmp_serde::to_vec(&(1, "place_order", 1_800_000_000_123_i64, [1])).unwrap();
        assert_eq!(decided_at(&payload), Some(1_800_000_000_123));
        assert_eq!(decided_at(&payload[..payload.len() - 4]), None);
        assert_eq!(decided_at(b"no entry"), None);
    }
}
