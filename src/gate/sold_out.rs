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
    /// Whether to refuse without asking. When the belief has run out, one caller is told to ask, the others wait for
    /// what it finds.
    pub fn refuses(&self, id: &str) -> bool {
        if self.entries.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let now = Instant::now();
        let mut believed = self.lock();
        match believed.get_mut(id) {
            None => false,
            Some(until) if now < *until => true,
            Some(until) => {
                *until = now + SOLD_OUT_MEMORY;
                false
            }
        }
    }

    /// A script has just said so.
    pub fn remember(&self, id: &str) {
        let mut believed = self.lock();
        if believed.len() >= SOLD_OUT_ENTRIES {
            believed.clear();
        }
        believed.insert(id.to_owned(), Instant::now() + SOLD_OUT_MEMORY);
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
        assert!(!memory.refuses("t"));
        memory.remember("t");
        assert!(memory.refuses("t"));
        assert!(!memory.refuses("other"));
        std::thread::sleep(SOLD_OUT_MEMORY);
        assert!(!memory.refuses("t"), "one request probes");
        assert!(memory.refuses("t"), "the others do not");
        memory.forget("t");
        assert!(!memory.refuses("t"));
    }
}
