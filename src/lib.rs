#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
//! Rushgate: first-come coupons and stock-limited orders, decided by atomic Redis scripts, followed
//! by PostgreSQL.
//!
//! Data flows through the modules in this order: `http` → `gate` → `log` → `reconciler` → `relay`.

pub mod audit;
pub mod cli;
pub mod config;
pub mod demo;
pub mod domain;
pub mod gate;
pub mod http;
pub mod log;
mod lost_decisions;
pub mod ready;
pub mod reconciler;
pub mod redis;
pub mod relay;
pub mod scheduler;
pub mod seed;
pub mod serve;
pub mod telemetry;
mod thread;
pub mod truth;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(all(feature = "jemalloc", not(feature = "mimalloc")))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
