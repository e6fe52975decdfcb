//! One connection to RabbitMQ with one channel in confirm mode, whose socket is closed for certain
//! when it is dropped.
//!
//! lapin closes a connection by sending a frame from a thread of its own. A broker that has stopped
//! reading (memory alarm, frozen, cut off) never takes that frame, so thread and socket would leak,
//! one pair per attempt. Therefore the socket is duplicated when it is opened, and shut down when
//! the connection is dropped.

use lapin::options::{ConfirmSelectOptions, QueueDeclareOptions};
use lapin::tcp::{AsyncTcpStream, TLSConfig};
use lapin::types::FieldTable;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, Connection, ConnectionProperties};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

use super::topology;
use crate::config::bounds::{
    RELAY_CONFIRM_TIMEOUT, RELAY_CONNECT_TIMEOUT, RELAY_HEARTBEAT_SECS, RELAY_TOPOLOGY_TIMEOUT,
};

#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Omits the parser's reason, which may quote the password.
    #[error(
        "RUSHGATE_AMQP_URL is not an AMQP address; use one like amqp://user:password@host:5672/%2f"
    )]
    Address,
    #[error("RabbitMQ: {0}")]
    Amqp(#[from] lapin::Error),
    #[error("RabbitMQ did not finish {what} within {limit:?}")]
    TimedOut { what: &'static str, limit: Duration },
    #[error(
        "RabbitMQ received events but did not confirm them within {RELAY_CONFIRM_TIMEOUT:?}; if this goes on, check whether the \
         queue has a leader (rabbitmq-queues quorum_status data-platform.orders) and restart a node without one"
    )]
    Unconfirmed,
    #[error("RabbitMQ takes no events (memory or disk alarm)")]
    Blocked,
    #[error(
        "RabbitMQ already has an exchange or queue of that name with other properties: {0}; delete or rename it there \
         (rabbitmqctl delete_queue NAME), then Rushgate declares it again; until then events wait in the outbox"
    )]
    DeclaredOtherwise(String),
}

/// A connection whose exchanges and queues are declared, with confirms turned on.
pub struct Broker {
    // The first field is dropped first: with its socket shut down, no frame that lapin still wants
    // to send can keep the connection open.
    _socket: SocketEnd,
    connection: Connection,
    channel: Channel,
}

impl Broker {
    pub async fn connect(amqp_url: &str) -> Result<Self, BrokerError> {
        let mut uri: AMQPUri = amqp_url.parse().map_err(|_| BrokerError::Address)?;
        uri.query.heartbeat.get_or_insert(RELAY_HEARTBEAT_SECS);
        let socket = SocketEnd::default();
        let connection =
            limited("connecting", RELAY_CONNECT_TIMEOUT, open(uri, socket.clone_handle())).await?;
        let channel =
            limited("opening a channel", RELAY_CONNECT_TIMEOUT, connection.create_channel())
                .await?;
        limited(
            "declaring exchanges and queues",
            RELAY_TOPOLOGY_TIMEOUT,
            topology::declare(&channel),
        )
        .await
        .map_err(declared_otherwise)?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        limited("turning confirms on", RELAY_CONNECT_TIMEOUT, confirms).await?;
        Ok(Self { _socket: socket, connection, channel })
    }

    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Whether connection and channel are still up, as far as lapin knows.
    pub fn is_usable(&self) -> bool {
        self.connection.status().connected() && self.channel.status().connected()
    }

    /// Whether the broker has announced that it accepts nothing for now.
    pub fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Messages and consumers of the queues, as far as they can be read. A missing queue closes the
    /// channel that asks for it, so this uses a channel of its own and not that of the events.
    pub async fn queues(&self) -> Vec<(&'static str, u32, u32)> {
        let mut seen = Vec::new();
        let look = async {
            let channel = self.connection.create_channel().await?;
            for queue in [topology::ORDERS_QUEUE, topology::DEAD_ORDERS_QUEUE] {
                let passive = QueueDeclareOptions { passive: true, ..Default::default() };
                let found =
                    channel.queue_declare(queue.into(), passive, FieldTable::default()).await?;
                seen.push((queue, found.message_count(), found.consumer_count()));
            }
            channel.close(200, "OK".into()).await
        };
        let _ = timeout(RELAY_CONNECT_TIMEOUT, look).await; // unreadable queues are left out
        seen
    }

    /// Closes the connection cleanly, so that a shutdown leaves no warning in the broker's log.
    pub async fn close(self) {
        let _ = timeout(Duration::from_secs(1), self.connection.close(200, "OK".into())).await;
    }
}

fn declared_otherwise(error: BrokerError) -> BrokerError {
    use lapin::ErrorKind::ProtocolError;
    use lapin::protocol::{AMQPErrorKind::Soft, AMQPSoftError::PRECONDITIONFAILED};
    match &error {
        BrokerError::Amqp(amqp) => match amqp.kind() {
            ProtocolError(refusal) if *refusal.kind() == Soft(PRECONDITIONFAILED) => {
                BrokerError::DeclaredOtherwise(refusal.get_message().to_string())
            }
            _ => error,
        },
        _ => error,
    }
}

async fn open(uri: AMQPUri, handle: SocketHandle) -> Result<Connection, lapin::Error> {
    let runtime = lapin::runtime::default_runtime()?;
    let properties = ConnectionProperties::default().with_connection_name("rushgate-relay".into());
    let reactor = runtime.clone();
    let connect = async move |uri: AMQPUri, _| {
        let address = reactor.to_socket_addrs((uri.authority.host.clone(), uri.authority.port));
        let stream = AsyncTcpStream::connect(&reactor, address).await?;
        if let AsyncTcpStream::Plain(plain) = &stream {
            handle.put(plain.get_ref().as_fd().try_clone_to_owned()?.into());
        }
        Ok(match uri.scheme {
            AMQPScheme::AMQP => stream,
            AMQPScheme::AMQPS => stream.into_tls(&uri.authority.host, TLSConfig::default()).await?,
        })
    };
    Connection::connector(uri, runtime, connect, properties).await
}

type SocketHandle = Arc<SocketSlot>;

/// A second handle of the socket. `given_up` covers a socket that opens only after the attempt to
/// connect has timed out.
#[derive(Default)]
struct SocketSlot(Mutex<Slot>);

#[derive(Default)]
struct Slot {
    socket: Option<TcpStream>,
    given_up: bool,
}

impl SocketSlot {
    fn put(&self, socket: TcpStream) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.given_up {
            let _ = socket.shutdown(Shutdown::Both);
        }
        slot.socket = Some(socket);
    }
}

/// Shuts the socket down when dropped.
#[derive(Default)]
struct SocketEnd(SocketHandle);

impl SocketEnd {
    fn clone_handle(&self) -> SocketHandle {
        Arc::clone(&self.0)
    }
}

impl Drop for SocketEnd {
    fn drop(&mut self) {
        let mut slot = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.given_up = true;
        if let Some(socket) = slot.socket.take() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

async fn limited<T>(
    what: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, lapin::Error>>,
) -> Result<T, BrokerError> {
    match timeout(limit, work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(BrokerError::TimedOut { what, limit }),
    }
}
