//! `rushgate ready`: asks a running instance whether it can decide; for health checks where there is no other client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The longest that an instance may take to say how it is, on a machine that is starved; it needs no answer of anybody.
const LIMIT: Duration = Duration::from_secs(4);
/// More than any answer of /readyz.
const MAX_ANSWER_BYTES: u64 = 64 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadyError {
    #[error("nobody answers at {0} ({1}); is RUSHGATE_OPS_LISTEN the instance's?")]
    Unreachable(SocketAddr, std::io::Error),
    #[error("no answer from {0} within {LIMIT:?}")]
    TimedOut(SocketAddr),
    #[error("what listens at {0} is no instance of Rushgate")]
    Foreign(SocketAddr),
}

/// Whether the instance with this operations address is ready, and what it said.
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

/// An instance listens on all addresses; it is asked on the loopback one.
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
