//! Start, shutdown and the other commands, as an operator sees them.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use futures::future::join_all;
use nix::sys::signal::Signal;
use rushgate::config::bounds::FOLLOWERS_NICENESS;
use serde_json::{Value, json};

use crate::cluster::*;
use crate::servers::{niceness, niceness_at};
use crate::truth;

/// An address where nothing listens.
const NOWHERE: &str = "127.0.0.1:1";

#[tokio::test]
async fn roles_of_several_processes_make_one_shop() {
    let cluster = Cluster::servers().await;
    // The API starts before the gate has been built: it listens, reports that, and becomes ready
    // when there is a gate.
    let api = Instance::listening(&cluster.settings.with("RUSHGATE_ROLES", "api")).await;
    let (status, body) = api.readiness().await;
    assert_eq!((status, &body["reasons"]), (503, &json!(["cell 0 is absent"])));
    let refused = api.send(&Request::charge("ann", 1_000)).await;
    assert_eq!((refused.status, refused.code()), (503, "gate-unavailable"));

    let reconciler = cluster.start_roles("reconciler").await;
    let rest = cluster.start_roles("relay,scheduler").await;
    api.until_ready().await;
    api.done(&Request::put_product("mug", 10_000, 10)).await;
    api.done(&Request::charge("ann", 100_000)).await;
    let order = api.done(&Request::order("ann", "mug", 1)).await;
    let read = api
        .done(&Request::get(format!("/v1/orders/{}", order["order_id"].as_str().unwrap())))
        .await;
    assert_eq!(read, order);
    eventually("a first list of popular products", || async {
        (api.send(&Request::get("/v1/products/popular")).await.status == 200).then_some(())
    })
    .await;
    cluster.assert_consistent().await;
    assert_eq!(cluster.events().await.len(), 1);
    assert!(reconciler.listens_on().is_empty() && rest.listens_on().is_empty());
    assert!(reconciler.said(LEADS) && !api.said(LEADS) && !rest.said(LEADS));
    for instance in [rest, reconciler, api] {
        instance.stop().await;
    }
}

#[tokio::test]
async fn what_follows_the_gate_steps_back_where_requests_are_answered_and_do_not_wait_for_it() {
    let cluster = Cluster::servers().await;
    let settings = &cluster.settings;
    let back = i32::from(FOLLOWERS_NICENESS);
    let api = "api,reconciler,relay";
    for (settings, followers) in [
        (settings.with("RUSHGATE_ROLES", api), back),
        (settings.with("RUSHGATE_ROLES", api).with("RUSHGATE_ACK", "truth"), 0),
        (settings.with("RUSHGATE_ROLES", "reconciler,relay"), 0),
    ] {
        let instance = Instance::listening(&settings).await;
        let threads = threads(instance.pid());
        let ours = niceness(std::process::id());
        for (name, more) in [
            ("rushgate-follow", followers),
            ("rushgate-relay", followers),
            ("rushgate-meters", back),
            ("rushgate-gate", 0),
        ] {
            let found = threads
                .iter()
                .find(|(thread, _)| thread == name)
                .unwrap_or_else(|| panic!("{name}: {threads:?}"));
            assert_eq!(found.1, ours + more, "{name} of {settings:?}");
        }
        instance.stop().await;
    }
}

/// Names and niceness of the threads with a runtime of their own.
fn threads(pid: u32) -> Vec<(String, i32)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let name = |path: &Path| {
        std::fs::read_to_string(path.join("comm")).unwrap_or_default().trim().to_owned()
    };
    let ours = |path: &Path| name(path).starts_with("rushgate-"); // others may end meanwhile
    let paths = tasks.map(|task| task.unwrap().path()).filter(|path| ours(path));
    paths.map(|path| (name(&path), niceness_at(&path))).collect()
}

