//! The fence: an instance decides only while PostgreSQL names its Redis as the cell's gate.
//!
//! `cell_cursors` holds the cell's epoch and the run id of the one Redis server that decides in it. [`Watcher`] reads it at
//! least every `FENCE_LOOK_EVERY`. Each look gives a *lease*: for `FENCE_LEASE` from its beginning the instance may decide
//! in that epoch on that server. The lease goes with every batch, as a moment on the gate's clock that the script holds
//! against its own, so that a batch that is late (a frozen process, a stalled network) is refused by the old Redis, too.
//! A rebuild on another server moves the row, waits until every lease is over, and only then opens. docs/architecture.md
//! ("The fence") has the reasons.

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

/// What an instance's cells share.
pub struct Fence {
    mode: FenceMode,
    /// Counts looks that were answered, have failed, or take too long.
    looks: watch::Sender<u64>,
    asked: Notify,
}

impl Fence {
    pub fn new(mode: FenceMode) -> Arc<Self> {
        Arc::new(Self { mode, looks: watch::Sender::new(0), asked: Notify::new() })
    }

    /// Waits for the end of the next look, which begins at once unless one is under way.
    pub async fn look(&self) {
        let mut looks = self.looks.subscribe();
        self.asked.notify_one();
        let _ = timeout(FENCE_LOOK_LIMIT * 3, looks.changed()).await; // the caller judges what is known then
    }
}

/// What PostgreSQL says of a cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    pub epoch: u64,
    /// Run id of the server that decides in this epoch; empty: none may, for now; `None`: not known.
    pub gate: Option<String>,
}

/// For how long something may be decided.
#[derive(Clone, Copy, Debug)]
struct Lease {
    /// When the look began.
    began: Instant,
    until: Instant,
    /// The same on the gate's clock, if that was known when the look began.
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
    /// By the last look that was answered; `None`: PostgreSQL knows no such cell, or was never seen.
    row: Option<Row>,
    lease: Option<Lease>,
    /// Whether the last look was answered.
    seen: bool,
    /// Why the last look failed.
    failing: Option<(Instant, String)>,
    /// Which connections lead to another server than the gate.
    elsewhere: [bool; 2],
    /// While the cell is refused: when its connections are made anew next, and the pause before that.
    follow: Option<(Instant, Duration)>,
}

/// What the fence says of deciding now, in an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Until then, on this server if one is named; `until_ms`: as far as the gate's clock was known.
    Decide {
        until: Instant,
        until_ms: Option<TimestampMs>,
        gate: Option<String>,
        seen: bool,
    },
    /// Not before PostgreSQL was looked at again.
    Look,
    /// PostgreSQL is in this later epoch.
    Over(u64),
    Refuse(String),
}

/// The fence of one cell.
pub struct CellFence {
    pub instance: Arc<Fence>,
    state: Mutex<State>,
}

const TAKING_OVER: &str = "another Redis is taking over the cell";
const ELSEWHERE: &str = "PostgreSQL names another Redis as the cell's gate: RUSHGATE_REDIS_URL leads to one that was \
                         replaced, or the leader has not taken this one over yet";

impl CellFence {
    pub fn new(instance: Arc<Fence>) -> Self {
        Self { instance, state: Mutex::default() }
    }

