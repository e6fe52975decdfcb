//! Orders that are paid outside.

use serde_json::json;

use super::*;

fn outside(more: Value) -> Value {
    with(json!({"payment": "external"}), more)
}

impl Api {
    fn confirm(&self, order: &Value, reference: &str) -> Call {
        self.confirm_as_nobody(order, reference).service()
    }

    fn confirm_as_nobody(&self, order: &Value, reference: &str) -> Call {
        let path = format!("/v1/orders/{}/confirm", text(order, "order_id"));
        self.post(&path, &json!({"payment_reference": reference}))
    }

    async fn shown(&self, order: &Value) -> Value {
        self.get(&format!("/v1/orders/{}", text(order, "order_id"))).service().ok(200).await
    }
}

#[tokio::test]
async fn an_order_waits_for_its_payment_and_is_confirmed_once() {
    let api = Api::shared().await;
    let (user, mug) = (api.user(5_000).await, api.product(10_000, 5).await);
    let coupon = api.coupon(&api.template(json!({})).await, &user).await;
    let reference = fresh("2026");
    let more = outside(json!({
        "coupon_id": coupon, "wallet_amount": 4_000, "hold_secs": 60, "reference": reference,
    }));
    let order = api.order(&user, &[(&mug, 2)], more).ok(201).await;
    assert_eq!(order["status"], "pending");
    assert_eq!(
        (&order["total"], &order["amount_due"], &order["wallet_amount"], &order["balance"]),
        (&json!(19_000), &json!(15_000), &json!(4_000), &json!(1_000))
    );
    let held = time(&order, "hold_expires_at").duration_since(time(&order, "ordered_at"));
    assert_eq!(held.as_secs(), 60);
    assert_eq!((api.stock(&mug).await, api.balance(&user).await), (3, 1_000));
    assert_eq!(api.shown(&order).await, order);

    api.confirm_as_nobody(&order, "card-1").user(&user).refused(403, "forbidden").await;
    let confirmed = api.confirm(&order, "card-1").ok(200).await;
    let changes = json!({
        "status": "paid", "payment_reference": "card-1", "paid_at": confirmed["paid_at"],
    });
    assert_eq!(confirmed, with(order.clone(), changes));
    assert_now(&confirmed, "paid_at");
    assert_eq!(api.confirm(&order, "card-1").ok(200).await, confirmed, "the same answer");
    let other = api.confirm(&order, "card-2").refused(409, "already-confirmed").await;
    assert_eq!(other["payment_reference"], "card-1");
    assert_eq!(api.shown(&order).await, confirmed);
    let found = api.get(&format!("/v1/orders?reference={reference}")).service().ok(200).await;
    assert_eq!(found["data"], json!([confirmed]));

    let cancelled = api.cancel(&order, &user).ok(200).await;
    assert_eq!((&cancelled["refund_due"], &cancelled["balance"]), (&json!(15_000), &json!(5_000)));
    assert_eq!(api.cancel(&order, &user).ok(200).await, cancelled);
    assert_eq!((api.stock(&mug).await, api.balance(&user).await), (5, 5_000));
    api.confirm(&order, "card-1").refused(409, "order-cancelled").await;
}

#[tokio::test]
async fn a_key_repeats_the_answer_to_a_confirmation() {
    let api = Api::shared().await;
    let (user, mug) = (api.user(0).await, api.product(1_000, 5).await);
    let key = fresh("key");
    let place = async || api.order(&user, &[(&mug, 1)], outside(json!({}))).key(&key).send().await;
    let (first, again) = (place().await, place().await);
    assert!(!first.replayed() && again.replayed());
    assert_eq!(first.body, again.body);
    let order = first.body;
    let changed = outside(json!({"hold_secs": 61}));
    let other = api.order(&user, &[(&mug, 1)], changed).key(&key);
    other.refused(422, "idempotency-key-reused").await;
    let key = fresh("key");
    let confirm = async |reference| api.confirm(&order, reference).key(&key).send().await;
    let (first, again) = (confirm("card").await, confirm("card").await);
    assert_eq!((first.status, again.status), (200, 200));
    assert!(!first.replayed() && again.replayed());
    assert_eq!(first.body, again.body);
    assert_eq!(confirm("another").await.code(), "idempotency-key-reused");
}

