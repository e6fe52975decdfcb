//! The fence: an instance decides only while PostgreSQL names its Redis as the cell's gate.
//!
//! The table `cell_cursors` holds each cell's epoch and the run id of the one Redis server that
//! decides in that epoch. [`Watcher`] reads it at least every `FENCE_LOOK_EVERY`; one such read is
//! a *look*. Each look grants a *lease*: for `FENCE_LEASE` from the look's beginning, the instance
//! may decide in that epoch on that server. Every batch carries the end of the lease as a time on
//! the server's clock, and the script compares it with that clock. So a batch that arrives late (a
//! frozen process, a stalled network) is refused by the old Redis, too. A rebuild on another server
//! changes the row, waits until every lease has ended, and only then opens. docs/architecture.md
//! ("The fence") has the reasons.
//!
//! One [`Fence`] per instance starts looks and counts them. One [`CellFence`] per cell holds the
//! row and the lease of the last look, and judges each batch.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::cell::Cell;
use crate::config::FenceMode;
use crate::config::bounds::{
    FENCE_ANSWER_LIMIT, FENCE_FOLLOW_FIRST, FENCE_FOLLOW_MAX, FENCE_LEASE, FENCE_LOOK_EVERY,
    FENCE_LOOK_LIMIT, FENCE_LOOK_REFUSED,
};
use crate::domain::TimestampMs;
use crate::telemetry::metrics;

/// The part of the fence that all cells of an instance share.
pub struct Fence {
    mode: FenceMode,
    /// Counts looks that have succeeded, failed, or exceeded `FENCE_LOOK_LIMIT`.
    looks: watch::Sender<u64>,
    asked: Notify,
}

impl Fence {
    pub fn new(mode: FenceMode) -> Arc<Self> {
        Arc::new(Self { mode, looks: watch::Sender::new(0), asked: Notify::new() })
    }

    /// Waits for the end of the next look. It starts at once unless a look is in flight.
    pub async fn look(&self) {
        let mut looks = self.looks.subscribe();
        self.asked.notify_one();
        // After a timeout the caller judges by the last known state.
        let _ = timeout(FENCE_LOOK_LIMIT * 3, looks.changed()).await;
    }
}

/// A cell's row in `cell_cursors`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    pub epoch: u64,
    /// The run id of the server that decides in this epoch. Empty: no server may decide for now.
    /// `None`: no server is named.
    pub gate: Option<String>,
}

/// The period in which the instance may decide.
#[derive(Clone, Copy, Debug)]
struct Lease {
    /// When the look began.
    began: Instant,
    until: Instant,
    /// The end on the server's clock, if that clock was known when the look began.
    until_ms: Option<TimestampMs>,
}

/// The two connections of a cell, which may lead to different servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Writer,
    Reader,
}

#[derive(Debug, Default)]
struct State {
    /// The row of the last successful look. `None`: PostgreSQL has no row for the cell, or no look
    /// has succeeded yet.
    row: Option<Row>,
    lease: Option<Lease>,
    /// Whether the last look succeeded.
    seen: bool,
    /// When and why the last look failed.
    failing: Option<(Instant, String)>,
    /// Per [`Side`], whether the connection leads to a server other than the gate.
    elsewhere: [bool; 2],
    /// While the cell is fenced off: the time of the next reconnect, and the pause before it.
    follow: Option<(Instant, Duration)>,
}

/// Whether the instance may decide now, in a given epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes, until `until`, and only on the server `gate` if one is named. `until_ms` is the same
    /// time on the server's clock, if that clock was known. `seen`: the last look succeeded.
    Decide {
        until: Instant,
        until_ms: Option<TimestampMs>,
        gate: Option<String>,
        seen: bool,
    },
    /// Not before another look at PostgreSQL.
    Look,
    /// No: PostgreSQL is in this later epoch.
    Over(u64),
    Refuse(String),
}

/// The fence of one cell.
pub struct CellFence {
    pub instance: Arc<Fence>,
    state: Mutex<State>,
}

const TAKING_OVER: &str = "another Redis is taking over the cell";
const ELSEWHERE: &str = "PostgreSQL names another Redis as the cell's gate: RUSHGATE_REDIS_URL leads to a server \
                         that was replaced, or the leader has not taken over this server yet";

impl CellFence {
    pub fn new(instance: Arc<Fence>) -> Self {
        Self { instance, state: Mutex::default() }
    }

