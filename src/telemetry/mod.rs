//! Logs, metrics and traces of a running instance.
//!
//! `/metrics` has two kinds of values. Events (requests, calls, batches) are counted where they
//! happen, through handles that are created once; [`metrics`] lists all metrics. State (position of
//! the log, length of the outbox, coupons left) is sampled every few seconds into a [`sampled`]
//! text. Each round replaces the one before, so a value that can no longer be read is missing
//! instead of stale.

pub mod exposition;
pub mod logs;
pub mod metrics;
mod otlp;
pub mod process;
pub mod repeated;
pub mod sampled;
pub mod trace;
