//! The gate: atomic scripts in Redis decide each request. The only place that speaks to Redis, with `log/`.
//!
//! [`keys`] describes the state in Redis and its life; `lua/` holds the scripts.

use std::time::Instant;

pub mod keys;
mod refusal;
mod request;
pub mod scan;

pub use refusal::*;
pub use request::*;

use crate::domain::{CouponTemplate, Product, ProductId, TemplateId, TimestampMs, UserId};
use crate::log::fact::*;

/// One handle for all of an instance's requests; cheap to share.
pub struct Gate {}

/// What a cell is doing, for operators.
#[derive(Clone, Debug)]
pub struct CellStatus {
    pub cell: u32,
    pub epoch: u64,
    pub seq: u64,
    pub applied: u64,
    /// `open`, `closed`, `rebuilding`, `absent`
    pub state: String,
    pub reason: Option<String>,
}

/// Positions that PostgreSQL has reached, one per cell.
#[derive(Clone, Debug)]
pub struct CaughtUp(Vec<Position>);

impl CaughtUp {
    /// The epoch of the user's cell.
    pub fn epoch_of(&self, user_id: &UserId) -> u64 {
        let cells = u32::try_from(self.0.len()).unwrap_or(1);
        let cell = keys::cell_of(user_id.as_str(), cells);
        self.0.iter().find(|p| p.cell == cell).map_or(0, |p| p.epoch)
    }
}

/// Why PostgreSQL was not seen to have something in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotApplied {
    #[error("PostgreSQL did not follow the gate in time")]
    TimedOut,
    #[error("the cell was rebuilt meanwhile")]
    EpochChanged,
    #[error(transparent)]
    Gate(#[from] GateError),
}

/// Something read from the gate, and the gate's clock when it was read.
#[derive(Clone, Debug)]
pub struct ReadAt<T> {
    pub value: T,
    pub now: TimestampMs,
}

#[allow(unused_variables, clippy::unused_async, clippy::todo)] // bodies come with the scripts
impl Gate {
    pub async fn issue_coupon(
        &self,
        request: IssueCoupon,
        key: Option<IdempotencyKey>,
        deadline: Instant,
    ) -> Decision<CouponIssued, IssueRefusal> {
        todo!()
    }
    pub async fn charge_wallet(
        &self,
        request: ChargeWallet,
        key: Option<IdempotencyKey>,
        deadline: Instant,
    ) -> Decision<WalletCharged, ChargeRefusal> {
        todo!()
    }
    pub async fn place_order(
        &self,
        request: PlaceOrder,
        key: Option<IdempotencyKey>,
        deadline: Instant,
    ) -> Decision<OrderPlaced, OrderRefusal> {
        todo!()
    }
    pub async fn cancel_order(
        &self,
        request: CancelOrder,
        key: Option<IdempotencyKey>,
        deadline: Instant,
    ) -> Decision<OrderCancelled, CancelRefusal> {
        todo!()
    }
    pub async fn put_product(
        &self,
        request: PutProduct,
        deadline: Instant,
    ) -> Decision<ProductPut, ProductRefusal> {
        todo!()
    }
    pub async fn adjust_stock(
        &self,
        request: AdjustStock,
        key: Option<IdempotencyKey>,
        deadline: Instant,
    ) -> Decision<StockAdjusted, StockRefusal> {
        todo!()
    }
    pub async fn put_template(
        &self,
        request: PutTemplate,
        deadline: Instant,
    ) -> Decision<TemplatePut, TemplateRefusal> {
        todo!()
    }
    /// `None`: a user without a wallet.
    pub async fn balance(&self, user_id: &UserId) -> Result<Option<u64>, GateError> {
        todo!()
    }
    /// In the order of `ids`; unknown ones are left out.
    pub async fn products(&self, ids: &[ProductId]) -> Result<Vec<Product>, GateError> {
        todo!()
    }
    /// Up to `limit` products with ids above `after`, in the order of their ids.
    pub async fn list_products(
        &self,
        after: Option<&ProductId>,
        limit: usize,
    ) -> Result<Vec<Product>, GateError> {
        todo!()
    }
    pub async fn template(&self, id: &TemplateId) -> Result<ReadAt<Option<CouponTemplate>>, GateError> {
        todo!()
    }
    /// Up to `limit` templates with ids above `after`, in the order of their ids.
    pub async fn list_templates(
        &self,
        after: Option<&TemplateId>,
        limit: usize,
    ) -> Result<ReadAt<Vec<CouponTemplate>>, GateError> {
        todo!()
    }
    /// All coupons of a user, newest first.
    pub async fn held_coupons(&self, user_id: &UserId) -> Result<ReadAt<Vec<HeldCoupon>>, GateError> {
        todo!()
    }
    /// Waits until PostgreSQL has everything that the gate has decided up to now.
    pub async fn catch_up(&self, deadline: Instant) -> Result<CaughtUp, NotApplied> {
        todo!()
    }
    /// Waits until PostgreSQL has applied the log up to `position`.
    pub async fn wait_applied(&self, position: Position, deadline: Instant) -> Result<(), NotApplied> {
        todo!()
    }
    /// For /readyz and /v1/admin/status.
    pub async fn status(&self) -> Result<Vec<CellStatus>, GateError> {
        todo!()
    }
}
