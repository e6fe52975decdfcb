#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
//! What the bench and the load tests share: private servers, instances of Rushgate, a driver for HTTP, and a look at
//! what processes use.

pub mod http;
pub mod process;
pub mod redis;
pub mod shop;
pub mod token;

/// What goes wrong here ends the run, with a message that says where.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
pub type Outcome<T> = Result<T, Failure>;

/// To whoever is looking; a closed pipe is no reason to fail.
pub fn say(text: impl std::fmt::Display) {
    use std::io::Write as _;
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}
