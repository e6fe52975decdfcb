//! `Idempotency-Key`: a repeat returns the first answer and has no effect.

use serde_json::json;

use super::*;

/// Sends a request twice with the same key. Status and body must be equal, and the second answer
/// marked as a replay.
async fn replays(request: impl Fn() -> Call) -> Value {
    let key = fresh("key");
    let first = request().key(&key).send().await;
    assert!(first.status < 300 && !first.replayed(), "{first:?}");
    for _ in 0..2 {
        let again = request().key(&key).send().await;
        assert!(again.replayed(), "{again:?}");
        assert_eq!((again.status, &again.body), (first.status, &first.body));
    }
    first.body
}

#[tokio::test]
async fn a_repeat_gets_the_first_answer_and_changes_nothing() {
    let api = Api::shared().await;
    let (user, mug) = (api.user(10_000).await, api.product(1_000, 10).await);
    let template = api.template(json!({"max_issued": 2})).await;
    replays(|| api.charge(&user, 500).user(&user)).await;
    assert_eq!(api.balance(&user).await, 10_500);
    let coupon = text(&replays(|| api.issue(&template, &user)).await, "coupon_id");
    let order = replays(|| api.order(&user, &[(&mug, 2)], json!({"coupon_id": coupon}))).await;
    assert_eq!((api.stock(&mug).await, api.balance(&user).await), (8, 9_500));
    replays(|| api.cancel(&order, &user)).await;
    assert_eq!((api.stock(&mug).await, api.balance(&user).await), (10, 10_500));
    let path = format!("/v1/products/{mug}/stock-adjustments");
    replays(|| api.post(&path, &json!({"delta": -3, "reason": "broken"})).admin()).await;
    assert_eq!(api.stock(&mug).await, 7);
    let issued = api.get(&format!("/v1/coupon-templates/{template}")).ok(200).await;
    assert_eq!(issued["issued"], 1);
}

#[tokio::test]
async fn a_repeat_gets_the_first_answer_also_when_the_shop_has_changed_since() {
    let api = Api::shared().await;
    let (user, mug) = (api.user(1_000).await, api.product(1_000, 1).await);
    let order = api.order(&user, &[(&mug, 1)], json!({})).key("one").ok(201).await;
    let body = json!({"name": "Dearer", "price": 2_000, "status": "suspended"});
    api.put(&format!("/v1/products/{mug}"), &body).admin().ok(200).await;
    let again = api.order(&user, &[(&mug, 1)], json!({})).key("one").send().await;
    assert!(again.replayed() && again.body == order, "{again:?}");
    api.cancel(&order, &user).ok(200).await;
    let again = api.order(&user, &[(&mug, 1)], json!({})).key("one").send().await;
    assert!(
        again.replayed() && again.body == order,
        "the first answer, not the order of now: {again:?}"
    );
}

#[tokio::test]
async fn the_same_key_with_another_request_is_refused() {
    let api = Api::shared().await;
    let (user, mug) = (api.user(10_000).await, api.product(1_000, 10).await);
    let template = api.template(json!({})).await;
    let order = api.order(&user, &[(&mug, 1)], json!({})).ok(201).await;
    let other = api.order(&user, &[(&mug, 1)], json!({})).ok(201).await;
    let key = fresh("key");
    api.charge(&user, 5).user(&user).key(&key).ok(201).await;
    let before = (api.stock(&mug).await, api.balance(&user).await);
    for reused in [
        api.charge(&user, 6).user(&user),
        api.issue(&template, &user),
        api.order(&user, &[(&mug, 1)], json!({})),
        api.cancel(&order, &user),
    ] {
        reused.key(&key).refused(422, "idempotency-key-reused").await;
    }
    assert_eq!((api.stock(&mug).await, api.balance(&user).await), before);
    assert_eq!(api.get(&format!("/v1/coupon-templates/{template}")).ok(200).await["issued"], 0);

    let cancel_key = fresh("key");
    api.cancel(&order, &user).key(&cancel_key).ok(200).await;
    api.cancel(&other, &user).key(&cancel_key).refused(422, "idempotency-key-reused").await;
    api.cancel(&order, &user).key(&key).refused(422, "idempotency-key-reused").await;
    let adjust = |delta: i64| {
        let path = format!("/v1/products/{mug}/stock-adjustments");
        api.post(&path, &json!({"delta": delta})).admin().key(&key)
    };
    adjust(1).ok(201).await;
    adjust(2).refused(422, "idempotency-key-reused").await;
}

