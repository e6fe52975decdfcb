//! A trial: servers, instances and clients, and the history check at the end.
//!
//! A fault creates a [`Trial`], acts on it while the clients run, and ends it with
//! [`Trial::finish`], which returns an [`Outcome`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rushgate::log::RawEntry;
use rushgate::redis::meta::Meta;
use uuid::Uuid;

use crate::cluster::{Cluster, Instance, Private, Settings, eventually};
use crate::history::checker::{Expect, Report, SOLD_OUT_MEMORY_US, check};
use crate::history::client::{Fleet, Load, Mix};
use crate::history::collect;

/// How long clients may wait for their next successes when nothing is wrong.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// RUSHGATE_TEST_SEED, or a constant, so that CI repeats what ran before.
pub fn seed() -> u64 {
    std::env::var("RUSHGATE_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// RUSHGATE_CHAOS_AT_LENGTH: faults last as long as the guarantees say, not only as long as they
/// must.
pub fn at_length() -> bool {
    std::env::var_os("RUSHGATE_CHAOS_AT_LENGTH").is_some()
}

/// The servers, instances and clients of a trial.
pub struct Setup {
    pub private: Private,
    pub instances: usize,
    /// Additional settings of the instances.
    pub settings: Vec<(&'static str, String)>,
    pub mix: Mix,
}

impl Default for Setup {
    fn default() -> Self {
        Self { private: Private::default(), instances: 2, settings: vec![], mix: Mix::default() }
    }
}

pub struct Trial {
    pub cluster: Cluster,
    pub fleet: Arc<Fleet>,
    pub load: Load,
    /// Decides when the fault strikes, and what it hits.
    pub rng: Rng,
    /// What the fault permits.
    pub expect: Expect,
    /// Entries that were held only by a Redis that no longer exists.
    pub elsewhere: Vec<RawEntry>,
    /// Running instances that clients no longer use.
    pub retired: Vec<Arc<Instance>>,
    /// How long the fault kept the shop from serving, if measured.
    pub recovery: Option<Duration>,
    pub settings: Settings,
}

/// Acknowledged decisions that are gone must be listed in an instance's log. Everything that is
/// listed must be gone, whether or not it was acknowledged.
async fn assert_listed(instances: &[Arc<Instance>], report: &Report) {
    let listed = || -> HashSet<String> {
        instances.iter().flat_map(|instance| instance.listed_as_gone()).collect()
    };
    // Changes by staff have no id.
    let gone: Vec<&String> = report.gone.iter().filter(|id| Uuid::parse_str(id).is_ok()).collect();
    let missing = || {
        let listed = listed();
        gone.iter().filter(|id| !listed.contains(**id)).collect::<Vec<_>>()
    };
    let deadline = Instant::now() + PATIENCE;
    while !missing().is_empty() {
        assert!(Instant::now() < deadline, "gone, and in no list: {:?}", missing());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let wrong: Vec<String> =
        listed().into_iter().filter(|id| !report.aside_ids.contains(id)).collect();
    assert!(wrong.is_empty(), "listed, and not gone: {wrong:?}");
}

fn with_all(settings: &Settings, changes: Vec<(&'static str, String)>) -> Settings {
    let settings = settings.with("RUSHGATE_REQUEST_TIMEOUT_MS", "3000");
    changes.into_iter().fold(settings, |settings, (name, value)| settings.with(name, value))
}

/// The result of a trial.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Requests of clients.
    pub operations: usize,
    /// Requests without a clear answer.
    pub unknown: usize,
    /// Decisions in the log.
    pub facts: usize,
    /// Answers that were compared with the log.
    pub checked: usize,
    pub epochs: usize,
    /// Acknowledged decisions that are gone; 0 unless Redis lost its disk.
    pub gone: usize,
    pub recovery: Option<Duration>,
}

impl Trial {
    /// Starts a shop on its own servers, with running clients.
    pub async fn begin(seed: u64, setup: Setup) -> Self {
        let (cluster, settings) = Self::servers(setup.private, setup.settings).await;
        let fleet = Fleet::start(&vec![&settings; setup.instances]).await;
        Self::on(seed, cluster, settings, fleet, setup.mix).await
    }

    /// Starts servers configured for history checking. Returns them with the settings of their
    /// instances.
    pub async fn servers(
        mut private: Private,
        changes: Vec<(&'static str, String)>,
    ) -> (Cluster, Settings) {
        private.redis_config.extend(collect::redis_config());
        let cluster = Cluster::with(private).await;
        let settings = with_all(&cluster.settings, changes);
        (cluster, settings)
    }

    /// Starts instances that serve only the API, and one (the follower) with all other roles, so
    /// that either can be stopped alone.
    pub async fn apart(seed: u64, setup: Setup) -> (Self, Instance) {
        let (cluster, settings) = Self::servers(setup.private, setup.settings).await;
        let follower = cluster.start_roles("reconciler,relay,scheduler").await;
        let settings = settings.with("RUSHGATE_ROLES", "api");
        let fleet = Fleet::start(&vec![&settings; setup.instances]).await;
        (Self::on(seed, cluster, settings, fleet, setup.mix).await, follower)
    }

    /// Starts a trial on existing servers and instances. The shop must be open and empty.
    pub async fn on(
        seed: u64,
        cluster: Cluster,
        settings: Settings,
        fleet: Arc<Fleet>,
        mix: Mix,
    ) -> Self {
        println!("seed {seed}");
        collect::watch_cursor(&cluster.pool).await;
        let load = Load::start(&fleet, seed, mix).await;
        Self {
            cluster,
            fleet,
            load,
            rng: Rng::with_seed(seed),
            expect: Expect::default(),
            elsewhere: vec![],
            retired: vec![],
            recovery: None,
            settings,
        }
    }

    /// Lets the clients continue until a random moment.
    pub async fn a_while(&mut self) {
        let more = self.rng.usize(20..120);
        self.load.until_more(more, PATIENCE).await;
        tokio::time::sleep(Duration::from_micros(self.rng.u64(..5_000))).await;
    }

    /// The same while nothing follows the gate. Most clients then wait for PostgreSQL until their
    /// request times out: about one change a second was seen to succeed.
    pub async fn a_while_unfollowed(&mut self) {
        let more = self.rng.usize(5..25);
        self.load.until_more(more, PATIENCE).await;
    }

    /// The number of a random instance.
    pub fn somebody(&mut self) -> usize {
        self.rng.usize(..self.fleet.all().len())
    }

    /// Replaces this instance with a new one that is ready.
    pub async fn start_again(&self, number: usize) {
        self.fleet.replace(number, Instance::ready(&self.settings).await);
    }

    /// From now on the shop must serve. Waits for further successes and records how long they took.
    pub async fn serves_within(&mut self, limit: Duration) {
        let since = Instant::now();
        self.load.until_more(3, limit).await;
        let took = since.elapsed();
        self.recovery = Some(self.recovery.map_or(took, |before| before.max(took)));
    }

    /// Waits until the cell is open, and returns its epoch.
    pub async fn open_epoch(&self) -> u64 {
        let meta = eventually("the cell is open", || async {
            let meta = self.cluster.meta().await;
            (meta.state == "open").then_some(meta)
        })
        .await;
        meta.epoch
    }

    /// Waits until PostgreSQL has everything decided so far. Returns the time: whatever is lost
    /// from here on was decided later.
    pub async fn settled(&self) -> u64 {
        let now_us = self.load.now_us();
        let Meta { epoch, seq, .. } = self.cluster.meta().await;
        eventually("PostgreSQL has what was decided", || async {
            let meta = self.cluster.meta().await;
            (meta.epoch > epoch || meta.applied >= seq).then_some(())
        })
        .await;
        now_us
    }

    /// Waits until the gate has been rebuilt after this epoch. Returns the epoch that is open now.
    pub async fn rebuilt_after(&self, epoch: u64) -> u64 {
        eventually("the gate is built anew", || async {
            let meta = self.cluster.meta().await;
            (meta.state == "open" && meta.epoch > epoch).then_some(meta.epoch)
        })
        .await
    }

    /// Permits the loss of anything that clients have seen since then: Redis lost acknowledged
    /// writes.
    pub fn forgive_since(&mut self, since_us: u64) {
        self.expect.may_lose = true;
        self.forgive_reads_since(since_us);
    }

    /// Permits the loss of what clients have read since then, but of nothing that was acknowledged.
    pub fn forgive_reads_since(&mut self, since_us: u64) {
        // An instance may refuse from memory for a little longer.
        self.expect.forgiven_us.push((since_us, self.load.now_us() + SOLD_OUT_MEMORY_US));
    }

    /// Lets the clients continue a while, then checks the history. Panics if a promise is broken.
    pub async fn finish(self) -> (Outcome, Report) {
        let (outcome, report, _servers) = self.conclude().await;
        (outcome, report)
    }

    /// The same for trials in which acknowledged decisions were lost. The instances must have
    /// listed exactly what is gone.
    pub async fn finish_with_losses(self) -> Outcome {
        let instances: Vec<Arc<Instance>> =
            self.fleet.all().into_iter().chain(self.retired.clone()).collect();
        let (outcome, report, _servers) = self.conclude().await;
        assert_listed(&instances, &report).await;
        outcome
    }

    async fn conclude(mut self) -> (Outcome, Report, Cluster) {
        self.a_while().await;
        let operations = self.load.stop().await;
        let history = collect::collect(&self.cluster, operations, self.elsewhere).await;
        let report = check(&history, &self.expect);
        report.assert_clean();
        let outcome = Outcome {
            operations: history.operations.len(),
            unknown: history.operations.iter().filter(|op| op.unknown()).count(),
            facts: report.facts,
            checked: report.checked,
            epochs: report.epochs,
            gone: report.gone.len(),
            recovery: self.recovery,
        };
        (outcome, report, self.cluster)
    }
}
