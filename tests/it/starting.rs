//! Instances that start during an outage. Only Redis is required: without it nothing can be
//! decided, and the process exits with a one-line message. If PostgreSQL or RabbitMQ is away,
//! silent, slow or read-only, the instance starts, logs that once, and its followers begin when
//! they can.

use std::time::Duration;

use fred::interfaces::ClientLike;
use fred::types::{ClusterHash, CustomCommand};
use rushgate::relay::topology::ORDERS_QUEUE;

use crate::cluster::*;
use crate::door::{Door, Mode};
use crate::truth::{execute, psql};

const REDIS: &str = "RUSHGATE_REDIS_URL";
const POSTGRES: &str = "RUSHGATE_DATABASE_URL";
const RABBITMQ: &str = "RUSHGATE_AMQP_URL";
/// Maximum duration of a start on a busy machine. Connection timeouts are 5 s.
const START_LIMIT: Duration = Duration::from_secs(25);

/// A shop with an open gate, a product and a charged wallet, but no instance.
async fn shop(private: Private) -> Cluster {
    let cluster = Cluster::with(private).await;
    let instance = cluster.start().await;
    instance.done(&Request::put_product("mug", 1_000, 1_000)).await;
    instance.done(&Request::charge("ann", 100_000)).await;
    cluster.caught_up().await;
    instance.stop().await;
    cluster
}

fn short_of_patience(settings: &Settings) -> Settings {
    settings.with("RUSHGATE_TRUTH_TIMEOUT_MS", "500").with("RUSHGATE_REQUEST_TIMEOUT_MS", "5000")
}

async fn warnings(instance: &Instance) -> String {
    instance.readiness().await.1["warnings"].to_string()
}

#[tokio::test]
async fn without_redis_a_start_ends_with_one_line() {
    let cluster = Cluster::servers().await;
    let mut door = Door::before(&cluster.settings, REDIS).await;
    let settings = door.through(&cluster.settings).with("RUST_LOG", "error");
    for (mode, why) in [(None, "refused"), (Some(Mode::Silent), "no answer")] {
        if let Some(mode) = mode {
            door.set(mode).await;
        }
        let ended = settings.without("RUSHGATE_LOG_FORMAT").run(&["serve"]).await;
        assert!(ended.code == 1 && ended.stderr.lines().count() == 1, "{why}: {ended:#?}");
        for part in ["RUSHGATE_REDIS_URL", "start it", why] {
            assert!(ended.stderr.contains(part), "{part} is not in {}", ended.stderr);
        }
        assert!(ended.took < START_LIMIT, "{ended:#?}");
    }
}

#[tokio::test]
async fn a_redis_that_is_slow_or_read_only_is_started_on() {
    let cluster = shop(Private::default()).await;
    let mut door = Door::before(&cluster.settings, REDIS).await;
    door.set(Mode::Slow).await;
    let slow = Instance::ready(&door.through(&cluster.settings)).await;
    slow.done(&Request::charge("ann", 1)).await;
    slow.stop().await;

    let replica_of = async |master: [&str; 2]| {
        let command = CustomCommand::new_static("REPLICAOF", ClusterHash::FirstKey, false);
        let _: fred::types::Value =
            cluster.raw.custom(command, master.map(str::to_owned).to_vec()).await.unwrap();
    };
    // A replica whose primary is away: it answers reads and refuses writes.
    replica_of(["127.0.0.1", "1"]).await;
    let settings = short_of_patience(&cluster.settings).with("RUSHGATE_ROLES", "api");
    let instance = Instance::listening(&settings).await;
    let refused = instance.send(&Request::charge("ann", 1)).await;
    assert_eq!((refused.status, refused.code()), (503, "gate-unavailable"), "{refused:?}");
    replica_of(["NO", "ONE"]).await;
    eventually("it decides once Redis takes writes", || async {
        (instance.send(&Request::charge("ann", 1)).await.status == 201).then_some(())
    })
    .await;
    instance.stop().await;
    let rest = cluster.start().await;
    cluster.assert_consistent().await;
    rest.stop().await;
}

