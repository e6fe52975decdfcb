//! PostgreSQL is lost and restored from its archive.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::{Uid, User as Account};
use rushgate_local_servers::PostgresServer;

use super::book::{Place, User};
use crate::cluster::{Instance, Private};
use crate::faults::{Outcome, PATIENCE, Setup, Trial};

/// Folders of the pages.
const DATA: &str = "/var/lib/postgresql/15/main";
const REDIS: &str = "/var/lib/redis";
const BACKUPS: &str = "/var/backups/rushgate";

/// A folder for backups that PostgreSQL can write to, with the parts that the page names.
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

/// The server's folder as it can be reached by PostgreSQL's user.
fn base(trial: &Trial) -> PathBuf {
    let elsewhere = server(trial).folder().join("elsewhere");
    if elsewhere.exists() { elsewhere.canonicalize().unwrap() } else { server(trial).folder().to_owned() }
}

/// A base backup, more orders, the disk is lost, and everything is done as docs/operations.md says.
pub async fn restore_postgresql(seed: u64) -> Outcome {
    let private = Private { postgres: true, ..Private::default() };
    // While PostgreSQL is away, clients should not spend their time waiting for it.
    let settings = vec![("RUSHGATE_TRUTH_TIMEOUT_MS", "300".to_owned())];
    let mut trial = Trial::begin(seed, Setup { private, settings, ..Setup::default() }).await;
    let folder = base(&trial);
    let backups = backups(&folder);
    let port = server(&trial).port();
    let place = Place::new(&trial.settings)
        .folder(DATA, &folder.join("data"))
        .folder(BACKUPS, &backups)
        .folder(REDIS, trial.cluster.redis.folder())
        .set("PGHOST", "127.0.0.1")
        .set("PGUSER", "postgres")
        .set("PGPORT", port);
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

/// Puts the page's lines into postgresql.conf, and starts the server with them.
async fn archive(trial: &Trial, place: &Place) {
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
