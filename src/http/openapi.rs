//! The OpenAPI description: generated from the handlers' attributes, then completed with every refusal that a route
//! can answer, so that those stand in one table and follow the one mapping of [`super::problem`].

use std::collections::BTreeMap;

use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::path::{Operation, ParameterIn};
use utoipa::openapi::schema::{AllOfBuilder, ObjectBuilder, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, ContentBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{PartialSchema, ToSchema};

use super::fields::ShopId;
use super::problem::{Code, ProblemBody};

const ABOUT: &str = "First-come coupons and stock-limited orders, paid from a prepaid wallet.

Money is whole won; times are RFC 3339 in UTC. A success answer is durable. Every refusal is a problem (RFC 9457) whose
`code` says which; refusals change nothing. After a 503 `outcome-unknown`, repeat with the same `Idempotency-Key`.
Paths that do not exist answer `route-not-found`, methods that a path does not know `method-not-allowed`.";

/// The part of the description that no handler tells.
#[derive(utoipa::OpenApi)]
#[openapi(
    info(title = "Rushgate", description = ABOUT),
    servers((url = "/")),
    tags(
        (name = "products", description = "The catalogue, and what staff change in it"),
        (name = "wallets", description = "Prepaid balances"),
        (name = "coupons", description = "Coupon templates, and coupons issued first come, first served"),
        (name = "orders", description = "Orders, paid from the wallet at once"),
        (name = "operations", description = "For operators"),
    )
)]
pub struct Description;

/// What each operation can refuse besides what all of its kind can (see [`common_refusals`]).
const REFUSALS: &[(&str, &[Code])] = {
    use Code::*;
    &[
        ("list_products", &[GateUnavailable]),
        ("get_product", &[ProductNotFound, GateUnavailable]),
        ("put_product", &[]),
        ("adjust_stock", &[ProductNotFound, StockBelowZero]),
        ("get_popular", &[GateUnavailable, TruthUnavailable]),
        ("refresh_popular", &[GateUnavailable, TruthUnavailable]),
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
        ("list_coupons", &[UserNotFound, GateUnavailable]),
        (
            "place_order",
            &[
                UserNotFound,
                ProductNotFound,
                CouponNotFound,
                ProductNotOnSale,
                InsufficientStock,
                InsufficientBalance,
                CouponNotAvailable,
                CouponExpired,
                SubtotalTooLow,
                PriceChanged,
            ],
        ),
        ("get_order", &[OrderNotFound, GateUnavailable, TruthUnavailable]),
        ("cancel_order", &[OrderNotFound, BalanceLimitExceeded, TruthUnavailable]),
        ("list_orders", &[UserNotFound, GateUnavailable, TruthUnavailable]),
        ("get_status", &[]),
    ]
};

/// Completes what the handlers' attributes tell.
pub fn complete(mut api: OpenApi) -> OpenApi {
    let mut components = ComponentsBuilder::from(api.components.take().unwrap_or_default());
    let mut schemas = vec![(ProblemBody::name().into_owned(), ProblemBody::schema())];
    ProblemBody::schemas(&mut schemas);
    schemas.push((ShopId::name().into_owned(), ShopId::schema()));
    components = components.schemas_from_iter(schemas).security_scheme("token", bearer());
    api.components = Some(components.build());
    for item in api.paths.paths.values_mut() {
        for (operation, decides) in
            [(item.get.as_mut(), false), (item.put.as_mut(), true), (item.post.as_mut(), true)]
        {
            if let Some(operation) = operation {
                if takes_key(operation) && !refreshes(operation) {
                    add_replay_header(operation);
                }
                add_refusals(operation, decides);
                describe_answers(operation);
            }
        }
    }
    api
}

fn bearer() -> SecurityScheme {
    let description = "A JWT with `sub`, `exp` and `scope` (space-separated). `shop`: an end user, may act on the own \
        wallet, coupons and orders; `service`: the shop's backend, may act for any user; `admin`: staff, may also \
        change the catalogue.";
    let http = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT");
    SecurityScheme::Http(http.description(Some(description)).build())
}

fn add_refusals(operation: &mut Operation, decides: bool) {
    let id = operation.operation_id.as_deref().unwrap_or_default();
    let own = REFUSALS.iter().find(|(name, _)| *name == id).map_or(&[][..], |(_, codes)| *codes);
    let mut by_status: BTreeMap<u16, Vec<Code>> = BTreeMap::new();
    for code in own.iter().copied().chain(common_refusals(operation, decides)) {
        let codes = by_status.entry(code.status().as_u16()).or_default();
        if !codes.contains(&code) {
            codes.push(code);
        }
    }
    for (status, codes) in by_status {
        operation.responses.responses.insert(status.to_string(), RefOr::T(refusal(status, &codes)));
    }
}

/// The one POST that does not go through the gate and remembers no key: repeating it is harmless.
fn refreshes(operation: &Operation) -> bool {
    operation.operation_id.as_deref() == Some("refresh_popular")
}

fn takes_key(operation: &Operation) -> bool {
    let parameters = operation.parameters.as_deref().unwrap_or_default();
    parameters.iter().any(|it| matches!(it, RefOr::T(it) if it.parameter_in == ParameterIn::Header))
}

/// Successes of what takes a key may be the answer to an earlier request.
fn add_replay_header(operation: &mut Operation) {
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response {
            let header = header(Type::String, "`true`: the answer to an earlier request with the same key");
            response.headers.insert("Idempotent-Replayed".to_owned(), header.into());
        }
    }
}

