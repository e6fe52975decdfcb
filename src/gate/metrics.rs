//! The metrics of one script's queue. The handles are created once, so that counting a request is
//! one addition, without a lookup by label.

use ::metrics::{Counter, Histogram};
use std::time::Duration;

use super::refusal::{Decision, GateError, Refusal};
use crate::telemetry::metrics;

/// The metric handles of one script.
pub struct QueueMetrics {
    accepted: Counter,
    replayed: Counter,
    /// By name: the refusals of the script's own rules, then the errors of every script.
    other: Vec<(&'static str, Counter)>,
    remembered: Counter,
    call: Histogram,
    batch: Histogram,
    wait: Histogram,
}

impl QueueMetrics {
    /// `refusals`: the names that the script may return.
    pub fn new(script: &'static str, refusals: &'static [&'static str]) -> Self {
        let verdict =
            |verdict| metrics::GATE_REQUESTS.counter(&[("script", script), ("verdict", verdict)]);
        let label = [("script", script)];
        let others = refusals.iter().chain(GateError::NAMES);
        Self {
            accepted: verdict("accepted"),
            replayed: verdict("replayed"),
            other: others.map(|name| (*name, verdict(name))).collect(),
            remembered: metrics::GATE_REMEMBERED.counter(&label),
            call: metrics::GATE_CALL.histogram(&label),
            batch: metrics::GATE_BATCH.histogram(&label),
            wait: metrics::GATE_WAIT.histogram(&label),
        }
    }

    /// Counts the verdict of one request.
    pub fn decided<F, R: Refusal>(&self, decision: &Decision<F, R>) {
        match decision {
            Ok(Ok(accepted)) if accepted.replayed => self.replayed.increment(1),
            Ok(Ok(_)) => self.accepted.increment(1),
            Ok(Err(refusal)) => self.count_other(refusal.name()),
            Err(error) => self.count_other(error.name()),
        }
    }

    /// Counts the answer of one read.
    pub fn read<T>(&self, answer: &Result<T, GateError>) {
        match answer {
            Ok(_) => self.accepted.increment(1),
            Err(error) => self.count_other(error.name()),
        }
    }

    /// Counts one request that was refused by the sold-out memory.
    pub fn remembered_sold_out(&self) {
        self.remembered.increment(1);
    }

    /// Records one call: the time that each of its requests waited in the queue, and the duration
    /// of the call.
    pub fn called(&self, waits: impl ExactSizeIterator<Item = Duration>, took: Duration) {
        self.batch.record(waits.len() as f64);
        waits.for_each(|wait| self.wait.record(wait));
        self.call.record(took);
    }

    fn count_other(&self, name: &'static str) {
        if let Some((_, counter)) = self.other.iter().find(|(known, _)| *known == name) {
            counter.increment(1);
        }
    }
}
