//! Brings the database to this version's schema while instances of other versions go on working.
//!
//! `schema_migrations` records the migrations that were made and, for each, the oldest version that
//! may use the schema after it: a binary accepts a database with newer migrations as long as it is
//! new enough for them. Each [`MigrationStep`] is recorded in its own transaction, so an
//! interrupted migration resumes where it stopped. A step waits for a lock only briefly, because
//! every statement behind it in the lock's queue waits, too; it is retried later. Statements have
//! no time limit.
//!
//! `_sqlx_migrations` is for binaries up to commit fb10183. They start only if it holds exactly the
//! migrations 1 and 2, so it keeps showing these two, with their original checksums. A migration
//! that such a binary must not use is added there as well, which makes the binary refuse to start.

use std::str::FromStr;
use std::time::{Duration, Instant};

use sqlx::migrate::Migrate;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Executor};
use tokio::time::{sleep, timeout};

use super::migration::{Malformed, Migration, MigrationStep};
use crate::config::{Servers, bounds};

/// Key of the advisory lock: "rgschema" in ASCII.
const LOCK: i64 = 0x7267_7363_6865_6d61;

/// What binaries up to commit fb10183 must find in `_sqlx_migrations`: the newest migration that
/// they know, and the checksums.
const FORMER_NEWEST: i32 = 2;
const FORMER_CHECKSUMS: [&str; 2] = [
    "5c175acb21096c63b8c6abb6d6b5b51991d9998aba709e1c1a7d5b835a14d2e4c0b9a7413fda4608b7e3febc847d2e81",
    "5932b175360106d01737e87f7634fbf02965149c4f016e83a75e99d3b4cf68d82394608df45fa6b9d8269e9101982a74",
];

/// Why the database cannot be brought to this version's schema. Each text is one line that says
/// what to do.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    #[error(
        "PostgreSQL cannot be used ({0}): start it and create the database, or correct RUSHGATE_DATABASE_URL"
    )]
    Unreachable(String),
    #[error(
        "this version of Rushgate is too old for the database: its schema needs a version that knows migration {oldest}, and \
         this one knows {newest}: run a newer version"
    )]
    TooOld { oldest: i32, newest: i32 },
    #[error(
        "migration {0} of the database differs from this version's: use the version that made it"
    )]
    Changed(i32),
    #[error(
        "the database needs a migration that this role may not make ({0}): run `rushgate migrate` as the owner of the tables, \
         then deploy/roles.sql"
    )]
    Forbidden(String),
    #[error(
        "migration {number} is stuck at step {step} ({why}); run it again and it resumes there"
    )]
    Stuck { number: i32, step: usize, why: String },
    #[error("another instance has been migrating for {0:?}: see its log, then start again")]
    Waited(Duration),
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// The migrations of this version.
pub fn migrations() -> Result<Vec<Migration>, Malformed> {
    sqlx::migrate!().iter().map(Migration::parse).collect()
}

/// Brings the database to this version's schema. Several instances may call this at once: one makes
/// the migrations, the others wait.
pub async fn migrate(servers: &Servers) -> Result<(), MigrateError> {
    migrate_with(&servers.database_url, &migrations()?).await
}

/// [`migrate`] with the given migrations.
pub async fn migrate_with(
    database_url: &str,
    migrations: &[Migration],
) -> Result<(), MigrateError> {
    let mut conn = connect(database_url).await?;
    let mut run = Run { conn: &mut conn, migrations };
    // If there is nothing to do, nothing is written: a role that may only read is enough then.
    if !run.is_current().await? {
        run.lock().await?;
        run.make().await?;
    }
    let _ = conn.close().await; // the migrations are made, whatever closing says
    Ok(())
}

/// Whether PostgreSQL can be used at all, and if not, the reason. A pool would only report that it
/// has waited.
pub async fn reach(database_url: &str) -> Result<(), MigrateError> {
    let _ = connect(database_url).await?.close().await; // connecting was the test
    Ok(())
}

async fn connect(database_url: &str) -> Result<PgConnection, MigrateError> {
    let unreachable = |e: sqlx::Error| MigrateError::Unreachable(e.to_string());
    let options = PgConnectOptions::from_str(database_url).map_err(unreachable)?;
    let options = options.application_name("rushgate-migrate").options([
        ("statement_timeout", "0"),
        ("lock_timeout", &milliseconds(bounds::MIGRATION_LOCK_TIMEOUT)),
        ("tcp_keepalives_idle", "10"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
    ]);
    match timeout(bounds::CONNECT_TIMEOUT, options.connect()).await {
        Ok(connected) => connected.map_err(unreachable),
        Err(_) => {
            Err(MigrateError::Unreachable(format!("no answer in {:?}", bounds::CONNECT_TIMEOUT)))
        }
    }
}

fn milliseconds(duration: Duration) -> String {
    duration.as_millis().to_string()
}

/// A migration as the database has recorded it.
#[derive(sqlx::FromRow)]
struct Made {
    number: i32,
    checksum: Vec<u8>,
    oldest: i32,
    steps_made: i32,
    complete: bool,
}

struct Run<'a> {
    conn: &'a mut PgConnection,
    migrations: &'a [Migration],
}

