//! The process log: JSON for programs if configured, otherwise readable for people, and quiet
//! during an outage.

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::Value;

use crate::cluster::*;

/// Checks that every line is JSON with a level and a message. Returns the messages.
fn messages(stderr: &str) -> Vec<String> {
    let read = |line: &str| -> Value {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("no JSON ({error}): {line}"))
    };
    let lines = stderr.lines().map(read);
    lines
        .map(|line| {
            assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
            line["fields"]["message"].as_str().unwrap().to_owned()
        })
        .collect()
}

#[tokio::test]
async fn where_json_is_set_everything_is_json() {
    let cluster = Cluster::servers().await;
    let settings = &cluster.settings; // which ask for JSON
    let instance = cluster.start().await;
    for line in instance.log() {
        // Values must not be printed in Rust's debug format.
        assert!(
            !line.contains("Some(") && !line.contains("None") && !line.contains("[Api"),
            "{line}"
        );
    }
    messages(&instance.log().join("\n"));
    let rebuilt = settings.run(&["rebuild"]).await.assert_success();
    assert!(
        messages(&rebuilt.stderr).iter().any(|said| said.contains("rebuild")),
        "{}",
        rebuilt.stderr
    );
    instance.until_ready().await;
    instance.stop().await;

    let nowhere = settings.with("RUSHGATE_REDIS_URL", "redis://127.0.0.1:1");
    for (settings, args, part) in [
        (&nowhere, &["serve"][..], "RUSHGATE_REDIS_URL"),
        (&nowhere, &["rebuild"], "RUSHGATE_REDIS_URL"),
        (&nowhere, &["seed"], "RUSHGATE_REDIS_URL"),
        (&settings.with("RUSHGATE_LOG_LIMIT", "many"), &["serve"], "--log-limit"),
        (settings, &["serve", "--no-such-flag"], "--no-such-flag"),
        (&settings.without("RUSHGATE_JWT_SECRET"), &["serve"], "RUSHGATE_JWT_SECRET"),
    ] {
        let ended = settings.run(args).await;
        let said = messages(&ended.stderr);
        assert!(
            ended.code != 0 && said.last().is_some_and(|said| said.contains(part)),
            "{args:?}: {ended:#?}"
        );
    }
}

#[tokio::test]
async fn in_a_pipe_the_log_has_no_colour() {
    let cluster = Cluster::servers().await;
    let settings = cluster.settings.with("RUSHGATE_LOG_FORMAT", "pretty");
    let redis = settings
        .with("RUSHGATE_REDIS_URL", "redis://127.0.0.1:1")
        .with("RUSHGATE_JWT_SECRET", "short");
    let ended = redis.run(&["serve"]).await;
    assert!(
        ended.stderr.contains("WARN") && !ended.stderr.contains('\u{1b}'),
        "{:?}",
        ended.stderr
    );
}

#[tokio::test]
async fn an_outage_is_told_once_and_its_end() {
    let cluster = Cluster::with(Private { postgres: true, ..Private::default() }).await;
    let instance =
        Instance::ready(&cluster.settings.with("RUSHGATE_TRUTH_TIMEOUT_MS", "300")).await;
    instance.done(&Request::charge("ann", 1)).await;
    cluster.caught_up().await;
    let postgres = cluster.postgres.as_ref().unwrap();
    postgres.stop().await;
    eventually("it is told", || async {
        instance.said("the reconciler starts over").then_some(())
    })
    .await;
    instance.done(&Request::charge("ann", 1)).await;
    let read = Request::get("/v1/products/popular");
    for _ in 0..20 {
        let refused = instance.send(&read).await;
        assert_eq!(refused.status, 503, "{refused:?}");
        tokio::time::sleep(Duration::from_millis(300)).await; // enough for a dozen retries
    }
    for what in [
        "the reconciler starts over",
        "decisions of the gate cannot be compared",
        "a read from PostgreSQL failed",
    ] {
        let told = instance.log().iter().filter(|line| line.contains(what)).count();
        assert!((1..=4).contains(&told), "{what}: {told} times: {:#?}", instance.log());
    }
    postgres.restart().await.unwrap();
    cluster.caught_up().await;
    eventually("its end is told", || async {
        instance.said("the reconciler starts over: over after").then_some(())
    })
    .await;
    cluster.assert_consistent().await;
    instance.stop().await;
}

/// Redis stands still while batches of several scripts are on their way to it.
#[tokio::test]
async fn a_gate_that_does_not_answer_is_told_once_and_its_end() {
    let cluster = Cluster::servers().await;
    let instance =
        Instance::ready(&cluster.settings.with("RUSHGATE_REQUEST_TIMEOUT_MS", "1000")).await;
    instance.done(&Request::put_product("mug", 100, 50)).await;
    instance.done(&Request::charge("ann", 1_000)).await;
    for _ in 0..2 {
        cluster.redis.pause();
        let failed = Instant::now();
        while failed.elapsed() < Duration::from_secs(6) {
            let requests = [
                Request::charge("ann", 1),
                Request::order("ann", "mug", 1),
                Request::restock("mug", 1),
                Request::get("/v1/users/ann/wallet"),
                Request::get("/v1/products/mug"),
            ];
            join_all(requests.iter().map(|request| instance.send(request))).await;
        }
        cluster.redis.resume();
        instance.until_ready().await;
        eventually("decided and read again", || async {
            let charged = instance.send(&Request::charge("ann", 1)).await;
            let read = instance.send(&Request::get("/v1/users/ann/wallet")).await;
            (charged.status == 201 && read.status == 200).then_some(())
        })
        .await;
    }
    let told = |text: &str| instance.log().iter().filter(|line| line.contains(text)).count();
    for what in ["no answer from the gate to decisions", "no answer from the gate to reads"] {
        let over = told(&format!("{what}: over after"));
        assert_eq!(over, 2, "{what}: its end, twice: {:#?}", instance.log());
        assert!((2..=4).contains(&(told(what) - over)), "{what}: {:#?}", instance.log());
    }
    assert_eq!(told("no answer from the gate\""), 0, "{:#?}", instance.log());
    instance.stop().await;
}
