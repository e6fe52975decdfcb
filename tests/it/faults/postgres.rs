//! PostgreSQL is killed during a commit, is away for a long time, or is restored from a backup.
//!
//! These servers run without fsync. When PostgreSQL acknowledges a commit, the kernel has the data
//! (the reconciler insists on that), and the kernel survives a kill -9. Fsync protects against
//! crashes of the machine, which these tests do not cause.

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use sqlx::{Connection, PgConnection, PgPool};

use super::{Outcome, Setup, Trial, at_length};
use crate::cluster::{Cluster, Instance, Private, Request, eventually};
use crate::history::aof;
use crate::truth::execute;

/// Kills under load. There are more if none of them hit a transaction.
const KILLS: usize = 3;
const KILLS_AT_MOST: usize = 30;
/// How long PostgreSQL is away.
const AWAY: Duration = Duration::from_secs(5);
const AWAY_AT_LENGTH: Duration = Duration::from_secs(60);
/// Maximum number of entries that PostgreSQL may be behind while it is away.
const LOG_LIMIT: u64 = 80;

async fn begin(seed: u64, settings: &[(&'static str, String)]) -> Trial {
    let private = Private { postgres: true, ..Private::default() };
    // While PostgreSQL is away, clients should not spend their time waiting for it.
    let mut settings = settings.to_vec();
    settings.push(("RUSHGATE_TRUTH_TIMEOUT_MS", "300".to_owned()));
    Trial::begin(seed, Setup { private, settings, ..Setup::default() }).await
}

fn server(cluster: &Cluster) -> &rushgate_local_servers::PostgresServer {
    cluster.postgres.as_ref().unwrap()
}

/// The process titles of PostgreSQL, as `ps` shows them.
fn titles(cluster: &Cluster) -> Vec<String> {
    let pid = server(cluster).pid().unwrap();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let title = |pid: &str| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    children
        .split_whitespace()
        .map(|pid| String::from_utf8_lossy(&title(pid)).into_owned())
        .collect()
}

/// Whether a session has a transaction open. Only the reconciler opens transactions, inserts,
/// copies and commits.
fn in_a_transaction(cluster: &Cluster) -> bool {
    let titles = titles(cluster);
    titles.iter().any(|title| {
        ["idle in transaction", "INSERT", "COPY", "COMMIT"]
            .iter()
            .any(|doing| title.trim_end_matches(['\0', ' ']).ends_with(doing))
    })
}

/// kill -9 all of PostgreSQL at random moments, many times.
pub async fn postgres_killed(seed: u64) -> Outcome {
    let mut trial = begin(seed, &[]).await;
    let (mut kills, mut inside) = (0, 0);
    while kills < KILLS || inside == 0 {
        assert!(kills < KILLS_AT_MOST, "no kill has hit a transaction");
        trial.a_while().await;
        server(&trial.cluster).pause();
        inside += usize::from(in_a_transaction(&trial.cluster));
        server(&trial.cluster).kill().await;
        kills += 1;
        trial.a_while().await;
        server(&trial.cluster).restart().await.unwrap();
        trial.settled().await;
    }
    println!("{inside} of {kills} kills have hit a transaction");
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.epochs, 1, "nothing was rebuilt");
    outcome
}

/// kill -9 PostgreSQL during a commit: once before the commit is in its log, and once after, before
/// the reconciler gets the answer.
pub async fn postgres_killed_in_commit(seed: u64) -> Outcome {
    let mut trial = begin(seed, &[]).await;
    let pool = trial.cluster.pool.clone();
    execute(&pool, HOLD_COMMITS).await;
    trial.a_while().await;
    let mut holder =
        PgConnection::connect(trial.cluster.settings.get("RUSHGATE_DATABASE_URL")).await.unwrap();
    sqlx::query("SELECT pg_advisory_lock(77)").execute(&mut holder).await.unwrap();
    commit_waits(&pool, "advisory").await;
    let (before, after) = cut_off(&trial).await;
    assert_eq!(before, after, "what was not committed is gone");
    trial.settled().await;

    trial.a_while().await;
    execute(&pool, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
    execute(&pool, "SELECT pg_reload_conf()").await;
    commit_waits(&pool, "SyncRep").await;
    // Takes effect at the restart.
    execute(&pool, "ALTER SYSTEM RESET synchronous_standby_names").await;
    let (before, after) = cut_off(&trial).await;
    assert!(
        before.0 == after.0 && before.1 < after.1,
        "it was committed, and nobody was told: {before:?} {after:?}"
    );
    trial.settled().await;
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.epochs, 1, "nothing was rebuilt");
    outcome
}

/// Kills and restarts PostgreSQL, with the instances frozen, so that any change of the cursor comes
/// from the killed transaction. Returns the cursor before and after.
async fn cut_off(trial: &Trial) -> ((u64, u64), (u64, u64)) {
    let before = cursor(&trial.cluster.pool).await;
    for instance in trial.fleet.all() {
        instance.freeze().await;
    }
    server(&trial.cluster).kill().await;
    server(&trial.cluster).restart().await.unwrap();
    let after = cursor(&trial.cluster.pool).await;
    for instance in trial.fleet.all() {
        instance.signal(Signal::SIGCONT);
    }
    (before, after)
}

/// Epoch and number of the last entry that PostgreSQL has applied.
async fn cursor(pool: &PgPool) -> (u64, u64) {
    let sql = "SELECT epoch, seq FROM cell_cursors";
    let (epoch, seq): (i64, i64) = sqlx::query_as(sql).fetch_one(pool).await.unwrap();
    (epoch.cast_unsigned(), seq.cast_unsigned())
}

/// A trigger that makes the reconciler's transactions wait at their end while another session holds
/// lock 77.
const HOLD_COMMITS: &str = "
    CREATE FUNCTION hold_commit() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock_shared(77);
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER hold_commit AFTER UPDATE ON cell_cursors DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION hold_commit();";

/// Waits until the reconciler's COMMIT waits for this event.
async fn commit_waits(pool: &PgPool, waits_for: &str) {
    eventually("a COMMIT waits", || async {
        let sql = "SELECT pid FROM pg_stat_activity
            WHERE application_name = 'rushgate-reconciler' AND query = 'COMMIT' AND wait_event = $1";
        let found: Option<i32> = sqlx::query_scalar(sql).bind(waits_for).fetch_optional(pool).await.unwrap();
        found.map(|_| ())
    })
    .await;
}

/// PostgreSQL is away for a minute (short form: for some seconds, with a small log limit).
pub async fn postgres_away(seed: u64) -> Outcome {
    let mut trial = begin(seed, &[("RUSHGATE_LOG_LIMIT", LOG_LIMIT.to_string())]).await;
    let away = if at_length() { AWAY_AT_LENGTH } else { AWAY };
    trial.a_while().await;
    let (since, since_us) = (Instant::now(), trial.load.now_us());
    let hangs = trial.rng.bool();
    match hangs {
        true => server(&trial.cluster).pause(),
        false => server(&trial.cluster).kill().await,
    }
    let before = trial.load.successes();
    let full = eventually("the gate serves until the log limit", || async {
        let meta = trial.cluster.meta().await;
        (meta.seq - meta.applied >= LOG_LIMIT).then_some(meta)
    })
    .await;
    assert!(trial.load.successes() > before, "it went on for a while");
    for instance in trial.fleet.all() {
        let answer = instance.send(&Request::charge("somebody", 1)).await;
        assert_eq!((answer.status, answer.code(), answer.retry_after), (503, "backlog-full", true));
        let balance =
            instance.done(&Request::get("/v1/users/somebody/wallet")).await["balance"].clone();
        assert_eq!(balance, 0, "what only the gate knows can be read");
        let (status, body) = instance.readiness().await;
        assert!(status == 503 && told(&body["reasons"], "backlog-full"), "{body}");
    }
    tokio::time::sleep(away.saturating_sub(since.elapsed())).await;
    let meta = trial.cluster.meta().await;
    assert_eq!((meta.seq, meta.seq - meta.applied), (full.seq, LOG_LIMIT), "not one entry more");
    let troubles = trial.load.troubles(since_us);
    assert!(
        troubles.keys().all(|code| ["backlog-full", "truth-unavailable"].contains(&code.as_str())),
        "{troubles:?}"
    );

    match hangs {
        true => server(&trial.cluster).resume(),
        false => server(&trial.cluster).restart().await.unwrap(),
    }
    trial.serves_within(Duration::from_secs(30)).await;
    trial.settled().await;
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.epochs, 1, "nothing was rebuilt");
    outcome
}

