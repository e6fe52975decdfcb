//! The scheduler makes the list of popular products once a day.
//!
//! A list covers the three local days before a midnight of the shop's time zone:
//! `[00:00 − 3 days, 00:00)`. 00:00 means the first moment of the local day, which clock changes
//! may move. A midnight is *due* while no list reaches it, so the next tick of any instance makes
//! up for a missed one. If several were missed, only the newest matters, since only one list is
//! shown. If there is no list at all, one up to now is made at once.
//!
//! Any number of instances may run this: the unique `list_day` lets only one of them make the list
//! of a midnight.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Zoned};
use sqlx::PgPool;
use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::bounds::{
    SCHEDULER_CATCH_UP, SCHEDULER_GRACE, SCHEDULER_LISTS, SCHEDULER_PATIENCE, SCHEDULER_TICK,
};
use crate::domain::TimestampMs;
use crate::telemetry::repeated::Repeated;

/// The local days that a list covers.
const WINDOW_DAYS: i64 = 3;

/// Key of the advisory lock for making the first list: "rgsched" in ASCII.
const FIRST_LIST_LOCK: i64 = 0x0072_6773_6368_6564;

/// What a tick did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tick {
    /// The newest midnight already has its list.
    NothingDue,
    /// There was no list at all; one up to now was made.
    First,
    /// The list of this local day's midnight was made.
    Midnight(Date),
    /// Another instance made the list meanwhile.
    Elsewhere,
    /// PostgreSQL does not have all orders from before midnight yet; the reason.
    Waiting(String),
}

#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    #[error("PostgreSQL: {0}")]
    Sql(#[from] sqlx::Error),
    #[error("the time {0} is out of range")]
    Calendar(TimestampMs),
}

/// A time window in milliseconds; `to` is exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub from: TimestampMs,
    pub to: TimestampMs,
}

/// The newest local midnight that is not after `now`: its day, and the window of its list.
pub fn newest_midnight(
    zone: &TimeZone,
    now: TimestampMs,
) -> Result<(Date, Window), SchedulerError> {
    let midnight = local(zone, now)?.start_of_day().map_err(|_| SchedulerError::Calendar(now))?;
    let to = midnight.timestamp().as_millisecond();
    let from = days_before(&midnight).and_then(|day| day.start_of_day());
    let from = from.map_err(|_| SchedulerError::Calendar(now))?.timestamp().as_millisecond();
    Ok((midnight.date(), Window { from, to }))
}

/// The window of a list that is made at any other time than midnight.
pub fn window_up_to(zone: &TimeZone, now: TimestampMs) -> Result<Window, SchedulerError> {
    let from = days_before(&local(zone, now)?).map_err(|_| SchedulerError::Calendar(now))?;
    Ok(Window { from: from.timestamp().as_millisecond(), to: now })
}

fn local(zone: &TimeZone, at: TimestampMs) -> Result<Zoned, SchedulerError> {
    let at = Timestamp::from_millisecond(at).map_err(|_| SchedulerError::Calendar(at))?;
    Ok(at.to_zoned(zone.clone()))
}

/// The same time of day three local days earlier. If that time does not exist, the first moment
/// after it.
fn days_before(at: &Zoned) -> Result<Zoned, jiff::Error> {
    at.checked_sub(WINDOW_DAYS.days())
}

/// How long until the next local midnight.
fn until_next_midnight(zone: &TimeZone, now: TimestampMs) -> Option<Duration> {
    let next = local(zone, now).ok()?.tomorrow().ok()?.start_of_day().ok()?;
    let ms = next.timestamp().as_millisecond().saturating_sub(now);
    u64::try_from(ms).ok().map(Duration::from_millis)
}

/// Makes a list of the last three days up to `now`, this millisecond included, for
/// `POST /v1/products/popular/refresh`. `now` is the gate's clock, which dates orders. The caller
/// has waited until PostgreSQL has what the gate has. Lists that are made at the same time are all
/// correct; the newest is shown.
pub async fn refresh_now(
    pool: &PgPool,
    zone: &TimeZone,
    now: TimestampMs,
) -> Result<(), SchedulerError> {
    make_list(pool, None, window_up_to(zone, now + 1)?, now).await?;
    Ok(prune(pool).await?)
}

