//! Rushgate: first-come coupons and stock-limited orders, decided by atomic Redis scripts, followed by PostgreSQL.
//!
//! The folders stand in the order in which data flows: `http` → `gate` → `log` → `reconciler` → `relay`.

pub mod demo;
pub mod servers;
