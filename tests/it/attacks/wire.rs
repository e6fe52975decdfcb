//! Raw connections, and a bystander whose requests must be answered during an attack.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::api::{Api, Backend, Instance, token};

/// Maximum response time for the bystander, with a margin for a busy machine and an attack at full
/// speed.
pub const LATENCY_BOUND: Duration = Duration::from_millis(1_500);
/// Time limit for anything that must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Starts servers and an instance with these settings.
pub async fn victim(settings: &[(&str, &str)]) -> (Instance, Backend) {
    let backend = Backend::new().await;
    let settings = [&[("RUSHGATE_USER_WRITE_RATE", "off")], settings].concat();
    let instance = backend.serve_all(&settings).await;
    (instance, backend)
}

/// Host and port.
pub fn address(instance: &Instance) -> &str {
    instance.base.trim_start_matches("http://")
}

pub async fn connect(instance: &Instance) -> TcpStream {
    TcpStream::connect(address(instance)).await.unwrap()
}

/// A complete request as bytes.
pub fn request(method: &str, path: &str, sub: &str, scope: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        token(sub, scope),
        body.len()
    )
}

/// Reads until the other end closes, or until nothing arrives for `quiet`.
pub async fn drain(stream: &mut TcpStream, quiet: Duration) -> String {
    let mut all = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(Ok(read @ 1..)) = tokio::time::timeout(quiet, stream.read(&mut buffer)).await {
        all.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// Sends bytes on a new connection and returns everything that comes back.
pub async fn exchange(instance: &Instance, bytes: &[u8]) -> String {
    let mut stream = connect(instance).await;
    let _ = stream.write_all(bytes).await; // the server may close meanwhile
    drain(&mut stream, Duration::from_secs(1)).await
}

/// The time until the other end closes; `None` if it does not within `limit`.
pub async fn closed_within(stream: &mut TcpStream, limit: Duration) -> Option<Duration> {
    let started = Instant::now();
    let mut buffer = vec![0; 64 * 1024];
    let reading = async { while !matches!(stream.read(&mut buffer).await, Ok(0) | Err(_)) {} };
    tokio::time::timeout(limit, reading).await.ok().map(|()| started.elapsed())
}

/// A well-behaved client on its own connections: a read and a decision, over and over.
pub struct Bystander {
    stop: CancellationToken,
    asking: AbortOnDropHandle<Vec<Duration>>,
}

impl Bystander {
    pub async fn start(instance: &Instance) -> Self {
        let api = instance.client();
        let product = api.product(100, 1_000).await;
        let (stop, read) = (CancellationToken::new(), format!("/v1/products/{product}"));
        let stopped = stop.clone();
        let asking = tokio::spawn(async move {
            let mut took = Vec::new();
            // At least a few requests, however short the attack.
            while !stopped.is_cancelled() || took.len() < 10 {
                let started = Instant::now();
                api.get(&read).ok(200).await;
                api.charge("bystander", 1).service().ok(201).await;
                took.push(started.elapsed());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            took
        });
        Self { stop, asking: AbortOnDropHandle::new(asking) }
    }

    /// Asserts that every request was answered, and nearly all in time. Returns the number of
    /// requests.
    pub async fn content(self) -> usize {
        self.stop.cancel();
        let mut took = self.asking.await.unwrap();
        took.sort();
        let nearly_all = took[took.len() * 95 / 100];
        assert!(
            nearly_all < LATENCY_BOUND,
            "the bystander waited {nearly_all:?}, {:?} at most",
            took.last()
        );
        took.len()
    }
}

/// The problem's code in a raw answer.
pub fn code(answer: &str) -> String {
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let value: Value = serde_json::from_str(body).unwrap_or_default();
    value["code"].as_str().unwrap_or_default().to_owned()
}

/// A client of the instance for legitimate requests.
pub fn shop(instance: &Instance) -> Api {
    instance.client()
}
