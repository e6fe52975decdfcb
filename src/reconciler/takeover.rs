//! Take-over: this leader's Redis is not the server that PostgreSQL names as the cell's gate,
//! because a server was restarted or promoted, or the address leads to another one.
//!
//! Instances decide on the named server only (`src/gate/fence.rs`). If the gate survived unharmed
//! (a restart with its disk, a replica that has everything), this leader's server replaces the
//! named one in the same epoch, in two steps: first no server is named; once every lease on the
//! other server has ended, this one is named.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use fred::interfaces::ClientLike;
use fred::prelude::*;

use super::cursor::Cursor;
use super::{Reconciler, StepError, limited};
use crate::config::bounds::{CONNECT_TIMEOUT, FENCE_FOLLOW_FIRST, FENCE_WAIT};
use crate::log::reader::LogError;
use crate::redis::connect::Connections;
use crate::redis::control::server_id;

/// The Redis server behind a leader's connection. It is asked for its run id once per connection.
pub struct Server {
    connections: Connections,
    known: Mutex<Option<(u64, Option<String>)>>,
    /// The number of the latest known connection, and since when it is known. A connection that was
    /// just made leads where its address leads now.
    latest: Mutex<(u64, Instant)>,
}

impl Server {
    pub fn new(client: &Client) -> Self {
        let latest = Mutex::new((1, Instant::now()));
        Self { connections: Connections::new(client), known: Mutex::default(), latest }
    }

    /// The server's run id; `None`: the server does not reveal it.
    pub async fn id(&self, client: &Client, cell: u32) -> Result<Option<String>, LogError> {
        let connection = self.connections.number();
        if let Some((of, id)) = lock(&self.known).clone()
            && of == connection
        {
            return Ok(id);
        }
        let id = server_id(client, cell).await?;
        if id.is_none() {
            tracing::warn!(
                cell,
                "Redis does not reveal its run id (INFO): a promoted replica cannot be detected"
            );
        }
        *lock(&self.known) = Some((connection, id.clone()));
        Ok(id)
    }

    /// Whether the connection is still the one that [`Self::id`] asked on.
    pub fn is_same(&self) -> bool {
        lock(&self.known).as_ref().is_some_and(|(of, _)| *of == self.connections.number())
    }

    /// How long the present connection has been known. A stand-by calls this repeatedly, so that
    /// the age is right when it becomes the leader.
    pub(super) fn age(&self) -> Duration {
        let (number, mut latest) = (self.connections.number(), lock(&self.latest));
        if latest.0 != number {
            *latest = (number, Instant::now());
        }
        latest.1.elapsed()
    }

    /// Reconnects, unless the connection is new: the address may lead to the gate by now. Returns
    /// whether it has reconnected.
    async fn renew(&self, client: &Client) -> Result<bool, LogError> {
        if self.age() < FENCE_FOLLOW_FIRST {
            return Ok(false);
        }
        client.force_reconnection().await?;
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, client.wait_for_connect()).await;
        connected.map_err(|_| LogError("not connected".into()))??;
        *lock(&self.latest) = (self.connections.number(), Instant::now());
        Ok(true)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Reconciler {
    /// The run id of this leader's Redis server.
    pub(super) async fn server_id(&self) -> Result<Option<String>, LogError> {
        self.server.id(&self.log.client, self.cell).await
    }

    /// If another server than this leader's is the gate, reconnects once, since the address may
    /// lead there by now. Returns whether it has reconnected.
    pub(super) async fn renew_unless_gate(
        &self,
        cursor: &Cursor,
        server: Option<&str>,
    ) -> Result<bool, LogError> {
        let gate = cursor.gate.as_deref();
        let is_another = gate.is_some_and(|gate| !gate.is_empty() && Some(gate) != server);
        Ok(is_another && self.server.renew(&self.log.client).await?)
    }

    /// Names this leader's server, whose log continues after the cursor, as the gate. `false`: the
    /// cursor or the connection has changed, so look again.
    pub(super) async fn take_over(
        &mut self,
        cursor: &Cursor,
        server: Option<&str>,
    ) -> Result<bool, StepError> {
        let cell = self.cell;
        if cursor.gate.is_none() {
            // No server is named, because an earlier version opened this epoch: there is no lease
            // to wait for.
            return Ok(limited(cursor.name_gate(self.connection().await?, server))
                .await?
                .is_some());
        }
        tracing::warn!(
            cell,
            epoch = cursor.epoch,
            wait = ?FENCE_WAIT,
            "this Redis (restarted or promoted) is taking over the cell from another server, after a wait"
        );
        let Some(nobody) = limited(cursor.name_gate(self.connection().await?, Some(""))).await?
        else {
            return Ok(false);
        };
        tokio::time::sleep(FENCE_WAIT).await;
        if !self.server.is_same() {
            return Ok(false); // the next step takes over for the server that is connected then
        }
        let named = limited(nobody.name_gate(self.connection().await?, server)).await?;
        if named.is_some() {
            tracing::info!(cell, epoch = cursor.epoch, "this Redis is the cell's gate");
        }
        Ok(named.is_some())
    }
}
