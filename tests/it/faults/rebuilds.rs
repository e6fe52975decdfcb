//! Rebuilds that nothing requires: under traffic, and several at once.

use std::collections::BTreeSet;
use std::time::Duration;

use fred::interfaces::KeysInterface;
use futures::future::{join, join_all};
use rushgate::redis::keys::Keys;

use super::proxy::Proxy;
use super::{Outcome, Setup, Trial};
use crate::cluster::{Cluster, Instance, Private, Settings, eventually};
use crate::history::aof;
use crate::history::client::{Fleet, Mix};

const SERVES_AGAIN: Duration = Duration::from_secs(15);

/// Operators rebuild one after the other under traffic. The leader finds the cell closed and
/// rebuilds too.
pub async fn rebuild_under_traffic(seed: u64) -> Outcome {
    rebuilt(seed, 3, 1..2).await
}

/// Several operators rebuild at the same moment.
pub async fn rebuilds_at_once(seed: u64) -> Outcome {
    rebuilt(seed, 2, 2..5).await
}

/// A rebuild is overtaken by another one when only its last steps are left. It must not open the
/// cell, although nothing else is open yet, and it must leave nothing behind when it continues
/// after the other.
pub async fn rebuild_overtaken(seed: u64) -> Outcome {
    let (cluster, settings) = Trial::servers(Private::default(), vec![]).await;
    // The leader would rebuild faster than both, so it is killed and starts again afterwards.
    let leads = settings.with("RUSHGATE_ROLES", "reconciler");
    let leader = Instance::ready(&leads).await;
    let asked = settings.with("RUSHGATE_ROLES", "api,relay,scheduler");
    let fleet = Fleet::start(&[&asked, &asked]).await;
    let (first, second) =
        (Slow::start(&cluster, &settings).await, Slow::start(&cluster, &settings).await);
    let mut trial = Trial::on(seed, cluster, asked, fleet, Mix::default()).await;
    trial.a_while().await;
    leader.kill().await;
    let before = trial.open_epoch().await;
    // Which rebuild continues last is random. The overtaken one either loads data after the other
    // has cleaned up, or tries to open before the other.
    let (overtaken_last, early) = (trial.rng.bool(), trial.rng.bool());
    first.until_step(before + 1, overtaken_last || early);
    second.until_step(before + 2, trial.rng.bool());
    let mut turns = [&first.proxy, &second.proxy];
    turns.rotate_left(usize::from(overtaken_last));
    let between = Duration::from_millis(trial.rng.u64(50..300));
    let overtake = async {
        first.proxy.until_held().await;
        let later = async {
            second.proxy.until_held().await;
            turns[0].release();
            // If the first one opened here, decisions in its epoch would be lost.
            tokio::time::sleep(between).await;
            turns[1].release();
        };
        join(rebuild(&second.settings, 0), later).await.0
    };
    let opened = join(rebuild(&first.settings, 0), overtake).await;
    let _leader = Instance::ready(&leads).await;
    trial.serves_within(SERVES_AGAIN).await;
    let epoch = one_epoch(&trial).await;
    assert!(opened.0.is_none() && opened.1.is_none_or(|second| second == before + 2), "{opened:?}");
    let all = aof::opened(trial.cluster.redis.folder());
    assert!(
        !all.contains(&(before + 1)) && all.last() == Some(&epoch) && epoch > before + 1,
        "{all:?}"
    );
    written_in_order(&trial);
    let (outcome, report) = trial.finish().await;
    assert_eq!(report.aside, 0, "what was decided in an old epoch was applied before it ended");
    outcome
}

/// A `rushgate rebuild` that can be held at a step.
struct Slow {
    proxy: Proxy,
    settings: Settings,
}

impl Slow {
    async fn start(cluster: &Cluster, settings: &Settings) -> Self {
        let proxy = Proxy::start(cluster.redis.port()).await;
        Self { settings: settings.with("RUSHGATE_REDIS_URL", proxy.url()), proxy }
    }

