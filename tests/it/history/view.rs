//! The answers that the model would give: its state and facts in the form of the API (docs/api.md).

use std::collections::HashMap;

use rushgate::domain::fact::TemplateTerms;
use rushgate::domain::wire::Id;
use rushgate::domain::{OrderStatus, SaleRules, rfc3339};
use rushgate::gate::{
    CancelRefusal, ChargeRefusal, ConfirmRefusal, IssueRefusal, OrderRefusal, ProductRefusal,
    StockRefusal, TemplateRefusal,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::model::{CouponTerms, Fact, Order, PENDING_LIMIT, PayOutside, Refusal, Request, Shop};
use super::record::{Ask, Operation, PAGE};
use crate::cluster::HttpAnswer;

/// Whether `found` has every member of `expected` with an equal value. Lists must have equal
/// lengths.
pub fn contains(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => expected.iter().all(|(name, value)| {
            let found = found.get(name).unwrap_or(&Value::Null);
            contains(found, value)
        }),
        (Value::Array(found), Value::Array(expected)) => {
            found.len() == expected.len() && found.iter().zip(expected).all(|(f, e)| contains(f, e))
        }
        _ => found == expected,
    }
}

/// Members that are new in 0.2: an earlier version answers without them.
const LATER_MEMBERS: [&str; 4] = ["discount", "min_subtotal", "serial", "state"];

/// Whether the answer tells what is expected.
pub fn tells(operation: &Operation, answer: &HttpAnswer, expected: &Value) -> bool {
    if !operation.earlier {
        return contains(&answer.body, expected);
    }
    contains(&answer.body, &without_later_members(&answer.body, expected))
}

/// `expected` without the later members that `found` does not have.
fn without_later_members(found: &Value, expected: &Value) -> Value {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => expected
            .iter()
            .filter(|(name, _)| {
                found.contains_key(*name) || !LATER_MEMBERS.contains(&name.as_str())
            })
            .map(|(name, value)| {
                let found = found.get(name).unwrap_or(&Value::Null);
                (name.clone(), without_later_members(found, value))
            })
            .collect(),
        (Value::Array(found), Value::Array(expected)) if found.len() == expected.len() => {
            found.iter().zip(expected).map(|(f, e)| without_later_members(f, e)).collect()
        }
        _ => expected.clone(),
    }
}

/// The id in a success answer.
pub fn id_of(answer: &HttpAnswer) -> String {
    let names = ["order_id", "coupon_id", "charge_id", "id", "product_id"];
    names.iter().find_map(|name| answer.body[*name].as_str()).unwrap_or("unnamed").to_owned()
}

pub fn order(order: &Order) -> Value {
    let placed = &order.placed;
    let items: Vec<Value> = placed
        .lines
        .iter()
        .map(|l| {
            json!({ "product_id": l.product_id, "name": l.name, "unit_price": l.unit_price,
                "quantity": l.quantity, "amount": l.amount })
        })
        .collect();
    let (confirmed, cancelled) = (order.confirmed.as_ref(), order.cancelled.as_ref());
    let balance = cancelled
        .map(|c| c.balance_after)
        .or(order.expired.as_ref().map(|e| e.balance_after))
        .or(confirmed.map(|c| c.balance_after))
        .unwrap_or(placed.balance_after);
    let outside = order.outside();
    json!({
        "order_id": placed.order_id.to_string(), "user_id": placed.user_id, "items": items,
        "status": order.status().as_str(),
        "subtotal": placed.subtotal, "discount": placed.discount, "total": placed.total,
        "coupon_id": placed.coupon_id.map(|id| id.to_string()),
        "balance": balance,
        "ordered_at": rfc3339(placed.ordered_at),
        "cancelled_at": cancelled.map(|c| rfc3339(c.cancelled_at)),
        "reference": placed.more.as_ref().and_then(|more| more.reference.clone()),
        "payment": outside.map(|_| "external"),
        "wallet_amount": outside.map(|outside| outside.wallet_amount),
        "amount_due": outside.map(|outside| placed.total - outside.wallet_amount),
        "hold_expires_at": order.hold_expires_at().map(rfc3339),
        "paid_at": confirmed.map(|c| rfc3339(c.paid_at)),
        "payment_reference": confirmed.map(|c| c.payment_reference.clone()),
        "expired_at": order.expired.as_ref().map(|e| rfc3339(e.expired_at)),
        "refund_due": cancelled.and(order.paid_outside()).filter(|won| *won > 0),
    })
}

