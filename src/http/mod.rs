//! The HTTP API. [`routes`] lists every route; each resource's file holds its bodies, views and
//! handlers.
//!
//! A request passes [`middleware`] (time limit, panics, metrics), then the extractors of its
//! handler in their order: token, path, query, idempotency key, body. A caller without the right is
//! refused before the rest of the request is read. Then the gate decides, and [`answer`] makes the
//! response. Every refusal is a [`problem::Problem`].

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum::http::HeaderValue;
use axum::routing::put;
use futures::future::BoxFuture;
use tower::Layer;
use tower::util::option_layer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::config::{Ack, ChargeScope, Serve};
use crate::domain::TimestampMs;
use crate::gate::Gate;
use crate::truth::Truth;

pub mod accept;
pub mod admin;
mod admin_metrics;
pub mod answer;
mod audits;
pub mod auth;
mod compress;
pub mod coupon_templates;
pub mod coupons;
mod docs;
mod etag;
pub mod explanations;
pub mod extract;
pub mod fields;
pub mod health;
mod holders;
mod json_response;
mod keyed;
pub mod live;
pub mod load_shed;
mod metrics;
mod middleware;
mod openapi;
pub mod ops;
mod order_search;
pub mod orders;
mod pages;
pub mod popular;
pub mod problem;
mod problem_pages;
pub mod products;
mod quote;
pub mod rates;
pub mod refusals;
pub mod reload;
mod rendered;
mod request_notes;
mod selection;
pub mod server;
pub mod tls;
pub mod wallets;

use live::Live;
use load_shed::ConcurrencyLimits;
use metrics::Routes;
use middleware::Middleware;
use orders::HoldSettings;
use rates::Rates;
use server::RequestService;

pub use admin_metrics::{RenderMetrics, render_metrics};
pub use audits::{Audits, RunAudit};
pub use auth::{TokenVerifier, mint_token, mint_token_for};
pub use health::Health;
pub use ops::{Ops, ops_router};
pub use pages::DemoShop;
pub use rendered::RenderedPages;

/// Recomputes the popular products, up to a time of the gate's clock. This is the scheduler's
/// function, passed in by `rushgate serve`. The error is for the log only.
pub type RefreshPopular =
    Arc<dyn Fn(TimestampMs) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// The state that all handlers share.
pub struct Api {
    pub gate: Arc<Gate>,
    pub truth: Truth,
    pub verifier: Arc<TokenVerifier>,
    pub settings: Settings,
    pub rates: Arc<Rates>,
    pub concurrency: ConcurrencyLimits,
    pub browser_policy: BrowserPolicy,
    pub product_pages: RenderedPages,
    pub live: Arc<Live>,
    pub refresh_popular: RefreshPopular,
    pub audits: Arc<Audits>,
    pub render_metrics: RenderMetrics,
    /// `None`: the demo's storefront is off.
    pub demo_shop: Option<DemoShop>,
    /// Whether this instance's relay is connected to RabbitMQ; `None` when it runs none.
    pub rabbitmq_connected: Option<Arc<AtomicBool>>,
}

/// The settings that handlers need.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub ack: Ack,
    pub charge_scope: ChargeScope,
    pub holds: HoldSettings,
    pub request_timeout: Duration,
    pub truth_timeout: Duration,
    pub body_timeout: Duration,
}

/// Settings that concern browsers and caches.
#[derive(Clone, Debug, Default)]
pub struct BrowserPolicy {
    /// Origins whose pages may call; empty: no CORS.
    pub cors_origins: Vec<HeaderValue>,
    /// Whether the port speaks TLS; then browsers are told to use nothing else for this host
    /// (HSTS).
    pub tls: bool,
    /// `Cache-Control` of catalogue reads; `None`: `no-store`.
    pub catalogue_cache: Option<HeaderValue>,
}

impl BrowserPolicy {
    pub fn new(serve: &Serve, tls: bool) -> Self {
        let catalogue_cache = etag::cache_control(serve.catalogue_max_age_secs);
        Self { cors_origins: serve.cors_origins.clone(), tls, catalogue_cache }
    }
}

