//! The crowd of the demo: up to [`RIVALS_MAX`] simulated users who want a coupon of a fresh template
//! in the second it opens.
//!
//! A run makes its template, waits for the opening, sends the crowd ([`crowd`]) over HTTP to this
//! instance's own port, counts in PostgreSQL what was issued, and audits. It has a time limit, and
//! there is one run at a time; whoever starts another while one is under way joins it. The latest
//! run is kept until the next.

mod crowd;
mod run;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::config::bounds::{
    RIVALS_COUNTDOWN, RIVALS_COUPONS_MAX, RIVALS_MAX, RIVALS_TEMPLATE_OPEN,
};
use crate::domain::{Discount, TemplateId, TimestampMs};
use crate::gate::PutTemplate;
use crate::http::Api;
use crate::http::answer::JsonAnswer;
use crate::http::extract::{Json, NoQuery};
use crate::http::fields::{IntRange, bound};
use crate::http::json_response::json_response;
use crate::http::problem::Problem;

pub use crowd::Crowd;
pub use run::{Run, RunView};

/// First part of the ids of the run's templates, and of the crowd's users.
const TEMPLATE: &str = "rivals-";
pub const RIVAL: &str = "rival-";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartBody {
    rivals: IntRange<1, { bound(RIVALS_MAX) }>,
    coupons: IntRange<1, { bound(RIVALS_COUPONS_MAX) }>,
}

#[derive(Debug, Serialize)]
pub struct StartedView {
    /// False: the run was under way already.
    started: bool,
    run: RunView,
}

#[derive(Debug, Serialize)]
pub struct CurrentView {
    run: Option<RunView>,
}

/// `POST /shop/rivals` `{rivals,coupons}`: 201 with a new run, or 200 with the one under way.
pub async fn start(
    State(api): State<Arc<Api>>,
    Json(body): Json<StartBody>,
) -> Result<Response, Problem> {
    let mut latest = api.storefront()?.rivals.lock().await;
    let under_way = latest.as_ref().filter(|run| !run.is_over());
    let (run, started) = match under_way {
        Some(run) => (Arc::clone(run), false),
        None => {
            let run = Arc::new(prepare(&api, body).await?);
            *latest = Some(Arc::clone(&run));
            tokio::spawn(Arc::clone(&run).execute(Arc::clone(&api)));
            (run, true)
        }
    };
    let status = if started { StatusCode::CREATED } else { StatusCode::OK };
    Ok(json_response(status, "application/json", &StartedView { started, run: run.view() }))
}

/// `GET /shop/rivals`: the latest run; null before the first.
pub async fn current(
    State(api): State<Arc<Api>>,
    _: NoQuery,
) -> Result<JsonAnswer<CurrentView>, Problem> {
    let latest = api.storefront()?.rivals.lock().await;
    Ok(JsonAnswer(CurrentView { run: latest.as_ref().map(|run| run.view()) }))
}

/// Makes the template of a run.
async fn prepare(api: &Api, body: StartBody) -> Result<Run, Problem> {
    let (rivals, coupons) = (body.rivals.get(), body.coupons.get());
    let run_id = Uuid::now_v7();
    let template_id = TemplateId::parse(format!("{TEMPLATE}{}", run_id.simple()))
        .map_err(|_| Problem::internal())?;
    let after = |from: TimestampMs, time: std::time::Duration| {
        from.saturating_add(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
    };
    let now = api.gate.now().await?;
    let opens = Instant::now() + RIVALS_COUNTDOWN;
    let opens_at = after(now, RIVALS_COUNTDOWN);
    let request = PutTemplate {
        template_id: template_id.clone(),
        name: format!("The rush: {coupons} coupons, {rivals} rivals"),
        discount: Discount::Percent { value: 30, max: Some(10_000) },
        min_subtotal: 0,
        max_issued: coupons,
        issue_from: opens_at,
        issue_until: after(opens_at, RIVALS_TEMPLATE_OPEN),
    };
    let decision = api.gate.put_template(request, api.deadline()).await?;
    decision.map_err(|refusal| {
        tracing::error!(?refusal, "the gate refused the template of a crowd");
        Problem::internal()
    })?;
    Ok(Run::new(run_id, template_id, rivals, coupons, opens, opens_at))
}
