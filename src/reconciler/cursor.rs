//! The cursor: how far PostgreSQL has applied a cell's log.
//!
//! Each cell has one row in `cell_cursors`, which moves only by compare-and-set. `cell_epochs`
//! records where PostgreSQL left each epoch.

use sqlx::{Connection, PgConnection};

use super::plan::Plan;
use crate::log::RawEntry;
use crate::log::entry::genesis_tip;

/// A row of `cell_cursors`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub cell: u32,
    pub epoch: u64,
    pub seq: u64,
    pub tip: String,
    pub clock_ms: i64,
    /// Set while the cell is halted, because PostgreSQL refused the next entry.
    pub halted_reason: Option<String>,
    /// Run id of the Redis server that decides in this epoch. Empty: no server may decide for now.
    /// `None`: unknown.
    pub gate: Option<String>,
    /// Set by an operator's skip until the epoch ends: entries are applied by differences, without
    /// the skipped facts.
    pub skipping: bool,
}

/// Epoch, seq, tip, clock, reason of a halt, gate, skipping.
type Row = (i64, i64, String, i64, Option<String>, Option<String>, bool);

/// The position that the cursor is to move to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub epoch: u64,
    pub seq: u64,
    pub tip: String,
    pub clock_ms: i64,
    /// Outbox rows that the same transaction writes.
    pub events: u64,
    /// The highest format version of the entries that it applies; 0: none.
    pub format: u64,
}

impl Target {
    /// The position after `entry`, which is the last entry of `plan`.
    pub fn at(entry: &RawEntry, plan: &Plan<'_>) -> Self {
        let RawEntry { epoch, seq, tip, .. } = entry;
        let (clock_ms, events) = (plan.clock_ms, plan.event_count());
        Self { epoch: *epoch, seq: *seq, tip: tip.clone(), clock_ms, events, format: plan.format }
    }
}

pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

pub(super) fn cell_number(cell: u32) -> i32 {
    i32::try_from(cell).unwrap_or(i32::MAX)
}

impl Cursor {
    /// The cursor once `entry` is applied; clock and gate are not filled in.
    pub fn at(cell: u32, entry: &RawEntry) -> Self {
        let RawEntry { epoch, seq, tip, .. } = entry;
        Self {
            cell,
            epoch: *epoch,
            seq: *seq,
            tip: tip.clone(),
            clock_ms: 0,
            halted_reason: None,
            gate: None,
            skipping: false,
        }
    }

    /// [`Self::at`], with the gate of `before`, which is in the same epoch.
    pub fn after(before: &Self, entry: &RawEntry) -> Self {
        Self { gate: before.gate.clone(), ..Self::at(before.cell, entry) }
    }

    /// Reads the cell's cursor; a new cell starts before its first epoch.
    pub async fn read(conn: &mut PgConnection, cell: u32) -> Result<Self, sqlx::Error> {
        if let Some(cursor) = Self::find(conn, cell).await? {
            return Ok(cursor);
        }
        sqlx::query(
            "INSERT INTO cell_cursors (cell, epoch, seq, tip) VALUES ($1, 0, 0, $2) ON CONFLICT DO NOTHING",
        )
        .bind(cell_number(cell))
        .bind(genesis_tip(cell, 0))
        .execute(&mut *conn)
        .await?;
        Self::find(conn, cell).await?.ok_or(sqlx::Error::RowNotFound)
    }

    async fn find(conn: &mut PgConnection, cell: u32) -> Result<Option<Self>, sqlx::Error> {
        let row: Option<Row> = sqlx::query_as(
            "SELECT epoch, seq, tip, clock_ms, halted_reason, CASE WHEN gate_epoch = epoch THEN gate END, skipping
             FROM cell_cursors WHERE cell = $1",
        )
        .bind(cell_number(cell))
        .fetch_optional(conn)
        .await?;
        Ok(row.map(|(epoch, seq, tip, clock_ms, halted_reason, gate, skipping)| Self {
            cell,
            epoch: unsigned(epoch),
            seq: unsigned(seq),
            tip,
            clock_ms,
            halted_reason,
            gate,
            skipping,
        }))
    }

    /// Moves the cursor if it still stands where it was read. `false`: another reconciler has moved
    /// it.
    pub async fn advance(
        &self,
        conn: &mut PgConnection,
        target: &Target,
    ) -> Result<bool, sqlx::Error> {
        self.advance_to(conn, target, None).await
    }

