//! Reports lost decisions: those that Redis lost before PostgreSQL had applied them.
//!
//! Each instance remembers the decisions that the gate has reported to it until PostgreSQL has them
//! ([`crate::gate::Unsettled`]). After a rebuild of the gate, everything that the old log still
//! held has been applied; what PostgreSQL does not have then, it will never have. Each such
//! decision is logged once, with its id, and counted.

use std::collections::HashSet;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::bounds::{LOSSES_CHECK, LOSSES_TOLD};
use crate::gate::{Gate, Made, Suspects};
use crate::telemetry::metrics;
use crate::telemetry::repeated::Repeated;
use crate::truth::{Truth, TruthError};

/// Checks for lost decisions periodically, until `stop`.
pub async fn watch(gate: Arc<Gate>, truth: Truth, stop: CancellationToken) {
    for kind in ["coupon", "charge", "order", "cancellation", "staff"] {
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
    let unsettled = gate.unsettled().await;
    if unsettled.iter().all(|(_, notes)| notes.is_empty()) {
        return Ok(());
    }
    let cursors = truth.progress().await?.cursors;
    for (cell, notes) in unsettled {
        // The cursors come from PostgreSQL: what Redis knows of them may be as old as the data that
        // it lost.
        if let Some(cursor) = cursors.iter().find(|cursor| cursor.cell == cell) {
            notes.settle(cursor.epoch, cursor.seq);
        }
        while let Some(suspects) = notes.take_suspects() {
            match gone(truth, &suspects).await {
                Ok(gone) => {
                    let kept = truth.quarantined(&ids_of(&suspects, &gone)).await.unwrap_or_default();
                    tell(&suspects, &gone, &kept);
                }
                Err(error) => {
                    notes.put_back(suspects);
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Indices in `suspects` of the decisions that PostgreSQL does not have.
async fn gone(truth: &Truth, suspects: &Suspects) -> Result<Vec<usize>, TruthError> {
    let (mut coupons, mut orders, mut cancelled) = (vec![], vec![], vec![]);
    let (mut charges, mut users) = (vec![], vec![]);
    for decision in &suspects.decisions {
        match &decision.made {
            Made::Coupon(id) => coupons.push(*id),
            Made::Order(id) => orders.push(*id),
            Made::Cancellation(id) => cancelled.push(*id),
            Made::Charge { charge_id, user_id } => {
                charges.push(*charge_id);
                users.push(user_id.to_string());
            }
            Made::Staff(_) => {}
        }
    }
    let coupons: HashSet<Uuid> = truth.known_coupons(&coupons).await?;
    let orders: HashSet<Uuid> = truth.known_orders(&orders).await?;
    let cancelled: HashSet<Uuid> = truth.known_cancellations(&cancelled).await?;
    let charges: HashSet<Uuid> = truth.known_charges(&charges, &users).await?;
    let has = |made: &Made| match made {
        Made::Coupon(id) => coupons.contains(id),
        Made::Order(id) => orders.contains(id),
        Made::Cancellation(id) => cancelled.contains(id),
        Made::Charge { charge_id, .. } => charges.contains(charge_id),
        Made::Staff(_) => false,
    };
    let found = suspects.decisions.iter().enumerate().filter(|(_, decision)| !has(&decision.made));
    Ok(found.map(|(place, _)| place).collect())
}

fn id_of(made: &Made) -> Option<Uuid> {
    match made {
        Made::Coupon(id) | Made::Order(id) | Made::Cancellation(id) => Some(*id),
        Made::Charge { charge_id, .. } => Some(*charge_id),
        Made::Staff(_) => None,
    }
}

fn ids_of(suspects: &Suspects, gone: &[usize]) -> Vec<Uuid> {
    gone.iter().filter_map(|place| id_of(&suspects.decisions.get(*place)?.made)).collect()
}

/// Logs and counts lost decisions. Those in the quarantine are counted by the leader; here they are
/// only logged.
fn tell(suspects: &Suspects, gone: &[usize], kept: &HashSet<Uuid>) {
    let mut told = 0;
    for decision in gone.iter().filter_map(|place| suspects.decisions.get(*place)) {
        let (kind, id) = match &decision.made {
            Made::Coupon(id) => ("coupon", id.to_string()),
            Made::Charge { charge_id, .. } => ("charge", charge_id.to_string()),
            Made::Order(id) => ("order", id.to_string()),
            Made::Cancellation(id) => ("cancellation", id.to_string()),
            Made::Staff(what) => {
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
        if !id_of(&decision.made).is_some_and(|id| kept.contains(&id)) {
            metrics::DECISIONS_LOST.counter(&[("kind", kind)]).increment(1);
        }
        told += 1;
        if told <= LOSSES_TOLD {
            let (epoch, seq) = (decision.position.epoch, decision.position.seq);
            tracing::error!(kind, id, epoch, seq, "gone: it was decided, and PostgreSQL will never have it");
        }
    }
    if told > LOSSES_TOLD || suspects.forgotten > 0 {
        let (forgotten, untold) = (suspects.forgotten, told.saturating_sub(LOSSES_TOLD));
        tracing::error!(untold, forgotten, "more decisions are lost, or may be, than the lines above list");
    }
}
