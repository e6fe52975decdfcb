//! Popular products.

use serde_json::json;

use super::*;

#[tokio::test]
async fn the_most_sold_products_of_three_days_are_listed() {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[]).await;
    let api = instance.client();
    let first = until("the first list is made", async || {
        let answer = api.get("/v1/products/popular").send().await;
        (answer.status == 200).then_some(answer.body)
    })
    .await;
    assert_eq!(members(&first), BTreeSet::from(["data", "from", "refreshed_at", "to"]));
    assert_eq!(first["data"], json!([]));

    let user = api.user(1_000_000).await;
    let mut products = Vec::new();
    for sold in 1..=6 {
        let id = api.product(100, 100).await;
        api.order(&user, &[(&id, sold)], json!({})).ok(201).await;
        products.insert(0, (id, sold));
    }
    let never_mind = api.product(100, 100).await;
    let order = api.order(&user, &[(&never_mind, 50)], json!({})).ok(201).await;
    api.cancel(&order, &user).ok(200).await;
    let (last, _) = &products[0];
    api.order(&user, &[(last, 3)], json!({})).ok(201).await;
    let refreshed = api.call("POST", "/v1/products/popular/refresh").admin().ok(200).await;
    assert_eq!(
        column(&refreshed, "id"),
        products[..5].iter().map(|(id, _)| id).collect::<Vec<_>>()
    );
    assert_eq!(
        column(&refreshed, "sold"),
        [9, 5, 4, 3, 2],
        "the latest order, too; the cancelled one not"
    );
    assert_eq!(column(&refreshed, "rank"), [1, 2, 3, 4, 5]);
    let expected = json!({"rank": 1, "id": last, "name": "A product", "price": 100, "stock": 91, "status": "on_sale",
        "state": "open", "sold": 9});
    assert_eq!(refreshed["data"][0], expected);
    assert_now(&refreshed, "refreshed_at");
    let window = time(&refreshed, "to").duration_since(time(&refreshed, "from"));
    assert_eq!(window, jiff::SignedDuration::from_hours(72));
    assert_eq!(api.get("/v1/products/popular").ok(200).await, refreshed, "without a token");

    let body = json!({"name": "Renamed", "price": 200, "status": "suspended"});
    api.put(&format!("/v1/products/{last}"), &body).admin().ok(200).await;
    let now = api.get("/v1/products/popular").ok(200).await;
    assert_eq!(
        (&now["data"][0]["name"], &now["data"][0]["status"]),
        (&json!("Renamed"), &json!("suspended"))
    );
    assert_eq!(now["refreshed_at"], refreshed["refreshed_at"]);
}

#[tokio::test]
async fn a_list_made_right_after_an_order_has_it() {
    let api = Api::shared().await;
    let (user, hit) = (api.user(1_000_000).await, api.product(100, 1_000_000).await);
    api.order(&user, &[(&hit, 1_000)], json!({})).ok(201).await;
    for round in 2..=5 {
        api.order(&user, &[(&hit, 1_000)], json!({})).ok(201).await;
        let list = api.call("POST", "/v1/products/popular/refresh").admin().ok(200).await;
        assert_eq!(
            (&list["data"][0]["id"], &list["data"][0]["sold"]),
            (&json!(hit), &json!(round * 1_000))
        );
    }
}

/// Orders are dated by the gate's clock; the instance's clock may be behind.
#[tokio::test]
async fn a_refresh_is_cut_by_the_gates_clock() {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[]).await;
    let api = instance.client();
    backend.set_clock_ahead(Duration::from_secs(3_600)).await;
    let (user, hit) = (api.user(1_000).await, api.product(100, 10).await);
    let order = api.order(&user, &[(&hit, 3)], json!({})).ok(201).await;
    let list = api.call("POST", "/v1/products/popular/refresh").admin().ok(200).await;
    assert_eq!((&list["data"][0]["id"], &list["data"][0]["sold"]), (&json!(hit), &json!(3)));
    assert!(time(&list, "to") > time(&order, "ordered_at"));
}
