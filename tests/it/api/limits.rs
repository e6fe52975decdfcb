//! Limits per user: writes per period, and keys per day.

use serde_json::json;

use super::*;

#[tokio::test]
async fn writes_of_one_user_have_a_rate_of_their_own() {
    let backend = Backend::new().await;
    let settings = [("RUSHGATE_USER_RATE", "off"), ("RUSHGATE_USER_WRITE_RATE", "3/600s")];
    let instance = backend.serve_all(&settings).await;
    let api = instance.client();
    let user = fresh("user");
    for _ in 0..3 {
        api.charge(&user, 5).user(&user).ok(201).await;
    }
    let answer = api.charge(&user, 5).user(&user).send().await;
    assert_eq!((answer.status, answer.code()), (429, "rate-limited"), "{answer:?}");
    assert_eq!(answer.headers["ratelimit-policy"], "\"write\";q=3;w=600");
    assert!(
        answer.headers["ratelimit"].to_str().unwrap().starts_with("\"write\";r=0;t="),
        "{answer:?}"
    );
    let (another, order) = (fresh("user"), json!({"user_id": user, "items": []}));
    api.post("/v1/orders", &order).user(&user).refused(429, "rate-limited").await;
    for _ in 0..5 {
        api.get(&format!("/v1/users/{user}/wallet")).user(&user).ok(200).await;
        api.charge(&user, 5).service().ok(201).await;
    }
    api.charge(&another, 5).user(&another).ok(201).await;
    assert_eq!(api.balance(&user).await, 40);
}

#[tokio::test]
async fn a_user_may_use_so_many_keys_in_a_day_on_all_instances_together() {
    let backend = Backend::new().await;
    let settings = [("RUSHGATE_USER_KEYS_PER_DAY", "3")];
    let (one, other) = (backend.serve_all(&settings).await, backend.serve_all(&settings).await);
    let (api, there) = (one.client(), other.client());
    let (user, another) = (fresh("user"), fresh("user"));
    let charge = |api: &Api, key: &str| api.charge(&user, 5).user(&user).key(key);
    charge(&api, "a").ok(201).await;
    charge(&there, "b").ok(201).await;
    charge(&api, "c").ok(201).await;
    for _ in 0..2 {
        for api in [&api, &there] {
            let problem = charge(api, "d").refused(429, "rate-limited").await;
            let wait = problem["retry_after"].as_u64().unwrap();
            assert!((1..=24 * 60 * 60).contains(&wait), "until midnight: {wait}");
            let repeated = charge(api, "a").send().await;
            assert!(repeated.status == 201 && repeated.replayed(), "{repeated:?}");
        }
        backend.assert_audit_clean().await;
        backend.rebuild().await;
        one.wait_until_ready().await;
        other.wait_until_ready().await;
    }
    assert_eq!(api.charge(&user, 5).user(&user).ok(201).await["balance"], 20, "without a key");
    api.charge(&another, 5).user(&another).key("d").ok(201).await;
    // The next day begins.
    backend.set_clock_ahead(Duration::from_secs(24 * 60 * 60)).await;
    charge(&api, "d").ok(201).await;
}
