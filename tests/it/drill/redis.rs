//! Redis does not start, or its disk is lost.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::book::{Place, User};
use crate::faults::{Outcome, PATIENCE, Setup, Trial};
use crate::history::aof;

/// Redis' folder in the pages.
const REDIS: &str = "/var/lib/redis";
/// The beginning of a transaction, as a crash leaves it: never acknowledged.
const TORN: &[u8] = b"*1\r\n$5\r\nMULTI\r\n*3\r\n$3\r\nSET\r\n$7\r\nrg:torn";

/// The file that Redis appends to at present.
fn appended_file(folder: &Path) -> PathBuf {
    let files = std::fs::read_dir(folder.join("appendonlydir")).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.to_string_lossy().ends_with(".incr.aof")).max().unwrap()
}

fn is_valid(folder: &Path) -> bool {
    let manifest = folder.join("appendonlydir").join("appendonly.aof.manifest");
    Command::new("redis-check-aof").arg(manifest).output().unwrap().status.success()
}

/// A crash has torn the last write; Redis refuses to start until the torn end is cut off.
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
    Place::new(&trial.settings)
        .folder(REDIS, &folder)
        .folder("/var/backups/rushgate", &aside)
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

/// The disk is lost: an empty Redis takes the place, and the leader rebuilds by itself.
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
    Place::new(&trial.settings).folder(REDIS, &folder).run("set-redis-aside", User::Operator);
    trial.cluster.redis.restart().await.unwrap();
    assert!(trial.rebuilt_after(epoch).await > epoch);
    trial.forgive_since(since_us);
    trial.serves_within(PATIENCE).await;
    trial.finish_with_losses().await
}
