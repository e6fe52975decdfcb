//! Leading a cell: the lock, the loop of steps, the pauses between them, and the watermark.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::cursor::Cursor;
use super::prefetch::Prefetched;
use super::step::Snapshot;
use super::verify::{Comparison, compare};
use super::{Reconciler, StepError, StepOutcome, TRUTH_STEP_LIMIT, limited, pause, quarantine};
use crate::config::bounds::LOG_KEPT_ENTRIES;
use crate::redis::control::ADVANCE_WATERMARK;
use crate::redis::keys::Keys;
use crate::telemetry::metrics;
use crate::telemetry::repeated::Repeated;

/// Key of cell 0's advisory lock, "rgcell" in ASCII and two bytes to which the cell's number is
/// added.
const LEADER_LOCK: i64 = 0x7267_6365_6c6c_0000;
/// How often a stand-by asks for the lock.
const STANDBY_PAUSE: Duration = Duration::from_secs(1);

impl Reconciler {
    pub(super) async fn lead(
        &mut self,
        shutdown: &CancellationToken,
        trouble: &mut Repeated,
    ) -> Result<(), StepError> {
        while !self.try_lead().await? {
            // Every statement of a leader has this time limit, so a leader that waits for longer is
            // not working.
            if self.end_stuck_leader(TRUTH_STEP_LIMIT).await? {
                tracing::warn!(cell = self.cell, "ended the session of a leader that stood still");
            }
            trouble.works();
            self.server.age();
            pause(STANDBY_PAUSE, shutdown).await;
            if shutdown.is_cancelled() {
                return Ok(());
            }
        }
        self.metrics.leading.set(1.0);
        tracing::info!(cell = self.cell, "leads the cell's reconciler");
        // This leader may be able to apply what an earlier one could not: a newer version, a
        // corrected schema.
        let cell = self.cell;
        let conn = self.connection().await?;
        limited(Cursor::retry_halted(conn, cell)).await?;
        let _tidying = AbortOnDropHandle::new(tokio::spawn(self.housekeeping().run()));
        let mut known = None;
        while !shutdown.is_cancelled() {
            known = self.lead_on(known, shutdown).await?;
            self.count_lost().await?;
            trouble.works();
        }
        Ok(())
    }

    /// One step, and the watermark after it; then waits until there may be work again. If the next
    /// step begins at once, it returns the state that this step would read first.
    async fn lead_on(
        &mut self,
        known: Option<Snapshot>,
        shutdown: &CancellationToken,
    ) -> Result<Option<Snapshot>, StepError> {
        let began = Instant::now();
        let (step, at) = self.work(known).await?;
        // A transaction costs the same for one entry as for many, so entries that follow shortly
        // wait for each other.
        let rest = if self.is_level() {
            self.pace.saturating_sub(began.elapsed())
        } else {
            Duration::ZERO
        };
        if let (StepOutcome::Applied(_), true, Some(at)) = (&step, rest.is_zero(), &at) {
            return Box::pin(self.advance_and_prefetch(at)).await;
        }
        if let Some(at) = &at {
            self.advance_watermark(at).await?;
        }
        match step {
            StepOutcome::Applied(_) => pause(rest, shutdown).await,
            StepOutcome::Rebuilt(_) => {}
            StepOutcome::Idle => self.wait_for_entries(at, shutdown).await?,
            StepOutcome::Halted(_) => pause(STANDBY_PAUSE, shutdown).await,
            StepOutcome::Superseded => {
                let cell = self.cell;
                tracing::info!(
                    cell,
                    "another reconciler has moved the cursor; this one looks again"
                );
                pause(STANDBY_PAUSE, shutdown).await;
            }
        }
        Ok(None)
    }

