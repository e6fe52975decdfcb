//! The reconciler: PostgreSQL follows a cell's log.
//!
//! One leader per cell holds an advisory lock, on the connection that it also works on; stand-bys wait for it. The lock
//! is for economy: what keeps two leaders from applying an entry twice is the cursor's compare-and-set. [`step`] does
//! one thing and says what; [`run`] is the loop around it.
//!
//! [`step`]: Reconciler::step
//! [`run`]: Reconciler::run

mod ahead;
mod apply;
pub mod cursor;
pub mod differences;
mod drain;
mod load;
mod meters;
pub mod plan;
pub mod quarantine;
mod rebuild;
pub mod report;
mod rows;
mod skip;
mod takeover;
mod tidy;
pub mod verify;

use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use opentelemetry::trace::SpanKind;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::config::bounds::{APPLY_PACE, APPLY_PACE_WAITED_FOR, LOG_KEPT_ENTRIES, RETRY_PAUSE};
use crate::config::{Ack, Servers};
use crate::gate::RedisSetupError;
use crate::gate::cell::{Meta, close, stop};
use crate::gate::keys::Keys;
use crate::gate::script::ADVANCE_WATERMARK;
use crate::log::RawEntry;
use crate::log::reader::{LogError, LogReader, Page};
use crate::telemetry::metrics;
use crate::telemetry::repeated::Repeated;
use crate::truth;
use ahead::{Ahead, ApplyBound};
pub use apply::{ApplyError, apply_differences};
use apply::{apply, refuses};
use cursor::{Cursor, Target};
use meters::ReconcilerMeters;
use plan::{Plan, Prepared};
pub use skip::SkipError;
pub use tidy::Housekeeping;
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
    #[error(transparent)]
    Report(#[from] report::ReportError),
}

impl StepError {
    /// PostgreSQL was given too much at once: the time limit of a statement (here or there) has passed.
    fn took_too_long(&self) -> bool {
        match self {
            Self::Truth(sqlx::Error::Io(e)) => e.kind() == std::io::ErrorKind::TimedOut,
            Self::Truth(e) => {
                e.as_database_error().and_then(|e| e.code()).is_some_and(|code| code == QUERY_CANCELED)
            }
            Self::Log(_) | Self::Load(_) | Self::Report(_) => false,
        }
    }
}

impl From<fred::error::Error> for StepError {
    fn from(e: fred::error::Error) -> Self {
        Self::Log(e.into())
    }
}

/// Where PostgreSQL stands, and the gate as it was seen.
struct Known {
    cursor: Cursor,
    seen: Meta,
}

impl Known {
    /// After a step on `entries`, which follow the cursor.
    fn after(step: &Step, cursor: &Cursor, seen: Meta, entries: &[RawEntry]) -> Option<Self> {
        let cursor = match step {
            Step::Applied(applied) => Cursor::after(cursor, entries.get(..*applied)?.last()?),
            _ => cursor.clone(),
        };
        Some(Self { cursor, seen })
    }
}

/// Key of cell 0's advisory lock, "rgcell" in ASCII and two bytes to which the cell's number is added.
const LEADER_LOCK: i64 = 0x7267_6365_6c6c_0000;
/// PostgreSQL's code for a statement that was ended, by its time limit or by somebody.
const QUERY_CANCELED: &str = "57014";
/// How often a stand-by asks for the lock.
const STANDBY_PAUSE: Duration = Duration::from_secs(1);
/// How often the leader tries again what PostgreSQL has refused.
const HALT_RETRY: Duration = Duration::from_secs(10);
/// The longest that PostgreSQL may take for one transaction or statement.
const TRUTH_STEP_LIMIT: Duration = Duration::from_secs(30);

