//! A request's id (`x-request-id`) and its place in a distributed trace (W3C `traceparent`),
//! carried from the client through the log to the message. Spans are recorded when they end, and
//! only for sampled traces, so that an unsampled request costs only its id.
//!
//! A [`Trace`] lives as long as its request, in a task-local variable. Its [`TraceMark`] is stored
//! in the log with the decision, and later work on the decision records child spans from it.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use axum::http::{HeaderMap, HeaderValue};
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{
    BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor,
};
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::otlp;
use crate::config::{InvalidSetting, Serve};
use crate::domain::TimestampMs;
use crate::domain::trace_mark::{TraceMark, is_request_id};

pub const REQUEST_ID: &str = "x-request-id";
pub const TRACEPARENT: &str = "traceparent";
tokio::task_local! {
    static CURRENT: Arc<Trace>;
}

/// The trace context of one request.
#[derive(Debug)]
pub struct Trace {
    pub mark: TraceMark,
    /// The client's span.
    parent: Option<[u8; 8]>,
    /// The client's request id as received.
    given: Option<HeaderValue>,
}

impl Trace {
    /// Takes valid ids from the headers and generates the missing ones.
    pub fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(REQUEST_ID).filter(|id| is_request_id(id.as_bytes())).cloned();
        let parent =
            headers.get(TRACEPARENT).and_then(|text| TraceMark::parse(text.to_str().ok()?));
        let fresh = fresh_id();
        let mut span_id = [0; 8];
        // Never all zero, which would be invalid: these bytes contain the UUID's variant bits.
        span_id.copy_from_slice(&fresh.as_bytes()[8..]);
        let request_id = given.as_ref().and_then(|id| id.to_str().ok()).map(str::to_owned);
        let mark = match &parent {
            Some(parent) => TraceMark {
                span_id,
                // Several requests can belong to the client's trace, so a request without an id
                // gets one of its own instead of the trace's.
                request_id: request_id.or_else(|| Some(fresh.to_string())),
                ..parent.clone()
            },
            None => {
                let trace_id = *fresh.as_bytes();
                TraceMark { trace_id, span_id, sampled: is_sampled(&trace_id), request_id }
            }
        };
        Self { mark, parent: parent.map(|parent| parent.span_id), given }
    }

    /// The request's id as a header of the response.
    pub fn header(&self) -> HeaderValue {
        match (&self.given, &self.mark.request_id) {
            (Some(given), _) => given.clone(),
            (None, Some(id)) => {
                HeaderValue::from_str(id).unwrap_or_else(|_| HeaderValue::from_static(""))
            }
            (None, None) => self.mark.trace_id_header(),
        }
    }

    /// Runs `work` with this request as the current one.
    pub async fn scope<T>(self: &Arc<Self>, work: impl Future<Output = T>) -> T {
        CURRENT.scope(Arc::clone(self), work).await
    }

    /// The request that the current task works on.
    pub fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Records the server span of an answered request.
    pub fn answered(&self, name: impl FnOnce() -> String, status: u16, took: Duration) {
        let failed = status >= 500;
        record(&self.mark, || {
            let mut span = span(&self.mark, SpanKind::Server, name(), took);
            span.span_context = context(&self.mark, self.mark.span_id);
            span.parent_span_id = self.parent.map_or(SpanId::INVALID, SpanId::from_bytes);
            span.parent_span_is_remote = true;
            span.attributes.push(KeyValue::new("http.response.status_code", i64::from(status)));
            span.attributes.push(KeyValue::new("request.id", self.mark.request_id()));
            span.status = if failed { Status::error("") } else { Status::Unset };
            span
        });
    }
}

/// A UUIDv7. It protects nothing, so it may be predictable.
fn fresh_id() -> Uuid {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let random = fastrand::u128(..).to_ne_bytes();
    let mut ten = [0; 10];
    ten.copy_from_slice(&random[..10]);
    uuid::Builder::from_unix_timestamp_millis(u64::try_from(since.as_millis()).unwrap_or(0), &ten)
        .into_uuid()
}

impl TraceMark {
    fn trace_id_header(&self) -> HeaderValue {
        let mut text = [0; Hyphenated::LENGTH];
        let id = Uuid::from_bytes(self.trace_id).hyphenated();
        HeaderValue::from_str(id.encode_lower(&mut text))
            .unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    /// Records work that was done because of the request and has just ended.
    pub fn child(&self, kind: SpanKind, name: impl Into<String>, took: Duration) {
        record(self, || span(self, kind, name.into(), took));
    }

    /// Like [`Self::child`], for work that began at `from` on the gate's clock.
    pub fn child_since(&self, kind: SpanKind, name: &'static str, from: TimestampMs) {
        record(self, || {
            let from =
                SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(from).unwrap_or(0));
            let took = SystemTime::now().duration_since(from).unwrap_or_default();
            span(self, kind, name.to_owned(), took)
        });
    }
}

