//! The JSON form of an order: the same in every answer of the API and in the events for the data
//! platform.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{OrderStatus, TimestampMs, rfc3339};
use crate::domain::fact::{
    OrderCancelled, OrderConfirmed, OrderExpired, OrderPlaced, PendingLine, PlacedLine,
};

/// An order. Amounts in won.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(title = "Order", as = Order)]
pub struct OrderView {
    pub order_id: Uuid,
    #[schema(example = "user-1")]
    pub user_id: String,
    pub status: OrderStatus,
    pub items: Vec<OrderItemView>,
    /// The sum of the items' amounts.
    #[schema(minimum = 0, example = 70_000)]
    pub subtotal: u64,
    /// What the coupon took off.
    #[schema(minimum = 0, example = 1_000)]
    pub discount: u64,
    /// What the order costs: `subtotal - discount`.
    #[schema(minimum = 0, example = 69_000)]
    pub total: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub coupon_id: Option<Uuid>,
    /// The orderer's balance right after the order's last change: its payment, its confirmation or
    /// what was given back.
    #[schema(minimum = 0, maximum = 1_000_000, example = 71_000)]
    pub balance: u64,
    #[schema(format = DateTime, example = "2026-11-22T09:00:00.000Z")]
    pub ordered_at: String,
    /// When it was cancelled; absent unless it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime, nullable = false, example = "2026-11-22T09:05:00.000Z")]
    pub cancelled_at: Option<String>,
    /// The shop's own order number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "2026-000123")]
    pub reference: Option<String>,
    #[serde(flatten)]
    pub outside: Option<OutsideView>,
}

/// What an order has besides that is not paid from the wallet alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(title = "PaidOutside", as = PaidOutside)]
pub struct OutsideView {
    pub payment: PaymentMethod,
    /// Taken from the wallet when the order was placed.
    #[schema(minimum = 0, example = 0)]
    pub wallet_amount: u64,
    /// To be paid outside: `total - wallet_amount`.
    #[schema(minimum = 0, example = 69_000)]
    pub amount_due: u64,
    /// From then on, the order cannot be confirmed. Absent if nothing was due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime, nullable = false, example = "2026-11-22T09:10:00.000Z")]
    pub hold_expires_at: Option<String>,
    /// When the payment outside was confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime, nullable = false, example = "2026-11-22T09:02:00.000Z")]
    pub paid_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "card-7f3a91")]
    pub payment_reference: Option<String>,
    /// When the hold ended and everything was given back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime, nullable = false, example = "2026-11-22T09:10:00.000Z")]
    pub expired_at: Option<String>,
    /// Of a cancelled order that was paid outside: what the shop has to give back there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 0, example = 69_000)]
    pub refund_due: Option<u64>,
}

/// How an order is paid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PaymentMethod {
    /// From the prepaid wallet, at once.
    #[default]
    Wallet,
    /// Outside, for instance by card, while the order is pending.
    External,
}

/// One product of an order, with its name and price as they were when it was ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(title = "OrderItem", as = OrderItem)]
pub struct OrderItemView {
    #[schema(example = "tumbler")]
    pub product_id: String,
    #[schema(example = "Tumbler, limited edition")]
    pub name: String,
    #[schema(minimum = 100, example = 35_000)]
    pub unit_price: u64,
    #[schema(minimum = 1, maximum = 1_000, example = 2)]
    pub quantity: u64,
    /// `unit_price × quantity`.
    #[schema(minimum = 100, example = 70_000)]
    pub amount: u64,
    /// The limit per user that the line counts for; not shown.
    #[serde(skip)]
    #[schema(ignore)]
    pub limit_number: Option<u64>,
}

impl From<&PendingLine> for OrderItemView {
    fn from(line: &PendingLine) -> Self {
        Self {
            product_id: line.product_id.clone(),
            name: line.name.clone(),
            unit_price: line.unit_price,
            quantity: line.quantity,
            amount: line.amount,
            limit_number: line.limit_number,
        }
    }
}

impl From<&PlacedLine> for OrderItemView {
    fn from(line: &PlacedLine) -> Self {
        Self {
            product_id: line.product_id.clone(),
            name: line.name.clone(),
            unit_price: line.unit_price,
            quantity: line.quantity,
            amount: line.amount,
            limit_number: None,
        }
    }
}

impl From<&OrderPlaced> for OrderView {
    fn from(placed: &OrderPlaced) -> Self {
        let outside = placed.more.as_ref().and_then(|more| more.outside);
        let pending = outside.is_some_and(|outside| outside.hold_expires_at.is_some());
        Self {
            order_id: placed.order_id.0,
            user_id: placed.user_id.clone(),
            status: if pending { OrderStatus::Pending } else { OrderStatus::Paid },
            items: placed.lines.iter().map(OrderItemView::from).collect(),
            subtotal: placed.subtotal,
            discount: placed.discount,
            total: placed.total,
            coupon_id: placed.coupon_id.map(|id| id.0),
            balance: placed.balance_after,
            ordered_at: rfc3339(placed.ordered_at),
            cancelled_at: None,
            reference: placed.more.as_ref().and_then(|more| more.reference.clone()),
            outside: outside
                .map(|it| OutsideView::new(placed.total, it.wallet_amount, it.hold_expires_at)),
        }
    }
}

