//! Sold-out memory: what a script has called sold out is refused from memory for a short time, one request in that
//! time probing. Only requests without an idempotency key are refused so: others may have been answered before.
//!
//! A verdict is believed for [`SOLD_OUT_MEMORY`] from when it was asked for, and never longer: the probe is sent at half of
//! that time, so that a new verdict is there before the old one is too old. Where the gate does not answer, nothing is
//! believed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::config::bounds::{SOLD_OUT_ENTRIES, SOLD_OUT_MEMORY};

type Beliefs = HashMap<String, Arc<Belief>>;

/// Ids that are sold out. Refusing is what a rush does most, so it takes no lock: a belief is renewed in its place, and the
/// list is exchanged as a whole when an id comes or goes, which is rare.
pub struct SoldOutMemory {
    beliefs: ArcSwap<Beliefs>,
    /// One exchange at a time.
    exchanging: Mutex<()>,
    clock: Clock,
}

impl Default for SoldOutMemory {
    fn default() -> Self {
        // What is asked may have been asked before.
        let began = Instant::now().checked_sub(SOLD_OUT_MEMORY * 2).unwrap_or_else(Instant::now);
        Self { beliefs: ArcSwap::default(), exchanging: Mutex::default(), clock: Clock(began) }
    }
}

/// Moments as numbers, in nanoseconds since this one.
struct Clock(Instant);

impl Clock {
    fn number(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.0).as_nanos()).unwrap_or(u64::MAX)
    }
}

struct Belief {
    /// When the request was made that was told so, by the memory's clock.
    asked: AtomicU64,
    /// Somebody asks again.
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
        self.age(now) < SOLD_OUT_MEMORY / 2 || !self.is_over(now) && self.probing.load(Ordering::Relaxed)
    }

    fn renew(&self, asked: u64) {
        self.asked.store(asked, Ordering::Release);
        self.probing.store(false, Ordering::Release); // in this order: who sees half of it believes or probes, nothing worse
    }
}

impl SoldOutMemory {
    /// The first of `ids` that is refused without asking, if any. Where none is and a belief is to be probed, this caller
    /// is to ask; the others are refused meanwhile.
    pub fn refuses<'a>(&self, ids: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
        let beliefs = self.beliefs.load();
        if beliefs.is_empty() {
            return None;
        }
        let now = self.clock.number(Instant::now());
        if let Some(id) = ids.clone().find(|id| beliefs.get(*id).is_some_and(|belief| belief.holds(now))) {
            return Some(id);
        }
        for id in ids {
            let Some(belief) = beliefs.get(id) else { continue };
            if !belief.is_over(now) && belief.probing.swap(true, Ordering::AcqRel) {
                return Some(id); // somebody was faster, and asks
            }
        }
        None
    }

    /// A script has said so to who asked at this time. (Its verdict may have been long on its way.)
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

    /// It may be available again.
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

    /// A verdict that was asked for so long ago, in halves of the memory.
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
