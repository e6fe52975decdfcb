//! The JSON form of an order: the same in every answer of the API and in the events for the data
//! platform.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{OrderStatus, rfc3339};
use crate::domain::fact::{OrderCancelled, OrderPlaced, PlacedLine};

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
    /// What was paid: `subtotal - discount`.
    #[schema(minimum = 0, example = 69_000)]
    pub total: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub coupon_id: Option<Uuid>,
    /// The orderer's balance right after the order's last change: its payment or its refund.
    #[schema(minimum = 0, maximum = 1_000_000, example = 71_000)]
    pub balance: u64,
    #[schema(format = DateTime, example = "2026-11-22T09:00:00.000Z")]
    pub ordered_at: String,
    /// When it was cancelled; absent while it is paid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime, nullable = false, example = "2026-11-22T09:05:00.000Z")]
    pub cancelled_at: Option<String>,
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
}

impl From<&PlacedLine> for OrderItemView {
    fn from(line: &PlacedLine) -> Self {
        Self {
            product_id: line.product_id.clone(),
            name: line.name.clone(),
            unit_price: line.unit_price,
            quantity: line.quantity,
            amount: line.amount,
        }
    }
}

impl From<&OrderPlaced> for OrderView {
    fn from(placed: &OrderPlaced) -> Self {
        Self {
            order_id: placed.order_id.0,
            user_id: placed.user_id.clone(),
            status: OrderStatus::Paid,
            items: placed.lines.iter().map(OrderItemView::from).collect(),
            subtotal: placed.subtotal,
            discount: placed.discount,
            total: placed.total,
            coupon_id: placed.coupon_id.map(|id| id.0),
            balance: placed.balance_after,
            ordered_at: rfc3339(placed.ordered_at),
            cancelled_at: None,
        }
    }
}

impl OrderView {
    /// The same order after its cancellation.
    pub fn cancelled(self, cancelled: &OrderCancelled) -> Self {
        Self {
            status: OrderStatus::Cancelled,
            balance: cancelled.balance_after,
            cancelled_at: Some(rfc3339(cancelled.cancelled_at)),
            ..self
        }
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
        });
        assert_eq!(cancelled.status, OrderStatus::Cancelled);
        assert_eq!((cancelled.balance, cancelled.total), (100_000, 27_000));
        assert_eq!(cancelled.cancelled_at.as_deref(), Some("1970-01-01T00:00:01.000Z"));
        assert_eq!(cancelled.items, paid.items);
    }
}
