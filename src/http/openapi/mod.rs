//! The OpenAPI description: generated from the handlers' attributes, then completed as JSON.
//!
//! [`refusals`] adds the refusals of each route from one table, with the statuses that
//! [`super::problem`] maps them to. [`problems`] describes the members of each code and makes an
//! example of each. [`catalogue`] describes conditional reads. [`tidy`] adds what attributes cannot
//! express.

use serde_json::{Value, json};
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{PartialSchema, ToSchema};

use super::fields::ShopId;
use crate::config::ChargeScope;

mod catalogue;
mod problems;
pub use problems::AnyProblem;
mod refusals;
#[cfg(test)]
mod tests;
mod tidy;

const ABOUT: &str = "First-come coupons and stock-limited orders, paid from a prepaid wallet.

Money is whole won; times are RFC 3339 in UTC. A success answer is durable. Every refusal is a problem (RFC 9457) whose
`code` says which; refusals change nothing. After a 503 `outcome-unknown`, repeat with the same `Idempotency-Key`.
Paths that do not exist answer `route-not-found`, methods that a path does not know `method-not-allowed`.";

/// The parts of the description that belong to no handler.
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

const METHODS: [&str; 3] = ["get", "put", "post"];

/// Completes the description that was generated from the handlers' attributes.
pub fn complete(mut api: OpenApi, charge_scope: ChargeScope) -> Value {
    let components = api.components.get_or_insert_default();
    components.schemas.insert(ShopId::name().into_owned(), ShopId::schema());
    components.security_schemes.insert("token".to_owned(), bearer().into());
    let mut api = serde_json::to_value(api).unwrap_or_default();
    for_each_operation(&mut api, |path, method, operation| {
        if path.ends_with("/wallet/charges") && charge_scope == ChargeScope::Service {
            operation["security"] = json!([{ "token": ["service", "admin"] }]);
        }
        if refusals::takes_key(operation) {
            add_replay_header(operation);
        }
        refusals::add(operation, method != "get");
        // A missing `security` means the API's default, and there is none: public routes say so
        // explicitly.
        if operation.get("security").is_none() {
            operation["security"] = json!([]);
        }
        catalogue::complete(operation);
        tidy::operation(path, operation);
    });
    problems::add_components(&mut api["components"]);
    tidy::schemas(&mut api);
    api
}

fn for_each_operation(api: &mut Value, mut work: impl FnMut(&str, &str, &mut Value)) {
    for (path, item) in api["paths"].as_object_mut().into_iter().flatten() {
        for method in METHODS {
            if let Some(operation) = item.get_mut(method) {
                work(path, method, operation);
            }
        }
    }
}

fn bearer() -> SecurityScheme {
    let description = "A JWT with `sub`, `exp` and `scope` (space-separated). `shop`: an end user, may act on the own \
        wallet, coupons and orders; `service`: the shop's backend, may act for any user; `admin`: staff, may also \
        change the catalogue. An operation names the scopes of which one is enough.";
    let http = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT");
    SecurityScheme::Http(http.description(Some(description)).build())
}

/// A success of an operation that takes a key may be a replay.
fn add_replay_header(operation: &mut Value) {
    for (status, response) in operation["responses"].as_object_mut().into_iter().flatten() {
        if status.starts_with('2') {
            response["headers"]["Idempotent-Replayed"] = json!({
                "description": "`true`: the answer to an earlier request with the same key",
                "schema": { "type": "string", "enum": ["true"] },
            });
        }
    }
}
