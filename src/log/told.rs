//! Facts as they were answered, for people and reports: the kind, the user, the ids and amounts.
//! Idempotency keys are left out, because they are secrets.
//!
//! [`Told`] gives each kind of fact its answer; [`ToldFact`] is one fact of any kind.

use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::domain::fact::{
    CouponIssued, Facts, Idempotency, OrderCancelled, OrderConfirmed, OrderExpired, OrderExtras,
    OrderPlaced, PlacedLine, ProductPut, StockAdjusted, TemplatePut, WalletCharged,
};
use crate::domain::rfc3339;

/// A kind of fact.
pub trait Told: Clone + PartialEq + Serialize {
    const KIND: &'static str;
    fn user_id(&self) -> Option<&str> {
        None
    }
    /// The id of what was created or changed.
    fn id(&self) -> Option<Uuid> {
        None
    }
    fn idempotency(&self) -> Option<&Idempotency>;
    /// The answer's members.
    fn told(&self) -> Value;
}

/// Implements [`Told`]: the kind, the fields of user and id (if it has them), the answer's members.
macro_rules! told {
    ($fact:ident, $kind:literal $(, user: $user:ident, id: $id:ident)?; |$it:ident| $told:tt) => {
        impl Told for $fact {
            const KIND: &'static str = $kind;
            $(
                fn user_id(&self) -> Option<&str> {
                    Some(&self.$user)
                }
                fn id(&self) -> Option<Uuid> {
                    Some(self.$id.0)
                }
            )?
            fn idempotency(&self) -> Option<&Idempotency> {
                self.idempotency.as_ref()
            }
            fn told(&self) -> Value {
                let $it = self;
                json!($told)
            }
        }
    };
}

told!(CouponIssued, "coupon", user: user_id, id: coupon_id; |it| {
    "coupon_id": it.coupon_id.0, "template_id": it.template_id, "serial": it.serial,
    "issued_at": rfc3339(it.issued_at), "expires_at": rfc3339(it.expires_at),
});

told!(WalletCharged, "charge", user: user_id, id: charge_id; |it| {
    "charge_id": it.charge_id.0, "amount": it.amount, "balance": it.balance_after,
    "charged_at": rfc3339(it.charged_at),
});

told!(OrderPlaced, "order", user: user_id, id: order_id; |it| {
    "order_id": it.order_id.0, "items": items(&it.lines), "subtotal": it.subtotal, "discount": it.discount,
    "total": it.total, "coupon_id": it.coupon_id.map(|id| id.0), "balance": it.balance_after,
    "ordered_at": rfc3339(it.ordered_at), "paid_outside": it.more.as_ref().map(more_of_order),
});

told!(OrderCancelled, "cancellation", user: user_id, id: order_id; |it| {
    "order_id": it.order_id.0, "refund": it.refund, "coupon_id": it.coupon_id.map(|id| id.0),
    "coupon_returned": it.coupon_returned, "balance": it.balance_after,
    "cancelled_at": rfc3339(it.cancelled_at),
});

told!(OrderExpired, "expiry", user: user_id, id: order_id; |it| {
    "order_id": it.order_id.0, "refund": it.refund, "coupon_id": it.coupon_id.map(|id| id.0),
    "coupon_returned": it.coupon_returned, "balance": it.balance_after,
    "expired_at": rfc3339(it.expired_at),
});

impl Told for OrderConfirmed {
    const KIND: &'static str = "confirmation";
    fn user_id(&self) -> Option<&str> {
        Some(&self.order.user_id)
    }
    fn id(&self) -> Option<Uuid> {
        Some(self.order_id.0)
    }
    fn idempotency(&self) -> Option<&Idempotency> {
        self.idempotency.as_ref()
    }
    fn told(&self) -> Value {
        json!({
            "order_id": self.order_id.0, "payment_reference": self.payment_reference,
            "total": self.order.total, "amount_due": self.order.amount_due(),
            "balance": self.balance_after, "paid_at": rfc3339(self.paid_at),
        })
    }
}

told!(ProductPut, "product"; |it| {
    "product_id": it.product_id, "name": it.name, "price": it.price, "status": it.status.as_str(),
    "stock": it.stock_after, "created": it.created,
});

told!(StockAdjusted, "stock"; |it| {
    "product_id": it.product_id, "delta": it.delta, "reason": it.reason, "stock": it.stock_after,
});

told!(TemplatePut, "template"; |it| {
    "template_id": it.template_id, "name": it.terms.name, "max_issued": it.terms.max_issued,
    "issued": it.issued, "created": it.created,
});

fn more_of_order(more: &OrderExtras) -> Value {
    json!({
        "reference": more.reference,
        "wallet_amount": more.outside.map(|outside| outside.wallet_amount),
        "hold_expires_at": more.outside.and_then(|it| it.hold_expires_at).map(rfc3339),
    })
}

fn items(lines: &[PlacedLine]) -> Vec<Value> {
    let item = |PlacedLine { product_id, quantity, amount, .. }: &PlacedLine| json!({ "product_id": product_id, "quantity": quantity, "amount": amount });
    lines.iter().map(item).collect()
}

/// One fact of an entry, as it was answered.
#[derive(Clone, Debug, PartialEq)]
pub struct ToldFact {
    pub kind: &'static str,
    pub user_id: Option<String>,
    pub id: Option<Uuid>,
    /// Whether the request had an idempotency key.
    pub keyed: bool,
    pub told: Value,
}

impl ToldFact {
    /// Facts of staff name no user; their idempotency record has the one who sent the request.
    pub fn new<T: Told>(fact: &T) -> Self {
        let asked_by = || Some(fact.idempotency()?.scope.split(' ').next()?.to_owned());
        Self {
            kind: T::KIND,
            user_id: fact.user_id().map(str::to_owned).or_else(asked_by),
            id: fact.id(),
            keyed: fact.idempotency().is_some(),
            told: fact.told(),
        }
    }
}

/// Evaluates an expression on the list of facts, whatever their kind.
macro_rules! of_any_kind {
    ($facts:expr, $all:ident => $do:expr) => {
        match $facts {
            Facts::CouponsIssued($all) => $do,
            Facts::WalletsCharged($all) => $do,
            Facts::OrdersPlaced($all) => $do,
            Facts::OrdersCancelled($all) => $do,
            Facts::OrdersConfirmed($all) => $do,
            Facts::OrdersExpired($all) => $do,
            Facts::ProductsPut($all) => $do,
            Facts::StocksAdjusted($all) => $do,
            Facts::TemplatesPut($all) => $do,
        }
    };
}

impl Facts {
    pub fn len(&self) -> usize {
        of_any_kind!(self, all => all.len())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps the first `len` facts.
    pub fn truncate(&mut self, len: usize) {
        of_any_kind!(self, all => all.truncate(len));
    }

    /// The answers, in the order of the facts.
    pub fn told(&self) -> Vec<ToldFact> {
        of_any_kind!(self, all => all.iter().map(ToldFact::new).collect())
    }
}
