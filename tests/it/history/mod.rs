//! History checking: what clients asked and were answered, the log, and the contents of PostgreSQL
//! and the queue, all compared with a model of the shop.
//!
//! [`client`] drives instances and records their answers. [`collect`] reads the servers at the end;
//! it takes the log from Redis' append-only file ([`aof`]). [`checker`] replays the log through the
//! [`model`] and reports every broken promise.

pub mod aof;
pub mod checker;
pub mod client;
pub mod collect;
pub mod model;
pub mod record;
mod tests;
mod view;
