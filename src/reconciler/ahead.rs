//! The look ahead: while PostgreSQL applies one batch, the next one is read and prepared.

use std::cmp::Ordering;

use super::cursor::Cursor;
use super::plan::Prepared;
use super::verify::unbroken;
use crate::config::bounds::{APPLY_BYTES, APPLY_ENTRIES};
use crate::gate::cell::Meta;
use crate::log::RawEntry;
use crate::log::reader::{LogError, LogReader};

/// The next entries of the log, and whether more may follow them.
pub struct Next {
    pub entries: Vec<RawEntry>,
    pub more: bool,
}

/// As many entries after `seq` as go into one transaction; at least one, if there is any.
pub async fn read(log: &LogReader, epoch: u64, seq: u64) -> Result<Next, LogError> {
    Ok(Next::of(log.after(epoch, seq, APPLY_ENTRIES).await?))
}

impl Next {
    /// Of up to `APPLY_ENTRIES` entries, those whose payloads stay within the bound of bytes; at least the first.
    fn of(mut entries: Vec<RawEntry>) -> Self {
        let found = entries.len();
        let mut bytes = 0;
        let fitting = entries
            .iter()
            .take_while(|entry| {
                bytes += entry.payload.len();
                bytes <= APPLY_BYTES
            })
            .count();
        entries.truncate(fitting.max(1));
        let more = entries.len() < found || found as u64 == APPLY_ENTRIES;
        Self { entries, more }
    }
}

/// What follows a place of the log that the cursor has not reached yet.
pub struct Ahead {
    place: Cursor,
    pub next: Next,
    pub prepared: Vec<Prepared>,
}

impl Ahead {
    /// `None` where anything is out of the ordinary: who comes to this place will look again, and say what it is.
    pub async fn look(log: &LogReader, place: &Cursor) -> Option<Self> {
        let Next { entries, more } = read(log, place.epoch, place.seq).await.ok()?;
        let found = entries.len();
        let entries = unbroken(place, entries);
        if entries.is_empty() || entries.len() < found {
            return None;
        }
        let mut prepared = Vec::with_capacity(entries.len());
        for entry in &entries {
            prepared.push(Prepared::of(entry).ok()?);
            tokio::task::yield_now().await; // PostgreSQL's answers are read on the same thread
        }
        Some(Self { place: place.clone(), next: Next { entries, more }, prepared })
    }

    /// Whether it follows the cursor, and `seen`, which was read after it, does not say that the log has lost it since.
    pub fn is_next(&self, cursor: &Cursor, seen: &Meta) -> bool {
        let Cursor { epoch, seq, tip, .. } = &self.place;
        let follows = (*epoch, *seq, tip) == (cursor.epoch, cursor.seq, &cursor.tip);
        follows
            && self.next.entries.last().is_some_and(|last| match seen.seq.cmp(&last.seq) {
                Ordering::Less => false,
                Ordering::Equal => seen.tip == last.tip,
                Ordering::Greater => true,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_bounded_in_entries_and_in_bytes_and_tells_when_more_may_follow() {
        let entry = |bytes| RawEntry {
            epoch: 1,
            seq: 1,
            payload: vec![0; bytes],
            tip: String::new(),
            traces: vec![],
        };
        let next = |entries, bytes| {
            let next = Next::of(vec![entry(bytes); entries]);
            (next.entries.len(), next.more)
        };
        let most = APPLY_ENTRIES as usize;
        assert_eq!(next(0, 0), (0, false));
        assert_eq!((next(most - 1, 1), next(most, 1)), ((most - 1, false), (most, true)));
        assert_eq!((next(2, APPLY_BYTES / 2), next(3, APPLY_BYTES / 2)), ((2, false), (2, true)));
        assert_eq!((next(1, APPLY_BYTES + 1), next(2, APPLY_BYTES + 1)), ((1, false), (1, true)));
    }
}