impl Run<'_> {
    /// Whether all of this version's migrations are made. `Err`: this version must not use the
    /// database.
    async fn is_current(&mut self) -> Result<bool, MigrateError> {
        let made = self.made().await?;
        let newest = self.migrations.last().map_or(0, |migration| migration.number);
        if let Some(oldest) =
            made.iter().map(|one| one.oldest).max().filter(|oldest| *oldest > newest)
        {
            return Err(MigrateError::TooOld { oldest, newest });
        }
        let mut current = true;
        for migration in self.migrations {
            match made.iter().find(|one| one.number == migration.number) {
                Some(one) if one.checksum != migration.checksum => {
                    return Err(MigrateError::Changed(one.number));
                }
                Some(one) => current &= one.complete,
                None => current = false,
            }
        }
        Ok(current)
    }

    async fn made(&mut self) -> Result<Vec<Made>, MigrateError> {
        let sql = "SELECT number, checksum, oldest, steps_made, made_at IS NOT NULL AS complete
                   FROM schema_migrations ORDER BY number";
        match sqlx::query_as(sql).fetch_all(&mut *self.conn).await {
            Err(error) if has_code(&error, "42P01") => Ok(Vec::new()), // no such table
            made => made.map_err(failed),
        }
    }

    /// Waits until no other instance migrates. It polls, because a statement that waits for the
    /// lock would hold up the other instance's `CREATE INDEX CONCURRENTLY`.
    async fn lock(&mut self) -> Result<(), MigrateError> {
        let began = Instant::now();
        let mut told = false;
        loop {
            let locked = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(LOCK);
            if locked.fetch_one(&mut *self.conn).await.map_err(failed)? {
                return Ok(());
            }
            if began.elapsed() >= bounds::MIGRATION_PATIENCE {
                return Err(MigrateError::Waited(began.elapsed()));
            }
            if !std::mem::replace(&mut told, true) {
                tracing::info!("waiting until another instance has migrated the database");
            }
            sleep(bounds::RETRY_PAUSE).await;
        }
    }

    async fn make(&mut self) -> Result<(), MigrateError> {
        self.take_over().await?;
        let made = self.made().await?;
        for migration in self.migrations {
            let (number, began) = (migration.number, Instant::now());
            let made = made.iter().find(|one| one.number == number);
            if made.is_some_and(|one| one.complete) {
                continue;
            }
            tracing::info!(number, name = %migration.name, "migrating the database");
            self.begin(migration).await?;
            let done = made.map_or(0, |one| usize::try_from(one.steps_made).unwrap_or_default());
            for (place, step) in migration.steps.iter().enumerate().skip(done) {
                self.patiently(number, place + 1, step).await?;
            }
            self.complete(migration).await?;
            tracing::info!(number, took = ?began.elapsed(), "migrated the database");
        }
        Ok(())
    }

    /// Creates `schema_migrations` and imports the migrations that former versions have made. If
    /// one of those is still to be made, the former versions' lock stays taken until the session
    /// ends.
    async fn take_over(&mut self) -> Result<(), MigrateError> {
        let began = Instant::now();
        while let Err(error) = self.conn.lock().await {
            if began.elapsed() >= bounds::MIGRATION_PATIENCE {
                return Err(former(error));
            }
            sleep(bounds::RETRY_PAUSE).await;
        }
        self.conn.ensure_migrations_table().await.map_err(former)?;
        self.conn.execute(include_str!("sql/schema_migrations.sql")).await.map_err(failed)?;
        let made: Vec<(i64, String)> =
            sqlx::query_as("SELECT version, encode(checksum, 'hex') FROM _sqlx_migrations")
                .fetch_all(&mut *self.conn)
                .await
                .map_err(failed)?;
        for (migration, expected) in self.migrations.iter().zip(FORMER_CHECKSUMS) {
            match made.iter().find(|(version, _)| *version == i64::from(migration.number)) {
                None => return Ok(()),
                Some((_, checksum)) if checksum != expected => {
                    return Err(MigrateError::Changed(migration.number));
                }
                Some(_) => {
                    self.begin(migration).await?;
                    self.complete(migration).await?;
                }
            }
        }
        self.conn.unlock().await.map_err(former)
    }

    /// Records that a migration has begun. From then on, a binary that must not use the schema
    /// after it refuses to start.
    async fn begin(&mut self, migration: &Migration) -> Result<(), MigrateError> {
        let mut transaction = self.conn.begin().await.map_err(failed)?;
        sqlx::query(
            "INSERT INTO schema_migrations (number, name, checksum, oldest) VALUES ($1, $2, $3, $4)
             ON CONFLICT DO NOTHING",
        )
        .bind(migration.number)
        .bind(&*migration.name)
        .bind(&migration.checksum)
        .bind(migration.oldest)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        if migration.oldest > FORMER_NEWEST {
            tell_former(&mut transaction, migration).await?;
        }
        transaction.commit().await.map_err(failed)
    }

    async fn complete(&mut self, migration: &Migration) -> Result<(), MigrateError> {
        let mut transaction = self.conn.begin().await.map_err(failed)?;
        sqlx::query(
            "UPDATE schema_migrations SET made_at = coalesce(made_at, now()) WHERE number = $1",
        )
        .bind(migration.number)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        if migration.number <= FORMER_NEWEST {
            tell_former(&mut transaction, migration).await?;
        }
        transaction.commit().await.map_err(failed)
    }

    /// Takes a step, and retries it while it gets no lock. The pauses grow, so that the statements
    /// of other sessions are not held up too often in a row.
    async fn patiently(
        &mut self,
        number: i32,
        place: usize,
        step: &MigrationStep,
    ) -> Result<(), MigrateError> {
        let (began, mut pause) = (Instant::now(), bounds::RETRY_PAUSE);
        loop {
            let error = match self.take(number, place, step).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            // lock_not_available, deadlock_detected
            let blocked = has_code(&error, "55P03") || has_code(&error, "40P01");
            if !blocked {
                return Err(stuck(number, place, &error));
            }
            if began.elapsed() >= bounds::MIGRATION_PATIENCE {
                return Err(stuck(
                    number,
                    place,
                    &format!("{error}; end the transactions that block it"),
                ));
            }
            tracing::warn!(number, step = place, %error, "a migration waits for other transactions");
            sleep(pause).await;
            pause = (pause * 2).min(bounds::MIGRATION_RETRY_MAX);
        }
    }

    async fn take(
        &mut self,
        number: i32,
        place: usize,
        step: &MigrationStep,
    ) -> Result<(), sqlx::Error> {
        let sql = match step {
            MigrationStep::Together(sql) => {
                let mut transaction = self.conn.begin().await?;
                transaction.execute(sql.as_str()).await?;
                record(&mut transaction, number, place).await?;
                return transaction.commit().await;
            }
            MigrationStep::BuildIndex { index, sql } => match self.index_is_valid(index).await? {
                Some(true) => return record(self.conn, number, place).await,
                Some(false) => {
                    self.alone(&format!("DROP INDEX CONCURRENTLY {index}")).await?;
                    sql
                }
                None => sql,
            },
            MigrationStep::Alone(sql) => sql,
        };
        self.alone(sql).await?;
        record(self.conn, number, place).await
    }

    /// Runs a statement that waits for other transactions without holding anybody up, so it may
    /// wait as long as they last.
    async fn alone(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        self.conn.execute("SET lock_timeout = 0").await?;
        let done = self.conn.execute(sql).await;
        self.conn.execute("RESET lock_timeout").await?;
        done.map(|_| ())
    }

    /// `None`: there is no such index.
    async fn index_is_valid(&mut self, index: &str) -> Result<Option<bool>, sqlx::Error> {
        sqlx::query_scalar("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)")
            .bind(index)
            .fetch_optional(&mut *self.conn)
            .await
    }
}

