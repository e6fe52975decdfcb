//! Proof by history: what clients asked and were told, what the log says, and what PostgreSQL and the queue hold, all
//! compared with a model of the shop.
//!
//! [`client`] drives instances and records; [`collect`] reads the servers at the end (the log from Redis' append-only
//! file: [`aof`]); [`checker`] replays the log through the [`model`] and names every broken promise.

pub mod aof;
pub mod checker;
pub mod client;
pub mod collect;
pub mod model;
pub mod record;
mod tests;
mod view;