#[tokio::test]
async fn what_keeps_an_instance_from_starting_is_one_line() {
    let cluster = Cluster::servers().await;
    let good = &cluster.settings;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let nowhere = |scheme: &str, rest: &str| format!("{scheme}://{NOWHERE}{rest}");
    let absent = good.get("RUSHGATE_DATABASE_URL").to_owned() + "x";
    let cases = [
        (
            good.without("RUSHGATE_JWT_SECRET"),
            vec!["RUSHGATE_JWT_SECRET", "RUSHGATE_JWT_JWKS_FILE", "set one"],
        ),
        (
            good.with("RUSHGATE_JWT_JWKS_FILE", "/keys"),
            vec!["RUSHGATE_JWT_SECRET", "unset the other"],
        ),
        (good.with("RUSHGATE_JWT_SECRET", ""), vec!["RUSHGATE_JWT_SECRET", "openssl rand"]),
        (good.with("RUSHGATE_JWT_AUDIENCE", ""), vec!["RUSHGATE_JWT_AUDIENCE", "unset it"]),
        (good.with("RUSHGATE_JWT_ISSUER", ""), vec!["RUSHGATE_JWT_ISSUER", "unset it"]),
        (
            good.with("RUSHGATE_JWT_SECRET_FILE", "/secret"),
            vec!["RUSHGATE_JWT_SECRET_FILE", "unset the other"],
        ),
        (
            good.with("RUSHGATE_TLS_CERT_FILE", "/cert"),
            vec!["RUSHGATE_TLS_CERT_FILE", "RUSHGATE_TLS_KEY_FILE", "set both"],
        ),
        (
            good.with("RUSHGATE_TLS_CERT_FILE", "/no/cert")
                .with("RUSHGATE_TLS_KEY_FILE", "/no/key"),
            vec!["RUSHGATE_TLS_CERT_FILE", "/no/cert"],
        ),
        (
            good.without("RUSHGATE_JWT_SECRET").with("RUSHGATE_JWT_JWKS_FILE", "/no/such/file"),
            vec!["RUSHGATE_JWT_JWKS_FILE", "/no/such/file"],
        ),
        (
            good.with("RUSHGATE_REDIS_URL", "http://example.org"),
            vec!["RUSHGATE_REDIS_URL", "redis://"],
        ),
        (good.with("RUSHGATE_DATABASE_URL", "shop"), vec!["RUSHGATE_DATABASE_URL", "postgres://"]),
        (good.with("RUSHGATE_AMQP_URL", "rabbit"), vec!["RUSHGATE_AMQP_URL", "amqp://"]),
        (
            good.with("RUSHGATE_REDIS_URL", nowhere("redis", "")),
            vec!["RUSHGATE_REDIS_URL", "start it", NOWHERE],
        ),
        (
            good.with("RUSHGATE_DATABASE_URL", absent),
            vec!["RUSHGATE_DATABASE_URL", "create the database"],
        ),
        (good.with("RUSHGATE_LISTEN", &taken), vec!["RUSHGATE_LISTEN", &taken, "in use"]),
        (good.with("RUSHGATE_OPS_LISTEN", &taken), vec!["RUSHGATE_OPS_LISTEN", &taken, "in use"]),
        (
            good.with("RUSHGATE_LISTEN", "127.0.0.1:4000")
                .with("RUSHGATE_OPS_LISTEN", "127.0.0.1:4000"),
            vec!["RUSHGATE_LISTEN", "RUSHGATE_OPS_LISTEN", "same address"],
        ),
        (good.with("RUSHGATE_TIMEZONE", "Mars/Olympus"), vec!["RUSHGATE_TIMEZONE", "Asia/Seoul"]),
    ];
    let runs = cases.into_iter().map(|(settings, expected)| async move {
        let ended =
            settings.without("RUSHGATE_LOG_FORMAT").with("RUST_LOG", "error").run(&["serve"]).await;
        assert!(ended.code == 1 && ended.stderr.lines().count() == 1, "{expected:?}: {ended:#?}");
        for part in expected {
            assert!(ended.stderr.contains(part), "`{part}` is not in: {}", ended.stderr);
        }
        assert!(ended.took < Duration::from_secs(20), "{ended:#?}");
    });
    join_all(runs).await;
}

