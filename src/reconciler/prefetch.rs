//! Read-ahead: while PostgreSQL applies one batch, the next one is read from the log and decoded.
//!
//! [`Prefetched`] holds that batch and the place in the log that it follows. The next step uses it
//! if the cursor has arrived at that place and the log still contains the batch; otherwise it is
//! dropped and the log is read again. [`ApplyBound`] limits the size of a batch. It lives as long
//! as the reconciler.

use std::cmp::Ordering;

use super::cursor::Cursor;
use super::plan::Prepared;
use super::verify::unbroken;
use crate::config::bounds::{APPLY_BYTES, APPLY_ENTRIES};
use crate::log::reader::{LogError, LogReader, Page};
use crate::redis::meta::Meta;

/// The size limit of one transaction: halved after a transaction that took too long, and doubled
/// again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApplyBound {
    entries: u64,
    bytes: usize,
    /// Transactions within their time limit since the last change.
    in_time: u32,
}

/// Transactions within their time limit before the bound is doubled. There are many of them,
/// because one transaction that is too large costs up to the whole time limit.
const IN_TIME: u32 = 16;

impl Default for ApplyBound {
    fn default() -> Self {
        Self { entries: APPLY_ENTRIES, bytes: APPLY_BYTES, in_time: 0 }
    }
}

impl ApplyBound {
    /// After a transaction that took too long. `false`: the bound is one entry already.
    pub fn halve(&mut self) -> bool {
        if self.entries == 1 {
            return false;
        }
        *self = Self { entries: self.entries / 2, bytes: self.bytes / 2, in_time: 0 };
        true
    }

    /// After a transaction that finished in time.
    pub fn grow(&mut self) {
        let Self { entries, bytes, in_time } = *self;
        if entries == APPLY_ENTRIES {
            return;
        }
        *self = match in_time + 1 {
            IN_TIME => Self {
                entries: (entries * 2).min(APPLY_ENTRIES),
                bytes: (bytes * 2).min(APPLY_BYTES),
                in_time: 0,
            },
            in_time => Self { in_time, ..*self },
        };
    }
}

/// Reads the entries after `seq` that go into one transaction; at least one, if there is any.
pub async fn read(
    log: &LogReader,
    epoch: u64,
    seq: u64,
    bound: ApplyBound,
) -> Result<Page, LogError> {
    log.page(epoch, seq, bound.entries, bound.bytes).await
}

/// A batch that follows a place in the log which the cursor has not reached yet.
pub struct Prefetched {
    place: Cursor,
    pub next: Page,
    pub prepared: Vec<Prepared>,
}

impl Prefetched {
    /// `None` if anything is unusual: an error, an empty page, a broken chain. The step that gets
    /// to this place reads again and reports it.
    pub async fn look(log: &LogReader, place: &Cursor, bound: ApplyBound) -> Option<Self> {
        let Page { entries, more } = read(log, place.epoch, place.seq, bound).await.ok()?;
        let found = entries.len();
        let entries = unbroken(place, entries);
        if entries.is_empty() || entries.len() < found {
            return None;
        }
        let mut prepared = Vec::with_capacity(entries.len());
        for entry in &entries {
            prepared.push(Prepared::of(entry).ok()?);
            tokio::task::yield_now().await; // PostgreSQL's replies are read on this thread, too
        }
        Some(Self { place: place.clone(), next: Page { entries, more }, prepared })
    }

    /// Whether this batch follows `cursor`, and the log still contains it according to `seen`,
    /// which was read after the batch.
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
    use crate::log::RawEntry;

    #[test]
    fn after_a_transaction_that_took_too_long_comes_one_of_half_as_much() {
        let (mut bound, mut halved) = (ApplyBound::default(), 0);
        while bound.halve() {
            halved += 1;
        }
        assert_eq!((halved, bound.entries), (APPLY_ENTRIES.ilog2(), 1));
        assert!(bound.bytes > 0);
        for _ in 0..IN_TIME {
            bound.grow();
        }
        assert_eq!(bound.entries, 2);
        for _ in 0..halved * IN_TIME {
            bound.grow();
        }
        assert_eq!(bound, ApplyBound::default());
    }

    /// Entries 5 and 6, which follow entry 4.
    fn a_batch() -> (Cursor, Prefetched) {
        let entry = |seq: u64| RawEntry {
            epoch: 2,
            seq,
            payload: vec![],
            tip: format!("tip {seq}"),
            traces: vec![],
        };
        let place = Cursor::at(0, &entry(4));
        let next = Page { entries: vec![entry(5), entry(6)], more: false };
        (place.clone(), Prefetched { place, next, prepared: vec![] })
    }

    fn seen(seq: u64) -> Meta {
        Meta { epoch: 2, seq, tip: format!("tip {seq}"), ..Meta::default() }
    }

    #[test]
    fn what_was_read_ahead_counts_only_where_the_log_still_has_it() {
        let (cursor, prefetched) = a_batch();
        assert!(!prefetched.is_next(&cursor, &seen(5)), "the log has lost its end since");
        assert!(prefetched.is_next(&cursor, &seen(6)));
        let another = Meta { tip: "another".to_owned(), ..seen(6) };
        assert!(
            !prefetched.is_next(&cursor, &another),
            "the log has another entry in the last one's place"
        );
        assert!(
            prefetched.is_next(&cursor, &seen(7)),
            "the log went on; its chain is checked with what follows"
        );
    }

    #[test]
    fn what_was_read_ahead_counts_only_for_the_cursor_before_it() {
        let (cursor, mut prefetched) = a_batch();
        for elsewhere in [
            Cursor { epoch: 3, ..cursor.clone() },
            Cursor { seq: 5, ..cursor.clone() },
            Cursor { tip: "another".to_owned(), ..cursor.clone() },
        ] {
            assert!(!prefetched.is_next(&elsewhere, &seen(7)), "{elsewhere:?}");
        }
        prefetched.next.entries.clear();
        assert!(!prefetched.is_next(&cursor, &seen(7)), "nothing was read");
    }
}
