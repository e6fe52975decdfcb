//! PostgreSQL as the API reads it: orders, ledgers, popular products, and how far the log is
//! applied.
//!
//! Only [`migrate`] writes here. The reconciler, the relay and the scheduler write, too, each in
//! its own module. Every query has a time limit on both sides (`statement_timeout` there, a
//! deadline here), so that a hanging PostgreSQL costs an answer and no request waits for ever.
//! Times enter and leave PostgreSQL as milliseconds since the Unix epoch.
//!
//! A [`Truth`] wraps a pool and lives as long as the process; its methods are spread over the
//! modules below.

use std::future::Future;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

use crate::config::InvalidSetting;
use crate::config::bounds::CONNECT_TIMEOUT;

mod examined;
mod holders;
mod ledger;
mod lost_decisions;
pub mod migrate;
mod migration;
mod order_search;
mod orders;
mod popular;
mod products;
mod progress;
mod tally;

pub use examined::Examined;
pub use holders::Holder;
pub use ledger::LedgerEntry;
pub use migration::Migration;
pub use order_search::OrderSearch;
pub use orders::{KeyUse, orders_by_id};
pub use popular::{PopularList, PopularRank};
pub use progress::{CellCursor, Progress, Vitals};
pub use tally::CouponTally;

/// PostgreSQL could not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PostgreSQL did not answer: {0}")]
pub struct TruthError(pub String);

/// Connections for reads; cheap to clone.
#[derive(Clone, Debug)]
pub struct Truth {
    pool: PgPool,
    timeout: Duration,
}

/// A pool that connects when it is first used. `timeout` bounds the wait for a connection and each
/// statement.
pub fn pool(
    database_url: &str,
    connections: u32,
    timeout: Duration,
) -> Result<PgPool, InvalidSetting> {
    Ok(pool_with(options_of(database_url, timeout)?, connections, timeout))
}

/// Options for sessions whose statements find rows by their keys. PostgreSQL may keep a statement's
/// plan from its sixth execution on: a plan that was made while a table was nearly empty would scan
/// all of it once it is full. A table without a usable index is still scanned, at an estimated cost
/// that stands for "never". Without `jit = off`, PostgreSQL would take that estimate for work that
/// is worth compiling.
pub const BY_KEY: [(&str, &str); 2] = [("enable_seqscan", "off"), ("jit", "off")];

/// A [`pool`] whose statements find rows by their keys, as all statements of the API do; see
/// [`BY_KEY`].
pub fn pool_for_reads(
    database_url: &str,
    connections: u32,
    timeout: Duration,
) -> Result<PgPool, InvalidSetting> {
    let options = options_of(database_url, timeout)?.options(BY_KEY);
    Ok(pool_with(options, connections, timeout))
}

/// A pool for an audit. It scans whole tables, so one statement may take as long as the whole
/// audit. Keepalives detect a server that is gone.
pub fn pool_for_audit(database_url: &str, timeout: Duration) -> Result<PgPool, InvalidSetting> {
    let options = options_of(database_url, timeout)?.options([
        ("tcp_keepalives_idle", "10"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
    ]);
    Ok(pool_with(options, 2, CONNECT_TIMEOUT))
}

fn options_of(database_url: &str, timeout: Duration) -> Result<PgConnectOptions, InvalidSetting> {
    let options = PgConnectOptions::from_str(database_url).map_err(|error| {
        InvalidSetting(format!(
            "RUSHGATE_DATABASE_URL is not a PostgreSQL address ({error}): use one like \
             postgres://user:password@host:5432/database"
        ))
    })?;
    let statement_timeout = [("statement_timeout", timeout.as_millis().to_string())];
    Ok(options.application_name("rushgate").options(statement_timeout))
}

fn pool_with(options: PgConnectOptions, connections: u32, timeout: Duration) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(timeout)
        .connect_lazy_with(options)
}

/// Options of a leader's session, which holds an advisory lock (reconciler, relay). A leader that
/// has vanished, or whose process is stopped, must lose its session, and with it the lock; a
/// working leader sends something every second. Needs PostgreSQL 14 or newer.
pub fn leader_session(database_url: &str, name: &str) -> Result<PgConnectOptions, sqlx::Error> {
    Ok(lead_with(PgConnectOptions::from_str(database_url)?, name))
}

/// See [`leader_session`].
pub fn lead_with(options: PgConnectOptions, name: &str) -> PgConnectOptions {
    options.application_name(name).options([
        ("tcp_keepalives_idle", "10"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
        ("idle_session_timeout", "30s"),
        ("idle_in_transaction_session_timeout", "30s"),
        ("lock_timeout", "20s"),
        // Reading thousands of rows by key looks expensive enough to compile; compiling never pays
        // off.
        ("jit", "off"),
    ])
}

impl Truth {
    /// `timeout` bounds each read, the wait for a connection included.
    pub fn new(pool: PgPool, timeout: Duration) -> Self {
        Self { pool, timeout }
    }

    /// Whether PostgreSQL answers at all.
    pub async fn ping(&self) -> Result<(), TruthError> {
        self.read(sqlx::query("SELECT 1").execute(&self.pool)).await.map(|_| ())
    }

    async fn read<T>(
        &self,
        query: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, TruthError> {
        match tokio::time::timeout(self.timeout, query).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(TruthError(error.to_string())),
            Err(_) => Err(TruthError(format!("no answer within {} ms", self.timeout.as_millis()))),
        }
    }
}

/// For `bigint` columns with a constraint that keeps them at or above zero: a negative value means
/// a broken database.
fn unsigned(column: &'static str, value: i64) -> Result<u64, TruthError> {
    u64::try_from(value)
        .map_err(|_| TruthError(format!("column {column} holds {value}, which is below zero")))
}

fn limit_of(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
