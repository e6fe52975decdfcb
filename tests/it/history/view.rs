//! The answers that the model would give: its state and facts in the form of the API (docs/api.md).

use rushgate::domain::fact::{OrderCancelled, OrderPlaced, TemplateTerms};
use rushgate::domain::rfc3339;
use rushgate::domain::wire::Id;
use rushgate::gate::{
    CancelRefusal, ChargeRefusal, IssueRefusal, OrderRefusal, ProductRefusal, StockRefusal,
    TemplateRefusal,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::model::{Fact, Refusal, Request, Shop};
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

/// The id in a success answer.
pub fn id_of(answer: &HttpAnswer) -> String {
    let names = ["order_id", "coupon_id", "charge_id", "id", "product_id"];
    names.iter().find_map(|name| answer.body[*name].as_str()).unwrap_or("unnamed").to_owned()
}

pub fn order(placed: &OrderPlaced, cancelled: Option<&OrderCancelled>) -> Value {
    let items: Vec<Value> = placed
        .lines
        .iter()
        .map(|l| {
            json!({ "product_id": l.product_id, "name": l.name, "unit_price": l.unit_price,
                "quantity": l.quantity, "amount": l.amount })
        })
        .collect();
    json!({
        "order_id": placed.order_id.to_string(), "user_id": placed.user_id, "items": items,
        "status": if cancelled.is_some() { "cancelled" } else { "paid" },
        "subtotal": placed.subtotal, "discount": placed.discount, "total": placed.total,
        "coupon_id": placed.coupon_id.map(|id| id.to_string()),
        "balance": cancelled.map_or(placed.balance_after, |c| c.balance_after),
        "ordered_at": rfc3339(placed.ordered_at),
        "cancelled_at": cancelled.map(|c| rfc3339(c.cancelled_at)),
    })
}

/// The members that the answer to an accepted request must have. `original` is the order that was
/// cancelled.
pub fn success(fact: &Fact, original: Option<&Fact>) -> Value {
    match (fact, original) {
        (Fact::CouponIssued(f), _) => json!({ "coupon_id": f.coupon_id.to_string(),
            "template_id": f.template_id, "user_id": f.user_id, "serial": f.serial, "status": "available",
            "issued_at": rfc3339(f.issued_at), "expires_at": rfc3339(f.expires_at) }),
        (Fact::WalletCharged(f), _) => {
            json!({ "charge_id": f.charge_id.to_string(), "user_id": f.user_id,
            "amount": f.amount, "balance": f.balance_after, "charged_at": rfc3339(f.charged_at) })
        }
        (Fact::OrderPlaced(f), _) => order(f, None),
        (Fact::OrderCancelled(f), Some(Fact::OrderPlaced(placed))) => order(placed, Some(f)),
        (Fact::OrderCancelled(f), _) => {
            json!({ "order_id": f.order_id.to_string(), "status": "cancelled" })
        }
        (Fact::ProductPut(f), _) => json!({ "id": f.product_id, "name": f.name, "price": f.price,
            "status": f.status.as_str(), "stock": f.stock_after }),
        (Fact::StockAdjusted(f), _) => {
            json!({ "product_id": f.product_id, "delta": f.delta, "stock": f.stock_after })
        }
        (Fact::TemplatePut(f), _) => json!({ "id": f.template_id, "name": f.terms.name,
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
            Some(expected) => answer.status == 200 && contains(&answer.body, &expected),
            None => answer.status == 404,
        };
    }
    if operation.key.is_none()
        && may_be_remembered(answer)
        && remembered(shop, &operation.ask, answer)
    {
        return true;
    }
    let Some(request) = request(&operation.ask) else { return false };
    times.into_iter().any(|now| {
        shop.refusal(&request, now)
            .is_some_and(|refusal| contains(&answer.body, &problem(&refusal)))
    })
}

/// What this state would answer; printed with a violation.
pub fn now(shop: &Shop, operation: &Operation, time: i64) -> Value {
    if operation.ask.is_read() {
        return read(shop, &operation.ask).unwrap_or_default();
    }
    let refusal = request(&operation.ask).and_then(|request| shop.refusal(&request, time));
    refusal.map_or(json!("accepted"), |refusal| problem(&refusal))
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
        Ask::Order { lines, .. } => answer.body["product_id"].as_str().is_some_and(|product| {
            lines.iter().any(|(named, _)| named == product)
                && shop.products.get(product).is_some_and(|p| p.stock == 0)
        }),
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
            json!({ "id": id, "name": p.name, "price": p.price, "stock": p.stock, "status": p.status.as_str() })
        }
        Ask::Template(id) => {
            let t = shop.templates.get(id)?;
            json!({ "id": id, "name": t.terms.name, "max_issued": t.terms.max_issued, "issued": t.issued,
                "remaining": t.terms.max_issued - t.issued })
        }
        Ask::Coupons(user) => json!({ "data": coupons(shop, user) }),
        Ask::GetOrder(id) => {
            let known = shop.orders.get(id)?;
            order(&known.placed, known.cancelled.as_ref())
        }
        Ask::Orders(user) => {
            let all = shop.orders_of.get(user).into_iter().flatten().rev().take(PAGE);
            let all =
                all.map(|id| &shop.orders[id]).map(|o| order(&o.placed, o.cancelled.as_ref()));
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
            json!({ "coupon_id": id.to_string(), "template_id": coupon.template_id,
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
            order_id: new,
        },
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
        Refusal::Cancel(_) => json!({ "code": "order-not-found" }),
        Refusal::Product(ProductRefusal::StockGiven) => json!({ "code": "invalid-field" }),
        Refusal::Stock(StockRefusal::UnknownProduct) => json!({ "code": "product-not-found" }),
        Refusal::Stock(StockRefusal::BelowZero(available)) => {
            json!({ "code": "stock-below-zero", "available": available })
        }
        Refusal::Stock(StockRefusal::TooHigh(_)) => json!({ "code": "invalid-field" }),
        Refusal::Template(TemplateRefusal::LimitBelowIssued(issued)) => {
            json!({ "code": "limit-below-issued", "issued": issued })
        }
    }
}

fn order_problem(refusal: &OrderRefusal) -> Value {
    match refusal {
        OrderRefusal::UnknownProduct(id) => {
            json!({ "code": "product-not-found", "product_id": id })
        }
        OrderRefusal::NotOnSale(id) => json!({ "code": "product-not-on-sale", "product_id": id }),
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
