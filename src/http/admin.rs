//! The operators' view: the state of the cells, the outbox and the connections.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::answer::JsonAnswer;
use super::auth::Staff;
use super::extract::NoQuery;
use super::problem::Problem;
use crate::gate::CellStatus;
use crate::truth::{CellCursor, Progress};

/// What Rushgate is doing.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "Status", as = Status)]
pub struct StatusView {
    cells: Vec<CellView>,
    /// Events that wait for RabbitMQ; null while PostgreSQL does not answer.
    outbox_length: Option<u64>,
    connections: ConnectionsView,
}

/// What one cell is doing. Numbers are null while the server that knows them does not answer.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(title = "Cell", as = Cell)]
pub struct CellView {
    cell: u32,
    epoch: Option<u64>,
    /// The last number of the log.
    seq: Option<u64>,
    /// The last number that PostgreSQL has.
    applied: Option<u64>,
    /// `seq - applied`.
    lag: Option<u64>,
    state: CellState,
    /// Why it is not open.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
    /// Redis answers and takes no writes, so nothing is decided; why.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    writes_refused: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum CellState {
    /// It decides.
    Open,
    /// It does not decide.
    Closed,
    /// It decides until the log limit; PostgreSQL refused an entry, and an operator must look.
    Halted,
    /// Its state is being loaded from PostgreSQL.
    Rebuilding,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "Connections", as = Connections)]
struct ConnectionsView {
    redis: Connection,
    postgres: Connection,
    /// Absent when this instance runs no relay.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    rabbitmq: Option<Connection>,
}

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Connection {
    Connected,
    Unreachable,
}

impl From<bool> for Connection {
    fn from(connected: bool) -> Self {
        if connected { Self::Connected } else { Self::Unreachable }
    }
}

/// What the cells, the outbox and the connections are doing
///
/// Answers also while Redis or PostgreSQL are away, with what the other knows.
#[utoipa::path(get, path = "/v1/admin/status", tag = "operations", security(("token" = ["admin"])),
    responses((status = 200, body = StatusView)))]
pub async fn get_status(
    State(api): State<Arc<Api>>,
    _: Staff,
    _: NoQuery,
) -> Result<JsonAnswer<StatusView>, Problem> {
    let _permit = api.concurrency.staff.permit().await?;
    let (gate, truth) = futures::join!(api.gate.status(), api.truth.progress());
    let connections = ConnectionsView {
        redis: gate.is_ok().into(),
        postgres: truth.is_ok().into(),
        rabbitmq: api
            .rabbitmq_connected
            .as_ref()
            .map(|connected| connected.load(Ordering::Relaxed).into()),
    };
    let outbox_length = truth.as_ref().ok().map(|progress| progress.outbox_length);
    let cells = cells(gate.ok(), truth.unwrap_or_default());
    Ok(JsonAnswer(StatusView { cells, outbox_length, connections }))
}

/// Merges the cells as Redis reports them (`None`: it does not answer) with PostgreSQL's cursors.
fn cells(gate: Option<Vec<CellStatus>>, truth: Progress) -> Vec<CellView> {
    let mut cursors: BTreeMap<u32, CellCursor> =
        truth.cursors.into_iter().map(|cursor| (cursor.cell, cursor)).collect();
    match gate {
        Some(cells) => {
            cells.into_iter().map(|cell| in_redis(cursors.remove(&cell.cell), cell)).collect()
        }
        None => cursors.into_values().map(unknown_to_redis).collect(),
    }
}

fn in_redis(cursor: Option<CellCursor>, cell: CellStatus) -> CellView {
    let (mut state, mut reason) = match cell.state.as_str() {
        "open" => (CellState::Open, cell.reason),
        "rebuilding" => (CellState::Rebuilding, cell.reason),
        "absent" => (CellState::Closed, Some("Redis holds no state of this cell yet".to_owned())),
        _ => (CellState::Closed, cell.reason),
    };
    if let Some(halted) = cursor.and_then(|cursor| cursor.halted_reason) {
        (state, reason) = (CellState::Halted, Some(halted));
    }
    CellView {
        cell: cell.cell,
        epoch: Some(cell.epoch),
        seq: Some(cell.seq),
        applied: Some(cell.applied),
        lag: Some(cell.seq.saturating_sub(cell.applied)),
        state,
        reason,
        writes_refused: cell.writes_refused_why,
    }
}

fn unknown_to_redis(cursor: CellCursor) -> CellView {
    CellView {
        cell: cursor.cell,
        epoch: Some(cursor.epoch),
        seq: None,
        applied: Some(cursor.seq),
        lag: None,
        state: CellState::Closed,
        reason: Some("Redis does not answer".to_owned()),
        writes_refused: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(halted: Option<&str>) -> Progress {
        let halted_reason = halted.map(str::to_owned);
        Progress {
            cursors: vec![CellCursor { cell: 0, epoch: 3, seq: 7, halted_reason }],
            outbox_length: 0,
        }
    }

    fn cell(state: &str) -> Option<Vec<CellStatus>> {
        Some(vec![CellStatus {
            cell: 0,
            epoch: 3,
            seq: 10,
            applied: 7,
            state: state.to_owned(),
            backlog_full: false,
            reason: None,
            writes_refused: None,
            writes_refused_why: None,
        }])
    }

    #[test]
    fn a_cell_is_halted_when_postgresql_says_so_and_else_what_redis_says() {
        let state = |gate: &str, halted| cells(cell(gate), cursor(halted)).remove(0).state;
        assert_eq!(state("open", None), CellState::Open);
        assert_eq!(state("open", Some("poison")), CellState::Halted);
        assert_eq!(state("absent", None), CellState::Closed);
        assert_eq!(state("rebuilding", None), CellState::Rebuilding);
        assert_eq!(cells(cell("open"), cursor(None))[0].lag, Some(3));
    }

    #[test]
    fn without_redis_the_cursors_speak() {
        let view = cells(None, cursor(None)).remove(0);
        assert_eq!((view.applied, view.seq, view.state), (Some(7), None, CellState::Closed));
    }
}
