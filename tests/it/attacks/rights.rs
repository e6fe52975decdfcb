//! Least privilege behind the service: the rights that the files of deploy/ grant are sufficient
//! for the main way, and nothing more is allowed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use fred::prelude::*;
use fred::types::{ClusterHash, CustomCommand};
use serde_json::json;
use sqlx::PgPool;

use rushgate_local_servers::{DataFolder, RedisOptions, RedisServer};

use crate::cluster::{Cluster, Instance, Private, Request, Settings, eventually};
use crate::truth::psql;

const ACL: &str = include_str!("../../../deploy/redis-acl.conf");
const ROLES: &str = include_str!("../../../deploy/roles.sql");

/// Roles with their users in Redis and in PostgreSQL.
const ROLES_OF: [(&str, &str, &str); 3] = [
    ("api", "rushgate-api", "rushgate_api"),
    ("reconciler", "rushgate-reconciler", "rushgate_reconciler"),
    ("relay,scheduler", "rushgate-api", "rushgate_relay"),
];

/// Commands that no user of the service needs, and that go beyond the shop's own keys.
const NEVER: [&str; 20] = [
    "flushall",
    "flushdb",
    "keys",
    "eval",
    "eval_ro",
    "function",
    "config",
    "config|set",
    "config|rewrite",
    "acl",
    "debug",
    "shutdown",
    "replicaof",
    "slaveof",
    "module",
    "migrate",
    "restore",
    "save",
    "script",
    "script|flush",
];

/// The user of the tests' own connection, in addition to the users in the file.
const TESTS: (&str, &str) = ("tests", "of-tests");

/// Rushgate's users in the file.
fn users() -> impl Iterator<Item = &'static str> {
    ACL.lines().filter(|line| line.starts_with("user rushgate-"))
}

fn password(user: &str) -> String {
    let line = ACL.lines().find(|line| line.split(' ').nth(1) == Some(user)).unwrap();
    line.split(' ').find_map(|word| word.strip_prefix('>')).unwrap().to_owned()
}

/// A copy of the ACL file as an operator would install it, with the tests' own user added.
struct AclFile(PathBuf);

impl AclFile {
    fn new() -> Self {
        let name = format!("rushgate-users-{}-{:x}.acl", std::process::id(), fastrand::u64(..));
        let file = Self(std::env::temp_dir().join(name));
        file.write(ACL);
        file
    }

    fn path(&self) -> String {
        self.0.display().to_string()
    }

    fn write(&self, acl: &str) {
        let (name, password) = TESTS;
        std::fs::write(&self.0, format!("{acl}user {name} on >{password} ~* &* +@all\n")).unwrap();
    }
}

impl Drop for AclFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn connected_as(
    user: &str,
    password: &str,
    port: u16,
) -> Result<Client, impl std::fmt::Debug> {
    rushgate::redis::connect(&format!("redis://{user}:{password}@127.0.0.1:{port}")).await
}

fn as_user(cluster: &Cluster, settings: &Settings, redis: &str, postgres: &str) -> Settings {
    let database =
        settings.get("RUSHGATE_DATABASE_URL").replacen("postgres@", &format!("{postgres}@"), 1);
    let redis = format!("redis://{redis}:{}@127.0.0.1:{}", password(redis), cluster.redis.port());
    settings.with("RUSHGATE_DATABASE_URL", database).with("RUSHGATE_REDIS_URL", redis)
}

