//! The reconciler: PostgreSQL follows a cell's log.
//!
//! One leader per cell holds an advisory lock, on the connection that it also works on; stand-bys wait for it. The lock
//! is for economy: what keeps two leaders from applying an entry twice is the cursor's compare-and-set. [`step`] does
//! one thing and says what; [`run`] is the loop around it.
//!
//! [`step`]: Reconciler::step
//! [`run`]: Reconciler::run

mod apply;
pub mod cursor;
mod load;
pub mod plan;
mod rebuild;
pub mod verify;

use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};
use tokio_util::sync::CancellationToken;

use crate::config::Servers;
use crate::config::bounds::{APPLY_BYTES, APPLY_ENTRIES, LOG_KEPT_ENTRIES, RETRY_PAUSE};
use crate::gate::RedisSetupError;
use crate::gate::cell::Meta;
use crate::gate::keys::{DAY_MS, Keys};
use crate::gate::script::{ADVANCE_WATERMARK, CLOSE_CELL};
use crate::log::reader::{LogError, LogReader};
use crate::log::{Entry, RawEntry};
use apply::{ApplyError, apply};
use cursor::{Cursor, Target};
use plan::Plan;
use verify::{Comparison, compare, unbroken};

/// What one step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing new in the log.
    Idle,
    /// This many entries are in PostgreSQL now.
    Applied(usize),
    /// The gate was built anew, under this epoch.
    Rebuilt(u64),
    /// PostgreSQL refused the next entry, or the cell cannot be opened without an operator.
    Halted(String),
    /// Another reconciler was faster.
    Superseded,
}

