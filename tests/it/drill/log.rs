//! An entry that PostgreSQL refuses.

use std::collections::HashSet;

use serde_json::Value;

use super::book::{BookEnvironment, User};
use super::{BACKUPS, ids_in};
use crate::cluster::eventually;
use crate::faults::poison::{PLANTED_CHARGE, spent_charge};
use crate::faults::{Outcome, PATIENCE, Setup, Trial};
use crate::history::record::Outcome as Told;
use crate::truth::execute;

/// A charge can never be applied, and its owner has spent it. The operator skips that one fact.
pub async fn skip_one_fact(seed: u64) -> Outcome {
    // Clients should not wait for PostgreSQL while it is halted.
    let settings = vec![("RUSHGATE_TRUTH_TIMEOUT_MS", "300".to_owned())];
    let mut trial = Trial::begin(seed, Setup { settings, ..Setup::default() }).await;
    execute(&trial.cluster.pool, PLANTED_CHARGE).await;
    trial.a_while().await;
    let before_us = trial.load.now_us();
    let by = trial.fleet.get(0);
    for ask in spent_charge() {
        let told = trial.load.send(&by, ask, None).await;
        assert!(matches!(&told, Told::Answered(answer) if answer.status == 201), "{told:?}");
    }
    let halted = eventually("the cell is halted", async || {
        let sql = "SELECT halted_reason FROM cell_cursors WHERE halted_reason IS NOT NULL";
        trial.cluster.texts(sql).await.pop()
    })
    .await;
    trial.a_while().await;

    let folder = trial.cluster.redis.folder().to_owned();
    let number = |name: &str| -> String {
        let rest = halted.split(name).last().unwrap();
        rest.chars().take_while(char::is_ascii_digit).collect()
    };
    let said = BookEnvironment::new(&trial.settings)
        .folder(BACKUPS, &folder)
        .set("SEQ", number("log skip --seq "))
        .set("FACT", number("--fact "))
        .set("REASON", "cannot be applied")
        .run("skip-fact", User::Operator);
    assert!(said.contains("77700") && said.contains("is open again"), "{said}");
    trial.serves_within(PATIENCE).await;
    trial.settled().await;
    trial.forgive_since(before_us);
    let is_gone = |line: &Value| line["outcome"] == "skipped" || line["outcome"] == "gone";
    let listed: HashSet<String> = ids_in(&folder.join("skipped.jsonl"), is_gone);
    let (outcome, report) = trial.finish().await;
    assert!(report.gone.len() >= 2, "the charge and the order: {:?}", report.gone);
    let unlisted: Vec<_> = report.gone.iter().filter(|id| !listed.contains(*id)).collect();
    assert!(unlisted.is_empty(), "acknowledged, gone and not listed: {unlisted:?}");
    let wrong: Vec<_> = listed.iter().filter(|id| !report.aside_ids.contains(*id)).collect();
    assert!(wrong.is_empty(), "listed, and not gone: {wrong:?}");
    outcome
}