    /// `learned`: when this instance first received `epoch` from Redis.
    pub fn judge(&self, now: Instant, epoch: u64, learned: Instant) -> Verdict {
        let state = self.lock();
        let Some(lease) = state.lease.filter(|lease| now < lease.until) else {
            return match &state.failing {
                // A failed look is not repeated for every batch.
                Some((at, why)) if now < *at + FENCE_LOOK_EVERY => Verdict::Refuse(unseen(why)),
                _ => Verdict::Look,
            };
        };
        let decide = |gate| {
            let Lease { until, until_ms, .. } = lease;
            Verdict::Decide { until, until_ms, gate, seen: state.seen }
        };
        match &state.row {
            Some(row) if row.epoch > epoch => Verdict::Over(row.epoch),
            // A cell that was refused when PostgreSQL went away stays refused until the next
            // successful look.
            Some(Row { gate: Some(gate), .. }) if !state.seen && gate.is_empty() => {
                Verdict::Refuse(TAKING_OVER.into())
            }
            Some(_) if !state.seen && state.elsewhere.contains(&true) => {
                Verdict::Refuse(ELSEWHERE.into())
            }
            Some(row) if state.seen && row.epoch < epoch && lease.began < learned => Verdict::Look,
            Some(Row { epoch: of, gate: Some(gate) }) if state.seen && *of == epoch => {
                match gate.as_str() {
                    "" => Verdict::Refuse(TAKING_OVER.into()),
                    gate => decide(Some(gate.to_owned())),
                }
            }
            _ => decide(None),
        }
    }

    /// The run id of the server that is the gate of `epoch`, if known.
    pub fn gate_of(&self, epoch: u64) -> Option<String> {
        let state = self.lock();
        let row = state.row.as_ref().filter(|row| state.seen && row.epoch == epoch)?;
        row.gate.clone().filter(|gate| !gate.is_empty())
    }

    /// Whether a decision in `epoch` (on the server `gate`, if it was named) is valid although its
    /// answer came after the end of the lease. It is not if the row has changed meanwhile.
    pub fn still_counts(&self, now: Instant, epoch: u64, gate: Option<&str>) -> bool {
        match self.judge(now, epoch, now) {
            Verdict::Decide { gate: of, seen, .. } => {
                !seen || gate.is_none() || of.as_deref() == gate
            }
            Verdict::Look | Verdict::Over(_) | Verdict::Refuse(_) => false,
        }
    }

    /// Records whether a connection leads to a server other than the gate.
    pub fn leads(&self, side: Side, elsewhere: bool) {
        self.lock().elsewhere[side as usize] = elsewhere;
    }

    pub fn is_elsewhere(&self, side: Side) -> bool {
        self.lock().elsewhere[side as usize]
    }

    /// Why the cell may not decide, although its Redis here is open in `epoch`.
    pub fn trouble(&self, epoch: u64) -> Option<String> {
        let now = Instant::now();
        match self.judge(now, epoch, now) {
            Verdict::Over(later) => Some(over(later, epoch)),
            Verdict::Refuse(why) => Some(why),
            Verdict::Decide { .. } | Verdict::Look => {
                self.lock().elsewhere.contains(&true).then(|| ELSEWHERE.to_owned())
            }
        }
    }

    /// Records a successful look that began at `began`. Returns whether the row has changed.
    fn seen(&self, began: Instant, began_ms: Option<TimestampMs>, row: Option<Row>) -> bool {
        let mut state = self.lock();
        let until_ms = began_ms.map(|ms| ms + FENCE_LEASE.as_millis() as i64);
        state.lease = Some(Lease { began, until: began + FENCE_LEASE, until_ms });
        (state.seen, state.failing) = (true, None);
        let changed = state.row != row;
        state.row = row;
        changed
    }

    /// Records a failed look. With `RUSHGATE_FENCE=available` the instance continues to decide.
    fn unseen(&self, why: &str) {
        let (now, mut state) = (Instant::now(), self.lock());
        state.seen = false;
        state.failing = Some((now, why.to_owned()));
        if self.instance.mode == FenceMode::Available {
            state.lease = Some(Lease { began: now, until: now + FENCE_LEASE, until_ms: None });
        }
    }

