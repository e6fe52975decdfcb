//! Whether Redis accepts writes. A Redis may answer and still refuse every write: its disk is full,
//! its memory is used up, a snapshot has failed, or it is a replica. No decision is possible then,
//! so the instance must not report itself as healthy.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Why Redis refuses writes: the error code of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteRefusal {
    Misconf,
    OutOfMemory,
    ReadOnly,
    NoReplicas,
}

impl WriteRefusal {
    pub const ALL: [Self; 4] = [Self::Misconf, Self::OutOfMemory, Self::ReadOnly, Self::NoReplicas];

    /// The label value in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Misconf => "misconf",
            Self::OutOfMemory => "oom",
            Self::ReadOnly => "readonly",
            Self::NoReplicas => "noreplicas",
        }
    }

    /// `None`: the error is not a refusal of writes.
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

/// The last known refusal and its beginning. Updated by the calls of deciding scripts, and by the
/// write probe when the status is read.
#[derive(Debug, Default)]
pub struct WriteState(Mutex<Option<(WriteRefusal, Instant)>>);

impl WriteState {
    /// Records Redis' answer to a script that may write. Logs once when the refusals begin, and
    /// once when they end.
    pub fn learn(&self, cell: u32, answer: Result<(), &str>) {
        let refusal = match answer {
            Ok(()) => None,
            Err(error) => match WriteRefusal::of(error) {
                Some(refusal) => Some(refusal),
                None => return, // other errors, such as a lost connection, say nothing about writes
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

    /// The refusal as text for operators.
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
