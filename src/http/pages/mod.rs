//! The pages for people: the demo's storefront at `/shop/`, the console for staff at `/console/`,
//! and their files under `/assets/`. Sources and tests are in `web/`.
//!
//! The pages are static and built in ([`assets`]); they call the API like any other client. The
//! storefront needs tokens and a crowd, which only [`demo_shop`] has: where it is off, `/shop/` is
//! not there.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};

use super::Api;
use super::etag::IfNoneMatch;
use super::problem::{Code, Problem};

mod assets;
mod card;
mod demo_shop;
mod rivals;

pub use demo_shop::DemoShop;

const SHOP: [&str; 2] = ["/shop", "/shop/"];
const CONSOLE: [&str; 2] = ["/console", "/console/"];
const ASSET: &str = "/assets/{*path}";
const TOKEN: &str = "/shop/token";
const CARD: &str = "/shop/card";
const RIVALS: &str = "/shop/rivals";
/// Every path of this module.
pub const PATHS: [&str; 8] = [SHOP[0], SHOP[1], TOKEN, CARD, RIVALS, CONSOLE[0], CONSOLE[1], ASSET];

/// The pages load from and send to this server only, and contain no inline code or style. Text
/// cannot become code: the pages may not assign markup.
const POLICY: &str = "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";
/// Browsers keep files and ask each time whether they have changed: after an upgrade, no page mixes
/// files of two versions for longer than its own lifetime.
const REVALIDATE: &str = "no-cache";

/// Routes of the pages; those of the storefront only where it is on.
pub fn router(demo_shop: bool) -> Router<Arc<Api>> {
    let router = Router::new()
        .route(CONSOLE[0], get(async || Redirect::permanent(CONSOLE[1])))
        .route(CONSOLE[1], get(async |has: IfNoneMatch| file("console/index.html", &has)))
        .route(ASSET, get(get_asset));
    if !demo_shop {
        return router;
    }
    router
        .route(SHOP[0], get(async || Redirect::permanent(SHOP[1])))
        .route(SHOP[1], get(async |has: IfNoneMatch| file("shop/index.html", &has)))
        .route(TOKEN, post(demo_shop::issue_token))
        .route(CARD, post(card::pay))
        .route(RIVALS, get(rivals::current).post(rivals::start))
}

async fn get_asset(
    State(api): State<Arc<Api>>,
    Path(path): Path<String>,
    has: IfNoneMatch,
) -> Response {
    if path.starts_with("shop/") && api.demo_shop.is_none() {
        return no_such_file();
    }
    file(&path, &has)
}

fn file(path: &str, has: &IfNoneMatch) -> Response {
    let Some(asset) = assets::find(path) else { return no_such_file() };
    let mut response = asset.tagged.clone().answer(asset.content_type, has);
    let headers: [(HeaderName, &'static str); 2] =
        [(CACHE_CONTROL, REVALIDATE), (CONTENT_SECURITY_POLICY, POLICY)];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn no_such_file() -> Response {
    Problem::new(Code::RouteNotFound, "There is no such file; start at /.").into_response()
}