#[tokio::test]
async fn an_unsafe_redis_is_refused_or_only_warned_about() {
    let redis_config = vec!["appendfsync everysec".to_owned()];
    let cluster = Cluster::with(Private { redis_config, ..Private::default() }).await;
    let refused = cluster.settings.run(&["serve"]).await;
    assert_eq!((refused.code, refused.stderr.lines().count()), (1, 1), "{refused:#?}");
    for part in ["`appendfsync` is `everysec` and must be `always`", "RUSHGATE_DURABILITY=relaxed"]
    {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    let instance = Instance::ready(&cluster.settings.with("RUSHGATE_DURABILITY", "relaxed")).await;
    assert!(instance.said("`appendfsync` is `everysec`"), "{:#?}", instance.log());
    instance.done(&Request::charge("ann", 1_000)).await;
    instance.stop().await;
}

#[tokio::test]
async fn a_stopping_instance_answers_what_it_has_begun() {
    let (cluster, pair) = Cluster::two().await;
    pair.done(&Request::put_product("mug", 100, 1_000)).await;
    pair.done(&Request::charge("ann", 1_000_000)).await;
    let [stopping, other] = pair.instances;

    // Redis answers nothing while the orders arrive, so all of them are in flight when the signal
    // comes.
    let order = Request::order("ann", "mug", 1);
    join_all((0..8).map(|_| stopping.done(&order))).await; // every connection is open
    cluster.redis.pause();
    let orders = join_all((0..40).map(|_| stopping.send(&order)));
    let signal = async {
        // Answered from memory, behind the orders on the same connections.
        join_all((0..8).map(|_| async { stopping.done(&Request::get("/openapi.json")).await }))
            .await;
        stopping.signal(Signal::SIGTERM);
        eventually("it says that it stops", || async {
            stopping.said("stopping: no new").then_some(())
        })
        .await;
        cluster.redis.resume();
    };
    let (answers, ()) = futures::join!(orders, signal);
    assert!(answers.iter().all(|a| a.status == 201), "{:?}", sorted(&answers).1);
    assert!(stopping.try_send(&order).await.unwrap_err().is_connect());
    stopping.ended().await;

    // The same under load. Every request that the instance has begun gets its answer, so PostgreSQL
    // has exactly what was acknowledged. (A request sent to a connection that is closing is never
    // read and changes nothing.)
    cluster.caught_up().await;
    let before = cluster.texts("SELECT order_id::text FROM orders").await;
    let third = cluster.start().await;
    let shopper = |n: u32| {
        let (third, other, order) = (&third, &other, &order);
        async move {
            let mut told = Vec::new();
            loop {
                match third.try_send(order).await {
                    Ok(answer) if answer.status == 201 => told.push(answer.text("order_id")),
                    Ok(answer) => assert_eq!(answer.code(), "insufficient-stock", "{answer:?}"),
                    Err(error) => {
                        assert!(!error.is_timeout(), "shopper {n}: {error:?}");
                        break;
                    }
                }
            }
            other.done(&Request::get("/v1/products/mug")).await;
            told
        }
    };
    let signal = async {
        eventually("a good many orders", || async {
            (cluster.number("SELECT count(*) FROM orders").await > 300).then_some(())
        })
        .await;
        third.signal(Signal::SIGTERM);
    };
    let (told, ()) = futures::join!(join_all((0..32).map(shopper)), signal);
    third.ended().await;
    cluster.assert_consistent().await;
    let mut told: Vec<String> = told.into_iter().flatten().chain(before).collect();
    told.sort();
    assert_eq!(cluster.texts("SELECT order_id::text FROM orders ORDER BY 1").await, told);
}

#[tokio::test]
async fn the_commands_do_what_they_say() {
    let cluster = Cluster::servers().await;
    let settings = &cluster.settings;
    settings.run(&["migrate"]).await.assert_success();
    settings.run(&["migrate"]).await.assert_success();
    let early = settings.run(&["seed"]).await;
    assert_eq!((early.code, early.stderr.lines().count()), (1, 1), "{early:#?}");
    assert!(early.stderr.contains("rushgate serve"), "{}", early.stderr);

    let instance = cluster.start().await;
    for _ in 0..2 {
        let seeded = settings.run(&["seed"]).await.assert_success();
        assert!(
            seeded.stdout.contains("6 products, 3 coupon templates, 1000 users"),
            "{}",
            seeded.stdout
        );
    }
    cluster.caught_up().await;
    assert_eq!(cluster.number("SELECT count(*) FROM wallet_entries").await, 1_001);
    assert_eq!(cluster.number("SELECT count(*) FROM orders").await, 1);
    let same = "SELECT count(*) FROM wallets WHERE balance = 100000";
    assert_eq!(cluster.number(same).await, 1_000);

    let token = settings
        .run(&["token", "--sub", "user-7", "--scope", "shop", "--ttl", "5m"])
        .await
        .assert_success();
    let order = Request::order("user-7", "latte", 1).token(token.stdout.trim());
    instance.done(&order).await;
    for (args, part) in [
        (["--sub", "user-7", "--scope", "king"], "king"),
        (["--sub", "user 7", "--scope", "shop"], "--sub"),
        (["--sub", "user-7", "--ttl", "soon"], "soon"),
    ] {
        let refused = settings.run(&[&["token"], &args[..]].concat()).await;
        assert!(refused.code != 0 && refused.stderr.contains(part), "{refused:#?}");
    }

    let audit = settings.run(&["audit", "--wait", "30s", "--json"]).await.assert_success();
    let report: Value = serde_json::from_str(&audit.stdout).unwrap();
    assert_eq!(
        (&report["clean"], &report["gate_compared"]),
        (&json!(true), &json!(true)),
        "{report}"
    );
    let seq = cluster.meta().await.seq.to_string();
    let shown = settings.run(&["log", "show", "--seq", &seq]).await.assert_success();
    assert!(
        shown.stdout.contains("fact 1  order") && shown.stdout.contains("user-7"),
        "{}",
        shown.stdout
    );
    let skipped = settings.run(&["log", "skip", "--seq", &seq, "--fact", "1"]).await;
    assert!(skipped.code == 1 && skipped.stderr.contains("not halted"), "{skipped:#?}");

    // A rebuild beside the serving instance, which continues afterwards.
    let epoch = cluster.meta().await.epoch;
    settings.run(&["rebuild"]).await.assert_success();
    instance.until_ready().await;
    assert!(cluster.meta().await.epoch > epoch);
    eventually("orders are taken", || async {
        (instance.send(&order).await.status == 201).then_some(())
    })
    .await;
    cluster.assert_consistent().await;

    // An audit that finds a difference reports it and fails.
    instance.stop().await;
    truth::execute(
        &cluster.pool,
        "UPDATE wallets SET balance = balance + 1 WHERE user_id = 'user-9'",
    )
    .await;
    let audit = settings.run(&["audit", "--wait", "1s"]).await;
    assert!(audit.code == 1 && audit.stdout.contains("user-9"), "{audit:#?}");
}

#[tokio::test]
async fn the_help_lists_every_setting() {
    let settings = Settings::default().with("RUSHGATE_JWT_SECRET", SECRET);
    let help = settings.run(&["serve", "--help"]).await.assert_success().stdout;
    for name in [
        "LISTEN",
        "OPS_LISTEN",
        "REDIS_URL",
        "DATABASE_URL",
        "AMQP_URL",
        "JWT_SECRET",
        "JWT_JWKS_FILE",
        "ROLES",
        "CELLS",
        "ACK",
        "DURABILITY",
        "TIMEZONE",
    ] {
        let flag = name.to_lowercase().replace('_', "-");
        let listed =
            ["]", "="].iter().any(|end| help.contains(&format!("[env: RUSHGATE_{name}{end}")));
        assert!(listed, "{name} is not in {help}");
        assert!(help.contains(&format!("--{flag} ")), "{flag} is not in {help}");
    }
    assert!(!help.contains(SECRET), "a secret is in {help}");
}

#[tokio::test]
async fn a_postgresql_that_went_back_in_time_opens_nothing_by_itself() {
    let mut cluster = Cluster::servers().await;
    let instance = cluster.start().await;
    instance.done(&Request::put_product("mug", 10_000, 10)).await;
    instance.done(&Request::charge("ann", 100_000)).await;
    instance.done(&Request::order("ann", "mug", 1)).await;
    cluster.assert_consistent().await;
    instance.stop().await;
    let original = cluster.settings.get("RUSHGATE_DATABASE_URL").to_owned();
    let backup = truth::copy_of(&cluster.pool).await;
    cluster.use_database(&original);

    let instance = cluster.start().await;
    let order = Request::order("ann", "mug", 1);
    let after_backup = instance.send(&order).await.text("order_id");
    cluster.assert_consistent().await;
    instance.stop().await;
    cluster.use_database(&backup);

    let instance = Instance::listening(&cluster.settings).await;
    let reason = eventually("the cell is closed", || async {
        let (status, body) = instance.readiness().await;
        (status == 503).then(|| body["reasons"][0].as_str().unwrap().to_owned())
    })
    .await;
    for part in ["PostgreSQL went back in time", "rushgate rebuild", "RUSHGATE_DATABASE_URL"] {
        assert!(reason.contains(part), "{reason}");
        assert!(instance.said(part), "{:#?}", instance.log());
    }
    let refused = instance.send(&order).await;
    assert_eq!((refused.status, refused.code()), (503, "gate-unavailable"));
    let status = instance.done(&Request::get("/v1/admin/status").admin()).await;
    assert_eq!(status["cells"][0]["state"], "closed");
    assert!(
        status["cells"][0]["reason"].as_str().unwrap().contains("rushgate rebuild"),
        "{status}"
    );
    // A closed cell cannot be compared.
    assert_eq!(cluster.settings.run(&["audit", "--wait", "0s"]).await.code, 2);
    // Neither a second instance nor waiting changes that.
    let second = Instance::listening(&cluster.settings).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((instance.readiness().await.0, second.readiness().await.0), (503, 503));
    assert_eq!(cluster.meta().await.epoch, 1);

    cluster.settings.run(&["rebuild"]).await.assert_success();
    instance.until_ready().await;
    second.until_ready().await;
    instance.done(&order).await;
    // What the log still had is not lost.
    instance.done(&Request::get(format!("/v1/orders/{after_backup}"))).await;
    cluster.assert_consistent().await;
    assert_eq!(cluster.number("SELECT count(*) FROM orders").await, 3);
}

#[tokio::test]
async fn a_token_needs_no_server() {
    let settings = Settings::default().with("RUSHGATE_JWT_SECRET", SECRET);
    let token = settings.run(&["token", "--sub", "ann", "--scope", "shop"]).await.assert_success();
    assert_eq!(token.stdout.trim().split('.').count(), 3, "{}", token.stdout);
    let refused = Settings::default().run(&["token", "--sub", "ann", "--scope", "shop"]).await;
    assert!(refused.code != 0 && refused.stderr.contains("--jwt-secret"), "{refused:#?}");
}

#[tokio::test]
async fn the_version_has_its_commit() {
    let cluster = Settings::default();
    let said = cluster.run(&["--version"]).await.assert_success().stdout;
    let version = format!("rushgate {} (", env!("CARGO_PKG_VERSION"));
    assert!(said.starts_with(&version) && said.trim_end().ends_with(')'), "{said}");

    // Runs the build script as in a release build.
    let folder = std::env::temp_dir().join(format!("rushgate-build-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let root = env!("CARGO_MANIFEST_DIR");
    let done = |mut command: Command| {
        let output =
            command.env("CARGO_MANIFEST_DIR", root).env("PROFILE", "release").output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let mut compile = Command::new("rustc");
    compile
        .args(["--edition=2024", "-o"])
        .arg(folder.join("build"))
        .arg(format!("{root}/build.rs"));
    done(compile);
    if Path::new(root).join(".git").exists() {
        let mut head = Command::new("git");
        head.args(["-C", root, "rev-parse", "--short=12", "HEAD"]);
        let built = done(Command::new(folder.join("build")));
        assert!(built.contains(&format!("({}", done(head).trim())), "{built}");
    }
    let mut named = Command::new(folder.join("build"));
    named.env("RUSHGATE_COMMIT", "0123456789ab");
    assert!(done(named).contains("(0123456789ab)"));
    std::fs::remove_dir_all(folder).unwrap();
}
