//! Rebuilds where none was needed: several at once, and under traffic.

use std::collections::BTreeSet;
use std::time::Duration;

use fred::interfaces::KeysInterface;
use futures::future::join_all;

use super::{Outcome, Setup, Trial};
use crate::cluster::{Settings, eventually};
use crate::history::aof;

const SERVES_AGAIN: Duration = Duration::from_secs(15);

/// Operators rebuild, one after the other, while clients go on. The leader finds the cell closed and rebuilds, too.
pub async fn rebuild_under_traffic(seed: u64) -> Outcome {
    rebuilt(seed, 3, 1..2).await
}

/// Several operators rebuild at the same moment.
pub async fn rebuilds_at_once(seed: u64) -> Outcome {
    rebuilt(seed, 2, 2..5).await
}

async fn rebuilt(seed: u64, rounds: usize, at_once: std::ops::Range<usize>) -> Outcome {
    let mut trial = Trial::begin(seed, Setup::default()).await;
    for _ in 0..rounds {
        trial.a_while().await;
        let before = trial.open_epoch().await;
        let starts: Vec<u64> = (0..trial.rng.usize(at_once.clone())).map(|_| trial.rng.u64(..60)).collect();
        let opened = join_all(starts.iter().map(|start_ms| rebuild(&trial.settings, *start_ms))).await;
        trial.serves_within(SERVES_AGAIN).await;
        let epoch = one_epoch(&trial).await;
        let told: BTreeSet<u64> = opened.iter().flatten().copied().collect();
        assert_eq!(told.len(), opened.iter().flatten().count(), "no epoch is opened twice: {opened:?}");
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

/// `rushgate rebuild`; the epoch that it opened, unless another rebuild was faster.
async fn rebuild(settings: &Settings, start_ms: u64) -> Option<u64> {
    tokio::time::sleep(Duration::from_millis(start_ms)).await;
    let finished = settings.run(&["rebuild"]).await;
    if finished.stderr.contains("timed out") {
        return None; // a machine too busy for the limits of single commands; the leader goes on
    }
    let said = finished.assert_success().stdout;
    let epoch = said.trim().strip_prefix("Cell 0 is open, in epoch ").map(|rest| rest.trim_end_matches('.'));
    assert!(epoch.is_some() || said.contains("Another rebuild was faster"), "{said}");
    epoch.map(|epoch| epoch.parse().unwrap())
}

/// The epoch that has won: the highest that anybody claimed, PostgreSQL's, and the only one that Redis has keys of.
async fn one_epoch(trial: &Trial) -> u64 {
    let epoch = eventually("one epoch has won", || async {
        let meta = trial.cluster.meta().await;
        let cursor = trial.cluster.number("SELECT epoch FROM cell_cursors").await.cast_unsigned();
        (meta.state == "open" && meta.claim == meta.epoch && cursor == meta.epoch).then_some(meta.epoch)
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

/// Once Redis had the first entry of an epoch, it got none of an earlier one.
fn written_in_order(trial: &Trial) {
    let written = aof::entries(trial.cluster.redis.folder());
    let late = written.windows(2).find(|pair| pair[0].epoch > pair[1].epoch);
    assert!(late.is_none(), "written into an epoch that was over: {late:?}");
    assert!(written.len() > 50, "{} entries", written.len());
}
