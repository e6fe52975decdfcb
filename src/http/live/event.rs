//! The texts of events, as browsers' `EventSource` reads them: a name, and one line of JSON.

use axum::body::Bytes;
use serde::Serialize;

use super::table::Key;
use crate::domain::{CouponTemplate, Product, ProductState, TemplateState, TimestampMs, rfc3339};

/// For the OpenAPI description.
pub const EXAMPLE: &str = "event: snapshot
data: {\"now\":\"2026-11-22T08:59:59.900Z\",\"products\":[{\"id\":\"tumbler\",\"stock\":500,\"state\":\"open\"}],\
\"templates\":[{\"id\":\"rush-100\",\"remaining\":100,\"state\":\"scheduled\"}]}

event: template
data: {\"now\":\"2026-11-22T09:00:00.012Z\",\"id\":\"rush-100\",\"remaining\":73,\"state\":\"open\"}

";

pub const HEARTBEAT: &str = ":\n\n";
pub const UNAVAILABLE: &str = "event: unavailable\ndata: {}\n\n";

/// What a stream shows of a product or a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Shown {
    Product { stock: u64, state: ProductState },
    Template { remaining: u64, state: TemplateState },
}

impl Shown {
    pub fn product(product: &Product, _now: TimestampMs) -> Self {
        Self::Product { stock: product.stock, state: product.state() }
    }

    pub fn template(template: &CouponTemplate, now: TimestampMs) -> Self {
        Self::Template { remaining: template.remaining(), state: template.state(now) }
    }
}

#[derive(Serialize)]
struct Element<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    now: Option<&'a str>,
    id: &'a str,
    #[serde(flatten)]
    shown: Shown,
}

#[derive(Serialize)]
struct Snapshot<'a> {
    now: String,
    products: Vec<Element<'a>>,
    templates: Vec<Element<'a>>,
}

fn text(name: &str, data: &impl Serialize) -> String {
    // These types cannot fail to serialize.
    let data = serde_json::to_string(data).unwrap_or_default();
    format!("event: {name}\ndata: {data}\n\n")
}

/// `product` or `template`: the value of one id, read at `now`.
pub fn change(key: &Key, shown: Shown, now: TimestampMs) -> Bytes {
    let element = Element { now: Some(&rfc3339(now)), id: key.id(), shown };
    text(key.event(), &element).into()
}

/// `snapshot`: all that a stream watches.
pub fn snapshot<'a>(watched: impl Iterator<Item = (&'a Key, Shown)>, now: TimestampMs) -> String {
    let mut snapshot = Snapshot { now: rfc3339(now), products: vec![], templates: vec![] };
    for (key, shown) in watched {
        let element = Element { now: None, id: key.id(), shown };
        match key {
            Key::Product(_) => snapshot.products.push(element),
            Key::Template(_) => snapshot.templates.push(element),
        }
    }
    text("snapshot", &snapshot)
}

/// `available`: the gate is open again.
pub fn available(now: TimestampMs) -> String {
    format!("event: available\ndata: {{\"now\":\"{}\"}}\n\n", rfc3339(now))
}

/// The pause before a client connects again, in milliseconds.
pub fn retry(ms: u64) -> String {
    format!("retry: {ms}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ProductId, TemplateId};

    #[test]
    fn texts_are_as_described() {
        let product = Key::Product(ProductId::parse("tumbler").unwrap());
        let template = Key::Template(TemplateId::parse("rush-100").unwrap());
        let stock = Shown::Product { stock: 500, state: ProductState::Open };
        let left = |remaining, state| Shown::Template { remaining, state };
        let before = left(100, TemplateState::Scheduled);
        let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap().as_millisecond();
        let first = snapshot(
            [(&product, stock), (&template, before)].into_iter(),
            at("2026-11-22T08:59:59.900Z"),
        );
        let open = left(73, TemplateState::Open);
        let then = change(&template, open, at("2026-11-22T09:00:00.012Z"));
        assert_eq!(first + std::str::from_utf8(&then).unwrap(), EXAMPLE);
        assert_eq!(
            available(0),
            "event: available\ndata: {\"now\":\"1970-01-01T00:00:00.000Z\"}\n\n"
        );
    }
}
