//! Instances are restarted, and audited by a job.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::book::{BookEnvironment, User};
use super::has_ended;
use crate::cluster::{Cluster, Instance, Request};
use crate::faults::{Outcome, PATIENCE, Setup, Trial};
use crate::truth::execute;

/// How often the checker asks each instance.
const PROBE: Duration = Duration::from_secs(1);
const CHARGES: usize = 20;

/// Both instances are replaced, one after the other, behind a checker that asks `/readyz`.
pub async fn rolling_restart(seed: u64) -> Outcome {
    // At least twice the checker's interval.
    let settings = vec![("RUSHGATE_DRAIN_SECS", "3".to_owned())];
    let mut trial = Trial::begin(seed, Setup { settings, ..Setup::default() }).await;
    trial.a_while().await;
    let (epoch, since_us) = (trial.open_epoch().await, trial.load.now_us());
    for number in 0..2 {
        let old = trial.fleet.get(number);
        old.signal(Signal::SIGTERM);
        loop {
            tokio::time::sleep(PROBE).await;
            if old.readiness().await.0 != 200 {
                break;
            }
        }
        trial.fleet.exchange(number, trial.fleet.get(1 - number));
        let new = Instance::listening(&trial.settings).await;
        let place =
            BookEnvironment::new(&trial.settings).set("RUSHGATE_OPS_LISTEN", new.operations());
        place.run("wait-until-ready", User::Operator);
        trial.fleet.replace(number, new);
        has_ended(&old).await;
        trial.a_while().await;
    }
    let mut troubles = trial.load.troubles(since_us);
    troubles.retain(|code, _| ["not-sent", "silence"].contains(&code.as_str()));
    assert!(troubles.is_empty(), "{troubles:?}");
    trial.serves_within(PATIENCE).await;
    assert_eq!(trial.open_epoch().await, epoch);
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.gone, 0);
    outcome
}

/// The job on a shop that agrees, on one with a difference, and while Redis is away. It needs a
/// moment without traffic, so there are no clients here.
pub async fn audit_as_a_job(_seed: u64) -> Outcome {
    let cluster = Cluster::servers().await;
    let instance = cluster.start().await;
    for _ in 0..CHARGES {
        instance.done(&Request::charge("ann", 100)).await;
    }
    cluster.caught_up().await;
    let folder = cluster.redis.folder().join("audits");
    std::fs::create_dir(&folder).unwrap();
    let place = BookEnvironment::new(&cluster.settings).folder("/var/log/rushgate", &folder);
    let job = || place.run("audit-job", User::Operator);
    assert_eq!(job(), "no differences\n");
    execute(&cluster.pool, "UPDATE wallets SET balance = balance + 1 WHERE user_id = 'ann'").await;
    assert!(job().starts_with("differences: see "));
    let report = std::fs::read_to_string(folder.join("audit.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert!(report["clean"] == false && report.to_string().contains("ann"), "{report}");
    execute(&cluster.pool, "UPDATE wallets SET balance = balance - 1 WHERE user_id = 'ann'").await;
    cluster.redis.kill().await;
    assert!(job().starts_with("not compared (exit code 2)"));
    cluster.redis.restart().await.unwrap();
    instance.until_ready().await;
    instance.done(&Request::charge("ann", 100)).await;
    cluster.caught_up().await;
    assert_eq!(job(), "no differences\n");
    let entries = cluster.number("SELECT count(*) FROM wallet_entries WHERE amount = 100").await;
    assert_eq!(entries, CHARGES as i64 + 1, "everything acknowledged is in PostgreSQL");
    instance.stop().await;
    let all = CHARGES + 1;
    Outcome { operations: all, facts: all, checked: all, epochs: 1, ..Outcome::default() }
}
