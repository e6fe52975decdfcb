//! The PostgreSQL side of the relay: one connection holds the leader's lock and does all of the
//! relay's reading and deleting. A lost connection takes the lock and the ability to delete with
//! it, so the two cannot disagree.

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

/// In addition to [`BY_KEY`]: events are read through the index, in the order of their keys.
const IN_ORDER: [(&str, &str); 2] = [("enable_bitmapscan", "off"), ("enable_sort", "off")];

/// One event of the outbox.
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

/// The outbox, as held by the one relay that publishes.
pub struct Outbox {
    connection: PgConnection,
    /// No row is left below it, and none will come. It is stored with each delivery: deleted rows
    /// that an old snapshot still sees stay in the index, and without the floor a claim would walk
    /// over millions of them.
    floor: i64,
    /// Every row that was seen below it is delivered …
    from: i64,
    /// … and at this time the rows from the floor on were last checked for new ones: the
    /// transactions of several cells need not commit in the order of their rows' ids.
    looked_below: Instant,
    /// A former `from`, and the first transaction id that had not been assigned at that time.
    next_floor: Option<(i64, i64)>,
    claimed: bool,
}

impl Outbox {
    /// Takes the leader's lock. `None`: another relay holds it.
    pub async fn lead(options: &PgConnectOptions) -> Result<Option<Self>, OutboxError> {
        let options =
            lead_with(options.clone(), "rushgate-relay").options(BY_KEY).options(IN_ORDER);
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
            // This deletes no row, but proves that it could: a PostgreSQL that is read-only, or a
            // missing right, must be detected before events are published.
            outbox.delivered(&[], false).await?;
            return Ok(Some(outbox));
        }
        let _ = timeout(RELAY_STOP_GRACE, connection.close()).await;
        Ok(None)
    }

    /// Reads the next rows in order. This also proves that the lock's session is alive.
    pub async fn claim(&mut self) -> Result<Vec<OutboxRow>, OutboxError> {
        let from = self.from;
        let below = self.looked_below.elapsed() >= RELAY_LOOK_BELOW;
        let mut settled = None;
        if below {
            settled = self.settled().await?;
            (self.from, self.looked_below) = (self.floor, Instant::now());
        }
        // The first claim may have to walk over rows that were deleted before the floor was first
        // stored.
        let limit = if self.claimed { RELAY_TRUTH_TIMEOUT } else { RELAY_FIRST_CLAIM_TIMEOUT };
        let rows = limited_to(
            limit,
            sqlx::query(include_str!("sql/claim.sql"))
                .bind(RELAY_ROWS)
                .bind(RELAY_BYTES)
                .bind(self.from)
                .fetch_all(&mut self.connection),
        )
        .await?;
        self.claimed = true;
        let first: Option<i64> = rows.first().map(|row| row.try_get("outbox_id")).transpose()?;
        if let Some(settled) = settled.filter(|settled| first.is_none_or(|first| first >= *settled))
        {
            (self.floor, self.next_floor) = (settled, None);
        }
        if below && first.is_none_or(|first| first >= from) {
            self.from = from; // no row has appeared below
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

    /// A former `from` below which every row is visible from now on, because every transaction that
    /// was open at that time has ended. (A transaction that writes events gets its own id before
    /// its rows get theirs: it moves the cursor first.)
    async fn settled(&mut self) -> Result<Option<i64>, OutboxError> {
        let sql = "SELECT pg_snapshot_xmin(now)::text::bigint, pg_snapshot_xmax(now)::text::bigint
                   FROM pg_current_snapshot() AS now";
        let (oldest, next): (i64, i64) =
            limited(sqlx::query_as(sql).fetch_one(&mut self.connection)).await?;
        let (from, begun_before) = *self.next_floor.get_or_insert((self.from, next));
        Ok((oldest >= begun_before).then_some(from))
    }

    /// Sends a statement on the lock's session, which PostgreSQL would end when idle. The answer
    /// proves that the session is alive.
    pub async fn keep(&mut self) -> Result<(), OutboxError> {
        limited(sqlx::query("SELECT 1").execute(&mut self.connection)).await?;
        Ok(())
    }

    /// Deletes exactly these rows and counts them as published. `all`: no row of the last claim is
    /// left.
    pub async fn delivered(&mut self, outbox_ids: &[i64], all: bool) -> Result<(), OutboxError> {
        let delivered =
            sqlx::query(include_str!("sql/delivered.sql")).bind(outbox_ids).bind(self.floor);
        limited(delivered.execute(&mut self.connection)).await?;
        self.from = match outbox_ids.iter().max().filter(|_| all) {
            Some(last) => self.from.max(last + 1),
            None => self.floor,
        };
        Ok(())
    }

    /// Releases the lock at once, instead of when PostgreSQL notices that the connection is gone.
    pub async fn resign(self) {
        let _ = timeout(RELAY_STOP_GRACE, self.connection.close()).await;
    }
}

/// Each statement here is a transaction of its own, so one that is cut off by the limit leaves
/// nothing half done. Its connection must be dropped all the same, and callers do that.
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
