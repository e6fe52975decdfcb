//! Placing, paying and reading orders.

use serde_json::json;

use super::*;

#[tokio::test]
async fn an_order_takes_stock_balance_and_coupon_and_can_be_read_at_once() {
    let api = Api::shared().await;
    let (mug, cup) = (api.product(15_000, 10).await, api.product(2_500, 10).await);
    let user = api.user(100_000).await;
    let coupon = api.coupon(&api.template(json!({})).await, &user).await;
    let items = [(mug.as_str(), 1), (cup.as_str(), 2), (mug.as_str(), 1)];
    let more = json!({"coupon_id": coupon, "expected_total": 34_000});
    let order = api.order(&user, &items, more).ok(201).await;
    let item = |id: &str, price: u64| json!({"product_id": id, "name": "A product", "unit_price": price, "quantity": 2, "amount": price * 2});
    let expected = json!({"order_id": order["order_id"], "user_id": user, "status": "paid",
        "items": [item(&mug, 15_000), item(&cup, 2_500)], "subtotal": 35_000, "discount": 1_000, "total": 34_000,
        "coupon_id": coupon, "balance": 66_000, "ordered_at": order["ordered_at"]});
    assert_eq!(order, expected);
    assert_now(&order, "ordered_at");
    let id = text(&order, "order_id");
    assert_eq!(id.parse::<uuid::Uuid>().unwrap().get_version_num(), 7);

    assert_eq!(api.get(&format!("/v1/orders/{id}")).user(&user).ok(200).await, order);
    let list = api.get(&format!("/v1/users/{user}/orders")).user(&user).ok(200).await;
    assert_eq!(list, json!({"data": [order], "next": null}));
    assert_eq!(
        (api.stock(&mug).await, api.stock(&cup).await, api.balance(&user).await),
        (8, 8, 66_000)
    );
    let coupons = api.get(&format!("/v1/users/{user}/coupons")).user(&user).ok(200).await;
    assert_eq!(
        (column(&coupons, "status"), column(&coupons, "order_id")),
        (vec![&json!("used")], vec![&json!(id)])
    );
}

#[tokio::test]
async fn orders_are_listed_newest_first_page_by_page() {
    let api = Api::shared().await;
    let (user, mug) = (api.user(10_000).await, api.product(100, 10).await);
    let mut orders = Vec::new();
    for _ in 0..3 {
        orders.insert(0, api.order(&user, &[(&mug, 1)], json!({})).ok(201).await);
    }
    let path = format!("/v1/users/{user}/orders");
    let first = api.get(&format!("{path}?limit=2")).user(&user).ok(200).await;
    assert_eq!(first, json!({"data": orders[..2], "next": orders[1]["order_id"]}));
    for limit in [1, 2, 3, 100] {
        assert_eq!(pages(&api, &path, limit).await, orders, "{limit}");
    }
    assert!(orders[0].get("coupon_id").is_none(), "no coupon, no member");
}

#[tokio::test]
async fn a_percentage_is_rounded_down_and_has_its_maximum() {
    let api = Api::shared().await;
    let product = api.product(100, 1_000).await;
    for (discount, quantity, off) in [
        (json!({"type": "percent", "value": 33}), 1, 33),
        (json!({"type": "percent", "value": 7}), 1, 7),
        (json!({"type": "percent", "value": 1}), 1, 1),
        (json!({"type": "percent", "value": 10, "max": 15}), 2, 15),
        (json!({"type": "percent", "value": 100}), 3, 300),
        (json!({"type": "amount", "value": 1_000_000}), 2, 200),
    ] {
        let user = api.user(1_000).await;
        let coupon = api.coupon(&api.template(json!({"discount": discount})).await, &user).await;
        let order =
            api.order(&user, &[(&product, quantity)], json!({"coupon_id": coupon})).ok(201).await;
        assert_eq!(
            (&order["discount"], &order["total"]),
            (&json!(off), &json!(quantity * 100 - off)),
            "{discount}"
        );
    }
}

