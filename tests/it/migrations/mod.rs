//! Migrations beside other versions, beside readers and writers, and after an interruption.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use rushgate::truth::Migration;
use rushgate::truth::migrate::{MigrateError, migrate_with, migrations};
use sqlx::migrate::{MigrationType, Migrator};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection, PgPool};

use crate::truth::{empty_database, execute, migrate_all, number};

/// Maximum time for which a migration step may delay others, on a busy machine.
const MOMENT: Duration = Duration::from_secs(5);

fn file(number: i64, sql: &'static str) -> sqlx::migrate::Migration {
    sqlx::migrate::Migration::new(
        number,
        "a test's".into(),
        MigrationType::Simple,
        sql.into(),
        false,
    )
}

/// The migrations that binaries of commit fb10183 run when they start.
fn former(newest: usize) -> Migrator {
    let files = [
        file(1, include_str!("../../../migrations/0001_truth.sql")),
        file(2, include_str!("0002_as_it_was.sql")),
    ];
    Migrator { migrations: Cow::Owned(files[..newest].to_vec()), ..Migrator::DEFAULT }
}

async fn pool_of(url: &str) -> PgPool {
    PgPoolOptions::new().max_connections(4).connect(url).await.unwrap()
}

/// This version's migrations, followed by others.
fn with(more: &[&'static str]) -> Vec<Migration> {
    let mut all = migrations().unwrap();
    for sql in more {
        let number = i64::from(all.last().unwrap().number) + 1;
        all.push(Migration::parse(&file(number, sql)).unwrap());
    }
    all
}

/// Tables, columns, constraints and indexes, one per line.
async fn schema(pool: &PgPool) -> Vec<String> {
    let sql = "SELECT line FROM (
        SELECT format('%s %s: %s %s %s %s %s', table_name, ordinal_position, column_name, data_type, collation_name,
                      is_nullable, column_default) AS line
        FROM information_schema.columns WHERE table_schema = 'public'
        UNION ALL SELECT format('%s: %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
        UNION ALL SELECT format('%s %s', relname, reloptions) FROM pg_class
        WHERE relnamespace = 'public'::regnamespace
        UNION ALL SELECT format('%s is invalid', indexrelid::regclass) FROM pg_index WHERE NOT indisvalid
        UNION ALL SELECT format('migration %s', number) FROM schema_migrations WHERE made_at IS NOT NULL
        UNION ALL SELECT format('former migration %s %s', version, checksum) FROM _sqlx_migrations
        ) AS lines ORDER BY line";
    sqlx::query_scalar(sql).fetch_all(pool).await.unwrap()
}

#[test]
fn migrations_are_numbered_without_gaps() {
    let numbers: Vec<i32> =
        migrations().unwrap().iter().map(|migration| migration.number).collect();
    let expected: Vec<i32> = (1..).take(numbers.len()).collect();
    assert_eq!(numbers, expected, "two files with one number, or one is missing");
}

#[tokio::test]
async fn every_way_to_the_schema_ends_in_the_same() {
    let mut schemas = Vec::new();
    for made_before in 0..=2 {
        let url = empty_database().await;
        let pool = pool_of(&url).await;
        former(made_before).run(&pool).await.unwrap();
        migrate_all(&url).await;
        migrate_all(&url).await;
        schemas.push(schema(&pool).await);
    }
    assert!(schemas[0].iter().any(|line| line.contains("orders_by_time")), "{:#?}", schemas[0]);
    assert_eq!(schemas[0], schemas[1]);
    assert_eq!(schemas[0], schemas[2]);
}

#[tokio::test]
async fn an_older_version_starts_on_a_newer_schema_that_it_may_use() {
    let url = empty_database().await;
    let pool = pool_of(&url).await;
    migrate_with(&url, &with(&["-- oldest: 2\nALTER TABLE wallets ADD note text;"])).await.unwrap();
    migrate_all(&url).await;
    former(2).run(&pool).await.unwrap();
}

#[tokio::test]
async fn an_older_version_says_that_it_is_too_old() {
    let url = empty_database().await;
    let pool = pool_of(&url).await;
    let newest = i32::try_from(migrations().unwrap().len()).unwrap();
    // The last migration is compatible with the version before it, but not with the current one.
    let more =
        ["-- oldest: 1\nSELECT 1;", "-- oldest: 4\nALTER TABLE wallets RENAME balance TO pence;"];
    let mut all = with(&more);
    all.last_mut().unwrap().oldest = newest + 1;
    migrate_with(&url, &all).await.unwrap();
    let refused = migrate_with(&url, &migrations().unwrap()).await.unwrap_err();
    assert!(
        matches!(refused, MigrateError::TooOld { oldest, newest: known } if (oldest, known) == (newest + 1, newest)),
        "{refused}"
    );
    assert!(
        refused.to_string().contains("too old") && !refused.to_string().contains('\n'),
        "{refused}"
    );
    migrate_with(&url, &all[..all.len() - 1]).await.unwrap();
    let refused = former(2).run(&pool).await.unwrap_err();
    assert!(refused.to_string().contains("missing"), "{refused}");
}

#[tokio::test]
async fn a_migration_that_was_changed_is_found_out() {
    let url = empty_database().await;
    migrate_with(&url, &with(&["-- oldest: 2\nSELECT 1;"])).await.unwrap();
    let refused = migrate_with(&url, &with(&["-- oldest: 2\nSELECT 2;"])).await.unwrap_err();
    assert!(matches!(refused, MigrateError::Changed(_)), "{refused}");
}

#[tokio::test]
async fn many_instances_that_start_at_once_migrate_once() {
    let url = empty_database().await;
    let all = with(&["-- oldest: 2\nINSERT INTO wallets VALUES ('ann', 1, now());"]);
    let runs = (0..6).map(|_| migrate_with(&url, &all));
    for outcome in futures::future::join_all(runs).await {
        outcome.unwrap();
    }
    assert_eq!(number(&pool_of(&url).await, "SELECT count(*) FROM wallets").await, 1);
}

/// A transaction that has read a table and stays open, like an audit, a backup or a `psql` session.
async fn long_reader(url: &str, table: &str) -> PgConnection {
    let mut session = PgConnection::connect(url).await.unwrap();
    let sql = format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM {table}");
    sqlx::raw_sql(&sql).execute(&mut session).await.unwrap();
    session
}

/// Reads and writes while `work` runs. Each must finish within [`MOMENT`].
async fn nobody_waits(pool: &PgPool, work: &mut (impl Future<Output = ()> + Unpin), enough: u32) {
    for n in 0..enough {
        let began = Instant::now();
        let traffic =
            "INSERT INTO coupons SELECT gen_random_uuid(), 't', gen_random_uuid()::text, 1 + count(*), now(),
                           now() FROM coupons;
                       UPDATE wallets SET updated_at = now();
                       INSERT INTO wallet_entries (user_id, kind, amount, balance_after, ref_id, at)
                           VALUES ('ann', 'charge', 1, 1, gen_random_uuid(), now());
                       SELECT count(*) FROM orders WHERE user_id = 'ann'";
        tokio::select! {
            biased;
            () = &mut *work => return,
            done = tokio::time::timeout(MOMENT, execute(pool, traffic)) => {
                assert!(done.is_ok(), "round {n} waits since {:?}", began.elapsed());
            }
        }
    }
}

#[tokio::test]
async fn readers_and_writers_go_on_while_a_full_shop_is_migrated() {
    let url = empty_database().await;
    let pool = pool_of(&url).await;
    former(1).run(&pool).await.unwrap();
    for table in ["coupons", "wallet_entries", "orders"] {
        let reader = long_reader(&url, table).await;
        let mut migrating = Box::pin(migrate_all(&url));
        nobody_waits(&pool, &mut migrating, 100).await;
        reader.close().await.unwrap();
        // The migration is interrupted here, as by a restart.
    }
    migrate_all(&url).await;
    let whole = empty_database().await;
    migrate_all(&whole).await;
    assert_eq!(schema(&pool).await, schema(&pool_of(&whole).await).await);
    assert!(number(&pool, "SELECT count(*) FROM coupons").await > 100);
}

#[tokio::test]
async fn a_step_that_needs_a_table_for_itself_lets_others_by() {
    let url = empty_database().await;
    let pool = pool_of(&url).await;
    migrate_all(&url).await;
    let all = with(&["-- oldest: 2\nALTER TABLE coupons ADD note text;"]);
    let reader = long_reader(&url, "coupons").await;
    let mut migrating = Box::pin(async { migrate_with(&url, &all).await.unwrap() });
    let end = async {
        tokio::time::sleep(MOMENT).await; // as long as others may wait at most
        reader.close().await.unwrap();
    };
    // The step waits for the reader. Statements queued after the step must not wait for both.
    let traffic = async { nobody_waits(&pool, &mut migrating, u32::MAX).await };
    tokio::join!(traffic, end);
    assert_eq!(number(&pool, "SELECT count(note) FROM coupons").await, 0);
}

#[tokio::test]
async fn an_interrupted_index_is_built_again() {
    let url = empty_database().await;
    let pool = pool_of(&url).await;
    migrate_all(&url).await;
    execute(
        &pool,
        "INSERT INTO wallets SELECT 'user-' || n, 1, now() FROM generate_series(1, 2) AS n",
    )
    .await;
    let all = with(&["-- oldest: 2\nALTER TABLE wallets ADD note text;
        -- step:\nCREATE UNIQUE INDEX CONCURRENTLY wallets_by_balance ON wallets (balance);
        -- step:\nALTER TABLE wallets ADD CONSTRAINT wallets_by_balance UNIQUE USING INDEX wallets_by_balance;"]);
    let refused = migrate_with(&url, &all).await.unwrap_err();
    assert!(matches!(refused, MigrateError::Stuck { step: 2, .. }), "{refused}");
    let invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid";
    assert_eq!(number(&pool, invalid).await, 1);
    execute(&pool, "UPDATE wallets SET balance = 2 WHERE user_id = 'user-2'").await;
    migrate_with(&url, &all).await.unwrap();
    assert_eq!(number(&pool, invalid).await, 0);
    let valid = "SELECT count(*) FROM pg_constraint WHERE conname = 'wallets_by_balance'";
    assert_eq!(number(&pool, valid).await, 1);
}

#[tokio::test]
async fn a_statement_may_take_longer_than_any_limit_of_the_role() {
    let url = empty_database().await;
    let pool = pool_of(&url).await;
    migrate_all(&url).await;
    let limited = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET statement_timeout = 200', current_database()); END $$";
    execute(&pool, limited).await;
    migrate_with(&url, &with(&["-- oldest: 2\nSELECT pg_sleep(1);"])).await.unwrap();
}
