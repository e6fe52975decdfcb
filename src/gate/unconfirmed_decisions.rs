//! Decisions that this instance knows and has not yet seen in PostgreSQL.
//!
//! With `RUSHGATE_ACK=gate`, a client may already have its answer. If Redis then loses its disk,
//! these notes are the only trace of the decision. After a rebuild, [`crate::lost_decisions`]
//! compares them with PostgreSQL and reports the decisions that are lost.
//!
//! A decision starts in `waiting`. It moves to `passed` when PostgreSQL's cursor has passed its
//! position, and to `candidates` when its epoch is over; [`crate::lost_decisions`] takes it from
//! there. `passed` exists because a cursor past the position does not prove that PostgreSQL has
//! this decision: if Redis lost the end of its log, other decisions may have taken the positions.
//! So the latest settled decisions are looked up after a rebuild, too.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

use crate::config::bounds::{LOSS_CANDIDATES_AT_ONCE, PASSED_DECISIONS, UNCONFIRMED_DECISIONS};
use crate::domain::Position;

/// The result of a decision, by its identifier in PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecisionId {
    Coupon(Uuid),
    Charge {
        charge_id: Uuid,
        user_id: Box<str>,
    },
    Order(Uuid),
    /// The id of the cancelled order.
    Cancellation(Uuid),
    /// The id of the order whose payment was confirmed.
    Confirmation(Uuid),
    /// A change by staff to a product, stock or template. Such a change has no id of its own.
    Staff(Box<str>),
}

/// A decision and its position in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedDecision {
    pub position: Position,
    pub id: DecisionId,
}

/// The notes of one cell: at most [`UNCONFIRMED_DECISIONS`] waiting and [`PASSED_DECISIONS`]
/// settled.
#[derive(Default)]
pub struct UnconfirmedDecisions {
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    waiting: VecDeque<LoggedDecision>,
    /// PostgreSQL's cursor has passed their positions.
    passed: VecDeque<LoggedDecision>,
    /// Decisions of epochs that are over: each is in PostgreSQL by now, or lost.
    candidates: VecDeque<LoggedDecision>,
    forgotten: u64,
}

/// Decisions that are in PostgreSQL by now, or lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LossCandidates {
    pub decisions: Vec<LoggedDecision>,
    /// The number of older decisions that were dropped because `waiting` was full.
    pub forgotten: u64,
}

impl UnconfirmedDecisions {
    pub fn note(&self, position: Position, id: DecisionId) {
        let mut notes = self.lock();
        if notes.waiting.len() >= UNCONFIRMED_DECISIONS {
            notes.waiting.pop_front();
            notes.forgotten += 1;
        }
        notes.waiting.push_back(LoggedDecision { position, id });
    }

    pub fn is_empty(&self) -> bool {
        let notes = self.lock();
        notes.waiting.is_empty() && notes.passed.is_empty()
    }

    /// Takes over PostgreSQL's cursor, `applied` of `epoch`. Earlier epochs are over.
    pub fn settle(&self, epoch: u64, applied: u64) {
        let notes = &mut *self.lock();
        let over = |decision: &LoggedDecision| decision.position.epoch < epoch;
        while let Some(decision) = notes.passed.pop_front_if(|decision| over(decision)) {
            notes.candidates.push_back(decision);
        }
        let passed = |Position { epoch: of, seq, .. }| of < epoch || of == epoch && seq <= applied;
        while let Some(decision) = notes.waiting.pop_front_if(|decision| passed(decision.position))
        {
            let to = if over(&decision) { &mut notes.candidates } else { &mut notes.passed };
            to.push_back(decision);
        }
        let old = notes.passed.len().saturating_sub(PASSED_DECISIONS);
        notes.passed.drain(..old);
        if notes.waiting.is_empty() && notes.candidates.is_empty() {
            // Dropped decisions are older than the settled ones, so PostgreSQL has them, too.
            notes.forgotten = 0;
        }
    }

