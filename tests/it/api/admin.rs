//! Endpoints and ports for operators.

use serde_json::json;

use super::*;

#[tokio::test]
async fn the_status_tells_of_cells_outbox_and_connections() {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[]).await;
    let api = instance.client();
    let (user, mug) = (api.user(1_000).await, api.product(100, 5).await);
    let order = api.order(&user, &[(&mug, 1)], json!({})).ok(201).await;
    api.cancel(&order, &user).ok(200).await;
    // This read waits until PostgreSQL has the order.
    api.get(&format!("/v1/orders/{}", text(&order, "order_id"))).user(&user).ok(200).await;
    let status = until("the watermark has passed", async || {
        let status = api.get("/v1/admin/status").admin().ok(200).await;
        (status["cells"][0]["lag"] == 0).then_some(status)
    })
    .await;
    let cell = json!({"cell": 0, "epoch": 1, "seq": 4, "applied": 4, "lag": 0, "state": "open"});
    let connections = json!({"redis": "connected", "postgres": "connected"});
    assert_eq!(status, json!({"cells": [cell], "outbox_length": 2, "connections": connections}));
}

#[tokio::test]
async fn both_versions_of_http_are_spoken_and_idle_connections_are_kept() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let api = Api::shared().await;
    let second = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let answer = second.get(format!("{}/v1/products", api.base)).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, reqwest::Version::HTTP_2));
    let mut first =
        tokio::net::TcpStream::connect(api.base.trim_start_matches("http://")).await.unwrap();
    for pause in [0, 12] {
        // Longer than browsers and load tests leave a connection idle.
        tokio::time::sleep(Duration::from_secs(pause)).await;
        first.write_all(b"GET /v1/products/none HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = vec![0; 4_096];
        let length = first.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]);
        assert!(answer.starts_with("HTTP/1.1 404 "), "after {pause} s: {answer}");
    }
}

#[tokio::test]
async fn the_operations_port_tells_life_readiness_and_numbers() {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[]).await;
    let get = async |path: &str| {
        let answer = reqwest::get(format!("{}{path}", instance.ops)).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(get("/healthz").await, (200, "ok\n".into()));
    assert_eq!(get("/readyz").await, (200, r#"{"ready":true}"#.into()));
    instance.client().get("/v1/products").ok(200).await;
    let (status, metrics) = get("/metrics").await;
    assert_eq!(status, 200);
    assert!(
        metrics.contains(
            r#"rushgate_http_requests_total{route="/v1/products",method="GET",status="200""#
        ),
        "{metrics}"
    );
    assert_eq!(get("/v1/products").await.0, 404, "the API is on the other port");
    instance.client().get("/healthz").refused(404, "route-not-found").await;
}