/// An API-only instance decides, and all its reads of PostgreSQL are refused. An instance with all
/// roles does the same, and follows the log when it can.
async fn starts_without_postgres(mode: Option<Mode>, said: &str) {
    let cluster = shop(Private::default()).await;
    let mut door = Door::before(&cluster.settings, POSTGRES).await;
    if let Some(mode) = mode {
        door.set(mode).await;
    }
    let settings = short_of_patience(&door.through(&cluster.settings));
    let began = std::time::Instant::now();
    let whole = Instance::ready(&settings).await;
    let api = Instance::ready(&settings.with("RUSHGATE_ROLES", "api")).await;
    assert!(began.elapsed() < START_LIMIT * 2, "{:?}", began.elapsed());
    for instance in [&whole, &api] {
        assert!(instance.said("PostgreSQL cannot be used yet"), "{:#?}", instance.log());
        assert!(
            instance.said(said) && instance.said("or correct RUSHGATE_DATABASE_URL"),
            "{:#?}",
            instance.log()
        );
        assert!(warnings(instance).await.contains("PostgreSQL"));
        let order = instance.done(&Request::order("ann", "mug", 1)).await;
        let read = Request::get(format!("/v1/orders/{}", order["order_id"].as_str().unwrap()));
        let refused = instance.send(&read).await;
        assert_eq!((refused.status, refused.code()), (503, "truth-unavailable"), "{refused:?}");
    }
    // An instance that decides nothing is not ready, but does not exit.
    let relay = Instance::listening(&settings.with("RUSHGATE_ROLES", "relay")).await;
    let (status, body) = relay.readiness().await;
    assert!(status == 503 && body["reasons"].to_string().contains("PostgreSQL"), "{body}");

    door.set(Mode::Open).await;
    relay.until_ready().await;
    cluster.caught_up().await;
    assert!(whole.said(LEADS), "{:#?}", whole.log());
    eventually("the end is told", || async {
        api.said("waiting for PostgreSQL: over").then_some(())
    })
    .await;
    let told =
        api.log().iter().filter(|line| line.contains("PostgreSQL cannot be used yet")).count();
    assert!(told <= 3, "each cause is told once: {:#?}", api.log());
    eventually("nothing is wrong", || async { (warnings(&api).await == "null").then_some(()) })
        .await;
    cluster.assert_consistent().await;
    for instance in [whole, api, relay] {
        instance.stop().await;
    }
}

#[tokio::test]
async fn without_postgres_an_instance_decides_and_follows_later() {
    starts_without_postgres(None, "refused").await;
}

#[tokio::test]
async fn with_a_silent_postgres_an_instance_decides_and_follows_later() {
    starts_without_postgres(Some(Mode::Silent), "no answer in 5 s").await;
}

#[tokio::test]
async fn with_a_slow_postgres_an_instance_starts_and_follows() {
    let cluster = shop(Private::default()).await;
    let mut door = Door::before(&cluster.settings, POSTGRES).await;
    door.set(Mode::Slow).await;
    let instance = Instance::ready(&door.through(&cluster.settings)).await;
    let order = instance.done(&Request::order("ann", "mug", 1)).await;
    let read = Request::get(format!("/v1/orders/{}", order["order_id"].as_str().unwrap()));
    eventually("the order can be read", || async {
        (instance.send(&read).await.status == 200).then_some(())
    })
    .await;
    cluster.assert_consistent().await;
    instance.stop().await;
}

#[tokio::test]
async fn with_a_read_only_postgres_an_instance_decides_reads_and_publishes_nothing_twice() {
    let cluster = shop(Private::default()).await;
    // One order whose event waits, and one that PostgreSQL does not have.
    let apart = cluster.start_roles("api,reconciler").await;
    let first = apart.done(&Request::order("ann", "mug", 1)).await;
    cluster.caught_up().await;
    apart.stop().await;
    let database = cluster.pool.connect_options().get_database().unwrap().to_owned();
    // Connects to another database, because a read-only database must be able to get its settings
    // back.
    let admin = cluster.settings.get(POSTGRES).replacen(&format!("/{database}"), "/postgres", 1);
    let admin = sqlx::PgPool::connect(&admin).await.unwrap();
    let alter = async |what: &str| {
        sqlx::raw_sql(&format!("ALTER DATABASE {database} {what}")).execute(&admin).await.unwrap();
    };
    alter("SET default_transaction_read_only = on").await;
    let instance = Instance::ready(&short_of_patience(&cluster.settings)).await;
    instance
        .done(&Request::get(format!("/v1/orders/{}", first["order_id"].as_str().unwrap())))
        .await;
    instance.done(&Request::order("ann", "mug", 1)).await;
    eventually("both followers have tried", || async {
        let tried = |what: &str| {
            instance
                .log()
                .iter()
                .any(|line| line.contains(what) && line.contains("read-only transaction"))
        };
        (tried("the reconciler starts over") && tried("relay: PostgreSQL cannot be used"))
            .then_some(())
    })
    .await;
    // By now the relay has tried more than once. It must not publish what it cannot delete.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(waiting_messages(&cluster).await, 0, "published before it could be deleted");
    alter("RESET default_transaction_read_only").await;
    cluster.outbox_delivered().await;
    cluster.caught_up().await;
    cluster.outbox_delivered().await;
    assert_eq!(waiting_messages(&cluster).await, 2, "each once");
    cluster.assert_consistent().await;
    instance.stop().await;
}