fn told(list: &Value, part: &str) -> bool {
    list.as_array().is_some_and(|all| all.iter().any(|text| text.as_str().unwrap().contains(part)))
}

/// A copy of PostgreSQL's files.
struct Backup(PathBuf, PathBuf);

impl Backup {
    /// PostgreSQL must not be running.
    fn of(cluster: &Cluster) -> Self {
        let folder = server(cluster).folder();
        let elsewhere = folder.join("elsewhere");
        let data = if elsewhere.exists() { elsewhere.join("data") } else { folder.join("data") };
        let backup = Self(data.clone(), data.with_extension("backup"));
        run("cp", &["-a", path(&backup.0), path(&backup.1)]);
        backup
    }

    /// PostgreSQL must not be running.
    fn restore(self) {
        run("rm", &["-r", path(&self.0)]);
        run("mv", &[path(&self.1), path(&self.0)]);
    }
}

fn path(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

fn run(program: &str, args: &[&str]) {
    assert!(Command::new(program).args(args).status().unwrap().success(), "{program} {args:?}");
}

/// PostgreSQL is restored to an older state, and the log still reaches back to it.
pub async fn postgres_restored(seed: u64) -> Outcome {
    let mut trial = begin(seed, &[]).await;
    go_back(&mut trial, async |_| ()).await;
    trial.serves_within(Duration::from_secs(10)).await;
    let (outcome, _) = trial.finish().await;
    assert!(
        outcome.epochs > 1 && outcome.gone == 0,
        "the log brought back what the backup lacked: {outcome:?}"
    );
    outcome
}

/// PostgreSQL is restored to a state older than the log: the decisions in between are lost.
pub async fn postgres_restored_beyond_the_log(seed: u64) -> Outcome {
    // The lost decisions must not have been delivered, or no message could be matched to its order.
    let mut trial = begin(seed, &[("RUSHGATE_ROLES", "api,reconciler".to_owned())]).await;
    let since_us = go_back(&mut trial, async |trial| {
        let log = rushgate::redis::keys::Keys::new(0, 1).log();
        let _: u64 =
            fred::interfaces::StreamsInterface::xtrim(&trial.cluster.raw, log, ("MAXLEN", "=", 0))
                .await
                .unwrap();
    })
    .await;
    trial.forgive_since(since_us);
    let _relay = trial.cluster.start_roles("relay").await;
    trial.serves_within(Duration::from_secs(10)).await;
    let (outcome, _) = trial.finish().await;
    assert!(
        outcome.epochs > 1 && outcome.gone > 0,
        "what came after the backup is gone: {outcome:?}"
    );
    outcome
}

/// PostgreSQL is restored to a time before the last rebuild, so the log of the present epoch cannot
/// be applied. The log is saved before it is removed, and the file contains everything that was
/// acknowledged from it.
pub async fn postgres_restored_to_an_earlier_epoch(seed: u64) -> Outcome {
    // The lost decisions must not have been delivered, or no message could be matched to its order.
    let mut trial = begin(seed, &[("RUSHGATE_ROLES", "api,reconciler".to_owned())]).await;
    let file = trial.cluster.redis.folder().join("lost.jsonl");
    let epoch = AtomicU64::new(0);
    let note_epoch =
        async |trial: &Trial| epoch.store(trial.cluster.meta().await.epoch, Ordering::Relaxed);
    let command = ["rebuild", "--report", file.to_str().unwrap()];
    let since_us = go_back_with(&mut trial, note_epoch, true, &command).await;
    let epoch = epoch.load(Ordering::Relaxed);
    assert!(epoch > 1, "PostgreSQL went back to before a rebuild");
    trial.forgive_since(since_us);
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let saved: HashSet<String> =
        lines.iter().filter_map(|line| Some(line["tip"].as_str()?.to_owned())).collect();
    let listed: HashSet<String> =
        lines.iter().filter_map(|line| Some(line["id"].as_str()?.to_owned())).collect();
    let held: Vec<_> = aof::entries(trial.cluster.redis.folder())
        .into_iter()
        .filter(|entry| entry.epoch == epoch)
        .collect();
    assert!(
        !held.is_empty() && held.iter().all(|entry| saved.contains(&entry.tip)),
        "all of it is saved"
    );
    let told: Vec<String> = held
        .iter()
        .flat_map(|entry| entry.decode().unwrap().facts.told())
        .filter_map(|fact| Some(fact.id?.to_string()))
        .collect();
    assert!(
        !told.is_empty() && told.iter().all(|id| listed.contains(id)),
        "and each answer listed"
    );
    // One of the instances counts them.
    eventually("what is gone is counted", || async {
        let mut counted = 0.0;
        for instance in trial.fleet.all() {
            let metrics = instance.ops("/metrics").await.1;
            let lost =
                metrics.lines().filter(|line| line.starts_with("rushgate_decisions_lost_total{"));
            counted +=
                lost.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>();
        }
        (counted >= told.len() as f64).then_some(())
    })
    .await;
    let _relay = trial.cluster.start_roles("relay").await;
    trial.serves_within(Duration::from_secs(30)).await;
    let (outcome, _) = trial.finish().await;
    assert!(outcome.gone > 0, "what came after the backup is gone: {outcome:?}");
    outcome
}

/// Takes a backup, continues, and restores the backup. The gate must stay closed until an operator
/// runs `rushgate rebuild`. Returns the time since which decisions may be lost.
async fn go_back(trial: &mut Trial, meanwhile: impl AsyncFn(&Trial)) -> u64 {
    go_back_with(trial, meanwhile, false, &["rebuild"]).await
}

/// The same; with `next_epoch`, there is a rebuild after the backup, and `command` reopens the
/// gate.
async fn go_back_with(
    trial: &mut Trial,
    meanwhile: impl AsyncFn(&Trial),
    next_epoch: bool,
    command: &[&str],
) -> u64 {
    trial.a_while().await;
    let since_us = trial.settled().await;
    server(&trial.cluster).stop().await;
    let backup = Backup::of(&trial.cluster);
    server(&trial.cluster).restart().await.unwrap();
    trial.a_while().await;
    if next_epoch {
        trial.cluster.settings.run(&["rebuild"]).await.assert_success();
        trial.a_while().await;
    }
    trial.settled().await;
    trial.a_while().await;
    server(&trial.cluster).stop().await;
    meanwhile(trial).await;
    backup.restore();
    server(&trial.cluster).restart().await.unwrap();

    for instance in trial.fleet.all() {
        eventually("the gate is closed", || async {
            let (status, body) = instance.readiness().await;
            (status == 503 && told(&body["reasons"], "rushgate rebuild")).then_some(())
        })
        .await;
    }
    assert!(
        trial.fleet.all().iter().any(|instance| instance.said(INSTRUCTION)),
        "the log tells what to do"
    );
    // It stays closed after a restart and under another leader.
    for number in 0..trial.fleet.all().len() {
        let instance = Instance::listening(&trial.settings).await;
        trial.fleet.replace(number, instance);
    }
    let instance = trial.fleet.get(0);
    eventually("another leader looks at it", || async {
        trial.fleet.all().iter().any(|instance| instance.said(INSTRUCTION)).then_some(())
    })
    .await;
    let answer = instance.send(&Request::charge("somebody", 1)).await;
    assert_eq!((answer.status, answer.code()), (503, "gate-unavailable"));
    let status = instance.done(&Request::get("/v1/admin/status").admin()).await;
    assert!(
        status["cells"][0]["reason"].as_str().unwrap().contains("rushgate rebuild"),
        "{status}"
    );
    assert_eq!(status["cells"][0]["state"], "closed");

    trial.cluster.settings.run(command).await.assert_success();
    since_us
}

const INSTRUCTION: &str = "should be the truth from now on, run `rushgate rebuild`";
