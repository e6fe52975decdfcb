//! Applying entries: in one transaction, in halves where PostgreSQL refuses them, while the next
//! ones are prefetched.

use std::time::Instant;

use opentelemetry::trace::SpanKind;

use super::apply::{ApplyError, apply, apply_differences};
use super::cursor::{Cursor, Target};
use super::plan::{Plan, Prepared};
use super::prefetch::Prefetched;
use super::{Reconciler, StepError, StepOutcome, TRUTH_STEP_LIMIT, timed_out};
use crate::log::RawEntry;

impl Reconciler {
    /// Applies `entries` (which may be prepared already) in one transaction. If PostgreSQL refuses
    /// them, halves them until the refused entry is the first one. Prefetches the next ones
    /// meanwhile, if there are `more`.
    pub(super) async fn apply_entries(
        &mut self,
        cursor: &Cursor,
        entries: &[RawEntry],
        prepared: Option<&[Prepared]>,
        more: bool,
    ) -> Result<StepOutcome, StepError> {
        match self.apply_once(cursor, entries, prepared, more).await {
            Ok(()) => {
                self.bound.grow();
                Ok(StepOutcome::Applied(entries.len()))
            }
            Err(ApplyError::Superseded) => Ok(StepOutcome::Superseded),
            Err(ApplyError::Failed(e)) => {
                let e = StepError::from(e);
                // The next try is smaller. The cursor will show whether this one was committed.
                if e.took_too_long() && self.bound.halve() {
                    tracing::warn!(cell = self.cell, error = %e, "a transaction took too long; the next one is smaller");
                }
                Err(e)
            }
            Err(ApplyError::Refused(_)) if entries.len() > 1 => {
                // The entries before the refused one are still applied.
                let (first_half, _) = entries.split_at(entries.len() / 2);
                Box::pin(self.apply_entries(cursor, first_half, None, false)).await
            }
            Err(ApplyError::Refused(why)) => self.halt(cursor, entries, &why).await,
        }
    }

    async fn apply_once(
        &mut self,
        cursor: &Cursor,
        entries: &[RawEntry],
        prepared: Option<&[Prepared]>,
        more: bool,
    ) -> Result<(), ApplyError> {
        if cursor.skipping {
            return self.apply_differences(cursor, entries).await;
        }
        let mut prepared_now = Vec::new();
        let prepared = match prepared {
            Some(prepared) => prepared,
            None => {
                for entry in entries {
                    prepared_now.push(Prepared::of(entry)?);
                }
                &prepared_now
            }
        };
        let plan = Plan::of(prepared)?;
        let Some(last) = entries.last() else { return Ok(()) };
        let target = Target::at(last, &plan);
        // If the connection has changed, the entries may be of another server's log.
        if !self.server.is_same() {
            return Err(ApplyError::Superseded);
        }
        self.connection().await.map_err(ApplyError::Failed)?;
        let bound = self.bound;
        let Self { conn: Some(conn), log, .. } = self else {
            return Err(ApplyError::Failed(timed_out()));
        };
        // After a timeout the transaction's outcome is unknown: the connection is dropped and the
        // cursor read again.
        let started = Instant::now();
        let applying = async {
            let applied =
                tokio::time::timeout(TRUTH_STEP_LIMIT, apply(conn, cursor, &target, &plan)).await;
            (applied, started.elapsed())
        };
        let place = Cursor::at(log.cell, last);
        let looking =
            async { if more { Prefetched::look(log, &place, bound).await } else { None } };
        let ((applied, took), prefetched) = tokio::join!(applying, looking);
        match applied {
            Ok(outcome) => {
                outcome?;
                self.prefetched = prefetched;
                self.metrics.applied(entries.len(), &plan.won, took);
                plan.traced
                    .iter()
                    .for_each(|(name, trace, at)| trace.child_since(SpanKind::Internal, name, *at));
                Ok(())
            }
            Err(_) => {
                self.conn = None;
                Err(ApplyError::Failed(timed_out()))
            }
        }
    }

    async fn apply_differences(
        &mut self,
        cursor: &Cursor,
        entries: &[RawEntry],
    ) -> Result<(), ApplyError> {
        // If the connection has changed, the entries may be of another server's log.
        if !self.server.is_same() {
            return Err(ApplyError::Superseded);
        }
        let started = Instant::now();
        let conn = self.connection().await.map_err(ApplyError::Failed)?;
        let applied = apply_differences(conn, cursor, entries);
        match tokio::time::timeout(TRUTH_STEP_LIMIT, applied).await {
            Ok(won) => self.metrics.applied(entries.len(), &won?, started.elapsed()),
            Err(_) => {
                self.conn = None;
                return Err(ApplyError::Failed(timed_out()));
            }
        }
        Ok(())
    }
}
