//! PostgreSQL is lost and restored, or away for long.

use std::collections::HashSet;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nix::sys::signal::Signal;
use nix::unistd::{Uid, User as Account};
use rushgate_local_servers::PostgresServer;
use uuid::Uuid;

use super::book::{BookEnvironment, User, block};
use super::{BACKUPS, has_ended, ids_in};
use crate::cluster::{Instance, Private, eventually};
use crate::faults::{Outcome, PATIENCE, Setup, Trial};
use crate::history::aof;

/// Folders of the pages.
const DATA: &str = "/var/lib/postgresql/15/main";
const REDIS: &str = "/var/lib/redis";

/// Makes a folder for backups that PostgreSQL can write to, with the folder of the archive.
fn backups(under: &Path) -> PathBuf {
    let folder = under.join("backups");
    for part in [&folder, &folder.join("wal")] {
        std::fs::create_dir(part).unwrap();
        if Uid::effective().is_root() {
            let owner = Account::from_name("postgres").unwrap().unwrap();
            chown(part, Some(owner.uid.as_raw()), Some(owner.gid.as_raw())).unwrap();
        }
    }
    folder
}

fn server(trial: &Trial) -> &PostgresServer {
    trial.cluster.postgres.as_ref().unwrap()
}

/// The server's folder, at a path that PostgreSQL's user can reach.
fn base(trial: &Trial) -> PathBuf {
    let elsewhere = server(trial).folder().join("elsewhere");
    if elsewhere.exists() {
        elsewhere.canonicalize().unwrap()
    } else {
        server(trial).folder().to_owned()
    }
}

fn place(trial: &Trial, backups: &Path) -> BookEnvironment {
    BookEnvironment::new(&trial.settings)
        .folder(DATA, &base(trial).join("data"))
        .folder(BACKUPS, backups)
        .folder(REDIS, trial.cluster.redis.folder())
        .set("PGHOST", "127.0.0.1")
        .set("PGUSER", "postgres")
        .set("PGPORT", server(trial).port())
}

/// After a base backup and more orders, the disk is lost. PostgreSQL is restored from backup and
/// archive.
pub async fn restore_postgresql(seed: u64) -> Outcome {
    let private = Private { postgres: true, ..Private::default() };
    // Clients should not wait long for a PostgreSQL that is away.
    let settings = vec![("RUSHGATE_TRUTH_TIMEOUT_MS", "300".to_owned())];
    let mut trial = Trial::begin(seed, Setup { private, settings, ..Setup::default() }).await;
    let place = place(&trial, &backups(&base(&trial)));
    archive(&trial, &place).await;
    trial.a_while().await;
    place.run("base-backup", User::Postgres);
    trial.a_while().await;
    trial.settled().await;
    trial.a_while().await;

    server(&trial).kill().await;
    let (epoch, instances) = (trial.cluster.meta().await.epoch, trial.fleet.all());
    for instance in &instances {
        instance.signal(Signal::SIGTERM);
    }
    place.run("keep-log", User::Operator);
    place.run("restore", User::Postgres);
    server(&trial).restart().await.unwrap();
    place.run("wait-until-restored", User::Operator);
    place.run("rebuild", User::Operator);
    for number in 0..instances.len() {
        trial.fleet.replace(number, Instance::listening(&trial.settings).await);
    }
    trial.serves_within(PATIENCE).await;
    assert!(trial.open_epoch().await > epoch, "the gate was rebuilt");
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.gone, 0, "the log brought back what the archive lacked: {outcome:?}");
    outcome
}

