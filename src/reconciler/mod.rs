//! The reconciler: PostgreSQL follows a cell's log.
//!
//! One leader per cell holds an advisory lock, on the connection that it also works on; stand-bys
//! wait for it. The lock only saves work: the compare-and-set of the cursor keeps two leaders from
//! applying an entry twice. [`step`] does one thing and returns what it did; [`run`] is the loop
//! around it.
//!
//! A [`Reconciler`] keeps the connection, the entries that it has prefetched, and how much one
//! transaction may hold. All of it can be lost at any time: PostgreSQL's cursor and the log are
//! what a new leader starts from.
//!
//! [`step`]: Reconciler::step
//! [`run`]: Reconciler::run

mod apply;
mod copy_buffer;
pub mod cursor;
pub mod differences;
mod drain;
mod entries;
mod halt;
mod lead;
mod load;
pub mod log_admin;
mod metrics;
mod pending;
pub mod plan;
mod prefetch;
pub mod quarantine;
mod rebuild;
pub mod report;
mod skip;
mod step;
mod takeover;
mod tidy;
pub mod verify;

use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio_util::sync::CancellationToken;

use crate::config::bounds::{APPLY_PACE, APPLY_PACE_WAITED_FOR, RETRY_PAUSE};
use crate::config::{Ack, Servers};
use crate::log::reader::{LogError, LogReader};
use crate::redis::RedisSetupError;
use crate::telemetry::repeated::Repeated;
use crate::truth;
pub use apply::{ApplyError, apply_differences};
use metrics::ReconcilerMetrics;
use prefetch::{ApplyBound, Prefetched};
pub use skip::SkipError;
pub use tidy::Housekeeping;

/// What one step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    /// Nothing new in the log.
    Idle,
    /// PostgreSQL has applied this many entries.
    Applied(usize),
    /// The gate was rebuilt, under this epoch.
    Rebuilt(u64),
    /// PostgreSQL refused the next entry, or the cell cannot open without an operator.
    Halted(String),
    /// Another reconciler has moved the cursor.
    Superseded,
}

/// A step that could not finish; the next one starts from what is stored.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error("PostgreSQL: {0}")]
    Truth(#[from] sqlx::Error),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the gate could not be loaded: {0}")]
    Load(#[from] load::LoadError),
    #[error(transparent)]
    Report(#[from] report::ReportError),
}

impl StepError {
    /// PostgreSQL got too much at once: the time limit of a statement (ours or its own) has passed.
    fn took_too_long(&self) -> bool {
        match self {
            Self::Truth(sqlx::Error::Io(e)) => e.kind() == std::io::ErrorKind::TimedOut,
            Self::Truth(e) => e
                .as_database_error()
                .and_then(|e| e.code())
                .is_some_and(|code| code == QUERY_CANCELED),
            Self::Log(_) | Self::Load(_) | Self::Report(_) => false,
        }
    }
}

impl From<fred::error::Error> for StepError {
    fn from(e: fred::error::Error) -> Self {
        Self::Log(e.into())
    }
}

/// PostgreSQL's code for a statement that was cancelled, by its time limit or by a user.
const QUERY_CANCELED: &str = "57014";
/// The longest that PostgreSQL may take for one transaction or statement.
const TRUTH_STEP_LIMIT: Duration = Duration::from_secs(30);

/// The leader or a stand-by of one cell.
pub struct Reconciler {
    database_url: String,
    log: LogReader,
    server: takeover::Server,
    conn: Option<PgConnection>,
    /// The entries that follow those applied last, prefetched.
    prefetched: Option<Prefetched>,
    bound: ApplyBound,
    cell: u32,
    pace: Duration,
    /// Logged once per change, not once per step.
    last_halt: Option<String>,
    /// When the entry that halted the cell was last tried.
    halt_tried: Instant,
    /// The epoch in which lost decisions were counted.
    counted_in: Option<u64>,
    /// The cursor's epoch as last read.
    seen_epoch: u64,
    /// Where a rebuild also writes what it cannot apply.
    report: Option<PathBuf>,
    told_lost: Option<report::Told>,
    metrics: ReconcilerMetrics,
}

impl Reconciler {
    pub async fn connect(servers: &Servers, cell: u32) -> Result<Self, RedisSetupError> {
        let log = LogReader::connect(&servers.redis_url, cell).await?;
        Ok(Self {
            database_url: servers.database_url.clone(),
            server: takeover::Server::new(&log.client),
            log,
            conn: None,
            prefetched: None,
            bound: ApplyBound::default(),
            cell,
            pace: APPLY_PACE,
            last_halt: None,
            halt_tried: Instant::now(),
            counted_in: None,
            seen_epoch: 0,
            report: None,
            told_lost: None,
            metrics: ReconcilerMetrics::new(cell),
        })
    }

    /// Shortens the time between transactions if clients wait for them.
    pub fn paced_for(mut self, ack: Ack) -> Self {
        self.pace = match ack {
            Ack::Gate => APPLY_PACE,
            Ack::Truth => APPLY_PACE_WAITED_FOR,
        };
        self
    }

    /// Has a rebuild write what it cannot apply to this file as well, before anything is removed.
    pub fn reporting_to(mut self, report: PathBuf) -> Self {
        self.report = Some(report);
        self
    }

    /// Runs until `shutdown`, leading when it can and standing by otherwise.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut trouble = Repeated::new("the reconciler starts over");
        while !shutdown.is_cancelled() {
            let led = self.lead(&shutdown, &mut trouble).await;
            self.metrics.leading.set(0.0);
            if let Err(e) = led {
                trouble.failed(&e);
                (self.conn, self.prefetched) = (None, None);
                pause(RETRY_PAUSE, &shutdown).await;
            }
        }
        if let Some(conn) = self.conn.take() {
            // Releases the lock; on an error, the end of the process does.
            let _ = conn.close().await;
        }
    }

    async fn connection(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        let conn = match self.conn.take() {
            Some(conn) => conn,
            None => {
                let options = truth::leader_session(&self.database_url, "rushgate-reconciler")?;
                let mut conn = options.connect().await?;
                // An entry that the watermark covers must survive a crash of PostgreSQL.
                sqlx::query(include_str!("sql/insist_on_commit.sql")).execute(&mut conn).await?;
                conn
            }
        };
        Ok(self.conn.insert(conn))
    }

    /// Removes old records and keys beside the steps.
    pub fn housekeeping(&self) -> Housekeeping {
        Housekeeping::new(&self.database_url, self.log.clone())
    }
}

fn timed_out() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        format!("no answer within {TRUTH_STEP_LIMIT:?}"),
    ))
}

/// Runs a single statement within the time limit. The caller drops the connection on an error.
async fn limited<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StepError> {
    match tokio::time::timeout(TRUTH_STEP_LIMIT, work).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(timed_out().into()),
    }
}

async fn pause(length: Duration, shutdown: &CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(length) => {}
    }
}
