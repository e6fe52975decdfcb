//! How far the log is applied, and how many events wait for RabbitMQ.

use std::time::Duration;

use super::{Truth, TruthError, unsigned};
use crate::domain::{Position, TimestampMs};

/// A cell's cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CellCursor {
    pub cell: u32,
    pub epoch: u64,
    pub seq: u64,
    /// Why the cell is halted; `None` when it is not.
    pub halted_reason: Option<String>,
}

/// The cursors of all cells, and the length of the outbox.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Progress {
    pub cursors: Vec<CellCursor>,
    pub outbox_length: u64,
}

/// What the metrics read from PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vitals {
    pub progress: Progress,
    /// How long the oldest event has waited; zero if the outbox is empty.
    pub outbox_oldest: Duration,
    /// When the newest list of popular products was made.
    pub popular_refreshed: Option<TimestampMs>,
}

impl Truth {
    pub async fn vitals(&self) -> Result<Vitals, TruthError> {
        let query = sqlx::query_as::<_, (i64, Option<TimestampMs>)>(include_str!("sql/vitals.sql"));
        let (oldest_ms, popular_refreshed) = self.read(query.fetch_one(&self.pool)).await?;
        let outbox_oldest = Duration::from_millis(unsigned("outbox age", oldest_ms)?);
        Ok(Vitals { progress: self.progress().await?, outbox_oldest, popular_refreshed })
    }

    /// Fails unless PostgreSQL has still applied these positions, as it had before: it may have
    /// been restored from a backup since then.
    pub async fn has_reached(&self, positions: &[Position]) -> Result<(), TruthError> {
        let query =
            sqlx::query_as::<_, (i32, i64, i64)>("SELECT cell, epoch, seq FROM cell_cursors");
        let cursors = self.read(query.fetch_all(&self.pool)).await?;
        let reached = |place: &Position| {
            cursors.iter().any(|(cell, epoch, seq)| {
                let at = (epoch.cast_unsigned(), seq.cast_unsigned());
                i64::from(*cell) == i64::from(place.cell) && at >= (place.epoch, place.seq)
            })
        };
        match positions.iter().find(|place| !reached(place)) {
            None => Ok(()),
            Some(place) => Err(TruthError(format!(
                "it no longer has entry {} of epoch {}, which it had applied",
                place.seq, place.epoch
            ))),
        }
    }

    /// All cursors and the length of the outbox.
    pub async fn progress(&self) -> Result<Progress, TruthError> {
        let query = sqlx::query_as::<_, (i32, i64, i64, Option<String>, i64)>(include_str!(
            "sql/progress.sql"
        ));
        let rows = self.read(query.fetch_all(&self.pool)).await?;
        let mut progress = Progress::default();
        for (cell, epoch, seq, halted_reason, outbox_length) in rows {
            progress.outbox_length = unsigned("outbox length", outbox_length)?;
            progress.cursors.push(CellCursor {
                cell: u32::try_from(cell)
                    .map_err(|_| TruthError("a cell below zero".to_owned()))?,
                epoch: unsigned("cell_cursors.epoch", epoch)?,
                seq: unsigned("cell_cursors.seq", seq)?,
                halted_reason,
            });
        }
        Ok(progress)
    }
}
