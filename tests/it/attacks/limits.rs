//! More requests than a client may send, and more than can be served.

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::json;

use super::wire::victim;
use crate::api::{Api, HttpAnswer, text, token};

fn count(answers: &[HttpAnswer], status: u16) -> usize {
    answers.iter().filter(|answer| answer.status == status).count()
}

pub async fn one_user_on_many_connections(effort: usize) -> usize {
    let (instance, backend) = victim(&[("RUSHGATE_USER_RATE", "50/50s")]).await;
    let clients: Vec<Api> = (0..20).map(|_| instance.client()).collect();
    let started = Instant::now();
    let greedy = join_all(
        (0..effort * 200).map(|n| clients[n % 20].charge("greedy", 1).user("greedy").send()),
    );
    let modest = async {
        for _ in 0..20 {
            clients[0].charge("modest", 1).user("modest").ok(201).await;
            clients[0].charge("greedy", 1).service().ok(201).await;
        }
    };
    let (greedy, ()) = futures::join!(greedy, modest);
    let (served, refused) = (count(&greedy, 201), count(&greedy, 429));
    let most = 50 + usize::try_from(started.elapsed().as_secs()).unwrap() + 1;
    assert!(
        served >= 50 && served <= most && served + refused == greedy.len(),
        "{served} of {most}, {refused}"
    );
    for answer in greedy.iter().filter(|answer| answer.status == 429) {
        assert_eq!(answer.code(), "rate-limited");
        let header = |name: &str| answer.headers[name].to_str().unwrap();
        assert!(header("ratelimit").starts_with("\"user\";r=0;t="), "{answer:?}");
        assert_eq!(header("ratelimit-policy"), "\"user\";q=50;w=50");
    }
    // Refused requests changed nothing. The backend's requests did not count against the user.
    assert_eq!(clients[0].balance("greedy").await, served as u64 + 20);
    backend.assert_audit_clean().await;
    greedy.len()
}

pub async fn a_crowd_behind_one_address(effort: usize) -> usize {
    let (instance, backend) = victim(&[]).await;
    let api = instance.client();
    let coupons = 200 * effort as u64;
    let template = api.template(json!({"max_issued": coupons})).await;
    let people = 2_000 * effort.min(10);
    let mut answers = Vec::new();
    for first in (0..people).step_by(500) {
        answers.extend(
            join_all(
                (first..first + 500).map(|n| api.issue(&template, &format!("nat-{n}")).send()),
            )
            .await,
        );
    }
    assert_eq!((count(&answers, 429), count(&answers, 503)), (0, 0));
    assert_eq!(count(&answers, 201) as u64, coupons.min(people as u64));
    backend.assert_audit_clean().await;
    people
}

pub async fn addresses_made_up(effort: usize) -> usize {
    let rate = ("RUSHGATE_ADDRESS_RATE", "20/60s");
    let (untrusting, _one) = victim(&[rate]).await;
    let (behind_proxy, _two) = victim(&[rate, ("RUSHGATE_TRUSTED_PROXIES", "127.0.0.0/8")]).await;
    let ask = async |api: &Api, said: String| {
        let answer = api.get("/v1/products").header("x-forwarded-for", &said).send().await;
        if answer.status == 429 {
            assert!(answer.headers["ratelimit"].to_str().unwrap().starts_with("\"address\";r=0"));
        }
        answer.status
    };
    // (The client also fetches the API description from this address; this happens first.)
    let (api, proxied) = (untrusting.client(), behind_proxy.client());
    ask(&api, "192.0.2.1".into()).await;
    ask(&proxied, "192.0.2.1".into()).await;
    let (mut refused, mut tried) = (0, 0);
    for n in 0..effort * 100 {
        let made_up = format!("198.51.{}.{}", n / 250 % 250, n % 250);
        refused += usize::from(ask(&api, made_up.clone()).await == 429);
        assert_eq!(ask(&proxied, made_up).await, 200, "everybody has an address of their own");
        tried += 2;
    }
    assert!(refused >= effort * 100 - 22, "{refused} refused");
    // A client adds forged hops before the one that the proxy reports. They do not count.
    let mut refused = 0;
    for n in 0..60 {
        refused += usize::from(ask(&proxied, format!("10.9.8.{n}, 203.0.113.5")).await == 429);
        tried += 1;
    }
    assert!(refused >= 38, "{refused} refused");
    tried
}

