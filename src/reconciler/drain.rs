//! Draining a closed log: the entries that follow PostgreSQL's state are applied, and the rest is
//! kept for an operator.
//!
//! Entries hold after-images, so they can only be applied on top of the state that they were
//! decided on. Within an epoch, the chain of tips proves that. Across epochs, the opening element
//! of the later log says where PostgreSQL stood when that epoch began: if PostgreSQL stands exactly
//! there (it was restored to that moment), the later log can be applied. Entries that follow
//! nothing are written to PostgreSQL, fact by fact, before the rebuild removes them from Redis.

use super::cursor::{Cursor, Target};
use super::verify::unbroken;
use super::{Reconciler, StepError, StepOutcome, prefetch, quarantine};
use crate::redis::meta::Meta;

impl Reconciler {
    /// Applies the entries after the cursor that the closed cell's logs still hold. This includes a
    /// cell whose `meta` is gone: the log may be whole, and its decisions may have been answered.
    /// `Some`: the rebuild must not go on.
    pub(super) async fn drain(&mut self, closed: &Meta) -> Result<Option<StepOutcome>, StepError> {
        if let Some(stop) = self.drain_epoch().await? {
            return Ok(Some(stop));
        }
        let epochs = self.log.epochs().await?;
        for epoch in epochs.iter().copied() {
            let cursor = self.cursor().await?;
            if epoch <= cursor.epoch || !self.follows(epoch, &cursor).await? {
                continue;
            }
            if !self.follow_into(epoch, &cursor).await? {
                return Ok(Some(StepOutcome::Superseded));
            }
            if let Some(stop) = self.drain_epoch().await? {
                return Ok(Some(stop));
            }
        }
        self.keep_the_rest(&epochs, closed).await?;
        Ok(None)
    }

    /// Applies the entries after the cursor in its own epoch, as far as the chain is valid.
    async fn drain_epoch(&mut self) -> Result<Option<StepOutcome>, StepError> {
        loop {
            let cursor = self.cursor().await?;
            let found = prefetch::read(&self.log, cursor.epoch, cursor.seq, self.bound).await?;
            let valid = unbroken(&cursor, found.entries);
            if valid.is_empty() {
                return Ok(None);
            }
            match self.apply_entries(&cursor, &valid, None, false).await? {
                StepOutcome::Applied(_) => {}
                stop => return Ok(Some(stop)),
            }
        }
    }

    /// Whether this epoch began exactly where PostgreSQL stands.
    async fn follows(&self, epoch: u64, cursor: &Cursor) -> Result<bool, StepError> {
        let opening = self.log.opening(epoch).await?;
        let origin = opening.and_then(|opening| opening.origin);
        Ok(origin.is_some_and(|(epoch, seq, tip)| {
            (epoch, seq, &tip) == (cursor.epoch, cursor.seq, &cursor.tip)
        }))
    }

    /// Moves the cursor to the beginning of that epoch. `false`: another reconciler has moved it,
    /// or the log is gone.
    async fn follow_into(&mut self, epoch: u64, cursor: &Cursor) -> Result<bool, StepError> {
        let Some(opening) = self.log.opening(epoch).await? else { return Ok(false) };
        tracing::warn!(
            cell = self.cell,
            from_epoch = cursor.epoch,
            from_seq = cursor.seq,
            epoch,
            "the log of this epoch begins where PostgreSQL stands: applying it"
        );
        let target = Target {
            epoch,
            seq: 0,
            tip: opening.tip,
            clock_ms: cursor.clock_ms,
            events: 0,
            format: 0,
        };
        let gate = cursor.gate.clone();
        Ok(cursor.begin_epoch(self.connection().await?, &target, gate.as_deref()).await?)
    }

    /// Keeps the entries that cannot be applied, and reports those that are missing altogether.
    async fn keep_the_rest(&mut self, epochs: &[u64], closed: &Meta) -> Result<(), StepError> {
        let cell = self.cell;
        let cursor = self.cursor().await?;
        let mut last_held = 0;
        for epoch in epochs.iter().copied() {
            let (after, why) = match epoch.cmp(&cursor.epoch) {
                std::cmp::Ordering::Equal => {
                    let why = format!(
                        "it does not continue the chain after entry {}-{}",
                        epoch, cursor.seq
                    );
                    (cursor.seq, why)
                }
                std::cmp::Ordering::Greater => {
                    let stands = format!("PostgreSQL stands at {}-{}", cursor.epoch, cursor.seq);
                    let why =
                        match self.log.opening(epoch).await?.and_then(|opening| opening.origin) {
                            Some((e, s, _)) => {
                                format!("epoch {epoch} began after entry {e}-{s}, and {stands}")
                            }
                            None => {
                                format!("it is unknown where epoch {epoch} began, and {stands}")
                            }
                        };
                    (0, why)
                }
                std::cmp::Ordering::Less => {
                    // An epoch of an earlier version has no recorded end: all of it counts as
                    // applied.
                    let end = Cursor::end_of(self.connection().await?, cell, epoch).await?;
                    let Some(end) = end else { continue };
                    (end, format!("PostgreSQL left epoch {epoch} at entry {end}"))
                }
            };
            let last = self.keep_after(epoch, after, &why).await?;
            if epoch == closed.epoch {
                last_held = last;
            }
        }
        let ends_at = if closed.epoch == cursor.epoch { cursor.seq } else { 0 };
        if !closed.absent() && closed.epoch >= cursor.epoch && closed.seq > last_held.max(ends_at) {
            tracing::error!(
                cell,
                epoch = closed.epoch,
                first_lost = last_held.max(ends_at) + 1,
                last_lost = closed.seq,
                "entries of the log are lost: Redis no longer holds them, or holds them altered"
            );
        }
        Ok(())
    }

    /// Keeps all entries of that epoch after this one. Returns the number of the last one.
    async fn keep_after(&mut self, epoch: u64, after: u64, why: &str) -> Result<u64, StepError> {
        let cell = self.cell;
        let (mut last, mut entries, mut facts) = (after, 0, 0);
        loop {
            let found = prefetch::read(&self.log, epoch, last, self.bound).await?.entries;
            let Some(end) = found.last() else { break };
            last = end.seq;
            entries += found.len();
            facts += quarantine::keep_lost(self.connection().await?, cell, &found, why).await?;
        }
        if entries > 0 {
            tracing::error!(
                cell,
                epoch,
                entries,
                decisions = facts,
                why,
                "entries of the log cannot be applied: they are kept in log_quarantine and quarantined_facts"
            );
        }
        Ok(last)
    }
}
