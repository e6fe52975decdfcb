//! Redis does not start, its disk is lost, or a password is changed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nix::sys::signal::Signal;

use super::book::{BookEnvironment, User};
use super::{BACKUPS, has_ended};
use crate::cluster::{Instance, Private};
use crate::faults::{Outcome, PATIENCE, Setup, Trial};
use crate::history::aof;
use crate::history::client::{Fleet, Mix};
use crate::servers::tempfile;

/// Redis' folder in the pages.
const REDIS: &str = "/var/lib/redis";
/// The beginning of a transaction, as left by a crash. It was never acknowledged.
const TORN: &[u8] = b"*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$7\r\nrg:torn";

/// The file that Redis appends to.
fn appended_file(folder: &Path) -> PathBuf {
    let files =
        std::fs::read_dir(folder.join("appendonlydir")).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.to_string_lossy().ends_with(".incr.aof")).max().unwrap()
}

fn is_valid(folder: &Path) -> bool {
    let manifest = folder.join("appendonlydir").join("appendonly.aof.manifest");
    Command::new("redis-check-aof").arg(manifest).output().unwrap().status.success()
}

/// A crash has torn the last write. Redis refuses to start until the torn end is cut off.
pub async fn mend_torn_file(seed: u64) -> Outcome {
    let mut trial = Trial::begin(seed, Setup::default()).await;
    trial.a_while().await;
    let epoch = trial.open_epoch().await;
    trial.cluster.redis.kill().await;
    let folder = trial.cluster.redis.folder().to_owned();
    let file = appended_file(&folder);
    std::fs::OpenOptions::new().append(true).open(file).unwrap().write_all(TORN).unwrap();
    assert!(!is_valid(&folder), "Redis would not start on it");
    let aside = tempfolder(&folder);
    BookEnvironment::new(&trial.settings)
        .folder(REDIS, &folder)
        .folder(BACKUPS, &aside)
        .run("mend-redis", User::Operator);
    assert!(is_valid(&folder));
    trial.cluster.redis.restart().await.unwrap();
    trial.serves_within(PATIENCE).await;
    assert_eq!(trial.open_epoch().await, epoch);
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.gone, 0);
    outcome
}

fn tempfolder(beside: &Path) -> PathBuf {
    let folder = beside.join("set-aside");
    std::fs::create_dir(&folder).unwrap();
    folder
}

/// The ACL file gets a second password for the API's user, then loses the first one.
pub async fn change_redis_password(seed: u64) -> Outcome {
    const ACL: &str = include_str!("../../../deploy/redis-acl.conf");
    const OLD: &str = "CHANGE-ME-API";
    const NEW: &str = "another-password";
    let redis_login = ("tests".to_owned(), "of-tests".to_owned());
    let folder = tempfile();
    let file = folder.path.join("users.acl");
    std::fs::write(&file, format!("{ACL}user tests on >of-tests ~* &* +@all\n")).unwrap();
    let redis_config = vec![format!("aclfile {}", file.display())];
    let private = Private { redis_config, redis_login: Some(redis_login), ..Private::default() };
    let (cluster, settings) = Trial::servers(private, vec![]).await;
    let port = cluster.redis.port();
    let url = |user: &str, password: &str| format!("redis://{user}:{password}@127.0.0.1:{port}");
    let follower = settings
        .with("RUSHGATE_REDIS_URL", url("rushgate-reconciler", "CHANGE-ME-RECONCILER"))
        .with("RUSHGATE_ROLES", "reconciler,relay");
    let follower = Instance::ready(&follower).await;
    let api = settings.with("RUSHGATE_ROLES", "api");
    let before = api.with("RUSHGATE_REDIS_URL", url("rushgate-api", OLD));
    let fleet = Fleet::start(&[&before, &before]).await;
    let mut trial = Trial::on(seed, cluster, before, fleet, Mix::default()).await;
    trial.a_while().await;
    let epoch = trial.open_epoch().await;

    let place = BookEnvironment::new(&trial.settings)
        .folder("/etc/redis", &folder.path)
        .set("OLD_PASSWORD", OLD)
        .set("NEW_PASSWORD", NEW)
        .set("OPERATOR_REDIS_URL", url("operator", "CHANGE-ME-OPERATOR"));
    place.run("add-redis-password", User::Operator);
    trial.a_while().await;
    trial.settings = api.with("RUSHGATE_REDIS_URL", url("rushgate-api", NEW));
    for number in 0..2 {
        let new = Instance::ready(&trial.settings).await;
        let old = trial.fleet.exchange(number, Arc::new(new));
        old.signal(Signal::SIGTERM);
        has_ended(&old).await;
    }
    place.run("remove-redis-password", User::Operator);
    let refused = rushgate::redis::connect(&url("rushgate-api", OLD)).await;
    assert!(refused.is_err(), "the old password is refused");
    trial.serves_within(PATIENCE).await;
    trial.settled().await;
    assert_eq!(trial.open_epoch().await, epoch);
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.gone, 0);
    follower.stop().await;
    outcome
}

/// The disk is lost. An empty Redis replaces it, and the leader rebuilds the gate by itself.
pub async fn replace_lost_redis(seed: u64) -> Outcome {
    let short = ("RUSHGATE_TRUTH_TIMEOUT_MS", "500".to_owned());
    let mut trial = Trial::begin(seed, Setup { settings: vec![short], ..Setup::default() }).await;
    trial.a_while().await;
    let since_us = trial.settled().await;
    trial.a_while().await;
    let epoch = trial.open_epoch().await;
    trial.cluster.redis.kill().await;
    let folder = trial.cluster.redis.folder().to_owned();
    trial.elsewhere.extend(aof::entries(&folder));
    BookEnvironment::new(&trial.settings)
        .folder(REDIS, &folder)
        .run("set-redis-aside", User::Operator);
    trial.cluster.redis.restart().await.unwrap();
    assert!(trial.rebuilt_after(epoch).await > epoch);
    trial.forgive_since(since_us);
    trial.serves_within(PATIENCE).await;
    trial.finish_with_losses().await
}
