//! Cancelling orders.

use serde_json::json;

use super::*;

#[tokio::test]
async fn a_cancelled_order_gives_back_everything_once() {
    let api = Api::shared().await;
    let (user, mug) = (api.user(50_000).await, api.product(10_000, 5).await);
    let coupon = api.coupon(&api.template(json!({})).await, &user).await;
    let order = api.order(&user, &[(&mug, 2)], json!({"coupon_id": coupon})).ok(201).await;
    assert_eq!((api.stock(&mug).await, api.balance(&user).await), (3, 31_000));

    let cancelled = api.cancel(&order, &user).ok(200).await;
    let changes = json!({"status": "cancelled", "balance": 50_000, "cancelled_at": cancelled["cancelled_at"]});
    assert_eq!(cancelled, with(order.clone(), changes));
    assert_now(&cancelled, "cancelled_at");
    for _ in 0..2 {
        assert_eq!(api.cancel(&order, &user).ok(200).await, cancelled, "again: the same answer");
    }
    assert_eq!(
        api.cancel(&order, &user).json(&json!({})).ok(200).await,
        cancelled,
        "an empty object is no body"
    );
    assert_eq!((api.stock(&mug).await, api.balance(&user).await), (5, 50_000));
    let path = format!("/v1/orders/{}", text(&order, "order_id"));
    assert_eq!(api.get(&path).user(&user).ok(200).await, cancelled);
    let list = api.get(&format!("/v1/users/{user}/orders")).user(&user).ok(200).await;
    assert_eq!(list["data"], json!([cancelled]));

    let again = api.order(&user, &[(&mug, 1)], json!({"coupon_id": coupon})).ok(201).await;
    assert_eq!(again["discount"], 1_000, "the coupon can be used again");
    assert_eq!(api.cancel(&order, &user).ok(200).await, cancelled, "and stays with the new order");
    assert_eq!((api.stock(&mug).await, api.balance(&user).await), (4, 41_000));
}

#[tokio::test]
async fn a_refund_over_the_limit_is_refused_and_changes_nothing() {
    let api = Api::shared().await;
    let (user, mug) = (api.user(100_000).await, api.product(100_000, 1).await);
    let order = api.order(&user, &[(&mug, 1)], json!({})).ok(201).await;
    api.charge(&user, 900_100).user(&user).ok(201).await;
    let problem = api.cancel(&order, &user).refused(409, "balance-limit-exceeded").await;
    assert_eq!(problem["balance"], 900_100);
    assert_eq!((api.stock(&mug).await, api.balance(&user).await), (0, 900_100));
    let path = format!("/v1/orders/{}", text(&order, "order_id"));
    assert_eq!(api.get(&path).user(&user).ok(200).await, order);

    let small = api.product(100, 1).await;
    api.order(&user, &[(&small, 1)], json!({})).ok(201).await;
    assert_eq!(api.cancel(&order, &user).ok(200).await["balance"], 1_000_000, "exactly the limit");
}

#[tokio::test]
async fn an_order_of_a_suspended_product_can_be_cancelled() {
    let api = Api::shared().await;
    let (user, mug) = (api.user(1_000).await, api.product(1_000, 1).await);
    let order = api.order(&user, &[(&mug, 1)], json!({})).ok(201).await;
    let body = json!({"name": "n", "price": 2_000, "status": "suspended"});
    api.put(&format!("/v1/products/{mug}"), &body).admin().ok(200).await;
    assert_eq!(api.cancel(&order, &user).ok(200).await["balance"], 1_000, "what was paid");
    assert_eq!(api.stock(&mug).await, 1);
}

#[tokio::test]
async fn a_coupon_expires_after_365_days_and_is_not_given_back_then() {
    const DAY_MS: i64 = 24 * 60 * 60 * 1_000;
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[]).await;
    let api = instance.client();
    let (user, mug) = (api.user(50_000).await, api.product(10_000, 5).await);
    let template = api.template(json!({"issue_until": "2999-01-01T00:00:00Z"})).await;
    let unused = api.coupon(&template, &user).await;
    let used = api.coupon(&api.template(json!({})).await, &user).await;
    let order = api.order(&user, &[(&mug, 1)], json!({"coupon_id": used})).ok(201).await;

    let raw = rushgate::redis::connect(&backend.redis.url()).await.unwrap();
    let set_clock = async |at: jiff::Timestamp, plus: i64| {
        use fred::interfaces::HashesInterface;
        let at = at.as_millisecond() + plus;
        let _: i64 = raw.hset(rushgate::redis::keys::Keys::meta(0), ("clock", at)).await.unwrap();
    };
    let coupons = api.get(&format!("/v1/users/{user}/coupons")).user(&user).ok(200).await;
    let last_issued = time(&coupons["data"][0], "issued_at");
    set_clock(last_issued, 364 * DAY_MS).await;
    let good = api.order(&user, &[(&mug, 1)], json!({"coupon_id": unused})).ok(201).await;
    api.cancel(&good, &user).ok(200).await;

    set_clock(last_issued, 365 * DAY_MS).await;
    let problem = api
        .order(&user, &[(&mug, 1)], json!({"coupon_id": unused}))
        .refused(409, "coupon-expired")
        .await;
    assert_eq!(
        (&problem["coupon_id"], &problem["expired_at"]),
        (&json!(unused), &coupons["data"][1]["expires_at"])
    );
    let expired =
        api.get(&format!("/v1/users/{user}/coupons?status=expired")).user(&user).ok(200).await;
    assert_eq!(column(&expired, "coupon_id"), [&unused]);
    assert_eq!(api.cancel(&order, &user).ok(200).await["balance"], 50_000);
    let all = api.get(&format!("/v1/users/{user}/coupons")).user(&user).ok(200).await;
    assert_eq!(column(&all, "status"), ["used", "expired"], "an expired coupon is not given back");
    api.issue(&template, &fresh("late")).ok(201).await;
    backend.assert_audit_clean().await;
}

/// The `Content-Type` that aiohttp, curl, .NET and others send with an empty POST.
const OF_EMPTY_BODIES: [&str; 5] = [
    "application/octet-stream",
    "application/x-www-form-urlencoded",
    "text/plain; charset=utf-8",
    "application/json",
    "",
];

#[tokio::test]
async fn an_empty_body_may_be_of_any_type() {
    let api = Api::shared().await;
    let (user, mug) = (api.user(5_000).await, api.product(1_000, 5).await);
    for kind in OF_EMPTY_BODIES {
        let order = api.order(&user, &[(&mug, 1)], json!({})).ok(201).await;
        let cancelled = api.cancel(&order, &user).body(kind, "").ok(200).await;
        assert_eq!(cancelled["status"], "cancelled", "{kind}");
        api.call("POST", "/v1/products/popular/refresh").admin().body(kind, "").ok(200).await;
    }
    let order = api.order(&user, &[(&mug, 1)], json!({})).ok(201).await;
    let call = || api.cancel(&order, &user);
    call().body("text/plain", "{}").refused(415, "unsupported-media-type").await;
    call().body("application/json", "{\"why\":1}").refused(422, "invalid-field").await;
    call().json(&json!({})).ok(200).await;
}
