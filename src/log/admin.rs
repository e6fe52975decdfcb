//! `rushgate log show|skip`: an operator looks at entries, and takes one that PostgreSQL refuses out of the way.

use std::fmt;

use sqlx::{Connection, PgConnection};

use super::reader::{LogError, LogReader};
use super::{EntryError, RawEntry};
use crate::reconciler::cursor::{Cursor, Target};

/// Why an entry was not shown or skipped.
#[derive(Debug, thiserror::Error)]
pub enum LogAdminError {
    #[error("PostgreSQL: {0}")]
    Truth(#[from] sqlx::Error),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("cell {cell} is not halted, so there is nothing to skip")]
    NotHalted { cell: u32 },
    #[error("cell {cell} is halted at entry {halted_at}; only that one can be skipped, not {asked}")]
    NotTheHalted { cell: u32, halted_at: u64, asked: u64 },
    #[error("entry {0} is not in the log, or does not continue the chain: run `rushgate rebuild`")]
    NoSuchEntry(u64),
    #[error("the cursor moved meanwhile; look again with `rushgate log show`")]
    Moved,
}

/// Entries after the cursor (or from `from`), as text.
pub async fn show(
    conn: &mut PgConnection,
    log: &LogReader,
    from: Option<u64>,
    limit: u64,
) -> Result<String, LogAdminError> {
    let cursor = Cursor::read(conn, log.cell).await?;
    let after = from.map_or(cursor.seq, |seq| seq.saturating_sub(1));
    let entries = log.after(cursor.epoch, after, limit).await?;
    let mut text = format!("cell {}, epoch {}, applied up to {}\n", log.cell, cursor.epoch, cursor.seq);
    if let Some(reason) = &cursor.halted_reason {
        text += &format!("HALTED: {reason}\n");
    }
    if entries.is_empty() {
        text += &format!("no entries after {after}\n");
    }
    for entry in entries {
        text += &format!("{}\n", Shown(&entry));
    }
    Ok(text)
}

/// Moves the entry that halted the cell to `log_quarantine` and the cursor past it.
pub async fn skip(
    conn: &mut PgConnection,
    log: &LogReader,
    seq: u64,
    reason: &str,
) -> Result<(), LogAdminError> {
    let cursor = Cursor::read(conn, log.cell).await?;
    if cursor.halted_reason.is_none() {
        return Err(LogAdminError::NotHalted { cell: log.cell });
    }
    if seq != cursor.seq + 1 {
        return Err(LogAdminError::NotTheHalted { cell: log.cell, halted_at: cursor.seq + 1, asked: seq });
    }
    let entry = log.after(cursor.epoch, cursor.seq, 1).await?.pop();
    let Some(entry) = entry.filter(|e| e.seq == seq && e.follows(&cursor.tip)) else {
        return Err(LogAdminError::NoSuchEntry(seq));
    };
    let target = Target {
        epoch: cursor.epoch,
        seq,
        tip: entry.tip.clone(),
        clock_ms: entry.decode().map_or(0, |e| e.decided_at),
        events: 0,
    };
    let mut tx = conn.begin().await?;
    if !cursor.advance(&mut tx, &target).await? {
        return Err(LogAdminError::Moved);
    }
    let big = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    sqlx::query(
        "INSERT INTO log_quarantine (cell, epoch, seq, payload, tip, reason) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(i32::try_from(log.cell).unwrap_or(i32::MAX))
    .bind(big(entry.epoch))
    .bind(big(seq))
    .bind(&entry.payload)
    .bind(&entry.tip)
    .bind(reason)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(())
}

/// An entry for people to read.
struct Shown<'a>(&'a RawEntry);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RawEntry { epoch, seq, payload, tip, .. } = self.0;
        write!(f, "{epoch}-{seq}  tip {tip}  {} bytes  ", payload.len())?;
        match self.0.decode() {
            Ok(entry) => {
                let at = crate::domain::rfc3339(entry.decided_at);
                write!(f, "decided {at}\n    {:#?}", entry.facts)
            }
            Err(EntryError::Decode(e)) => write!(f, "\n    cannot be decoded: {e}"),
            Err(e) => write!(f, "\n    {e}"),
        }
    }
}
