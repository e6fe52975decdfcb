//! Typed requests to the gate. The HTTP handlers build them.

use uuid::Uuid;

use crate::domain::{
    Discount, Line, ProductId, ProductStatus, SaleRules, TemplateId, TimestampMs, UserId,
};

/// Issue one coupon of a template.
#[derive(Clone, Debug)]
pub struct IssueCoupon {
    pub template_id: TemplateId,
    pub user_id: UserId,
}

/// Add `amount` won to a wallet, which is created if it does not exist.
#[derive(Clone, Debug)]
pub struct ChargeWallet {
    pub user_id: UserId,
    pub amount: u64,
}

/// Place an order and pay for it. `lines` are merged (see [`crate::domain::order::merge_lines`]).
#[derive(Clone, Debug)]
pub struct PlaceOrder {
    pub user_id: UserId,
    pub lines: Vec<Line>,
    pub coupon_id: Option<Uuid>,
    pub expected_total: Option<u64>,
    /// The shop's own order number.
    pub reference: Option<String>,
    /// `None`: all is paid from the wallet, at once.
    pub outside: Option<PayOutside>,
}

/// Hold an order until it is paid outside.
#[derive(Clone, Copy, Debug)]
pub struct PayOutside {
    /// Won to take from the wallet now.
    pub wallet_amount: u64,
    pub hold_ms: u64,
    /// The most pending orders of the user, with this one.
    pub pending_limit: u64,
}

/// Confirm that a pending order was paid outside.
#[derive(Clone, Debug)]
pub struct ConfirmOrder {
    pub order_id: Uuid,
    pub payment_reference: String,
}

/// Cancel an order that is paid or pending in PostgreSQL. `read_in_epoch` is the epoch in which the order was
/// read there. After a rebuild the gate does not know earlier cancellations, so the order must be
/// read again.
#[derive(Clone, Debug)]
pub struct CancelOrder {
    pub order_id: Uuid,
    pub user_id: UserId,
    pub lines: Vec<Line>,
    pub refund: u64,
    pub coupon_id: Option<Uuid>,
    /// Of each line, the limit per user that it counts for; empty if none does.
    pub limit_numbers: Vec<Option<u64>>,
    pub read_in_epoch: u64,
    pub was_pending: bool,
    /// Won that were paid outside; `None`: the order is paid from the wallet alone.
    pub paid_outside: Option<u64>,
}

/// Create or change a product. `stock` is allowed only when the product is created.
#[derive(Clone, Debug)]
pub struct PutProduct {
    pub product_id: ProductId,
    pub name: String,
    pub price: u64,
    pub status: ProductStatus,
    pub stock: Option<u64>,
    pub rules: SaleRules,
}

/// Add `delta` pieces to a product's stock; negative to remove pieces.
#[derive(Clone, Debug)]
pub struct AdjustStock {
    pub product_id: ProductId,
    pub delta: i64,
    pub reason: Option<String>,
}

/// Create or change a coupon template.
#[derive(Clone, Debug)]
pub struct PutTemplate {
    pub template_id: TemplateId,
    pub name: String,
    pub discount: Discount,
    pub min_subtotal: u64,
    pub max_issued: u64,
    pub issue_from: TimestampMs,
    pub issue_until: TimestampMs,
}

/// A client's `Idempotency-Key`, scoped to the user of the request.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    pub user: UserId,
    /// 1 to 255 printable ASCII characters.
    pub key: String,
}
