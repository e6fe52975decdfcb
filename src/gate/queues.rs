//! A cell with a queue for each script, and the decisions that PostgreSQL does not have yet.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;

use super::batcher::{BatchLimits, Batcher};
use super::cell::Cell;
use super::metrics::QueueMetrics;
use super::refusal::{
    Accepted, CancelRefusal, ChargeRefusal, ConfirmRefusal, Decision, ExpireRefusal, IssueRefusal,
    OrderRefusal, ProductRefusal, Refusal, StockRefusal, TemplateRefusal,
};
use super::script::{self, Script};
use super::unconfirmed_decisions::{DecisionId, UnconfirmedDecisions};
use crate::domain::wire::Id;

/// A cell with the queues of its scripts.
pub(super) struct CellQueues {
    pub(super) cell: Arc<Cell>,
    pub(super) issue_coupon: Batcher,
    pub(super) charge_wallet: Batcher,
    pub(super) place_order: Batcher,
    pub(super) cancel_order: Batcher,
    pub(super) confirm_order: Batcher,
    pub(super) expire_order: Batcher,
    pub(super) put_product: Batcher,
    pub(super) adjust_stock: Batcher,
    pub(super) put_template: Batcher,
    pub(super) read: Batcher,
    /// Time limit of a read, including its wait in the queue.
    pub(super) read_limit: Duration,
    pub(super) unconfirmed: Arc<UnconfirmedDecisions>,
    /// Stops the task when the gate is dropped.
    _watermark: AbortOnDropHandle<()>,
}

impl CellQueues {
    pub(super) fn start(cell: Arc<Cell>, limits: BatchLimits) -> Self {
        let queue = |script: &'static Script, refusals| {
            let metrics = Arc::new(QueueMetrics::new(script.name, refusals));
            Batcher::start(Arc::clone(&cell), script, limits, metrics)
        };
        let follower = Arc::clone(&cell);
        let watermark = tokio::spawn(async move { follower.follow_watermark().await });
        Self {
            issue_coupon: queue(&script::ISSUE_COUPON, IssueRefusal::NAMES),
            charge_wallet: queue(&script::CHARGE_WALLET, ChargeRefusal::NAMES),
            place_order: queue(&script::PLACE_ORDER, OrderRefusal::NAMES),
            cancel_order: queue(&script::CANCEL_ORDER, CancelRefusal::NAMES),
            confirm_order: queue(&script::CONFIRM_ORDER, ConfirmRefusal::NAMES),
            expire_order: queue(&script::EXPIRE_ORDER, ExpireRefusal::NAMES),
            put_product: queue(&script::PUT_PRODUCT, ProductRefusal::NAMES),
            adjust_stock: queue(&script::ADJUST_STOCK, StockRefusal::NAMES),
            put_template: queue(&script::PUT_TEMPLATE, TemplateRefusal::NAMES),
            read: queue(&script::READ, &[]),
            read_limit: limits.read,
            unconfirmed: Arc::default(),
            _watermark: AbortOnDropHandle::new(watermark),
            cell,
        }
    }

    /// A UUIDv7 dated by the gate's clock as this instance knows it, so that ids from two instances
    /// are in the order of time although the instances' own clocks differ.
    pub(super) async fn new_order_id(&self) -> Id {
        match self.cell.view().await {
            Ok(view) => Id::at(view.now()),
            Err(_) => Id::new(), // nothing will be decided
        }
    }

    /// Keeps an accepted decision until PostgreSQL has applied it. Replays are kept too: the first
    /// answer may have come from another instance or been lost. (A replayed decision is in the log
    /// before the position of its answer.)
    pub(super) fn note<F, R>(&self, decision: &Decision<F, R>, id: impl FnOnce(&F) -> DecisionId) {
        if let Ok(Ok(Accepted { fact, position, .. })) = decision {
            self.unconfirmed.note(*position, id(fact));
        }
    }
}
