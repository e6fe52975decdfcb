//! The same rush with PostgreSQL alone: one conditional UPDATE and one INSERT per request, in one
//! statement, so in one round trip and one transaction.

use std::path::PathBuf;
use std::process::Command;

use rushgate_loadtest::{Outcome, say};
use sqlx::{Connection, PgConnection};

use super::{Figure, Measured, Target};
use crate::harness::{Harness, SETTLE_LIMIT};
use crate::statistics::{median, readable};

const CLIENTS: &str = "64";
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS templates (template_id int PRIMARY KEY, issued bigint NOT NULL, max_issued bigint NOT NULL);
    INSERT INTO templates VALUES (1, 0, 1000000000) ON CONFLICT DO NOTHING;
    CREATE TABLE IF NOT EXISTS coupons (
        coupon_id uuid PRIMARY KEY, template_id int NOT NULL, user_id text NOT NULL, serial bigint NOT NULL,
        issued_at timestamptz NOT NULL, UNIQUE (template_id, user_id), UNIQUE (template_id, serial));";
const REQUEST: &str = "\\set user random(1, 1000000000000)
WITH taken AS (UPDATE templates SET issued = issued + 1 WHERE template_id = 1 AND issued < max_issued RETURNING issued) \
INSERT INTO coupons SELECT gen_random_uuid(), 1, 'u' || :user, issued, now() FROM taken ON CONFLICT DO NOTHING;
";

pub async fn measure(harness: &mut Harness, peak: f64) -> Outcome<Measured> {
    harness.shop.settle(SETTLE_LIMIT).await?;
    let url = harness.servers.postgres.create_database("rival").await?;
    let mut connection = PgConnection::connect(&url).await?;
    sqlx::raw_sql(TABLES).execute(&mut connection).await?;
    let script = harness.wrk.folder.join("rival.sql");
    std::fs::write(&script, REQUEST)?;
    let mut rates = vec![];
    for _ in 0..harness.rounds {
        let seconds = harness.length.as_secs().to_string();
        let output = Command::new(pgbench())
            .args([
                "--no-vacuum",
                "--protocol=prepared",
                "--client",
                CLIENTS,
                "--jobs",
                "2",
                "--time",
                &seconds,
            ])
            .arg("--file")
            .arg(&script)
            .arg(&url)
            .output()
            .map_err(|e| format!("pgbench cannot be run: {e}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let rate = text
            .lines()
            .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse::<f64>().ok());
        let rate = rate
            .ok_or_else(|| format!("pgbench: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
        say(format_args!("PostgreSQL alone: {rate:.0}/s"));
        rates.push(rate);
    }
    let note = format!("{}/s against {}/s", readable(peak), readable(median(rates.clone())));
    let ratios = rates.into_iter().map(|rate| peak / rate).collect();
    Ok(Measured::new(Figure::PostgresBaseline, ratios, "times", Target::AtLeast(15.0)).note(note))
}

/// Debian's pgbench is in the path; other installations may only have it next to the server.
fn pgbench() -> PathBuf {
    let in_path = Command::new("pgbench").arg("--version").output().is_ok();
    let mut beside: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin/pgbench"))
        .filter(|program| program.exists())
        .collect();
    beside.sort();
    if in_path { "pgbench".into() } else { beside.pop().unwrap_or_else(|| "pgbench".into()) }
}
