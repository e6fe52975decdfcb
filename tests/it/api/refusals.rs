//! The table of refusals: a real server gives every code that is defined in the code.

use std::pin::pin;

use rushgate::http::problem::Code;
use serde_json::json;

use super::*;

/// Codes that these tests do not provoke, and why.
const NOT_HERE: [(&str, &str); 2] = [
    ("rate-limited", "needs a low rate limit; limits.rs brings it about"),
    ("internal-error", "only a defect brings it about; unit tests panic on purpose"),
];

/// One request for each code that does not need an outage.
async fn ordinary(api: &Api) -> BTreeSet<String> {
    let (user, rich) = (api.user(10_000).await, api.user(1_000_000).await);
    let (mug, suspended) = (api.product(1_000, 5).await, api.product(1_000, 5).await);
    let body = json!({"name": "n", "price": 1_000, "status": "suspended"});
    api.put(&format!("/v1/products/{suspended}"), &body).admin().ok(200).await;
    let taken = api.template(json!({"max_issued": 1, "min_subtotal": 5_000})).await;
    let coupon = api.coupon(&taken, &user).await;
    let cheap = api.template(json!({})).await;
    let used = api.coupon(&cheap, &user).await;
    api.order(&user, &[(&mug, 1)], json!({"coupon_id": used})).ok(201).await;
    let early =
        json!({"issue_from": "2990-01-01T00:00:00Z", "issue_until": "2999-01-01T00:00:00Z"});
    let late = json!({"issue_from": "2020-01-01T00:00:00Z", "issue_until": "2020-01-02T00:00:00Z"});
    let (early, late) = (api.template(early).await, api.template(late).await);
    let key = fresh("key");
    api.charge(&user, 1).user(&user).key(&key).ok(201).await;
    let order = |items: &[(&str, u64)], more: Value| api.order(&user, items, more);
    let adjust = api.post(&format!("/v1/products/{mug}/stock-adjustments"), &json!({"delta": -99}));
    let lower =
        api.put(&format!("/v1/coupon-templates/{taken}"), &template(json!({"max_issued": 0})));
    let (soon, over) = (api.product(1_000, 5).await, api.product(1_000, 5).await);
    for (id, rules) in [
        (&soon, json!({"sale_from": "2990-01-01T00:00:00Z", "per_user_limit": 1})),
        (&over, json!({"sale_until": "2020-01-01T00:00:00Z"})),
    ] {
        let body = with(json!({"name": "n", "price": 1_000, "status": "on_sale"}), rules);
        api.put(&format!("/v1/products/{id}"), &body).admin().ok(200).await;
    }
    let few = api.product(1_000, 5).await;
    let body = json!({"name": "n", "price": 1_000, "status": "on_sale", "per_user_limit": 1});
    api.put(&format!("/v1/products/{few}"), &body).admin().ok(200).await;
    let external = json!({"payment": "external"});
    let paid = api.order(&user, &[(&mug, 1)], json!({})).ok(201).await;
    let gone = api.order(&rich, &[(&mug, 1)], external.clone()).ok(201).await;
    api.cancel(&gone, &rich).ok(200).await;
    let hoarder = api.user(0).await;
    let many = api.product(1_000, 50).await;
    for _ in 0..5 {
        api.order(&hoarder, &[(&many, 1)], external.clone()).ok(201).await;
    }
    let confirm = |order: &Value| {
        let path = format!("/v1/orders/{}/confirm", text(order, "order_id"));
        api.post(&path, &json!({"payment_reference": "card"})).service()
    };
    let requests = [
        ("sale-not-open", order(&[(&soon, 1)], json!({}))),
        ("sale-ended", order(&[(&over, 1)], json!({}))),
        ("purchase-limit-exceeded", order(&[(&few, 2)], json!({}))),
        ("too-many-pending", api.order(&hoarder, &[(&many, 1)], external)),
        ("already-confirmed", confirm(&paid)),
        ("order-cancelled", confirm(&gone)),
        ("malformed-request", api.call("POST", "/v1/orders").user(&user).raw(b"{".to_vec())),
        ("unauthenticated", api.charge(&user, 1)),
        ("forbidden", api.get("/v1/admin/status").user(&user)),
        ("product-not-found", api.get("/v1/products/none")),
        ("coupon-template-not-found", api.get("/v1/coupon-templates/none")),
        (
            "coupon-not-found",
            order(&[(&mug, 1)], json!({"coupon_id": "01939e5a-7c2f-7b3e-9d54-8a1c6f2e0b47"})),
        ),
        ("order-not-found", api.get("/v1/orders/01939e5a-7c2f-7b3e-9d54-8a1c6f2e0b47").user(&user)),
        ("user-not-found", api.get(&format!("/v1/users/{rich}/wallet")).user(&user)),
        ("route-not-found", api.get("/v1/none")),
        ("method-not-allowed", api.call("DELETE", "/v1/products")),
        ("sold-out", api.issue(&taken, &rich)),
        ("already-issued", api.issue(&cheap, &user)),
        ("issuance-not-open", api.issue(&early, &user)),
        ("issuance-closed", api.issue(&late, &user)),
        ("insufficient-stock", order(&[(&mug, 6)], json!({}))),
        ("insufficient-balance", api.order(&api.user(0).await, &[(&mug, 1)], json!({}))),
        ("balance-limit-exceeded", api.charge(&rich, 1).user(&rich)),
        ("product-not-on-sale", order(&[(&suspended, 1)], json!({}))),
        ("coupon-not-available", order(&[(&mug, 1)], json!({"coupon_id": used}))),
        ("subtotal-too-low", order(&[(&mug, 1)], json!({"coupon_id": coupon}))),
        ("price-changed", order(&[(&mug, 1)], json!({"expected_total": 5}))),
        ("stock-below-zero", adjust.admin()),
        ("limit-below-issued", lower.admin()),
        ("body-too-large", api.call("POST", "/v1/orders").user(&user).raw(vec![b' '; 20_000])),
        (
            "unsupported-media-type",
            api.call("POST", "/v1/orders").user(&user).body("text/plain", "{}"),
        ),
        ("invalid-field", api.charge(&user, 1_000_001).user(&user)),
        ("idempotency-key-reused", api.charge(&user, 2).user(&user).key(&key)),
    ];
    let mut answered = BTreeSet::new();
    for (code, request) in requests {
        let answer = request.send().await;
        assert_eq!(answer.code(), code, "{answer:?}");
        assert_eq!(answer.status, status_of(code));
        answered.insert(code.to_owned());
    }
    answered
}