/// The terms of coupons by their number, and the number of each template.
#[derive(Debug, Default)]
pub struct KnownTerms {
    terms: HashMap<u64, CouponTerms>,
    templates: HashMap<String, u64>,
}

impl KnownTerms {
    /// Terms that coupons were issued with never change, so those that were put last under a number
    /// are those of its coupons.
    pub fn of<'a>(facts: impl Iterator<Item = &'a Fact>) -> Self {
        let mut known = Self::default();
        for fact in facts {
            if let Fact::TemplatePut(f) = fact {
                known.templates.insert(f.template_id.clone(), f.number);
                let number = f.terms_number.unwrap_or(f.number);
                known.terms.insert(number, CouponTerms::from(&f.terms));
            }
        }
        known
    }

    fn find(&self, template_id: &str, number: Option<u64>) -> Option<&CouponTerms> {
        self.terms.get(&number.or_else(|| self.templates.get(template_id).copied())?)
    }
}

fn discount(terms: &CouponTerms) -> Value {
    json!({ "type": terms.discount_type, "value": terms.discount_value,
        "max": terms.discount_max })
}

fn product_rules(rules: &SaleRules) -> Value {
    let attributes: Option<Value> =
        rules.attributes.as_deref().map(|text| serde_json::from_str(text).unwrap());
    json!({ "sale_from": rules.sale_from.map(rfc3339), "sale_until": rules.sale_until.map(rfc3339),
        "per_user_limit": rules.per_user_limit, "attributes": attributes })
}

/// Both objects in one.
fn joined(mut first: Value, second: Value) -> Value {
    if let (Value::Object(members), Value::Object(more)) = (&mut first, second) {
        members.extend(more);
    }
    first
}

/// The members that the answer to an accepted request must have. `before` is the order that was
/// cancelled or confirmed, as it was until then.
pub fn success(fact: &Fact, before: Option<Order>, terms: &KnownTerms) -> Value {
    match fact {
        Fact::CouponIssued(f) => {
            let issued = json!({ "coupon_id": f.coupon_id.to_string(),
                "template_id": f.template_id, "user_id": f.user_id, "serial": f.serial,
                "status": "available", "issued_at": rfc3339(f.issued_at),
                "expires_at": rfc3339(f.expires_at) });
            match terms.find(&f.template_id, f.terms_number) {
                Some(terms) => {
                    let more = json!({ "discount": discount(terms),
                        "min_subtotal": terms.min_subtotal });
                    joined(issued, more)
                }
                None => issued,
            }
        }
        Fact::WalletCharged(f) => {
            json!({ "charge_id": f.charge_id.to_string(), "user_id": f.user_id,
            "amount": f.amount, "balance": f.balance_after, "charged_at": rfc3339(f.charged_at) })
        }
        Fact::OrderPlaced(f) => order(&Order::new(f.clone())),
        Fact::OrderCancelled(f) => match before {
            Some(before) => order(&Order { cancelled: Some(f.clone()), ..before }),
            None => json!({ "order_id": f.order_id.to_string(), "status": "cancelled" }),
        },
        Fact::OrderConfirmed(f) => match before {
            Some(before) => order(&Order { confirmed: Some(f.clone()), ..before }),
            None => json!({ "order_id": f.order_id.to_string(), "status": "paid" }),
        },
        Fact::OrderExpired(f) => json!({ "order_id": f.order_id.to_string(), "status": "expired" }),
        Fact::ProductPut(f) => {
            let put = json!({ "id": f.product_id, "name": f.name, "price": f.price,
                "status": f.status.as_str(), "stock": f.stock_after });
            let (Request::PutProduct { rules, .. }, ..) = super::model::request_of(fact) else {
                return put;
            };
            joined(put, product_rules(&rules))
        }
        Fact::StockAdjusted(f) => {
            json!({ "product_id": f.product_id, "delta": f.delta, "stock": f.stock_after })
        }
        Fact::TemplatePut(f) => json!({ "id": f.template_id, "name": f.terms.name,
            "max_issued": f.terms.max_issued, "issued": f.issued,
            "remaining": f.terms.max_issued - f.issued }),
    }
}