#[tokio::test]
async fn a_pending_order_is_cancelled_by_its_user() {
    let api = Api::shared().await;
    let (user, mug) = (api.user(3_000).await, api.product(1_000, 5).await);
    let order =
        api.order(&user, &[(&mug, 3)], outside(json!({"wallet_amount": 500}))).ok(201).await;
    let cancelled = api.cancel(&order, &user).ok(200).await;
    assert_eq!(cancelled["status"], "cancelled");
    assert!(cancelled.get("refund_due").is_none(), "nothing was paid outside");
    assert_eq!((api.stock(&mug).await, api.balance(&user).await), (5, 3_000));
    api.confirm(&order, "card").refused(409, "order-cancelled").await;
}

#[tokio::test]
async fn nothing_due_is_paid_at_once() {
    let api = Api::shared().await;
    let (user, mug) = (api.user(3_000).await, api.product(1_000, 5).await);
    let order =
        api.order(&user, &[(&mug, 3)], outside(json!({"wallet_amount": 3_000}))).ok(201).await;
    assert_eq!((&order["status"], &order["amount_due"]), (&json!("paid"), &json!(0)));
    assert!(order.get("hold_expires_at").is_none());
    let refused = api.confirm(&order, "card").refused(409, "already-confirmed").await;
    assert!(refused.get("payment_reference").is_none());
    assert_eq!(api.shown(&order).await, order);
}

#[tokio::test]
async fn what_is_asked_for_is_checked() {
    let api = Api::shared().await;
    let (user, mug) = (api.user(5_000).await, api.product(1_000, 50).await);
    let field = async |more: Value| api.order(&user, &[(&mug, 1)], more).refused_field().await;
    assert_eq!(field(json!({"payment": "card"})).await, "payment");
    assert_eq!(field(json!({"wallet_amount": 5})).await, "wallet_amount");
    assert_eq!(field(json!({"payment": "wallet", "hold_secs": 60})).await, "hold_secs");
    assert_eq!(field(outside(json!({"hold_secs": 59}))).await, "hold_secs");
    assert_eq!(field(outside(json!({"hold_secs": 3_601}))).await, "hold_secs");
    assert_eq!(field(outside(json!({"wallet_amount": 1_001}))).await, "wallet_amount");
    for bad in [json!(""), json!("x".repeat(65)), json!("\u{e9}"), json!("a\nb"), json!(5)] {
        assert_eq!(field(json!({"reference": bad})).await, "reference", "{bad}");
    }
    let order = api.order(&user, &[(&mug, 1)], outside(json!({}))).ok(201).await;
    for bad in [json!(""), json!("x".repeat(129)), json!("한")] {
        let path = format!("/v1/orders/{}/confirm", text(&order, "order_id"));
        let refused = api.post(&path, &json!({"payment_reference": bad})).service();
        assert_eq!(refused.refused_field().await, "payment_reference");
    }
    for _ in 0..4 {
        api.order(&user, &[(&mug, 1)], outside(json!({}))).ok(201).await;
    }
    let sixth = api.order(&user, &[(&mug, 1)], outside(json!({})));
    assert_eq!(sixth.refused(409, "too-many-pending").await["limit"], 5);
    let charge = api.charge(&user, 995_001).user(&user);
    charge.refused(409, "balance-limit-exceeded").await;
    let unknown = json!({"order_id": "01939e5a-7c2f-7b3e-9d54-8a1c6f2e0b47"});
    api.confirm(&unknown, "card").refused(404, "order-not-found").await;
}

