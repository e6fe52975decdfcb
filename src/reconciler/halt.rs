//! Halting at an entry that PostgreSQL refuses: which fact it is, what the operator reads, and when
//! it is tried again.

use std::time::{Duration, Instant};

use super::apply::refuses;
use super::cursor::Cursor;
use super::{Reconciler, StepError, StepOutcome, TRUTH_STEP_LIMIT, timed_out};
use crate::log::RawEntry;

/// How often the leader tries an entry again that PostgreSQL has refused.
const HALT_RETRY: Duration = Duration::from_secs(10);

impl Reconciler {
    pub(super) fn halted(&mut self, reason: String) -> StepOutcome {
        if self.last_halt.as_ref() != Some(&reason) {
            tracing::error!(cell = self.cell, reason, "the cell's reconciler is halted");
            self.metrics.halts.increment(1);
            self.last_halt = Some(reason.clone());
        }
        StepOutcome::Halted(reason)
    }

    /// Whether it is time to try the refused entry again: an operator may have corrected the cause.
    pub(super) fn tries_halted_again(&mut self) -> bool {
        let due = self.halt_tried.elapsed() >= HALT_RETRY && self.last_halt.is_some();
        if due {
            self.halt_tried = Instant::now();
        }
        due
    }

    /// Halts at the one entry that PostgreSQL refuses; the reason names the fact.
    pub(super) async fn halt(
        &mut self,
        cursor: &Cursor,
        entries: &[RawEntry],
        why: &str,
    ) -> Result<StepOutcome, StepError> {
        let seq = cursor.seq + 1;
        let (what, choice) = match self.refused_fact(cursor, entries).await? {
            Some((fact, of)) => (format!("fact {fact} of {of} in entry {seq}"), fact.to_string()),
            None => (format!("entry {seq}"), "all".to_owned()),
        };
        let reason = format!(
            "PostgreSQL refuses {what} of epoch {}: {why}; mend the cause (the schema, the database, an older version that \
             runs): the leader tries it again every {} s; `rushgate log show --seq {seq}` prints it; only if it can never \
             go in, as the last resort, `rushgate log skip --seq {seq} --fact {choice}`",
            cursor.epoch,
            HALT_RETRY.as_secs()
        );
        cursor.halt(self.connection().await?, &reason).await?;
        self.halt_tried = Instant::now();
        Ok(self.halted(reason))
    }

    /// The first fact that PostgreSQL refuses, from 1, and how many there are. `None`: the entry
    /// cannot be read.
    async fn refused_fact(
        &mut self,
        cursor: &Cursor,
        entries: &[RawEntry],
    ) -> Result<Option<(usize, usize)>, StepError> {
        let Some((raw, facts)) =
            entries.first().and_then(|raw| raw.decode().ok().map(|entry| (raw, entry.facts.len())))
        else {
            return Ok(None);
        };
        // All facts together are refused, so the first refused one is in `accepted + 1 ..=
        // refused`.
        let (mut accepted, mut refused) = (0, facts);
        while refused - accepted > 1 {
            let middle = accepted + (refused - accepted) / 2;
            let trial = refuses(self.connection().await?, cursor, raw, middle);
            match tokio::time::timeout(TRUTH_STEP_LIMIT, trial).await {
                Ok(Ok(true)) => refused = middle,
                Ok(Ok(false)) => accepted = middle,
                Ok(Err(e)) => {
                    tracing::warn!(cell = self.cell, error = %e, "which fact is refused cannot be found out now");
                    self.conn = None;
                    return Err(timed_out().into());
                }
                Err(_) => {
                    self.conn = None;
                    return Err(timed_out().into());
                }
            }
        }
        Ok(Some((refused, facts)))
    }
}
