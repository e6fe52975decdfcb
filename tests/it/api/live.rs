//! `GET /v1/live`: the stream of stock and coupons left.

use axum::http::Request;
use bytes::Bytes;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::attacks::{certify, connect_to};

/// A longer time than any time limit of the servers in this file.
const LONG: Duration = Duration::from_secs(4);
/// Connections are cut after a second, and no handler may work for longer than 3.3 s.
const IMPATIENT: [(&str, &str); 5] = [
    ("RUSHGATE_WRITE_TIMEOUT_MS", "1000"),
    ("RUSHGATE_HEADER_TIMEOUT_MS", "1000"),
    ("RUSHGATE_REQUEST_TIMEOUT_MS", "900"),
    ("RUSHGATE_TRUTH_TIMEOUT_MS", "100"),
    ("RUSHGATE_BODY_TIMEOUT_MS", "200"),
];

/// An open stream.
struct Stream {
    response: reqwest::Response,
    text: String,
}

impl Stream {
    async fn open(http: &reqwest::Client, api: &Api, query: &str) -> Self {
        let response = http.get(format!("{}/v1/live?{query}", api.base)).send().await.unwrap();
        assert_eq!(response.status(), 200, "{query}");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Self { response, text: String::new() }
    }

    async fn of(api: &Api, query: &str) -> Self {
        Self::open(&reqwest::Client::new(), api, query).await
    }

    /// The next event; `None`: the stream has ended as streams end.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let event = parsed(event);
                self.text = rest.to_owned();
                match event {
                    Some(event) => return Some(event),
                    None => continue,
                }
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await;
            let chunk = chunk.expect("an event in time").unwrap()?;
            self.text += std::str::from_utf8(&chunk).unwrap();
        }
    }

    /// The next event, which has this name.
    async fn event(&mut self, name: &str) -> Value {
        let (found, data) = self.next().await.expect("an event, not the end");
        assert_eq!(found, name, "{data}");
        data
    }

    async fn is_quiet_for(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.next()).await.is_err()
    }
}

/// Name and data; `None` for a comment or a pause.
fn parsed(event: &str) -> Option<(String, Value)> {
    if event.starts_with(':') || event.starts_with("retry: ") {
        return None;
    }
    let (name, data) = event.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
    Some((name.to_owned(), serde_json::from_str(data).unwrap()))
}

/// Without the time, which must be now.
fn timeless(mut event: Value) -> Value {
    assert_now(&event, "now");
    event.as_object_mut().unwrap().remove("now");
    event
}

/// The value of a series; `None`: it was not sampled yet.
async fn sampled(instance: &Instance, series: &str) -> Option<f64> {
    let answer = reqwest::get(format!("{}/metrics", instance.ops)).await.unwrap();
    let text = answer.text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    Some(line.parse().unwrap())
}

async fn metric(instance: &Instance, series: &str) -> f64 {
    sampled(instance, series).await.unwrap_or_else(|| panic!("no {series}"))
}

#[tokio::test]
async fn a_stream_begins_with_a_snapshot_and_tells_what_changes() {
    let api = Api::shared().await;
    let (user, product) = (api.user(100_000).await, api.product(1_000, 3).await);
    let opens = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3);
    let template = api.template(json!({"max_issued": 2, "issue_from": opens.to_string()})).await;
    let later = fresh("product-to-come");
    let query = format!("products={product},{later}&templates={template},nothing");
    let mut stream = Stream::of(&api, &query).await;
    let snapshot = timeless(stream.event("snapshot").await);
    let known = json!({
        "products": [{"id": product, "stock": 3, "state": "open"}],
        "templates": [{"id": template, "remaining": 2, "state": "scheduled"}],
    });
    assert_eq!(snapshot, known, "unknown ids are left out");
    let open = timeless(stream.event("template").await);
    assert_eq!(open, json!({"id": template, "remaining": 2, "state": "open"}), "nothing was put");

    api.order(&user, &[(&product, 2)], json!({})).ok(201).await;
    let ordered = timeless(stream.event("product").await);
    assert_eq!(ordered, json!({"id": product, "stock": 1, "state": "open"}));
    api.order(&user, &[(&product, 1)], json!({})).ok(201).await;
    assert_eq!(stream.event("product").await["state"], "sold_out");
    api.coupon(&template, &user).await;
    let issued = timeless(stream.event("template").await);
    assert_eq!(issued, json!({"id": template, "remaining": 1, "state": "open"}));
    let body = json!({"name": "A product", "price": 1_000, "status": "suspended"});
    api.put(&format!("/v1/products/{product}"), &body).admin().ok(200).await;
    assert_eq!(stream.event("product").await["state"], "suspended");
    let body = json!({"name": "New", "price": 100, "status": "on_sale", "stock": 9});
    api.put(&format!("/v1/products/{later}"), &body).admin().ok(201).await;
    assert_eq!(timeless(stream.event("product").await)["id"], later);
    assert!(stream.is_quiet_for(Duration::from_secs(1)).await, "only changes are told");
}