/// Whether this state explains the answer: the read matches, or the request is refused like this at
/// one of `times`.
pub fn holds(shop: &Shop, operation: &Operation, times: [i64; 2]) -> bool {
    let Some(answer) = operation.answer() else { return false };
    if operation.ask.is_read() {
        return match read(shop, &operation.ask) {
            Some(expected) => answer.status == 200 && tells(operation, answer, &expected),
            None => answer.status == 404,
        };
    }
    if operation.key.is_none()
        && may_be_remembered(answer)
        && remembered(shop, &operation.ask, answer)
    {
        return true;
    }
    times.into_iter().any(|now| {
        refused(shop, &operation.ask, now).is_some_and(|problem| contains(&answer.body, &problem))
    })
}

/// How the request would be refused in this state.
fn refused(shop: &Shop, ask: &Ask, now: i64) -> Option<Value> {
    match ask {
        Ask::Confirm { order, reference } => not_confirmed(shop.orders.get(order), reference, now),
        ask => request(ask).and_then(|request| shop.refusal(&request, now)).map(|r| problem(&r)),
    }
}

fn not_confirmed(order: Option<&Order>, reference: &str, now: i64) -> Option<Value> {
    let Some(order) = order else { return Some(json!({ "code": "order-not-found" })) };
    let ends_at = order.hold_expires_at();
    let expired = json!({ "code": "hold-expired", "hold_expires_at": ends_at.map(rfc3339) });
    match order.status() {
        OrderStatus::Pending => ends_at.is_some_and(|at| now >= at).then_some(expired),
        OrderStatus::Expired => Some(expired),
        OrderStatus::Cancelled => Some(json!({ "code": "order-cancelled" })),
        OrderStatus::Paid => {
            let paid = order.confirmed.as_ref().map(|confirmed| &confirmed.payment_reference);
            (paid.is_none_or(|paid| paid != reference))
                .then(|| json!({ "code": "already-confirmed", "payment_reference": paid }))
        }
    }
}

/// What this state would answer; printed with a violation.
pub fn now(shop: &Shop, operation: &Operation, time: i64) -> Value {
    if operation.ask.is_read() {
        return read(shop, &operation.ask).unwrap_or_default();
    }
    refused(shop, &operation.ask, time).unwrap_or(json!("accepted"))
}

/// Instances may answer these refusals from memory.
pub fn may_be_remembered(answer: &HttpAnswer) -> bool {
    answer.code() == "sold-out"
        || answer.code() == "insufficient-stock" && answer.body["available"] == 0
}

/// The sold-out memory checks nothing except what was sold out.
fn remembered(shop: &Shop, ask: &Ask, answer: &HttpAnswer) -> bool {
    match ask {
        Ask::Issue { template, .. } => {
            shop.templates.get(template).is_some_and(|t| t.issued >= t.terms.max_issued)
        }
        Ask::Order { lines, .. } | Ask::Hold { lines, .. } => {
            answer.body["product_id"].as_str().is_some_and(|product| {
                lines.iter().any(|(named, _)| named == product)
                    && shop.products.get(product).is_some_and(|p| p.stock == 0)
            })
        }
        _ => false,
    }
}

