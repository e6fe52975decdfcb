//! Connections that consume resources without doing anything useful.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::wire::{
    Bystander, PATIENCE, address, closed_within, code, connect, drain, exchange, request, shop,
    victim,
};
use crate::api::Instance;

/// A timeout that tests can wait for.
const LIMIT_MS: u64 = 1_000;
/// The same plus a margin for a busy machine.
const CUT_BY: Duration = Duration::from_secs(8);

/// Opens this many connections, in groups.
async fn open(instance: &Instance, count: usize) -> Vec<TcpStream> {
    let mut opened = Vec::with_capacity(count);
    while opened.len() < count {
        let some = (count - opened.len()).min(200);
        let mut opening: FuturesUnordered<_> = (0..some).map(|_| connect(instance)).collect();
        while let Some(stream) = opening.next().await {
            opened.push(stream);
        }
    }
    opened
}

pub async fn idle_connections(effort: usize) -> usize {
    let (instance, _backend) = victim(&[]).await;
    let bystander = Bystander::start(&instance).await;
    let idle = open(&instance, (effort * 2_000).min(10_000)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let answered = bystander.content().await;
    // New connections are accepted as before.
    assert!(
        exchange(&instance, b"GET /v1/products HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .contains(" 200 ")
    );
    idle.len() + answered
}

pub async fn all_connections_taken(effort: usize) -> usize {
    let (instance, _backend) = victim(&[("RUSHGATE_MAX_CONNECTIONS", "64")]).await;
    let mut tried = 0;
    for _ in 0..effort.min(5) {
        // More connections than the limit allows; the rest waits in the kernel. Some have sent part
        // of a request, some have been served once.
        let mut idle = open(&instance, 40).await;
        for stream in &mut idle[..10] {
            stream.write_all(b"GET /v1/products HTTP/1.1\r\nhost: x\r\nx-slow: ").await.unwrap();
        }
        for stream in &mut idle[10..20] {
            stream.write_all(b"GET /v1/products HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut answer = [0; 12];
            tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200");
        }
        let more = open(&instance, 400).await;
        let started = Instant::now();
        let mut late = connect(&instance).await;
        late.write_all(b"GET /v1/products HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        tokio::time::timeout(PATIENCE, late.read_exact(&mut answer))
            .await
            .expect("an answer")
            .unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        // Once a second, up to 64 idle connections are closed to make room. The header timeout (30
        // s) would take minutes.
        assert!(started.elapsed() < Duration::from_secs(25), "{:?}", started.elapsed());
        tried += idle.len() + more.len();
    }
    tried
}

pub async fn slow_headers(effort: usize) -> usize {
    let (instance, _backend) =
        victim(&[("RUSHGATE_HEADER_TIMEOUT_MS", &LIMIT_MS.to_string())]).await;
    let bystander = Bystander::start(&instance).await;
    let slow = |(first, silent): (&'static [u8], bool)| {
        let instance = &instance;
        async move {
            let mut stream = connect(instance).await;
            let started = Instant::now();
            stream.write_all(first).await.unwrap();
            if silent {
                return closed_within(&mut stream, CUT_BY).await.unwrap_or(CUT_BY);
            }
            // A byte now and then does not extend the timeout.
            while started.elapsed() < CUT_BY && stream.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            started.elapsed()
        }
    };
    let firsts: [&[u8]; 5] = [
        b"",
        b"G",
        b"GET /v1/products HTTP/1.1\r\nhost: x\r\nx-slow: ",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\n",
    ];
    let kinds = firsts.into_iter().flat_map(|first| [(first, false), (first, true)]);
    let mut slow: FuturesUnordered<_> =
        (0..effort * 10).flat_map(|_| kinds.clone().map(slow)).collect();
    let mut tried = 0;
    while let Some(took) = slow.next().await {
        assert!(took < CUT_BY, "still there after {took:?}");
        tried += 1;
    }
    drop(slow);
    bystander.content().await;
    tried
}

pub async fn slow_bodies(effort: usize) -> usize {
    let settings = [
        ("RUSHGATE_BODY_TIMEOUT_MS", "1000"),
        ("RUSHGATE_DECIDE_LIMIT", "4"),
        ("RUSHGATE_USER_RATE", "off"),
    ];
    let (instance, _backend) = victim(&settings).await;
    // More slow bodies than there are permits for decisions; the bystander's requests are still
    // decided.
    let bystander = Bystander::start(&instance).await;
    let one = || async {
        let whole =
            request("POST", "/v1/users/slow/wallet/charges", "slow", "shop", "{\"amount\":5}");
        let (head, _) = whole.rsplit_once("\r\n\r\n").unwrap();
        let mut stream = connect(&instance).await;
        stream.write_all(format!("{head}\r\n\r\n{{").as_bytes()).await.unwrap();
        let started = Instant::now();
        let answer = drain(&mut stream, CUT_BY).await;
        assert!(
            answer.starts_with("HTTP/1.1 408 ") && code(&answer) == "request-timeout",
            "{answer}"
        );
        assert!(started.elapsed() < CUT_BY);
    };
    let mut slow: FuturesUnordered<_> = (0..effort * 50).map(|_| one()).collect();
    let mut tried = 0;
    while slow.next().await.is_some() {
        tried += 1;
    }
    drop(slow);
    bystander.content().await;
    assert_eq!(shop(&instance).balance("slow").await, 0);
    tried
}

pub async fn answers_left_unread(effort: usize) -> usize {
    let (instance, _backend) =
        victim(&[("RUSHGATE_WRITE_TIMEOUT_MS", &LIMIT_MS.to_string())]).await;
    let bystander = Bystander::start(&instance).await;
    let mut tried = 0;
    for _ in 0..effort {
        // HTTP/1: requests many large answers and reads none. The kernel buffers some, then the
        // server's writes block.
        let mut unread = Vec::new();
        for _ in 0..5 {
            let mut stream = connect(&instance).await;
            let ask = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nhost: x\r\n\r\n".repeat(64);
            stream.write_all(&ask).await.unwrap();
            unread.push(stream);
            tried += 1;
        }
        tokio::time::sleep(Duration::from_millis(LIMIT_MS * 3)).await;
        for mut stream in unread {
            // Only what the kernel has buffered arrives, then the connection ends.
            let mut read = 0;
            let mut buffer = vec![0; 256 * 1024];
            while let Ok(Ok(more @ 1..)) =
                tokio::time::timeout(CUT_BY, stream.read(&mut buffer)).await
            {
                read += more;
            }
            assert!(read < 24 * 1024 * 1024, "{read} bytes came: it was not cut");
        }
        starved_stream(&instance).await;
        tried += 1;
    }
    bystander.content().await;
    tried
}

/// HTTP/2: the connection is read, but the stream's window stays at zero.
async fn starved_stream(instance: &Instance) {
    let stream = connect(instance).await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0);
    let (mut client, connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
    let started = Instant::now();
    let ended = tokio::spawn(connection);
    let ask =
        axum::http::Request::get(format!("http://{}/docs/swagger-ui-bundle.js", address(instance)));
    let (answer, _) = client.send_request(ask.body(()).unwrap(), true).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    let ended = tokio::time::timeout(CUT_BY, ended).await;
    assert!(ended.is_ok(), "the connection stands after {:?}", started.elapsed());
    drop(answer);
}

pub async fn half_closed(effort: usize) -> usize {
    let (instance, _backend) = victim(&[]).await;
    let bystander = Bystander::start(&instance).await;
    let beginnings: [&[u8]; 4] = [
        b"",
        b"GET /v1/products HTTP/1.1\r\nhost:",
        b"POST /v1/orders HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x05",
    ];
    let mut tried = 0;
    for _ in 0..effort * 20 {
        for beginning in beginnings {
            let mut stream = connect(&instance).await;
            stream.write_all(beginning).await.unwrap();
            stream.shutdown().await.unwrap();
            assert!(closed_within(&mut stream, CUT_BY).await.is_some(), "{beginning:?}");
            // The same with a reset instead of a clean close.
            let mut stream = connect(&instance).await;
            stream.write_all(beginning).await.unwrap();
            stream.set_zero_linger().unwrap();
            tried += 2;
        }
    }
    bystander.content().await;
    tried
}

pub async fn too_many_headers(effort: usize) -> usize {
    let (instance, _backend) = victim(&[]).await;
    let bystander = Bystander::start(&instance).await;
    let mut tried = 0;
    for _ in 0..effort {
        let one_long = format!("x-long: {}\r\n", "a".repeat(64 * 1024));
        let many: String = (0..5_000).map(|n| format!("x-{n}: a\r\n")).collect();
        let long_path = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(64 * 1024));
        let long_name = format!("GET / HTTP/1.1\r\n{}: x\r\n\r\n", "a".repeat(64 * 1024));
        let no_end = "GET / HTTP/1.1\r\nhost: x\r\n".to_owned() + &"x: y\r\n".repeat(50_000);
        for bytes in [
            format!("GET / HTTP/1.1\r\nhost: x\r\n{one_long}\r\n"),
            format!("GET / HTTP/1.1\r\nhost: x\r\n{many}\r\n"),
            long_path,
            long_name,
            no_end,
        ] {
            let answer = exchange(&instance, bytes.as_bytes()).await;
            let refused = ["HTTP/1.1 431 ", "HTTP/1.1 414 ", "HTTP/1.1 400 "]
                .iter()
                .any(|it| answer.starts_with(it));
            assert!(answer.is_empty() || refused, "{answer}");
            tried += 1;
        }
    }
    bystander.content().await;
    tried
}

pub async fn pipelined(effort: usize) -> usize {
    let (instance, _backend) = victim(&[]).await;
    let bystander = Bystander::start(&instance).await;
    let count = effort * 500;
    let mut all = String::new();
    for n in 0..count {
        all += &format!("GET /v1/products HTTP/1.1\r\nhost: x\r\nx-request-id: n{n}.\r\n");
        all += if n + 1 == count { "connection: close\r\n\r\n" } else { "\r\n" };
    }
    let stream = connect(&instance).await;
    let (mut reading, mut writing) = stream.into_split();
    let writing =
        tokio::spawn(async move { writing.write_all(all.as_bytes()).await.map(|()| writing) });
    let mut answers = Vec::new();
    tokio::time::timeout(PATIENCE, reading.read_to_end(&mut answers)).await.unwrap().unwrap();
    drop(writing.await);
    let answers = String::from_utf8(answers).unwrap();
    let ids: Vec<&str> = answers
        .split("x-request-id: n")
        .skip(1)
        .filter_map(|rest| rest.split('.').next())
        .collect();
    assert_eq!(ids, (0..count).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), count);
    bystander.content().await;
    count
}

/// "Rapid reset" (CVE-2023-44487): opens streams and resets them faster than they are served.
pub async fn streams_reset(effort: usize) -> usize {
    let (instance, _backend) = victim(&[]).await;
    let bystander = Bystander::start(&instance).await;
    let mut tried = 0;
    for _ in 0..effort {
        let (mut client, connection) =
            h2::client::handshake(connect(&instance).await).await.unwrap();
        let ended = tokio::spawn(connection);
        let started = Instant::now();
        while started.elapsed() < CUT_BY && !ended.is_finished() {
            let ask =
                axum::http::Request::get(format!("http://{}/v1/products", address(&instance)));
            let Ok(ready) = client.ready().await else { break };
            client = ready;
            if let Ok((_, mut stream)) = client.send_request(ask.body(()).unwrap(), true) {
                stream.send_reset(h2::Reason::CANCEL);
            }
            tokio::task::yield_now().await; // lets the connection and the bystander run
            tried += 1;
        }
        assert!(tokio::time::timeout(CUT_BY, ended).await.is_ok(), "{tried} resets and it stands");
    }
    bystander.content().await;
    tried
}