#[tokio::test]
async fn what_cannot_be_watched_is_refused() {
    let api = Api::shared().await;
    let many = |n: usize| (0..n).map(|n| format!("id-{n}")).collect::<Vec<_>>().join(",");
    for (query, field) in [
        (String::new(), "products"),
        ("?products=".into(), "products"),
        ("?products=a&templates=b%2Fc".into(), "templates"),
        ("?products=a,,b".into(), "products"),
        (format!("?products={}", many(51)), "products"),
        (format!("?templates={}&products=one-more", many(50)), "templates"),
        ("?products=a&products=b".into(), "products"),
        ("?products=a&ids=b".into(), "ids"),
    ] {
        assert_eq!(api.get(&format!("/v1/live{query}")).refused_field().await, field, "{query}");
    }
    let mut all = Stream::of(&api, &format!("products={}", many(50))).await;
    assert_eq!(timeless(all.event("snapshot").await), json!({"products": [], "templates": []}));
}

#[tokio::test]
async fn no_more_streams_than_the_limit_are_open() {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[("RUSHGATE_LIVE_LIMIT", "2")]).await;
    let api = instance.client();
    let one = Stream::of(&api, "products=a").await;
    let _two = Stream::of(&api, "products=a").await;
    api.get("/v1/live?products=a").refused(503, "overloaded").await;
    assert_eq!(metric(&instance, "rushgate_live_streams").await, 2.0);
    drop(one);
    let mut third = until("a place is free", async || {
        let answer = reqwest::get(format!("{}/v1/live?products=a", api.base)).await.unwrap();
        (answer.status() == 200).then_some(Stream { response: answer, text: String::new() })
    })
    .await;
    third.event("snapshot").await;
}

/// A stream in HTTP/1 and one in HTTP/2.
async fn both_protocols(api: &Api, query: &str) -> [Stream; 2] {
    let two = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let streams = [Stream::of(api, query).await, Stream::open(&two, api, query).await];
    let versions = [reqwest::Version::HTTP_11, reqwest::Version::HTTP_2];
    assert_eq!(streams.each_ref().map(|stream| stream.response.version()), versions);
    streams
}

#[tokio::test]
async fn time_limits_and_full_ports_do_not_end_a_stream() {
    let backend = Backend::new().await;
    let crowded = [&IMPATIENT[..], &[("RUSHGATE_MAX_CONNECTIONS", "8")]].concat();
    let instance = backend.serve_all(&crowded).await;
    let api = instance.client();
    let product = api.product(1_000, 3).await;
    let mut streams = both_protocols(&api, &format!("products={product}")).await;
    for stream in &mut streams {
        stream.event("snapshot").await;
    }
    // More connections than the port has: idle ones are closed for them.
    let mut crowd = Vec::new();
    for _ in 0..30 {
        crowd.push(connect_to(&instance).await);
    }
    tokio::time::sleep(LONG).await;
    let adjust = json!({"delta": 1});
    api.post(&format!("/v1/products/{product}/stock-adjustments"), &adjust).admin().ok(201).await;
    for stream in &mut streams {
        assert_eq!(stream.event("product").await["stock"], 4);
    }
}

#[tokio::test]
async fn a_closed_gate_and_its_opening_are_told() {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[]).await;
    let api = instance.client();
    let product = api.product(1_000, 3).await;
    let query = format!("products={product}");
    let mut streams = both_protocols(&api, &query).await;
    for stream in &mut streams {
        stream.event("snapshot").await;
    }
    backend.redis.kill().await;
    for stream in &mut streams {
        assert_eq!(stream.event("unavailable").await, json!({}));
    }
    let mut late = Stream::of(&api, &query).await;
    late.event("unavailable").await;
    assert!(late.is_quiet_for(Duration::from_secs(1)).await, "it is told once");
    backend.redis.restart().await.unwrap();
    for stream in &mut streams {
        timeless(stream.event("available").await);
    }
    late.event("available").await;
    assert_eq!(late.event("snapshot").await["products"][0]["stock"], 3);
    instance.wait_until_ready().await;
    let adjust = json!({"delta": 1});
    api.post(&format!("/v1/products/{product}/stock-adjustments"), &adjust).admin().ok(201).await;
    for stream in streams.iter_mut().chain([&mut late]) {
        assert_eq!(stream.event("product").await["stock"], 4);
    }
}