#[tokio::test]
async fn another_users_key_is_another_key() {
    let api = Api::shared().await;
    let (ann, bob, key) = (api.user(0).await, api.user(0).await, fresh("key"));
    api.charge(&ann, 5).user(&ann).key(&key).ok(201).await;
    let theirs = api.charge(&bob, 7).user(&bob).key(&key).send().await;
    assert!(theirs.status == 201 && !theirs.replayed(), "{theirs:?}");
    assert_eq!((api.balance(&ann).await, api.balance(&bob).await), (5, 7));
}

#[tokio::test]
async fn a_refusal_is_not_stored() {
    let api = Api::shared().await;
    let (user, mug, key) = (api.user(0).await, api.product(1_000, 1).await, fresh("key"));
    let order = || api.order(&user, &[(&mug, 1)], json!({})).key(&key);
    order().refused(409, "insufficient-balance").await;
    api.charge(&user, 1_000).user(&user).ok(201).await;
    let placed = order().send().await;
    assert!(placed.status == 201 && !placed.replayed(), "{placed:?}");
    assert!(order().send().await.replayed());
    let charge = || api.charge(&user, 1_000_000).user(&user).key("full");
    api.charge(&user, 1).user(&user).ok(201).await;
    charge().refused(409, "balance-limit-exceeded").await;
    api.charge(&user, 2).user(&user).key("full").ok(201).await;
}

#[tokio::test]
async fn keys_of_any_printable_form_are_told_apart() {
    let api = Api::shared().await;
    let user = api.user(0).await;
    let longest = "k".repeat(255);
    for (n, key) in
        ["a", "A", "a b", "a  b", "\"a\"", "{a}:b", "~", longest.as_str(), &longest[1..]]
            .iter()
            .enumerate()
    {
        let balance = api.charge(&user, 1).user(&user).key(key).ok(201).await["balance"].clone();
        assert_eq!(balance, n + 1, "{key}");
    }
}

#[tokio::test]
async fn a_refresh_with_a_key_is_done_once() {
    let api = Api::shared().await;
    let key = fresh("key");
    let refresh = || api.call("POST", "/v1/products/popular/refresh").admin();
    let first = refresh().key(&key).send().await;
    assert!(first.status == 200 && !first.replayed(), "{first:?}");
    let later = refresh().ok(200).await;
    assert!(time(&later, "refreshed_at") >= time(&first.body, "refreshed_at"));
    let again = refresh().key(&key).send().await;
    assert!(again.replayed(), "{again:?}");
    assert_eq!(again.body["refreshed_at"], first.body["refreshed_at"]);
    let product = api.product(100, 5).await;
    let adjust =
        api.post(&format!("/v1/products/{product}/stock-adjustments"), &json!({"delta": 1}));
    adjust.admin().key(&key).refused(422, "idempotency-key-reused").await;
    let used = fresh("key");
    let adjust =
        api.post(&format!("/v1/products/{product}/stock-adjustments"), &json!({"delta": 1}));
    adjust.admin().key(&used).ok(201).await;
    refresh().key(&used).refused(422, "idempotency-key-reused").await;
}

#[tokio::test]
async fn a_key_used_on_a_cancelled_order_belongs_to_that_request() {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[]).await;
    let api = instance.client();
    let (user, mug) = (api.user(10_000).await, api.product(1_000, 10).await);
    let order = api.order(&user, &[(&mug, 1)], json!({})).ok(201).await;
    let other = api.order(&user, &[(&mug, 1)], json!({})).ok(201).await;
    let cancelled = api.cancel(&order, &user).ok(200).await;
    let key = fresh("key");
    let first = api.cancel(&order, &user).key(&key).send().await;
    assert!(first.status == 200 && !first.replayed() && first.body == cancelled, "{first:?}");
    for _ in 0..2 {
        api.charge(&user, 5).user(&user).key(&key).refused(422, "idempotency-key-reused").await;
        api.cancel(&other, &user).key(&key).refused(422, "idempotency-key-reused").await;
        let again = api.cancel(&order, &user).key(&key).send().await;
        assert!(again.replayed() && again.body == cancelled, "{again:?}");
        assert_eq!((api.stock(&mug).await, api.balance(&user).await), (9, 9_000));
        backend.assert_audit_clean().await;
        backend.rebuild().await;
        instance.wait_until_ready().await;
    }
}