/// Makes the lists that are due. `caught_up` waits until PostgreSQL has applied what the gate had
/// decided when it was called, up to the given deadline.
pub struct Scheduler<C> {
    pool: PgPool,
    zone: TimeZone,
    caught_up: C,
}

impl<C, F, E> Scheduler<C>
where
    C: Fn(Instant) -> F,
    F: Future<Output = Result<(), E>>,
    E: Display,
{
    pub fn new(pool: PgPool, zone: TimeZone, caught_up: C) -> Self {
        Self { pool, zone, caught_up }
    }

    /// Makes the list that is due at `now` (milliseconds since the Unix epoch), if any.
    pub async fn tick(&self, now: TimestampMs) -> Result<Tick, SchedulerError> {
        let (day, window) = newest_midnight(&self.zone, now.saturating_sub(ms(SCHEDULER_GRACE)))?;
        let reached: Option<TimestampMs> =
            sqlx::query_scalar(include_str!("sql/newest.sql")).fetch_one(&self.pool).await?;
        let Some(reached) = reached else {
            return self.make_first(now).await;
        };
        if reached >= window.to {
            return Ok(Tick::NothingDue);
        }
        if let Err(reason) = self.wait_for_truth().await {
            if now.saturating_sub(window.to) < ms(SCHEDULER_PATIENCE) {
                return Ok(Tick::Waiting(reason));
            }
            warn!(reason, %day, "popular products: PostgreSQL has not caught up; the list may lack the latest orders");
        }
        let made = make_list(&self.pool, Some(day), window, now).await?;
        prune(&self.pool).await?;
        Ok(if made { Tick::Midnight(day) } else { Tick::Elsewhere })
    }

    /// A list that may lack the latest orders is better than none, so the first list does not
    /// insist on the wait.
    async fn make_first(&self, now: TimestampMs) -> Result<Tick, SchedulerError> {
        if let Err(reason) = self.wait_for_truth().await {
            warn!(
                reason,
                "popular products: PostgreSQL has not caught up; the first list may lack the latest orders"
            );
        }
        let window = window_up_to(&self.zone, now)?;
        let pool = self.pool.clone();
        // `begin` is not cancel-safe, and the caller may drop this future: a task of its own runs
        // it.
        let made = tokio::spawn(make_first_list(pool, window, now)).await;
        match made {
            Ok(Ok(true)) => Ok(Tick::First),
            Ok(Ok(false)) => Ok(Tick::Elsewhere),
            Ok(Err(error)) => Err(error.into()),
            Err(stopped) => Err(sqlx::Error::Io(std::io::Error::other(stopped)).into()),
        }
    }

    async fn wait_for_truth(&self) -> Result<(), String> {
        let deadline = Instant::now() + SCHEDULER_CATCH_UP;
        (self.caught_up)(deadline).await.map_err(|error| error.to_string())
    }

    /// Ticks at midnight, and every minute in between: the clock may be set, or another instance
    /// may have failed.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut trouble = Repeated::new("popular products: the list that is due cannot be made");
        loop {
            let now = Timestamp::now().as_millisecond();
            match self.tick(now).await {
                Ok(Tick::Waiting(reason)) => trouble.failed(&reason),
                Err(error) => trouble.failed(&error),
                Ok(done) => {
                    trouble.works();
                    match done {
                        Tick::First => info!("popular products: first list made"),
                        Tick::Midnight(day) => info!(%day, "popular products: list made"),
                        _ => {}
                    }
                }
            }
            let now = Timestamp::now().as_millisecond();
            let midnight = until_next_midnight(&self.zone, now).unwrap_or(SCHEDULER_TICK);
            tokio::select! {
                () = sleep((midnight + SCHEDULER_GRACE).min(SCHEDULER_TICK)) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Makes a list. `false`: another instance has made it.
async fn make_list<'e>(
    executor: impl sqlx::PgExecutor<'e>,
    day: Option<Date>,
    window: Window,
    now: TimestampMs,
) -> Result<bool, sqlx::Error> {
    let made: Option<i64> = sqlx::query_scalar(include_str!("sql/refresh.sql"))
        .bind(day.map(|day| day.to_string()))
        .bind(window.from)
        .bind(window.to)
        .bind(now)
        .fetch_optional(executor)
        .await?;
    Ok(made.is_some())
}

/// Makes the first list under a lock, because no unique key keeps two instances from making one
/// each.
async fn make_first_list(
    pool: PgPool,
    window: Window,
    now: TimestampMs,
) -> Result<bool, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(FIRST_LIST_LOCK)
        .execute(&mut *transaction)
        .await?;
    let reached: Option<TimestampMs> =
        sqlx::query_scalar(include_str!("sql/newest.sql")).fetch_one(&mut *transaction).await?;
    let made = reached.is_none() && make_list(&mut *transaction, None, window, now).await?;
    transaction.commit().await?;
    Ok(made)
}

async fn prune(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query(include_str!("sql/prune.sql")).bind(SCHEDULER_LISTS).execute(pool).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> TimestampMs {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).unwrap()
    }

    fn newest(name: &str, now: &str) -> (String, TimestampMs, TimestampMs) {
        let (day, window) = newest_midnight(&zone(name), at(now)).unwrap();
        (day.to_string(), window.from, window.to)
    }

    #[test]
    fn midnight_is_the_zones_own() {
        let seoul = ("2026-03-10".into(), at("2026-03-06T15:00:00Z"), at("2026-03-09T15:00:00Z"));
        assert_eq!(newest("Asia/Seoul", "2026-03-09T15:00:00Z"), seoul);
        assert_eq!(newest("Asia/Seoul", "2026-03-10T14:59:59.999Z"), seoul);
        assert_eq!(newest("Asia/Seoul", "2026-03-09T14:59:59.999Z").0, "2026-03-09");
        assert_eq!(newest("UTC", "2026-03-09T15:00:00Z").2, at("2026-03-09T00:00:00Z"));
    }

    #[test]
    fn a_day_whose_midnight_does_not_exist_begins_with_its_first_moment() {
        // Cairo, 2024-04-26: clocks went from 00:00 (+02) to 01:00 (+03).
        let (day, from, to) = newest("Africa/Cairo", "2024-04-25T22:00:00Z");
        assert_eq!((day.as_str(), to), ("2024-04-26", at("2024-04-25T22:00:00Z")));
        assert_eq!(from, at("2024-04-22T22:00:00Z"));
        assert_eq!(newest("Africa/Cairo", "2024-04-25T21:59:59Z").0, "2024-04-25");
    }

    #[test]
    fn a_midnight_that_happens_twice_counts_once() {
        // Havana, 2024-11-03: clocks went from 01:00 (-04) back to 00:00 (-05).
        let first = newest("America/Havana", "2024-11-03T04:00:00Z");
        let second = newest("America/Havana", "2024-11-03T05:00:00Z");
        assert_eq!(first, second);
        assert_eq!(first.2, at("2024-11-03T04:00:00Z"));
        // Cairo, 2024-11-01: at 24:00 (+03) of the day before, clocks went back to 23:00 (+02).
        assert_eq!(newest("Africa/Cairo", "2024-10-31T21:30:00Z").0, "2024-10-31");
        assert_eq!(newest("Africa/Cairo", "2024-10-31T22:00:00Z").0, "2024-11-01");
    }

    #[test]
    fn the_next_midnight_is_at_most_a_day_and_an_hour_away() {
        let seoul = zone("Asia/Seoul");
        assert_eq!(
            until_next_midnight(&seoul, at("2026-03-09T14:59:59Z")),
            Some(Duration::from_secs(1))
        );
        assert_eq!(
            until_next_midnight(&seoul, at("2026-03-09T15:00:00Z")),
            Some(Duration::from_secs(86_400))
        );
        let havana = until_next_midnight(&zone("America/Havana"), at("2024-11-03T04:00:00Z"));
        assert_eq!(havana, Some(Duration::from_secs(25 * 3_600)));
    }
}
