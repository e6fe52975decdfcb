//! The PostgreSQL side of the relay: one connection that holds the leader's lock and does all of the relay's reading
//! and deleting. When it is lost, the lock is lost, and so is the ability to delete: there is nothing to keep in step.

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Row};
use std::future::Future;
use std::time::{Duration, Instant};
use tokio::time::timeout;

use crate::config::bounds::{
    RELAY_BYTES, RELAY_FIRST_CLAIM_TIMEOUT, RELAY_LOOK_BELOW, RELAY_ROWS, RELAY_STOP_GRACE,
    RELAY_TRUTH_TIMEOUT,
};
use crate::truth::{BY_KEY, lead_with};

/// Key of the advisory lock: "rgrelay" in ASCII.
const LEADER_LOCK: i64 = 0x0072_6772_656c_6179;

/// Beside [`BY_KEY`]: events come in the order of their keys.
const IN_ORDER: [(&str, &str); 2] = [("enable_bitmapscan", "off"), ("enable_sort", "off")];

/// One event on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxRow {
    pub outbox_id: i64,
    pub event_id: String,
    pub routing_key: String,
    pub payload: String,
    pub created_secs: i64,
}

impl OutboxRow {
    /// Both of its ids.
    pub fn name(&self) -> (i64, String) {
        (self.outbox_id, self.event_id.clone())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    #[error("PostgreSQL: {0}")]
    Sql(#[from] sqlx::Error),
    #[error("PostgreSQL did not answer within {0:?}")]
    TimedOut(Duration),
}

/// The outbox in the hands of the only relay that publishes.
pub struct Outbox {
    connection: PgConnection,
    /// Below it, nothing is left and nothing will come. It is stored with each delivery: deleted rows that an old snapshot
    /// still sees stay in the index, and a claim would walk over millions of them.
    floor: i64,
    /// Below it, all that was seen is delivered …
    from: i64,
    /// … and this is when it was last looked whether there is more, from the floor on: transactions of several cells need
    /// not commit in the order of their rows' ids.
    looked_below: Instant,
    /// A former `from`, and the first transaction that had not begun then.
    next_floor: Option<(i64, i64)>,
    claimed: bool,
}

impl Outbox {
    /// `None`: another relay holds the lock.
    pub async fn lead(options: &PgConnectOptions) -> Result<Option<Self>, OutboxError> {
        let options = lead_with(options.clone(), "rushgate-relay").options(BY_KEY).options(IN_ORDER);
        let mut connection = limited(options.connect()).await?;
        let locked: bool = limited(
            sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
                .bind(LEADER_LOCK)
                .fetch_one(&mut connection),
        )
        .await?;
        if locked {
            let sql = "SELECT coalesce(max(outbox_floor), 0) FROM relay_progress";
            let floor = limited(sqlx::query_scalar(sql).fetch_one(&mut connection)).await?;
            let looked_below = Instant::now();
            let (from, next_floor, claimed) = (floor, None, false);
            let mut outbox = Self { connection, floor, from, looked_below, next_floor, claimed };
            // Deletes no row, and proves that it could: a PostgreSQL that is read-only, or has not given the right, must be
            // found before events are published and not after.
            outbox.delivered(&[], false).await?;
            return Ok(Some(outbox));
        }
        let _ = timeout(RELAY_STOP_GRACE, connection.close()).await;
        Ok(None)
    }

    /// The next rows in order; also proves that the lock's session lives.
    pub async fn claim(&mut self) -> Result<Vec<OutboxRow>, OutboxError> {
        let from = self.from;
        let below = self.looked_below.elapsed() >= RELAY_LOOK_BELOW;
        let mut settled = None;
        if below {
            settled = self.settled().await?;
            (self.from, self.looked_below) = (self.floor, Instant::now());
        }
        // The first claim may have to walk over what was deleted before the floor was ever stored.
        let limit = if self.claimed { RELAY_TRUTH_TIMEOUT } else { RELAY_FIRST_CLAIM_TIMEOUT };
        let rows = limited_to(
            limit,
            sqlx::query(include_str!("claim.sql"))
                .bind(RELAY_ROWS)
                .bind(RELAY_BYTES)
                .bind(self.from)
                .fetch_all(&mut self.connection),
        )
        .await?;
        self.claimed = true;
        let first: Option<i64> = rows.first().map(|row| row.try_get("outbox_id")).transpose()?;
        if let Some(settled) = settled.filter(|settled| first.is_none_or(|first| first >= *settled)) {
            (self.floor, self.next_floor) = (settled, None);
        }
        if below && first.is_none_or(|first| first >= from) {
            self.from = from; // nothing has come below
        }
        rows.iter()
            .map(|row| {
                Ok(OutboxRow {
                    outbox_id: row.try_get("outbox_id")?,
                    event_id: row.try_get("event_id")?,
                    routing_key: row.try_get("routing_key")?,
                    payload: row.try_get("payload")?,
                    created_secs: row.try_get("created_secs")?,
                })
            })
            .collect::<Result<_, sqlx::Error>>()
            .map_err(OutboxError::from)
    }

    /// A former `from` below which everything is visible from now on: whatever transaction was under way then is over. (A
    /// transaction that writes events has an id before it takes its rows' ids: it moves the cursor first.)
    async fn settled(&mut self) -> Result<Option<i64>, OutboxError> {
        let sql = "SELECT pg_snapshot_xmin(now)::text::bigint, pg_snapshot_xmax(now)::text::bigint
                   FROM pg_current_snapshot() AS now";
        let (oldest, next): (i64, i64) = limited(sqlx::query_as(sql).fetch_one(&mut self.connection)).await?;
        let (from, begun_before) = *self.next_floor.get_or_insert((self.from, next));
        Ok((oldest >= begun_before).then_some(from))
    }

    /// Speaks on the lock's session, which PostgreSQL would end after a silence, and proves that it lives.
    pub async fn keep(&mut self) -> Result<(), OutboxError> {
        limited(sqlx::query("SELECT 1").execute(&mut self.connection)).await?;
        Ok(())
    }

    /// Deletes exactly these rows and counts them as published. `all`: nothing of the last claim is left.
    pub async fn delivered(&mut self, outbox_ids: &[i64], all: bool) -> Result<(), OutboxError> {
        let delivered = sqlx::query(include_str!("delivered.sql")).bind(outbox_ids).bind(self.floor);
        limited(delivered.execute(&mut self.connection)).await?;
        self.from = match outbox_ids.iter().max().filter(|_| all) {
            Some(last) => self.from.max(last + 1),
            None => self.floor,
        };
        Ok(())
    }

    /// Gives the lock back at once, instead of when PostgreSQL notices.
    pub async fn resign(self) {
        let _ = timeout(RELAY_STOP_GRACE, self.connection.close()).await;
    }
}

/// No transaction is ever begun here (each statement is one), so a statement cut off by the limit leaves nothing half
/// done; its connection must be dropped, though, and callers do.
async fn limited<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, OutboxError> {
    limited_to(RELAY_TRUTH_TIMEOUT, work).await
}

async fn limited_to<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, OutboxError> {
    match timeout(limit, work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(OutboxError::TimedOut(limit)),
    }
}
