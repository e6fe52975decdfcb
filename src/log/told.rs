//! What a client was told about a fact: its kind, whose it is, the ids and amounts of the answer. For people and files; no
//! idempotency key is shown.

use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::fact::{
    CouponIssued, Facts, Idempotency, OrderCancelled, OrderPlaced, ProductPut, StockAdjusted, TemplatePut,
    WalletCharged,
};
use crate::domain::rfc3339;

/// A fact of any kind.
pub trait Told: Clone + PartialEq + Serialize {
    const KIND: &'static str;
    fn user_id(&self) -> Option<&str> {
        None
    }
    /// Of what was made, or changed.
    fn id(&self) -> Option<Uuid> {
        None
    }
    fn idempotency(&self) -> Option<&Idempotency>;
    /// What the answer said.
    fn told(&self) -> Value;
}

impl Told for CouponIssued {
    const KIND: &'static str = "coupon";
    fn user_id(&self) -> Option<&str> {
        Some(&self.user_id)
    }
    fn id(&self) -> Option<Uuid> {
        Some(self.coupon_id.0)
    }
    fn idempotency(&self) -> Option<&Idempotency> {
        self.idempotency.as_ref()
    }
    fn told(&self) -> Value {
        json!({
            "coupon_id": self.coupon_id.0, "template_id": self.template_id, "serial": self.serial,
            "issued_at": rfc3339(self.issued_at), "expires_at": rfc3339(self.expires_at),
        })
    }
}

impl Told for WalletCharged {
    const KIND: &'static str = "charge";
    fn user_id(&self) -> Option<&str> {
        Some(&self.user_id)
    }
    fn id(&self) -> Option<Uuid> {
        Some(self.charge_id.0)
    }
    fn idempotency(&self) -> Option<&Idempotency> {
        self.idempotency.as_ref()
    }
    fn told(&self) -> Value {
        json!({
            "charge_id": self.charge_id.0, "amount": self.amount, "balance": self.balance_after,
            "charged_at": rfc3339(self.charged_at),
        })
    }
}

impl Told for OrderPlaced {
    const KIND: &'static str = "order";
    fn user_id(&self) -> Option<&str> {
        Some(&self.user_id)
    }
    fn id(&self) -> Option<Uuid> {
        Some(self.order_id.0)
    }
    fn idempotency(&self) -> Option<&Idempotency> {
        self.idempotency.as_ref()
    }
    fn told(&self) -> Value {
        let items: Vec<Value> = self
            .lines
            .iter()
            .map(|line| json!({ "product_id": line.product_id, "quantity": line.quantity, "amount": line.amount }))
            .collect();
        json!({
            "order_id": self.order_id.0, "items": items, "subtotal": self.subtotal, "discount": self.discount,
            "total": self.total, "coupon_id": self.coupon_id.map(|id| id.0), "balance": self.balance_after,
            "ordered_at": rfc3339(self.ordered_at),
        })
    }
}

impl Told for OrderCancelled {
    const KIND: &'static str = "cancellation";
    fn user_id(&self) -> Option<&str> {
        Some(&self.user_id)
    }
    fn id(&self) -> Option<Uuid> {
        Some(self.order_id.0)
    }
    fn idempotency(&self) -> Option<&Idempotency> {
        self.idempotency.as_ref()
    }
    fn told(&self) -> Value {
        json!({
            "order_id": self.order_id.0, "refund": self.refund, "coupon_id": self.coupon_id.map(|id| id.0),
            "coupon_returned": self.coupon_returned, "balance": self.balance_after,
            "cancelled_at": rfc3339(self.cancelled_at),
        })
    }
}

impl Told for ProductPut {
    const KIND: &'static str = "product";
    fn idempotency(&self) -> Option<&Idempotency> {
        self.idempotency.as_ref()
    }
    fn told(&self) -> Value {
        json!({
            "product_id": self.product_id, "name": self.name, "price": self.price, "status": self.status.as_str(),
            "stock": self.stock_after, "created": self.created,
        })
    }
}

impl Told for StockAdjusted {
    const KIND: &'static str = "stock";
    fn idempotency(&self) -> Option<&Idempotency> {
        self.idempotency.as_ref()
    }
    fn told(&self) -> Value {
        json!({
            "product_id": self.product_id, "delta": self.delta, "reason": self.reason, "stock": self.stock_after,
        })
    }
}

impl Told for TemplatePut {
    const KIND: &'static str = "template";
    fn idempotency(&self) -> Option<&Idempotency> {
        self.idempotency.as_ref()
    }
    fn told(&self) -> Value {
        json!({
            "template_id": self.template_id, "name": self.terms.name, "max_issued": self.terms.max_issued,
            "issued": self.issued, "created": self.created,
        })
    }
}

/// One fact of an entry as it was told.
#[derive(Clone, Debug, PartialEq)]
pub struct ToldFact {
    pub kind: &'static str,
    pub user_id: Option<String>,
    pub id: Option<Uuid>,
    pub keyed: bool,
    pub told: Value,
}

impl ToldFact {
    /// Whoever asked stands in the idempotency record where the fact is nobody's own.
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

impl Facts {
    pub fn len(&self) -> usize {
        match self {
            Self::CouponsIssued(all) => all.len(),
            Self::WalletsCharged(all) => all.len(),
            Self::OrdersPlaced(all) => all.len(),
            Self::OrdersCancelled(all) => all.len(),
            Self::ProductsPut(all) => all.len(),
            Self::StocksAdjusted(all) => all.len(),
            Self::TemplatesPut(all) => all.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps the first `len` facts.
    pub fn truncate(&mut self, len: usize) {
        match self {
            Self::CouponsIssued(all) => all.truncate(len),
            Self::WalletsCharged(all) => all.truncate(len),
            Self::OrdersPlaced(all) => all.truncate(len),
            Self::OrdersCancelled(all) => all.truncate(len),
            Self::ProductsPut(all) => all.truncate(len),
            Self::StocksAdjusted(all) => all.truncate(len),
            Self::TemplatesPut(all) => all.truncate(len),
        }
    }

    /// What was told of each, in their order.
    pub fn told(&self) -> Vec<ToldFact> {
        fn all<T: Told>(facts: &[T]) -> Vec<ToldFact> {
            facts.iter().map(ToldFact::new).collect()
        }
        match self {
            Self::CouponsIssued(facts) => all(facts),
            Self::WalletsCharged(facts) => all(facts),
            Self::OrdersPlaced(facts) => all(facts),
            Self::OrdersCancelled(facts) => all(facts),
            Self::ProductsPut(facts) => all(facts),
            Self::StocksAdjusted(facts) => all(facts),
            Self::TemplatesPut(facts) => all(facts),
        }
    }
}
