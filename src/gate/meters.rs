//! What is counted about one script's queue: handles made once, so that counting is an addition.

use ::metrics::{Counter, Histogram};
use std::time::Duration;

use super::refusal::{Decision, GateError, Refusal};
use crate::telemetry::metrics;

/// The figures of one script, in one process.
pub struct LaneMeters {
    accepted: Counter,
    replayed: Counter,
    /// By name: the refusals of the script's own rules, then what every script may come to.
    other: Vec<(&'static str, Counter)>,
    remembered: Counter,
    call: Histogram,
    batch: Histogram,
    wait: Histogram,
}

impl LaneMeters {
    /// `refusals` are those that the script may answer.
    pub fn new(script: &'static str, refusals: &'static [&'static str]) -> Self {
        let verdict = |verdict| metrics::GATE_REQUESTS.counter(&[("script", script), ("verdict", verdict)]);
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

    /// One request has its verdict.
    pub fn decided<F, R: Refusal>(&self, decision: &Decision<F, R>) {
        match decision {
            Ok(Ok(accepted)) if accepted.replayed => self.replayed.increment(1),
            Ok(Ok(_)) => self.accepted.increment(1),
            Ok(Err(refusal)) => self.count_other(refusal.name()),
            Err(error) => self.count_other(error.name()),
        }
    }

    /// One read has its answer.
    pub fn read<T>(&self, answer: &Result<T, GateError>) {
        match answer {
            Ok(_) => self.accepted.increment(1),
            Err(error) => self.count_other(error.name()),
        }
    }

    /// One request was refused from memory.
    pub fn remembered_sold_out(&self) {
        self.remembered.increment(1);
    }

    /// A batch of this many requests was sent, which had waited so long, and its call has taken this time.
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