async fn record(conn: &mut PgConnection, number: i32, steps: usize) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE schema_migrations SET steps_made = $2 WHERE number = $1")
        .bind(number)
        .bind(i32::try_from(steps).unwrap_or(i32::MAX))
        .execute(conn)
        .await
        .map(|_| ())
}

/// Shows a migration to binaries that read only `_sqlx_migrations`.
async fn tell_former(conn: &mut PgConnection, migration: &Migration) -> Result<(), MigrateError> {
    let known =
        usize::try_from(migration.number - 1).ok().and_then(|place| FORMER_CHECKSUMS.get(place));
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES ($1, $2, TRUE, coalesce(decode($3, 'hex'), $4), -1)
         ON CONFLICT DO NOTHING",
    )
    .bind(i64::from(migration.number))
    .bind(&*migration.name)
    .bind(known)
    .bind(&migration.checksum)
    .execute(conn)
    .await
    .map_err(failed)?;
    Ok(())
}

fn has_code(error: &sqlx::Error, code: &str) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|found| found == code)
}

/// The error of a failed statement on the tables that record migrations.
fn failed(error: sqlx::Error) -> MigrateError {
    match has_code(&error, "42501") {
        true => MigrateError::Forbidden(error.to_string()),
        false => MigrateError::Unreachable(error.to_string()),
    }
}

fn former(error: sqlx::migrate::MigrateError) -> MigrateError {
    match error {
        sqlx::migrate::MigrateError::Execute(error) => failed(error),
        other => MigrateError::Unreachable(other.to_string()),
    }
}

fn stuck(number: i32, step: usize, why: &impl std::fmt::Display) -> MigrateError {
    MigrateError::Stuck { number, step, why: why.to_string() }
}
