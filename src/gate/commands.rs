//! The gate's commands: each becomes a MessagePack body, is decided by its script, and updates what
//! this instance remembers (sold-out verdicts, decisions that PostgreSQL does not have yet).

use std::time::Instant;

use uuid::Uuid;

use super::Gate;
use super::batch::FlatLines;
use super::idempotency::{KeyedRequest, record_key};
use super::refusal::{
    CancelRefusal, ChargeRefusal, ConfirmRefusal, Decision, GateError, IssueRefusal, OrderRefusal,
    ProductRefusal, StockRefusal, TemplateRefusal,
};
use super::request::{
    AdjustStock, CancelOrder, ChargeWallet, ConfirmOrder, IdempotencyKey, IssueCoupon, PayOutside,
    PlaceOrder, PutProduct, PutTemplate,
};
use super::unconfirmed_decisions::DecisionId;
use super::verdict::{decide, decide_traced};
use crate::domain::Line;
use crate::domain::fact::{
    CouponIssued, OrderCancelled, OrderConfirmed, OrderPlaced, ProductPut, StockAdjusted,
    TemplatePut, WalletCharged,
};
use crate::domain::limits::MAX_STOCK;
use crate::domain::wire::Id;

impl Gate {
    pub async fn issue_coupon(
        &self,
        request: IssueCoupon,
        key: Option<IdempotencyKey>,
        deadline: Instant,
    ) -> Decision<CouponIssued, IssueRefusal> {
        let template = request.template_id.as_str();
        if key.is_none() && self.sold_out_templates.refuses([template].into_iter()).is_some() {
            self.queues_of(&request.user_id).issue_coupon.metrics.remembered_sold_out();
            return Ok(Err(IssueRefusal::SoldOut));
        }
        let queues = self.queues_of(&request.user_id);
        let wanted = (template, request.user_id.as_str());
        let key = key.map(|key| record_key("issue_coupon", &key, &wanted));
        let asked = Instant::now();
        let decision =
            decide(&queues.issue_coupon, &(wanted.0, wanted.1, Id::new()), key, deadline).await;
        queues.note(&decision, |issued: &CouponIssued| DecisionId::Coupon(issued.coupon_id.0));
        match &decision {
            Ok(Err(IssueRefusal::SoldOut)) => self.sold_out_templates.remember(template, asked),
            Ok(Ok(_)) => self.sold_out_templates.forget(template),
            _ => {}
        }
        decision
    }

    pub async fn charge_wallet(
        &self,
        request: ChargeWallet,
        key: Option<IdempotencyKey>,
        deadline: Instant,
    ) -> Decision<WalletCharged, ChargeRefusal> {
        let queues = self.queues_of(&request.user_id);
        let wanted = (request.user_id.as_str(), request.amount);
        let key = key.map(|key| record_key("charge_wallet", &key, &wanted));
        let decision =
            decide(&queues.charge_wallet, &(wanted.0, wanted.1, Id::new()), key, deadline).await;
        // The ledger has no row for a charge of 0, so PostgreSQL cannot confirm it.
        if request.amount > 0 {
            queues.note(&decision, |charged: &WalletCharged| DecisionId::Charge {
                charge_id: charged.charge_id.0,
                user_id: charged.user_id.as_str().into(),
            });
        }
        decision
    }

    /// Stores the record of a key for a request that changes nothing else in the gate; from then on
    /// the key belongs to that request. The record is logged as a charge of 0, which every version
    /// can apply. The time in the answer is that of the key's first use.
    pub async fn use_key(
        &self,
        key: &IdempotencyKey,
        request: KeyedRequest<'_>,
        deadline: Instant,
    ) -> Decision<WalletCharged, ChargeRefusal> {
        let record = request.record(key);
        let body = (key.user.as_str(), 0_u64, Id::new());
        decide(&self.queues_of(&key.user).charge_wallet, &body, Some(record), deadline).await
    }