/// PostgreSQL and the archive are lost, and the backup is from before a rebuild. The rebuild lists
/// what the log held and cannot be applied.
pub async fn restore_an_earlier_epoch(seed: u64) -> Outcome {
    let private = Private { postgres: true, ..Private::default() };
    let settings = vec![
        ("RUSHGATE_TRUTH_TIMEOUT_MS", "300".to_owned()),
        // A lost order must not have been delivered, or its message has no order.
        ("RUSHGATE_ROLES", "api,reconciler".to_owned()),
    ];
    let mut trial = Trial::begin(seed, Setup { private, settings, ..Setup::default() }).await;
    let backups = backups(&base(&trial));
    let place = place(&trial, &backups);
    trial.a_while().await;
    let since_us = trial.settled().await;
    place.run("base-backup", User::Postgres);
    trial.a_while().await;
    trial.cluster.settings.run(&["rebuild"]).await.assert_success();
    trial.a_while().await;
    trial.settled().await;
    trial.a_while().await;

    server(&trial).kill().await;
    let (epoch, instances) = (trial.cluster.meta().await.epoch, trial.fleet.all());
    for instance in &instances {
        instance.signal(Signal::SIGTERM);
    }
    for instance in &instances {
        has_ended(instance).await;
    }
    place.run("keep-log", User::Operator);
    place.run("restore", User::Postgres);
    server(&trial).restart().await.unwrap();
    place.run("wait-until-restored", User::Operator);
    place.run("rebuild-report", User::Operator);
    for number in 0..instances.len() {
        trial.fleet.replace(number, Instance::listening(&trial.settings).await);
    }
    let _relay = trial.cluster.start_roles("relay").await;
    trial.forgive_since(since_us);
    let listed = ids_in(&backups.join("lost.jsonl"), |_| true);
    let entries = aof::entries(trial.cluster.redis.folder());
    let told = |is_held: bool| -> HashSet<String> {
        let entries = entries.iter().filter(|entry| (entry.epoch == epoch) == is_held);
        let facts = entries.flat_map(|entry| entry.decode().unwrap().facts.told());
        facts.filter_map(|fact| Some(fact.id?.to_string())).collect()
    };
    let (held, of_earlier_epochs) = (told(true), told(false));
    assert!(!held.is_empty() && held.is_subset(&listed), "all that the log held is listed");
    trial.serves_within(PATIENCE).await;
    assert!(trial.open_epoch().await > epoch, "the gate was rebuilt");
    let (outcome, report) = trial.finish().await;
    assert!(outcome.gone > 0, "what came after the backup is gone: {outcome:?}");
    // What had been applied before the rebuild was only in PostgreSQL. Changes by staff have no id.
    let is_known = |id: &String| listed.contains(id) || of_earlier_epochs.contains(id);
    let unlisted: Vec<_> =
        report.gone.iter().filter(|id| id.parse::<Uuid>().is_ok() && !is_known(id)).collect();
    assert!(unlisted.is_empty(), "acknowledged, gone and not listed: {unlisted:?}");
    outcome
}

/// The log limit is reached while PostgreSQL is away. The instances are restarted with a higher
/// one.
pub async fn raise_log_limit(seed: u64) -> Outcome {
    const LIMIT: u64 = 100;
    let private = Private { postgres: true, ..Private::default() };
    let settings = vec![
        ("RUSHGATE_TRUTH_TIMEOUT_MS", "300".to_owned()),
        ("RUSHGATE_LOG_LIMIT", LIMIT.to_string()),
    ];
    let mut trial = Trial::begin(seed, Setup { private, settings, ..Setup::default() }).await;
    trial.a_while().await;
    let epoch = trial.open_epoch().await;
    server(&trial).kill().await;
    let behind = async |trial: &Trial, least: u64| {
        eventually("PostgreSQL is behind", async || {
            let meta = trial.cluster.meta().await;
            (meta.seq - meta.applied >= least).then_some(())
        })
        .await
    };
    behind(&trial, LIMIT).await;
    let raised = block("raise-log-limit");
    let raised = raised.trim().strip_prefix("RUSHGATE_LOG_LIMIT=").unwrap();
    trial.settings = trial.settings.with("RUSHGATE_LOG_LIMIT", raised);
    for number in 0..2 {
        let new = Instance::ready(&trial.settings).await;
        let old = trial.fleet.exchange(number, Arc::new(new));
        old.signal(Signal::SIGTERM);
        has_ended(&old).await;
    }
    behind(&trial, LIMIT + 20).await;
    server(&trial).restart().await.unwrap();
    trial.serves_within(PATIENCE).await;
    trial.settled().await;
    assert_eq!(trial.open_epoch().await, epoch);
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.gone, 0);
    outcome
}

/// Adds the page's lines to postgresql.conf and restarts the server.
async fn archive(trial: &Trial, place: &BookEnvironment) {
    let conf = base(trial).join("data").join("postgresql.conf");
    let mut text = std::fs::read_to_string(&conf).unwrap();
    for (name, value) in place.settings("archive-wal") {
        text += &format!("{name} = '{value}'\n");
    }
    std::fs::write(&conf, text).unwrap();
    server(trial).restart().await.unwrap();
    let shown = Command::new("psql")
        .args(["-Atd", &server(trial).url(), "-c", "SHOW archive_mode"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&shown.stdout).trim(), "on");
}
