//! Free loopback ports below the kernel's ephemeral range, which is what binding port 0 would give.
//!
//! A port of that range is unsuitable for two reasons. A client that keeps reconnecting to a
//! stopped server can be given the server's port as its source port, and then connects to itself.
//! And any outgoing connection can take the port while the server restarts.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

use super::Error;

/// Well-known servers use the ports below this.
const LOWEST: u16 = 10_240;
const USUAL_EPHEMERAL_START: u16 = 32_768;
const ATTEMPTS: u32 = 1_000;

/// `count` different ports that are free at this moment. Another process may still take one first;
/// the caller then retries with other ports.
pub fn free_ports(count: usize) -> Result<Vec<u16>, Error> {
    let listeners = (0..count)
        .map(|_| bind())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| Error::io("find a free port on 127.0.0.1".into(), source))?;
    Ok(listeners.iter().filter_map(|listener| Some(listener.local_addr().ok()?.port())).collect())
}

fn bind() -> std::io::Result<TcpListener> {
    /// Counts from a different start in each process, so that servers of one process never compete
    /// for a port.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let _ = NEXT.compare_exchange(
        0,
        std::process::id().wrapping_mul(101) | 1,
        Ordering::Relaxed,
        Ordering::Relaxed,
    );
    let end = ephemeral_start().max(LOWEST + 1_000);
    for _ in 0..ATTEMPTS {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed) % u32::from(end - LOWEST);
        let port = LOWEST + u16::try_from(offset).unwrap_or(0);
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return Ok(listener);
        }
    }
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
}

fn ephemeral_start() -> u16 {
    let range =
        std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    range
        .split_whitespace()
        .next()
        .and_then(|start| start.parse().ok())
        .unwrap_or(USUAL_EPHEMERAL_START)
}