impl From<&OrderConfirmed> for OrderView {
    fn from(confirmed: &OrderConfirmed) -> Self {
        let order = &confirmed.order;
        let outside =
            OutsideView::new(order.total, order.wallet_amount, Some(order.hold_expires_at));
        Self {
            order_id: confirmed.order_id.0,
            user_id: order.user_id.clone(),
            status: OrderStatus::Paid,
            items: order.lines.iter().map(OrderItemView::from).collect(),
            subtotal: order.subtotal,
            discount: order.discount,
            total: order.total,
            coupon_id: order.coupon_id.map(|id| id.0),
            balance: confirmed.balance_after,
            ordered_at: rfc3339(order.ordered_at),
            cancelled_at: None,
            reference: order.reference.clone(),
            outside: Some(OutsideView {
                paid_at: Some(rfc3339(confirmed.paid_at)),
                payment_reference: Some(confirmed.payment_reference.clone()),
                ..outside
            }),
        }
    }
}

impl OutsideView {
    /// Of an order right after it was placed.
    pub fn new(total: u64, wallet_amount: u64, hold_expires_at: Option<TimestampMs>) -> Self {
        Self {
            payment: PaymentMethod::External,
            wallet_amount,
            amount_due: total.saturating_sub(wallet_amount),
            hold_expires_at: hold_expires_at.map(rfc3339),
            paid_at: None,
            payment_reference: None,
            expired_at: None,
            refund_due: None,
        }
    }
}

impl OrderView {
    /// What was taken from the wallet.
    pub fn wallet_amount(&self) -> u64 {
        self.outside.as_ref().map_or(self.total, |outside| outside.wallet_amount)
    }

    /// Won that were paid outside by now; `None`: the order is paid from the wallet alone.
    pub fn paid_outside(&self) -> Option<u64> {
        let outside = self.outside.as_ref()?;
        Some(if outside.paid_at.is_some() { outside.amount_due } else { 0 })
    }

    /// The same order after its cancellation.
    pub fn cancelled(self, cancelled: &OrderCancelled) -> Self {
        let paid_outside = self.paid_outside();
        let outside = self.outside.map(|outside| OutsideView {
            refund_due: paid_outside.filter(|won| *won > 0),
            ..outside
        });
        Self {
            status: OrderStatus::Cancelled,
            balance: cancelled.balance_after,
            cancelled_at: Some(rfc3339(cancelled.cancelled_at)),
            outside,
            ..self
        }
    }

    /// The same order after the end of its hold.
    pub fn expired(self, expired: &OrderExpired) -> Self {
        let at = Some(rfc3339(expired.expired_at));
        let outside = self.outside.map(|outside| OutsideView { expired_at: at, ..outside });
        let (status, balance) = (OrderStatus::Expired, expired.balance_after);
        Self { status, balance, outside, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::wire::Id;

    fn placed() -> OrderPlaced {
        OrderPlaced {
            order_id: Id(Uuid::from_u128(7)),
            user_id: "u".into(),
            lines: vec![PlacedLine {
                product_id: "mug".into(),
                name: "Mug".into(),
                unit_price: 15_000,
                quantity: 2,
                amount: 30_000,
                stock_after: 3,
            }],
            subtotal: 30_000,
            discount: 3_000,
            total: 27_000,
            coupon_id: None,
            balance_after: 73_000,
            ordered_at: 0,
            idempotency: None,
            more: None,
        }
    }

    #[test]
    fn an_order_shows_what_was_paid_and_leaves_out_what_it_has_not() {
        let json = serde_json::to_value(OrderView::from(&placed())).unwrap();
        assert_eq!(json["status"], "paid");
        assert_eq!(json["order_id"], "00000000-0000-0000-0000-000000000007");
        assert_eq!(json["items"][0]["amount"], 30_000);
        assert_eq!(json["ordered_at"], "1970-01-01T00:00:00.000Z");
        assert!(json.get("coupon_id").is_none());
        assert!(json.get("cancelled_at").is_none());
    }

    #[test]
    fn cancelling_changes_status_balance_and_time_only() {
        let paid = OrderView::from(&placed());
        let cancelled = paid.clone().cancelled(&OrderCancelled {
            order_id: Id(paid.order_id),
            user_id: "u".into(),
            lines: vec![],
            refund: 27_000,
            coupon_id: None,
            coupon_returned: false,
            balance_after: 100_000,
            cancelled_at: 1_000,
            idempotency: None,
            more: None,
        });
        assert_eq!(cancelled.status, OrderStatus::Cancelled);
        assert_eq!((cancelled.balance, cancelled.total), (100_000, 27_000));
        assert_eq!(cancelled.cancelled_at.as_deref(), Some("1970-01-01T00:00:01.000Z"));
        assert_eq!(cancelled.items, paid.items);
    }
}