pub async fn least_rights(_: usize) -> usize {
    let acl = AclFile::new();
    let redis_config = vec![format!("aclfile {}", acl.path())];
    let redis_login = Some((TESTS.0.to_owned(), TESTS.1.to_owned()));
    let private = Private { redis_config, redis_login, postgres: true, ..Private::default() };
    let cluster = Cluster::with(private).await;
    cluster.settings.run(&["migrate"]).await.assert_success();
    for _ in 0..2 {
        let run = psql("deploy/roles.sql", cluster.settings.get("RUSHGATE_DATABASE_URL"));
        assert!(run.0, "repeatable: {}", run.1);
    }
    let instances: Vec<_> = happy_path(&cluster).await.into_iter().map(Arc::new).collect();
    redis_restarts(&cluster, instances.last().unwrap()).await;
    let tried = redis_rights(&cluster).await
        + operations(&cluster, &acl).await
        + postgres_rights(&cluster).await;
    for instance in instances {
        let instance = Arc::into_inner(instance).unwrap();
        // Nothing was refused on the main way, not even something that would only be logged.
        let said: Vec<String> =
            instance.log().into_iter().filter(|line| line.contains("permission denied")).collect();
        assert!(said.is_empty() && !instance.said("NOPERM"), "{said:?}");
        instance.stop().await;
    }
    tried
}

/// Instances with one role each, under their own users, do everything that a shop does.
async fn happy_path(cluster: &Cluster) -> Vec<Instance> {
    let mut instances = Vec::new();
    for (roles, redis, postgres) in ROLES_OF.iter().rev() {
        let settings =
            as_user(cluster, &cluster.settings, redis, postgres).with("RUSHGATE_ROLES", *roles);
        instances.push(Instance::ready(&settings).await);
    }
    let api = instances.last().unwrap();
    api.done(&Request::put_product("mug", 1_000, 10)).await;
    api.done(&Request::restock("mug", 5)).await;
    api.done(&Request::put_product("mug", 1_000, 10)).await; // looks up its initial stock
    api.done(&Request::put_template("welcome", 5)).await;
    api.done(&Request::charge("ann", 100_000).key("k")).await;
    assert!(api.send(&Request::charge("ann", 100_000).key("k")).await.replayed);
    let coupon = api.done(&Request::issue("welcome", "ann")).await;
    let order = Request::order("ann", "mug", 2).coupon(coupon["coupon_id"].as_str().unwrap());
    let order = api.done(&order.key("o")).await;
    let id = order["order_id"].as_str().unwrap();
    for path in [
        format!("/v1/orders/{id}"),
        "/v1/users/ann/orders".to_owned(),
        "/v1/users/ann/coupons".to_owned(),
        "/v1/users/ann/wallet".to_owned(),
        "/v1/users/ann/wallet/entries".to_owned(),
        "/v1/products".to_owned(),
        "/v1/coupon-templates".to_owned(),
    ] {
        api.done(&Request::get(path)).await;
    }
    for path in
        ["/v1/coupon-templates/welcome/coupons", "/v1/orders?template_id=welcome&product_id=mug"]
    {
        let list = api.done(&Request::get(path).admin()).await;
        assert_eq!(list["data"].as_array().unwrap().len(), 1, "{path}: {list}");
    }
    api.done(&Request::cancel(id).key("c")).await;
    assert!(api.send(&Request::cancel(id).key("c")).await.replayed);
    api.done(&Request::post("/v1/products/popular/refresh", json!({})).admin()).await;
    api.done(&Request::get("/v1/products/popular")).await;
    api.done(&Request::get("/v1/admin/status").admin()).await;
    assert!(api.ops("/metrics").await.1.contains("rushgate_log_length_entries"));
    // Redis loses its data, and the gate is rebuilt.
    cluster.caught_up().await;
    cluster.flush_redis().await;
    eventually("the gate is rebuilt", || async {
        (api.send(&Request::charge("ann", 1)).await.status == 201).then_some(())
    })
    .await;
    cluster.caught_up().await;
    cluster.outbox_delivered().await;
    let auditor = as_user(cluster, &cluster.settings, "rushgate-audit", "rushgate_audit");
    auditor.run(&["audit", "--wait", "30s"]).await.assert_success();
    instances
}

