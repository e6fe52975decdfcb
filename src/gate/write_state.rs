//! Whether Redis takes writes. One that answers and refuses every write (its disk is full, its memory used up, a snapshot has
//! failed, it is a replica) decides nothing, and must not look well.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Why Redis refuses writes, by the code of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteRefusal {
    Misconf,
    OutOfMemory,
    ReadOnly,
    NoReplicas,
}

impl WriteRefusal {
    pub const ALL: [Self; 4] = [Self::Misconf, Self::OutOfMemory, Self::ReadOnly, Self::NoReplicas];

    /// As metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Misconf => "misconf",
            Self::OutOfMemory => "oom",
            Self::ReadOnly => "readonly",
            Self::NoReplicas => "noreplicas",
        }
    }

    /// `None`: the error has another cause.
    pub fn of(error: &str) -> Option<Self> {
        match error.split(' ').next()? {
            "MISCONF" => Some(Self::Misconf),
            "OOM" => Some(Self::OutOfMemory),
            "READONLY" => Some(Self::ReadOnly),
            "NOREPLICAS" => Some(Self::NoReplicas),
            _ => None,
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Misconf => {
                "MISCONF: a snapshot or a write of the append-only file has failed; see Redis' log"
            }
            Self::OutOfMemory => "OOM: maxmemory is reached",
            Self::ReadOnly => "READONLY: it is a replica",
            Self::NoReplicas => "NOREPLICAS: fewer replicas follow than min-replicas-to-write",
        }
    }
}

/// What is known of it: from calls that decide, and from the probe of those who ask for the state.
#[derive(Debug, Default)]
pub struct WriteState(Mutex<Option<(WriteRefusal, Instant)>>);

impl WriteState {
    /// Takes over what Redis has answered to something that may write. Says once when it begins to refuse, and once when it
    /// takes writes again.
    pub fn learn(&self, cell: u32, answer: Result<(), &str>) {
        let refusal = match answer {
            Ok(()) => None,
            Err(error) => match WriteRefusal::of(error) {
                Some(refusal) => Some(refusal),
                None => return, // a lost connection tells nothing
            },
        };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (*known, refusal) {
            (before, Some(refusal)) if before.is_none_or(|(known, _)| known != refusal) => {
                let since = before.map_or_else(Instant::now, |(_, since)| since);
                *known = Some((refusal, since));
                let reason = refusal.name();
                tracing::error!(
                    cell,
                    reason,
                    "Redis refuses writes, so nothing is decided: {}",
                    refusal.meaning()
                );
            }
            (Some((_, since)), None) => {
                *known = None;
                let secs = since.elapsed().as_secs();
                tracing::info!(cell, secs, "Redis takes writes again");
            }
            _ => {}
        }
    }

    pub fn refusal(&self) -> Option<WriteRefusal> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map(|(refusal, _)| refusal)
    }

    /// For people.
    pub fn reason(&self) -> Option<String> {
        self.refusal().map(|refusal| format!("Redis refuses writes ({})", refusal.meaning()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_answers_tells_whether_it_takes_writes() {
        let state = WriteState::default();
        assert_eq!(state.refusal(), None);
        state.learn(0, Err("OOM allow-oom flag is not set on the script"));
        assert_eq!(state.refusal(), Some(WriteRefusal::OutOfMemory));
        state.learn(0, Err("Connection closed."));
        assert_eq!(state.refusal(), Some(WriteRefusal::OutOfMemory), "that tells nothing");
        state.learn(0, Err("READONLY Can not run script with write flag on readonly replica."));
        assert!(state.reason().unwrap().contains("READONLY"));
        state.learn(0, Ok(()));
        assert_eq!(state.reason(), None);
    }
}
