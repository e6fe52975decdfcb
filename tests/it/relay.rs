//! The relay with real servers: events are delivered in order, at least once, and never lost,
//! whatever the broker does.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use lapin::options::*;
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use rushgate::config::bounds;
use rushgate::domain::event;
use rushgate::relay::topology::{DEAD_ORDERS_QUEUE, EVENTS_EXCHANGE, ORDERS_QUEUE};
use rushgate::relay::{BrokerError, PublishOutcome, Refusal, Relay, RelayError};
use rushgate_local_servers::{DataFolder, RabbitMqOptions, RabbitMqServer};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::truth::{database, entries_read, execute, number, virtual_host};

const OUTBOX: &str = "SELECT count(*) FROM outbox";
const PUBLISHED: &str = "SELECT events_published FROM relay_progress";

#[tokio::test]
async fn events_are_delivered_in_order_once_and_then_gone() {
    let (pool, url) = (database().await, virtual_host().await);
    put(&pool, 1..=1_200, event::ORDER_COMPLETED).await;
    let mut relay = Relay::new(&url, pool.clone());
    assert_eq!(step_until_idle(&mut relay).await, 1_200);
    assert_eq!((number(&pool, OUTBOX).await, number(&pool, PUBLISHED).await), (0, 1_200));
    let got = take_all(&url, ORDERS_QUEUE).await;
    assert_eq!(ids(&got), (1..=1_200).map(id).collect::<Vec<_>>());

    let (properties, payload) = &got[0];
    assert_eq!(payload, "{\"n\":1}");
    let expected = BasicProperties::default()
        .with_content_type("application/cloudevents+json".into())
        .with_delivery_mode(2)
        .with_message_id("event-00001".into())
        .with_type("rushgate.order.completed.v1".into())
        .with_app_id("rushgate".into())
        .with_timestamp(1_700_000_001);
    // Quorum queues add a header that counts deliveries.
    assert_eq!(
        properties.clone().with_headers(FieldTable::default()),
        expected.with_headers(FieldTable::default())
    );
}

