//! Fault injection on real processes. Each fault strikes at a random moment under load, and each
//! trial ends with the history checker.
//!
//! [`FAULTS`] lists all faults. `./dev test` runs each of them once ([`short`]). `./dev chaos` runs
//! them over and over with other seeds ([`chaos`]) and prints a table.

mod ack_truth;
mod broker;
mod chaos;
mod clock;
mod cut_off;
mod forgetful;
mod holds;
mod instances;
pub mod poison;
mod postgres;
pub mod proxy;
mod rebuilds;
mod reconciler;
mod redis;
mod sentinel;
mod trial;
mod two_redis;

use futures::future::LocalBoxFuture;

pub use clock::Clock;
pub use trial::{Outcome, PATIENCE, Setup, Trial, at_length, seed};

/// A fault that can be injected.
#[derive(Clone, Copy)]
pub struct Fault {
    pub name: &'static str,
    /// What must be observed; every part is asserted.
    pub expected: &'static str,
    pub run: fn(u64) -> LocalBoxFuture<'static, Outcome>,
}

/// Builds the list of faults, and a test of each for `./dev test`.
macro_rules! faults {
    ($($module:ident :: $name:ident: $expected:literal;)*) => {
        pub const FAULTS: &[Fault] = &[$(Fault {
            name: stringify!($name),
            expected: $expected,
            run: |seed| Box::pin($module::$name(seed)),
        }),*];

        mod short {
            $(#[tokio::test]
            async fn $name() {
                let outcome = Box::pin(super::$module::$name(super::trial::seed())).await;
                println!("{outcome:?}");
            })*
        }
    };
}

faults! {
    instances::instance_killed: "the same key gives the first answer";
    instances::instance_killed_unheard: "the same key gives the first answer, marked as a repeat";
    instances::instance_stalled: "late requests are refused by the script and change nothing";
    instances::answers_lost: "outcome-unknown; repeated: one effect";
    holds::killed_before_confirming: "the hold stays; the payment is confirmed elsewhere, once";
    holds::sweep_killed: "each hold ends once; every piece is back";
    holds::rebuild_with_pending: "pending orders are loaded, then confirmed or cancelled like any other";
    rebuilds::rebuild_under_traffic: "one epoch wins; nothing is written into an old one";
    rebuilds::rebuild_overtaken: "the overtaken rebuild opens nothing, nothing is written into its epoch";
    clock::clock_set: "the window does not reopen; nothing expires; requests are decided, late ones are not";
    clock::clock_far_ahead: "nothing is dated by it; `/readyz` says why; set right, all goes on";
    rebuilds::rebuilds_at_once: "one epoch wins; nothing is written into an old one";
    redis::redis_killed: "nothing acknowledged is lost; same epoch; serving again within 5 s";
    redis::redis_stalled: "503 meanwhile, then it resumes by itself";
    redis::redis_out_of_memory: "refused before any write; no false success; resumes by itself";
    redis::redis_disk_full: "no false success; everything acknowledged is there when there is room again";
    reconciler::reconciler_killed: "applied once";
    reconciler::reconciler_killed_before_commit: "nothing of it stays; applied once";
    reconciler::reconciler_killed_after_commit: "applied once; the gate is told by the next leader";
    reconciler::leader_frozen: "a stand-by leads; the stale one aborts; applied once";
    reconciler::two_leaders: "whoever comes second aborts; applied once";
    postgres::postgres_killed: "the cursor is read again; applied once";
    postgres::postgres_killed_in_commit: "what was not committed is applied, what was is not applied again";
    postgres::postgres_away: "the gate serves until the log limit, then 503; then PostgreSQL catches up by itself";
    postgres::postgres_restored: "nothing opens by itself; a clear instruction; the log brings back what it still holds";
    postgres::postgres_restored_to_an_earlier_epoch: "nothing opens by itself; what the log holds is saved, listed and counted";
    postgres::postgres_restored_beyond_the_log: "nothing opens by itself; a clear instruction; what is gone is gone";
    poison::poison_skipped: "halted, loud; one fact is skipped, killed midway, run again; what rested on it is listed; consistent";
    poison::poison_mended: "halted, loud; the gate serves until the limit; the next leader tries again; nothing is lost";
    broker::broker_killed: "API unaffected; kept and reported; repeats have the same id";
    broker::broker_full: "API unaffected; kept and reported; delivered once there is room";
    broker::queue_unbound: "API unaffected; kept and reported; bound again and delivered";
    ack_truth::ack_truth_under_load: "201 only when PostgreSQL has it";
    ack_truth::ack_truth_without_postgres: "202 with the ids; repeated later: the full first answer";
    ack_truth::ack_truth_redis_emptied: "outcome-unknown; nothing acknowledged is gone";
    forgetful::log_cut_before_the_cursor: "found by the chain, not applied; closed and rebuilt; what is gone is listed";
    forgetful::log_cut_after_the_cursor: "found by who was answered; closed and rebuilt; what is gone is listed";
    forgetful::log_deleted: "closed and rebuilt; never oversold; what is gone is listed";
    forgetful::key_of_a_wrong_type: "closed and rebuilt; nothing is lost unless it was the log";
    forgetful::scripts_flushed: "no user-visible error";
    forgetful::all_flushed: "rebuilt; never oversold; what is gone is listed";
    sentinel::lagging_replica_promoted: "the rolled-back epoch is refused; rebuilt; never oversold; what is gone is listed";
    sentinel::lagging_replica_promoted_ack_truth: "the same; nothing acknowledged is lost";
    sentinel::unsafe_replica_promoted: "nothing is decided there until its configuration is mended; `/readyz` says why";
    two_redis::two_redis: "instances on the first refuse at once and say why; nothing is decided there any more";
    two_redis::both_masters: "the promoted one opens after a wait; nothing is decided on the old master any more";
    cut_off::cut_off_available: "decisions go on; `/readyz` warns";
    cut_off::cut_off_strict: "refused within a second; `/readyz` says why; resumes by itself";
}
