//! The server loop: accepts connections and speaks HTTP/1 and HTTP/2 on them, each step with a time limit.
//!
//! A connection ends when its client is gone, when it sends no request headers in time, or when the server stops: then
//! connections that the kernel has accepted already are served, too, idle connections close, those with requests under
//! way close after them, and what is left at the end of [`DRAIN_TIMEOUT`] is cut.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use crate::config::bounds::{
    ACCEPT_PAUSE, DRAIN_TIMEOUT, FIRST_REQUEST_GRACE, HEADER_TIMEOUT, MAX_CONNECTIONS, MAX_HEADER_BYTES,
    MAX_STREAMS,
};

/// How often an HTTP/2 client that sends nothing is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// … and how long it has to answer.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// An address that cannot be listened on; the message says which setting to change.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {error}; free the port, or give another one by {setting}")]
pub struct BindError {
    address: SocketAddr,
    setting: &'static str,
    #[source]
    error: std::io::Error,
}

/// Listens on `address`, which the setting of this name gave.
pub async fn bind(address: SocketAddr, setting: &'static str) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|error| BindError { address, setting, error })
}

/// Serves until `stopping`, then finishes the requests under way, for [`DRAIN_TIMEOUT`] at most.
pub async fn run(listener: TcpListener, router: Router, stopping: CancellationToken) {
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    let builder = Arc::new(builder());
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let begin = |stream, permit: Option<OwnedSemaphorePermit>| {
        let serving = serve(builder.clone(), stream, router.clone(), stopping.clone());
        let cut = cut.clone();
        connections.spawn(async move {
            cut.run_until_cancelled(serving).await;
            drop(permit);
        });
    };
    while let Some((stream, permit)) = stopping.run_until_cancelled(accept(&listener, &free)).await {
        begin(stream, permit);
    }
    waiting(listener).into_iter().for_each(|stream| begin(stream, None));
    connections.close();
    if tokio::time::timeout(DRAIN_TIMEOUT, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "requests under way did not end in time and are cut");
        cut.cancel();
        connections.wait().await;
    }
}

/// The next connection, once there is room for it.
async fn accept(listener: &TcpListener, free: &Arc<Semaphore>) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed.
    let permit = free.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) if of_one_connection(&error) => {}
            Err(error) => {
                tracing::error!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Closes the listener; returns the connections that were in its backlog, whose clients believe themselves connected.
fn waiting(listener: TcpListener) -> Vec<TcpStream> {
    let Ok(listener) = listener.into_std() else { return vec![] };
    // It does not block: the first error says that there is none left.
    std::iter::from_fn(|| listener.accept().ok())
        .take(MAX_CONNECTIONS)
        .filter_map(|(stream, _)| {
            stream.set_nonblocking(true).ok()?;
            TcpStream::from_std(stream).ok()
        })
        .collect()
}

/// The client hung up before it was accepted; nothing is wrong here.
fn of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
    )
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

async fn serve(
    builder: Arc<Builder<TokioExecutor>>,
    stream: TcpStream,
    router: Router,
    stopping: CancellationToken,
) {
    // Answers are small and whole; waiting to fill packets would only delay them.
    let _ = stream.set_nodelay(true);
    let spoken = Arc::new(AtomicBool::new(false));
    let service = service_fn({
        let spoken = spoken.clone();
        move |request| {
            spoken.store(true, Ordering::Relaxed);
            router.clone().call(request)
        }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut silence = pin!(silence(&spoken));
    let mut told_to_stop = false;
    loop {
        tokio::select! {
            // Errors are the client's: it hung up, or spoke no HTTP. It was answered as far as possible.
            _ = connection.as_mut() => return,
            () = silence.as_mut() => return,
            () = end_of_patience(&stopping, &spoken), if !told_to_stop => {
                told_to_stop = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Ends when the server stops; a connection that has not brought its first request yet has a moment to do so, for it may
/// lie unread in the kernel.
async fn end_of_patience(stopping: &CancellationToken, spoken: &AtomicBool) {
    stopping.cancelled().await;
    if !spoken.load(Ordering::Relaxed) {
        tokio::time::sleep(FIRST_REQUEST_GRACE).await;
    }
}

/// Ends when a connection has brought no request in time. (hyper's own limit begins only once it knows the version of
/// HTTP, for which it waits without one.)
async fn silence(spoken: &AtomicBool) {
    tokio::time::sleep(HEADER_TIMEOUT).await;
    if spoken.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use std::time::Instant;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    async fn start() -> (SocketAddr, CancellationToken, JoinHandle<()>) {
        let listener = bind("127.0.0.1:0".parse().unwrap(), "RUSHGATE_LISTEN").await.unwrap();
        let address = listener.local_addr().unwrap();
        let slow = get(async || {
            tokio::time::sleep(Duration::from_millis(300)).await;
            "done"
        });
        let router = Router::new().route("/", get(async || "hello")).route("/slow", slow);
        let stopping = CancellationToken::new();
        (address, stopping.clone(), tokio::spawn(run(listener, router, stopping)))
    }

    async fn ask(address: SocketAddr, path: &str) -> TcpStream {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        client
    }

    async fn read(client: &mut TcpStream) -> String {
        let mut buffer = vec![0; 4_096];
        let length = client.read(&mut buffer).await.unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[tokio::test]
    async fn stopping_finishes_what_is_under_way_and_does_not_wait_for_idle_connections() {
        let (address, stopping, server) = start().await;
        let silent = TcpStream::connect(address).await.unwrap();
        let mut idle = ask(address, "/").await;
        assert!(read(&mut idle).await.ends_with("hello"));
        let mut busy = ask(address, "/slow").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let started = Instant::now();
        stopping.cancel();
        assert!(read(&mut busy).await.ends_with("done"));
        server.await.unwrap();
        assert!(started.elapsed() < Duration::from_secs(2));
        assert_eq!(read(&mut idle).await, "", "closed");
        assert!(TcpStream::connect(address).await.is_err(), "no longer listening");
        drop(silent);
    }

    #[tokio::test]
    async fn stopping_serves_those_who_are_connected_but_not_yet_accepted() {
        let listener = bind("127.0.0.1:0".parse().unwrap(), "RUSHGATE_LISTEN").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut clients = Vec::new();
        for _ in 0..5 {
            clients.push(ask(address, "/").await);
        }
        let stopping = CancellationToken::new();
        stopping.cancel();
        let router = Router::new().route("/", get(async || "hello"));
        let server = tokio::spawn(run(listener, router, stopping));
        for client in &mut clients {
            assert!(read(client).await.ends_with("hello"));
        }
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_port_in_use_says_which_setting_to_change() {
        let (address, stopping, server) = start().await;
        let error = bind(address, "RUSHGATE_OPS_LISTEN").await.unwrap_err().to_string();
        assert!(error.contains("RUSHGATE_OPS_LISTEN") && error.contains(&address.to_string()), "{error}");
        stopping.cancel();
        server.await.unwrap();
    }
}