/// Redis is stopped and started again under traffic, both cleanly and as after a crash. Nothing
/// acknowledged is lost, and nothing is rebuilt. Redis 7.0 reads its append-only file as the user
/// `default`, even if that user is off. If `default` had no commands, Redis would refuse every
/// transaction and come up empty.
async fn redis_restarts(cluster: &Cluster, api: &Arc<Instance>) {
    let epoch = cluster.meta().await.epoch;
    let stop = tokio_util::sync::CancellationToken::new();
    let payers: Vec<_> = (0..4)
        .map(|n| {
            let (api, stop) = (Arc::clone(api), stop.clone());
            tokio::spawn(async move {
                let (user, mut acknowledged) = (format!("payer-{n}"), 0);
                while !stop.is_cancelled() {
                    let request = Request::charge(&user, 1).key(&format!("{acknowledged}"));
                    if api.try_send(&request).await.is_ok_and(|answer| answer.status == 201) {
                        acknowledged += 1;
                    }
                }
                (user, acknowledged)
            })
        })
        .collect();
    let mut seen = cluster.meta().await.seq;
    for crash in [false, true, false] {
        eventually("charges are decided", || async {
            (cluster.meta().await.seq > seen + 20).then_some(())
        })
        .await;
        match crash {
            true => cluster.redis.kill().await,
            false => cluster.redis.stop().await,
        }
        cluster.redis.restart().await.unwrap();
        seen = cluster.meta().await.seq;
    }
    eventually("charges are decided again", || async {
        (cluster.meta().await.seq > seen + 20).then_some(())
    })
    .await;
    stop.cancel();
    for payer in payers {
        let (user, acknowledged) = payer.await.unwrap();
        assert!(acknowledged > 0);
        // The last request may have been interrupted. Its key makes the repeat safe.
        let last = Request::charge(&user, 1).key(&format!("{acknowledged}"));
        eventually("the last charge is answered", || async {
            api.try_send(&last).await.is_ok_and(|answer| answer.status == 201).then_some(())
        })
        .await;
        let wallet = api.done(&Request::get(format!("/v1/users/{user}/wallet"))).await;
        assert_eq!(wallet["balance"], json!(acknowledged + 1), "{user}");
    }
    assert_eq!(cluster.meta().await.epoch, epoch, "the same epoch goes on: nothing was rebuilt");
}

/// The operator, a replica and Sentinel have what they need, and no access to the shop's keys.
async fn operations(cluster: &Cluster, acl: &AclFile) -> usize {
    let (port, mut tried) = (cluster.redis.port(), 0);
    for (user, needed) in [
        (
            "operator",
            vec!["acl load", "config set maxmemory 1gb", "slowlog get 1", "shutdown", "info"],
        ),
        ("replication", vec!["psync ? -1", "replconf listening-port 1", "ping"]),
        (
            "sentinel",
            vec![
                "replicaof no one",
                "slaveof no one",
                "config rewrite",
                "client kill type normal",
                "script kill",
                "multi",
                "exec",
                "role",
                "info",
                "ping",
                "publish __sentinel__:hello x",
                "subscribe __sentinel__:hello",
            ],
        ),
    ] {
        for words in needed {
            let words: Vec<&str> = words.split(' ').collect();
            assert_eq!(
                dry_run(&cluster.raw, user, words[0], &words[1..]).await,
                "OK",
                "{user}: {words:?}"
            );
            tried += 1;
        }
        for command in
            ["hget", "hset", "flushall", "evalsha", "acl|setuser", "debug", "module|load"]
        {
            let said = judged(&cluster.raw, user, command).await;
            assert!(said.contains("has no permissions"), "{user} may {command}: {said}");
            tried += 1;
        }
    }
    // A replica follows with its own user.
    let extra_config = vec![
        format!("replicaof 127.0.0.1 {port}"),
        "masteruser replication".to_owned(),
        format!("masterauth {}", password("replication")),
    ];
    let replica = RedisOptions { extra_config, ..RedisOptions::new(DataFolder::Scratch) };
    let replica = RedisServer::start(replica).await.unwrap();
    let its = rushgate::redis::connect(&replica.url()).await.unwrap();
    eventually("the replica follows", || async {
        let info: String = its.custom(fred::cmd!("INFO"), vec!["replication"]).await.unwrap();
        info.contains("master_link_status:up").then_some(())
    })
    .await;
    // A password is changed without a restart.
    let operator = connected_as("operator", &password("operator"), port).await.unwrap();
    acl.write(&ACL.replace(&password("rushgate-audit"), "another-password"));
    let _: Value = custom(&operator, "ACL", &["LOAD"]).await.unwrap();
    assert!(connected_as("rushgate-audit", "another-password", port).await.is_ok());
    assert!(connected_as("rushgate-audit", &password("rushgate-audit"), port).await.is_err());
    acl.write(ACL);
    let _: Value = custom(&operator, "ACL", &["LOAD"]).await.unwrap();
    tried + 3
}