fn read(shop: &Shop, ask: &Ask) -> Option<Value> {
    Some(match ask {
        Ask::Wallet(user) => {
            json!({ "user_id": user, "balance": shop.wallets.get(user).copied().unwrap_or(0) })
        }
        Ask::Product(id) => {
            let p = shop.products.get(id)?;
            let product = json!({ "id": id, "name": p.name, "price": p.price, "stock": p.stock,
                "status": p.status.as_str() });
            joined(product, product_rules(&p.rules))
        }
        Ask::Template(id) => {
            let t = shop.templates.get(id)?;
            json!({ "id": id, "name": t.terms.name, "max_issued": t.terms.max_issued, "issued": t.issued,
                "remaining": t.terms.max_issued - t.issued })
        }
        Ask::Coupons(user) => json!({ "data": coupons(shop, user) }),
        Ask::GetOrder(id) => order(shop.orders.get(id)?),
        Ask::Orders(user) => {
            let all = shop.orders_of.get(user).into_iter().flatten().rev().take(PAGE);
            let all = all.map(|id| order(&shop.orders[id]));
            json!({ "data": all.collect::<Vec<_>>() })
        }
        Ask::Entries(user) => {
            let all = shop.ledgers.get(user).into_iter().flatten().rev().take(PAGE);
            let all = all.map(|line| {
                json!({ "kind": line.kind, "amount": line.amount, "balance": line.balance_after,
                    "ref_id": line.ref_id.to_string(), "at": rfc3339(line.at) })
            });
            json!({ "data": all.collect::<Vec<_>>() })
        }
        _ => return None,
    })
}

fn coupons(shop: &Shop, user: &str) -> Vec<Value> {
    let mut ids: Vec<Id> = shop.coupons_of.get(user).into_iter().flatten().copied().collect();
    ids.sort_by_key(|id| std::cmp::Reverse((shop.coupons[id].issued_at, *id)));
    ids.iter()
        .take(PAGE)
        .map(|id| {
            let coupon = &shop.coupons[id];
            let terms = shop.templates[&coupon.template_id].terms_of(coupon.terms_number);
            json!({ "discount": discount(terms), "min_subtotal": terms.min_subtotal,
            "serial": coupon.serial, "coupon_id": id.to_string(), "template_id": coupon.template_id,
            "name": shop.templates[&coupon.template_id].terms.name,
            "status": if coupon.order_id.is_some() { "used" } else { "available" },
            "issued_at": rfc3339(coupon.issued_at),
            "order_id": coupon.order_id.map(|id| id.to_string()) })
        })
        .collect()
}

/// The request as the model takes it. The ids of a possible success do not matter here.
fn request(ask: &Ask) -> Option<Request> {
    let new = Id(Uuid::nil());
    Some(match ask.clone() {
        Ask::Issue { template, user } => {
            Request::IssueCoupon { template_id: template, user_id: user, coupon_id: new }
        }
        Ask::Charge { user, amount } => {
            Request::ChargeWallet { user_id: user, amount, charge_id: new }
        }
        Ask::Order { user, lines, coupon, expected_total } => Request::PlaceOrder {
            user_id: user,
            lines,
            coupon_id: coupon,
            expected_total,
            reference: None,
            outside: None,
            order_id: new,
        },
        Ask::Hold { user, lines, coupon, wallet_amount, hold_secs, reference } => {
            let (hold_ms, pending_limit) = (hold_secs * 1_000, PENDING_LIMIT);
            Request::PlaceOrder {
                user_id: user,
                lines,
                coupon_id: coupon,
                expected_total: None,
                reference,
                outside: Some(PayOutside { wallet_amount, hold_ms, pending_limit }),
                order_id: new,
            }
        }
        Ask::Cancel { order } => Request::CancelOrder { order_id: order },
        Ask::Adjust { product, delta, reason } => Request::AdjustStock {
            product_id: product,
            delta,
            reason: Some(reason),
            highest: rushgate::domain::limits::MAX_STOCK,
        },
        Ask::PutTemplate { template, body } => Request::PutTemplate {
            template_id: template,
            terms: TemplateTerms {
                name: String::new(),
                discount_type: "amount".into(),
                discount_value: 1,
                discount_max: None,
                min_subtotal: 0,
                max_issued: body["max_issued"].as_u64()?,
                issue_from: 0,
                issue_until: 1,
            },
        },
        _ => return None,
    })
}

