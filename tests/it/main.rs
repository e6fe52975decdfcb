//! All integration tests in one binary: one link, servers shared, one file per concern.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod audit;
mod demo;
mod docs;
mod main_way;
mod relay;
mod scheduler;
mod servers;
mod shop;
mod truth;
