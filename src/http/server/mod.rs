//! The server loop: accepts connections and speaks HTTP/1 and HTTP/2 on them, each step with a time
//! limit.
//!
//! A connection ends when its client hangs up, sends no request headers in time, does not read an
//! answer in time, or vanishes. When the server stops, it still serves the connections in the kernel's
//! backlog, closes idle connections, closes the others after their requests in flight, and cuts
//! what is left after [`DRAIN_TIMEOUT`]. At the limit on connections, idle ones are evicted in
//! favour of new ones, so a client that hoards idle connections locks nobody out.
//!
//! By hand, because `axum::serve` has no limit on connections and no time limit for headers, for
//! unread answers, or for the end of the process.
//!
//! `Server` is the state of one port. Each connection is a task with a permit of the connection
//! limit; its `Activity` is listed in `Server::open_connections` until the task ends.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::Version;
use axum::response::Response;
use futures::{FutureExt, TryFutureExt};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutWriter;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use self::activity::{Activity, SideFutures};
use crate::config::Limits;
use crate::config::bounds::{
    ACCEPT_PAUSE, CROWDED_IDLE, DEAD_PEER, DRAIN_TIMEOUT, FIRST_REQUEST_GRACE, MAX_HEADER_BYTES,
};

mod activity;

/// Interval of pings to an HTTP/2 client that sends nothing.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Time that the client has to answer a ping.
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

/// Streams that a client may open and reset before they are served ("rapid reset", CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 20;
/// Streams that this server may reset because the client broke the protocol (CVE-2025-8671).
const MAX_OWN_RESETS: usize = 64;

/// How connections are served.
#[derive(Clone)]
pub struct Transport {
    header_timeout: Duration,
    write_timeout: Duration,
    max_connections: usize,
    max_streams: u32,
    /// Whether requests carry their client's address ([`Peer`]).
    pub tells_peer: bool,
    pub tls: Option<TlsAcceptor>,
}

/// The address at the other end of a request's connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// An extension of responses whose body has no end of its own: the connection is busy while the
/// body is open, and no time limit applies to the body as a whole.
#[derive(Clone, Copy, Debug)]
pub struct OpenEnded;

impl Transport {
    /// No TLS, and requests do not carry their client's address.
    pub fn new(limits: &Limits) -> Self {
        Self {
            header_timeout: limits.header_timeout(),
            write_timeout: limits.write_timeout(),
            max_connections: limits.max_connections as usize,
            max_streams: limits.max_streams,
            tells_peer: false,
            tls: None,
        }
    }

    fn builder(&self) -> Builder<TokioExecutor> {
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
            .max_buf_size(MAX_HEADER_BYTES as usize);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.max_streams)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_OWN_RESETS)
            .max_header_list_size(MAX_HEADER_BYTES)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        builder
    }
}

/// A service that answers requests: a router, or middleware around one.
pub trait RequestService:
    Service<Request, Response = Response, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<T> RequestService for T where
    T: Service<Request, Response = Response, Error = Infallible, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// [`run_with`] the default limits.
pub async fn run(listener: TcpListener, service: impl RequestService, stopping: CancellationToken) {
    run_with(listener, service, Transport::new(&Limits::default()), stopping).await;
}

/// Serves until `stopping`, then drains requests in flight for [`DRAIN_TIMEOUT`] at most.
pub async fn run_with(
    listener: TcpListener,
    service: impl RequestService,
    transport: Transport,
    stopping: CancellationToken,
) {
    let connections = TaskTracker::new();
    let free = Arc::new(Semaphore::new(transport.max_connections));
    let most = transport.max_connections;
    let builder = transport.builder();
    let cut = CancellationToken::new();
    let server = Arc::new(Server {
        builder,
        service,
        transport,
        stopping,
        cut,
        open_connections: Mutex::default(),
    });
    let begin = |stream, permit| {
        connections.spawn(Arc::clone(&server).begin(stream, permit));
    };
    while let Some((stream, permit)) =
        server.stopping.run_until_cancelled(server.accept(&listener, &free)).await
    {
        begin(stream, permit);
    }
    waiting(listener, most).into_iter().for_each(|stream| begin(stream, None));
    connections.close();
    if tokio::time::timeout(DRAIN_TIMEOUT, connections.wait()).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "requests in flight did not finish in time; their connections are cut"
        );
        server.cut.cancel();
        connections.wait().await;
    }
}