/// A refusal in the API's form: its code and the helpful members.
fn problem(refusal: &Refusal) -> Value {
    match refusal.clone() {
        Refusal::Issue(IssueRefusal::UnknownTemplate) => {
            json!({ "code": "coupon-template-not-found" })
        }
        Refusal::Issue(IssueRefusal::AlreadyIssued(id)) => {
            json!({ "code": "already-issued", "coupon_id": id.to_string() })
        }
        Refusal::Issue(IssueRefusal::NotOpenBefore(_)) => json!({ "code": "issuance-not-open" }),
        Refusal::Issue(IssueRefusal::ClosedSince(_)) => json!({ "code": "issuance-closed" }),
        Refusal::Issue(IssueRefusal::SoldOut) => json!({ "code": "sold-out" }),
        Refusal::Charge(ChargeRefusal::BalanceLimit(balance))
        | Refusal::Cancel(CancelRefusal::BalanceLimit(balance)) => {
            json!({ "code": "balance-limit-exceeded", "balance": balance })
        }
        Refusal::Order(refusal) => order_problem(&refusal),
        Refusal::Cancel(CancelRefusal::AlreadyCancelled | CancelRefusal::StaleRead) => {
            json!({ "code": "an answer, not a refusal" })
        }
        // It has expired: see `Shop::cancel`.
        Refusal::Cancel(CancelRefusal::NotPending) => json!({ "code": "hold-expired" }),
        Refusal::Cancel(_) => json!({ "code": "order-not-found" }),
        // Only the order's state tells the answer: see `not_confirmed`.
        Refusal::Confirm(ConfirmRefusal::HoldExpired(_) | ConfirmRefusal::NotPending)
        | Refusal::Expire(_) => json!({ "code": "not an answer to a client" }),
        Refusal::Product(ProductRefusal::StockGiven) => json!({ "code": "invalid-field" }),
        Refusal::Stock(StockRefusal::UnknownProduct) => json!({ "code": "product-not-found" }),
        Refusal::Stock(StockRefusal::BelowZero(available)) => {
            json!({ "code": "stock-below-zero", "available": available })
        }
        Refusal::Stock(StockRefusal::TooHigh(_)) => json!({ "code": "invalid-field" }),
        Refusal::Template(TemplateRefusal::LimitBelowIssued(issued)) => {
            json!({ "code": "limit-below-issued", "issued": issued })
        }
        Refusal::Template(TemplateRefusal::TooManyTerms) => {
            json!({ "code": "invalid-field", "field": "discount" })
        }
    }
}

fn order_problem(refusal: &OrderRefusal) -> Value {
    match refusal {
        OrderRefusal::UnknownProduct(id) => {
            json!({ "code": "product-not-found", "product_id": id })
        }
        OrderRefusal::NotOnSale(id) => json!({ "code": "product-not-on-sale", "product_id": id }),
        OrderRefusal::SaleNotOpen(id, from) => {
            json!({ "code": "sale-not-open", "product_id": id, "sale_from": rfc3339(*from) })
        }
        OrderRefusal::SaleEnded(id, until) => {
            json!({ "code": "sale-ended", "product_id": id, "sale_until": rfc3339(*until) })
        }
        OrderRefusal::PurchaseLimit(id, limit, bought, requested) => {
            json!({ "code": "purchase-limit-exceeded", "product_id": id, "limit": limit,
                "bought": bought, "requested": requested })
        }
        OrderRefusal::WalletAmountAbove(_) => {
            json!({ "code": "invalid-field", "field": "wallet_amount" })
        }
        OrderRefusal::TooManyPending(limit) => {
            json!({ "code": "too-many-pending", "limit": limit })
        }
        OrderRefusal::InsufficientStock(id, available) => {
            json!({ "code": "insufficient-stock", "product_id": id, "available": available })
        }
        OrderRefusal::UnknownCoupon => json!({ "code": "coupon-not-found" }),
        OrderRefusal::CouponUsed => json!({ "code": "coupon-not-available" }),
        OrderRefusal::CouponExpired(_) => json!({ "code": "coupon-expired" }),
        OrderRefusal::SubtotalTooLow(required, subtotal) => {
            json!({ "code": "subtotal-too-low", "required": required, "subtotal": subtotal })
        }
        OrderRefusal::PriceChanged(total) => json!({ "code": "price-changed", "total": total }),
        OrderRefusal::InsufficientBalance(balance, total) => {
            json!({ "code": "insufficient-balance", "balance": balance, "required": total })
        }
    }
}
