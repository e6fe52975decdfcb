//! `rushgate log show`: prints entries for operators and programs, without idempotency keys.
//!
//! [`show`] reads the entries that [`Which`] selects and returns them as a [`Listing`].

use std::fmt;

use serde_json::{Value, json};
use sqlx::PgConnection;

use super::cursor::Cursor;
use crate::domain::rfc3339;
use crate::log::RawEntry;
use crate::log::reader::{LogError, LogReader};
use crate::log::told::ToldFact;

/// Why entries were not shown.
#[derive(Debug, thiserror::Error)]
pub enum LogAdminError {
    #[error("PostgreSQL: {0}")]
    Truth(#[from] sqlx::Error),
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Which entries to list, and how.
#[derive(Clone, Copy, Debug)]
pub struct Which {
    /// The first entry; `None`: the one after the cursor.
    pub from: Option<u64>,
    /// Lines of the listing.
    pub limit: usize,
    /// A JSON object for each fact instead of text.
    pub json: bool,
}

/// Entries of the epoch that Redis has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The cell's epochs, cursor and halt, for people. Not counted by [`Which::limit`].
    pub state: String,
    pub lines: Vec<String>,
    /// The entry at which the limit has cut the listing off.
    pub cut_at: Option<u64>,
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.state)?;
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        match self.cut_at {
            Some(seq) => {
                writeln!(
                    f,
                    "--limit {} is reached: go on with --seq {seq}, or raise it",
                    self.lines.len()
                )
            }
            None => Ok(()),
        }
    }
}

/// Reads the log and PostgreSQL's cursor.
pub async fn show(
    conn: &mut PgConnection,
    log: &LogReader,
    which: Which,
) -> Result<Listing, LogAdminError> {
    let cursor = Cursor::read(conn, log.cell).await?;
    let meta = log.meta().await?;
    let held = log.epochs().await?;
    // Without a gate in Redis, the newest log is listed.
    let epoch = if meta.absent() { held.last().copied() } else { Some(meta.epoch) };
    let epoch = epoch.unwrap_or(cursor.epoch);
    let applied = match epoch.cmp(&cursor.epoch) {
        std::cmp::Ordering::Equal => cursor.seq,
        std::cmp::Ordering::Greater => 0,
        std::cmp::Ordering::Less => Cursor::end_of(conn, log.cell, epoch).await?.unwrap_or(0),
    };
    let after = which.from.map_or(applied, |seq| seq.saturating_sub(1));
    // Each entry has a line at least; one more shows whether the limit has cut anything off.
    let entries = log.after(epoch, after, which.limit as u64 + 1).await?;
    let mut state = format!("cell {}, epoch {epoch}, applied up to {applied}\n", log.cell);
    state += &apart(log, epoch, &cursor).await?;
    if let Some(reason) = &cursor.halted_reason {
        state += &format!("HALTED: {reason}\n");
    }
    if cursor.skipping {
        state += "a fact is being skipped: what follows is applied by differences, then the gate is rebuilt\n";
    }
    if entries.is_empty() {
        state += &format!("no entries after {after}\n");
    }
    let mut listing = Listing { state, ..Listing::default() };
    for entry in entries {
        let lines = if which.json { as_json(log.cell, &entry) } else { as_text(&entry) };
        let left = which.limit - listing.lines.len();
        if lines.len() > left {
            listing.cut_at = Some(entry.seq);
        }
        listing.lines.extend(lines.into_iter().take(left));
        if listing.cut_at.is_some() {
            break;
        }
    }
    Ok(listing)
}

/// Whether a rebuild can apply the log, if Redis and PostgreSQL are in different epochs.
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

/// An entry for people: a line of its own, and one for each fact, with the number that names it.
fn as_text(raw: &RawEntry) -> Vec<String> {
    let RawEntry { epoch, seq, payload, tip, .. } = raw;
    let head = format!("{epoch}-{seq}  tip {tip}  {} bytes", payload.len());
    let entry = match raw.decode() {
        Ok(entry) => entry,
        Err(e) => return vec![head, format!("    {e}")],
    };
    let fact = |(at, fact): (usize, ToldFact)| {
        format!(
            "    fact {}  {}  {}  {}",
            at + 1,
            fact.kind,
            fact.user_id.as_deref().unwrap_or("-"),
            fact.told
        )
    };
    let decided = format!("{head}  decided {}", rfc3339(entry.decided_at));
    std::iter::once(decided).chain(entry.facts.told().into_iter().enumerate().map(fact)).collect()
}

/// An entry for programs: one object for each fact, or one with the cause if it cannot be decoded.
/// Members have the names that they have in the reports of `log skip` and `rebuild`.
fn as_json(cell: u32, raw: &RawEntry) -> Vec<String> {
    let RawEntry { epoch, seq, payload, tip, .. } = raw;
    let object = |rest: Value| {
        let mut all = json!({ "cell": cell, "entry": format!("{epoch}-{seq}"), "epoch": epoch, "seq": seq, "tip": tip });
        if let (Value::Object(all), Value::Object(rest)) = (&mut all, rest) {
            all.extend(rest);
        }
        all.to_string()
    };
    let entry = match raw.decode() {
        Ok(entry) => entry,
        Err(e) => return vec![object(json!({ "bytes": payload.len(), "error": e.to_string() }))],
    };
    let decided_at = rfc3339(entry.decided_at);
    let fact = |(at, fact): (usize, ToldFact)| {
        let ToldFact { kind, user_id, id, keyed, told } = fact;
        object(
            json!({ "decided_at": decided_at, "fact": at + 1, "kind": kind, "user_id": user_id, "id": id,
            "answered": told, "idempotency_key": keyed }),
        )
    };
    entry.facts.told().into_iter().enumerate().map(fact).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_cannot_be_read_is_one_object_with_the_cause() {
        let raw =
            RawEntry { epoch: 2, seq: 7, payload: vec![0xc1], tip: "aa".into(), traces: vec![] };
        let lines: Vec<Value> =
            as_json(0, &raw).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 1);
        assert_eq!((&lines[0]["entry"], &lines[0]["bytes"]), (&json!("2-7"), &json!(1)));
        assert!(lines[0]["error"].as_str().unwrap().contains("cannot be decoded"));
        assert_eq!(as_text(&raw).len(), 2);
    }
}
