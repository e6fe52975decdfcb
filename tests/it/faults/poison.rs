//! An entry that PostgreSQL refuses, because someone has added a constraint that a valid request
//! violates.

use std::time::Duration;

use super::{Outcome, Setup, Trial};
use crate::cluster::{Instance, Request, eventually};
use crate::history::record::{Ask, Outcome as Told};
use crate::truth::{execute, number};

/// Maximum number of entries that PostgreSQL may be behind.
const LOG_LIMIT: u64 = 150;
const PLANTED: &str = "ALTER TABLE products ADD CONSTRAINT planted CHECK (name <> 'poison')";
const MENDED: &str = "ALTER TABLE products DROP CONSTRAINT planted";
/// Refuses a charge of an amount that no client uses.
pub const PLANTED_CHARGE: &str =
    "ALTER TABLE wallet_entries ADD CONSTRAINT planted CHECK (amount <> 77700)";
const MENDED_CHARGE: &str = "ALTER TABLE wallet_entries DROP CONSTRAINT planted";
const POISON_WON: u64 = 77_700;

async fn begin(seed: u64, planted: &'static str) -> Trial {
    let settings = vec![
        ("RUSHGATE_LOG_LIMIT", LOG_LIMIT.to_string()),
        // While PostgreSQL stands still, clients should not spend their time waiting for it.
        ("RUSHGATE_TRUTH_TIMEOUT_MS", "300".to_owned()),
    ];
    let mut trial = Trial::begin(seed, Setup { settings, ..Setup::default() }).await;
    execute(&trial.cluster.pool, planted).await;
    trial.a_while().await;
    trial
}

