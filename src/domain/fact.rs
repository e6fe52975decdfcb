//! Facts: the changes of one accepted request. The same bytes are part of the log entry, of the
//! idempotency record and of the script's verdict.
//!
//! Each fact is a MessagePack array in the order of the fields below; the scripts in `lua/` write
//! the same order. A fact holds all ids and after-images, so it can be applied without reading
//! other state. Money is in won, times are in milliseconds.

use serde::{Deserialize, Serialize};

use super::wire::{Blob, Id};
use crate::domain::{Discount, ProductStatus, TimestampMs};

/// The idempotency record of an accepted request: the key's scope and the request's hash (16
/// bytes).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// `<user> <key>`
    pub scope: String,
    pub request_hash: Blob,
}

/// A coupon was issued. `serial` equals the template's issued count after this coupon.
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

/// One product that a cancelled order has returned to stock.
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

/// A product was created or changed by staff.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProductPut {
    pub product_id: String,
    pub name: String,
    pub price: u64,
    pub status: ProductStatus,
    pub stock_after: u64,
    pub created: bool,
    pub put_at: TimestampMs,
    /// Always absent: a PUT is idempotent without a key.
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

/// A coupon template was created or changed by staff. Templates are numbered from 1 in the order of
/// their creation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplatePut {
    pub template_id: String,
    pub number: u64,
    pub terms: TemplateTerms,
    pub issued: u64,
    pub created: bool,
    pub put_at: TimestampMs,
    /// Always absent: a PUT is idempotent without a key.
    pub idempotency: Option<Idempotency>,
}

/// The terms of a template, as set by staff.
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
    /// `None` if the type is unknown, which only another writer could have stored.
    pub fn discount(&self) -> Option<Discount> {
        Discount::from_parts(&self.discount_type, self.discount_value, self.discount_max)
    }
}

/// All facts of one entry. They are of one kind, in the order of the decisions.
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
