//! Runs all faults over and over for a given time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::task::{LocalSet, spawn_local};

use super::{FAULTS, Fault, Outcome};

/// Concurrent trials.
const AT_ONCE: usize = 2;

/// Results of all runs of one fault.
#[derive(Default)]
struct Sum {
    runs: usize,
    broken: Vec<u64>,
    total: Outcome,
}

impl Sum {
    fn add(&mut self, seed: u64, outcome: Option<Outcome>) {
        self.runs += 1;
        let Some(outcome) = outcome else {
            self.broken.push(seed);
            return;
        };
        let total = &mut self.total;
        total.operations += outcome.operations;
        total.unknown += outcome.unknown;
        total.facts += outcome.facts;
        total.checked += outcome.checked;
        total.epochs += outcome.epochs;
        total.gone += outcome.gone;
        total.recovery = total.recovery.max(outcome.recovery);
    }
}

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: {text}?")))
}

/// `./dev chaos`. Settings: RUSHGATE_CHAOS_MINUTES, RUSHGATE_CHAOS_SEED, and RUSHGATE_CHAOS_ONLY
/// (part of a fault's name).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs for minutes: ./dev chaos"]
async fn chaos() {
    let minutes: f64 = setting("RUSHGATE_CHAOS_MINUTES").unwrap_or(10.0);
    let seed: u64 = setting("RUSHGATE_CHAOS_SEED").unwrap_or_else(|| Rng::new().u64(..1_000_000));
    let only: String = setting("RUSHGATE_CHAOS_ONLY").unwrap_or_default();
    let chosen: Vec<Fault> =
        FAULTS.iter().copied().filter(|fault| fault.name.contains(&only)).collect();
    assert!(!chosen.is_empty(), "no fault has {only} in its name");
    println!("chaos: {minutes} minutes, seed {seed}, {} faults:", chosen.len());
    chosen.iter().for_each(|fault| println!("  {}: {}", fault.name, fault.expected));

    let deadline = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let queue = Arc::new(Mutex::new(Queue { rng: Rng::with_seed(seed), chosen, left: vec![] }));
    let sums: Arc<Mutex<BTreeMap<&'static str, Sum>>> = Arc::default();
    let workers = (0..AT_ONCE).map(|_| {
        let (queue, sums) = (Arc::clone(&queue), Arc::clone(&sums));
        spawn_local(async move {
            while Instant::now() < deadline {
                let (fault, seed) = queue.lock().unwrap().next();
                let outcome = spawn_local((fault.run)(seed)).await;
                let told = if outcome.is_ok() { "kept" } else { "BROKEN" };
                println!("{} (seed {seed}): {told}", fault.name);
                sums.lock().unwrap().entry(fault.name).or_default().add(seed, outcome.ok());
            }
        })
    });
    let all = async { futures::future::join_all(workers).await };
    for worker in LocalSet::new().run_until(all).await {
        worker.unwrap();
    }
    let sums = sums.lock().unwrap();
    table(&sums);
    let broken: Vec<_> =
        sums.iter().filter(|(_, sum)| !sum.broken.is_empty()).map(|(name, _)| name).collect();
    assert!(broken.is_empty(), "promises were broken: {broken:?}");
}

/// Runs every fault once in random order, then starts again.
struct Queue {
    rng: Rng,
    chosen: Vec<Fault>,
    left: Vec<Fault>,
}

impl Queue {
    fn next(&mut self) -> (Fault, u64) {
        if self.left.is_empty() {
            self.left.clone_from(&self.chosen);
            self.rng.shuffle(&mut self.left);
        }
        let fault = self.left.pop().unwrap_or(self.chosen[0]);
        (fault, self.rng.u64(..1_000_000_000))
    }
}

fn table(sums: &BTreeMap<&'static str, Sum>) {
    println!(
        "\n| fault | runs | requests | unclear | decisions | answers checked | epochs | gone | slowest recovery | broken |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let mut all = Sum::default();
    for (name, sum) in sums {
        row(name, sum);
        all.runs += sum.runs;
        all.total.operations += sum.total.operations;
        all.total.unknown += sum.total.unknown;
        all.total.facts += sum.total.facts;
        all.total.checked += sum.total.checked;
        all.total.epochs += sum.total.epochs;
        all.total.gone += sum.total.gone;
        all.total.recovery = all.total.recovery.max(sum.total.recovery);
        all.broken.extend(&sum.broken);
    }
    row("all", &all);
}

fn row(name: &str, Sum { runs, broken, total }: &Sum) {
    let recovery =
        total.recovery.map_or("–".into(), |took| format!("{:.1} s", took.as_secs_f64()));
    let broken = if broken.is_empty() { "none".into() } else { format!("seeds {broken:?}") };
    let Outcome { operations, unknown, facts, checked, epochs, gone, .. } = total;
    println!(
        "| {name} | {runs} | {operations} | {unknown} | {facts} | {checked} | {epochs} | {gone} | {recovery} | {broken} |"
    );
}
