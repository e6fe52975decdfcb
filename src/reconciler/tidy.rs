//! Housekeeping: removes idempotency records and keys of finished epochs that no request needs any
//! more.
//!
//! It runs beside the leader's steps, with its own connection to PostgreSQL and short transactions.
//! Its failures (a missing right, a DELETE that takes too long, a command that Redis forbids) are
//! logged and counted. The steps never wait for it and never fail because of it.

use std::time::{Duration, Instant};

use ::metrics::Counter;
use sqlx::{ConnectOptions, Connection, PgConnection};

use super::{StepError, limited};
use crate::log::reader::{LogError, LogReader};
use crate::redis::keys::DAY_MS;
use crate::telemetry::metrics::HOUSEKEEPING_FAILURES;
use crate::telemetry::repeated::Repeated;
use crate::truth;

/// Pause between two rounds while there is nothing more to remove.
const TIDY_EVERY: Duration = Duration::from_secs(600);
/// Pause between two rounds while there is more to remove.
const TIDY_PAUSE: Duration = Duration::from_millis(100);
/// Idempotency records that one round removes at most, so that their row locks are held only
/// briefly.
const TIDY_RECORDS: i64 = 5_000;
/// A round that is too slow is retried with half as many records, down to this number.
const TIDY_RECORDS_LEAST: i64 = 50;
/// PostgreSQL's time limit for one round.
const TIDY_STATEMENT_LIMIT: &str = "5s";

/// The housekeeping of one cell.
pub struct Housekeeping {
    database_url: String,
    log: LogReader,
    conn: Option<PgConnection>,
    records: i64,
    old_epochs: Task,
    old_records_in_redis: Task,
    old_records: Task,
}

/// One kind of work, with its failures counted and logged.
struct Task {
    failures: Counter,
    trouble: Repeated,
}

impl Task {
    fn new(what: &'static str, trouble: &'static str) -> Self {
        let failures = HOUSEKEEPING_FAILURES.counter(&[("what", what)]);
        Self { failures, trouble: Repeated::new(trouble) }
    }

    /// Records the outcome of a round; returns its result.
    fn note<T>(&mut self, outcome: Result<T, StepError>) -> Option<T> {
        match outcome {
            Ok(value) => {
                self.trouble.works();
                Some(value)
            }
            Err(error) => {
                self.failures.increment(1);
                self.trouble.failed(&error);
                None
            }
        }
    }
}

impl Housekeeping {
    pub fn new(database_url: &str, log: LogReader) -> Self {
        Self {
            database_url: database_url.to_owned(),
            log,
            conn: None,
            records: TIDY_RECORDS,
            old_epochs: Task::new("epochs", "keys of finished epochs cannot be removed from Redis"),
            old_records_in_redis: Task::new(
                "redis_records",
                "old idempotency records cannot be removed from Redis",
            ),
            old_records: Task::new(
                "records",
                "old idempotency records cannot be removed from PostgreSQL",
            ),
        }
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) {
        loop {
            let more = self.round().await;
            tokio::time::sleep(if more { TIDY_PAUSE } else { TIDY_EVERY }).await;
        }
    }

    /// Removes old records and keys. Returns whether there are more.
    pub async fn round(&mut self) -> bool {
        let meta = match self.log.meta().await {
            Ok(meta) => meta,
            Err(error) => {
                self.old_epochs.note(Err::<(), _>(error.into()));
                return false;
            }
        };
        if !meta.absent() {
            let yesterday = meta.clock_ms.div_euclid(DAY_MS) - 1;
            let done = self.log.unlink_before(meta.epoch).await;
            self.old_epochs.note(done.map_err(LogError::into));
            let done = self.log.unlink_records_before(meta.epoch, yesterday).await;
            self.old_records_in_redis.note(done.map_err(LogError::into));
        }
        let began = Instant::now();
        let outcome = self.delete_records(meta.clock_ms).await;
        let failed = outcome.is_err();
        let deleted = self.old_records.note(outcome);
        if failed {
            // After a timeout, the state of the connection is unknown. A statement that was too
            // slow may succeed on fewer rows.
            self.conn = None;
            if began.elapsed() > Duration::from_secs(1) && self.records > TIDY_RECORDS_LEAST {
                self.records = (self.records / 2).max(TIDY_RECORDS_LEAST);
                return true;
            }
        }
        deleted.is_some_and(|deleted| deleted >= self.records.unsigned_abs())
    }

    async fn delete_records(&mut self, clock_ms: i64) -> Result<u64, StepError> {
        let mut conn = match self.conn.take() {
            Some(conn) => conn,
            None => {
                let options = truth::leader_session(&self.database_url, "rushgate-housekeeping")?;
                let limits = [("statement_timeout", TIDY_STATEMENT_LIMIT), ("lock_timeout", "1s")];
                limited(options.options(limits).connect()).await?
            }
        };
        let delete =
            sqlx::query(include_str!("sql/tidy_idempotency.sql")).bind(clock_ms).bind(self.records);
        let deleted = limited(delete.execute(&mut conn)).await?.rows_affected();
        if deleted < self.records.unsigned_abs() {
            let _ = conn.close().await; // the next round is minutes away
        } else {
            self.conn = Some(conn);
        }
        Ok(deleted)
    }
}
