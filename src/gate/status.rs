//! What a cell is doing, for operators and for readiness.

use super::write_state::WriteRefusal;
use super::{CellQueues, Gate, GateError, cell};
use crate::redis::meta::Meta;

/// One cell as Redis has it, and whether this instance may decide there.
#[derive(Clone, Debug)]
pub struct CellStatus {
    pub cell: u32,
    pub epoch: u64,
    pub seq: u64,
    pub applied: u64,
    /// `open`, `closed`, `rebuilding`, `absent`
    pub state: String,
    pub reason: Option<String>,
    /// PostgreSQL is so far behind that the cell refuses every decision.
    pub backlog_full: bool,
    /// Redis answers but takes no writes, so every decision is refused.
    pub writes_refused: Option<WriteRefusal>,
    /// The same, as a sentence.
    pub writes_refused_why: Option<String>,
}

/// The reason that `lua/claim_epoch.lua` gives to a closed cell.
const REBUILDING: &str = "rebuilding";

impl Gate {
    /// For /readyz and /v1/admin/status.
    pub async fn status(&self) -> Result<Vec<CellStatus>, GateError> {
        let mut all = Vec::with_capacity(self.cells.len());
        for CellQueues { cell, .. } in &self.cells {
            // On both connections: after an outage of Redis, one may be back before the other.
            let read = |client| Meta::read(client, cell.number);
            let (meta, _) = futures::try_join!(read(&cell.reader), read(&cell.writer.client))
                .map_err(|e| GateError::Unavailable(format!("Redis: {}", e.details())))?;
            cell.writer.check().await.map_err(|e| GateError::Unavailable(e.to_string()))?;
            cell.probe_writes().await;
            let state = match meta.state.as_str() {
                "" => "absent",
                // Another reason can replace this one, such as an instruction to operators after an
                // abandoned claim.
                _ if meta.claim > meta.epoch && meta.reason.as_deref() == Some(REBUILDING) => {
                    "rebuilding"
                }
                state => state,
            };
            // Open in Redis, but closed for this instance.
            let mut fenced = if state == "open" { cell.trouble(meta.epoch).await } else { None };
            if fenced.is_none() && state == "open" && cell.clock_jumped().await {
                fenced = Some(cell::CLOCK_AHEAD.to_owned());
            }
            let state = if fenced.is_some() { "closed" } else { state };
            all.push(CellStatus {
                cell: cell.number,
                epoch: meta.epoch,
                seq: meta.seq,
                applied: meta.applied,
                state: state.to_owned(),
                reason: fenced.or(meta.reason),
                backlog_full: meta.seq.saturating_sub(meta.applied) >= self.log_limit,
                writes_refused: cell.writes.refusal(),
                writes_refused_why: cell.writes.reason(),
            });
        }
        Ok(all)
    }

    /// Why an earlier [`Self::status`] no longer holds; asks no server.
    pub fn known_troubles(&self) -> Vec<String> {
        self.cells.iter().filter_map(|queues| queues.cell.known_trouble()).collect()
    }
}
