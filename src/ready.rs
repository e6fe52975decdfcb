//! `rushgate ready`: asks a running instance whether it can decide. For health checks in images
//! without an HTTP client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Time limit for the answer on a starved machine; the instance itself waits for no server before
/// it answers.
const LIMIT: Duration = Duration::from_secs(4);
/// More than any answer of /readyz.
const MAX_ANSWER_BYTES: u64 = 64 * 1024;

/// Why the instance's state is unknown.
#[derive(Debug, thiserror::Error)]
pub enum ReadyError {
    #[error("no instance answers at {0} ({1}); is RUSHGATE_OPS_LISTEN the instance's?")]
    Unreachable(SocketAddr, std::io::Error),
    #[error("no answer from {0} within {LIMIT:?}")]
    TimedOut(SocketAddr),
    #[error("the server at {0} is not a Rushgate instance")]
    Foreign(SocketAddr),
}

/// Whether the instance with this operations address is ready, and the body of its answer.
pub async fn ask(ops_listen: SocketAddr) -> Result<(bool, String), ReadyError> {
    let address = reachable(ops_listen);
    let answer = timeout(LIMIT, get(address)).await.map_err(|_| ReadyError::TimedOut(address))?;
    let answer = answer.map_err(|error| ReadyError::Unreachable(address, error))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(ReadyError::Foreign(address))?;
    match head.split(' ').nth(1) {
        Some("200") => Ok((true, body.to_owned())),
        Some("503") => Ok((false, body.to_owned())),
        _ => Err(ReadyError::Foreign(address)),
    }
}

/// An instance that listens on all addresses is asked on the loopback address.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

async fn get(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