/// Tries every Redis command that a user was not granted, and keys outside the shop's.
async fn redis_rights(cluster: &Cluster) -> usize {
    let all: Vec<String> =
        custom(&cluster.raw, "COMMAND", &["LIST"]).await.unwrap().convert().unwrap();
    let mut tried = 0;
    for line in users() {
        let user = line.split(' ').nth(1).unwrap();
        let given: BTreeSet<&str> =
            line.split(' ').filter_map(|word| word.strip_prefix('+')).collect();
        for never in NEVER {
            assert!(!given.contains(never), "{user} is given {never}");
        }
        assert!(line.contains(" -@all ") && !line.contains("+@"), "{user}: by name only");
        // Every user may call `reset`, which ends a session's rights.
        for command in all.iter().filter(|name| *name != "reset" && !given.contains(name.as_str()))
        {
            let said = judged(&cluster.raw, user, command).await;
            assert!(said.contains("has no permissions to run"), "{user} may run {command}: {said}");
            tried += 1;
        }
        for words in [
            &["config", "set", "appendonly", "no"][..],
            &["config", "rewrite"],
            &["config", "resetstat"],
            &["script", "flush"],
            &["script", "kill"],
            &["client", "kill", "id", "1"],
            &["acl", "setuser", "evil", "on"],
        ] {
            let said = dry_run(&cluster.raw, user, words[0], &words[1..]).await;
            assert!(said.contains("has no permissions to run"), "{user} may {words:?}: {said}");
            tried += 1;
        }
        // Keys of another shop or of a session store on the same Redis.
        for key in ["session:1", "r", "rg", "rgx", "RG:{0}:meta"] {
            let said = dry_run(&cluster.raw, user, "hmget", &[key, "x"]).await;
            assert!(said.contains("no permissions to access"), "{user}: {key}: {said}");
            tried += 1;
        }
    }
    // The auditor can read but not write, whatever the command.
    let port = cluster.redis.port();
    let auditor = connected_as("rushgate-audit", &password("rushgate-audit"), port).await.unwrap();
    let error = custom(&auditor, "HSET", &["rg:{0}:meta", "epoch", "9"]).await.unwrap_err();
    assert!(error.details().contains("NOPERM"), "{error:?}");
    assert!(connected_as("rushgate-audit", "guess", port).await.is_err());
    tried + 2
}

async fn custom(client: &Client, name: &'static str, args: &[&str]) -> Result<Value, Error> {
    let command = CustomCommand::new_static(name, ClusterHash::FirstKey, false);
    client.custom(command, args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>()).await
}

/// The answer of `ACL DRYRUN` for a command, with as many arguments as it takes. Nothing is
/// executed.
async fn judged(client: &Client, user: &str, command: &str) -> String {
    let (command, part) = command.split_once('|').unwrap_or((command, ""));
    let mut args: Vec<&str> = if part.is_empty() { vec![] } else { vec![part] };
    loop {
        let said = dry_run(client, user, command, &args).await;
        match said {
            _ if said.contains("wrong number of arguments") && args.len() < 9 => {
                args.push(if args.is_empty() { "rg:{0}:meta" } else { "1" });
            }
            // A container command: every one has the subcommand `help`.
            _ if said.contains("not found") && args != ["help"] => args = vec!["help"],
            _ => return said,
        }
    }
}

async fn dry_run(client: &Client, user: &str, command: &str, args: &[&str]) -> String {
    let args = [&["DRYRUN", user, command], args].concat();
    match custom(client, "ACL", &args).await {
        Ok(said) => said.convert().unwrap(),
        Err(error) => error.details().to_owned(),
    }
}

