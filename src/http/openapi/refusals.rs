//! The refusals of each operation: its row of [`REFUSALS`], and those of all operations of its
//! kind.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::problems;
use crate::http::problem::Code;

/// The refusals of each operation, besides those of its kind (see [`of_its_kind`]).
pub const REFUSALS: &[(&str, &[Code])] = {
    use Code::*;
    &[
        ("list_products", &[GateUnavailable]),
        ("get_product", &[ProductNotFound, GateUnavailable]),
        ("put_product", &[TruthUnavailable]),
        ("adjust_stock", &[ProductNotFound, StockBelowZero]),
        ("get_popular", &[GateUnavailable, TruthUnavailable]),
        ("refresh_popular", &[TruthUnavailable]),
        ("get_wallet", &[UserNotFound, GateUnavailable]),
        ("charge_wallet", &[UserNotFound, BalanceLimitExceeded]),
        ("list_entries", &[UserNotFound, GateUnavailable, TruthUnavailable]),
        ("list_templates", &[GateUnavailable]),
        ("get_template", &[CouponTemplateNotFound, GateUnavailable]),
        ("put_template", &[LimitBelowIssued]),
        (
            "issue_coupon",
            &[
                UserNotFound,
                CouponTemplateNotFound,
                AlreadyIssued,
                IssuanceNotOpen,
                IssuanceClosed,
                SoldOut,
                TruthUnavailable,
            ],
        ),
        ("list_holders", &[CouponTemplateNotFound, GateUnavailable, TruthUnavailable]),
        ("list_coupons", &[UserNotFound, GateUnavailable]),
        (
            "place_order",
            &[
                UserNotFound,
                ProductNotFound,
                CouponNotFound,
                ProductNotOnSale,
                SaleNotOpen,
                SaleEnded,
                PurchaseLimitExceeded,
                TooManyPending,
                InsufficientStock,
                InsufficientBalance,
                CouponNotAvailable,
                CouponExpired,
                SubtotalTooLow,
                PriceChanged,
            ],
        ),
        ("search_orders", &[GateUnavailable, TruthUnavailable]),
        ("get_order", &[OrderNotFound, GateUnavailable, TruthUnavailable]),
        ("cancel_order", &[OrderNotFound, BalanceLimitExceeded, HoldExpired, TruthUnavailable]),
        (
            "confirm_order",
            &[OrderNotFound, AlreadyConfirmed, HoldExpired, OrderCancelled, TruthUnavailable],
        ),
        ("quote_order", &[UserNotFound, GateUnavailable]),
        ("list_orders", &[UserNotFound, GateUnavailable, TruthUnavailable]),
        ("watch", &[]),
        ("get_status", &[]),
        ("get_metrics", &[]),
        ("list_audits", &[]),
        ("start_audit", &[TruthUnavailable]),
    ]
};

/// Adds an operation's refusals. `decides`: it calls the gate's deciding scripts.
pub fn add(operation: &mut Value, decides: bool) {
    let id = operation["operationId"].as_str().unwrap_or_default();
    let own = REFUSALS.iter().find(|(name, _)| *name == id).map_or(&[][..], |(_, codes)| *codes);
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in own.iter().copied().chain(of_its_kind(operation, decides)) {
        let codes = by_status.entry(code.status().as_u16()).or_default();
        if !codes.contains(&code) {
            codes.push(code);
        }
    }
    for (status, codes) in by_status {
        operation["responses"][status.to_string()] = response(status, &codes);
    }
}

pub fn takes_key(operation: &Value) -> bool {
    operation["parameters"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|it| it["name"] == "Idempotency-Key")
}

fn of_its_kind(operation: &Value, decides: bool) -> Vec<Code> {
    let has_key = takes_key(operation);
    // Every route refuses unknown query parameters.
    let mut codes = vec![
        Code::InternalError,
        Code::MalformedRequest,
        Code::InvalidField,
        Code::RateLimited,
        Code::Overloaded,
    ];
    if operation.get("security").is_some() {
        codes.extend([Code::Unauthenticated, Code::Forbidden]);
    }
    if operation.get("requestBody").is_some() || has_key {
        codes.extend([Code::RequestTimeout, Code::BodyTooLarge, Code::UnsupportedMediaType]);
    }
    if has_key {
        codes.push(Code::IdempotencyKeyReused);
    }
    if decides {
        codes.extend([Code::GateUnavailable, Code::BacklogFull, Code::OutcomeUnknown]);
    }
    codes
}

fn response(status: u16, codes: &[Code]) -> Value {
    let texts: Vec<String> = codes.iter().map(|code| format!("`{}`", code.as_str())).collect();
    let examples: serde_json::Map<String, Value> = codes
        .iter()
        .map(|code| (code.as_str().to_owned(), problems::example_reference(*code)))
        .collect();
    let mut response = json!({
        "description": texts.join(", "),
        "content": { "application/problem+json": { "schema": problems::one_of(codes), "examples": examples } },
    });
    let header =
        |kind: &str, about: &str| json!({ "schema": { "type": kind }, "description": about });
    match status {
        401 => {
            response["headers"] = json!({ "WWW-Authenticate": header("string", "`Bearer`; with `error=\"invalid_token\"` if there was a token") })
        }
        429 => {
            response["headers"] = json!({
                "Retry-After": header("integer", "Seconds to wait"),
                "RateLimit": header("string", "What is left of the quota, such as `\"user\";r=0;t=10`"),
                "RateLimit-Policy": header("string", "The quota, such as `\"user\";q=200;w=10`"),
            });
        }
        503 => response["headers"] = json!({ "Retry-After": header("integer", "Seconds to wait") }),
        _ => {}
    }
    response
}
