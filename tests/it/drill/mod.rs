//! The drill: what an operator does by the book, on real servers under load.
//!
//! A procedure takes its commands out of docs/operations.md and docs/runbook.md ([`book`]) and ends like a fault's trial:
//! the history checker holds every answer against the log and PostgreSQL, the audit is clean, and what was acknowledged is
//! in PostgreSQL or listed as gone. `./dev test` runs each procedure once; `./dev drill` runs all and prints a table.

mod book;
mod postgres;
mod redis;

use std::collections::BTreeSet;

use futures::future::LocalBoxFuture;

use crate::faults::Outcome;

/// One documented procedure.
pub struct Procedure {
    pub name: &'static str,
    /// The blocks of commands that it runs.
    pub blocks: &'static [&'static str],
    /// What must be seen; each is asserted.
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
    postgres::restore_postgresql ["archive-wal", "base-backup", "keep-log", "restore", "rebuild"]:
        "nothing acknowledged is lost; a new epoch; the audit is clean";
    redis::mend_torn_file ["mend-redis"]: "Redis starts; nothing acknowledged is lost; the same epoch";
    redis::replace_lost_redis ["set-redis-aside"]:
        "the gate is rebuilt by itself; what is gone is listed; never oversold";
}

#[test]
fn every_block_of_the_book_is_run() {
    let run: BTreeSet<String> =
        PROCEDURES.iter().flat_map(|procedure| procedure.blocks).map(ToString::to_string).collect();
    assert_eq!(run, book::blocks());
}

#[test]
fn the_book_lists_every_procedure() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
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
    let chosen: Vec<&Procedure> = PROCEDURES.iter().filter(|one| one.name.contains(&only)).collect();
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
    println!("\nprocedure                 requests decisions  checked epochs gone, listed\n{table}");
}