    /// `request.lines` must be merged: each product once.
    pub fn place_order(
        &self,
        request: PlaceOrder,
        key: Option<IdempotencyKey>,
        deadline: Instant,
    ) -> impl Future<Output = Decision<OrderPlaced, OrderRefusal>> {
        // No future of its own: the handler's would hold both.
        self.place_order_as(None, request, key, deadline)
    }

    /// The same with an id that the caller has chosen, for the demo's order. It must be new:
    /// PostgreSQL would refuse a second order with the id, which halts the cell.
    pub async fn place_order_as(
        &self,
        order_id: Option<Uuid>,
        request: PlaceOrder,
        key: Option<IdempotencyKey>,
        deadline: Instant,
    ) -> Decision<OrderPlaced, OrderRefusal> {
        let products = || request.lines.iter().map(|line| line.product_id.as_str());
        if key.is_none()
            && let Some(product) = self.sold_out_products.refuses(products())
        {
            self.queues_of(&request.user_id).place_order.metrics.remembered_sold_out();
            return Ok(Err(OrderRefusal::InsufficientStock(product.to_owned(), 0)));
        }
        let queues = self.queues_of(&request.user_id);
        let coupon = request.coupon_id.map(Id);
        let user = request.user_id.as_str();
        let more = more_of(&request);
        let key = key.map(|key| {
            let wanted = (user, packed_lines(&request.lines), coupon, request.expected_total);
            match &more {
                None => record_key("place_order", &key, &wanted),
                Some(more) => record_key("place_order", &key, &(wanted, more)),
            }
        });
        let order_id = match order_id {
            Some(id) => Id(id),
            // Lists of orders are sorted by id.
            None => queues.new_order_id().await,
        };
        let body =
            (order_id, user, FlatLines(&request.lines), coupon, request.expected_total, &more);
        let asked = Instant::now();
        let decision =
            decide_traced(&queues.place_order, order_id, &body, request.lines.len(), key, deadline)
                .await;
        queues.note(&decision, |placed: &OrderPlaced| DecisionId::Order(placed.order_id.0));
        match &decision {
            Ok(Err(OrderRefusal::InsufficientStock(product, 0))) => {
                self.sold_out_products.remember(product, asked)
            }
            Ok(Err(OrderRefusal::InsufficientStock(product, _))) => {
                self.sold_out_products.forget(product)
            }
            // the script checks balance and price after stock, so there is stock
            Ok(
                Ok(_) | Err(OrderRefusal::InsufficientBalance(..) | OrderRefusal::PriceChanged(_)),
            ) => products().for_each(|product| self.sold_out_products.forget(product)),
            _ => {}
        }
        decision
    }

    pub async fn cancel_order(
        &self,
        request: CancelOrder,
        key: Option<IdempotencyKey>,
        deadline: Instant,
    ) -> Decision<OrderCancelled, CancelRefusal> {
        let queues = self.queues_of(&request.user_id);
        let lines = FlatLines(&request.lines);
        let order = Id(request.order_id);
        let key = key.map(|key| KeyedRequest::CancelOrder(request.order_id).record(&key));
        let coupon = request.coupon_id.map(Id);
        let limits: Option<Vec<u64>> = request
            .limit_numbers
            .iter()
            .any(Option::is_some)
            .then(|| request.limit_numbers.iter().map(|number| number.unwrap_or(0)).collect());
        let body = (
            order,
            request.user_id.as_str(),
            lines,
            request.refund,
            coupon,
            limits,
            request.read_in_epoch,
            request.was_pending,
            request.paid_outside,
        );
        let decision =
            decide_traced(&queues.cancel_order, order, &body, request.lines.len(), key, deadline)
                .await;
        queues.note(&decision, |cancelled: &OrderCancelled| {
            DecisionId::Cancellation(cancelled.order_id.0)
        });
        if let Ok(Ok(_)) = &decision {
            request.lines.iter().for_each(|l| self.sold_out_products.forget(l.product_id.as_str()));
        }
        decision
    }

