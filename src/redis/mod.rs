//! The gate's state in Redis, apart from decisions: connections ([`connect`]), keys ([`keys`]), the
//! `meta` key of a cell ([`meta`]), the form of values ([`records`], [`held_coupons`]), and the
//! scripts that control a cell ([`control`]).

pub mod connect;
pub mod control;
pub mod held_coupons;
pub mod keys;
pub mod meta;
pub mod records;

pub use connect::{RedisSetupError, connect};