/// The leader (or would-be leader) of one cell.
pub struct Reconciler {
    database_url: String,
    log: LogReader,
    server: takeover::Server,
    conn: Option<PgConnection>,
    /// What follows the batch that was applied last.
    ahead: Option<Ahead>,
    bound: ApplyBound,
    cell: u32,
    pace: Duration,
    /// Said once per change, not once per step.
    last_halt: Option<String>,
    /// When the entry that halted the cell was tried last.
    halt_tried: Instant,
    /// The epoch in which what is lost was counted.
    counted_in: Option<u64>,
    /// The cursor's epoch as it was read last.
    seen_epoch: u64,
    /// Where an operator wants to read what a rebuild cannot apply.
    report: Option<PathBuf>,
    told_lost: Option<report::Told>,
    meters: ReconcilerMeters,
}

impl Reconciler {
    pub async fn connect(servers: &Servers, cell: u32) -> Result<Self, RedisSetupError> {
        let log = LogReader::connect(&servers.redis_url, cell).await?;
        Ok(Self {
            database_url: servers.database_url.clone(),
            server: takeover::Server::new(&log.client),
            log,
            conn: None,
            ahead: None,
            bound: ApplyBound::default(),
            cell,
            pace: APPLY_PACE,
            last_halt: None,
            halt_tried: Instant::now(),
            counted_in: None,
            seen_epoch: 0,
            report: None,
            told_lost: None,
            meters: ReconcilerMeters::new(cell),
        })
    }

    /// With less time between transactions if clients wait for them.
    pub fn paced_for(mut self, ack: Ack) -> Self {
        self.pace = match ack {
            Ack::Gate => APPLY_PACE,
            Ack::Truth => APPLY_PACE_WAITED_FOR,
        };
        self
    }

    /// Writes what a rebuild finds and cannot apply to a file as well, before anything is removed.
    pub fn reporting_to(mut self, report: PathBuf) -> Self {
        self.report = Some(report);
        self
    }