/// Checks that the cell is halted and reports it everywhere, and that the gate keeps serving until
/// it reaches the log limit. `before` is the number of successes when the entry was requested.
/// Returns the entry's number.
async fn halted(trial: &Trial, before: usize) -> u64 {
    let pool = &trial.cluster.pool;
    eventually("the cell is halted", || async {
        (number(pool, "SELECT count(*) FROM cell_cursors WHERE halted_reason IS NOT NULL").await
            == 1)
            .then_some(())
    })
    .await;
    let seq = number(pool, "SELECT seq + 1 FROM cell_cursors").await.cast_unsigned();
    eventually("the gate serves until the log limit", || async {
        let meta = trial.cluster.meta().await;
        (meta.seq - meta.applied >= LOG_LIMIT).then(|| assert_eq!(meta.applied + 1, seq))
    })
    .await;
    assert!(trial.load.successes() > before, "it went on for a while");
    let (skip, show) = (
        format!("rushgate log skip --seq {seq} --fact "),
        format!("rushgate log show --seq {seq}"),
    );
    for instance in trial.fleet.all() {
        let answer = instance.send(&Request::charge("somebody", 1)).await;
        assert_eq!((answer.status, answer.code(), answer.retry_after), (503, "backlog-full", true));
        let (status, body) = instance.readiness().await;
        assert!(
            status == 503 && body["reasons"][0].as_str().unwrap().contains("backlog-full"),
            "{body}"
        );
        let status = instance.done(&Request::get("/v1/admin/status").admin()).await;
        let reason = status["cells"][0]["reason"].as_str().unwrap();
        assert_eq!(status["cells"][0]["state"], "halted");
        assert!(
            reason.contains("planted") && reason.contains(&skip) && reason.contains(&show),
            "{reason}"
        );
        assert!(
            reason.find("mend the cause") < reason.find(&skip),
            "the last resort comes last: {reason}"
        );
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
    eventually(&line, || async { instance.ops("/metrics").await.1.contains(&line).then_some(()) })
        .await;
}

/// The fact to skip, as the status names it.
async fn named_fact(trial: &Trial) -> String {
    let status = trial.fleet.get(0).done(&Request::get("/v1/admin/status").admin()).await;
    let reason = status["cells"][0]["reason"].as_str().unwrap();
    reason.split("--fact ").nth(1).unwrap().trim_end_matches('`').to_owned()
}

/// A charge that [`PLANTED_CHARGE`] refuses, between a product and the order that spends it.
pub fn spent_charge() -> [Ask; 3] {
    let (user, product) = (|| "poor".to_owned(), || "spare".to_owned());
    let spare = Ask::PutProduct {
        product: product(),
        name: product(),
        price: 10_000,
        status: "on_sale",
        stock: Some(9),
    };
    let charge = Ask::Charge { user: user(), amount: POISON_WON };
    let lines = vec![(product(), 1)];
    let order = Ask::Order { user: user(), lines, coupon: None, expected_total: None };
    [spare, charge, order]
}

/// PostgreSQL can never apply a charge, and the user has spent it already. An operator skips that
/// fact; the command is killed while it runs and then repeated. All other answers stay valid,
/// everything that depended on the charge is listed, and the shop is consistent.
pub async fn poison_skipped(seed: u64) -> Outcome {
    let mut trial = begin(seed, PLANTED_CHARGE).await;
    let before_us = trial.load.now_us();
    let [spare, charge, order] = spent_charge();
    let before = trial.load.successes();
    let by = trial.fleet.get(0);
    for (ask, key) in
        [(spare, None), (charge.clone(), Some("poison")), (order.clone(), None), (order, None)]
    {
        let told = trial.load.send(&by, ask, key.map(str::to_owned)).await;
        assert!(matches!(&told, Told::Answered(answer) if answer.status == 201), "{told:?}");
    }
    let seq = halted(&trial, before + 4).await;
    let fact = named_fact(&trial).await;

    let settings = trial.cluster.settings.clone();
    let shown = settings.run(&["log", "show"]).await.assert_success().stdout;
    assert!(shown.contains("HALTED") && shown.contains(&format!("1-{seq} ")), "{shown}");
    let line = shown.lines().find(|line| line.contains(&format!("    fact {fact}  charge  poor")));
    assert!(line.is_some_and(|line| line.contains("77700")), "{shown}");
    let seq_after = (seq + 1).to_string();
    let refused = settings.run(&["log", "skip", "--seq", &seq_after, "--fact", "1"]).await;
    assert!(
        refused.code == 1 && refused.stderr.contains(&format!("halted at entry {seq};")),
        "{refused:?}"
    );
    let refused = settings.run(&["rebuild"]).await;
    assert!(
        refused.code == 1 && refused.stderr.contains("planted"),
        "it would lose what comes after: {refused:?}"
    );
    let number_of_it = seq.to_string();
    let file = trial.cluster.redis.folder().join("skipped.jsonl");
    let report = file.to_str().unwrap();
    let skip = [
        "log",
        "skip",
        "--seq",
        &number_of_it,
        "--fact",
        &fact,
        "--reason",
        "planted",
        "--report",
        report,
    ];
    settings.run_and_kill(&skip, Duration::from_millis(trial.rng.u64(20..1_500))).await;
    settings.run(&skip).await.assert_success();
    trial.serves_within(Duration::from_secs(60)).await;
    trial.settled().await;
    trial.forgive_since(before_us);
    for instance in trial.fleet.all() {
        halted_metric_is(&instance, "0").await;
        assert_eq!(instance.readiness().await.0, 200);
    }
    let sql = "SELECT seq || ' ' || fact || ' ' || reason FROM quarantined_facts WHERE outcome = 'skipped'";
    assert_eq!(trial.cluster.texts(sql).await, [format!("{seq} {fact} planted")]);

    // The key of the lost charge must not replay it.
    execute(&trial.cluster.pool, MENDED_CHARGE).await;
    let again = trial.load.send(&trial.fleet.get(0), charge, Some("poison".into())).await;
    assert!(matches!(&again, Told::Answered(a) if a.status == 201 && !a.replayed), "{again:?}");
    let listed = listed(&file);
    let (outcome, report) = trial.finish().await;
    assert!(outcome.epochs >= 2, "operator and leader may both rebuild");
    let unlisted: Vec<_> = report.gone.iter().filter(|id| !listed.contains(*id)).collect();
    assert!(unlisted.is_empty(), "acknowledged, gone and not listed: {unlisted:?}");
    assert!(report.gone.len() >= 3, "the charge and two orders: {:?}", report.gone);
    let wrong: Vec<_> = listed.iter().filter(|id| !report.aside_ids.contains(*id)).collect();
    assert!(wrong.is_empty(), "listed, and not gone: {wrong:?}");
    outcome
}

/// The ids that a report lists as gone.
fn listed(file: &std::path::Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines
        .filter(|line| line["outcome"] == "skipped" || line["outcome"] == "gone")
        .filter_map(|line| Some(line["id"].as_str()?.to_owned()))
        .collect()
}

/// The cause is repaired and the instances are restarted: nothing is lost.
pub async fn poison_mended(seed: u64) -> Outcome {
    let mut trial = begin(seed, PLANTED).await;
    let (product, name) = ("poison".to_owned(), "poison".to_owned());
    let ask = Ask::PutProduct { product, name, price: 100, status: "on_sale", stock: Some(5) };
    let before = trial.load.successes();
    trial.load.send(&trial.fleet.get(0), ask, None).await;
    // The request itself counts as one success.
    halted(&trial, before + 1).await;
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
