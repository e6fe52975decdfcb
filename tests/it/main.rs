//! All integration tests in one binary: one link, servers shared, one file per concern.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod audit;
mod cluster;
mod demo;
mod instances;
mod main_way;
mod relay;
mod restarts;
mod scheduler;
mod servers;
mod shop;
mod start;
mod truth;
