//! Load shedding: requests of one kind take turns with their like only, so that a rush on coupons leaves room for reads, a
//! PostgreSQL that hangs holds up nobody who does not need it, and staff get through. A kind has places for so many requests
//! at once; as many again may wait; more are refused at once, with `overloaded`.
//!
//! A turn is taken by the handler, when the request has been read in full and its caller is known: neither slow clients nor
//! strangers occupy one.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::problem::{Code, Problem};
use crate::config::Limits;

/// The kinds of requests, by what they wait for.
pub struct Turns {
    /// Coupons, orders and charges: the gate's scripts.
    pub decide: Kind,
    /// Products, templates, wallets and coupons, as the gate has them.
    pub read: Kind,
    /// Whatever waits for PostgreSQL: orders, ledgers, popular products; cancelling.
    pub truth: Kind,
    /// What staff do.
    pub staff: Kind,
}

/// One kind of requests.
pub struct Kind {
    places: Semaphore,
    waiting: AtomicU32,
    limit: u32,
    /// The longest that one waits.
    patience: Duration,
}

impl Turns {
    pub fn new(limits: &Limits, patience: Duration) -> Self {
        let kind = |limit: u32| Kind {
            places: Semaphore::new(limit as usize),
            waiting: AtomicU32::new(0),
            limit,
            patience,
        };
        Self {
            decide: kind(limits.decide_limit),
            read: kind(limits.read_limit),
            truth: kind(limits.truth_limit),
            staff: kind(limits.staff_limit),
        }
    }
}

impl Kind {
    /// A place, until what is returned is dropped.
    pub async fn turn(&self) -> Result<SemaphorePermit<'_>, Problem> {
        if let Ok(place) = self.places.try_acquire() {
            return Ok(place);
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= self.limit {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(overloaded());
        }
        let _waiting = Waiting(&self.waiting);
        match tokio::time::timeout(self.patience, self.places.acquire()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(overloaded()),
        }
    }
}

/// Counts down also when the client hangs up.
struct Waiting<'a>(&'a AtomicU32);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn overloaded() -> Problem {
    Problem::new(
        Code::Overloaded,
        "Too many requests of this kind are under way; nothing was changed. Try again shortly.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn turns() -> Turns {
        Turns::new(&Limits { truth_limit: 2, ..Limits::default() }, Duration::from_millis(50))
    }

    #[tokio::test]
    async fn places_are_taken_then_waited_for_then_refused() {
        let turns = turns();
        let (first, _second) = (turns.truth.turn().await.unwrap(), turns.truth.turn().await.unwrap());
        let (mut third, mut fourth) = (Box::pin(turns.truth.turn()), Box::pin(turns.truth.turn()));
        assert!(third.as_mut().now_or_never().is_none() && fourth.as_mut().now_or_never().is_none());
        assert_eq!(turns.truth.turn().now_or_never().unwrap().unwrap_err().code(), Code::Overloaded);
        assert!(turns.read.turn().now_or_never().unwrap().is_ok(), "another kind has places of its own");
        drop(first);
        let third = third.now_or_never().unwrap().unwrap();
        assert!(fourth.as_mut().now_or_never().is_none(), "in their order");
        drop(third);
        assert!(fourth.await.is_ok());
    }

    #[tokio::test]
    async fn who_gives_up_leaves_no_trace() {
        let turns = turns();
        let _places = (turns.truth.turn().await.unwrap(), turns.truth.turn().await.unwrap());
        for _ in 0..5 {
            assert!(turns.truth.turn().now_or_never().is_none(), "hung up while waiting");
        }
        assert_eq!(turns.truth.turn().await.unwrap_err().code(), Code::Overloaded, "waited too long");
        assert_eq!(turns.truth.waiting.load(Ordering::Relaxed), 0);
    }
}