    /// Records whether the cell is refused. Returns true when it is time to reconnect.
    fn should_follow(&self, refused: bool) -> bool {
        let (now, mut state) = (Instant::now(), self.lock());
        if !refused {
            state.follow = None;
            return false;
        }
        let (due, pause) =
            *state.follow.get_or_insert((now + FENCE_FOLLOW_FIRST, FENCE_FOLLOW_FIRST));
        if now < due {
            return false;
        }
        let pause = (pause * 2).min(FENCE_FOLLOW_MAX);
        state.follow = Some((now + pause, pause));
        true
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unseen(why: &str) -> String {
    format!(
        "PostgreSQL's cursors could not be read for {FENCE_LEASE:?} ({why}; RUSHGATE_FENCE=strict)"
    )
}

/// The message for a gate whose epoch is over.
pub fn over(later: u64, epoch: u64) -> String {
    format!(
        "PostgreSQL is in epoch {later}, the gate here in {epoch}: the cell was rebuilt on another Redis, or is being \
         rebuilt; if this persists, correct RUSHGATE_REDIS_URL"
    )
}

/// The task that looks at PostgreSQL for all cells of an instance. It ends with the gate.
pub struct Watcher {
    fence: Arc<Fence>,
    cells: Vec<Arc<Cell>>,
    database_url: String,
    conn: Option<PgConnection>,
}

impl Watcher {
    pub fn new(fence: Arc<Fence>, cells: Vec<Arc<Cell>>, database_url: String) -> Self {
        Self { fence, cells, database_url, conn: None }
    }

    pub async fn run(mut self) {
        loop {
            let began = Instant::now();
            self.look().await;
            let mut refused = false;
            for cell in &self.cells {
                refused |= self.attend(cell).await;
            }
            let pause = if refused { FENCE_LOOK_REFUSED } else { FENCE_LOOK_EVERY };
            tokio::select! {
                () = tokio::time::sleep_until((began + pause).into()) => {}
                () = self.fence.asked.notified() => {}
            }
        }
    }

    /// One look. Its lease counts from the beginning of the query, however late the answer comes.
    /// After `FENCE_LOOK_LIMIT` without an answer the look counts as failed until the answer
    /// arrives.
    async fn look(&mut self) {
        let began = Instant::now();
        let clocks: Vec<_> = self.cells.iter().map(|cell| cell.server_time_at(began)).collect();
        let Self { conn, database_url, cells, fence, .. } = self;
        let mut reading = Box::pin(timeout(FENCE_ANSWER_LIMIT, rows(conn, database_url)));
        let answer = loop {
            let asked = Instant::now();
            match timeout(FENCE_LOOK_LIMIT, &mut reading).await {
                Ok(answer) => break answer,
                // This process was suspended, so the timeout says nothing about PostgreSQL.
                Err(_) if asked.elapsed() > FENCE_LOOK_LIMIT * 2 => {}
                Err(_) => {
                    cells.iter().for_each(|cell| cell.fence.unseen("no answer in time"));
                    fence.looks.send_modify(|looks| *looks += 1);
                }
            }
        };
        drop(reading);
        match answer {
            Ok(Ok(rows)) => {
                for (cell, began_ms) in cells.iter().zip(clocks) {
                    let row = rows.iter().find(|(number, _)| *number == cell.number);
                    let changed = cell.fence.seen(began, began_ms, row.map(|(_, row)| row.clone()));
                    if changed {
                        tracing::debug!(
                            cell = cell.number,
                            ?row,
                            "PostgreSQL has a new epoch or gate"
                        );
                    }
                    cell.probe_due.fetch_or(changed, std::sync::atomic::Ordering::Relaxed);
                }
            }
            failed => {
                let why = match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => "no answer in time".into(),
                };
                self.conn = None;
                self.cells.iter().for_each(|cell| cell.fence.unseen(&why));
            }
        }
        self.fence.looks.send_modify(|looks| *looks += 1);
    }

    /// Probes where the cell's connections lead if that may have changed, closes a gate whose epoch
    /// is over, and reconnects a cell that stays refused. Returns whether the cell is refused.
    async fn attend(&self, cell: &Cell) -> bool {
        let due = cell.probe_due.swap(false, std::sync::atomic::Ordering::Relaxed);
        if due || cell.is_refused() {
            // Redis may be unreachable; the next look must not wait for it.
            let _ = timeout(FENCE_LOOK_LIMIT, cell.probe()).await;
        }
        let refused = cell.is_refused();
        metrics::CELL_FENCED.gauge_of_cell(cell.number).set(if refused { 1.0 } else { 0.0 });
        if cell.fence.should_follow(refused) {
            tracing::warn!(
                cell = cell.number,
                why = cell.refusal(),
                "the cell is fenced off; reconnecting to Redis"
            );
            cell.reconnect().await;
        }
        refused
    }
}

/// Reads all rows. A kept connection may have broken since the last look, which says nothing about
/// PostgreSQL: after a failure on it, the query is repeated on a new connection.
async fn rows(conn: &mut Option<PgConnection>, url: &str) -> Result<Vec<(u32, Row)>, sqlx::Error> {
    if let Some(kept) = conn {
        match read(kept).await {
            Ok(rows) => return Ok(rows),
            Err(_) => *conn = None,
        }
    }
    let options: PgConnectOptions = url.parse()?;
    let limit = FENCE_ANSWER_LIMIT.as_millis().to_string();
    let options =
        options.application_name("rushgate-fence").options([("statement_timeout", limit)]);
    let mut new = options.connect().await?;
    let rows = read(&mut new).await;
    *conn = Some(new);
    rows
}

async fn read(conn: &mut PgConnection) -> Result<Vec<(u32, Row)>, sqlx::Error> {
    let query = "SELECT cell, epoch, CASE WHEN gate_epoch = epoch THEN gate END FROM cell_cursors";
    let rows: Vec<(i32, i64, Option<String>)> = sqlx::query_as(query).fetch_all(conn).await?;
    let row = |(cell, epoch, gate): (i32, i64, _)| {
        Some((u32::try_from(cell).ok()?, Row { epoch: u64::try_from(epoch).ok()?, gate }))
    };
    Ok(rows.into_iter().filter_map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence(mode: FenceMode) -> CellFence {
        CellFence::new(Fence::new(mode))
    }

    fn row(epoch: u64, gate: Option<&str>) -> Option<Row> {
        Some(Row { epoch, gate: gate.map(str::to_owned) })
    }

    /// The server that may decide; `None`: any server.
    fn allowed(
        fence: &CellFence,
        now: Instant,
        epoch: u64,
        learned: Instant,
    ) -> Result<Option<String>, Verdict> {
        match fence.judge(now, epoch, learned) {
            Verdict::Decide { gate, .. } => Ok(gate),
            other => Err(other),
        }
    }

    #[test]
    fn a_look_lets_decide_for_a_second_in_its_epoch_and_on_its_server_only() {
        let (fence, began) = (fence(FenceMode::Available), Instant::now());
        assert_eq!(allowed(&fence, began, 3, began), Err(Verdict::Look));
        fence.seen(began, Some(5_000), row(3, Some("a")));
        assert_eq!(allowed(&fence, began, 3, began), Ok(Some("a".into())));
        let almost = began + FENCE_LEASE - Duration::from_millis(1);
        assert!(matches!(fence.judge(almost, 3, began),
            Verdict::Decide { until, until_ms: Some(6_000), .. } if until == began + FENCE_LEASE));
        assert_eq!(allowed(&fence, began + FENCE_LEASE, 3, began), Err(Verdict::Look));
        assert_eq!(allowed(&fence, almost, 2, began), Err(Verdict::Over(3)));
        // An epoch first seen after the look needs another look. An epoch seen before the look is
        // allowed: the leader may not have moved the row yet.
        assert_eq!(allowed(&fence, almost, 4, almost), Err(Verdict::Look));
        assert_eq!(allowed(&fence, almost, 4, began), Ok(None));
    }

    #[test]
    fn nobody_decides_while_another_server_takes_over() {
        let (fence, now) = (fence(FenceMode::Available), Instant::now());
        fence.seen(now, None, row(3, Some("")));
        assert_eq!(allowed(&fence, now, 3, now), Err(Verdict::Refuse(TAKING_OVER.into())));
        fence.unseen("away");
        assert_eq!(allowed(&fence, now, 3, now), Err(Verdict::Refuse(TAKING_OVER.into())));
        fence.seen(now, None, row(3, Some("b")));
        assert_eq!(allowed(&fence, now, 3, now), Ok(Some("b".into())));
    }

    #[test]
    fn without_postgresql_available_goes_on_and_strict_refuses() {
        let (available, strict) = (fence(FenceMode::Available), fence(FenceMode::Strict));
        let long_ago = Instant::now().checked_sub(2 * FENCE_LEASE).unwrap();
        for fence in [&available, &strict] {
            fence.seen(long_ago, None, row(3, Some("a")));
            fence.unseen("away");
        }
        let now = Instant::now();
        assert_eq!(allowed(&available, now, 3, long_ago), Ok(None));
        assert!(
            matches!(allowed(&strict, now, 3, long_ago), Err(Verdict::Refuse(why)) if why.contains("strict"))
        );
        assert_eq!(allowed(&strict, now + FENCE_LOOK_EVERY * 2, 3, long_ago), Err(Verdict::Look));
    }

    #[test]
    fn what_was_fenced_off_when_postgresql_went_away_stays_so() {
        let (fence, now) = (fence(FenceMode::Available), Instant::now());
        fence.seen(now, None, row(3, Some("a")));
        fence.leads(Side::Writer, true);
        fence.unseen("away");
        assert_eq!(allowed(&fence, now, 3, now), Err(Verdict::Refuse(ELSEWHERE.into())));
        assert_eq!(allowed(&fence, now, 2, now), Err(Verdict::Over(3)));
    }

    #[test]
    fn an_answer_after_the_lease_counts_only_if_the_row_has_not_moved() {
        let (fence, now) = (fence(FenceMode::Available), Instant::now());
        fence.seen(now, None, row(3, Some("a")));
        assert!(fence.still_counts(now, 3, Some("a")));
        fence.seen(now, None, row(3, Some("b")));
        assert!(!fence.still_counts(now, 3, Some("a")));
        fence.seen(now, None, row(4, Some("a")));
        assert!(!fence.still_counts(now, 3, Some("a")));
    }
}