#[tokio::test]
async fn holds_that_end_are_given_back_within_a_second() {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[("RUSHGATE_HOLD_SECS", "60")]).await;
    let api = instance.client();
    let (user, mug) = (api.user(1_000).await, api.product(1_000, 5).await);
    let order =
        api.order(&user, &[(&mug, 2)], outside(json!({"wallet_amount": 900}))).ok(201).await;
    let early = api.order(&user, &[(&mug, 1)], outside(json!({"hold_secs": 600}))).ok(201).await;
    // The gate's clock has passed the end of the first hold.
    backend.set_clock_ahead(Duration::from_secs(61)).await;
    let deadline = Instant::now() + Duration::from_secs(1);
    while api.stock(&mug).await != 4 {
        assert!(Instant::now() < deadline, "not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(api.balance(&user).await, 1_000);
    let expired = api.shown(&order).await;
    assert_eq!(expired["status"], "expired");
    assert!(expired["expired_at"].is_string(), "{expired}");
    let late = api.confirm(&order, "card").refused(409, "hold-expired").await;
    assert_eq!(late["hold_expires_at"], order["hold_expires_at"]);
    api.cancel(&order, &user).refused(409, "hold-expired").await;
    assert_eq!(api.shown(&early).await["status"], "pending");
}

#[tokio::test]
async fn a_quote_lists_every_refusal_and_the_best_coupons_and_reserves_nothing() {
    let api = Api::shared().await;
    let (user, mug) = (api.user(2_000).await, api.product(1_000, 2).await);
    let quote = async |items: &[(&str, u64)], more: Value| {
        let items: Vec<Value> = items
            .iter()
            .map(|(id, quantity)| json!({"product_id": id, "quantity": quantity}))
            .collect();
        let body = with(json!({"user_id": user, "items": items}), more);
        api.post("/v1/orders/quote", &body).user(&user).ok(200).await
    };
    let codes = |quote: &Value| {
        column(&json!({"data": quote["problems"]}), "code")
            .into_iter()
            .map(|code| code.as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let fine = quote(&[(&mug, 2)], json!({})).await;
    assert_eq!(
        (&fine["total"], &fine["orderable"], &fine["problems"]),
        (&json!(2_000), &json!(true), &json!([]))
    );
    let small = api
        .coupon(&api.template(json!({"discount": {"type": "amount", "value": 100}})).await, &user)
        .await;
    let large = api
        .coupon(&api.template(json!({"discount": {"type": "percent", "value": 50}})).await, &user)
        .await;
    let never = api.coupon(&api.template(json!({"min_subtotal": 50_000})).await, &user).await;
    let listed = quote(&[(&mug, 2)], json!({"coupon_id": small})).await;
    assert_eq!((&listed["discount"], &listed["total"]), (&json!(100), &json!(1_900)));
    let coupons = &listed["coupons"];
    let ids: Vec<&str> = (0..3).map(|n| coupons[n]["coupon_id"].as_str().unwrap()).collect();
    assert_eq!(ids, [large.as_str(), small.as_str(), never.as_str()]);
    assert_eq!((&coupons[0]["discount"], &coupons[0]["total"]), (&json!(1_000), &json!(1_000)));
    assert_eq!(coupons[2]["problem"]["code"], "subtotal-too-low");
    let total = listed["total"].clone();
    let order = api.order(&user, &[(&mug, 1)], json!({"expected_total": 1_000})).ok(201).await;
    let bad =
        quote(&[(&mug, 2), ("none", 1)], json!({"coupon_id": never, "expected_total": total}))
            .await;
    assert_eq!(bad["orderable"], false);
    assert_eq!(
        codes(&bad),
        [
            "insufficient-stock",
            "product-not-found",
            "subtotal-too-low",
            "price-changed",
            "insufficient-balance"
        ]
    );
    assert_eq!(bad["problems"][0]["available"], 1);
    assert_eq!(api.shown(&order).await["status"], "paid");
    let held = quote(&[(&mug, 1)], outside(json!({"wallet_amount": 2_000}))).await;
    assert_eq!(codes(&held), ["invalid-field", "insufficient-balance"]);
    let body = json!({"user_id": user, "items": []});
    let refused = api.post("/v1/orders/quote", &body).user(&user);
    assert_eq!(refused.refused_field().await, "items");
}

#[tokio::test]
async fn products_have_windows_limits_and_attributes() {
    let api = Api::shared().await;
    let (user, id) = (api.user(100_000).await, api.product(1_000, 10).await);
    let path = format!("/v1/products/{id}");
    let put = |more: Value| {
        let body = with(json!({"name": "n", "price": 1_000, "status": "on_sale"}), more);
        api.put(&path, &body).admin()
    };
    let attributes = json!({"image_url": "https://shop.example/mug.png", "colour": "빨강"});
    let rules = json!({
        "sale_from": "2026-01-01T09:00:00+09:00", "sale_until": "2990-01-01T00:00:00Z", "per_user_limit": 2,
        "attributes": attributes,
    });
    let changed = put(rules).ok(200).await;
    assert_eq!((&changed["state"], &changed["attributes"]), (&json!("open"), &attributes));
    assert_eq!(changed["sale_from"], "2026-01-01T00:00:00.000Z");
    assert_eq!(api.get(&path).ok(200).await, changed);
    let limit =
        api.order(&user, &[(&id, 3)], json!({})).refused(409, "purchase-limit-exceeded").await;
    assert_eq!(
        (&limit["limit"], &limit["bought"], &limit["requested"]),
        (&json!(2), &json!(0), &json!(3))
    );
    let order = api.order(&user, &[(&id, 2)], json!({})).ok(201).await;
    assert!(order["items"][0].get("attributes").is_none());
    api.order(&user, &[(&id, 1)], json!({})).refused(409, "purchase-limit-exceeded").await;
    api.cancel(&order, &user).ok(200).await;

    let later = put(json!({"sale_from": "2990-01-01T00:00:00Z"})).ok(200).await;
    assert_eq!(
        (&later["state"], later.get("attributes")),
        (&json!("scheduled"), None),
        "a PUT states all"
    );
    let early = api.order(&user, &[(&id, 1)], json!({})).refused(409, "sale-not-open").await;
    assert_eq!(early["sale_from"], "2990-01-01T00:00:00.000Z");
    let over = put(json!({"sale_until": "2026-01-01T00:00:00Z"})).ok(200).await;
    assert_eq!(over["state"], "ended");
    api.order(&user, &[(&id, 1)], json!({})).refused(409, "sale-ended").await;
    for (bad, field) in [
        (
            json!({"sale_from": "2026-01-02T00:00:00Z", "sale_until": "2026-01-01T00:00:00Z"}),
            "sale_until",
        ),
        (json!({"per_user_limit": 0}), "per_user_limit"),
        (json!({"per_user_limit": 1_001}), "per_user_limit"),
        (json!({"attributes": {"a b": "c"}}), "attributes"),
        (json!({"attributes": {"a": 5}}), "attributes.a"),
        (json!({"attributes": {"a": "x".repeat(4_096)}}), "attributes"),
    ] {
        let found = put(bad.clone()).refused_field().await;
        assert!(found == field || found == "attributes", "{bad}: {found}");
    }
}

#[tokio::test]
async fn a_coupon_keeps_the_terms_that_it_was_issued_with() {
    let api = Api::shared().await;
    let (user, other) = (api.user(100_000).await, api.user(0).await);
    let mug = api.product(10_000, 5).await;
    let id = api.template(json!({"discount": {"type": "percent", "value": 50}})).await;
    let issued = api.issue(&id, &user).ok(201).await;
    assert_eq!(issued["discount"], json!({"type": "percent", "value": 50}));
    assert_eq!(issued["min_subtotal"], 0);
    let changed =
        template(json!({"discount": {"type": "amount", "value": 10}, "min_subtotal": 99}));
    api.put(&format!("/v1/coupon-templates/{id}"), &changed).admin().ok(200).await;
    let later = api.issue(&id, &other).ok(201).await;
    assert_eq!((&later["discount"]["value"], &later["min_subtotal"]), (&json!(10), &json!(99)));
    let refused = api.issue(&id, &user).refused(409, "already-issued").await;
    assert_eq!(refused["coupon_id"], issued["coupon_id"]);
    let list = api.get(&format!("/v1/users/{user}/coupons")).user(&user).ok(200).await;
    assert_eq!(list["data"][0]["discount"], issued["discount"]);
    let coupon = text(&issued, "coupon_id");
    let order = api.order(&user, &[(&mug, 1)], json!({"coupon_id": coupon})).ok(201).await;
    assert_eq!(order["discount"], 5_000);
}
