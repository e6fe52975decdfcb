//! A TCP proxy in front of a server that can be closed, silent, slow or open. Simulates the outages
//! that an instance may meet when it starts.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::cluster::Settings;

/// Delay of each piece of data in slow mode.
const SLOW: Duration = Duration::from_millis(40);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Accepts connections and never answers.
    Silent,
    /// Forwards everything with a delay.
    Slow,
    Open,
}

pub struct Door {
    setting: &'static str,
    url: String,
    server: SocketAddr,
    port: u16,
    accepting: Option<AbortOnDropHandle<()>>,
}

impl Door {
    /// Creates a proxy for the server in this setting. It is closed at first.
    pub async fn before(settings: &Settings, setting: &'static str) -> Self {
        let url = settings.get(setting).to_owned();
        let (_, rest) = url.split_once("127.0.0.1:").unwrap();
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        let server = SocketAddr::from(([127, 0, 0, 1], digits.parse().unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = url.replacen(&format!("127.0.0.1:{digits}"), &format!("127.0.0.1:{port}"), 1);
        Self { setting, url, server, port, accepting: None }
    }

    /// The settings of an instance that connects through the proxy.
    pub fn through(&self, settings: &Settings) -> Settings {
        settings.with(self.setting, self.url.clone())
    }

    /// Changes the mode. Existing connections are closed.
    pub async fn set(&mut self, mode: Mode) {
        self.shut().await;
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        let server = self.server;
        self.accepting = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let mut passing = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                passing.spawn(pass(client, server, mode));
            }
        })));
    }

    /// Stops listening.
    pub async fn shut(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            let _ = accepting.await; // its listener is closed then
        }
    }
}

async fn pass(mut client: TcpStream, server: SocketAddr, mode: Mode) {
    if mode == Mode::Silent {
        let mut nothing = [0; 1_024];
        while client.read(&mut nothing).await.is_ok_and(|length| length > 0) {}
        return;
    }
    let Ok(server) = TcpStream::connect(server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let _ = tokio::join!(carry(from_client, to_server, mode), carry(from_server, to_client, mode));
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mode: Mode,
) -> std::io::Result<()> {
    let mut piece = vec![0; 64 * 1024];
    loop {
        let length = from.read(&mut piece).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        if mode == Mode::Slow {
            tokio::time::sleep(SLOW).await;
        }
        to.write_all(&piece[..length]).await?;
    }
}
