//! The speed of a reconciler that has to catch up. An instance without the reconciler role fills
//! the log, then one with only that role applies it.

use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use rushgate_loadtest::process::cpu_of;
use rushgate_loadtest::redis::Redis;
use rushgate_loadtest::{Outcome, say};

use super::{Figure, Measured, Target};
use crate::harness::{Harness, SETTLE_LIMIT};
use crate::rows::Row;
use crate::wrk::Looking;

/// A backlog that keeps the reconciler busy for several batches; the first batch is not counted.
const ENTRIES: u64 = 2_500;
/// Maximum number of runs to fill it.
const FILLS: usize = 20;
const LOOK: Duration = Duration::from_millis(1);

pub async fn measure(harness: &mut Harness, figure: Figure, row: Row) -> Outcome<Measured> {
    harness.prepare_shop(&[row])?;
    let mut rates = vec![];
    let mut notes = vec![];
    for _ in 0..harness.rounds {
        let (rate, note) = round(harness, row).await?;
        say(format_args!("{}: {rate:.0}/s, {note}", figure.name()));
        rates.push(rate);
        notes.push(note);
    }
    let least = if row == Row::Issue { 100_000.0 } else { 25_000.0 };
    Ok(Measured::new(figure, rates, "/s", Target::AtLeast(least))
        .note(notes.pop().unwrap_or_default()))
}

async fn round(harness: &mut Harness, row: Row) -> Outcome<(f64, String)> {
    harness.shop.settle(SETTLE_LIMIT).await?;
    let before = harness.number(row.truth()).await?;
    harness.exchange(&[("RUSHGATE_ROLES", "api")])?;
    let mut backlog = harness.shop.log()?;
    for _ in 0..FILLS {
        let plan = harness.plan(row, harness.length)?;
        harness.wrk.drive(harness.instance()?.api, &plan, harness.length, Looking::At)?;
        backlog = harness.shop.log()?;
        if backlog.seq - backlog.applied >= ENTRIES {
            break;
        }
    }

    let (port, end) = (harness.shop.redis.port(), backlog.seq);
    let watcher = spawn(move || watch(port, backlog.applied, end).map_err(|e| e.to_string()));
    let postgres = harness.servers.postgres.pid().map(cpu_of).unwrap_or_default();
    let reconciler = harness.shop.start(&harness.rushgate, &[("RUSHGATE_ROLES", "reconciler")])?;
    let (took, share) = watcher.join().map_err(|_| "the watcher panicked")??;
    let reconciler_cpu = cpu_of(reconciler.pid());
    let postgres_cpu = harness.servers.postgres.pid().map(cpu_of).unwrap_or_default() - postgres;
    reconciler.stop()?;
    // Back to all roles, because the relay has a backlog too.
    harness.exchange(&[])?;

    let applied = (harness.number(row.truth()).await? - before) as f64;
    let entries = (end - backlog.applied) as f64;
    let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / applied;
    let note = format!(
        "{applied:.0} in entries of {:.0}; CPU µs each: reconciler {:.1}, PostgreSQL {:.1}",
        applied / entries,
        each(reconciler_cpu),
        each(postgres_cpu)
    );
    Ok((applied * share / took.as_secs_f64(), note))
}

/// Waits for the first and for the last applied batch. Returns the time between them and the share
/// of the backlog that was applied in it. The reconciler's start is thus not measured.
fn watch(port: u16, applied: u64, end: u64) -> Outcome<(Duration, f64)> {
    let mut redis = Redis::connect(port)?;
    let give_up = Instant::now() + SETTLE_LIMIT;
    let mut first = None;
    loop {
        let (log, now) = (redis.log()?, Instant::now());
        if log.applied > applied && first.is_none() {
            first = Some((log.applied, now));
        }
        if let Some((from, since)) = first
            && log.applied >= end
        {
            return Ok((now - since, (end - from) as f64 / (end - applied) as f64));
        }
        if now > give_up {
            return Err("the backlog does not drain".into());
        }
        sleep(LOOK);
    }
}
