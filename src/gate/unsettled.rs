//! Decisions that this instance knows and has not yet seen in PostgreSQL.
//!
//! With `RUSHGATE_ACK=gate`, a client may already have its answer. If Redis then loses its disk,
//! these notes are the only trace of the decision. After a rebuild, [`crate::losses`] compares them
//! with PostgreSQL and reports the decisions that are lost.
//!
//! A decision starts in `waiting`. It moves to `settled` when PostgreSQL's cursor has passed its
//! position, and to `suspect` when its epoch is over; [`crate::losses`] takes it from there.
//! `settled` exists because a cursor past the position does not prove that PostgreSQL has this
//! decision: if Redis lost the end of its log, other decisions may have taken the positions. So the
//! latest settled decisions are looked up after a rebuild, too.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

use crate::config::bounds::{SETTLED_DECISIONS, SUSPECTS_AT_ONCE, UNSETTLED_DECISIONS};
use crate::domain::Position;

/// The result of a decision, by its identifier in PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    Coupon(Uuid),
    Charge {
        charge_id: Uuid,
        user_id: Box<str>,
    },
    Order(Uuid),
    /// The id of the cancelled order.
    Cancellation(Uuid),
    /// A change by staff to a product, stock or template. Such a change has no id of its own.
    Staff(Box<str>),
}

/// A decision and its position in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub position: Position,
    pub made: Made,
}

/// The notes of one cell: at most [`UNSETTLED_DECISIONS`] waiting and [`SETTLED_DECISIONS`]
/// settled.
#[derive(Default)]
pub struct Unsettled {
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    waiting: VecDeque<Decision>,
    /// PostgreSQL's cursor has passed their positions.
    settled: VecDeque<Decision>,
    /// Decisions of epochs that are over: each is in PostgreSQL by now, or lost.
    suspect: VecDeque<Decision>,
    forgotten: u64,
}

/// Decisions that are in PostgreSQL by now, or lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspects {
    pub decisions: Vec<Decision>,
    /// The number of older decisions that were dropped because `waiting` was full.
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
        let notes = self.lock();
        notes.waiting.is_empty() && notes.settled.is_empty()
    }

    /// Takes over PostgreSQL's cursor, `applied` of `epoch`. Earlier epochs are over.
    pub fn settle(&self, epoch: u64, applied: u64) {
        let notes = &mut *self.lock();
        let over = |decision: &Decision| decision.position.epoch < epoch;
        while let Some(decision) = notes.settled.pop_front_if(|decision| over(decision)) {
            notes.suspect.push_back(decision);
        }
        let passed = |Position { epoch: of, seq, .. }| of < epoch || of == epoch && seq <= applied;
        while let Some(decision) = notes.waiting.pop_front_if(|decision| passed(decision.position)) {
            let to = if over(&decision) { &mut notes.suspect } else { &mut notes.settled };
            to.push_back(decision);
        }
        let old = notes.settled.len().saturating_sub(SETTLED_DECISIONS);
        notes.settled.drain(..old);
        if notes.waiting.is_empty() && notes.suspect.is_empty() {
            // Dropped decisions are older than the settled ones, so PostgreSQL has them, too.
            notes.forgotten = 0;
        }
    }

    /// Takes some of the suspects; `None` when there are none left.
    pub fn take_suspects(&self) -> Option<Suspects> {
        let mut notes = self.lock();
        let some = notes.suspect.len().min(SUSPECTS_AT_ONCE);
        let decisions: Vec<Decision> = notes.suspect.drain(..some).collect();
        (some > 0).then(|| Suspects { decisions, forgotten: std::mem::take(&mut notes.forgotten) })
    }

    /// Puts back suspects that could not be looked up.
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
        let passed = note(&unsettled, 1, 5);
        let left = note(&unsettled, 1, 6);
        note(&unsettled, 2, 1);
        unsettled.settle(1, 5);
        assert_eq!(unsettled.take_suspects(), None);
        unsettled.settle(2, 0);
        let suspects = unsettled.take_suspects().unwrap();
        assert_eq!(suspects.decisions, [passed, left]);
        assert_eq!(unsettled.take_suspects(), None);
        unsettled.put_back(suspects.clone());
        assert_eq!(unsettled.take_suspects(), Some(suspects));
    }

    #[test]
    fn places_that_postgresql_was_past_already_prove_nothing() {
        let unsettled = Unsettled::default();
        unsettled.settle(1, 5);
        let forked = note(&unsettled, 1, 4); // at the position of a decision that Redis lost
        unsettled.settle(1, 5);
        assert_eq!(unsettled.take_suspects(), None);
        unsettled.settle(2, 0);
        assert_eq!(unsettled.take_suspects().unwrap().decisions, [forked]);
        assert!(unsettled.is_empty());
    }

    #[test]
    fn only_the_latest_of_what_is_settled_is_remembered() {
        let unsettled = Unsettled::default();
        for seq in 1..=SETTLED_DECISIONS as u64 + 3 {
            note(&unsettled, 1, seq);
            unsettled.settle(1, seq);
        }
        unsettled.settle(2, 0);
        let suspects: Vec<Decision> =
            std::iter::from_fn(|| unsettled.take_suspects()).flat_map(|some| some.decisions).collect();
        assert_eq!((suspects.len(), suspects[0].position.seq), (SETTLED_DECISIONS, 4));
    }

    #[test]
    fn too_many_notes_are_counted() {
        let unsettled = Unsettled::default();
        for seq in 0..UNSETTLED_DECISIONS as u64 + 3 {
            note(&unsettled, 1, seq);
        }
        unsettled.settle(2, 0);
        let some: Vec<Suspects> = std::iter::from_fn(|| unsettled.take_suspects()).collect();
        let (suspect, forgotten) = (
            some.iter().map(|s| s.decisions.len()).sum::<usize>(),
            some.iter().map(|s| s.forgotten).sum::<u64>(),
        );
        assert_eq!((suspect, forgotten), (UNSETTLED_DECISIONS, 3));
    }
}
