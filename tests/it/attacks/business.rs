//! Abuse within the rules of HTTP: of idempotency keys, ids and quotas.

use serde_json::json;

use super::wire::victim;
use crate::api::{HttpAnswer, SECRET, text, token};

pub async fn keys_across_users(effort: usize) -> usize {
    let (instance, backend) = victim(&[("RUSHGATE_USER_RATE", "off")]).await;
    let api = instance.client();
    let product = api.product(100, 1_000_000).await;
    let mut tried = 0;
    for round in 0..effort * 10 {
        let (ann, bob) = (api.user(10_000).await, api.user(10_000).await);
        let key = format!("key {round}");
        let order = |user: &str| api.order(user, &[(&product, 1)], json!({})).key(&key);
        let first = order(&ann).ok(201).await;
        // The same key of another user is a different key: no replay, no refusal, and nothing is
        // revealed.
        let second = order(&bob).send().await;
        assert!(
            second.status == 201 && !second.replayed() && second.body["user_id"] == *bob,
            "{second:?}"
        );
        // A key that imitates another user's record (records are named `<user> <key>`).
        let forged =
            api.order(&bob, &[(&product, 1)], json!({})).key(&format!("{ann} {key}")).send().await;
        assert!(forged.status == 201 && !forged.replayed(), "{forged:?}");
        // The key does not help with a request in another user's name.
        let body = json!({"user_id": ann, "items": [{"product_id": product, "quantity": 1}]});
        api.post("/v1/orders", &body).user(&bob).key(&key).refused(404, "user-not-found").await;
        let again = order(&ann).send().await;
        assert!(again.replayed() && again.body == first);
        let other = api.order(&ann, &[(&product, 2)], json!({})).key(&key);
        other.refused(422, "idempotency-key-reused").await;
        tried += 6;
    }
    backend.assert_audit_clean().await;
    tried
}

pub async fn ids_guessed(effort: usize) -> usize {
    let (instance, backend) = victim(&[("RUSHGATE_USER_RATE", "off")]).await;
    let api = instance.client();
    let product = api.product(100, 1_000_000).await;
    let template = api.template(json!({"max_issued": 1_000})).await;
    let mut tried = 0;
    for _ in 0..effort * 5 {
        let (ann, eve) = (api.user(10_000).await, api.user(10_000).await);
        let order = text(&api.order(&ann, &[(&product, 1)], json!({})).ok(201).await, "order_id");
        let coupon = api.coupon(&template, &ann).await;
        let nobodys = uuid::Uuid::now_v7().to_string();
        // The answer for another user's resource equals the answer for a resource that does not
        // exist.
        for path in ["/v1/orders/@", "/v1/orders/@/cancel"] {
            let method = if path.ends_with("cancel") { "POST" } else { "GET" };
            let ask =
                async |id: &str| api.call(method, &path.replace('@', id)).user(&eve).send().await;
            same(&ask(&order).await, &ask(&nobodys).await);
            tried += 2;
        }
        let with_coupon = async |coupon: &str| {
            api.order(&eve, &[(&product, 1)], json!({"coupon_id": coupon})).send().await
        };
        let (somebodys, nobodys) = (with_coupon(&coupon).await, with_coupon(&nobodys).await);
        assert_eq!((somebodys.status, somebodys.code()), (404, "coupon-not-found"));
        assert_eq!((nobodys.status, nobodys.code()), (404, "coupon-not-found"));
        for path in ["wallet", "wallet/entries", "coupons", "orders"] {
            let ask = async |user: &str| {
                api.get(&format!("/v1/users/{user}/{path}")).user(&eve).send().await
            };
            same(&ask(&ann).await, &ask("nobody-at-all").await);
            tried += 2;
        }
        // A page cannot start after another user's resource.
        for (path, after) in [("orders", &order), ("coupons", &coupon)] {
            let answer =
                api.get(&format!("/v1/users/{eve}/{path}?after={after}")).user(&eve).send().await;
            let told = answer.body.to_string();
            assert!(!told.contains(&ann) && !told.contains("\"order_id\""), "{told}");
            tried += 1;
        }
        tried += 2;
    }
    // Ids are UUIDv7: a timestamp and 74 random bits. Consecutive ids may share the timestamp, but
    // nothing else.
    let user = api.user(100_000).await;
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(text(&api.order(&user, &[(&product, 1)], json!({})).ok(201).await, "order_id"));
    }
    let random: std::collections::HashSet<&str> = ids.iter().map(|id| &id[19..]).collect();
    assert_eq!(random.len(), ids.len(), "{ids:?}");
    backend.assert_audit_clean().await;
    tried
}

/// Both answers are 404 with equal bodies and the same header names.
fn same(one: &HttpAnswer, other: &HttpAnswer) {
    assert_eq!((one.status, one.code()), (404, other.code()));
    assert_eq!(one.body, other.body);
    let names = |answer: &HttpAnswer| {
        let mut names: Vec<String> = answer.headers.keys().map(ToString::to_string).collect();
        names.sort();
        names
    };
    assert_eq!(names(one), names(other));
}

pub async fn quota_by_many_tokens(effort: usize) -> usize {
    let (instance, _backend) = victim(&[("RUSHGATE_USER_RATE", "20/600s")]).await;
    let api = instance.client();
    let mut served = 0;
    for n in 0..effort * 60 {
        // Each token is different, and so a new entry in every token cache.
        let claims = json!({"sub": "greedy", "exp": jsonwebtoken::get_current_timestamp() + 600 + n as u64,
            "scope": "shop", "jti": n});
        let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
        let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap();
        served += usize::from(
            api.get("/v1/users/greedy/wallet").bearer(&token).send().await.status == 200,
        );
    }
    assert!((20..=22).contains(&served), "{served}");
    // A token whose scope allows nothing counts too. Other users are not affected.
    api.get("/v1/users/greedy/wallet")
        .bearer(&token("greedy", "openid"))
        .refused(429, "rate-limited")
        .await;
    api.get("/v1/users/modest/wallet").user("modest").ok(200).await;
    effort * 60
}
