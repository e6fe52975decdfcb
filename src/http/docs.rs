//! `/openapi.json`, and `/docs`, a page to read and try it. Its files are built in, so it works
//! offline.

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::header::{CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use bytes::Bytes;
use serde_json::Value;
use utoipa_swagger_ui::Config;

use super::problem::{Code, Problem};

/// Path of the OpenAPI description.
const DESCRIPTION: &str = "/openapi.json";
const PAGE: [&str; 3] = ["/docs", "/docs/", "/docs/{*path}"];
/// Every path of this module.
pub const PATHS: [&str; 4] = [DESCRIPTION, PAGE[0], PAGE[1], PAGE[2]];
/// The page may load from and send to this server only.
const ONLY_FROM_HERE: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'";

/// Serves the description and the page.
pub fn router(description: &Value) -> Router {
    let json = Bytes::from(description.to_string());
    // The default would send the description to an external validator.
    let config =
        Arc::new(Config::new([DESCRIPTION]).validator_url("none").try_it_out_enabled(true));
    let page = move |path: Option<Path<String>>| {
        let config = config.clone();
        async move { file(path.as_ref().map_or("", |Path(path)| path.as_str()), config) }
    };
    Router::new()
        .route(
            DESCRIPTION,
            get(move || async move { ([(CONTENT_TYPE, "application/json")], json) }),
        )
        .route(PAGE[0], get(async || Redirect::permanent(PAGE[1])))
        .route(PAGE[1], get(page.clone()))
        .route(PAGE[2], get(page))
}

fn file(path: &str, config: Arc<Config<'static>>) -> Response {
    let file = match utoipa_swagger_ui::serve(path, config) {
        Ok(Some(file)) => file,
        Ok(None) => {
            return Problem::new(Code::RouteNotFound, "There is no such file; start at /docs.")
                .into_response();
        }
        Err(error) => {
            tracing::error!(%error, "the documentation page could not be rendered");
            return Problem::internal().into_response();
        }
    };
    let encoding = file.gzpipped.then_some([(CONTENT_ENCODING, "gzip")]);
    let headers = [
        (CONTENT_TYPE, file.content_type.clone()),
        (CONTENT_SECURITY_POLICY, ONLY_FROM_HERE.to_owned()),
    ];
    // Built-in files are not copied for each request.
    let bytes = match file.bytes {
        std::borrow::Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        std::borrow::Cow::Owned(bytes) => bytes.into(),
    };
    let bytes = if path.is_empty() { titled(&bytes) } else { bytes };
    (headers, encoding, bytes).into_response()
}

/// Replaces the viewer's title by this project's.
fn titled(page: &[u8]) -> Bytes {
    let page = String::from_utf8_lossy(page);
    page.replacen("<title>Swagger UI</title>", "<title>Rushgate API</title>", 1).into_bytes().into()
}