#[tokio::test]
async fn an_event_that_is_committed_after_later_ones_is_delivered_too() {
    let (pool, url) = (database().await, virtual_host().await);
    put(&pool, 1..=3, event::ORDER_COMPLETED).await;
    // The transaction of an earlier event is still open, as another cell's may be.
    let mut hidden = pool.begin().await.unwrap();
    let sql = "INSERT INTO outbox (outbox_id, event_id, routing_key, payload, created_at)
               OVERRIDING SYSTEM VALUE VALUES (0, 'late', 'order.completed', '{}', now())";
    sqlx::query(sql).execute(&mut *hidden).await.unwrap();
    let mut relay = Relay::new(&url, pool.clone());
    assert_eq!(step_until_idle(&mut relay).await, 3);
    hidden.commit().await.unwrap();
    let asked = Instant::now();
    while number(&pool, OUTBOX).await > 0 && asked.elapsed() < Duration::from_secs(20) {
        relay.step().await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((number(&pool, OUTBOX).await, number(&pool, PUBLISHED).await), (0, 4));
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
}

/// The number of attempts that the relay would make within a minute.
const TRIES: usize = 12;

#[tokio::test]
async fn nothing_is_published_that_cannot_be_deleted() {
    let (pool, url) = (database().await, virtual_host().await);
    let mut first = Relay::new(&url, pool.clone());
    first.step().await.unwrap(); // declares the queue
    first.stop().await;
    put(&pool, 1..=3, event::ORDER_COMPLETED).await;
    for (broken, mended) in [
        ("REVOKE DELETE ON outbox FROM poor", "GRANT DELETE ON outbox TO poor"),
        ("REVOKE UPDATE ON relay_progress FROM poor", "GRANT UPDATE ON relay_progress TO poor"),
        (
            "ALTER ROLE poor SET default_transaction_read_only = on",
            "ALTER ROLE poor RESET default_transaction_read_only",
        ),
    ] {
        let poor = role(&pool).await;
        let run = async |sql: &str| {
            sqlx::raw_sql(&sql.replace("poor", &poor)).execute(&pool).await.unwrap();
        };
        run("GRANT SELECT, DELETE ON outbox TO poor; GRANT SELECT, UPDATE ON relay_progress TO poor").await;
        run(broken).await;
        let options = (*pool.connect_options()).clone().username(&poor);
        let mut relay =
            Relay::new(&url, sqlx::postgres::PgPoolOptions::new().connect_lazy_with(options));
        for _ in 0..TRIES {
            let outcome = leading_step(&mut relay).await;
            assert!(matches!(&outcome, Err(RelayError::Outbox(_))), "{broken}: {outcome:?}");
        }
        assert!(take_all(&url, ORDERS_QUEUE).await.is_empty(), "{broken}");
        run(mended).await;
        assert_eq!(step_until_idle(&mut relay).await, 3, "{mended}");
        assert_eq!(take_all(&url, ORDERS_QUEUE).await.len(), 3);
        relay.stop().await;
        put(&pool, 1..=3, event::ORDER_COMPLETED).await;
    }
}

/// A PostgreSQL role without rights, with a unique name.
async fn role(pool: &PgPool) -> String {
    let name = format!("r{}", uuid::Uuid::now_v7().simple());
    sqlx::raw_sql(&format!("CREATE ROLE {name} LOGIN")).execute(pool).await.unwrap();
    name
}

#[tokio::test]
async fn what_is_confirmed_and_cannot_be_deleted_is_not_published_again() {
    let (pool, url) = (database().await, virtual_host().await);
    put(&pool, 1..=3, event::ORDER_COMPLETED).await;
    execute(
        &pool,
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$;
         CREATE TRIGGER keep BEFORE DELETE ON outbox FOR EACH ROW EXECUTE FUNCTION keep()",
    )
    .await;
    let mut relay = Relay::new(&url, pool.clone());
    for _ in 0..TRIES {
        assert!(matches!(leading_step(&mut relay).await, Err(RelayError::Outbox(_))));
    }
    put(&pool, 4..=5, event::ORDER_COMPLETED).await;
    execute(&pool, "DROP TRIGGER keep ON outbox").await;
    step_until_idle(&mut relay).await;
    assert_eq!((number(&pool, OUTBOX).await, number(&pool, PUBLISHED).await), (0, 5));
    assert_eq!(
        ids(&take_all(&url, ORDERS_QUEUE).await),
        (1..=5).map(id).collect::<Vec<_>>(),
        "each once"
    );

    // After a restore, PostgreSQL may assign the same numbers to other events.
    put(&pool, 6..=6, event::ORDER_COMPLETED).await;
    execute(
        &pool,
        "CREATE TRIGGER keep BEFORE DELETE ON outbox FOR EACH ROW EXECUTE FUNCTION keep()",
    )
    .await;
    assert!(matches!(leading_step(&mut relay).await, Err(RelayError::Outbox(_))));
    execute(&pool, "DROP TRIGGER keep ON outbox; UPDATE outbox SET event_id = 'another'").await;
    step_until_idle(&mut relay).await;
    assert_eq!(ids(&take_all(&url, ORDERS_QUEUE).await), [id(6), "another".to_owned()]);
}

/// Deleted rows stay in the index as long as an older audit or backup may still see them.
#[tokio::test]
async fn deleted_rows_that_an_old_snapshot_sees_are_not_walked_over_again_and_again() {
    const ROWS: i64 = 3_000;
    let (pool, url) = (database().await, virtual_host().await);
    put(&pool, 1..=ROWS, event::ORDER_COMPLETED).await;
    let mut snapshot = pool.begin().await.unwrap();
    let sql = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ";
    sqlx::query(sql).execute(&mut *snapshot).await.unwrap();
    sqlx::query("SELECT count(*) FROM outbox").execute(&mut *snapshot).await.unwrap();
    let mut relay = Relay::new(&url, pool.clone());
    step_until_idle(&mut relay).await;
    steps_for(&mut relay, 3 * bounds::RELAY_LOOK_BELOW).await;
    // Its delivery stores the position.
    put(&pool, ROWS + 1..=ROWS + 1, event::ORDER_COMPLETED).await;
    step_until_idle(&mut relay).await;
    relay.stop().await;

    for looks in ["of a relay that starts", "of another one"] {
        let before = entries_read(&pool, "outbox_pkey", "rushgate-relay").await;
        let mut relay = Relay::new(&url, pool.clone());
        steps_for(&mut relay, 4 * bounds::RELAY_LOOK_BELOW).await;
        relay.stop().await;
        let read = entries_read(&pool, "outbox_pkey", "rushgate-relay").await - before;
        assert!(read < ROWS / 2, "{read} index entries were read for the looks {looks}");
    }
    put(&pool, ROWS + 2..=ROWS + 3, event::ORDER_COMPLETED).await;
    assert_eq!(step_until_idle(&mut Relay::new(&url, pool.clone())).await, 2);
    snapshot.rollback().await.unwrap();
}

async fn steps_for(relay: &mut Relay, time: Duration) {
    let began = Instant::now();
    while began.elapsed() < time {
        relay.step().await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn many_bytes_are_sent_in_several_steps() {
    let (pool, url) = (database().await, virtual_host().await);
    for n in 1..=3 {
        let payload = "x".repeat(3 * 1024 * 1024);
        insert(&pool, n, event::ORDER_CANCELLED, &payload).await;
    }
    let mut relay = Relay::new(&url, pool.clone());
    for _ in 0..3 {
        assert_eq!(
            relay.step().await.unwrap(),
            PublishOutcome::Published { delivered: 1, refused: vec![] }
        );
    }
    assert_eq!(relay.step().await.unwrap(), PublishOutcome::Idle);
}

#[tokio::test]
async fn unroutable_events_are_kept_and_named_and_hold_up_no_other() {
    let (pool, url) = (database().await, virtual_host().await);
    for n in 1..=300 {
        let key = if n % 3 == 0 { "order.unknown" } else { event::ORDER_COMPLETED };
        insert(&pool, n, key, "{}").await;
    }
    let mut relay = Relay::new(&url, pool.clone());
    let mut named = HashSet::new();
    // An ack that arrives together with another event's return is not counted, so a second round
    // may be needed.
    for _ in 0..3 {
        let PublishOutcome::Published { refused, .. } = relay.step().await.unwrap() else {
            panic!("nothing sent")
        };
        for refused in refused {
            assert!(
                matches!(&refused.why, Refusal::Unroutable(why) if why == "NO_ROUTE"),
                "{refused:?}"
            );
            named.insert(refused.outbox_id);
        }
    }
    let unroutable: HashSet<i64> = (1..=300).filter(|n| n % 3 == 0).collect();
    assert_eq!(named, unroutable);
    let kept: Vec<i64> =
        sqlx::query_scalar("SELECT outbox_id FROM outbox").fetch_all(&pool).await.unwrap();
    assert_eq!(kept.into_iter().collect::<HashSet<_>>(), unroutable);
    assert_eq!(number(&pool, PUBLISHED).await, 200);
    let got: HashSet<String> = ids(&take_all(&url, ORDERS_QUEUE).await).into_iter().collect();
    assert_eq!(got.len(), 200);
}

#[tokio::test]
async fn a_binding_that_somebody_removed_is_made_again() {
    let (pool, url) = (database().await, virtual_host().await);
    let mut relay = Relay::new(&url, pool.clone());
    assert_eq!(relay.step().await.unwrap(), PublishOutcome::Idle);
    let (_connection, channel) = connect(&url).await;
    let key = event::ORDER_COMPLETED.into();
    channel
        .queue_unbind(ORDERS_QUEUE.into(), EVENTS_EXCHANGE.into(), key, FieldTable::default())
        .await
        .unwrap();
    put(&pool, 1..=2, event::ORDER_COMPLETED).await;
    let PublishOutcome::Published { delivered: 0, refused } = relay.step().await.unwrap() else {
        panic!()
    };
    assert_eq!(refused.len(), 2);
    assert_eq!(number(&pool, OUTBOX).await, 2);
    assert_eq!(
        relay.step().await.unwrap(),
        PublishOutcome::Published { delivered: 2, refused: vec![] }
    );
}

#[tokio::test]
async fn exchanges_and_queues_are_as_specified() {
    let (pool, url) = (database().await, virtual_host().await);
    let mut relay = Relay::new(&url, pool.clone());
    relay.step().await.unwrap(); // declares before there is anything to send
    put(&pool, 1..=1, event::ORDER_CANCELLED).await;
    relay.step().await.unwrap();

    // A rejected message is dead-lettered, at least once.
    let (_connection, channel) = connect(&url).await;
    let message =
        channel.basic_get(ORDERS_QUEUE.into(), BasicGetOptions::default()).await.unwrap().unwrap();
    assert_eq!(message.routing_key.as_str(), "order.cancelled");
    message.reject(BasicRejectOptions { requeue: false }).await.unwrap();
    let dead = eventually(|| async {
        Some(take_all(&url, DEAD_ORDERS_QUEUE).await).filter(|got| !got.is_empty())
    });
    assert_eq!(ids(&dead.await), vec![id(1)]);

    // So is a message whose delivery fails too often.
    put(&pool, 2..=2, event::ORDER_COMPLETED).await;
    relay.step().await.unwrap();
    let mut deliveries = 0;
    while let Some(message) =
        channel.basic_get(ORDERS_QUEUE.into(), BasicGetOptions::default()).await.unwrap()
    {
        deliveries += 1;
        message.reject(BasicRejectOptions { requeue: true }).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(deliveries < 20, "no delivery limit");
    }
    assert!(deliveries >= 10, "only {deliveries}");
}

#[tokio::test]
async fn a_queue_that_is_declared_otherwise_is_said_clearly() {
    let (pool, url) = (database().await, virtual_host().await);
    let (_connection, channel) = connect(&url).await;
    let durable = QueueDeclareOptions::durable();
    channel.queue_declare(ORDERS_QUEUE.into(), durable, FieldTable::default()).await.unwrap();
    put(&pool, 1..=1, event::ORDER_COMPLETED).await;
    let mut relay = Relay::new(&url, pool.clone());
    let error = relay.step().await.unwrap_err();
    assert!(matches!(error, RelayError::Broker(BrokerError::DeclaredOtherwise(_))), "{error:?}");
    for part in ["data-platform.orders", "PRECONDITION_FAILED", "rabbitmqctl delete_queue"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(number(&pool, OUTBOX).await, 1);
    channel.queue_delete(ORDERS_QUEUE.into(), QueueDeleteOptions::default()).await.unwrap();
    assert_eq!(
        relay.step().await.unwrap(),
        PublishOutcome::Published { delivered: 1, refused: vec![] }
    );
}

#[tokio::test]
async fn of_two_relays_one_publishes_and_the_other_takes_over() {
    let (pool, url) = (database().await, virtual_host().await);
    let (mut first, mut second) = (Relay::new(&url, pool.clone()), Relay::new(&url, pool.clone()));
    assert_eq!(first.step().await.unwrap(), PublishOutcome::Idle);
    put(&pool, 1..=10, event::ORDER_COMPLETED).await;
    assert_eq!(second.step().await.unwrap(), PublishOutcome::StandBy);
    assert_eq!(
        first.step().await.unwrap(),
        PublishOutcome::Published { delivered: 10, refused: vec![] }
    );

    // The leader's session ends. The leader notices, and can no longer delete rows.
    put(&pool, 11..=12, event::ORDER_COMPLETED).await;
    number(
        &pool,
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
         WHERE application_name = 'rushgate-relay' AND datname = current_database()",
    )
    .await;
    assert!(matches!(first.step().await.unwrap_err(), RelayError::Outbox(_)));
    // PostgreSQL releases the lock when the session's process has ended.
    let free = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                WHERE l.locktype = 'advisory' AND d.datname = current_database()";
    eventually(|| async { (number(&pool, free).await == 0).then_some(()) }).await;
    assert_eq!(
        second.step().await.unwrap(),
        PublishOutcome::Published { delivered: 2, refused: vec![] }
    );
    assert_eq!(first.step().await.unwrap(), PublishOutcome::StandBy);
    second.stop().await;
    assert_eq!(first.step().await.unwrap(), PublishOutcome::Idle);
    assert_eq!(ids(&take_all(&url, ORDERS_QUEUE).await), (1..=12).map(id).collect::<Vec<_>>());
    assert_eq!(number(&pool, PUBLISHED).await, 12);
}

#[tokio::test]
async fn an_idle_relay_is_quick_and_stops_at_once() {
    let (pool, url) = (database().await, virtual_host().await);
    let (running, shutdown) = start(&pool, &url);
    let (_connection, channel) = connect(&url).await;
    eventually(|| async { queue_length(&url, ORDERS_QUEUE).await }).await;
    let mut lags = Vec::new();
    for n in 1..=5 {
        insert(&pool, n, event::ORDER_COMPLETED, "{}").await;
        let since = Instant::now();
        let get = || async {
            channel.basic_get(ORDERS_QUEUE.into(), BasicGetOptions { no_ack: true }).await.unwrap()
        };
        eventually(get).await;
        lags.push(since.elapsed());
        tokio::time::sleep(Duration::from_millis(70)).await;
    }
    lags.sort();
    // The second best of five, because other processes may use the machine.
    assert!(lags[1] < Duration::from_millis(150), "{lags:?}");
    let since = Instant::now();
    shutdown.cancel();
    running.await.unwrap();
    assert!(since.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn plans_that_were_made_for_an_empty_outbox_do_for_a_full_one() {
    let (pool, url) = (database().await, virtual_host().await);
    let mut relay = Relay::new(&url, pool.clone());
    // PostgreSQL makes a generic plan at a statement's sixth execution, and discards it when the
    // table is analysed.
    sqlx::raw_sql("ANALYZE outbox").execute(&pool).await.unwrap();
    for n in 1..=8 {
        insert(&pool, n, event::ORDER_COMPLETED, "{}").await;
        assert_eq!(
            relay.step().await.unwrap(),
            PublishOutcome::Published { delivered: 1, refused: vec![] }
        );
    }
    let many = "INSERT INTO outbox (event_id, routing_key, payload, created_at)
        SELECT 'many-' || n, 'order.completed', '{}', now() FROM generate_series(1, 5000) AS n";
    sqlx::raw_sql(many).execute(&pool).await.unwrap();
    let before = rows_read_without_an_index(&pool).await;
    for _ in 0..5 {
        assert_eq!(
            relay.step().await.unwrap(),
            PublishOutcome::Published { delivered: 1_000, refused: vec![] }
        );
    }
    assert_eq!(relay.step().await.unwrap(), PublishOutcome::Idle);
    relay.stop().await;
    // A session flushes its statistics when it ends, at the latest.
    let sessions = "SELECT count(*) FROM pg_stat_activity \
                    WHERE application_name = 'rushgate-relay' AND datname = current_database()";
    eventually(|| async { (number(&pool, sessions).await == 0).then_some(()) }).await;
    let after = rows_read_without_an_index(&pool).await;
    assert!(
        after < before + 1_000,
        "{before} rows of the outbox were read one by one, then {after}"
    );
}

/// Rows of the outbox that were read by sequential scans, according to the statistics flushed so
/// far.
async fn rows_read_without_an_index(pool: &PgPool) -> i64 {
    let read = "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'outbox'";
    sqlx::query_scalar(read).fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn what_piled_up_while_the_broker_was_away_is_delivered() {
    let pool = database().await;
    let broker = RabbitMqServer::start(RabbitMqOptions::new(DataFolder::Scratch)).await.unwrap();
    let url = broker.url();
    let mut relay = Relay::new(&url, pool.clone());
    assert_eq!(relay.step().await.unwrap(), PublishOutcome::Idle);
    // RabbitMQ 3.10 cannot elect a leader for a quorum queue that was declared just before it was
    // killed.
    tokio::time::sleep(Duration::from_secs(6)).await;
    broker.kill().await;
    put(&pool, 1..=20, event::ORDER_COMPLETED).await;
    for _ in 0..3 {
        assert!(matches!(relay.step().await.unwrap_err(), RelayError::Broker(_)));
    }
    assert_eq!((number(&pool, OUTBOX).await, number(&pool, PUBLISHED).await), (20, 0));
    assert!(relay.leads());
    broker.restart().await.unwrap();
    assert_eq!(step_until_idle(&mut relay).await, 20);
    assert_eq!(ids(&take_all(&url, ORDERS_QUEUE).await), (1..=20).map(id).collect::<Vec<_>>());
    relay.stop().await;

    // The broker crashes during publishing: messages are repeated, none is lost, and first
    // deliveries are in order.
    put(&pool, 21..=6_000, event::ORDER_COMPLETED).await;
    let (running, shutdown) = start(&pool, &url);
    for at_least in [1_000, 3_000] {
        eventually(|| async { (number(&pool, PUBLISHED).await >= at_least).then_some(()) }).await;
        broker.kill().await;
        broker.restart().await.unwrap();
    }
    eventually(|| async { (number(&pool, OUTBOX).await == 0).then_some(()) }).await;
    shutdown.cancel();
    running.await.unwrap();
    let mut seen = HashSet::new();
    let mut got = ids(&take_all(&url, ORDERS_QUEUE).await);
    got.retain(|id| seen.insert(id.clone()));
    assert_eq!(got, (21..=6_000).map(id).collect::<Vec<_>>());
    assert_eq!(number(&pool, PUBLISHED).await, 6_000);

    // The broker is frozen: the step times out, and no connection leaks.
    put(&pool, 6_001..=6_001, event::ORDER_COMPLETED).await;
    let mut relay = Relay::new(&url, pool.clone());
    // The test's own connections must be closed before the broker is frozen.
    eventually(|| async { (connections_to(broker.port()) == 0).then_some(()) }).await;
    broker.pause();
    let since = Instant::now();
    for _ in 0..2 {
        let error = relay.step().await.unwrap_err();
        assert!(matches!(error, RelayError::Broker(BrokerError::TimedOut { .. })), "{error}");
    }
    assert!(since.elapsed() < Duration::from_secs(15));
    eventually(|| async { (connections_to(broker.port()) == 0).then_some(()) }).await;
    broker.resume();
    assert_eq!(step_until_idle(&mut relay).await, 1);
}

#[tokio::test]
async fn a_leader_without_a_broker_keeps_its_session_alive() {
    let pool = database().await;
    let mut relay = Relay::new("amqp://127.0.0.1:1/%2f", pool.clone());
    // PostgreSQL ends a leader's session that has been idle for too long, so the relay must keep it
    // active.
    let spoken = || {
        number(
            &pool,
            "SELECT coalesce(max(extract(epoch FROM query_start) * 1000000)::bigint, 0) FROM pg_stat_activity
             WHERE application_name = 'rushgate-relay' AND datname = current_database()",
        )
    };
    let mut last = 0;
    for _ in 0..3 {
        assert!(matches!(relay.step().await, Err(RelayError::Broker(_))));
        let now = spoken().await;
        assert!(now > last && relay.leads());
        last = now;
    }
}

#[tokio::test]
async fn a_broker_that_takes_nothing_is_left_in_time() {
    let pool = database().await;
    let mut options = RabbitMqOptions::new(DataFolder::Scratch);
    options.extra_config.push("vm_memory_high_watermark.absolute = 1MB".into());
    let broker = RabbitMqServer::start(options).await.unwrap();
    let mut relay = Relay::new(broker.url(), pool.clone());
    put(&pool, 1..=3, event::ORDER_COMPLETED).await;
    let since = Instant::now();
    let error = relay.step().await.unwrap_err();
    assert!(matches!(error, RelayError::Broker(BrokerError::Blocked)), "{error}");
    assert!(since.elapsed() < Duration::from_secs(20));
    assert_eq!(number(&pool, OUTBOX).await, 3);
    eventually(|| async { (connections_to(broker.port()) == 0).then_some(()) }).await;
}

fn id(n: i64) -> String {
    format!("event-{n:05}")
}

async fn put(pool: &PgPool, numbers: std::ops::RangeInclusive<i64>, routing_key: &str) {
    sqlx::query(
        "INSERT INTO outbox (event_id, routing_key, payload, created_at)
         SELECT 'event-' || lpad(n::text, 5, '0'), $3, '{\"n\":' || n || '}', to_timestamp(1700000000 + n)
         FROM generate_series($1, $2) n ORDER BY n",
    )
    .bind(numbers.start())
    .bind(numbers.end())
    .bind(routing_key)
    .execute(pool)
    .await
    .unwrap();
}

async fn insert(pool: &PgPool, n: i64, routing_key: &str, payload: &str) {
    sqlx::query("INSERT INTO outbox (event_id, routing_key, payload, created_at) VALUES ($1, $2, $3, now())")
        .bind(id(n))
        .bind(routing_key)
        .bind(payload)
        .execute(pool)
        .await
        .unwrap();
}

/// The next step of a relay that leads. PostgreSQL may still hold its previous session's lock for a
/// while.
async fn leading_step(relay: &mut Relay) -> Result<PublishOutcome, RelayError> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match relay.step().await {
            Ok(PublishOutcome::StandBy) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            outcome => return outcome,
        }
    }
}

/// Steps until the outbox is empty, ignoring failures of the broker. Returns the number of
/// deliveries.
async fn step_until_idle(relay: &mut Relay) -> usize {
    let mut total = 0;
    for _ in 0..50 {
        match leading_step(relay).await {
            Ok(PublishOutcome::Published { delivered, refused }) if refused.is_empty() => {
                total += delivered
            }
            Ok(PublishOutcome::Idle) => return total,
            Err(RelayError::Broker(error)) => println!("{error}"),
            other => panic!("{other:?}"),
        }
    }
    panic!("never idle");
}

fn start(pool: &PgPool, url: &str) -> (tokio::task::JoinHandle<()>, CancellationToken) {
    let shutdown = CancellationToken::new();
    let (pool, url, token) = (pool.clone(), url.to_owned(), shutdown.clone());
    let running =
        tokio::spawn(
            async move { rushgate::relay::run(&url, pool, Default::default(), token).await },
        );
    (running, shutdown)
}

async fn connect(url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

async fn queue_length(url: &str, queue: &str) -> Option<u32> {
    let (_connection, channel) = connect(url).await;
    let passive = QueueDeclareOptions { passive: true, ..Default::default() };
    let queue = channel.queue_declare(queue.into(), passive, FieldTable::default()).await.ok()?;
    Some(queue.message_count())
}

type Got = Vec<(BasicProperties, String)>;

async fn take_all(url: &str, queue: &str) -> Got {
    let (connection, channel) = connect(url).await;
    let mut got = Vec::new();
    let no_ack = BasicGetOptions { no_ack: true };
    while let Some(message) = channel.basic_get(queue.into(), no_ack).await.unwrap() {
        let text = String::from_utf8(message.delivery.data).unwrap();
        got.push((message.delivery.properties, text));
    }
    connection.close(200, "taken".into()).await.unwrap();
    got
}

fn ids(got: &Got) -> Vec<String> {
    got.iter()
        .map(|(properties, _)| {
            properties.message_id().as_ref().map(ShortString::to_string).unwrap()
        })
        .collect()
}

/// The number of established connections from this machine to a local port.
fn connections_to(port: u16) -> usize {
    let established = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[2].ends_with(&format!(":{port:04X}")) && fields[3] == "01"
    };
    std::fs::read_to_string("/proc/self/net/tcp")
        .unwrap()
        .lines()
        .skip(1)
        .filter(established)
        .count()
}

/// Polls until `ask` returns a value; panics after a minute.
async fn eventually<T, F: Future<Output = Option<T>>>(ask: impl Fn() -> F) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "timed out");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
