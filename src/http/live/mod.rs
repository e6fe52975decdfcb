//! `GET /v1/live`: stock and coupons left as server-sent events.
//!
//! A [`Live`] lives as long as the API. Its [`table`] has a cell for each product and template that
//! a stream watches, with the value as last read. The [`sampler`] reads watched ids from the gate,
//! at most every [`crate::config::bounds::LIVE_SAMPLE`], however many streams there are, and only
//! while there are any. A changed value replaces the one in its cell and marks the streams that
//! watch it; a [`stream`] sends the present value of what is marked when its client can take more.
//! So a slow client loses intermediate values, and a stream needs no queue. [`event`] has the texts.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use utoipa::IntoParams;

use super::Api;
use super::extract::Query;
use super::fields::ShopId;
use super::problem::Problem;
use super::selection::parse_ids;
use super::server::OpenEnded;
use crate::config::bounds::LIVE_IDS;
use crate::domain::{ProductId, TemplateId};

mod event;
mod metrics;
mod sampler;
mod stream;
mod table;

pub use table::Live;

use stream::EventStream;
use table::Key;

/// Media type of server-sent events.
pub const EVENT_STREAM: &str = "text/event-stream";
/// Tells nginx not to collect the events.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The products and templates that a client watches, each once.
#[derive(Debug)]
pub struct Watched(Vec<Key>);

impl<S: Send + Sync> FromRequestParts<S> for Watched {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::of(Query::of(&parts.uri)?)
    }
}

impl Watched {
    fn of(mut query: Query) -> Result<Self, Problem> {
        let (products, templates) = (query.take("products"), query.take("templates"));
        query.finish()?;
        let mut keys = Vec::new();
        if let Some(ids) = products {
            let ids: Vec<ProductId> = parse_ids("products", &ids, LIVE_IDS)?;
            keys.extend(ids.into_iter().map(Key::Product));
        }
        if let Some(ids) = templates {
            let ids: Vec<TemplateId> = parse_ids("templates", &ids, LIVE_IDS)?;
            keys.extend(ids.into_iter().map(Key::Template));
        }
        match keys.len() {
            0 => Err(Problem::invalid("products", "name at least one product or template")),
            1..=LIVE_IDS => Ok(Self(keys)),
            _ => Err(Problem::invalid(
                "templates",
                format_args!("products and templates may be at most {LIVE_IDS} ids together"),
            )),
        }
    }
}

/// `products` and `templates`, for the OpenAPI description.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "read by the derive, for the OpenAPI description")]
pub struct LiveParams {
    /// Products to watch. Unknown ids are left out until they exist. At most 50 ids together with
    /// `templates`.
    #[param(style = Form, explode = false, value_type = Option<Vec<ShopId>>, min_items = 1, max_items = 50)]
    products: Option<String>,
    /// Coupon templates to watch.
    #[param(style = Form, explode = false, value_type = Option<Vec<ShopId>>, min_items = 1, max_items = 50)]
    templates: Option<String>,
}

/// Stock and coupons left, as a stream of events
///
/// Server-sent events; `data` is JSON. `snapshot` comes first, then `product` and `template` whenever
/// one has changed: at most one event per id in 250 ms, the latest value wins. `unavailable` says
/// that the gate is closed, `available` that it is open again. A comment is sent every 15 s. A stream
/// ends when its instance stops; a new one begins with a new snapshot. `now` is the gate's clock when
/// the values were read. The events inform; only a request decides.
#[utoipa::path(get, path = "/v1/live", tag = "products", params(LiveParams),
    responses((status = 200, description = "The events, until one of the two sides ends the stream",
        content_type = "text/event-stream", body = String, example = json!(event::EXAMPLE))))]
pub async fn watch(State(api): State<Arc<Api>>, watched: Watched) -> Result<Response, Problem> {
    let stream = EventStream::new(Arc::clone(&api.live).subscribe(watched.0)?);
    let mut response = Response::new(Body::new(stream));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM));
    response.headers_mut().insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response.extensions_mut().insert(OpenEnded);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(query: &str) -> Result<usize, String> {
        let query = Query::of(&format!("/?{query}").parse().unwrap()).unwrap();
        Watched::of(query).map(|watched| watched.0.len()).map_err(|problem| {
            serde_json::to_value(problem).unwrap()["field"].as_str().unwrap().to_owned()
        })
    }

    #[test]
    fn at_most_50_ids_of_both_kinds_are_watched() {
        let many = |n: usize| (0..n).map(|n| format!("id-{n}")).collect::<Vec<_>>().join(",");
        assert_eq!(watched("products=a,b,a&templates=a"), Ok(3), "a product and a template");
        assert_eq!(watched(&format!("products={}", many(50))), Ok(50));
        assert_eq!(watched(&format!("products={}&templates={}", many(20), many(30))), Ok(50));
        assert_eq!(watched(&format!("products={}", many(51))).unwrap_err(), "products");
        assert_eq!(watched(&format!("templates={}", many(51))).unwrap_err(), "templates");
        let both = format!("products={}&templates={}", many(21), many(30));
        assert_eq!(watched(&both).unwrap_err(), "templates");
    }

    #[test]
    fn something_must_be_watched_and_ids_are_checked() {
        for (bad, field) in [
            ("", "products"),
            ("products=", "products"),
            ("products=a,,b", "products"),
            ("templates=a/b", "templates"),
            ("products=a&ids=b", "ids"),
            ("products=a&limit=5", "limit"),
        ] {
            assert_eq!(watched(bad).unwrap_err(), field, "{bad}");
        }
    }
}
