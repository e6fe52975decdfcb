//! Databases and virtual hosts for tests. One PostgreSQL and one RabbitMQ serve the whole test
//! binary; each test gets its own database or virtual host.

use rushgate::truth::migrate;
use rushgate_local_servers::{
    DataFolder, PostgresOptions, PostgresServer, RabbitMqOptions, RabbitMqServer,
};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgPool};
use tokio::sync::OnceCell;
use uuid::Uuid;

static POSTGRES: OnceCell<PostgresServer> = OnceCell::const_new();
static RABBITMQ: OnceCell<RabbitMqServer> = OnceCell::const_new();

/// Creates an empty, migrated database.
pub async fn database() -> PgPool {
    let url = empty_database().await;
    migrate_all(&url).await;
    migrate_all(&url).await;
    PgPoolOptions::new().max_connections(4).connect(&url).await.unwrap()
}

/// Migrates a database to the current schema.
pub async fn migrate_all(url: &str) {
    migrate::migrate_with(url, &migrate::migrations().unwrap()).await.unwrap();
}

/// Creates a database without tables and returns its URL.
pub async fn empty_database() -> String {
    let start = || async {
        PostgresServer::start(PostgresOptions::new(DataFolder::Scratch)).await.unwrap()
    };
    let server = POSTGRES.get_or_init(start).await;
    server.create_database(&format!("t{}", Uuid::now_v7().simple())).await.unwrap()
}

/// Copies a database, as a backup would, and returns the copy's URL. No other session may use the
/// original meanwhile.
pub async fn copy_of(pool: &PgPool) -> String {
    let original = pool.connect_options().get_database().unwrap().to_owned();
    let copy = format!("{original}_copy");
    pool.close().await;
    let mut session = sqlx::PgConnection::connect(&database_url("postgres").await).await.unwrap();
    let statement = format!("CREATE DATABASE {copy} TEMPLATE {original}");
    sqlx::raw_sql(&statement).execute(&mut session).await.unwrap();
    database_url(&copy).await
}

/// Creates an empty virtual host and returns its URL.
pub async fn virtual_host() -> String {
    let start = || async {
        let mut options = RabbitMqOptions::new(DataFolder::Scratch);
        options.management = true;
        RabbitMqServer::start(options).await.unwrap()
    };
    let server = RABBITMQ.get_or_init(start).await;
    let name = format!("t{}", Uuid::now_v7().simple());
    // All tests share this server, and the machine may be busy. Repeating the request is harmless.
    let mut tries = 0;
    loop {
        match server.create_vhost(&name).await {
            Err(error) if tries < 4 => {
                println!("{error}");
                tries += 1;
            }
            outcome => return outcome.unwrap(),
        }
    }
}

/// Executes several statements.
pub async fn execute(pool: &PgPool, statements: &'static str) {
    sqlx::raw_sql(statements).execute(pool).await.unwrap();
}

pub async fn number(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

/// The number of index entries that were ever read. Waits until the sessions with this name have
/// ended, because they flush their statistics then at the latest.
pub async fn entries_read(pool: &PgPool, index: &str, name: &str) -> i64 {
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1";
    let began = std::time::Instant::now();
    while sqlx::query_scalar::<_, i64>(sessions).bind(name).fetch_one(pool).await.unwrap() > 0 {
        assert!(began.elapsed().as_secs() < 40, "sessions of {name} do not end");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let sql = "SELECT coalesce(idx_tup_read, 0) FROM pg_stat_user_indexes WHERE indexrelname = $1";
    sqlx::query_scalar(sql).bind(index).fetch_one(pool).await.unwrap()
}

/// The URL of a database that [`database`] has created.
pub async fn database_url(name: &str) -> String {
    POSTGRES.get().unwrap().database_url(name)
}

/// Runs `psql --file FILE URL`, as the documentation says. Returns whether it succeeded, and its
/// output.
pub fn psql(file: &str, url: &str) -> (bool, String) {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let mut command = std::process::Command::new("psql");
    let output =
        command.args(["--no-psqlrc", "--quiet", "--file"]).arg(file).arg(url).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}
