//! `/openapi.json`, and `/docs`, a page to read and try it. Its files are built in, so it works
//! offline.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::Router;
use axum::extract::Path;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, VARY};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use bytes::Bytes;
use serde_json::Value;
use utoipa_swagger_ui::Config;

use super::compress::{self, accepts_gzip};
use super::problem::{Code, Problem};

/// Path of the OpenAPI description.
const DESCRIPTION: &str = "/openapi.json";
const PAGE: [&str; 3] = ["/docs", "/docs/", "/docs/{*path}"];
/// Every path of this module.
pub const PATHS: [&str; 4] = [DESCRIPTION, PAGE[0], PAGE[1], PAGE[2]];
/// The page may load from and send to this server only.
const ONLY_FROM_HERE: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'";

/// The viewer's settings, and its files in their compressed form.
struct Page {
    config: Arc<Config<'static>>,
    /// By path. Only files that exist get in.
    packed: Mutex<HashMap<String, Bytes>>,
}

/// Serves the description and the page.
pub fn router(description: &Value) -> Router {
    let description = Arc::new((Bytes::from(description.to_string()), OnceLock::new()));
    let json = move |headers: HeaderMap| async move {
        let (plain, packed) = &*description;
        let plain = plain.clone();
        let packed =
            accepts_gzip(&headers).then(|| packed.get_or_init(|| compress::gzip(&plain)).clone());
        built_in("application/json", plain, packed)
    };
    // The default would send the description to an external validator.
    let config = Config::new([DESCRIPTION]).validator_url("none").try_it_out_enabled(true);
    let files = Arc::new(Page { config: Arc::new(config), packed: Mutex::default() });
    let page = move |path: Option<Path<String>>, headers: HeaderMap| async move {
        let path = path.map_or_else(String::new, |Path(path)| path);
        file(path, files, accepts_gzip(&headers)).await
    };
    Router::new()
        .route(DESCRIPTION, get(json))
        .route(PAGE[0], get(async || Redirect::permanent(PAGE[1])))
        .route(PAGE[1], get(page.clone()))
        .route(PAGE[2], get(page))
}

async fn file(path: String, page: Arc<Page>, accepts_gzip: bool) -> Response {
    let file = match utoipa_swagger_ui::serve(&path, Arc::clone(&page.config)) {
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
    // Built-in files are not copied for each request.
    let bytes = match file.bytes {
        std::borrow::Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        std::borrow::Cow::Owned(bytes) => bytes.into(),
    };
    let bytes = if path.is_empty() { titled(&bytes) } else { bytes };
    let packed = match accepts_gzip && compress::is_worth_it(bytes.len()) {
        // The crate has only one form of each file.
        _ if file.gzpipped => Some(bytes.clone()),
        true => Some(page.packed(path, bytes.clone()).await),
        false => None,
    };
    let policy = [(CONTENT_SECURITY_POLICY, ONLY_FROM_HERE)];
    (policy, built_in(&file.content_type, bytes, packed)).into_response()
}

impl Page {
    /// A file in its compressed form. It is compressed when it is first asked for, elsewhere than on
    /// a thread that serves requests: the largest one takes tens of milliseconds.
    async fn packed(&self, path: String, bytes: Bytes) -> Bytes {
        let known = || self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(packed) = known().get(&path) {
            return packed.clone();
        }
        let packed = tokio::task::spawn_blocking(move || compress::gzip(&bytes)).await;
        let packed = packed.unwrap_or_default();
        known().insert(path, packed.clone());
        packed
    }
}

/// A built-in file, in its compressed form if there is one.
fn built_in(content_type: &str, plain: Bytes, packed: Option<Bytes>) -> Response {
    let encoding = packed.as_ref().map(|_| [(CONTENT_ENCODING, compress::GZIP)]);
    let headers = [(CONTENT_TYPE, content_type.to_owned())];
    let vary = [(VARY, compress::VARY_ENCODING)];
    (headers, vary, encoding, packed.unwrap_or(plain)).into_response()
}

/// Replaces the viewer's title by this project's.
fn titled(page: &[u8]) -> Bytes {
    let page = String::from_utf8_lossy(page);
    page.replacen("<title>Swagger UI</title>", "<title>Rushgate API</title>", 1).into_bytes().into()
}
