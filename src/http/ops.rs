//! The operations port: liveness, readiness, metrics. It asks for no token, so it must not be
//! reachable from outside.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::admin_metrics::RenderMetrics;
use super::health::Health;
use super::middleware;

/// The state behind the operations port.
pub struct Ops {
    /// An instance that does not decide is ready when PostgreSQL answers and its roles run.
    pub health: Arc<Health>,
    /// Why the roles that follow the gate do not run yet; `None`: they run.
    pub waits_for: Box<dyn Fn() -> Option<String> + Send + Sync>,
    pub render_metrics: RenderMetrics,
    /// As in [`super::Api`].
    pub rabbitmq_connected: Option<Arc<AtomicBool>>,
    /// Cancelled when the process is asked to stop; `/readyz` then answers 503.
    pub stopping: CancellationToken,
}

/// `/healthz`, `/readyz`, `/metrics`.
pub fn ops_router(ops: Arc<Ops>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render_metrics))
        .with_state(ops)
        .fallback(middleware::route_not_found)
        .method_not_allowed_fallback(middleware::method_not_allowed)
}

async fn render_metrics(State(ops): State<Arc<Ops>>) -> Response {
    let text = (ops.render_metrics)();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// Whether requests can be decided; if not, why.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Readiness {
    ready: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<String>,
    /// Problems that do not keep requests from being decided.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

async fn readyz(State(ops): State<Arc<Ops>>) -> Response {
    let readiness = ops.readiness().await;
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness)).into_response()
}

impl Ops {
    async fn readiness(&self) -> Readiness {
        let (mut reasons, mut warnings) = (Vec::new(), Vec::new());
        if self.stopping.is_cancelled() {
            reasons.push("this process is stopping".to_owned());
        }
        let (gate, truth) = self.health.troubles().await;
        reasons.extend(gate);
        // The gate decides without PostgreSQL until the log limit.
        let place = if self.health.decides() { &mut warnings } else { &mut reasons };
        place.extend(truth.into_iter().chain((self.waits_for)()));
        if self
            .rabbitmq_connected
            .as_ref()
            .is_some_and(|connected| !connected.load(Ordering::Relaxed))
        {
            warnings.push("RabbitMQ is not connected; events wait in PostgreSQL".to_owned());
        }
        Readiness { ready: reasons.is_empty(), reasons, warnings }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::Request;
    use tower::ServiceExt;

    /// State of an instance that does not decide, and has never had an answer from PostgreSQL.
    fn ops() -> Arc<Ops> {
        Arc::new(Ops {
            health: Health::new(None),
            waits_for: Box::new(|| Some("the relay waits".to_owned())),
            render_metrics: Arc::new(String::new),
            rabbitmq_connected: Some(Arc::new(AtomicBool::new(false))),
            stopping: CancellationToken::new(),
        })
    }

    async fn status(path: &str) -> u16 {
        let request = Request::get(path).body(Body::empty()).unwrap();
        ops_router(ops()).oneshot(request).await.unwrap().status().as_u16()
    }

    #[tokio::test]
    async fn the_operations_port_answers_while_servers_are_away() {
        assert_eq!(status("/healthz").await, 200);
        assert_eq!(status("/metrics").await, 200);
        assert_eq!(status("/readyz").await, 503);
        assert_eq!(status("/nothing").await, 404);
    }

    #[tokio::test]
    async fn an_instance_that_is_not_ready_says_why() {
        let ops = ops();
        let readiness = ops.readiness().await;
        assert!(readiness.reasons[0].starts_with("PostgreSQL"), "{readiness:?}");
        assert_eq!(readiness.reasons[1], "the relay waits");
        assert!(readiness.warnings[0].starts_with("RabbitMQ"), "{readiness:?}");
        ops.stopping.cancel();
        assert_eq!(ops.readiness().await.reasons[0], "this process is stopping");
    }
}
