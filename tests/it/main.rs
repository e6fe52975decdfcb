//! All integration tests in one binary: one link, servers shared, one file per concern.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod api;
mod attacks;
mod audit;
mod cluster;
mod containers;
mod dashboards;
mod demo;
mod deployment;
mod docs;
mod door;
mod drain;
mod drill;
mod faults;
mod gate_steps;
mod heavy;
mod history;
mod instances;
mod log_bytes;
mod logs;
mod main_way;
mod metrics;
mod migrations;
mod reconciler;
mod refused_writes;
mod relay;
mod restarts;
mod rules;
mod scheduler;
mod scripts;
mod servers;
mod shop;
mod start;
mod starting;
mod traces;
mod truth;
