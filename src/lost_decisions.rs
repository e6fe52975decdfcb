//! Reports lost decisions: those that Redis lost before PostgreSQL had applied them.
//!
//! Each instance remembers the decisions that the gate has reported to it until PostgreSQL has them
//! ([`crate::gate::UnconfirmedDecisions`]). After a rebuild of the gate, everything that the old
//! log still held has been applied; what PostgreSQL does not have then, it will never have. Each
//! such decision is logged once, with its id, and counted.

use std::collections::HashSet;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::bounds::{LOSSES_CHECK, LOSSES_LOGGED};
use crate::gate::{DecisionId, Gate, LossCandidates};
use crate::telemetry::metrics;
use crate::telemetry::repeated::Repeated;
use crate::truth::{Truth, TruthError};

/// Checks for lost decisions periodically, until `stop`.
pub async fn watch(gate: Arc<Gate>, truth: Truth, stop: CancellationToken) {
    for kind in ["coupon", "charge", "order", "cancellation", "confirmation", "staff"] {
        // Creates the series, at 0.
        let _ = metrics::DECISIONS_LOST.counter(&[("kind", kind)]);
    }
    let mut trouble = Repeated::new("decisions of the gate cannot be compared with PostgreSQL yet");
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOSSES_CHECK) => {}
            () = stop.cancelled() => return,
        }
        match look(&gate, &truth).await {
            Ok(()) => trouble.works(),
            Err(error) => trouble.failed(&error),
        }
    }
}

async fn look(gate: &Gate, truth: &Truth) -> Result<(), TruthError> {
    let unconfirmed = gate.unconfirmed().await;
    if unconfirmed.iter().all(|(_, notes)| notes.is_empty()) {
        return Ok(());
    }
    let cursors = truth.progress().await?.cursors;
    for (cell, notes) in unconfirmed {
        // The cursors come from PostgreSQL: what Redis knows of them may be as old as the data that
        // it lost.
        if let Some(cursor) = cursors.iter().find(|cursor| cursor.cell == cell) {
            notes.settle(cursor.epoch, cursor.seq);
        }
        while let Some(candidates) = notes.take_candidates() {
            match gone(truth, &candidates).await {
                Ok(gone) => {
                    let kept =
                        truth.quarantined(&ids_of(&candidates, &gone)).await.unwrap_or_default();
                    log_losses(&candidates, &gone, &kept);
                }
                Err(error) => {
                    notes.put_back(candidates);
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Indices in `candidates` of the decisions that PostgreSQL does not have.
async fn gone(truth: &Truth, candidates: &LossCandidates) -> Result<Vec<usize>, TruthError> {
    let (mut coupons, mut orders, mut cancelled) = (vec![], vec![], vec![]);
    let mut confirmed = vec![];
    let (mut charges, mut users) = (vec![], vec![]);
    for decision in &candidates.decisions {
        match &decision.id {
            DecisionId::Coupon(id) => coupons.push(*id),
            DecisionId::Order(id) => orders.push(*id),
            DecisionId::Cancellation(id) => cancelled.push(*id),
            DecisionId::Confirmation(id) => confirmed.push(*id),
            DecisionId::Charge { charge_id, user_id } => {
                charges.push(*charge_id);
                users.push(user_id.to_string());
            }
            DecisionId::Staff(_) => {}
        }
    }
    let coupons: HashSet<Uuid> = truth.known_coupons(&coupons).await?;
    let orders: HashSet<Uuid> = truth.known_orders(&orders).await?;
    let cancelled: HashSet<Uuid> = truth.known_cancellations(&cancelled).await?;
    let confirmed: HashSet<Uuid> = truth.known_confirmations(&confirmed).await?;
    let charges: HashSet<Uuid> = truth.known_charges(&charges, &users).await?;
    let has = |id: &DecisionId| match id {
        DecisionId::Coupon(id) => coupons.contains(id),
        DecisionId::Order(id) => orders.contains(id),
        DecisionId::Cancellation(id) => cancelled.contains(id),
        DecisionId::Confirmation(id) => confirmed.contains(id),
        DecisionId::Charge { charge_id, .. } => charges.contains(charge_id),
        DecisionId::Staff(_) => false,
    };
    let found = candidates.decisions.iter().enumerate().filter(|(_, decision)| !has(&decision.id));
    Ok(found.map(|(place, _)| place).collect())
}

fn id_of(id: &DecisionId) -> Option<Uuid> {
    match id {
        DecisionId::Coupon(id)
        | DecisionId::Order(id)
        | DecisionId::Cancellation(id)
        | DecisionId::Confirmation(id) => Some(*id),
        DecisionId::Charge { charge_id, .. } => Some(*charge_id),
        DecisionId::Staff(_) => None,
    }
}

fn ids_of(candidates: &LossCandidates, gone: &[usize]) -> Vec<Uuid> {
    gone.iter().filter_map(|place| id_of(&candidates.decisions.get(*place)?.id)).collect()
}

/// Logs and counts lost decisions. Those in the quarantine are counted by the leader; here they are
/// only logged.
fn log_losses(candidates: &LossCandidates, gone: &[usize], kept: &HashSet<Uuid>) {
    let mut logged = 0;
    for decision in gone.iter().filter_map(|place| candidates.decisions.get(*place)) {
        let (kind, id) = match &decision.id {
            DecisionId::Coupon(id) => ("coupon", id.to_string()),
            DecisionId::Charge { charge_id, .. } => ("charge", charge_id.to_string()),
            DecisionId::Order(id) => ("order", id.to_string()),
            DecisionId::Cancellation(id) => ("cancellation", id.to_string()),
            DecisionId::Confirmation(id) => ("confirmation", id.to_string()),
            DecisionId::Staff(what) => {
                let (epoch, seq) = (decision.position.epoch, decision.position.seq);
                tracing::warn!(
                    what = &**what,
                    epoch,
                    seq,
                    "a change by staff may be lost: check whether it is there"
                );
                continue;
            }
        };
        if !id_of(&decision.id).is_some_and(|id| kept.contains(&id)) {
            metrics::DECISIONS_LOST.counter(&[("kind", kind)]).increment(1);
        }
        logged += 1;
        if logged <= LOSSES_LOGGED {
            let (epoch, seq) = (decision.position.epoch, decision.position.seq);
            tracing::error!(
                kind,
                id,
                epoch,
                seq,
                "gone: it was decided, and PostgreSQL will never have it"
            );
        }
    }
    if logged > LOSSES_LOGGED || candidates.forgotten > 0 {
        let (forgotten, untold) = (candidates.forgotten, logged.saturating_sub(LOSSES_LOGGED));
        tracing::error!(
            untold,
            forgotten,
            "more decisions are lost, or may be, than the lines above list"
        );
    }
}
