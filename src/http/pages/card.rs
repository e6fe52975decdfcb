//! The demo's card: plays the payment provider and the shop's backend for an order that waits for a
//! payment outside.
//!
//! Both calls go over HTTP to this instance's own port, as a real backend's would: the order is read
//! with the shopper's rights, then confirmed with a token of the scope `service`, which does not
//! leave this process otherwise.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{Method, Request, StatusCode};
use axum::response::Response;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use uuid::Uuid;

use crate::domain::UserId;
use crate::http::Api;
use crate::http::auth::Caller;
use crate::http::extract::Json;
use crate::http::fields::UuidText;
use crate::http::problem::{Code, Problem};

/// The subject of the token that confirms.
const BACKEND: &str = "demo-card";
/// Largest order that is read, in bytes.
const MAX_ORDER_BYTES: usize = 64 * 1024;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardBody {
    order_id: UuidText,
}

/// `POST /shop/card` `{order_id}`: pays an order of the caller; the answer is that of
/// `POST /v1/orders/{id}/confirm`.
pub async fn pay(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Json(body): Json<CardBody>,
) -> Result<Response, Problem> {
    let storefront = api.storefront()?;
    let order = format!("/v1/orders/{}", body.order_id.0);
    let shopper = storefront.token(&caller.sub, "shop")?;
    let read = call(&api, Method::GET, &order, &shopper, None).await?;
    if read.status() != StatusCode::OK {
        return Ok(read);
    }
    let backend = UserId::parse(BACKEND).map_err(|_| Problem::internal())?;
    let service = storefront.token(&backend, "service")?;
    let reference = serde_json::json!({ "payment_reference": format!("card-{}", Uuid::now_v7()) });
    call(&api, Method::POST, &format!("{order}/confirm"), &service, Some(reference.to_string()))
        .await
}

/// One request to this instance's own port, within the time limit of a request.
async fn call(
    api: &Api,
    method: Method,
    path: &str,
    token: &str,
    body: Option<String>,
) -> Result<Response, Problem> {
    let request = Request::builder()
        .method(method)
        .uri(format!("http://{}{path}", api.storefront()?.address))
        .header(AUTHORIZATION, format!("Bearer {token}"))
        .header(CONTENT_TYPE, "application/json")
        .body(body.map_or_else(Body::empty, Body::from))
        .map_err(|_| Problem::internal())?;
    let client: Client<_, Body> = Client::builder(TokioExecutor::new()).build_http();
    let answering = async {
        let answer = client.request(request).await.ok()?;
        let (parts, body) = answer.into_parts();
        Some((parts, to_bytes(Body::new(body), MAX_ORDER_BYTES).await.ok()?))
    };
    let limit = api.settings.request_timeout + api.settings.truth_timeout;
    let answered = tokio::time::timeout(limit, answering).await.ok().flatten();
    let (parts, body) = answered.ok_or_else(|| {
        Problem::new(Code::OutcomeUnknown, "The payment was not answered in time. Try again.")
    })?;
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = parts.status;
    if let Some(content_type) = parts.headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, content_type.clone());
    }
    Ok(response)
}
