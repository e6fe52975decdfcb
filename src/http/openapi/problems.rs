//! A schema for each refusal code with its members, and an example of each, made by the service's
//! own code.

use std::borrow::Cow;

use serde_json::{Map, Value, json};
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

use crate::domain::wire::Id;
use crate::domain::{Line, ProductId, TemplateId, rfc3339};
use crate::gate::{
    CancelRefusal, GateError, IssueRefusal, OrderRefusal, StockRefusal, TemplateRefusal,
};
use crate::http::problem::{Code, NoToken, Problem};
use crate::http::refusals;

/// The schema of any refusal.
pub struct AnyProblem;

impl PartialSchema for AnyProblem {
    fn schema() -> RefOr<Schema> {
        Ref::from_schema_name("Problem").into()
    }
}

impl ToSchema for AnyProblem {
    fn name() -> Cow<'static, str> {
        "Problem".into()
    }
}

/// Adds the schema of each code, `Problem` as any one of them, and the examples.
pub fn add_components(components: &mut Value) {
    components["schemas"]["Problem"] = one_of(Code::ALL);
    components["schemas"]["Problem"]["description"] =
        json!("A refusal (RFC 9457). `code` says which, and so which members there are.");
    for code in Code::ALL {
        components["schemas"][schema_name(*code)] = schema(*code);
        components["examples"][code.as_str()] =
            json!({ "summary": code.title(), "value": example(*code) });
    }
}

/// One of these refusals, distinguished by `code`.
pub fn one_of(codes: &[Code]) -> Value {
    if let [code] = codes {
        return reference(*code);
    }
    let mapping: Map<String, Value> = codes
        .iter()
        .map(|code| (code.as_str().to_owned(), reference(*code)["$ref"].clone()))
        .collect();
    json!({
        "oneOf": codes.iter().map(|code| reference(*code)).collect::<Vec<Value>>(),
        "discriminator": { "propertyName": "code", "mapping": mapping },
    })
}

pub fn example_reference(code: Code) -> Value {
    json!({ "$ref": format!("#/components/examples/{}", code.as_str()) })
}

fn schema_name(code: Code) -> String {
    format!("{code:?}Problem")
}

fn reference(code: Code) -> Value {
    json!({ "$ref": format!("#/components/schemas/{}", schema_name(code)) })
}

fn schema(code: Code) -> Value {
    let mut properties = json!({
        "type": { "type": "string", "enum": [format!("/problems/{}", code.as_str())] },
        "title": { "type": "string" },
        "status": { "type": "integer", "enum": [code.status().as_u16()] },
        "detail": { "type": "string", "description": "What happened and what to do, for people." },
        "code": { "type": "string", "enum": [code.as_str()] },
    });
    for name in code.members().iter().chain(code.optional_members()) {
        properties[*name] = member(name);
    }
    let always = ["type", "title", "status", "detail", "code"];
    let required: Vec<&str> = always.iter().chain(code.members()).copied().collect();
    json!({
        "type": "object",
        "title": schema_name(code),
        "description": format!("{}.", code.title()),
        "required": required,
        "properties": properties,
    })
}

/// An extra member; it means the same for every code that has it.
fn member(name: &str) -> Value {
    let number = |about: &str| json!({ "type": "integer", "minimum": 0, "description": about });
    let time =
        |about: &str| json!({ "type": "string", "format": "date-time", "description": about });
    match name {
        "field" => json!({
            "type": "string",
            "description": "The member, parameter or header at fault, such as `items[0].quantity`; empty: the whole body.",
        }),
        "reason" => json!({
            "type": "string",
            "enum": NoToken::ALL,
            "description": "`missing`: there is no token; `expired`: get a new one; `invalid`: it is not accepted here.",
        }),
        "product_id" | "template_id" => json!({ "$ref": "#/components/schemas/ShopId" }),
        "coupon_id" => json!({ "type": "string", "format": "uuid" }),
        "available" => number("Pieces that there are."),
        "required" => number("What is needed: pieces of the product, or won."),
        "balance" => number("What the wallet holds, in won."),
        "limit" => {
            number("The limit: of the wallet in won, of pieces per user, or of pending orders.")
        }
        "bought" => number("Pieces that the user has bought, in pending and paid orders."),
        "requested" => number("Pieces of the product in this order."),
        "sale_from" => time("When the sale begins."),
        "sale_until" => time("When the sale ended."),
        "hold_expires_at" => time("Until when the order was held."),
        "payment_reference" => json!({
            "type": "string",
            "description": "The payment with which the order was confirmed.",
        }),
        "subtotal" => number("The order's subtotal, in won."),
        "total" => number("The order's total as it is now, in won."),
        "issued" => number("Coupons issued so far."),
        "issue_from" => time("When coupons will be issued."),
        "issue_until" => time("Until when coupons were issued."),
        "expired_at" => time("When the coupon expired."),
        "retry_after" => {
            number("Seconds to wait before trying again, as in the header `Retry-After`.")
        }
        _ => json!({}),
    }
}

