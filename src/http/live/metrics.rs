//! Metrics of live streams. The handles are made once: events are counted up to tens of thousands of
//! times a second.

use ::metrics::{Counter, Gauge};

use crate::telemetry::metrics::{LIVE_EVENTS, LIVE_SAMPLES, LIVE_STREAMS, LIVE_WATCHED};

pub struct LiveMetrics {
    pub streams: Gauge,
    pub watched: Gauge,
    pub snapshots: Counter,
    pub products: Counter,
    pub templates: Counter,
    pub unavailable: Counter,
    pub available: Counter,
    pub read: Counter,
    pub failed: Counter,
    pub skipped: Counter,
}

impl Default for LiveMetrics {
    fn default() -> Self {
        let event = |name| LIVE_EVENTS.counter(&[("event", name)]);
        let sample = |outcome| LIVE_SAMPLES.counter(&[("outcome", outcome)]);
        let metrics = Self {
            streams: LIVE_STREAMS.gauge(&[]),
            watched: LIVE_WATCHED.gauge(&[]),
            snapshots: event("snapshot"),
            products: event("product"),
            templates: event("template"),
            unavailable: event("unavailable"),
            available: event("available"),
            read: sample("read"),
            failed: sample("failed"),
            skipped: sample("skipped"),
        };
        metrics.streams.set(0.0);
        metrics.watched.set(0.0);
        metrics
    }
}
