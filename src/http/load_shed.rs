//! Load shedding: a concurrency limit for each kind of request. Kinds do not compete with each
//! other, so that a rush on coupons leaves room for reads, a PostgreSQL that hangs blocks only
//! requests that need it, and staff get through. Up to `limit` requests of a kind run, as many
//! again wait, and the rest are refused immediately with `overloaded`.
//!
//! A handler takes its turn after the request was read in full and the caller was authenticated, so
//! neither slow clients nor strangers hold one.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::problem::{Code, Problem};
use crate::config::Limits;

/// The kinds of requests, by what they wait for.
pub struct ConcurrencyLimits {
    /// Coupons, orders and charges: the gate's scripts.
    pub decide: Kind,
    /// Products, templates, wallets and coupons, as the gate has them.
    pub read: Kind,
    /// All that waits for PostgreSQL: orders, ledgers, popular products; cancelling.
    pub truth: Kind,
    /// Requests by staff.
    pub staff: Kind,
}

/// One kind of requests.
pub struct Kind {
    places: Semaphore,
    waiting: AtomicU32,
    limit: u32,
    /// The longest time that a request waits.
    patience: Duration,
}

impl ConcurrencyLimits {
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
    /// Takes a place; it is given back when the returned permit is dropped.
    pub async fn permit(&self) -> Result<SemaphorePermit<'_>, Problem> {
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

/// Decrements on drop, so also when the client hangs up.
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

    fn concurrency() -> ConcurrencyLimits {
        ConcurrencyLimits::new(
            &Limits { truth_limit: 2, ..Limits::default() },
            Duration::from_millis(50),
        )
    }

    #[tokio::test]
    async fn places_are_taken_then_waited_for_then_refused() {
        let concurrency = concurrency();
        let (first, _second) =
            (concurrency.truth.permit().await.unwrap(), concurrency.truth.permit().await.unwrap());
        let (mut third, mut fourth) =
            (Box::pin(concurrency.truth.permit()), Box::pin(concurrency.truth.permit()));
        assert!(
            third.as_mut().now_or_never().is_none() && fourth.as_mut().now_or_never().is_none()
        );
        assert_eq!(
            concurrency.truth.permit().now_or_never().unwrap().unwrap_err().code(),
            Code::Overloaded
        );
        assert!(
            concurrency.read.permit().now_or_never().unwrap().is_ok(),
            "another kind has places of its own"
        );
        drop(first);
        let third = third.now_or_never().unwrap().unwrap();
        assert!(fourth.as_mut().now_or_never().is_none(), "in their order");
        drop(third);
        assert!(fourth.await.is_ok());
    }

    #[tokio::test]
    async fn who_gives_up_leaves_no_trace() {
        let concurrency = concurrency();
        let _places =
            (concurrency.truth.permit().await.unwrap(), concurrency.truth.permit().await.unwrap());
        for _ in 0..5 {
            assert!(concurrency.truth.permit().now_or_never().is_none(), "hung up while waiting");
        }
        assert_eq!(
            concurrency.truth.permit().await.unwrap_err().code(),
            Code::Overloaded,
            "waited too long"
        );
        assert_eq!(concurrency.truth.waiting.load(Ordering::Relaxed), 0);
    }
}
