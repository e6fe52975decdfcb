//! Reports on answers that are not true, for operators: a file with one JSON object per line,
//! grouped by user, and a shorter text.
//!
//! [`write`] reads what the [`Scope`] selects from `quarantined_facts` and `log_quarantine`. Lost
//! facts are marked as reported afterwards, so that the next report has only new ones.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use futures::TryStreamExt;
use serde_json::{Value, json};
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::cursor::{cell_number, signed};
use super::{Reconciler, StepError};
use crate::domain::hex::hex;

/// Maximum number of lines of the text; the file has all.
const TOLD_AT_MOST: usize = 1_000;

/// The facts to report.
#[derive(Clone, Copy, Debug)]
pub enum Scope {
    /// Facts that an operator skipped in this epoch, and facts that changed or went with them.
    Skipped { epoch: u64 },
    /// Facts that rebuilds could not apply and that no file has yet.
    Lost,
}

#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("PostgreSQL: {0}")]
    Truth(#[from] sqlx::Error),
    #[error("the report cannot be written to {path} ({why}): name another file by --report")]
    File { path: String, why: std::io::Error },
}

/// What a report contains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    pub entries: usize,
    pub facts: usize,
    /// The first facts, one per line.
    pub text: String,
}

impl Reconciler {
    /// Writes what rebuilds could not apply to the file chosen by the operator, if there is any.
    pub(super) async fn report_lost(&mut self) -> Result<(), StepError> {
        let (Some(path), cell) = (self.report.clone(), self.cell) else { return Ok(()) };
        let conn = self.connection().await?;
        if nothing_lost(conn, cell).await? {
            return Ok(());
        }
        self.told_lost = Some(write(conn, cell, Scope::Lost, Some(path)).await?);
        Ok(())
    }

    /// What the last rebuild has written to its file.
    pub fn told_lost(&self) -> Option<&Told> {
        self.told_lost.as_ref()
    }

    /// Reports on the skips of this epoch, to a file if `path` is set.
    pub async fn report_skipped(
        &mut self,
        epoch: u64,
        path: Option<PathBuf>,
    ) -> Result<Told, ReportError> {
        let cell = self.cell;
        write(self.connection().await?, cell, Scope::Skipped { epoch }, path).await
    }
}

async fn nothing_lost(conn: &mut PgConnection, cell: u32) -> Result<bool, sqlx::Error> {
    let sql =
        "SELECT NOT EXISTS (SELECT FROM log_quarantine WHERE cell = $1 AND reported_at IS NULL)";
    sqlx::query_scalar(sql).bind(cell_number(cell)).fetch_one(conn).await
}

/// Writes the report. The file is readable only by its owner, because it names users.
async fn write(
    conn: &mut PgConnection,
    cell: u32,
    scope: Scope,
    path: Option<PathBuf>,
) -> Result<Told, ReportError> {
    let name = path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    let mut file = match &path {
        Some(path) => Some(create(path).map_err(|why| failed(&name, why))?),
        None => None,
    };
    let mut told = Told::default();
    if let Scope::Lost = scope {
        told.entries = entries(conn, cell, &mut file).await?.map_err(|why| failed(&name, why))?;
    }
    let epoch = if let Scope::Skipped { epoch } = scope { Some(signed(epoch)) } else { None };
    let query = sqlx::query(include_str!("sql/report.sql")).bind(cell_number(cell)).bind(epoch);
    let mut rows = query.fetch(&mut *conn);
    while let Some(row) = rows.try_next().await? {
        let line = line(&row)?;
        say(&mut file, &line).map_err(|why| failed(&name, why))?;
        told.facts += 1;
        if told.facts <= TOLD_AT_MOST {
            told.text += &format!("{}\n", short(&line));
        }
    }
    drop(rows);
    if let Some(mut file) = file {
        file.flush().and_then(|()| file.get_ref().sync_all()).map_err(|why| failed(&name, why))?;
    }
    if told.facts > TOLD_AT_MOST {
        told.text += &format!("… and {} more\n", told.facts - TOLD_AT_MOST);
    }
    if let (Scope::Lost, Some(_)) = (scope, &path) {
        let sql = "UPDATE quarantined_facts SET reported_at = now()
            WHERE cell = $1 AND reported_at IS NULL AND outcome = 'lost'";
        sqlx::query(sql).bind(cell_number(cell)).execute(&mut *conn).await?;
        let sql =
            "UPDATE log_quarantine SET reported_at = now() WHERE cell = $1 AND reported_at IS NULL";
        sqlx::query(sql).bind(cell_number(cell)).execute(&mut *conn).await?;
    }
    Ok(told)
}

