//! Audits on demand, for staff: the comparison of `rushgate audit`, run by this instance.
//!
//! An instance runs one audit at a time and remembers its latest ones ([`AUDITS_KEPT`]); other
//! instances do not know them. Large shops take long to audit, and an audit ends after
//! [`crate::config::bounds::AUDIT_LIMIT`]: use the command there.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use futures::future::BoxFuture;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Api;
use super::answer::{JsonAnswer, marked};
use super::auth::Staff;
use super::extract::{IdempotencyKeyParam, Key, NoBody, NoQuery};
use super::json_response::json_response;
use super::problem::Problem;
use crate::audit::{Check, Difference, Outcome, Report};
use crate::config::bounds::{AUDIT_WAIT, AUDITS_KEPT};
use crate::domain::{TimestampMs, rfc3339};
use crate::gate::KeyedRequest;

/// Runs an audit: waits for the given time until PostgreSQL has caught up, and ends within
/// [`crate::config::bounds::AUDIT_LIMIT`]. Passed in by `rushgate serve`. The error says why there is no report.
pub type RunAudit =
    Arc<dyn Fn(Duration) -> BoxFuture<'static, Result<Report, String>> + Send + Sync>;

/// The audits of this instance.
pub struct Audits {
    run: RunAudit,
    /// One audit at a time; each reads everything.
    turn: tokio::sync::Mutex<()>,
    /// The latest first.
    runs: Mutex<VecDeque<AuditRun>>,
}

#[derive(Clone, Debug)]
struct AuditRun {
    id: Uuid,
    /// Scope of the idempotency key that it was started with.
    key: Option<String>,
    started_at: TimestampMs,
    took: Option<Duration>,
    result: Option<Result<Report, String>>,
}

impl Audits {
    pub fn new(run: RunAudit) -> Self {
        Self { run, turn: tokio::sync::Mutex::default(), runs: Mutex::default() }
    }

    /// Audits now, or once the audit that is running has ended.
    pub async fn report(&self) -> Result<Report, String> {
        let _turn = self.turn.lock().await;
        (self.run)(AUDIT_WAIT).await
    }

    /// Starts an audit, unless one that was started here is still running. Returns it, and whether
    /// it is new.
    fn start(self: &Arc<Self>, key: Option<String>) -> (AuditRun, bool) {
        let mut runs = self.runs();
        if let Some(running) = runs.front().filter(|run| run.result.is_none()) {
            return (running.clone(), false);
        }
        let started_at = jiff::Timestamp::now().as_millisecond();
        let run = AuditRun { id: Uuid::now_v7(), key, started_at, took: None, result: None };
        runs.push_front(run.clone());
        runs.truncate(AUDITS_KEPT);
        let audits = Arc::clone(self);
        tokio::spawn(async move {
            let began = Instant::now();
            let result = audits.report().await;
            if let Some(run) = audits.runs().front_mut() {
                (run.took, run.result) = (Some(began.elapsed()), Some(result));
            }
        });
        (run, true)
    }

    /// The audit that was started with this key, while it is remembered.
    fn of_key(&self, key: &str) -> Option<AuditRun> {
        self.runs().iter().find(|run| run.key.as_deref() == Some(key)).cloned()
    }

    fn runs(&self) -> MutexGuard<'_, VecDeque<AuditRun>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An audit that this instance runs or has run.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "Audit", as = Audit)]
pub struct AuditView {
    audit_id: Uuid,
    state: AuditState,
    #[schema(format = DateTime, example = "2026-11-22T09:00:00.000Z")]
    started_at: String,
    /// How long it took, once it has ended.
    #[schema(required, example = 180)]
    took_ms: Option<u64>,
    /// Why there is no result, where it has failed.
    #[schema(required)]
    failure: Option<String>,
    /// The position that PostgreSQL had reached, with the rules that were checked there; empty while
    /// it runs.
    #[schema(required, example = 3)]
    epoch: Option<i64>,
    #[schema(required, example = 1_204)]
    seq: Option<i64>,
    checks: Vec<CheckView>,
}

/// `clean`: everything was compared, nothing differs. `not_compared`: the check `cell` says why.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum AuditState {
    Running,
    Clean,
    Differences,
    NotCompared,
    Failed,
}

/// One rule of the shop.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "AuditCheck", as = AuditCheck)]
struct CheckView {
    #[schema(example = "coupons")]
    name: &'static str,
    rule: &'static str,
    /// Items checked.
    #[schema(minimum = 0)]
    looked_at: i64,
    /// The first differences.
    differences: Vec<DifferenceView>,
    /// Further differences, which are only counted.
    #[schema(minimum = 0)]
    more: i64,
}

/// An item that breaks a rule.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "AuditDifference", as = AuditDifference)]
struct DifferenceView {
    id: String,
    expected: String,
    found: String,
}

