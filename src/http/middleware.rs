//! The middleware around every handler: time limit, rate limit per address, panic handler, metrics,
//! security headers; and the answers for requests that no route takes.
//!
//! [`Middleware`] holds what is the same for all requests. [`Surrounded`] is the service made of it
//! and a router; each connection has a clone.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, DATE, ETAG, IF_NONE_MATCH, REFERRER_POLICY, RETRY_AFTER,
    STRICT_TRANSPORT_SECURITY, TRANSFER_ENCODING, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use futures::future::BoxFuture;
use tower::Service;
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::Api;
use super::accept::Language;
use super::compress::{accepts_gzip, compress};
use super::metrics::{self, Routes};
use super::problem::{Code, Problem};
use super::rates::Rates;
use super::request_notes::RequestNotes;
use super::server::Peer;
use crate::telemetry::trace::{REQUEST_ID, TRACEPARENT, Trace};

/// How long a browser may cache the answer to a CORS preflight.
const PREFLIGHT_MEMORY: Duration = Duration::from_secs(600);

/// No route has this path.
pub async fn route_not_found(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(200).collect();
    Problem::new(
        Code::RouteNotFound,
        format!("There is no route {path}; GET /docs shows them all."),
    )
}

/// The path's route does not have this method; axum adds `Allow`.
pub async fn method_not_allowed(method: Method) -> Problem {
    Problem::new(
        Code::MethodNotAllowed,
        format!(
            "This route does not know the method {method}; the header Allow names those that it knows."
        ),
    )
}

