//! Logs failures that recur at each retry: the first one, then a count every few minutes, then the
//! recovery.
//!
//! [`Repeated`] keeps the state of one kind of failure, from the first failure to the next success.

use std::fmt::Display;
use std::time::Instant;

use crate::config::bounds::REPEATS_LOGGED_EVERY;

/// Distinct causes of one failure that are logged; further ones are only counted.
const CAUSES: usize = 8;

/// A kind of failure that may recur.
#[derive(Debug)]
pub struct Repeated {
    /// What fails; begins the log line.
    what: &'static str,
    failing: Option<Failing>,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    told: Instant,
    /// Failures since `told`.
    times: u64,
    causes: Vec<String>,
}

/// What to log for a failure.
#[derive(Debug, PartialEq, Eq)]
enum Tell {
    /// The first failure with this cause.
    First,
    /// The number of failures since the last line, and the seconds since then.
    Again {
        times: u64,
        secs: u64,
    },
    Nothing,
}

impl Repeated {
    pub const fn new(what: &'static str) -> Self {
        Self { what, failing: None }
    }

    /// Records a failure.
    pub fn failed(&mut self, error: &dyn Display) {
        let error = error.to_string();
        match self.count(&error, Instant::now()) {
            Tell::First => tracing::warn!(error, "{}", self.what),
            Tell::Again { times, secs } => {
                tracing::warn!(
                    error,
                    times,
                    secs,
                    "{}: again, {times} times in {secs} s",
                    self.what
                );
            }
            Tell::Nothing => {}
        }
    }

    /// Records a success; it is logged if there was a failure before.
    pub fn works(&mut self) {
        if let Some(failing) = self.failing.take() {
            let secs = failing.since.elapsed().as_secs();
            tracing::info!(secs, "{}: over after {secs} s", self.what);
        }
    }

    fn count(&mut self, error: &str, now: Instant) -> Tell {
        let failing = self.failing.get_or_insert_with(|| Failing {
            since: now,
            told: now,
            times: 0,
            causes: Vec::new(),
        });
        if failing.causes.len() < CAUSES && !failing.causes.iter().any(|cause| cause == error) {
            failing.causes.push(error.to_owned());
            return Tell::First;
        }
        failing.times += 1;
        let silent = now.duration_since(failing.told);
        if silent < REPEATS_LOGGED_EVERY {
            return Tell::Nothing;
        }
        let times = std::mem::take(&mut failing.times);
        failing.told = now;
        Tell::Again { times, secs: silent.as_secs() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_failure_is_told_once_then_counted() {
        let mut repeated = Repeated::new("the server does not answer");
        let start = Instant::now();
        let told: Vec<Tell> = (0..=240)
            .map(|n| repeated.count("refused", start + Duration::from_millis(500) * n))
            .collect();
        assert_eq!(told[0], Tell::First);
        assert!(told[1..240].iter().all(|tell| *tell == Tell::Nothing));
        assert_eq!(told[240], Tell::Again { times: 240, secs: 120 });
        assert_eq!(repeated.count("another cause", start), Tell::First);
        repeated.works();
        assert_eq!(repeated.count("refused", start), Tell::First, "it had worked meanwhile");
    }

    #[test]
    fn causes_that_are_never_the_same_do_not_fill_the_log() {
        let mut repeated = Repeated::new("the server does not answer");
        let start = Instant::now();
        let told = (0..1_000).map(|n| repeated.count(&format!("attempt {n}"), start));
        assert_eq!(told.filter(|tell| *tell != Tell::Nothing).count(), CAUSES);
    }
}