/// A step that could not be finished; the next one starts from what is stored.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error("PostgreSQL: {0}")]
    Truth(#[from] sqlx::Error),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the gate could not be loaded: {0}")]
    Load(#[from] load::LoadError),
}

impl From<fred::error::Error> for StepError {
    fn from(e: fred::error::Error) -> Self {
        Self::Log(e.into())
    }
}

/// First half of the advisory lock's key, "rgcell"; the second is the cell.
const LEADER_LOCK: i64 = 0x7267_6365_6c6c_0000;
/// How often a stand-by asks for the lock.
const STANDBY_PAUSE: Duration = Duration::from_secs(1);
/// How often old idempotency records are removed.
const TIDY_EVERY: Duration = Duration::from_secs(600);

/// The leader (or would-be leader) of one cell.
pub struct Reconciler {
    database_url: String,
    log: LogReader,
    conn: Option<PgConnection>,
    cell: u32,
    /// Said once per change, not once per step.
    last_halt: Option<String>,
    tidied: Option<Instant>,
}

impl Reconciler {
    pub async fn connect(servers: &Servers, cell: u32) -> Result<Self, RedisSetupError> {
        Ok(Self {
            database_url: servers.database_url.clone(),
            log: LogReader::connect(&servers.redis_url, cell).await?,
            conn: None,
            cell,
            last_halt: None,
            tidied: None,
        })
    }

    /// Runs until `shutdown`, leading when it can and standing by otherwise.
    pub async fn run(mut self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            if let Err(e) = self.lead(&shutdown).await {
                tracing::warn!(cell = self.cell, error = %e, "the reconciler starts over");
                self.conn = None;
                pause(RETRY_PAUSE, &shutdown).await;
            }
        }
        if let Some(conn) = self.conn.take() {
            let _ = conn.close().await; // gives the lock back; the process ends anyway
        }
    }

    async fn lead(&mut self, shutdown: &CancellationToken) -> Result<(), StepError> {
        while !self.try_lead().await? {
            pause(STANDBY_PAUSE, shutdown).await;
            if shutdown.is_cancelled() {
                return Ok(());
            }
        }
        tracing::info!(cell = self.cell, "leads the cell's reconciler");
        while !shutdown.is_cancelled() {
            match self.step().await? {
                Step::Applied(_) | Step::Rebuilt(_) => {}
                Step::Idle => self.wait_for_entries(shutdown).await?,
                Step::Halted(_) | Step::Superseded => pause(STANDBY_PAUSE, shutdown).await,
            }
        }
        Ok(())
    }

    /// Takes the leader lock; `false` when somebody else leads.
    pub async fn try_lead(&mut self) -> Result<bool, StepError> {
        let key = LEADER_LOCK + i64::from(self.cell);
        let led = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
            .bind(key)
            .fetch_one(self.connection().await?)
            .await?;
        Ok(led)
    }

    async fn connection(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        let conn = match self.conn.take() {
            Some(conn) => conn,
            None => {
                let mut conn = PgConnection::connect(&self.database_url).await?;
                // What the gate is told to be applied must survive a crash of PostgreSQL.
                sqlx::query(include_str!("sql/insist_on_commit.sql")).execute(&mut conn).await?;
                conn
            }
        };
        Ok(self.conn.insert(conn))
    }

    /// Compares the gate with the cursor, then applies what is new, or rebuilds, or halts. Not cancel-safe.
    pub async fn step(&mut self) -> Result<Step, StepError> {
        let cell = self.cell;
        let cursor = Cursor::read(self.connection().await?, cell).await?;
        if let Some(reason) = &cursor.halted_reason {
            return Ok(self.halted(reason.clone()));
        }
        let meta = self.log.meta().await?;
        match compare(&cursor, &meta) {
            Comparison::Same => {
                self.last_halt = None;
                let step = self.apply_next(&cursor).await?;
                self.advance_watermark(&meta).await?;
                Ok(step)
            }
            Comparison::Rebuild(reason) => self.rebuild(&cursor, &meta, &reason).await,
            Comparison::TruthWentBack(reason) => {
                self.close(meta.epoch, &reason).await?;
                Ok(self.halted(reason))
            }
        }
    }

    fn halted(&mut self, reason: String) -> Step {
        if self.last_halt.as_ref() != Some(&reason) {
            tracing::error!(cell = self.cell, reason, "the cell's reconciler is halted");
            metrics::counter!("rushgate_reconciler_halts_total").increment(1);
            self.last_halt = Some(reason.clone());
        }
        metrics::gauge!("rushgate_reconciler_halted", "cell" => self.cell.to_string()).set(1.0);
        Step::Halted(reason)
    }

    async fn close(&self, epoch: u64, reason: &str) -> Result<(), StepError> {
        let args = vec![epoch.to_string(), reason.to_owned()];
        if CLOSE_CELL.call(&self.log.client, vec![Keys::meta(self.cell)], args).await? {
            tracing::error!(cell = self.cell, epoch, reason, "closed the cell");
        }
        Ok(())
    }

    /// Applies the next entries after `cursor`, as far as the chain holds.
    async fn apply_next(&mut self, cursor: &Cursor) -> Result<Step, StepError> {
        let mut raw = self.log.after(cursor.epoch, cursor.seq, APPLY_ENTRIES).await?;
        bound_bytes(&mut raw);
        let found = raw.len();
        let valid = unbroken(cursor, raw);
        if valid.len() < found {
            let reason = format!("the log's chain is broken after entry {}", cursor.seq + valid.len() as u64);
            self.close(cursor.epoch, &reason).await?;
        }
        if valid.is_empty() {
            return Ok(Step::Idle);
        }
        self.apply_entries(cursor, &valid).await
    }

    /// Applies `entries` in one transaction; where PostgreSQL refuses them, one by one up to the refused one.
    async fn apply_entries(&mut self, cursor: &Cursor, entries: &[RawEntry]) -> Result<Step, StepError> {
        let started = Instant::now();
        match self.apply_once(cursor, entries).await {
            Ok(()) => {
                metrics::counter!("rushgate_reconciler_entries_total").increment(entries.len() as u64);
                metrics::histogram!("rushgate_reconciler_batch_duration_seconds").record(started.elapsed());
                metrics::gauge!("rushgate_reconciler_halted", "cell" => self.cell.to_string()).set(0.0);
                Ok(Step::Applied(entries.len()))
            }
            Err(ApplyError::Superseded) => Ok(Step::Superseded),
            Err(ApplyError::Failed(e)) => Err(e.into()),
            Err(ApplyError::Refused(_)) if entries.len() > 1 => {
                // Everything before the refused entry still goes in.
                let (first_half, _) = entries.split_at(entries.len() / 2);
                Box::pin(self.apply_entries(cursor, first_half)).await
            }
            Err(ApplyError::Refused(why)) => {
                let seq = cursor.seq + 1;
                let reason = format!(
                    "PostgreSQL refuses entry {seq} of epoch {}: {why}; look at it with `rushgate log show --seq {seq}`, \
                     then take it out of the way with `rushgate log skip --seq {seq}`",
                    cursor.epoch
                );
                cursor.halt(self.connection().await?, &reason).await?;
                Ok(self.halted(reason))
            }
        }
    }

    async fn apply_once(&mut self, cursor: &Cursor, entries: &[RawEntry]) -> Result<(), ApplyError> {
        let decoded: Vec<Entry> = entries
            .iter()
            .map(|raw| raw.decode().map_err(|e| ApplyError::Refused(e.to_string())))
            .collect::<Result<_, _>>()?;
        let plan = Plan::of(&decoded)?;
        let Some(last) = entries.last() else { return Ok(()) };
        let target = Target {
            epoch: cursor.epoch,
            seq: last.seq,
            tip: last.tip.clone(),
            clock_ms: plan.clock_ms,
            events: plan.event_count(),
        };
        let conn = self.connection().await.map_err(ApplyError::Failed)?;
        apply(conn, cursor, &target, &plan).await
    }

    /// Tells the gate what PostgreSQL has, and trims the log behind it.
    async fn advance_watermark(&mut self, seen: &Meta) -> Result<(), StepError> {
        let cell = self.cell;
        let cursor = Cursor::read(self.connection().await?, cell).await?;
        metrics::gauge!("rushgate_log_lag_entries", "cell" => cell.to_string())
            .set(seen.seq.saturating_sub(cursor.seq) as f64);
        if cursor.epoch != seen.epoch || cursor.seq <= seen.applied {
            return Ok(());
        }
        let keys = vec![Keys::meta(cell), Keys::new(cell, cursor.epoch).log()];
        let args = vec![cursor.epoch.to_string(), cursor.seq.to_string(), LOG_KEPT_ENTRIES.to_string()];
        ADVANCE_WATERMARK.call(&self.log.client, keys, args).await?;
        Ok(())
    }

    async fn wait_for_entries(&mut self, shutdown: &CancellationToken) -> Result<(), StepError> {
        if self.tidied.is_none_or(|at| at.elapsed() > TIDY_EVERY) {
            self.tidy().await?;
        }
        let cell = self.cell;
        let cursor = Cursor::read(self.connection().await?, cell).await?;
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            found = self.log.wait_after(cursor.epoch, cursor.seq) => Ok(found?),
        }
    }

    /// Removes idempotency records that no longer answer anybody.
    async fn tidy(&mut self) -> Result<(), StepError> {
        let meta = self.log.meta().await?;
        let yesterday = meta.clock_ms.div_euclid(DAY_MS) - 1;
        self.log.unlink_records_before(meta.epoch, yesterday).await?;
        sqlx::query(include_str!("sql/tidy_idempotency.sql"))
            .bind(meta.clock_ms)
            .execute(self.connection().await?)
            .await?;
        self.tidied = Some(Instant::now());
        Ok(())
    }
}

/// Cuts a batch so that its payloads stay within the bound; at least one entry stays.
fn bound_bytes(entries: &mut Vec<RawEntry>) {
    let mut bytes = 0;
    let fitting = entries
        .iter()
        .take_while(|entry| {
            bytes += entry.payload.len();
            bytes <= APPLY_BYTES
        })
        .count();
    entries.truncate(fitting.max(1));
}

async fn pause(length: Duration, shutdown: &CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(length) => {}
    }
}
