//! What surrounds every handler: a time limit, a net for panics, metrics; and the answers where no handler is.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use metrics::{counter, histogram};

use super::problem::{Code, Problem, RefusalCode};

/// Counts of requests, by `route`, `method`, `status` and refusal `code`.
pub const REQUESTS: &str = "rushgate_http_requests_total";
/// Seconds from a request's headers to its answer, by `route` and `method`.
pub const DURATION: &str = "rushgate_http_request_duration_seconds";

/// No route has this path.
pub async fn route_not_found(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(200).collect();
    Problem::new(Code::RouteNotFound, format!("There is no route {path}; GET /docs shows them all."))
}

/// The route has this path, not this method; axum adds `Allow`.
pub async fn method_not_allowed(method: Method) -> Problem {
    Problem::new(
        Code::MethodNotAllowed,
        format!("This route does not know the method {method}; the header Allow names those that it knows."),
    )
}

/// Runs a request's handler.
pub async fn around(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = known_method(request.method());
    let route = match request.extensions().get::<MatchedPath>() {
        Some(path) => path.as_str().to_owned(),
        None => "none".to_owned(),
    };
    let safe = request.method().is_safe();
    let response = match AssertUnwindSafe(tokio::time::timeout(limit, next.run(request))).catch_unwind().await
    {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => timed_out(safe).into_response(),
        Err(_) => {
            // The panic hook has logged where it happened.
            tracing::error!(route, method, "a handler panicked");
            Problem::internal().into_response()
        }
    };
    record(route, method, &response, started.elapsed());
    response
}

fn timed_out(safe: bool) -> Problem {
    if safe {
        Problem::new(Code::GateUnavailable, "There was no answer in time. Try again shortly.")
    } else {
        crate::gate::GateError::OutcomeUnknown.into()
    }
}

fn record(route: String, method: &'static str, response: &Response, took: Duration) {
    let code = response.extensions().get::<RefusalCode>().map_or("", |code| code.0);
    let status = response.status().as_str().to_owned();
    histogram!(DURATION, "route" => route.clone(), "method" => method).record(took.as_secs_f64());
    counter!(REQUESTS, "route" => route, "method" => method, "status" => status, "code" => code).increment(1);
}

/// Clients may invent methods; labels must not grow with them.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "other",
    }
}
