//! The drill: the documented procedures of operators, on real servers under load.
//!
//! A procedure takes its commands out of docs/operations.md and docs/runbook.md ([`book`]) and ends
//! like a fault's trial: the history checker compares every answer with the log and PostgreSQL, the
//! audit is clean, and every acknowledged decision is in PostgreSQL or listed as gone. `./dev test`
//! runs each procedure once; `./dev drill` runs all and prints a table.
//!
//! [`PROCEDURES`] lists them with their blocks. A test compares that with the blocks in the pages.

mod book;
mod instances;
mod log;
mod postgres;
mod redis;

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use futures::future::LocalBoxFuture;
use serde_json::Value;

use crate::cluster::{Instance, eventually};
use crate::faults::Outcome;

/// The folder for backups in the pages.
const BACKUPS: &str = "/var/backups/rushgate";

/// The ids in those lines of a report that `wanted` selects.
fn ids_in(report: &Path, wanted: impl Fn(&Value) -> bool) -> HashSet<String> {
    let text = std::fs::read_to_string(report).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(wanted).filter_map(|line| Some(line["id"].as_str()?.to_owned())).collect()
}

/// Waits for the end of an instance that clients may still refer to.
async fn has_ended(instance: &Instance) {
    let stat = format!("/proc/{}/stat", instance.pid());
    eventually("the instance has ended", async || {
        // A zombie until it is dropped.
        std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z ")).then_some(())
    })
    .await;
}

/// One documented procedure.
pub struct Procedure {
    pub name: &'static str,
    /// The blocks of commands that it runs.
    pub blocks: &'static [&'static str],
    /// The expected result; each part is asserted.
    pub expected: &'static str,
    run: fn(u64) -> LocalBoxFuture<'static, Outcome>,
}

macro_rules! procedures {
    ($($module:ident :: $name:ident [$($block:literal),*]: $expected:literal;)*) => {
        pub const PROCEDURES: &[Procedure] = &[$(Procedure {
            name: stringify!($name),
            blocks: &[$($block),*],
            expected: $expected,
            run: |seed| Box::pin($module::$name(seed)),
        }),*];

        mod short {
            $(#[tokio::test]
            async fn $name() {
                let outcome = Box::pin(super::$module::$name(1)).await;
                println!("{outcome:?}");
            })*
        }
    };
}

procedures! {
    postgres::restore_postgresql ["archive-wal", "base-backup", "keep-log", "restore", "wait-until-restored", "rebuild"]:
        "nothing acknowledged is lost; a new epoch; the audit is clean";
    redis::mend_torn_file ["mend-redis"]: "Redis starts; nothing acknowledged is lost; the same epoch";
    redis::replace_lost_redis ["set-redis-aside"]:
        "the gate is rebuilt by itself; what is gone is listed; never oversold";
    redis::change_redis_password ["add-redis-password", "remove-redis-password"]:
        "the old password is refused; nothing acknowledged is lost; the same epoch";
    postgres::restore_an_earlier_epoch ["base-backup", "keep-log", "restore", "wait-until-restored", "rebuild-report"]:
        "a new epoch; what the log held and cannot be applied is listed";
    postgres::raise_log_limit ["raise-log-limit"]:
        "decisions go on beyond the old limit; nothing acknowledged is lost; the same epoch";
    log::skip_one_fact ["skip-fact"]:
        "the fact and what depended on it are listed; all else that was acknowledged is in PostgreSQL";
    instances::rolling_restart ["wait-until-ready"]:
        "no connection is refused; nothing acknowledged is lost; the same epoch";
    instances::audit_as_a_job ["audit-job"]: "exit codes 0, 1 and 2, each for its cause";
}

#[test]
fn every_block_of_the_book_is_run() {
    let run: BTreeSet<String> =
        PROCEDURES.iter().flat_map(|procedure| procedure.blocks).map(ToString::to_string).collect();
    assert_eq!(run, book::blocks());
}

#[test]
fn the_book_lists_every_procedure() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md"))
        .unwrap();
    for Procedure { name, expected, .. } in PROCEDURES {
        let row = format!("| `{name}` | {expected} |");
        assert!(page.contains(&row), "docs/operations.md lacks {row}");
    }
}

/// `./dev drill`: RUSHGATE_DRILL_ONLY (a part of a procedure's name), RUSHGATE_TEST_SEED.
#[tokio::test]
#[ignore = "runs for minutes: ./dev drill"]
async fn drill() {
    let only = std::env::var("RUSHGATE_DRILL_ONLY").unwrap_or_default();
    let chosen: Vec<&Procedure> =
        PROCEDURES.iter().filter(|one| one.name.contains(&only)).collect();
    assert!(!chosen.is_empty(), "no procedure has {only} in its name");
    let mut table = String::new();
    for procedure in chosen {
        println!("== {}: {}", procedure.name, procedure.expected);
        let outcome = (procedure.run)(crate::faults::seed()).await;
        let Outcome { operations, facts, checked, epochs, gone, .. } = outcome;
        table += &format!(
            "{:<24} {operations:>9} {facts:>9} {checked:>8} {epochs:>6} {gone:>12}\n",
            procedure.name
        );
    }
    println!(
        "\nprocedure                 requests decisions  checked epochs gone, listed\n{table}"
    );
}
