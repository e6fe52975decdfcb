//! A request's id and trace, from the client through the log to the message and the collector; and
//! what must never be logged.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use lapin::options::BasicGetOptions;
use lapin::types::AMQPValue;
use lapin::{Connection, ConnectionProperties};
use rushgate::relay::topology::ORDERS_QUEUE;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cluster::{Cluster, Instance, Request, SECRET, eventually, token};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

/// Sends an order with these headers. Returns the request id in the answer, and the body.
async fn post_order(instance: &Instance, headers: &[(&str, &str)]) -> (String, Value) {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let body = json!({ "user_id": "ann", "items": [{ "product_id": "mug", "quantity": 1 }] });
    let mut building = http.post(format!("http://{}/v1/orders", instance.listens_on())).json(&body);
    building = building.bearer_auth(token("backend", "service"));
    for (name, value) in headers {
        building = building.header(*name, *value);
    }
    let answer = building.send().await.unwrap();
    assert_eq!(answer.status(), 201);
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    (id, answer.json().await.unwrap())
}

async fn stocked(cluster: &Cluster, settings: &[(&'static str, &str)]) -> Instance {
    let settings =
        settings.iter().fold(cluster.settings.clone(), |all, (name, value)| all.with(name, *value));
    let instance = Instance::ready(&settings).await;
    instance.done(&Request::put_product("mug", 1_000, 100)).await;
    instance.done(&Request::charge("ann", 100_000)).await;
    instance
}

#[tokio::test]
async fn ids_go_from_the_request_through_the_log_to_the_message() {
    let cluster = Cluster::servers().await;
    let instance = stocked(&cluster, &[]).await;
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let (given, first) =
        post_order(&instance, &[("x-request-id", "basket-17"), ("traceparent", &parent)]).await;
    assert_eq!(given, "basket-17");
    let (made, second) = post_order(&instance, &[("x-request-id", "two words")]).await;
    assert!(Uuid::parse_str(&made).is_ok(), "{made}");
    let messages = messages(&cluster, 2).await;

    let (event, headers) = &messages[first["order_id"].as_str().unwrap()];
    assert_eq!(event["requestid"], "basket-17");
    let traceparent = event["traceparent"].as_str().unwrap();
    assert!(
        traceparent.starts_with(&format!("00-{TRACE}-")) && traceparent.ends_with("-01"),
        "{traceparent}"
    );
    assert!(!traceparent.contains(SPAN), "the request is a span of its own: {traceparent}");
    assert_eq!(
        headers,
        &[("traceparent".into(), traceparent.into()), ("x-request-id".into(), "basket-17".into())]
    );

    let (event, headers) = &messages[second["order_id"].as_str().unwrap()];
    assert_eq!(event["requestid"], made.as_str());
    assert!(event["traceparent"].as_str().unwrap().ends_with("-00"), "nobody asked for it");
    assert_eq!(headers[1].1, made);
    cluster.settings.run(&["audit", "--wait", "30s"]).await.assert_success();
}

#[tokio::test]
async fn sampled_requests_are_spans_from_the_answer_to_the_confirm() {
    let received = Arc::new(Mutex::new(Vec::<u8>::new()));
    let sink = Arc::clone(&received);
    let collector = Router::new().route(
        "/v1/traces",
        post(async move |body: Bytes| sink.lock().unwrap().extend_from_slice(&body)),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, collector).await });

    let cluster = Cluster::servers().await;
    let none_of_its_own =
        [("RUSHGATE_OTLP_ENDPOINT", endpoint.as_str()), ("RUSHGATE_OTLP_RATIO", "0")];
    let instance = stocked(&cluster, &none_of_its_own).await;
    let unsampled = "11111111111111111111111111111111";
    post_order(&instance, &[("traceparent", &format!("00-{unsampled}-{SPAN}-00"))]).await;
    post_order(&instance, &[("traceparent", &format!("00-{TRACE}-{SPAN}-01"))]).await;
    messages(&cluster, 2).await;
    instance.stop().await;

    let received = received.lock().unwrap().clone();
    let has = |bytes: &[u8]| received.windows(bytes.len()).any(|window| window == bytes);
    assert!(has(Uuid::parse_str(TRACE).unwrap().as_bytes()), "{} bytes", received.len());
    assert!(!has(Uuid::parse_str(unsampled).unwrap().as_bytes()));
    for name in
        ["POST /v1/orders", "place_order", "apply order", "publish order.completed", "rushgate"]
    {
        assert!(has(name.as_bytes()), "{name}");
    }
    assert!(!has(b"put_product") && !has(b"PUT"), "the ratio is 0");
}

#[tokio::test]
async fn no_token_key_or_body_is_logged() {
    let cluster = Cluster::servers().await;
    let settings = cluster.settings.with("RUST_LOG", "rushgate=trace,warn");
    let instance = Instance::ready(&settings).await;
    let secret_token = token("backend", "service");
    instance.done(&Request::put_product("mug", 1_000, 100)).await;
    instance.done(&Request::charge("ann", 77_731).key("a-key-of-ann")).await;
    instance.send(&Request::charge("ann", 77_732).token("a-forged-token")).await;
    instance.send(&Request::order("user-in-a-body", "mug", 1)).await;
    let seen = eventually("every request is logged at debug", || async {
        let log = instance.log().join("\n");
        (log.matches("\"answered\"").count() >= 4).then_some(log)
    })
    .await;
    for secret in [
        secret_token.as_str(),
        "a-key-of-ann",
        "a-forged-token",
        "77731",
        "77732",
        "user-in-a-body",
        SECRET,
        "Product mug",
    ] {
        assert!(!seen.contains(secret), "{secret}: {seen}");
    }
    assert!(seen.contains("request_id"), "{seen}");
}

type Message = (Value, Vec<(String, String)>);

/// The first messages in the queue, by order: event and headers.
async fn messages(cluster: &Cluster, count: usize) -> std::collections::HashMap<String, Message> {
    cluster.caught_up().await;
    eventually("the outbox is delivered", || async {
        (cluster.number("SELECT count(*) FROM outbox").await == 0).then_some(())
    })
    .await;
    let url = cluster.settings.get("RUSHGATE_AMQP_URL");
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut found = std::collections::HashMap::new();
    while found.len() < count {
        let message = eventually("a message comes", || async {
            channel.basic_get(ORDERS_QUEUE.into(), BasicGetOptions { no_ack: true }).await.unwrap()
        })
        .await;
        let event: Value = serde_json::from_slice(&message.delivery.data).unwrap();
        let headers = message.delivery.properties.headers().clone().unwrap();
        // A quorum queue adds a header of its own, which is a number.
        let headers = headers.inner().iter().filter_map(|(name, value)| match value {
            AMQPValue::LongString(text) => Some((name.to_string(), text.to_string())),
            _ => None,
        });
        found.insert(
            event["subject"].as_str().unwrap().to_owned(),
            (event.clone(), headers.collect()),
        );
    }
    found
}