// ---- export -------------------------------------------------------------------------------------

struct Export {
    spans: BatchSpanProcessor,
    /// Share of the traces begun by this process that are sampled.
    ratio: f64,
}

static EXPORT: OnceLock<Export> = OnceLock::new();

/// Starts exporting spans, if an endpoint is set.
pub fn start(settings: &Serve) -> Result<(), InvalidSetting> {
    let Some(endpoint) = &settings.otlp_endpoint else { return Ok(()) };
    let spans = otlp::spans(endpoint)?;
    let _ = EXPORT.set(Export { spans, ratio: settings.otlp_ratio }); // once per process
    Ok(())
}

/// Sends the remaining spans.
pub async fn stop() {
    const LIMIT: Duration = Duration::from_secs(1);
    if let Some(export) = EXPORT.get() {
        let stopped =
            tokio::task::spawn_blocking(move || export.spans.shutdown_with_timeout(LIMIT));
        // A collector that is away must not hold up the process.
        let _ = tokio::time::timeout(LIMIT * 2, stopped).await;
    }
}

/// Whether spans are exported at all.
pub fn is_exporting() -> bool {
    EXPORT.get().is_some()
}

fn is_sampled(trace_id: &[u8; 16]) -> bool {
    let Some(export) = EXPORT.get() else { return false };
    // The last seven bytes are random.
    let random = trace_id[9..].iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    (random as f64) < export.ratio * (1_u64 << 56) as f64
}

fn record(mark: &TraceMark, span: impl FnOnce() -> SpanData) {
    if let Some(export) = EXPORT.get().filter(|_| mark.sampled) {
        export.spans.on_end(span());
    }
}

fn context(mark: &TraceMark, span_id: [u8; 8]) -> SpanContext {
    let trace_id = TraceId::from_bytes(mark.trace_id);
    SpanContext::new(
        trace_id,
        SpanId::from_bytes(span_id),
        TraceFlags::SAMPLED,
        false,
        TraceState::default(),
    )
}

fn span(parent: &TraceMark, span_kind: SpanKind, name: String, took: Duration) -> SpanData {
    let mut span_id = [0; 8];
    span_id.copy_from_slice(&fresh_id().as_bytes()[8..]);
    let end_time = SystemTime::now();
    SpanData {
        span_context: context(parent, span_id),
        parent_span_id: SpanId::from_bytes(parent.span_id),
        parent_span_is_remote: false,
        span_kind,
        name: name.into(),
        start_time: end_time - took,
        end_time,
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::builder("rushgate").build(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn trace(headers: &[(&'static str, &str)]) -> Trace {
        Trace::of(&headers.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect())
    }

    #[test]
    fn what_a_client_gives_is_taken_over() {
        let trace = trace(&[(REQUEST_ID, "order-7/a"), (TRACEPARENT, GIVEN)]);
        assert_eq!(trace.header(), "order-7/a");
        assert_eq!(trace.mark.request_id(), "order-7/a");
        let out = trace.mark.traceparent();
        assert!(
            out.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && out.ends_with("-01"),
            "{out}"
        );
        assert!(!out.contains("b7ad6b7169203331"), "the request is a span of its own");
        assert_eq!(trace.parent, Some([0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]));
    }

    #[test]
    fn what_is_missing_or_unreadable_is_made() {
        let (first, second) =
            (trace(&[]), trace(&[(REQUEST_ID, "two words"), (TRACEPARENT, "00-0-0-00")]));
        for trace in [&first, &second] {
            assert_eq!(trace.header(), trace.mark.request_id());
            assert!(Uuid::parse_str(&trace.mark.request_id()).is_ok());
            assert!(trace.mark.traceparent().ends_with("-00") && trace.parent.is_none());
        }
        assert_ne!(first.mark, second.mark);
        assert!(
            !is_request_id(b"") && !is_request_id(&[b'a'; 129]) && !is_request_id("é".as_bytes())
        );
    }

    #[test]
    fn a_mark_survives_the_log() {
        for trace in [
            trace(&[]),
            trace(&[(REQUEST_ID, "r"), (TRACEPARENT, GIVEN)]),
            trace(&[(TRACEPARENT, GIVEN)]),
        ] {
            let id = crate::domain::wire::Id::new();
            let packed = crate::domain::wire::pack(&trace.mark.packed(id)).unwrap();
            let unpacked = TraceMark::unpacked(rmp_serde::from_slice(&packed).unwrap());
            assert_eq!(unpacked, Some((id.0, trace.mark)));
        }
    }
}
