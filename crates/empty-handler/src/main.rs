//! The baseline of `./dev bench`: a handler that does nothing, behind the same HTTP server as the
//! API and in the same kind of process (runtime, build profile, allocator). It prints its address
//! and runs until SIGTERM.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};

use axum::Router;
use axum::http::StatusCode;
use rushgate::http::server;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(Box::pin(run()))
}

async fn run() -> Result<(), Failure> {
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = server::bind(any_port, "the address of the empty handler").await?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stopping = CancellationToken::new();
    let told = stopping.clone();
    tokio::spawn(async move {
        terminate.recv().await;
        told.cancel();
    });
    let router = Router::new().fallback(async || StatusCode::OK);
    server::run(listener, router, stopping).await;
    Ok(())
}