#[tokio::test]
async fn the_gate_is_asked_four_times_a_second_for_all_streams_together() {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[]).await;
    let api = instance.client();
    let asked = async || metric(&instance, r#"rushgate_live_samples_total{outcome="read"}"#).await;
    assert_eq!(asked().await, 0.0, "nobody watches");
    let http = reqwest::Client::new();
    let mut streams = Vec::new();
    for n in 0..40 {
        // In part the same ids, in part different ones.
        let ids: Vec<String> = (0..30).map(|id| format!("p-{}", id * (n % 10 + 1))).collect();
        streams.push(Stream::open(&http, &api, &format!("products={}", ids.join(","))).await);
    }
    for stream in &mut streams {
        stream.event("snapshot").await;
    }
    let (begun, before) = (Instant::now(), asked().await);
    tokio::time::sleep(LONG).await;
    let (most, reads) = (begun.elapsed().as_secs_f64() * 4.0 + 1.0, asked().await - before);
    assert!((4.0..=most).contains(&reads), "{reads} reads, at most {most}");
    drop(streams);
    until("nobody watches", async || {
        (metric(&instance, "rushgate_live_streams").await == 0.0).then_some(())
    })
    .await;
    assert_eq!(metric(&instance, "rushgate_live_watched_ids").await, 0.0);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = asked().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(asked().await, after, "reads for nobody");
}