/// OpenAPI demands a description of every answer, also where the schema says all.
fn describe_answers(operation: &mut Operation) {
    for response in operation.responses.responses.values_mut() {
        if let RefOr::T(response) = response
            && response.description.is_empty()
        {
            response.description = "OK".to_owned();
        }
    }
}

fn header(kind: Type, about: &str) -> Header {
    let schema = ObjectBuilder::new().schema_type(SchemaType::new(kind));
    HeaderBuilder::new().schema(Some(schema)).description(Some(about)).build()
}

fn common_refusals(operation: &Operation, decides: bool) -> Vec<Code> {
    let parameters = operation.parameters.as_deref().unwrap_or_default();
    let has_key =
        parameters.iter().any(|it| matches!(it, RefOr::T(it) if it.parameter_in == ParameterIn::Header));
    let has_body = operation.request_body.is_some();
    // Unknown query parameters are refused on every route.
    let mut codes = vec![
        Code::InternalError,
        Code::MalformedRequest,
        Code::InvalidField,
        Code::RateLimited,
        Code::Overloaded,
    ];
    if operation.security.is_some() {
        codes.extend([Code::Unauthenticated, Code::Forbidden]);
    }
    if has_body || has_key {
        codes.extend([Code::RequestTimeout, Code::BodyTooLarge, Code::UnsupportedMediaType]);
    }
    let refreshes = refreshes(operation);
    if has_key && !refreshes {
        codes.push(Code::IdempotencyKeyReused);
    }
    if decides && !refreshes {
        codes.extend([Code::GateUnavailable, Code::BacklogFull, Code::OutcomeUnknown]);
    }
    codes
}

fn refusal(status: u16, codes: &[Code]) -> Response {
    let texts: Vec<&str> = codes.iter().map(|code| code.as_str()).collect();
    let these =
        ObjectBuilder::new().schema_type(SchemaType::new(Type::String)).enum_values(Some(texts.clone()));
    let schema = AllOfBuilder::new()
        .item(Ref::from_schema_name(ProblemBody::name()))
        .item(ObjectBuilder::new().property("code", these));
    let content = ContentBuilder::new().schema(Some(schema)).build();
    let mut response = ResponseBuilder::new()
        .description(format!("`{}`", texts.join("`, `")))
        .content("application/problem+json", content);
    match status {
        401 => response = response.header("WWW-Authenticate", header(Type::String, "`Bearer`")),
        429 => {
            response = response
                .header("Retry-After", header(Type::Integer, "Seconds to wait"))
                .header(
                    "RateLimit",
                    header(Type::String, "What is left of the quota, such as `\"user\";r=0;t=10`"),
                )
                .header("RateLimit-Policy", header(Type::String, "The quota, such as `\"user\";q=200;w=10`"));
        }
        503 => response = response.header("Retry-After", header(Type::Integer, "Seconds to wait")),
        _ => {}
    }
    response.build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn described() -> serde_json::Value {
        let (_, description) = crate::http::routes().split_for_parts();
        serde_json::to_value(complete(description)).unwrap()
    }

    fn operations(api: &serde_json::Value) -> Vec<&serde_json::Value> {
        let paths = api["paths"].as_object().unwrap();
        paths.values().flat_map(|item| item.as_object().unwrap().values()).collect()
    }

    fn references(value: &serde_json::Value, found: &mut BTreeSet<String>) {
        match value {
            serde_json::Value::Object(map) => {
                for (key, value) in map {
                    match value.as_str() {
                        Some(target) if key == "$ref" => drop(found.insert(target.to_owned())),
                        _ => references(value, found),
                    }
                }
            }
            serde_json::Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_operation_has_its_row_of_refusals_and_every_row_its_operation() {
        let api = described();
        let described: BTreeSet<&str> =
            operations(&api).iter().map(|it| it["operationId"].as_str().unwrap()).collect();
        let rows: BTreeSet<&str> = REFUSALS.iter().map(|(id, _)| *id).collect();
        assert_eq!(described, rows);
        assert_eq!(rows.len(), 19);
    }

    #[test]
    fn nothing_dangles() {
        let api = described();
        let mut used = BTreeSet::new();
        references(&api, &mut used);
        let defined: BTreeSet<String> = api["components"]["schemas"]
            .as_object()
            .unwrap()
            .keys()
            .map(|name| format!("#/components/schemas/{name}"))
            .collect();
        assert_eq!(used.difference(&defined).collect::<Vec<_>>(), Vec::<&String>::new());
    }

    #[test]
    fn no_schema_contradicts_itself() {
        // What the generator makes of an inlined number with a description: a number that is an object, too.
        for (name, schema) in described()["components"]["schemas"].as_object().unwrap() {
            for (member, property) in schema["properties"].as_object().into_iter().flatten() {
                assert!(property.get("allOf").is_none(), "{name}.{member}");
            }
        }
    }

    #[test]
    fn every_post_takes_a_key_and_every_answer_has_a_body() {
        let api = described();
        for (path, item) in api["paths"].as_object().unwrap() {
            if let Some(post) = item.get("post") {
                let parameters = post["parameters"].as_array().unwrap();
                assert!(parameters.iter().any(|it| it["name"] == "Idempotency-Key"), "{path}");
            }
            for (method, operation) in item.as_object().unwrap() {
                for (status, response) in operation["responses"].as_object().unwrap() {
                    assert!(response["content"].is_object(), "{method} {path} {status}");
                }
            }
        }
    }
}
