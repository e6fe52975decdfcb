//! Facts: the changes of one accepted request. The same bytes are part of the log entry, of the
//! idempotency record and of the script's verdict.
//!
//! Each fact is a MessagePack array in the order of the fields below; the scripts in `lua/` write
//! the same order. A fact holds all ids and after-images, so it can be applied without reading
//! other state. Money is in won, times are in milliseconds.
//!
//! A field after `idempotency` is absent where it is `None`. Versions before 0.2 do not know these
//! fields: an entry with one of them, or of a kind marked as new, has the later format version.

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
    /// The number of its terms; `None`: the template's own number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms_number: Option<u64>,
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more: Option<OrderExtras>,
}

/// What only some orders have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderExtras {
    /// The shop's own order number.
    pub reference: Option<String>,
    pub outside: Option<OutsidePayment>,
    pub counts: Vec<PurchaseCount>,
}

/// An order that is paid outside of the wallet, or partly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsidePayment {
    /// Taken from the wallet when the order was placed.
    pub wallet_amount: u64,
    /// The order is pending until then; `None`: nothing was due, it is paid.
    pub hold_expires_at: Option<TimestampMs>,
}

/// A line (counted from 0) that counts for a limit per user, and the pieces that the user has bought
/// under that limit after the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurchaseCount {
    pub line: u64,
    pub limit_number: u64,
    pub bought_after: u64,
}

/// A pending order, as the gate keeps it and as the fact of its confirmation carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingOrder {
    pub user_id: String,
    pub lines: Vec<PendingLine>,
    pub subtotal: u64,
    pub discount: u64,
    pub total: u64,
    pub coupon_id: Option<Id>,
    pub wallet_amount: u64,
    pub ordered_at: TimestampMs,
    pub hold_expires_at: TimestampMs,
    pub reference: Option<String>,
}

impl PendingOrder {
    /// What is to be paid outside.
    pub fn amount_due(&self) -> u64 {
        self.total.saturating_sub(self.wallet_amount)
    }
}

/// One product of a pending order. `limit_number`: the limit per user that the line counts for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingLine {
    pub product_id: String,
    pub name: String,
    pub unit_price: u64,
    pub quantity: u64,
    pub amount: u64,
    pub limit_number: Option<u64>,
}

/// New in 0.2: a pending order was paid outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderConfirmed {
    pub order_id: Id,
    pub payment_reference: String,
    pub paid_at: TimestampMs,
    pub balance_after: u64,
    pub order: PendingOrder,
    pub idempotency: Option<Idempotency>,
}

/// New in 0.2: the hold of a pending order has ended, and what it held was given back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderExpired {
    pub order_id: Id,
    pub user_id: String,
    pub lines: Vec<ReturnedLine>,
    pub refund: u64,
    pub coupon_id: Option<Id>,
    pub coupon_returned: bool,
    pub balance_after: u64,
    pub expired_at: TimestampMs,
    pub counts: Vec<PurchaseCount>,
    /// Always absent: the leader ends holds.
    pub idempotency: Option<Idempotency>,
}

/// One product that an order has returned to stock.
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more: Option<CancelExtras>,
}

/// What only some cancelled orders have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelExtras {
    /// The order was pending; otherwise it was paid.
    pub was_pending: bool,
    /// Won that were paid outside and are the shop's to give back; `None`: the order is paid from
    /// the wallet.
    pub paid_outside: Option<u64>,
    pub counts: Vec<PurchaseCount>,
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<ProductRules>,
}

/// The rules and attributes of a product that has any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProductRules {
    pub sale_from: Option<TimestampMs>,
    pub sale_until: Option<TimestampMs>,
    pub per_user_limit: Option<u64>,
    /// Numbers the limits of all products, in the order in which they were first set.
    pub limit_number: Option<u64>,
    /// A JSON object of strings.
    pub attributes: Option<String>,
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
    /// The number of these terms; `None`: the template's own number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms_number: Option<u64>,
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
    OrdersConfirmed(Vec<OrderConfirmed>),
    OrdersExpired(Vec<OrderExpired>),
    ProductsPut(Vec<ProductPut>),
    StocksAdjusted(Vec<StockAdjusted>),
    TemplatesPut(Vec<TemplatePut>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::wire::pack;

    fn issued(terms_number: Option<u64>) -> CouponIssued {
        CouponIssued {
            coupon_id: Id::new(),
            template_id: "t".into(),
            user_id: "u".into(),
            serial: 1,
            remaining: 0,
            issued_at: 5,
            expires_at: 6,
            idempotency: None,
            terms_number,
        }
    }

    #[test]
    fn a_fact_without_later_fields_is_as_it_always_was() {
        let packed = pack(&issued(None)).unwrap();
        assert_eq!(packed[0], 0x98, "a list of eight");
        assert_eq!(rmp_serde::from_slice::<CouponIssued>(&packed).unwrap().terms_number, None);
        let later = pack(&issued(Some(7))).unwrap();
        assert_eq!(later[0], 0x99, "a list of nine");
        assert_eq!(rmp_serde::from_slice::<CouponIssued>(&later).unwrap().terms_number, Some(7));
    }
}