/// The number of messages in the queue of the data platform.
async fn waiting_messages(cluster: &Cluster) -> u32 {
    use lapin::options::QueueDeclareOptions;
    let connection = lapin::Connection::connect(cluster.settings.get(RABBITMQ), Default::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    let passive = QueueDeclareOptions { passive: true, ..Default::default() };
    let queue =
        channel.queue_declare(ORDERS_QUEUE.into(), passive, Default::default()).await.unwrap();
    let count = queue.message_count();
    connection.close(200, "done".into()).await.unwrap();
    count
}

#[tokio::test]
async fn without_rabbitmq_an_instance_starts_and_delivers_later() {
    let cluster = shop(Private::default()).await;
    let mut door = Door::before(&cluster.settings, RABBITMQ).await;
    for (mode, said) in [(None, "refused"), (Some(Mode::Silent), "no answer in 5 s")] {
        match mode {
            Some(mode) => door.set(mode).await,
            None => door.shut().await,
        }
        let instance = Instance::ready(&door.through(&cluster.settings)).await;
        instance.done(&Request::order("ann", "mug", 1)).await;
        eventually("a wrong address is said at once", || async {
            let lines = instance.log();
            let mut lines =
                lines.iter().filter(|line| line.contains("RabbitMQ cannot be used yet"));
            lines
                .any(|line| line.contains(said) && line.contains("RUSHGATE_AMQP_URL"))
                .then_some(())
        })
        .await;
        eventually("its readiness says so, too", || async {
            warnings(&instance).await.contains("RabbitMQ").then_some(())
        })
        .await;
        assert_eq!(instance.readiness().await.0, 200);
        cluster.caught_up().await;
        assert!(cluster.number("SELECT count(*) FROM outbox").await > 0);
        door.set(Mode::Open).await;
        cluster.outbox_delivered().await;
        cluster.assert_consistent().await;
        instance.stop().await;
    }
    door.set(Mode::Slow).await;
    let instance = Instance::ready(&door.through(&cluster.settings)).await;
    instance.done(&Request::order("ann", "mug", 1)).await;
    cluster.caught_up().await;
    cluster.outbox_delivered().await;
    cluster.assert_consistent().await;
    instance.stop().await;
}

#[tokio::test]
async fn a_wrong_split_of_roles_is_refused_with_the_missing_rights() {
    let cluster = Cluster::with(Private { postgres: true, ..Private::default() }).await;
    let url = cluster.settings.get(POSTGRES).to_owned();
    let (went_well, said) = psql("deploy/roles.sql", &url);
    assert!(!went_well && said.contains("run `rushgate migrate` first"), "{said}");
    cluster.settings.run(&["migrate"]).await.assert_success();
    execute(&cluster.pool, "CREATE ROLE nobody LOGIN").await;
    let (went_well, said) = psql("deploy/roles.sql", &url.replacen("postgres@", "nobody@", 1));
    assert!(!went_well && said.contains("may not make roles"), "{said}");
    assert!(psql("deploy/roles.sql", &url).0);

    let as_role = |role: &str, roles: &str| {
        let url = url.replacen("postgres@", &format!("{role}@"), 1);
        cluster.settings.with(POSTGRES, url).with("RUSHGATE_ROLES", roles)
    };
    for (user, roles, lacks) in [
        ("rushgate_reconciler", "reconciler,relay,scheduler", "DELETE on outbox (for relay)"),
        ("rushgate_relay", "reconciler", "INSERT on orders (for reconciler)"),
        ("rushgate_api", "relay", "UPDATE on relay_progress (for relay)"),
    ] {
        let ended = as_role(user, roles).without("RUSHGATE_LOG_FORMAT").with("RUST_LOG", "error");
        let ended = ended.run(&["serve"]).await;
        assert!(ended.code == 1 && ended.stderr.lines().count() == 1, "{ended:#?}");
        for part in [user, lacks, "deploy/roles.sql", "RUSHGATE_ROLES"] {
            assert!(ended.stderr.contains(part), "{part} is not in {}", ended.stderr);
        }
    }
    // With the right split of rights, every instance sees the figures that it exports, and logs
    // nothing about rights.
    for (user, roles) in
        [("rushgate_reconciler", "reconciler"), ("rushgate_relay", "relay,scheduler")]
    {
        let instance = Instance::ready(&as_role(user, roles)).await;
        eventually("its figures of PostgreSQL", || async {
            let figures = instance.ops("/metrics").await.1;
            let seen = [
                "rushgate_connected{server=\"postgres\"} 1",
                "rushgate_reconciler_halted{cell=\"0\"} 0",
            ];
            seen.iter().all(|figure| figures.contains(figure)).then_some(())
        })
        .await;
        assert!(!instance.said("permission denied"), "{:#?}", instance.log());
        instance.stop().await;
    }
}

#[tokio::test]
async fn housekeeping_that_fails_or_is_slow_holds_up_no_step() {
    let cluster = shop(Private::default()).await;
    // A DELETE that would take a minute, and a SCAN that is forbidden.
    execute(
        &cluster.pool,
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM pg_sleep(60); RETURN OLD; END $$;
         CREATE TRIGGER slow BEFORE DELETE ON idempotency_records FOR EACH ROW EXECUTE FUNCTION slow();
         INSERT INTO idempotency_records
             VALUES ('old', decode(repeat('00', 16), 'hex'), '', now() - interval '26 hours')",
    )
    .await;
    let acl = async |rule: &str| {
        let command = CustomCommand::new_static("ACL", ClusterHash::FirstKey, false);
        let words = ["SETUSER", "default", rule].map(str::to_owned).to_vec();
        let _: fred::types::Value = cluster.raw.custom(command, words).await.unwrap();
    };
    acl("-scan").await;
    let instance = cluster.start().await;
    instance.done(&Request::order("ann", "mug", 1)).await;
    cluster.caught_up().await;
    eventually("both failures are counted and told", || async {
        let figures = instance.ops("/metrics").await.1;
        let counted = ["epochs", "records"].iter().all(|what| {
            let name = format!("rushgate_housekeeping_failures_total{{what=\"{what}\"}} ");
            figures.lines().any(|line| line.strip_prefix(&name).is_some_and(|count| count != "0"))
        });
        let told = instance.said("cannot be removed from Redis")
            && instance.said("cannot be removed from PostgreSQL");
        (counted && told).then_some(())
    })
    .await;
    instance.done(&Request::order("ann", "mug", 1)).await;
    cluster.caught_up().await;
    assert!(!instance.said("the reconciler starts over"), "{:#?}", instance.log());
    acl("+scan").await;
    execute(
        &cluster.pool,
        "DROP TRIGGER slow ON idempotency_records; DELETE FROM idempotency_records WHERE scope = 'old'",
    )
    .await;
    cluster.assert_consistent().await;
    instance.stop().await;
}

#[tokio::test]
async fn readiness_is_answered_in_time_while_a_server_hangs() {
    /// 200 ms, plus a margin for a busy machine. It took more than 2 s when the servers were
    /// queried for each answer.
    const IN_TIME: Duration = Duration::from_millis(1_000);
    let cluster = shop(Private { postgres: true, ..Private::default() }).await;
    let instance = cluster.start().await;
    let asked = async || {
        let began = std::time::Instant::now();
        let (status, body) = instance.readiness().await;
        assert!(began.elapsed() < IN_TIME, "{:?}: {body}", began.elapsed());
        (status, body.to_string())
    };
    cluster.postgres.as_ref().unwrap().pause();
    eventually("it is said that PostgreSQL hangs", || async {
        let (status, body) = asked().await;
        assert_eq!(status, 200, "it can decide: {body}");
        body.contains("PostgreSQL has not answered for").then_some(())
    })
    .await;
    instance.done(&Request::charge("ann", 1)).await;
    cluster.postgres.as_ref().unwrap().resume();
    eventually("all is well", || async { (!asked().await.1.contains("PostgreSQL")).then_some(()) })
        .await;
    cluster.redis.pause();
    eventually("it is not ready without Redis", || async {
        let (status, body) = asked().await;
        (status == 503 && body.contains("Redis has not answered for")).then_some(())
    })
    .await;
    cluster.redis.resume();
    eventually("all is well again", || async { (asked().await.0 == 200).then_some(()) }).await;
    cluster.assert_consistent().await;
    instance.stop().await;
}
