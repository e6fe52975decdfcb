//! A cache of sold-out verdicts. While a verdict is cached, the instance refuses requests for that
//! id from memory, and lets one request through as a probe. Requests with an idempotency key bypass
//! the cache: such a request may be a replay of a successful one.
//!
//! [`SoldOutMemory`] maps an id to a `Belief`, which is valid for [`SOLD_OUT_MEMORY`] from the time
//! of the request that received the verdict. In the second half of that time the next request
//! becomes the probe, so that a new verdict arrives before the old one expires. If the gate does
//! not answer, the belief expires and all requests go to the gate.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::config::bounds::{SOLD_OUT_ENTRIES, SOLD_OUT_MEMORY};

type Beliefs = HashMap<String, Arc<Belief>>;

/// The ids that are sold out. Most requests of a rush are refused here, so a lookup takes no lock.
/// A belief is renewed in place; the whole map is replaced when an id is added or removed, which is
/// rare.
pub struct SoldOutMemory {
    beliefs: ArcSwap<Beliefs>,
    /// Serialises replacements of the map.
    exchanging: Mutex<()>,
    clock: Clock,
}

impl Default for SoldOutMemory {
    fn default() -> Self {
        // Earlier than now: a request may have been sent before the memory was created.
        let began = Instant::now().checked_sub(SOLD_OUT_MEMORY * 2).unwrap_or_else(Instant::now);
        Self { beliefs: ArcSwap::default(), exchanging: Mutex::default(), clock: Clock(began) }
    }
}

/// Represents instants as nanoseconds since this one, so that they fit into an atomic.
struct Clock(Instant);

impl Clock {
    fn number(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.0).as_nanos()).unwrap_or(u64::MAX)
    }
}

struct Belief {
    /// When the request that received the verdict was sent, on the memory's clock.
    asked: AtomicU64,
    /// A probe is in flight.
    probing: AtomicBool,
}

impl Belief {
    fn age(&self, now: u64) -> Duration {
        Duration::from_nanos(now.saturating_sub(self.asked.load(Ordering::Acquire)))
    }

    fn is_over(&self, now: u64) -> bool {
        self.age(now) >= SOLD_OUT_MEMORY
    }

    fn holds(&self, now: u64) -> bool {
        self.age(now) < SOLD_OUT_MEMORY / 2
            || !self.is_over(now) && self.probing.load(Ordering::Relaxed)
    }

    fn renew(&self, asked: u64) {
        self.asked.store(asked, Ordering::Release);
        // In this order: a reader that sees only the first store refuses or probes; both are safe.
        self.probing.store(false, Ordering::Release);
    }
}

impl SoldOutMemory {
    /// The first of `ids` that is refused from memory. `None`: the caller asks the gate. If a
    /// belief was due for a probe, this caller is the probe, and others are refused meanwhile.
    pub fn refuses<'a>(&self, ids: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
        let beliefs = self.beliefs.load();
        if beliefs.is_empty() {
            return None;
        }
        let now = self.clock.number(Instant::now());
        if let Some(id) =
            ids.clone().find(|id| beliefs.get(*id).is_some_and(|belief| belief.holds(now)))
        {
            return Some(id);
        }
        for id in ids {
            let Some(belief) = beliefs.get(id) else { continue };
            if !belief.is_over(now) && belief.probing.swap(true, Ordering::AcqRel) {
                return Some(id); // another request has become the probe
            }
        }
        None
    }

    /// Caches a sold-out verdict for a request that was sent at `asked`. A verdict that took longer
    /// than its validity is ignored.
    pub fn remember(&self, id: &str, asked: Instant) {
        if asked.elapsed() >= SOLD_OUT_MEMORY {
            return;
        }
        let asked = self.clock.number(asked);
        if let Some(belief) = self.beliefs.load().get(id) {
            return belief.renew(asked);
        }
        self.exchange(|beliefs| {
            if beliefs.len() >= SOLD_OUT_ENTRIES {
                beliefs.clear();
            }
            let belief = Belief { asked: AtomicU64::new(asked), probing: AtomicBool::new(false) };
            beliefs.insert(id.to_owned(), Arc::new(belief));
        });
    }

    /// Removes the verdict: the id may be available again.
    pub fn forget(&self, id: &str) {
        if self.beliefs.load().contains_key(id) {
            self.exchange(|beliefs| {
                beliefs.remove(id);
            });
        }
    }

    fn exchange(&self, how: impl FnOnce(&mut Beliefs)) {
        let _one = self.exchanging.lock().unwrap_or_else(PoisonError::into_inner);
        let mut beliefs = Beliefs::clone(&self.beliefs.load());
        how(&mut beliefs);
        self.beliefs.store(Arc::new(beliefs));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request time in the past, in halves of [`SOLD_OUT_MEMORY`].
    fn ago(halves: u32) -> Instant {
        Instant::now() - SOLD_OUT_MEMORY / 2 * halves
    }

    #[test]
    fn a_verdict_is_believed_for_a_short_time_and_probed_once() {
        let memory = SoldOutMemory::default();
        let refuses = |id: &'static str| memory.refuses([id].into_iter()).is_some();
        assert!(!refuses("t"));
        memory.remember("t", Instant::now());
        assert!(refuses("t"));
        assert!(!refuses("other"));
        memory.remember("t", ago(1));
        assert!(!refuses("t"), "one request probes");
        assert!(refuses("t"), "the others do not");
        memory.forget("t");
        assert!(!refuses("t"));
    }

    #[test]
    fn without_a_new_verdict_nothing_is_believed_any_more() {
        let memory = SoldOutMemory::default();
        let refuses = || memory.refuses(["t"].into_iter()).is_some();
        memory.remember("t", ago(1));
        assert!(!refuses(), "it probes, and the gate does not answer");
        std::thread::sleep(SOLD_OUT_MEMORY / 2);
        assert!(!refuses() && !refuses(), "all ask");
        memory.remember("t", ago(2));
        assert!(!refuses(), "that verdict was too long on its way");
    }

    #[test]
    fn a_request_that_is_refused_for_one_id_is_no_probe_for_another() {
        let memory = SoldOutMemory::default();
        memory.remember("a", ago(1));
        memory.remember("b", Instant::now());
        assert_eq!(memory.refuses(["a", "b"].into_iter()), Some("b"));
        assert_eq!(memory.refuses(["a"].into_iter()), None, "a's probe was not used up");
    }
}
