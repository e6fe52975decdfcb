//! One step: compares the gate with the cursor, then applies the next entries, rebuilds, or halts.

use super::cursor::Cursor;
use super::prefetch::{self, Prefetched};
use super::verify::{Comparison, compare, unbroken};
use super::{Reconciler, StepError, StepOutcome, limited};
use crate::log::RawEntry;
use crate::log::reader::Page;
use crate::redis::meta::{Meta, close, stop};

/// PostgreSQL's cursor, and the gate as it was read.
pub(super) struct Snapshot {
    pub(super) cursor: Cursor,
    pub(super) seen: Meta,
}

impl Snapshot {
    /// After a step on `entries`, which follow the cursor.
    fn after(
        step: &StepOutcome,
        cursor: &Cursor,
        seen: Meta,
        entries: &[RawEntry],
    ) -> Option<Self> {
        let cursor = match step {
            StepOutcome::Applied(applied) => {
                Cursor::after(cursor, entries.get(..*applied)?.last()?)
            }
            _ => cursor.clone(),
        };
        Some(Self { cursor, seen })
    }
}

impl Reconciler {
    /// Compares the gate with the cursor, then applies new entries, rebuilds, or halts. Not
    /// cancel-safe.
    pub async fn step(&mut self) -> Result<StepOutcome, StepError> {
        let (step, at) = self.work(None).await?;
        if let Some(at) = at {
            self.advance_watermark(&at).await?;
        }
        Ok(step)
    }

    /// A step that does not read again what is `known`. Also returns what
    /// [`Self::advance_watermark`] needs.
    pub(super) async fn work(
        &mut self,
        known: Option<Snapshot>,
    ) -> Result<(StepOutcome, Option<Snapshot>), StepError> {
        let (cursor, meta) = match known {
            Some(Snapshot { cursor, seen }) => (cursor, seen),
            None => (self.cursor().await?, self.log.meta().await?),
        };
        let server = self.server_id().await?;
        if self.renew_unless_gate(&cursor, server.as_deref()).await? {
            // Only once: a new connection is not replaced again.
            return Box::pin(self.work(None)).await;
        }
        let comparison = compare(&cursor, &meta);
        self.seen_epoch = cursor.epoch;
        if comparison == Comparison::Same && !cursor.skipping {
            if cursor.gate != server {
                if !self.take_over(&cursor, server.as_deref()).await? {
                    return Ok((StepOutcome::Superseded, None));
                }
                return Box::pin(self.work(None)).await;
            }
            match &cursor.halted_reason {
                Some(reason) if !self.tries_halted_again() => {
                    return Ok((self.halted(reason.clone()), None));
                }
                Some(_) => {}
                None => self.last_halt = None,
            }
            return self.apply_next(&cursor, meta).await;
        }
        // The cursor was read first. Another leader may have moved it, and the gate's watermark,
        // before `meta` was.
        if self.cursor().await? != cursor {
            return Ok((StepOutcome::Superseded, None));
        }
        let step = match comparison {
            Comparison::Rebuild(reason) => self.rebuild(&cursor, &meta, &reason).await?,
            Comparison::TruthWentBack(reason) => {
                stop(&self.log.client, self.cell, meta.epoch, &reason).await?;
                self.halted(reason)
            }
            Comparison::Same => self.rebuild(&cursor, &meta, "a fact is being skipped").await?,
        };
        Ok((step, None))
    }

    pub(super) async fn cursor(&mut self) -> Result<Cursor, StepError> {
        let cell = self.cell;
        let conn = self.connection().await?;
        limited(Cursor::read(conn, cell)).await
    }

    /// Applies the next entries after `cursor`, as far as the chain holds. Also returns how far
    /// that is, if it is known, beside the gate as it was `seen`.
    async fn apply_next(
        &mut self,
        cursor: &Cursor,
        seen: Meta,
    ) -> Result<(StepOutcome, Option<Snapshot>), StepError> {
        let prefetched =
            self.prefetched.take().filter(|prefetched| prefetched.is_next(cursor, &seen));
        if let Some(Prefetched { next, prepared, .. }) = prefetched {
            let step =
                self.apply_entries(cursor, &next.entries, Some(&prepared), next.more).await?;
            let at = Snapshot::after(&step, cursor, seen, &next.entries);
            return Ok((step, at));
        }
        let Page { entries, more } =
            prefetch::read(&self.log, cursor.epoch, cursor.seq, self.bound).await?;
        let found = entries.len();
        let valid = unbroken(cursor, entries);
        // `seen` was read before the log, so its last entry must be there.
        let missing = valid.is_empty() && seen.seq > cursor.seq;
        if valid.len() < found || missing {
            // Another leader may have applied and trimmed the missing entries.
            if self.cursor().await? != *cursor {
                return Ok((StepOutcome::Superseded, None));
            }
            let reason =
                format!("the log does not go on after entry {}", cursor.seq + valid.len() as u64);
            close(&self.log.client, self.cell, cursor.epoch, &reason).await?;
        }
        let more = more && valid.len() == found;
        let step = if valid.is_empty() {
            StepOutcome::Idle
        } else {
            self.apply_entries(cursor, &valid, None, more).await?
        };
        let at = Snapshot::after(&step, cursor, seen, &valid);
        Ok((step, at))
    }
}
