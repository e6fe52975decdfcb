//! Databases and virtual hosts for tests: one PostgreSQL and one RabbitMQ for the whole binary, a database or virtual host
//! of its own for each test.

use rushgate::truth::migrate;
use rushgate_local_servers::{DataFolder, PostgresOptions, PostgresServer, RabbitMqOptions, RabbitMqServer};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgPool};
use tokio::sync::OnceCell;
use uuid::Uuid;

static POSTGRES: OnceCell<PostgresServer> = OnceCell::const_new();
static RABBITMQ: OnceCell<RabbitMqServer> = OnceCell::const_new();

/// A migrated, empty database.
pub async fn database() -> PgPool {
    let url = empty_database().await;
    migrate_all(&url).await;
    migrate_all(&url).await;
    PgPoolOptions::new().max_connections(4).connect(&url).await.unwrap()
}

/// Brings a database to the present schema.
pub async fn migrate_all(url: &str) {
    migrate::migrate_with(url, &migrate::migrations().unwrap()).await.unwrap();
}

/// The address of a database without any table.
pub async fn empty_database() -> String {
    let start = || async { PostgresServer::start(PostgresOptions::new(DataFolder::Scratch)).await.unwrap() };
    let server = POSTGRES.get_or_init(start).await;
    server.create_database(&format!("t{}", Uuid::now_v7().simple())).await.unwrap()
}

/// A copy of a database as a backup would be; the address of the copy. Nobody else may use the original meanwhile.
pub async fn copy_of(pool: &PgPool) -> String {
    let original = pool.connect_options().get_database().unwrap().to_owned();
    let copy = format!("{original}_copy");
    pool.close().await;
    let mut session = sqlx::PgConnection::connect(&database_url("postgres").await).await.unwrap();
    let statement = format!("CREATE DATABASE {copy} TEMPLATE {original}");
    sqlx::raw_sql(&statement).execute(&mut session).await.unwrap();
    database_url(&copy).await
}

/// The address of an empty virtual host.
pub async fn virtual_host() -> String {
    let start = || async {
        let mut options = RabbitMqOptions::new(DataFolder::Scratch);
        options.management = true;
        RabbitMqServer::start(options).await.unwrap()
    };
    let server = RABBITMQ.get_or_init(start).await;
    let name = format!("t{}", Uuid::now_v7().simple());
    // All tests share this server, on a machine that may be busy; making the same one again changes nothing.
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

/// Runs several statements.
pub async fn execute(pool: &PgPool, statements: &'static str) {
    sqlx::raw_sql(statements).execute(pool).await.unwrap();
}

pub async fn number(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

/// How many entries of an index were ever read, by sessions of that name as well: they tell when they end, as they must.
pub async fn entries_read(pool: &PgPool, index: &str, name: &str) -> i64 {
    let sessions =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1";
    let began = std::time::Instant::now();
    while sqlx::query_scalar::<_, i64>(sessions).bind(name).fetch_one(pool).await.unwrap() > 0 {
        assert!(began.elapsed().as_secs() < 40, "sessions of {name} do not end");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let sql = "SELECT coalesce(idx_tup_read, 0) FROM pg_stat_user_indexes WHERE indexrelname = $1";
    sqlx::query_scalar(sql).bind(index).fetch_one(pool).await.unwrap()
}

/// The address of a database that [`database`] has made.
pub async fn database_url(name: &str) -> String {
    POSTGRES.get().unwrap().database_url(name)
}

/// `psql --file FILE URL`, as the documents say: whether it went well, and what it said.
pub fn psql(file: &str, url: &str) -> (bool, String) {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let mut command = std::process::Command::new("psql");
    let output = command.args(["--no-psqlrc", "--quiet", "--file"]).arg(file).arg(url).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}
