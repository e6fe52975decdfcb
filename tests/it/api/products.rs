//! Products and their stock.

use serde_json::json;

use super::*;

#[tokio::test]
async fn a_product_is_created_then_changed() {
    let api = Api::shared().await;
    let id = fresh("mug");
    let path = format!("/v1/products/{id}");
    let body = json!({"name": "머그", "price": 15_000, "status": "on_sale", "stock": 3});
    let created = api.put(&path, &body).admin().ok(201).await;
    assert_eq!(created, with(json!({"id": id, "state": "open"}), body));
    assert_eq!(api.get(&path).ok(200).await, created, "without a token");

    let body = json!({"name": "Mug", "price": 100, "status": "suspended"});
    let changed = api.put(&path, &body).admin().ok(200).await;
    assert_eq!(changed, with(json!({"id": id, "stock": 3, "state": "suspended"}), body.clone()));
    assert_eq!(api.get(&path).ok(200).await, changed);
    assert_eq!(api.put(&path, &body).admin().ok(200).await, changed, "repeatable");

    let with_stock = with(body, json!({"stock": 4}));
    assert_eq!(api.put(&path, &with_stock).admin().refused_field().await, "stock");
    let without = json!({"name": "Mug", "price": 100, "status": "on_sale"});
    let path = format!("/v1/products/{}", fresh("mug"));
    assert_eq!(api.put(&path, &without).admin().ok(201).await["stock"], 0, "the default");
}

#[tokio::test]
async fn products_are_listed_page_by_page_in_the_order_of_their_ids() {
    let api = Api::shared().await;
    let after = fresh("zzz-list");
    let ids: Vec<String> = (1..=5).map(|n| format!("{after}-{n}")).collect();
    for id in ids.iter().rev() {
        let body = json!({"name": id, "price": 500, "status": "on_sale"});
        api.put(&format!("/v1/products/{id}"), &body).admin().ok(201).await;
    }
    let first = api.get(&format!("/v1/products?limit=2&after={after}")).ok(200).await;
    assert_eq!(members(&first), BTreeSet::from(["data", "next"]));
    assert_eq!(
        first["data"][0],
        json!({
            "id": ids[0], "name": ids[0], "price": 500, "stock": 0, "status": "on_sale", "state": "sold_out"
        })
    );
    assert_eq!(column(&first, "id"), [&ids[0], &ids[1]]);
    assert_eq!(first["next"], ids[1]);
    let second = api.get(&format!("/v1/products?after={}&limit=2", ids[1])).ok(200).await;
    assert_eq!(
        (column(&second, "id"), &second["next"]),
        (vec![&json!(ids[2]), &json!(ids[3])], &json!(ids[3]))
    );
    let last = api.get(&format!("/v1/products?after={}&limit=1", ids[3])).ok(200).await;
    assert_eq!((column(&last, "id"), &last["next"]), (vec![&json!(ids[4])], &Value::Null));
    let all = pages(&api, "/v1/products", 3).await;
    assert!(all.is_sorted_by(|a, b| a["id"].as_str() < b["id"].as_str()));
    assert!(ids.iter().all(|id| all.iter().any(|product| product["id"] == *id)));
}

#[tokio::test]
async fn a_stock_is_adjusted_within_its_bounds() {
    let api = Api::shared().await;
    let id = api.product(1_000, 5).await;
    let path = format!("/v1/products/{id}/stock-adjustments");
    let adjusted = api.post(&path, &json!({"delta": -2, "reason": "broken"})).admin().ok(201).await;
    assert_eq!(adjusted, json!({"product_id": id, "delta": -2, "stock": 3}));
    assert_eq!(api.stock(&id).await, 3);
    let problem =
        api.post(&path, &json!({"delta": -4})).admin().refused(409, "stock-below-zero").await;
    assert_eq!((&problem["product_id"], &problem["available"]), (&json!(id), &json!(3)));
    let too_much = api.post(&path, &json!({"delta": 1_000_000_000}));
    assert_eq!(too_much.admin().refused_field().await, "delta");
    assert_eq!(api.stock(&id).await, 3, "refusals change nothing");
    assert_eq!(api.post(&path, &json!({"delta": -3})).admin().ok(201).await["stock"], 0);
    assert_eq!(api.post(&path, &json!({"delta": 0})).admin().ok(201).await["stock"], 0);
}