    /// Takes some of the suspects; `None` when there are none left.
    pub fn take_candidates(&self) -> Option<LossCandidates> {
        let mut notes = self.lock();
        let some = notes.candidates.len().min(LOSS_CANDIDATES_AT_ONCE);
        let decisions: Vec<LoggedDecision> = notes.candidates.drain(..some).collect();
        (some > 0)
            .then(|| LossCandidates { decisions, forgotten: std::mem::take(&mut notes.forgotten) })
    }

    /// Puts back suspects that could not be looked up.
    pub fn put_back(&self, candidates: LossCandidates) {
        let mut notes = self.lock();
        notes.candidates.extend(candidates.decisions);
        notes.forgotten += candidates.forgotten;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(unconfirmed: &UnconfirmedDecisions, epoch: u64, seq: u64) -> LoggedDecision {
        let decision = LoggedDecision {
            position: Position { cell: 0, epoch, seq },
            id: DecisionId::Order(Uuid::from_u128(1)),
        };
        unconfirmed.note(decision.position, decision.id.clone());
        decision
    }

    #[test]
    fn what_postgresql_has_is_settled_and_what_a_rebuild_left_behind_is_suspect() {
        let unconfirmed = UnconfirmedDecisions::default();
        let passed = note(&unconfirmed, 1, 5);
        let left = note(&unconfirmed, 1, 6);
        note(&unconfirmed, 2, 1);
        unconfirmed.settle(1, 5);
        assert_eq!(unconfirmed.take_candidates(), None);
        unconfirmed.settle(2, 0);
        let candidates = unconfirmed.take_candidates().unwrap();
        assert_eq!(candidates.decisions, [passed, left]);
        assert_eq!(unconfirmed.take_candidates(), None);
        unconfirmed.put_back(candidates.clone());
        assert_eq!(unconfirmed.take_candidates(), Some(candidates));
    }

    #[test]
    fn places_that_postgresql_was_past_already_prove_nothing() {
        let unconfirmed = UnconfirmedDecisions::default();
        unconfirmed.settle(1, 5);
        let forked = note(&unconfirmed, 1, 4); // at the position of a decision that Redis lost
        unconfirmed.settle(1, 5);
        assert_eq!(unconfirmed.take_candidates(), None);
        unconfirmed.settle(2, 0);
        assert_eq!(unconfirmed.take_candidates().unwrap().decisions, [forked]);
        assert!(unconfirmed.is_empty());
    }

    #[test]
    fn only_the_latest_of_what_is_settled_is_remembered() {
        let unconfirmed = UnconfirmedDecisions::default();
        for seq in 1..=PASSED_DECISIONS as u64 + 3 {
            note(&unconfirmed, 1, seq);
            unconfirmed.settle(1, seq);
        }
        unconfirmed.settle(2, 0);
        let candidates: Vec<LoggedDecision> = std::iter::from_fn(|| unconfirmed.take_candidates())
            .flat_map(|some| some.decisions)
            .collect();
        assert_eq!((candidates.len(), candidates[0].position.seq), (PASSED_DECISIONS, 4));
    }

    #[test]
    fn too_many_notes_are_counted() {
        let unconfirmed = UnconfirmedDecisions::default();
        for seq in 0..UNCONFIRMED_DECISIONS as u64 + 3 {
            note(&unconfirmed, 1, seq);
        }
        unconfirmed.settle(2, 0);
        let some: Vec<LossCandidates> =
            std::iter::from_fn(|| unconfirmed.take_candidates()).collect();
        let (candidates, forgotten) = (
            some.iter().map(|s| s.decisions.len()).sum::<usize>(),
            some.iter().map(|s| s.forgotten).sum::<u64>(),
        );
        assert_eq!((candidates, forgotten), (UNCONFIRMED_DECISIONS, 3));
    }
}