/// Tries every right on every table for every role: it is either granted by the file or refused.
async fn postgres_rights(cluster: &Cluster) -> usize {
    let tables: Vec<String> = cluster
        .texts("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        .await;
    let mut tried = 0;
    for role in ["rushgate_api", "rushgate_reconciler", "rushgate_relay", "rushgate_audit"] {
        let url = cluster.settings.get("RUSHGATE_DATABASE_URL").replacen(
            "postgres@",
            &format!("{role}@"),
            1,
        );
        let pool = PgPool::connect(&url).await.unwrap();
        for table in &tables {
            let column: String = sqlx::query_scalar(
                "SELECT column_name::text FROM information_schema.columns WHERE table_name = $1
                 AND is_identity = 'NO' ORDER BY ordinal_position LIMIT 1",
            )
            .bind(table)
            .fetch_one(&cluster.pool)
            .await
            .unwrap();
            for (right, statement) in [
                ("INSERT", format!("INSERT INTO {table} DEFAULT VALUES")),
                ("UPDATE", format!("UPDATE {table} SET {column} = {column} WHERE false")),
                ("DELETE", format!("DELETE FROM {table} WHERE false")),
                ("SELECT", format!("SELECT {column} FROM {table} LIMIT 0")),
                ("TRUNCATE", format!("TRUNCATE {table}")),
                ("owner", format!("ALTER TABLE {table} ADD COLUMN evil text")),
                ("owner", format!("DROP TABLE {table}")),
            ] {
                if !given(role, right, table) {
                    assert_eq!(
                        refusal(&pool, statement.clone()).await,
                        "42501",
                        "{role}: {statement}"
                    );
                    tried += 1;
                }
            }
        }
        for statement in [
            "CREATE TABLE evil (a int)",
            "CREATE FUNCTION evil() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "SELECT pg_read_file('/etc/passwd')",
            "COPY (SELECT 1) TO PROGRAM 'true'",
            "SET ROLE postgres",
            "ALTER ROLE rushgate_api SUPERUSER",
            "CREATE ROLE evil",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'postgres'",
        ] {
            assert_eq!(refusal(&pool, statement.to_owned()).await, "42501", "{role}: {statement}");
            tried += 1;
        }
        pool.close().await;
    }
    tried
}

/// Whether the file grants this right. Reading it from the file keeps test and file in step.
/// `NEVER` lists the rights that matter most and that no file may grant.
fn given(role: &str, right: &str, table: &str) -> bool {
    const NEVER: [(&str, &str, &str); 6] = [
        ("rushgate_api", "UPDATE", "wallets"),
        ("rushgate_api", "INSERT", "orders"),
        ("rushgate_reconciler", "DELETE", "orders"),
        ("rushgate_reconciler", "UPDATE", "wallet_entries"),
        ("rushgate_relay", "INSERT", "outbox"),
        ("rushgate_audit", "UPDATE", "cell_cursors"),
    ];
    let grants = ROLES.split(';').filter_map(|statement| statement.split_once("GRANT ")).any(
        |(_, grant)| {
            let (rights, rest) = grant.split_once(" ON ").unwrap();
            let (tables, roles) = rest.split_once("TO ").unwrap();
            let named = |list: &str, name: &str| {
                list.split([',', ' ', '\n']).any(|word| word.trim() == name)
            };
            let everywhere = tables.trim() == "ALL TABLES IN SCHEMA public";
            named(rights, right) && (everywhere || named(tables, table)) && named(roles, role)
        },
    );
    assert!(
        !(grants && NEVER.contains(&(role, right, table))),
        "{role} is given {right} on {table}"
    );
    grants
}

/// The SQLSTATE of a refusal; empty if the statement succeeded.
async fn refusal(pool: &PgPool, statement: String) -> String {
    match sqlx::raw_sql(&statement).execute(pool).await {
        Ok(_) => String::new(),
        Err(sqlx::Error::Database(error)) => error.code().unwrap_or_default().into_owned(),
        Err(error) => error.to_string(),
    }
}
