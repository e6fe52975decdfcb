//! Metrics of one cell's reconciler.

use ::metrics::{Counter, Gauge, Histogram};
use std::time::Duration;

use super::plan::Won;
use crate::telemetry::metrics;

/// Metric handles, created once.
pub(super) struct ReconcilerMetrics {
    pub leading: Gauge,
    pub halts: Counter,
    pub rebuilds: Counter,
    pub rebuild_duration: Histogram,
    entries: Counter,
    batch: Histogram,
    duration: Histogram,
    /// Won that were moved, by kind of ledger entry.
    won: [(&'static str, Counter); 3],
}

impl ReconcilerMetrics {
    pub fn new(cell: u32) -> Self {
        let metrics = Self {
            leading: metrics::RECONCILER_LEADING.gauge_of_cell(cell),
            halts: metrics::RECONCILER_HALTS.counter(&[]),
            rebuilds: metrics::REBUILDS.counter(&[]),
            rebuild_duration: metrics::REBUILD_DURATION.histogram(&[]),
            entries: metrics::RECONCILER_ENTRIES.counter(&[]),
            batch: metrics::RECONCILER_BATCH.histogram(&[]),
            duration: metrics::RECONCILER_DURATION.histogram(&[]),
            won: ["charge", "payment", "refund"]
                .map(|kind| (kind, metrics::WALLET_WON.counter(&[("kind", kind)]))),
        };
        metrics.leading.set(0.0);
        metrics
    }

    /// Records a transaction that has applied this many entries.
    pub fn applied(&self, entries: usize, won: &Won, took: Duration) {
        self.entries.increment(entries as u64);
        self.batch.record(entries as f64);
        self.duration.record(took);
        for (kind, counter) in &self.won {
            counter.increment(won.get(kind).copied().unwrap_or_default());
        }
    }
}

/// However a reconciler ends, its gauge must not go on claiming that it leads.
impl Drop for ReconcilerMetrics {
    fn drop(&mut self) {
        self.leading.set(0.0);
    }
}