/// On HTTP/2, where a client's window stops the server after a few events.
#[tokio::test]
async fn a_slow_client_gets_the_latest_value_and_no_backlog() {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[("RUSHGATE_WRITE_TIMEOUT_MS", "60000")]).await;
    let api = instance.client();
    let product = api.product(1_000, 1_000).await;
    let query = format!("products={product}");
    let mut quick = Stream::of(&api, &query).await;
    quick.event("snapshot").await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(400);
    let handshake = builder.handshake::<_, Bytes>(connect_to(&instance).await);
    let (mut client, connection) = handshake.await.unwrap();
    let connection = tokio::spawn(connection);
    let ask = Request::get(format!("{}/v1/live?{query}", api.base)).body(()).unwrap();
    let (answer, _) = client.send_request(ask, true).unwrap();
    let mut body = answer.await.unwrap().into_body();
    let adjustments = format!("/v1/products/{product}/stock-adjustments");
    for sold in 1..=20 {
        api.post(&adjustments, &json!({"delta": -1})).admin().ok(201).await;
        // One sample for each, so that nothing is left out for another reason.
        assert_eq!(quick.event("product").await["stock"], 1_000 - sold);
    }
    // The events that fit into the window, then the latest value.
    let mut text = String::new();
    while !text.contains("\"stock\":980,") {
        let chunk = tokio::time::timeout(PATIENCE, body.data()).await.unwrap().unwrap().unwrap();
        body.flow_control().release_capacity(chunk.len()).unwrap();
        text += std::str::from_utf8(&chunk).unwrap();
    }
    let events = text.matches("event: product").count();
    assert!((1..=6).contains(&events), "{events} of 20: {text}");
    connection.abort();
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut() {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&IMPATIENT).await;
    let api = instance.client();
    let product = api.product(1_000, 1_000).await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(10);
    let handshake = builder.handshake::<_, Bytes>(connect_to(&instance).await);
    let (mut client, connection) = handshake.await.unwrap();
    let ended = tokio::spawn(connection);
    let ask = Request::get(format!("{}/v1/live?products={product}", api.base)).body(()).unwrap();
    let (answer, _) = client.send_request(ask, true).unwrap();
    let _answer = answer.await.unwrap();
    // A first frame that is larger than the window waits within HTTP/2; the ones behind it are
    // noticed.
    let adjustments = format!("/v1/products/{product}/stock-adjustments");
    until("the connection ends", async || {
        api.post(&adjustments, &json!({"delta": -1})).admin().ok(201).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        ended.is_finished().then_some(())
    })
    .await;
    until("its place is free", async || {
        (metric(&instance, "rushgate_live_streams").await == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_stopping_instance_ends_its_streams_at_once() {
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[]).await;
    let api = instance.client();
    let mut streams = both_protocols(&api, "products=a").await;
    for stream in &mut streams {
        stream.event("snapshot").await;
    }
    let started = Instant::now();
    let stopped = tokio::task::spawn_blocking(move || drop(instance));
    for stream in &mut streams {
        assert_eq!(stream.next().await, None, "the answer ends whole, not torn");
    }
    stopped.await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[tokio::test]
async fn streams_work_over_tls_and_for_pages_of_other_origins() {
    let folder = crate::servers::tempfile();
    let backend = Backend::new().await;
    let connector = certify(&folder.path);
    let file = |name: &str| folder.path.join(name).to_str().unwrap().to_owned();
    let settings = [
        ("RUSHGATE_TLS_CERT_FILE", &*file("cert.pem")),
        ("RUSHGATE_TLS_KEY_FILE", &*file("key.pem")),
        ("RUSHGATE_CORS_ORIGINS", "https://shop.example"),
    ];
    let instance = backend.serve_all(&settings).await;
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let mut stream = connector.connect(name, connect_to(&instance).await).await.unwrap();
    let ask = b"GET /v1/live?products=a HTTP/1.1\r\nhost: localhost\r\norigin: https://shop.example\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    let (mut text, mut buffer) = (String::new(), [0; 4_096]);
    while !text.contains("event: snapshot") {
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(read > 0, "{text}");
        text += std::str::from_utf8(&buffer[..read]).unwrap();
    }
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    assert!(text.contains("access-control-allow-origin: https://shop.example"), "{text}");
}

/// Figures for docs/performance.md: memory and processor time of 10,000 streams.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute and 20,000 file descriptors; prints figures"]
async fn ten_thousand_streams() {
    const STREAMS: usize = 10_000;
    const SECS: u64 = 10;
    allow_descriptors();
    let backend = Backend::new().await;
    let instance = backend.serve_all(&[("RUSHGATE_MAX_CONNECTIONS", "16384")]).await;
    let api = instance.client();
    let product = api.product(1_000, 1_000_000).await;
    let memory = "process_resident_memory_bytes";
    until("memory was sampled", async || sampled(&instance, memory).await).await;
    let resident = async || metric(&instance, memory).await / 1_048_576.0;
    let before = resident().await;
    let events = std::sync::Arc::new(AtomicU32::new(0));
    for n in 0..STREAMS {
        let mut stream = connect_to(&instance).await;
        let ask = format!("GET /v1/live?products={product} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.unwrap();
        let events = std::sync::Arc::clone(&events);
        tokio::spawn(async move {
            let mut buffer = [0; 1_024];
            while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                let text = std::str::from_utf8(&buffer[..read]).unwrap_or_default();
                let found = text.matches("event: product").count();
                events.fetch_add(u32::try_from(found).unwrap_or(0), Ordering::Relaxed);
            }
        });
        if n % 500 == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    until("all are open", async || {
        let snapshots = r#"rushgate_live_events_total{event="snapshot"}"#;
        (metric(&instance, snapshots).await == STREAMS as f64).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let quiet = resident().await;
    let idle = used(&instance, Duration::from_secs(SECS)).await;
    let changing = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(120));
        loop {
            ticks.tick().await;
            let adjust = json!({"delta": -1});
            let path = format!("/v1/products/{product}/stock-adjustments");
            api.post(&path, &adjust).admin().ok(201).await;
        }
    };
    let (begun, first) = (Instant::now(), events.load(Ordering::Relaxed));
    let busy = tokio::select! {
        () = changing => unreachable!(),
        busy = used(&instance, Duration::from_secs(SECS)) => busy,
    };
    let sent = f64::from(events.load(Ordering::Relaxed) - first) / begun.elapsed().as_secs_f64();
    let (quiet, more) = (quiet - before, resident().await - before);
    println!(
        "{STREAMS} streams: {quiet:.0} MiB more when quiet, {more:.0} MiB after; processor: {:.1} % of a \
         core when quiet, {:.1} % at {sent:.0} events/s",
        idle * 100.0,
        busy * 100.0
    );
    assert!(sent >= 3.0 * STREAMS as f64, "{sent} events a second");
    // An unoptimised build is no measure.
    assert!(cfg!(debug_assertions) || more < 150.0, "{more} MiB");
}

/// The share of a core that the instance uses meanwhile.
async fn used(instance: &Instance, time: Duration) -> f64 {
    // Sampled every two seconds: from one sample to another.
    let series = "process_cpu_seconds_total";
    let next = async |before: f64| {
        until("a new sample", async || {
            let now = metric(instance, series).await;
            (now != before).then_some((Instant::now(), now))
        })
        .await
    };
    let (begun, first) = next(metric(instance, series).await).await;
    tokio::time::sleep(time).await;
    let (ended, last) = next(metric(instance, series).await).await;
    (last - first) / (ended - begun).as_secs_f64()
}

/// Raises the limit on open files as far as it goes, for this process and its children.
fn allow_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}