#[tokio::test]
async fn an_order_is_refused_whole() {
    let api = Api::shared().await;
    let (mug, cup) = (api.product(10_000, 5).await, api.product(1_000, 5).await);
    let (user, other) = (api.user(30_000).await, api.user(1_000).await);
    let dear = api.template(json!({"min_subtotal": 20_100})).await;
    let coupon = api.coupon(&dear, &user).await;
    let foreign = api.coupon(&dear, &other).await;
    let suspended = api.product(1_000, 5).await;
    let body = json!({"name": "n", "price": 1_000, "status": "suspended"});
    api.put(&format!("/v1/products/{suspended}"), &body).admin().ok(200).await;
    let order = |items: &[(&str, u64)], more: Value| api.order(&user, items, more);

    let problem =
        order(&[(&cup, 1), (&mug, 6)], json!({})).refused(409, "insufficient-stock").await;
    assert_eq!(
        (&problem["product_id"], &problem["available"], &problem["required"]),
        (&json!(mug), &json!(5), &json!(6))
    );
    let twice = order(&[(&mug, 3), (&cup, 1), (&mug, 3)], json!({}))
        .refused(409, "insufficient-stock")
        .await;
    assert_eq!(twice["required"], 6, "the same product twice counts as the sum");
    let problem =
        order(&[(&cup, 1), (&mug, 3)], json!({})).refused(409, "insufficient-balance").await;
    assert_eq!((&problem["balance"], &problem["required"]), (&json!(30_000), &json!(31_000)));
    let problem =
        order(&[(&mug, 2)], json!({"coupon_id": coupon})).refused(409, "subtotal-too-low").await;
    assert_eq!(
        (&problem["required"], &problem["subtotal"], &problem["coupon_id"]),
        (&json!(20_100), &json!(20_000), &json!(coupon))
    );
    let problem =
        order(&[(&cup, 1)], json!({"expected_total": 999})).refused(409, "price-changed").await;
    assert_eq!(problem["total"], 1_000);
    let problem =
        order(&[(&cup, 1), (&suspended, 1)], json!({})).refused(409, "product-not-on-sale").await;
    assert_eq!(problem["product_id"], suspended);
    let nothing = fresh("nothing");
    let problem =
        order(&[(&cup, 1), (&nothing, 1)], json!({})).refused(404, "product-not-found").await;
    assert_eq!(problem["product_id"], nothing);
    for unknown in [foreign.as_str(), "01939e5a-7c2f-7b3e-9d54-8a1c6f2e0b47"] {
        let problem = order(&[(&mug, 3)], json!({"coupon_id": unknown}))
            .refused(404, "coupon-not-found")
            .await;
        assert_eq!(problem["coupon_id"], unknown);
    }
    let poor = fresh("user");
    let problem =
        api.order(&poor, &[(&cup, 1)], json!({})).refused(409, "insufficient-balance").await;
    assert_eq!((&problem["balance"], &problem["required"]), (&json!(0), &json!(1_000)));

    assert_eq!(
        (api.stock(&mug).await, api.stock(&cup).await, api.balance(&user).await),
        (5, 5, 30_000)
    );
    assert_eq!(
        api.get(&format!("/v1/users/{user}/orders")).user(&user).ok(200).await["data"],
        json!([])
    );
    let coupons =
        api.get(&format!("/v1/users/{user}/coupons?status=available")).user(&user).ok(200).await;
    assert_eq!(column(&coupons, "coupon_id"), [&coupon]);

    let paid = order(&[(&mug, 2), (&cup, 1)], json!({"coupon_id": coupon})).ok(201).await;
    let problem = order(&[(&mug, 3)], json!({"coupon_id": coupon}))
        .refused(409, "coupon-not-available")
        .await;
    assert_eq!(problem["coupon_id"], paid["coupon_id"]);
}

#[tokio::test]
async fn an_order_of_the_highest_bounds_is_an_order() {
    let api = Api::shared().await;
    let user = api.user(1_000_000).await;
    let mut ids = Vec::new();
    for n in 0..50 {
        ids.push(api.product(100, if n == 0 { 1_000 } else { 1 }).await);
    }
    let items: Vec<(&str, u64)> = ids
        .iter()
        .enumerate()
        .map(|(n, id)| (id.as_str(), if n == 0 { 1_000 } else { 1 }))
        .collect();
    let order = api.order(&user, &items, json!({})).ok(201).await;
    assert_eq!((order["items"].as_array().unwrap().len(), &order["total"]), (50, &json!(104_900)));
    assert_eq!(
        api.get(&format!("/v1/orders/{}", text(&order, "order_id"))).user(&user).ok(200).await,
        order
    );
}

