//! Facts: what one accepted request changed, as it stands in an entry, in an idempotency record and in the answer.
//!
//! Each is a MessagePack array in the order of the fields below (the scripts write the same order, see `lua/`), with
//! the ids and the after-images, so that it is meaningful alone. Money in won, times in milliseconds.

use serde::{Deserialize, Serialize};

use super::wire::{Blob, Id};
use crate::domain::{Discount, ProductStatus, TimestampMs};

/// The idempotency record that an accepted request leaves: whose key, and the request's hash (16 bytes).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// `<user> <key>`
    pub scope: String,
    pub request_hash: Blob,
}

/// A coupon was issued. `serial` is also the template's issued count after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CouponIssued {
    pub coupon_id: Id,
    pub template_id: String,
    pub user_id: String,
    pub serial: u64,
    pub remaining: u64,
    pub issued_at: TimestampMs,
    pub expires_at: TimestampMs,
    pub idempotency: Option<Idempotency>,
}

/// A wallet was charged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalletCharged {
    pub charge_id: Id,
    pub user_id: String,
    pub amount: u64,
    pub balance_after: u64,
    pub charged_at: TimestampMs,
    pub idempotency: Option<Idempotency>,
}

/// One product of a placed order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedLine {
    pub product_id: String,
    pub name: String,
    pub unit_price: u64,
    pub quantity: u64,
    pub amount: u64,
    pub stock_after: u64,
}

/// An order was placed and paid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderPlaced {
    pub order_id: Id,
    pub user_id: String,
    pub lines: Vec<PlacedLine>,
    pub subtotal: u64,
    pub discount: u64,
    pub total: u64,
    pub coupon_id: Option<Id>,
    pub balance_after: u64,
    pub ordered_at: TimestampMs,
    pub idempotency: Option<Idempotency>,
}

/// One product that a cancelled order gave back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReturnedLine {
    pub product_id: String,
    pub quantity: u64,
    pub stock_after: u64,
}

/// An order was cancelled. `coupon_returned`: its coupon had not expired and is available again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderCancelled {
    pub order_id: Id,
    pub user_id: String,
    pub lines: Vec<ReturnedLine>,
    pub refund: u64,
    pub coupon_id: Option<Id>,
    pub coupon_returned: bool,
    pub balance_after: u64,
    pub cancelled_at: TimestampMs,
    pub idempotency: Option<Idempotency>,
}

/// A product was created or changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProductPut {
    pub product_id: String,
    pub name: String,
    pub price: u64,
    pub status: ProductStatus,
    pub stock_after: u64,
    pub created: bool,
    pub put_at: TimestampMs,
    /// Always absent: a PUT is repeatable by itself.
    pub idempotency: Option<Idempotency>,
}

/// A product's stock was adjusted by staff.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StockAdjusted {
    pub product_id: String,
    pub delta: i64,
    pub reason: Option<String>,
    pub stock_after: u64,
    pub adjusted_at: TimestampMs,
    pub idempotency: Option<Idempotency>,
}

/// A coupon template was created or changed. `number` is its place among all templates, from 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplatePut {
    pub template_id: String,
    pub number: u64,
    pub terms: TemplateTerms,
    pub issued: u64,
    pub created: bool,
    pub put_at: TimestampMs,
    /// Always absent: a PUT is repeatable by itself.
    pub idempotency: Option<Idempotency>,
}

/// What staff decide about a template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateTerms {
    pub name: String,
    pub discount_type: String,
    pub discount_value: u64,
    pub discount_max: Option<u64>,
    pub min_subtotal: u64,
    pub max_issued: u64,
    pub issue_from: TimestampMs,
    pub issue_until: TimestampMs,
}

impl TemplateTerms {
    /// `None` when the type is unknown (only a foreign writer could have put it there).
    pub fn discount(&self) -> Option<Discount> {
        Discount::from_parts(&self.discount_type, self.discount_value, self.discount_max)
    }
}

/// All facts of one entry; an entry holds facts of one kind, in the order in which they were decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Facts {
    CouponsIssued(Vec<CouponIssued>),
    WalletsCharged(Vec<WalletCharged>),
    OrdersPlaced(Vec<OrderPlaced>),
    OrdersCancelled(Vec<OrderCancelled>),
    ProductsPut(Vec<ProductPut>),
    StocksAdjusted(Vec<StockAdjusted>),
    TemplatesPut(Vec<TemplatePut>),
}
