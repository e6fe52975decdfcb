//! Texts that have a special meaning in SQL, Lua, the Redis protocol, headers or a log.

use serde_json::{Value, json};

use super::wire::{exchange, victim};
use crate::api::{fresh, template, text, token};
use crate::cluster::{Cluster, Instance, Request};

/// Texts that would do harm if they were not treated as plain text.
const HOSTILE: [&str; 26] = [
    "'; DROP TABLE orders; --",
    "' OR '1'='1",
    "\" OR \"\"=\"",
    "1; SELECT pg_sleep(10)",
    "$1",
    "%s%n",
    "]] redis.call('FLUSHALL') --[[",
    "') redis.call('FLUSHALL') ('",
    "\r\nFLUSHALL\r\n",
    "*1\r\n$8\r\nFLUSHALL\r\n",
    "a b c",
    "{0}",
    "}{",
    "rg:{0}:meta",
    "../../etc/passwd",
    "${jndi:ldap://127.0.0.1/a}",
    "{{7*7}}",
    "<script>alert(1)</script>",
    "\u{1b}[2J\u{1b}[31m",
    "a\nlevel=ERROR forged",
    "a\u{2028}b",
    "\u{202e}abc",
    "\0",
    "=cmd|' /C calc'!A0",
    "\u{feff}",
    "💥💥💥",
];

fn percent(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

pub async fn ids_and_keys(effort: usize) -> usize {
    let (instance, backend) = victim(&[]).await;
    let api = instance.client();
    let (user, product) = (api.user(100_000).await, api.product(100, 1_000_000).await);
    let coupon_template = api.template(json!({})).await;
    let mut tried = 0;
    for round in 0..effort {
        for (at, hostile) in HOSTILE.iter().enumerate() {
            let id = percent(hostile);
            for path in [
                format!("/v1/products/{id}"),
                format!("/v1/coupon-templates/{id}"),
                format!("/v1/users/{id}/wallet"),
                format!("/v1/users/{id}/orders?limit=5"),
                format!("/v1/orders/{id}"),
                format!("/v1/products?after={id}"),
                format!("/v1/users/{user}/coupons?status={id}"),
                format!("/v1/users/{user}/wallet/entries?after={id}"),
            ] {
                let answer = api.get(&path).admin().send().await;
                assert!((400..500).contains(&answer.status), "{path}: {answer:?}");
                tried += 1;
            }
            for body in [
                json!({"user_id": hostile, "items": [{"product_id": product, "quantity": 1}]}),
                json!({"user_id": user, "items": [{"product_id": hostile, "quantity": 1}]}),
                json!({"user_id": user, "items": [{"product_id": product, "quantity": 1}], "coupon_id": hostile}),
            ] {
                api.post("/v1/orders", &body).admin().refused(422, "invalid-field").await;
                tried += 1;
            }
            // Names and reasons may contain nearly everything, and are returned unchanged.
            let id = fresh("named");
            let named = json!({"name": hostile, "price": 100, "status": "on_sale", "stock": 5});
            let answer = api.put(&format!("/v1/products/{id}"), &named).admin().send().await;
            if hostile.chars().any(char::is_control) {
                assert_eq!(answer.code(), "invalid-field", "{hostile:?}");
            } else {
                assert_eq!(
                    (answer.status, text(&answer.body, "name")),
                    (201, (*hostile).to_owned())
                );
                let order = api
                    .order(&user, &[(&id, 1)], json!({}))
                    .key(&key_of(hostile, round, at))
                    .ok(201)
                    .await;
                assert_eq!(order["items"][0]["name"], *hostile);
                let again = api
                    .order(&user, &[(&id, 1)], json!({}))
                    .key(&key_of(hostile, round, at))
                    .send()
                    .await;
                assert!(again.replayed() && again.body == order, "{hostile:?}");
                let read = api
                    .get(&format!("/v1/orders/{}", text(&order, "order_id")))
                    .admin()
                    .ok(200)
                    .await;
                assert_eq!(read["items"][0]["name"], *hostile);
                let hostile_template = template(json!({"name": hostile}));
                let path = format!("/v1/coupon-templates/{}", fresh("t"));
                api.put(&path, &hostile_template).admin().ok(201).await;
            }
            let adjust = json!({"delta": 1, "reason": hostile});
            let path = format!("/v1/products/{product}/stock-adjustments");
            assert!([201, 422].contains(&api.post(&path, &adjust).admin().send().await.status));
            tried += 5;
        }
    }
    api.coupon(&coupon_template, &user).await;
    backend.assert_audit_clean().await;
    tried
}

/// A key may contain any printable ASCII character. Keeps what is allowed of `text` and makes it
/// unique.
fn key_of(text: &str, round: usize, at: usize) -> String {
    let printable: String = text.chars().filter(|c| (' '..='~').contains(c)).collect();
    format!("{printable} {round} {at}!")
}

pub async fn log_lines(_: usize) -> usize {
    let cluster = Cluster::servers().await;
    let instance = Instance::ready(&cluster.settings.with("RUST_LOG", "debug")).await;
    let mut tried = 0;
    for hostile in HOSTILE {
        let path = format!("/v1/products/{}", percent(hostile));
        instance.send(&Request::get(path)).await;
        instance.send(&Request::get(format!("/{}", percent(hostile)))).await;
        instance.send(&Request::charge("ann", 1).token(&percent(hostile))).await;
        let body = json!({"name": hostile, "price": 100, "status": "on_sale"});
        instance.send(&Request::put("/v1/products/hostile", body).admin()).await;
        tried += 4;
    }
    // Requests that no client library would send.
    for hostile in ["a\u{1b}[31mb", "a\tlevel=error", "\u{7f}", "a\u{b}b", "{\"level\":\"ERROR\"}"]
    {
        let raw = format!(
            "GET /v1/products HTTP/1.1\r\nhost: {hostile}\r\nx-request-id: {hostile}\r\ntraceparent: {hostile}\r\n\
             user-agent: {hostile}\r\nauthorization: Bearer {hostile}\r\nconnection: close\r\n\r\n"
        );
        let mut stream = tokio::net::TcpStream::connect(instance.listens_on()).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, raw.as_bytes()).await.unwrap();
        let answer = super::wire::drain(&mut stream, std::time::Duration::from_secs(2)).await;
        assert!(!hostile.chars().any(char::is_control) || !answer.contains(hostile), "{answer:?}");
        tried += 1;
    }
    let log = instance.log();
    assert!(log.len() > tried, "debug lines are there");
    for line in &log {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "not one event: {line}");
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
    // The log format for people.
    let pretty = cluster
        .settings
        .with("RUSHGATE_LOG_FORMAT", "pretty")
        .with("RUSHGATE_REDIS_URL", "redis://a\u{1b}[31m");
    let ended = pretty.run(&["serve"]).await;
    assert!(ended.code == 1 && !ended.stderr.contains('\u{1b}'), "{ended:?}");
    drop(token("ann", "shop"));
    instance.stop().await;
    tried
}

/// Nothing in a request can end the headers of the answer.
#[tokio::test]
async fn headers_cannot_be_split() {
    let (instance, _backend) = victim(&[]).await;
    for path in [
        "/v1/products/%0d%0ax-injected:%201",
        "/%0d%0ax-injected:%201",
        "/docs/%0d%0ax-injected:%201",
    ] {
        let answer = exchange(
            &instance,
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes(),
        )
        .await;
        let head = answer.split("\r\n\r\n").next().unwrap();
        assert!(head.starts_with("HTTP/1.1 4") && !head.contains("x-injected"), "{answer}");
    }
}
