//! Connections to Redis and what Rushgate demands of its configuration.

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

/// Redis cannot be used; the message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum RedisSetupError {
    #[error("RUSHGATE_REDIS_URL is not a Redis address ({0}): use redis://HOST:PORT")]
    Url(String),
    #[error("Redis at {server} does not answer ({why}): start it, or correct RUSHGATE_REDIS_URL")]
    Unreachable { server: String, why: String },
    #[error(
        "Redis would lose acknowledged writes: {0}; mend its configuration, or accept the loss with RUSHGATE_DURABILITY=relaxed"
    )]
    Unsafe(String),
    #[error(transparent)]
    Thread(#[from] ThreadError),
}

/// Commands in flight or waiting per connection before further ones fail at once.
const MAX_COMMANDS_WAITING: usize = 10_000;
const RECONNECT_MIN_MS: u32 = 20;
const RECONNECT_MAX_MS: u32 = 500;

/// A connection that re-connects for ever, but never sends a command a second time by itself.
pub async fn connect(url: &str) -> Result<Client, RedisSetupError> {
    // fred takes any scheme for that of a single server.
    if !["redis", "valkey"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err(RedisSetupError::Url("its scheme is not Redis'".into()));
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
        // zero attempts: no end to re-connecting
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

/// The options of every gate command: sent once or not at all, with a time limit.
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

/// What Redis must be set to, so that an answered write is on disk and no key vanishes.
const REQUIRED: [(&str, &str); 4] = [
    ("appendonly", "yes"),
    ("appendfsync", "always"),
    ("no-appendfsync-on-rewrite", "no"),
    ("maxmemory-policy", "noeviction"),
];

/// What it had better be set to. With `aof-load-truncated yes`, Redis' default, a write that was torn (by a power cut, a
/// full disk, a kill) damages what is written after it: Redis starts on the beginning of a transaction, and takes the next
/// ones for a part of it when it starts again. With `no`, it does not start until `redis-check-aof --fix` has cut the end.
const ADVISED: [(&str, &str); 1] = [("aof-load-truncated", "no")];

/// Snapshots are of no use beside the append-only file, and with `stop-writes-on-bgsave-error yes`, Redis' default, a single one
/// that fails (no room for a second copy of the data) makes Redis refuse every write until one succeeds.
const NO_SNAPSHOTS: [(&str, &str); 1] = [("save", "")];
const SNAPSHOTS_MAY_FAIL: [(&str, &str); 1] = [("stop-writes-on-bgsave-error", "no")];

/// Counts a client's connections, in the order in which they are made.
pub struct Connections(Mutex<(Receiver<Server>, u64)>);

impl Connections {
    /// Told of each new connection before anything is sent on it; the present one is the first.
    pub fn new(client: &Client) -> Self {
        Self(Mutex::new((client.reconnect_rx(), 1)))
    }

    /// The number of the present one.
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

/// The connection of decisions. After each reconnect there may be another Redis at its end (Sentinel has promoted a
/// replica, a restart has read another configuration), so nothing is decided there before its configuration was checked.
pub struct Vetted {
    pub client: Client,
    demanded: Durability,
    connections: Connections,
    /// The connection that was found good …
    vetted: AtomicU64,
    /// … and the one that was last complained of.
    complained: AtomicU64,
    /// One check at a time, so that it is said once.
    checking: tokio::sync::Mutex<()>,
}

impl Vetted {
    /// Refuses (strict) or warns about (relaxed) a Redis that would lose acknowledged writes.
    pub async fn new(client: Client, demanded: Durability) -> Result<Self, RedisSetupError> {
        let connections = Connections::new(&client);
        let (vetted, complained) = (AtomicU64::new(0), AtomicU64::new(1)); // of the first one, whoever starts us will
        let vetted = Self { client, demanded, connections, vetted, complained, checking: Default::default() };
        vetted.vet().await?;
        Ok(vetted)
    }

    /// The number of the present connection.
    pub fn connection(&self) -> u64 {
        self.connections.number()
    }

    /// Checks the present connection unless that was done; returns its number.
    pub async fn vet(&self) -> Result<u64, RedisSetupError> {
        let connection = self.connection();
        if self.vetted.load(Ordering::Relaxed) == connection {
            return Ok(connection);
        }
        let _one = self.checking.lock().await;
        if self.vetted.load(Ordering::Relaxed) == connection {
            return Ok(connection);
        }
        if !self.client.is_connected() {
            let (server, why) = (shown(&self.client.client_config()), "not connected".into());
            return Err(RedisSetupError::Unreachable { server, why });
        }
        if let Err(error) = check_durability(&self.client, self.demanded).await {
            if self.complained.swap(connection, Ordering::Relaxed) != connection {
                tracing::error!(%error, "nothing is decided on this Redis");
            }
            return Err(error);
        }
        if self.connection() != connection {
            return Err(RedisSetupError::Unsafe("the connection changed while it was checked".into()));
        }
        self.vetted.store(connection, Ordering::Relaxed);
        Ok(connection)
    }
}

/// Refuses (strict) or warns about (relaxed) a Redis that would lose acknowledged writes.
async fn check_durability(client: &Client, durability: Durability) -> Result<(), RedisSetupError> {
    let problem = match differences(client, &REQUIRED).await {
        Ok(problem) => problem,
        Err(e) => Some(format!("its configuration cannot be read ({})", e.details())),
    };
    match (problem, durability) {
        (None, _) => {}
        (Some(problem), Durability::Strict) => return Err(RedisSetupError::Unsafe(problem)),
        (Some(problem), Durability::Relaxed) => {
            tracing::warn!(%problem, "Redis would lose acknowledged writes; going on because RUSHGATE_DURABILITY=relaxed");
        }
    }
    if let Ok(Some(advice)) = differences(client, &ADVISED).await {
        tracing::warn!(advice, "a torn write at the end of Redis' append-only file could damage later ones");
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
