//! What surrounds every handler: a time limit, a net for panics, metrics; and the answers where no handler is.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;

use super::meters;
use super::problem::{Code, Problem, RefusalCode};
use crate::telemetry::trace::{REQUEST_ID, Trace};

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
    let trace = Arc::new(Trace::of(request.headers()));
    let _in_flight = meters::InFlight::begin();
    let method = known_method(request.method());
    let path = request.extensions().get::<MatchedPath>().cloned();
    let route = path.as_ref().map_or("none", MatchedPath::as_str);
    let safe = request.method().is_safe();
    let handling = trace.scope(tokio::time::timeout(limit, next.run(request)));
    let mut response = match AssertUnwindSafe(handling).catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => timed_out(safe).into_response(),
        Err(_) => {
            // The panic hook has logged where it happened.
            tracing::error!(route, method, request_id = ?trace.header, "a handler panicked");
            Problem::internal().into_response()
        }
    };
    let code = response.extensions().get::<RefusalCode>().map_or("", |code| code.0);
    let (status, took) = (response.status().as_u16(), started.elapsed());
    meters::answered(route, method, status, code, took);
    // Every request, for whoever asks for it; nothing of the client's but its id.
    tracing::debug!(route, method, status, code, ?took, request_id = ?trace.header, "answered");
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::error!(route, method, request_id = ?trace.header, "answered with an internal error");
    }
    trace.answered(|| format!("{method} {route}"), status, took);
    response.headers_mut().insert(REQUEST_ID, trace.header.clone());
    response
}

fn timed_out(safe: bool) -> Problem {
    if safe {
        Problem::new(Code::GateUnavailable, "There was no answer in time. Try again shortly.")
    } else {
        crate::gate::GateError::OutcomeUnknown.into()
    }
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
