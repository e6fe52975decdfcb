//! Searching the orders of all users.

use serde_json::json;

use super::*;

/// A shop with orders, oldest first.
struct Searched {
    api: Api,
    orders: Vec<Value>,
    users: [String; 2],
    products: [String; 2],
    template: String,
    _servers: (Instance, Backend),
}

impl Searched {
    /// Twelve orders of two users. Every second has the second product, too, two have a coupon, and
    /// every third is cancelled.
    async fn new() -> Self {
        let backend = Backend::new().await;
        let instance = backend.serve_all(&[]).await;
        let api = instance.client();
        let users = [api.user(100_000).await, api.user(100_000).await];
        let products = [api.product(1_000, 100).await, api.product(2_000, 100).await];
        let template = api.template(json!({})).await;
        let mut orders = Vec::new();
        for n in 0..12 {
            let user = &users[usize::from(n >= 6)];
            let all = [(products[0].as_str(), 1), (products[1].as_str(), 1)];
            let more = match n {
                3 | 9 => json!({"coupon_id": api.coupon(&template, user).await}),
                _ => json!({}),
            };
            let order = api.order(user, &all[..1 + n % 2], more).ok(201).await;
            orders.push(if n % 3 == 0 { api.cancel(&order, user).ok(200).await } else { order });
            tokio::time::sleep(Duration::from_millis(5)).await; // each has a time of its own
        }
        Self { api, orders, users, products, template, _servers: (instance, backend) }
    }

    /// The places of the orders that a search finds, in its order, whatever the size of the pages.
    async fn found(&self, query: &str) -> Vec<usize> {
        let path = format!("/v1/orders?{query}");
        let all = pages(&self.api, path.trim_end_matches('?'), 100).await;
        for limit in [1, 3] {
            assert_eq!(
                pages(&self.api, path.trim_end_matches('?'), limit).await,
                all,
                "{query} {limit}"
            );
        }
        let place = |found: &Value| self.orders.iter().position(|order| order == found);
        all.iter().map(|found| place(found).unwrap_or_else(|| panic!("{query}: {found}"))).collect()
    }
}

#[tokio::test]
async fn orders_are_searched_newest_first_by_what_they_are() {
    let shop = Searched::new().await;
    let Searched { users: [ann, bob], products: [mug, cup], template, orders, .. } = &shop;
    let newest_first =
        |keep: &dyn Fn(usize) -> bool| (0..12).rev().filter(|n| keep(*n)).collect::<Vec<_>>();
    let at = |n: usize| text(&orders[n], "ordered_at");
    for (query, keep) in [
        (String::new(), &(|_| true) as &dyn Fn(usize) -> bool),
        (format!("user_id={ann}"), &|n| n < 6),
        (format!("user_id={bob}"), &|n| n >= 6),
        (format!("product_id={mug}"), &|_| true),
        (format!("product_id={cup}"), &|n| n % 2 == 1),
        (format!("template_id={template}"), &|n| n == 3 || n == 9),
        ("status=cancelled".to_owned(), &|n| n % 3 == 0),
        ("status=paid".to_owned(), &|n| n % 3 != 0),
        (format!("from={}", at(4)), &|n| n >= 4),
        (format!("until={}", at(4)), &|n| n < 4),
        (format!("from={}&until={}", at(4), at(8)), &|n| (4..8).contains(&n)),
        (format!("user_id={ann}&product_id={cup}"), &|n| n < 6 && n % 2 == 1),
        (format!("user_id={bob}&status=cancelled"), &|n| n >= 6 && n % 3 == 0),
        (format!("user_id={bob}&template_id={template}"), &|n| n == 9),
        (format!("product_id={cup}&status=cancelled"), &|n| n % 2 == 1 && n % 3 == 0),
        (format!("product_id={cup}&template_id={template}&status=paid"), &|_| false),
        (format!("template_id={template}&from={}", at(4)), &|n| n == 9),
        (format!("status=cancelled&until={}", at(6)), &|n| n < 6 && n % 3 == 0),
        (
            format!(
                "user_id={bob}&product_id={cup}&template_id={template}&status=cancelled&from={}&until={}",
                at(9),
                at(10)
            ),
            &|n| n == 9,
        ),
        ("user_id=nobody".to_owned(), &|_| false),
        ("product_id=nothing".to_owned(), &|_| false),
        ("template_id=nothing".to_owned(), &|_| false),
    ] {
        assert_eq!(shop.found(&query).await, newest_first(keep), "{query}");
    }
}

#[tokio::test]
async fn what_was_answered_is_found() {
    let api = Api::shared().await;
    let (user, mug) = (api.user(10_000).await, api.product(100, 100).await);
    let find = async |status: &str| {
        let path = format!("/v1/orders?product_id={mug}&status={status}&limit=1");
        api.get(&path).service().ok(200).await["data"][0].clone()
    };
    for _ in 0..10 {
        let order = api.order(&user, &[(&mug, 1)], json!({})).ok(201).await;
        assert_eq!(find("paid").await, order);
        let cancelled = api.cancel(&order, &user).ok(200).await;
        assert_eq!(find("cancelled").await, cancelled);
    }
}

#[tokio::test]
async fn the_search_is_for_the_backend_and_for_staff() {
    let api = Api::shared().await;
    api.get("/v1/orders").refused(401, "unauthenticated").await;
    api.get("/v1/orders?user_id=ann").user("ann").refused(403, "forbidden").await;
    api.get("/v1/orders?limit=1").service().ok(200).await;
    api.get("/v1/orders?limit=1").admin().ok(200).await;
}

#[tokio::test]
async fn a_search_that_is_not_acceptable_is_refused() {
    let api = Api::shared().await;
    for (bad, field) in [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("after=x", "after"),
        ("user_id=", "user_id"),
        ("user_id=a%20b", "user_id"),
        ("product_id=a%2Fb", "product_id"),
        ("template_id=%00", "template_id"),
        ("status=open", "status"),
        ("from=yesterday", "from"),
        ("from=2026-11-22", "from"),
        ("until=5", "until"),
        ("from=2026-11-22T09:00:00Z&until=2026-11-22T09:00:00Z", "until"),
        ("status=paid&status=paid", "status"),
        ("note=1", "note"),
        ("reference=%ED%95%9C", "reference"),
    ] {
        assert_eq!(
            api.get(&format!("/v1/orders?{bad}")).service().refused_field().await,
            field,
            "{bad}"
        );
    }
    for far in [
        "from=9999-01-01T00:00:00Z",
        "until=1970-01-01T00:00:00Z",
        "after=00000000-0000-0000-0000-000000000000",
    ] {
        let found = api.get(&format!("/v1/orders?{far}")).service().ok(200).await;
        assert_eq!(found, json!({"data": [], "next": null}), "{far}");
    }
}