    /// The same. If `target` begins an epoch, `gate` is the server that will decide in it.
    pub async fn advance_to(
        &self,
        conn: &mut PgConnection,
        target: &Target,
        gate: Option<&str>,
    ) -> Result<bool, sqlx::Error> {
        let done = sqlx::query(include_str!("sql/advance_cursor.sql"))
            .bind(cell_number(self.cell))
            .bind(signed(self.epoch))
            .bind(signed(self.seq))
            .bind(&self.tip)
            .bind(signed(target.epoch))
            .bind(signed(target.seq))
            .bind(&target.tip)
            .bind(target.clock_ms)
            .bind(signed(target.events))
            .bind(&self.gate)
            .bind(gate)
            .bind(self.skipping)
            .bind(i32::try_from(target.format).unwrap_or(i32::MAX))
            .execute(conn)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Names another server as the gate of this epoch. `None`: the cursor or its gate is no longer
    /// as it was read.
    pub async fn name_gate(
        &self,
        conn: &mut PgConnection,
        gate: Option<&str>,
    ) -> Result<Option<Self>, sqlx::Error> {
        let done = sqlx::query(
            "UPDATE cell_cursors
             SET gate = $5, gate_epoch = CASE WHEN $5::text IS NOT NULL THEN epoch END, updated_at = now()
             WHERE cell = $1 AND epoch = $2 AND seq = $3
                 AND CASE WHEN gate_epoch = epoch THEN gate END IS NOT DISTINCT FROM $4",
        )
        .bind(cell_number(self.cell))
        .bind(signed(self.epoch))
        .bind(signed(self.seq))
        .bind(&self.gate)
        .bind(gate)
        .execute(conn)
        .await?;
        let named = Self { gate: gate.map(str::to_owned), ..self.clone() };
        Ok((done.rows_affected() == 1).then_some(named))
    }

    /// Locks the cursor's row for the transaction. `false`: the cursor has been moved.
    pub async fn lock(&self, tx: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let locked: Option<i32> = sqlx::query_scalar(
            "SELECT cell FROM cell_cursors
             WHERE cell = $1 AND epoch = $2 AND seq = $3 AND tip = $4 AND skipping = $5 FOR UPDATE",
        )
        .bind(cell_number(self.cell))
        .bind(signed(self.epoch))
        .bind(signed(self.seq))
        .bind(&self.tip)
        .bind(self.skipping)
        .fetch_optional(tx)
        .await?;
        Ok(locked.is_some())
    }

    /// Moves the cursor to the beginning of an epoch with that gate, and records where the previous
    /// epoch ended. `false`: another reconciler has moved it.
    pub async fn begin_epoch(
        &self,
        conn: &mut PgConnection,
        target: &Target,
        gate: Option<&str>,
    ) -> Result<bool, sqlx::Error> {
        let mut tx = conn.begin().await?;
        if !self.advance_to(&mut tx, target, gate).await? {
            tx.rollback().await?;
            return Ok(false);
        }
        sqlx::query(
            "INSERT INTO cell_epochs (cell, epoch, previous_epoch, previous_seq, previous_tip)
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(cell_number(self.cell))
        .bind(signed(target.epoch))
        .bind(signed(self.epoch))
        .bind(signed(self.seq))
        .bind(&self.tip)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(true)
    }

    /// The last entry that PostgreSQL applied of an epoch that is over; `None`: not recorded.
    pub async fn end_of(
        conn: &mut PgConnection,
        cell: u32,
        epoch: u64,
    ) -> Result<Option<u64>, sqlx::Error> {
        let sql = "SELECT previous_seq FROM cell_epochs WHERE cell = $1 AND previous_epoch = $2";
        let query = sqlx::query_scalar::<_, i64>(sql).bind(cell_number(cell)).bind(signed(epoch));
        Ok(query.fetch_optional(conn).await?.map(unsigned))
    }

    /// Clears a halt, so that the refused entry is tried again.
    pub async fn retry_halted(conn: &mut PgConnection, cell: u32) -> Result<(), sqlx::Error> {
        sqlx::query(
            "UPDATE cell_cursors SET halted_reason = NULL WHERE cell = $1 AND halted_reason IS NOT NULL",
        )
        .bind(cell_number(cell))
        .execute(conn)
        .await?;
        Ok(())
    }

    /// Halts the cell at the entry after the cursor.
    pub async fn halt(&self, conn: &mut PgConnection, reason: &str) -> Result<(), sqlx::Error> {
        sqlx::query(
            "UPDATE cell_cursors SET halted_reason = $4, updated_at = now() WHERE cell = $1 AND epoch = $2 AND seq = $3",
        )
        .bind(cell_number(self.cell))
        .bind(signed(self.epoch))
        .bind(signed(self.seq))
        .bind(reason)
        .execute(conn)
        .await?;
        Ok(())
    }
}
