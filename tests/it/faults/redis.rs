//! Redis is killed, stalls, runs out of memory, or has a full disk.

use std::process::Command;
use std::time::Duration;

use fred::prelude::*;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::{Outcome, Setup, Trial, trial};
use crate::cluster::eventually;
use crate::history::aof;
use crate::history::record::{Ask, Operation};

/// After each repair the shop must serve again within this time.
const SOON: Duration = Duration::from_secs(5);

/// kill -9 Redis and start it again: it still has everything that it acknowledged.
pub async fn redis_killed(seed: u64) -> Outcome {
    let mut trial = Trial::begin(seed, Setup::default()).await;
    for _ in 0..2 {
        trial.a_while().await;
        trial.cluster.redis.kill().await;
        trial.cluster.redis.restart().await.unwrap();
        trial.serves_within(SOON).await;
    }
    same_epoch(trial).await
}

async fn same_epoch(trial: Trial) -> Outcome {
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.epochs, 1, "the same epoch goes on");
    outcome
}

/// Operations that started after `since_us` and have completed.
fn asked_since(trial: &Trial, since_us: u64) -> Vec<Operation> {
    trial.load.recorded_since(since_us).into_iter().filter(|op| op.asked_us >= since_us).collect()
}

/// Cancelling an order that was cancelled before is answered from PostgreSQL alone.
fn needs_a_decision(operation: &Operation) -> bool {
    !operation.ask.is_read() && !matches!(operation.ask, Ask::Cancel { .. })
}

/// SIGSTOP Redis for longer than the command timeout: connections stay open, but nothing answers.
pub async fn redis_stalled(seed: u64) -> Outcome {
    let mut trial = Trial::begin(seed, Setup::default()).await;
    trial.a_while().await;
    trial.cluster.redis.pause();
    let stat = format!("/proc/{}/stat", trial.cluster.redis.pid().unwrap());
    eventually("Redis has stopped", || async {
        std::fs::read_to_string(&stat).unwrap().contains(") T ").then_some(())
    })
    .await;
    let since_us = trial.load.now_us();
    let length = if trial::at_length() { Duration::from_secs(10) } else { Duration::from_secs(4) };
    tokio::time::sleep(length).await;
    let answered = asked_since(&trial, since_us);
    trial.cluster.redis.resume();

    let told = trial.load.troubles(since_us);
    assert!(told.values().sum::<usize>() > 0, "clients were told");
    // Each a 503.
    let fine = ["gate-unavailable", "outcome-unknown", "overloaded", "truth-unavailable"];
    assert!(told.keys().all(|code| fine.contains(&code.as_str())), "{told:?}");
    assert!(answered.iter().all(|op| !op.succeeded()), "nobody can have decided anything");
    trial.serves_within(SOON).await;
    same_epoch(trial).await
}

/// Memory reaches `maxmemory`, then the limit is set to 1 byte, then it is removed.
pub async fn redis_out_of_memory(seed: u64) -> Outcome {
    let mut trial = Trial::begin(seed, Setup::default()).await;
    trial.a_while().await;
    let begin_us = trial.load.now_us();
    let limit = used_memory(&trial).await + trial.rng.u64(..200_000);
    limit_memory(&trial, limit).await;
    let refusals = || trial.load.troubles(begin_us).get("gate-unavailable").copied().unwrap_or(0);
    eventually("memory is used up", || async { (refusals() > 0).then_some(()) }).await;

    limit_memory(&trial, 1).await;
    let (since_us, before) = (trial.load.now_us(), trial.cluster.meta().await.seq);
    let decisions =
        || asked_since(&trial, since_us).into_iter().filter(needs_a_decision).collect::<Vec<_>>();
    eventually("many are refused", || async { (decisions().len() > 60).then_some(()) }).await;
    assert_eq!(trial.cluster.meta().await.seq, before, "nothing was written");
    assert!(decisions().iter().all(|op| !op.succeeded()), "no false success");
    for op in trial.load.recorded_since(begin_us).iter().filter(|op| needs_a_decision(op)) {
        let code = op
            .answer()
            .map_or("no answer", |answer| if answer.status < 500 { "" } else { answer.code() });
        // On a busy machine a request may also be too late.
        assert!(
            ["", "gate-unavailable", "overloaded"].contains(&code),
            "refused before any write: {op:?}"
        );
    }
    let read = |op: &Operation| matches!(op.ask, Ask::Wallet(_)) && op.succeeded();
    eventually("reads need no memory", || async {
        asked_since(&trial, since_us).iter().any(read).then_some(())
    })
    .await;

    limit_memory(&trial, 0).await;
    trial.serves_within(SOON).await;
    same_epoch(trial).await
}

async fn used_memory(trial: &Trial) -> u64 {
    let info: String = trial.cluster.raw.custom(fred::cmd!("INFO"), vec!["memory"]).await.unwrap();
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    used.trim().parse().unwrap()
}

async fn limit_memory(trial: &Trial, bytes: u64) {
    let _: () = trial.cluster.raw.config_set("maxmemory", bytes.to_string()).await.unwrap();
}

/// The append-only file cannot grow, twice; then there is room again.
pub async fn redis_disk_full(seed: u64) -> Outcome {
    let mut trial = Trial::begin(seed, Setup::default()).await;
    for _ in 0..2 {
        trial.a_while().await;
        let room = trial.rng.u64(1..3_000);
        leave_room(&trial, room);
        let pid = Pid::from_raw(trial.cluster.redis.pid().unwrap().cast_signed());
        // Redis can neither write the entry nor undo the decision, so it exits before it answers.
        eventually("Redis gives up", || async {
            (kill(pid, None) == Err(Errno::ESRCH)).then_some(())
        })
        .await;
        let since_us = trial.load.now_us();
        eventually("clients are told", || async {
            trial.load.troubles(since_us).contains_key("gate-unavailable").then_some(())
        })
        .await;
        assert!(asked_since(&trial, since_us).iter().all(|op| !op.succeeded()), "no false success");
        trial.cluster.redis.restart().await.unwrap();
        trial.serves_within(SOON).await;
    }
    same_epoch(trial).await
}

/// Lets the running Redis append this many more bytes to its append-only file. The write that
/// exceeds the limit is cut short, as on a full disk.
fn leave_room(trial: &Trial, bytes: u64) {
    let file = aof::files(trial.cluster.redis.folder()).pop().unwrap();
    let limit = file.metadata().unwrap().len() + bytes;
    let pid = trial.cluster.redis.pid().unwrap();
    let status =
        Command::new("prlimit").args([format!("--pid={pid}"), format!("--fsize={limit}")]).status();
    assert!(status.unwrap().success());
}