/// A refusal that a client of the demo could get.
fn example(code: Code) -> Problem {
    let coupon = Uuid::from_u128(0x0193_9e5a_7c2f_7b3e_9d54_8a1c_6f2e_0b47);
    let coupon_refused = |refusal: OrderRefusal| refusals::order(refusal, &[], Some(coupon));
    let order_refused = |refusal| {
        let tumbler = ProductId::parse("tumbler").ok();
        let lines: Vec<Line> =
            tumbler.map(|product_id| Line { product_id, quantity: 2 }).into_iter().collect();
        refusals::order(refusal, &lines, None)
    };
    let not_issued = |refusal, template: &str| match TemplateId::parse(template) {
        Ok(id) => refusals::issue(refusal, &id),
        Err(_) => Problem::internal(),
    };
    let tumbler = || "tumbler".to_owned();
    // 2026-11-22T09:00:00Z
    let at_ms = 1_795_338_000_000;
    match code {
        Code::MalformedRequest => Problem::malformed(
            "The body is not JSON: EOF while parsing an object at line 1 column 1.",
        ),
        Code::Unauthenticated => {
            Problem::unauthenticated(NoToken::Expired, "The token has expired: get a new one.")
        }
        Code::Forbidden => Problem::new(code, "This needs a token with scope admin."),
        Code::ProductNotFound => refusals::no_product("teapot"),
        Code::CouponTemplateNotFound => not_issued(IssueRefusal::UnknownTemplate, "farewell"),
        Code::CouponNotFound => coupon_refused(OrderRefusal::UnknownCoupon),
        Code::OrderNotFound => Problem::no_such_order(),
        Code::UserNotFound => Problem::no_such_user(),
        Code::RouteNotFound => Problem::new(code, "There is no such route; see /docs."),
        Code::MethodNotAllowed => {
            Problem::new(code, "This route does not know the method; see the header Allow.")
        }
        Code::RequestTimeout => Problem::new(code, "The body did not arrive within 10 seconds."),
        Code::SoldOut => not_issued(IssueRefusal::SoldOut, "rush-100"),
        Code::AlreadyIssued => not_issued(IssueRefusal::AlreadyIssued(Id(coupon)), "welcome"),
        Code::IssuanceNotOpen => not_issued(IssueRefusal::NotOpenBefore(at_ms), "rush-100"),
        Code::IssuanceClosed => not_issued(IssueRefusal::ClosedSince(at_ms), "rush-100"),
        Code::InsufficientStock => order_refused(OrderRefusal::InsufficientStock(tumbler(), 1)),
        Code::InsufficientBalance => {
            order_refused(OrderRefusal::InsufficientBalance(31_000, 70_000))
        }
        Code::BalanceLimitExceeded => {
            refusals::cancel(CancelRefusal::BalanceLimit(940_000), 70_000)
        }
        Code::ProductNotOnSale => order_refused(OrderRefusal::NotOnSale(tumbler())),
        Code::SaleNotOpen => order_refused(OrderRefusal::SaleNotOpen(tumbler(), at_ms)),
        Code::SaleEnded => order_refused(OrderRefusal::SaleEnded(tumbler(), at_ms)),
        Code::PurchaseLimitExceeded => {
            order_refused(OrderRefusal::PurchaseLimit(tumbler(), 2, 1, 2))
        }
        Code::TooManyPending => order_refused(OrderRefusal::TooManyPending(5)),
        Code::HoldExpired => refusals::hold_expired(rfc3339(at_ms)),
        Code::AlreadyConfirmed => refusals::already_confirmed(Some("card-7f3a91")),
        Code::OrderCancelled => refusals::order_cancelled(),
        Code::CouponNotAvailable => coupon_refused(OrderRefusal::CouponUsed),
        Code::CouponExpired => coupon_refused(OrderRefusal::CouponExpired(at_ms)),
        Code::SubtotalTooLow => coupon_refused(OrderRefusal::SubtotalTooLow(30_000, 9_000)),
        Code::PriceChanged => order_refused(OrderRefusal::PriceChanged(70_000)),
        Code::StockBelowZero => match ProductId::parse("tumbler") {
            Ok(id) => refusals::stock(&StockRefusal::BelowZero(2), &id, -3),
            Err(_) => Problem::internal(),
        },
        Code::LimitBelowIssued => match TemplateId::parse("rush-100") {
            Ok(id) => refusals::template(&TemplateRefusal::LimitBelowIssued(100), &id),
            Err(_) => Problem::internal(),
        },
        Code::BodyTooLarge => Problem::new(code, "The body may have at most 16384 bytes."),
        Code::UnsupportedMediaType => {
            Problem::new(code, "Send the body as JSON, with `Content-Type: application/json`.")
        }
        Code::InvalidField => Problem::invalid("expand", "this query parameter is not known"),
        Code::IdempotencyKeyReused => GateError::IdempotencyKeyReused.into(),
        Code::RateLimited => Problem::new(
            code,
            "This user sends too many requests; nothing was changed. Wait for Retry-After.",
        )
        .retry_after(3),
        Code::InternalError => Problem::internal(),
        Code::GateUnavailable => GateError::Unavailable(String::new()).into(),
        Code::Overloaded => GateError::Overloaded.into(),
        Code::BacklogFull => GateError::BacklogFull.into(),
        Code::OutcomeUnknown => GateError::OutcomeUnknown.into(),
        Code::TruthUnavailable => {
            Problem::new(code, "PostgreSQL does not answer. Try again shortly.")
        }
    }
}
