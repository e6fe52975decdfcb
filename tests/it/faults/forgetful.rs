//! Redis loses data: the end of its log, one key, its scripts, or everything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fred::prelude::*;
use nix::sys::signal::Signal;
use rushgate::log::RawEntry;
use rushgate::redis::keys::{DAY_MS, Keys};

use super::cut_off::Way;
use super::{Outcome, Setup, Trial};
use crate::cluster::{Instance, eventually};
use crate::history::aof;

/// A trial whose instances serve only the API, and a separate follower that reads the log.
async fn apart(seed: u64) -> (Trial, Instance) {
    let short = ("RUSHGATE_TRUTH_TIMEOUT_MS", "500".to_owned());
    Trial::apart(seed, Setup { settings: vec![short], ..Setup::default() }).await
}

/// In three of four trials, freezes the follower, so that PostgreSQL falls behind. Returns the time
/// since which decisions may be lost.
async fn fall_behind(trial: &mut Trial, follower: &Instance) -> u64 {
    let since_us = trial.settled().await;
    if trial.rng.u8(..4) > 0 {
        follower.freeze().await;
        trial.a_while().await;
    }
    since_us
}

/// Epoch and number of the last entry that PostgreSQL has applied.
async fn cursor(trial: &Trial) -> (u64, u64) {
    let sql = "SELECT epoch, seq FROM cell_cursors";
    let (epoch, seq): (i64, i64) =
        sqlx::query_as(sql).fetch_one(&trial.cluster.pool).await.unwrap();
    (u64::try_from(epoch).unwrap(), u64::try_from(seq).unwrap())
}

/// Redis loses entries that PostgreSQL has applied, and others take their places. The hash chain
/// reveals it.
pub async fn log_cut_before_the_cursor(seed: u64) -> Outcome {
    let (mut trial, follower) = apart(seed).await;
    trial.a_while().await;
    let since_us = trial.settled().await;
    follower.freeze().await;
    trial.a_while().await;
    let (epoch, applied) = cursor(&trial).await;
    let kept = applied - trial.rng.u64(1..20).min(applied);
    let (removed, way) = cut_and_refill(&mut trial, epoch, kept).await;
    assert!(removed.iter().any(|entry| entry.seq <= applied), "the cursor is beyond the cut");
    let fork: Vec<String> = aof::entries(trial.cluster.redis.folder())
        .into_iter()
        .filter(|entry| entry.epoch == epoch && entry.seq > kept)
        .map(|entry| entry.tip)
        .collect();
    assert!(!fork.is_empty(), "Redis was refilled");

    follower.signal(Signal::SIGCONT);
    assert_eq!(trial.rebuilt_after(epoch).await, epoch + 1);
    way.open();
    assert!(
        follower.said("rebuilding the gate from PostgreSQL"),
        "the reconciler found it by itself"
    );
    for witness in &trial.retired {
        witness.signal(Signal::SIGCONT);
    }
    trial.forgive_since(since_us);
    let sql = "SELECT count(*) FROM watched_cursors WHERE tip = ANY($1)";
    let followed: i64 =
        sqlx::query_scalar(sql).bind(&fork).fetch_one(&trial.cluster.pool).await.unwrap();
    assert_eq!(followed, 0, "nothing of what took the places was applied");
    rebuilt(trial, 1).await
}

/// Redis loses entries that PostgreSQL has not applied yet, and others take their places. The
/// instances that gave the lost answers reveal it.
pub async fn log_cut_after_the_cursor(seed: u64) -> Outcome {
    let (mut trial, follower) = apart(seed).await;
    trial.a_while().await;
    let since_us = trial.settled().await;
    follower.freeze().await;
    trial.a_while().await;
    let (epoch, applied) = cursor(&trial).await;
    let last = trial.cluster.meta().await.seq;
    assert!(last > applied, "PostgreSQL is behind");
    let kept = trial.rng.u64(applied..last);
    let (removed, way) = cut_and_refill(&mut trial, epoch, kept).await;
    assert!(removed.iter().all(|entry| entry.seq > applied), "the cut is beyond the cursor");

    if trial.rng.bool() {
        // The follower applies the new entries, because nothing tells it that others were lost.
        follower.signal(Signal::SIGCONT);
        trial.a_while().await;
    }
    for (number, witness) in std::mem::take(&mut trial.retired).into_iter().enumerate() {
        witness.signal(Signal::SIGCONT);
        trial.retired.push(trial.fleet.exchange(number, witness));
    }
    follower.signal(Signal::SIGCONT);
    assert_eq!(trial.rebuilt_after(epoch).await, epoch + 1);
    way.open();
    eventually("it is said why", || async { follower.said("went back in time").then_some(()) })
        .await;
    trial.forgive_since(since_us);
    rebuilt(trial, 1).await
}