impl From<Check> for CheckView {
    fn from(Check { name, rule, looked_at, differences, more }: Check) -> Self {
        let view = |Difference { id, expected, found }| DifferenceView { id, expected, found };
        let differences = differences.into_iter().map(view).collect();
        Self { name, rule, looked_at, differences, more }
    }
}

impl From<AuditRun> for AuditView {
    fn from(run: AuditRun) -> Self {
        let mut view = Self {
            audit_id: run.id,
            state: AuditState::Running,
            started_at: rfc3339(run.started_at),
            took_ms: run.took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
            failure: None,
            epoch: None,
            seq: None,
            checks: Vec::new(),
        };
        match run.result {
            None => {}
            Some(Err(why)) => {
                view.state = AuditState::Failed;
                view.failure = Some(why);
            }
            Some(Ok(report)) => {
                view.state = match report.outcome {
                    Outcome::Clean => AuditState::Clean,
                    Outcome::Differences => AuditState::Differences,
                    Outcome::NotCompared => AuditState::NotCompared,
                };
                (view.epoch, view.seq) = (Some(report.epoch), Some(report.seq));
                view.checks = report.checks.into_iter().map(CheckView::from).collect();
            }
        }
        view
    }
}

/// The latest audits of this instance, the latest first.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "Audits", as = Audits)]
pub struct AuditsView {
    data: Vec<AuditView>,
}

/// Run an audit
///
/// Compares gate, truth and outbox as `rushgate audit` does, in the background; read the result from
/// `GET /v1/admin/audits`. An instance runs one at a time: while one runs, the answer is 200 with
/// that one. It needs the right to read all tables, and ends after ten minutes. A repeat with the same
/// `Idempotency-Key` gets the audit that the first call has started, as long as the instance
/// remembers it.
#[utoipa::path(post, path = "/v1/admin/audits", tag = "operations",
    params(IdempotencyKeyParam), security(("token" = ["admin"])),
    responses((status = 201, description = "Started", body = AuditView),
              (status = 200, description = "One is running already", body = AuditView)))]
pub async fn start_audit(
    State(api): State<Arc<Api>>,
    Staff(caller): Staff,
    key: Key,
    _: NoBody,
) -> Result<Response, Problem> {
    let _permit = api.concurrency.staff.permit().await?;
    let mut scope = None;
    // Without a key, nothing is asked of gate or PostgreSQL: an audit may find out why they fail.
    if let Some(key) = key.of(&caller.sub) {
        api.catch_up().await?;
        let used = api.used_before(&key, KeyedRequest::StartAudit).await?.is_some();
        let key_scope = KeyedRequest::StartAudit.record(&key).scope;
        match api.audits.of_key(&key_scope) {
            Some(run) if used => return Ok(marked(answer(StatusCode::CREATED, run), true)),
            _ => drop(api.use_key(&key, KeyedRequest::StartAudit).await?),
        }
        scope = Some(key_scope);
    }
    let (run, new) = api.audits.start(scope);
    Ok(answer(if new { StatusCode::CREATED } else { StatusCode::OK }, run))
}

fn answer(status: StatusCode, run: AuditRun) -> Response {
    json_response(status, "application/json", &AuditView::from(run))
}

/// The audits of this instance
///
/// Its latest ten that were started by `POST /v1/admin/audits`. Another instance has others, and a
/// restart forgets them.
#[utoipa::path(get, path = "/v1/admin/audits", tag = "operations", security(("token" = ["admin"])),
    responses((status = 200, body = AuditsView)))]
pub async fn list_audits(
    State(api): State<Arc<Api>>,
    _: Staff,
    _: NoQuery,
) -> Result<JsonAnswer<AuditsView>, Problem> {
    let _permit = api.concurrency.staff.permit().await?;
    let runs: Vec<AuditRun> = api.audits.runs().iter().cloned().collect();
    Ok(JsonAnswer(AuditsView { data: runs.into_iter().map(AuditView::from).collect() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::Notify;

    #[tokio::test]
    async fn one_audit_runs_at_a_time_and_the_latest_are_kept() {
        let go = Arc::new(Notify::new());
        let gone = Arc::clone(&go);
        let run: RunAudit = Arc::new(move |_| {
            let gone = Arc::clone(&gone);
            Box::pin(async move {
                gone.notified().await;
                Err("no server".to_owned())
            })
        });
        let audits = Arc::new(Audits::new(run));
        for round in 1..=AUDITS_KEPT + 2 {
            let (first, new) = audits.start(None);
            assert!(new, "round {round}");
            let (again, new) = audits.start(None);
            assert!(!new && again.id == first.id);
            go.notify_one();
            while audits.runs()[0].result.is_none() {
                tokio::task::yield_now().await;
            }
            assert!(matches!(AuditView::from(audits.runs()[0].clone()).state, AuditState::Failed));
            assert_eq!(audits.runs().len(), round.min(AUDITS_KEPT));
        }
    }
}