/// The middleware's state, shared by all requests.
pub struct Middleware {
    pub(super) limit: Duration,
    rates: Arc<Rates>,
    routes: Routes,
    /// Set on every response that does not have the header already.
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Middleware {
    pub fn new(api: &Api, routes: Routes) -> Self {
        Self {
            limit: api.settings.handler_timeout(),
            rates: Arc::clone(&api.rates),
            routes,
            headers: headers(api.browser_policy.tls),
        }
    }

    /// `router` with this middleware around it.
    pub fn over(self: Arc<Self>, router: Router) -> Surrounded {
        Surrounded(Arc::new((self, Mutex::new(router))))
    }

    async fn answer(&self, router: &Mutex<Router>, request: Request) -> Response {
        let started = Instant::now();
        let trace = Arc::new(Trace::of(request.headers()));
        let _in_flight = metrics::InFlight::begin();
        let method = known_method(request.method());
        let route = self.routes.of(request.uri().path());
        let safe = request.method().is_safe();
        let accepts_gzip = accepts_gzip(request.headers());
        let language = Language::of(request.headers());
        let counted = pin!(async {
            if !is_well_framed(&request) {
                return ([(CONNECTION, "close")], badly_framed()).into_response();
            }
            let peer = request.extensions().get::<Peer>().copied();
            match self.rates.count_address(peer, request.headers()) {
                Ok(()) => {
                    let answering =
                        router.lock().unwrap_or_else(PoisonError::into_inner).call(request);
                    infallible(answering.await)
                }
                Err(refused) => refused.into_response(),
            }
        });
        let collect = pin!(RequestNotes::collect(language, counted));
        let limited = pin!(tokio::time::timeout(self.limit, collect));
        let handling = pin!(trace.scope(limited));
        let (response, current) = match AssertUnwindSafe(handling).catch_unwind().await {
            Ok(Ok(answered)) => answered,
            Ok(Err(_)) => RequestNotes::collect_now(language, || timed_out(safe).into_response()),
            Err(_) => {
                // The panic hook has logged where it happened.
                tracing::error!(
                    route = self.routes.name(route),
                    method,
                    request_id = trace.mark.request_id(),
                    "a handler panicked"
                );
                RequestNotes::collect_now(language, || Problem::internal().into_response())
            }
        };
        let mut response = compress(response, accepts_gzip);
        self.rates.write_headers(response.headers_mut(), current.quota);
        self.account(&trace, (route, method), &response, current.refusal, started);
        self.complete(&trace, response.headers_mut());
        response
    }

    /// Records an answered request in metrics, log and trace.
    fn account(
        &self,
        trace: &Trace,
        (route, method): (usize, &'static str),
        response: &Response,
        code: &'static str,
        started: Instant,
    ) {
        let (status, took) = (response.status().as_u16(), started.elapsed());
        let name = self.routes.name(route);
        metrics::answered((route, name), method, status, code, took);
        // The request id is the only value that comes from the client.
        tracing::debug!(
            route = name,
            method,
            status,
            code,
            ?took,
            request_id = trace.mark.request_id(),
            "answered"
        );
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(
                route = name,
                method,
                request_id = trace.mark.request_id(),
                "answered with an internal error"
            );
        }
        trace.answered(|| format!("{method} {name}"), status, took);
    }

    /// Sets the headers that every response has.
    fn complete(&self, trace: &Trace, headers: &mut HeaderMap) {
        headers.insert(HeaderName::from_static(REQUEST_ID), trace.header());
        for (name, value) in &self.headers {
            headers.entry(name).or_insert_with(|| value.clone());
        }
    }
}

/// One service around the whole router. Layers would wrap each route, and each layer would cost an
/// allocation per request.
///
/// A clone is made for each connection. Clones share neither the reference count that a request
/// changes nor the router's lock, so the lock is never contended.
pub struct Surrounded(Arc<(Arc<Middleware>, Mutex<Router>)>);

impl Clone for Surrounded {
    fn clone(&self) -> Self {
        let (middleware, router) = &*self.0;
        Arc::clone(middleware).over(router.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Service<Request> for Surrounded {
    type Response = Response;
    type Error = Infallible;
    /// Boxed: the future is large, and the server keeps it in the connection's state and moves it
    /// there.
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let ours = Arc::clone(&self.0);
        async move { Ok(ours.0.answer(&ours.1, request).await) }.boxed()
    }
}

fn infallible<T>(result: Result<T, Infallible>) -> T {
    match result {
        Ok(value) => value,
        Err(never) => match never {},
    }
}

/// Responses are for programs: browsers must not sniff their type, show or frame them as a page,
/// cache them, or send their address as a referrer.
fn headers(tls: bool) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = vec![
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (CACHE_CONTROL, "no-store"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    if tls {
        headers.push((STRICT_TRANSPORT_SECURITY, "max-age=31536000"));
    }
    headers.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect()
}

/// CORS for pages of these origins; `None` without any: no page of another origin may call.
pub fn cors(origins: &[HeaderValue]) -> Option<CorsLayer> {
    const ASKED: [HeaderName; 6] = [
        AUTHORIZATION,
        CONTENT_TYPE,
        IF_NONE_MATCH,
        HeaderName::from_static("idempotency-key"),
        HeaderName::from_static(REQUEST_ID),
        HeaderName::from_static(TRACEPARENT),
    ];
    const TOLD: [HeaderName; 8] = [
        DATE,
        ETAG,
        RETRY_AFTER,
        WWW_AUTHENTICATE,
        HeaderName::from_static("idempotent-replayed"),
        HeaderName::from_static("ratelimit"),
        HeaderName::from_static("ratelimit-policy"),
        HeaderName::from_static(REQUEST_ID),
    ];
    if origins.is_empty() {
        return None;
    }
    let layer = CorsLayer::new().allow_origin(AllowOrigin::list(origins.iter().cloned()));
    let layer = layer.allow_methods([Method::GET, Method::POST, Method::PUT]);
    Some(layer.allow_headers(ASKED).expose_headers(TOLD).max_age(PREFLIGHT_MEMORY))
}

/// Whether every HTTP/1 parser must agree on where this request ends. The server accepts ambiguous
/// lengths that a proxy in front may read differently. Bytes after the request could then be taken
/// for the next request on the connection, which may be another client's (request smuggling).
fn is_well_framed(request: &Request) -> bool {
    let mut codings = request.headers().get_all(TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return true };
    let chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none();
    chunked && !request.headers().contains_key(CONTENT_LENGTH)
}

fn badly_framed() -> Problem {
    Problem::malformed(
        "The request's length is given in more than one way; send Content-Length or `chunked`, once.",
    )
}

fn timed_out(safe: bool) -> Problem {
    if safe {
        Problem::new(Code::GateUnavailable, "There was no answer in time. Try again shortly.")
    } else {
        crate::gate::GateError::OutcomeUnknown.into()
    }
}

/// Clients can send any method name; the label must have few values.
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
