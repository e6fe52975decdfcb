//! One run: its course, and what it has found.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use uuid::Uuid;

use super::{RIVAL, crowd};
use crate::audit::{Outcome, Report};
use crate::config::bounds::{RETRY_PAUSE, RIVALS_COUPONS_MAX, RIVALS_RUN_LIMIT};
use crate::domain::{TemplateId, TimestampMs, rfc3339};
use crate::http::Api;
use crate::http::problem::Problem;
use crate::truth::CouponTally;

/// How often PostgreSQL is asked until it has caught up with the rush.
const COUNT_ATTEMPTS: usize = 10;

/// A crowd on its way, or what became of it.
pub struct Run {
    run_id: Uuid,
    template_id: TemplateId,
    rivals: u64,
    coupons: u64,
    opens: Instant,
    /// The same moment by the gate's clock.
    opens_at: TimestampMs,
    course: Mutex<Course>,
}

#[derive(Debug)]
struct Course {
    state: State,
    outcomes: BTreeMap<&'static str, u64>,
    /// Of each answer, from pressing to reading it.
    latencies: Vec<Duration>,
    verdict: Option<VerdictView>,
    audit: Option<AuditView>,
    failure: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    CountingDown,
    Running,
    Checking,
    Done,
    Failed,
}

#[derive(Clone, Debug, Serialize)]
pub struct RunView {
    run_id: Uuid,
    template_id: String,
    rivals: u64,
    coupons: u64,
    state: State,
    now: String,
    opens_at: String,
    answered: u64,
    /// Rivals by what they were told: `issued`, the code of a refusal, or `no-answer`.
    outcomes: BTreeMap<&'static str, u64>,
    /// Half of the answers took at most as long.
    p50_ms: Option<u64>,
    verdict: Option<VerdictView>,
    audit: Option<AuditView>,
    failure: Option<String>,
}

/// What PostgreSQL holds after the rush.
#[derive(Clone, Debug, Serialize)]
struct VerdictView {
    issued: u64,
    holders: u64,
    serials: u64,
    serial_min: Option<i64>,
    serial_max: Option<i64>,
    held_by_rivals: u64,
    /// When each coupon was issued, in milliseconds from the opening on.
    issued_ms: Vec<i64>,
    counted_at: String,
}

#[derive(Clone, Debug, Serialize)]
struct AuditView {
    outcome: Outcome,
    checks: usize,
    rows: i64,
    took_ms: u64,
    /// The first difference.
    why: Option<String>,
}

impl Run {
    pub fn new(
        run_id: Uuid,
        template_id: TemplateId,
        rivals: u64,
        coupons: u64,
        opens: Instant,
        opens_at: TimestampMs,
    ) -> Self {
        let course = Course {
            state: State::CountingDown,
            outcomes: BTreeMap::new(),
            latencies: Vec::new(),
            verdict: None,
            audit: None,
            failure: None,
        };
        Self { run_id, template_id, rivals, coupons, opens, opens_at, course: Mutex::new(course) }
    }

    pub fn is_over(&self) -> bool {
        matches!(self.course().state, State::Done | State::Failed)
    }

    fn course(&self) -> MutexGuard<'_, Course> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The whole run, within its time limit.
    pub async fn execute(self: Arc<Self>, api: Arc<Api>) {
        let outcome = tokio::time::timeout(RIVALS_RUN_LIMIT, self.steps(&api)).await;
        let outcome = outcome
            .unwrap_or_else(|_| Err(format!("not done within {} s", RIVALS_RUN_LIMIT.as_secs())));
        let mut course = self.course();
        match outcome {
            Ok(()) => course.state = State::Done,
            Err(why) => {
                tracing::warn!(why, "a run of the demo's crowd has failed");
                (course.state, course.failure) = (State::Failed, Some(why));
            }
        }
    }

    async fn steps(self: &Arc<Self>, api: &Api) -> Result<(), String> {
        let storefront = api.demo_shop.as_ref().ok_or("the storefront is off")?;
        let crowd = storefront.crowd(&self.template_id, self.rivals, self.opens)?;
        let opening = {
            let run = Arc::clone(self);
            async move {
                tokio::time::sleep_until(run.opens.into()).await;
                run.course().state = State::Running;
            }
        };
        let told = Arc::clone(self);
        let sending = crowd::send(crowd, move |outcome, took| {
            let mut course = told.course();
            *course.outcomes.entry(outcome).or_default() += 1;
            course.latencies.push(took);
        });
        let (_, sent) = futures::join!(opening, sending);
        sent?;
        self.course().state = State::Checking;
        let verdict = self.count(api).await?;
        self.course().verdict = Some(verdict);
        let began = Instant::now();
        let report = api.audits.report().await?;
        self.course().audit = Some(AuditView::new(&report, began.elapsed()));
        Ok(())
    }

    /// Counts in PostgreSQL, once it has all that the gate has decided.
    async fn count(&self, api: &Api) -> Result<VerdictView, String> {
        let mut latest = Problem::internal();
        for _ in 0..COUNT_ATTEMPTS {
            let read = async {
                let limit = RIVALS_COUPONS_MAX as usize;
                Ok(api.truth.coupon_tally(&self.template_id, RIVAL, limit).await?)
            };
            match api.read_truth(read).await {
                Ok((tally, _)) => return Ok(VerdictView::new(tally, self.opens_at)),
                Err(problem) => latest = problem,
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        Err(format!("PostgreSQL could not be read: {}", latest.code().as_str()))
    }

    pub fn view(&self) -> RunView {
        let course = self.course();
        let mut latencies = course.latencies.clone();
        latencies.sort_unstable();
        RunView {
            run_id: self.run_id,
            template_id: self.template_id.as_str().to_owned(),
            rivals: self.rivals,
            coupons: self.coupons,
            state: course.state,
            now: rfc3339(jiff::Timestamp::now().as_millisecond()),
            opens_at: rfc3339(self.opens_at),
            answered: course
                .outcomes
                .iter()
                .filter(|(told, _)| **told != crowd::NO_ANSWER)
                .map(|(_, n)| n)
                .sum(),
            outcomes: course.outcomes.clone(),
            p50_ms: latencies.get(latencies.len() / 2).map(|took| millis(*took)),
            verdict: course.verdict.clone(),
            audit: course.audit.clone(),
            failure: course.failure.clone(),
        }
    }
}

impl VerdictView {
    fn new(tally: CouponTally, opens_at: TimestampMs) -> Self {
        Self {
            issued: tally.issued,
            holders: tally.holders,
            serials: tally.serials,
            serial_min: tally.serial_min,
            serial_max: tally.serial_max,
            held_by_rivals: tally.held_by_prefix,
            issued_ms: tally.issued_at.into_iter().map(|at| at.saturating_sub(opens_at)).collect(),
            counted_at: rfc3339(jiff::Timestamp::now().as_millisecond()),
        }
    }
}

impl AuditView {
    fn new(report: &Report, took: Duration) -> Self {
        let broken = report.checks.iter().find(|check| !check.holds());
        let why = broken.and_then(|check| {
            let first = check.differences.first()?;
            Some(format!(
                "{}: {}: expected {}, found {}",
                check.name, first.id, first.expected, first.found
            ))
        });
        Self {
            outcome: report.outcome,
            checks: report.checks.len(),
            rows: report.checks.iter().map(|check| check.looked_at).sum(),
            took_ms: millis(took),
            why,
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