/// Closes the listener; returns the connections from its backlog. Their clients are connected
/// already.
fn waiting(listener: TcpListener, most: usize) -> Vec<TcpStream> {
    let Ok(listener) = listener.into_std() else { return vec![] };
    // The socket does not block: the first error means that the backlog is empty.
    std::iter::from_fn(|| listener.accept().ok())
        .take(most)
        .filter_map(|(stream, _)| {
            stream.set_nonblocking(true).ok()?;
            TcpStream::from_std(stream).ok()
        })
        .collect()
}

/// Errors mean that the client has hung up already, which the next read finds.
fn set_options(stream: &TcpStream) {
    // Answers are small and written whole: waiting to fill packets would only delay them.
    let _ = stream.set_nodelay(true);
    let dead_peer_ms = u32::try_from(DEAD_PEER.as_millis()).unwrap_or(u32::MAX);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(stream, dead_peer_ms);
}

/// Whether the error concerns one connection (its client hung up before it was accepted), not the
/// listener.
fn of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
    )
}

/// The state that all connections of one port share.
struct Server<R> {
    builder: Builder<TokioExecutor>,
    service: R,
    transport: Transport,
    stopping: CancellationToken,
    /// Cancelled when the drain has timed out: ends the remaining connections.
    cut: CancellationToken,
    /// The last number given, and the open connections by their numbers.
    open_connections: Mutex<(u64, HashMap<u64, Arc<Activity>>)>,
}

/// How a connection is to end.
enum End {
    /// After the requests in flight.
    Finish,
    /// Immediately.
    Cut,
}

/// Keeps a connection in [`Server::open_connections`] until it is dropped.
struct Registration<'a, R: RequestService> {
    server: &'a Server<R>,
    number: u64,
}

impl<R: RequestService> Drop for Registration<'_, R> {
    fn drop(&mut self) {
        self.server.open_connections().1.remove(&self.number);
    }
}

