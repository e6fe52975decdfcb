//! A response with a JSON body, for answers and refusals.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

// Capacity for nearly every answer except lists, so that nothing is copied while it grows.
const USUAL_BODY_BYTES: usize = 480;
const USUAL_HEADERS: usize = 12;

/// `body` as JSON, with this media type.
pub fn json_response(
    status: StatusCode,
    media_type: &'static str,
    body: &impl Serialize,
) -> Response {
    let mut bytes = Vec::with_capacity(USUAL_BODY_BYTES);
    if let Err(error) = serde_json::to_writer(&mut bytes, body) {
        tracing::error!(%error, "a response body cannot be serialized as JSON");
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let mut response = Response::new(Body::from(bytes));
    response.headers_mut().reserve(USUAL_HEADERS);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