    /// Holds the rebuild that has claimed this epoch, either before it loads or before it opens.
    fn until_step(&self, epoch: u64, loads: bool) {
        let keys = Keys::new(0, epoch);
        self.proxy.hold_calls_with(&if loads { keys.wallets() } else { keys.log() });
    }
}

async fn rebuilt(seed: u64, rounds: usize, at_once: std::ops::Range<usize>) -> Outcome {
    let mut trial = Trial::begin(seed, Setup::default()).await;
    for _ in 0..rounds {
        trial.a_while().await;
        let before = trial.open_epoch().await;
        let starts: Vec<u64> =
            (0..trial.rng.usize(at_once.clone())).map(|_| trial.rng.u64(..60)).collect();
        let opened =
            join_all(starts.iter().map(|start_ms| rebuild(&trial.settings, *start_ms))).await;
        trial.serves_within(SERVES_AGAIN).await;
        let epoch = one_epoch(&trial).await;
        let told: BTreeSet<u64> = opened.iter().flatten().copied().collect();
        assert_eq!(
            told.len(),
            opened.iter().flatten().count(),
            "no epoch is opened twice: {opened:?}"
        );
        assert!(
            epoch > before && told.last().is_none_or(|last| epoch >= *last),
            "{before}, {opened:?}, {epoch}"
        );
    }
    written_in_order(&trial);
    let (outcome, report) = trial.finish().await;
    assert!(outcome.epochs > rounds, "each rebuild began an epoch: {outcome:?}");
    assert_eq!(report.aside, 0, "what was decided in an old epoch was applied before it ended");
    outcome
}

/// Runs `rushgate rebuild`. Returns the epoch that it opened, or `None` if another rebuild was
/// faster.
pub async fn rebuild(settings: &Settings, start_ms: u64) -> Option<u64> {
    tokio::time::sleep(Duration::from_millis(start_ms)).await;
    let finished = settings.run(&["rebuild"]).await;
    if finished.stderr.contains("timed out") {
        // The machine is too busy for the limits of single commands; the leader goes on.
        return None;
    }
    let said = finished.assert_success().stdout;
    let epoch = said
        .trim()
        .strip_prefix("Cell 0 is open, in epoch ")
        .map(|rest| rest.trim_end_matches('.'));
    assert!(epoch.is_some() || said.contains("Another rebuild was faster"), "{said}");
    epoch.map(|epoch| epoch.parse().unwrap())
}

/// The epoch that has won: the highest one claimed, PostgreSQL's epoch, and the only one that still
/// has keys in Redis.
async fn one_epoch(trial: &Trial) -> u64 {
    let epoch = eventually("one epoch has won", || async {
        let meta = trial.cluster.meta().await;
        let cursor = trial.cluster.number("SELECT epoch FROM cell_cursors").await.cast_unsigned();
        (meta.state == "open" && meta.claim == meta.epoch && cursor == meta.epoch)
            .then_some(meta.epoch)
    })
    .await;
    eventually("the keys of other epochs are gone", || async {
        (epochs_of_keys(trial).await.ok()? == [epoch].into()).then_some(())
    })
    .await;
    epoch
}

async fn epochs_of_keys(trial: &Trial) -> Result<BTreeSet<u64>, fred::error::Error> {
    let (mut found, mut cursor) = (BTreeSet::new(), String::from("0"));
    loop {
        let (next, keys): (String, Vec<String>) =
            trial.cluster.raw.scan_page(cursor, "rg:{0}:*", Some(1_000), None).await?;
        found.extend(keys.iter().filter_map(|key| key.split(':').nth(2)?.parse::<u64>().ok()));
        if next == "0" {
            return Ok(found);
        }
        cursor = next;
    }
}

/// Checks that Redis got no entry of an earlier epoch after the first entry of a later one.
fn written_in_order(trial: &Trial) {
    let written = aof::entries(trial.cluster.redis.folder());
    let late = written.windows(2).find(|pair| pair[0].epoch > pair[1].epoch);
    assert!(late.is_none(), "written into an epoch that was over: {late:?}");
    assert!(written.len() > 50, "{} entries", written.len());
}