#[tokio::test]
async fn what_comes_back_into_stock_can_be_ordered_at_once() {
    let api = Api::shared().await;
    let (user, id) = (api.user(10_000).await, api.product(1_000, 1).await);
    let order = || api.order(&user, &[(&id, 1)], json!({}));
    let placed = order().ok(201).await;
    order().refused(409, "insufficient-stock").await;
    api.cancel(&placed, &user).ok(200).await;
    order().ok(201).await;
    order().refused(409, "insufficient-stock").await;
    let path = format!("/v1/products/{id}/stock-adjustments");
    api.post(&path, &json!({"delta": 1})).admin().ok(201).await;
    order().ok(201).await;
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let api = Api::shared().await;
    let id = fresh("nothing");
    let problem = api.get(&format!("/v1/products/{id}")).refused(404, "product-not-found").await;
    assert_eq!(problem["product_id"], id);
    let adjust = api.post(&format!("/v1/products/{id}/stock-adjustments"), &json!({"delta": 1}));
    assert_eq!(adjust.admin().refused(404, "product-not-found").await["product_id"], id);
}

#[tokio::test]
async fn the_word_of_a_route_cannot_be_the_id_of_a_product() {
    let api = Api::shared().await;
    let body = json!({"name": "n", "price": 100, "status": "on_sale"});
    assert_eq!(api.put("/v1/products/popular", &body).admin().refused_field().await, "id");
    api.put("/v1/products/popular", &body).service().refused(403, "forbidden").await;
    let list = api.call("POST", "/v1/products/popular/refresh").admin().ok(200).await;
    assert!(list["data"].is_array(), "{list}");
}

#[tokio::test]
async fn a_put_with_its_stock_can_be_repeated() {
    let api = Api::shared().await;
    let id = fresh("product");
    let path = format!("/v1/products/{id}");
    let body =
        |stock: u64| json!({"name": "n", "price": 1_000, "status": "on_sale", "stock": stock});
    let created = api.put(&path, &body(5)).admin().ok(201).await;
    assert_eq!(api.put(&path, &body(5)).admin().ok(200).await, created);
    for other in [0, 4, 6] {
        assert_eq!(api.put(&path, &body(other)).admin().refused_field().await, "stock");
    }
    api.post(&format!("{path}/stock-adjustments"), &json!({"delta": 2})).admin().ok(201).await;
    assert_eq!(
        api.put(&path, &body(7)).admin().refused_field().await,
        "stock",
        "it was created with 5"
    );
    let again = api.put(&path, &body(5)).admin().ok(200).await;
    assert_eq!(again["stock"], 7, "the stock stays as it is");
    let without = fresh("product");
    let path = format!("/v1/products/{without}");
    let body = json!({"name": "n", "price": 1_000, "status": "on_sale"});
    api.put(&path, &body).admin().ok(201).await;
    assert_eq!(api.put(&path, &with(body, json!({"stock": 0}))).admin().ok(200).await["stock"], 0);
}

#[tokio::test]
async fn a_stock_that_cancellations_lifted_over_the_maximum_can_be_lowered() {
    let api = Api::shared().await;
    let (user, id) = (api.user(10_000).await, api.product(1_000, 1_000_000_000).await);
    let order = api.order(&user, &[(&id, 5)], json!({})).ok(201).await;
    let path = format!("/v1/products/{id}/stock-adjustments");
    let adjust = |delta: i64| api.post(&path, &json!({"delta": delta})).admin();
    adjust(5).ok(201).await;
    api.cancel(&order, &user).ok(200).await;
    assert_eq!(api.stock(&id).await, 1_000_000_005);
    assert_eq!(adjust(1).refused_field().await, "delta");
    assert_eq!(adjust(-2).ok(201).await["stock"], 1_000_000_003);
}
