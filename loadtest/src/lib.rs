#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
//! Shared by the bench and the load tests: private servers, instances of Rushgate, an HTTP load
//! generator, and the resource use of processes.

pub mod holds;
pub mod http;
pub mod process;
pub mod redis;
pub mod shop;
pub mod token;

/// An error ends the run with a message.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
pub type Outcome<T> = Result<T, Failure>;

/// Prints to stdout. A closed pipe is ignored.
pub fn say(text: impl std::fmt::Display) {
    use std::io::Write as _;
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}