pub async fn a_truth_that_hangs(effort: usize) -> usize {
    let settings = [
        ("RUSHGATE_TRUTH_LIMIT", "4"),
        ("RUSHGATE_REQUEST_TIMEOUT_MS", "2000"),
        ("RUSHGATE_TRUTH_TIMEOUT_MS", "4000"),
    ];
    let (instance, backend) = victim(&settings).await;
    let api = instance.client();
    let (user, product) = (api.user(10_000).await, api.product(100, 1_000).await);
    let order = api.order(&user, &[(&product, 1)], json!({})).ok(201).await;
    let path = format!("/v1/orders/{}", text(&order, "order_id"));
    api.get(&path).service().ok(200).await;
    // Another session locks the table that reads of orders need.
    let pool = sqlx::PgPool::connect(&backend.database_url).await.unwrap();
    let mut hanging = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE orders").execute(&mut *hanging).await.unwrap();
    let reads = join_all((0..effort * 40).map(|_| api.get(&path).service().send()));
    let others = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            let started = Instant::now();
            api.get(&format!("/v1/products/{product}")).ok(200).await;
            api.charge(&user, 1).user(&user).ok(201).await;
            api.post(&format!("/v1/products/{product}/stock-adjustments"), &json!({"delta": 1}))
                .admin()
                .ok(201)
                .await;
            slowest = slowest.max(started.elapsed());
        }
        slowest
    };
    let (reads, slowest) = futures::join!(reads, others);
    let codes = |code: &str| reads.iter().filter(|read| read.code() == code).count();
    // Four reads run and four wait; all others are refused at once.
    assert!(codes("overloaded") >= reads.len() - 8, "{} of {}", codes("overloaded"), reads.len());
    assert!(codes("truth-unavailable") <= 8 && count(&reads, 503) == reads.len());
    assert!(slowest < super::wire::LATENCY_BOUND * 2, "{slowest:?}");
    hanging.rollback().await.unwrap();
    api.get(&path).service().ok(200).await;
    reads.len()
}

pub async fn a_rush_without_end(effort: usize) -> usize {
    let settings = [("RUSHGATE_DECIDE_LIMIT", "16"), ("RUSHGATE_REQUEST_TIMEOUT_MS", "3000")];
    let (instance, backend) = victim(&settings).await;
    let api = instance.client();
    let template = api.template(json!({"max_issued": 100_000})).await;
    let backend_token = token("backend", "service");
    let issue = |n: usize| {
        let body = json!({"user_id": format!("rush-{n}")});
        api.post(&format!("/v1/coupon-templates/{template}/coupons"), &body)
            .bearer(&backend_token)
            .send()
    };
    let rush = join_all((0..effort.min(5) * 1_000).map(issue));
    let staff = async {
        let mut slowest = Duration::ZERO;
        for n in 0..20 {
            let started = Instant::now();
            api.get(&format!("/v1/coupon-templates/{template}")).ok(200).await;
            let body = json!({"name": "meanwhile", "price": 100, "status": "on_sale", "stock": 1});
            api.put(&format!("/v1/products/meanwhile-{n}"), &body).admin().ok(201).await;
            api.get("/v1/admin/status").admin().ok(200).await;
            slowest = slowest.max(started.elapsed());
        }
        slowest
    };
    let (rush, slowest) = futures::join!(rush, staff);
    let overloaded = rush.iter().filter(|answer| answer.code() == "overloaded").count();
    assert!(overloaded > 0 && count(&rush, 201) + overloaded == rush.len(), "{overloaded}");
    assert!(slowest < super::wire::LATENCY_BOUND * 3, "{slowest:?}");
    backend.assert_audit_clean().await;
    rush.len()
}
