//! `rushgate clock show|reset`: compares the gate's clock with the clocks of the Redis server and
//! of this machine, and sets it back after a jump.
//!
//! The gate's clock never runs backwards by itself, so that an issuing window that clients have
//! seen closed stays closed. If Redis' clock jumps forward and facts are dated by it, the gate's
//! clock stands still until real time has caught up. Only an operator may set it back earlier.

use std::fmt;
use std::time::{Duration, Instant};

use fred::prelude::*;
use sqlx::PgConnection;

use crate::config::bounds::{CLOCK_RESET_WAIT, CLOCK_SAME};
use crate::domain::{TimestampMs, rfc3339};
use crate::redis::control::{RESET_CLOCK, server_time};
use crate::redis::keys::Keys;
use crate::redis::meta::Meta;

#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    #[error("Redis: {}", .0.details())]
    Redis(#[from] Error),
    #[error("PostgreSQL: {0}")]
    Truth(#[from] sqlx::Error),
    #[error("cell {0} has no gate; the reconciler builds it")]
    NoGate(u32),
    #[error(
        "Redis' clock and this machine's clock differ by {} s: correct the wrong one first; otherwise the gate's clock \
         follows it again",
        .0 / 1_000
    )]
    ClocksDiffer(i64),
    #[error(
        "the gate's clock is reset, but within {CLOCK_RESET_WAIT:?} PostgreSQL has not applied all entries dated before the \
         reset: run this command again once it has caught up; otherwise a rebuild restores the old time"
    )]
    NotApplied,
}

/// The clocks of one cell, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    pub cell: u32,
    epoch: u64,
    /// The latest time that the gate has used.
    pub gate: TimestampMs,
    /// PostgreSQL's copy of it, with which a rebuilt gate starts.
    pub truth: TimestampMs,
    pub server: TimestampMs,
    pub here: TimestampMs,
}

impl fmt::Display for Clocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cell, gate, truth, server, here, .. } = *self;
        let row = |name: &str, at: TimestampMs| {
            format!("  {name:<22} {}  {:+.3} s", rfc3339(at), (at - here) as f64 / 1_000.0)
        };
        writeln!(f, "cell {cell}, against this machine's clock:")?;
        writeln!(f, "{}", row("the gate has used", gate))?;
        writeln!(f, "{}", row("PostgreSQL has seen", truth))?;
        writeln!(f, "{}", row("Redis' server", server))?;
        write!(f, "{}", row("this machine", here))
    }
}

/// Reads all clocks of a cell.
pub async fn show(
    client: &Client,
    conn: &mut PgConnection,
    cell: u32,
) -> Result<Clocks, ClockError> {
    let meta = Meta::read(client, cell).await?;
    if meta.absent() {
        return Err(ClockError::NoGate(cell));
    }
    let server = server_time(client, cell).await?;
    let here = jiff::Timestamp::now().as_millisecond();
    let query = "SELECT clock_ms FROM cell_cursors WHERE cell = $1";
    let truth: Option<i64> =
        sqlx::query_scalar(query).bind(number(cell)).fetch_optional(conn).await?;
    let (epoch, gate) = (meta.epoch, meta.clock_ms);
    Ok(Clocks { cell, epoch, gate, truth: truth.unwrap_or(0), server, here })
}

/// Sets the gate's clock back to the server's clock: first in Redis, then, once PostgreSQL has
/// applied the entries dated before, in PostgreSQL.
pub async fn reset(
    client: &Client,
    conn: &mut PgConnection,
    cell: u32,
) -> Result<Clocks, ClockError> {
    let before = show(client, conn, cell).await?;
    let off_ms = before.server - before.here;
    if off_ms.unsigned_abs() > CLOCK_SAME.as_millis() as u64 {
        return Err(ClockError::ClocksDiffer(off_ms));
    }
    RESET_CLOCK.call(client, vec![Keys::meta(cell)], vec![before.epoch.to_string()]).await?;
    // Applying an entry dated before the reset would move PostgreSQL's copy forward again.
    let last = Meta::read(client, cell).await?.seq;
    let deadline = Instant::now() + CLOCK_RESET_WAIT;
    loop {
        let meta = Meta::read(client, cell).await?;
        if meta.epoch != before.epoch || meta.applied >= last {
            break;
        }
        if Instant::now() >= deadline {
            return Err(ClockError::NotApplied);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let now = server_time(client, cell).await?;
    sqlx::query("UPDATE cell_cursors SET clock_ms = least(clock_ms, $2), updated_at = now() WHERE cell = $1")
        .bind(number(cell))
        .bind(now)
        .execute(&mut *conn)
        .await?;
    show(client, conn, cell).await
}

fn number(cell: u32) -> i32 {
    i32::try_from(cell).unwrap_or(i32::MAX)
}
