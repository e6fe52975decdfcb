//! The audit: compares the gate (Redis) with the truth (PostgreSQL) and its outbox, and checks the
//! shop's rules.
//!
//! PostgreSQL is read in one `REPEATABLE READ` snapshot, so the rules within it can be checked at
//! any time. Redis has no snapshots: gate and truth are comparable only if the snapshot's cursor is
//! at the gate's `seq`, in the same epoch, and the gate makes no decision until the last page is
//! read. So the audit waits until PostgreSQL has caught up, compares, and then checks whether the
//! gate has moved. If it has, any differences found may be spurious, and the audit starts again, up
//! to [`bounds::AUDIT_ATTEMPTS`] attempts in total. For a shop that is never quiet long enough, the
//! outcome is [`Outcome::NotCompared`] (the check `cell` says why), which does not count as clean.
//! Pausing the gate would solve this, but an audit must not be able to stop the shop.
//!
//! The result is a [`Report`] with one [`Check`] per rule, each with its [`Difference`]s.

mod gate;
mod report;
mod truth;

use sqlx::{PgConnection, PgPool, Row};
use std::time::Duration;
use tokio::time::{Instant, sleep};

pub use report::{Check, Difference, NOT_COMPARED, Outcome, Report};

use crate::config::{Servers, bounds};
use crate::gate::scan::{Scan, ScanError};
use crate::redis::keys::Keys;
use crate::redis::meta::Meta;
use gate::Sides;

/// Rows of one page.
const PAGE_ROWS: i64 = 1_000;
/// There is only one cell so far.
const CELL: u32 = 0;

/// The options of an audit.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long to wait until PostgreSQL has caught up with the gate and the gate is quiet.
    pub wait: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("PostgreSQL: {0}")]
    Sql(#[from] sqlx::Error),
    #[error(transparent)]
    Scan(#[from] ScanError),
}

/// PostgreSQL's cursor: how far it has applied the cell's log.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cursor {
    epoch: i64,
    seq: i64,
    tip: String,
    halted: Option<String>,
}

/// Runs the audit. Differences are in the report; an `Err` means that a server could not be read.
pub async fn audit(
    servers: &Servers,
    pool: &PgPool,
    options: Options,
) -> Result<Report, AuditError> {
    let scan = Scan::connect(&servers.redis_url).await?;
    let report = compare(&scan, pool, Instant::now() + options.wait).await;
    scan.close().await;
    report
}

async fn compare(scan: &Scan, pool: &PgPool, deadline: Instant) -> Result<Report, AuditError> {
    let mut attempt = 1;
    loop {
        let reached = wait_until_level(scan, pool, deadline).await?;
        let mut transaction = pool.begin().await?;
        sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .execute(&mut *transaction)
            .await?;
        // Pages must be read by key. From a statement's sixth execution on, PostgreSQL may keep a
        // generic plan, which could otherwise be a sequential scan.
        sqlx::query("SET LOCAL enable_seqscan = off").execute(&mut *transaction).await?;
        let picture = picture(scan, &mut transaction).await?;
        let again = picture.moved && attempt < bounds::AUDIT_ATTEMPTS && reached.is_ok();
        if !again {
            sqlx::query("SET LOCAL enable_seqscan = on").execute(&mut *transaction).await?;
            let truth = truth::check_truth(&mut transaction).await?;
            transaction.rollback().await?;
            return Ok(report(picture, truth));
        }
        transaction.rollback().await?;
        attempt += 1;
    }
}

/// Waits until gate and cursor are at the same position. The inner `Err`: not before the deadline.
async fn wait_until_level(
    scan: &Scan,
    pool: &PgPool,
    deadline: Instant,
) -> Result<Result<(), ()>, AuditError> {
    loop {
        let cursor = read_cursor(&mut *pool.acquire().await?).await?;
        let meta = scan.meta(CELL).await?;
        if apart(&cursor, &meta).is_none() {
            return Ok(Ok(()));
        }
        if Instant::now() >= deadline {
            return Ok(Err(()));
        }
        sleep(bounds::AUDIT_POLL).await;
    }
}

/// The result of one comparison of gate and truth.
struct Picture {
    cursor: Option<Cursor>,
    cell: Check,
    /// Gate and cursor are at contradictory positions. If false and `cell` does not hold, they
    /// could not be compared.
    differs: bool,
    /// Empty unless gate and cursor were at the same position during the whole comparison.
    gate: Vec<Check>,
    /// The gate made a decision during the comparison.
    moved: bool,
}

