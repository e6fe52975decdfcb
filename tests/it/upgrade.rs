//! An earlier version and this one run side by side on the same servers under load, with the
//! migration in between: upgrade, downgrade, and upgrade again. `./dev upgrade` builds the earlier
//! version and runs this test.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cluster::{Instance, Settings, eventually};
use crate::faults::{Outcome, Trial};
use crate::history::client::{Fleet, Mix};

/// How long clients may wait for their next successes after an exchange.
const SERVES_AGAIN: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Version {
    Earlier,
    This,
}
use Version::{Earlier, This};

/// Which of the two instances is exchanged for which version. Each version leads, follows and
/// rebuilds beside the other.
const EXCHANGES: [(usize, Version); 8] = [
    (1, This),
    (0, This),
    (1, Earlier),
    (0, Earlier),
    (0, This),
    (0, Earlier),
    (0, This),
    (1, This),
];

#[tokio::test]
#[ignore = "it needs the binary of an earlier version: `./dev upgrade`"]
async fn side_by_side() {
    let earlier = std::env::var("RUSHGATE_EARLIER_BINARY").expect("run it by `./dev upgrade`");
    let seed = crate::faults::seed();
    let outcome = Box::pin(run(&earlier, seed)).await;
    println!("{outcome:?}");
    assert!(outcome.facts > 500, "too little was decided to prove anything: {outcome:?}");
}

async fn run(earlier: &str, seed: u64) -> Outcome {
    let (cluster, settings) = Trial::servers(Default::default(), vec![]).await;
    let versions = |version| match version {
        Earlier => settings.binary(earlier),
        This => settings.clone(),
    };
    let fleet = Fleet::start(&[&versions(Earlier), &versions(Earlier)]).await;
    // A later version records the key of a cancellation that comes too late, as a logged charge of
    // 0. The earlier version answers differently and adds a ledger line for it. Both are known, and
    // are not tested here.
    // And it does not know the format of the log that some rules need.
    let mix = Mix { keyed_cancels: false, latest_format: false, ..Mix::default() };
    let mut trial = Trial::on(seed, cluster, settings.clone(), fleet, mix).await;
    trial.a_while().await;
    settings.run(&["migrate"]).await.assert_success();
    trial.serves_within(SERVES_AGAIN).await;
    for (number, version) in EXCHANGES {
        println!("instance {number} becomes {version:?}");
        exchange(&trial, number, &versions(version)).await;
        trial.serves_within(SERVES_AGAIN).await;
        trial.a_while().await;
        // Each version decides on a gate that the other has loaded.
        let epoch = trial.open_epoch().await;
        versions(version).run(&["rebuild"]).await.assert_success();
        trial.rebuilt_after(epoch).await;
        trial.serves_within(SERVES_AGAIN).await;
        trial.a_while().await;
    }
    trial.settled().await;
    let (outcome, _) = trial.finish().await;
    outcome
}

/// Like an operator: the new instance is ready before the old one gets SIGTERM.
async fn exchange(trial: &Trial, number: usize, settings: &Settings) {
    let instance = Arc::new(Instance::ready(settings).await);
    let mut former = trial.fleet.exchange(number, instance);
    // Clients with requests in flight still hold the old instance.
    let deadline = Instant::now() + SERVES_AGAIN;
    let former = loop {
        match Arc::try_unwrap(former) {
            Ok(instance) => break instance,
            Err(shared) => former = shared,
        }
        assert!(Instant::now() < deadline, "somebody still talks to the former instance");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    former.stop().await;
    eventually("the cell is open", || async {
        (trial.cluster.meta().await.state == "open").then_some(())
    })
    .await;
}