/// The status of each code in the contract, plus those that the code adds.
fn status_of(code: &str) -> u16 {
    match code {
        "malformed-request" => 400,
        "unauthenticated" => 401,
        "forbidden" => 403,
        "product-not-found"
        | "coupon-template-not-found"
        | "coupon-not-found"
        | "order-not-found"
        | "user-not-found"
        | "route-not-found" => 404,
        "method-not-allowed" => 405,
        "request-timeout" => 408,
        "sold-out"
        | "already-issued"
        | "issuance-not-open"
        | "issuance-closed"
        | "insufficient-stock"
        | "insufficient-balance"
        | "balance-limit-exceeded"
        | "product-not-on-sale"
        | "sale-not-open"
        | "sale-ended"
        | "purchase-limit-exceeded"
        | "too-many-pending"
        | "hold-expired"
        | "already-confirmed"
        | "order-cancelled"
        | "coupon-not-available"
        | "coupon-expired"
        | "subtotal-too-low"
        | "price-changed"
        | "stock-below-zero"
        | "limit-below-issued" => 409,
        "body-too-large" => 413,
        "unsupported-media-type" => 415,
        "invalid-field" | "idempotency-key-reused" => 422,
        "rate-limited" => 429,
        "internal-error" => 500,
        "gate-unavailable" | "overloaded" | "backlog-full" | "outcome-unknown"
        | "truth-unavailable" => 503,
        _ => panic!("{code} is in no table"),
    }
}

#[tokio::test]
async fn every_code_is_answered_by_a_real_server() {
    let api = Api::shared().await;
    let without_redis = pin!(outages::without_redis());
    let while_redis_hangs = pin!(outages::while_redis_hangs());
    let without_postgres = pin!(outages::without_postgres());
    let while_postgres_is_behind = pin!(outages::while_postgres_is_behind());
    let answered = futures::join!(
        ordinary(&api),
        without_redis,
        while_redis_hangs,
        without_postgres,
        while_postgres_is_behind,
        outages::a_year_later(),
        outages::a_body_that_does_not_come(&api),
    );
    let mut seen = answered.0;
    for more in [answered.1, answered.2, answered.3, answered.4, answered.5, answered.6] {
        seen.extend(more);
    }
    let defined: BTreeSet<String> = Code::ALL.iter().map(|code| code.as_str().to_owned()).collect();
    let explained: BTreeSet<String> = NOT_HERE.iter().map(|(code, _)| (*code).to_owned()).collect();
    let missing: Vec<&String> =
        defined.difference(&seen).filter(|code| !explained.contains(*code)).collect();
    assert!(missing.is_empty(), "never answered: {missing:?}");
    assert!(seen.is_subset(&defined) && seen.is_disjoint(&explained));
    assert!(Code::ALL.iter().all(|code| code.status().as_u16() == status_of(code.as_str())));
}
