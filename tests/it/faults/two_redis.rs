//! Two Redis servers with one PostgreSQL. Both are reachable and have instances, but only one of
//! them is the gate.

use std::sync::Arc;

use fred::cmd;
use fred::prelude::*;
use jiff::Timestamp;
use nix::sys::signal::Signal;
use rushgate::redis::control::server_id;
use rushgate::redis::meta::Meta;
use rushgate_local_servers::{DataFolder, RedisOptions, RedisServer};

use super::{Outcome, Setup, Trial};
use crate::cluster::{Instance, Settings, eventually};
use crate::history::{aof, collect};

/// Starts another Redis with these configuration lines.
async fn another(config: Vec<String>) -> (RedisServer, Client) {
    let mut options = RedisOptions::new(DataFolder::Scratch);
    options.extra_config = collect::redis_config();
    options.extra_config.extend(config);
    let redis = RedisServer::start(options).await.unwrap();
    let raw = rushgate::redis::connect(&redis.url()).await.unwrap();
    (redis, raw)
}

fn on(settings: &Settings, redis: &RedisServer, roles: &str) -> Settings {
    settings.with("RUSHGATE_REDIS_URL", redis.url()).with("RUSHGATE_ROLES", roles)
}

/// The leader on the first Redis stops, and an instance with another RUSHGATE_REDIS_URL, an empty
/// Redis, leads. Instances on the first Redis, one of them possibly frozen meanwhile, decide
/// nothing more.
pub async fn two_redis(seed: u64) -> Outcome {
    let (mut trial, follower) = Trial::apart(seed, Setup::default()).await;
    trial.a_while().await;
    let since_us = trial.settled().await;
    let (second, raw) = another(vec![]).await;
    let frozen = trial.rng.bool();
    if frozen {
        trial.fleet.get(1).freeze().await;
    }
    follower.stop().await;
    let new =
        Instance::listening(&on(&trial.settings, &second, "api,reconciler,relay,scheduler")).await;
    let first = Old::replaced_by(&mut trial, second, raw, 2).await;
    let served_ms = serves(&mut trial, new).await;
    if frozen {
        trial.fleet.get(1).signal(Signal::SIGCONT);
    }
    first.is_fenced_off(&mut trial, served_ms).await;
    let meta = Meta::read(&first.raw, 0).await.unwrap();
    assert_eq!(
        (meta.epoch, meta.state.as_str()),
        (1, "closed"),
        "the instances there have closed it"
    );
    trial.forgive_since(since_us);
    let outcome = trial.finish_with_losses().await;
    assert_eq!(outcome.epochs, 2);
    outcome
}

/// A replica is promoted while its master keeps running. Each has instances, and the same epoch is
/// open on both.
pub async fn both_masters(seed: u64) -> Outcome {
    let (mut trial, follower) = Trial::apart(seed, Setup::default()).await;
    let master = format!("replicaof 127.0.0.1 {}", trial.cluster.redis.port());
    let (second, raw) = another(vec![master, "repl-diskless-sync-delay 0".into()]).await;
    eventually("the replica follows", || async {
        let info: String = raw.custom(cmd!("INFO"), Vec::<String>::new()).await.unwrap();
        let all = ["master_link_status:up", "aof_enabled:1", "aof_rewrite_in_progress:0"];
        all.iter().all(|line| info.lines().any(|said| said == *line)).then_some(())
    })
    .await;
    trial.a_while().await;
    let since_us = trial.settled().await;
    let _: String = raw.custom(cmd!("REPLICAOF"), vec!["NO", "ONE"]).await.unwrap();
    let there = Instance::listening(&on(&trial.settings, &second, "api")).await;
    says_why(&there).await;
    trial.a_while().await;
    // PostgreSQL may have all, a part or none of what the first Redis decided meanwhile. So the
    // promoted one continues or is rebuilt.
    follower.stop().await;
    trial.a_while_unfollowed().await;
    let follower =
        Instance::listening(&on(&trial.settings, &second, "reconciler,relay,scheduler")).await;
    let first = Old::replaced_by(&mut trial, second, raw, 1).await;
    let served_ms = serves(&mut trial, there).await;
    first.is_fenced_off(&mut trial, served_ms).await;
    trial.forgive_since(since_us);
    let outcome = trial.finish_with_losses().await;
    drop(follower);
    outcome
}

/// Makes `new` one of the instances that clients use. Returns the time at which it was ready, in
/// milliseconds of the wall clock.
async fn serves(trial: &mut Trial, new: Instance) -> i64 {
    new.until_ready().await;
    let served_ms = Timestamp::now().as_millisecond();
    let first = trial.fleet.exchange(0, Arc::new(new));
    trial.retired.push(first);
    served_ms
}

/// Waits until the instance reports that its Redis is not the gate.
async fn says_why(instance: &Instance) {
    eventually("/readyz says why", || async {
        let (status, body) = instance.readiness().await;
        let reasons = body["reasons"].to_string();
        let known = ["PostgreSQL names another Redis", "PostgreSQL is in epoch", "taking over"];
        (status == 503 && known.iter().any(|known| reasons.contains(known))).then_some(())
    })
    .await;
}

/// The Redis that was the gate and is still running.
struct Old {
    redis: RedisServer,
    raw: Client,
}

impl Old {
    /// Waits until `second` is the gate, in this epoch or a later one, and makes it the trial's
    /// Redis.
    async fn replaced_by(trial: &mut Trial, second: RedisServer, raw: Client, epoch: u64) -> Self {
        let ours = server_id(&raw, 0).await.unwrap();
        assert!(ours.is_some());
        eventually("the second Redis is the gate", || async {
            let meta = Meta::read(&raw, 0).await.ok()?;
            let named: Option<String> = sqlx::query_scalar("SELECT gate FROM cell_cursors")
                .fetch_one(&trial.cluster.pool)
                .await
                .unwrap();
            (meta.state == "open" && meta.epoch >= epoch && named == ours).then_some(())
        })
        .await;
        trial.settings = trial.settings.with("RUSHGATE_REDIS_URL", second.url());
        trial.cluster.settings = trial.cluster.settings.with("RUSHGATE_REDIS_URL", second.url());
        Self {
            redis: std::mem::replace(&mut trial.cluster.redis, second),
            raw: std::mem::replace(&mut trial.cluster.raw, raw),
        }
    }

    /// Lets clients use an instance on the old Redis and one on the gate for a while. Only the gate
    /// may have decided anything.
    async fn is_fenced_off(&self, trial: &mut Trial, since_ms: i64) {
        says_why(&trial.fleet.get(1)).await;
        let refused = || trial.load.troubles(0).get("gate-unavailable").copied().unwrap_or(0);
        eventually("clients have asked on both sides", || async { (refused() > 20).then_some(()) })
            .await;
        let metrics = trial.fleet.get(1).ops("/metrics").await.1;
        assert!(metrics.contains("rushgate_cell_fenced{cell=\"0\"} 1"), "{metrics}");
        let written = aof::entries(self.redis.folder());
        let late =
            written.iter().filter(|entry| entry.decode().unwrap().decided_at >= since_ms).count();
        assert_eq!(late, 0, "decided on the old Redis while another was the gate");
        trial.elsewhere.extend(written);
    }
}