/// Kills Redis, cuts its log off after entry `kept`, and lets new instances fill it again. The
/// instances that know the lost entries are frozen and retired. The leader is frozen too, so the
/// restarted Redis is not taken over. The new instances therefore must not reach PostgreSQL, whose
/// cursor would fence them off. Returns the removed entries and the proxy between the new instances
/// and PostgreSQL.
async fn cut_and_refill(trial: &mut Trial, epoch: u64, kept: u64) -> (Vec<RawEntry>, Way) {
    let new = [Instance::ready(&trial.settings).await, Instance::ready(&trial.settings).await];
    trial.cluster.redis.kill().await;
    for (number, instance) in new.into_iter().enumerate() {
        let witness = trial.fleet.exchange(number, Arc::new(instance));
        // Clients that still hold this instance wait for its answer, and would wait as long as it
        // is frozen.
        eventually("clients have left", || async {
            (Arc::strong_count(&witness) == 1).then_some(())
        })
        .await;
        witness.freeze().await;
        trial.retired.push(witness);
        // This instance may have read the log itself before Redis was killed.
        trial.fleet.get(number).signal(Signal::SIGKILL);
    }
    let removed = aof::cut_after(trial.cluster.redis.folder(), epoch, kept);
    assert!(!removed.is_empty(), "something was cut off");
    trial.elsewhere.extend(removed.clone());
    trial.cluster.redis.restart().await.unwrap();
    let (way, cut_off) = Way::to_postgres(&trial.settings).await;
    way.close();
    for number in 0..trial.retired.len() {
        trial.fleet.replace(number, Instance::ready(&cut_off).await);
    }
    assert_eq!((trial.cluster.meta().await.epoch, trial.open_epoch().await), (epoch, epoch));
    let more = trial.rng.usize(3..60);
    trial.load.until_more(more, Duration::from_secs(30)).await;
    (removed, way)
}

/// Ends a trial whose gate was rebuilt this many times and may have lost decisions.
async fn rebuilt(trial: Trial, times: usize) -> Outcome {
    let outcome = trial.finish_with_losses().await;
    assert_eq!(outcome.epochs, times + 1, "rebuilt each time");
    outcome
}

/// `DEL` of only the log.
pub async fn log_deleted(seed: u64) -> Outcome {
    let (mut trial, follower) = apart(seed).await;
    trial.a_while().await;
    let since_us = fall_behind(&mut trial, &follower).await;
    let epoch = trial.open_epoch().await;
    let deleted: u64 = trial.cluster.raw.del(Keys::new(0, epoch).log()).await.unwrap();
    assert_eq!(deleted, 1, "there was a log");
    eventually("the cell is closed", || async {
        let meta = trial.cluster.meta().await;
        (meta.state == "closed" || meta.epoch > epoch).then_some(())
    })
    .await;
    follower.signal(Signal::SIGCONT);
    assert_eq!(trial.rebuilt_after(epoch).await, epoch + 1);
    trial.forgive_since(since_us);
    rebuilt(trial, 1).await
}

/// `FLUSHALL`, by an operator who takes Redis for a cache.
pub async fn all_flushed(seed: u64) -> Outcome {
    let (mut trial, follower) = apart(seed).await;
    for epoch in 1..3 {
        trial.a_while().await;
        let since_us = fall_behind(&mut trial, &follower).await;
        trial.cluster.flush_redis().await;
        follower.signal(Signal::SIGCONT);
        assert_eq!(trial.rebuilt_after(epoch).await, epoch + 1);
        trial.forgive_since(since_us);
    }
    rebuilt(trial, 2).await
}

/// Keys change their type, one after the other.
pub async fn key_of_a_wrong_type(seed: u64) -> Outcome {
    const KEYS: usize = 3;
    let (mut trial, follower) = apart(seed).await;
    let mut order: Vec<usize> = (0..kinds(1).len()).collect();
    trial.rng.shuffle(&mut order);
    let mut epoch = 1;
    for kind in order.into_iter().take(KEYS) {
        trial.a_while().await;
        let since_us = fall_behind(&mut trial, &follower).await;
        let key = kinds(epoch).swap_remove(kind);
        println!("{key} becomes a string");
        let _: () =
            trial.cluster.raw.set(&key, "somebody else's", None, None, false).await.unwrap();
        follower.signal(Signal::SIGCONT);
        let opened = trial.rebuilt_after(epoch).await;
        assert_eq!(opened, epoch + 1);
        epoch = opened;
        // All other keys can be rebuilt from the log and PostgreSQL; without the log, decisions are
        // lost.
        if key.ends_with(":log") {
            trial.forgive_since(since_us);
        }
    }
    rebuilt(trial, KEYS).await
}

/// One key of each kind.
fn kinds(epoch: u64) -> Vec<String> {
    let keys = Keys::new(0, epoch);
    let today = jiff::Timestamp::now().as_millisecond().div_euclid(DAY_MS);
    let mut all = keys.fixed();
    all.extend([Keys::meta(0), keys.idempotency(today), keys.idempotency(today - 1)]);
    all
}

/// `SCRIPT FLUSH`: clients do not notice.
pub async fn scripts_flushed(seed: u64) -> Outcome {
    let mut trial = Trial::begin(seed, Setup::default()).await;
    let since_us = trial.load.now_us();
    for _ in 0..5 {
        trial.a_while().await;
        trial.cluster.raw.script_flush(trial.rng.bool()).await.unwrap();
    }
    trial.a_while().await;
    assert_eq!(trial.load.troubles(since_us), BTreeMap::new());
    let (outcome, _) = trial.finish().await;
    assert_eq!(outcome.epochs, 1, "nothing was rebuilt");
    outcome
}