impl<R: RequestService> Server<R> {
    /// Accepts the next connection, once the connection limit allows it.
    async fn accept(
        &self,
        listener: &TcpListener,
        free: &Arc<Semaphore>,
    ) -> (TcpStream, Option<OwnedSemaphorePermit>) {
        let permit = self.room(free).await;
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

    /// Waits for a permit for one more connection. While there is none, evicts connections that
    /// have been idle for [`CROWDED_IDLE`].
    async fn room(&self, free: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        loop {
            let waiting = free.clone().acquire_owned();
            match tokio::time::timeout(CROWDED_IDLE / 2, waiting).await {
                Ok(permit) => return permit.ok(), // the semaphore is never closed
                Err(_) => {
                    self.open_connections().1.values().for_each(|it| it.evict_if_idle(CROWDED_IDLE))
                }
            }
        }
    }

    fn open_connections(&self) -> MutexGuard<'_, (u64, HashMap<u64, Arc<Activity>>)> {
        self.open_connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, activity: &Arc<Activity>) -> Registration<'_, R> {
        let mut open_connections = self.open_connections();
        open_connections.0 += 1;
        let number = open_connections.0;
        open_connections.1.insert(number, Arc::clone(activity));
        Registration { server: self, number }
    }

    /// Serves one connection to its end, and holds its permit until then.
    async fn begin(self: Arc<Self>, stream: TcpStream, _permit: Option<OwnedSemaphorePermit>) {
        set_options(&stream);
        let peer = stream.peer_addr().ok().filter(|_| self.transport.tells_peer);
        let peer = peer.map(|address| Peer(address.ip().to_canonical()));
        let activity = Arc::new(Activity::new());
        let _registration = self.register(&activity);
        // Pending writes, of HTTP/1 and HTTP/2, fail when the client has not read for so long.
        let mut stream = Box::pin(TimeoutWriter::new(stream));
        stream.as_mut().set_timeout_pinned(Some(self.transport.write_timeout));
        let Some(tls) = &self.transport.tls else {
            return self.serve(stream, peer, activity).await;
        };
        let ends = [
            self.silence(&activity).boxed(),
            activity.evicted().boxed(),
            self.stopping.cancelled().boxed(),
        ];
        let mut ends = SideFutures::new(&activity, ends);
        let handshake = tokio::select! {
            done = tls.accept(stream) => done.ok(),
            () = ends.next() => None,
        };
        drop(ends);
        if let Some(stream) = handshake {
            // Boxed: the TLS future is 10 KiB, and plain connections would carry it too.
            Box::pin(self.serve(stream, peer, activity)).await;
        }
    }

    async fn serve<S>(&self, stream: S, peer: Option<Peer>, activity: Arc<Activity>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn({
            // A clone per connection: its reference counts move between cores no more often than
            // the connection itself.
            let (activity, service) = (Arc::clone(&activity), Mutex::new(self.service.clone()));
            move |mut request: hyper::Request<hyper::body::Incoming>| {
                let busy = activity.begin();
                let many = request.version() == Version::HTTP_2;
                if let Some(peer) = peer {
                    request.extensions_mut().insert(peer);
                }
                // `map_ok`, not an async block, which would hold the answering future twice.
                let mut service = service.lock().unwrap_or_else(PoisonError::into_inner);
                let answering = service.call(request.map(Body::new));
                // On HTTP/1 the write timeout is enough. On HTTP/2 a client can read the other
                // streams and starve one.
                answering.map_ok(move |answer| match answer.extensions().get::<OpenEnded>() {
                    Some(OpenEnded) => answer.map(|body| busy.keep_while_open(body, many)),
                    None if many => answer.map(|body| busy.keep_until_sent(body)),
                    None => answer,
                })
            }
        });
        let mut connection = pin!(self.builder.serve_connection(TokioIo::new(stream), service));
        let mut ends = self.ends(&activity);
        loop {
            tokio::select! {
                biased;
                // Errors are caused by the client: it hung up, or did not speak HTTP. Whatever
                // could be answered was answered.
                _ = connection.as_mut() => return,
                end = ends.next() => match end {
                    End::Finish => connection.as_mut().graceful_shutdown(),
                    End::Cut => return,
                }
            }
        }
    }

    /// The events that end a connection.
    fn ends<'a>(&'a self, activity: &'a Arc<Activity>) -> SideFutures<'a, End> {
        let cut = async {
            tokio::select! {
                () = self.silence(activity) => {}
                () = activity.evicted() => {}
                () = activity.answers_lie(self.transport.write_timeout) => {}
                () = self.cut.cancelled() => {}
            }
            End::Cut
        };
        let finish = self.end_of_patience(activity).map(|()| End::Finish);
        SideFutures::new(activity, [cut.boxed(), finish.boxed()])
    }

    /// Completes when the server stops. A connection without a request yet gets
    /// [`FIRST_REQUEST_GRACE`] more, since its first request may lie unread in the kernel.
    async fn end_of_patience(&self, activity: &Activity) {
        self.stopping.cancelled().await;
        if !activity.has_begun() {
            tokio::time::sleep(FIRST_REQUEST_GRACE).await;
        }
    }

    /// Completes when a connection has brought no request in time. hyper's own header timeout
    /// starts only after it knows the HTTP version, and it waits for that without a limit.
    async fn silence(&self, activity: &Activity) {
        tokio::time::sleep(self.transport.header_timeout).await;
        if activity.has_begun() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
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
        client
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
            .await
            .unwrap();
        client
    }

    async fn read(client: &mut TcpStream) -> String {
        let mut buffer = vec![0; 4_096];
        let length = client.read(&mut buffer).await.unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_client_that_vanished_is_given_up_by_the_kernel() {
        let listener = bind("127.0.0.1:0".parse().unwrap(), "RUSHGATE_LISTEN").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        set_options(&stream);
        let limit_ms = rustix::net::sockopt::tcp_user_timeout(&stream).unwrap();
        assert_eq!(u128::from(limit_ms), DEAD_PEER.as_millis());
        assert!(stream.nodelay().unwrap());
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
        assert!(
            error.contains("RUSHGATE_OPS_LISTEN") && error.contains(&address.to_string()),
            "{error}"
        );
        stopping.cancel();
        server.await.unwrap();
    }
}