async fn picture(scan: &Scan, snapshot: &mut PgConnection) -> Result<Picture, AuditError> {
    let mut cell = Check::new("cell", "the cell is open and PostgreSQL has applied its log");
    cell.looked_at = 1;
    let cursor = read_cursor(snapshot).await?;
    let meta = scan.meta(CELL).await?;
    let id = format!("cell {CELL}");
    let gate = Vec::new();
    if let Some(Apart { expected, found, differ: differs }) = apart(&cursor, &meta) {
        cell.differs(id, expected, found);
        // A gate that is ahead because of traffic may be level at the next attempt.
        let moved =
            matches!((&cursor, &meta), (Some(c), Some(m)) if behind(c, m) && c.halted.is_none());
        return Ok(Picture { cursor, cell, differs, gate, moved });
    }
    let Some(meta) = meta else {
        // Neither side has the cell: a new shop.
        return Ok(Picture { cursor, cell, differs: false, gate, moved: false });
    };
    let mut sides = Sides { scan, keys: Keys::new(CELL, meta.epoch), snapshot };
    let mut gate = sides.compare(&meta).await?;
    let after = scan.meta(CELL).await?;
    let moved =
        after.as_ref().is_none_or(|after| (after.epoch, after.seq) != (meta.epoch, meta.seq));
    if moved {
        let found = match after {
            Some(after) => {
                format!("busy: moved to {}-{} during the comparison", after.epoch, after.seq)
            }
            None => String::from("the cell disappeared during the comparison"),
        };
        let expected =
            format!("a gate that stays at {}-{} while it is compared", meta.epoch, meta.seq);
        cell.differs(id, expected, format!("{found}; audit again at a quieter moment"));
        gate.clear();
    }
    Ok(Picture { cursor, cell, differs: false, gate, moved })
}

fn report(picture: Picture, truth: Vec<Check>) -> Report {
    let gate_compared = !picture.gate.is_empty();
    let compared = picture.cell.holds();
    let differs = picture.differs || !picture.gate.iter().chain(&truth).all(Check::holds);
    let outcome = match (differs, compared) {
        (true, _) => Outcome::Differences,
        (false, false) => Outcome::NotCompared,
        (false, true) => Outcome::Clean,
    };
    let checks = [vec![picture.cell], picture.gate, truth].concat();
    let (epoch, seq) = picture.cursor.map_or((0, 0), |cursor| (cursor.epoch, cursor.seq));
    let clean = outcome == Outcome::Clean;
    Report { outcome, clean, cell: CELL, epoch, seq, gate_compared, checks }
}

async fn read_cursor(connection: &mut PgConnection) -> Result<Option<Cursor>, sqlx::Error> {
    let row =
        sqlx::query("SELECT epoch, seq, tip, halted_reason FROM cell_cursors WHERE cell = $1")
            .bind(CELL as i32)
            .fetch_optional(connection)
            .await?;
    row.map(|row| {
        Ok(Cursor {
            epoch: row.try_get("epoch")?,
            seq: row.try_get("seq")?,
            tip: row.try_get("tip")?,
            halted: row.try_get("halted_reason")?,
        })
    })
    .transpose()
}

fn behind(cursor: &Cursor, meta: &Meta) -> bool {
    cursor.epoch as u64 == meta.epoch && (cursor.seq as u64) < meta.seq && meta.state == "open"
}

/// Why gate and cursor cannot be compared.
struct Apart {
    expected: String,
    found: String,
    /// True if the positions contradict each other; false if the cell is only moving or closed for
    /// now.
    differ: bool,
}

/// `None`: gate and cursor are at the same position, and the cell is open.
fn apart(cursor: &Option<Cursor>, meta: &Option<Meta>) -> Option<Apart> {
    let differ = |expected: String, found: String| Some(Apart { expected, found, differ: true });
    let not_now = |expected: &str, found: String| {
        Some(Apart { expected: expected.into(), found, differ: false })
    };
    let (cursor, meta) = match (cursor, meta) {
        (Some(cursor), Some(meta)) => (cursor, meta),
        (None, None) => return None,
        (Some(cursor), None) => {
            let expected = format!("a gate at {}-{}", cursor.epoch, cursor.seq);
            return differ(expected, "no gate: Redis is empty".into());
        }
        (None, Some(meta)) => {
            let found = format!("a gate at {}-{}", meta.epoch, meta.seq);
            return differ("no gate: PostgreSQL has no cursor".into(), found);
        }
    };
    if let Some(reason) = &cursor.halted {
        return not_now("a cell that PostgreSQL follows", format!("halted: {reason}"));
    }
    if meta.state != "open" {
        let reason = meta.reason.as_deref().unwrap_or("no reason given");
        return not_now("an open cell", format!("{}: {reason}", meta.state));
    }
    if (cursor.epoch as u64, cursor.seq as u64, &cursor.tip) == (meta.epoch, meta.seq, &meta.tip) {
        return None;
    }
    Some(Apart {
        expected: format!("a gate at {}-{} with tip {}", cursor.epoch, cursor.seq, cursor.tip),
        found: format!("one at {}-{} with tip {}", meta.epoch, meta.seq, meta.tip),
        differ: !behind(cursor, meta),
    })
}
