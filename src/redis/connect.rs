//! Connections to Redis, and the configuration that Rushgate requires of it.
//!
//! [`connect`] opens a client that reconnects by itself but never resends a command.
//! [`CheckedConnection`] wraps the client of decisions: before the first decision on each new
//! connection, it checks that the Redis behind it keeps acknowledged writes.

use fred::prelude::*;
use fred::types::config::{Server, TcpConfig, UnresponsiveConfig};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;

use crate::config::{Durability, bounds};
use crate::thread::ThreadError;

/// Redis cannot be used. The message tells the operator what to do.
#[derive(Debug, thiserror::Error)]
pub enum RedisSetupError {
    #[error("RUSHGATE_REDIS_URL is not a Redis address ({0}): use redis://HOST:PORT")]
    Url(String),
    #[error("Redis at {server} does not answer ({why}): start it, or correct RUSHGATE_REDIS_URL")]
    Unreachable { server: String, why: String },
    #[error(
        "Redis would lose acknowledged writes: {0}; correct its configuration, or accept the loss with RUSHGATE_DURABILITY=relaxed"
    )]
    Unsafe(String),
    #[error(transparent)]
    Thread(#[from] ThreadError),
}

/// Per connection, the most commands in flight or waiting. Beyond that, a command fails at once.
const MAX_COMMANDS_WAITING: usize = 10_000;
const RECONNECT_MIN_MS: u32 = 20;
const RECONNECT_MAX_MS: u32 = 500;

/// Opens a client that reconnects without limit, but never resends a command by itself: the first
/// send may have been executed.
pub async fn connect(url: &str) -> Result<Client, RedisSetupError> {
    // fred treats every unknown scheme as the address of a single server.
    if !["redis", "valkey"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err(RedisSetupError::Url("unsupported scheme".into()));
    }
    let config = Config::from_url(url).map_err(|e| RedisSetupError::Url(e.details().to_owned()))?;
    let server = shown(&config);
    let client = Builder::from_config(config)
        .with_connection_config(|c| {
            c.connection_timeout = bounds::CONNECT_TIMEOUT;
            c.internal_command_timeout = bounds::CONNECT_TIMEOUT;
            c.max_command_attempts = 1;
            c.max_command_buffer_len = MAX_COMMANDS_WAITING;
            c.unresponsive = UnresponsiveConfig {
                max_timeout: Some(bounds::REDIS_COMMAND_TIMEOUT + Duration::from_millis(500)),
                interval: Duration::from_millis(500),
            };
            c.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
        })
        .with_performance_config(|p| p.default_command_timeout = bounds::REDIS_COMMAND_TIMEOUT)
        // 0 attempts: reconnect without limit.
        .set_policy(ReconnectPolicy::new_exponential(0, RECONNECT_MIN_MS, RECONNECT_MAX_MS, 2))
        .build()
        .map_err(|e| RedisSetupError::Url(e.details().to_owned()))?;
    let unreachable = |why: String| RedisSetupError::Unreachable { server: server.clone(), why };
    match tokio::time::timeout(bounds::CONNECT_TIMEOUT, client.init()).await {
        Ok(Ok(_)) => Ok(client),
        Ok(Err(e)) => Err(unreachable(e.details().to_owned())),
        Err(_) => Err(unreachable(format!("no answer in {:?}", bounds::CONNECT_TIMEOUT))),
    }
}

/// The options of every gate command: at most one send, with a timeout.
pub fn once() -> Options {
    Options {
        max_attempts: Some(1),
        fail_fast: true,
        timeout: Some(bounds::REDIS_COMMAND_TIMEOUT),
        ..Options::default()
    }
}

fn shown(config: &Config) -> String {
    config.server.hosts().iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Required settings. With them, an acknowledged write is on disk and no key is evicted.
const REQUIRED: [(&str, &str); 4] = [
    ("appendonly", "yes"),
    ("appendfsync", "always"),
    ("no-appendfsync-on-rewrite", "no"),
    ("maxmemory-policy", "noeviction"),
];

/// Recommended settings. With `aof-load-truncated yes`, Redis' default, a torn write (after a power
/// loss, a full disk or a kill) damages later writes: Redis starts with the beginning of a
/// transaction at the end of its file, appends new transactions, and at the next start reads them
/// as a part of the torn one. With `no`, Redis does not start until `redis-check-aof --fix` has cut
/// off the torn end.
const ADVISED: [(&str, &str); 1] = [("aof-load-truncated", "no")];

/// Snapshots are of no use beside the append-only file. With `stop-writes-on-bgsave-error yes`,
/// Redis' default, a single failed snapshot (no room for a second copy of the data) makes Redis
/// refuse every write until a snapshot succeeds.
const NO_SNAPSHOTS: [(&str, &str); 1] = [("save", "")];
const SNAPSHOTS_MAY_FAIL: [(&str, &str); 1] = [("stop-writes-on-bgsave-error", "no")];

/// Numbers a client's connections: the one that exists at creation is 1, each reconnect adds 1.
pub struct Connections(Mutex<(Receiver<Server>, u64)>);

impl Connections {
    /// fred reports each new connection before it sends anything on it.
    pub fn new(client: &Client) -> Self {
        Self(Mutex::new((client.reconnect_rx(), 1)))
    }

    /// The number of the current connection.
    pub fn number(&self) -> u64 {
        let mut connections = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match connections.0.try_recv() {
                Ok(_) | Err(TryRecvError::Lagged(_)) => connections.1 += 1,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return connections.1,
            }
        }
    }
}

