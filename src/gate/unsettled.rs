//! What this instance was told is decided and has not yet seen in PostgreSQL.
//!
//! With `RUSHGATE_ACK=gate` a client may have been answered for it. If Redis loses its disk, these notes are all that is
//! left of it; [`crate::losses`] compares them with PostgreSQL after a rebuild and says what is gone.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

use super::refusal::Position;
use crate::config::bounds::UNSETTLED_DECISIONS;

/// What a decision made, by the name that PostgreSQL knows it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    Coupon(Uuid),
    Charge {
        charge_id: Uuid,
        user_id: Box<str>,
    },
    Order(Uuid),
    /// The cancelled order.
    Cancellation(Uuid),
    /// A product, stock or template changed by staff, which has no id of its own.
    Staff(Box<str>),
}

/// A decision and where it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub position: Position,
    pub made: Made,
}

/// The notes of one cell; at most [`UNSETTLED_DECISIONS`].
#[derive(Default)]
pub struct Unsettled {
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    waiting: VecDeque<Decision>,
    /// Of epochs that are over: in PostgreSQL by now, or gone.
    suspect: Vec<Decision>,
    forgotten: u64,
}

/// What is in PostgreSQL by now, or gone.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Suspects {
    pub decisions: Vec<Decision>,
    /// So many more were dropped because there were too many to remember.
    pub forgotten: u64,
}

impl Unsettled {
    pub fn note(&self, position: Position, made: Made) {
        let mut notes = self.lock();
        if notes.waiting.len() >= UNSETTLED_DECISIONS {
            notes.waiting.pop_front();
            notes.forgotten += 1;
        }
        notes.waiting.push_back(Decision { position, made });
    }

    pub fn is_empty(&self) -> bool {
        self.lock().waiting.is_empty()
    }

    /// PostgreSQL has applied `epoch` up to `applied`; earlier epochs are over.
    pub fn settle(&self, epoch: u64, applied: u64) {
        let mut notes = self.lock();
        while let Some(Decision { position, .. }) = notes.waiting.front() {
            let over = position.epoch < epoch;
            if !over && (position.epoch > epoch || position.seq > applied) {
                return;
            }
            let decision = notes.waiting.pop_front();
            if over {
                notes.suspect.extend(decision);
            } else if notes.waiting.is_empty() {
                notes.forgotten = 0; // what was dropped came before, so PostgreSQL has it, too
            }
        }
    }

    pub fn take_suspects(&self) -> Suspects {
        let mut notes = self.lock();
        let decisions = std::mem::take(&mut notes.suspect);
        let forgotten = if decisions.is_empty() { 0 } else { std::mem::take(&mut notes.forgotten) };
        Suspects { decisions, forgotten }
    }

    /// Puts back what could not be looked up.
    pub fn put_back(&self, suspects: Suspects) {
        let mut notes = self.lock();
        notes.suspect.extend(suspects.decisions);
        notes.forgotten += suspects.forgotten;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(unsettled: &Unsettled, epoch: u64, seq: u64) -> Decision {
        let decision =
            Decision { position: Position { cell: 0, epoch, seq }, made: Made::Order(Uuid::from_u128(1)) };
        unsettled.note(decision.position, decision.made.clone());
        decision
    }

    #[test]
    fn what_postgresql_has_is_settled_and_what_a_rebuild_left_behind_is_suspect() {
        let unsettled = Unsettled::default();
        note(&unsettled, 1, 5);
        let left = note(&unsettled, 1, 6);
        note(&unsettled, 2, 1);
        unsettled.settle(1, 5);
        assert_eq!(unsettled.take_suspects(), Suspects::default());
        unsettled.settle(2, 0);
        assert_eq!(unsettled.take_suspects().decisions, [left]);
        unsettled.settle(2, 1);
        assert!(unsettled.is_empty() && unsettled.take_suspects() == Suspects::default());
    }

    #[test]
    fn too_many_notes_are_counted() {
        let unsettled = Unsettled::default();
        for seq in 0..UNSETTLED_DECISIONS as u64 + 3 {
            note(&unsettled, 1, seq);
        }
        unsettled.settle(2, 0);
        let suspects = unsettled.take_suspects();
        assert_eq!((suspects.decisions.len(), suspects.forgotten), (UNSETTLED_DECISIONS, 3));
    }
}