impl From<&Serve> for Settings {
    fn from(serve: &Serve) -> Self {
        Self {
            ack: serve.ack,
            charge_scope: serve.charge_scope,
            holds: HoldSettings { hold_secs: serve.hold_secs, pending_limit: serve.pending_limit },
            request_timeout: serve.request_timeout(),
            truth_timeout: serve.truth_timeout(),
            body_timeout: serve.limits.body_timeout(),
        }
    }
}

impl Settings {
    /// The limit on a whole request. It is above the limits of the request's parts, so only work
    /// that escaped those runs into it.
    fn handler_timeout(&self) -> Duration {
        self.body_timeout + self.request_timeout * 3 + self.truth_timeout * 4
    }
}

/// Every route of the API.
#[rustfmt::skip]
fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::with_openapi(openapi::Description::openapi())
        .routes(routes!(products::list_products))                         // GET  /v1/products
        .routes(routes!(products::get_product, products::put_product))    // GET, PUT /v1/products/{id}
        .routes(routes!(products::adjust_stock))                          // POST /v1/products/{id}/stock-adjustments
        .routes(routes!(popular::get_popular))                            // GET  /v1/products/popular
        .routes(routes!(popular::refresh_popular))                        // POST /v1/products/popular/refresh
        .routes(routes!(wallets::get_wallet))                             // GET  /v1/users/{user}/wallet
        .routes(routes!(wallets::charge_wallet))                          // POST /v1/users/{user}/wallet/charges
        .routes(routes!(wallets::list_entries))                           // GET  /v1/users/{user}/wallet/entries
        .routes(routes!(coupon_templates::list_templates))                // GET  /v1/coupon-templates
        .routes(routes!(coupon_templates::get_template, coupon_templates::put_template)) // GET, PUT /v1/coupon-templates/{id}
        .routes(routes!(coupons::issue_coupon, holders::list_holders))    // POST, GET /v1/coupon-templates/{id}/coupons
        .routes(routes!(coupons::list_coupons))                           // GET  /v1/users/{user}/coupons
        .routes(routes!(orders::place_order, order_search::search_orders)) // POST, GET /v1/orders
        .routes(routes!(orders::get_order))                               // GET  /v1/orders/{id}
        .routes(routes!(orders::cancel_order))                            // POST /v1/orders/{id}/cancel
        .routes(routes!(orders::confirm_order))                           // POST /v1/orders/{id}/confirm
        .routes(routes!(quote::quote_order))                              // POST /v1/orders/quote
        .routes(routes!(orders::list_orders))                             // GET  /v1/users/{user}/orders
        .routes(routes!(live::watch))                                     // GET  /v1/live
        .routes(routes!(admin::get_status))                               // GET  /v1/admin/status
        .routes(routes!(admin_metrics::get_metrics))                      // GET  /v1/admin/metrics
        .routes(routes!(audits::list_audits, audits::start_audit))        // GET, POST /v1/admin/audits
}

/// The API, with `/openapi.json`, `/docs` and the pages.
pub fn service(api: Arc<Api>) -> impl RequestService {
    let charge_scope = api.settings.charge_scope;
    let (router, description) = routes().split_for_parts();
    let paths = description
        .paths
        .paths
        .keys()
        .map(String::as_str)
        .chain(docs::PATHS)
        .chain(problem_pages::PATHS)
        .chain(pages::PATHS);
    let pages = pages::router(api.demo_shop.is_some());
    let middleware = Arc::new(Middleware::new(&api, Routes::new(paths)));
    let start = problem_pages::start(api.demo_shop.is_some());
    let cors = middleware::cors(&api.browser_policy.cors_origins);
    let router = router
        // `popular` is the list's name, so no product may have it as its id.
        .route("/v1/products/popular", put(products::refuse_popular))
        .merge(pages)
        .with_state(api)
        .merge(docs::router(&openapi::complete(description, charge_scope)))
        .merge(problem_pages::router(start))
        .fallback(middleware::route_not_found)
        .method_not_allowed_fallback(middleware::method_not_allowed);
    option_layer(cors).layer(middleware.over(router))
}

#[cfg(test)]
mod tests;
