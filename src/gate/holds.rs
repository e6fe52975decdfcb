//! Ends the holds of pending orders that were not paid in time.
//!
//! Every instance with a gate looks for holds that are over and has them ended by the script, which
//! decides by the gate's time, once for each order. So it does not matter how many instances look,
//! or which of them leads a cell's reconciler; and like any decision, an end is refused by a fence, a
//! closed cell or a Redis that went back in time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::batch::FlatPairs;
use super::queries::fetch;
use super::refusal::{Decision, ExpireRefusal, GateError};
use super::verdict::decide;
use super::{CellQueues, Gate, read};
use crate::config::bounds::{HOLDS_ENDED_AT_ONCE, HOLDS_LOOK};
use crate::domain::fact::{OrderExpired, PendingOrder};
use crate::domain::wire::Id;
use crate::telemetry::metrics::HOLDS_EXPIRED;
use crate::telemetry::repeated::Repeated;

/// Looks for ended holds until `stop`.
pub async fn end_holds(gate: Arc<Gate>, limit: Duration, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(HOLDS_LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut trouble = Repeated::new("holds that are over cannot be ended");
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        // The shop's requests come first: between two rounds, others have their turn.
        loop {
            match gate.end_some_holds(Instant::now() + limit).await {
                Ok(ended) => {
                    trouble.works();
                    if ended < HOLDS_ENDED_AT_ONCE || stop.is_cancelled() {
                        break;
                    }
                }
                Err(error) => {
                    trouble.failed(&error);
                    break;
                }
            }
        }
    }
}

impl Gate {
    /// Ends up to [`HOLDS_ENDED_AT_ONCE`] holds of each cell; returns the most that it ended in one.
    pub async fn end_some_holds(&self, deadline: Instant) -> Result<usize, GateError> {
        let mut most = 0;
        for queues in &self.cells {
            let answer = fetch(queues, &("due", HOLDS_ENDED_AT_ONCE)).await?;
            let due = read::due(&answer)?;
            let ends = due.iter().map(|(id, order)| expire(queues, *id, order, deadline));
            let mut ended = 0;
            for decision in join_all(ends).await {
                ended += usize::from(decision?.is_ok());
            }
            HOLDS_EXPIRED.counter(&[]).increment(ended as u64);
            most = most.max(ended);
        }
        Ok(most)
    }
}

async fn expire(
    queues: &CellQueues,
    order_id: Uuid,
    order: &PendingOrder,
    deadline: Instant,
) -> Decision<OrderExpired, ExpireRefusal> {
    let lines: Vec<(&str, u64)> =
        order.lines.iter().map(|line| (line.product_id.as_str(), line.quantity)).collect();
    let limits: Option<Vec<u64>> = order
        .lines
        .iter()
        .any(|line| line.limit_number.is_some())
        .then(|| order.lines.iter().map(|line| line.limit_number.unwrap_or(0)).collect());
    let body = (
        Id(order_id),
        order.user_id.as_str(),
        FlatPairs(&lines),
        order.wallet_amount,
        order.coupon_id,
        limits,
    );
    decide(&queues.expire_order, &body, None, deadline).await
}
