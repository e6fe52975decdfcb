//! Sold-out memory: what a script has called sold out is refused from memory for a short time, one request in that
//! time probing. Only requests without an idempotency key are refused so: others may have been answered before.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::config::bounds::{SOLD_OUT_ENTRIES, SOLD_OUT_MEMORY};

/// Ids that are sold out, each until when that is believed without asking.
#[derive(Default)]
pub struct SoldOutMemory {
    believed_until: Mutex<HashMap<String, Instant>>,
    entries: AtomicUsize,
}

impl SoldOutMemory {
    /// The first of `ids` that is refused without asking, if any. Where none is and a belief has run out, this caller
    /// is to ask; the others wait for what it finds.
    pub fn refuses<'a>(&self, ids: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
        if self.entries.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let now = Instant::now();
        let mut believed = self.lock();
        if let Some(id) = ids.clone().find(|id| believed.get(*id).is_some_and(|until| now < *until)) {
            return Some(id);
        }
        for id in ids {
            if let Some(until) = believed.get_mut(id) {
                *until = now + SOLD_OUT_MEMORY;
            }
        }
        None
    }

    /// A script has said so to who asked at this time. (Its verdict may have been long on its way.)
    pub fn remember(&self, id: &str, asked: Instant) {
        let until = asked + SOLD_OUT_MEMORY;
        if until <= Instant::now() {
            return;
        }
        let mut believed = self.lock();
        if believed.len() >= SOLD_OUT_ENTRIES {
            believed.clear();
        }
        believed.insert(id.to_owned(), until);
        self.entries.store(believed.len(), Ordering::Relaxed);
    }

    /// It may be available again.
    pub fn forget(&self, id: &str) {
        if self.entries.load(Ordering::Relaxed) > 0 {
            let mut believed = self.lock();
            believed.remove(id);
            self.entries.store(believed.len(), Ordering::Relaxed);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        self.believed_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_believed_for_a_short_time_and_then_probed_once() {
        let memory = SoldOutMemory::default();
        let refuses = |id: &'static str| memory.refuses([id].into_iter()).is_some();
        assert!(!refuses("t"));
        memory.remember("t", Instant::now());
        assert!(refuses("t"));
        assert!(!refuses("other"));
        std::thread::sleep(SOLD_OUT_MEMORY);
        assert!(!refuses("t"), "one request probes");
        assert!(refuses("t"), "the others do not");
        memory.forget("t");
        assert!(!refuses("t"));
        memory.remember("t", Instant::now() - SOLD_OUT_MEMORY);
        assert!(!refuses("t"), "that verdict was too long on its way");
    }

    #[test]
    fn a_request_that_is_refused_for_one_id_is_no_probe_for_another() {
        let memory = SoldOutMemory::default();
        memory.remember("a", Instant::now());
        std::thread::sleep(SOLD_OUT_MEMORY);
        memory.remember("b", Instant::now());
        assert_eq!(memory.refuses(["a", "b"].into_iter()), Some("b"));
        assert_eq!(memory.refuses(["a"].into_iter()), None, "a's probe was not used up");
    }
}
