//! Metrics of the relay.

use ::metrics::{Counter, Gauge, Histogram};

use super::publish::Window;
use super::{Refusal, topology};
use crate::telemetry::metrics;

/// Metric handles, created once.
pub(super) struct RelayMetrics {
    published: Counter,
    confirmed: Counter,
    unroutable: Counter,
    nacked: Counter,
    unpublishable: Counter,
    publish: Histogram,
    confirm: Histogram,
    leading: Gauge,
    connected: Gauge,
}

impl RelayMetrics {
    pub fn new() -> Self {
        let refused = |reason| metrics::RELAY_REFUSED.counter(&[("reason", reason)]);
        Self {
            published: metrics::RELAY_PUBLISHED.counter(&[]),
            confirmed: metrics::RELAY_CONFIRMED.counter(&[]),
            unroutable: refused("unroutable"),
            nacked: refused("nacked"),
            unpublishable: refused("unpublishable"),
            publish: metrics::RELAY_PUBLISH.histogram(&[]),
            confirm: metrics::RELAY_CONFIRM.histogram(&[]),
            leading: metrics::RELAY_LEADING.gauge(&[]),
            connected: metrics::RELAY_CONNECTED.gauge(&[]),
        }
    }

    pub fn window(&self, window: &Window) {
        self.published.increment(window.sent as u64);
        self.confirmed.increment(window.confirmed.len() as u64);
        for refused in &window.refused {
            match refused.why {
                Refusal::Unroutable(_) => &self.unroutable,
                Refusal::Nacked => &self.nacked,
                Refusal::Unpublishable(_) => &self.unpublishable,
            }
            .increment(1);
        }
        self.publish.record(window.publishing);
        self.confirm.record(window.confirming);
    }

    pub fn state(&self, leading: bool, connected: bool) {
        let flag = |on: bool| if on { 1.0 } else { 0.0 };
        self.leading.set(flag(leading));
        self.connected.set(flag(connected));
        if !connected {
            // This instance does not measure the queues now; another one may. Its last values must
            // not stay.
            for queue in [topology::ORDERS_QUEUE, topology::DEAD_ORDERS_QUEUE] {
                seen(queue, f64::NAN, f64::NAN);
            }
        }
    }
}

/// Sets the gauges of a queue.
pub(super) fn seen(queue: &'static str, messages: f64, consumers: f64) {
    metrics::RABBITMQ_MESSAGES.gauge(&[("queue", queue)]).set(messages);
    metrics::RABBITMQ_CONSUMERS.gauge(&[("queue", queue)]).set(consumers);
}