#[tokio::test]
async fn an_order_keeps_the_names_and_prices_of_its_moment() {
    let api = Api::shared().await;
    let (user, mug) = (api.user(10_000).await, api.product(1_000, 5).await);
    let order = api.order(&user, &[(&mug, 1)], json!({})).ok(201).await;
    let body = json!({"name": "Dearer", "price": 9_000, "status": "on_sale"});
    api.put(&format!("/v1/products/{mug}"), &body).admin().ok(200).await;
    assert_eq!(
        api.get(&format!("/v1/orders/{}", text(&order, "order_id"))).user(&user).ok(200).await,
        order
    );
    let next = api.order(&user, &[(&mug, 1)], json!({})).ok(201).await;
    assert_eq!((&next["items"][0]["name"], &next["total"]), (&json!("Dearer"), &json!(9_000)));
}

#[tokio::test]
async fn an_order_that_is_not_there_is_not_found() {
    let api = Api::shared().await;
    let user = fresh("user");
    let path = "/v1/orders/01939e5a-7c2f-7b3e-9d54-8a1c6f2e0b47";
    api.get(path).user(&user).refused(404, "order-not-found").await;
    api.call("POST", &format!("{path}/cancel")).user(&user).refused(404, "order-not-found").await;
}

/// If a coupon covers the whole order, the user needs no wallet, and has one afterwards.
#[tokio::test]
async fn an_order_for_nothing_needs_no_wallet() {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[]).await;
    let api = instance.client();
    let (user, cup) = (fresh("user"), api.product(1_000, 5).await);
    let coupon = api.coupon(&api.template(json!({})).await, &user).await;
    api.order(&user, &[(&cup, 2)], json!({"coupon_id": coupon}))
        .refused(409, "insufficient-balance")
        .await;
    let order = api.order(&user, &[(&cup, 1)], json!({"coupon_id": coupon})).ok(201).await;
    assert_eq!((&order["total"], &order["balance"]), (&json!(0), &json!(0)));
    let ledger = api.get(&format!("/v1/users/{user}/wallet/entries")).user(&user).ok(200).await;
    let [entry] = &ledger["data"].as_array().unwrap()[..] else { panic!("{ledger}") };
    assert_eq!((&entry["kind"], &entry["amount"]), (&json!("payment"), &json!(0)));
    backend.assert_audit_clean().await;
    backend.rebuild().await;
    instance.wait_until_ready().await;
    assert_eq!(api.balance(&user).await, 0);
    let cancelled = api.cancel(&order, &user).ok(200).await;
    assert_eq!((&cancelled["status"], &cancelled["balance"]), (&json!("cancelled"), &json!(0)));
    assert_eq!(api.stock(&cup).await, 5);
    let coupons =
        api.get(&format!("/v1/users/{user}/coupons?status=available")).user(&user).ok(200).await;
    assert_eq!(column(&coupons, "coupon_id"), [&coupon]);
    backend.assert_audit_clean().await;
}

/// Lists are sorted by id, and a UUIDv7 begins with its milliseconds.
#[tokio::test]
async fn an_orders_id_is_of_the_gates_clock() {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[]).await;
    let api = instance.client();
    let (user, mug) = (api.user(1_000).await, api.product(100, 10).await);
    backend.set_clock_ahead(Duration::from_secs(3_600)).await;
    api.charge(&user, 1).user(&user).ok(201).await; // the instance learns the gate's time
    let order = api.order(&user, &[(&mug, 1)], json!({})).ok(201).await;
    let id: uuid::Uuid = text(&order, "order_id").parse().unwrap();
    let (secs, nanos) = id.get_timestamp().unwrap().to_unix();
    let made = secs as i64 * 1_000 + i64::from(nanos) / 1_000_000;
    let apart = (time(&order, "ordered_at").as_millisecond() - made).abs();
    assert!(apart < 60_000, "{apart} ms");
}
