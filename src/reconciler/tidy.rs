//! Housekeeping beside the leader's steps: removes what no longer answers anybody. It has a connection to PostgreSQL of its
//! own and short transactions, and what fails there (a right that is missing, a DELETE that takes too long, a command that
//! Redis forbids) is logged and counted; the steps never wait for it, nor end because of it.

use std::time::{Duration, Instant};

use ::metrics::Counter;
use sqlx::{ConnectOptions, Connection, PgConnection};

use super::{StepError, limited};
use crate::gate::keys::DAY_MS;
use crate::log::reader::{LogError, LogReader};
use crate::telemetry::metrics::HOUSEKEEPING_FAILURES;
use crate::telemetry::repeated::Repeated;
use crate::truth;

/// How often old keys and records are looked for.
const TIDY_EVERY: Duration = Duration::from_secs(600);
/// Pause between two rounds while there is more to remove.
const TIDY_PAUSE: Duration = Duration::from_millis(100);
/// Idempotency records that one round removes at most: the locks on them are held for a moment only.
const TIDY_RECORDS: i64 = 5_000;
/// A round that is too slow is tried again with half as many, down to this.
const TIDY_RECORDS_LEAST: i64 = 50;
/// The longest that PostgreSQL works on one round.
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

/// One kind of work.
struct Task {
    failures: Counter,
    trouble: Repeated,
}

impl Task {
    fn new(what: &'static str, trouble: &'static str) -> Self {
        let failures = HOUSEKEEPING_FAILURES.counter(&[("what", what)]);
        Self { failures, trouble: Repeated::new(trouble) }
    }

    /// Notes how a round went; returns what it yielded.
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
            old_epochs: Task::new("epochs", "keys of epochs that are over cannot be removed from Redis"),
            old_records_in_redis: Task::new(
                "redis_records",
                "old idempotency records cannot be removed from Redis",
            ),
            old_records: Task::new("records", "old idempotency records cannot be removed from PostgreSQL"),
        }
    }

    /// Goes on until it is dropped.
    pub async fn run(mut self) {
        loop {
            let more = self.round().await;
            tokio::time::sleep(if more { TIDY_PAUSE } else { TIDY_EVERY }).await;
        }
    }

    /// Removes old records and keys; whether there is more.
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
            // A statement that was cut off leaves its connection in doubt. A slow one may succeed on fewer rows.
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
        let delete = sqlx::query(include_str!("sql/tidy_idempotency.sql")).bind(clock_ms).bind(self.records);
        let deleted = limited(delete.execute(&mut conn)).await?.rows_affected();
        if deleted < self.records.unsigned_abs() {
            let _ = conn.close().await; // until the next look in minutes
        } else {
            self.conn = Some(conn);
        }
        Ok(deleted)
    }
}
