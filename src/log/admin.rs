//! `rushgate log show`: an operator looks at entries.

use std::fmt;

use sqlx::PgConnection;

use super::reader::{LogError, LogReader};
use super::{EntryError, RawEntry};
use crate::reconciler::cursor::Cursor;

/// Why entries were not shown.
#[derive(Debug, thiserror::Error)]
pub enum LogAdminError {
    #[error("PostgreSQL: {0}")]
    Truth(#[from] sqlx::Error),
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Entries of the epoch that Redis has, those after the cursor (or from `from`), as text.
pub async fn show(
    conn: &mut PgConnection,
    log: &LogReader,
    from: Option<u64>,
    limit: u64,
) -> Result<String, LogAdminError> {
    let cursor = Cursor::read(conn, log.cell).await?;
    let meta = log.meta().await?;
    let held = log.epochs().await?;
    // Without a gate the newest log is what there is to look at.
    let epoch = if meta.absent() { held.last().copied() } else { Some(meta.epoch) };
    let epoch = epoch.unwrap_or(cursor.epoch);
    let applied = match epoch.cmp(&cursor.epoch) {
        std::cmp::Ordering::Equal => cursor.seq,
        std::cmp::Ordering::Greater => 0,
        std::cmp::Ordering::Less => Cursor::end_of(conn, log.cell, epoch).await?.unwrap_or(0),
    };
    let after = from.map_or(applied, |seq| seq.saturating_sub(1));
    let entries = log.after(epoch, after, limit).await?;
    let mut text = format!("cell {}, epoch {epoch}, applied up to {applied}\n", log.cell);
    text += &apart(log, epoch, &cursor).await?;
    if let Some(reason) = &cursor.halted_reason {
        text += &format!("HALTED: {reason}\n");
    }
    if cursor.skipping {
        text += "a fact is being skipped: what follows is applied by differences, then the gate is rebuilt\n";
    }
    if entries.is_empty() {
        text += &format!("no entries after {after}\n");
    }
    for entry in entries {
        text += &format!("{}\n", Shown(&entry));
    }
    Ok(text)
}

/// What it means that Redis and PostgreSQL are in different epochs.
async fn apart(log: &LogReader, epoch: u64, cursor: &Cursor) -> Result<String, LogError> {
    if epoch == cursor.epoch {
        return Ok(String::new());
    }
    let stands = format!("PostgreSQL stands at entry {} of epoch {}", cursor.seq, cursor.epoch);
    if epoch < cursor.epoch {
        return Ok(format!("{stands}: this log is of an epoch that is over\n"));
    }
    Ok(match log.opening(epoch).await?.and_then(|opening| opening.origin) {
        Some((e, s, tip)) if (e, s, &tip) == (cursor.epoch, cursor.seq, &cursor.tip) => {
            format!("{stands}, where this epoch began: `rushgate rebuild` applies this log\n")
        }
        Some((e, s, _)) => format!(
            "{stands}, and this epoch began after entry {s} of epoch {e}: `rushgate rebuild` cannot apply this log, \
             and saves it\n"
        ),
        None => format!("{stands}: `rushgate rebuild` cannot apply this log, and saves it\n"),
    })
}

/// An entry for people to read: a fact a line, with the number by which it can be named. Without idempotency keys.
struct Shown<'a>(&'a RawEntry);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RawEntry { epoch, seq, payload, tip, .. } = self.0;
        write!(f, "{epoch}-{seq}  tip {tip}  {} bytes  ", payload.len())?;
        match self.0.decode() {
            Ok(entry) => {
                write!(f, "decided {}", crate::domain::rfc3339(entry.decided_at))?;
                entry.facts.told().iter().enumerate().try_for_each(|(at, fact)| {
                    let user = fact.user_id.as_deref().unwrap_or("-");
                    write!(f, "\n    fact {}  {}  {user}  {}", at + 1, fact.kind, fact.told)
                })
            }
            Err(EntryError::Decode(e)) => write!(f, "\n    cannot be decoded: {e}"),
            Err(e) => write!(f, "\n    {e}"),
        }
    }
}