    /// Runs until `shutdown`, leading when it can and standing by otherwise.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut trouble = Repeated::new("the reconciler starts over");
        while !shutdown.is_cancelled() {
            let led = self.lead(&shutdown, &mut trouble).await;
            self.meters.leading.set(0.0);
            if let Err(e) = led {
                trouble.failed(&e);
                (self.conn, self.ahead) = (None, None);
                pause(RETRY_PAUSE, &shutdown).await;
            }
        }
        if let Some(conn) = self.conn.take() {
            let _ = conn.close().await; // gives the lock back; the process ends anyway
        }
    }

    async fn lead(&mut self, shutdown: &CancellationToken, trouble: &mut Repeated) -> Result<(), StepError> {
        while !self.try_lead().await? {
            // Nobody waits longer for PostgreSQL, so one that does is not at work.
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
        self.meters.leading.set(1.0);
        tracing::info!(cell = self.cell, "leads the cell's reconciler");
        // What an earlier leader could not apply, this one (a newer version, a mended schema) may.
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

    /// One step and what it leaves to be done; waits until there may be another. Where that is at once, also returns what
    /// the next step would ask for first.
    async fn lead_on(
        &mut self,
        known: Option<Known>,
        shutdown: &CancellationToken,
    ) -> Result<Option<Known>, StepError> {
        let began = Instant::now();
        let (step, at) = self.work(known).await?;
        // A transaction costs the same for one entry as for many: those that follow shortly go together.
        let rest = if self.is_level() { self.pace.saturating_sub(began.elapsed()) } else { Duration::ZERO };
        if let (Step::Applied(_), true, Some(at)) = (&step, rest.is_zero(), &at) {
            return Box::pin(self.tell_and_look(at)).await;
        }
        if let Some(at) = &at {
            self.tell(at).await?;
        }
        match step {
            Step::Applied(_) => pause(rest, shutdown).await,
            Step::Rebuilt(_) => {}
            Step::Idle => self.wait_for_entries(at, shutdown).await?,
            Step::Halted(_) => pause(STANDBY_PAUSE, shutdown).await,
            Step::Superseded => {
                let cell = self.cell;
                tracing::info!(cell, "another reconciler has moved the cursor; this one looks again");
                pause(STANDBY_PAUSE, shutdown).await;
            }
        }
        Ok(None)
    }

    /// Tells the gate what PostgreSQL has, and in the same round trip asks for what follows. `None` where anything is out of
    /// the ordinary, or nothing follows: the next step looks for itself, in the order in which it can judge what it sees.
    async fn tell_and_look(&mut self, at: &Known) -> Result<Option<Known>, StepError> {
        let kept = self.ahead.take();
        let looking = async {
            match kept {
                Some(ahead) => Some(ahead),
                None => Ahead::look(&self.log, &at.cursor, self.bound).await,
            }
        };
        let (told, ahead, seen) = tokio::join!(self.tell(at), looking, self.log.meta());
        told?;
        let known = Known { cursor: at.cursor.clone(), seen: seen? };
        let follows = ahead.as_ref().is_some_and(|ahead| ahead.is_next(&known.cursor, &known.seen));
        self.ahead = ahead;
        Ok((follows && compare(&known.cursor, &known.seen) == Comparison::Same).then_some(known))
    }

    /// Whether nothing is known that follows what was applied last.
    pub fn is_level(&self) -> bool {
        self.ahead.is_none()
    }

    /// Takes the leader lock; `false` when somebody else leads.
    pub async fn try_lead(&mut self) -> Result<bool, StepError> {
        let ask = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(self.leader_lock());
        limited(ask.fetch_one(self.connection().await?)).await
    }

    /// Ends the session of a leader that has stood still within a COPY for so long; `false`: there is none.
    pub async fn end_stuck_leader(&mut self, stuck_for: Duration) -> Result<bool, StepError> {
        let end = sqlx::query_scalar(include_str!("sql/end_stuck_leader.sql"));
        let end = end.bind(self.leader_lock()).bind(stuck_for.as_secs_f64());
        limited(end.fetch_one(self.connection().await?)).await
    }

    fn leader_lock(&self) -> i64 {
        LEADER_LOCK + i64::from(self.cell)
    }

    async fn connection(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        let conn = match self.conn.take() {
            Some(conn) => conn,
            None => {
                let options = truth::leader_session(&self.database_url, "rushgate-reconciler")?;
                let mut conn = options.connect().await?;
                // What the gate is told to be applied must survive a crash of PostgreSQL.
                sqlx::query(include_str!("sql/insist_on_commit.sql")).execute(&mut conn).await?;
                conn
            }
        };
        Ok(self.conn.insert(conn))
    }

    /// Compares the gate with the cursor, then applies what is new, or rebuilds, or halts. Not cancel-safe.
    pub async fn step(&mut self) -> Result<Step, StepError> {
        let (step, at) = self.work(None).await?;
        if let Some(at) = at {
            self.tell(&at).await?;
        }
        Ok(step)
    }

    /// A step that asks for nothing that is `known`. Also returns what the gate is to be [told](Self::tell).
    async fn work(&mut self, known: Option<Known>) -> Result<(Step, Option<Known>), StepError> {
        let (cursor, meta) = match known {
            Some(Known { cursor, seen }) => (cursor, seen),
            None => (self.cursor().await?, self.log.meta().await?),
        };
        let server = self.server_id().await?;
        if self.renew_unless_gate(&cursor, server.as_deref()).await? {
            return Box::pin(self.work(None)).await; // once: what was made anew is not made anew again
        }
        let comparison = compare(&cursor, &meta);
        self.seen_epoch = cursor.epoch;
        if comparison == Comparison::Same && !cursor.skipping {
            if cursor.gate != server {
                if !self.take_over(&cursor, server.as_deref()).await? {
                    return Ok((Step::Superseded, None));
                }
                return Box::pin(self.work(None)).await;
            }
            match &cursor.halted_reason {
                Some(reason) if !self.tries_halted_again() => {
                    return Ok((self.halted(reason.clone()), None));
                }
                Some(_) => {}
                None => self.last_halt = None,
            }
            return self.apply_next(&cursor, meta).await;
        }
        // The cursor was read first. Another leader may have moved it, and the gate's watermark, before `meta` was.
        if self.cursor().await? != cursor {
            return Ok((Step::Superseded, None));
        }
        let step = match comparison {
            Comparison::Rebuild(reason) => self.rebuild(&cursor, &meta, &reason).await?,
            Comparison::TruthWentBack(reason) => {
                stop(&self.log.client, self.cell, meta.epoch, &reason).await?;
                self.halted(reason)
            }
            Comparison::Same => self.rebuild(&cursor, &meta, "a fact is being skipped").await?,
        };
        Ok((step, None))
    }

    async fn cursor(&mut self) -> Result<Cursor, StepError> {
        let cell = self.cell;
        let conn = self.connection().await?;
        limited(Cursor::read(conn, cell)).await
    }

    fn halted(&mut self, reason: String) -> Step {
        if self.last_halt.as_ref() != Some(&reason) {
            tracing::error!(cell = self.cell, reason, "the cell's reconciler is halted");
            self.meters.halts.increment(1);
            self.last_halt = Some(reason.clone());
        }
        Step::Halted(reason)
    }

    /// Whether it is time for that: somebody may have mended what PostgreSQL refused.
    fn tries_halted_again(&mut self) -> bool {
        let due = self.halt_tried.elapsed() >= HALT_RETRY && self.last_halt.is_some();
        if due {
            self.halt_tried = Instant::now();
        }
        due
    }

    /// Counts what will never be in PostgreSQL, once in the cluster: a rebuild or an operator has written it down before the epoch
    /// began.
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

    /// Applies the next entries after `cursor`, as far as the chain holds; also says how far that is, where it knows, for
    /// the gate as it was `seen`.
    async fn apply_next(&mut self, cursor: &Cursor, seen: Meta) -> Result<(Step, Option<Known>), StepError> {
        let ahead = self.ahead.take().filter(|ahead| ahead.is_next(cursor, &seen));
        if let Some(Ahead { next, prepared, .. }) = ahead {
            let step = self.apply_entries(cursor, &next.entries, Some(&prepared), next.more).await?;
            let at = Known::after(&step, cursor, seen, &next.entries);
            return Ok((step, at));
        }
        let Page { entries, more } = ahead::read(&self.log, cursor.epoch, cursor.seq, self.bound).await?;
        let found = entries.len();
        let valid = unbroken(cursor, entries);
        // `seen` was read before the log, so its last entry must be there.
        let missing = valid.is_empty() && seen.seq > cursor.seq;
        if valid.len() < found || missing {
            // Or another leader has applied and trimmed what is not there.
            if self.cursor().await? != *cursor {
                return Ok((Step::Superseded, None));
            }
            let reason = format!("the log does not go on after entry {}", cursor.seq + valid.len() as u64);
            close(&self.log.client, self.cell, cursor.epoch, &reason).await?;
        }
        let more = more && valid.len() == found;
        let step = if valid.is_empty() {
            Step::Idle
        } else {
            self.apply_entries(cursor, &valid, None, more).await?
        };
        let at = Known::after(&step, cursor, seen, &valid);
        Ok((step, at))
    }

    /// Applies `entries` (which may be prepared already) in one transaction; where PostgreSQL refuses them, one by one up to
    /// the refused one. Looks ahead meanwhile, if there are `more`.
    async fn apply_entries(
        &mut self,
        cursor: &Cursor,
        entries: &[RawEntry],
        prepared: Option<&[Prepared]>,
        more: bool,
    ) -> Result<Step, StepError> {
        match self.apply_once(cursor, entries, prepared, more).await {
            Ok(()) => {
                self.bound.grow();
                Ok(Step::Applied(entries.len()))
            }
            Err(ApplyError::Superseded) => Ok(Step::Superseded),
            Err(ApplyError::Failed(e)) => {
                let e = StepError::from(e);
                // The next try is for less. Whether this one was committed, the cursor says.
                if e.took_too_long() && self.bound.halve() {
                    tracing::warn!(cell = self.cell, error = %e, "a transaction took too long; the next one is smaller");
                }
                Err(e)
            }
            Err(ApplyError::Refused(_)) if entries.len() > 1 => {
                // Everything before the refused entry still goes in.
                let (first_half, _) = entries.split_at(entries.len() / 2);
                Box::pin(self.apply_entries(cursor, first_half, None, false)).await
            }
            Err(ApplyError::Refused(why)) => self.halt(cursor, entries, &why).await,
        }
    }

    /// Halts at the one entry that PostgreSQL refuses, and names the fact.
    async fn halt(&mut self, cursor: &Cursor, entries: &[RawEntry], why: &str) -> Result<Step, StepError> {
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

    /// The first fact that PostgreSQL refuses, from 1, and how many there are. `None`: the entry cannot be read.
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
        // All of them together are refused, so the first that is lies in `accepted + 1 ..= refused`.
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

    async fn apply_once(
        &mut self,
        cursor: &Cursor,
        entries: &[RawEntry],
        prepared: Option<&[Prepared]>,
        more: bool,
    ) -> Result<(), ApplyError> {
        if cursor.skipping {
            return self.apply_differences(cursor, entries).await;
        }
        let mut prepared_now = Vec::new();
        let prepared = match prepared {
            Some(prepared) => prepared,
            None => {
                for entry in entries {
                    prepared_now.push(Prepared::of(entry)?);
                }
                &prepared_now
            }
        };
        let plan = Plan::of(prepared)?;
        let Some(last) = entries.last() else { return Ok(()) };
        let target = Target::at(last, &plan);
        // What was read may be another server's log.
        if !self.server.is_same() {
            return Err(ApplyError::Superseded);
        }
        self.connection().await.map_err(ApplyError::Failed)?;
        let bound = self.bound;
        let Self { conn: Some(conn), log, .. } = self else { return Err(ApplyError::Failed(timed_out())) };
        // Cut off, the transaction's outcome is unknown; its connection is dropped and the cursor read again.
        let started = Instant::now();
        let applying = async {
            let applied = tokio::time::timeout(TRUTH_STEP_LIMIT, apply(conn, cursor, &target, &plan)).await;
            (applied, started.elapsed())
        };
        let place = Cursor::at(log.cell, last);
        let looking = async { if more { Ahead::look(log, &place, bound).await } else { None } };
        let ((applied, took), ahead) = tokio::join!(applying, looking);
        match applied {
            Ok(outcome) => {
                outcome?;
                self.ahead = ahead;
                self.meters.applied(entries.len(), &plan.won, took);
                plan.traced
                    .iter()
                    .for_each(|(name, trace, at)| trace.child_since(SpanKind::Internal, name, *at));
                Ok(())
            }
            Err(_) => {
                self.conn = None;
                Err(ApplyError::Failed(timed_out()))
            }
        }
    }

    async fn apply_differences(&mut self, cursor: &Cursor, entries: &[RawEntry]) -> Result<(), ApplyError> {
        // What was read may be another server's log.
        if !self.server.is_same() {
            return Err(ApplyError::Superseded);
        }
        let started = Instant::now();
        let conn = self.connection().await.map_err(ApplyError::Failed)?;
        let applied = apply_differences(conn, cursor, entries);
        match tokio::time::timeout(TRUTH_STEP_LIMIT, applied).await {
            Ok(won) => self.meters.applied(entries.len(), &won?, started.elapsed()),
            Err(_) => {
                self.conn = None;
                return Err(ApplyError::Failed(timed_out()));
            }
        }
        Ok(())
    }

    /// Tells the gate what PostgreSQL has, and trims the log behind it.
    async fn tell(&self, at: &Known) -> Result<(), StepError> {
        let Known { cursor, seen } = at;
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
        at: Option<Known>,
        shutdown: &CancellationToken,
    ) -> Result<(), StepError> {
        let Some(Known { cursor, .. }) = at else { return Ok(()) };
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            found = self.log.wait_after(cursor.epoch, cursor.seq) => Ok(found?),
        }
    }

    /// What removes old records and keys beside the steps.
    pub fn housekeeping(&self) -> Housekeeping {
        Housekeeping::new(&self.database_url, self.log.clone())
    }
}

/// The metric's name for what a fact made.
fn lost_kind(kind: &str) -> &'static str {
    ["coupon", "charge", "order", "cancellation"].into_iter().find(|known| *known == kind).unwrap_or("staff")
}

fn timed_out() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        format!("no answer within {TRUTH_STEP_LIMIT:?}"),
    ))
}

/// For single statements. The caller drops the connection on an error.
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
