//! Searching the orders of all users, for the shop's backend and staff.

use std::sync::Arc;

use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use utoipa::IntoParams;
use uuid::Uuid;

use super::Api;
use super::answer::{JsonAnswer, List};
use super::auth::Backend;
use super::extract::{Identifier, Page, PageParams, Query, identify};
use super::fields::{Printable, Rfc3339, ShopId};
use super::problem::Problem;
use crate::domain::limits::MAX_REFERENCE_CHARS;
use crate::domain::{OrderStatus, OrderView, TimestampMs};
use crate::truth::OrderSearch;

/// Query of the search: a page, and filters that an order must pass all.
#[derive(Debug)]
pub struct Filter {
    page: Page<Uuid>,
    search: OrderSearch,
}

/// The filters, for the OpenAPI description. [`super::openapi`] adds examples that are in the demo.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "read by the derive, for the OpenAPI description")]
struct FilterParams {
    /// Orders of this user.
    #[param(value_type = Option<ShopId>)]
    user_id: Option<String>,
    /// Orders with this product among their items.
    #[param(value_type = Option<ShopId>)]
    product_id: Option<String>,
    /// Orders with a coupon of this template, also if they were cancelled.
    #[param(value_type = Option<ShopId>)]
    template_id: Option<String>,
    /// Orders that are in this state now.
    status: Option<OrderStatus>,
    /// Orders with this order number of the shop's own.
    #[param(min_length = 1, max_length = 64)]
    reference: Option<String>,
    /// Orders of this time or later. RFC 3339, in any offset; the `+` of an offset is `%2B` in a
    /// query.
    #[param(format = DateTime)]
    from: Option<String>,
    /// Orders before this time; after `from`.
    #[param(format = DateTime)]
    until: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Filter {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::of(Query::of(&parts.uri)?)
    }
}

impl Filter {
    fn of(mut query: Query) -> Result<Self, Problem> {
        let page = query.page()?;
        let search = OrderSearch {
            user_id: id(&mut query, "user_id")?,
            product_id: id(&mut query, "product_id")?,
            template_id: id(&mut query, "template_id")?,
            status: query.take("status").map(|text| parse_status(&text)).transpose()?,
            reference: query.take("reference").map(|text| reference(&text)).transpose()?,
            from: moment(&mut query, "from")?,
            until: moment(&mut query, "until")?,
        };
        query.finish()?;
        match (search.from, search.until) {
            (Some(from), Some(until)) if from >= until => {
                Err(Problem::invalid("until", "must be after from"))
            }
            _ => Ok(Self { page, search }),
        }
    }
}

fn id<T: Identifier>(query: &mut Query, name: &str) -> Result<Option<T>, Problem> {
    query.take(name).map(|text| identify(name, &text)).transpose()
}

fn moment(query: &mut Query, name: &str) -> Result<Option<TimestampMs>, Problem> {
    let Some(text) = query.take(name) else { return Ok(None) };
    match Rfc3339::from_text(&text) {
        Some(moment) => Ok(Some(moment.0)),
        None => Err(Problem::invalid(name, Rfc3339::RULE)),
    }
}

fn parse_status(text: &str) -> Result<OrderStatus, Problem> {
    OrderStatus::parse(text)
        .ok_or_else(|| Problem::invalid("status", "must be pending, paid, cancelled or expired"))
}

fn reference(text: &str) -> Result<String, Problem> {
    match Printable::<MAX_REFERENCE_CHARS>::parse(text) {
        Some(reference) => Ok(reference.0),
        None => Err(Problem::invalid("reference", Printable::<MAX_REFERENCE_CHARS>::rule())),
    }
}

/// Orders of all users, newest first
///
/// With filters that few orders pass, a page may be short, or empty, and still have a `next`.
#[utoipa::path(get, path = "/v1/orders", tag = "orders", params(PageParams, FilterParams),
    security(("token" = ["service", "admin"])), responses((status = 200, body = List<OrderView>)))]
pub async fn search_orders(
    State(api): State<Arc<Api>>,
    _: Backend,
    filter: Filter,
) -> Result<JsonAnswer<List<OrderView>>, Problem> {
    let _permit = api.concurrency.truth.permit().await?;
    let Filter { page, search } = filter;
    let read = async { Ok(api.truth.search_orders(&search, page.after, page.limit + 1).await?) };
    let (found, _) = api.read_truth(read).await?;
    Ok(JsonAnswer(List::examined(found, page.limit, |order| order.order_id.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(query: &str) -> Result<OrderSearch, String> {
        let query = Query::of(&format!("/?{query}").parse().unwrap()).unwrap();
        let parsed = Filter::of(query).map(|filter| filter.search);
        parsed.map_err(|problem| {
            serde_json::to_value(problem).unwrap()["field"].as_str().unwrap().to_owned()
        })
    }

    #[test]
    fn filters_are_read_and_bounded() {
        let search = parsed(
            "user_id=u&product_id=p&template_id=t&status=cancelled&from=1970-01-01T09:00:01%2B09:00&limit=5",
        );
        let search = search.unwrap();
        assert_eq!(
            (search.status, search.from, search.until),
            (Some(OrderStatus::Cancelled), Some(1_000), None)
        );
        assert_eq!(search.user_id.unwrap().as_str(), "u");
        assert_eq!(parsed(""), Ok(OrderSearch::default()));
        for (bad, field) in [
            ("user_id=a%20b", "user_id"),
            ("product_id=", "product_id"),
            ("template_id=a/b", "template_id"),
            ("status=open", "status"),
            ("status=", "status"),
            ("from=today", "from"),
            ("from=2026-11-22T09:00:00+09:00", "from"),
            ("until=1969-12-31T00:00:00Z", "until"),
            ("from=2026-11-22T09:00:00Z&until=2026-11-22T09:00:00Z", "until"),
            ("after=5", "after"),
            ("note=r", "note"),
            ("reference=", "reference"),
        ] {
            assert_eq!(parsed(bad).unwrap_err(), field, "{bad}");
        }
    }
}