    /// Advances the watermark, and reads the next entries in the same round trip. `None` if nothing
    /// follows or anything is unusual: the next step then reads cursor, `meta` and log itself, in
    /// the order in which it can compare them.
    async fn advance_and_prefetch(&mut self, at: &Snapshot) -> Result<Option<Snapshot>, StepError> {
        let kept = self.prefetched.take();
        let looking = async {
            match kept {
                Some(prefetched) => Some(prefetched),
                None => Prefetched::look(&self.log, &at.cursor, self.bound).await,
            }
        };
        let (told, prefetched, seen) =
            tokio::join!(self.advance_watermark(at), looking, self.log.meta());
        told?;
        let known = Snapshot { cursor: at.cursor.clone(), seen: seen? };
        let follows = prefetched
            .as_ref()
            .is_some_and(|prefetched| prefetched.is_next(&known.cursor, &known.seen));
        self.prefetched = prefetched;
        Ok((follows && compare(&known.cursor, &known.seen) == Comparison::Same).then_some(known))
    }

    /// Whether no entries are prefetched, so that PostgreSQL is level with the gate as far as is
    /// known.
    pub fn is_level(&self) -> bool {
        self.prefetched.is_none()
    }

    /// Takes the leader lock; `false` when another instance leads.
    pub async fn try_lead(&mut self) -> Result<bool, StepError> {
        let ask = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(self.leader_lock());
        limited(ask.fetch_one(self.connection().await?)).await
    }

    /// Ends the session of a leader that has been stuck in a COPY for this long; `false`: there is
    /// none.
    pub async fn end_stuck_leader(&mut self, stuck_for: Duration) -> Result<bool, StepError> {
        let end = sqlx::query_scalar(include_str!("sql/end_stuck_leader.sql"));
        let end = end.bind(self.leader_lock()).bind(stuck_for.as_secs_f64());
        limited(end.fetch_one(self.connection().await?)).await
    }

    fn leader_lock(&self) -> i64 {
        LEADER_LOCK + i64::from(self.cell)
    }

    /// Counts the decisions that PostgreSQL will never have, once in the cluster: by the leader,
    /// when an epoch has begun. A rebuild or an operator has stored them before.
    async fn count_lost(&mut self) -> Result<(), StepError> {
        if self.counted_in == Some(self.seen_epoch) {
            return Ok(());
        }
        let cell = self.cell;
        let counted = limited(quarantine::count(self.connection().await?, cell)).await?;
        for (kind, decisions) in counted {
            tracing::error!(
                cell,
                kind,
                decisions,
                "answered, and PostgreSQL will never have it: see quarantined_facts"
            );
            metrics::DECISIONS_LOST
                .counter(&[("kind", lost_kind(&kind))])
                .increment(decisions.unsigned_abs());
        }
        self.counted_in = Some(self.seen_epoch);
        Ok(())
    }

    /// Tells the gate how far PostgreSQL has applied the log, and trims the log well behind that.
    pub(super) async fn advance_watermark(&self, at: &Snapshot) -> Result<(), StepError> {
        let Snapshot { cursor, seen } = at;
        if cursor.seq <= seen.applied {
            return Ok(());
        }
        let keys = vec![Keys::meta(self.cell), Keys::new(self.cell, seen.epoch).log()];
        let (seq, kept) = (cursor.seq.to_string(), LOG_KEPT_ENTRIES.to_string());
        let args = vec![seen.epoch.to_string(), seq, cursor.tip.clone(), kept];
        ADVANCE_WATERMARK.call(&self.log.client, keys, args).await?;
        Ok(())
    }

    async fn wait_for_entries(
        &self,
        at: Option<Snapshot>,
        shutdown: &CancellationToken,
    ) -> Result<(), StepError> {
        let Some(Snapshot { cursor, .. }) = at else { return Ok(()) };
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            found = self.log.wait_after(cursor.epoch, cursor.seq) => Ok(found?),
        }
    }
}

/// The metric's label for a kind of decision.
fn lost_kind(kind: &str) -> &'static str {
    ["coupon", "charge", "order", "cancellation", "confirmation"]
        .into_iter()
        .find(|known| *known == kind)
        .unwrap_or("staff")
}