fn create(path: &Path) -> std::io::Result<BufWriter<File>> {
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(true).mode(0o600);
    Ok(BufWriter::new(options.open(path)?))
}

fn say(file: &mut Option<BufWriter<File>>, line: &Value) -> std::io::Result<()> {
    file.as_mut().map_or(Ok(()), |file| writeln!(file, "{line}"))
}

fn failed(path: &str, why: std::io::Error) -> ReportError {
    ReportError::File { path: path.to_owned(), why }
}

/// Writes the raw entries, which come before the facts. Returns their number.
async fn entries(
    conn: &mut PgConnection,
    cell: u32,
    file: &mut Option<BufWriter<File>>,
) -> Result<Result<usize, std::io::Error>, sqlx::Error> {
    let mut rows = sqlx::query_as::<_, (i64, i64, Vec<u8>, String, String)>(
        "SELECT epoch, seq, payload, tip, reason FROM log_quarantine
         WHERE cell = $1 AND reported_at IS NULL ORDER BY epoch, seq",
    )
    .bind(cell_number(cell))
    .fetch(conn);
    let mut entries = 0;
    while let Some((epoch, seq, payload, tip, reason)) = rows.try_next().await? {
        let line = json!({ "entry": format!("{epoch}-{seq}"), "tip": tip, "payload": hex(&payload), "reason": reason });
        if let Err(e) = say(file, &line) {
            return Ok(Err(e));
        }
        entries += 1;
    }
    Ok(Ok(entries))
}

fn line(row: &sqlx::postgres::PgRow) -> Result<Value, sqlx::Error> {
    let parsed =
        |text: Option<String>| text.and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let (epoch, seq): (i64, i64) = (row.try_get("epoch")?, row.try_get("seq")?);
    let mut holds = json!({
        "exists": row.try_get::<Option<bool>, _>("present")?,
        "balance": row.try_get::<Option<i64>, _>("balance")?,
    });
    if let (Some(Value::Object(corrected)), Some(holds)) =
        (parsed(row.try_get("holds")?), holds.as_object_mut())
    {
        holds.insert("corrected".into(), Value::Object(corrected));
    }
    Ok(json!({
        "user_id": row.try_get::<Option<String>, _>("user_id")?,
        "outcome": row.try_get::<String, _>("outcome")?,
        "kind": row.try_get::<String, _>("kind")?,
        "id": row.try_get::<Option<Uuid>, _>("id")?,
        "entry": format!("{epoch}-{seq}"),
        "fact": row.try_get::<i32, _>("fact")?,
        "answered": parsed(row.try_get("told")?),
        "reason": row.try_get::<String, _>("reason")?,
        "holds": holds,
        "idempotency_key": row.try_get::<bool, _>("keyed")?,
    }))
}

/// A fact as one line of text.
fn short(line: &Value) -> String {
    let text = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
    let key = if line["idempotency_key"] == true && line["outcome"] != "changed" {
        "; its idempotency key answers nothing any more"
    } else {
        ""
    };
    format!(
        "{}  {} {} ({} fact {}) {}: {}; answered {}; now {}{key}",
        text("user_id"),
        text("kind"),
        text("id"),
        text("entry"),
        line["fact"],
        text("outcome"),
        text("reason"),
        line["answered"],
        line["holds"],
    )
}