    /// The gate alone decides, so a payment can be confirmed while PostgreSQL is away.
    pub async fn confirm_order(
        &self,
        request: &ConfirmOrder,
        key: Option<IdempotencyKey>,
        deadline: Instant,
    ) -> Decision<OrderConfirmed, ConfirmRefusal> {
        let order = Id(request.order_id);
        let key = key.map(|key| KeyedRequest::ConfirmOrder(request).record(&key));
        let body = (order, request.payment_reference.as_str());
        let mut decision = Err(GateError::Unavailable("there is no cell".into()));
        // Only the order's own cell knows it.
        for queues in &self.cells {
            decision =
                decide_traced(&queues.confirm_order, order, &body, 1, key.clone(), deadline).await;
            queues.note(&decision, |confirmed: &OrderConfirmed| {
                DecisionId::Confirmation(confirmed.order_id.0)
            });
            if !matches!(decision, Ok(Err(ConfirmRefusal::NotPending))) {
                break;
            }
        }
        decision
    }

    pub async fn put_product(
        &self,
        request: PutProduct,
        deadline: Instant,
    ) -> Decision<ProductPut, ProductRefusal> {
        let id = request.product_id.as_str();
        let rules = &request.rules;
        let packed_rules = (!rules.is_empty()).then_some((
            rules.sale_from,
            rules.sale_until,
            rules.per_user_limit,
            &rules.attributes,
        ));
        let body = (id, &request.name, request.price, request.status, request.stock, packed_rules);
        let queues = self.shop_queues();
        let decision = decide(&queues.put_product, &body, None, deadline).await;
        queues.note(&decision, |_: &ProductPut| {
            DecisionId::Staff(format!("product {id} put").into())
        });
        decision
    }

    pub async fn adjust_stock(
        &self,
        request: AdjustStock,
        key: Option<IdempotencyKey>,
        deadline: Instant,
    ) -> Decision<StockAdjusted, StockRefusal> {
        let id = request.product_id.as_str();
        let wanted = (id, request.delta, &request.reason);
        let key = key.map(|key| record_key("adjust_stock", &key, &wanted));
        let body = (id, request.delta, &request.reason, MAX_STOCK);
        let queues = self.shop_queues();
        let decision = decide(&queues.adjust_stock, &body, key, deadline).await;
        let made = |it: &StockAdjusted| {
            DecisionId::Staff(format!("stock of {id} adjusted by {}", it.delta).into())
        };
        queues.note(&decision, made);
        if let Ok(Ok(_)) = &decision {
            self.sold_out_products.forget(id);
        }
        decision
    }

    pub async fn put_template(
        &self,
        request: PutTemplate,
        deadline: Instant,
    ) -> Decision<TemplatePut, TemplateRefusal> {
        let id = request.template_id.as_str();
        let (discount, min) = (request.discount, request.min_subtotal);
        let terms = (
            &request.name,
            discount.type_name(),
            discount.value(),
            discount.max(),
            min,
            request.max_issued,
            request.issue_from,
            request.issue_until,
        );
        let queues = self.shop_queues();
        let decision = decide(&queues.put_template, &(id, terms), None, deadline).await;
        queues.note(&decision, |_: &TemplatePut| {
            DecisionId::Staff(format!("coupon template {id} put").into())
        });
        if let Ok(Ok(_)) = &decision {
            self.sold_out_templates.forget(id);
        }
        decision
    }
}

/// A reference, and of an order that is paid outside: won to take from the wallet, milliseconds of
/// the hold, most pending orders of the user.
type More<'a> = (Option<&'a str>, Option<(u64, u64, u64)>);

/// What `lua/place_order.lua` gets of an order that is not paid from the wallet alone, or has a
/// reference.
fn more_of(request: &PlaceOrder) -> Option<More<'_>> {
    let outside = request.outside.map(|outside| {
        let PayOutside { wallet_amount, hold_ms, pending_limit } = outside;
        (wallet_amount, hold_ms, pending_limit)
    });
    let reference = request.reference.as_deref();
    (reference.is_some() || outside.is_some()).then_some((reference, outside))
}

fn packed_lines(lines: &[Line]) -> Vec<(&str, u64)> {
    lines.iter().map(|line| (line.product_id.as_str(), line.quantity)).collect()
}
