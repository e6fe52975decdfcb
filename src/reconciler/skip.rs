//! `rushgate log skip`: an operator leaves out one fact that PostgreSQL can never take.
//!
//! The skip is first registered in PostgreSQL. From then on, every leader applies the rest of the
//! log by differences and rebuilds the gate; the command only makes this happen now. It may be
//! killed at any point: a leader finishes the work, and so does the same command when it is run
//! again.

use std::time::{Duration, Instant};

use super::quarantine::{self, Choice};
use super::{Reconciler, StepError, StepOutcome};
use crate::log::reader::LogError;

/// Attempts to rebuild while other reconcilers rebuild too.
const ATTEMPTS: usize = 20;
/// The wait for another reconciler to open the gate.
const OPENS_WITHIN: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(100);

/// Why a fact was not skipped, or the skip is unfinished.
#[derive(Debug, thiserror::Error)]
pub enum SkipError {
    #[error(transparent)]
    StepOutcome(#[from] StepError),
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
        Self::StepOutcome(e.into())
    }
}

impl From<LogError> for SkipError {
    fn from(e: LogError) -> Self {
        Self::StepOutcome(e.into())
    }
}

impl Reconciler {
    /// Leaves out `choice` of the entry at which the cell is halted, and rebuilds. Returns the
    /// entry's epoch. Called again with the same arguments, it finishes an unfinished skip. Not
    /// cancel-safe.
    pub async fn skip(&mut self, seq: u64, choice: Choice, reason: &str) -> Result<u64, SkipError> {
        let epoch = self.register_skip(seq, choice, reason).await?;
        for _ in 0..ATTEMPTS {
            if self.cursor().await?.epoch != epoch {
                self.until_open(epoch).await?;
                return Ok(epoch);
            }
            if let StepOutcome::Halted(why) = self.rebuild_now().await? {
                return Err(SkipError::HaltedAgain(why));
            }
        }
        Err(SkipError::Unfinished)
    }

    /// Registers the skip unless that was done before. Returns the entry's epoch.
    async fn register_skip(
        &mut self,
        seq: u64,
        choice: Choice,
        reason: &str,
    ) -> Result<u64, SkipError> {
        let cell = self.cell;
        let cursor = self.cursor().await?;
        let halted_at = cursor.seq + 1;
        if cursor.halted_reason.is_none() || seq != halted_at {
            let before =
                quarantine::registered(self.connection().await?, cell, seq, choice).await?;
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
            (Err(why), Choice::One(_)) => {
                return Err(SkipError::Unreadable { seq, why: why.to_string() });
            }
            _ => {}
        }
        let conn = self.connection().await?;
        match quarantine::register(conn, &cursor, &entry, choice, reason).await? {
            true => Ok(cursor.epoch),
            false => Err(SkipError::Moved),
        }
    }

    /// Waits until the gate is open in a later epoch than `left`; another reconciler may open it.
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
