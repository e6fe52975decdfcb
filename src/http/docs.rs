//! `/openapi.json`, and `/docs`: a page to read and try it, from files that are built in, so that it works offline.

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::header::{CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use bytes::Bytes;
use utoipa::openapi::OpenApi;
use utoipa_swagger_ui::Config;

use super::problem::{Code, Problem};

/// Where the description is.
const DESCRIPTION: &str = "/openapi.json";
const PAGE: [&str; 3] = ["/docs", "/docs/", "/docs/{*path}"];
/// Every path here.
pub const PATHS: [&str; 4] = [DESCRIPTION, PAGE[0], PAGE[1], PAGE[2]];
/// Nothing on the page may come from, or go to, anywhere else.
const ONLY_FROM_HERE: &str =
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'";

/// Serves the description and the page.
pub fn router(description: OpenApi) -> Router {
    let json = serde_json::to_vec(&description).ok().map(Bytes::from);
    // The page would send the description to an external validator otherwise.
    let config = Arc::new(Config::new([DESCRIPTION]).validator_url("none").try_it_out_enabled(true));
    let page = move |path: Option<Path<String>>| {
        let config = config.clone();
        async move { file(path.as_ref().map_or("", |Path(path)| path.as_str()), config) }
    };
    Router::new()
        .route(DESCRIPTION, get(move || async move { serve_description(json) }))
        .route(PAGE[0], get(async || Redirect::permanent(PAGE[1])))
        .route(PAGE[1], get(page.clone()))
        .route(PAGE[2], get(page))
}

fn serve_description(json: Option<Bytes>) -> Response {
    match json {
        Some(json) => ([(CONTENT_TYPE, "application/json")], json).into_response(),
        None => Problem::internal().into_response(),
    }
}

fn file(path: &str, config: Arc<Config<'static>>) -> Response {
    let file = match utoipa_swagger_ui::serve(path, config) {
        Ok(Some(file)) => file,
        Ok(None) => {
            return Problem::new(Code::RouteNotFound, "There is no such file; start at /docs.")
                .into_response();
        }
        Err(error) => {
            tracing::error!(%error, "the documentation page could not be made");
            return Problem::internal().into_response();
        }
    };
    let encoding = file.gzpipped.then_some([(CONTENT_ENCODING, "gzip")]);
    let headers =
        [(CONTENT_TYPE, file.content_type.clone()), (CONTENT_SECURITY_POLICY, ONLY_FROM_HERE.to_owned())];
    // Files that are built in are not copied for each who asks.
    let bytes = match file.bytes {
        std::borrow::Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        std::borrow::Cow::Owned(bytes) => bytes.into(),
    };
    (headers, encoding, bytes).into_response()
}
