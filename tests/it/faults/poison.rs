//! An entry that PostgreSQL refuses: a constraint that somebody has added there, and that a rightful request breaks.

use std::time::Duration;

use super::{Outcome, Setup, Trial};
use crate::cluster::{Instance, Request, eventually};
use crate::history::record::Ask;
use crate::truth::{execute, number};

/// Entries that PostgreSQL may be behind.
const LOG_LIMIT: u64 = 60;
const PLANTED: &str = "ALTER TABLE products ADD CONSTRAINT planted CHECK (name <> 'poison')";
const MENDED: &str = "ALTER TABLE products DROP CONSTRAINT planted";
const POISON: &str = "/v1/products/poison";

async fn begin(seed: u64) -> Trial {
    let settings = vec![
        ("RUSHGATE_LOG_LIMIT", LOG_LIMIT.to_string()),
        // While PostgreSQL stands still, clients should not spend their time waiting for it.
        ("RUSHGATE_TRUTH_TIMEOUT_MS", "300".to_owned()),
    ];
    let mut trial = Trial::begin(seed, Setup { settings, ..Setup::default() }).await;
    execute(&trial.cluster.pool, PLANTED).await;
    trial.a_while().await;
    trial
}

/// The cell is halted and says so everywhere; the gate serves until the log limit. Returns the entry's number.
async fn halted(trial: &Trial) -> u64 {
    let pool = &trial.cluster.pool;
    eventually("the cell is halted", || async {
        (number(pool, "SELECT count(*) FROM cell_cursors WHERE halted_reason IS NOT NULL").await == 1)
            .then_some(())
    })
    .await;
    let seq = number(pool, "SELECT seq + 1 FROM cell_cursors").await.cast_unsigned();
    let before = trial.load.successes();
    eventually("the gate serves until the log limit", || async {
        let meta = trial.cluster.meta().await;
        (meta.seq - meta.applied >= LOG_LIMIT).then(|| assert_eq!(meta.applied + 1, seq))
    })
    .await;
    assert!(trial.load.successes() > before, "it went on for a while");
    let (skip, show) = (format!("rushgate log skip --seq {seq}"), format!("rushgate log show --seq {seq}"));
    for instance in trial.fleet.all() {
        let answer = instance.send(&Request::charge("somebody", 1)).await;
        assert_eq!((answer.status, answer.code(), answer.retry_after), (503, "backlog-full", true));
        let (status, body) = instance.readiness().await;
        assert!(status == 503 && body["reasons"][0].as_str().unwrap().contains("backlog-full"), "{body}");
        let status = instance.done(&Request::get("/v1/admin/status").admin()).await;
        let reason = status["cells"][0]["reason"].as_str().unwrap();
        assert_eq!(status["cells"][0]["state"], "halted");
        assert!(reason.contains("planted") && reason.contains(&skip) && reason.contains(&show), "{reason}");
        halted_metric_is(&instance, "1").await;
    }
    let loud = |instance: &Instance| {
        instance.log().iter().any(|line| {
            line.contains("\"ERROR\"")
                && line.contains("the cell's reconciler is halted")
                && line.contains(&skip)
        })
    };
    assert!(trial.fleet.all().iter().any(|instance| loud(instance)), "the log tells what to do");
    seq
}

async fn halted_metric_is(instance: &Instance, value: &str) {
    let line = format!("rushgate_reconciler_halted{{cell=\"0\"}} {value}");
    eventually(&line, || async { instance.ops("/metrics").await.1.contains(&line).then_some(()) }).await;
}

/// An operator takes the entry out of the way; the cell goes on, and a rebuild takes it out of the gate, too.
pub async fn poison_skipped(seed: u64) -> Outcome {
    let mut trial = begin(seed).await;
    // By an instance that clients do not know, so that the entry holds nothing else.
    let apart = Instance::ready(&trial.settings.with("RUSHGATE_ROLES", "api")).await;
    let body = serde_json::json!({ "name": "poison", "price": 100, "status": "on_sale" });
    apart.done(&Request::put(POISON, body).admin()).await;
    let seq = halted(&trial).await;

    let settings = trial.cluster.settings.clone();
    let shown = settings.run(&["log", "show"]).await.assert_success().stdout;
    assert!(shown.contains("HALTED") && shown.contains(&format!("1-{seq} ")), "{shown}");
    assert!(shown.contains("ProductPut") && shown.contains("poison"), "{shown}");
    let refused = settings.run(&["log", "skip", "--seq", &(seq + 1).to_string()]).await;
    assert!(refused.code == 1 && refused.stderr.contains(&format!("halted at entry {seq};")), "{refused:?}");
    let refused = settings.run(&["rebuild"]).await;
    assert!(
        refused.code == 1 && refused.stderr.contains("planted"),
        "it would lose what comes after: {refused:?}"
    );
    let (number_of_it, why) = (seq.to_string(), "planted by a test");
    settings.run(&["log", "skip", "--seq", &number_of_it, "--reason", why]).await.assert_success();
    trial.serves_within(Duration::from_secs(30)).await;
    trial.settled().await;
    for instance in trial.fleet.all() {
        halted_metric_is(&instance, "0").await;
        assert_eq!(instance.readiness().await.0, 200);
    }
    let kept = trial.cluster.texts("SELECT epoch || '-' || seq || ' ' || reason FROM log_quarantine").await;
    assert_eq!(kept, [format!("1-{seq} {why}")]);

    assert_eq!(apart.send(&Request::get(POISON)).await.status, 200, "the gate still has it");
    settings.run(&["rebuild"]).await.assert_success();
    trial.serves_within(Duration::from_secs(30)).await;
    assert_eq!(apart.send(&Request::get(POISON)).await.status, 404, "a rebuild drops it");
    let (outcome, _) = trial.finish().await;
    assert!(outcome.epochs > 1);
    outcome
}

/// The cause is mended and the leader started anew: nothing is lost.
pub async fn poison_mended(seed: u64) -> Outcome {
    let mut trial = begin(seed).await;
    let (product, name) = ("poison".to_owned(), "poison".to_owned());
    let ask = Ask::PutProduct { product, name, price: 100, status: "on_sale", stock: Some(5) };
    trial.load.send(&trial.fleet.get(0), ask, None).await;
    halted(&trial).await;
    execute(&trial.cluster.pool, MENDED).await;
    for number in 0..trial.fleet.all().len() {
        trial.fleet.replace(number, Instance::listening(&trial.settings).await);
    }
    trial.serves_within(Duration::from_secs(30)).await;
    trial.settled().await;
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.epochs, 1, "nothing was rebuilt");
    outcome
}
