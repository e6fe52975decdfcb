//! A Redis that answers but refuses writes: nothing is decided, and readiness, status, metrics and
//! log report it.

use fred::prelude::*;

use crate::cluster::{Cluster, Instance, Private, Request, eventually};

/// The number of log lines with this text.
fn said(instance: &Instance, text: &str) -> usize {
    instance.log().iter().filter(|line| line.contains(text)).count()
}

async fn command(cluster: &Cluster, words: &str) {
    let mut words = words.split(' ').map(|word| word.replace("''", "").replace('_', " "));
    let name = fred::types::CustomCommand::new(words.next().unwrap(), None::<u16>, false);
    let _: Value = cluster.raw.custom(name, words.collect::<Vec<_>>()).await.unwrap();
}

/// Checks the reports while Redis is as `begin` leaves it, and after `end`. No decision is
/// requested first: an instance without traffic must notice both the beginning and the end.
async fn refuses(
    cluster: &Cluster,
    instance: &Instance,
    reason: &str,
    begin: &[&str],
    end: &[&str],
) {
    let (begun, ended) = ("Redis refuses writes", "Redis takes writes again");
    let before = (said(instance, begun), said(instance, ended));
    for words in begin {
        command(cluster, words).await;
    }
    eventually(&format!("/readyz says {reason}"), || async {
        let (status, body) = instance.readiness().await;
        let told = body["reasons"].to_string().to_lowercase();
        (status == 503 && told.contains("refuses writes") && told.contains(reason)).then_some(())
    })
    .await;
    let status = instance.done(&Request::get("/v1/admin/status").admin()).await;
    let cell = &status["cells"][0];
    let why = cell["writes_refused"].as_str().unwrap().to_lowercase();
    assert!(cell["state"] == "open" && why.contains(reason), "{status}");
    let series = |value: u8| {
        format!("rushgate_redis_refuses_writes{{cell=\"0\",reason=\"{reason}\"}} {value}")
    };
    eventually("the metric says so", || async {
        instance.ops("/metrics").await.1.contains(&series(1)).then_some(())
    })
    .await;
    for _ in 0..3 {
        let refused = instance.send(&Request::charge("ann", 1)).await;
        assert_eq!((refused.status, refused.code()), (503, "gate-unavailable"), "{refused:?}");
    }
    instance.done(&Request::get("/v1/users/ann/wallet")).await;

    for words in end {
        command(cluster, words).await;
    }
    instance.until_ready().await;
    eventually("the metric says so", || async {
        instance.ops("/metrics").await.1.contains(&series(0)).then_some(())
    })
    .await;
    instance.done(&Request::charge("ann", 1)).await;
    let status = instance.done(&Request::get("/v1/admin/status").admin()).await;
    assert!(status["cells"][0]["writes_refused"].is_null(), "{status}");
    let after = (said(instance, begun), said(instance, ended));
    assert_eq!(
        after,
        (before.0 + 1, before.1 + 1),
        "{reason}: one line when it begins, one when it ends"
    );
}

#[tokio::test]
async fn a_redis_that_takes_no_writes_is_told_of_wherever_operators_look() {
    let redis_config = vec!["enable-protected-configs local".to_owned()];
    let cluster = Cluster::with(Private { redis_config, ..Private::default() }).await;
    // The reconciler runs separately, so that its log lines are not counted.
    let _reconciler = cluster.start_roles("reconciler").await;
    let instance = cluster.start_roles("api").await;
    instance.done(&Request::charge("ann", 1)).await;
    // Makes the snapshot fail: its file name is taken by a folder.
    std::fs::create_dir(cluster.redis.folder().join("in-the-way")).unwrap();
    let snapshot = ["CONFIG SET dbfilename in-the-way", "CONFIG SET save 3600_1", "BGSAVE"];
    refuses(&cluster, &instance, "misconf", &snapshot, &["CONFIG SET save ''"]).await;
    refuses(&cluster, &instance, "oom", &["CONFIG SET maxmemory 1"], &["CONFIG SET maxmemory 0"])
        .await;
    let (begin, end) =
        (["CONFIG SET min-replicas-to-write 1"], ["CONFIG SET min-replicas-to-write 0"]);
    refuses(&cluster, &instance, "noreplicas", &begin, &end).await;
    refuses(&cluster, &instance, "readonly", &["REPLICAOF 127.0.0.1 1"], &["REPLICAOF NO ONE"])
        .await;
}

#[tokio::test]
async fn snapshots_are_warned_of_at_start() {
    let warning = "a snapshot that fails would make Redis refuse every decision";
    for (config, warned) in [
        (vec![], false),
        (vec!["save 3600 1"], true),
        (vec!["save 3600 1", "stop-writes-on-bgsave-error no"], false),
    ] {
        let redis_config = config.iter().map(ToString::to_string).collect();
        let cluster = Cluster::with(Private { redis_config, ..Private::default() }).await;
        let instance = cluster.start_roles("api,reconciler").await;
        assert_eq!(instance.said(warning), warned, "{config:?}");
    }
}
