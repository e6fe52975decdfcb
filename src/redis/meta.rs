//! The `meta` key of a cell: reading it, and closing the cell.

use fred::interfaces::HashesInterface;
use fred::prelude::*;

use super::connect::once;
use super::control::CLOSE_CELL;
use super::keys::Keys;
use crate::domain::TimestampMs;
use crate::telemetry::metrics;

/// The states of a cell that serves; see `lua/shared/cell.lua`.
pub const OPEN: &str = "open";
pub const OPEN_LATEST: &str = "open-2";

/// The `meta` key of a cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    pub epoch: u64,
    pub seq: u64,
    pub tip: String,
    pub applied: u64,
    pub clock_ms: TimestampMs,
    /// `open` or `closed`; empty when there is no gate.
    pub state: String,
    pub reason: Option<String>,
    /// The highest epoch that a rebuild has claimed.
    pub claim: u64,
}

impl Meta {
    /// Redis holds no gate for this cell.
    pub fn absent(&self) -> bool {
        self.state.is_empty()
    }

    pub async fn read(client: &Client, cell: u32) -> Result<Self, Error> {
        const FIELDS: [&str; 8] =
            ["epoch", "seq", "tip", "applied", "clock", "state", "reason", "claim"];
        let values: Vec<Option<String>> =
            match client.with_options(&once()).hmget(Keys::meta(cell), FIELDS.to_vec()).await {
                // Not a gate of Rushgate; a rebuild replaces the key.
                Err(e) if e.details().starts_with("WRONGTYPE") => return Ok(Self::default()),
                other => other?,
            };
        let text = |i: usize| values.get(i).cloned().flatten();
        let number = |i: usize| text(i).and_then(|t| t.parse().ok()).unwrap_or(0);
        let absent = text(0).is_none();
        Ok(Self {
            epoch: number(0),
            seq: number(1),
            tip: text(2).unwrap_or_default(),
            applied: number(3),
            clock_ms: i64::try_from(number(4)).unwrap_or(i64::MAX),
            state: match text(5) {
                _ if absent => String::new(),
                Some(state) if state == OPEN_LATEST => OPEN.to_owned(),
                state => state.unwrap_or_default(),
            },
            reason: text(6),
            claim: number(7),
        })
    }
}

/// Closes a cell if it is open in this epoch. From then on every script refuses.
pub async fn close(client: &Client, cell: u32, epoch: u64, reason: &str) -> Result<(), Error> {
    close_as(client, cell, epoch, reason, "").await
}

/// Closes a cell whose Redis does not hold an entry that this instance has seen. The script checks
/// for the entry once more, since the entry may have been missing on another server than this one.
pub async fn close_behind(
    client: &Client,
    cell: u32,
    epoch: u64,
    seen: (u64, &str),
) -> Result<(), Error> {
    let keys = vec![Keys::meta(cell), Keys::new(cell, epoch).log()];
    let reason = "Redis went back in time";
    let args = vec![
        epoch.to_string(),
        reason.into(),
        String::new(),
        seen.0.to_string(),
        seen.1.to_owned(),
    ];
    if CLOSE_CELL.call(client, keys, args).await? {
        metrics::CELL_CLOSES.counter_of_cell(cell).increment(1);
        tracing::error!(cell, epoch, reason, seen = seen.0, "closed the cell");
    }
    Ok(())
}

/// Closes a cell that needs an operator. The instruction replaces any earlier reason, also that of
/// a cell that was closed before or of a rebuild that has died, so that every status shows it.
pub async fn stop(client: &Client, cell: u32, epoch: u64, instruction: &str) -> Result<(), Error> {
    close_as(client, cell, epoch, instruction, "over").await
}

async fn close_as(
    client: &Client,
    cell: u32,
    epoch: u64,
    reason: &str,
    how: &str,
) -> Result<(), Error> {
    let args = vec![epoch.to_string(), reason.to_owned(), how.to_owned()];
    if CLOSE_CELL.call(client, vec![Keys::meta(cell)], args).await? {
        metrics::CELL_CLOSES.counter_of_cell(cell).increment(1);
        tracing::error!(cell, epoch, reason, "closed the cell");
    }
    Ok(())
}
