//! What an operator sees of a running instance.
//!
//! Two kinds of figures come together at `/metrics`. What *happens* (requests, calls, batches) is counted where it
//! happens, through handles that are made once; [`metrics`] names all of them. What *is* (where the log stands, what waits
//! in the outbox, what a template has left) is looked at every few seconds by the [`sampler`], and each round replaces
//! the one before: what cannot be seen any more has no figure, rather than an old one.

pub mod exposition;
pub mod logs;
pub mod metrics;
mod otlp;
mod process;
pub mod repeated;
pub mod sampler;
pub mod trace;
