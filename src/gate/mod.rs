//! The gate: atomic scripts in Redis decide each request.
//!
//! A [`Gate`] holds the cells (one for now), each with one queue per script, two connections and
//! what this instance knows of the cell (epoch, last entry seen, clock). [`crate::redis::keys`]
//! describes the state in Redis and its life; `lua/` holds the scripts. A command becomes a
//! MessagePack body ([`commands`]), waits in its script's queue ([`batcher`]), is decided together
//! with others in one call ([`script`]) and comes back as a typed verdict ([`verdict`]). Reads take
//! the same way ([`queries`]). Queues, connections and the fence run on a thread of their own and
//! end with the gate.

mod backlog;
pub mod batch;
mod batcher;
pub mod cell;
pub mod clock;
mod commands;
mod fence;
#[cfg(test)]
mod fuzz;
pub mod holds;
mod idempotency;
mod metrics;
pub mod observe;
mod queries;
mod queues;
pub mod read;
mod refusal;
mod request;
pub mod scan;
pub mod script;
mod sold_out;
mod status;
mod terms;
mod unconfirmed_decisions;
mod verdict;
pub mod write_state;

use fred::interfaces::ClientLike;
use std::sync::Arc;
use tokio_util::task::AbortOnDropHandle;

pub use batcher::BatchLimits;
use cell::Cell;
use fence::{CellFence, Fence, Watcher};
pub use idempotency::KeyedRequest;
pub use queries::{CaughtUp, ReadAt};

use queues::CellQueues;
pub use read::{PackedProducts, Watched};
pub use refusal::*;
pub use request::*;
use sold_out::SoldOutMemory;
pub use status::CellStatus;
use terms::TermsMemory;
pub use unconfirmed_decisions::{DecisionId, LossCandidates, UnconfirmedDecisions};
pub use write_state::WriteRefusal;

use crate::config::{Serve, Servers};
use crate::domain::UserId;
use crate::redis::{RedisSetupError, connect, keys};
use crate::thread::DedicatedRuntime;

/// One handle for all requests of an instance; cheap to share.
pub struct Gate {
    cells: Vec<CellQueues>,
    sold_out_templates: SoldOutMemory,
    sold_out_products: SoldOutMemory,
    terms: TermsMemory,
    log_limit: u64,
    /// Stops the task when the gate is dropped.
    _fence: Option<AbortOnDropHandle<()>>,
    /// Dropped after the cells, which run there. `None`: no cells.
    _thread: Option<DedicatedRuntime>,
}

impl Gate {
    /// Connects, checks Redis' configuration and starts the queues. Needs a running Redis, but no
    /// open cell.
    pub async fn connect(settings: &Serve) -> Result<Arc<Self>, RedisSetupError> {
        let limits = BatchLimits {
            queue: settings.queue_limit as usize,
            batch: settings.max_batch as usize,
            log: settings.log_limit,
            keys: settings.limits.user_keys,
            read: settings.request_timeout(),
        };
        Self::with_limits(&settings.servers, limits).await
    }

    /// See [`Gate::connect`].
    pub async fn with_limits(
        servers: &Servers,
        limits: BatchLimits,
    ) -> Result<Arc<Self>, RedisSetupError> {
        let thread = DedicatedRuntime::start("rushgate-gate", 0)?;
        let (cells, fence) = thread.run(start_cells(servers.clone(), limits)).await??;
        Ok(Arc::new(Self {
            cells,
            _fence: Some(fence),
            sold_out_templates: SoldOutMemory::default(),
            sold_out_products: SoldOutMemory::default(),
            terms: TermsMemory::default(),
            log_limit: limits.log,
            _thread: Some(thread),
        }))
    }

    /// Ends the connections, for commands that need a gate only for a while.
    pub async fn close(&self) {
        for CellQueues { cell, .. } in &self.cells {
            for client in [&cell.writer.client, &cell.reader] {
                let _ = client.quit().await; // it may be gone already
            }
        }
    }

    /// For tests of requests that never reach a cell.
    #[cfg(test)]
    pub(crate) fn without_cells() -> Self {
        Self {
            cells: vec![],
            sold_out_templates: SoldOutMemory::default(),
            sold_out_products: SoldOutMemory::default(),
            terms: TermsMemory::default(),
            log_limit: 1,
            _fence: None,
            _thread: None,
        }
    }

    fn queues_of(&self, user_id: &UserId) -> &CellQueues {
        let cells = u32::try_from(self.cells.len()).unwrap_or(1);
        &self.cells[keys::cell_of(user_id.as_str(), cells) as usize]
    }

    /// The cell that decides about products and templates.
    fn shop_queues(&self) -> &CellQueues {
        &self.cells[0]
    }
}

/// Connects; starts each cell's queues and the fence, on the calling runtime.
async fn start_cells(
    servers: Servers,
    limits: BatchLimits,
) -> Result<(Vec<CellQueues>, AbortOnDropHandle<()>), RedisSetupError> {
    let fence = Fence::new(servers.fence);
    let mut cells = Vec::new();
    for number in 0..servers.cells {
        let writer = connect::connect(&servers.redis_url).await?;
        let reader = connect::connect(&servers.redis_url).await?;
        let writer = connect::CheckedConnection::new(writer, servers.durability).await?;
        let fence = CellFence::new(Arc::clone(&fence));
        cells.push(CellQueues::start(Arc::new(Cell::new(number, writer, reader, fence)), limits));
    }
    let watched = cells.iter().map(|queues: &CellQueues| Arc::clone(&queues.cell)).collect();
    let watcher = tokio::spawn(Watcher::new(fence, watched, servers.database_url).run());
    Ok((cells, AbortOnDropHandle::new(watcher)))
}