    /// `learned`: when this instance heard of `epoch` first.
    pub fn judge(&self, now: Instant, epoch: u64, learned: Instant) -> Verdict {
        let state = self.lock();
        let Some(lease) = state.lease.filter(|lease| now < lease.until) else {
            return match &state.failing {
                // Who hears no answer is not asked again by every batch.
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
            // What was refused when PostgreSQL went away stays refused until it is seen again.
            Some(Row { gate: Some(gate), .. }) if !state.seen && gate.is_empty() => {
                Verdict::Refuse(TAKING_OVER.into())
            }
            Some(_) if !state.seen && state.elsewhere.contains(&true) => Verdict::Refuse(ELSEWHERE.into()),
            Some(row) if state.seen && row.epoch < epoch && lease.began < learned => Verdict::Look,
            Some(Row { epoch: of, gate: Some(gate) }) if state.seen && *of == epoch => match gate.as_str() {
                "" => Verdict::Refuse(TAKING_OVER.into()),
                gate => decide(Some(gate.to_owned())),
            },
            _ => decide(None),
        }
    }

    /// The server that is the gate of `epoch`, where that is known.
    pub fn gate_of(&self, epoch: u64) -> Option<String> {
        let state = self.lock();
        let row = state.row.as_ref().filter(|row| state.seen && row.epoch == epoch)?;
        row.gate.clone().filter(|gate| !gate.is_empty())
    }

    /// Whether something decided in `epoch`, on the server `gate` if it was named, counts although its answer came after
    /// the lease: not when the row has moved meanwhile.
    pub fn still_counts(&self, now: Instant, epoch: u64, gate: Option<&str>) -> bool {
        match self.judge(now, epoch, now) {
            Verdict::Decide { gate: of, seen, .. } => !seen || gate.is_none() || of.as_deref() == gate,
            Verdict::Look | Verdict::Over(_) | Verdict::Refuse(_) => false,
        }
    }

    /// One of the connections leads to the gate, or to another server.
    pub fn leads(&self, side: Side, elsewhere: bool) {
        self.lock().elsewhere[side as usize] = elsewhere;
    }

    pub fn is_elsewhere(&self, side: Side) -> bool {
        self.lock().elsewhere[side as usize]
    }

    /// Why the cell, whose gate here is open in `epoch`, may not decide.
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

    /// A look that began then has found this; whether the gate is another than before.
    fn seen(&self, began: Instant, began_ms: Option<TimestampMs>, row: Option<Row>) -> bool {
        let mut state = self.lock();
        let until_ms = began_ms.map(|ms| ms + FENCE_LEASE.as_millis() as i64);
        state.lease = Some(Lease { began, until: began + FENCE_LEASE, until_ms });
        (state.seen, state.failing) = (true, None);
        let changed = state.row != row;
        state.row = row;
        changed
    }

    /// PostgreSQL does not answer.
    fn unseen(&self, why: &str) {
        let (now, mut state) = (Instant::now(), self.lock());
        state.seen = false;
        state.failing = Some((now, why.to_owned()));
        if self.instance.mode == FenceMode::Available {
            state.lease = Some(Lease { began: now, until: now + FENCE_LEASE, until_ms: None });
        }
    }

    /// Notes whether the cell is refused. True when that has lasted so long that the connections are to be made anew.
    fn should_follow(&self, refused: bool) -> bool {
        let (now, mut state) = (Instant::now(), self.lock());
        if !refused {
            state.follow = None;
            return false;
        }
        let (due, pause) = *state.follow.get_or_insert((now + FENCE_FOLLOW_FIRST, FENCE_FOLLOW_FIRST));
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
    format!("PostgreSQL's cursors were not seen for {FENCE_LEASE:?} ({why}; RUSHGATE_FENCE=strict)")
}

/// What is said of an epoch that is over.
pub fn over(later: u64, epoch: u64) -> String {
    format!(
        "PostgreSQL is in epoch {later}, the gate here in {epoch}: the cell was rebuilt on another Redis, or is being \
         rebuilt; if this stays, correct RUSHGATE_REDIS_URL"
    )
}

/// Looks for all cells of an instance; ends with the gate.
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

    /// One look. An answer that is late counts from the beginning of the question; until it comes, PostgreSQL is away.
    async fn look(&mut self) {
        let began = Instant::now();
        let clocks: Vec<_> = self.cells.iter().map(|cell| cell.server_time_at(began)).collect();
        let Self { conn, database_url, cells, fence, .. } = self;
        let mut reading = Box::pin(timeout(FENCE_ANSWER_LIMIT, rows(conn, database_url)));
        let answer = loop {
            let asked = Instant::now();
            match timeout(FENCE_LOOK_LIMIT, &mut reading).await {
                Ok(answer) => break answer,
                // This process stood still, so that says nothing of PostgreSQL.
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
                        tracing::debug!(cell = cell.number, ?row, "PostgreSQL names epoch and gate");
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

    /// Finds out where the cell's connections lead if that may have changed, closes a gate that is over, and makes
    /// connections anew that lead to it. Whether the cell is refused.
    async fn attend(&self, cell: &Cell) -> bool {
        let due = cell.probe_due.swap(false, std::sync::atomic::Ordering::Relaxed);
        if due || cell.is_refused() {
            // Redis may be away; the next look must not wait for it.
            let _ = timeout(FENCE_LOOK_LIMIT, cell.probe()).await;
        }
        let refused = cell.is_refused();
        metrics::CELL_FENCED.gauge_of_cell(cell.number).set(if refused { 1.0 } else { 0.0 });
        if cell.fence.should_follow(refused) {
            tracing::warn!(
                cell = cell.number,
                why = cell.refusal(),
                "decides nothing; connects to Redis anew"
            );
            cell.reconnect().await;
        }
        refused
    }
}

/// All cursors. A connection that has failed since it was used last says nothing of PostgreSQL: a new one asks again.
async fn rows(conn: &mut Option<PgConnection>, url: &str) -> Result<Vec<(u32, Row)>, sqlx::Error> {
    if let Some(kept) = conn {
        match read(kept).await {
            Ok(rows) => return Ok(rows),
            Err(_) => *conn = None,
        }
    }
    let options: PgConnectOptions = url.parse()?;
    let limit = FENCE_ANSWER_LIMIT.as_millis().to_string();
    let options = options.application_name("rushgate-fence").options([("statement_timeout", limit)]);
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

    /// The server that may decide; `None`: any.
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
        // Of an epoch that it heard of since, PostgreSQL must be asked again; if it was, nothing speaks against it.
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