/// The client of decisions. A reconnect may lead to another Redis (Sentinel has promoted a replica)
/// or to another configuration (Redis was restarted). So no decision is sent on a connection before
/// the configuration behind it was checked.
pub struct CheckedConnection {
    pub client: Client,
    demanded: Durability,
    connections: Connections,
    /// The number of the last connection that passed the check.
    checked: AtomicU64,
    /// The number of the last connection whose failure was logged.
    complained: AtomicU64,
    /// Serialises checks, so that a failure is logged once.
    checking: tokio::sync::Mutex<()>,
}

impl CheckedConnection {
    /// Checks the first connection. A Redis that would lose acknowledged writes is an error
    /// (`strict`) or a warning (`relaxed`).
    pub async fn new(client: Client, demanded: Durability) -> Result<Self, RedisSetupError> {
        let connections = Connections::new(&client);
        // A failure of connection 1 is returned to the caller, who reports it.
        let (checked, complained) = (AtomicU64::new(0), AtomicU64::new(1));
        let checked = Self {
            client,
            demanded,
            connections,
            checked,
            complained,
            checking: Default::default(),
        };
        checked.check().await?;
        Ok(checked)
    }

    /// The number of the current connection.
    pub fn connection(&self) -> u64 {
        self.connections.number()
    }

    /// Checks the current connection unless it has passed already. Returns its number.
    pub async fn check(&self) -> Result<u64, RedisSetupError> {
        let connection = self.connection();
        if self.checked.load(Ordering::Relaxed) == connection {
            return Ok(connection);
        }
        let _one = self.checking.lock().await;
        if self.checked.load(Ordering::Relaxed) == connection {
            return Ok(connection);
        }
        if !self.client.is_connected() {
            let (server, why) = (shown(&self.client.client_config()), "not connected".into());
            return Err(RedisSetupError::Unreachable { server, why });
        }
        if let Err(error) = check_durability(&self.client, self.demanded).await {
            if self.complained.swap(connection, Ordering::Relaxed) != connection {
                tracing::error!(%error, "refusing decisions: Redis failed the durability check");
            }
            return Err(error);
        }
        if self.connection() != connection {
            return Err(RedisSetupError::Unsafe(
                "the connection changed while it was checked".into(),
            ));
        }
        self.checked.store(connection, Ordering::Relaxed);
        Ok(connection)
    }
}

/// A Redis that would lose acknowledged writes is an error (`strict`) or a warning (`relaxed`).
/// Logs a warning for settings that are only recommended.
async fn check_durability(client: &Client, durability: Durability) -> Result<(), RedisSetupError> {
    let problem = match differences(client, &REQUIRED).await {
        Ok(problem) => problem,
        Err(e) => Some(format!("its configuration cannot be read ({})", e.details())),
    };
    match (problem, durability) {
        (None, _) => {}
        (Some(problem), Durability::Strict) => return Err(RedisSetupError::Unsafe(problem)),
        (Some(problem), Durability::Relaxed) => {
            tracing::warn!(%problem, "Redis would lose acknowledged writes; continuing because RUSHGATE_DURABILITY=relaxed");
        }
    }
    if let Ok(Some(advice)) = differences(client, &ADVISED).await {
        tracing::warn!(
            advice,
            "a torn write at the end of Redis' append-only file could damage later ones"
        );
    }
    if let (Ok(Some(advice)), Ok(Some(_))) =
        (differences(client, &NO_SNAPSHOTS).await, differences(client, &SNAPSHOTS_MAY_FAIL).await)
    {
        tracing::warn!(
            advice,
            "a snapshot that fails would make Redis refuse every decision (stop-writes-on-bgsave-error)"
        );
    }
    Ok(())
}

async fn differences(client: &Client, wanted: &[(&str, &str)]) -> Result<Option<String>, Error> {
    let mut wrong = Vec::new();
    for (name, wanted) in wanted.iter().copied() {
        let found: HashMap<String, String> = client.with_options(&once()).config_get(name).await?;
        let value = found.get(name).map_or("unset", String::as_str);
        if value != wanted {
            wrong.push(format!("`{name}` is `{value}` and must be `{wanted}`"));
        }
    }
    Ok(if wrong.is_empty() { None } else { Some(wrong.join(", ")) })
}
