//! One connection to RabbitMQ with one channel in confirm mode, and the certainty that it ends when it is dropped.
//!
//! lapin ends a connection by sending a frame, from a thread of its own. A broker that has stopped reading (memory
//! alarm, frozen, cut off) never takes that frame, and thread and socket would stay for ever, one pair per attempt. So
//! the socket is duplicated when it is opened and shut down when the connection is given up.

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
    /// Without the parser's reason, which may quote the password.
    #[error("RUSHGATE_AMQP_URL is no AMQP address; use one like amqp://user:password@host:5672/%2f")]
    Address,
    #[error("RabbitMQ: {0}")]
    Amqp(#[from] lapin::Error),
    #[error("RabbitMQ did not finish {what} within {limit:?}")]
    TimedOut { what: &'static str, limit: Duration },
    #[error(
        "RabbitMQ took events but did not confirm them within {RELAY_CONFIRM_TIMEOUT:?}; if this goes on, see whether the \
         queue has a leader (rabbitmq-queues quorum_status data-platform.orders) and restart a node that has none"
    )]
    Unconfirmed,
    #[error("RabbitMQ takes no events (memory or disk alarm)")]
    Blocked,
    #[error(
        "RabbitMQ already has something of that name that is declared otherwise: {0}; delete or rename it there \
         (rabbitmqctl delete_queue NAME), then Rushgate declares it anew; until then events wait in the outbox"
    )]
    DeclaredOtherwise(String),
}

/// A connection on which exchanges and queues are declared and confirms are on.
pub struct Broker {
    // Declared first, dropped first: with its socket gone, nothing that lapin still wants to send can hold it.
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
            limited("opening a channel", RELAY_CONNECT_TIMEOUT, connection.create_channel()).await?;
        limited("declaring exchanges and queues", RELAY_TOPOLOGY_TIMEOUT, topology::declare(&channel))
            .await
            .map_err(declared_otherwise)?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        limited("turning confirms on", RELAY_CONNECT_TIMEOUT, confirms).await?;
        Ok(Self { _socket: socket, connection, channel })
    }

    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Both ends still believe in the connection.
    pub fn is_usable(&self) -> bool {
        self.connection.status().connected() && self.channel.status().connected()
    }

    /// The broker said that it takes nothing for now.
    pub fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Messages and consumers of the queues, as far as they can be seen. On a channel of its own, which ends where a queue
    /// is missing; the events' channel must not.
    pub async fn queues(&self) -> Vec<(&'static str, u32, u32)> {
        let mut seen = Vec::new();
        let look = async {
            let channel = self.connection.create_channel().await?;
            for queue in [topology::ORDERS_QUEUE, topology::DEAD_ORDERS_QUEUE] {
                let passive = QueueDeclareOptions { passive: true, ..Default::default() };
                let found = channel.queue_declare(queue.into(), passive, FieldTable::default()).await?;
                seen.push((queue, found.message_count(), found.consumer_count()));
            }
            channel.close(200, "OK".into()).await
        };
        let _ = timeout(RELAY_CONNECT_TIMEOUT, look).await; // what is not seen is left out
        seen
    }

    /// Says good-bye, for a shutdown without noise in the broker's log.
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

/// A second handle of the socket. `given_up` covers the socket that is opened only after its owner has lost patience.
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
