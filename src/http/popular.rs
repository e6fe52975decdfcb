//! Popular products: the scheduler's latest list, with the products as they are now.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::answer::{JsonAnswer, marked};
use super::auth::Staff;
use super::extract::{Key, NoBody, NoQuery};
use super::problem::{Code, Problem};
use super::products::ProductView;
use crate::domain::{Product, ProductId, TimestampMs, rfc3339};
use crate::gate::KeyedRequest;
use crate::truth::PopularList;

/// The most sold products of the window `from` … `to`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "Popular", as = Popular)]
pub struct PopularView {
    #[schema(format = DateTime, example = "2026-11-22T15:00:00.000Z")]
    refreshed_at: String,
    #[schema(format = DateTime, example = "2026-11-19T15:00:00.000Z")]
    from: String,
    #[schema(format = DateTime, example = "2026-11-22T15:00:00.000Z")]
    to: String,
    /// Up to five, by rank.
    data: Vec<PopularProductView>,
}

/// A product and how often it was sold in the window.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "PopularProduct", as = PopularProduct)]
pub struct PopularProductView {
    #[schema(minimum = 1, maximum = 5, example = 1)]
    rank: u64,
    #[serde(flatten)]
    product: ProductView,
    /// Pieces sold, cancelled orders not counted.
    #[schema(minimum = 1, example = 42)]
    sold: u64,
}

impl PopularView {
    fn new(list: PopularList, products: Vec<Product>) -> Self {
        let mut products: HashMap<ProductId, Product> =
            products.into_iter().map(|product| (product.product_id.clone(), product)).collect();
        let ranked = list.ranks.into_iter().filter_map(|rank| {
            let product = products.remove(&rank.product_id)?.into();
            Some(PopularProductView { rank: rank.rank, product, sold: rank.sold })
        });
        Self {
            refreshed_at: rfc3339(list.refreshed_at),
            from: rfc3339(list.from),
            to: rfc3339(list.to),
            data: ranked.collect(),
        }
    }
}

/// The most sold products of the last three days
#[utoipa::path(get, path = "/v1/products/popular", tag = "products",
    responses((status = 200, body = PopularView)))]
pub async fn get_popular(
    State(api): State<Arc<Api>>,
    _: NoQuery,
) -> Result<JsonAnswer<PopularView>, Problem> {
    let _permit = api.concurrency.truth.permit().await?;
    list_at(&api, None).await
}

/// Make the list of popular products anew
///
/// A repeat with the same `Idempotency-Key` makes none and gets the list that the first call has
/// made, with the products as they are now.
#[utoipa::path(post, path = "/v1/products/popular/refresh", tag = "products",
    params(super::extract::IdempotencyKeyParam), security(("token" = ["admin"])),
    responses((status = 200, body = PopularView)))]
pub async fn refresh_popular(
    State(api): State<Arc<Api>>,
    Staff(caller): Staff,
    key: Key,
    _: NoBody,
) -> Result<Response, Problem> {
    let _permit = api.concurrency.staff.permit().await?;
    // The list must count everything that the gate has decided so far.
    api.catch_up().await?;
    let key = key.of(&caller.sub);
    if let Some(key) = &key
        && let Some(at) = api.used_before(key, KeyedRequest::RefreshPopular).await?
    {
        return Ok(marked(list_at(&api, Some(at)).await?.into_response(), true));
    }
    make_list(&api).await?;
    let replayed = match &key {
        Some(key) => api.use_key(key, KeyedRequest::RefreshPopular).await?,
        None => false,
    };
    Ok(marked(list_at(&api, None).await?.into_response(), replayed))
}

async fn make_list(api: &Api) -> Result<(), Problem> {
    let now = api.gate.now().await?;
    // The list is made in a task of its own: after the timeout, only the wait for it ends.
    let limit = api.settings.request_timeout;
    let made = tokio::time::timeout(limit, (api.refresh_popular)(now)).await;
    made.unwrap_or_else(|_| Err(format!("no list within {} ms", limit.as_millis()))).map_err(|error| {
        tracing::warn!(error, "the popular products could not be refreshed");
        Problem::new(
            Code::TruthUnavailable,
            "The list could not be made in time: PostgreSQL does not answer. Try again shortly.",
        )
    })
}

/// The list as of `at`; `None`: the latest one.
async fn list_at(api: &Api, at: Option<TimestampMs>) -> Result<JsonAnswer<PopularView>, Problem> {
    let list = match api.truth.popular_at(at).await? {
        // It is gone: only the newest lists are kept.
        None if at.is_some() => api.truth.popular().await?,
        list => list,
    };
    let Some(list) = list else {
        return Err(Problem::new(
            Code::TruthUnavailable,
            "There is no list yet; the scheduler makes the first one at start-up. Try again shortly.",
        ));
    };
    let ids: Vec<ProductId> = list.ranks.iter().map(|rank| rank.product_id.clone()).collect();
    let products = if ids.is_empty() { Vec::new() } else { api.gate.products(&ids).await? };
    Ok(JsonAnswer(PopularView::new(list, products)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ProductStatus;
    use crate::truth::PopularRank;

    #[test]
    fn the_list_shows_products_as_they_are_now_in_the_order_of_rank() {
        let id = |text: &str| ProductId::parse(text).unwrap();
        let product = |text: &str| Product {
            product_id: id(text),
            name: text.to_uppercase(),
            price: 100,
            status: ProductStatus::Suspended,
            stock: 1,
            rules: Default::default(),
            limit_number: None,
            phase: Default::default(),
        };
        let rank = |rank, text| PopularRank { rank, product_id: id(text), sold: 9 };
        let list = PopularList {
            refreshed_at: 3,
            from: 1,
            to: 2,
            ranks: vec![rank(1, "b"), rank(2, "a")],
        };
        let view = PopularView::new(list, vec![product("a"), product("b")]);
        let json = serde_json::to_value(view).unwrap();
        assert_eq!(json["data"][0]["id"], "b");
        assert_eq!(json["data"][0]["sold"], 9);
        assert_eq!(json["data"][1]["name"], "A");
        assert_eq!(json["data"][1]["status"], "suspended");
        assert_eq!(json["from"], "1970-01-01T00:00:00.001Z");
    }
}
