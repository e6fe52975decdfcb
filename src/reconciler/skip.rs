//! `rushgate log skip`: an operator leaves out one fact that PostgreSQL can never take.
//!
//! The skip is registered in PostgreSQL first. From then on every leader applies what follows by differences, and rebuilds;
//! this only sees to it that it happens now. So it may die anywhere: a leader goes on, and asked again it does, too.

use std::time::{Duration, Instant};

use super::quarantine::{self, Choice};
use super::{Reconciler, Step, StepError};
use crate::log::reader::LogError;

/// How often the rebuild is tried when others rebuild, too.
const ATTEMPTS: usize = 20;
/// How long it waits for a gate that another reconciler opens.
const OPENS_WITHIN: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(100);

/// Why a fact was not skipped, or not to the end.
#[derive(Debug, thiserror::Error)]
pub enum SkipError {
    #[error(transparent)]
    Step(#[from] StepError),
    #[error("cell {cell} is not halted, so there is nothing to skip")]
    NotHalted { cell: u32 },
    #[error(
        "cell {cell} is halted at entry {halted_at}; only a fact of that one can be skipped, not of {asked}"
    )]
    NotTheHalted { cell: u32, halted_at: u64, asked: u64 },
    #[error("entry {0} is not in the log, or does not continue the chain: run `rushgate rebuild`")]
    NoSuchEntry(u64),
    #[error(
        "entry {seq} holds facts 1 to {facts}, and no fact {asked}; `rushgate log show --seq {seq}` prints them"
    )]
    NoSuchFact { seq: u64, facts: usize, asked: usize },
    #[error(
        "entry {seq} cannot be read ({why}): run the version that can, or skip it as a whole by `--fact all`"
    )]
    Unreadable { seq: u64, why: String },
    #[error("the cursor moved meanwhile; look again with `rushgate log show`")]
    Moved,
    #[error("the fact is out of the way, and the cell is halted again: {0}")]
    HaltedAgain(String),
    #[error("the fact is registered, and the cell is not rebuilt yet: run the same command again")]
    Unfinished,
}

impl From<sqlx::Error> for SkipError {
    fn from(e: sqlx::Error) -> Self {
        Self::Step(e.into())
    }
}

impl From<LogError> for SkipError {
    fn from(e: LogError) -> Self {
        Self::Step(e.into())
    }
}

impl Reconciler {
    /// Leaves out what was chosen of the entry at which the cell is halted, and rebuilds. Returns the epoch of the entry; asked
    /// again for the same, it finishes what is unfinished. Not cancel-safe.
    pub async fn skip(&mut self, seq: u64, choice: Choice, reason: &str) -> Result<u64, SkipError> {
        let epoch = self.register_skip(seq, choice, reason).await?;
        for _ in 0..ATTEMPTS {
            if self.cursor().await?.epoch != epoch {
                self.until_open(epoch).await?;
                return Ok(epoch);
            }
            if let Step::Halted(why) = self.rebuild_now().await? {
                return Err(SkipError::HaltedAgain(why));
            }
        }
        Err(SkipError::Unfinished)
    }

    /// Returns the epoch in which it is registered, now or before.
    async fn register_skip(&mut self, seq: u64, choice: Choice, reason: &str) -> Result<u64, SkipError> {
        let cell = self.cell;
        let cursor = self.cursor().await?;
        let halted_at = cursor.seq + 1;
        if cursor.halted_reason.is_none() || seq != halted_at {
            let before = quarantine::registered(self.connection().await?, cell, seq, choice).await?;
            return match before {
                Some(epoch) => Ok(epoch),
                None if cursor.halted_reason.is_none() => Err(SkipError::NotHalted { cell }),
                None => Err(SkipError::NotTheHalted { cell, halted_at, asked: seq }),
            };
        }
        let entry = self.log.after(cursor.epoch, cursor.seq, 1).await?.pop();
        let Some(entry) = entry.filter(|e| e.seq == seq && e.follows(&cursor.tip)) else {
            return Err(SkipError::NoSuchEntry(seq));
        };
        match (entry.decode(), choice) {
            (Ok(decoded), Choice::One(asked)) if !(1..=decoded.facts.len()).contains(&asked) => {
                return Err(SkipError::NoSuchFact { seq, facts: decoded.facts.len(), asked });
            }
            (Err(why), Choice::One(_)) => return Err(SkipError::Unreadable { seq, why: why.to_string() }),
            _ => {}
        }
        let conn = self.connection().await?;
        match quarantine::register(conn, &cursor, &entry, choice, reason).await? {
            true => Ok(cursor.epoch),
            false => Err(SkipError::Moved),
        }
    }

    /// Another reconciler may be the one that opens.
    async fn until_open(&mut self, left: u64) -> Result<(), SkipError> {
        let deadline = Instant::now() + OPENS_WITHIN;
        loop {
            let meta = self.log.meta().await?;
            if meta.state == "open" && meta.epoch > left {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(SkipError::Unfinished);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
