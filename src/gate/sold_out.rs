//! Sold-out memory: what a script has called sold out is refused from memory for a short time, one request in that
//! time probing. Only requests without an idempotency key are refused so: others may have been answered before.
//!
//! A verdict is believed for [`SOLD_OUT_MEMORY`] from when it was asked for, and never longer: the probe is sent at half of
//! that time, so that a new verdict is there before the old one is too old. Where the gate does not answer, nothing is
//! believed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::config::bounds::{SOLD_OUT_ENTRIES, SOLD_OUT_MEMORY};

/// Ids that are sold out.
#[derive(Default)]
pub struct SoldOutMemory {
    beliefs: Mutex<HashMap<String, Belief>>,
    entries: AtomicUsize,
}

struct Belief {
    /// When the request was made that was told so.
    asked: Instant,
    /// Somebody asks again.
    probing: bool,
}

impl SoldOutMemory {
    /// The first of `ids` that is refused without asking, if any. Where none is and a belief is to be probed, this caller
    /// is to ask; the others are refused meanwhile.
    pub fn refuses<'a>(&self, ids: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
        if self.entries.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let now = Instant::now();
        let mut beliefs = self.lock();
        let holds = |belief: &Belief| {
            let age = now.saturating_duration_since(belief.asked);
            age < SOLD_OUT_MEMORY && (belief.probing || age < SOLD_OUT_MEMORY / 2)
        };
        if let Some(id) = ids.clone().find(|id| beliefs.get(*id).is_some_and(holds)) {
            return Some(id);
        }
        for id in ids {
            let Some(belief) = beliefs.get_mut(id) else { continue };
            if now.saturating_duration_since(belief.asked) < SOLD_OUT_MEMORY {
                belief.probing = true;
            } else {
                beliefs.remove(id);
            }
        }
        self.entries.store(beliefs.len(), Ordering::Relaxed);
        None
    }

    /// A script has said so to who asked at this time. (Its verdict may have been long on its way.)
    pub fn remember(&self, id: &str, asked: Instant) {
        if asked.elapsed() >= SOLD_OUT_MEMORY {
            return;
        }
        let mut beliefs = self.lock();
        if beliefs.len() >= SOLD_OUT_ENTRIES {
            beliefs.clear();
        }
        beliefs.insert(id.to_owned(), Belief { asked, probing: false });
        self.entries.store(beliefs.len(), Ordering::Relaxed);
    }

    /// It may be available again.
    pub fn forget(&self, id: &str) {
        if self.entries.load(Ordering::Relaxed) > 0 {
            let mut beliefs = self.lock();
            beliefs.remove(id);
            self.entries.store(beliefs.len(), Ordering::Relaxed);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Belief>> {
        self.beliefs.lock().unwrap_or_else(PoisonError::into_inner)
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
